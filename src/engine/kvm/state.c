/*
 * Architectural state: the kernel's structures and ours.
 *
 * The vCPU's own thread moves it, between two calls of KVM_RUN. Nothing is cached, except which
 * MSRs the table answers (msr.c), the TSC's offset, and CR8, which the kernel takes from the shared
 * page at each entry and puts there at each exit when the local APIC is not its own. So the two
 * parts that are asked for all the time, CPU_PART_CR8 and CPU_PART_TSC, cost no system call.
 */
#include "engine/kvm/kvm.h"

#include "base/log.h"

#include <errno.h>
#include <string.h>

/* Interrupt shadow in struct kvm_vcpu_events (KVM API, 4.31). */
enum { SHADOW_MOV_SS = 1, SHADOW_STI = 2 };

/* Where the kernel believes the local APIC to be that it does not have, and that it is on: CPUID's
 * APIC bit follows that. */
static const u64 apic_base = 0xfee00800;

static struct kvm_vcpu *vcpu_of(struct engine_vcpu *vcpu)
{
	return (struct kvm_vcpu *)vcpu;
}

/* ---- general registers ---- */

/* Members of struct kvm_regs in the order of enum gpr. */
static const u16 gpr_offset[GPR_COUNT] = {
	[RAX] = offsetof(struct kvm_regs, rax), [RCX] = offsetof(struct kvm_regs, rcx),
	[RDX] = offsetof(struct kvm_regs, rdx), [RBX] = offsetof(struct kvm_regs, rbx),
	[RSP] = offsetof(struct kvm_regs, rsp), [RBP] = offsetof(struct kvm_regs, rbp),
	[RSI] = offsetof(struct kvm_regs, rsi), [RDI] = offsetof(struct kvm_regs, rdi),
	[R8] = offsetof(struct kvm_regs, r8),   [R9] = offsetof(struct kvm_regs, r9),
	[R10] = offsetof(struct kvm_regs, r10), [R11] = offsetof(struct kvm_regs, r11),
	[R12] = offsetof(struct kvm_regs, r12), [R13] = offsetof(struct kvm_regs, r13),
	[R14] = offsetof(struct kvm_regs, r14), [R15] = offsetof(struct kvm_regs, r15),
};

static int get_gpr(struct kvm_vcpu *v, struct cpu_gpr *g)
{
	struct kvm_regs regs = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_REGS, &regs);

	if (r)
		return r;
	for (u32 i = 0; i < GPR_COUNT; i++)
		memcpy(&g->r[i], (u8 *)&regs + gpr_offset[i], sizeof(u64));
	g->rip = regs.rip;
	g->rflags = regs.rflags;
	return 0;
}

static int set_gpr(struct kvm_vcpu *v, const struct cpu_gpr *g)
{
	struct kvm_regs regs = {.rip = g->rip, .rflags = g->rflags | RFLAGS_ONE};

	for (u32 i = 0; i < GPR_COUNT; i++)
		memcpy((u8 *)&regs + gpr_offset[i], &g->r[i], sizeof(u64));
	return kvm_vcpu_ioctl(v, KVM_SET_REGS, &regs);
}

/* ---- segments and control registers ---- */

static struct kvm_segment *segment_of(struct kvm_sregs *s, u32 seg)
{
	switch (seg) {
	case SEG_ES: return &s->es;
	case SEG_CS: return &s->cs;
	case SEG_SS: return &s->ss;
	case SEG_DS: return &s->ds;
	case SEG_FS: return &s->fs;
	case SEG_GS: return &s->gs;
	case SEG_LDTR: return &s->ldt;
	default: return &s->tr;
	}
}

static struct cpu_segment segment_from(const struct kvm_segment *k)
{
	return (struct cpu_segment){
		.selector = k->selector,
		.limit = k->limit,
		.base = k->base,
		.type = k->type,
		.s = k->s,
		.dpl = k->dpl,
		.present = k->present,
		.avl = k->avl,
		.l = k->l,
		.db = k->db,
		.g = k->g,
		.unusable = k->unusable || !k->present,
	};
}

static struct kvm_segment segment_to(const struct cpu_segment *c)
{
	return (struct kvm_segment){
		.selector = c->selector,
		.limit = c->limit,
		.base = c->base,
		.type = c->type,
		.s = c->s,
		.dpl = c->dpl,
		.present = c->present && !c->unusable,
		.avl = c->avl,
		.l = c->l,
		.db = c->db,
		.g = c->g,
		.unusable = c->unusable,
	};
}

static void segs_from(struct cpu_segs *segs, struct kvm_sregs *s)
{
	for (u32 i = 0; i < SEG_COUNT; i++)
		segs->seg[i] = segment_from(segment_of(s, i));
	segs->gdtr = (struct cpu_table){.base = s->gdt.base, .limit = s->gdt.limit};
	segs->idtr = (struct cpu_table){.base = s->idt.base, .limit = s->idt.limit};
}

static void segs_to(struct kvm_sregs *s, const struct cpu_segs *segs)
{
	for (u32 i = 0; i < SEG_COUNT; i++)
		*segment_of(s, i) = segment_to(&segs->seg[i]);
	/* A loaded TSS is busy, and VMX enters with nothing else (SDM vol. 3, 27.3.1.2). */
	s->tr.type |= 2;
	s->gdt = (struct kvm_dtable){.base = segs->gdtr.base, .limit = segs->gdtr.limit};
	s->idt = (struct kvm_dtable){.base = segs->idtr.base, .limit = segs->idtr.limit};
}

static struct cpu_cr cr_from(const struct kvm_sregs *s)
{
	return (struct cpu_cr){.cr0 = s->cr0,
			       .cr2 = s->cr2,
			       .cr3 = s->cr3,
			       .cr4 = s->cr4,
			       .cr8 = s->cr8,
			       .efer = s->efer};
}

static void cr_to(struct kvm_sregs *s, const struct cpu_cr *cr)
{
	s->cr0 = cr->cr0 | CR0_ET;
	s->cr2 = cr->cr2;
	s->cr3 = cr->cr3;
	s->cr4 = cr->cr4;
	s->cr8 = cr->cr8;
	s->efer = cr->efer;
}

static int get_xcr0(struct kvm_vcpu *v, u64 *xcr0)
{
	struct kvm_xcrs xcrs = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_XCRS, &xcrs);

	for (u32 i = 0; i < xcrs.nr_xcrs; i++)
		if (!xcrs.xcrs[i].xcr)
			*xcr0 = xcrs.xcrs[i].value;
	return r;
}

static int set_xcr0(struct kvm_vcpu *v, u64 xcr0)
{
	const struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = xcr0}};

	return kvm_vcpu_ioctl(v, KVM_SET_XCRS, &xcrs);
}

/* True when CR8 is in the shared page, and the kernel's own may be older. */
static bool shares_cr8(const struct kvm_vcpu *v)
{
	return !v->vm->options.kernel_chips;
}

static int get_cr8(struct kvm_vcpu *v, u64 *cr8)
{
	struct kvm_sregs sregs = {0};
	int r = shares_cr8(v) ? 0 : kvm_vcpu_ioctl(v, KVM_GET_SREGS, &sregs);

	*cr8 = shares_cr8(v) ? v->run->cr8 : sregs.cr8;
	return r;
}

static int set_cr8(struct kvm_vcpu *v, u64 cr8)
{
	struct kvm_sregs sregs = {0};
	int r;

	v->run->cr8 = cr8;
	if (shares_cr8(v))
		return 0;
	r = kvm_vcpu_ioctl(v, KVM_GET_SREGS, &sregs);
	sregs.cr8 = cr8;
	return r ? r : kvm_vcpu_ioctl(v, KVM_SET_SREGS, &sregs);
}

static int get_system(struct kvm_vcpu *v, u32 parts, struct cpu_state *s)
{
	struct kvm_sregs sregs = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_SREGS, &sregs);

	if (r)
		return r;
	if (parts & CPU_PART_SEG)
		segs_from(&s->segs, &sregs);
	if (!(parts & CPU_PART_CR))
		return 0;
	s->cr = cr_from(&sregs);
	if (shares_cr8(v))
		s->cr.cr8 = v->run->cr8;
	return get_xcr0(v, &s->cr.xcr0);
}

static int set_system(struct kvm_vcpu *v, u32 parts, const struct cpu_state *s)
{
	struct kvm_sregs sregs = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_SREGS, &sregs);

	if (r)
		return r;
	/* What is in flight belongs to CPU_PART_INTR; a bit here would queue it a second time. */
	memset(sregs.interrupt_bitmap, 0, sizeof(sregs.interrupt_bitmap));
	if (!v->vm->options.kernel_chips)
		sregs.apic_base = apic_base | (v->id ? 0 : BIT(8));
	if (parts & CPU_PART_SEG)
		segs_to(&sregs, &s->segs);
	if (parts & CPU_PART_CR)
		cr_to(&sregs, &s->cr);
	r = kvm_vcpu_ioctl(v, KVM_SET_SREGS, &sregs);
	if (r || !(parts & CPU_PART_CR))
		return r;
	v->run->cr8 = s->cr.cr8;
	return set_xcr0(v, s->cr.xcr0);
}

/* ---- debug registers, vector state ---- */

static int get_dr(struct kvm_vcpu *v, struct cpu_dr *d)
{
	struct kvm_debugregs regs = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_DEBUGREGS, &regs);

	if (r)
		return r;
	for (u32 i = 0; i < ARRAY_SIZE(d->dr); i++)
		d->dr[i] = regs.db[i];
	d->dr6 = regs.dr6;
	d->dr7 = regs.dr7;
	return 0;
}

static int set_dr(struct kvm_vcpu *v, const struct cpu_dr *d)
{
	struct kvm_debugregs regs = {.dr6 = d->dr6, .dr7 = d->dr7};

	for (u32 i = 0; i < ARRAY_SIZE(d->dr); i++)
		regs.db[i] = d->dr[i];
	return kvm_vcpu_ioctl(v, KVM_SET_DEBUGREGS, &regs);
}

/* The image is in the standard format on both sides (KVM API, 4.42; SDM vol. 1, 13.4). */
static int get_fpu(struct kvm_vcpu *v, struct cpu_fpu *f)
{
	_Static_assert(sizeof(((struct kvm_xsave *)0)->region) == CPU_XSAVE_MAX, "struct cpu_fpu");
	f->size = v->vm->cpuid->xsave_max;
	return kvm_vcpu_ioctl(v, KVM_GET_XSAVE, f->area);
}

static int set_fpu(struct kvm_vcpu *v, const struct cpu_fpu *f)
{
	return kvm_vcpu_ioctl(v, KVM_SET_XSAVE, f->area);
}

/* ---- what is in flight ---- */

static void intr_from(struct cpu_intr *i, const struct kvm_vcpu_events *x)
{
	*i = (struct cpu_intr){
		.nmi_pending = x->nmi.pending || x->nmi.injected,
		.nmi_blocked = x->nmi.masked && !x->nmi.injected,
		.shadow_sti = x->interrupt.shadow & SHADOW_STI,
		.shadow_mov_ss = x->interrupt.shadow & SHADOW_MOV_SS,
	};
	if (x->exception.injected) {
		i->pending = true;
		i->is_exception = true;
		i->vector = x->exception.nr;
		i->has_error = x->exception.has_error_code;
		i->error = x->exception.error_code;
	} else if (x->interrupt.injected) {
		i->pending = true;
		i->vector = x->interrupt.nr;
	}
}

static int get_intr(struct kvm_vcpu *v, struct cpu_intr *i)
{
	struct kvm_vcpu_events events = {0};
	int r = kvm_vcpu_ioctl(v, KVM_GET_VCPU_EVENTS, &events);

	if (!r)
		intr_from(i, &events);
	return r;
}

static int set_intr(struct kvm_vcpu *v, const struct cpu_intr *i)
{
	struct kvm_vcpu_events x = {
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
		.nmi = {.pending = i->nmi_pending, .masked = i->nmi_blocked},
	};

	x.interrupt.shadow =
		(i->shadow_sti ? SHADOW_STI : 0) | (i->shadow_mov_ss ? SHADOW_MOV_SS : 0);
	if (i->pending && i->is_exception) {
		x.exception.injected = 1;
		x.exception.nr = i->vector;
		x.exception.has_error_code = i->has_error;
		x.exception.error_code = i->error;
	} else if (i->pending) {
		x.interrupt.injected = 1;
		x.interrupt.nr = i->vector;
	}
	return kvm_vcpu_ioctl(v, KVM_SET_VCPU_EVENTS, &x);
}

/* ---- all parts ---- */

static int get_parts(struct kvm_vcpu *v, u32 parts, struct cpu_state *s)
{
	int r = 0;

	if (parts & CPU_PART_GPR)
		r = get_gpr(v, &s->gpr);
	if (!r && parts & (CPU_PART_SEG | CPU_PART_CR))
		r = get_system(v, parts, s);
	if (!r && parts & CPU_PART_CR8)
		r = get_cr8(v, &s->cr.cr8);
	if (!r && parts & CPU_PART_DR)
		r = get_dr(v, &s->dr);
	if (!r && parts & CPU_PART_MSR)
		r = kvm_msr_get(v, &s->msr);
	if (parts & CPU_PART_TSC)
		kvm_tsc_get(v, &s->msr);
	if (!r && parts & CPU_PART_FPU)
		r = get_fpu(v, &s->fpu);
	if (!r && parts & CPU_PART_INTR)
		r = get_intr(v, &s->intr);
	if (!r && parts & CPU_PART_APIC && v->vm->options.kernel_chips)
		r = kvm_apic_get(v, &s->apic);
	return r;
}

/* What the kernel would take although no guest of this model can have it. */
static bool is_valid(const struct kvm_vcpu *v, u32 parts, const struct cpu_state *s)
{
	const struct cpuid_model *m = v->vm->cpuid;

	if (parts & CPU_PART_CR && (s->cr.xcr0 & ~m->xcr0 || !(s->cr.xcr0 & XCR0_X87)))
		return false;
	if (parts & CPU_PART_MSR) {
		struct cpu_msrs copy = s->msr;

		/* The kernel knows which bits there are. */
		copy.spec_ctrl = copy.virt_spec_ctrl = 0;
		if (!msr_state_is_valid(&copy, m))
			return false;
	}
	if (parts & CPU_PART_FPU) {
		u64 xstate_bv;

		memcpy(&xstate_bv, s->fpu.area + 512, sizeof(xstate_bv));
		if (xstate_bv & ~m->xcr0)
			return false;
		for (u32 i = 520; i < 576; i++)
			if (s->fpu.area[i])
				return false;
	}
	return true;
}

static int set_apic(struct kvm_vcpu *v, u32 parts, const struct cpu_state *s)
{
	struct cpu_apic apic = s->apic;

	if (parts & CPU_PART_CR && apic.reg[APIC_TPR] >> 4 != s->cr.cr8)
		apic.reg[APIC_TPR] = (u32)s->cr.cr8 << 4;
	return kvm_apic_set(v, &apic);
}

static int set_parts(struct kvm_vcpu *v, u32 parts, const struct cpu_state *s)
{
	int r = 0;

	if (parts & (CPU_PART_SEG | CPU_PART_CR))
		r = set_system(v, parts, s);
	if (!r && parts & CPU_PART_CR8)
		r = set_cr8(v, s->cr.cr8);
	if (!r && parts & CPU_PART_GPR)
		r = set_gpr(v, &s->gpr);
	if (!r && parts & CPU_PART_DR)
		r = set_dr(v, &s->dr);
	if (!r && parts & CPU_PART_MSR)
		r = kvm_msr_put(v, &s->msr);
	if (!r && parts & CPU_PART_TSC)
		r = kvm_tsc_put(v, &s->msr);
	if (!r && parts & CPU_PART_FPU)
		r = set_fpu(v, &s->fpu);
	if (!r && parts & CPU_PART_APIC && v->vm->options.kernel_chips)
		r = set_apic(v, parts, s);
	/* Last: setting registers drops a pending exception. */
	if (!r && parts & CPU_PART_INTR)
		r = set_intr(v, &s->intr);
	return r;
}

static int look_again(struct kvm_vcpu *v)
{
	struct cpu_state s;
	int r = get_gpr(v, &s.gpr);

	if (!r)
		r = get_intr(v, &s.intr);
	if (!r)
		v->irq_open = s.gpr.rflags & RFLAGS_IF && !s.intr.pending && !s.intr.shadow_sti &&
			      !s.intr.shadow_mov_ss;
	return r;
}

int kvm_state_apply(struct kvm_vcpu *v, u32 parts, const struct cpu_state *s)
{
	int r;

	if (!is_valid(v, parts, s))
		return -EINVAL;
	r = set_parts(v, parts, s);
	/* Neither CR8 nor the TSC opens or shuts the processor to interrupts. */
	if (r || v->vm->options.kernel_chips || !(parts & CPU_PART_ALL))
		return r;
	return look_again(v);
}

/* The contract has room for an error number, which says little: who runs doppel learns here what
 * was refused. */
static int say_refused(struct kvm_vcpu *v, int r)
{
	if (r && v->refused)
		log_error("cpu %u: %s: %s", v->id, kvm_call_name(v->refused), strerror(-r));
	v->refused = 0;
	return r;
}

int kvm_state_get(struct engine_vcpu *vcpu, u32 parts, struct cpu_state *s)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);

	return say_refused(v, get_parts(v, parts, s));
}

int kvm_state_set(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);

	return say_refused(v, kvm_state_apply(v, parts, s));
}
