/* The map of RAM as firmware reports it (ACPI 6.4, 15). */
#pragma once

#include "base/types.h"

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

enum { E820_MAX = 8 };

struct e820_entry {
	u64 addr;
	u64 size;
	u32 type;
} __attribute__((packed));

struct e820_map {
	u32 count;
	struct e820_entry entry[E820_MAX];
};

/* The map of a machine with @below bytes of RAM under the hole and @above bytes from 4 GiB. */
void e820_build(struct e820_map *map, u64 below, u64 above);
