/*
 * Theory of operation
 *
 * "Elapsed" is the number of input clocks since a counter was loaded: from start_ns while it runs,
 * frozen while it does not. Value and output level are functions of mode, count and elapsed. A
 * counter whose gate never triggered it (modes 1 and 5) is frozen at UNTRIGGERED, beyond any
 * terminal count.
 *
 * Channel 0's rising edges are delivered from the event loop's timer. Edges that come faster than
 * MIN_PERIOD_NS are merged: a guest that asks for a million interrupts per second shall not keep
 * the event loop busy.
 */
#include "device/chip/pit.h"

#include <errno.h>
#include <string.h>

enum {
	PIT_PORT = 0x40,
	PORT61 = 0x61,
	CONTROL = 3, /* offset of the control word register */
	ACCESS_LSB = 1,
	ACCESS_MSB = 2,
	ACCESS_BOTH = 3,
	READ_BACK = 3,
	READ_BACK_NOT_COUNT = 1 << 5,
	READ_BACK_NOT_STATUS = 1 << 4,
	COUNT_MAX = 0x10000,
	COUNT_MAX_BCD = 10000,
	UNTRIGGERED = 2 * COUNT_MAX,
	MIN_PERIOD_NS = 50000,

	PORT61_GATE2 = 1 << 0,
	PORT61_WRITABLE = 0x0f,
	PORT61_REFRESH = 1 << 4,
	PORT61_OUT2 = 1 << 5,
	REFRESH_TOGGLE_NS = 15085,
};

static u64 ticks_of(u64 ns)
{
	return (u64)((unsigned __int128)ns * PIT_HZ / 1000000000u);
}

/* Rounded up, so that ticks_of(ns_of(t)) >= t. */
static u64 ns_of(u64 ticks)
{
	return (u64)(((unsigned __int128)ticks * 1000000000u + PIT_HZ - 1) / PIT_HZ);
}

static bool is_periodic(const struct pit_channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

static u64 elapsed(const struct pit_channel *c, u64 now)
{
	return c->running ? ticks_of(now - c->start_ns) : c->frozen;
}

static void start(struct pit_channel *c, u64 now)
{
	c->start_ns = now;
	c->running = true;
}

static void stop(struct pit_channel *c, u64 at)
{
	c->frozen = at;
	c->running = false;
}

static bool output(const struct pit_channel *c, u64 now)
{
	u64 t = elapsed(c, now);

	if (!c->loaded)
		return c->mode != 0;
	switch (c->mode) {
	case 0:
	case 1: return t >= c->count;
	case 2: return !c->running || t % c->count != c->count - 1u;
	case 3: return !c->running || t % c->count < (c->count + 1u) / 2;
	default: return t != c->count;
	}
}

static u16 to_bcd(u32 v)
{
	return (u16)(v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12);
}

static u32 from_bcd(u16 v)
{
	return (v & 15) + (v >> 4 & 15) * 10u + (v >> 8 & 15) * 100u + (v >> 12) * 1000u;
}

/* The counting element as a read sees it. */
static u16 counter(const struct pit_channel *c, u64 now)
{
	u32 wrap = c->bcd ? COUNT_MAX_BCD : COUNT_MAX;
	u64 t = elapsed(c, now);
	u32 v;

	switch (c->mode) {
	case 2: v = c->count - (u32)(t % c->count); break;
	case 3: v = c->count - (u32)(2 * t % c->count); break;
	default: v = (c->count + wrap - (u32)(t % wrap)) % wrap; break;
	}
	return c->bcd ? to_bcd(v) : (u16)v;
}

/* Ticks after start_ns of the first rising edge later than @after; 0 when there will be none. */
static u64 next_edge(const struct pit_channel *c, u64 after)
{
	u64 edge = c->count + (c->mode == 4 || c->mode == 5 ? 1u : 0u);

	if (is_periodic(c))
		return (after / c->count + 1) * c->count;
	return edge > after ? edge : 0;
}

static void pit_arm(struct pit *pit, u64 not_before)
{
	const struct pit_channel *c = &pit->channel[0];
	u64 edge = c->running ? next_edge(c, pit->fired) : 0;
	u64 deadline = c->start_ns + ns_of(edge);

	if (edge)
		loop_timer_arm(pit->loop, &pit->timer, MAX(deadline, not_before));
	else
		loop_timer_cancel(pit->loop, &pit->timer);
}

/* Interrupt for channel 0's edges up to @now, merged into one. True when there was one. */
static bool deliver_edges(struct pit *pit, u64 now)
{
	const struct pit_channel *c = &pit->channel[0];
	u64 edge = c->running ? next_edge(c, pit->fired) : 0;

	if (!edge || elapsed(c, now) < edge)
		return false;
	pit->fired = elapsed(c, now);
	irq_set(pit->irq, false);
	irq_set(pit->irq, true);
	return true;
}

/* Let a count that waited for the end of the period take effect. */
static void reload(struct pit *pit, struct pit_channel *c, u64 now)
{
	if (!c->pending || !c->running || elapsed(c, now) < c->count)
		return;
	if (c == &pit->channel[0]) {
		deliver_edges(pit, now);
		pit->fired = 0;
	}
	c->start_ns += ns_of(c->count);
	c->count = c->pending;
	c->pending = 0;
}

static void pit_fire(void *opaque)
{
	struct pit *pit = opaque;
	bool delivered;
	u64 now;

	pthread_mutex_lock(pit->machine_lock);
	now = host_clock_ns();
	delivered = deliver_edges(pit, now);
	reload(pit, &pit->channel[0], now);
	pit_arm(pit, delivered ? now + MIN_PERIOD_NS : now);
	pthread_mutex_unlock(pit->machine_lock);
}

/* Access ------------------------------------------------------------------ */

static void load_count(struct pit *pit, struct pit_channel *c, u16 value, u64 now)
{
	u32 count = c->bcd ? from_bcd(value) : value;

	if (!count)
		count = c->bcd ? COUNT_MAX_BCD : COUNT_MAX;
	if (is_periodic(c) && c->loaded && c->running) {
		/* Start from the latest reload, so that the next one is @count ticks after it. */
		if (c == &pit->channel[0]) {
			deliver_edges(pit, now);
			pit->fired = 0;
		}
		c->start_ns += ns_of(elapsed(c, now) / c->count * c->count);
		c->pending = count;
		return;
	}
	c->count = count;
	c->loaded = true;
	if (c == &pit->channel[0])
		pit->fired = 0;
	if (c->mode == 1 || c->mode == 5)
		return; /* waits for a trigger */
	if (c->gate)
		start(c, now);
	else
		stop(c, 0);
}

static void write_count(struct pit *pit, u32 n, u8 value)
{
	struct pit_channel *c = &pit->channel[n];
	u64 now = host_clock_ns();

	if (c->access == ACCESS_BOTH && !c->write_high) {
		c->write_low = value;
		c->write_high = true;
		/* In mode 0 the first byte stops counting and sets the output low. */
		if (c->mode == 0)
			stop(c, 0);
	} else if (c->access == ACCESS_BOTH) {
		c->write_high = false;
		load_count(pit, c, (u16)(value << 8 | c->write_low), now);
	} else {
		load_count(pit, c, (u16)(c->access == ACCESS_MSB ? value << 8 : value), now);
	}
	if (n == 0 && c->mode == 0)
		irq_set(pit->irq, false);
	if (n == 0)
		pit_arm(pit, now);
}

static void latch_count(struct pit_channel *c, u64 now)
{
	if (c->latched)
		return;
	c->latched_count = counter(c, now);
	c->latched = c->access == ACCESS_BOTH ? 2 : 1;
}

static void latch_status(struct pit_channel *c, u64 now)
{
	bool null_count = !c->loaded || c->pending;

	if (c->status_latched)
		return;
	c->status = (u8)(output(c, now) << 7 | null_count << 6 | c->access << 4 | c->mode << 1 |
			 c->bcd);
	c->status_latched = true;
}

static void read_back(struct pit *pit, u8 value)
{
	u64 now = host_clock_ns();

	for (u32 n = 0; n < 3; n++) {
		struct pit_channel *c = &pit->channel[n];

		if (!(value & 2u << n))
			continue;
		reload(pit, c, now);
		if (!(value & READ_BACK_NOT_COUNT))
			latch_count(c, now);
		if (!(value & READ_BACK_NOT_STATUS))
			latch_status(c, now);
	}
}

static void write_control(struct pit *pit, u8 value)
{
	struct pit_channel *c;
	u32 n = value >> 6, access = value >> 4 & 3, mode = value >> 1 & 7;

	if (n == READ_BACK) {
		read_back(pit, value);
		return;
	}
	c = &pit->channel[n];
	if (!access) {
		reload(pit, c, host_clock_ns());
		latch_count(c, host_clock_ns());
		return;
	}
	*c = (struct pit_channel){
		.count = c->count,
		.mode = (u8)(mode > 5 ? mode - 4 : mode),
		.access = (u8)access,
		.bcd = value & 1,
		.gate = c->gate,
		.frozen = UNTRIGGERED,
	};
	if (n == 0) {
		irq_set(pit->irq, c->mode != 0);
		pit_arm(pit, 0);
	}
}

static u8 read_count(struct pit *pit, u32 n)
{
	struct pit_channel *c = &pit->channel[n];
	u64 now = host_clock_ns();
	bool high;
	u16 v;

	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	reload(pit, c, now);
	v = c->latched ? c->latched_count : counter(c, now);
	high = c->access == ACCESS_MSB || (c->access == ACCESS_BOTH && c->read_high);
	if (c->access == ACCESS_BOTH)
		c->read_high = !c->read_high;
	if (c->latched)
		c->latched--;
	return (u8)(high ? v >> 8 : v);
}

static u64 pit_read(void *dev, u64 off, u32 size)
{
	(void)size;
	return off == CONTROL ? 0xff : read_count(dev, (u32)off);
}

static void pit_write(void *dev, u64 off, u32 size, u64 value)
{
	(void)size;
	if (off == CONTROL)
		write_control(dev, (u8)value);
	else
		write_count(dev, (u32)off, (u8)value);
}

static void set_gate(struct pit_channel *c, bool gate, u64 now)
{
	bool rising = gate && !c->gate, falling = !gate && c->gate;

	c->gate = gate;
	if (!c->loaded || (!rising && !falling))
		return;
	if (c->mode == 0 || c->mode == 4) {
		if (falling)
			stop(c, elapsed(c, now));
		else
			start(c, now - ns_of(c->frozen));
	} else if (rising) {
		start(c, now);
	} else if (is_periodic(c)) {
		stop(c, 0);
	}
}

static u64 port61_read(void *dev, u64 off, u32 size)
{
	struct pit *pit = dev;
	u64 now = host_clock_ns();
	u8 value = pit->port61;

	(void)off;
	(void)size;
	reload(pit, &pit->channel[2], now);
	if (now / REFRESH_TOGGLE_NS & 1)
		value |= PORT61_REFRESH;
	if (output(&pit->channel[2], now))
		value |= PORT61_OUT2;
	return value;
}

static void port61_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pit *pit = dev;

	(void)off;
	(void)size;
	pit->port61 = (u8)value & PORT61_WRITABLE;
	set_gate(&pit->channel[2], value & PORT61_GATE2, host_clock_ns());
}

static const struct bus_ops pit_bus_ops = {
	.read = pit_read, .write = pit_write, .min = 1, .max = 1};
static const struct bus_ops port61_ops = {
	.read = port61_read, .write = port61_write, .min = 1, .max = 1};

/* State ------------------------------------------------------------------- */

static void pit_reset(void *dev)
{
	struct pit *pit = dev;

	for (u32 n = 0; n < 3; n++)
		pit->channel[n] = (struct pit_channel){
			.count = COUNT_MAX,
			.mode = 3,
			.access = ACCESS_BOTH,
			.gate = n != 2,
		};
	pit->port61 = 0;
	pit->fired = 0;
	loop_timer_cancel(pit->loop, &pit->timer);
}

static void pit_saving(void *dev)
{
	struct pit *pit = dev;
	u64 now = host_clock_ns();

	for (u32 n = 0; n < 3; n++) {
		struct pit_channel *c = &pit->channel[n];

		c->age_ns = c->running ? now - c->start_ns : 0;
	}
}

static int pit_loaded(void *dev, struct err *e)
{
	struct pit *pit = dev;
	u64 now = host_clock_ns();

	for (u32 n = 0; n < 3; n++) {
		struct pit_channel *c = &pit->channel[n];

		if (!c->count)
			return err_set(e, -EINVAL, "8254: channel %u has no count", n);
		c->start_ns = now - c->age_ns;
	}
	pit_arm(pit, now);
	return 0;
}

static const struct field pit_fields[] = {
	FIELD_EACH_MAX(FIELD_U32, struct pit, channel, count, COUNT_MAX),
	FIELD_EACH_MAX(FIELD_U32, struct pit, channel, pending, COUNT_MAX),
	FIELD_EACH_MAX(FIELD_U8, struct pit, channel, mode, 5),
	FIELD_EACH_MAX(FIELD_U8, struct pit, channel, access, 3),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, bcd),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, loaded),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, gate),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, running),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, write_high),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, read_high),
	FIELD_EACH(FIELD_U8, struct pit, channel, write_low),
	FIELD_EACH_MAX(FIELD_U8, struct pit, channel, latched, 2),
	FIELD_EACH(FIELD_U16, struct pit, channel, latched_count),
	FIELD_EACH(FIELD_BOOL, struct pit, channel, status_latched),
	FIELD_EACH(FIELD_U8, struct pit, channel, status),
	FIELD_EACH(FIELD_U64, struct pit, channel, age_ns),
	FIELD_EACH(FIELD_U64, struct pit, channel, frozen),
	FIELD(FIELD_U8, struct pit, port61),
	FIELD(FIELD_U64, struct pit, fired),
};

const struct device_ops pit_ops = {
	.name = "8254",
	.reset = pit_reset,
	.state = {.field = pit_fields,
		  .count = ARRAY_SIZE(pit_fields),
		  .version = 1,
		  .saving = pit_saving,
		  .loaded = pit_loaded},
};

int pit_init(struct pit *pit, struct bus *bus, struct irq_line irq, struct loop *loop,
	     pthread_mutex_t *machine_lock, struct err *e)
{
	const struct bus_region ports = {"8254", PIT_PORT, 4, &pit_bus_ops, pit};
	const struct bus_region port61 = {"port 61", PORT61, 1, &port61_ops, pit};
	int rc;

	memset(pit, 0, sizeof(*pit));
	pit->irq = irq;
	pit->loop = loop;
	pit->machine_lock = machine_lock;
	pit->timer = (struct loop_timer){.fire = pit_fire, .opaque = pit};
	pit_reset(pit);
	rc = bus_add(bus, BUS_PORT, &ports);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &port61);
	return rc ? err_set(e, rc, "8254: cannot place its ports") : 0;
}

void pit_destroy(struct pit *pit)
{
	loop_timer_cancel(pit->loop, &pit->timer);
}
