/* Unit tests of bus/bus.c. */
#include "bus/bus.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
/* cmocka wants these before it. */
#include <cmocka.h>

/* A device of 16 bytes of memory that records how it was last accessed. */
struct memory {
	u8 byte[16];
	u64 off;
	u32 size, reads, writes;
};

static u64 memory_read(void *dev, u64 off, u32 size)
{
	struct memory *m = dev;
	u64 v = 0;

	m->off = off;
	m->size = size;
	m->reads++;
	memcpy(&v, m->byte + off, size);
	return v;
}

static void memory_write(void *dev, u64 off, u32 size, u64 value)
{
	struct memory *m = dev;

	m->off = off;
	m->size = size;
	m->writes++;
	memcpy(m->byte + off, &value, size);
}

static const struct bus_ops any_ops = {memory_read, memory_write, 1, 8};
static const struct bus_ops byte_ops = {memory_read, memory_write, 1, 1};
static const struct bus_ops word_ops = {memory_read, memory_write, 4, 4};

static void add(struct bus *bus, u64 base, u64 size, const struct bus_ops *ops, void *dev)
{
	const struct bus_region r = {"test", base, size, ops, dev};

	assert_int_equal(bus_add(bus, BUS_MEMORY, &r), 0);
}

static int try_add(struct bus *bus, u64 base, u64 size)
{
	const struct bus_region r = {"test", base, size, &any_ops, NULL};

	return bus_add(bus, BUS_MEMORY, &r);
}

static void unclaimed_reads_all_ones(void **state)
{
	struct bus bus;

	(void)state;
	bus_init(&bus);
	assert_int_equal(bus_read(&bus, BUS_PORT, 0x80, 1), 0xff);
	assert_int_equal(bus_read(&bus, BUS_PORT, 0x80, 2), 0xffff);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0x80, 4), 0xffffffff);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, ~0ul, 8), ~0ul);
	bus_write(&bus, BUS_MEMORY, 0x80, 8, 1);
	bus_destroy(&bus);
}

static void regions_do_not_overlap(void **state)
{
	struct bus bus;

	(void)state;
	bus_init(&bus);
	assert_int_equal(try_add(&bus, 0x1000, 0x100), 0);
	assert_int_equal(try_add(&bus, 0x1000, 0x100), -EEXIST);
	assert_int_equal(try_add(&bus, 0x10ff, 1), -EEXIST);
	assert_int_equal(try_add(&bus, 0xfff, 2), -EEXIST);
	assert_int_equal(try_add(&bus, 0, 0x10000), -EEXIST);
	assert_int_equal(try_add(&bus, 0x1100, 1), 0);
	assert_int_equal(try_add(&bus, 0xfff, 1), 0);
	assert_int_equal(try_add(&bus, 0x2000, 0), -EINVAL);
	assert_int_equal(try_add(&bus, ~0ul, 2), -EINVAL);
	assert_int_equal(try_add(&bus, ~0ul, 1), 0);
	bus_destroy(&bus);
}

static void finds_each_of_many_regions(void **state)
{
	struct memory m[100] = {0};
	struct bus bus;

	(void)state;
	bus_init(&bus);
	for (u32 i = 0; i < 100; i++) {
		u32 at = i * 37 % 100; /* in no particular order */

		add(&bus, at * 32, 16, &any_ops, &m[at]);
	}
	for (u32 i = 0; i < 100; i++) {
		bus_write(&bus, BUS_MEMORY, i * 32 + 8, 8, i + 1);
		assert_int_equal(m[i].byte[8], i + 1);
		assert_int_equal(bus_read(&bus, BUS_MEMORY, i * 32 + 16, 1), 0xff);
	}
	for (u32 i = 0; i < 100; i += 2) {
		bus_remove(&bus, BUS_MEMORY, i * 32, &m[i + 1]); /* another's: stays */
		assert_int_equal(bus_read(&bus, BUS_MEMORY, i * 32 + 8, 1), i + 1);
		bus_remove(&bus, BUS_MEMORY, i * 32, &m[i]);
	}
	for (u32 i = 0; i < 100; i++)
		assert_int_equal(bus_read(&bus, BUS_MEMORY, i * 32 + 8, 1), i % 2 ? i + 1 : 0xff);
	bus_destroy(&bus);
}

static void wide_accesses_are_split(void **state)
{
	struct memory m = {0};
	struct bus bus;

	(void)state;
	bus_init(&bus);
	add(&bus, 0x100, 16, &byte_ops, &m);
	bus_write(&bus, BUS_MEMORY, 0x104, 4, 0x44332211);
	assert_int_equal(m.writes, 4);
	assert_memory_equal(m.byte + 4, "\x11\x22\x33\x44", 4);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0x104, 8), 0x44332211);
	assert_int_equal(m.size, 1);
	bus_destroy(&bus);
}

static void narrow_reads_are_widened_and_writes_dropped(void **state)
{
	struct memory m = {.byte = {0, 1, 2, 3, 4, 5, 6, 7}};
	struct bus bus;

	(void)state;
	bus_init(&bus);
	add(&bus, 0x100, 16, &word_ops, &m);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0x106, 1), 6);
	assert_int_equal(m.off, 4);
	assert_int_equal(m.size, 4);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0x102, 4), 0x05040302);
	bus_write(&bus, BUS_MEMORY, 0x106, 1, 0xff);
	bus_write(&bus, BUS_MEMORY, 0x102, 4, ~0u);
	assert_int_equal(m.writes, 0);
	bus_write(&bus, BUS_MEMORY, 0x100, 8, 0x1122334455667788);
	assert_int_equal(m.writes, 2);
	assert_int_equal(m.byte[0], 0x88);
	assert_int_equal(m.byte[7], 0x11);
	bus_destroy(&bus);
}

static void accesses_may_straddle_regions(void **state)
{
	struct memory a = {0}, b = {0};
	struct bus bus;

	(void)state;
	bus_init(&bus);
	add(&bus, 0x100, 2, &any_ops, &a);
	add(&bus, 0x103, 2, &any_ops, &b);
	bus_write(&bus, BUS_MEMORY, 0x100, 4, 0x44332211);
	assert_int_equal(a.byte[1], 0x22);
	assert_int_equal(b.byte[0], 0x44);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0x100, 4), 0x44ff2211);
	assert_int_equal(bus_read(&bus, BUS_MEMORY, 0xff, 2), 0x11ff);
	bus_destroy(&bus);
}

static void devices_see_aligned_offsets(void **state)
{
	struct memory m = {0};
	struct bus bus;

	(void)state;
	bus_init(&bus);
	add(&bus, 0x501, 4, &any_ops, &m);
	bus_write(&bus, BUS_MEMORY, 0x501, 4, 0x11); /* aligned within the region */
	assert_int_equal(m.writes, 1);
	bus_write(&bus, BUS_MEMORY, 0x502, 2, 0x3322);
	assert_int_equal(m.writes, 3);
	assert_int_equal(m.byte[2], 0x33);
	bus_destroy(&bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unclaimed_reads_all_ones),
		cmocka_unit_test(regions_do_not_overlap),
		cmocka_unit_test(finds_each_of_many_regions),
		cmocka_unit_test(wide_accesses_are_split),
		cmocka_unit_test(narrow_reads_are_widened_and_writes_dropped),
		cmocka_unit_test(accesses_may_straddle_regions),
		cmocka_unit_test(devices_see_aligned_offsets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
