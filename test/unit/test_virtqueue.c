/* Split rings by the clauses of virtio 1.1, without a device around them. */
#include "virtio_driver.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { SIZE = 8, DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, DATA = 0x10000, TABLE = 0x5000 };

struct fixture {
	struct test_machine m;
	struct virtqueue vq;
	struct virtq_chain c;
};

static struct vring_desc *desc(struct fixture *f, u32 i)
{
	return (struct vring_desc *)(void *)test_ram(&f->m, DESC) + i;
}

static struct vring_avail *avail(struct fixture *f)
{
	return (void *)test_ram(&f->m, AVAIL);
}

static struct vring_used *used(struct fixture *f)
{
	return (void *)test_ram(&f->m, USED);
}

static void restart(struct fixture *f, bool event_index, bool indirect)
{
	memset(test_ram(&f->m, 0), 0, 0x20000);
	f->vq.size_max = SIZE;
	f->vq.pm = &f->m.pm;
	virtq_reset(&f->vq);
	f->vq.desc_gpa = DESC;
	f->vq.avail_gpa = AVAIL;
	f->vq.used_gpa = USED;
	assert_true(virtq_enable(&f->vq, event_index, indirect));
}

static int setup(void **state)
{
	static struct fixture f;

	test_machine_init(&f.m, false);
	restart(&f, false, true);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	test_machine_destroy(&f->m);
	return 0;
}

static void offer(struct fixture *f, u16 head)
{
	struct vring_avail *a = avail(f);

	a->ring[a->idx % SIZE] = head;
	a->idx++;
}

static void expect_broken(struct fixture *f)
{
	assert_int_equal(virtq_pop(&f->vq, &f->c), -EINVAL);
	assert_non_null(f->vq.broken);
	/* It stays broken, and neither pushes nor publishes any more. */
	assert_int_equal(virtq_pop(&f->vq, &f->c), -EINVAL);
	virtq_push_head(&f->vq, 0, 0);
	assert_false(virtq_publish(&f->vq));
	assert_int_equal(used(f)->idx, 0);
}

static void virtio_2_6_6_takes_chains_in_order(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	*desc(f, 3) = (struct vring_desc){DATA, 100, VRING_DESC_NEXT, 5};
	*desc(f, 5) = (struct vring_desc){DATA + 100, 50, VRING_DESC_WRITE, 0};
	*desc(f, 1) = (struct vring_desc){DATA, 7, 0, 0};
	assert_int_equal(virtq_pop(&f->vq, &f->c), 0);
	offer(f, 3);
	offer(f, 1);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(f->c.head, 3);
	assert_int_equal(f->c.out, 1);
	assert_int_equal(f->c.in, 1);
	assert_int_equal(f->c.out_len, 100);
	assert_int_equal(f->c.in_len, 50);
	assert_ptr_equal(f->c.iov[1].iov_base, test_ram(&f->m, DATA + 100));
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(f->c.head, 1);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 0);
}

static void virtio_2_6_8_used_entries_and_index(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	*desc(f, 2) = (struct vring_desc){DATA, 64, VRING_DESC_WRITE, 0};
	offer(f, 2);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(virtq_copy_in(&f->c, 0, "hello", 5), 5);
	f->m.writes = 0;
	virtq_push(&f->vq, &f->c, 5);
	assert_int_equal(used(f)->idx, 0); /* not before it is published */
	assert_true(virtq_publish(&f->vq));
	assert_int_equal(used(f)->idx, 1);
	assert_int_equal(used(f)->ring[0].id, 2);
	assert_int_equal(used(f)->ring[0].len, 5);
	assert_memory_equal(test_ram(&f->m, DATA), "hello", 5);
	assert_true(f->m.writes >= 5 + 8 + 2); /* data, entry and index are reported as written */
	assert_false(virtq_publish(&f->vq));
}

static void virtio_2_6_7_no_interrupt_flag(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	*desc(f, 0) = (struct vring_desc){DATA, 64, 0, 0};
	avail(f)->flags = VRING_AVAIL_NO_INTERRUPT;
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	virtq_push(&f->vq, &f->c, 0);
	assert_false(virtq_publish(&f->vq));
}

static void complete_one(struct fixture *f)
{
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	virtq_push(&f->vq, &f->c, 0);
}

static void virtio_2_6_7_2_used_event(void **state)
{
	struct fixture *f = *state;

	restart(f, true, true);
	*desc(f, 0) = (struct vring_desc){DATA, 64, 0, 0};
	avail(f)->ring[SIZE] = 1; /* interrupt once index 1 has been used */
	complete_one(f);
	assert_false(virtq_publish(&f->vq));
	complete_one(f);
	assert_true(virtq_publish(&f->vq));
	complete_one(f);
	assert_false(virtq_publish(&f->vq));
	avail(f)->ring[SIZE] = 4; /* crossed in the middle of a batch of three: 3, 4, 5 */
	complete_one(f);
	complete_one(f);
	complete_one(f);
	assert_true(virtq_publish(&f->vq));
}

static void virtio_2_6_7_2_used_event_across_wrap(void **state)
{
	struct fixture *f = *state;

	restart(f, true, true);
	*desc(f, 0) = (struct vring_desc){DATA, 64, 0, 0};
	for (u32 i = 0; i < 0x1fffe; i++) {
		avail(f)->ring[SIZE] = (u16)i;
		complete_one(f);
		assert_true(virtq_publish(&f->vq));
	}
	avail(f)->ring[SIZE] = 0xffff;
	complete_one(f);
	assert_false(virtq_publish(&f->vq));
	complete_one(f);
	assert_true(virtq_publish(&f->vq));
}

static void virtio_2_6_10_notification_suppression(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	virtq_notify_off(&f->vq);
	assert_int_equal(used(f)->flags, VRING_USED_NO_NOTIFY);
	assert_false(virtq_notify_on(&f->vq));
	assert_int_equal(used(f)->flags, 0);
	offer(f, 0);
	assert_true(virtq_notify_on(&f->vq)); /* arrived in between */

	restart(f, true, true);
	*desc(f, 0) = (struct vring_desc){DATA, 64, 0, 0};
	complete_one(f);
	assert_false(virtq_notify_on(&f->vq));
	assert_int_equal(*(u16 *)(void *)&used(f)->ring[SIZE], 1); /* avail_event */
}

static void virtio_2_6_5_3_indirect(void **state)
{
	struct fixture *f = *state;
	struct vring_desc *t = (void *)test_ram(&f->m, TABLE);

	restart(f, false, true);
	t[0] = (struct vring_desc){DATA, 16, VRING_DESC_NEXT, 2};
	t[2] = (struct vring_desc){DATA + 16, 512, VRING_DESC_WRITE | VRING_DESC_NEXT, 1};
	t[1] = (struct vring_desc){DATA + 600, 1, VRING_DESC_WRITE, 0};
	/* 2.6.5.3.2: the WRITE flag of the descriptor that names the table means nothing. */
	*desc(f, 4) = (struct vring_desc){TABLE, 48, VRING_DESC_INDIRECT | VRING_DESC_WRITE, 0};
	offer(f, 4);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(f->c.out, 1);
	assert_int_equal(f->c.in, 2);
	assert_int_equal(f->c.in_len, 513);
}

/* Everything a driver can get wrong; each breaks the queue. */
static void hostile_chains_break_the_queue(void **state)
{
	static const struct {
		const char *what;
		struct vring_desc d0, d1, t0;
		u16 head;
	} cases[] = {
		{"head out of range", {DATA, 1, 0, 0}, {0}, {0}, SIZE},
		{"link out of range", {DATA, 1, VRING_DESC_NEXT, SIZE}, {0}, {0}, 0},
		{"loop of one", {DATA, 1, VRING_DESC_NEXT, 0}, {0}, {0}, 0},
		{"loop of two",
		 {DATA, 1, VRING_DESC_NEXT, 1},
		 {DATA, 1, VRING_DESC_NEXT, 0},
		 {0},
		 0},
		{"loop of empty ones", {DATA, 0, VRING_DESC_NEXT, 0}, {0}, {0}, 0},
		{"outside of memory", {0x2000000, 1, 0, 0}, {0}, {0}, 0},
		{"across the end", {TEST_RAM - 1, 2, 0, 0}, {0}, {0}, 0},
		{"address wraps", {~0ul, 2, 0, 0}, {0}, {0}, 0},
		{"device memory", {TEST_ECAM, 16, 0, 0}, {0}, {0}, 0},
		{"write to ROM", {TEST_ROM_BASE, 16, VRING_DESC_WRITE, 0}, {0}, {0}, 0},
		{"readable after writable",
		 {DATA, 1, VRING_DESC_WRITE | VRING_DESC_NEXT, 1},
		 {DATA, 1, 0, 0},
		 {0},
		 0},
		{"indirect and next",
		 {TABLE, 16, VRING_DESC_INDIRECT | VRING_DESC_NEXT, 1},
		 {DATA, 1, 0, 0},
		 {DATA, 1, 0, 0},
		 0},
		{"indirect of odd length",
		 {TABLE, 17, VRING_DESC_INDIRECT, 0},
		 {0},
		 {DATA, 1, 0, 0},
		 0},
		{"indirect of no length",
		 {TABLE, 0, VRING_DESC_INDIRECT, 0},
		 {0},
		 {DATA, 1, 0, 0},
		 0},
		{"nested indirect",
		 {TABLE, 16, VRING_DESC_INDIRECT, 0},
		 {0},
		 {TABLE, 16, VRING_DESC_INDIRECT, 0},
		 0},
		{"indirect link out of range",
		 {TABLE, 16, VRING_DESC_INDIRECT, 0},
		 {0},
		 {DATA, 1, VRING_DESC_NEXT, 1},
		 0},
		{"indirect loop",
		 {TABLE, 16, VRING_DESC_INDIRECT, 0},
		 {0},
		 {DATA, 1, VRING_DESC_NEXT, 0},
		 0},
		{"indirect table outside of memory",
		 {TEST_RAM - 8, 16, VRING_DESC_INDIRECT, 0},
		 {0},
		 {0},
		 0},
		{"indirect table address wraps",
		 {~0ul - 7, 0xfffffff0, VRING_DESC_INDIRECT, 0},
		 {0},
		 {0},
		 0},
	};
	struct fixture *f = *state;

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		restart(f, false, true);
		*desc(f, 0) = cases[i].d0;
		*desc(f, 1) = cases[i].d1;
		memcpy(test_ram(&f->m, TABLE), &cases[i].t0, sizeof(cases[i].t0));
		offer(f, cases[i].head);
		expect_broken(f);
	}
}

static void virtio_2_6_5_3_1_indirect_without_the_feature(void **state)
{
	struct fixture *f = *state;

	restart(f, false, false);
	*desc(f, 0) = (struct vring_desc){TABLE, 16, VRING_DESC_INDIRECT, 0};
	offer(f, 0);
	expect_broken(f);
}

static void wild_available_index_breaks_the_queue(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	avail(f)->idx = SIZE + 1;
	expect_broken(f);
	restart(f, false, true);
	avail(f)->idx = 0xffff;
	expect_broken(f);
}

static void total_length_is_bounded(void **state)
{
	struct fixture *f = *state;
	struct vring_desc *t = (void *)test_ram(&f->m, TABLE);

	restart(f, false, true);
	for (u32 i = 0; i < 250; i++)
		t[i] = (struct vring_desc){0, TEST_RAM, VRING_DESC_NEXT, (u16)(i + 1)};
	t[250] = (struct vring_desc){0, 1, 0, 0};
	*desc(f, 0) = (struct vring_desc){TABLE, 251 * 16, VRING_DESC_INDIRECT, 0};
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1); /* 250 times 16 MiB is below 4 GiB */

	restart(f, false, true);
	for (u32 i = 0; i < 256; i++)
		t[i] = (struct vring_desc){0, TEST_RAM, VRING_DESC_NEXT, (u16)(i + 1)};
	*desc(f, 0) = (struct vring_desc){TABLE, 300 * 16, VRING_DESC_INDIRECT, 0};
	offer(f, 0);
	expect_broken(f);
}

static void rings_must_be_aligned_and_in_ram(void **state)
{
	static const struct {
		gpa_t desc, avail, used;
	} bad[] = {
		{DESC + 8, AVAIL, USED},      {DESC, AVAIL + 1, USED},
		{DESC, AVAIL, USED + 2},      {TEST_RAM - 16, AVAIL, USED},
		{DESC, TEST_RAM - 2, USED},   {DESC, AVAIL, TEST_RAM - 4},
		{DESC, AVAIL, TEST_ROM_BASE}, {~0ul & ~15ul, AVAIL, USED},
	};
	struct fixture *f = *state;

	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		virtq_reset(&f->vq);
		f->vq.desc_gpa = bad[i].desc;
		f->vq.avail_gpa = bad[i].avail;
		f->vq.used_gpa = bad[i].used;
		assert_false(virtq_enable(&f->vq, true, true));
		assert_false(f->vq.enabled);
		assert_non_null(f->vq.broken);
	}
}

static void withdraw_and_unpop_restore_the_queue(void **state)
{
	struct fixture *f = *state;

	restart(f, false, true);
	*desc(f, 0) = (struct vring_desc){DATA, 64, VRING_DESC_WRITE, 0};
	*desc(f, 1) = (struct vring_desc){DATA, 64, VRING_DESC_WRITE, 0};
	offer(f, 0);
	offer(f, 1);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	virtq_push(&f->vq, &f->c, 1);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	virtq_push(&f->vq, &f->c, 1);
	virtq_withdraw(&f->vq, 2);
	assert_false(virtq_publish(&f->vq));
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(f->c.head, 0);
	virtq_unpop(&f->vq, 1);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(f->c.head, 0);
	assert_int_equal(virtq_pending(&f->vq), 1);
}

static void copies_cross_segments(void **state)
{
	struct fixture *f = *state;
	char out[8] = {0};

	restart(f, false, true);
	memcpy(test_ram(&f->m, DATA), "abc", 3);
	memcpy(test_ram(&f->m, DATA + 100), "defg", 4);
	*desc(f, 0) = (struct vring_desc){DATA, 3, VRING_DESC_NEXT, 1};
	*desc(f, 1) = (struct vring_desc){DATA + 100, 4, VRING_DESC_NEXT, 2};
	*desc(f, 2) = (struct vring_desc){DATA + 200, 2, VRING_DESC_WRITE | VRING_DESC_NEXT, 3};
	*desc(f, 3) = (struct vring_desc){DATA + 300, 2, VRING_DESC_WRITE, 0};
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->vq, &f->c), 1);
	assert_int_equal(virtq_copy_out(&f->c, 2, out, 8), 5);
	assert_string_equal(out, "cdefg");
	assert_int_equal(virtq_copy_in(&f->c, 1, "xyz", 3), 3);
	assert_int_equal(test_ram(&f->m, DATA + 201)[0], 'x');
	assert_memory_equal(test_ram(&f->m, DATA + 300), "yz", 2);
	assert_int_equal(virtq_copy_in(&f->c, 4, "q", 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(virtio_2_6_6_takes_chains_in_order),
		cmocka_unit_test(virtio_2_6_8_used_entries_and_index),
		cmocka_unit_test(virtio_2_6_7_no_interrupt_flag),
		cmocka_unit_test(virtio_2_6_7_2_used_event),
		cmocka_unit_test(virtio_2_6_7_2_used_event_across_wrap),
		cmocka_unit_test(virtio_2_6_10_notification_suppression),
		cmocka_unit_test(virtio_2_6_5_3_indirect),
		cmocka_unit_test(hostile_chains_break_the_queue),
		cmocka_unit_test(virtio_2_6_5_3_1_indirect_without_the_feature),
		cmocka_unit_test(wild_available_index_breaks_the_queue),
		cmocka_unit_test(total_length_is_bounded),
		cmocka_unit_test(rings_must_be_aligned_and_in_ram),
		cmocka_unit_test(withdraw_and_unpop_restore_the_queue),
		cmocka_unit_test(copies_cross_segments),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
