/*
 * Raw images: the file's bytes are the disk's bytes. Requests the page cache can serve complete on
 * the spot (image.c); the rest goes to io_uring, or to a thread pool where the host forbids it.
 */
#include "base/iov.h"
#include "block/async.h"
#include "block/backend.h"
#include "block/image.h"

#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct raw {
	struct block block;
	int fd;
	bool punch;
	bool dirty; /* written to since the last flush began */
	struct image_pace pace;
	struct async *async;
};

/* On a pool thread. */
static int raw_execute(struct block *b, struct block_request *r)
{
	struct raw *raw = container_of(b, struct raw, block);

	switch (r->op) {
	case BLOCK_READ:
	case BLOCK_WRITE:
		return image_transfer(raw->fd, r->op == BLOCK_WRITE, r->iov, r->iov_count,
				      r->offset, r->len);
	case BLOCK_FLUSH: return fdatasync(raw->fd) ? -errno : 0;
	case BLOCK_DISCARD:
	case BLOCK_ZERO: return image_zero(raw->fd, raw->punch, r->offset, r->len);
	}
	return -EINVAL;
}

static int write_now(struct raw *raw, struct block_request *r)
{
	u64 start = host_clock_ns();
	int ret = image_transfer(raw->fd, true, r->iov, r->iov_count, r->offset, r->len);

	image_write_timed(&raw->pace, start);
	return ret;
}

/* -EAGAIN: not without waiting. */
static int try_now(struct raw *raw, struct block_request *r)
{
	switch (r->op) {
	case BLOCK_READ: return image_read_cached(raw->fd, &raw->pace, r);
	case BLOCK_WRITE: return image_write_is_quick(&raw->pace, r) ? write_now(raw, r) : -EAGAIN;
	case BLOCK_FLUSH: return raw->dirty ? -EAGAIN : 0;
	case BLOCK_DISCARD: return raw->punch ? -EAGAIN : 0;
	case BLOCK_ZERO: return -EAGAIN;
	}
	return -EINVAL;
}

static int raw_submit(struct block *b, struct block_request *r)
{
	struct raw *raw = container_of(b, struct raw, block);
	bool modifies = r->op != BLOCK_READ && r->op != BLOCK_FLUSH;
	int ret;

	if (modifies && b->readonly)
		return -EROFS;
	ret = try_now(raw, r);
	if (modifies)
		raw->dirty = true;
	if (ret != -EAGAIN)
		return ret;
	async_submit(raw->async, r);
	return -EINPROGRESS;
}

static void raw_commit(struct block *b)
{
	async_commit(container_of(b, struct raw, block)->async);
}

static void raw_drain(struct block *b)
{
	async_drain(container_of(b, struct raw, block)->async);
}

static void raw_close(struct block *b)
{
	struct raw *raw = container_of(b, struct raw, block);

	async_destroy(raw->async);
	close(raw->fd);
	free(raw);
}

static const struct block_ops raw_ops = {
	.name = "raw",
	.submit = raw_submit,
	.commit = raw_commit,
	.drain = raw_drain,
	.close = raw_close,
};

int raw_create(int fd, u64 size, bool readonly, struct loop *loop, pthread_mutex_t *lock,
	       struct block **b, struct err *e)
{
	struct raw *raw = calloc(1, sizeof(*raw));
	struct async_target target;
	struct err why;
	int ret;

	if (!raw)
		return err_set(e, -ENOMEM, "out of memory");
	raw->fd = fd;
	raw->punch = !readonly && image_can_punch(fd, size);
	raw->block = (struct block){
		.ops = &raw_ops,
		.size = size,
		.readonly = readonly,
		.discards = raw->punch,
		.batch_done = block_no_batch,
	};
	target = (struct async_target){
		.block = &raw->block, .fd = fd, .punch = raw->punch, .execute = raw_execute};
	ret = uring_create(&target, loop, lock, &raw->async, &why);
	if (ret) {
		log_info("%s; disk requests use threads instead", why.text);
		ret = pool_create(&target, loop, lock, &raw->async, e);
	}
	if (ret) {
		free(raw);
		return ret;
	}
	*b = &raw->block;
	return 0;
}
