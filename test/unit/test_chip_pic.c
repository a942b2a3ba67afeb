/* Unit tests of device/chip/pic.c; clauses are sections of the Intel 8259A datasheet. */
#include "chip_test.h"
#include "device/chip/pic.h"

struct machine {
	struct bus bus;
	struct pic pic;
	struct wire wire;
};

/* As Linux sets the chips up, everything unmasked. */
static void setup(struct machine *m)
{
	*m = (struct machine){0};
	bus_init(&m->bus);
	assert_int_equal(pic_init(&m->pic, &m->bus, wire_line(&m->wire, 0), NULL), 0);
	outb(&m->bus, 0x20, 0x11);
	outb(&m->bus, 0x21, 0x30);
	outb(&m->bus, 0x21, 0x04);
	outb(&m->bus, 0x21, 0x01);
	outb(&m->bus, 0xa0, 0x11);
	outb(&m->bus, 0xa1, 0x38);
	outb(&m->bus, 0xa1, 0x02);
	outb(&m->bus, 0xa1, 0x01);
}

static void pulse(struct machine *m, u32 pin)
{
	pic_set_irq(&m->pic, pin, true);
	pic_set_irq(&m->pic, pin, false);
}

static void mask_register_reads_back(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outb(&m.bus, 0x21, 0xfb); /* Linux's probe_8259A() */
	assert_int_equal(inb(&m.bus, 0x21), 0xfb);
	bus_destroy(&m.bus);
}

static void fully_nested_mode(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pulse(&m, 4);
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x34);
	assert_false(m.wire.level[0]);
	pulse(&m, 5); /* lower priority: waits */
	assert_false(m.wire.level[0]);
	pulse(&m, 1); /* higher: nests */
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x31);
	outb(&m.bus, 0x20, 0x0b);
	assert_int_equal(inb(&m.bus, 0x20), 0x12);
	outb(&m.bus, 0x20, 0x20); /* ends 1 */
	assert_false(m.wire.level[0]);
	outb(&m.bus, 0x20, 0x64); /* specific end of 4 */
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x35);
	bus_destroy(&m.bus);
}

static void cascade(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pulse(&m, 12);
	assert_int_equal(pic_intack(&m.pic), 0x3c);
	pulse(&m, 8); /* blocked at the master until its input 2 is ended */
	assert_false(m.wire.level[0]);
	outb(&m.bus, 0x20, 0x62);
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x38);
	outb(&m.bus, 0xa0, 0x20);
	outb(&m.bus, 0xa0, 0x20);
	outb(&m.bus, 0x20, 0x20);
	assert_int_equal(m.pic.chip[0].isr | m.pic.chip[1].isr, 0);
	bus_destroy(&m.bus);
}

static void special_fully_nested_mode(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outb(&m.bus, 0x20, 0x11);
	outb(&m.bus, 0x21, 0x30);
	outb(&m.bus, 0x21, 0x04);
	outb(&m.bus, 0x21, 0x11);
	pulse(&m, 12);
	assert_int_equal(pic_intack(&m.pic), 0x3c);
	pulse(&m, 8);
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x38);
	bus_destroy(&m.bus);
}

static void masked_requests_wait(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outb(&m.bus, 0x21, 0xff);
	pulse(&m, 3);
	assert_false(m.wire.level[0]);
	assert_int_equal(inb(&m.bus, 0x20), 0x08);
	outb(&m.bus, 0x21, 0xf7);
	assert_true(m.wire.level[0]);
	assert_int_equal(pic_intack(&m.pic), 0x33);
	bus_destroy(&m.bus);
}

static void spurious_interrupts_are_7_and_15(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(pic_intack(&m.pic), 0x37);
	assert_int_equal(m.pic.chip[0].isr, 0);
	outb(&m.bus, 0x4d1, 0x0e); /* inputs 9 to 11 by level */
	pic_set_irq(&m.pic, 9, true);
	assert_true(m.wire.level[0]);
	pic_set_irq(&m.pic, 9, false);
	assert_false(m.wire.level[0]);
	bus_destroy(&m.bus);
}

static void level_requests_follow_their_line(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	outb(&m.bus, 0x4d0, 0xff);
	assert_int_equal(inb(&m.bus, 0x4d0), 0xf8); /* timer, keyboard and cascade stay edges */
	pic_set_irq(&m.pic, 5, true);
	assert_int_equal(pic_intack(&m.pic), 0x35);
	outb(&m.bus, 0x20, 0x20);
	assert_true(m.wire.level[0]); /* still high: again */
	assert_int_equal(pic_intack(&m.pic), 0x35);
	pic_set_irq(&m.pic, 5, false);
	outb(&m.bus, 0x20, 0x20);
	assert_false(m.wire.level[0]);
	bus_destroy(&m.bus);
}

static void edges_need_a_falling_line(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pic_set_irq(&m.pic, 4, true);
	assert_int_equal(pic_intack(&m.pic), 0x34);
	outb(&m.bus, 0x20, 0x20);
	pic_set_irq(&m.pic, 4, true);
	assert_false(m.wire.level[0]);
	pic_set_irq(&m.pic, 4, false);
	pic_set_irq(&m.pic, 4, true);
	assert_true(m.wire.level[0]);
	bus_destroy(&m.bus);
}

static void rotation(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pulse(&m, 0);
	assert_int_equal(pic_intack(&m.pic), 0x30);
	outb(&m.bus, 0x20, 0xa0); /* rotate on non-specific EOI: 0 is lowest now */
	pulse(&m, 0);
	pulse(&m, 1);
	assert_int_equal(pic_intack(&m.pic), 0x31);
	outb(&m.bus, 0x20, 0x20);
	outb(&m.bus, 0x20, 0xc4); /* set priority: 5 is highest */
	pulse(&m, 5);
	assert_int_equal(pic_intack(&m.pic), 0x35);
	bus_destroy(&m.bus);
}

static void special_mask_mode(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pulse(&m, 1);
	pic_intack(&m.pic);
	outb(&m.bus, 0x20, 0x68);
	outb(&m.bus, 0x21, 0x02);
	pulse(&m, 6); /* lower, but 1 is masked */
	assert_true(m.wire.level[0]);
	outb(&m.bus, 0x20, 0x48);
	assert_false(m.wire.level[0]);
	bus_destroy(&m.bus);
}

static void poll_and_automatic_eoi(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	pulse(&m, 3);
	outb(&m.bus, 0x20, 0x0c);
	assert_int_equal(inb(&m.bus, 0x20), 0x83);
	outb(&m.bus, 0x20, 0x20);
	outb(&m.bus, 0x20, 0x0c);
	assert_int_equal(inb(&m.bus, 0x20), 0);
	outb(&m.bus, 0x20, 0x11);
	outb(&m.bus, 0x21, 0x30);
	outb(&m.bus, 0x21, 0x04);
	outb(&m.bus, 0x21, 0x03);
	pulse(&m, 6);
	assert_int_equal(pic_intack(&m.pic), 0x36);
	assert_int_equal(m.pic.chip[0].isr, 0);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	static const u16 port[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
	struct machine m, n;

	(void)state;
	clock_start(1);
	setup(&m);
	setup(&n);
	for (u32 i = 0; i < 200000; i++) {
		u32 r = random32();

		if (r & 1)
			outb(&m.bus, port[r / 2 % ARRAY_SIZE(port)], (u8)(r >> 8));
		else if (r & 2)
			inb(&m.bus, port[r / 4 % ARRAY_SIZE(port)]);
		else if (r & 4)
			pic_set_irq(&m.pic, r >> 8 & 31, r & 8);
		else if (m.wire.level[0])
			assert_true(pic_intack(&m.pic) <= 0xff);
	}
	check_state(&pic_ops, &m.pic, &n.pic);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mask_register_reads_back),
		cmocka_unit_test(fully_nested_mode),
		cmocka_unit_test(cascade),
		cmocka_unit_test(special_fully_nested_mode),
		cmocka_unit_test(masked_requests_wait),
		cmocka_unit_test(spurious_interrupts_are_7_and_15),
		cmocka_unit_test(level_requests_follow_their_line),
		cmocka_unit_test(edges_need_a_falling_line),
		cmocka_unit_test(rotation),
		cmocka_unit_test(special_mask_mode),
		cmocka_unit_test(poll_and_automatic_eoi),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
