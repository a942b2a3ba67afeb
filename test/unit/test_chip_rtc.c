/* Unit tests of device/chip/rtc.c; names follow the MC146818A datasheet. */
#include "chip_test.h"
#include "device/chip/rtc.h"

#include <string.h>
#include <time.h>

enum { MS = 1000000 };

#define SECOND 1000000000ul

struct machine {
	struct bus bus;
	struct rtc rtc;
	struct wire wire;
};

static u8 reg(struct machine *m, u8 at)
{
	outb(&m->bus, 0x70, at);
	return inb(&m->bus, 0x71);
}

static void set_reg(struct machine *m, u8 at, u8 value)
{
	outb(&m->bus, 0x70, at | 0x80); /* with NMI masked, as firmware does */
	outb(&m->bus, 0x71, value);
}

static void setup(struct machine *m, u64 utc_seconds)
{
	memset(m, 0, sizeof(*m));
	clock_start(77 * SECOND);
	bus_init(&m->bus);
	assert_int_equal(rtc_init(&m->rtc, &m->bus, wire_line(&m->wire, 8), utc_seconds * SECOND,
				  NULL, &test_lock, NULL),
			 0);
}

/* The clock as the guest reads it, in seconds since 1970. */
static u64 guest_seconds(struct machine *m)
{
	bool binary = reg(m, 11) & 4;
	u8 r[8];
	struct tm tm = {0};

	for (u32 i = 0; i < 8; i++) {
		static const u8 at[] = {0, 2, 4, 7, 8, 9, 0x32, 6};

		r[i] = reg(m, at[i]);
		if (!binary)
			r[i] = (u8)((r[i] >> 4) * 10 + (r[i] & 15));
	}
	tm.tm_sec = r[0];
	tm.tm_min = r[1];
	tm.tm_hour = r[2];
	tm.tm_mday = r[3];
	tm.tm_mon = r[4] - 1;
	tm.tm_year = r[6] * 100 + r[5] - 1900;
	assert_int_equal((timegm(&tm) / 86400 + 4) % 7 + 1, r[7]);
	return (u64)timegm(&tm);
}

static void shows_the_time_given(void **state)
{
	/* Leap days, centuries, ends of years, 2038. */
	static const u64 when[] = {0,          951782400,  951868799,  1078012800,
				   1709164800, 1735689599, 2147483648, 4107542399,
				   4107542400, 1700000000, 13569465600};
	struct machine m;

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(when); i++) {
		setup(&m, when[i]);
		assert_int_equal(guest_seconds(&m), when[i]);
		clock_advance(86400 * SECOND);
		assert_int_equal(guest_seconds(&m), when[i] + 86400);
		bus_destroy(&m.bus);
	}
}

static void registers_after_power_up(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	assert_int_equal(reg(&m, 10), 0x26);
	assert_int_equal(reg(&m, 11), 0x02);
	assert_int_equal(reg(&m, 12), 0);
	assert_int_equal(reg(&m, 13), 0x80);
	bus_destroy(&m.bus);
}

static void data_modes(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000 + 3600); /* 23:13:20 */
	assert_int_equal(reg(&m, 4), 0x23);
	set_reg(&m, 11, 0x06);
	assert_int_equal(reg(&m, 4), 23);
	set_reg(&m, 11, 0x04);
	assert_int_equal(reg(&m, 4), 0x80 | 11);
	set_reg(&m, 11, 0x00);
	assert_int_equal(reg(&m, 4), 0x91);
	clock_advance(3600 * SECOND);
	assert_int_equal(reg(&m, 4), 0x12); /* midnight is 12 am */
	bus_destroy(&m.bus);
}

static void set_bit_stops_the_clock(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 11, 0x82);
	set_reg(&m, 0, 0x30);
	set_reg(&m, 2, 0x45);
	set_reg(&m, 4, 0x12);
	set_reg(&m, 7, 0x29);
	set_reg(&m, 8, 0x02);
	set_reg(&m, 9, 0x24);
	clock_advance(100 * SECOND);
	assert_int_equal(reg(&m, 0), 0x30);
	set_reg(&m, 11, 0x02);
	assert_int_equal(guest_seconds(&m), 1709210730); /* 2024-02-29 12:45:30 */
	clock_advance(SECOND / 2 - 1);
	assert_int_equal(reg(&m, 0), 0x30);
	clock_advance(1);
	assert_int_equal(reg(&m, 0), 0x31); /* half a second after the start */
	bus_destroy(&m.bus);
}

static void writes_without_set_keep_the_clock_running(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 9, 0x30);
	clock_advance(SECOND);
	assert_int_equal(reg(&m, 9), 0x30);
	assert_int_equal(reg(&m, 0), 0x21);
	bus_destroy(&m.bus);
}

static void update_in_progress(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	assert_int_equal(reg(&m, 10) & 0x80, 0);
	clock_advance(SECOND - 244000);
	assert_int_equal(reg(&m, 10) & 0x80, 0x80);
	clock_advance(244000);
	assert_int_equal(reg(&m, 10) & 0x80, 0);
	bus_destroy(&m.bus);
}

static void update_ended_interrupt(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 11, 0x12);
	clock_advance(SECOND + 1);
	assert_true(m.wire.level[8]);
	assert_int_equal(clock_timers(), 0); /* rests until the guest reads the flags */
	assert_int_equal(reg(&m, 12), 0xd0); /* the periodic flag needs no enable */
	assert_false(m.wire.level[8]);
	assert_int_equal(reg(&m, 12), 0);
	clock_advance(SECOND);
	assert_int_equal(m.wire.edges[8], 2);
	bus_destroy(&m.bus);
}

static void periodic_interrupt(void **state)
{
	struct machine m;
	u32 ticks = 0;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 11, 0x42);
	for (u32 i = 0; i < 2048; i++) { /* at 1024 Hz */
		clock_advance(SECOND / 2048);
		if (m.wire.level[8]) {
			assert_int_equal(reg(&m, 12) & 0xc0, 0xc0);
			ticks++;
		}
	}
	assert_in_range(ticks, 1023, 1024);
	set_reg(&m, 10, 0x20); /* rate 0: none */
	reg(&m, 12);
	clock_advance(SECOND);
	assert_false(m.wire.level[8]);
	bus_destroy(&m.bus);
}

static void alarm(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000); /* 22:13:20 */
	set_reg(&m, 1, 0x10);
	set_reg(&m, 3, 0x00);
	set_reg(&m, 5, 0x07);
	set_reg(&m, 11, 0x22);
	clock_advance(31609 * SECOND);
	assert_false(m.wire.level[8]);
	clock_advance(SECOND);
	assert_true(m.wire.level[8]);
	assert_int_equal(reg(&m, 12) & 0xb0, 0xb0);
	clock_advance(86399 * SECOND);
	assert_int_equal(m.wire.edges[8], 1);
	clock_advance(SECOND);
	assert_int_equal(m.wire.edges[8], 2); /* daily */
	reg(&m, 12);
	set_reg(&m, 3, 0xff);
	set_reg(&m, 5, 0xc0);
	clock_advance(60 * SECOND);
	assert_int_equal(m.wire.edges[8], 3); /* every minute */
	reg(&m, 12);
	set_reg(&m, 1, 0x75); /* never */
	clock_advance(90000 * SECOND);
	assert_int_equal(m.wire.edges[8], 3);
	bus_destroy(&m.bus);
}

static void flags_are_set_without_interrupts(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 1, 0x25);
	set_reg(&m, 3, 0xff);
	set_reg(&m, 5, 0xff);
	clock_advance(2 * SECOND);
	assert_int_equal(reg(&m, 12), 0x50);
	clock_advance(5 * SECOND);
	assert_int_equal(reg(&m, 12), 0x70);
	assert_int_equal(m.wire.edges[8], 0);
	assert_int_equal(clock_timers(), 0);
	bus_destroy(&m.bus);
}

static void reset_keeps_time_and_memory(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 1700000000);
	set_reg(&m, 0x40, 0x5a);
	set_reg(&m, 11, 0x72);
	clock_advance(2 * SECOND);
	rtc_ops.reset(&m.rtc);
	assert_false(m.wire.level[8]);
	assert_int_equal(reg(&m, 0x40), 0x5a);
	assert_int_equal(guest_seconds(&m), 1700000002);
	bus_destroy(&m.bus);
}

static void memory_sizes(void **state)
{
	struct machine m;

	(void)state;
	setup(&m, 0);
	rtc_set_memory(&m.rtc, 512 * MIB, 0);
	assert_int_equal(reg(&m, 0x15) | reg(&m, 0x16) << 8, 640);
	assert_int_equal(reg(&m, 0x17) | reg(&m, 0x18) << 8, 0xffff);
	assert_int_equal(reg(&m, 0x34) | reg(&m, 0x35) << 8, (512 - 16) * 16);
	rtc_set_memory(&m.rtc, 3 * GIB, 5 * GIB);
	assert_int_equal(reg(&m, 0x34) | reg(&m, 0x35) << 8, (3072 - 16) * 16);
	assert_int_equal(reg(&m, 0x5b) | reg(&m, 0x5c) << 8 | reg(&m, 0x5d) << 16, 5 * 1024 * 16);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	setup(&n, 5);
	setup(&m, 1700000000);
	for (u32 i = 0; i < 100000; i++) {
		u32 r = random32();
		u8 at = r & 2 ? r >> 8 & 15 : (u8)(r >> 8);

		if (r & 1)
			set_reg(&m, at, (u8)(r >> 16));
		else
			reg(&m, at);
		if ((r & 0xff) == 0xf0)
			clock_advance((u64)random32() * 16);
		clock_advance(r >> 20);
	}
	check_state(&rtc_ops, &m.rtc, &n.rtc);
	rtc_destroy(&m.rtc);
	rtc_destroy(&n.rtc);
	assert_int_equal(clock_timers(), 0);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shows_the_time_given),
		cmocka_unit_test(registers_after_power_up),
		cmocka_unit_test(data_modes),
		cmocka_unit_test(set_bit_stops_the_clock),
		cmocka_unit_test(writes_without_set_keep_the_clock_running),
		cmocka_unit_test(update_in_progress),
		cmocka_unit_test(update_ended_interrupt),
		cmocka_unit_test(periodic_interrupt),
		cmocka_unit_test(alarm),
		cmocka_unit_test(flags_are_set_without_interrupts),
		cmocka_unit_test(reset_keeps_time_and_memory),
		cmocka_unit_test(memory_sizes),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
