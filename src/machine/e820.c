#include "machine/e820.h"

#include "machine/layout.h"

static void add(struct e820_map *map, u64 addr, u64 end, enum e820_type type)
{
	if (end > addr)
		map->entry[map->count++] =
			(struct e820_entry){.addr = addr, .size = end - addr, .type = type};
}

void e820_build(struct e820_map *map, u64 below, u64 above)
{
	map->count = 0;
	add(map, 0, LAYOUT_EBDA, E820_RAM);
	add(map, LAYOUT_EBDA, LAYOUT_CONVENTIONAL_END, E820_RESERVED);
	add(map, LAYOUT_ACPI, LAYOUT_HIGH, E820_RESERVED);
	add(map, LAYOUT_HIGH, below, E820_RAM);
	/* PCI Firmware 3.3, 4.1.2: the configuration window must be reserved. */
	add(map, LAYOUT_ECAM, LAYOUT_ECAM + LAYOUT_ECAM_SIZE, E820_RESERVED);
	add(map, LAYOUT_ABOVE, LAYOUT_ABOVE + above, E820_RAM);
}
