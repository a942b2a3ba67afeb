/*
 * Theory of operation
 *
 * Guest time is the monotonic host clock plus offset_ns. While the SET bit stops the clock, the
 * time registers are plain memory in cmos[]; otherwise they are encoded from guest time on every
 * read, and a write encodes the present, replaces one byte and decodes again.
 *
 * Flags: advance() looks at the interval since it last ran and sets PF, UF and AF for what happened
 * in it. It runs before anything that depends on the flags or changes what they depend on. The
 * interrupt line follows IRQF; while it is high nothing new can be signalled, so the timer rests
 * until the guest reads register C.
 */
#include "device/chip/rtc.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum {
	RTC_PORT = 0x70,
	SECONDS = 0,
	SECONDS_ALARM = 1,
	MINUTES = 2,
	MINUTES_ALARM = 3,
	HOURS = 4,
	HOURS_ALARM = 5,
	DAY_OF_WEEK = 6,
	DAY_OF_MONTH = 7,
	MONTH = 8,
	YEAR = 9,
	REG_A = 10,
	REG_B = 11,
	REG_C = 12,
	REG_D = 13,
	FIRST_MEMORY = 14,

	A_UIP = 0x80,
	A_DIVIDER_32K = 0x20,
	A_RATE_1024 = 0x06,
	B_SET = 0x80,
	B_UIE = 0x10,
	B_BINARY = 0x04,
	B_24H = 0x02,
	C_IRQF = 0x80,
	C_PF = 0x40,
	C_AF = 0x20,
	C_UF = 0x10,
	FLAGS = C_PF | C_AF | C_UF, /* the enables in register B are the same bits */
	D_VALID = 0x80,
	HOUR_PM = 0x80,
	ALARM_ANY = 0xc0,

	UIP_NS = 244000, /* UIP rises this long before the update */
	DAY = 86400,
	TICK_HZ = 32768,
};

#define SECOND_NS 1000000000ul

/* Calendar ---------------------------------------------------------------- */

struct calendar {
	u32 year, month, day, weekday, hour, minute, second; /* month, day and weekday from 1 */
};

static bool is_leap(u32 y)
{
	return (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
}

/* Days from 0000-01-01 to the first of January of @y. */
static u64 days_before_year(u32 y)
{
	u64 last = (u64)y +
		   399; /* years counted from -400, a leap year, so that nothing is negative */

	return 365ul * y + (last / 4 - last / 100 + last / 400) - (399 / 4 - 399 / 100);
}

static u32 days_before_month(u32 year, u32 month)
{
	static const u16 days[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};

	return days[month - 1] + (month > 2 && is_leap(year));
}

static u64 days_to_1970(void)
{
	return days_before_year(1970);
}

static struct calendar calendar_from(u64 seconds)
{
	u64 days = seconds / DAY + days_to_1970();
	u32 sod = (u32)(seconds % DAY);
	struct calendar c = {
		.hour = sod / 3600,
		.minute = sod / 60 % 60,
		.second = sod % 60,
		.weekday = (u32)((seconds / DAY + 4) % 7) + 1, /* 1970-01-01 was a Thursday */
		.year = (u32)(days / 366),
		.month = 12,
	};

	while (days_before_year(c.year + 1) <= days)
		c.year++;
	days -= days_before_year(c.year);
	while (days_before_month(c.year, c.month) > days)
		c.month--;
	c.day = (u32)(days - days_before_month(c.year, c.month)) + 1;
	return c;
}

/* Whatever the guest wrote becomes some moment not before 1970. */
static u64 calendar_to_seconds(const struct calendar *c)
{
	u32 month = c->month >= 1 && c->month <= 12 ? c->month : 1;
	u64 days = days_before_year(c->year) + days_before_month(c->year, month) + c->day;

	days = days > days_to_1970() ? days - days_to_1970() - 1 : 0;
	return days * DAY + c->hour * 3600ul + c->minute * 60ul + c->second;
}

/* Register encoding ------------------------------------------------------- */

static u8 encode(const struct rtc *r, u32 v)
{
	return (u8)(r->cmos[REG_B] & B_BINARY ? v : (v / 10) % 10 << 4 | v % 10);
}

static u32 decode(const struct rtc *r, u8 v)
{
	return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static u8 encode_hour(const struct rtc *r, u32 hour)
{
	if (r->cmos[REG_B] & B_24H)
		return encode(r, hour);
	return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static u32 decode_hour(const struct rtc *r, u8 v)
{
	if (r->cmos[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & ~HOUR_PM) % 12 + (v & HOUR_PM ? 12 : 0);
}

static u64 guest_now(const struct rtc *r)
{
	return host_clock_ns() + r->offset_ns;
}

static bool is_time_register(u32 at)
{
	return at == SECONDS || at == MINUTES || at == HOURS || at == RTC_CENTURY ||
	       (at >= DAY_OF_WEEK && at <= YEAR);
}

static void encode_time(struct rtc *r)
{
	struct calendar c = calendar_from(guest_now(r) / SECOND_NS);

	r->cmos[SECONDS] = encode(r, c.second);
	r->cmos[MINUTES] = encode(r, c.minute);
	r->cmos[HOURS] = encode_hour(r, c.hour);
	r->cmos[DAY_OF_WEEK] = encode(r, c.weekday);
	r->cmos[DAY_OF_MONTH] = encode(r, c.day);
	r->cmos[MONTH] = encode(r, c.month);
	r->cmos[YEAR] = encode(r, c.year % 100);
	r->cmos[RTC_CENTURY] = encode(r, c.year / 100);
}

/* Start the clock from the time registers, @fraction_ns into the second. */
static void decode_time(struct rtc *r, u64 fraction_ns)
{
	const struct calendar c = {
		.year = decode(r, r->cmos[RTC_CENTURY]) * 100 + decode(r, r->cmos[YEAR]),
		.month = decode(r, r->cmos[MONTH]),
		.day = decode(r, r->cmos[DAY_OF_MONTH]),
		.hour = decode_hour(r, r->cmos[HOURS]),
		.minute = decode(r, r->cmos[MINUTES]),
		.second = decode(r, r->cmos[SECONDS]),
	};

	r->offset_ns = calendar_to_seconds(&c) * SECOND_NS + fraction_ns - host_clock_ns();
	r->seen_ns = guest_now(r);
}

/* Flags and interrupts ---------------------------------------------------- */

static bool alarm_matches(const struct rtc *r, u32 alarm, u8 encoded)
{
	return r->cmos[alarm] >= ALARM_ANY || r->cmos[alarm] == encoded;
}

/* The first second after @after at which the alarm goes off; 0: never. */
static u64 next_alarm(const struct rtc *r, u64 after)
{
	u64 t = after + 1;

	/* At worst 24 steps to the hour, 60 to the minute, 60 to the second, twice over midnight.
	 */
	for (u32 step = 0; step < 2 * (24 + 60 + 60); step++) {
		u32 sod = (u32)(t % DAY);

		if (!alarm_matches(r, HOURS_ALARM, encode_hour(r, sod / 3600)))
			t += 3600 - sod % 3600;
		else if (!alarm_matches(r, MINUTES_ALARM, encode(r, sod / 60 % 60)))
			t += 60 - sod % 60;
		else if (!alarm_matches(r, SECONDS_ALARM, encode(r, sod % 60)))
			t++;
		else
			return t;
	}
	return 0;
}

static u64 ticks_of(u64 ns)
{
	return (u64)((unsigned __int128)ns * TICK_HZ / SECOND_NS);
}

static u64 ns_of(u64 ticks)
{
	return (u64)(((unsigned __int128)ticks * SECOND_NS + TICK_HZ - 1) / TICK_HZ);
}

/* Ticks of 1/32768 s between periodic interrupts; 0: none. */
static u64 period(const struct rtc *r)
{
	u32 rate = r->cmos[REG_A] & 15;

	if (!rate)
		return 0;
	return BIT((rate <= 2 ? rate + 7 : rate) - 1);
}

static void advance(struct rtc *r)
{
	u64 now = guest_now(r), seen = MIN(r->seen_ns, now), p = period(r), alarm;
	u8 flags = r->cmos[REG_C] & FLAGS;

	if (p && ticks_of(now) / p > ticks_of(seen) / p)
		flags |= C_PF;
	if (!(r->cmos[REG_B] & B_SET) && now / SECOND_NS > seen / SECOND_NS) {
		flags |= C_UF;
		alarm = next_alarm(r, seen / SECOND_NS);
		if (alarm && alarm <= now / SECOND_NS)
			flags |= C_AF;
	}
	r->seen_ns = now;
	r->cmos[REG_C] = flags;
}

/* The moment in guest time of the next enabled interrupt; ~0: none. */
static u64 next_event(const struct rtc *r)
{
	u64 now = r->seen_ns, p = period(r), event = ~0ul, alarm;
	u8 enabled = r->cmos[REG_B];

	if (enabled & C_PF && p)
		event = ns_of((ticks_of(now) / p + 1) * p);
	if (enabled & B_SET)
		return event;
	if (enabled & C_UF)
		event = MIN(event, (now / SECOND_NS + 1) * SECOND_NS);
	alarm = enabled & C_AF ? next_alarm(r, now / SECOND_NS) : 0;
	if (alarm)
		event = MIN(event, alarm * SECOND_NS);
	return event;
}

/* After advance(): drive the line, and arm the timer while it is low. */
static void update(struct rtc *r)
{
	bool level = r->cmos[REG_C] & r->cmos[REG_B] & FLAGS;
	u64 event = next_event(r);

	if (level)
		r->cmos[REG_C] |= C_IRQF;
	if (level != r->irq_level) {
		r->irq_level = level;
		irq_set(r->irq, level);
	}
	if (level || event == ~0ul)
		loop_timer_cancel(r->loop, &r->timer);
	else
		loop_timer_arm(r->loop, &r->timer, event - r->offset_ns);
}

static void rtc_fire(void *opaque)
{
	struct rtc *r = opaque;

	pthread_mutex_lock(r->machine_lock);
	advance(r);
	update(r);
	pthread_mutex_unlock(r->machine_lock);
}

/* Access ------------------------------------------------------------------ */

static u8 read_a(const struct rtc *r)
{
	bool updating = !(r->cmos[REG_B] & B_SET) && guest_now(r) % SECOND_NS >= SECOND_NS - UIP_NS;

	return (r->cmos[REG_A] & ~A_UIP) | (updating ? A_UIP : 0);
}

static u8 read_c(struct rtc *r)
{
	u8 value;

	advance(r);
	update(r);
	value = r->cmos[REG_C];
	r->cmos[REG_C] = 0;
	update(r);
	return value;
}

static u8 read_cmos(struct rtc *r, u32 at)
{
	switch (at) {
	case REG_A: return read_a(r);
	case REG_C: return read_c(r);
	case REG_D: return D_VALID;
	}
	if (is_time_register(at) && !(r->cmos[REG_B] & B_SET))
		encode_time(r);
	return r->cmos[at];
}

static void write_b(struct rtc *r, u8 value)
{
	bool was_set = r->cmos[REG_B] & B_SET, set = value & B_SET;

	if (set && !was_set)
		encode_time(r);
	/* MC146818A: SET clears UIE. */
	r->cmos[REG_B] = set ? value & ~B_UIE : value;
	/* The first update comes half a second after the start; Linux sets its clock by that. */
	if (was_set && !set)
		decode_time(r, SECOND_NS / 2);
}

static void write_time(struct rtc *r, u32 at, u8 value)
{
	u64 fraction = guest_now(r) % SECOND_NS;

	if (r->cmos[REG_B] & B_SET) {
		r->cmos[at] = value;
		return;
	}
	encode_time(r);
	r->cmos[at] = value;
	decode_time(r, fraction);
}

static void write_cmos(struct rtc *r, u32 at, u8 value)
{
	if (at >= FIRST_MEMORY && at != RTC_CENTURY) {
		r->cmos[at] = value;
		return;
	}
	advance(r);
	if (at == REG_B)
		write_b(r, value);
	else if (at == REG_A)
		r->cmos[at] = value & ~A_UIP;
	else if (is_time_register(at))
		write_time(r, at, value);
	else if (at < REG_A)
		r->cmos[at] = value; /* an alarm */
	update(r);
}

static u64 rtc_read(void *dev, u64 off, u32 size)
{
	struct rtc *r = dev;

	(void)size;
	return off ? read_cmos(r, r->index) : 0xff;
}

static void rtc_write(void *dev, u64 off, u32 size, u64 value)
{
	struct rtc *r = dev;

	(void)size;
	if (off)
		write_cmos(r, r->index, (u8)value);
	else
		r->index = value & (RTC_CMOS_SIZE - 1);
}

static const struct bus_ops rtc_bus_ops = {
	.read = rtc_read, .write = rtc_write, .min = 1, .max = 1};

/* State ------------------------------------------------------------------- */

/* The battery keeps time and memory; the reset pin clears the interrupt enables and flags. */
static void rtc_reset(void *dev)
{
	struct rtc *r = dev;

	r->index = 0;
	r->cmos[REG_A] = A_DIVIDER_32K | A_RATE_1024;
	r->cmos[REG_B] = B_24H;
	r->cmos[REG_C] = 0;
	r->seen_ns = guest_now(r);
	update(r);
}

static void rtc_saving(void *dev)
{
	struct rtc *r = dev;

	advance(r);
	update(r);
	r->utc_ns = guest_now(r);
	if (!(r->cmos[REG_B] & B_SET))
		encode_time(r);
}

static int rtc_loaded(void *dev, struct err *e)
{
	struct rtc *r = dev;

	(void)e;
	r->offset_ns = r->utc_ns - host_clock_ns();
	r->seen_ns = MIN(r->seen_ns, r->utc_ns);
	advance(r);
	update(r);
	return 0;
}

static const struct field rtc_fields[] = {
	FIELD_ARRAY(FIELD_BYTES, struct rtc, cmos),
	FIELD_MAX(FIELD_U8, struct rtc, index, RTC_CMOS_SIZE - 1),
	FIELD(FIELD_U64, struct rtc, utc_ns),
	FIELD(FIELD_U64, struct rtc, seen_ns),
};

const struct device_ops rtc_ops = {
	.name = "mc146818",
	.reset = rtc_reset,
	.state = {.field = rtc_fields,
		  .count = ARRAY_SIZE(rtc_fields),
		  .version = 1,
		  .saving = rtc_saving,
		  .loaded = rtc_loaded},
};

int rtc_init(struct rtc *rtc, struct bus *bus, struct irq_line irq, u64 utc_ns, struct loop *loop,
	     pthread_mutex_t *machine_lock, struct err *e)
{
	const struct bus_region ports = {"mc146818", RTC_PORT, 2, &rtc_bus_ops, rtc};
	int rc;

	memset(rtc, 0, sizeof(*rtc));
	rtc->offset_ns = utc_ns - host_clock_ns();
	rtc->irq = irq;
	rtc->loop = loop;
	rtc->machine_lock = machine_lock;
	rtc->timer = (struct loop_timer){.fire = rtc_fire, .opaque = rtc};
	rtc_reset(rtc);
	rc = bus_add(bus, BUS_PORT, &ports);
	return rc ? err_set(e, rc, "mc146818: cannot place its ports") : 0;
}

void rtc_destroy(struct rtc *rtc)
{
	loop_timer_cancel(rtc->loop, &rtc->timer);
}

void rtc_set_cmos(struct rtc *rtc, u8 at, u8 value)
{
	assert(at >= FIRST_MEMORY && at < RTC_CMOS_SIZE);
	rtc->cmos[at] = value;
}

static void set_cmos16(struct rtc *rtc, u8 at, u64 value)
{
	rtc_set_cmos(rtc, at, (u8)value);
	rtc_set_cmos(rtc, at + 1, (u8)(value >> 8));
}

void rtc_set_memory(struct rtc *rtc, u64 below, u64 above)
{
	u64 extended = below > MIB ? below - MIB : 0;
	u64 over_16m = below > 16 * MIB ? below - 16 * MIB : 0;
	u64 chunks = MIN(above / (64 * KIB), 0xfffffful);

	set_cmos16(rtc, RTC_CMOS_BASE_MEMORY, 640);
	set_cmos16(rtc, RTC_CMOS_EXTENDED_MEMORY, MIN(extended / KIB, 0xfffful));
	set_cmos16(rtc, RTC_CMOS_EXTENDED_MEMORY_2, MIN(extended / KIB, 0xfffful));
	set_cmos16(rtc, RTC_CMOS_ABOVE_16M, MIN(over_16m / (64 * KIB), 0xfffful));
	set_cmos16(rtc, RTC_CMOS_ABOVE_4G, chunks);
	rtc_set_cmos(rtc, RTC_CMOS_ABOVE_4G + 2, (u8)(chunks >> 16));
}
