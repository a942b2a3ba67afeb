/*
 * Model-specific registers: who answers.
 *
 * The kernel denies the guest every register but those that the processor or KVM itself acts on
 * (kvm_held). What is denied ends KVM_RUN and is answered from the table of cpu/msr.c, as in every
 * engine, or by the machine. A held register that the kernel refuses raises #GP. With the kernel's
 * local APIC that one's registers are held as well.
 *
 * The time-stamp counter can be read but not written by the guest alone: the paravirtual clock
 * moves with it. A write goes through the table and comes back as a new offset.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <string.h>
#include <time.h>

enum { READ = KVM_MSR_FILTER_READ, WRITE = KVM_MSR_FILTER_WRITE };

static const struct held_range {
	u32 first, count, access;
} kvm_held[] = {
	/* Of the local APIC, see held_ranges(). Its x2APIC registers cannot be filtered. */
	{MSR_APIC_BASE, 1, READ | WRITE},
	{MSR_TSC_DEADLINE, 1, READ | WRITE},
	{MSR_KVM_PV_EOI_EN, 1, READ | WRITE},
	/* Of the processor. */
	{MSR_TSC, 1, READ},
	{MSR_SPEC_CTRL, 2, READ | WRITE}, /* and PRED_CMD */
	{MSR_ARCH_CAPS, 2, READ | WRITE}, /* and FLUSH_CMD */
	{MSR_SYSENTER_CS, 3, READ | WRITE},
	{MSR_PAT, 1, READ | WRITE},
	{MSR_EFER, 5, READ | WRITE},    /* to SFMASK */
	{MSR_FS_BASE, 4, READ | WRITE}, /* to TSC_AUX */
	{MSR_VIRT_SPEC_CTRL, 1, READ | WRITE},
	{MSR_KVM_STEAL_TIME, 1, READ | WRITE}, /* last: see held_ranges() */
};

enum { APIC_RANGES = 3 };

/* The ranges that @vm's kernel holds, and how many they are. */
static const struct held_range *held_ranges(const struct kvm_vm *vm, u32 *count)
{
	const u32 first = vm->options.kernel_chips ? 0 : APIC_RANGES;

	*count = ARRAY_SIZE(kvm_held) - first - !kvm_has_paravirt(vm);
	return kvm_held + first;
}

int kvm_msr_filter(struct kvm_vm *vm, struct err *e)
{
	static u8 all = 0xff;
	struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};
	u32 count;
	const struct held_range *held = held_ranges(vm, &count);
	int r;

	_Static_assert(ARRAY_SIZE(kvm_held) <= KVM_MSR_FILTER_MAX_RANGES, "one range each");
	for (u32 i = 0; i < count; i++)
		filter.ranges[i] = (struct kvm_msr_filter_range){
			.flags = held[i].access,
			.nmsrs = held[i].count,
			.base = held[i].first,
			.bitmap = &all,
		};
	r = kvm_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, &filter);
	return r < 0 ? err_set(e, r, "KVM_X86_SET_MSR_FILTER: %s", strerror(-r)) : 0;
}

static bool is_held(const struct kvm_vm *vm, u32 index, u32 access)
{
	u32 count;
	const struct held_range *held = held_ranges(vm, &count);

	if (vm->options.kernel_chips && index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return true;
	for (u32 i = 0; i < count; i++)
		if (index - held[i].first < held[i].count)
			return held[i].access & access;
	return false;
}

/* ---- exits ---- */

static int store_physical(void *opaque, gpa_t gpa, const void *buf, u64 len)
{
	return mem_write(((struct kvm_vcpu *)opaque)->vm->physmap, gpa, buf, len);
}

static u64 realtime_ns(void *opaque)
{
	struct timespec ts;

	(void)opaque;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (u64)ts.tv_sec * 1000000000 + (u64)ts.tv_nsec;
}

static int set_tsc(struct kvm_vcpu *v, u64 offset);

static enum msr_result access_table(struct kvm_vcpu *v, bool write, u32 index, u64 *value)
{
	struct msr_env env = {
		.msr = &v->msr,
		.cpuid = v->vm->cpuid,
		.tsc = __builtin_ia32_rdtsc() + v->tsc_offset,
		.store = store_physical,
		.realtime_ns = realtime_ns,
		.opaque = v,
	};
	enum msr_result r;

	if (!write)
		return msr_read(&env, index, value);
	r = msr_write(&env, index, *value);
	if (r == MSR_OK && env.tsc_delta)
		set_tsc(v, v->tsc_offset + (u64)env.tsc_delta);
	return r;
}

bool kvm_msr_exit(struct kvm_vcpu *v, struct vm_exit *exit)
{
	bool write = v->run->exit_reason == KVM_EXIT_X86_WRMSR;
	u32 index = v->run->msr.index;
	u64 value = v->run->msr.data;
	enum msr_result r = MSR_GP;

	if (!is_held(v->vm, index, write ? WRITE : READ))
		r = access_table(v, write, index, &value);
	if (r == MSR_MACHINE) {
		exit->type = write ? EXIT_WRMSR : EXIT_RDMSR;
		exit->msr.index = index;
		exit->msr.value = write ? value : 0;
		exit->msr.fault = false;
		v->pending = KVM_PENDING_MSR;
		return false;
	}
	kvm_count(v->vm, KVM_COUNT_MSRS);
	v->run->msr.error = r == MSR_GP;
	v->run->msr.data = value;
	return true;
}

/* ---- state ---- */

struct msr_list {
	struct kvm_msrs header;
	struct kvm_msr_entry entry[KVM_MSRS_MAX];
};

static const struct {
	u32 index, field;
} saved[] = {
	{MSR_SYSENTER_CS, offsetof(struct cpu_msrs, sysenter_cs)},
	{MSR_SYSENTER_ESP, offsetof(struct cpu_msrs, sysenter_esp)},
	{MSR_SYSENTER_EIP, offsetof(struct cpu_msrs, sysenter_eip)},
	{MSR_STAR, offsetof(struct cpu_msrs, star)},
	{MSR_LSTAR, offsetof(struct cpu_msrs, lstar)},
	{MSR_CSTAR, offsetof(struct cpu_msrs, cstar)},
	{MSR_SFMASK, offsetof(struct cpu_msrs, sfmask)},
	{MSR_KERNEL_GS_BASE, offsetof(struct cpu_msrs, kernel_gs_base)},
	{MSR_PAT, offsetof(struct cpu_msrs, pat)},
	{MSR_TSC_AUX, offsetof(struct cpu_msrs, tsc_aux)},
	{MSR_SPEC_CTRL, offsetof(struct cpu_msrs, spec_ctrl)},
	{MSR_VIRT_SPEC_CTRL, offsetof(struct cpu_msrs, virt_spec_ctrl)},
	{MSR_KVM_STEAL_TIME, offsetof(struct cpu_msrs, kvm_steal_time)}, /* last, too */
};

static u64 *field_of(struct cpu_msrs *m, u32 index)
{
	for (u32 i = 0; i < ARRAY_SIZE(saved); i++)
		if (saved[i].index == index)
			return (u64 *)(void *)((u8 *)m + saved[i].field);
	return NULL;
}

/* A kernel may lack some of them (TSC_AUX, SPEC_CTRL): the guest's CPUID says so, too. */
void kvm_msr_find_held(struct kvm_vcpu *v)
{
	const struct kvm_device_attr offset = {.group = KVM_VCPU_TSC_CTRL,
					       .attr = KVM_VCPU_TSC_OFFSET};
	const u32 count = ARRAY_SIZE(saved) - !kvm_has_paravirt(v->vm);

	v->helds = 0;
	/* KVM_GET_MSRS reads up to the first that it does not know. */
	for (u32 i = 0, known; i < count; i += known + 1) {
		struct msr_list list = {.header.nmsrs = count - i};
		int r;

		for (u32 n = 0; n < list.header.nmsrs; n++)
			list.entry[n].index = saved[i + n].index;
		r = kvm_vcpu_ioctl(v, KVM_GET_MSRS, &list);
		known = r > 0 ? (u32)r : 0;
		for (u32 n = 0; n < known; n++)
			v->held[v->helds++] = saved[i + n].index;
	}
	v->has_tsc_offset = !kvm_vcpu_ioctl(v, KVM_HAS_DEVICE_ATTR, &offset);
}

void kvm_tsc_get(const struct kvm_vcpu *v, struct cpu_msrs *m)
{
	m->tsc_host = __builtin_ia32_rdtsc();
	m->tsc = m->tsc_host + v->tsc_offset;
}

int kvm_msr_get(struct kvm_vcpu *v, struct cpu_msrs *m)
{
	struct msr_list list = {.header.nmsrs = v->helds};
	int r;

	for (u32 i = 0; i < v->helds; i++)
		list.entry[i].index = v->held[i];
	r = kvm_vcpu_ioctl(v, KVM_GET_MSRS, &list);
	if (r != (int)v->helds) {
		v->refused = KVM_GET_MSRS;
		return r < 0 ? r : -EIO;
	}
	*m = v->msr;
	for (u32 i = 0; i < v->helds; i++)
		*field_of(m, v->held[i]) = list.entry[i].data;
	kvm_tsc_get(v, m);
	return 0;
}

/*
 * By its offset where the kernel takes that: a value written to the register within a second of
 * another vCPU's is taken for an attempt to set both alike, and rounded to that.
 */
static int set_tsc(struct kvm_vcpu *v, u64 offset)
{
	const struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (u64)&offset};
	struct msr_list list = {.header.nmsrs = 1, .entry[0].index = MSR_TSC};
	int r;

	if (v->has_tsc_offset) {
		r = kvm_vcpu_ioctl(v, KVM_SET_DEVICE_ATTR, &attr);
		if (!r)
			v->tsc_offset = offset;
		return r;
	}
	list.entry[0].data = __builtin_ia32_rdtsc() + offset;
	r = kvm_vcpu_ioctl(v, KVM_SET_MSRS, &list);
	if (r == 1)
		r = kvm_vcpu_ioctl(v, KVM_GET_MSRS, &list);
	if (r != 1)
		return r < 0 ? r : -EIO;
	v->tsc_offset = list.entry[0].data - __builtin_ia32_rdtsc();
	return 0;
}

int kvm_tsc_put(struct kvm_vcpu *v, const struct cpu_msrs *m)
{
	return set_tsc(v, cpu_tsc_offset(m));
}

int kvm_msr_put(struct kvm_vcpu *v, const struct cpu_msrs *m)
{
	struct msr_list list = {.header.nmsrs = v->helds};
	struct cpu_msrs copy = *m;
	int r;

	for (u32 i = 0; i < v->helds; i++)
		list.entry[i] = (struct kvm_msr_entry){.index = v->held[i],
						       .data = *field_of(&copy, v->held[i])};
	r = kvm_vcpu_ioctl(v, KVM_SET_MSRS, &list);
	if (r != (int)v->helds) {
		v->refused = KVM_SET_MSRS; /* a part of them is not a failure of the call */
		return r < 0 ? r : -EINVAL;
	}
	v->msr = *m;
	return kvm_tsc_put(v, m);
}
