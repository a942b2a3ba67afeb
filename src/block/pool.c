/*
 * Theory of operation
 *
 * A few threads take requests from a list and carry them out with ordinary system calls. They touch
 * the request and its buffers only, never the machine: finished requests go to a second list, and
 * the eventfd wakes the loop when that list was empty. The pool's own mutex protects both lists and
 * is the innermost lock.
 */
#include "block/async.h"

#include "host/thread.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POOL_THREADS = 4 };

struct request_list {
	struct block_request *head, **tail;
};

struct pool {
	struct async async;
	struct async_target target;
	pthread_mutex_t mutex;
	pthread_cond_t work;
	struct request_list todo, finished; /* under mutex */
	bool stop;                          /* under mutex */
	pthread_t thread[POOL_THREADS];
	u32 threads;
};

static void list_init(struct request_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void list_add(struct request_list *l, struct block_request *r)
{
	r->next = NULL;
	*l->tail = r;
	l->tail = &r->next;
}

static struct block_request *list_take(struct request_list *l)
{
	struct block_request *r = l->head;

	l->head = r->next;
	if (!l->head)
		l->tail = &l->head;
	return r;
}

static void signal_event(struct pool *p)
{
	u64 one = 1;

	/* Fails only when the counter is full, and then the loop is awake anyway. */
	if (write(p->async.event.fd, &one, sizeof(one)) < 0)
		return;
}

static void *pool_thread(void *opaque)
{
	struct pool *p = opaque;

	pthread_mutex_lock(&p->mutex);
	for (;;) {
		struct block_request *r;
		bool first;

		while (!p->todo.head && !p->stop)
			pthread_cond_wait(&p->work, &p->mutex);
		if (!p->todo.head)
			break;
		r = list_take(&p->todo);
		pthread_mutex_unlock(&p->mutex);
		r->result = p->target.execute(p->target.block, r);
		pthread_mutex_lock(&p->mutex);
		first = !p->finished.head;
		list_add(&p->finished, r);
		if (first)
			signal_event(p);
	}
	pthread_mutex_unlock(&p->mutex);
	return NULL;
}

static void pool_submit(struct async *a, struct block_request *r)
{
	struct pool *p = container_of(a, struct pool, async);

	pthread_mutex_lock(&p->mutex);
	list_add(&p->todo, r);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->mutex);
}

static void pool_commit(struct async *a)
{
	(void)a;
}

static void pool_reap(struct async *a, bool wait)
{
	struct pool *p = container_of(a, struct pool, async);
	struct pollfd pfd = {.fd = a->event.fd, .events = POLLIN};
	struct block_request *r;

	if (wait) {
		u64 count;

		poll(&pfd, 1, -1);
		if (read(a->event.fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return;
	}
	pthread_mutex_lock(&p->mutex);
	r = p->finished.head;
	list_init(&p->finished);
	pthread_mutex_unlock(&p->mutex);
	while (r) {
		struct block_request *next = r->next;

		async_finish(a, r, r->result);
		r = next;
	}
}

static void pool_destroy(struct async *a)
{
	struct pool *p = container_of(a, struct pool, async);

	pthread_mutex_lock(&p->mutex);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->mutex);
	for (u32 i = 0; i < p->threads; i++)
		pthread_join(p->thread[i], NULL);
	async_exit(a);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->mutex);
	free(p);
}

static const struct async_ops pool_ops = {
	.submit = pool_submit,
	.commit = pool_commit,
	.reap = pool_reap,
	.destroy = pool_destroy,
};

int pool_create(const struct async_target *t, struct loop *loop, pthread_mutex_t *lock,
		struct async **a, struct err *e)
{
	struct pool *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return err_set(e, -ENOMEM, "out of memory");
	p->target = *t;
	list_init(&p->todo);
	list_init(&p->finished);
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->work, NULL);
	ret = async_init(&p->async, &pool_ops, t->block, loop, lock, e);
	if (ret) {
		free(p);
		return ret;
	}
	while (p->threads < POOL_THREADS) {
		ret = host_thread_start(&p->thread[p->threads], "disk", pool_thread, p, e);
		if (ret) {
			pool_destroy(&p->async);
			return ret;
		}
		p->threads++;
	}
	*a = &p->async;
	return 0;
}
