#include "device/chip/debugexit.h"

#include <errno.h>

static u64 debugexit_read(void *dev, u64 off, u32 size)
{
	(void)dev;
	(void)off;
	(void)size;
	return 0;
}

static void debugexit_write(void *dev, u64 off, u32 size, u64 value)
{
	struct debugexit *d = dev;

	(void)size;
	/* The upper bytes of an access that the bus had to split are not another exit. */
	if (!off)
		d->exit(d->opaque, (u32)value);
}

static const struct bus_ops debugexit_bus_ops = {
	.read = debugexit_read, .write = debugexit_write, .min = 1, .max = 4};

static void debugexit_reset(void *dev)
{
	(void)dev;
}

const struct device_ops debugexit_ops = {.name = "debug-exit", .reset = debugexit_reset};

int debugexit_init(struct debugexit *d, struct bus *bus, void (*exit)(void *opaque, u32 value),
		   void *opaque, struct err *e)
{
	const struct bus_region region = {"debug exit", DEBUGEXIT_PORT, 4, &debugexit_bus_ops, d};
	int rc;

	*d = (struct debugexit){.exit = exit, .opaque = opaque};
	rc = bus_add(bus, BUS_PORT, &region);
	return rc ? err_set(e, rc, "debug exit: port %#x is taken", DEBUGEXIT_PORT) : 0;
}
