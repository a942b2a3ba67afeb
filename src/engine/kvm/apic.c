/*
 * The local APIC in the kernel, and whether its processor runs, as the part CPU_PART_APIC of a
 * vCPU's state.
 *
 * The kernel has the first 1 KiB of the register page as a guest in xAPIC mode would read it, with
 * the timer's current count. In x2APIC mode, too, it wants the identifier shifted: it keeps to that
 * until told otherwise (KVM_CAP_X2APIC_API), which more than 255 processors would need.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <string.h>

enum { REG_BYTES = 16, ID_SHIFT = 24 };

struct apic_msrs {
	struct kvm_msrs header;
	struct kvm_msr_entry entry[3];
};

static int get_msrs(struct kvm_vcpu *v, struct cpu_apic *a)
{
	struct apic_msrs list = {
		.header.nmsrs = 3,
		.entry = {{.index = MSR_APIC_BASE},
			  {.index = MSR_TSC_DEADLINE},
			  {.index = MSR_KVM_PV_EOI_EN}},
	};
	int r = kvm_vcpu_ioctl(v, KVM_GET_MSRS, &list);

	if (r != 3)
		return r < 0 ? r : -EIO;
	a->base = list.entry[0].data;
	a->tsc_deadline = list.entry[1].data;
	a->pv_eoi = list.entry[2].data;
	return 0;
}

static int set_msr(struct kvm_vcpu *v, u32 index, u64 value)
{
	struct apic_msrs list = {.header.nmsrs = 1, .entry = {{.index = index, .data = value}}};
	int r = kvm_vcpu_ioctl(v, KVM_SET_MSRS, &list);

	if (r == 1)
		return 0;
	return r < 0 ? r : -EINVAL;
}

int kvm_apic_get(struct kvm_vcpu *v, struct cpu_apic *a)
{
	struct kvm_lapic_state page = {0};
	struct kvm_mp_state mp = {0};
	int r = get_msrs(v, a);

	if (!r)
		r = kvm_vcpu_ioctl(v, KVM_GET_LAPIC, &page);
	if (!r)
		r = kvm_vcpu_ioctl(v, KVM_GET_MP_STATE, &mp);
	if (r)
		return r;
	for (u32 i = 0; i < APIC_REGS; i++)
		memcpy(&a->reg[i], page.regs + (u64)i * REG_BYTES, sizeof(u32));
	a->halted = mp.mp_state == KVM_MP_STATE_HALTED;
	a->waits_for_sipi = mp.mp_state == KVM_MP_STATE_UNINITIALIZED ||
			    mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
	return 0;
}

static int set_page(struct kvm_vcpu *v, const struct cpu_apic *a)
{
	const u32 id = v->id << ID_SHIFT;
	struct kvm_lapic_state page = {0};

	for (u32 i = 0; i < APIC_REGS; i++)
		memcpy(page.regs + (u64)i * REG_BYTES, &a->reg[i], sizeof(u32));
	memcpy(page.regs + (u64)APIC_ID * REG_BYTES, &id, sizeof(id));
	return kvm_vcpu_ioctl(v, KVM_SET_LAPIC, &page);
}

/* The mode comes before the registers, and the timer's mode, one of these, before its deadline. */
int kvm_apic_set(struct kvm_vcpu *v, const struct cpu_apic *a)
{
	const struct kvm_mp_state mp = {
		.mp_state = a->waits_for_sipi ? KVM_MP_STATE_UNINITIALIZED
			    : a->halted       ? KVM_MP_STATE_HALTED
					      : KVM_MP_STATE_RUNNABLE,
	};
	int r = set_msr(v, MSR_APIC_BASE, a->base);

	if (!r)
		r = set_page(v, a);
	if (!r)
		r = set_msr(v, MSR_TSC_DEADLINE, a->tsc_deadline);
	if (!r)
		r = set_msr(v, MSR_KVM_PV_EOI_EN, a->pv_eoi);
	return r ? r : kvm_vcpu_ioctl(v, KVM_SET_MP_STATE, &mp);
}
