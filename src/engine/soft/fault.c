/*
 * Host faults in translated code.
 *
 * Data instructions run natively, so their exceptions arrive as signals: #DE, #MF and #XM as
 * SIGFPE, #UD as SIGILL, #GP for misaligned SSE operands or bad MXCSR values as SIGSEGV. The
 * handler notes trap and host pc and resumes in dispatch.S, which leaves translated code with the
 * registers as they were at the instruction; soft_host_fault() then finds the guest instruction in
 * the block's table. A page fault at an address of a window is first of all an occasion to map a
 * page there (window.c). One fault is expected elsewhere, that of the XRSTOR in dispatch.S. Any
 * other, and any other page fault in translated code, is a bug of this program and takes the
 * previous disposition.
 *
 * Signal dispositions belong to the process: the saved previous ones are this file's only static
 * state, written once under a once-guard.
 */
#include "engine/soft/cache.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/system.h"
#include "host/box.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { ALT_STACK = 64 * 1024, TRAP_PAGE_FAULT = 14, PF_WRITE = 2 };

static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction previous[ARRAY_SIZE(fault_signals)];
static pthread_once_t installed = PTHREAD_ONCE_INIT;
static int install_result;

static bool in_translated_code(const struct soft_cpu *c, u64 pc)
{
	return c->vm && c->vm->cache && pc - c->vm->cache->rx < c->vm->cache->size;
}

static void pass_on(int sig, const siginfo_t *info)
{
	for (u32 i = 0; i < ARRAY_SIZE(fault_signals); i++)
		if (fault_signals[i] == sig)
			sigaction(sig, &previous[i], NULL);
	/* Returning re-executes the instruction, which faults again under the old disposition; a
	 * signal that somebody sent must be sent again. */
	if (info->si_code <= 0)
		raise(sig);
}

/*
 * Calls without returns filled the private stack: start it over. What it held only served
 * prediction; a return that misses it goes through the bottom to a lookup.
 */
static bool is_stack_overflow(const struct soft_cpu *c, const ucontext_t *uc, const siginfo_t *info)
{
	return in_translated_code(c, (u64)uc->uc_mcontext.gregs[REG_RIP]) &&
	       uc->uc_mcontext.gregs[REG_TRAPNO] == TRAP_PAGE_FAULT &&
	       (u64)info->si_addr - (u64)c->ras_map < PAGE_SIZE;
}

/* The guest instruction at host pc @pc of block @b. */
static u32 insn_at(const struct block *b, u64 pc)
{
	u32 k = 0;

	while (k + 1 < b->insns && b->code + b->host_off[k + 1] <= pc)
		k++;
	return k;
}

/* Guest registers in the order of enum gpr; r9-r11 are in c->r[]. */
static void guest_registers(const struct soft_cpu *c, const greg_t *reg, u64 r[GPR_COUNT])
{
	static const int order[GPR_COUNT] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_R9, REG_RBP,
					     REG_RSI, REG_RDI, REG_R8,  -1,      -1,     -1,
					     REG_R12, REG_R13, REG_R14, REG_R15};

	for (u32 n = 0; n < GPR_COUNT; n++)
		r[n] = order[n] < 0 ? c->r[n] : (u64)reg[order[n]];
}

/* In the window, or thrown out of the lower half by address bits that folding leaves alone, or by a
 * displacement. */
static bool is_folded_access(const struct soft_cpu *c, u64 address)
{
	if (!(c->mode & MODE_WINDOW))
		return false;
	return address >> 63 ||
	       (c->mode & MODE_USER ? window_has(c, address) : kernel_window_has(address));
}

/* An access to the window met no page. True: it may be tried again. */
static bool fill_window(struct soft_cpu *c, const greg_t *reg, u64 address)
{
	u64 pc = (u64)reg[REG_RIP], rip = c->rip, r[GPR_COUNT];
	__typeof__(c->exc) exc = c->exc;
	struct insn i;
	struct block *b;
	u8 bytes[15];
	bool filled = false;
	u32 len;

	guest_registers(c, reg, r);
	pthread_mutex_lock(&c->vm->lock);
	b = cache_by_pc(c->vm->cache, pc);
	if (b) {
		u32 k = insn_at(b, pc);

		c->rip = c->code_va + (b->pa & ~PAGE_MASK) + b->guest_off[k];
		r[RSP] += (u64)(s64)b->sp_lag[k];
	}
	pthread_mutex_unlock(&c->vm->lock);
	if (b && soft_fetch(c, c->rip, bytes, &len) == SOFT_OK) {
		insn_decode(&i, bytes, len, 64);
		filled = i.len && window_fault(c, &i, r, address, reg[REG_ERR] & PF_WRITE);
	}
	if (b && !filled && !(c->mode & MODE_USER) && atomic_load(&c->kernel_agrees)) {
		pthread_mutex_lock(&c->vm->lock);
		kernel_window_refuse(c, b);
		pthread_mutex_unlock(&c->vm->lock);
	}
	c->rip = rip;
	c->exc = exc;
	return filled;
}

/* Threads that run boxes do without CPUID meanwhile: host/box.h. */
static bool is_cpuid(const greg_t *reg)
{
	const u8 *insn = (const u8 *)reg[REG_RIP];

	return reg[REG_TRAPNO] == VEC_GP && insn[0] == 0x0f && insn[1] == 0xa2;
}

/* XRSTOR of an image that another thread may have changed. */
static bool is_xrstor(const greg_t *reg)
{
	const u64 at = (u64)soft_xrstor_at;

	return reg[REG_TRAPNO] == VEC_GP && (u64)reg[REG_RIP] - at < (u64)soft_xrstor_failed - at;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t *reg = uc->uc_mcontext.gregs;
	struct soft_cpu *c = &soft_tls_cpu;

	/* A signal that somebody sent says nothing about the instruction it interrupted. */
	if (info->si_code <= 0) {
		pass_on(sig, info);
		return;
	}
	if (is_stack_overflow(c, uc, info)) {
		reg[REG_RSP] = (greg_t)c->ras_base;
		return;
	}
	if (is_cpuid(reg) && box_lift_guard())
		return;
	if (is_xrstor(reg)) {
		reg[REG_RIP] = (greg_t)soft_xrstor_failed;
		return;
	}
	if (!in_translated_code(c, (u64)reg[REG_RIP]) ||
	    (reg[REG_TRAPNO] == TRAP_PAGE_FAULT && !is_folded_access(c, (u64)info->si_addr))) {
		pass_on(sig, info);
		return;
	}
	if (reg[REG_TRAPNO] == TRAP_PAGE_FAULT && fill_window(c, reg, (u64)info->si_addr))
		return;
	c->fault_pc = (u64)reg[REG_RIP];
	c->fault_trap = (u64)reg[REG_TRAPNO];
	c->fault_error = (u64)reg[REG_ERR];
	reg[REG_RIP] = (greg_t)soft_stub_host_fault;
}

static void install(void)
{
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigemptyset(&sa.sa_mask);
	for (u32 i = 0; i < ARRAY_SIZE(fault_signals); i++)
		if (sigaction(fault_signals[i], &sa, &previous[i]) < 0)
			install_result = -errno;
}

int soft_faults_init(struct err *e)
{
	pthread_once(&installed, install);
	if (install_result < 0)
		return err_set(e, install_result, "cannot handle faults of translated code: %s",
			       strerror(-install_result));
	return 0;
}

int soft_fault_stack_init(struct soft_cpu *c, struct err *e)
{
	void *p = mmap(NULL, ALT_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t ss = {.ss_sp = p, .ss_size = ALT_STACK};

	if (p == MAP_FAILED || sigaltstack(&ss, NULL) < 0)
		return err_set(e, -errno, "cannot set up a signal stack: %s", strerror(errno));
	c->alt_stack = p;
	return 0;
}

void soft_fault_stack_destroy(struct soft_cpu *c)
{
	stack_t ss = {.ss_flags = SS_DISABLE};

	if (!c->alt_stack)
		return;
	sigaltstack(&ss, NULL);
	munmap(c->alt_stack, ALT_STACK);
	c->alt_stack = NULL;
}

int soft_fault_from_trap(struct soft_cpu *c)
{
	switch (c->fault_trap) {
	case VEC_DE:
	case VEC_UD:
	case VEC_MF: return soft_fault(c, (u8)c->fault_trap);
	case VEC_XM: return soft_fault(c, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
	default: return soft_fault_code(c, VEC_GP, 0);
	}
}

/* An access through the window left its instruction half-way: give back what it borrowed. */
static void give_back(struct soft_cpu *c)
{
	struct insn i;
	u32 len, n, spill;
	u8 bytes[15], reg[2];

	if (soft_fetch(c, c->rip, bytes, &len) != SOFT_OK)
		return;
	insn_decode(&i, bytes, len, 64);
	n = i.len && i.has_mem ? emit_borrowed(&i, reg, &spill) : 0;
	for (u32 k = 0; k < n; k++)
		c->r[reg[k]] = c->spill[spill + k];
}

int soft_host_fault(struct soft_cpu *c)
{
	bool folded;
	struct block *b;
	u32 k;

	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	b = cache_by_pc(c->vm->cache, c->fault_pc);
	if (!b) {
		pthread_mutex_unlock(&c->vm->lock);
		__builtin_trap(); /* cold code holds no guest instruction: our bug */
	}
	k = insn_at(b, c->fault_pc);
	c->r[RSP] += (u64)(s64)b->sp_lag[k];
	c->rip = c->code_va + (b->pa & ~PAGE_MASK) + b->guest_off[k];
	if ((b->mode & MODE_BITS) == MODE_BITS_32)
		c->rip = (u32)c->rip;
	folded = b->mode & MODE_WINDOW;
	pthread_mutex_unlock(&c->vm->lock);
	if (folded)
		give_back(c);
	/* What a folded access would have raised the interpreter finds out. */
	if (c->fault_trap == TRAP_PAGE_FAULT || (c->fault_trap == VEC_GP && folded))
		return SOFT_OK;
	return soft_fault_from_trap(c);
}
