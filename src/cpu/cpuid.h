/*
 * The guest's CPUID: requested model, limited by the host and by what the engine can do.
 *
 * One table of leaves per VM, built once, shared by engines, kept in snapshots. Values that depend on
 * run-time state (OSXSAVE, APIC id, XSAVE size for the current XCR0) are patched at query time.
 */
#pragma once

#include "base/err.h"
#include "cpu/state.h"

enum { CPUID_MAX_LEAVES = 128 };

struct cpuid_leaf {
	u32 leaf, subleaf;
	bool has_subleaf; /* subleaf is significant */
	u32 eax, ebx, ecx, edx;
};

struct cpuid_model {
	u32 count;
	struct cpuid_leaf leaf[CPUID_MAX_LEAVES];
	u64 xcr0;      /* XCR0 bits the guest may set */
	u32 xsave_max; /* bytes of the standard-format XSAVE area for xcr0 */
	u64 tsc_hz;
	u32 vcpus;
	u32 phys_bits; /* MAXPHYADDR */
};

/* What to build the model from. */
struct cpuid_request {
	u32 vcpus;
	bool hide_hypervisor; /* leave out the hypervisor bit and the 0x40000000 leaves */
};

/* Fill @m from the host's CPUID and @req. 0, or -errno with @e when the host lacks what guests need. */
int cpuid_model_init(struct cpuid_model *m, const struct cpuid_request *req, struct err *e);

/* Answer CPUID for vCPU @apic_id, whose relevant state is @cr4 and @xcr0 (SDM vol. 2, CPUID). */
void cpuid_query(const struct cpuid_model *m, u32 apic_id, u64 cr4, u64 xcr0, u32 leaf, u32 subleaf,
		 u32 out[4]);

/* True when @leaf's register @reg (0 eax .. 3 edx) has bit @bit set in the model. */
bool cpuid_has(const struct cpuid_model *m, u32 leaf, u32 subleaf, u32 reg, u32 bit);
