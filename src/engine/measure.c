/*
 * A loop of two instructions runs for a small and a large count; the difference leaves out what
 * entering the guest costs. The loop ends at an OUT, which ring 3 may execute because IOPL is 3.
 *
 * This is a part of starting a machine: so the guest's processor has no more than the loop needs.
 * To ask the host for all that it could have takes a hundred CPUIDs, which are microseconds each
 * under a hypervisor.
 */
#include "engine/measure.h"

#include "engine/flat.h"
#include "host/loop.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	RAM_SIZE = 256 << 10, /* less than a huge page, which takes long to clear */
	CODE_AT = 0x10000,
	STACK_AT = 0x20000,
	TABLES_AT = 0x4000,
	SMALL = 20,
	LARGE = 250,         /* enough where guest code is emulated */
	LARGEST = 10000000,  /* enough where it runs a few instructions in a ns */
	LONG_ENOUGH = 40000, /* ns of guest code */
	TRIES = 8,           /* at most */
	ALIKE = 4,           /* two runs are when a part in this many is between them */
};

/* 1: dec %ecx; jnz 1b; out %al, $0x80; jmp -2 */
static const u8 code[] = {0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80, 0xeb, 0xfe};

struct probe {
	const struct engine_ops *engine;
	struct engine_host *host;
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct engine_vm *vm;
	struct engine_vcpu *cpu;
	struct cpu_state state;
	u32 parts; /* of the state that are not yet the CPU's */
};

/* What the two fastest of several runs took, in ns of processor time. */
struct fastest {
	u64 ns, next;
};

static const struct fastest no_runs = {~0ul, ~0ul};

static void add_run(struct fastest *f, u64 ns)
{
	f->next = MIN(f->next, MAX(f->ns, ns));
	f->ns = MIN(f->ns, ns);
}

/* Two that agree: nothing disturbed either. (The host of a host may take the processor away, which
 * counts as if the guest had run.) */
static bool is_sure(const struct fastest *f)
{
	return f->next != ~0ul && f->next - f->ns <= f->ns / ALIKE;
}

/* One run of the loop. */
static int run_loop(struct probe *p, u32 cpl, u64 count, struct fastest *f, struct err *e)
{
	struct vm_exit x = {0};
	u64 start;
	int r;

	p->state.gpr.r[RCX] = count;
	r = p->engine->state_set(p->cpu, p->parts, &p->state);
	if (r)
		return err_set(e, r, "the probe's start state is refused");
	p->parts = CPU_PART_GPR; /* the loop changes no others */
	start = host_thread_ns();
	do
		r = p->engine->run(p->cpu, &x);
	while (!r && (x.type == EXIT_NONE || x.type == EXIT_KICKED));
	add_run(f, host_thread_ns() - start);
	if (r || x.type == EXIT_ERROR)
		return err_set(e, r ? r : -EIO, "a loop of two instructions in ring %u fails: %s",
			       cpl, r ? strerror(-r) : x.error);
	if (x.type != EXIT_PIO)
		return err_set(e, -EIO, "a loop of two instructions in ring %u does not end", cpl);
	return 0;
}

static int run_loops(struct probe *p, u32 cpl, double *ns, struct err *e)
{
	struct fastest small = no_runs;
	int r = 0;

	flat_state(&p->state, TABLES_AT, CODE_AT, STACK_AT, cpl);
	p->parts = CPU_PART_ALL;
	for (u64 count = LARGE; !r && count <= LARGEST; count *= 8) {
		struct fastest large = no_runs;
		u64 took;

		/* The first run of all is a slow one: so the fastest of each, not of differences.
		 */
		for (u32 i = 0; i < TRIES && !r && !is_sure(&large); i++) {
			r = run_loop(p, cpl, SMALL, &small, e);
			if (!r)
				r = run_loop(p, cpl, count, &large, e);
		}
		took = large.ns - MIN(small.ns, large.ns);
		*ns = (double)took / (2.0 * (double)(count - SMALL));
		if (took >= LONG_ENOUGH)
			break;
	}
	return r;
}

/* Enough of the host's CPUID for a processor in 64-bit mode. */
static void query_least(const void *opaque, u32 leaf, u32 subleaf, u32 out[4])
{
	const u32 max = leaf & 0x80000000 ? 0x80000008 : 1;

	(void)opaque;
	__cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
	if (!(leaf & ~0x80000000))
		out[0] = MIN(out[0], max);
}

static int build(struct probe *p, struct err *e)
{
	const struct cpuid_request request = {.vcpus = 1, .hide_hypervisor = true};
	const struct cpuid_source source = {
		.query = query_least, .xcr0 = XCR0_X87 | XCR0_SSE, .tsc_hz = 1000000000};
	struct engine_config config = {.physmap = &p->physmap, .cpuid = &p->cpuid};
	int r = cpuid_model_build(&p->cpuid, &request, &source, e);

	if (!r)
		r = physmap_add(&p->physmap, 0, RAM_SIZE, 0, e);
	if (r)
		return r;
	flat_tables(p->physmap.region[0].hva + TABLES_AT, TABLES_AT);
	memcpy(p->physmap.region[0].hva + CODE_AT, code, sizeof(code));
	r = p->engine->host_open(&p->host, e);
	if (r)
		return r;
	config.host = p->host;
	r = p->engine->vm_create(&config, &p->vm, e);
	if (r)
		p->engine->host_close(p->host);
	return r;
}

int engine_measure(const struct engine_ops *engine, u32 cpl, double *ns, struct err *e)
{
	struct probe *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(e, -ENOMEM, "out of memory");
	p->engine = engine;
	physmap_init(&p->physmap);
	r = build(p, e);
	if (!r) {
		r = engine->vcpu_create(p->vm, 0, &p->cpu, e);
		if (!r) {
			r = run_loops(p, cpl, ns, e);
			engine->vcpu_destroy(p->cpu);
		}
		engine->vm_destroy(p->vm);
		engine->host_close(p->host);
	}
	physmap_destroy(&p->physmap);
	free(p);
	return r;
}
