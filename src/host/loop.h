/*
 * The event loop of a VM: file descriptors and timers on one thread, over epoll.
 *
 * Callbacks run on the loop's thread. Adding and removing descriptors and arming timers is allowed
 * from any thread; all of it is serialised by the loop's own lock, which is never held across a
 * callback. Removing a descriptor or cancelling a timer from another thread does not wait for a
 * callback already running.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

struct loop;

enum { LOOP_READ = 1, LOOP_WRITE = 2 };

int loop_create(struct loop **loop, struct err *e);
void loop_destroy(struct loop *loop);

/* Run callbacks until loop_stop(). */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop); /* any thread */

/* A watched descriptor. The caller owns the struct and the descriptor; zero-initialise it. */
struct loop_fd {
	int fd;
	u32 events; /* LOOP_* currently wanted */
	void (*ready)(void *opaque, u32 events);
	void *opaque;
};

int loop_add(struct loop *loop, struct loop_fd *w);
int loop_modify(struct loop *loop, struct loop_fd *w, u32 events);
void loop_remove(struct loop *loop, struct loop_fd *w);

/* A one-shot timer. The caller owns the struct; set @fire and @opaque, zero the rest. */
struct loop_timer {
	void (*fire)(void *opaque);
	void *opaque;
	u64 deadline_ns; /* host_clock_ns(); meaningful while armed */
	u32 slot;        /* private: 1 + index in the heap, 0 when not armed */
};

void loop_timer_arm(struct loop *loop, struct loop_timer *t, u64 deadline_ns);
void loop_timer_cancel(struct loop *loop, struct loop_timer *t);

/* CLOCK_MONOTONIC in nanoseconds. */
u64 host_clock_ns(void);
/* Processor time of the calling thread, what it runs in a guest included. */
u64 host_thread_ns(void);

/* Let the processor do something else for @ns nanoseconds, or longer. */
void host_sleep_ns(u64 ns);
