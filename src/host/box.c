/*
 * Boxes, by ptrace.
 *
 * Theory of operation. The first box of a thread is a fork of this process, which then unmaps
 * everything that it does not need; further ones are forked from that one, made to do so like
 * anything else that a box does for us: its registers are set to a system call, and it runs up to
 * the INT3 behind it. However guest code reaches a SYSCALL instruction, in its own pages or in the
 * stub, and whatever is in registers, nothing happens but a stop: a filter permits only calls that
 * have 64 bits of secret in halves of arguments that the kernel ignores. The secret is known to us
 * and to the filter, and is in the box's registers only while the stub runs; it lies in no memory
 * of the box. Guest code that is entered without the stub runs with PTRACE_SYSEMU besides, which
 * stops ahead of a system call and costs less than the filter's refusal.
 *
 * What the stub is told lies in an area that is shared with us and that the box can only read.
 * Registers never pass through memory that the box could write.
 *
 * Mappings are noted in struct box and made in one go, because each stop costs some microseconds,
 * on the way into guest code.
 */
#include "host/box.h"

#include "host/raw_call.h"

#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	ORDERS_SIZE = 16 << PAGE_SHIFT,
	NOTES_MAX = 8192,
	BOX_FD = 0, /* the file's, in the box */
	USER_CS = 0x33,
	USER_SS = 0x2b,
	CALL_STOP = SIGTRAP | 0x80, /* PTRACE_O_TRACESYSGOOD */
	KICK = SIGUSR1,
};
#define ORDERS_AT (BOX_AT + PAGE_SIZE)

/* A system call for the stub. */
struct order {
	u64 nr, arg[6];
};

/* Where guest code is entered, in the order in which the stub loads it. */
struct entry {
	u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	u64 rip, cs, eflags, rsp, ss;
};

enum { ORDERS_MAX = (ORDERS_SIZE - sizeof(struct entry)) / sizeof(struct order) };

struct orders {
	struct entry entry;
	struct order order[ORDERS_MAX];
};

struct note {
	u64 at, size, offset;
	u8 prot;
	enum { NOTE_MAP, NOTE_PROTECT, NOTE_UNMAP } what;
};

/* Where a thread and its boxes run. */
struct home {
	cpu_set_t all; /* where it may */
	struct box_crowd *crowd;
	u64 secret;
	int cpu;                    /* where it stays until box_release(), or -1 */
	bool can_guard, is_guarded; /* CPUID faults in the boxes; and in the thread */
	bool ran;                   /* one of its boxes, since box_release() */
};

struct box {
	_Atomic int pid;
	struct orders *orders; /* what all boxes of a thread share, */
	struct home *home;     /* and this */
	bool owns_orders;
	int cpu; /* the host's that it may run on, or -1 */
	u32 breaks, notes;
	u32 ready;   /* orders that box_run() has carried out first */
	bool kicked; /* while we were at something else */
	struct note note[NOTES_MAX];
};

extern const u8 box_stub[], box_stub_end[], box_stub_empty[], box_stub_call[], box_stub_batch[],
	box_stub_enter[];

static u64 stub_address(const u8 *label)
{
	return BOX_AT + (u64)(label - box_stub);
}

/* ---- in the new process ---- */

/* The kernel would write to this thread's area of restartable sequences. */
static void forget_rseq(void)
{
	const u64 area = (u64)__builtin_thread_pointer() + (u64)__rseq_offset;

	if (__rseq_size)
		raw_call(SYS_rseq, area, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG, 0, 0);
}

static bool keep_only(int fd)
{
	if (fd != BOX_FD && raw_call(SYS_dup2, (u64)fd, BOX_FD, 0, 0, 0, 0) < 0)
		return false;
	return !raw_call(SYS_close_range, BOX_FD + 1, ~0u, 0, 0, 0, 0);
}

static bool place_stub(const struct orders *orders)
{
	u64 size = (u64)(box_stub_end - box_stub);
	const u32 flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

	if (raw_call(SYS_mmap, BOX_AT, PAGE_SIZE, PROT_READ | PROT_WRITE, flags, ~0ul, 0) !=
	    (long)BOX_AT)
		return false;
	for (u64 n = 0; n < size; n++)
		((volatile u8 *)BOX_AT)[n] = box_stub[n];
	return !raw_call(SYS_mprotect, BOX_AT, PAGE_SIZE, PROT_READ | PROT_EXEC, 0, 0, 0) &&
	       raw_call(SYS_mremap, (u64)orders, ORDERS_SIZE, ORDERS_SIZE,
			MREMAP_MAYMOVE | MREMAP_FIXED, ORDERS_AT, 0) == (long)ORDERS_AT &&
	       !raw_call(SYS_mprotect, ORDERS_AT, ORDERS_SIZE, PROT_READ, 0, 0, 0);
}

/* The halves of the secret in place. */
static u64 secret_r10(const struct home *h)
{
	return h->secret << 32;
}

static u64 secret_r8(const struct home *h)
{
	return h->secret & ~0xfffffffful;
}

#define HIGH_HALF(n) (offsetof(struct seccomp_data, args[n]) + 4)

static bool confine(const struct home *h)
{
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 9),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, HIGH_HALF(3)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (u32)h->secret, 0, 7),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, HIGH_HALF(4)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (u32)(h->secret >> 32), 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		/* Not killed: it is for the guest to say what the call does. */
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = ARRAY_SIZE(filter), .filter = (void *)filter};

	return !raw_call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0) &&
	       !raw_call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
			 (u64)&program, 0, 0, 0);
}

/* To the stub, which unmaps what lies below and above it: the code and stack at hand as well. */
static _Noreturn void leave(const struct home *h, u64 stub)
{
	register u64 size __asm__("r12") = BOX_TOP - BOX_END;
	register u64 r10 __asm__("r10") = secret_r10(h);
	register u64 r8 __asm__("r8") = secret_r8(h);

	__asm__ volatile("jmp *%0"
			 :
			 : "a"(stub), "D"(0), "S"(BOX_AT), "b"(BOX_END), "r"(size), "r"(r10),
			   "r"(r8)
			 : "memory");
	__builtin_unreachable();
}

/* Of the copied process, with nothing but system calls: locks may be held by threads not copied. */
static _Noreturn void become_box(int fd, const struct orders *orders, const struct home *h)
{
	const u64 no_signals = 0;

	forget_rseq();
	raw_call(SYS_setsid, 0, 0, 0, 0, 0, 0);
	raw_call(SYS_prctl, PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0, 0);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (u64)&no_signals, 0, 8, 0, 0);
	if (keep_only(fd) && place_stub(orders) &&
	    !raw_call(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0, 0, 0) && confine(h))
		leave(h, stub_address(box_stub_empty));
	for (;;)
		raw_call(SYS_exit_group, 1, 0, 0, 0, 0, 0);
}

/* ---- tracing ---- */

static int wait_for(int pid, int *status)
{
	int r;

	do
		r = (int)wait4(pid, status, __WALL, NULL);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static int trace(enum __ptrace_request request, const struct box *b, u64 address, void *data)
{
	return ptrace(request, atomic_load_explicit(&b->pid, memory_order_relaxed), (void *)address,
		      data) < 0
		       ? -errno
		       : 0;
}

/* Let it go on until it stops by @signal. Signals that we sent ourselves are dropped. */
static int expect_stop(struct box *b, int signal)
{
	int r, status;

	for (;;) {
		r = wait_for(atomic_load(&b->pid), &status);
		if (r)
			return r;
		if (!WIFSTOPPED(status)) {
			atomic_store(&b->pid, 0);
			return -ESRCH;
		}
		if (WSTOPSIG(status) == signal)
			return status >> 16;
		if (WSTOPSIG(status) != KICK)
			return -EPROTO;
		b->kicked = true;
		r = trace(PTRACE_CONT, b, 0, NULL);
		if (r)
			return r;
	}
}

static struct user_regs_struct plain_registers(void)
{
	return (struct user_regs_struct){
		.orig_rax = ~0ul, .cs = USER_CS, .ss = USER_SS, .eflags = 0x202};
}

static bool stay_on(int pid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((u32)cpu, &set);
	return !sched_setaffinity(pid, sizeof(set), &set);
}

/*
 * To switch between what may execute CPUID and what may not costs the host kernel a write to an
 * MSR, which takes five times as long as all the rest where a hypervisor is above us. So the thread
 * does without while it runs boxes.
 */
static bool guard_thread(bool on)
{
	return !syscall(SYS_arch_prctl, ARCH_SET_CPUID, !on);
}

bool box_lift_guard(void)
{
	return syscall(SYS_arch_prctl, ARCH_GET_CPUID, 0) == 0 && guard_thread(false);
}

bool box_stops_at_cpuid(const struct box *b)
{
	return b->home->can_guard;
}

/* Where we are, unless another thread stays there and none elsewhere. */
static int choose_cpu(const struct home *h)
{
	int here = sched_getcpu();

	if (here < 0 || here >= BOX_CPUS || !atomic_load(&h->crowd->at[here]))
		return here < BOX_CPUS ? here : -1;
	for (int cpu = 0; cpu < BOX_CPUS; cpu++)
		if (CPU_ISSET((u32)cpu, &h->all) && !atomic_load(&h->crowd->at[cpu]))
			return cpu;
	return here;
}

/*
 * The box is to run where we do, and we are to wake up there: only one of us runs at a time, and to
 * wake the other on another CPU takes ten times as long as all the rest. Which the scheduler would
 * do, because it finds ours busy. Until box_release().
 */
static void meet(struct box *b)
{
	struct home *h = b->home;
	int cpu = h->cpu >= 0 ? h->cpu : choose_cpu(h);

	if (cpu < 0)
		return;
	if (h->cpu < 0 && stay_on(0, cpu)) {
		h->cpu = cpu;
		atomic_fetch_add(&h->crowd->at[cpu], 1);
	}
	if (b->cpu != cpu && stay_on(atomic_load(&b->pid), cpu))
		b->cpu = cpu;
	h->ran = true;
	if (h->can_guard && !h->is_guarded)
		h->is_guarded = guard_thread(true);
}

void box_release(struct box *b)
{
	struct home *h = b->home;

	if (h->is_guarded && !h->ran) {
		guard_thread(false);
		h->is_guarded = false;
	}
	h->ran = false;
	if (h->cpu < 0)
		return;
	sched_setaffinity(0, sizeof(h->all), &h->all);
	atomic_fetch_sub(&h->crowd->at[h->cpu], 1);
	h->cpu = -1;
}

/* Run the stub from @regs->rip on, up to its end. */
static int run_stub(struct box *b, struct user_regs_struct *regs)
{
	int r;

	meet(b);
	r = trace(PTRACE_SETREGS, b, 0, regs);
	if (!r)
		r = trace(PTRACE_CONT, b, 0, NULL);
	return r ? r : expect_stop(b, SIGTRAP);
}

static struct box *new_box(struct orders *orders, struct home *home)
{
	struct box *b = malloc(sizeof(*b));

	if (!b)
		return NULL;
	atomic_init(&b->pid, 0);
	b->orders = orders;
	b->home = home;
	b->owns_orders = false;
	b->notes = b->breaks = b->ready = 0;
	b->kicked = false;
	b->cpu = -1;
	return b;
}

static int adopt(struct box *b)
{
	int r = expect_stop(b, SIGTRAP);

	if (r < 0)
		return r;
	r = trace(PTRACE_SETOPTIONS, b, 0,
		  (void *)(u64)(PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACESYSGOOD));
	if (!r)
		box_clear(b);
	return r ? r : box_settle(b);
}

int box_create(int fd, struct box_crowd *crowd, struct box **out)
{
	struct orders *orders;
	struct home *home;
	struct box *b;
	long pid;
	int r;

	if (!MAY_CLONE)
		return -ENOTSUP;
	orders = mmap(NULL, ORDERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (orders == MAP_FAILED)
		return -ENOMEM;
	home = calloc(1, sizeof(*home));
	b = home ? new_box(orders, home) : NULL;
	if (!b) {
		free(home);
		munmap(orders, ORDERS_SIZE);
		return -ENOMEM;
	}
	home->cpu = -1;
	home->crowd = crowd;
	if (getrandom(&home->secret, sizeof(home->secret), 0) != sizeof(home->secret)) {
		free(b);
		free(home);
		munmap(orders, ORDERS_SIZE);
		return -EAGAIN;
	}
	sched_getaffinity(0, sizeof(home->all), &home->all);
	b->owns_orders = true;
	home->can_guard = guard_thread(true); /* which the copy inherits */
	pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		become_box(fd, orders, home);
	if (home->can_guard)
		guard_thread(false);
	atomic_store(&b->pid, MAX((int)pid, 0));
	r = pid < 0 ? -errno : adopt(b);
	if (r) {
		box_destroy(b);
		return r;
	}
	*out = b;
	return 0;
}

/* The seed stops at its fork, and the new process at its start. */
static int fork_from(struct box *seed, struct box *b)
{
	struct user_regs_struct regs = plain_registers();
	unsigned long pid = 0;
	int r, status;

	regs.rip = stub_address(box_stub_call);
	regs.rax = SYS_clone;
	regs.rdi = CLONE_PARENT | SIGCHLD;
	regs.r10 = secret_r10(seed->home);
	regs.r8 = secret_r8(seed->home);
	r = run_stub(seed, &regs);
	if (r != PTRACE_EVENT_FORK)
		return r < 0 ? r : -EAGAIN;
	r = trace(PTRACE_GETEVENTMSG, seed, 0, &pid);
	if (!r) {
		atomic_store(&b->pid, (int)pid);
		r = wait_for((int)pid, &status);
	}
	if (!r)
		r = trace(PTRACE_CONT, seed, 0, NULL);
	return r ? r : expect_stop(seed, SIGTRAP);
}

int box_fork(struct box *seed, struct box **out)
{
	struct box *b = new_box(seed->orders, seed->home);
	int r;

	if (!b)
		return -ENOMEM;
	r = fork_from(seed, b);
	if (r) {
		box_destroy(b);
		return r;
	}
	box_clear(b); /* it has what the seed has */
	*out = b;
	return 0;
}

void box_destroy(struct box *b)
{
	int pid = atomic_exchange(&b->pid, 0), status;

	if (pid && !syscall(SYS_tgkill, pid, pid, SIGKILL))
		while (!wait_for(pid, &status) && WIFSTOPPED(status))
			;
	if (b->owns_orders) {
		b->home->ran = false;
		box_release(b);
		free(b->home);
		munmap(b->orders, ORDERS_SIZE);
	}
	free(b);
}

/* ---- mappings ---- */

/* Does @n only make the last one longer? */
static bool extends_last(const struct box *b, const struct note *n)
{
	const struct note *last;

	if (!b->notes)
		return false;
	last = &b->note[b->notes - 1];
	return last->what == n->what && last->prot == n->prot && last->at + last->size == n->at &&
	       (n->what != NOTE_MAP || last->offset + last->size == n->offset);
}

static bool add_note(struct box *b, struct note n)
{
	if (extends_last(b, &n)) {
		b->note[b->notes - 1].size += n.size;
		return true;
	}
	if (b->notes == NOTES_MAX)
		return false;
	b->note[b->notes++] = n;
	return true;
}

bool box_map(struct box *b, u64 at, u64 size, u8 prot, u64 offset)
{
	return add_note(
		b,
		(struct note){
			.at = at, .size = size, .prot = prot, .offset = offset, .what = NOTE_MAP});
}

bool box_protect(struct box *b, u64 at, u64 size, u8 prot)
{
	return add_note(b,
			(struct note){.at = at, .size = size, .prot = prot, .what = NOTE_PROTECT});
}

bool box_unmap(struct box *b, u64 at, u64 size)
{
	return add_note(b, (struct note){.at = at, .size = size, .what = NOTE_UNMAP});
}

void box_clear(struct box *b)
{
	b->notes = 0;
	box_unmap(b, 0, BOX_AT);
	box_unmap(b, BOX_END, BOX_TOP - BOX_END);
}

int box_break_at(struct box *b, u32 n, u64 address)
{
	const u64 place = offsetof(struct user, u_debugreg);
	int r = 0;

	if (address)
		r = trace(PTRACE_POKEUSER, b, place + 8ul * n, (void *)address);
	if (address)
		b->breaks |= 1u << 2 * n; /* DR7.Ln; execution, one byte */
	else
		b->breaks &= ~(1u << 2 * n);
	return r ? r : trace(PTRACE_POKEUSER, b, place + 8ul * 7, (void *)(u64)b->breaks);
}

static struct order order_for(const struct note *n)
{
	const u64 flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;

	switch (n->what) {
	case NOTE_MAP:
		return (struct order){SYS_mmap,
				      {n->at, n->size, n->prot, flags, BOX_FD, n->offset}};
	case NOTE_PROTECT: return (struct order){SYS_mprotect, {n->at, n->size, n->prot}};
	default: return (struct order){SYS_munmap, {n->at, n->size}};
	}
}

/* The notes from @first on, as many as there is room for, become orders. Returns their number. */
static u32 give_orders(struct box *b, u32 first)
{
	u32 count = MIN(b->notes - first, (u32)ORDERS_MAX);

	for (u32 i = 0; i < count; i++)
		b->orders->order[i] = order_for(&b->note[first + i]);
	return count;
}

/* For the stub: carry out @count orders, and enter guest code, or stop. */
static void point_at_orders(const struct box *b, struct user_regs_struct *regs, u32 count,
			    bool enter)
{
	regs->rip = stub_address(box_stub_batch);
	regs->rbx = ORDERS_AT + offsetof(struct orders, order);
	regs->rbp = enter ? ORDERS_AT + offsetof(struct orders, entry) : 0;
	regs->r12 = count;
	regs->r14 = secret_r10(b->home);
	regs->r15 = secret_r8(b->home);
	regs->eflags = plain_registers().eflags;
}

int box_settle(struct box *b)
{
	struct user_regs_struct regs = plain_registers();
	u32 done = 0, count;
	int r = 0;

	for (; !r && done < b->notes; done += count) {
		count = give_orders(b, done);
		point_at_orders(b, &regs, count, false);
		r = run_stub(b, &regs);
	}
	b->notes = 0;
	return r;
}

int box_prepare(struct box *b)
{
	if (b->notes > ORDERS_MAX)
		return box_settle(b);
	b->ready = give_orders(b, 0);
	b->notes = 0;
	return (int)b->ready;
}

/* ---- running ---- */

static int read_signal(struct box *b, int nr, struct box_signal *signal)
{
	siginfo_t info;
	int r;

	*signal = (struct box_signal){.nr = nr};
	if (nr != SIGSEGV && nr != SIGTRAP && nr != SIGSYS)
		return 0;
	r = trace(PTRACE_GETSIGINFO, b, 0, &info);
	signal->code = info.si_code;
	signal->address = (u64)(nr == SIGSYS ? info.si_call_addr : info.si_addr);
	return r;
}

/* Let it go, with what is prepared first. */
static int start(struct box *b, const struct user_regs_struct *regs)
{
	struct user_regs_struct stub = *regs;
	int r;

	if (b->ready) {
		b->orders->entry = (struct entry){
#define SAME(name) .name = regs->name
			SAME(rax), SAME(rcx), SAME(rdx),    SAME(rbx), SAME(rbp),
			SAME(rsi), SAME(rdi), SAME(r8),     SAME(r9),  SAME(r10),
			SAME(r11), SAME(r12), SAME(r13),    SAME(r14), SAME(r15),
			SAME(rip), SAME(cs),  SAME(eflags), SAME(rsp), SAME(ss)};
		point_at_orders(b, &stub, b->ready, true);
	}
	r = trace(PTRACE_SETREGS, b, 0, &stub);
	return r ? r : trace(b->ready ? PTRACE_CONT : PTRACE_SYSEMU, b, 0, NULL);
}

static bool is_in(u64 rip, const u8 *from, const u8 *to)
{
	return rip - stub_address(from) < (u64)(to - from);
}

/*
 * It has stopped with registers @now on the way into guest code, or in guest code that went to the
 * stub, which gets what it deserves: it is as if it had not run (*is_back). The orders are carried
 * out all the same, or -EIO.
 */
static int stop_in_stub(struct box *b, struct user_regs_struct *now, int signal, bool *is_back)
{
	int r;

	*is_back = b->ready && signal == KICK && is_in(now->rip, box_stub_batch, box_stub_end);
	if (b->ready && ((signal == SIGILL && is_in(now->rip, box_stub_batch, box_stub_enter)) ||
			 (signal == SIGSEGV && is_in(now->rip, box_stub_enter, box_stub_end))))
		return -EIO;
	if (!*is_back || !is_in(now->rip, box_stub_batch, box_stub_enter))
		return 0;
	now->rbp = 0;
	r = trace(PTRACE_SETREGS, b, 0, now);
	if (!r)
		r = trace(PTRACE_CONT, b, 0, NULL);
	r = r ? r : expect_stop(b, SIGTRAP);
	return MIN(r, 0);
}

/* It has stopped by @nr: what are its registers, and why? */
static int look_at_stop(struct box *b, int nr, struct user_regs_struct *regs, enum box_stop *why,
			struct box_signal *signal)
{
	struct user_regs_struct now;
	bool is_back;
	int r = 0;

	if (nr != CALL_STOP)
		r = read_signal(b, nr, signal);
	if (!r)
		r = trace(PTRACE_GETREGS, b, 0, &now);
	if (r)
		return 0; /* gone */
	*why = nr == CALL_STOP ? BOX_CALL : BOX_SIGNAL;
	r = stop_in_stub(b, &now, nr, &is_back);
	if (r || is_back)
		return r;
	*regs = now;
	/* Of the filter's, those that are not the host kernel's for its vsyscall page. */
	if (nr == SIGSYS && signal->address < BOX_TOP) {
		regs->orig_rax = regs->rax;
		*why = BOX_CALL;
	}
	return 0;
}

int box_run(struct box *b, struct user_regs_struct *regs, enum box_stop *why,
	    struct box_signal *signal)
{
	int status = 0, r;

	meet(b);
	if (b->kicked) /* let it be for this run */
		box_kick(b);
	b->kicked = false;
	regs->orig_rax = ~0ul; /* in no system call, to be started over */
	regs->cs = USER_CS;
	regs->ss = USER_SS;
	r = start(b, regs);
	if (r)
		return r;
	*why = BOX_GONE;
	r = wait_for(atomic_load_explicit(&b->pid, memory_order_relaxed), &status);
	if (r || !WIFSTOPPED(status)) {
		atomic_store(&b->pid, 0);
		return 0;
	}
	r = look_at_stop(b, WSTOPSIG(status), regs, why, signal);
	b->ready = 0;
	return r;
}

/* The clock is that of a process (CPUCLOCK_SCHED, include/linux/posix-timers_types.h). */
u64 box_cpu_time(const struct box *b)
{
	u32 pid = (u32)atomic_load_explicit(&b->pid, memory_order_relaxed);
	struct timespec time;

	if (!pid || clock_gettime((clockid_t)(~pid << 3 | 2), &time))
		return 0;
	return (u64)time.tv_sec * 1000000000 + (u64)time.tv_nsec;
}

void box_kick(struct box *b)
{
	int pid = atomic_load(&b->pid);

	if (pid)
		syscall(SYS_tgkill, pid, pid, KICK);
}

int box_fpu_get(struct box *b, void *image, u32 *size)
{
	struct iovec io = {.iov_base = image, .iov_len = BOX_FPU_MAX};
	int r = trace(PTRACE_GETREGSET, b, NT_X86_XSTATE, &io);

	*size = (u32)io.iov_len;
	return r;
}

int box_fpu_set(struct box *b, const void *image, u32 size)
{
	struct iovec io = {.iov_base = (void *)(u64)image, .iov_len = size};

	return trace(PTRACE_SETREGSET, b, NT_X86_XSTATE, &io);
}
