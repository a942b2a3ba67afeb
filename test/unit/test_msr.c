/* The table of model-specific registers and the paravirtual clock. */
#include "cpu/msr.h"
#include "cpu/pvclock.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct fixture {
	struct cpu_msrs msr;
	struct cpuid_model cpuid;
	struct msr_env env;
	u8 ram[8192];
};

static int store(void *opaque, gpa_t gpa, const void *buf, u64 len)
{
	struct fixture *f = opaque;

	if (range_exceeds(gpa, len, sizeof(f->ram)))
		return -EFAULT;
	memcpy(f->ram + gpa, buf, len);
	return 0;
}

static u64 realtime(void *opaque)
{
	(void)opaque;
	return 1700000000ul * 1000000000 + 250;
}

static struct fixture fixture;

static int setup(void **state)
{
	struct fixture *f = &fixture;

	memset(f, 0, sizeof(*f));
	f->cpuid = (struct cpuid_model){
		.is_amd = true, .has_hypervisor = true, .phys_bits = 48, .tsc_hz = 2000000000};
	f->cpuid.arch_capabilities = CPUID_ARCH_CAPABILITIES;
	msr_reset(&f->msr);
	f->env = (struct msr_env){.msr = &f->msr,
				  .cpuid = &f->cpuid,
				  .tsc = 1000,
				  .store = store,
				  .realtime_ns = realtime,
				  .opaque = f};
	*state = f;
	return 0;
}

static u64 get(struct fixture *f, u32 index)
{
	u64 value = 0;

	assert_int_equal(msr_read(&f->env, index, &value), MSR_OK);
	return value;
}

#define assert_sets(f, index, v)                                          \
	do {                                                              \
		assert_int_equal(msr_write(&(f)->env, index, v), MSR_OK); \
		assert_int_equal(get(f, index), v);                       \
	} while (0)
#define assert_refuses(f, index, v) assert_int_equal(msr_write(&(f)->env, index, v), MSR_GP)

/* Offer the feature of @leaf; in register @reg, 0 eax to 3 edx. */
static void offer(struct fixture *f, u32 leaf, u32 subleaf, u32 reg, u32 bit)
{
	struct cpuid_leaf *l = &f->cpuid.leaf[f->cpuid.count++];

	*l = (struct cpuid_leaf){.leaf = leaf, .subleaf = subleaf, .has_subleaf = leaf == 7};
	*(u32 *[]){&l->eax, &l->ebx, &l->ecx, &l->edx}[reg] = 1u << bit;
}

/* Write-only commands have nothing to read. */
static bool exists(struct fixture *f, u32 index)
{
	u64 value;

	return msr_read(&f->env, index, &value) == MSR_OK || msr_write(&f->env, index, 1) == MSR_OK;
}

static void table_is_sorted_and_reachable(void **state)
{
	struct fixture *f = *state;
	u32 index, last = 0, n;

	offer(f, 7, 0, 3, 28);
	offer(f, 0x80000008, 0, 1, 25);
	f->cpuid.leaf[0].edx |= 1u << 26;
	for (n = 0; msr_index(n, &index); n++) {
		bool amd, intel;

		assert_true(n == 0 || index >= last);
		last = index;
		f->cpuid.is_amd = true;
		amd = exists(f, index);
		f->cpuid.is_amd = false;
		intel = exists(f, index);
		assert_true(amd || intel);
	}
	assert_in_range(n, 50, 200);
}

static void unknown_registers_fault(void **state)
{
	static const u32 unknown[] = {2,     0x49,     0x186,      0x480,      0x800 - 1, 0x900,
				      0xda0, MSR_EFER, 0xc0010114, 0xc0011028, 0xffffffff};
	struct fixture *f = *state;
	u64 value;

	for (u32 i = 0; i < ARRAY_SIZE(unknown); i++) {
		assert_int_equal(msr_read(&f->env, unknown[i], &value), MSR_GP);
		assert_int_equal(msr_write(&f->env, unknown[i], 0), MSR_GP);
	}
}

static void machine_registers_are_handed_on(void **state)
{
	static const u32 machine[] = {
		MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_KVM_PV_EOI_EN, 0x800, 0x80b, 0x8ff};
	struct fixture *f = *state;
	u64 value;

	for (u32 i = 0; i < ARRAY_SIZE(machine); i++) {
		assert_true(msr_is_machine(machine[i]));
		assert_int_equal(msr_read(&f->env, machine[i], &value), MSR_MACHINE);
		assert_int_equal(msr_write(&f->env, machine[i], 0), MSR_MACHINE);
	}
}

static void vendors_have_their_own(void **state)
{
	struct fixture *f = *state;
	u64 value;

	assert_int_equal(get(f, 0xc0010015), BIT(24)); /* HWCR.TscFreqSel */
	assert_int_equal(get(f, 0xc0011029), BIT(1));  /* DE_CFG: LFENCE serialises */
	assert_int_equal(get(f, 0x8b), 0x01000065);
	assert_int_equal(msr_read(&f->env, 0x10a, &value), MSR_GP);
	f->cpuid.is_amd = false;
	assert_int_equal(get(f, 0x8b), 1ul << 32);
	assert_true(get(f, 0x10a) & BIT(0));
	assert_int_equal(msr_read(&f->env, 0xc0010015, &value), MSR_GP);
	assert_sets(f, 0x48, 1);
}

/* AMD64 "Indirect Branch Control Extension": each bit of SPEC_CTRL has its own in CPUID. */
static void amd_speculation_controls(void **state)
{
	struct fixture *f = *state;
	u64 value;

	assert_int_equal(msr_read(&f->env, MSR_SPEC_CTRL, &value), MSR_GP);
	assert_refuses(f, MSR_PRED_CMD, 1);
	offer(f, 0x80000008, 0, 1, 12); /* IBPB */
	assert_int_equal(msr_read(&f->env, MSR_SPEC_CTRL, &value), MSR_GP);
	assert_int_equal(msr_write(&f->env, MSR_PRED_CMD, 1), MSR_OK);
	assert_int_equal(msr_read(&f->env, MSR_PRED_CMD, &value), MSR_GP);
	assert_refuses(f, MSR_PRED_CMD, 2);
	f->cpuid.leaf[0].ebx |= 1u << 14 | 1u << 24; /* IBRS, SSBD */
	assert_sets(f, MSR_SPEC_CTRL, 5);
	assert_refuses(f, MSR_SPEC_CTRL, 2);
	assert_true(msr_state_is_valid(&f->msr, &f->cpuid));
	assert_refuses(f, MSR_VIRT_SPEC_CTRL, 4);
	f->cpuid.leaf[0].ebx |= 1u << 25;
	assert_sets(f, MSR_VIRT_SPEC_CTRL, 4);
}

/* SDM vol. 4, table 2-2: the same on Intel, where leaf 7 offers them. */
static void intel_speculation_controls(void **state)
{
	struct fixture *f = *state;

	f->cpuid.is_amd = false;
	assert_sets(f, MSR_SPEC_CTRL, 0x407);
	assert_refuses(f, MSR_SPEC_CTRL, 0x80);
	assert_refuses(f, MSR_FLUSH_CMD, 1);
	offer(f, 7, 0, 3, 28);
	f->cpuid.leaf[0].edx |= 1u << 26;
	offer(f, 7, 2, 3, 0); /* PSFD */
	assert_sets(f, MSR_SPEC_CTRL, 0x80);
	assert_int_equal(msr_write(&f->env, MSR_PRED_CMD, 1), MSR_OK);
	assert_int_equal(msr_write(&f->env, MSR_FLUSH_CMD, 1), MSR_OK);
	f->cpuid.arch_capabilities = 0x123;
	assert_int_equal(get(f, MSR_ARCH_CAPS), 0x123);
}

static void sdm_9_1_reset_values(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, MSR_PAT), 0x0007040600070406);
	assert_int_equal(get(f, 0xfe), 0x508);
	assert_int_equal(get(f, 0x2ff), 0);
	assert_int_equal(get(f, MSR_MISC_ENABLE) & 1, 1);
	assert_int_equal(get(f, 0x179), 0);
	assert_refuses(f, 0xfe, 0);
}

static void canonical_addresses_only(void **state)
{
	static const u32 index[] = {MSR_LSTAR, MSR_CSTAR, MSR_SYSENTER_EIP, MSR_SYSENTER_ESP,
				    MSR_KERNEL_GS_BASE};
	struct fixture *f = *state;

	for (u32 i = 0; i < ARRAY_SIZE(index); i++) {
		assert_sets(f, index[i], 0xffff800000000000);
		assert_refuses(f, index[i], 0x0000800000000000);
		assert_int_equal(get(f, index[i]), 0xffff800000000000);
	}
	assert_sets(f, MSR_STAR, ~0ul);
	assert_refuses(f, MSR_TSC_AUX, BIT(32));
	assert_refuses(f, MSR_SFMASK, BIT(32));
}

static void sdm_12_11_memory_types(void **state)
{
	struct fixture *f = *state;

	assert_sets(f, MSR_PAT, 0x0007010600070106);
	assert_refuses(f, MSR_PAT, 0x0007040600070402);
	assert_refuses(f, 0x250, 0x0606060606060607); /* UC- is not for MTRRs */
	for (u32 i = 0; i < 8; i++)
		assert_sets(f, 0x268 + i, 0x0505050505050500 + i % 2);
	assert_sets(f, 0x258, 0x0606060606060606);
	assert_int_equal(f->msr.mtrr_fixed[1], 0x0606060606060606);
	assert_int_equal(f->msr.mtrr_fixed[10], 0x0505050505050501);
	assert_sets(f, 0x2ff, 0xc06);
	assert_refuses(f, 0x2ff, 0xc02);
	assert_refuses(f, 0x2ff, 0x1006);
	assert_sets(f, 0x20e, 0xc0000006);
	assert_sets(f, 0x20f, 0xffffc0000800);
	assert_int_equal(f->msr.mtrr_base[7], 0xc0000006);
	assert_int_equal(f->msr.mtrr_mask[7], 0xffffc0000800);
	assert_refuses(f, 0x20e, BIT(48));
	assert_refuses(f, 0x20e, 0x100);
	assert_refuses(f, 0x20f, 1);
}

static void sdm_17_17_3_tsc_adjust(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, MSR_TSC), 1000);
	assert_int_equal(msr_write(&f->env, MSR_TSC, 5000), MSR_OK);
	assert_int_equal(f->env.tsc_delta, 4000);
	assert_int_equal(get(f, MSR_TSC_ADJUST), 4000);
	assert_int_equal(msr_write(&f->env, MSR_TSC_ADJUST, 1000), MSR_OK);
	assert_int_equal(f->env.tsc_delta, -3000);
	assert_int_equal(get(f, MSR_TSC), 2000);
	assert_int_equal(msr_write(&f->env, MSR_TSC_AUX, 1), MSR_OK);
	assert_int_equal(f->env.tsc_delta, 0);
}

static void pvclock_scale_is_exact(void **state)
{
	static const u64 hz[] = {1, 999999999, 1000000000, 1000000001, 2596136291, 5000000000};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(hz); i++) {
		u64 ns = pvclock_ns(pvclock_scale(hz[i]), hz[i] * 3600);

		/* An hour, to within the 2^-31 that a 32-bit factor allows. */
		assert_in_range(ns, 3600000000000ul - 2000, 3600000000000ul);
	}
}

static u64 pvclock_now(struct fixture *f, gpa_t gpa)
{
	struct pvclock_scale scale;
	u64 stamp, system;

	memcpy(&stamp, f->ram + gpa + 8, 8);
	memcpy(&system, f->ram + gpa + 16, 8);
	memcpy(&scale.mul, f->ram + gpa + 24, 4);
	scale.shift = (s8)f->ram[gpa + 28];
	return system + pvclock_ns(scale, f->env.tsc - stamp);
}

static void pvclock_page(void **state)
{
	struct fixture *f = *state;
	u64 before;

	f->env.tsc = 4000000000;
	assert_sets(f, MSR_KVM_SYSTEM_TIME_NEW, 64 | PVCLOCK_ENABLE);
	assert_int_equal(f->ram[64], 2);      /* version: even, not 0 */
	assert_int_equal(f->ram[64 + 29], 1); /* PVCLOCK_TSC_STABLE_BIT */
	before = pvclock_now(f, 64);
	assert_in_range(before, 1999999990, 2000000000);
	assert_int_equal(msr_write(&f->env, MSR_TSC, 123), MSR_OK);
	assert_int_equal(pvclock_now(f, 64), before);

	assert_sets(f, MSR_KVM_WALL_CLOCK_NEW, 256);
	assert_int_equal(*(u32 *)(void *)(f->ram + 256), 2);
	assert_int_equal(*(u32 *)(void *)(f->ram + 260), 1700000000 - 2);
	assert_in_range(*(u32 *)(void *)(f->ram + 264), 250, 260);
}

static void pvclock_needs_ram_and_leaf(void **state)
{
	struct fixture *f = *state;

	assert_sets(f, MSR_KVM_SYSTEM_TIME_NEW, ~0ul);
	assert_sets(f, MSR_KVM_WALL_CLOCK_NEW, sizeof(f->ram) - 6);
	f->cpuid.has_hypervisor = false;
	assert_refuses(f, MSR_KVM_SYSTEM_TIME_NEW, 1);
}

static void loaded_state_is_checked(void **state)
{
	struct fixture *f = *state;
	struct cpu_msrs bad;

	assert_true(msr_state_is_valid(&f->msr, &f->cpuid));
	msr_set_firmware_mtrrs(&f->msr, &f->cpuid, 0xb0000000);
	f->msr.tsc_adjust = 12345;
	f->msr.kvm_system_time = 65;
	assert_true(msr_state_is_valid(&f->msr, &f->cpuid));
	bad = f->msr;
	bad.lstar = BIT(60);
	assert_false(msr_state_is_valid(&bad, &f->cpuid));
	bad = f->msr;
	bad.mtrr_mask[3] = 1;
	assert_false(msr_state_is_valid(&bad, &f->cpuid));
	bad = f->msr;
	bad.mtrr_fixed[10] = 2;
	assert_false(msr_state_is_valid(&bad, &f->cpuid));
	bad = f->msr;
	bad.spec_ctrl = 1; /* not on AMD */
	assert_false(msr_state_is_valid(&bad, &f->cpuid));
}

static void firmware_mtrrs_cover_the_hole(void **state)
{
	struct fixture *f = *state;

	msr_set_firmware_mtrrs(&f->msr, &f->cpuid, 0xb0000000);
	assert_int_equal(f->msr.mtrr_def_type, 0xc06);
	assert_int_equal(f->msr.mtrr_base[0], 0xb0000000);
	assert_int_equal(f->msr.mtrr_mask[0], 0xfffff0000800);
	assert_int_equal(f->msr.mtrr_base[1], 0xc0000000);
	assert_int_equal(f->msr.mtrr_mask[1], 0xffffc0000800);
	assert_int_equal(f->msr.mtrr_mask[2], 0);
	msr_set_firmware_mtrrs(&f->msr, &f->cpuid, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(table_is_sorted_and_reachable, setup),
		cmocka_unit_test_setup(unknown_registers_fault, setup),
		cmocka_unit_test_setup(machine_registers_are_handed_on, setup),
		cmocka_unit_test_setup(vendors_have_their_own, setup),
		cmocka_unit_test_setup(amd_speculation_controls, setup),
		cmocka_unit_test_setup(intel_speculation_controls, setup),
		cmocka_unit_test_setup(sdm_9_1_reset_values, setup),
		cmocka_unit_test_setup(canonical_addresses_only, setup),
		cmocka_unit_test_setup(sdm_12_11_memory_types, setup),
		cmocka_unit_test_setup(sdm_17_17_3_tsc_adjust, setup),
		cmocka_unit_test(pvclock_scale_is_exact),
		cmocka_unit_test_setup(pvclock_page, setup),
		cmocka_unit_test_setup(pvclock_needs_ram_and_leaf, setup),
		cmocka_unit_test_setup(loaded_state_is_checked, setup),
		cmocka_unit_test_setup(firmware_mtrrs_cover_the_hole, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
