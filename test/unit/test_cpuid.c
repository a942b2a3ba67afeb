/* The CPUID model, built for invented hosts and for this one. */
#include "cpu/cpuid.h"
#include "cpu/x86.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { EAX, EBX, ECX, EDX };

/* A host that has every feature bit there is. */
struct fake {
	const char *vendor; /* EBX, EDX, ECX */
	u32 max, max_ext;
};

static void fake_query(const void *opaque, u32 leaf, u32 subleaf, u32 out[4])
{
	const struct fake *f = opaque;

	memset(out, 0xff, 4 * sizeof(*out));
	switch (leaf) {
	case 0:
		out[EAX] = f->max;
		memcpy(&out[EBX], f->vendor, 4);
		memcpy(&out[EDX], f->vendor + 4, 4);
		memcpy(&out[ECX], f->vendor + 8, 4);
		break;
	case 4:
	case 0x8000001d:
		memset(out, 0, 4 * sizeof(*out));
		if (subleaf < 3)
			out[EAX] = (0xfffu << 14) | (0x3fu << 26) | (subleaf + 1) << 5 | 1;
		break;
	case 0xd:
		memset(out, 0, 4 * sizeof(*out));
		out[EAX] = subleaf == 1 ? ~0u : 64;
		out[EBX] = subleaf == 1 ? 0 : 512 + subleaf * 64;
		break;
	case 0x80000000: out[EAX] = f->max_ext; break;
	case 0x80000008: out[EAX] = 46 | 57 << 8; break;
	}
}

static const struct fake intel = {"GenuineIntel", 0x20, 0x80000008};
static const struct fake amd = {"AuthenticAMD", 0x10, 0x80000021};

static struct cpuid_model build(const struct fake *f, u32 vcpus, u64 xcr0)
{
	const struct cpuid_request req = {.vcpus = vcpus};
	const struct cpuid_source src = {
		.query = fake_query, .opaque = f, .xcr0 = xcr0, .tsc_hz = 2500000000};
	struct cpuid_model m;
	struct err e = {0};

	assert_int_equal(cpuid_model_build(&m, &req, &src, &e), 0);
	return m;
}

static void query(const struct cpuid_model *m, u32 leaf, u32 subleaf, u32 out[4])
{
	cpuid_query(m, 3, 0, m->xcr0, leaf, subleaf, out);
}

static void hides_what_engines_lack(void **state)
{
	static const struct {
		u32 leaf, subleaf, reg, bit;
	} hidden[] = {
		{1, 0, ECX, 3},  {1, 0, ECX, 5},  {1, 0, ECX, 6},  {1, 0, ECX, 15},
		{1, 0, EDX, 1},  {7, 0, EBX, 4},  {7, 0, EBX, 11}, {7, 0, EBX, 14},
		{7, 0, EBX, 20}, {7, 0, EBX, 25}, {7, 0, ECX, 3},  {7, 0, ECX, 5},
		{7, 0, ECX, 7},  {7, 0, ECX, 16}, {7, 0, EDX, 20}, {7, 0, EDX, 24},
		{7, 0, EDX, 26}, {7, 0, EDX, 27}, {7, 0, EDX, 31}, {7, 1, EAX, 17},
		{13, 1, EAX, 1}, {13, 1, EAX, 3}, {13, 0, EAX, 9}, {13, 0, EAX, 17},
	};
	const struct fake *hosts[] = {&intel, &amd};

	(void)state;
	for (u32 h = 0; h < 2; h++) {
		struct cpuid_model m = build(hosts[h], 1, ~0ul);

		for (u32 i = 0; i < ARRAY_SIZE(hidden); i++)
			assert_false(cpuid_has(&m, hidden[i].leaf, hidden[i].subleaf, hidden[i].reg,
					       hidden[i].bit));
		assert_false(cpuid_has(&m, 0x80000001, 0, ECX, 2));  /* SVM */
		assert_false(cpuid_has(&m, 0x80000001, 0, ECX, 11)); /* XOP */
		assert_int_equal(m.xcr0, XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
	}
}

static void offers_what_engines_provide(void **state)
{
	struct cpuid_model m = build(&amd, 1, 7);
	u32 last[4];

	(void)state;
	assert_true(cpuid_has(&m, 1, 0, ECX, 17));           /* PCID */
	assert_true(cpuid_has(&m, 1, 0, ECX, 21));           /* x2APIC */
	assert_true(cpuid_has(&m, 1, 0, ECX, 24));           /* TSC deadline */
	assert_true(cpuid_has(&m, 7, 0, EBX, 0));            /* FSGSBASE */
	assert_true(cpuid_has(&m, 7, 0, EBX, 10));           /* INVPCID */
	assert_true(cpuid_has(&m, 0x80000001, 0, EDX, 26));  /* 1 GiB pages */
	assert_true(cpuid_has(&m, 0x80000021, 0, EAX, 8));   /* automatic IBRS */
	assert_false(cpuid_has(&m, 0x80000008, 0, EBX, 12)); /* IBPB */
	assert_false(cpuid_has(&m, 7, 0, EDX, 29));          /* ARCH_CAPABILITIES is Intel's */
	assert_true(m.is_amd);

	m = build(&intel, 1, 7);
	assert_true(cpuid_has(&m, 7, 0, EDX, 29));
	assert_true(cpuid_has(&m, 7, 2, EDX, 4)); /* BHI_CTRL */
	query(&m, 7, 0, last);
	assert_int_equal(last[EAX], 2);
	assert_false(cpuid_has(&m, 7, 0, EDX, 26)); /* SPEC_CTRL */
	assert_false(m.is_amd);
}

static void vector_features_follow_xcr0(void **state)
{
	struct cpuid_model sse = build(&intel, 1, 3), avx = build(&intel, 1, 7);
	struct cpuid_model half = build(&intel, 1, 7 | XCR0_OPMASK);

	(void)state;
	assert_false(cpuid_has(&sse, 1, 0, ECX, 28));
	assert_false(cpuid_has(&sse, 7, 0, EBX, 5));
	assert_false(cpuid_has(&sse, 7, 0, ECX, 9));
	assert_true(cpuid_has(&avx, 1, 0, ECX, 28));
	assert_true(cpuid_has(&avx, 7, 0, EBX, 5));
	assert_false(cpuid_has(&avx, 7, 0, EBX, 16));
	assert_int_equal(half.xcr0, 7);
	assert_false(cpuid_has(&half, 7, 0, EBX, 16));
}

static void xsave_size_follows_the_current_xcr0(void **state)
{
	struct cpuid_model m = build(&amd, 1, ~0ul);
	u32 out[4];

	(void)state;
	cpuid_query(&m, 0, 0, XCR0_X87, 0xd, 0, out);
	assert_int_equal(out[EBX], 576);
	cpuid_query(&m, 0, 0, 7, 0xd, 0, out);
	assert_int_equal(out[EBX], 512 + 2 * 64 + 64);
	cpuid_query(&m, 0, 0, 0xe7, 0xd, 0, out);
	assert_int_equal(out[EBX], 512 + 7 * 64 + 64);
	assert_int_equal(out[ECX], out[EBX]);
	assert_int_equal(m.xsave_max, out[EBX]);
	assert_int_equal(out[EAX], 0xe7);
}

static void osxsave_mirrors_cr4(void **state)
{
	struct cpuid_model m = build(&amd, 1, 7);
	u32 out[4];

	(void)state;
	cpuid_query(&m, 0, 0, 7, 1, 0, out);
	assert_false(out[ECX] & BIT(27));
	cpuid_query(&m, 0, CR4_OSXSAVE, 7, 1, 0, out);
	assert_true(out[ECX] & BIT(27));
}

static void topology_counts_vcpus(void **state)
{
	struct cpuid_model m = build(&amd, 6, 7);
	u32 out[4];

	(void)state;
	query(&m, 1, 0, out);
	assert_int_equal(out[EBX] >> 24, 3);
	assert_int_equal(out[EBX] >> 16 & 0xff, 8);
	assert_true(out[EDX] & BIT(28));
	query(&m, 0xb, 1, out);
	assert_int_equal(out[EAX], 3);
	assert_int_equal(out[EBX], 6);
	assert_int_equal(out[ECX], 0x201);
	assert_int_equal(out[EDX], 3);
	query(&m, 0xb, 7, out);
	assert_int_equal(out[ECX], 7);
	assert_int_equal(out[EBX], 0);
	query(&m, 0x80000008, 0, out);
	assert_int_equal(out[ECX], 5 | 3 << 12);
	query(&m, 0x8000001d, 1, out); /* level 2: private */
	assert_int_equal(out[EAX] >> 14 & 0xfff, 0);
	query(&m, 0x8000001d, 2, out);
	assert_int_equal(out[EAX] >> 14 & 0xfff, 7);
	query(&m, 0x8000001e, 0, out);
	assert_int_equal(out[EAX], 3);
	m = build(&intel, 6, 7);
	query(&m, 4, 0, out);
	assert_int_equal(out[EAX] >> 26, 7);
}

static void leaves_beyond_the_last_one(void **state)
{
	struct cpuid_model m = build(&intel, 1, 7);
	u32 last[4], out[4];

	(void)state;
	query(&m, 0xd, 0, last);
	query(&m, 0x1000, 0, out);
	assert_memory_equal(out, last, sizeof(out));
	query(&m, 0x80000021, 0, out);
	assert_memory_equal(out, last, sizeof(out));
	query(&m, 0x40000080, 0, out);
	assert_int_equal(out[EAX], 0);
	m = build(&amd, 1, 7);
	query(&m, 0x1000, 0, out);
	assert_int_equal(out[EAX] | out[EBX] | out[ECX] | out[EDX], 0);
}

static void hypervisor_leaves_can_be_hidden(void **state)
{
	const struct cpuid_request req = {.vcpus = 1, .hide_hypervisor = true};
	const struct cpuid_source src = {
		.query = fake_query, .opaque = &amd, .xcr0 = 7, .tsc_hz = 2500000000};
	struct cpuid_model m = build(&amd, 1, 7);
	u32 out[4];

	(void)state;
	query(&m, 0x40000000, 0, out);
	assert_memory_equal(&out[EBX], "KVMKVMKVM\0\0", 12);
	query(&m, 0x40000010, 0, out);
	assert_int_equal(out[EAX], 2500000);
	assert_true(cpuid_has(&m, 1, 0, ECX, 31));
	assert_true(cpuid_has(&m, 0x40000001, 0, EAX, 6)); /* the end of interrupts in memory */
	assert_int_equal(cpuid_model_build(&m, &req, &src, NULL), 0);
	assert_false(cpuid_has(&m, 1, 0, ECX, 31));
	query(&m, 0x40000000, 0, out);
	assert_int_equal(out[EAX], 0);
}

static void refuses_what_it_cannot_model(void **state)
{
	struct cpuid_request req = {.vcpus = 0};
	struct cpuid_source src = {.query = fake_query, .opaque = &amd, .xcr0 = 7, .tsc_hz = 1};
	struct cpuid_model m;
	struct err e = {0};

	(void)state;
	assert_true(cpuid_model_build(&m, &req, &src, &e) < 0);
	req.vcpus = 1;
	src.xcr0 = 0;
	assert_true(cpuid_model_build(&m, &req, &src, &e) < 0);
	src.xcr0 = 7;
	src.tsc_hz = 0;
	assert_true(cpuid_model_build(&m, &req, &src, &e) < 0);
	assert_true(e.text[0]);
}

static void this_host(void **state)
{
	const struct cpuid_request req = {.vcpus = 2};
	struct cpuid_model m;
	struct err e = {0};

	(void)state;
	assert_int_equal(cpuid_model_init(&m, &req, &e), 0);
	assert_in_range(m.tsc_hz, 500000000, 10000000000);
	assert_in_range(m.phys_bits, 36, 52);
	assert_in_range(m.xsave_max, 576, CPU_XSAVE_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hides_what_engines_lack),
		cmocka_unit_test(offers_what_engines_provide),
		cmocka_unit_test(vector_features_follow_xcr0),
		cmocka_unit_test(xsave_size_follows_the_current_xcr0),
		cmocka_unit_test(osxsave_mirrors_cr4),
		cmocka_unit_test(topology_counts_vcpus),
		cmocka_unit_test(leaves_beyond_the_last_one),
		cmocka_unit_test(hypervisor_leaves_can_be_hidden),
		cmocka_unit_test(refuses_what_it_cannot_model),
		cmocka_unit_test(this_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
