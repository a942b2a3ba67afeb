/*
 * Port and memory I/O dispatch.
 *
 * A bus has two address spaces. A device puts regions into them; a region says which access widths
 * it takes and the bus converts: wider accesses are split, narrower ones widened (reads) or refused
 * (ignored, logged). Unclaimed reads return all ones, unclaimed writes vanish, as on a PC.
 *
 * Threads: the caller of bus_read/bus_write holds the machine lock; regions change only under it.
 */
#pragma once

#include "base/types.h"

enum bus_space { BUS_PORT, BUS_MEMORY, BUS_SPACES };

struct bus_ops {
	/* @off is relative to the region and a multiple of @size; @size is a power of two within
	 * [min, max]. */
	u64 (*read)(void *dev, u64 off, u32 size);
	void (*write)(void *dev, u64 off, u32 size, u64 value);
	u8 min, max; /* access widths in bytes */
};

struct bus_region {
	const char *name;
	u64 base, size;
	const struct bus_ops *ops;
	void *dev;
};

struct bus {
	struct {
		struct bus_region *region; /* sorted by base, no overlap */
		u32 count, capacity;
	} space[BUS_SPACES];
};

void bus_init(struct bus *bus);
void bus_destroy(struct bus *bus);

/* Add a copy of @r. 0, -EINVAL for an empty or wrapping range, -EEXIST on overlap, -ENOMEM. */
int bus_add(struct bus *bus, enum bus_space space, const struct bus_region *r);

/* Remove the region that starts at @base and belongs to @dev, if there is one. */
void bus_remove(struct bus *bus, enum bus_space space, u64 base, const void *dev);

/* @size is 1, 2, 4 or 8. */
u64 bus_read(struct bus *bus, enum bus_space space, u64 addr, u32 size);
void bus_write(struct bus *bus, enum bus_space space, u64 addr, u32 size, u64 value);
