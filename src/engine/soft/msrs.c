/*
 * RDMSR and WRMSR. Registers that are control or segment state are handled here, those of the
 * machine's devices end run() with an exit, all others live in the table of cpu/msr.c.
 */
#include "cpu/msr.h"

#include "engine/soft/system.h"
#include "engine/soft/util.h"

#include <time.h>

static u64 host_tsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return low | (u64)high << 32;
}

/* Callbacks of the paravirtual clock; they leave this folder, so vector state is parked. */
static int store_physical(void *opaque, gpa_t gpa, const void *buf, u64 len)
{
	struct soft_cpu *c = opaque;

	soft_fpu_park(c);
	return mem_write(c->vm->physmap, gpa, buf, len);
}

static u64 realtime_ns(void *opaque)
{
	struct timespec ts;

	soft_fpu_park(opaque);
	clock_gettime(CLOCK_REALTIME, &ts);
	return (u64)ts.tv_sec * 1000000000 + (u64)ts.tv_nsec;
}

static struct msr_env environment(struct soft_cpu *c)
{
	return (struct msr_env){
		.msr = &c->msr,
		.cpuid = c->vm->cpuid,
		.tsc = host_tsc() + c->tsc_offset,
		.store = store_physical,
		.realtime_ns = realtime_ns,
		.opaque = c,
	};
}

/* Ask the machine. SOFT_OK once c->exit.msr holds its answer. */
static int ask_machine(struct soft_cpu *c, enum exit_type type, u32 index, u64 value)
{
	struct interp *in = soft_interp(c);
	bool answered = in->waiting == type && in->waiting_rip == c->rip && c->exit.type == type &&
			c->exit.msr.index == index;

	if (answered)
		return c->exit.msr.fault ? fault_gp(c, 0) : SOFT_OK;
	c->exit.type = type;
	c->exit.msr.index = index;
	c->exit.msr.value = value;
	c->exit.msr.fault = false;
	in->waiting = type;
	in->waiting_rip = c->rip;
	return SOFT_EXIT;
}

static int read_table(struct soft_cpu *c, u32 index, u64 *value)
{
	struct msr_env env = environment(c);
	int r;

	switch (msr_read(&env, index, value)) {
	case MSR_OK: return SOFT_OK;
	case MSR_MACHINE:
		r = ask_machine(c, EXIT_RDMSR, index, 0);
		*value = c->exit.msr.value;
		return r;
	default: return fault_gp(c, 0);
	}
}

static int write_table(struct soft_cpu *c, u32 index, u64 value)
{
	struct msr_env env = environment(c);

	switch (msr_write(&env, index, value)) {
	case MSR_OK: c->tsc_offset += (u64)env.tsc_delta; return SOFT_OK;
	case MSR_MACHINE: return ask_machine(c, EXIT_WRMSR, index, value);
	default: return fault_gp(c, 0);
	}
}

int op_rdmsr(struct soft_cpu *c, const struct insn *i)
{
	u32 index = (u32)c->r[RCX];
	u64 value;
	int r = require_cpl0(c);

	(void)i;
	if (r != SOFT_OK)
		return r;
	switch (index) {
	case MSR_EFER: value = c->efer; break;
	case MSR_FS_BASE: value = c->seg[SEG_FS].base; break;
	case MSR_GS_BASE: value = c->seg[SEG_GS].base; break;
	case MSR_KERNEL_GS_BASE: value = c->msr.kernel_gs_base; break;
	default: r = read_table(c, index, &value); break;
	}
	if (r != SOFT_OK)
		return r;
	gpr_set(c, RAX, 4, value);
	gpr_set(c, RDX, 4, value >> 32);
	return SOFT_OK;
}

static int write_base(struct soft_cpu *c, u64 *base, u64 value)
{
	if (!soft_canonical(value))
		return fault_gp(c, 0);
	*base = value;
	return SOFT_OK;
}

int op_wrmsr(struct soft_cpu *c, const struct insn *i)
{
	u64 value = (u32)c->r[RAX] | c->r[RDX] << 32;
	u32 index = (u32)c->r[RCX];
	int r = require_cpl0(c);

	(void)i;
	if (r != SOFT_OK)
		return r;
	switch (index) {
	case MSR_EFER: return control_set_efer(c, value);
	case MSR_FS_BASE: return write_base(c, &c->seg[SEG_FS].base, value);
	case MSR_GS_BASE: return write_base(c, &c->seg[SEG_GS].base, value);
	case MSR_KERNEL_GS_BASE: return write_base(c, &c->msr.kernel_gs_base, value);
	default: return write_table(c, index, value);
	}
}
