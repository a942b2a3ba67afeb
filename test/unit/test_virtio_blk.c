/* virtio-blk (virtio 1.1, 5.2) end to end: a driver in guest RAM, a file on the host. */
#include "virtio_driver.h"

#include "device/virtio/blk.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	IMAGE_SECTORS = 8192,
	HEADER = 0x300000,
	STATUS = 0x300100,
	DATA = 0x400000,
	T_IN = 0,
	T_OUT = 1,
	T_FLUSH = 4,
	T_GET_ID = 8,
	T_DISCARD = 11,
	T_WRITE_ZEROES = 13,
	S_OK = 0,
	S_IOERR = 1,
	S_UNSUPP = 2,
	F_FLUSH = 1 << 9,
	F_RO = 1 << 5,
};

struct fixture {
	struct test_machine m;
	struct block *block;
	struct virtio_blk blk;
	struct test_driver t;
	char path[64];
};

static void start(struct fixture *f, const char *options, u64 features)
{
	struct block_spec spec;
	char text[128];

	snprintf(text, sizeof(text), "path=%s%s", f->path, options);
	assert_int_equal(block_spec_parse(text, &spec, NULL), 0);
	test_machine_init(&f->m, true);
	assert_int_equal(block_open(&spec, f->m.loop, &f->m.lock, &f->block, NULL), 0);
	assert_int_equal(virtio_blk_init(&f->blk, &f->m.env, &f->m.pci, f->block,
					 "serial-0123456789abcdef", NULL),
			 0);
	test_driver_start(&f->t, &f->m, &f->blk.virtio, features);
}

static void stop(struct fixture *f)
{
	pthread_mutex_lock(&f->m.lock);
	virtio_blk_destroy(&f->blk);
	f->block->ops->close(f->block);
	pthread_mutex_unlock(&f->m.lock);
	test_machine_destroy(&f->m);
}

static int setup(void **state)
{
	static struct fixture f;
	u8 sector[512];
	int fd;

	strcpy(f.path, "/tmp/doppel-blk-XXXXXX");
	fd = mkstemp(f.path);
	assert_true(fd >= 0);
	for (u32 i = 0; i < IMAGE_SECTORS; i++) {
		memset(sector, (int)(i % 253), sizeof(sector));
		assert_int_equal(write(fd, sector, sizeof(sector)), sizeof(sector));
	}
	close(fd);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	unlink(f->path);
	return 0;
}

static void put_header(struct fixture *f, gpa_t at, u32 type, u64 sector)
{
	u8 *h = test_ram(&f->m, at);

	memcpy(h, &type, 4);
	memset(h + 4, 0, 4);
	memcpy(h + 8, &sector, 8);
}

/* One request with the usual three descriptors; returns the status byte. */
static u8 request(struct fixture *f, u32 type, u64 sector, u32 len, bool device_writes)
{
	struct test_seg seg[3] = {
		{HEADER, 16, false}, {DATA, len, device_writes}, {STATUS, 1, true}};
	u32 used;

	if (!len)
		seg[1] = seg[2];
	put_header(f, HEADER, type, sector);
	*test_ram(&f->m, STATUS) = 0xee;
	used = test_transfer(&f->t, 0, seg, len ? 3 : 2, true);
	assert_int_equal(used, (device_writes ? len : 0) + 1);
	return *test_ram(&f->m, STATUS);
}

static void check_data(struct fixture *f, u64 sector, u32 len)
{
	for (u32 i = 0; i < len; i++)
		assert_int_equal(test_ram(&f->m, DATA)[i], (sector + i / 512) % 253);
}

static void virtio_5_2_4_configuration(void **state)
{
	struct fixture *f = *state;

	start(f, "", ~0ul);
	assert_int_equal(test_read(&f->t, REG_DEVICE, 4), IMAGE_SECTORS);
	assert_int_equal(test_read(&f->t, REG_DEVICE + 4, 4), 0);
	assert_int_equal(test_read(&f->t, REG_DEVICE + 12, 4), 254); /* seg_max */
	assert_int_equal(test_read(&f->t, REG_DEVICE + 20, 4), 512); /* blk_size */
	assert_false(f->t.features & F_RO);
	stop(f);
}

static void virtio_5_2_6_read_write(void **state)
{
	struct fixture *f = *state;

	start(f, ",snapshot=on", ~0ul);
	assert_int_equal(request(f, T_IN, 100, 8192, true), S_OK);
	check_data(f, 100, 8192);
	memset(test_ram(&f->m, DATA), 0x77, 4096);
	assert_int_equal(request(f, T_OUT, 101, 4096, false), S_OK);
	assert_int_equal(request(f, T_FLUSH, 0, 0, false), S_OK);
	memset(test_ram(&f->m, DATA), 0, 8192);
	assert_int_equal(request(f, T_IN, 100, 8192, true), S_OK);
	assert_int_equal(test_ram(&f->m, DATA)[511], 100);
	assert_int_equal(test_ram(&f->m, DATA)[512], 0x77);
	assert_int_equal(test_ram(&f->m, DATA)[512 + 4095], 0x77);
	assert_int_equal(test_ram(&f->m, DATA)[512 + 4096], 109);
	stop(f);
}

static void virtio_5_2_6_any_descriptor_layout(void **state)
{
	struct fixture *f = *state;
	struct test_seg out[] = {{HEADER, 7, false},
				 {HEADER + 7, 9 + 100, false},
				 {DATA + 100, 412, false},
				 {STATUS, 1, true}};
	struct test_seg in[] = {
		{HEADER, 16, false}, {DATA, 1, true}, {DATA + 1, 510, true}, {DATA + 511, 2, true}};

	start(f, ",snapshot=on", ~0ul);
	put_header(f, HEADER, T_OUT, 5);
	memset(test_ram(&f->m, HEADER + 16), 'h', 100);
	memset(test_ram(&f->m, DATA + 100), 'd', 412);
	test_transfer(&f->t, 0, out, 4, false);
	assert_int_equal(*test_ram(&f->m, STATUS), S_OK);
	put_header(f, HEADER, T_IN, 5);
	test_ram(&f->m, DATA)[512] = 0xee;
	assert_int_equal(test_transfer(&f->t, 0, in, 4, false), 513); /* status follows the data */
	assert_int_equal(test_ram(&f->m, DATA)[512], S_OK);
	assert_int_equal(test_ram(&f->m, DATA)[99], 'h');
	assert_int_equal(test_ram(&f->m, DATA)[100], 'd');
	assert_int_equal(test_ram(&f->m, DATA)[511], 'd');
	stop(f);
}

static void virtio_5_2_6_get_id(void **state)
{
	struct fixture *f = *state;

	start(f, ",readonly=on", ~0ul);
	assert_true(f->t.features & F_RO);
	assert_int_equal(request(f, T_GET_ID, 0, 20, true), S_OK);
	assert_memory_equal(test_ram(&f->m, DATA), "serial-0123456789abc", 20);
	stop(f);
}

static void virtio_5_2_6_errors(void **state)
{
	struct fixture *f = *state;

	start(f, ",snapshot=on", ~0ul);
	assert_int_equal(request(f, T_IN, IMAGE_SECTORS, 512, true), S_IOERR);
	assert_int_equal(request(f, T_IN, IMAGE_SECTORS - 1, 1024, true), S_IOERR);
	assert_int_equal(request(f, T_IN, ~0ul, 512, true), S_IOERR);
	assert_int_equal(request(f, T_IN, 1ul << 55, 512, true),
			 S_IOERR); /* times 512 wraps to 0 */
	assert_int_equal(request(f, T_OUT, IMAGE_SECTORS, 512, false), S_IOERR);
	assert_int_equal(request(f, T_IN, 0, 513, true), S_IOERR);
	assert_int_equal(request(f, T_IN, 0, 0, true), S_IOERR);
	assert_int_equal(request(f, 99, 0, 512, true), S_UNSUPP);
	assert_int_equal(request(f, T_IN, IMAGE_SECTORS - 1, 512, true), S_OK);
	stop(f);
	start(f, ",readonly=on", ~0ul);
	assert_int_equal(request(f, T_OUT, 0, 512, false), S_IOERR);
	stop(f);
}

static u8 range_request(struct fixture *f, u32 type, u64 sector, u32 count, u32 flags)
{
	u8 *p = test_ram(&f->m, DATA);

	memcpy(p, &sector, 8);
	memcpy(p + 8, &count, 4);
	memcpy(p + 12, &flags, 4);
	return request(f, type, 0, 16, false);
}

static void virtio_5_2_6_discard_and_write_zeroes(void **state)
{
	struct fixture *f = *state;
	static const u8 zeros[4096];

	start(f, ",snapshot=on", ~0ul);
	assert_int_equal(range_request(f, T_WRITE_ZEROES, 10, 8, 0), S_OK);
	assert_int_equal(request(f, T_IN, 10, 4096, true), S_OK);
	assert_memory_equal(test_ram(&f->m, DATA), zeros, 4096);
	assert_int_equal(request(f, T_IN, 18, 512, true), S_OK);
	check_data(f, 18, 512);
	assert_int_equal(range_request(f, T_WRITE_ZEROES, 40, 8, 1), S_OK);
	assert_int_equal(range_request(f, T_DISCARD, 50, 8, 0), S_OK);
	assert_int_equal(range_request(f, T_DISCARD, 50, 8, 1), S_UNSUPP);
	assert_int_equal(range_request(f, T_WRITE_ZEROES, 50, 8, 2), S_UNSUPP);
	assert_int_equal(range_request(f, T_WRITE_ZEROES, IMAGE_SECTORS - 1, 2, 0), S_IOERR);
	assert_int_equal(range_request(f, T_DISCARD, 0, ~0u, 0), S_IOERR);
	assert_int_equal(range_request(f, T_DISCARD, ~0ul, 8, 0), S_IOERR);
	stop(f);
}

static void virtio_5_2_6_malformed_requests_need_a_reset(void **state)
{
	static const struct test_seg bad[][2] = {
		{{HEADER, 15, false}, {STATUS, 1, true}},
		{{HEADER, 16, false}, {DATA, 512, false}},
		{{DATA, 512, true}, {STATUS, 1, true}},
	};
	struct fixture *f = *state;

	start(f, ",snapshot=on", ~0ul);
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		test_add(&f->t.queue[0], bad[i], 2, false);
		test_kick(&f->t, 0);
		assert_true(test_read(&f->t, REG_STATUS, 1) & VIRTIO_NEEDS_RESET);
		test_driver_start(&f->t, &f->m, &f->blk.virtio, ~0ul);
		assert_int_equal(request(f, T_IN, 0, 512, true), S_OK);
	}
	stop(f);
}

static void drop_cache(struct fixture *f)
{
	int fd = open(f->path, O_RDONLY);

	fdatasync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

/* A full queue of reads, most of which have to wait; all come back once, with their data. */
static void many_requests_in_one_doorbell(void **state)
{
	struct fixture *f = *state;
	bool seen[256] = {0};
	u32 id, len;

	drop_cache(f);
	start(f, "", ~0ul);
	for (u32 i = 0; i < 200; i++) {
		struct test_seg seg[] = {{HEADER + i * 16, 16, false},
					 {DATA + i * 4096, 4096, true},
					 {STATUS + 0x10000 + i, 1, true}};

		put_header(f, HEADER + i * 16, T_IN, i * 8ul);
		test_add(&f->t.queue[0], seg, 3, true);
	}
	test_kick(&f->t, 0);
	for (u32 i = 0; i < 200; i++) {
		assert_true(test_used(&f->t.queue[0], &id, &len));
		assert_true(id < 200 && !seen[id]);
		assert_int_equal(len, 4097);
		seen[id] = true;
	}
	assert_true(f->m.msi[1] >= 1);
	for (u32 i = 0; i < 200; i++)
		for (u32 b = 0; b < 4096; b += 512)
			assert_int_equal(test_ram(&f->m, DATA + i * 4096)[b],
					 (i * 8 + b / 512) % 253);
	stop(f);
}

static void virtio_2_4_2_reset_waits_for_requests(void **state)
{
	struct fixture *f = *state;

	drop_cache(f);
	start(f, "", ~0ul);
	for (u32 i = 0; i < 100; i++) {
		struct test_seg seg[] = {{HEADER + i * 16, 16, false},
					 {DATA + i * 4096, 4096, true},
					 {STATUS + 0x10000 + i, 1, true}};

		put_header(f, HEADER + i * 16, T_IN, i * 80ul);
		test_add(&f->t.queue[0], seg, 3, true);
	}
	test_kick(&f->t, 0);
	test_write(&f->t, REG_STATUS, 1, 0);
	memset(test_ram(&f->m, DATA), 0x11, 100 * 4096); /* the driver reuses its memory */
	usleep(20000);
	for (u32 i = 0; i < 100 * 4096; i++)
		assert_int_equal(test_ram(&f->m, DATA)[i], 0x11);
	test_driver_start(&f->t, &f->m, &f->blk.virtio, ~0ul);
	assert_int_equal(request(f, T_IN, 3, 512, true), S_OK);
	stop(f);
}

static void virtio_5_2_5_write_through_without_flush(void **state)
{
	struct fixture *f = *state;

	start(f, "", ~(u64)F_FLUSH);
	assert_int_equal(request(f, T_IN, 9, 512, true), S_OK);
	assert_int_equal(request(f, T_OUT, 9, 512, false), S_OK); /* the same data */
	stop(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(virtio_5_2_4_configuration),
		cmocka_unit_test(virtio_5_2_6_read_write),
		cmocka_unit_test(virtio_5_2_6_any_descriptor_layout),
		cmocka_unit_test(virtio_5_2_6_get_id),
		cmocka_unit_test(virtio_5_2_6_errors),
		cmocka_unit_test(virtio_5_2_6_discard_and_write_zeroes),
		cmocka_unit_test(virtio_5_2_6_malformed_requests_need_a_reset),
		cmocka_unit_test(many_requests_in_one_doorbell),
		cmocka_unit_test(virtio_2_4_2_reset_waits_for_requests),
		cmocka_unit_test(virtio_5_2_5_write_through_without_flush),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
