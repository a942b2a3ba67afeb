/*
 * Requests that cannot finish at once: a queue towards the host with an eventfd coming back.
 *
 * Two implementations: io_uring, and a pool of threads for hosts that forbid it and for back ends
 * whose requests are more than one system call.
 */
#pragma once

#include "block/block.h"

struct async;

struct async_ops {
	/* Queue @r; it may wait for commit(). */
	void (*submit)(struct async *a, struct block_request *r);
	void (*commit)(struct async *a);
	/* Pass each finished request to async_finish(). With @wait, first wait until one is
	 * finished. */
	void (*reap)(struct async *a, bool wait);
	void (*destroy)(struct async *a);
};

/* Embedded first in both implementations. */
struct async {
	const struct async_ops *ops;
	struct block *block; /* whose batch_done() is called */
	struct loop *loop;
	pthread_mutex_t *lock; /* the machine lock */
	struct loop_fd event;  /* eventfd: something is finished */
	u32 in_flight;
};

/*
 * The rest of the block back end, seen from the queue. A file behind one descriptor is what
 * io_uring needs; a function that carries out a whole request on the calling thread is what the
 * pool needs.
 */
struct async_target {
	struct block *block;
	int fd;
	bool punch; /* fallocate() can punch holes in @fd */
	int (*execute)(struct block *b, struct block_request *r);
};

int uring_create(const struct async_target *t, struct loop *loop, pthread_mutex_t *lock,
		 struct async **a, struct err *e);
int pool_create(const struct async_target *t, struct loop *loop, pthread_mutex_t *lock,
		struct async **a, struct err *e);

/* For the implementations: the eventfd and its place in the loop. */
int async_init(struct async *a, const struct async_ops *ops, struct block *b, struct loop *loop,
	       pthread_mutex_t *lock, struct err *e);
void async_exit(struct async *a);
void async_finish(struct async *a, struct block_request *r, int result);

/* For the back ends. */
void async_submit(struct async *a, struct block_request *r);
void async_commit(struct async *a);
void async_drain(struct async *a);
void async_destroy(struct async *a); /* NULL is fine */
