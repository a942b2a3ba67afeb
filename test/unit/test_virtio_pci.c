/* The PCI transport (virtio 1.1, 4.1) and device life cycle (2.1, 3.1), seen through an entropy
 * device. */
#include "virtio_driver.h"

#include "device/virtio/rng.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { DATA = 0x300000, DRIVER_UP = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK };

struct fixture {
	struct test_machine m;
	struct virtio_rng rng;
	struct test_driver t;
};

static int setup(void **state)
{
	static struct fixture f;

	test_machine_init(&f.m, false);
	assert_int_equal(virtio_rng_init(&f.rng, &f.m.env, &f.m.pci, NULL), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_rng_destroy(&f->rng);
	test_machine_destroy(&f->m);
	return 0;
}

static void ask(struct fixture *f)
{
	struct test_seg seg = {DATA, 64, true};

	assert_int_equal(test_transfer(&f->t, 0, &seg, 1, false), 64);
}

static void virtio_4_1_2_identity(void **state)
{
	struct fixture *f = *state;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, true);
	assert_int_equal(test_config_read(&f->t, 0, 2), 0x1af4);
	assert_int_equal(test_config_read(&f->t, 2, 2), 0x1044);
	assert_true(test_config_read(&f->t, 8, 1) >= 1); /* revision of a modern device */
	assert_true(test_config_read(&f->t, 0x2e, 2) >= 0x40);
}

static void virtio_4_1_4_capabilities(void **state)
{
	struct fixture *f = *state;
	u32 seen = 0;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, true);
	for (u32 cap = test_config_read(&f->t, 0x34, 1); cap;
	     cap = test_config_read(&f->t, cap + 1, 1)) {
		u32 type = test_config_read(&f->t, cap + 3, 1);

		if (test_config_read(&f->t, cap, 1) != 9)
			continue;
		seen |= 1u << type;
		if (type != 5) {
			assert_int_equal(test_config_read(&f->t, cap + 4, 1), 4);
			assert_int_equal(test_config_read(&f->t, cap + 8, 4) % 4, 0);
		}
	}
	/* Common, notify, ISR, PCI access; no device configuration, as this device has none. */
	assert_int_equal(seen, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5);
}

static void virtio_4_1_4_7_configuration_access(void **state)
{
	struct fixture *f = *state;
	struct test_driver *t = &f->t;
	u32 cap;

	test_driver_probe(t, &f->m, &f->rng.virtio, true);
	cap = f->rng.virtio.access_cap;
	test_config_write(t, cap + 4, 1, 4);
	test_config_write(t, cap + 8, 4, REG_STATUS);
	test_config_write(t, cap + 12, 4, 1);
	test_config_write(t, cap + 16, 4, VIRTIO_ACKNOWLEDGE);
	assert_int_equal(test_read(t, REG_STATUS, 1), VIRTIO_ACKNOWLEDGE);
	assert_int_equal(test_config_read(t, cap + 16, 1), VIRTIO_ACKNOWLEDGE);
	test_config_write(t, cap + 8, 4, REG_NUM_QUEUES);
	test_config_write(t, cap + 12, 4, 2);
	assert_int_equal(test_config_read(t, cap + 16, 4), 1);
	/* Nonsense in the window does nothing. */
	test_config_write(t, cap + 12, 4, 3);
	test_config_write(t, cap + 16, 4, ~0u);
	test_config_write(t, cap + 12, 4, 4);
	test_config_write(t, cap + 8, 4, ~3u);
	test_config_write(t, cap + 16, 4, ~0u);
	test_config_read(t, cap + 16, 4);
	test_config_write(t, cap + 4, 1, 1);
	test_config_write(t, cap + 8, 4, 0);
	test_config_write(t, cap + 16, 4, ~0u);
	assert_int_equal(test_read(t, REG_STATUS, 1), VIRTIO_ACKNOWLEDGE);
}

static void virtio_2_2_2_features_ok(void **state)
{
	struct fixture *f = *state;
	struct test_driver *t = &f->t;

	test_driver_probe(t, &f->m, &f->rng.virtio, true);
	/* A bit that was not offered. */
	test_write(t, REG_STATUS, 1, 0);
	test_write(t, REG_FEATURE_SELECT, 4, 0);
	test_write(t, REG_FEATURE, 4, 1);
	test_write(t, REG_FEATURE_SELECT, 4, 1);
	test_write(t, REG_FEATURE, 4, 1);
	test_write(t, REG_STATUS, 1, DRIVER_UP);
	assert_false(test_read(t, REG_STATUS, 1) & VIRTIO_FEATURES_OK);
	/* Without VERSION_1. */
	test_write(t, REG_STATUS, 1, 0);
	test_write(t, REG_STATUS, 1, DRIVER_UP);
	assert_false(test_read(t, REG_STATUS, 1) & VIRTIO_FEATURES_OK);
	/* DRIVER_OK needs FEATURES_OK. */
	test_write(t, REG_STATUS, 1, VIRTIO_DRIVER | VIRTIO_DRIVER_OK);
	assert_false(test_read(t, REG_STATUS, 1) & VIRTIO_DRIVER_OK);
	/* Right, and then fixed. */
	test_driver_negotiate(t, ~0ul);
	assert_int_equal(test_read(t, REG_STATUS, 1), DRIVER_UP);
	test_write(t, REG_FEATURE_SELECT, 4, 0);
	test_write(t, REG_FEATURE, 4, 0);
	assert_int_not_equal(test_read(t, REG_FEATURE, 4), 0);
	test_write(t, REG_FEATURE_SELECT, 4, 7);
	assert_int_equal(test_read(t, REG_FEATURE, 4), 0);
	test_write(t, REG_HOST_FEATURE_SELECT, 4, ~0u);
	assert_int_equal(test_read(t, REG_HOST_FEATURE, 4), 0);
}

static void virtio_4_1_4_3_queue_registers(void **state)
{
	struct fixture *f = *state;
	struct test_driver *t = &f->t;

	test_driver_probe(t, &f->m, &f->rng.virtio, true);
	test_driver_negotiate(t, 0);
	test_write(t, REG_QUEUE_SELECT, 2, 1);
	assert_int_equal(test_read(t, REG_QUEUE_SIZE, 2), 0); /* no such queue */
	test_write(t, REG_QUEUE_ENABLE, 2, 1);
	assert_int_equal(test_read(t, REG_QUEUE_ENABLE, 2), 0);
	test_write(t, REG_QUEUE_SELECT, 2, 0);
	assert_int_equal(test_read(t, REG_QUEUE_SIZE, 2), 64);
	test_write(t, REG_QUEUE_SIZE, 2, 65);
	test_write(t, REG_QUEUE_SIZE, 2, 128);
	test_write(t, REG_QUEUE_SIZE, 2, 0);
	assert_int_equal(test_read(t, REG_QUEUE_SIZE, 2), 64);
	test_write(t, REG_QUEUE_VECTOR, 2, 2); /* there are two: 0 and 1 */
	assert_int_equal(test_read(t, REG_QUEUE_VECTOR, 2), VIRTQ_NO_VECTOR);
	test_driver_queue(t, 0, 16);
	assert_int_equal(test_read(t, REG_QUEUE_SIZE, 2), 16);
	assert_int_equal(test_read(t, REG_QUEUE_ENABLE, 2), 1);
	assert_int_equal(test_read(t, REG_QUEUE_DESC, 4), t->queue[0].desc);
	test_write(t, REG_QUEUE_DESC, 4, 0x1000); /* enabled: fixed */
	assert_int_equal(test_read(t, REG_QUEUE_DESC, 4), t->queue[0].desc);
	assert_int_equal(test_read(t, REG_QUEUE_DESC + 4, 4), 0);
}

static void virtio_4_1_5_1_3_msix(void **state)
{
	struct fixture *f = *state;

	test_driver_start(&f->t, &f->m, &f->rng.virtio, 0);
	f->m.msi[1] = 0;
	ask(f);
	assert_int_equal(f->m.msi[1], 1);
	assert_int_equal(test_read(&f->t, REG_ISR, 1), 0);
	assert_false(f->m.intx[0] || f->m.intx[1] || f->m.intx[2] || f->m.intx[3]);
}

static bool any_line(const struct test_machine *m)
{
	return m->intx[0] || m->intx[1] || m->intx[2] || m->intx[3];
}

static void virtio_4_1_5_1_4_intx(void **state)
{
	struct fixture *f = *state;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, false);
	for (u32 cap = test_config_read(&f->t, 0x34, 1); cap;
	     cap = test_config_read(&f->t, cap + 1, 1))
		if (test_config_read(&f->t, cap, 1) == 0x11)
			test_config_write(&f->t, cap + 2, 2, 0);
	test_driver_negotiate(&f->t, 0);
	test_driver_queue(&f->t, 0, 64);
	test_driver_ok(&f->t);
	ask(f);
	assert_true(any_line(&f->m));
	assert_int_equal(test_read(&f->t, REG_ISR, 1), VIRTIO_ISR_QUEUE);
	assert_false(any_line(&f->m)); /* reading acknowledges */
	assert_int_equal(test_read(&f->t, REG_ISR, 1), 0);
	ask(f);
	test_write(&f->t, REG_STATUS, 1, 0); /* so does a reset */
	assert_false(any_line(&f->m));
}

static void virtio_2_1_2_needs_reset(void **state)
{
	struct fixture *f = *state;
	struct test_seg seg = {TEST_ECAM, 64, true}; /* not memory */

	test_driver_start(&f->t, &f->m, &f->rng.virtio, 0);
	f->m.msi[0] = 0;
	test_add(&f->t.queue[0], &seg, 1, false);
	test_kick(&f->t, 0);
	assert_true(test_read(&f->t, REG_STATUS, 1) & VIRTIO_NEEDS_RESET);
	assert_int_equal(f->m.msi[0], 1); /* configuration interrupt */
	assert_false(test_used(&f->t.queue[0], NULL, NULL));
	/* Nothing works until the reset, whatever the driver writes. */
	test_driver_ok(&f->t);
	seg.gpa = DATA;
	test_add(&f->t.queue[0], &seg, 1, false);
	test_kick(&f->t, 0);
	assert_false(test_used(&f->t.queue[0], NULL, NULL));
	assert_int_equal(f->m.msi[0], 1);
	test_driver_start(&f->t, &f->m, &f->rng.virtio, 0);
	ask(f);
}

static void rings_outside_of_memory_need_a_reset(void **state)
{
	struct fixture *f = *state;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, true);
	test_driver_negotiate(&f->t, 0);
	test_write(&f->t, REG_QUEUE_SELECT, 2, 0);
	test_write(&f->t, REG_QUEUE_DESC, 4, TEST_ECAM);
	test_write(&f->t, REG_QUEUE_ENABLE, 2, 1);
	assert_true(test_read(&f->t, REG_STATUS, 1) & VIRTIO_NEEDS_RESET);
	assert_int_equal(test_read(&f->t, REG_QUEUE_ENABLE, 2), 0);
	test_driver_ok(&f->t);
	test_kick(&f->t, 0);
}

static void doorbells_out_of_place_are_ignored(void **state)
{
	struct fixture *f = *state;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, true);
	test_driver_negotiate(&f->t, 0);
	test_kick(&f->t, 0); /* not enabled */
	test_driver_queue(&f->t, 0, 64);
	test_add(&f->t.queue[0], &(struct test_seg){DATA, 64, true}, 1, false);
	test_kick(&f->t, 0); /* not DRIVER_OK */
	assert_false(test_used(&f->t.queue[0], NULL, NULL));
	test_driver_ok(&f->t);
	test_config_write(&f->t, 4, 2, 2);
	test_kick(&f->t, 0); /* not bus master */
	assert_false(test_used(&f->t.queue[0], NULL, NULL));
	test_config_write(&f->t, 4, 2, 6);
	for (u32 off = 0; off < 0x1000; off += 3)
		test_write(&f->t, REG_NOTIFY + 4 + off, 1, 0);
	assert_false(test_used(&f->t.queue[0], NULL, NULL));
	test_kick(&f->t, 0);
	assert_true(test_used(&f->t.queue[0], NULL, NULL));
}

/* ---- doorbells through events ---- */

struct listener {
	u64 gpa; /* 0: nobody listens */
	int fd;
};

static int listen_to(void *opaque, u64 gpa, int fd, bool on)
{
	struct listener *l = opaque;

	if (on)
		assert_int_equal(l->gpa, 0);
	else
		assert_int_equal(l->gpa, gpa);
	l->gpa = on ? gpa : 0;
	l->fd = fd;
	return 0;
}

/* A device of its own with doorbells in @set, of which @l hears. */
static void doorbells_setup(struct fixture *f, struct doorbells *set, struct listener *l)
{
	test_machine_init(&f->m, true);
	*set = (struct doorbells){
		.loop = f->m.loop, .lock = &f->m.lock, .listen = listen_to, .opaque = l};
	f->m.env.doorbells = set;
	assert_int_equal(virtio_rng_init(&f->rng, &f->m.env, &f->m.pci, NULL), 0);
}

static void doorbell_follows_the_bar(void **state)
{
	struct listener l = {0};
	struct fixture f = {0};
	struct doorbells set;

	(void)state;
	doorbells_setup(&f, &set, &l);
	assert_int_equal(l.gpa, 0);
	test_driver_start(&f.t, &f.m, &f.rng.virtio, 0);
	assert_int_equal(l.gpa, f.t.bar + REG_NOTIFY);
	test_config_write(&f.t, 0x20, 4, (u32)f.t.bar + 0x8000);
	assert_int_equal(l.gpa, f.t.bar + 0x8000 + REG_NOTIFY);
	test_config_write(&f.t, 0x04, 2, 4); /* no memory space */
	assert_int_equal(l.gpa, 0);
	test_config_write(&f.t, 0x20, 4, (u32)f.t.bar);
	test_config_write(&f.t, 0x04, 2, 6);
	assert_int_equal(l.gpa, f.t.bar + REG_NOTIFY);
	doorbells_listen(&set, false);
	assert_int_equal(l.gpa, 0);
	doorbells_listen(&set, true);
	assert_int_equal(l.gpa, f.t.bar + REG_NOTIFY);
	virtio_rng_destroy(&f.rng);
	assert_int_equal(l.gpa, 0);
	test_machine_destroy(&f.m);
}

/* An event does what a store does, and a store still does it. */
static void event_rings(void **state)
{
	const struct test_seg seg = {DATA, 64, true};
	const u64 one = 1;
	struct listener l = {0};
	struct fixture f = {0};
	struct doorbells set;

	(void)state;
	doorbells_setup(&f, &set, &l);
	test_driver_start(&f.t, &f.m, &f.rng.virtio, 0);
	test_add(&f.t.queue[0], &seg, 1, false);
	assert_int_equal(write(l.fd, &one, sizeof(one)), sizeof(one));
	assert_true(test_used(&f.t.queue[0], NULL, NULL));
	assert_int_equal(set.rung, 1);
	ask(&f);
	assert_int_equal(set.rung, 1);
	virtio_rng_destroy(&f.rng);
	test_machine_destroy(&f.m);
}

static void every_register_survives_every_access(void **state)
{
	struct fixture *f = *state;

	test_driver_probe(&f->t, &f->m, &f->rng.virtio, true);
	for (u32 size = 1; size <= 8; size *= 2)
		for (u64 off = 0; off < 0x3100; off += off < 0x60 ? 1 : 0x7d) {
			test_read(&f->t, off, size);
			test_write(&f->t, off, size, 0x5a5a5a5a5a5a5a5a);
			test_write(&f->t, off, size, ~0ul);
			test_write(&f->t, off, size, 0);
		}
	test_driver_start(&f->t, &f->m, &f->rng.virtio, ~0ul);
	ask(f);
}

static void state_survives_save_and_load(void **state)
{
	struct fixture *f = *state;
	struct device_buf saved = {0};
	u64 used;

	test_driver_start(&f->t, &f->m, &f->rng.virtio, ~0ul);
	ask(f);
	assert_int_equal(device_save(&virtio_rng_ops, &f->rng, &saved), 0);
	virtio_reset(&f->rng);
	assert_int_equal(f->rng.virtio.status, 0);
	assert_int_equal(device_load(&virtio_rng_ops, &f->rng, saved.data, saved.len, &used, NULL),
			 0);
	assert_int_equal(used, saved.len);
	ask(f);
	device_buf_free(&saved);
}

static void loaded_state_is_checked(void **state)
{
	static const u16 bad_sizes[] = {3, 128, 0};
	struct fixture *f = *state;
	struct virtio_device *d = &f->rng.virtio;

	for (u32 i = 0; i < ARRAY_SIZE(bad_sizes); i++) {
		test_driver_start(&f->t, &f->m, d, ~0ul);
		d->queue[0].size = bad_sizes[i];
		assert_int_equal(virtio_loaded(&f->rng, NULL), -EINVAL);
	}
	test_driver_start(&f->t, &f->m, d, ~0ul);
	d->queue[0].used_gpa = TEST_ECAM;
	assert_int_equal(virtio_loaded(&f->rng, NULL), -EINVAL);
	test_driver_start(&f->t, &f->m, d, ~0ul);
	d->features |= 1;
	assert_int_equal(virtio_loaded(&f->rng, NULL), -EINVAL);
	test_driver_start(&f->t, &f->m, d, ~0ul);
	ask(f);
}

/* Its rings were never mapped. */
static void refused_state_leaves_queues_off(void **state)
{
	struct fixture *f = *state;
	struct virtio_device *d = &f->rng.virtio;
	struct device_buf saved = {0};
	u64 used;

	test_driver_start(&f->t, &f->m, d, ~0ul);
	ask(f);
	d->features |= 1;
	assert_int_equal(device_save(&virtio_rng_ops, &f->rng, &saved), 0);
	virtio_reset(&f->rng);
	assert_int_equal(device_load(&virtio_rng_ops, &f->rng, saved.data, saved.len, &used, NULL),
			 -EINVAL);
	virtio_publish(d, 0);
	virtio_notify(d, 0);
	virtio_reset(&f->rng);
	test_driver_start(&f->t, &f->m, d, ~0ul);
	ask(f);
	device_buf_free(&saved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(virtio_4_1_2_identity),
		cmocka_unit_test(virtio_4_1_4_capabilities),
		cmocka_unit_test(virtio_4_1_4_7_configuration_access),
		cmocka_unit_test(virtio_2_2_2_features_ok),
		cmocka_unit_test(virtio_4_1_4_3_queue_registers),
		cmocka_unit_test(virtio_4_1_5_1_3_msix),
		cmocka_unit_test(virtio_4_1_5_1_4_intx),
		cmocka_unit_test(virtio_2_1_2_needs_reset),
		cmocka_unit_test(rings_outside_of_memory_need_a_reset),
		cmocka_unit_test(doorbells_out_of_place_are_ignored),
		cmocka_unit_test(doorbell_follows_the_bar),
		cmocka_unit_test(event_rings),
		cmocka_unit_test(every_register_survives_every_access),
		cmocka_unit_test(state_survives_save_and_load),
		cmocka_unit_test(loaded_state_is_checked),
		cmocka_unit_test(refused_state_leaves_queues_off),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
