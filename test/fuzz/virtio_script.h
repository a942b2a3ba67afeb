/*
 * Fuzzing a virtio device end to end: the input is a script of what a guest can do. It stores to
 * guest memory, reads and writes registers and configuration space, makes chains available in
 * well-formed and in arbitrary ways, rings doorbells, and lets events from outside happen; and the
 * device's saved state is damaged and restored.
 *
 * The event loop does not run, so that an input always does the same; what would come from it is an
 * event of the script.
 */
#pragma once

#include "../unit/virtio_driver.h"

struct script {
	const u8 *data;
	size_t len;
};

/* Little endian; zero when the input is used up. */
u8 script_u8(struct script *s);
u16 script_u16(struct script *s);
u32 script_u32(struct script *s);
u64 script_u64(struct script *s);

/* Up to @max bytes; returns how many. */
size_t script_bytes(struct script *s, const u8 **p, size_t max);

struct script_device {
	struct virtio_device *virtio;
	const struct device_ops *ops; /* of the device type, whose instance begins with *virtio */
};

/*
 * Run @data against device @d of machine @m, starting from a reset. @event (may be NULL) is
 * something from outside of the guest, under the machine lock.
 */
void script_run(struct test_machine *m, const struct script_device *d, const u8 *data, size_t len,
		void (*event)(void *opaque, struct script *s), void *opaque);
