/*
 * Theory of operation
 *
 * Regions of a space are kept sorted and disjoint, so a lookup is one binary search. An access that
 * lies inside one region, is aligned to its own width and has a width the device takes goes
 * straight to the device; this is every access a sane driver makes. Anything else is cut in halves
 * until it is such an access or a single byte; a byte that is still too narrow is widened for reads
 * and dropped for writes. Recursion is at most three deep, because no access is wider than eight
 * bytes.
 */
#include "bus/bus.h"

#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void bus_init(struct bus *bus)
{
	memset(bus, 0, sizeof(*bus));
}

void bus_destroy(struct bus *bus)
{
	for (u32 i = 0; i < BUS_SPACES; i++)
		free(bus->space[i].region);
	bus_init(bus);
}

/* Index of the first region that ends above @addr; count when there is none. */
static u32 first_ending_above(const struct bus *bus, enum bus_space space, u64 addr)
{
	const struct bus_region *region = bus->space[space].region;
	u32 low = 0, high = bus->space[space].count;

	while (low < high) {
		u32 mid = low + (high - low) / 2;

		/* The last byte, not the end, which may be 2^64. */
		if (region[mid].base + (region[mid].size - 1) < addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static const struct bus_region *find(const struct bus *bus, enum bus_space space, u64 addr)
{
	u32 i = first_ending_above(bus, space, addr);

	if (i == bus->space[space].count || bus->space[space].region[i].base > addr)
		return NULL;
	return &bus->space[space].region[i];
}

static int grow(struct bus *bus, enum bus_space space)
{
	u32 capacity = bus->space[space].capacity ? 2 * bus->space[space].capacity : 16;
	struct bus_region *region = realloc(bus->space[space].region, capacity * sizeof(*region));

	if (!region)
		return -ENOMEM;
	bus->space[space].region = region;
	bus->space[space].capacity = capacity;
	return 0;
}

int bus_add(struct bus *bus, enum bus_space space, const struct bus_region *r)
{
	u32 i, count = bus->space[space].count;
	struct bus_region *at;

	if (!r->size || r->base + (r->size - 1) < r->base)
		return -EINVAL;
	i = first_ending_above(bus, space, r->base);
	if (i < count && bus->space[space].region[i].base <= r->base + (r->size - 1))
		return -EEXIST;
	if (count == bus->space[space].capacity && grow(bus, space))
		return -ENOMEM;
	at = bus->space[space].region + i;
	memmove(at + 1, at, (count - i) * sizeof(*at));
	*at = *r;
	bus->space[space].count++;
	return 0;
}

void bus_remove(struct bus *bus, enum bus_space space, u64 base, const void *dev)
{
	u32 i = first_ending_above(bus, space, base);
	struct bus_region *at = bus->space[space].region + i;

	if (i == bus->space[space].count || at->base != base || at->dev != dev)
		return;
	bus->space[space].count--;
	memmove(at, at + 1, (bus->space[space].count - i) * sizeof(*at));
}

static u64 width_mask(u32 size)
{
	return size >= 8 ? ~0ul : BIT(8 * size) - 1;
}

static bool takes(const struct bus_region *r, u64 off, u32 size)
{
	return size >= r->ops->min && size <= r->ops->max && !(off & (size - 1)) &&
	       !range_exceeds(off, size, r->size);
}

/* A byte of a device that only takes wider accesses: read the aligned unit around it. */
static u64 read_widened(const struct bus_region *r, u64 off)
{
	u64 at = align_down(off, r->ops->min);

	if (range_exceeds(at, r->ops->min, r->size))
		return 0xff;
	return r->ops->read(r->dev, at, r->ops->min) >> (8 * (off - at)) & 0xff;
}

/* NOLINTBEGIN(misc-no-recursion): at most three levels, each half as wide */
static u64 read_split(struct bus *bus, enum bus_space space, u64 addr, u32 size)
{
	const struct bus_region *r;
	u32 half = size / 2;
	u64 low;

	if (size > 1) {
		low = bus_read(bus, space, addr, half);
		return low | bus_read(bus, space, addr + half, half) << (8 * half);
	}
	r = find(bus, space, addr);
	return r ? read_widened(r, addr - r->base) : 0xff;
}

u64 bus_read(struct bus *bus, enum bus_space space, u64 addr, u32 size)
{
	const struct bus_region *r = find(bus, space, addr);

	if (r && takes(r, addr - r->base, size))
		return r->ops->read(r->dev, addr - r->base, size) & width_mask(size);
	return read_split(bus, space, addr, size);
}

static void write_split(struct bus *bus, enum bus_space space, u64 addr, u32 size, u64 value)
{
	const struct bus_region *r;
	u32 half = size / 2;

	if (size > 1) {
		bus_write(bus, space, addr, half, value & width_mask(half));
		bus_write(bus, space, addr + half, half, value >> (8 * half));
		return;
	}
	r = find(bus, space, addr);
	if (r)
		log_guest("guest: %s: write of one byte at +%#lx ignored", r->name, addr - r->base);
}

void bus_write(struct bus *bus, enum bus_space space, u64 addr, u32 size, u64 value)
{
	const struct bus_region *r = find(bus, space, addr);

	if (r && takes(r, addr - r->base, size))
		r->ops->write(r->dev, addr - r->base, size, value & width_mask(size));
	else
		write_split(bus, space, addr, size, value);
}
/* NOLINTEND(misc-no-recursion) */
