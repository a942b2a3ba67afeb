/* Unit tests of bus/pci.c; clauses are of PCI Local Bus 3.0. */
#include "bus/pci.h"
#include "chip_test.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { ECAM = 0xe0000000, MSIX_AT = 0x91000000 };

struct machine {
	struct bus bus;
	struct pci_host host;
	struct pci_function f;
	struct wire wire;
	u64 msi_address;
	u32 msi_data, msi_count;
	/* The one event that stands for a message, with events_on(). */
	int event_fd;
	u64 event_address;
	u32 event_data;
	u32 wirings; /* changes of it */
	bool wired, refuses;
	u64 last_off;
};

static void send(void *opaque, u64 address, u32 data)
{
	struct machine *m = opaque;

	m->msi_address = address;
	m->msi_data = data;
	m->msi_count++;
}

static u64 bar_read(void *dev, u64 off, u32 size)
{
	struct machine *m = dev;

	(void)size;
	m->last_off = off;
	return 0x55;
}

static void bar_write(void *dev, u64 off, u32 size, u64 value)
{
	(void)dev;
	(void)off;
	(void)size;
	(void)value;
}

static const struct bus_ops bar_ops = {bar_read, bar_write, 1, 4};

/* A function with an I/O BAR, a 64-bit BAR and a BAR for MSI-X. */
static void add_function(struct machine *m, struct pci_function *f, int slot)
{
	const struct pci_bar port = {.size = 32, .is_port = true, .ops = &bar_ops};
	const struct pci_bar memory = {.size = 0x4000, .is_64bit = true, .ops = &bar_ops};
	const struct pci_bar msix = {.size = 0x1000};

	pci_function_init(f, "test", 0x1af4, 0x1042, 0x01000001, 0x1af4, 0x1042);
	f->dev = m;
	f->pin = 1;
	pci_function_bar(f, 0, &port);
	pci_function_bar(f, 1, &memory);
	pci_function_bar(f, 3, &msix);
	pci_function_msix(f, 3, 5);
	assert_int_equal(pci_attach(&m->host, f, slot), 0);
}

static struct machine *machine_new(void)
{
	struct machine *m = test_calloc(1, sizeof(*m));
	struct irq_line line[4];

	bus_init(&m->bus);
	for (u32 i = 0; i < 4; i++)
		line[i] = wire_line(&m->wire, i);
	assert_int_equal(pci_host_init(&m->host, &m->bus,
				       (struct msi_sink){.send = send, .opaque = m}, line, ECAM,
				       NULL),
			 0);
	add_function(m, &m->f, 3);
	return m;
}

static void machine_free(struct machine *m)
{
	pci_host_destroy(&m->host);
	bus_destroy(&m->bus);
	test_free(m);
}

static u64 config_at(u32 slot, u32 off)
{
	return ECAM + (slot << 15) + off;
}

static u32 config_read(struct machine *m, u32 off, u32 size)
{
	return (u32)bus_read(&m->bus, BUS_MEMORY, config_at(3, off), size);
}

static void config_write(struct machine *m, u32 off, u32 size, u32 value)
{
	bus_write(&m->bus, BUS_MEMORY, config_at(3, off), size, value);
}

static u32 find_msix(struct machine *m)
{
	u32 at = config_read(m, 0x34, 1);

	while (at && config_read(m, at, 1) != 0x11)
		at = config_read(m, at + 1, 1);
	return at;
}

static void enable_msix(struct machine *m)
{
	config_write(m, 0x1c, 4, MSIX_AT);
	config_write(m, 0x04, 2, 6);
	config_write(m, find_msix(m) + 2, 2, 0x8000);
}

static void pci_3_2_2_3_2_configuration_mechanism(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	outl(&m->bus, 0xcf8, 0xffffffff);
	assert_int_equal(inl(&m->bus, 0xcf8), 0x80fffffc);
	outl(&m->bus, 0xcf8, 0x80001800);
	assert_int_equal(inl(&m->bus, 0xcfc), 0x10421af4);
	assert_int_equal(inw(&m->bus, 0xcfe), 0x1042);
	assert_int_equal(inb(&m->bus, 0xcfd), 0x1a);
	outl(&m->bus, 0xcf8, 0x80000000);
	assert_int_equal(inl(&m->bus, 0xcfc), 0x0d578086);
	outl(&m->bus, 0xcf8, 0x00001800); /* not enabled */
	assert_int_equal(inl(&m->bus, 0xcfc), 0xffffffff);
	outl(&m->bus, 0xcf8, 0x80011800); /* bus 1 */
	assert_int_equal(inl(&m->bus, 0xcfc), 0xffffffff);
	outl(&m->bus, 0xcf8, 0x80001900); /* function 1 */
	assert_int_equal(inl(&m->bus, 0xcfc), 0xffffffff);
	outb(&m->bus, 0xcfb, 1); /* Linux looks whether a byte gets through */
	assert_int_equal(inl(&m->bus, 0xcf8), 0x80001900);
	machine_free(m);
}

static void ecam_shows_the_same_space(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	assert_int_equal(config_read(m, 0, 4), 0x10421af4);
	assert_int_equal(config_read(m, 8, 4), 0x01000001);
	assert_int_equal(config_read(m, 0x2e, 2), 0x1042);
	assert_int_equal(config_read(m, 0x3d, 1), 1);
	assert_int_equal(config_read(m, 0x100, 4), 0xffffffff);
	assert_int_equal(config_read(m, 0x1000, 4), 0xffffffff);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, config_at(4, 0), 4), 0xffffffff);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, ECAM + 0x100000, 4), 0xffffffff);
	machine_free(m);
}

static void pci_6_2_5_bar_sizing(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	for (u32 i = 0; i < 6; i++)
		config_write(m, 0x10 + 4 * i, 4, ~0u);
	assert_int_equal(config_read(m, 0x10, 4), 0xffffffe1);
	assert_int_equal(config_read(m, 0x14, 4), 0xffffc004);
	assert_int_equal(config_read(m, 0x18, 4), 0xffffffff);
	assert_int_equal(config_read(m, 0x1c, 4), 0xfffff000);
	assert_int_equal(config_read(m, 0x20, 4), 0);
	assert_int_equal(config_read(m, 0x30, 4), 0);
	machine_free(m);
}

static void bars_follow_address_and_decode_bits(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	config_write(m, 0x10, 4, 0xc000);
	config_write(m, 0x14, 4, 0x90000000);
	config_write(m, 0x18, 4, 0x12);
	assert_int_equal(inb(&m->bus, 0xc004), 0xff);
	config_write(m, 4, 2, 1);
	assert_int_equal(inb(&m->bus, 0xc004), 0x55);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x1290000010, 1), 0xff);
	config_write(m, 4, 2, 3);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x1290000010, 1), 0x55);
	assert_int_equal(m->last_off, 0x10);
	config_write(m, 0x18, 4, 0x13);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x1290000010, 1), 0xff);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x1390000010, 1), 0x55);
	config_write(m, 0x11, 1, 0xd0); /* one byte of the I/O BAR */
	assert_int_equal(inb(&m->bus, 0xd01f), 0x55);
	config_write(m, 0x12, 2, 1); /* beyond 64 KiB: nowhere */
	assert_int_equal(inb(&m->bus, 0xd01f), 0xff);
	config_write(m, 4, 2, 0);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x1390000010, 1), 0xff);
	machine_free(m);
}

static void overlapping_bar_waits_for_its_range(void **state)
{
	struct machine *m = machine_new();
	struct pci_function other;

	(void)state;
	add_function(m, &other, -1);
	assert_int_equal(other.slot, 1);
	config_write(m, 0x1c, 4, 0x90000000);
	config_write(m, 4, 2, 2);
	bus_write(&m->bus, BUS_MEMORY, config_at(1, 0x14), 4, 0x90000000);
	bus_write(&m->bus, BUS_MEMORY, config_at(1, 4), 2, 2);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x9000000c, 4), 1); /* vector control */
	config_write(m, 4, 2, 0);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, 0x9000000c, 1), 0x55);
	machine_free(m);
}

static void pci_6_1_read_only_fields_do_not_change(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	for (u32 i = 0; i < 200000; i++)
		config_write(m, random32() % 256 & ~3u, 4, random32());
	config_write(m, 4, 2, 0);
	assert_int_equal(config_read(m, 0, 4), 0x10421af4);
	assert_int_equal(config_read(m, 8, 4), 0x01000001);
	assert_int_equal(config_read(m, 0x0e, 1), 0);
	assert_int_equal(config_read(m, 0x3d, 1), 1);
	assert_int_equal(config_read(m, find_msix(m) + 2, 2) & 0x3fff, 4);
	machine_free(m);
}

static void pci_6_8_2_msix_delivers_masks_and_pends(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	pci_msix_notify(&m->f, 0);
	assert_int_equal(m->msi_count, 0);
	enable_msix(m);
	assert_true(pci_msix_enabled(&m->f));
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 16, 8, 0xfee01000);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 24, 4, 0x41);
	pci_msix_notify(&m->f, 1); /* masked since reset */
	assert_int_equal(m->msi_count, 0);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT + 0x800, 8), 2);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 28, 4, 0);
	assert_int_equal(m->msi_count, 1);
	assert_int_equal(m->msi_address, 0xfee01000);
	assert_int_equal(m->msi_data, 0x41);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT + 0x800, 4), 0);
	config_write(m, find_msix(m) + 2, 2, 0xc000); /* function mask */
	pci_msix_notify(&m->f, 1);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(m->msi_count, 1);
	config_write(m, find_msix(m) + 2, 2, 0x8000);
	assert_int_equal(m->msi_count, 2);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(m->msi_count, 3);
	pci_msix_notify(&m->f, 5);
	pci_msix_notify(&m->f, ~0u);
	assert_int_equal(m->msi_count, 3);
	machine_free(m);
}

/* ---- messages by event ---- */

static int on_event(void *opaque, int fd, u64 address, u32 data, bool on)
{
	struct machine *m = opaque;

	m->wirings++;
	m->wired = on && !m->refuses;
	m->event_fd = fd;
	m->event_address = address;
	m->event_data = data;
	return on && m->refuses ? -EINVAL : 0;
}

static struct machine *machine_with_events(void)
{
	struct machine *m = machine_new();
	struct err e = {0};

	m->host.msi.on_event = on_event;
	assert_int_equal(pci_msix_open_events(&m->f, &e), 0);
	enable_msix(m);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 16, 8, 0xfee01000);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 24, 4, 0x41);
	return m;
}

static void mask_vector(struct machine *m, bool masked)
{
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 28, 4, masked);
}

static u64 events_raised(struct machine *m)
{
	u64 count = 0;

	return read(m->event_fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void expect_wired(struct machine *m, u64 address, u32 data, u32 wirings)
{
	assert_true(m->wired);
	assert_int_equal(m->event_address, address);
	assert_int_equal(m->event_data, data);
	assert_int_equal(m->wirings, wirings);
}

/* An event stands for an unmasked vector's message, and is changed when that has changed. */
static void msix_events_follow_the_table(void **state)
{
	struct machine *m = machine_with_events();

	(void)state;
	assert_int_equal(m->wirings, 0); /* masked */
	mask_vector(m, false);
	expect_wired(m, 0xfee01000, 0x41, 1);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(events_raised(m), 1);
	mask_vector(m, true);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(events_raised(m), 0);
	mask_vector(m, false);
	expect_wired(m, 0xfee01000, 0x41, 1);
	assert_int_equal(events_raised(m), 1); /* it was pending */
	mask_vector(m, true);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 16, 4, 0xfee02000);
	bus_write(&m->bus, BUS_MEMORY, MSIX_AT + 24, 4, 0x42);
	mask_vector(m, false);
	expect_wired(m, 0xfee02000, 0x42, 2);
	assert_int_equal(m->msi_count, 0);
	pci_msix_close_events(&m->f);
	assert_false(m->wired);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(m->msi_count, 1);
	machine_free(m);
}

static void msix_events_end_with_msix(void **state)
{
	struct machine *m = machine_with_events();

	(void)state;
	mask_vector(m, false);
	config_write(m, find_msix(m) + 2, 2, 0);
	assert_false(m->wired);
	config_write(m, find_msix(m) + 2, 2, 0x8000);
	expect_wired(m, 0xfee01000, 0x41, 3);
	pci_host_reset(&m->host);
	assert_false(m->wired);
	assert_int_equal(m->msi_count, 0);
	pci_msix_close_events(&m->f);
	machine_free(m);
}

/* What the sink does not take is sent. */
static void refused_event_is_sent(void **state)
{
	struct machine *m = machine_with_events();

	(void)state;
	m->refuses = true;
	mask_vector(m, false);
	assert_int_equal(m->wirings, 1);
	pci_msix_notify(&m->f, 1);
	assert_int_equal(m->msi_count, 1);
	assert_int_equal(m->msi_data, 0x41);
	pci_msix_close_events(&m->f);
	machine_free(m);
}

static void msix_table_has_no_more_entries_than_vectors(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	enable_msix(m);
	for (u32 off = 0; off < 0x1000; off += 8) {
		bus_write(&m->bus, BUS_MEMORY, MSIX_AT + off, 8, ~0ul);
		if (off >= 5 * 16)
			assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT + off, 8), 0);
	}
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT + 64, 8), ~3ul);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT + 72, 8), 0x1ffffffff);
	machine_free(m);
}

static void pci_6_2_2_intx_disable_and_status(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	pci_intx_set(&m->f, true);
	assert_true(m->wire.level[3]); /* slot 3, pin A */
	assert_int_equal(config_read(m, 6, 2) & 8, 8);
	config_write(m, 4, 2, 0x400);
	assert_false(m->wire.level[3]);
	assert_int_equal(config_read(m, 6, 2) & 8, 8);
	config_write(m, 4, 2, 0);
	assert_true(m->wire.level[3]);
	enable_msix(m);
	assert_false(m->wire.level[3]);
	pci_intx_set(&m->f, false);
	assert_int_equal(config_read(m, 6, 2) & 8, 0);
	machine_free(m);
}

static void intx_lines_are_shared(void **state)
{
	struct machine *m = machine_new();
	struct pci_function other;

	(void)state;
	add_function(m, &other, 7);
	pci_intx_set(&m->f, true);
	pci_intx_set(&other, true);
	pci_intx_set(&m->f, false);
	assert_true(m->wire.level[3]);
	pci_intx_set(&other, false);
	assert_false(m->wire.level[3]);
	machine_free(m);
}

static void reset_restores_power_up_state(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	enable_msix(m);
	pci_intx_set(&m->f, true);
	config_write(m, 0x3c, 1, 11);
	pci_host_reset(&m->host);
	assert_int_equal(config_read(m, 4, 2), 0);
	assert_int_equal(config_read(m, 0x1c, 4), 0);
	assert_int_equal(config_read(m, 0x3c, 1), 0);
	assert_false(pci_msix_enabled(&m->f));
	assert_false(m->wire.level[3]);
	assert_int_equal(bus_read(&m->bus, BUS_MEMORY, MSIX_AT, 4), 0xffffffff);
	machine_free(m);
}

static u64 reset_port_read(void *dev, u64 off, u32 size)
{
	(void)off;
	(void)size;
	return *(u8 *)dev;
}

static void reset_port_write(void *dev, u64 off, u32 size, u64 value)
{
	(void)off;
	(void)size;
	*(u8 *)dev = (u8)value;
}

static void reset_port_shares_the_address_register(void **state)
{
	static const struct bus_ops ops = {reset_port_read, reset_port_write, 1, 1};
	struct machine *m = machine_new();
	u8 value = 0;

	(void)state;
	outb(&m->bus, 0xcf9, 6); /* nobody there yet */
	pci_host_claim_reset_port(&m->host, &ops, &value);
	outl(&m->bus, 0xcf8, 0x80000600);
	assert_int_equal(value, 0);
	outb(&m->bus, 0xcf9, 6);
	assert_int_equal(value, 6);
	assert_int_equal(inb(&m->bus, 0xcf9), 6);
	assert_int_equal(inl(&m->bus, 0xcf8), 0x80000600);
	machine_free(m);
}

static void state_survives_a_snapshot(void **state)
{
	struct machine *a = machine_new(), *b = machine_new();

	(void)state;
	enable_msix(a);
	bus_write(&a->bus, BUS_MEMORY, MSIX_AT + 16, 8, 0xfee01000);
	pci_msix_notify(&a->f, 1);
	pci_intx_set(&a->f, true);
	check_state(&pci_function_ops, &a->f, &b->f);
	outl(&a->bus, 0xcf8, 0x80001234);
	check_state(&pci_host_ops, &a->host, &b->host);
	machine_free(a);
	machine_free(b);
}

static void restored_bars_are_mapped(void **state)
{
	struct machine *a = machine_new(), *b = machine_new();
	struct device_buf form = {0};
	u64 used;

	(void)state;
	enable_msix(a);
	assert_int_equal(device_save(&pci_function_ops, &a->f, &form), 0);
	assert_int_equal(device_load(&pci_function_ops, &b->f, form.data, form.len, &used, NULL),
			 0);
	assert_int_equal(bus_read(&b->bus, BUS_MEMORY, MSIX_AT + 12, 4), 1);
	device_buf_free(&form);
	machine_free(a);
	machine_free(b);
}

static void slots_run_out(void **state)
{
	struct machine *m = machine_new();
	struct pci_function *f = test_calloc(32, sizeof(*f));
	u32 attached = 0;

	(void)state;
	for (u32 i = 0; i < 32; i++) {
		pci_function_init(&f[i], "filler", 1, 1, 0, 0, 0);
		attached += !pci_attach(&m->host, &f[i], -1);
	}
	assert_int_equal(attached, 30); /* bridge and test function have theirs */
	assert_int_not_equal(pci_attach(&m->host, &f[31], 3), 0);
	assert_int_not_equal(pci_attach(&m->host, &f[31], 32), 0);
	machine_free(m);
	test_free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pci_3_2_2_3_2_configuration_mechanism),
		cmocka_unit_test(ecam_shows_the_same_space),
		cmocka_unit_test(pci_6_2_5_bar_sizing),
		cmocka_unit_test(bars_follow_address_and_decode_bits),
		cmocka_unit_test(overlapping_bar_waits_for_its_range),
		cmocka_unit_test(pci_6_1_read_only_fields_do_not_change),
		cmocka_unit_test(pci_6_8_2_msix_delivers_masks_and_pends),
		cmocka_unit_test(msix_events_follow_the_table),
		cmocka_unit_test(msix_events_end_with_msix),
		cmocka_unit_test(refused_event_is_sent),
		cmocka_unit_test(msix_table_has_no_more_entries_than_vectors),
		cmocka_unit_test(pci_6_2_2_intx_disable_and_status),
		cmocka_unit_test(intx_lines_are_shared),
		cmocka_unit_test(reset_restores_power_up_state),
		cmocka_unit_test(reset_port_shares_the_address_register),
		cmocka_unit_test(state_survives_a_snapshot),
		cmocka_unit_test(restored_bars_are_mapped),
		cmocka_unit_test(slots_run_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
