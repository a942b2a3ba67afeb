/*
 * Theory of operation
 *
 * One ring per image. Entries prepared since the last commit() are handed over with one system
 * call, so a doorbell that starts thirty requests enters the kernel once. The front end's queue
 * bounds what is in flight to RING_ENTRIES or less; should it be more, a full submission queue is
 * flushed early. The kernel may complete a transfer partly; the remainder is queued again.
 */
#include "base/iov.h"
#include "block/async.h"
#include "block/zeros.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

enum { RING_ENTRIES = 256 };

struct uring {
	struct async async;
	struct async_target target;
	struct io_uring ring;
	u32 prepared; /* entries not yet submitted */
};

static void uring_commit(struct async *a)
{
	struct uring *u = container_of(a, struct uring, async);

	while (u->prepared) {
		int n = io_uring_submit(&u->ring);

		if (n > 0)
			u->prepared -= MIN(u->prepared, (u32)n);
		else if (n != -EINTR && n != -EAGAIN && n != -EBUSY)
			break; /* the entries stay; the next commit tries again */
	}
}

/* NULL when the ring is full and the kernel takes nothing from it. */
static struct io_uring_sqe *next_entry(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) {
		uring_commit(&u->async);
		sqe = io_uring_get_sqe(&u->ring);
	}
	if (sqe)
		u->prepared++;
	return sqe;
}

/* Zeros for images that cannot punch holes: written from a buffer, piece by piece. */
static void prepare_zero_write(struct uring *u, struct io_uring_sqe *sqe, struct block_request *r)
{
	io_uring_prep_write(sqe, u->target.fd, zeros(), (u32)MIN(r->len, ZEROS_LEN), r->offset);
}

static void uring_submit(struct async *a, struct block_request *r)
{
	struct uring *u = container_of(a, struct uring, async);
	struct io_uring_sqe *sqe = next_entry(u);
	int fd = u->target.fd;

	if (!sqe) {
		async_finish(a, r, -EIO);
		return;
	}
	switch (r->op) {
	case BLOCK_READ: io_uring_prep_readv(sqe, fd, r->iov, r->iov_count, r->offset); break;
	case BLOCK_WRITE: io_uring_prep_writev(sqe, fd, r->iov, r->iov_count, r->offset); break;
	case BLOCK_FLUSH: io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC); break;
	case BLOCK_DISCARD:
	case BLOCK_ZERO:
		if (u->target.punch)
			io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
						(off_t)r->offset, (off_t)r->len);
		else
			prepare_zero_write(u, sqe, r);
		break;
	}
	io_uring_sqe_set_data(sqe, r);
}

static bool moves_bytes(const struct uring *u, const struct block_request *r)
{
	return r->op == BLOCK_READ || r->op == BLOCK_WRITE ||
	       (r->op != BLOCK_FLUSH && !u->target.punch);
}

/* One completion: finished, failed, or to be continued. */
static void complete(struct uring *u, struct block_request *r, int res)
{
	if (res == -EINTR || res == -EAGAIN) {
		uring_submit(&u->async, r);
		return;
	}
	if (res < 0 || !moves_bytes(u, r)) {
		async_finish(&u->async, r, MIN(res, 0));
		return;
	}
	if (!res) { /* the image was truncated behind our back */
		async_finish(&u->async, r, -EIO);
		return;
	}
	r->offset += (u64)res;
	r->len -= MIN(r->len, (u64)res);
	if (!r->len) {
		async_finish(&u->async, r, 0);
		return;
	}
	if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
		iov_advance(&r->iov, &r->iov_count, (u64)res);
	uring_submit(&u->async, r);
}

static void uring_reap(struct async *a, bool wait)
{
	struct uring *u = container_of(a, struct uring, async);
	struct io_uring_cqe *cqe;

	if (wait && io_uring_wait_cqe(&u->ring, &cqe) < 0)
		return;
	while (!io_uring_peek_cqe(&u->ring, &cqe)) {
		struct block_request *r = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&u->ring, cqe);
		complete(u, r, res);
	}
}

static void uring_destroy(struct async *a)
{
	struct uring *u = container_of(a, struct uring, async);

	io_uring_queue_exit(&u->ring);
	async_exit(a);
	free(u);
}

static const struct async_ops uring_ops = {
	.submit = uring_submit,
	.commit = uring_commit,
	.reap = uring_reap,
	.destroy = uring_destroy,
};

static bool ring_supports(struct io_uring *ring)
{
	static const int needed[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_WRITE,
				     IORING_OP_FSYNC, IORING_OP_FALLOCATE};
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	bool ok = probe;

	for (u32 i = 0; ok && i < ARRAY_SIZE(needed); i++)
		ok = io_uring_opcode_supported(probe, needed[i]);
	io_uring_free_probe(probe);
	return ok;
}

static int start_ring(struct uring *u, struct loop *loop, pthread_mutex_t *lock, struct err *e)
{
	int ret = io_uring_queue_init(RING_ENTRIES, &u->ring, IORING_SETUP_CLAMP);

	if (ret)
		return err_set(e, ret, "io_uring: %s", strerror(-ret));
	ret = ring_supports(&u->ring)
		      ? async_init(&u->async, &uring_ops, u->target.block, loop, lock, e)
		      : err_set(e, -ENOSYS, "io_uring lacks an operation");
	if (ret)
		goto exit_ring;
	ret = io_uring_register_eventfd(&u->ring, u->async.event.fd);
	if (!ret)
		return 0;
	err_set(e, ret, "io_uring: %s", strerror(-ret));
	async_exit(&u->async);
exit_ring:
	io_uring_queue_exit(&u->ring);
	return ret;
}

int uring_create(const struct async_target *t, struct loop *loop, pthread_mutex_t *lock,
		 struct async **a, struct err *e)
{
	struct uring *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return err_set(e, -ENOMEM, "out of memory");
	u->target = *t;
	ret = start_ring(u, loop, lock, e);
	if (ret) {
		free(u);
		return ret;
	}
	*a = &u->async;
	return 0;
}
