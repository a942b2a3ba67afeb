/*
 * pvpanic: the guest kernel tells that it panicked.
 *
 * Reference: QEMU, docs/specs/pvpanic. ACPI name QEMU0001, one port.
 */
#pragma once

#include "bus/bus.h"
#include "device/device.h"

enum {
	PVPANIC_PORT = 0x505,
	PVPANIC_PANICKED = 1 << 0,
	PVPANIC_CRASH_LOADED = 1 << 1, /* a crash kernel takes over */
	PVPANIC_EVENTS = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED,
};

struct pvpanic {
	void (*event)(void *opaque, u32 events);
	void *opaque;
};

extern const struct device_ops pvpanic_ops;

int pvpanic_init(struct pvpanic *p, struct bus *bus, void (*event)(void *opaque, u32 events),
		 void *opaque, struct err *e);
