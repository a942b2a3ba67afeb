/* Unit tests of device/chip/uart.c; names follow the PC16550D datasheet. */
#include "chip_test.h"
#include "device/chip/uart.h"

#include <string.h>

enum { BASE = 0x3f8 };

struct machine {
	struct bus bus;
	struct uart uart;
	struct wire wire;
	struct chardev chardev;
	u8 out[4096];
	u32 out_count, kicks;
};

static void chardev_write(struct chardev *c, const u8 *data, u32 len)
{
	struct machine *m = container_of(c, struct machine, chardev);

	for (u32 i = 0; i < len; i++)
		m->out[m->out_count++ % sizeof(m->out)] = data[i];
}

static void chardev_kick(struct chardev *c)
{
	container_of(c, struct machine, chardev)->kicks++;
}

static void chardev_close(struct chardev *c)
{
	(void)c;
}

static const struct chardev_ops chardev_ops = {"test", chardev_write, chardev_kick, chardev_close};

static void setup(struct machine *m)
{
	memset(m, 0, sizeof(*m));
	clock_start(1);
	bus_init(&m->bus);
	m->chardev.ops = &chardev_ops;
	assert_int_equal(uart_init(&m->uart, &m->bus, BASE, wire_line(&m->wire, 4), &m->chardev,
				   &test_lock, NULL),
			 0);
}

static u8 in(struct machine *m, u32 reg)
{
	return inb(&m->bus, (u16)(BASE + reg));
}

static void out(struct machine *m, u32 reg, u8 value)
{
	outb(&m->bus, (u16)(BASE + reg), value);
}

static u32 room(struct machine *m)
{
	return m->chardev.front.room(m->chardev.front.opaque);
}

static void receive(struct machine *m, const char *text)
{
	m->chardev.front.receive(m->chardev.front.opaque, (const u8 *)text, (u32)strlen(text));
}

static void transmits_at_once(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(in(&m, 5), 0x60);
	out(&m, 0, 'h');
	out(&m, 0, 'i');
	assert_int_equal(m.out_count, 2);
	assert_memory_equal(m.out, "hi", 2);
	assert_int_equal(in(&m, 5), 0x60);
	bus_destroy(&m.bus);
}

/* The steps of Linux's autoconfig(). */
static void linux_autoconfig(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 1, 0);
	assert_int_equal(in(&m, 1) & 0x0f, 0);
	out(&m, 1, 0x0f);
	assert_int_equal(in(&m, 1), 0x0f);
	out(&m, 1, 0);
	out(&m, 4, 0x10 | 0x0a);
	assert_int_equal(in(&m, 6) & 0xf0, 0x90);
	out(&m, 4, 0);
	out(&m, 2, 0x01);
	assert_int_equal(in(&m, 2) >> 6, 3);
	out(&m, 7, 0x5a);
	assert_int_equal(in(&m, 7), 0x5a);
	out(&m, 3, 0x80);
	out(&m, 0, 1);
	out(&m, 1, 2);
	assert_int_equal(in(&m, 0), 1);
	assert_int_equal(in(&m, 1), 2);
	out(&m, 3, 0x03);
	assert_int_equal(in(&m, 1), 0);
	assert_int_equal(m.out_count, 0);
	bus_destroy(&m.bus);
}

/* Linux's serial8250_do_startup(): enabling THRI twice must interrupt twice. */
static void transmitter_empty_interrupt(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 4, 0x08);
	for (u32 i = 0; i < 2; i++) {
		out(&m, 1, 0x02);
		assert_true(m.wire.level[4]);
		assert_int_equal(in(&m, 2), 0x02);
		assert_int_equal(in(&m, 2), 0x01);
		assert_false(m.wire.level[4]);
		out(&m, 1, 0);
	}
	out(&m, 1, 0x02);
	in(&m, 2);
	out(&m, 0, 'x');
	assert_true(m.wire.level[4]);
	assert_int_equal(m.wire.edges[4], 4);
	bus_destroy(&m.bus);
}

static void out2_gates_the_interrupt(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 1, 0x02);
	assert_false(m.wire.level[4]);
	out(&m, 4, 0x08);
	assert_true(m.wire.level[4]);
	bus_destroy(&m.bus);
}

static void receive_without_fifo(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 4, 0x08);
	out(&m, 1, 0x01);
	assert_int_equal(room(&m), 1);
	receive(&m, "a");
	assert_int_equal(room(&m), 0);
	assert_true(m.wire.level[4]);
	assert_int_equal(in(&m, 2), 0x04);
	assert_int_equal(in(&m, 5), 0x61);
	assert_int_equal(in(&m, 0), 'a');
	assert_false(m.wire.level[4]);
	assert_int_equal(m.kicks, 1);
	assert_int_equal(in(&m, 0), 0);
	bus_destroy(&m.bus);
}

static void receive_fifo_and_trigger_levels(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 4, 0x08);
	out(&m, 2, 0x81); /* trigger at 8 */
	out(&m, 1, 0x05);
	assert_int_equal(room(&m), 16);
	receive(&m, "1234567");
	assert_int_equal(in(&m, 2), 0xcc); /* time-out */
	receive(&m, "8");
	assert_int_equal(in(&m, 2), 0xc4);
	receive(&m, "90abcdef");
	assert_int_equal(room(&m), 0);
	receive(&m, "overrun");
	assert_int_equal(in(&m, 2), 0xc6);
	assert_int_equal(in(&m, 5), 0x63);
	assert_int_equal(in(&m, 5), 0x61);
	for (const char *p = "1234567890abcdef"; *p; p++)
		assert_int_equal(in(&m, 0), *p);
	assert_int_equal(in(&m, 5), 0x60);
	assert_int_equal(m.kicks, 1);
	assert_int_equal(in(&m, 2), 0xc1);
	bus_destroy(&m.bus);
}

static void fifo_control_clears_the_fifo(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 2, 0x01);
	receive(&m, "abc");
	out(&m, 2, 0x03);
	assert_int_equal(in(&m, 5), 0x60);
	assert_int_equal(room(&m), 16);
	receive(&m, "abc");
	out(&m, 2, 0x00);
	assert_int_equal(in(&m, 5), 0x60);
	assert_int_equal(room(&m), 1);
	bus_destroy(&m.bus);
}

static void loop_back(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	out(&m, 2, 0x01);
	out(&m, 4, 0x10);
	assert_int_equal(room(&m), 0);
	out(&m, 0, 'z');
	assert_int_equal(m.out_count, 0);
	assert_int_equal(in(&m, 0), 'z');
	out(&m, 4, 0x00);
	assert_int_equal(room(&m), 16);
	assert_true(m.kicks > 0);
	bus_destroy(&m.bus);
}

static void modem_status_deltas(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(in(&m, 6), 0xb0);
	out(&m, 4, 0x10);
	assert_int_equal(in(&m, 6), 0x0b);
	assert_int_equal(in(&m, 6), 0x00);
	out(&m, 4, 0x14); /* ring indicator on */
	assert_int_equal(in(&m, 6), 0x40);
	out(&m, 4, 0x10);
	assert_int_equal(in(&m, 6), 0x04);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	setup(&m);
	setup(&n);
	for (u32 i = 0; i < 300000; i++) {
		u32 r = random32();

		if (r & 1)
			out(&m, r >> 4 & 7, (u8)(r >> 8));
		else if (r & 2)
			in(&m, r >> 4 & 7);
		else
			receive(&m, &"0123456789abcdefghij"[r >> 8 & 15]);
		assert_true(room(&m) <= 16);
	}
	check_state(&uart_ops, &m.uart, &n.uart);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(transmits_at_once),
		cmocka_unit_test(linux_autoconfig),
		cmocka_unit_test(transmitter_empty_interrupt),
		cmocka_unit_test(out2_gates_the_interrupt),
		cmocka_unit_test(receive_without_fifo),
		cmocka_unit_test(receive_fifo_and_trigger_levels),
		cmocka_unit_test(fifo_control_clears_the_fifo),
		cmocka_unit_test(loop_back),
		cmocka_unit_test(modem_status_deltas),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
