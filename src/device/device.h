/*
 * What every device shares: a name, a reset, and a table of its state.
 *
 * A device is behaviour (const device_ops) plus an instance that its owner embeds. The field table
 * names every piece of guest-visible state; save, restore, print, compare and the property tests
 * are all driven by it, so a device writes no code of its own for them. Devices are created and
 * destroyed by the machine, which attaches them to buses and lines in visible order.
 *
 * Saved form, little endian, the same for every device:
 *
 *	device:  u8 length, name; u32 version; u32 number of fields; fields
 *	field:   u8 length, name; u8 type; u32 count; count elements
 *
 * A restore wants exactly the fields of the table, in its order; it checks every value before it
 * changes the first one.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

#include <stdio.h>

enum field_type { FIELD_U8, FIELD_U16, FIELD_U32, FIELD_U64, FIELD_BOOL, FIELD_BYTES };

struct field {
	const char *name; /* stable: it is the name in snapshots */
	u32 offset;       /* in the instance */
	u32 count;        /* elements, or bytes for FIELD_BYTES */
	enum field_type type;
	u64 max;    /* greatest valid value; 0 means any the type can hold */
	u32 stride; /* bytes from one element to the next; 0 means adjacent */
};

#define FIELD(type_, struct_, member_)                                                            \
	{                                                                                         \
		.name = #member_, .offset = offsetof(struct_, member_), .count = 1, .type = type_ \
	}
#define FIELD_ARRAY(type_, struct_, member_)                                \
	{                                                                   \
		.name = #member_, .offset = offsetof(struct_, member_),     \
		.count = ARRAY_SIZE(((struct_ *)0)->member_), .type = type_ \
	}
#define FIELD_MAX(type_, struct_, member_, max_)                                                   \
	{                                                                                          \
		.name = #member_, .offset = offsetof(struct_, member_), .count = 1, .type = type_, \
		.max = max_                                                                        \
	}
/* Member @member_ of every element of the array of structs @array_. */
#define FIELD_EACH(type_, struct_, array_, member_) \
	FIELD_EACH_MAX(type_, struct_, array_, member_, 0)
#define FIELD_EACH_MAX(type_, struct_, array_, member_, max_)                                 \
	{                                                                                     \
		.name = #array_ "." #member_, .offset = offsetof(struct_, array_[0].member_), \
		.count = ARRAY_SIZE(((struct_ *)0)->array_), .type = type_, .max = max_,      \
		.stride = sizeof(((struct_ *)0)->array_[0])                                   \
	}

struct device_state {
	const struct field *field; /* NULL: the device has no state */
	u32 count;
	u32 version;
	/* Before a save, print or compare: bring fields up to date that stand for a running clock.
	 * NULL when the fields are always true. */
	void (*saving)(void *dev);
	/* After a restore: recompute what is derived (timers, line levels). Returns 0 or -EINVAL.
	 * NULL when nothing is derived. */
	int (*loaded)(void *dev, struct err *e);
};

struct device_ops {
	const char *name;
	void (*reset)(void *dev); /* to the power-up state */
	struct device_state state;
};

/* A growing byte buffer; zero-initialise it. After a failed allocation it stays empty. */
struct device_buf {
	u8 *data;
	u64 len, capacity;
	bool failed; /* out of memory */
};

void device_buf_free(struct device_buf *b);

void device_reset(const struct device_ops *ops, void *dev);

/* Append the saved form of @dev. 0 or -ENOMEM. */
int device_save(const struct device_ops *ops, void *dev, struct device_buf *b);

/*
 * Restore @dev from the saved form at @data; *@used says how many bytes it took. 0, or -EINVAL with
 * @e filled in; then @dev is unchanged, unless its own loaded() hook refused.
 */
int device_load(const struct device_ops *ops, void *dev, const u8 *data, u64 len, u64 *used,
		struct err *e);

/* True when every field of the two instances has the same value. */
bool device_equal(const struct device_ops *ops, void *a, void *b);

/* One line per field: "name.field = value ...". */
void device_print(const struct device_ops *ops, void *dev, FILE *out);
