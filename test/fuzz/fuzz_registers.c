/*
 * The registers and leaves of the processor model: MSRs and CPUID, whatever a guest asks and
 * writes. The host that the model is made for comes from the input as well: a hypervisor below us
 * may show any. Each step is twelve bytes: operation, register, value.
 *
 * Invariant: a model is refused with one line, or works. What a guest wrote is a state that
 * msr_state_is_valid() takes, so that it can be saved and restored; a refused write changes
 * nothing; what the paravirtual clock stores lies in memory; CPUID never offers what the host lacks
 * where instructions run as they are.
 */
#include "cpu/cpuid.h"
#include "cpu/msr.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

enum { RAM = 1 << 16, HOST_BYTES = 64, LEAF_FEATURES = 7, EBX = 1 };

struct step {
	u8 op, how;
	u16 number;
	u64 value;
} __attribute__((packed));

static void check(bool ok)
{
	if (!ok)
		abort();
}

/* ---- the host ---- */

struct host {
	const u8 *bytes;
	bool is_amd, is_wild;
};

static u32 mix(const struct host *h, u32 leaf, u32 subleaf, u32 reg)
{
	u32 at = (leaf * 7 + subleaf * 13 + reg * 4) % (HOST_BYTES - 4), v;

	memcpy(&v, h->bytes + at, sizeof(v));
	return v;
}

static void query(const void *opaque, u32 leaf, u32 subleaf, u32 out[4])
{
	static const u32 xsave[][4] = {
		[0] = {0xe7, 2696, 2696}, [1] = {0xf},        [2] = {256, 576}, [5] = {64, 1088},
		[6] = {512, 1152},        [7] = {1024, 1664}, [8] = {0}};
	const struct host *h = opaque;
	const char *vendor = h->is_amd ? "AuthenticAMD" : "GenuineIntel";

	for (u32 n = 0; n < 4; n++)
		out[n] = mix(h, leaf, subleaf, n);
	if (leaf == 0 || leaf == 0x80000000) {
		out[0] = leaf + (leaf ? 0x21 : 0x1f);
		memcpy(&out[1], vendor, 4);
		memcpy(&out[3], vendor + 4, 4);
		memcpy(&out[2], vendor + 8, 4);
	}
	if (h->is_wild)
		return;
	/* What makes a model of most hosts: XSAVE, its layout, and an end of the caches. */
	if (leaf == 1)
		out[2] |= 1u << 26;
	if (leaf == 0xd)
		memcpy(out, xsave[MIN(subleaf, (u32)ARRAY_SIZE(xsave) - 1)], sizeof(xsave[0]));
	if ((leaf == 4 || leaf == 0x8000001d) && subleaf > 3)
		memset(out, 0, 4 * sizeof(*out));
}

/* ---- the guest ---- */

struct guest {
	struct cpuid_model model;
	struct cpu_msrs msr;
	struct msr_env env;
	u8 ram[RAM];
};

static int store(void *opaque, gpa_t gpa, const void *buf, u64 len)
{
	struct guest *g = opaque;

	if (range_exceeds(gpa, len, RAM))
		return -EFAULT;
	memcpy(g->ram + gpa, buf, len);
	return 0;
}

static u64 realtime(void *opaque)
{
	(void)opaque;
	return 1700000000ul * 1000000000;
}

/* One in the table, or any number. */
static u32 register_of(const struct step *s)
{
	u32 index = s->number;

	if (s->how & 1)
		return index | (u32)s->how >> 1 << 26;
	if (!msr_index(s->number % 256, &index))
		msr_index(0, &index);
	return index + (s->how >> 4);
}

static void write_register(struct guest *g, const struct step *s)
{
	struct cpu_msrs before = g->msr;
	enum msr_result r = msr_write(&g->env, register_of(s), s->value);

	check(r == MSR_MACHINE ? msr_is_machine(register_of(s)) : r == MSR_OK || r == MSR_GP);
	check(r == MSR_OK || !memcmp(&before, &g->msr, sizeof(before)));
	check(msr_state_is_valid(&g->msr, &g->model));
	g->env.tsc += (u64)g->env.tsc_delta;
	g->env.tsc_delta = 0;
}

static void ask(struct guest *g, const struct host *h, const struct step *s)
{
	u32 leaf = s->number & 0xff, out[4], of_host[4];

	if (s->how & 3)
		leaf |= s->how & 1 ? 0x80000000 : 0x40000000;
	cpuid_query(&g->model, s->how >> 4, s->value, s->value >> 32, leaf, s->number >> 8, out);
	if (leaf != LEAF_FEATURES || s->number >> 8)
		return;
	/* AVX2, AVX-512 F, DQ, BW, VL */
	query(h, leaf, 0, of_host);
	check((out[EBX] & ~of_host[EBX] & 0xc0030020) == 0);
}

static void run(struct guest *g, const struct host *h, const struct step *s)
{
	u64 value;

	switch (s->op % 4) {
	case 0:
	case 1: write_register(g, s); break;
	case 2: msr_read(&g->env, register_of(s), &value); break;
	default: ask(g, h, s); break;
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	const struct cpuid_request request = {.vcpus = 1 + (len > 1 ? data[1] % 64 : 0),
					      .paravirt = true};
	struct cpuid_source source = {.query = query, .tsc_hz = 2000000000};
	struct err e = {0};
	struct host host;
	struct guest *g;
	struct step s;

	if (len < HOST_BYTES)
		return 0;
	host = (struct host){.bytes = data, .is_amd = data[0] & 1, .is_wild = data[0] >> 5 == 7};
	source.opaque = &host;
	source.xcr0 = data[0] & 2 ? 7 : 0xe7;
	g = calloc(1, sizeof(*g));
	check(g);
	if (cpuid_model_build(&g->model, &request, &source, &e)) {
		check(e.text[0] && !strchr(e.text, '\n'));
		free(g);
		return 0;
	}
	check(g->model.count <= CPUID_MAX_LEAVES);
	msr_reset(&g->msr);
	check(msr_state_is_valid(&g->msr, &g->model));
	g->env = (struct msr_env){.msr = &g->msr,
				  .cpuid = &g->model,
				  .tsc = 1000,
				  .store = store,
				  .realtime_ns = realtime,
				  .opaque = g};
	for (data += HOST_BYTES, len -= HOST_BYTES; len >= sizeof(s);
	     data += sizeof(s), len -= sizeof(s)) {
		memcpy(&s, data, sizeof(s));
		run(g, &host, &s);
	}
	free(g);
	return 0;
}
