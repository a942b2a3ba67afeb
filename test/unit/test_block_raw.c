/* Block back ends against real files: raw over io_uring and over threads, the overlay, and bad
 * input. */
#include "block/async.h"
#include "block/backend.h"
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { IMAGE_SIZE = 1024 * 1024, BATCH = 64 };

struct fixture {
	struct loop *loop;
	pthread_mutex_t lock;
	pthread_t thread;
	char path[64];
	struct err err;
	u32 batches;
};

static void *run_loop(void *opaque)
{
	struct fixture *f = opaque;

	loop_run(f->loop);
	return NULL;
}

/* Run @fn on the loop's thread, where back ends are closed: none of its callbacks runs meanwhile.
 */
struct errand {
	void (*fn)(void *);
	void *arg;
	sem_t done;
};

static void run_errand(void *opaque)
{
	struct errand *errand = opaque;

	errand->fn(errand->arg);
	sem_post(&errand->done);
}

static void on_loop(struct fixture *f, void (*fn)(void *), void *arg)
{
	struct errand errand = {.fn = fn, .arg = arg};
	struct loop_timer timer = {.fire = run_errand, .opaque = &errand};

	sem_init(&errand.done, 0, 0);
	loop_timer_arm(f->loop, &timer, host_clock_ns());
	while (sem_wait(&errand.done))
		;
	sem_destroy(&errand.done);
}

static void close_now(void *opaque)
{
	struct block *b = opaque;

	b->ops->close(b);
}

static void destroy_now(void *opaque)
{
	async_destroy(opaque);
}

static void fill_image(const char *path)
{
	u8 sector[BLOCK_SECTOR];
	FILE *out = fopen(path, "w");

	assert_non_null(out);
	for (u32 i = 0; i < IMAGE_SIZE / BLOCK_SECTOR; i++) {
		memset(sector, (int)(i % 251), sizeof(sector));
		assert_int_equal(fwrite(sector, sizeof(sector), 1, out), 1);
	}
	fclose(out);
}

static int setup(void **state)
{
	static struct fixture f;
	int fd;

	strcpy(f.path, "/tmp/doppel-block-XXXXXX");
	fd = mkstemp(f.path);
	assert_true(fd >= 0);
	close(fd);
	fill_image(f.path);
	pthread_mutex_init(&f.lock, NULL);
	assert_int_equal(loop_create(&f.loop, NULL), 0);
	assert_int_equal(pthread_create(&f.thread, NULL, run_loop, &f), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_stop(f->loop);
	pthread_join(f->thread, NULL);
	loop_destroy(f->loop);
	unlink(f->path);
	return 0;
}

static struct block *open_image(struct fixture *f, const char *options)
{
	struct block_spec spec;
	struct block *b = NULL;
	char text[128];

	snprintf(text, sizeof(text), "path=%s%s", f->path, options);
	assert_int_equal(block_spec_parse(text, &spec, &f->err), 0);
	if (block_open(&spec, f->loop, &f->lock, &b, &f->err))
		return NULL;
	return b;
}

struct job {
	struct block_request r; /* first */
	struct iovec iov[3];
	int result; /* under the lock */
};

static void job_done(struct block_request *r, int error)
{
	((struct job *)(void *)r)->result = error;
}

static void job_submit(struct fixture *f, struct block *b, struct job *j)
{
	int ret;

	pthread_mutex_lock(&f->lock);
	j->r.done = job_done;
	j->result = -EINPROGRESS;
	ret = b->ops->submit(b, &j->r);
	if (ret != -EINPROGRESS)
		j->result = ret;
	pthread_mutex_unlock(&f->lock);
}

static int job_wait(struct fixture *f, struct block *b, struct job *j)
{
	int result;

	pthread_mutex_lock(&f->lock);
	b->ops->commit(b);
	for (u32 i = 0; i < 50000 && j->result == -EINPROGRESS; i++) {
		pthread_mutex_unlock(&f->lock);
		usleep(100);
		pthread_mutex_lock(&f->lock);
	}
	result = j->result;
	pthread_mutex_unlock(&f->lock);
	return result;
}

static int run(struct fixture *f, struct block *b, enum block_op op, u64 offset, void *data,
	       u64 len)
{
	/* Three segments, cut at odd places. */
	struct job j = {.r = {.op = op, .offset = offset, .len = len}};
	u64 a = len > 3 ? 3 : len, c = len > 200 ? len - 200 : a;

	if (data) {
		j.iov[0] = (struct iovec){data, a};
		j.iov[1] = (struct iovec){(u8 *)data + a, c - a};
		j.iov[2] = (struct iovec){(u8 *)data + c, len - c};
		j.r.iov = j.iov;
		j.r.iov_count = 3;
	}
	job_submit(f, b, &j);
	return job_wait(f, b, &j);
}

static void check_sectors(const u8 *data, u64 offset, u64 len)
{
	for (u64 i = 0; i < len; i++)
		assert_int_equal(data[i], (offset + i) / BLOCK_SECTOR % 251);
}

static void drop_cache(const char *path)
{
	int fd = open(path, O_RDONLY);

	fdatasync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

static void exercise(struct fixture *f, struct block *b)
{
	static u8 data[64 * 1024], back[64 * 1024];

	drop_cache(f->path); /* the first read has to wait for the disk */
	assert_int_equal(run(f, b, BLOCK_READ, 512 * 7, data, sizeof(data)), 0);
	check_sectors(data, 512 * 7, sizeof(data));
	assert_int_equal(run(f, b, BLOCK_READ, 0, data, 512), 0);
	check_sectors(data, 0, 512);
	memset(data, 0xa5, sizeof(data));
	assert_int_equal(run(f, b, BLOCK_WRITE, 512 * 3, data, 1024), 0);
	assert_int_equal(run(f, b, BLOCK_READ, 0, back, 4096), 0);
	check_sectors(back, 0, 512 * 3);
	assert_memory_equal(back + 512 * 3, data, 1024);
	check_sectors(back + 512 * 5, 512 * 5, 4096 - 512 * 5);
	assert_int_equal(run(f, b, BLOCK_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(run(f, b, BLOCK_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(run(f, b, BLOCK_ZERO, 512 * 10, NULL, 512 * 20), 0);
	memset(data, 0, sizeof(data));
	assert_int_equal(run(f, b, BLOCK_READ, 512 * 9, back, 512 * 22), 0);
	check_sectors(back, 512 * 9, 512);
	assert_memory_equal(back + 512, data, 512 * 20);
	check_sectors(back + 512 * 21, 512 * 30, 512);
	assert_int_equal(run(f, b, BLOCK_DISCARD, 512 * 64, NULL, 4096), 0);
	assert_int_equal(run(f, b, BLOCK_READ, IMAGE_SIZE - 512, back, 512), 0);
	check_sectors(back, IMAGE_SIZE - 512, 512);
	/* Larger than what is written on the spot. */
	memset(data, 0x5a, sizeof(data));
	for (u32 i = 0; i < 8; i++)
		assert_int_equal(
			run(f, b, BLOCK_WRITE, 128 * 1024 + i * sizeof(data), data, sizeof(data)),
			0);
	assert_int_equal(run(f, b, BLOCK_READ, 128 * 1024 + 7 * sizeof(data), back, sizeof(data)),
			 0);
	assert_memory_equal(back, data, sizeof(data));
}

static void raw_file(void **state)
{
	struct fixture *f = *state;
	struct block *b;

	fill_image(f->path);
	b = open_image(f, "");
	assert_non_null(b);
	assert_int_equal(b->size, IMAGE_SIZE);
	exercise(f, b);
	on_loop(f, close_now, b);
}

static void pool_only(struct fixture *f, struct block **b, struct async **a,
		      int (*execute)(struct block *, struct block_request *))
{
	struct async_target target = {.block = *b, .fd = -1, .execute = execute};

	assert_int_equal(pool_create(&target, f->loop, &f->lock, a, &f->err), 0);
}

static int slow_echo(struct block *b, struct block_request *r)
{
	(void)b;
	usleep(1000);
	return r->offset == 13 ? -EIO : 0;
}

static void thread_pool_completes_everything(void **state)
{
	struct fixture *f = *state;
	struct block block = {.batch_done = block_no_batch}, *b = &block;
	static struct job job[BATCH];
	struct async *a;

	pool_only(f, &b, &a, slow_echo);
	pthread_mutex_lock(&f->lock);
	for (u32 i = 0; i < BATCH; i++) {
		job[i] = (struct job){.r = {.offset = i, .done = job_done}, .result = -EINPROGRESS};
		async_submit(a, &job[i].r);
	}
	async_commit(a);
	async_drain(a); /* with the lock held: the loop cannot help */
	for (u32 i = 0; i < BATCH; i++)
		assert_int_equal(job[i].result, i == 13 ? -EIO : 0);
	pthread_mutex_unlock(&f->lock);
	on_loop(f, destroy_now, a);
}

static void drain_waits_for_the_ring(void **state)
{
	struct fixture *f = *state;
	static u8 data[BATCH][4096];
	static struct job job[BATCH];
	struct block *b;

	fill_image(f->path);
	drop_cache(f->path);
	b = open_image(f, "");
	assert_non_null(b);
	for (u32 i = 0; i < BATCH; i++) {
		job[i].iov[0] = (struct iovec){data[i], 4096};
		job[i].r = (struct block_request){.op = BLOCK_READ,
						  .offset = i * 4096ul,
						  .len = 4096,
						  .iov = job[i].iov,
						  .iov_count = 1};
		job_submit(f, b, &job[i]);
	}
	pthread_mutex_lock(&f->lock);
	b->ops->drain(b);
	for (u32 i = 0; i < BATCH; i++)
		assert_int_equal(job[i].result, 0);
	pthread_mutex_unlock(&f->lock);
	for (u32 i = 0; i < BATCH; i++)
		check_sectors(data[i], i * 4096ul, 4096);
	on_loop(f, close_now, b);
}

static void overlay_leaves_the_image_alone(void **state)
{
	struct fixture *f = *state;
	static u8 image[IMAGE_SIZE];
	struct block *b;
	int fd;

	fill_image(f->path);
	assert_int_equal(chmod(f->path, 0400), 0);
	b = open_image(f, ",snapshot=on");
	assert_non_null(b);
	assert_false(b->readonly);
	exercise(f, b);
	on_loop(f, close_now, b);
	assert_int_equal(chmod(f->path, 0600), 0);
	fd = open(f->path, O_RDONLY);
	assert_int_equal(read(fd, image, sizeof(image)), sizeof(image));
	close(fd);
	check_sectors(image, 0, sizeof(image));
}

/* Random sector-sized pieces against a plain array. */
static void overlay_matches_a_model(void **state)
{
	struct fixture *f = *state;
	static u8 model[IMAGE_SIZE], data[40 * BLOCK_SECTOR];
	struct block *b;
	u32 seed = 1;

	fill_image(f->path);
	for (u32 i = 0; i < IMAGE_SIZE; i++)
		model[i] = (u8)(i / BLOCK_SECTOR % 251);
	b = open_image(f, ",snapshot=on");
	assert_non_null(b);
	for (u32 i = 0; i < 3000; i++) {
		u64 len, off;

		seed = seed * 1103515245 + 12345;
		len = (seed >> 16) % 40 * BLOCK_SECTOR + BLOCK_SECTOR;
		seed = seed * 1103515245 + 12345;
		off = (seed >> 8) % ((IMAGE_SIZE - len) / BLOCK_SECTOR + 1) * BLOCK_SECTOR;
		switch (i % 4) {
		case 0:
			memset(data, (int)(i & 0xff), len);
			memcpy(model + off, data, len);
			assert_int_equal(run(f, b, BLOCK_WRITE, off, data, len), 0);
			break;
		case 1:
			if (i % 8 == 1) {
				memset(model + off, 0, len);
				assert_int_equal(run(f, b, BLOCK_ZERO, off, NULL, len), 0);
			}
			break;
		default:
			assert_int_equal(run(f, b, BLOCK_READ, off, data, len), 0);
			assert_memory_equal(data, model + off, len);
		}
	}
	on_loop(f, close_now, b);
}

static void readonly_refuses_writes(void **state)
{
	struct fixture *f = *state;
	u8 data[512] = {0};
	struct block *b, *second;

	fill_image(f->path);
	b = open_image(f, ",readonly=on");
	assert_non_null(b);
	assert_true(b->readonly);
	assert_int_equal(run(f, b, BLOCK_WRITE, 0, data, 512), -EROFS);
	assert_int_equal(run(f, b, BLOCK_ZERO, 0, NULL, 512), -EROFS);
	assert_int_equal(run(f, b, BLOCK_DISCARD, 0, NULL, 512), -EROFS);
	assert_int_equal(run(f, b, BLOCK_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(run(f, b, BLOCK_READ, 512, data, 512), 0);
	check_sectors(data, 512, 512);
	second = open_image(f, ",snapshot=on"); /* readers share */
	assert_non_null(second);
	on_loop(f, close_now, second);
	assert_null(open_image(f, "")); /* but keep a writer out */
	assert_non_null(strstr(f->err.text, "in use"));
	on_loop(f, close_now, b);
}

static void writers_exclude_each_other(void **state)
{
	struct fixture *f = *state;
	struct block *b = open_image(f, ",format=raw");

	assert_non_null(b);
	assert_null(open_image(f, ""));
	assert_non_null(strstr(f->err.text, "in use"));
	assert_null(open_image(f, ",readonly=on"));
	assert_null(open_image(f, ",snapshot=on"));
	on_loop(f, close_now, b);
	b = open_image(f, "");
	assert_non_null(b);
	on_loop(f, close_now, b);
}

static void truncated_file_is_an_error_not_a_hang(void **state)
{
	struct fixture *f = *state;
	static u8 data[8192];
	struct block *b;

	fill_image(f->path);
	b = open_image(f, "");
	assert_non_null(b);
	assert_int_equal(truncate(f->path, 4096), 0);
	assert_int_equal(run(f, b, BLOCK_READ, 0, data, 8192), -EIO);
	assert_int_equal(run(f, b, BLOCK_READ, 65536, data, 8192), -EIO);
	on_loop(f, close_now, b);
}

static void expect_open_error(struct fixture *f, const char *path, const char *message)
{
	struct block_spec spec = {0};
	struct block *b;

	snprintf(spec.path, sizeof(spec.path), "%s", path);
	assert_true(block_open(&spec, f->loop, &f->lock, &b, &f->err) < 0);
	if (!strstr(f->err.text, message))
		fail_msg("\"%s\" lacks \"%s\"", f->err.text, message);
	assert_null(strchr(f->err.text, '\n'));
}

static void put_file(const char *path, const void *data, size_t len)
{
	FILE *out = fopen(path, "w");

	assert_non_null(out);
	fwrite(data, 1, len, out);
	fclose(out);
}

static void bad_images_give_one_clear_line(void **state)
{
	static const u8 qcow2[1024] = {'Q', 'F', 'I', 0xfb};
	struct fixture *f = *state;

	expect_open_error(f, "/nonexistent/image", "No such file");
	expect_open_error(f, "/tmp", "is a directory");
	expect_open_error(f, "/dev/null", "neither a file nor a block device");
	put_file(f->path, "", 0);
	expect_open_error(f, f->path, "is empty");
	put_file(f->path, qcow2, 1000);
	expect_open_error(f, f->path, "not a multiple of 512");
	put_file(f->path, qcow2, sizeof(qcow2));
	expect_open_error(f, f->path, "qcow2");
	assert_null(open_image(f, ",format=qcow2"));
	assert_non_null(strstr(f->err.text, "qcow2"));
}

static void spec_is_parsed(void **state)
{
	static const char *const bad[] = {
		"",
		"file.img",
		"path=",
		"path=a,format=vmdk",
		"path=a,readonly=yes",
		"path=a,snapshot",
		"path=a,size=5",
		"format=raw",
	};
	struct block_spec s;
	struct err e;

	(void)state;
	assert_int_equal(block_spec_parse("path=a,,b.img,format=raw,readonly=on", &s, &e), 0);
	assert_string_equal(s.path, "a,b.img");
	assert_int_equal(s.format, BLOCK_FORMAT_RAW);
	assert_true(s.readonly);
	assert_false(s.snapshot);
	assert_int_equal(block_spec_parse("snapshot=on,path=x,readonly=off", &s, &e), 0);
	assert_true(s.snapshot);
	assert_int_equal(s.format, BLOCK_FORMAT_AUTO);
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(block_spec_parse(bad[i], &s, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_file),
		cmocka_unit_test(thread_pool_completes_everything),
		cmocka_unit_test(drain_waits_for_the_ring),
		cmocka_unit_test(overlay_leaves_the_image_alone),
		cmocka_unit_test(overlay_matches_a_model),
		cmocka_unit_test(readonly_refuses_writes),
		cmocka_unit_test(writers_exclude_each_other),
		cmocka_unit_test(truncated_file_is_an_error_not_a_hang),
		cmocka_unit_test(bad_images_give_one_clear_line),
		cmocka_unit_test(spec_is_parsed),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
