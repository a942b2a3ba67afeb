/*
 * The guest's CPUID on this engine.
 *
 * The model is made for engines that run system instructions themselves, so it offers more than a
 * kernel may be able to virtualize, and it says that speculation needs no mitigation, which is true
 * of translated code only. Here the guest runs on the processor: what the kernel does not support
 * goes, the claims of immunity are the kernel's, and the controls that mitigations need are added.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { EAX, EBX, ECX, EDX, MAX_ENTRIES = 256 };

struct cpuid_list {
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entry[MAX_ENTRIES];
};

/* A register of feature bits: what the machine provides whatever the kernel says, and what is added
 * when the kernel offers it. All other bits stay only if the kernel has them. */
static const struct feature_word {
	u32 leaf, subleaf, reg;
	u32 ours, added;
} words[] = {
	/* x2APIC, TSC deadline, hypervisor: of the machine */
	{1, 0, ECX, 1u << 21 | 1u << 24 | 1u << 31, 0},
	/* MCE APIC MTRR MCA HTT: registers of the table and of the machine */
	{1, 0, EDX, 1u << 7 | 1u << 9 | 1u << 12 | 1u << 14 | 1u << 28, 0},
	{7, 0, EBX, 0, 0},
	{7, 0, ECX, 0, 0},
	/* MD_CLEAR; IBRS and IBPB, STIBP, FLUSH_L1D, SSBD */
	{7, 0, EDX, 0, 1u << 10 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 31},
	{7, 1, EAX, 0, 0},
	/* PSFD IPRED_CTRL RRSBA_CTRL BHI_CTRL */
	{7, 2, EDX, 0, 1u << 0 | 1u << 1 | 1u << 2},
	{0xd, 1, EAX, 0, 0},
	/* CMP_LEGACY, topology extensions: numbering */
	{0x80000001, 0, ECX, 1u << 1 | 1u << 22, 0},
	{0x80000001, 0, EDX, 0, 0},
	{0x80000007, 0, EDX, 0, 0},
	/* IBPB IBRS STIBP, always-on STIBP, SSBD, VIRT_SSBD */
	{0x80000008, 0, EBX, 0, 1u << 12 | 1u << 14 | 1u << 15 | 1u << 17 | 1u << 24 | 1u << 25},
	{0x80000021, 0, EAX, 0, 1u << 28},
	{0x80000021, 0, ECX, 0, 0},
};

static int get_supported(int device, struct cpuid_list *list, struct err *e)
{
	int r;

	list->header.nent = MAX_ENTRIES;
	r = kvm_ioctl(device, KVM_GET_SUPPORTED_CPUID, list);
	return r < 0 ? err_set(e, r, "KVM_GET_SUPPORTED_CPUID: %s", strerror(-r)) : 0;
}

static const struct kvm_cpuid_entry2 *find(const struct cpuid_list *list, u32 leaf, u32 subleaf)
{
	for (u32 i = 0; i < list->header.nent; i++) {
		const struct kvm_cpuid_entry2 *x = &list->entry[i];

		if (x->function == leaf && x->index == subleaf)
			return x;
	}
	return NULL;
}

static u32 supported(const struct cpuid_list *list, u32 leaf, u32 subleaf, u32 reg)
{
	const struct kvm_cpuid_entry2 *x = find(list, leaf, subleaf);

	if (!x)
		return 0;
	return reg == EAX ? x->eax : reg == EBX ? x->ebx : reg == ECX ? x->ecx : x->edx;
}

static u32 *model_reg(struct cpuid_model *m, u32 leaf, u32 subleaf, u32 reg)
{
	for (u32 i = 0; i < m->count; i++) {
		struct cpuid_leaf *l = &m->leaf[i];

		if (l->leaf == leaf && (!l->has_subleaf || l->subleaf == subleaf))
			return reg == EAX   ? &l->eax
			       : reg == EBX ? &l->ebx
			       : reg == ECX ? &l->ecx
					    : &l->edx;
	}
	return NULL;
}

static void limit_features(struct cpuid_model *m, const struct cpuid_list *list)
{
	for (u32 i = 0; i < ARRAY_SIZE(words); i++) {
		const struct feature_word *w = &words[i];
		u32 *reg = model_reg(m, w->leaf, w->subleaf, w->reg);
		u32 has = supported(list, w->leaf, w->subleaf, w->reg);

		if (reg)
			*reg = (*reg & (has | w->ours)) | (has & w->added);
	}
}

/* Leaf 0xd: components that the kernel has, and only if there is XSAVE to set them. */
static void limit_xsave(struct cpuid_model *m, const struct cpuid_list *list)
{
	const u64 basic = XCR0_X87 | XCR0_SSE;
	u32 *reg, kept = 0;
	u64 xcr0 = supported(list, 0xd, 0, EAX) | basic;

	if (!cpuid_has(m, 1, 0, ECX, 26))
		xcr0 = basic;
	m->xcr0 &= xcr0;
	m->xsave_max = 576;
	for (u32 i = 0; i < m->count; i++) {
		const struct cpuid_leaf *l = &m->leaf[i];
		bool component = l->leaf == 0xd && l->subleaf >= 2;

		if (component && !(m->xcr0 & BIT(l->subleaf)))
			continue;
		if (component)
			m->xsave_max = MAX(m->xsave_max, l->eax + l->ebx);
		m->leaf[kept++] = *l;
	}
	m->count = kept;
	reg = model_reg(m, 0xd, 0, EAX);
	if (reg)
		*reg = (u32)m->xcr0;
	reg = model_reg(m, 0xd, 0, ECX);
	if (reg)
		*reg = m->xsave_max;
}

static void limit_address(struct cpuid_model *m, const struct cpuid_list *list)
{
	u32 bits = supported(list, 0x80000008, 0, EAX) & 0xff;
	u32 *reg = model_reg(m, 0x80000008, 0, EAX);

	if (!reg || !bits || bits >= m->phys_bits)
		return;
	m->phys_bits = bits;
	*reg = (*reg & ~0xffu) | bits;
}

/* The paravirtual clock needs a TSC at a constant rate. */
static void limit_clock(struct cpuid_model *m)
{
	const u32 clocksource2 = 1u << 3, stable = 1u << 24;
	u32 *reg = model_reg(m, 0x40000001, 0, EAX);

	if (reg && !cpuid_has(m, 0x80000007, 0, EDX, 8))
		*reg &= ~(clocksource2 | stable);
}

bool kvm_has_paravirt(const struct kvm_vm *vm)
{
	return vm->cpuid->one_engine && vm->cpuid->has_hypervisor;
}

/*
 * It accounts for the time a vCPU waits, and leaves TLB flushes to those that do. To wake and to
 * interrupt vCPUs it has to have their local APICs.
 */
u32 kvm_cpuid_paravirt(const struct kvm_vm *vm, const struct kvm_host *host)
{
	const u32 steal_time = 1u << 5, unhalt = 1u << 7, tlb_flush = 1u << 9, send_ipi = 1u << 11,
		  sched_yield = 1u << 13;

	if (!kvm_has_paravirt(vm) || !(host->paravirt & steal_time))
		return 0;
	return host->paravirt & (steal_time | tlb_flush |
				 (vm->options.kernel_chips ? unhalt | send_ipi | sched_yield : 0));
}

/* What the guest reads there is the kernel's: it answers. */
static void limit_capabilities(int device, struct cpuid_model *m)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} list = {.header.nmsrs = 1, .entry.index = MSR_ARCH_CAPS};

	if (m->is_amd)
		return;
	m->arch_capabilities = kvm_ioctl(device, KVM_GET_MSRS, &list) == 1 ? list.entry.data : 0;
}

int kvm_cpuid_limit(struct kvm_host *host, struct cpuid_model *m, struct err *e)
{
	struct cpuid_list *list = calloc(1, sizeof(*list));
	int r;

	if (!list)
		return err_set(e, -ENOMEM, "out of memory");
	r = get_supported(host->device, list, e);
	if (!r) {
		host->paravirt = supported(list, 0x40000001, 0, EAX);
		limit_features(m, list);
		limit_xsave(m, list);
		limit_address(m, list);
		limit_clock(m);
		limit_capabilities(host->device, m);
	}
	free(list);
	return r;
}

/* The kernel keeps up what depends on CR4 and XCR0 (OSXSAVE, size of the XSAVE area). */
int kvm_cpuid_set(struct kvm_vcpu *v, struct err *e)
{
	const struct cpuid_model *m = v->vm->cpuid;
	struct cpuid_list *list = calloc(1, sizeof(*list));
	int r;

	_Static_assert((int)CPUID_MAX_LEAVES <= (int)MAX_ENTRIES, "each leaf is an entry");
	if (!list)
		return err_set(e, -ENOMEM, "out of memory");
	list->header.nent = m->count;
	for (u32 i = 0; i < m->count; i++) {
		const struct cpuid_leaf *l = &m->leaf[i];
		u32 reg[4];

		cpuid_query(m, v->id, 0, XCR0_X87, l->leaf, l->subleaf, reg);
		list->entry[i] = (struct kvm_cpuid_entry2){
			.function = l->leaf,
			.index = l->subleaf,
			.flags = l->has_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = reg[EAX] | (l->leaf == 0x40000001 ? v->vm->paravirt : 0),
			.ebx = reg[EBX],
			.ecx = reg[ECX],
			.edx = reg[EDX],
		};
	}
	r = kvm_vcpu_ioctl(v, KVM_SET_CPUID2, list);
	free(list);
	return r < 0 ? err_set(e, r, "KVM_SET_CPUID2: %s", strerror(-r)) : 0;
}
