/*
 * The guest's CPUID: requested model, limited by the host and by what the engine can do.
 *
 * One table of leaves per VM, built once, shared by engines, kept in snapshots. Values that depend
 * on run-time state (OSXSAVE, APIC id, XSAVE size for the current XCR0) are patched at query time.
 */
#pragma once

#include "base/err.h"
#include "cpu/state.h"

enum { CPUID_MAX_LEAVES = 128 };

/*
 * Speculation: what the model says, and why.
 *
 * Kernels mitigate leaks between privilege levels of one address space with code (retpolines,
 * return thunks, buffer clearing) and with MSR writes (IBRS, IBPB, SSBD). Both aim at predictors
 * and buffers that are keyed by guest addresses and guest privilege. In translated code neither
 * exists for the host's hardware: a guest's indirect branch is the translator's table lookup, its
 * kernel and its user programs run at the same host privilege, guest memory is reached only through
 * checks in software, and an MSR write changes a variable of ours. The mitigations would cost their
 * full price and protect nothing; what protects or does not is the translator's own code, see
 * SECURITY.md. So the model reports the bits that make kernels leave them out: AMD by automatic
 * IBRS and the *_NO bits of leaves 0x80000008 and 0x80000021, Intel by ARCH_CAPABILITIES and
 * BHI_CTRL. Controls used at run time (SPEC_CTRL, IBPB, STIBP, SSBD) are not offered.
 */
#define CPUID_ARCH_CAPABILITIES                                                           \
	(BIT(0) /* RDCL_NO */ | BIT(1) /* IBRS_ALL */ | BIT(3) /* SKIP_L1DFL_VMENTRY */ | \
	 BIT(4) /* SSB_NO */ | BIT(5) /* MDS_NO */ | BIT(6) /* IF_PSCHANGE_MC_NO */ |     \
	 BIT(8) /* TAA_NO */ | BIT(13) /* SBDR_SSDP_NO */ | BIT(14) /* FBSDP_NO */ |      \
	 BIT(15) /* PSDP_NO */ | BIT(20) /* BHI_NO */ | BIT(24) /* PBRSB_NO */ |          \
	 BIT(26) /* GDS_NO */ | BIT(27) /* RFDS_NO */ | BIT(62) /* ITS_NO */)

struct cpuid_leaf {
	u32 leaf, subleaf;
	bool has_subleaf; /* subleaf is significant */
	u32 eax, ebx, ecx, edx;
};

struct cpuid_model {
	u32 count;
	struct cpuid_leaf leaf[CPUID_MAX_LEAVES];
	u64 xcr0;              /* XCR0 bits the guest may set */
	u32 xsave_max;         /* bytes of the standard-format XSAVE area for xcr0 */
	u64 arch_capabilities; /* what IA32_ARCH_CAPABILITIES reads as; Intel only */
	u64 tsc_hz;
	u32 vcpus;
	u32 phys_bits; /* MAXPHYADDR */
	bool is_amd;   /* the vendor is AMD or Hygon: their registers and leaves, else Intel's */
	bool has_hypervisor; /* the 0x40000000 leaves and the paravirtual clock are there */
	bool one_engine;     /* as in struct cpuid_request */
};

/* A moment on the TSC and on the host's clock. */
struct cpuid_moment {
	u64 tsc, ns;
};

/* What to build the model from. */
struct cpuid_request {
	/* How fast the TSC runs is measured from then on, so the time until cpuid_model_init() is
	 * called need not be waited for again; NULL: from that call on. */
	const struct cpuid_moment *since;
	u32 vcpus;
	bool paravirt;   /* the machine takes calls to wake, interrupt and account for processors */
	bool any_tsc_hz; /* nobody asks how fast the TSC runs: do not spend time on it */
	bool hide_hypervisor; /* leave out the hypervisor bit and the 0x40000000 leaves */
	bool one_engine; /* which may offer what no other could go on with: paravirtual features */
};

/* A host to build a model for: its CPUID, its XCR0, and the frequency of its TSC. */
struct cpuid_source {
	void (*query)(const void *opaque, u32 leaf, u32 subleaf, u32 out[4]);
	const void *opaque;
	u64 xcr0;
	u64 tsc_hz;
};

/* cpuid_model_init() for the host that @src describes. */
int cpuid_model_build(struct cpuid_model *m, const struct cpuid_request *req,
		      const struct cpuid_source *src, struct err *e);

/* Now. */
struct cpuid_moment cpuid_moment(void);

/* Fill @m from the host's CPUID and @req; measures the TSC, which takes some milliseconds of
 * waiting unless they have passed since @req->since. 0, or -errno with @e when the host lacks what
 * guests need. */
int cpuid_model_init(struct cpuid_model *m, const struct cpuid_request *req, struct err *e);

/* Answer CPUID for vCPU @apic_id, whose relevant state is @cr4 and @xcr0 (SDM vol. 2, CPUID). */
void cpuid_query(const struct cpuid_model *m, u32 apic_id, u64 cr4, u64 xcr0, u32 leaf, u32 subleaf,
		 u32 out[4]);

/* True when @leaf's register @reg (0 eax .. 3 edx) has bit @bit set in the model. */
bool cpuid_has(const struct cpuid_model *m, u32 leaf, u32 subleaf, u32 reg, u32 bit);
