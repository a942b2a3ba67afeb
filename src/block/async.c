#include "block/async.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void clear_event(struct async *a)
{
	u64 count;

	/* Nonblocking; EAGAIN when drain() was faster. */
	if (read(a->event.fd, &count, sizeof(count)) < 0)
		return;
}

static void event_ready(void *opaque, u32 events)
{
	struct async *a = opaque;

	(void)events;
	pthread_mutex_lock(a->lock);
	clear_event(a);
	a->ops->reap(a, false);
	a->ops->commit(a); /* continuations of short transfers */
	a->block->batch_done(a->block->opaque);
	pthread_mutex_unlock(a->lock);
}

int async_init(struct async *a, const struct async_ops *ops, struct block *b, struct loop *loop,
	       pthread_mutex_t *lock, struct err *e)
{
	int ret;

	a->ops = ops;
	a->block = b;
	a->loop = loop;
	a->lock = lock;
	a->event = (struct loop_fd){.events = LOOP_READ, .ready = event_ready, .opaque = a};
	a->event.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (a->event.fd < 0)
		return err_set(e, -errno, "eventfd: %s", strerror(errno));
	ret = loop_add(loop, &a->event);
	if (ret) {
		close(a->event.fd);
		return err_set(e, ret, "event loop: %s", strerror(-ret));
	}
	return 0;
}

void async_exit(struct async *a)
{
	loop_remove(a->loop, &a->event);
	close(a->event.fd);
}

void async_finish(struct async *a, struct block_request *r, int result)
{
	a->in_flight--;
	r->done(r, result);
}

void async_submit(struct async *a, struct block_request *r)
{
	a->in_flight++;
	a->ops->submit(a, r);
}

void async_commit(struct async *a)
{
	a->ops->commit(a);
}

void async_drain(struct async *a)
{
	a->ops->commit(a);
	while (a->in_flight) {
		a->ops->reap(a, true);
		a->ops->commit(a);
	}
	a->block->batch_done(a->block->opaque);
}

void async_destroy(struct async *a)
{
	if (a)
		a->ops->destroy(a);
}
