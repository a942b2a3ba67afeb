#include "device/chip/pvpanic.h"

#include <errno.h>

static u64 pvpanic_read(void *dev, u64 off, u32 size)
{
	(void)dev;
	(void)off;
	(void)size;
	return PVPANIC_EVENTS; /* what is supported */
}

static void pvpanic_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pvpanic *p = dev;

	(void)off;
	(void)size;
	if (value & PVPANIC_EVENTS)
		p->event(p->opaque, (u32)value & PVPANIC_EVENTS);
}

static const struct bus_ops pvpanic_bus_ops = {
	.read = pvpanic_read, .write = pvpanic_write, .min = 1, .max = 1};

static void pvpanic_reset(void *dev)
{
	(void)dev;
}

const struct device_ops pvpanic_ops = {.name = "pvpanic", .reset = pvpanic_reset};

int pvpanic_init(struct pvpanic *p, struct bus *bus, void (*event)(void *opaque, u32 events),
		 void *opaque, struct err *e)
{
	const struct bus_region region = {"pvpanic", PVPANIC_PORT, 1, &pvpanic_bus_ops, p};
	int rc;

	*p = (struct pvpanic){.event = event, .opaque = opaque};
	rc = bus_add(bus, BUS_PORT, &region);
	return rc ? err_set(e, rc, "pvpanic: port %#x is taken", PVPANIC_PORT) : 0;
}
