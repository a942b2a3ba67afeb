/* Unit tests of device/chip/ioapic.c; clauses are sections of the Intel 82093AA datasheet. */
#include "chip_test.h"
#include "device/chip/ioapic.h"

#include <string.h>

struct machine {
	struct bus bus;
	struct ioapic io;
	u64 address;
	u32 data, sent;
};

static void send(void *opaque, u64 address, u32 data)
{
	struct machine *m = opaque;

	m->address = address;
	m->data = data;
	m->sent++;
}

static void setup(struct machine *m)
{
	memset(m, 0, sizeof(*m));
	bus_init(&m->bus);
	assert_int_equal(ioapic_init(&m->io, &m->bus, IOAPIC_BASE, 2,
				     (struct msi_sink){.send = send, .opaque = m}, NULL),
			 0);
}

static u32 reg_read(struct machine *m, u8 reg)
{
	bus_write(&m->bus, BUS_MEMORY, IOAPIC_BASE, 4, reg);
	return (u32)bus_read(&m->bus, BUS_MEMORY, IOAPIC_BASE + 0x10, 4);
}

static void reg_write(struct machine *m, u8 reg, u32 value)
{
	bus_write(&m->bus, BUS_MEMORY, IOAPIC_BASE, 4, reg);
	bus_write(&m->bus, BUS_MEMORY, IOAPIC_BASE + 0x10, 4, value);
}

static void entry_write(struct machine *m, u32 pin, u64 entry)
{
	reg_write(m, (u8)(0x11 + 2 * pin), (u32)(entry >> 32));
	reg_write(m, (u8)(0x10 + 2 * pin), (u32)entry);
}

static void ioapic_3_2_registers(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(reg_read(&m, 0), 0x02000000);
	assert_int_equal(reg_read(&m, 1), 0x00170020);
	reg_write(&m, 0, ~0u);
	assert_int_equal(reg_read(&m, 0), 0x0f000000);
	for (u8 pin = 0; pin < 24; pin++)
		assert_int_equal(reg_read(&m, 0x10 + 2 * pin), 0x10000);
	entry_write(&m, 23, ~0ul);
	assert_int_equal(reg_read(&m, 0x3e), 0x1afff); /* status and remote IRR are read-only */
	assert_int_equal(reg_read(&m, 0x3f), 0xff000000);
	assert_int_equal(reg_read(&m, 0x40), 0);
	reg_write(&m, 0xff, ~0u);
	bus_destroy(&m.bus);
}

static void edges_are_delivered_once(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	entry_write(&m, 4, 0x0100000000000044);
	ioapic_set_irq(&m.io, 4, true);
	ioapic_set_irq(&m.io, 4, true);
	assert_int_equal(m.sent, 1);
	assert_int_equal(m.address, 0xfee01000);
	assert_int_equal(m.data, 0x44);
	ioapic_set_irq(&m.io, 4, false);
	ioapic_set_irq(&m.io, 4, true);
	assert_int_equal(m.sent, 2);
	bus_destroy(&m.bus);
}

static void edges_on_masked_pins_are_lost(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	ioapic_set_irq(&m.io, 4, true);
	entry_write(&m, 4, 0x44);
	assert_int_equal(m.sent, 0);
	bus_destroy(&m.bus);
}

static void levels_repeat_until_the_line_falls(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	entry_write(&m, 9, 0x8059);
	ioapic_set_irq(&m.io, 9, true);
	assert_int_equal(m.sent, 1);
	assert_int_equal(m.data, 0xc059);
	assert_int_equal(reg_read(&m, 0x10 + 18) & 0x4000, 0x4000);
	ioapic_set_irq(&m.io, 9, false);
	ioapic_set_irq(&m.io, 9, true);
	assert_int_equal(m.sent, 1); /* not before its EOI */
	ioapic_eoi(&m.io, 0x58);
	assert_int_equal(m.sent, 1);
	ioapic_eoi(&m.io, 0x59);
	assert_int_equal(m.sent, 2);
	ioapic_set_irq(&m.io, 9, false);
	bus_write(&m.bus, BUS_MEMORY, IOAPIC_BASE + 0x40, 4, 0x59); /* the EOI register */
	assert_int_equal(m.sent, 2);
	assert_int_equal(reg_read(&m, 0x10 + 18) & 0x4000, 0);
	bus_destroy(&m.bus);
}

static void unmasking_delivers_a_waiting_level(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	entry_write(&m, 16, 0x18061);
	ioapic_set_irq(&m.io, 16, true);
	assert_int_equal(m.sent, 0);
	reg_write(&m, 0x10 + 32, 0x8061);
	assert_int_equal(m.sent, 1);
	reg_write(&m, 0x10 + 32, 0x10061); /* masked, as an edge: clears remote IRR */
	reg_write(&m, 0x10 + 32, 0x8061);
	assert_int_equal(m.sent, 2);
	bus_destroy(&m.bus);
}

static void messages_carry_destination_and_mode(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	entry_write(&m, 5, 0x0300000000000955); /* logical, lowest priority */
	ioapic_set_irq(&m.io, 5, true);
	assert_int_equal(m.address, 0xfee0300c);
	assert_int_equal(m.data, 0x155);
	bus_destroy(&m.bus);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	clock_start(1);
	setup(&m);
	setup(&n);
	for (u32 i = 0; i < 200000; i++) {
		u32 r = random32();

		if (r & 1)
			reg_write(&m, (u8)(r >> 8), random32());
		else if (r & 2)
			reg_read(&m, (u8)(r >> 8));
		else if (r & 4)
			ioapic_set_irq(&m.io, r >> 8 & 31, r & 8);
		else
			ioapic_eoi(&m.io, (u8)(r >> 8));
	}
	check_state(&ioapic_ops, &m.io, &n.io);
	bus_destroy(&m.bus);
	bus_destroy(&n.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ioapic_3_2_registers),
		cmocka_unit_test(edges_are_delivered_once),
		cmocka_unit_test(edges_on_masked_pins_are_lost),
		cmocka_unit_test(levels_repeat_until_the_line_falls),
		cmocka_unit_test(unmasking_delivers_a_waiting_level),
		cmocka_unit_test(messages_carry_destination_and_mode),
		cmocka_unit_test(random_accesses_and_snapshots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
