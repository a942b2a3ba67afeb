/*
 * See msr.h.
 *
 * The table is sorted by index and searched by bisection; vendors may have a row each for an index.
 * A row describes a run of registers with consecutive u64 fields in struct cpu_msrs, or without
 * any: then they read as row->value and keep nothing. What a write does is the row's write
 * function; those of most rows are shared.
 *
 * Registers that are here although no feature of ours needs them are ones that kernels touch
 * without asking CPUID (and without expecting a fault) once they know the vendor.
 */
#include "cpu/msr.h"

#include "cpu/pvclock.h"

enum { FIELD_NONE = 0xffff, FIELD_WRITE_ONLY = 0xfffe };

enum presence {
	VENDOR_ANY,
	VENDOR_AMD,
	VENDOR_INTEL,
	VENDOR_HYPERVISOR,
	/* Controls of speculation, as CPUID has them. */
	WITH_SPEC_CTRL,
	WITH_IBPB,
	WITH_FLUSH_L1D,
	WITH_VIRT_SSBD,
};

struct msr_row;

typedef enum msr_result msr_write_fn(struct msr_env *env, const struct msr_row *row, u32 n,
				     u64 value);

struct msr_row {
	u32 first, count;
	u8 presence; /* enum presence: where it exists */
	u16 field;   /* offset of the first register's u64 in struct cpu_msrs, or FIELD_* */
	u64 value;   /* power-up value; without a field: what reading returns */
	u64 mask;    /* bits that write_masked() accepts */
	msr_write_fn *write;
};

#define FIELD(name) offsetof(struct cpu_msrs, name)

static u64 *field_of(struct cpu_msrs *m, const struct msr_row *row, u32 n)
{
	return (u64 *)(void *)((u8 *)m + row->field) + n;
}

static bool has_field(const struct msr_row *row)
{
	return row->field < FIELD_WRITE_ONLY;
}

/* ---- controls of speculation ---- */

enum { SPEC_IBRS = 1 << 0, SPEC_STIBP = 1 << 1, SPEC_SSBD = 1 << 2, SPEC_BHI_DIS_S = 1 << 10 };

/* Which bits of CPUID offer which bits of SPEC_CTRL (SDM vol. 4, table 2-2; APM vol. 2, 3.2.9). */
static const struct {
	u32 leaf, subleaf;
	u8 reg, bit;
	u16 mask;
} spec_ctrl_bits[] = {
	{7, 0, 3, 26, SPEC_IBRS},          {7, 0, 3, 27, SPEC_STIBP},
	{7, 0, 3, 31, SPEC_SSBD},          {7, 2, 3, 0, 1 << 7}, /* PSFD */
	{7, 2, 3, 1, 1 << 3 | 1 << 4},                           /* IPRED_DIS */
	{7, 2, 3, 2, 1 << 5 | 1 << 6},                           /* RRSBA_DIS */
	{0x80000008, 0, 1, 14, SPEC_IBRS}, {0x80000008, 0, 1, 15, SPEC_STIBP},
	{0x80000008, 0, 1, 24, SPEC_SSBD}, {0x80000008, 0, 1, 28, 1 << 7}, /* PSFD */
};

/*
 * With ARCH_CAPABILITIES.IBRS_ALL Intel's kernels set IBRS and BHI_DIS_S once and leave them. In
 * translated code keeping the value is all there is to it, see cpuid.h.
 */
static u64 spec_ctrl_mask(const struct cpuid_model *m)
{
	u64 mask = m->is_amd ? 0 : SPEC_IBRS | SPEC_STIBP | SPEC_SSBD | SPEC_BHI_DIS_S;

	for (u32 i = 0; i < ARRAY_SIZE(spec_ctrl_bits); i++)
		if (cpuid_has(m, spec_ctrl_bits[i].leaf, spec_ctrl_bits[i].subleaf,
			      spec_ctrl_bits[i].reg, spec_ctrl_bits[i].bit))
			mask |= spec_ctrl_bits[i].mask;
	return mask;
}

static bool has_ibpb(const struct cpuid_model *m)
{
	return cpuid_has(m, 7, 0, 3, 26) || cpuid_has(m, 0x80000008, 0, 1, 12);
}

/* ---- what writing does ---- */

static enum msr_result write_fault(struct msr_env *env, const struct msr_row *row, u32 n, u64 value)
{
	(void)env, (void)row, (void)n, (void)value;
	return MSR_GP;
}

/* Accepted without effect. */
static enum msr_result write_ignored(struct msr_env *env, const struct msr_row *row, u32 n,
				     u64 value)
{
	(void)env, (void)row, (void)n, (void)value;
	return MSR_OK;
}

/* Stored as it is; bits outside the mask fault. */
static enum msr_result write_masked(struct msr_env *env, const struct msr_row *row, u32 n,
				    u64 value)
{
	if (value & ~row->mask)
		return MSR_GP;
	if (has_field(row))
		*field_of(env->msr, row, n) = value;
	return MSR_OK;
}

static enum msr_result write_spec_ctrl(struct msr_env *env, const struct msr_row *row, u32 n,
				       u64 value)
{
	(void)row, (void)n;
	if (value & ~spec_ctrl_mask(env->cpuid))
		return MSR_GP;
	env->msr->spec_ctrl = value;
	return MSR_OK;
}

static enum msr_result write_canonical(struct msr_env *env, const struct msr_row *row, u32 n,
				       u64 value)
{
	if ((u64)((s64)(value << 16) >> 16) != value)
		return MSR_GP;
	*field_of(env->msr, row, n) = value;
	return MSR_OK;
}

/* The clock of the guest jumps by @delta; the paravirtual clock does not. */
static void move_tsc(struct msr_env *env, u64 delta)
{
	env->tsc_delta = (s64)delta;
	env->tsc += delta;
	env->msr->kvm_clock_base += delta;
	pvclock_write_time(env);
}

/* SDM vol. 3, 17.17.3: a write to the TSC shows in TSC_ADJUST and the other way round. */
static enum msr_result write_tsc(struct msr_env *env, const struct msr_row *row, u32 n, u64 value)
{
	u64 delta = value - env->tsc;

	(void)row, (void)n;
	env->msr->tsc_adjust += delta;
	move_tsc(env, delta);
	return MSR_OK;
}

static enum msr_result write_tsc_adjust(struct msr_env *env, const struct msr_row *row, u32 n,
					u64 value)
{
	u64 delta = value - env->msr->tsc_adjust;

	(void)row, (void)n;
	env->msr->tsc_adjust = value;
	move_tsc(env, delta);
	return MSR_OK;
}

/* Memory types, SDM vol. 3, table 12-2; UC- exists in the PAT only. */
static bool is_memory_type(u64 type, bool in_pat)
{
	return type == 0 || type == 1 || (type >= 4 && type <= 6) || (in_pat && type == 7);
}

static bool are_memory_types(u64 value, bool in_pat)
{
	for (u32 i = 0; i < 64; i += 8)
		if (!is_memory_type(value >> i & 0xff, in_pat))
			return false;
	return true;
}

static enum msr_result write_pat(struct msr_env *env, const struct msr_row *row, u32 n, u64 value)
{
	(void)row, (void)n;
	if (!are_memory_types(value, true))
		return MSR_GP;
	env->msr->pat = value;
	return MSR_OK;
}

static enum msr_result write_mtrr_fixed(struct msr_env *env, const struct msr_row *row, u32 n,
					u64 value)
{
	if (!are_memory_types(value, false))
		return MSR_GP;
	*field_of(env->msr, row, n) = value;
	return MSR_OK;
}

static enum msr_result write_mtrr_def_type(struct msr_env *env, const struct msr_row *row, u32 n,
					   u64 value)
{
	(void)n;
	if (value & ~row->mask || !is_memory_type(value & 0xff, false))
		return MSR_GP;
	env->msr->mtrr_def_type = value;
	return MSR_OK;
}

/* Even registers are bases, odd ones masks. */
static enum msr_result write_mtrr_variable(struct msr_env *env, const struct msr_row *row, u32 n,
					   u64 value)
{
	u64 address = (BIT(env->cpuid->phys_bits) - 1) & PAGE_MASK;

	(void)row;
	if (n & 1) {
		if (value & ~(address | BIT(11)))
			return MSR_GP;
		env->msr->mtrr_mask[n / 2] = value;
	} else {
		if (value & ~(address | 0xff) || !is_memory_type(value & 0xff, false))
			return MSR_GP;
		env->msr->mtrr_base[n / 2] = value;
	}
	return MSR_OK;
}

static enum msr_result write_wall_clock(struct msr_env *env, const struct msr_row *row, u32 n,
					u64 value)
{
	(void)row, (void)n;
	env->msr->kvm_wall_clock = value;
	pvclock_write_wall(env);
	return MSR_OK;
}

static enum msr_result write_system_time(struct msr_env *env, const struct msr_row *row, u32 n,
					 u64 value)
{
	(void)row, (void)n;
	env->msr->kvm_system_time = value;
	pvclock_write_time(env);
	return MSR_OK;
}

/* ---- the table ---- */

/* SDM vol. 4, table 2-2, and APM vol. 2, appendix A, unless noted. Sorted. */
static const struct msr_row rows[] = {
	/* P5_MC_ADDR, P5_MC_TYPE: no errors */
	{0x000, 2, VENDOR_ANY, FIELD_NONE, 0, 0, write_ignored},
	{MSR_TSC, 1, VENDOR_ANY, FIELD_NONE, 0, 0, write_tsc},
	/* IA32_PLATFORM_ID: platform 0; EBL_CR_POWERON */
	{0x017, 1, VENDOR_INTEL, FIELD_NONE, 0, 0, write_fault},
	{0x02a, 1, VENDOR_INTEL, FIELD_NONE, 0, 0, write_ignored},
	/* IA32_FEATURE_CONTROL: locked with everything off */
	{0x03a, 1, VENDOR_INTEL, FIELD_NONE, 1, 0, write_fault},
	{MSR_TSC_ADJUST, 1, VENDOR_ANY, FIELD(tsc_adjust), 0, 0, write_tsc_adjust},
	{MSR_SPEC_CTRL, 1, WITH_SPEC_CTRL, FIELD(spec_ctrl), 0, 0, write_spec_ctrl},
	{MSR_PRED_CMD, 1, WITH_IBPB, FIELD_WRITE_ONLY, 0, 1, write_masked},
	/* IA32_BIOS_UPDT_TRIG: there is no microcode to load. IA32_BIOS_SIGN_ID has the revision in
	 * the high half, AMD's PATCH_LEVEL in the low one. */
	{0x079, 1, VENDOR_ANY, FIELD_NONE, 0, 0, write_ignored},
	{0x08b, 1, VENDOR_INTEL, FIELD_NONE, 1ul << 32, 0, write_ignored},
	{0x08b, 1, VENDOR_AMD, FIELD_NONE, 0x01000065, 0, write_ignored},
	/* MSR_PLATFORM_INFO: no CPUID faulting */
	{0x0ce, 1, VENDOR_INTEL, FIELD_NONE, 0, 0, write_fault},
	/* IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining */
	{0x0fe, 1, VENDOR_ANY, FIELD_NONE, 0x508, 0, write_fault},
	{MSR_ARCH_CAPS, 1, VENDOR_INTEL, FIELD_NONE, 0, 0, write_fault},
	{MSR_FLUSH_CMD, 1, WITH_FLUSH_L1D, FIELD_WRITE_ONLY, 0, 1, write_masked},
	{MSR_SYSENTER_CS, 1, VENDOR_ANY, FIELD(sysenter_cs), 0, 0xffffffff, write_masked},
	{MSR_SYSENTER_ESP, 1, VENDOR_ANY, FIELD(sysenter_esp), 0, 0, write_canonical},
	{MSR_SYSENTER_EIP, 1, VENDOR_ANY, FIELD(sysenter_eip), 0, 0, write_canonical},
	/* IA32_MCG_CAP: no banks, no MCG_CTL; IA32_MCG_STATUS: RIPV, EIPV, MCIP */
	{0x179, 1, VENDOR_ANY, FIELD_NONE, 0, 0, write_fault},
	{0x17a, 1, VENDOR_ANY, FIELD(mcg_status), 0, 7, write_masked},
	/* IA32_MISC_ENABLE: fast strings; BTS and PEBS are not there. */
	{MSR_MISC_ENABLE, 1, VENDOR_ANY, FIELD(misc_enable), 0x1801, 0xc51889, write_masked},
	/* IA32_DEBUGCTL: LBR and BTF are kept and do nothing; the last-branch registers read 0. */
	{0x1d9, 1, VENDOR_ANY, FIELD(debugctl), 0, 3, write_masked},
	{0x1db, 4, VENDOR_ANY, FIELD_NONE, 0, 0, write_fault},
	{0x200, 16, VENDOR_ANY, FIELD(mtrr_base), 0, 0, write_mtrr_variable},
	{0x250, 1, VENDOR_ANY, FIELD(mtrr_fixed[0]), 0, 0, write_mtrr_fixed},
	{0x258, 2, VENDOR_ANY, FIELD(mtrr_fixed[1]), 0, 0, write_mtrr_fixed},
	{0x268, 8, VENDOR_ANY, FIELD(mtrr_fixed[3]), 0, 0, write_mtrr_fixed},
	{MSR_PAT, 1, VENDOR_ANY, FIELD(pat), 0x0007040600070406, 0, write_pat},
	{0x2ff, 1, VENDOR_ANY, FIELD(mtrr_def_type), 0, 0xcff, write_mtrr_def_type},
	{MSR_KVM_WALL_CLOCK_NEW, 1, VENDOR_HYPERVISOR, FIELD(kvm_wall_clock), 0, 0,
	 write_wall_clock},
	{MSR_KVM_SYSTEM_TIME_NEW, 1, VENDOR_HYPERVISOR, FIELD(kvm_system_time), 0, 0,
	 write_system_time},
	/* 64-byte aligned address, bit 0 enables. */
	{MSR_KVM_STEAL_TIME, 1, VENDOR_HYPERVISOR, FIELD(kvm_steal_time), 0, ~0x3eul, write_masked},
	{MSR_STAR, 1, VENDOR_ANY, FIELD(star), 0, ~0ul, write_masked},
	{MSR_LSTAR, 1, VENDOR_ANY, FIELD(lstar), 0, 0, write_canonical},
	{MSR_CSTAR, 1, VENDOR_ANY, FIELD(cstar), 0, 0, write_canonical},
	{MSR_SFMASK, 1, VENDOR_ANY, FIELD(sfmask), 0, 0xffffffff, write_masked},
	{MSR_KERNEL_GS_BASE, 1, VENDOR_ANY, FIELD(kernel_gs_base), 0, 0, write_canonical},
	{MSR_TSC_AUX, 1, VENDOR_ANY, FIELD(tsc_aux), 0, 0xffffffff, write_masked},
	/* SYSCFG: TOM2 off. HWCR: the TSC counts at the P0 frequency (bit 24). */
	{0xc0010010, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{0xc0010015, 1, VENDOR_AMD, FIELD_NONE, BIT(24), 0, write_ignored},
	/* IORR bases and masks, TOP_MEM, TOP_MEM2: not enabled in SYSCFG */
	{0xc0010016, 4, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{0xc001001a, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{0xc001001d, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	/* NB_CFG; INT_PENDING_MSG: no C1E; MMIO_CONF_BASE: ACPI tells where configuration is */
	{0xc001001f, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{0xc0010055, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{0xc0010058, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	{MSR_VIRT_SPEC_CTRL, 1, WITH_VIRT_SSBD, FIELD(virt_spec_ctrl), 0, SPEC_SSBD, write_masked},
	/* OSVW_ID_LENGTH, OSVW_STATUS: no errata listed */
	{0xc0010140, 2, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	/* LS_CFG, IC_CFG, DC_CFG: chicken bits */
	{0xc0011020, 3, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
	/* DE_CFG: LFENCE serialises (bit 1); BU_CFG2 */
	{0xc0011029, 1, VENDOR_AMD, FIELD_NONE, BIT(1), 0, write_ignored},
	{0xc001102a, 1, VENDOR_AMD, FIELD_NONE, 0, 0, write_ignored},
};

static bool row_exists(const struct msr_row *row, const struct cpuid_model *cpuid)
{
	switch (row->presence) {
	case VENDOR_AMD: return cpuid->is_amd;
	case VENDOR_INTEL: return !cpuid->is_amd;
	case VENDOR_HYPERVISOR: return cpuid->has_hypervisor;
	case WITH_SPEC_CTRL: return spec_ctrl_mask(cpuid);
	case WITH_IBPB: return has_ibpb(cpuid);
	case WITH_FLUSH_L1D: return cpuid_has(cpuid, 7, 0, 3, 28);
	case WITH_VIRT_SSBD: return cpuid_has(cpuid, 0x80000008, 0, 1, 25);
	default: return true;
	}
}

static const struct msr_row *row_find(const struct cpuid_model *cpuid, u32 index)
{
	u32 low = 0, high = ARRAY_SIZE(rows);

	while (low < high) {
		u32 mid = (low + high) / 2;

		if (index >= rows[mid].first + rows[mid].count)
			low = mid + 1;
		else
			high = mid;
	}
	for (; low < ARRAY_SIZE(rows) && rows[low].first <= index; low++)
		if (row_exists(&rows[low], cpuid))
			return &rows[low];
	return NULL;
}

static u64 row_read(const struct msr_env *env, const struct msr_row *row, u32 n)
{
	if (row->first == MSR_TSC)
		return env->tsc;
	if (row->first == MSR_ARCH_CAPS)
		return env->cpuid->arch_capabilities;
	if (!has_field(row))
		return row->value;
	if (row->field == FIELD(mtrr_base))
		return n & 1 ? env->msr->mtrr_mask[n / 2] : env->msr->mtrr_base[n / 2];
	return *field_of(env->msr, row, n);
}

bool msr_is_machine(u32 index)
{
	return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || index == MSR_KVM_PV_EOI_EN ||
	       (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST);
}

/* The machine's register @index, if the model has it. */
static enum msr_result machine_msr(const struct msr_env *env, u32 index)
{
	return index == MSR_KVM_PV_EOI_EN && !env->cpuid->has_hypervisor ? MSR_GP : MSR_MACHINE;
}

enum msr_result msr_read(struct msr_env *env, u32 index, u64 *value)
{
	const struct msr_row *row;

	if (msr_is_machine(index))
		return machine_msr(env, index);
	row = row_find(env->cpuid, index);
	if (!row || row->field == FIELD_WRITE_ONLY)
		return MSR_GP;
	*value = row_read(env, row, index - row->first);
	return MSR_OK;
}

enum msr_result msr_write(struct msr_env *env, u32 index, u64 value)
{
	const struct msr_row *row;

	env->tsc_delta = 0;
	if (msr_is_machine(index))
		return machine_msr(env, index);
	row = row_find(env->cpuid, index);
	return row ? row->write(env, row, index - row->first, value) : MSR_GP;
}

void msr_reset(struct cpu_msrs *m)
{
	*m = (struct cpu_msrs){0};
	for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
		if (has_field(&rows[i]) && rows[i].value)
			*field_of(m, &rows[i], 0) = rows[i].value;
}

static int store_nowhere(void *opaque, gpa_t gpa, const void *buf, u64 len)
{
	(void)opaque, (void)gpa, (void)buf, (void)len;
	return 0;
}

static u64 no_time(void *opaque)
{
	(void)opaque;
	return 0;
}

bool msr_state_is_valid(const struct cpu_msrs *m, const struct cpuid_model *cpuid)
{
	struct cpu_msrs copy = *m;
	struct msr_env env = {
		.msr = &copy, .cpuid = cpuid, .store = store_nowhere, .realtime_ns = no_time};

	for (u32 i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct msr_row *row = &rows[i];

		for (u32 n = 0; has_field(row) && n < row->count; n++) {
			u64 value = row_read(&env, row, n);

			/* A register that this model lacks still has its power-up value. */
			if (!row_exists(row, cpuid) ? value != row->value
						    : row->write(&env, row, n, value) != MSR_OK)
				return false;
		}
	}
	return true;
}

void msr_set_firmware_mtrrs(struct cpu_msrs *m, const struct cpuid_model *cpuid, gpa_t hole)
{
	const u64 top = 4 * GIB, write_back = 6, address = BIT(cpuid->phys_bits) - 1;
	const u64 enable = BIT(11), enable_fixed = BIT(10);
	u32 n = 0;

	for (u32 i = 0; i < ARRAY_SIZE(m->mtrr_fixed); i++)
		m->mtrr_fixed[i] = 0x0606060606060606;
	m->mtrr_fixed[2] = 0; /* A0000-BFFFF: uncacheable */
	for (u64 size; hole && hole < top && n < ARRAY_SIZE(m->mtrr_base); hole += size, n++) {
		/* The largest naturally aligned power of two: 4 GiB is a multiple of them all. */
		size = hole & -hole;
		m->mtrr_base[n] = hole;
		m->mtrr_mask[n] = (address & ~(size - 1)) | BIT(11);
	}
	m->mtrr_def_type = enable | enable_fixed | write_back;
}

bool msr_index(u32 n, u32 *index)
{
	for (u32 i = 0; i < ARRAY_SIZE(rows); i++) {
		if (n < rows[i].count) {
			*index = rows[i].first + n;
			return true;
		}
		n -= rows[i].count;
	}
	return false;
}
