/*
 * A loop of two instructions runs for a small and a large count; the difference leaves out what
 * entering the guest costs. The loop ends at an OUT, which ring 3 may execute because IOPL is 3.
 */
#include "engine/measure.h"

#include "engine/flat.h"
#include "host/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	RAM_SIZE = 256 << 10, /* less than a huge page, which takes long to clear */
	CODE_AT = 0x10000,
	STACK_AT = 0x20000,
	TABLES_AT = 0x4000,
	SMALL = 50,
	LARGE = 500,        /* enough where guest code is emulated */
	LARGEST = 10000000, /* enough where it runs a few instructions in a ns */
	TRIES = 2,          /* in processor time, which leaves out what interrupts them for long */
};

/* 1: dec %ecx; jnz 1b; out %al, $0x80; jmp -2 */
static const u8 code[] = {0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80, 0xeb, 0xfe};

struct probe {
	const struct engine_ops *engine;
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct engine_vm *vm;
	struct engine_vcpu *cpu;
	struct cpu_state state;
	u32 parts; /* of the state that are not yet the CPU's */
};

/* What one run of the loop takes, in ns. */
static int run_loop(struct probe *p, u32 cpl, u64 count, u64 *ns, struct err *e)
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
	*ns = host_thread_ns() - start;
	if (r || x.type == EXIT_ERROR)
		return err_set(e, r ? r : -EIO, "a loop of two instructions in ring %u fails: %s",
			       cpl, r ? strerror(-r) : x.error);
	if (x.type != EXIT_PIO)
		return err_set(e, -EIO, "a loop of two instructions in ring %u does not end", cpl);
	return 0;
}

static int run_loops(struct probe *p, u32 cpl, double *ns, struct err *e)
{
	const u64 long_enough = 100000;
	u64 small = 0, large = 0, best = 0, count;
	int r = 0;

	flat_state(&p->state, TABLES_AT, CODE_AT, STACK_AT, cpl);
	p->parts = CPU_PART_ALL;
	for (count = LARGE; !r && best < long_enough && count <= LARGEST; count *= 8) {
		best = ~0ul;
		for (u32 i = 0; i < TRIES && !r; i++) {
			r = run_loop(p, cpl, SMALL, &small, e);
			if (!r)
				r = run_loop(p, cpl, count, &large, e);
			if (!r)
				best = MIN(best, large > small ? large - small : 0);
		}
		*ns = (double)best / (2.0 * (double)(count - SMALL));
	}
	return r;
}

static int build(struct probe *p, struct err *e)
{
	const struct cpuid_request request = {
		.vcpus = 1, .any_tsc_hz = true, .hide_hypervisor = true};
	const struct engine_config config = {.physmap = &p->physmap, .cpuid = &p->cpuid};
	int r = cpuid_model_init(&p->cpuid, &request, e);

	if (!r)
		r = physmap_add(&p->physmap, 0, RAM_SIZE, 0, e);
	if (r)
		return r;
	flat_tables(p->physmap.region[0].hva + TABLES_AT, TABLES_AT);
	memcpy(p->physmap.region[0].hva + CODE_AT, code, sizeof(code));
	return p->engine->vm_create(&config, &p->vm, e);
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
	}
	physmap_destroy(&p->physmap);
	free(p);
	return r;
}
