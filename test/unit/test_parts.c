/*
 * More of the engine contract, on state in parts: test_parts NAME [no-sti-shadow]. See
 * test_engine.c. The second argument says that the processor loses STI's shadow between two
 * entries.
 */
#include "engine_guest.h"

#include "cpu/pvclock.h"
#include "host/loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static const struct engine_ops *engine;

static struct guest *fresh(const u8 *code, u32 len)
{
	struct guest *g = guest_new(engine);

	guest_load(g, code, len);
	return g;
}

CODE(cr8, "mov %cr8, %rax; out %al, $0x80; hlt");

/* Parts of parts are the same registers, and leave the rest of what is passed alone. */
static void small_parts_agree_with_large_ones(void **state)
{
	struct guest *g = fresh(CODE_OF(cr8));
	static struct cpu_state s, t;
	struct vm_exit x = {0};

	(void)state;
	s.cr.cr8 = 9;
	s.msr.tsc = 1ul << 40;
	s.msr.tsc_host = 5000;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_CR8 | CPU_PART_TSC, &s), 0);
	t = *guest_state(g, CPU_PART_CR | CPU_PART_MSR);
	assert_int_equal(t.cr.cr8, 9);
	assert_int_equal(t.cr.cr3, TABLES_AT);
	assert_int_equal(t.msr.tsc - t.msr.tsc_host, (1ul << 40) - 5000);
	t.cr.cr8 = 3;
	t.msr.tsc += 1000;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_CR | CPU_PART_MSR, &t), 0);
	s = *guest_state(g, CPU_PART_CR8 | CPU_PART_TSC);
	assert_int_equal(s.cr.cr8, 3);
	assert_int_equal(s.cr.cr3, 0);
	assert_int_equal(s.msr.tsc - s.msr.tsc_host, t.msr.tsc - t.msr.tsc_host);
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	assert_int_equal(x.pio.data, 3);
	guest_free(g);
}

CODE(sti_hlt, "sti; hlt; out %al, $0x80; hlt");

/* STI's shadow is state: HLT behind it comes before the interrupt, which would not wake it later.
 */
static void sdm2_sti_shadow_moves(void **state)
{
	struct guest *g = fresh(CODE_OF(sti_hlt));
	struct vm_exit x = {0};
	struct cpu_state *s = guest_state(g, CPU_PART_GPR | CPU_PART_INTR);

	(void)state;
	s->gpr.rip = CODE_AT + 1;
	s->gpr.rflags |= RFLAGS_IF;
	s->intr.shadow_sti = true;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_GPR | CPU_PART_INTR, s), 0);
	assert_false(engine->irq_ready(g->cpu));
	engine->request_irq_window(g->cpu);
	assert_int_equal(guest_run(g, &x), EXIT_HLT);
	guest_free(g);
}

CODE(late_sti, "out %al, $0x80; nop; nop; sti; nop; nop; 1: out %al, $0x81; jmp 1b");

static bool shadow_is_lost;

/* Not right behind STI (SDM vol. 2, STI) where the processor keeps its shadow, and before the
 * loop's first OUT has run.
 */
static void window_opens_with_sti(void **state)
{
	struct guest *g = fresh(CODE_OF(late_sti));
	const u64 first = CODE_AT + (shadow_is_lost ? 5 : 6);
	struct vm_exit x = {0};

	(void)state;
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	assert_int_equal(x.pio.port, 0x80);
	engine->request_irq_window(g->cpu);
	assert_int_equal(guest_run(g, &x), EXIT_IRQ_WINDOW);
	assert_true(engine->irq_ready(g->cpu));
	assert_in_range(guest_state(g, CPU_PART_GPR)->gpr.rip, first, CODE_AT + 8);
	guest_free(g);
}

CODE(clocks, "xor %edx, %edx; mov $0x4b564d01, %ecx; mov $0x100001, %eax; wrmsr; out %al, $0x80;"
	     "mov $0x4b564d00, %ecx; mov $0x101000, %eax; wrmsr; out %al, $0x80; hlt");

/* What the guest computes from its page (struct pvclock_vcpu_time_info). */
static u64 pvclock_now(struct guest *g)
{
	const u64 page = 0x100000, scale = guest_get(g, page + 24);
	const struct pvclock_scale by = {.mul = (u32)scale, .shift = (int8_t)(scale >> 32)};
	u64 tsc = guest_state(g, CPU_PART_MSR)->msr.tsc;

	return guest_get(g, page + 16) + pvclock_ns(by, tsc - guest_get(g, page + 8));
}

/* KVM's clock (Linux, Documentation/virt/kvm/x86/msr.rst) goes as the host's does. */
static void kvmclock_goes(void **state)
{
	enum { FEATURES = 0x40000001, CLOCKSOURCE2 = 3, EAX = 0, WALL_AT = 0x101000 };
	struct guest *g = fresh(CODE_OF(clocks));
	u64 before, after, first, passed;
	struct vm_exit x = {0};

	(void)state;
	if (!cpuid_has(&g->cpuid, FEATURES, 0, EAX, CLOCKSOURCE2)) {
		guest_free(g);
		skip(); /* no TSC at a constant rate */
	}
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	assert_int_not_equal((u32)guest_get(g, 0x100000), 0);
	assert_int_equal(guest_get(g, 0x100000) & 1, 0); /* the version: nobody writes */
	before = host_clock_ns();
	first = pvclock_now(g);
	host_sleep_ns(20000000);
	passed = pvclock_now(g) - first;
	after = host_clock_ns();
	assert_in_range(passed, 20000000 - 200000, (after - before) + (after - before) / 100);
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	/* Seconds of the wall clock at which the clock was 0. */
	assert_in_range((guest_get(g, WALL_AT) >> 32) + pvclock_now(g) / 1000000000,
			(u64)time(NULL) - 2, (u64)time(NULL) + 2);
	guest_free(g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest everywhere[] = {
		cmocka_unit_test(small_parts_agree_with_large_ones),
		cmocka_unit_test(kvmclock_goes),
	};
	const struct CMUnitTest on_processors[] = {
		cmocka_unit_test(window_opens_with_sti),
	};
	const struct CMUnitTest with_shadow[] = {
		cmocka_unit_test(sdm2_sti_shadow_moves),
	};
	const char *name = argc > 1 ? argv[1] : "soft";
	struct err e = {0};
	int failed;

	engine = engine_by_name(name);
	if (!engine || engine->probe(&e)) {
		printf("%s cannot run here: %s\n", name, engine ? e.text : "no such engine");
		return 77;
	}
	shadow_is_lost = argc > 2 && !strcmp(argv[2], "no-sti-shadow");
	failed = cmocka_run_group_tests_name(name, everywhere, NULL, NULL);
	if (guest_ring0_is_emulated(engine)) {
		printf("%s: ring 0 is emulated here, windows and shadows are left out\n", name);
		return failed;
	}
	failed += cmocka_run_group_tests_name(name, on_processors, NULL, NULL);
	if (shadow_is_lost)
		printf("%s: the processor loses STI's shadow\n", name);
	else
		failed += cmocka_run_group_tests_name(name, with_shadow, NULL, NULL);
	return failed;
}
