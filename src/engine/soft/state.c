/*
 * The state of a vCPU in the contract's parts. On its thread, or from another one while it is not
 * inside run().
 */
#include "cpu/msr.h"
#include "engine/soft/tlb.h"
#include "engine/soft/util.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static struct soft_cpu *cpu_of(struct engine_vcpu *vcpu)
{
	return (struct soft_cpu *)vcpu;
}

static void get_intr(const struct soft_cpu *c, struct cpu_intr *i)
{
	*i = (struct cpu_intr){
		.pending = c->irq_latched,
		.vector = c->irq_vector,
		.nmi_pending = c->nmi_pending,
		.nmi_blocked = c->nmi_blocked,
		.shadow_sti = c->shadow,
		.shadow_mov_ss = c->shadow_mov_ss,
	};
	if (!c->exc_latched)
		return;
	i->pending = i->is_exception = true;
	i->vector = c->exc.vector;
	i->has_error = c->exc.has_error;
	i->error = c->exc.error;
}

/* Faults would be met again; traps (another engine's single step) would be lost. */
static void set_intr(struct soft_cpu *c, const struct cpu_intr *i)
{
	c->exc_latched = i->pending && i->is_exception;
	c->irq_latched = i->pending && !i->is_exception;
	c->irq_vector = i->vector;
	c->nmi_pending = i->nmi_pending;
	c->nmi_blocked = i->nmi_blocked;
	c->shadow = i->shadow_sti;
	c->shadow_mov_ss = i->shadow_mov_ss;
	if (!c->exc_latched)
		return;
	c->exc.vector = i->vector;
	c->exc.has_error = i->has_error;
	c->exc.error = i->error;
	c->exc.cr2 = c->cr2; /* set before the exception became pending */
}

static void get_parts(struct soft_cpu *c, u32 parts, struct cpu_state *s)
{
	if (parts & CPU_PART_GPR) {
		memcpy(s->gpr.r, c->r, sizeof(c->r));
		s->gpr.rip = c->rip;
		s->gpr.rflags = soft_rflags(c);
	}
	if (parts & CPU_PART_SEG) {
		memcpy(s->segs.seg, c->seg, sizeof(c->seg));
		s->segs.gdtr = c->gdtr;
		s->segs.idtr = c->idtr;
	}
	if (parts & CPU_PART_CR)
		s->cr = (struct cpu_cr){.cr0 = c->cr0,
					.cr2 = c->cr2,
					.cr3 = c->cr3,
					.cr4 = c->cr4,
					.cr8 = c->cr8,
					.xcr0 = c->xcr0,
					.efer = c->efer};
	if (parts & CPU_PART_DR) {
		memcpy(s->dr.dr, c->dr, sizeof(c->dr));
		s->dr.dr6 = c->dr6;
		s->dr.dr7 = c->dr7;
	}
	if (parts & CPU_PART_CR8)
		s->cr.cr8 = c->cr8;
	if (parts & CPU_PART_MSR)
		s->msr = c->msr;
	if (parts & (CPU_PART_MSR | CPU_PART_TSC)) {
		s->msr.tsc_host = __builtin_ia32_rdtsc();
		s->msr.tsc = s->msr.tsc_host + c->tsc_offset;
	}
	if (parts & CPU_PART_FPU) {
		s->fpu.size = c->vm->cpuid->xsave_max;
		memcpy(s->fpu.area, c->fpu_area, sizeof(s->fpu.area));
	}
	if (parts & CPU_PART_INTR)
		get_intr(c, &s->intr);
}

int soft_state_get(struct engine_vcpu *vcpu, u32 parts, struct cpu_state *s)
{
	get_parts(cpu_of(vcpu), parts, s);
	return 0;
}

static bool state_is_valid(const struct soft_cpu *c, u32 parts, const struct cpu_state *s)
{
	if (parts & CPU_PART_CR && (s->cr.xcr0 & ~c->vm->xsave_mask || !(s->cr.xcr0 & XCR0_X87)))
		return false;
	if (parts & CPU_PART_MSR && !msr_state_is_valid(&s->msr, c->vm->cpuid))
		return false;
	if (parts & CPU_PART_FPU) {
		u64 xstate_bv;
		u32 mxcsr;

		memcpy(&xstate_bv, s->fpu.area + 512, 8);
		memcpy(&mxcsr, s->fpu.area + 24, 4);
		if (xstate_bv & ~c->vm->xsave_mask || mxcsr & 0xffff0000u)
			return false;
		for (u32 i = 520; i < 576; i++)
			if (s->fpu.area[i])
				return false;
	}
	return true;
}

static void set_parts(struct soft_cpu *c, u32 parts, const struct cpu_state *s)
{
	if (parts & CPU_PART_GPR) {
		memcpy(c->r, s->gpr.r, sizeof(c->r));
		c->rip = s->gpr.rip;
		soft_set_rflags(c, s->gpr.rflags);
	}
	if (parts & CPU_PART_SEG) {
		memcpy(c->seg, s->segs.seg, sizeof(c->seg));
		c->gdtr = s->segs.gdtr;
		c->idtr = s->segs.idtr;
		c->cpl = c->seg[SEG_SS].dpl;
	}
	if (parts & CPU_PART_CR) {
		c->cr0 = s->cr.cr0;
		c->cr2 = s->cr.cr2;
		c->cr3 = s->cr.cr3;
		c->cr4 = s->cr.cr4;
		c->cr8 = s->cr.cr8;
		c->xcr0 = s->cr.xcr0;
		c->efer = s->cr.efer;
	}
	if (parts & CPU_PART_DR) {
		memcpy(c->dr, s->dr.dr, sizeof(c->dr));
		c->dr6 = s->dr.dr6;
		c->dr7 = s->dr.dr7;
	}
	if (parts & CPU_PART_CR8)
		c->cr8 = s->cr.cr8;
	if (parts & CPU_PART_MSR)
		c->msr = s->msr;
	if (parts & (CPU_PART_MSR | CPU_PART_TSC))
		c->tsc_offset = cpu_tsc_offset(&s->msr);
	if (parts & CPU_PART_FPU) {
		memcpy(c->fpu_area, s->fpu.area, sizeof(c->fpu_area));
		/* Components marked as initial get their initial values in the image, too. */
		soft_fpu_live(c);
		soft_fpu_park(c);
	}
	if (parts & CPU_PART_INTR)
		set_intr(c, &s->intr);
}

int soft_state_set(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s)
{
	struct soft_cpu *c = cpu_of(vcpu);

	if (!state_is_valid(c, parts, s))
		return -EINVAL;
	soft_fpu_park(c);
	soft_world_resume(c);
	set_parts(c, parts, s);
	c->completing = c->wants_alone = c->refused = false;
	c->frag_count = 0;
	if (parts & (CPU_PART_CR | CPU_PART_SEG | CPU_PART_GPR | CPU_PART_DR)) {
		soft_tlb_flush_all(c);
		soft_load_cr3(c, c->cr3, true);
		soft_update_mode(c);
	}
	return 0;
}

/* A vCPU that was never created is all zeros, and whole pages of it read so again. */
void soft_trim_thread(void)
{
	const u64 start = (u64)&soft_tls_cpu, end = start + sizeof(soft_tls_cpu);
	const u64 first = (start + PAGE_SIZE - 1) & PAGE_MASK, last = end & PAGE_MASK;

	madvise((void *)first, last - first, MADV_DONTNEED);
}
