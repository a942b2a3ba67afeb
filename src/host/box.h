/*
 * Boxes: processes that run code nobody trusts, at full speed and under our control.
 *
 * A box has an address space of its own with nothing in it but two small areas: at BOX_AT a few
 * instructions that make the system calls we want made there, and what they are told. Everything
 * else is mapped from one memory file, or absent. The thread that made a box traces it: it sets
 * registers, lets the box run, and gets it back at its first exception, system call (which is not
 * made) or box_kick(). A box cannot make a system call of its own: a filter knows those that we
 * have made there. It dies with its tracer.
 *
 * All functions but box_kick() are for the thread that called box_create(). Errors are -errno; a
 * box that returned one is of no use any more and only to be destroyed.
 */
#pragma once

#include "base/types.h"

#include <sys/user.h>

#define BOX_AT      0x6b5a3c000000ul /* far from where programs and kernels put things */
#define BOX_END     (BOX_AT + (17ul << PAGE_SHIFT))
#define BOX_TOP     0x7ffffffff000ul /* where addresses end */
#define BOX_FPU_MAX (16 * KIB)
#define BOX_BREAKS  4
#define BOX_CPUS    1024 /* of the host */

struct box;

/* How many threads and their boxes stay on which CPU: for the threads that share it. */
struct box_crowd {
	_Atomic u16 at[BOX_CPUS];
};

enum box_stop {
	BOX_CALL,   /* a system-call instruction, behind it: regs->orig_rax has what was in rax */
	BOX_SIGNAL, /* an exception, or a kick: see struct box_signal */
	BOX_GONE,   /* the process is dead, with the registers it had */
};

struct box_signal {
	int nr;      /* SIGSEGV, ... */
	int code;    /* siginfo.si_code; for SIGSEGV, SIGTRAP and SIGSYS only */
	u64 address; /* siginfo.si_addr or, for SIGSYS, si_call_addr */
};

/*
 * A box in whose address space parts of @fd (borrowed until here) can be mapped. The process is
 * copied, so that it should be small at that time; not possible any more under a system-call
 * filter. @crowd lives longer than it. -ENOTSUP: not in this build.
 */
int box_create(int fd, struct box_crowd *crowd, struct box **out);

/* Another one, from @seed: no copy of this process, and possible under a filter. */
int box_fork(struct box *seed, struct box **out);

void box_destroy(struct box *b);

/*
 * Map [@at, @at + @size) from @offset of the file on with PROT_* @prot; change its protection;
 * unmap it. Noted at first, done before the box runs next. False: too many are noted; then
 * only box_clear() helps. May be called by other threads, one at a time.
 */
bool box_map(struct box *b, u64 at, u64 size, u8 prot, u64 offset);
bool box_protect(struct box *b, u64 at, u64 size, u8 prot);
bool box_unmap(struct box *b, u64 at, u64 size);

/*
 * Does CPUID stop a box like an exception? It depends on the processor, and what is above us. If
 * so it faults in the tracing thread, too, while that runs boxes: whoever handles SIGSEGV there
 * calls box_lift_guard() if the instruction is one. False: that is not why it faulted. RDTSC and
 * RDTSCP always stop a box.
 */
bool box_stops_at_cpuid(const struct box *b);
bool box_lift_guard(void);

/* Breakpoint @n is at @address from now on, or, if that is 0, nowhere: the box stops there by
 * SIGTRAP, TRAP_HWBKPT, with the instruction not executed. Each in use costs most of a microsecond
 * when the box runs. 0 or -errno. */
int box_break_at(struct box *b, u32 n, u64 address);

/* Forget what is noted, and unmap everything, before the box runs next. */
void box_clear(struct box *b);

/* Do what was noted. 0, or -errno when the host refused something. */
int box_settle(struct box *b);

/*
 * What is noted is done by the next box_run(), on the way: at the cost of no stop of its own. No
 * other thread may note anything meanwhile; what it notes afterwards is for later. How many changes
 * that are, or -errno.
 */
int box_prepare(struct box *b);

/*
 * Run with the registers @regs until the box stops; @regs is then what they are. 0 with what
 * stopped it, or -errno if it could not be started. What is noted must have been done, or prepared.
 */
int box_run(struct box *b, struct user_regs_struct *regs, enum box_stop *why,
	    struct box_signal *signal);

/*
 * A thread stays on one CPU from when a box of it runs until this, which is to be called some
 * hundred times a second, so that the host can move it. @b: any of its boxes.
 */
void box_release(struct box *b);

/* Processor time that the box has had so far, in ns, the host's work for it included. */
u64 box_cpu_time(const struct box *b);

/* Make box_run(), now or when next called, return soon. From any thread. */
void box_kick(struct box *b);

/* Vector and x87 state in the standard XSAVE format, of @size bytes (BOX_FPU_MAX at most). */
int box_fpu_get(struct box *b, void *image, u32 *size);
int box_fpu_set(struct box *b, const void *image, u32 size);
