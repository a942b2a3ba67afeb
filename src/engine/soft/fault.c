/*
 * Host faults in translated code.
 *
 * Data instructions run natively, so their exceptions arrive as signals: #DE, #MF and #XM as
 * SIGFPE, #UD as SIGILL, #GP for misaligned SSE operands or bad MXCSR values as SIGSEGV. The
 * handler notes trap and host pc and resumes in dispatch.S, which leaves translated code with the
 * registers as they were at the instruction; soft_host_fault() then finds the guest instruction in
 * the block's table. A page fault in translated code, or any fault elsewhere, is a bug of this
 * program and takes the previous disposition.
 *
 * Signal dispositions belong to the process: the saved previous ones are this file's only static
 * state, written once under a once-guard.
 */
#include "engine/soft/cache.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { ALT_STACK = 64 * 1024, TRAP_PAGE_FAULT = 14 };

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
	if (!in_translated_code(c, (u64)reg[REG_RIP]) || reg[REG_TRAPNO] == TRAP_PAGE_FAULT) {
		pass_on(sig, info);
		return;
	}
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

int soft_host_fault(struct soft_cpu *c)
{
	struct block *b;
	u32 k = 0;

	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	b = cache_by_pc(c->vm->cache, c->fault_pc);
	if (!b) {
		pthread_mutex_unlock(&c->vm->lock);
		__builtin_trap(); /* cold code holds no guest instruction: our bug */
	}
	while (k + 1 < b->insns && b->code + b->host_off[k + 1] <= c->fault_pc)
		k++;
	c->rip = c->code_va + (b->pa & ~PAGE_MASK) + b->guest_off[k];
	if ((b->mode & MODE_BITS) == MODE_BITS_32)
		c->rip = (u32)c->rip;
	pthread_mutex_unlock(&c->vm->lock);
	return soft_fault_from_trap(c);
}
