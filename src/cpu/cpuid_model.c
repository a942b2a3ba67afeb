/*
 * Building the CPUID model: what the host can do, less what engines do not carry over, plus what
 * they provide whatever the host is.
 *
 * A feature is offered for one of two reasons. Data instructions run natively, so they are there
 * when the host has them ("host" masks below). System features are the engine's own work and are
 * always there
 * ("always" masks): paging and its extensions, SYSCALL, FSGSBASE, RDTSCP, x2APIC, the TSC deadline
 * timer. Everything not named is hidden, in particular:
 *
 *   SMAP                  every STAC and CLAC would switch translations
 *   VME                   virtual-8086 extensions are not emulated
 *   VMX, SVM              no nested virtualization
 *   MONITOR, MWAIT        the halt path is HLT
 *   XSAVEC, XSAVES        the compacted format is not emulated
 *   PKU, CET, LA57, UINTR, FRED, AMX, MPX    state or modes the engine does not have
 *   RTM, HLE              a transaction cannot span software checks
 *   PMU, PT, RDT, SGX, thermal, MPERF        registers of the host's, not the guest's
 *   XOP, FMA4, TBM, 3DNow  encodings the decoder leaves out
 *   CLZERO, RDPRU, WBNOINVD, SERIALIZE, MOVDIR64B    not emulated
 *
 * Speculation controls: see CPUID_ARCH_CAPABILITIES in cpuid.h.
 */
#include "cpu/cpuid.h"

#include "cpu/x86.h"
#include "host/loop.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>

enum reg { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

enum {
	LAPIC_BUS_KHZ = 1000000, /* the local APIC's timer clock, see device/chip/lapic.h */
	CALIBRATE_NS = 10000000,
	CALIBRATE_TRIES = 32,
};

/* Bit lists read better than masks. */
#define BITS1(a)                      (1u << (a))
#define BITS2(a, b)                   (BITS1(a) | BITS1(b))
#define BITS3(a, b, c)                (BITS2(a, b) | BITS1(c))
#define BITS4(a, b, c, d)             (BITS3(a, b, c) | BITS1(d))
#define BITS8(a, b, c, d, e, f, g, h) (BITS4(a, b, c, d) | BITS4(e, f, g, h))

/* FPU DE PSE TSC MSR PAE MCE CX8, APIC SEP MTRR PGE MCA CMOV PAT PSE36, CLFSH MMX FXSR SSE SSE2 */
#define LEAF1_EDX                                                               \
	(BITS8(0, 2, 3, 4, 5, 6, 7, 8) | BITS8(9, 11, 12, 13, 14, 15, 16, 17) | \
	 BITS4(19, 23, 24, 25) | BITS1(26))
/* The part of it that AMD repeats in leaf 0x80000001. */
#define AMD_REPEATED (LEAF1_EDX & 0x0183f3ffu)

enum { FOR_ALL, FOR_AMD, FOR_INTEL };

/* One register of one leaf that holds feature bits. */
struct feature_word {
	u32 leaf, subleaf;
	u8 reg;
	u8 vendor;
	u32 always, host;
	u32 avx, avx512; /* bits among host that need this state to be enabled in XCR0 */
};

static const struct feature_word features[] = {
	/* always: PCID x2APIC TSC_DEADLINE; host: SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE
	 * POPCNT AES XSAVE AVX F16C RDRAND */
	{1, 0, REG_ECX, FOR_ALL, BITS3(17, 21, 24),
	 BITS8(0, 1, 9, 12, 13, 19, 20, 22) | BITS4(23, 25, 26, 28) | BITS2(29, 30),
	 BITS3(12, 28, 29), 0},
	{1, 0, REG_EDX, FOR_ALL, LEAF1_EDX, 0, 0, 0},
	/* ARAT */
	{6, 0, REG_EAX, FOR_ALL, BITS1(2), 0, 0, 0},
	/* always: FSGSBASE TSC_ADJUST SMEP ERMS INVPCID; host: BMI1 AVX2 FDP_EXCPTN_ONLY BMI2
	 * ZERO_FCS_FDS AVX512F DQ RDSEED ADX IFMA CLFLUSHOPT CLWB CD SHA BW VL */
	{7, 0, REG_EBX, FOR_ALL, BITS4(0, 1, 7, 9) | BITS1(10),
	 BITS8(3, 5, 6, 8, 13, 16, 17, 18) | BITS8(19, 21, 23, 24, 28, 29, 30, 31), BITS1(5),
	 BITS4(16, 17, 21, 28) | BITS2(30, 31)},
	/* always: UMIP RDPID; host: VBMI VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ */
	{7, 0, REG_ECX, FOR_ALL, BITS2(2, 22), BITS8(1, 6, 8, 9, 10, 11, 12, 14), BITS2(9, 10),
	 BITS4(1, 6, 11, 12) | BITS1(14)},
	/* always: FSRM, as ERMS: string instructions are copied a page at a time; host:
	   VP2INTERSECT */
	{7, 0, REG_EDX, FOR_ALL, BITS1(4), BITS1(8), 0, BITS1(8)},
	/* ARCH_CAPABILITIES */
	{7, 0, REG_EDX, FOR_INTEL, BITS1(29), 0, 0, 0},
	/* AVX_VNNI AVX512_BF16 */
	{7, 1, REG_EAX, FOR_ALL, 0, BITS2(4, 5), BITS1(4), BITS1(5)},
	/* BHI_CTRL: kernels distrust BHI_NO, but one write of BHI_DIS_S satisfies them. */
	{7, 2, REG_EDX, FOR_INTEL, BITS1(4), 0, 0, 0},
	/* XSAVEOPT XGETBV1 */
	{0xd, 1, REG_EAX, FOR_ALL, 0, BITS2(0, 2), 0, 0},
	/* always: LAHF; host: LZCNT PREFETCHW */
	{0x80000001, 0, REG_ECX, FOR_ALL, BITS1(0), BITS2(5, 8), 0, 0},
	/* always: topology extensions; host: SSE4A MISALIGNSSE */
	{0x80000001, 0, REG_ECX, FOR_AMD, BITS1(22), BITS2(6, 7), 0, 0},
	/* SYSCALL NX 1G RDTSCP LM */
	{0x80000001, 0, REG_EDX, FOR_ALL, BITS4(11, 20, 26, 27) | BITS1(29), 0, 0, 0},
	/* MMXEXT */
	{0x80000001, 0, REG_EDX, FOR_AMD, AMD_REPEATED, BITS1(22), 0, 0},
	/* Invariant TSC: the guest's is the host's plus an offset */
	{0x80000007, 0, REG_EDX, FOR_ALL, 0, BITS1(8), 0, 0},
	/* always: SSB_NO BTC_NO; host: XSAVEERPTR, since XRSTOR runs natively */
	{0x80000008, 0, REG_EBX, FOR_AMD, BITS2(26, 29), BITS1(2), 0, 0},
	/* LFENCE serialises, null selectors clear the base, automatic IBRS, SRSO_NO */
	{0x80000021, 0, REG_EAX, FOR_AMD, BITS4(2, 6, 8, 29), 0, 0, 0},
	/* TSA_SQ_NO TSA_L1_NO */
	{0x80000021, 0, REG_ECX, FOR_AMD, BITS2(1, 2), 0, 0, 0},
};

/* ---- building blocks ---- */

struct build {
	struct cpuid_model *m;
	const struct cpuid_source *src;
	u32 host_max, host_max_ext;
	bool full;
};

static void query_host(const struct build *b, u32 leaf, u32 subleaf, u32 out[4])
{
	u32 max = leaf & 0x80000000 ? b->host_max_ext : b->host_max;

	memset(out, 0, 4 * sizeof(*out));
	if (leaf <= max)
		b->src->query(b->src->opaque, leaf, subleaf, out);
}

static void add(struct build *b, u32 leaf, s32 subleaf, const u32 reg[4])
{
	if (b->m->count == CPUID_MAX_LEAVES) {
		b->full = true;
		return;
	}
	b->m->leaf[b->m->count++] = (struct cpuid_leaf){
		.leaf = leaf,
		.subleaf = subleaf < 0 ? 0 : (u32)subleaf,
		.has_subleaf = subleaf >= 0,
		.eax = reg[REG_EAX],
		.ebx = reg[REG_EBX],
		.ecx = reg[REG_ECX],
		.edx = reg[REG_EDX],
	};
}

static void copy(struct build *b, u32 leaf)
{
	u32 reg[4];

	query_host(b, leaf, 0, reg);
	add(b, leaf, -1, reg);
}

static bool is_for(const struct feature_word *f, const struct cpuid_model *m)
{
	return f->vendor == FOR_ALL || (f->vendor == FOR_AMD) == m->is_amd;
}

/* Feature bits of @leaf in all registers that have some; the others of @reg stay. */
static void set_features(const struct build *b, u32 leaf, u32 subleaf, u32 reg[4])
{
	const struct cpuid_model *m = b->m;
	u32 host[4];

	query_host(b, leaf, subleaf, host);
	for (u32 i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature_word *f = &features[i];
		u32 usable = f->host;

		if (f->leaf != leaf || f->subleaf != subleaf || !is_for(f, m))
			continue;
		if (!(m->xcr0 & XCR0_AVX))
			usable &= ~(f->avx | f->avx512);
		if (!(m->xcr0 & XCR0_OPMASK))
			usable &= ~f->avx512;
		reg[f->reg] |= f->always | (host[f->reg] & usable);
	}
}

static void add_features(struct build *b, u32 leaf, s32 subleaf)
{
	u32 reg[4] = {0};

	set_features(b, leaf, subleaf < 0 ? 0 : (u32)subleaf, reg);
	add(b, leaf, subleaf, reg);
}

/* log2, rounded up */
static u32 id_bits(u32 count)
{
	u32 bits = 0;

	while (1u << bits < count)
		bits++;
	return bits;
}

/* ---- leaves ---- */

static void add_basic(struct build *b, const struct cpuid_request *req)
{
	const bool several = req->vcpus > 1;
	u32 reg[4], host[4];

	query_host(b, 0, 0, reg);
	reg[REG_EAX] = 0xd;
	add(b, 0, -1, reg);

	query_host(b, 1, 0, host);
	memset(reg, 0, sizeof(reg));
	set_features(b, 1, 0, reg);
	reg[REG_EAX] = host[REG_EAX];
	reg[REG_EBX] = 8 << 8; /* CLFLUSH line: 8 quadwords */
	if (several) {
		reg[REG_EBX] |= (1u << id_bits(req->vcpus)) << 16 & 0xff0000;
		reg[REG_EDX] |= BITS1(28);
	}
	if (!req->hide_hypervisor)
		reg[REG_ECX] |= BITS1(31);
	add(b, 1, -1, reg);
	if (!b->m->is_amd)
		copy(b, 2);
}

/*
 * Deterministic cache parameters, Intel leaf 4 or AMD leaf 0x8000001d: sizes as on the host; levels
 * 1 and 2 private, the others shared by all vCPUs.
 */
static void add_caches(struct build *b, u32 leaf)
{
	const u32 sharing = 0xfffu << 14, cores = 0x3fu << 26;

	for (u32 i = 0; i < 8; i++) {
		u32 reg[4];

		query_host(b, leaf, i, reg);
		if (!(reg[REG_EAX] & 0x1f))
			break;
		reg[REG_EAX] &= ~(sharing | cores);
		if ((reg[REG_EAX] >> 5 & 7) > 2)
			reg[REG_EAX] |= ((1u << id_bits(b->m->vcpus)) - 1) << 14 & sharing;
		if (leaf == 4)
			reg[REG_EAX] |= (MIN(1u << id_bits(b->m->vcpus), 64u) - 1) << 26;
		add(b, leaf, (s32)i, reg);
	}
}

/* Extended topology, SDM vol. 2, leaf 0BH: one thread per core, all cores in one package. */
static void add_topology(struct build *b)
{
	const u32 thread[4] = {0, 1, 1 << 8, 0};
	const u32 core[4] = {id_bits(b->m->vcpus), b->m->vcpus, 2 << 8, 0};

	add(b, 0xb, 0, thread);
	add(b, 0xb, 1, core);
}

/* XSAVE: components as laid out by the host, restricted to xcr0. EBX of subleaf 0 is computed
 * later. */
static void add_xsave(struct build *b)
{
	struct cpuid_model *m = b->m;
	u32 component[32][4] = {0};
	u32 reg[4] = {(u32)m->xcr0};

	m->xsave_max = 576;
	for (u32 i = 2; i < ARRAY_SIZE(component); i++) {
		if (!(m->xcr0 & BIT(i)))
			continue;
		query_host(b, 0xd, i, component[i]);
		component[i][REG_ECX] = component[i][REG_EDX] = 0;
		m->xsave_max = MAX(m->xsave_max, component[i][REG_EAX] + component[i][REG_EBX]);
	}
	reg[REG_ECX] = m->xsave_max;
	add(b, 0xd, 0, reg);
	add_features(b, 0xd, 1);
	for (u32 i = 2; i < ARRAY_SIZE(component); i++)
		if (m->xcr0 & BIT(i))
			add(b, 0xd, (s32)i, component[i]);
}

static void add_structured_features(struct build *b)
{
	u32 reg[3][4] = {0}, last = 0;

	for (u32 i = 0; i < ARRAY_SIZE(reg); i++) {
		set_features(b, 7, i, reg[i]);
		if (reg[i][REG_EAX] | reg[i][REG_EDX])
			last = i;
	}
	reg[0][REG_EAX] = last;
	for (u32 i = 0; i <= last; i++)
		add(b, 7, (s32)i, reg[i]);
}

/*
 * The KVM interface (Linux, Documentation/virt/kvm/x86/cpuid.rst) as far as it is implemented: no
 * I/O delays, the clock if the TSC can carry it, the end of interrupts without a register access
 * (device/chip/lapic.h), and what machine/paravirt.h does on engines that make hypercalls. Leaf
 * 0x40000010 gives TSC and APIC timer frequency in kHz.
 */
static void add_hypervisor(struct build *b, const struct cpuid_request *req)
{
	/* Steal time, unhalt, TLB flush, send IPI. */
	const u32 several = req->paravirt ? BITS4(5, 7, 9, 11) : 0;
	const u32 nop_io_delay = BITS1(1), clocksource2 = BITS1(3), stable = BITS1(24);
	const u32 pv_eoi = BITS1(6);
	const bool has_clock = cpuid_has(b->m, 0x80000007, 0, REG_EDX, 8);
	const u32 name[4] = {0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d}; /* KVMKVMKVM */
	const u32 clock = has_clock ? clocksource2 | stable : 0;
	const u32 kvm[4] = {nop_io_delay | pv_eoi | several | clock};
	const u32 timing[4] = {(u32)(b->m->tsc_hz / 1000), LAPIC_BUS_KHZ};

	add(b, 0x40000000, -1, name);
	add(b, 0x40000001, -1, kvm);
	add(b, 0x40000010, -1, timing);
}

static void add_address_sizes(struct build *b)
{
	u32 reg[4] = {0};

	set_features(b, 0x80000008, 0, reg);
	reg[REG_EAX] = b->m->phys_bits | 48 << 8;
	if (b->m->is_amd)
		reg[REG_ECX] = (b->m->vcpus - 1) | id_bits(b->m->vcpus) << 12;
	add(b, 0x80000008, -1, reg);
}

static void add_extended(struct build *b)
{
	u32 reg[4];

	query_host(b, 0x80000000, 0, reg);
	reg[REG_EAX] = b->m->is_amd ? 0x80000021 : 0x80000008;
	add(b, 0x80000000, -1, reg);
	memset(reg, 0, sizeof(reg));
	set_features(b, 0x80000001, 0, reg);
	if (b->m->is_amd) {
		u32 host[4];

		query_host(b, 0x80000001, 0, host);
		reg[REG_EAX] = host[REG_EAX];
		reg[REG_EBX] = host[REG_EBX];
		if (b->m->vcpus > 1)
			reg[REG_ECX] |= BITS1(1); /* CMP_LEGACY: the package's ids are cores */
	}
	add(b, 0x80000001, -1, reg);
	for (u32 leaf = 0x80000002; leaf <= 0x80000004; leaf++)
		copy(b, leaf); /* the host's brand string */
	if (b->m->is_amd)
		copy(b, 0x80000005);
	copy(b, 0x80000006);
	add_features(b, 0x80000007, -1);
	add_address_sizes(b);
}

static void add_amd(struct build *b)
{
	const u32 topology[4] = {0};

	copy(b, 0x80000019);
	copy(b, 0x8000001a);
	add_caches(b, 0x8000001d);
	add(b, 0x8000001e, -1, topology); /* one node; EAX and EBX name the core */
	add_features(b, 0x80000021, -1);
}

/* ---- the model ---- */

static bool vendor_is_amd(const struct build *b)
{
	u32 reg[4];

	query_host(b, 0, 0, reg);
	/* AuthenticAMD, HygonGenuine */
	return reg[REG_EBX] == 0x68747541 || reg[REG_EBX] == 0x6f677948;
}

static u32 host_phys_bits(const struct build *b)
{
	u32 reg[4];

	query_host(b, 0x80000008, 0, reg);
	return reg[REG_EAX] ? MIN(MAX(reg[REG_EAX] & 0xff, 36u), 52u) : 36;
}

/* AVX-512 is all of its state or none, and nothing without AVX. */
static u64 usable_xcr0(u64 host)
{
	u64 xcr0 = host & (XCR0_X87 | XCR0_SSE | XCR0_AVX);

	if (xcr0 & XCR0_AVX && (host & XCR0_AVX512) == XCR0_AVX512)
		xcr0 |= XCR0_AVX512;
	return xcr0;
}

static int check_host(const struct build *b, struct err *e)
{
	const u32 xsave = BITS1(26);
	u32 reg[4];

	query_host(b, 1, 0, reg);
	if (!(reg[REG_ECX] & xsave))
		return err_set(e, -ENOTSUP, "the host's processor is too old: it has no XSAVE");
	if ((b->src->xcr0 & (XCR0_X87 | XCR0_SSE)) != (XCR0_X87 | XCR0_SSE))
		return err_set(e, -ENOTSUP, "the host's kernel has not enabled XSAVE");
	if (!b->src->tsc_hz)
		return err_set(e, -ENOTSUP, "the frequency of the host's TSC is not known");
	return 0;
}

int cpuid_model_build(struct cpuid_model *m, const struct cpuid_request *req,
		      const struct cpuid_source *src, struct err *e)
{
	struct build b = {.m = m, .src = src};
	u32 reg[4];
	int r;

	memset(m, 0, sizeof(*m));
	if (!req->vcpus || req->vcpus > 254)
		return err_set(e, -EINVAL, "%u vCPUs: between 1 and 254 are possible", req->vcpus);
	src->query(src->opaque, 0, 0, reg);
	b.host_max = reg[REG_EAX];
	src->query(src->opaque, 0x80000000, 0, reg);
	b.host_max_ext = reg[REG_EAX];
	r = check_host(&b, e);
	if (r < 0)
		return r;
	m->vcpus = req->vcpus;
	m->tsc_hz = src->tsc_hz;
	m->is_amd = vendor_is_amd(&b);
	m->arch_capabilities = m->is_amd ? 0 : CPUID_ARCH_CAPABILITIES;
	m->has_hypervisor = !req->hide_hypervisor;
	m->one_engine = req->one_engine;
	m->phys_bits = host_phys_bits(&b);
	m->xcr0 = usable_xcr0(src->xcr0);

	add_basic(&b, req);
	if (!m->is_amd)
		add_caches(&b, 4);
	add_features(&b, 6, -1);
	add_structured_features(&b);
	add_topology(&b);
	add_xsave(&b);
	add_extended(&b);
	if (m->is_amd)
		add_amd(&b);
	if (m->has_hypervisor)
		add_hypervisor(&b, req);
	if (b.full || m->xsave_max > CPU_XSAVE_MAX)
		return err_set(e, -ENOTSUP, "the processor describes more state than is supported");
	return 0;
}

/* ---- the host ---- */

static void query_cpu(const void *opaque, u32 leaf, u32 subleaf, u32 out[4])
{
	(void)opaque;
	__cpuid_count(leaf, subleaf, out[REG_EAX], out[REG_EBX], out[REG_ECX], out[REG_EDX]);
}

static u64 read_xcr0(void)
{
	u32 reg[4], low, high;

	query_cpu(NULL, 1, 0, reg);
	if (!(reg[REG_ECX] & BITS1(27)))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low | (u64)high << 32;
}

static u64 rdtsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return low | (u64)high << 32;
}

/* Of several readings the one that took the shortest. */
struct cpuid_moment cpuid_moment(void)
{
	struct cpuid_moment m = {0};
	u64 shortest = ~0ul;

	for (u32 i = 0; i < CALIBRATE_TRIES; i++) {
		u64 before = rdtsc(), now = host_clock_ns(), after = rdtsc();

		if (after - before < shortest) {
			shortest = after - before;
			m = (struct cpuid_moment){.tsc = before + shortest / 2, .ns = now};
		}
	}
	return m;
}

static u64 measure_tsc_hz(const struct cpuid_moment *since)
{
	struct cpuid_moment from = since ? *since : cpuid_moment(), to;
	u64 passed = host_clock_ns() - from.ns;

	if (passed < CALIBRATE_NS)
		host_sleep_ns(CALIBRATE_NS - passed);
	to = cpuid_moment();
	return (u64)((unsigned __int128)(to.tsc - from.tsc) * 1000000000 / (to.ns - from.ns));
}

/*
 * SDM vol. 2, leaf 15H: exact where the crystal's frequency is enumerated. Under a hypervisor that
 * scales the TSC it may be that of another machine, so it must agree with what was measured.
 */
static u64 refine_tsc_hz(u64 measured)
{
	u32 reg[4];
	u64 hz;

	query_cpu(NULL, 0, 0, reg);
	if (reg[REG_EAX] < 0x15)
		return measured;
	query_cpu(NULL, 0x15, 0, reg);
	hz = reg[REG_EAX] ? (u64)reg[REG_ECX] * reg[REG_EBX] / reg[REG_EAX] : 0;
	return MAX(hz, measured) - MIN(hz, measured) < measured / 1000 ? hz : measured;
}

int cpuid_model_init(struct cpuid_model *m, const struct cpuid_request *req, struct err *e)
{
	const struct cpuid_source src = {
		.query = query_cpu,
		.xcr0 = read_xcr0(),
		.tsc_hz = req->any_tsc_hz ? 1000000000 : refine_tsc_hz(measure_tsc_hz(req->since)),
	};

	return cpuid_model_build(m, req, &src, e);
}
