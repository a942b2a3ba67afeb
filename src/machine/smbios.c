#include "machine/smbios.h"

#include <string.h>

enum { STRUCTURES = 32, /* offset from the entry point */ SIZE_MAX_BYTES = 1024 };

struct smbios_entry {
	char anchor[5];
	u8 checksum;
	u8 length;
	u8 major, minor, docrev;
	u8 revision;
	u8 reserved;
	u32 max_size;
	u64 address;
} __attribute__((packed));

struct smbios_header {
	u8 type, length;
	u16 handle;
} __attribute__((packed));

/* 7.1; strings are numbered from 1. */
struct smbios_bios {
	struct smbios_header h;
	u8 vendor, version;
	u16 segment;
	u8 date, rom_size;
	u64 characteristics;
	u8 extension[2];
	u8 major, minor, ec_major, ec_minor;
	u16 extended_rom_size;
} __attribute__((packed));

/* 7.2 */
struct smbios_system {
	struct smbios_header h;
	u8 manufacturer, product, version, serial;
	u8 uuid[16];
	u8 wake_up, sku, family;
} __attribute__((packed));

/* 7.4 */
struct smbios_chassis {
	struct smbios_header h;
	u8 manufacturer, type, version, serial, asset;
	u8 boot_up_state, power_state, thermal_state, security;
	u32 oem;
	u8 height, power_cords, elements, element_length, sku;
} __attribute__((packed));

/* 7.17 */
struct smbios_memory_array {
	struct smbios_header h;
	u8 location, use, correction;
	u32 capacity_kib;
	u16 error_handle;
	u16 devices;
	u64 extended_capacity;
} __attribute__((packed));

/* 7.18, as of SMBIOS 2.8 */
struct smbios_memory_device {
	struct smbios_header h;
	u16 array, error_handle;
	u16 total_width, data_width;
	u16 size;
	u8 form_factor, set, locator, bank, type;
	u16 detail, speed;
	u8 manufacturer, serial, asset, part, attributes;
	u32 extended_size_mib;
	u16 configured_speed, min_voltage, max_voltage, configured_voltage;
} __attribute__((packed));

struct table {
	u8 data[SIZE_MAX_BYTES];
	u32 len;
};

/* @strings: zero-terminated strings, one after the other, ending with an empty one. */
static void append(struct table *t, const void *structure, u32 len, const char *strings)
{
	const char *end = strings;

	memcpy(t->data + t->len, structure, len);
	t->len += len;
	while (*end)
		end += strlen(end) + 1;
	/* No strings at all are two zeros. */
	if (end == strings)
		t->data[t->len++] = 0;
	memcpy(t->data + t->len, strings, (size_t)(end - strings) + 1);
	t->len += (u32)(end - strings) + 1;
}

static void append_identity(struct table *t)
{
	const struct smbios_bios bios = {
		.h = {0, sizeof(bios), 0x000},
		.vendor = 1,
		.version = 2,
		.segment = 0xf000,
		.date = 3,
		.characteristics = 1 << 3, /* no further information */
		.extension = {0, 0x14},    /* virtual machine, UEFI no, targeted content */
		.ec_major = 0xff,
		.ec_minor = 0xff,
	};
	const struct smbios_system system = {
		.h = {1, sizeof(system), 0x100},
		.manufacturer = 1,
		.product = 2,
		.wake_up = 6, /* power switch */
	};
	const struct smbios_chassis chassis = {
		.h = {3, sizeof(chassis), 0x300},
		.manufacturer = 1,
		.type = 1, /* other */
		.boot_up_state = 3,
		.power_state = 3,
		.thermal_state = 3,
		.security = 2,
	};

	append(t, &bios, sizeof(bios),
	       "doppel\0"
	       "0\0"
	       "01/01/2025\0");
	append(t, &system, sizeof(system),
	       "doppel\0"
	       "Virtual PC\0");
	append(t, &chassis, sizeof(chassis), "doppel\0");
}

static void append_memory(struct table *t, u64 ram_bytes)
{
	const struct smbios_memory_array array = {
		.h = {16, sizeof(array), 0x1000},
		.location = 1, /* other */
		.use = 3,      /* system memory */
		.correction = 3,
		.capacity_kib = 0x80000000, /* see the extended field */
		.error_handle = 0xfffe,
		.devices = 1,
		.extended_capacity = ram_bytes,
	};
	const struct smbios_memory_device device = {
		.h = {17, sizeof(device), 0x1100},
		.array = 0x1000,
		.error_handle = 0xfffe,
		.total_width = 0xffff,
		.data_width = 0xffff,
		.size = 0x7fff,   /* see the extended field */
		.form_factor = 9, /* DIMM */
		.locator = 1,
		.type = 7, /* RAM */
		.detail = 2,
		.extended_size_mib = (u32)(ram_bytes / MIB),
	};

	append(t, &array, sizeof(array), "");
	append(t, &device, sizeof(device), "DIMM 0\0");
}

int smbios_store(const struct physmap *pm, gpa_t base, u64 ram_bytes)
{
	const struct smbios_header end = {127, sizeof(end), 0x7f00};
	struct smbios_entry entry = {
		.anchor = {'_', 'S', 'M', '3', '_'},
		.length = sizeof(entry),
		.major = 3,
		.revision = 1,
		.address = base + STRUCTURES,
	};
	struct table t = {.len = 0};
	u8 sum = 0;
	int r;

	append_identity(&t);
	append_memory(&t, ram_bytes);
	append(&t, &end, sizeof(end), "");
	entry.max_size = t.len;
	for (u32 i = 0; i < sizeof(entry); i++)
		sum = (u8)(sum + ((const u8 *)&entry)[i]);
	entry.checksum = (u8)-sum;
	r = mem_write(pm, base, &entry, sizeof(entry));
	return r ? r : mem_write(pm, base + STRUCTURES, t.data, t.len);
}
