/*
 * A port by which a test guest ends its virtual machine: a write of any width reports its value.
 */
#pragma once

#include "bus/bus.h"
#include "device/device.h"

enum { DEBUGEXIT_PORT = 0x501 };

struct debugexit {
	void (*exit)(void *opaque,
		     u32 value); /* QEMU's convention: process status (value << 1) | 1 */
	void *opaque;
};

extern const struct device_ops debugexit_ops;

int debugexit_init(struct debugexit *d, struct bus *bus, void (*exit)(void *opaque, u32 value),
		   void *opaque, struct err *e);
