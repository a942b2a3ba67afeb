/*
 * Answering CPUID from the model; see cpuid.h. Hot enough for engines to call it with guest vector
 * state in the host registers: no library calls.
 */
#include "cpu/cpuid.h"

/* Bytes of the standard-format XSAVE area without extended components, SDM vol. 1, 13.4. */
enum { XSAVE_BASE = 576 };

static const struct cpuid_leaf *find_leaf(const struct cpuid_model *m, u32 leaf, u32 subleaf)
{
	for (u32 i = 0; i < m->count; i++) {
		const struct cpuid_leaf *l = &m->leaf[i];

		if (l->leaf == leaf && (!l->has_subleaf || l->subleaf == subleaf))
			return l;
	}
	return NULL;
}

/* Size of the area for the features in @xcr0: up to the end of the last one's component. */
static u32 xsave_size(const struct cpuid_model *m, u64 xcr0)
{
	u32 size = XSAVE_BASE;

	for (u32 i = 2; i < 63; i++) {
		const struct cpuid_leaf *l = xcr0 & BIT(i) ? find_leaf(m, 0xd, i) : NULL;

		if (l)
			size = MAX(size, l->eax + l->ebx);
	}
	return size;
}

/* Values that depend on the vCPU and its state. */
static void patch(const struct cpuid_model *m, u32 apic_id, u64 cr4, u64 xcr0, u32 leaf,
		  u32 subleaf, u32 out[4])
{
	const u32 osxsave = BIT(27);

	switch (leaf) {
	case 1:
		out[1] = (out[1] & 0x00ffffff) | apic_id << 24;
		if (cr4 & CR4_OSXSAVE)
			out[2] |= osxsave;
		break;
	case 0xb: out[3] = apic_id; break;
	case 0xd:
		if (subleaf == 0)
			out[1] = xsave_size(m, xcr0);
		break;
	case 0x8000001e:
		out[0] = apic_id;
		out[1] |= apic_id & 0xff;
		break;
	}
}

/*
 * SDM vol. 2, CPUID: a leaf beyond the last basic one answers as that one. AMD processors return
 * zeros (APM vol. 3, appendix E), and so do hypervisor leaves.
 */
static u32 effective_leaf(const struct cpuid_model *m, u32 leaf)
{
	const struct cpuid_leaf *first;

	if (m->is_amd || (leaf >= 0x40000000 && leaf < 0x40000100 && m->has_hypervisor))
		return leaf;
	first = find_leaf(m, leaf & 0x80000000, 0);
	if (first && leaf <= first->eax)
		return leaf;
	first = find_leaf(m, 0, 0);
	return first ? first->eax : leaf;
}

void cpuid_query(const struct cpuid_model *m, u32 apic_id, u64 cr4, u64 xcr0, u32 leaf, u32 subleaf,
		 u32 out[4])
{
	const struct cpuid_leaf *l;

	leaf = effective_leaf(m, leaf);
	l = find_leaf(m, leaf, subleaf);
	out[0] = l ? l->eax : 0;
	out[1] = l ? l->ebx : 0;
	out[2] = l ? l->ecx : 0;
	out[3] = l ? l->edx : 0;
	if (leaf == 0xb)
		out[2] |= subleaf & 0xff; /* echoed also by invalid subleaves */
	if (l || leaf == 0xb)
		patch(m, apic_id, cr4, xcr0, leaf, subleaf, out);
}

bool cpuid_has(const struct cpuid_model *m, u32 leaf, u32 subleaf, u32 reg, u32 bit)
{
	const struct cpuid_leaf *l = find_leaf(m, leaf, subleaf);

	if (!l)
		return false;
	switch (reg) {
	case 0: return l->eax & BIT(bit);
	case 1: return l->ebx & BIT(bit);
	case 2: return l->ecx & BIT(bit);
	default: return l->edx & BIT(bit);
	}
}
