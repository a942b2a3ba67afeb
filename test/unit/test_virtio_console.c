/* virtio-console (virtio 1.1, 5.3) over a recording back end, and virtio-rng's (5.4) limits. */
#include "virtio_driver.h"

#include "device/virtio/console.h"
#include "device/virtio/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { DATA = 0x600000, QUEUE_RX = 0, QUEUE_TX = 1 };

struct recorder {
	struct chardev chardev;
	char text[256];
	u64 len; /* bytes written in all; the first ones are in text */
	u32 kicks;
};

struct fixture {
	struct test_machine m;
	struct recorder out;
	struct virtio_console console;
	struct virtio_rng rng;
	struct test_driver t;
};

static void record_write(struct chardev *c, const u8 *data, u32 len)
{
	struct recorder *r = container_of(c, struct recorder, chardev);

	if (r->len < sizeof(r->text))
		memcpy(r->text + r->len, data, MIN(len, sizeof(r->text) - r->len));
	r->len += len;
}

static void record_kick(struct chardev *c)
{
	container_of(c, struct recorder, chardev)->kicks++;
}

static void record_close(struct chardev *c)
{
	(void)c;
}

static const struct chardev_ops record_ops = {
	.name = "recorder", .write = record_write, .kick = record_kick, .close = record_close};

static int setup(void **state)
{
	static struct fixture f;

	test_machine_init(&f.m, false);
	f.out.chardev.ops = &record_ops;
	assert_int_equal(virtio_console_init(&f.console, &f.m.env, &f.m.pci, &f.out.chardev, NULL),
			 0);
	assert_int_equal(virtio_rng_init(&f.rng, &f.m.env, &f.m.pci, NULL), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_rng_destroy(&f->rng);
	virtio_console_destroy(&f->console);
	test_machine_destroy(&f->m);
	return 0;
}

static void start_console(struct fixture *f)
{
	test_driver_start(&f->t, &f->m, &f->console.virtio, ~0ul);
	memset(f->out.text, 0, sizeof(f->out.text));
	f->out.len = f->out.kicks = 0;
}

static u32 type(struct fixture *f, const char *text)
{
	struct chardev_front *front = &f->out.chardev.front;
	u32 n = MIN(front->room(front->opaque), (u32)strlen(text));

	front->receive(front->opaque, (const u8 *)text, n);
	return n;
}

static void virtio_5_3_6_output(void **state)
{
	struct fixture *f = *state;
	struct test_seg seg[] = {{DATA, 5, false}, {DATA + 100, 6, false}};

	start_console(f);
	memcpy(test_ram(&f->m, DATA), "hello", 5);
	memcpy(test_ram(&f->m, DATA + 100), " world", 6);
	assert_int_equal(test_transfer(&f->t, QUEUE_TX, seg, 2, true), 0);
	assert_string_equal(f->out.text, "hello world");
}

static void virtio_5_3_6_input(void **state)
{
	struct fixture *f = *state;
	struct test_seg seg = {DATA, 4, true};
	u32 len;

	start_console(f);
	assert_int_equal(type(f, "abcdef"), 6); /* kept until there is a buffer */
	assert_int_equal(test_transfer(&f->t, QUEUE_RX, &seg, 1, false), 4);
	assert_memory_equal(test_ram(&f->m, DATA), "abcd", 4);
	assert_int_equal(test_transfer(&f->t, QUEUE_RX, &seg, 1, false), 2);
	assert_memory_equal(test_ram(&f->m, DATA), "ef", 2);
	test_add(&f->t.queue[QUEUE_RX], &seg, 1, false);
	test_kick(&f->t, QUEUE_RX);
	assert_false(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
	assert_int_equal(type(f, "x"), 1); /* a buffer waits already */
	assert_true(test_used(&f->t.queue[QUEUE_RX], NULL, &len));
	assert_int_equal(len, 1);
}

static void input_stops_when_full_and_resumes(void **state)
{
	struct test_seg seg = {DATA, 100, true};
	struct fixture *f = *state;
	u32 total = 0, n;

	start_console(f);
	while ((n = type(f, "0123456789")))
		total += n;
	assert_int_equal(total, VIRTIO_CONSOLE_INPUT);
	assert_int_equal(test_transfer(&f->t, QUEUE_RX, &seg, 1, false), 100);
	assert_int_equal(f->out.kicks, 1);
	assert_int_equal(test_transfer(&f->t, QUEUE_RX, &seg, 1, false), 100);
	assert_int_equal(f->out.kicks, 1);
}

static void virtio_5_3_4_emergency_write(void **state)
{
	struct fixture *f = *state;

	start_console(f);
	test_write(&f->t, REG_DEVICE + 8, 4, '!');
	assert_string_equal(f->out.text, "!");
	test_write(&f->t, REG_DEVICE, 4, 'x'); /* the size is not for the driver to write */
	test_write(&f->t, REG_DEVICE + 12, 4, 'x');
	assert_int_equal(f->out.len, 1);
}

/* A chain may name the same megabytes hundreds of times. */
static void output_of_one_chain_is_bounded(void **state)
{
	struct test_seg seg[200];
	struct fixture *f = *state;

	start_console(f);
	for (u32 i = 0; i < ARRAY_SIZE(seg); i++)
		seg[i] = (struct test_seg){DATA, 8 * 1024 * 1024, false};
	test_transfer(&f->t, QUEUE_TX, seg, ARRAY_SIZE(seg), true);
	assert_true(f->out.len <= 1024 * 1024);
}

static void virtio_5_4_6_random_numbers(void **state)
{
	struct test_seg seg[] = {{DATA, 40, true}, {DATA + 64, 24, true}};
	struct fixture *f = *state;
	static const u8 zeros[64];

	test_driver_start(&f->t, &f->m, &f->rng.virtio, ~0ul);
	memset(test_ram(&f->m, DATA), 0, 128);
	assert_int_equal(test_transfer(&f->t, 0, seg, 2, false), 64);
	assert_memory_not_equal(test_ram(&f->m, DATA), zeros, 40);
	assert_memory_not_equal(test_ram(&f->m, DATA + 64), zeros, 24);
	assert_memory_equal(test_ram(&f->m, DATA + 40), zeros, 24);
}

static void random_numbers_are_rationed(void **state)
{
	struct test_seg seg = {DATA, 1024 * 1024, true};
	struct fixture *f = *state;
	u64 total = 0;
	u32 len, n = 0;

	test_driver_start(&f->t, &f->m, &f->rng.virtio, ~0ul);
	f->rng.refill.fire(f->rng.refill.opaque);
	for (; n < 1000; n++) {
		test_add(&f->t.queue[0], &seg, 1, false);
		test_kick(&f->t, 0);
		if (!test_used(&f->t.queue[0], NULL, &len))
			break;
		total += len;
	}
	assert_true(n < 1000 && total <= 1024 * 1024);
	/* What waits is served in the next period. */
	f->rng.refill.fire(f->rng.refill.opaque);
	assert_true(test_used(&f->t.queue[0], NULL, &len));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(virtio_5_3_6_output),
		cmocka_unit_test(virtio_5_3_6_input),
		cmocka_unit_test(input_stops_when_full_and_resumes),
		cmocka_unit_test(virtio_5_3_4_emergency_write),
		cmocka_unit_test(output_of_one_chain_is_bounded),
		cmocka_unit_test(virtio_5_4_6_random_numbers),
		cmocka_unit_test(random_numbers_are_rationed),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
