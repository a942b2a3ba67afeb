/* Unit tests of device/chip/fwcfg.c, and of the one-port devices debugexit and pvpanic. */
#include "chip_test.h"
#include "device/chip/debugexit.h"
#include "device/chip/fwcfg.h"
#include "device/chip/pvpanic.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

enum { RAM = 0x20000, DMA_AT = 0x1000, DATA_AT = 0x2000 };

struct machine {
	struct bus bus;
	struct physmap pm;
	struct fwcfg f;
};

static void setup(struct machine *m)
{
	memset(m, 0, sizeof(*m));
	clock_start(1);
	bus_init(&m->bus);
	physmap_init(&m->pm);
	assert_int_equal(physmap_add(&m->pm, 0, RAM, 0, NULL), 0);
	assert_int_equal(fwcfg_init(&m->f, &m->bus, &m->pm, NULL), 0);
}

static void teardown(struct machine *m)
{
	fwcfg_destroy(&m->f);
	physmap_destroy(&m->pm);
	bus_destroy(&m->bus);
}

static void read_item(struct machine *m, u16 key, void *to, u32 len)
{
	outw(&m->bus, 0x510, key);
	for (u32 i = 0; i < len; i++)
		((u8 *)to)[i] = inb(&m->bus, 0x511);
}

/* Run a DMA access; returns the control field afterwards. */
static u32 dma(struct machine *m, u32 control, u32 len, u64 address)
{
	struct {
		u32 control, length;
		u64 address;
	} a = {htobe32(control), htobe32(len), htobe64(address)};

	assert_int_equal(mem_write(&m->pm, DMA_AT, &a, sizeof(a)), 0);
	outl(&m->bus, 0x514, 0);
	outl(&m->bus, 0x518, htobe32(DMA_AT));
	assert_int_equal(mem_read(&m->pm, DMA_AT, &a, sizeof(a)), 0);
	return be32toh(a.control);
}

static void signature_and_features(void **state)
{
	struct machine m;
	char text[5] = {0};
	u32 id;

	(void)state;
	setup(&m);
	read_item(&m, FWCFG_SIGNATURE, text, 4);
	assert_string_equal(text, "QEMU");
	read_item(&m, FWCFG_ID, &id, sizeof(id));
	assert_int_equal(id, 3);
	assert_int_equal(be32toh(inl(&m.bus, 0x514)), 0x51454d55);
	assert_int_equal(be32toh(inl(&m.bus, 0x518)), 0x20434647);
	teardown(&m);
}

static void files_are_listed_in_the_directory(void **state)
{
	struct machine m;
	struct {
		u32 size;
		u16 select, reserved;
		char name[56];
	} entry;
	u8 directory[4 + 2 * sizeof(entry)];
	char text[6] = {0};

	(void)state;
	setup(&m);
	assert_int_equal(fwcfg_add_file(&m.f, "etc/one", "one", 3), 0);
	assert_int_equal(fwcfg_add_file(&m.f, "etc/two", "hello", 5), 0);
	assert_int_equal(fwcfg_add_file(&m.f, "etc/two", "hello", 5), -EEXIST);
	read_item(&m, FWCFG_FILE_DIR, directory, sizeof(directory));
	assert_int_equal(directory[3], 2);
	memcpy(&entry, directory + 4 + sizeof(entry), sizeof(entry));
	assert_string_equal(entry.name, "etc/two");
	assert_int_equal(be32toh(entry.size), 5);
	read_item(&m, be16toh(entry.select), text, 5);
	assert_string_equal(text, "hello");
	assert_int_equal(inb(&m.bus, 0x511), 0); /* beyond the end */
	teardown(&m);
}

static void limits(void **state)
{
	struct machine m;
	char name[80];

	(void)state;
	setup(&m);
	memset(name, 'n', sizeof(name));
	name[56] = 0;
	assert_int_equal(fwcfg_add_file(&m.f, name, "", 0), -ENAMETOOLONG);
	name[55] = 0;
	assert_int_equal(fwcfg_add_file(&m.f, name, "", 0), 0);
	for (char c = 'a'; m.f.files < FWCFG_FILES; c++)
		assert_int_equal(fwcfg_add_file(&m.f, (char[]){c, 0}, "", 0), 0);
	assert_int_equal(fwcfg_add_file(&m.f, "full", "", 0), -ENOSPC);
	assert_int_equal(fwcfg_set_u32(&m.f, 0x20, 1), -EINVAL);
	assert_int_equal(fwcfg_set_u32(&m.f, 0x8008, 1), -EINVAL);
	assert_int_equal(fwcfg_set_u32(&m.f, 0x8003, 1), 0);
	assert_int_equal(fwcfg_set_u16(&m.f, FWCFG_NB_CPUS, 2), 0);
	assert_int_equal(fwcfg_set_u64(&m.f, FWCFG_RAM_SIZE, 1), 0);
	teardown(&m);
}

static void dma_reads_skips_and_selects(void **state)
{
	struct machine m;
	char text[12] = "xxxxxxxxxxx";

	(void)state;
	setup(&m);
	assert_int_equal(fwcfg_add_file(&m.f, "f", "0123456789", 10), 0);
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 4, 3, 0), 0);
	assert_int_equal(dma(&m, 2, 4, DATA_AT), 0);
	mem_read(&m.pm, DATA_AT, text, 4);
	assert_memory_equal(text, "3456xxx", 7);
	mem_write(&m.pm, DATA_AT, "yyyyyyyy", 8);
	assert_int_equal(dma(&m, 2, 6, DATA_AT), 0);
	mem_read(&m.pm, DATA_AT, text, 8);
	assert_memory_equal(text, "789\0\0\0yy", 8);
	teardown(&m);
}

static void hostile_dma(void **state)
{
	struct machine m;

	(void)state;
	setup(&m);
	assert_int_equal(fwcfg_add_file(&m.f, "f", "0123456789", 10), 0);
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 2, 10, RAM - 5), 1); /* over the end of memory */
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 2, 10, ~0ul - 3), 1);
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 2, ~0u, 0), 1);
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 16, 4, DATA_AT), 1); /* write */
	assert_int_equal(dma(&m, 0x20 << 16 | 8 | 4, ~0u, 0), 0);
	assert_int_equal(dma(&m, 4, ~0u, 0), 0);
	assert_int_equal(inb(&m.bus, 0x511), 0);
	assert_int_equal(dma(&m, 0xffffu << 16 | 8 | 2, 16, DATA_AT), 0); /* nothing: zeros */
	outl(&m.bus, 0x514, ~0u);
	outl(&m.bus, 0x518, ~0u); /* the descriptor itself is nowhere */
	teardown(&m);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine m, n;

	(void)state;
	setup(&n);
	setup(&m);
	fwcfg_add_file(&m.f, "f", "0123456789", 10);
	for (u32 i = 0; i < 100000; i++) {
		u32 r = random32();
		u16 port = (u16)(0x510 + (r >> 8 & 15));
		u32 sparse = random32();

		if (r & 1)
			bus_write(&m.bus, BUS_PORT, port, 1u << (r >> 4) % 3, sparse & random32());
		else
			bus_read(&m.bus, BUS_PORT, port, 1u << (r >> 4) % 3);
	}
	check_state(&fwcfg_ops, &m.f, &n.f);
	teardown(&m);
	teardown(&n);
}

static void count_value(void *opaque, u32 value)
{
	u32 *v = opaque;

	v[0]++;
	v[1] = value;
}

static void debugexit_reports_its_value_once(void **state)
{
	struct debugexit d;
	struct bus bus;
	u32 v[2] = {0};

	(void)state;
	bus_init(&bus);
	assert_int_equal(debugexit_init(&d, &bus, count_value, v, NULL), 0);
	outb(&bus, DEBUGEXIT_PORT, 3);
	assert_int_equal(v[0], 1);
	assert_int_equal(v[1], 3);
	outl(&bus, DEBUGEXIT_PORT, 0x12345678);
	assert_int_equal(v[0], 2);
	assert_int_equal(v[1], 0x12345678);
	assert_int_equal(inb(&bus, DEBUGEXIT_PORT), 0);
	bus_destroy(&bus);
}

static void pvpanic_reports_known_events(void **state)
{
	struct pvpanic p;
	struct bus bus;
	u32 v[2] = {0};

	(void)state;
	bus_init(&bus);
	assert_int_equal(pvpanic_init(&p, &bus, count_value, v, NULL), 0);
	assert_int_equal(inb(&bus, PVPANIC_PORT), 3);
	outb(&bus, PVPANIC_PORT, 0xfc);
	assert_int_equal(v[0], 0);
	outb(&bus, PVPANIC_PORT, 1);
	assert_int_equal(v[1], PVPANIC_PANICKED);
	bus_destroy(&bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(signature_and_features),
		cmocka_unit_test(files_are_listed_in_the_directory),
		cmocka_unit_test(limits),
		cmocka_unit_test(dma_reads_skips_and_selects),
		cmocka_unit_test(hostile_dma),
		cmocka_unit_test(random_accesses_and_snapshots),
		cmocka_unit_test(debugexit_reports_its_value_once),
		cmocka_unit_test(pvpanic_reports_known_events),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
