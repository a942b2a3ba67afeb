/* ACPI and SMBIOS tables: what a kernel checks before it believes them. */
#include "machine/acpi.h"
#include "machine/aml.h"
#include "machine/e820.h"
#include "machine/layout.h"
#include "machine/smbios.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

static struct acpi_tables tables;

static u8 sum(const u8 *p, u32 len)
{
	u8 s = 0;

	while (len--)
		s = (u8)(s + *p++);
	return s;
}

static u32 u32_at(const u8 *p)
{
	u32 v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static u64 u64_at(const u8 *p)
{
	u64 v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static const u8 *at(u64 gpa)
{
	assert_in_range(gpa, tables.base, tables.base + tables.len - 1);
	return tables.data + (gpa - tables.base);
}

static void build(u32 vcpus)
{
	const struct acpi_config c = {
		.vcpus = vcpus, .pci64_base = 32 * GIB, .pci64_size = LAYOUT_PCI64_SIZE};
	struct err e = {0};

	assert_int_equal(acpi_build(&tables, LAYOUT_ACPI, &c, &e), 0);
	assert_true(tables.len <= LAYOUT_ACPI_END - LAYOUT_ACPI);
}

/* A table by its signature, through RSDP and XSDT as a kernel finds it. */
static const u8 *find(const char *signature)
{
	const u8 *xsdt = at(u64_at(at(tables.rsdp) + 24));
	u32 n = (u32_at(xsdt + 4) - 36) / 8;

	for (u32 i = 0; i < n; i++) {
		const u8 *t = at(u64_at(xsdt + 36 + i * 8));

		if (!memcmp(t, signature, 4))
			return t;
	}
	return NULL;
}

static void acpi_5_2_5_rsdp_checksums(void **state)
{
	const u8 *rsdp;

	(void)state;
	build(1);
	rsdp = at(tables.rsdp);
	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(tables.rsdp % 16, 0);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, u32_at(rsdp + 20)), 0);
	assert_int_equal(rsdp[15], 2);
}

static void acpi_5_2_6_every_table_sums_to_zero(void **state)
{
	static const char *const names[] = {"FACP", "APIC", "MCFG", "WAET"};

	(void)state;
	build(64);
	for (u32 i = 0; i < ARRAY_SIZE(names); i++) {
		const u8 *t = find(names[i]);

		assert_non_null(t);
		assert_int_equal(sum(t, u32_at(t + 4)), 0);
	}
}

static void acpi_5_2_9_fadt_points_at_dsdt_and_facs(void **state)
{
	const u8 *fadt, *dsdt, *facs;

	(void)state;
	build(1);
	fadt = find("FACP");
	assert_int_equal(u32_at(fadt + 4), 276);
	assert_int_equal(u32_at(fadt + 40), u64_at(fadt + 140));
	dsdt = at(u64_at(fadt + 140));
	assert_memory_equal(dsdt, "DSDT", 4);
	assert_int_equal(sum(dsdt, u32_at(dsdt + 4)), 0);
	facs = at(u32_at(fadt + 36));
	assert_memory_equal(facs, "FACS", 4);
	assert_int_equal((u64)(facs - tables.data + tables.base) % 64, 0);
	/* Widths of the extended blocks agree with the old lengths: event 4 bytes, GPE0 4 bytes. */
	assert_int_equal(fadt[149], fadt[88] * 8);
	assert_int_equal(fadt[221], fadt[92] * 8);
}

static void acpi_5_2_12_madt_lists_every_processor(void **state)
{
	const u8 *madt, *p;
	u32 lapics = 0;

	(void)state;
	build(64);
	madt = find("APIC");
	for (p = madt + 44; p < madt + u32_at(madt + 4); p += p[1]) {
		assert_true(p[1] >= 2);
		if (p[0] == 0)
			assert_int_equal(p[3], lapics++);
	}
	assert_int_equal(p - madt, u32_at(madt + 4));
	assert_int_equal(lapics, 64);
}

static void too_many_processors_are_refused(void **state)
{
	const struct acpi_config c = {.vcpus = 65};
	struct err e = {0};

	(void)state;
	assert_int_equal(acpi_build(&tables, LAYOUT_ACPI, &c, &e), -EINVAL);
}

static void acpi_20_2_4_package_length_counts_itself(void **state)
{
	u8 data[64];
	struct aml a;

	(void)state;
	aml_init(&a, data, sizeof(data));
	aml_open_scope(&a, "\\_SB_");
	aml_def_int(&a, "ABCD", 0x1234);
	aml_close(&a);
	assert_false(a.overflow);
	/* ScopeOp, length of everything behind it in three bytes, \_SB_, NameOp ABCD WordPrefix. */
	assert_int_equal(a.len, 1 + 3 + 5 + 1 + 4 + 3);
	assert_int_equal(data[0], 0x10);
	assert_int_equal((data[1] & 0xf) | data[2] << 4 | data[3] << 12, a.len - 1);
	assert_int_equal(data[1] >> 6, 2);
}

static void aml_remembers_an_overflow(void **state)
{
	u8 data[16];
	struct aml a;

	(void)state;
	aml_init(&a, data, sizeof(data));
	aml_open_device(&a, "DEV0");
	aml_string(&a, "much too long for this buffer");
	aml_close(&a);
	assert_true(a.overflow);
	assert_true(a.len <= sizeof(data));
}

static void acpi_19_3_4_eisaid(void **state)
{
	static const u8 pnp0a03[] = {0x0c, 0x41, 0xd0, 0x0a, 0x03};
	u8 data[8];
	struct aml a;

	(void)state;
	aml_init(&a, data, sizeof(data));
	aml_eisaid(&a, "PNP0A03");
	assert_memory_equal(data, pnp0a03, sizeof(pnp0a03));
}

static void smbios_5_2_2_entry_point_and_structures(void **state)
{
	struct physmap pm;
	struct err e = {0};
	const u8 *p, *s, *end;
	u32 types = 0;

	(void)state;
	physmap_init(&pm);
	assert_int_equal(physmap_add(&pm, LAYOUT_SMBIOS, 0x10000, 0, &e), 0);
	assert_int_equal(smbios_store(&pm, LAYOUT_SMBIOS, GIB), 0);
	p = mem_map(&pm, LAYOUT_SMBIOS, 0x10000, MEM_READ);
	assert_memory_equal(p, "_SM3_", 5);
	assert_int_equal(sum(p, p[6]), 0);
	s = p + (u64_at(p + 16) - LAYOUT_SMBIOS);
	end = s + u32_at(p + 12);
	/* Each structure: its formatted part, then strings up to a double zero. */
	for (; s[0] != 127; types++) {
		assert_true(s < end);
		for (s += s[1]; s[0] || s[1]; s++)
			assert_true(s < end);
		s += 2;
	}
	assert_ptr_equal(s + s[1] + 2, end);
	assert_int_equal(types, 5);
	physmap_destroy(&pm);
}

static void e820_is_sorted_and_does_not_overlap(void **state)
{
	struct e820_map map;
	u64 ram = 0;

	(void)state;
	e820_build(&map, LAYOUT_HOLE, 5 * GIB);
	assert_true(map.count <= E820_MAX);
	for (u32 i = 0; i < map.count; i++) {
		const struct e820_entry *m = &map.entry[i];

		if (i)
			assert_true(m->addr >= m[-1].addr + m[-1].size);
		ram += m->type == E820_RAM ? m->size : 0;
	}
	assert_int_equal(ram, 8 * GIB - LAYOUT_HIGH + LAYOUT_EBDA);
	e820_build(&map, 4 * MIB, 0);
	assert_int_equal(map.entry[map.count - 1].type, E820_RESERVED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(acpi_5_2_5_rsdp_checksums),
		cmocka_unit_test(acpi_5_2_6_every_table_sums_to_zero),
		cmocka_unit_test(acpi_5_2_9_fadt_points_at_dsdt_and_facs),
		cmocka_unit_test(acpi_5_2_12_madt_lists_every_processor),
		cmocka_unit_test(too_many_processors_are_refused),
		cmocka_unit_test(acpi_20_2_4_package_length_counts_itself),
		cmocka_unit_test(aml_remembers_an_overflow),
		cmocka_unit_test(acpi_19_3_4_eisaid),
		cmocka_unit_test(smbios_5_2_2_entry_point_and_structures),
		cmocka_unit_test(e820_is_sorted_and_does_not_overlap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
