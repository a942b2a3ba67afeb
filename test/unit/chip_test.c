#include "chip_test.h"

#include <stdlib.h>
#include <string.h>

enum { TIMERS = 128 };

static struct {
	u64 now;
	struct loop_timer *timer[TIMERS];
	u32 count;
} fake;

pthread_mutex_t test_lock = PTHREAD_MUTEX_INITIALIZER;

u64 host_clock_ns(void)
{
	return fake.now;
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *t)
{
	(void)loop;
	for (u32 i = 0; i < fake.count; i++) {
		if (fake.timer[i] != t)
			continue;
		fake.timer[i] = fake.timer[--fake.count];
		return;
	}
}

void loop_timer_arm(struct loop *loop, struct loop_timer *t, u64 deadline_ns)
{
	loop_timer_cancel(loop, t);
	assert_true(fake.count < TIMERS);
	t->deadline_ns = deadline_ns;
	fake.timer[fake.count++] = t;
}

void clock_start(u64 ns)
{
	fake.now = ns;
	fake.count = 0;
}

static struct loop_timer *earliest(void)
{
	struct loop_timer *t = NULL;

	for (u32 i = 0; i < fake.count; i++)
		if (!t || fake.timer[i]->deadline_ns < t->deadline_ns)
			t = fake.timer[i];
	return t;
}

void clock_advance(u64 ns)
{
	u64 end = fake.now + ns;
	u32 fired = 0;

	for (struct loop_timer *t; (t = earliest()) && t->deadline_ns <= end;) {
		/* A device that re-arms into the past for ever would hang the event loop. */
		assert_true(fired++ < 10000000);
		if (t->deadline_ns > fake.now)
			fake.now = t->deadline_ns;
		loop_timer_cancel(NULL, t);
		t->fire(t->opaque);
	}
	fake.now = end;
}

u32 clock_timers(void)
{
	return fake.count;
}

static void wire_set(void *opaque, u32 pin, bool level)
{
	struct wire *w = opaque;

	w->edges[pin] += level && !w->level[pin];
	w->level[pin] = level;
}

struct irq_line wire_line(struct wire *w, u32 pin)
{
	return (struct irq_line){.set = wire_set, .opaque = w, .pin = pin};
}

u8 inb(struct bus *bus, u16 port)
{
	return (u8)bus_read(bus, BUS_PORT, port, 1);
}

void outb(struct bus *bus, u16 port, u8 value)
{
	bus_write(bus, BUS_PORT, port, 1, value);
}

u16 inw(struct bus *bus, u16 port)
{
	return (u16)bus_read(bus, BUS_PORT, port, 2);
}

void outw(struct bus *bus, u16 port, u16 value)
{
	bus_write(bus, BUS_PORT, port, 2, value);
}

u32 inl(struct bus *bus, u16 port)
{
	return (u32)bus_read(bus, BUS_PORT, port, 4);
}

void outl(struct bus *bus, u16 port, u32 value)
{
	bus_write(bus, BUS_PORT, port, 4, value);
}

u32 random32(void)
{
	static u64 state = 0x9e3779b97f4a7c15;

	state = state * 6364136223846793005ul + 1442695040888963407ul;
	return (u32)(state >> 32);
}

/* Load what differs from @form in a few random bytes; whatever comes of it must be survivable. */
static void check_damaged_forms(const struct device_ops *ops, const struct device_buf *form,
				void *to)
{
	u8 *damaged;
	u64 used;

	if (!form->len) {
		fail_msg("%s has no state", ops->name);
		return;
	}
	damaged = malloc(form->len);
	assert_non_null(damaged);
	for (u32 i = 0; i < 2000; i++) {
		struct device_buf again = {0};

		memcpy(damaged, form->data, form->len);
		for (u32 k = 0; k < 4; k++)
			damaged[random32() % form->len] = (u8)random32();
		device_load(ops, to, damaged, form->len, &used, NULL);
		assert_int_equal(device_save(ops, to, &again), 0);
		device_buf_free(&again);
		if (i % 16 == 0)
			clock_advance(1000000);
	}
	free(damaged);
}

void check_state(const struct device_ops *ops, void *from, void *to)
{
	struct device_buf form = {0}, again = {0};
	struct err e = {0};
	u64 used = 0;

	assert_int_equal(device_save(ops, from, &form), 0);
	assert_int_equal(device_load(ops, to, form.data, form.len, &used, &e), 0);
	assert_int_equal(used, form.len);
	assert_true(device_equal(ops, from, to));
	assert_int_equal(device_save(ops, to, &again), 0);
	assert_int_equal(again.len, form.len);
	assert_memory_equal(again.data, form.data, form.len);
	for (u64 len = 0; len < form.len; len++) {
		assert_int_not_equal(device_load(ops, to, form.data, len, &used, &e), 0);
		assert_true(device_equal(ops, from, to));
	}
	check_damaged_forms(ops, &form, to);
	device_reset(ops, to);
	device_buf_free(&form);
	device_buf_free(&again);
}
