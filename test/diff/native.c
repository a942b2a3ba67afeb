/*
 * The host CPU as a runner.
 *
 * Signals do all the work. native_run() executes INT3; the handler keeps the interrupted context,
 * writes the case's registers and XSAVE image into the signal frame and returns, which makes the
 * kernel load the whole state at once (compatibility mode included: that is a matter of the CS
 * selector). The exception that ends the sequence brings the handler back, with the state after it
 * in the frame; it copies that out and restores the kept context.
 *
 * The FS base is the thread's own between runs. It is switched right before the handler returns to
 * the sequence and back as the first thing afterwards, so nothing here may use thread-local storage
 * in between (no stack protector).
 *
 * A sequence may overwrite itself and become anything, a system call for instance: those are
 * refused by the kernel where they come from the code region.
 *
 * Signal handlers have no argument: the state they share with native_run() is this file's static
 * data.
 */
#include "diff.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>

enum {
	ALT_STACK = 256 * 1024,
	SW_RESERVED = 464, /* bytes of the legacy area that describe the frame to the kernel */
	LEGACY = 512,
	USER_CS32 = 0x23,
	USER_DS = 0x2b,
	USER_CS = 0x33,
};

#define FLAGS_LOADED (RFLAGS_ARITH | RFLAGS_DF | RFLAGS_IF | RFLAGS_ONE)

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};

enum phase { PHASE_IDLE, PHASE_LAUNCH, PHASE_RUN };

static struct {
	volatile enum phase phase;
	const struct layout *layout;
	const struct test_case *t;
	struct outcome *o;
	void (*crash)(void);
	u64 fs_base;
	greg_t kept[NGREG];
	_Alignas(64) u8 kept_xsave[CPU_XSAVE_MAX];
	struct sigaction previous[ARRAY_SIZE(signals)];
} native;

static const u8 gpr_index[GPR_COUNT] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static u64 read_fs_base(void)
{
	u64 v;

	__asm__ volatile("rdfsbase %0" : "=r"(v));
	return v;
}

static u64 read_gs_base(void)
{
	u64 v;

	__asm__ volatile("rdgsbase %0" : "=r"(v));
	return v;
}

static void write_fs_base(u64 v)
{
	__asm__ volatile("wrfsbase %0" : : "r"(v) : "memory");
}

static void write_gs_base(u64 v)
{
	__asm__ volatile("wrgsbase %0" : : "r"(v) : "memory");
}

/* The image without the bytes that belong to the kernel. */
static void copy_image(u8 *to, const u8 *from)
{
	memcpy(to, from, SW_RESERVED);
	memcpy(to + LEGACY, from + LEGACY, native.layout->xsave_size - LEGACY);
}

static void begin(ucontext_t *uc)
{
	greg_t *reg = uc->uc_mcontext.gregs;
	const struct test_case *t = native.t;

	memcpy(native.kept, reg, sizeof(native.kept));
	copy_image(native.kept_xsave, (u8 *)uc->uc_mcontext.fpregs);
	copy_image((u8 *)uc->uc_mcontext.fpregs, t->xsave);
	for (u32 n = 0; n < GPR_COUNT; n++)
		reg[gpr_index[n]] = (greg_t)t->r[n];
	reg[REG_RIP] = CODE_BASE + t->code_offset;
	reg[REG_EFL] = (greg_t)((t->flags & FLAGS_LOADED) | RFLAGS_IF | RFLAGS_ONE);
	reg[REG_CSGSFS] = (greg_t)((t->bits == 64 ? USER_CS : USER_CS32) | (u64)USER_DS << 48);
	native.phase = PHASE_RUN;
	if (t->bits == 64) {
		write_gs_base(t->gs_base);
		write_fs_base(t->fs_base);
	}
}

static void end(ucontext_t *uc, u64 fs_base)
{
	greg_t *reg = uc->uc_mcontext.gregs;
	struct outcome *o = native.o;

	o->vector = (u8)reg[REG_TRAPNO];
	o->error = (u32)reg[REG_ERR];
	o->cr2 = (u64)reg[REG_CR2];
	o->rip = (u64)reg[REG_RIP];
	o->flags = (u64)reg[REG_EFL];
	o->fs_base = fs_base;
	o->gs_base = read_gs_base();
	for (u32 n = 0; n < GPR_COUNT; n++)
		o->r[n] = (u64)reg[gpr_index[n]];
	copy_image(o->xsave, (u8 *)uc->uc_mcontext.fpregs);
	memcpy(reg, native.kept, sizeof(native.kept));
	copy_image((u8 *)uc->uc_mcontext.fpregs, native.kept_xsave);
	native.phase = PHASE_IDLE;
}

void native_stop(void *context)
{
	u64 fs_base = read_fs_base();

	if (native.phase != PHASE_RUN)
		return;
	write_fs_base(native.fs_base);
	end(context, fs_base);
	native.o->vector = OUTCOME_NONE;
}

static void pass_on(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t rip = uc->uc_mcontext.gregs[REG_RIP];
	struct sigaction now;

	for (u32 n = 0; n < ARRAY_SIZE(signals); n++)
		if (signals[n] == sig && native.previous[n].sa_flags & SA_SIGINFO)
			native.previous[n].sa_sigaction(sig, info, context);
	/* What it does not know it passes on, to the disposition there was before. */
	if (uc->uc_mcontext.gregs[REG_RIP] != rip ||
	    (!sigaction(sig, NULL, &now) && now.sa_flags & SA_SIGINFO))
		return;
	if (native.crash)
		native.crash();
	signal(sig, SIG_DFL);
}

/* The sequence may have set AC, which makes misaligned accesses fault, and NT. */
static void clear_flags(void)
{
	__asm__ volatile("pushfq\n\tandq %0, (%%rsp)\n\tpopfq"
			 :
			 : "i"((s32) ~(RFLAGS_AC | RFLAGS_NT))
			 : "memory", "cc");
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	u64 fs_base = read_fs_base();

	clear_flags();
	switch (native.phase) {
	case PHASE_RUN:
		write_fs_base(native.fs_base);
		end(context, fs_base);
		return;
	case PHASE_LAUNCH: begin(context); return;
	default: pass_on(sig, info, context);
	}
}

int native_map(void)
{
	void *data = mmap((void *)DATA_BASE, DATA_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
	void *code =
		mmap((void *)CODE_BASE, CODE_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);

	if (data == MAP_FAILED || code == MAP_FAILED)
		return -errno;
	if (munmap((u8 *)DATA_BASE + PAGE_HOLE * PAGE_SIZE, PAGE_SIZE) < 0)
		return -errno;
	return 0;
}

static int take_signals(void)
{
	struct sigaction sa = {.sa_sigaction = on_signal,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	void *p = mmap(NULL, ALT_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t ss = {.ss_sp = p, .ss_size = ALT_STACK};

	if (p == MAP_FAILED || sigaltstack(&ss, NULL) < 0)
		return -errno;
	for (u32 n = 0; n < ARRAY_SIZE(signals); n++)
		if (sigaction(signals[n], &sa, &native.previous[n]) < 0)
			return -errno;
	return 0;
}

static int refuse_system_calls(void)
{
	const u64 end = CODE_BASE + CODE_PAGES * PAGE_SIZE;

	return prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, end, BIT(47) - end, 0) < 0
		       ? -errno
		       : 0;
}

int native_init(const struct layout *layout)
{
	int r;

	native.layout = layout;
	native.fs_base = read_fs_base();
	r = take_signals();
	if (r == 0)
		r = refuse_system_calls();
	/* Compatibility mode uses them; 64-bit code does not care. */
	__asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(USER_DS));
	return r;
}

void native_on_crash(void (*hook)(void))
{
	native.crash = hook;
}

static void set_memory(const u8 *memory)
{
	u8 *read_only = (u8 *)DATA_BASE + PAGE_READ_ONLY * PAGE_SIZE;

	for (u32 n = 0; n < DATA_PAGES; n++)
		if (n != PAGE_HOLE && n != PAGE_READ_ONLY)
			memcpy((u8 *)DATA_BASE + n * PAGE_SIZE, memory + n * PAGE_SIZE, PAGE_SIZE);
	memcpy((u8 *)CODE_BASE, memory + DATA_PAGES * PAGE_SIZE, CODE_PAGES * PAGE_SIZE);
	if (memcmp(read_only, memory + PAGE_READ_ONLY * PAGE_SIZE, PAGE_SIZE)) {
		mprotect(read_only, PAGE_SIZE, PROT_READ | PROT_WRITE);
		memcpy(read_only, memory + PAGE_READ_ONLY * PAGE_SIZE, PAGE_SIZE);
		mprotect(read_only, PAGE_SIZE, PROT_READ);
	}
}

static void get_memory(const u8 *before, u8 *memory)
{
	for (u32 n = 0; n < DATA_PAGES; n++)
		memcpy(memory + n * PAGE_SIZE,
		       n == PAGE_HOLE ? before + n * PAGE_SIZE : (u8 *)DATA_BASE + n * PAGE_SIZE,
		       PAGE_SIZE);
	memcpy(memory + DATA_PAGES * PAGE_SIZE, (u8 *)CODE_BASE, CODE_PAGES * PAGE_SIZE);
}

void native_run(const struct test_case *t, const u8 memory[MEMORY_BYTES], struct outcome *o)
{
	u64 gs_base = read_gs_base();

	native.t = t;
	native.o = o;
	set_memory(memory);
	native.phase = PHASE_LAUNCH;
	__asm__ volatile("int3" : : : "memory");
	write_gs_base(gs_base);
	get_memory(memory, o->memory);
	outcome_normalise(native.layout, o);
}
