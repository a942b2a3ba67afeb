/* Unit tests of device/chip/i8042.c. */
#include "chip_test.h"
#include "device/chip/i8042.h"

#include <string.h>

struct machine {
	struct bus bus;
	struct i8042 k;
	struct wire wire;
	u32 resets, a20_changes;
	bool a20;
};

static void reset(void *opaque)
{
	((struct machine *)opaque)->resets++;
}

static void a20(void *opaque, bool on)
{
	struct machine *m = opaque;

	m->a20 = on;
	m->a20_changes++;
}

static void setup(struct machine *m)
{
	struct i8042_config config = {.reset = reset, .a20 = a20, .opaque = m};

	memset(m, 0, sizeof(*m));
	clock_start(1);
	bus_init(&m->bus);
	config.keyboard = wire_line(&m->wire, 1);
	config.mouse = wire_line(&m->wire, 12);
	assert_int_equal(i8042_init(&m->k, &m->bus, &config, NULL), 0);
}

/* The next byte, which must be there; @aux says whether it comes from the mouse. */
static u8 next(struct machine *m, bool aux)
{
	u8 status = inb(&m->bus, 0x64);

	assert_int_equal(status & 0x21, aux ? 0x21 : 0x01);
	return inb(&m->bus, 0x60);
}

static bool is_empty(struct machine *m)
{
	return !(inb(&m->bus, 0x64) & 1);
}

static void command(struct machine *m, u8 value)
{
	outb(&m->bus, 0x64, value);
}

static void to_aux(struct machine *m, u8 value)
{
	command(m, 0xd4);
	outb(&m->bus, 0x60, value);
}

static void controller_tests(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_true(is_empty(&m));
	command(&m, 0xaa);
	assert_int_equal(next(&m, false), 0x55);
	command(&m, 0xab);
	assert_int_equal(next(&m, false), 0);
	command(&m, 0xa9);
	assert_int_equal(next(&m, false), 0);
	assert_true(is_empty(&m));
	bus_destroy(&m.bus);
}

static void command_byte(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	command(&m, 0x20);
	assert_int_equal(next(&m, false), 0x65);
	command(&m, 0x60);
	assert_int_equal(inb(&m.bus, 0x64) & 8, 8);
	outb(&m.bus, 0x60, 0x74);
	command(&m, 0x20);
	assert_int_equal(next(&m, false), 0x74);
	command(&m, 0xa8);
	command(&m, 0xae);
	command(&m, 0x20);
	assert_int_equal(next(&m, false), 0x44);
	bus_destroy(&m.bus);
}

/* Linux's i8042_check_aux(): the loop command answers as if from the mouse, by interrupt 12. */
static void linux_aux_loop(void **state)
{
	static const u8 values[] = {0x5a, 0xf0, 0x56, 0xa4, 0xa5};
	struct machine m;

	(void)state;
	setup(&m);
	command(&m, 0x60);
	outb(&m.bus, 0x60, 0x76);
	for (u32 i = 0; i < ARRAY_SIZE(values); i++) {
		command(&m, 0xd3);
		outb(&m.bus, 0x60, values[i]);
		assert_int_equal(m.wire.edges[12], i + 1);
		assert_int_equal(next(&m, true), values[i]);
		assert_true(is_empty(&m));
	}
	assert_int_equal(m.wire.edges[1], 0);
	bus_destroy(&m.bus);
}

static void keyboard_probe(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outb(&m.bus, 0x60, 0xff);
	assert_int_equal(next(&m, false), 0xfa);
	assert_int_equal(next(&m, false), 0xaa);
	assert_int_equal(m.wire.edges[1], 2); /* one per byte */
	outb(&m.bus, 0x60, 0xf2);
	assert_int_equal(next(&m, false), 0xfa);
	assert_int_equal(next(&m, false), 0xab);
	assert_int_equal(next(&m, false), 0x41); /* translated */
	outb(&m.bus, 0x60, 0xed);
	assert_int_equal(next(&m, false), 0xfa);
	outb(&m.bus, 0x60, 0x07);
	assert_int_equal(next(&m, false), 0xfa);
	outb(&m.bus, 0x60, 0xf0);
	assert_int_equal(next(&m, false), 0xfa);
	outb(&m.bus, 0x60, 0x00);
	assert_int_equal(next(&m, false), 0xfa);
	assert_int_equal(next(&m, false), 0x02);
	outb(&m.bus, 0x60, 0xee);
	assert_int_equal(next(&m, false), 0xee);
	outb(&m.bus, 0x60, 0x05);
	assert_int_equal(next(&m, false), 0xfe);
	assert_true(is_empty(&m));
	bus_destroy(&m.bus);
}

static void mouse_probe(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	to_aux(&m, 0xff);
	assert_int_equal(next(&m, true), 0xfa);
	assert_int_equal(next(&m, true), 0xaa);
	assert_int_equal(next(&m, true), 0x00);
	to_aux(&m, 0xe8);
	assert_int_equal(next(&m, true), 0xfa);
	to_aux(&m, 0x03);
	assert_int_equal(next(&m, true), 0xfa);
	to_aux(&m, 0xe9);
	assert_int_equal(next(&m, true), 0xfa);
	assert_int_equal(next(&m, true), 0x00);
	assert_int_equal(next(&m, true), 0x03);
	assert_int_equal(next(&m, true), 100);
	to_aux(&m, 0xf2);
	assert_int_equal(next(&m, true), 0xfa);
	assert_int_equal(next(&m, true), 0x00);
	bus_destroy(&m.bus);
}

static void disabled_devices_keep_their_bytes(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	command(&m, 0xad);
	assert_true(i8042_key(&m.k, (const u8 *)"\x1e\x9e", 2));
	assert_true(is_empty(&m));
	command(&m, 0xae);
	assert_int_equal(next(&m, false), 0x1e);
	assert_int_equal(next(&m, false), 0x9e);
	for (u32 i = 0; i < 16; i++)
		assert_true(i8042_key(&m.k, (const u8 *)"\x1e", 1));
	assert_true(i8042_key(&m.k, (const u8 *)"\x1e", 1)); /* one is at the port already */
	assert_false(i8042_key(&m.k, (const u8 *)"\x1e", 1));
	outb(&m.bus, 0x60, 0xf5);
	assert_false(i8042_key(&m.k, (const u8 *)"\x1e", 1));
	bus_destroy(&m.bus);
}

static void reset_and_a20(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	command(&m, 0xfe);
	assert_int_equal(m.resets, 1);
	command(&m, 0xff);
	assert_int_equal(m.resets, 1);
	command(&m, 0xd1);
	outb(&m.bus, 0x60, 0xdf);
	assert_int_equal(m.a20_changes, 0);
	command(&m, 0xdd);
	assert_false(m.a20);
	command(&m, 0xdf);
	assert_true(m.a20);
	command(&m, 0xd1);
	outb(&m.bus, 0x60, 0x02);
	assert_int_equal(m.resets, 2);
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
			outb(&m.bus, r & 2 ? 0x60 : 0x64, (u8)(r >> 8));
		else if (r & 2)
			inb(&m.bus, r & 4 ? 0x60 : 0x64);
		else
			i8042_key(&m.k, (const u8 *)"\x1e\x9e\x1f\x9f", r >> 4 & 3);
	}
	check_state(&i8042_ops, &m.k, &n.k);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(controller_tests),
		cmocka_unit_test(command_byte),
		cmocka_unit_test(linux_aux_loop),
		cmocka_unit_test(keyboard_probe),
		cmocka_unit_test(mouse_probe),
		cmocka_unit_test(disabled_devices_keep_their_bytes),
		cmocka_unit_test(reset_and_a20),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
