/*
 * What every device shares: a name, a reset, and a table of its state.
 *
 * A device is behaviour (const device_ops) plus an instance that its owner embeds. The field table
 * names every piece of guest-visible state; save, restore, print, compare and the property tests are
 * all driven by it, so a device writes no code of its own for them. Devices are created and destroyed by
 * the machine, which attaches them to buses and lines in visible order.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum field_type { FIELD_U8, FIELD_U16, FIELD_U32, FIELD_U64, FIELD_BOOL, FIELD_BYTES };

struct field {
	const char *name; /* stable: it is the name in snapshots */
	u32 offset;       /* in the instance */
	u32 count;        /* elements, or bytes for FIELD_BYTES */
	enum field_type type;
	u64 max;          /* greatest valid value; 0 means any the type can hold */
};

#define FIELD(type_, struct_, member_) \
	{ .name = #member_, .offset = offsetof(struct_, member_), .count = 1, .type = type_ }
#define FIELD_ARRAY(type_, struct_, member_)                                          \
	{ .name = #member_, .offset = offsetof(struct_, member_),                     \
	  .count = ARRAY_SIZE(((struct_ *)0)->member_), .type = type_ }
#define FIELD_MAX(type_, struct_, member_, max_) \
	{ .name = #member_, .offset = offsetof(struct_, member_), .count = 1, .type = type_, .max = max_ }

struct device_state {
	const struct field *field; /* NULL: the device has no state */
	u32 count;
	u32 version;
	/* After a restore: recompute what is derived (timers, line levels). Returns 0 or -EINVAL. */
	int (*loaded)(void *dev, struct err *e);
};

struct device_ops {
	const char *name;
	void (*reset)(void *dev); /* to the power-up state */
	struct device_state state;
};
