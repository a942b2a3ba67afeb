#include "device/device.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static u32 element_size(enum field_type type)
{
	static const u8 size[] = {
		[FIELD_U8] = 1,  [FIELD_U16] = 2,  [FIELD_U32] = 4,
		[FIELD_U64] = 8, [FIELD_BOOL] = 1, [FIELD_BYTES] = 1,
	};

	return size[type];
}

static u8 *element_at(const struct field *f, void *dev, u32 i)
{
	u32 stride = f->stride ? f->stride : element_size(f->type);

	return (u8 *)dev + f->offset + (u64)i * stride;
}

static u64 element_get(const struct field *f, void *dev, u32 i)
{
	const u8 *at = element_at(f, dev, i);
	u64 v = 0;

	memcpy(&v, at, element_size(f->type)); /* the host is little endian, as is the saved form */
	return v;
}

static u64 greatest_value(const struct field *f)
{
	u32 bits = 8 * element_size(f->type);

	if (f->type == FIELD_BOOL)
		return 1;
	if (f->max)
		return f->max;
	return bits == 64 ? ~0ul : BIT(bits) - 1;
}

void device_buf_free(struct device_buf *b)
{
	free(b->data);
	*b = (struct device_buf){0};
}

static void put(struct device_buf *b, const void *data, u64 len)
{
	u64 capacity = b->capacity ? b->capacity : 256;
	u8 *grown;

	while (capacity - b->len < len)
		capacity *= 2;
	if (capacity != b->capacity && !b->failed) {
		grown = realloc(b->data, capacity);
		b->failed = !grown;
		if (grown) {
			b->data = grown;
			b->capacity = capacity;
		}
	}
	if (b->failed)
		return;
	memcpy(b->data + b->len, data, len);
	b->len += len;
}

static void put_name(struct device_buf *b, const char *name)
{
	u8 len = (u8)strlen(name);

	put(b, &len, sizeof(len));
	put(b, name, len);
}

static void prepare(const struct device_ops *ops, void *dev)
{
	if (ops->state.saving)
		ops->state.saving(dev);
}

void device_reset(const struct device_ops *ops, void *dev)
{
	ops->reset(dev);
}

int device_save(const struct device_ops *ops, void *dev, struct device_buf *b)
{
	prepare(ops, dev);
	put_name(b, ops->name);
	put(b, &ops->state.version, sizeof(u32));
	put(b, &ops->state.count, sizeof(u32));
	for (u32 i = 0; i < ops->state.count; i++) {
		const struct field *f = &ops->state.field[i];
		u8 type = (u8)f->type;

		put_name(b, f->name);
		put(b, &type, sizeof(type));
		put(b, &f->count, sizeof(u32));
		for (u32 k = 0; k < f->count; k++)
			put(b, element_at(f, dev, k), element_size(f->type));
	}
	return b->failed ? -ENOMEM : 0;
}

/* What is left to read of a saved form. */
struct reader {
	const u8 *data;
	u64 len, at;
};

static bool take(struct reader *r, void *to, u64 len)
{
	if (range_exceeds(r->at, len, r->len))
		return false;
	memcpy(to, r->data + r->at, len);
	r->at += len;
	return true;
}

static bool take_name(struct reader *r, const char *expected)
{
	char name[256];
	u8 len;

	if (!take(r, &len, sizeof(len)) || !take(r, name, len))
		return false;
	return len == strlen(expected) && !memcmp(name, expected, len);
}

/* Read field @f: check its values, and store them when @dev is not NULL. */
static bool take_field(struct reader *r, const struct field *f, void *dev, struct err *e)
{
	u32 size = element_size(f->type), count;
	u8 type;

	if (!take_name(r, f->name) || !take(r, &type, sizeof(type)) ||
	    !take(r, &count, sizeof(count)) || type != f->type || count != f->count) {
		err_set(e, -EINVAL, "%s: not the field expected here", f->name);
		return false;
	}
	for (u32 i = 0; i < count; i++) {
		u64 v = 0;

		if (!take(r, &v, size)) {
			err_set(e, -EINVAL, "%s: truncated", f->name);
			return false;
		}
		if (v > greatest_value(f)) {
			err_set(e, -EINVAL, "%s[%u]: %#lx is out of range", f->name, i, v);
			return false;
		}
		if (dev)
			memcpy(element_at(f, dev, i), &v, size);
	}
	return true;
}

static int take_device(struct reader *r, const struct device_ops *ops, void *dev, struct err *e)
{
	u32 version, count;

	if (!take_name(r, ops->name) || !take(r, &version, sizeof(version)) ||
	    !take(r, &count, sizeof(count)))
		return err_set(e, -EINVAL, "%s: the saved state is of another device", ops->name);
	if (version != ops->state.version || count != ops->state.count)
		return err_set(e, -EINVAL,
			       "%s: state version %u with %u fields, expected %u with %u",
			       ops->name, version, count, ops->state.version, ops->state.count);
	for (u32 i = 0; i < count; i++) {
		if (!take_field(r, &ops->state.field[i], dev, e)) {
			err_prefix(e, "%s", ops->name);
			return -EINVAL;
		}
	}
	return 0;
}

int device_load(const struct device_ops *ops, void *dev, const u8 *data, u64 len, u64 *used,
		struct err *e)
{
	struct reader check = {.data = data, .len = len}, r = check;

	if (take_device(&check, ops, NULL, e) || take_device(&r, ops, dev, e))
		return -EINVAL;
	*used = r.at;
	return ops->state.loaded ? ops->state.loaded(dev, e) : 0;
}

bool device_equal(const struct device_ops *ops, void *a, void *b)
{
	prepare(ops, a);
	prepare(ops, b);
	for (u32 i = 0; i < ops->state.count; i++) {
		const struct field *f = &ops->state.field[i];

		for (u32 k = 0; k < f->count; k++)
			if (element_get(f, a, k) != element_get(f, b, k))
				return false;
	}
	return true;
}

void device_print(const struct device_ops *ops, void *dev, FILE *out)
{
	prepare(ops, dev);
	for (u32 i = 0; i < ops->state.count; i++) {
		const struct field *f = &ops->state.field[i];

		fprintf(out, "%s.%s =", ops->name, f->name);
		for (u32 k = 0; k < f->count; k++)
			fprintf(out, " %#" PRIx64, element_get(f, dev, k));
		fputc('\n', out);
	}
}
