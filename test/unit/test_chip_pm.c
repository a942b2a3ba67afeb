/* Unit tests of device/chip/pm.c; clauses are of ACPI 6.4. */
#include "chip_test.h"
#include "device/chip/pm.h"

#include <string.h>

#define SECOND 1000000000ul

struct machine {
	struct bus bus;
	struct pm pm;
	struct wire wire;
	u32 power_offs, resets;
};

static void power_off(void *opaque)
{
	((struct machine *)opaque)->power_offs++;
}

static void reset(void *opaque)
{
	((struct machine *)opaque)->resets++;
}

static void setup(struct machine *m)
{
	struct pm_config config = {.power_off = power_off, .reset = reset, .opaque = m};

	memset(m, 0, sizeof(*m));
	clock_start(50 * SECOND);
	bus_init(&m->bus);
	config.sci = wire_line(&m->wire, 9);
	assert_int_equal(pm_init(&m->pm, &m->bus, &config, NULL, &test_lock, NULL), 0);
}

static void acpi_4_8_3_3_power_management_timer(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(inl(&m.bus, PM_TMR), 0);
	clock_advance(SECOND);
	assert_int_equal(inl(&m.bus, PM_TMR), PM_TMR_HZ);
	assert_int_equal(pm_timer_read(&m.pm), PM_TMR_HZ);
	outl(&m.bus, PM_TMR, 0);
	clock_advance(10000 * SECOND);
	assert_int_equal(inl(&m.bus, PM_TMR), (u32)(10001ul * PM_TMR_HZ));
	bus_destroy(&m.bus);
}

static void acpi_4_8_3_1_power_button(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outw(&m.bus, PM1A_EVT + 2, 0x100);
	assert_int_equal(inw(&m.bus, PM1A_EVT + 2), 0x100);
	pm_power_button(&m.pm);
	assert_true(m.wire.level[9]);
	assert_int_equal(inw(&m.bus, PM1A_EVT), 0x100);
	outw(&m.bus, PM1A_EVT, 0x100);
	assert_false(m.wire.level[9]);
	outw(&m.bus, PM1A_EVT + 2, 0);
	pm_power_button(&m.pm);
	assert_false(m.wire.level[9]);
	bus_destroy(&m.bus);
}

static void timer_status_and_interrupt(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	clock_advance(599 * SECOND);
	assert_int_equal(inw(&m.bus, PM1A_EVT), 0);
	outw(&m.bus, PM1A_EVT + 2, 1);
	clock_advance(SECOND); /* 2^31 ticks take 599.93 s */
	assert_true(m.wire.level[9]);
	assert_int_equal(inw(&m.bus, PM1A_EVT), 1);
	outw(&m.bus, PM1A_EVT, 1);
	assert_false(m.wire.level[9]);
	clock_advance(600 * SECOND);
	assert_true(m.wire.level[9]);
	pm_destroy(&m.pm);
	assert_int_equal(clock_timers(), 0);
	bus_destroy(&m.bus);
}

static void acpi_4_8_3_2_sleep(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(inw(&m.bus, PM1A_CNT), 1); /* SCI_EN */
	outw(&m.bus, PM1A_CNT, PM_SLP_TYP_S5 << 10);
	assert_int_equal(m.power_offs, 0);
	assert_int_equal(inw(&m.bus, PM1A_CNT), PM_SLP_TYP_S5 << 10 | 1);
	outw(&m.bus, PM1A_CNT, 1 << 13); /* S0 */
	assert_int_equal(m.power_offs, 0);
	assert_int_equal(inw(&m.bus, PM1A_EVT), 0x8000);
	outw(&m.bus, PM1A_CNT, PM_SLP_TYP_S5 << 10 | 1 << 13);
	assert_int_equal(m.power_offs, 1);
	bus_destroy(&m.bus);
}

static void acpi_4_8_4_1_general_purpose_events(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pm_gpe(&m.pm, 9);
	pm_gpe(&m.pm, 16);
	assert_false(m.wire.level[9]);
	assert_int_equal(inb(&m.bus, PM_GPE0 + 1), 2);
	outb(&m.bus, PM_GPE0 + 3, 2);
	assert_true(m.wire.level[9]);
	outb(&m.bus, PM_GPE0, 0xff);
	assert_true(m.wire.level[9]);
	outb(&m.bus, PM_GPE0 + 1, 2);
	assert_false(m.wire.level[9]);
	assert_int_equal(inl(&m.bus, PM_GPE0), 0x02000000);
	bus_destroy(&m.bus);
}

static void acpi_4_8_3_6_reset_register(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pm_reset_control_ops.write(&m.pm, 0, 1, 0x02);
	assert_int_equal(m.resets, 0);
	pm_reset_control_ops.write(&m.pm, 0, 1, 0x06);
	assert_int_equal(m.resets, 1);
	assert_int_equal(pm_reset_control_ops.read(&m.pm, 0, 1), 0x06);
	pm_ops.reset(&m.pm);
	pm_reset_control_ops.write(&m.pm, 0, 1, PM_RESET_VALUE);
	assert_int_equal(m.resets, 2);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	setup(&n);
	setup(&m);
	for (u32 i = 0; i < 100000; i++) {
		u32 r = random32();
		u16 port = (u16)(PM_BASE + (r >> 8 & 0x3f));

		if (r & 1)
			bus_write(&m.bus, BUS_PORT, port, 1u << (r >> 4) % 3, random32());
		else
			bus_read(&m.bus, BUS_PORT, port, 1u << (r >> 4) % 3);
		clock_advance(random32());
	}
	check_state(&pm_ops, &m.pm, &n.pm);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(acpi_4_8_3_3_power_management_timer),
		cmocka_unit_test(acpi_4_8_3_1_power_button),
		cmocka_unit_test(timer_status_and_interrupt),
		cmocka_unit_test(acpi_4_8_3_2_sleep),
		cmocka_unit_test(acpi_4_8_4_1_general_purpose_events),
		cmocka_unit_test(acpi_4_8_3_6_reset_register),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
