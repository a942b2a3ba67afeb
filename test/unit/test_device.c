/* Unit tests of device/device.c. */
#include "chip_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct thing {
	u8 a;
	u16 b;
	u32 c;
	u64 d;
	bool e;
	u8 bytes[5];
	struct {
		u16 x;
		bool y;
	} part[3];
	u32 derived;
};

static void thing_reset(void *dev)
{
	memset(dev, 0, sizeof(struct thing));
}

static int thing_loaded(void *dev, struct err *e)
{
	struct thing *t = dev;

	t->derived = t->c + 1;
	return t->b == 666 ? err_set(e, -EINVAL, "no") : 0;
}

static const struct field fields[] = {
	FIELD(FIELD_U8, struct thing, a),
	FIELD_MAX(FIELD_U16, struct thing, b, 1000),
	FIELD(FIELD_U32, struct thing, c),
	FIELD(FIELD_U64, struct thing, d),
	FIELD(FIELD_BOOL, struct thing, e),
	FIELD_ARRAY(FIELD_BYTES, struct thing, bytes),
	FIELD_EACH(FIELD_U16, struct thing, part, x),
	FIELD_EACH(FIELD_BOOL, struct thing, part, y),
};

static const struct device_ops thing_ops = {
	.name = "thing",
	.reset = thing_reset,
	.state = {fields, ARRAY_SIZE(fields), 3, NULL, thing_loaded},
};

static const struct thing sample = {
	.a = 1,
	.b = 1000,
	.c = 3,
	.d = ~0ul,
	.e = true,
	.bytes = "abcd",
	.part = {{1, true}, {2, false}, {0xffff, true}},
};

static void save_and_load(void **state)
{
	struct thing from = sample, to = {0};
	struct device_buf form = {0};
	u64 used;

	(void)state;
	assert_int_equal(device_save(&thing_ops, &from, &form), 0);
	assert_int_equal(device_load(&thing_ops, &to, form.data, form.len, &used, NULL), 0);
	assert_int_equal(used, form.len);
	assert_int_equal(to.derived, 4);
	assert_true(device_equal(&thing_ops, &from, &to));
	assert_int_equal(to.part[2].x, 0xffff);
	to.part[1].y = true;
	assert_false(device_equal(&thing_ops, &from, &to));
	device_buf_free(&form);
}

static void forms_can_follow_each_other(void **state)
{
	struct thing from = sample, to;
	struct device_buf form = {0};
	u64 used, at = 0;

	(void)state;
	for (u8 i = 0; i < 10; i++) {
		from.a = i;
		assert_int_equal(device_save(&thing_ops, &from, &form), 0);
	}
	for (u8 i = 0; i < 10; i++, at += used) {
		assert_int_equal(
			device_load(&thing_ops, &to, form.data + at, form.len - at, &used, NULL),
			0);
		assert_int_equal(to.a, i);
	}
	assert_int_equal(at, form.len);
	device_buf_free(&form);
}

static void refused_forms_change_nothing(void **state)
{
	struct thing from = sample, to = {0}, zero = {0};
	struct device_buf form = {0};
	struct err e = {0};
	u64 used;

	(void)state;
	from.b = 1001;
	assert_int_equal(device_save(&thing_ops, &from, &form), 0);
	assert_int_equal(device_load(&thing_ops, &to, form.data, form.len, &used, &e), -EINVAL);
	assert_string_equal(e.text, "thing: b[0]: 0x3e9 is out of range");
	assert_memory_equal(&to, &zero, sizeof(to));
	form.data[1] ^= 1; /* the name */
	assert_int_equal(device_load(&thing_ops, &to, form.data, form.len, &used, &e), -EINVAL);
	form.data[1] ^= 1;
	form.data[6]++; /* the version */
	assert_int_equal(device_load(&thing_ops, &to, form.data, form.len, &used, &e), -EINVAL);
	assert_memory_equal(&to, &zero, sizeof(to));
	device_buf_free(&form);
}

static void a_loaded_hook_may_refuse(void **state)
{
	struct thing from = {.b = 666}, to = {0};
	struct device_buf form = {0};
	u64 used;

	(void)state;
	assert_int_equal(device_save(&thing_ops, &from, &form), 0);
	assert_int_equal(device_load(&thing_ops, &to, form.data, form.len, &used, NULL), -EINVAL);
	device_buf_free(&form);
}

static void snapshot_property_of_the_test_device(void **state)
{
	struct thing from = sample, to = {0};

	(void)state;
	clock_start(1);
	check_state(&thing_ops, &from, &to);
}

static void prints_every_field(void **state)
{
	struct thing t = sample;
	char text[1024] = {0};
	FILE *out = fmemopen(text, sizeof(text) - 1, "w");

	(void)state;
	device_print(&thing_ops, &t, out);
	fclose(out);
	assert_non_null(strstr(text, "thing.part.x = 0x1 0x2 0xffff\n"));
	assert_non_null(strstr(text, "thing.d = 0xffffffffffffffff\n"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(save_and_load),
		cmocka_unit_test(forms_can_follow_each_other),
		cmocka_unit_test(refused_forms_change_nothing),
		cmocka_unit_test(a_loaded_hook_may_refuse),
		cmocka_unit_test(snapshot_property_of_the_test_device),
		cmocka_unit_test(prints_every_field),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
