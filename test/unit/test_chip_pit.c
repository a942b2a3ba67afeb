/* Unit tests of device/chip/pit.c; clauses are sections of the Intel 8254 datasheet. */
#include "chip_test.h"
#include "device/chip/pit.h"

#include <string.h>

enum { MS = 1000000, SECOND = 1000000000 };

struct machine {
	struct bus bus;
	struct pit pit;
	struct wire wire;
};

static void setup(struct machine *m)
{
	memset(m, 0, sizeof(*m));
	bus_init(&m->bus);
	assert_int_equal(pit_init(&m->pit, &m->bus, wire_line(&m->wire, 0), NULL, &test_lock, NULL),
			 0);
}

static void program(struct machine *m, u32 channel, u32 mode, u16 count)
{
	outb(&m->bus, 0x43, (u8)(channel << 6 | 0x30 | mode << 1));
	outb(&m->bus, (u16)(0x40 + channel), (u8)count);
	outb(&m->bus, (u16)(0x40 + channel), (u8)(count >> 8));
}

static u16 latched(struct machine *m, u32 channel)
{
	u8 low;

	outb(&m->bus, 0x43, (u8)(channel << 6));
	low = inb(&m->bus, (u16)(0x40 + channel));
	return (u16)(low | inb(&m->bus, (u16)(0x40 + channel)) << 8);
}

static u64 ns_of_ticks(u64 ticks)
{
	return (ticks * 1000000000ul + PIT_HZ - 1) / PIT_HZ;
}

static void mode_2_interrupts_at_its_rate(void **state)
{
	struct machine m;

	(void)state;
	clock_start(5 * (u64)SECOND);
	setup(&m);
	program(&m, 0, 2, 4772);              /* 250 Hz */
	assert_int_equal(m.wire.edges[0], 1); /* the output went high */
	clock_advance(SECOND);
	assert_in_range(m.wire.edges[0] - 1, 249, 251);
	program(&m, 0, 2, 0);
	m.wire.edges[0] = 0;
	clock_advance(10 * (u64)SECOND);
	assert_in_range(m.wire.edges[0], 181, 183);
	bus_destroy(&m.bus);
}

static void mode_2_counter_runs_down_and_reloads(void **state)
{
	struct machine m;
	u16 last;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 0, 2, 1000);
	assert_int_equal(latched(&m, 0), 1000);
	clock_advance(ns_of_ticks(1));
	assert_int_equal(latched(&m, 0), 999);
	clock_advance(ns_of_ticks(998));
	last = latched(&m, 0);
	assert_in_range(last, 1, 2);
	clock_advance(ns_of_ticks(2));
	assert_in_range(latched(&m, 0), 998, 1000);
	bus_destroy(&m.bus);
}

static void a_new_count_takes_effect_after_the_period(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 0, 2, 10000);
	clock_advance(ns_of_ticks(5000));
	m.wire.edges[0] = 0;
	outb(&m.bus, 0x40, 0xd0);
	outb(&m.bus, 0x40, 0x07); /* 2000 */
	clock_advance(ns_of_ticks(4990));
	assert_int_equal(m.wire.edges[0], 0);
	clock_advance(ns_of_ticks(20));
	assert_int_equal(m.wire.edges[0], 1);
	clock_advance(ns_of_ticks(2000));
	assert_int_equal(m.wire.edges[0], 2);
	bus_destroy(&m.bus);
}

static void one_shot_modes_interrupt_once(void **state)
{
	static const u8 modes[] = {0, 4};
	struct machine m;

	(void)state;
	for (u32 i = 0; i < 2; i++) {
		clock_start(1);
		setup(&m);
		program(&m, 0, modes[i], 1193);
		m.wire.edges[0] = 0;
		clock_advance(900000);
		assert_int_equal(m.wire.edges[0], 0);
		clock_advance(200000);
		assert_int_equal(m.wire.edges[0], 1);
		clock_advance(SECOND);
		assert_int_equal(m.wire.edges[0], 1);
		assert_int_equal(clock_timers(), 0);
		bus_destroy(&m.bus);
	}
}

static void control_word_stops_the_channel(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 0, 2, 1000);
	outb(&m.bus, 0x43, 0x30); /* Linux's pit_shutdown() */
	outb(&m.bus, 0x40, 0);
	outb(&m.bus, 0x40, 0);
	m.wire.edges[0] = 0;
	clock_advance(50 * (u64)MS);
	assert_int_equal(m.wire.edges[0], 0);
	bus_destroy(&m.bus);
}

/* What Linux's pit_calibrate_tsc() does: channel 2 in mode 0, wait for OUT2 at port 0x61. */
static void linux_pit_calibrate_tsc(void **state)
{
	struct machine m;
	u64 start;

	(void)state;
	clock_start(1);
	setup(&m);
	outb(&m.bus, 0x61, (inb(&m.bus, 0x61) & ~2) | 1);
	outb(&m.bus, 0x43, 0xb0);
	outb(&m.bus, 0x42, 11931 & 0xff);
	outb(&m.bus, 0x42, 11931 >> 8);
	start = host_clock_ns();
	for (u32 i = 0; !(inb(&m.bus, 0x61) & 0x20); i++) {
		clock_advance(1000);
		assert_true(i < 20000);
	}
	assert_in_range(host_clock_ns() - start, 9990000, 10010000);
	bus_destroy(&m.bus);
}

/* What Linux's quick_pit_calibrate() does: the MSB of channel 2 falls every 256 ticks. */
static void linux_quick_pit_calibrate(void **state)
{
	struct machine m;
	u32 seen = 0;
	u8 expected = 0xff;

	(void)state;
	clock_start(1);
	setup(&m);
	outb(&m.bus, 0x61, 1);
	outb(&m.bus, 0x43, 0xb0);
	outb(&m.bus, 0x42, 0xff);
	outb(&m.bus, 0x42, 0xff);
	for (; expected > 0xf0; expected--, seen = 0) {
		while (inb(&m.bus, 0x42), inb(&m.bus, 0x42) == expected) {
			clock_advance(2000);
			seen++;
		}
		assert_in_range(seen, 105, 109); /* 214.6 us */
	}
	bus_destroy(&m.bus);
}

static void gate_2_freezes_mode_0(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	outb(&m.bus, 0x61, 1);
	program(&m, 2, 0, 10000);
	clock_advance(ns_of_ticks(1000));
	outb(&m.bus, 0x61, 0);
	clock_advance(SECOND);
	assert_in_range(latched(&m, 2), 8999, 9000);
	outb(&m.bus, 0x61, 1);
	clock_advance(ns_of_ticks(1000));
	assert_in_range(latched(&m, 2), 7998, 8000);
	bus_destroy(&m.bus);
}

static void gate_2_triggers_mode_1_and_5(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 2, 1, 1000);
	assert_int_equal(inb(&m.bus, 0x61) & 0x20, 0x20);
	outb(&m.bus, 0x61, 1);
	assert_int_equal(inb(&m.bus, 0x61) & 0x20, 0);
	clock_advance(ns_of_ticks(1001));
	assert_int_equal(inb(&m.bus, 0x61) & 0x20, 0x20);
	bus_destroy(&m.bus);
}

static void mode_3_is_a_square_wave(void **state)
{
	struct machine m;
	u32 high = 0;

	(void)state;
	clock_start(1);
	setup(&m);
	outb(&m.bus, 0x61, 1);
	program(&m, 2, 3, 1000);
	for (u32 i = 0; i < 1000; i++) {
		high += inb(&m.bus, 0x61) >> 5 & 1;
		clock_advance(8381);
	}
	assert_in_range(high, 490, 510);
	bus_destroy(&m.bus);
}

static void read_back_command(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 0, 2, 0x1234);
	clock_advance(ns_of_ticks(4));
	outb(&m.bus, 0x43, 0xc2); /* count and status of channel 0 */
	clock_advance(MS);
	assert_int_equal(inb(&m.bus, 0x40), 0xb4); /* OUT high, both bytes, mode 2 */
	assert_int_equal(inb(&m.bus, 0x40), 0x30);
	assert_int_equal(inb(&m.bus, 0x40), 0x12);
	bus_destroy(&m.bus);
}

static void bcd_counting(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	outb(&m.bus, 0x43, 0x35);
	outb(&m.bus, 0x40, 0x00);
	outb(&m.bus, 0x40, 0x10);
	clock_advance(ns_of_ticks(1));
	assert_int_equal(latched(&m, 0), 0x0999);
	bus_destroy(&m.bus);
}

static void refresh_bit_toggles(void **state)
{
	struct machine m;
	u32 changes = 0;
	u8 last;

	(void)state;
	clock_start(1);
	setup(&m);
	last = inb(&m.bus, 0x61);
	for (u32 i = 0; i < 100; i++, clock_advance(5000)) {
		changes += (inb(&m.bus, 0x61) ^ last) >> 4 & 1;
		last = inb(&m.bus, 0x61);
	}
	assert_in_range(changes, 32, 34);
	bus_destroy(&m.bus);
}

static void fast_rates_do_not_storm(void **state)
{
	struct machine m;

	(void)state;
	clock_start(1);
	setup(&m);
	program(&m, 0, 2, 1);
	m.wire.edges[0] = 0;
	clock_advance(SECOND);
	assert_in_range(m.wire.edges[0], 10000, 20001);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	clock_start(~0u);
	setup(&m);
	setup(&n);
	for (u32 i = 0; i < 100000; i++) {
		u32 r = random32();
		u16 port = r & 8 ? 0x61 : (u16)(0x40 + (r >> 4 & 3));

		if (r & 1)
			outb(&m.bus, port, (u8)(r >> 8));
		else
			inb(&m.bus, port);
		clock_advance(r >> 16);
	}
	check_state(&pit_ops, &m.pit, &n.pit);
	pit_destroy(&m.pit);
	pit_destroy(&n.pit);
	assert_int_equal(clock_timers(), 0);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

static void restored_timer_goes_on(void **state)
{
	struct machine m, n;
	struct device_buf form = {0};
	u64 used;

	(void)state;
	clock_start(100 * (u64)SECOND);
	setup(&m);
	program(&m, 0, 2, 11932);
	clock_advance(3 * MS);
	assert_int_equal(device_save(&pit_ops, &m.pit, &form), 0);
	clock_start(7); /* another host, just started */
	setup(&n);
	assert_int_equal(device_load(&pit_ops, &n.pit, form.data, form.len, &used, NULL), 0);
	clock_advance(6 * MS);
	assert_int_equal(n.wire.edges[0], 0);
	clock_advance(2 * MS);
	assert_int_equal(n.wire.edges[0], 1);
	clock_advance(10 * MS);
	assert_int_equal(n.wire.edges[0], 2);
	device_buf_free(&form);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mode_2_interrupts_at_its_rate),
		cmocka_unit_test(mode_2_counter_runs_down_and_reloads),
		cmocka_unit_test(a_new_count_takes_effect_after_the_period),
		cmocka_unit_test(one_shot_modes_interrupt_once),
		cmocka_unit_test(control_word_stops_the_channel),
		cmocka_unit_test(linux_pit_calibrate_tsc),
		cmocka_unit_test(linux_quick_pit_calibrate),
		cmocka_unit_test(gate_2_freezes_mode_0),
		cmocka_unit_test(gate_2_triggers_mode_1_and_5),
		cmocka_unit_test(mode_3_is_a_square_wave),
		cmocka_unit_test(read_back_command),
		cmocka_unit_test(bcd_counting),
		cmocka_unit_test(refresh_bit_toggles),
		cmocka_unit_test(fast_rates_do_not_storm),
		cmocka_unit_test(random_accesses_and_snapshots),
		cmocka_unit_test(restored_timer_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
