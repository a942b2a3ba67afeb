/* How fast an engine is said to be, and what it is asked to run to find out. */
#include "engine/measure.h"
#include "host/loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { INSTRUCTION_NS = 200, LOST_NS = 500000, MOST_LOOPS = 2500 };

/* An engine that takes its time for each instruction, and more for the first runs, each time
 * another one. One machine at a time: the engine is the machine. */
struct slow_engine {
	u64 count, total;
	u32 runs;
};

static u32 instruction_ns, slow_runs;

static struct slow_engine slow;

static int open_host(struct engine_host **host, struct err *e)
{
	(void)host, (void)e;
	return 0;
}

static void close_host(struct engine_host *host)
{
	(void)host;
}

static int create_vm(const struct engine_config *config, struct engine_vm **vm, struct err *e)
{
	(void)config, (void)e;
	slow = (struct slow_engine){0};
	*vm = (struct engine_vm *)&slow;
	return 0;
}

static void destroy_vm(struct engine_vm *vm)
{
	(void)vm;
}

static int create_vcpu(struct engine_vm *vm, u32 id, struct engine_vcpu **cpu, struct err *e)
{
	(void)id, (void)e;
	*cpu = (struct engine_vcpu *)vm;
	return 0;
}

static void destroy_vcpu(struct engine_vcpu *cpu)
{
	(void)cpu;
}

static int set_state(struct engine_vcpu *cpu, u32 parts, const struct cpu_state *s)
{
	(void)cpu, (void)parts;
	slow.count = s->gpr.r[RCX];
	return 0;
}

static int run(struct engine_vcpu *cpu, struct vm_exit *exit)
{
	u64 end = host_thread_ns() + 2 * instruction_ns * slow.count;

	(void)cpu;
	if (slow.runs < slow_runs)
		end += LOST_NS << slow.runs;
	while (host_thread_ns() < end)
		;
	slow.runs++;
	slow.total += slow.count;
	exit->type = EXIT_PIO;
	return 0;
}

static const struct engine_ops slow_ops = {
	.host_open = open_host,
	.host_close = close_host,
	.vm_create = create_vm,
	.vm_destroy = destroy_vm,
	.vcpu_create = create_vcpu,
	.vcpu_destroy = destroy_vcpu,
	.state_set = set_state,
	.run = run,
};

/* What a slow first run hides is not looked for in longer ones, which would take milliseconds. */
static void a_slow_engine_is_measured_by_little_work(void **state)
{
	struct err e = {0};
	double ns = 0;

	(void)state;
	instruction_ns = INSTRUCTION_NS;
	slow_runs = 1;
	assert_int_equal(engine_measure(&slow_ops, 0, &ns, &e), 0);
	assert_true(ns > INSTRUCTION_NS * 0.7 && ns < INSTRUCTION_NS * 2.0);
	assert_true(slow.total < MOST_LOOPS);
}

/* Runs that were interrupted for as long as an emulator would take do not count. */
static void a_disturbed_engine_is_measured_by_quiet_runs(void **state)
{
	struct err e = {0};
	double ns = 0;

	(void)state;
	instruction_ns = 0;
	slow_runs = 5;
	assert_int_equal(engine_measure(&slow_ops, 0, &ns, &e), 0);
	assert_true(ns < ENGINE_EMULATES_NS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_slow_engine_is_measured_by_little_work),
		cmocka_unit_test(a_disturbed_engine_is_measured_by_quiet_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
