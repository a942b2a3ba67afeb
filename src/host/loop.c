/*
 * The event loop: one epoll instance, one timerfd for the earliest timer, one eventfd to stop.
 *
 * Timers sit in a binary heap ordered by deadline; each knows its slot, so cancelling is O(log n).
 * The timerfd is programmed for the earliest deadline and only brought forward, never back: a timer
 * that was cancelled or postponed costs one empty wake-up instead of a system call each time, which
 * matters because guests re-arm their tick far more often than it expires.
 *
 * Events are fetched in batches. A callback may remove (and free) a descriptor whose event sits
 * later in the same batch, so the batch lives in the loop and loop_remove() strikes entries out of
 * it.
 *
 * Lock: loop->lock guards the heap, the batch and the events field of watched descriptors. It is a
 * leaf: nothing else is taken while it is held, and no callback runs under it.
 */
#include "host/loop.h"

#include "host/sandbox.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, HEAP_START = 64 };

struct loop {
	pthread_mutex_t lock;
	int epoll_fd, timer_fd, stop_fd;
	atomic_bool stop;
	struct loop_fd timer_watch, stop_watch;

	struct loop_timer **heap; /* heap[0] is the earliest */
	u32 timers, capacity;
	u64 programmed_ns; /* what timer_fd is set to, UINT64_MAX when idle */

	struct epoll_event batch[BATCH];
	int batch_count;
};

static const int loop_calls[] = {
	SYS_epoll_wait, SYS_epoll_pwait,   SYS_epoll_ctl, SYS_timerfd_settime, SYS_read,
	SYS_write,      SYS_clock_gettime, SYS_futex,     SYS_close,
};
const struct sandbox_list loop_sandbox = {"loop", loop_calls, ARRAY_SIZE(loop_calls)};

static u64 read_clock(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (u64)ts.tv_sec * 1000000000ul + (u64)ts.tv_nsec;
}

u64 host_clock_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

u64 host_thread_ns(void)
{
	return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

void host_sleep_ns(u64 ns)
{
	struct timespec left = {.tv_sec = (time_t)(ns / 1000000000ul),
				.tv_nsec = (long)(ns % 1000000000ul)};

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* ---- timers ---- */

static void heap_place(struct loop *l, struct loop_timer *t, u32 i)
{
	l->heap[i] = t;
	t->slot = i + 1;
}

static void heap_up(struct loop *l, u32 i)
{
	struct loop_timer *t = l->heap[i];

	for (; i; i = (i - 1) / 2) {
		struct loop_timer *parent = l->heap[(i - 1) / 2];

		if (parent->deadline_ns <= t->deadline_ns)
			break;
		heap_place(l, parent, i);
	}
	heap_place(l, t, i);
}

static void heap_down(struct loop *l, u32 i)
{
	struct loop_timer *t = l->heap[i];

	for (u32 child; (child = 2 * i + 1) < l->timers; i = child) {
		if (child + 1 < l->timers &&
		    l->heap[child + 1]->deadline_ns < l->heap[child]->deadline_ns)
			child++;
		if (t->deadline_ns <= l->heap[child]->deadline_ns)
			break;
		heap_place(l, l->heap[child], i);
	}
	heap_place(l, t, i);
}

static void heap_remove(struct loop *l, struct loop_timer *t)
{
	u32 i = t->slot - 1;
	struct loop_timer *last = l->heap[--l->timers];

	t->slot = 0;
	if (last == t)
		return;
	heap_place(l, last, i);
	heap_up(l, i);
	heap_down(l, last->slot - 1);
}

/* The number of timers is fixed by the machine's devices: running out of memory here is a bug. */
static void heap_insert(struct loop *l, struct loop_timer *t)
{
	if (l->timers == l->capacity) {
		u32 capacity = l->capacity * 2;
		struct loop_timer **heap = realloc(l->heap, capacity * sizeof(*heap));

		if (!heap)
			abort();
		l->heap = heap;
		l->capacity = capacity;
	}
	heap_place(l, t, l->timers++);
	heap_up(l, t->slot - 1);
}

static void program(struct loop *l)
{
	struct itimerspec its = {0};
	u64 ns;

	if (!l->timers || l->heap[0]->deadline_ns >= l->programmed_ns)
		return;
	ns = l->heap[0]->deadline_ns;
	l->programmed_ns = ns;
	/* All zeros would disarm the timer. */
	ns = ns ? ns : 1;
	its.it_value.tv_sec = (time_t)(ns / 1000000000ul);
	its.it_value.tv_nsec = (long)(ns % 1000000000ul);
	timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}

void loop_timer_arm(struct loop *l, struct loop_timer *t, u64 deadline_ns)
{
	pthread_mutex_lock(&l->lock);
	/* The timerfd takes a signed time. */
	t->deadline_ns = MIN(deadline_ns, (u64)INT64_MAX);
	if (t->slot) {
		heap_up(l, t->slot - 1);
		heap_down(l, t->slot - 1);
	} else {
		heap_insert(l, t);
	}
	program(l);
	pthread_mutex_unlock(&l->lock);
}

void loop_timer_cancel(struct loop *l, struct loop_timer *t)
{
	pthread_mutex_lock(&l->lock);
	if (t->slot)
		heap_remove(l, t);
	pthread_mutex_unlock(&l->lock);
}

/* Fire what is due. A timer that re-arms itself into the past waits for the next round. */
static void timers_fire(void *opaque, u32 events)
{
	struct loop *l = opaque;
	u64 count, now;
	u32 budget;

	(void)events;
	if (read(l->timer_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	now = host_clock_ns();
	pthread_mutex_lock(&l->lock);
	l->programmed_ns = UINT64_MAX;
	for (budget = l->timers; budget && l->timers && l->heap[0]->deadline_ns <= now; budget--) {
		struct loop_timer *t = l->heap[0];
		void (*fire)(void *) = t->fire;
		void *arg = t->opaque;

		heap_remove(l, t);
		pthread_mutex_unlock(&l->lock);
		fire(arg);
		pthread_mutex_lock(&l->lock);
	}
	program(l);
	pthread_mutex_unlock(&l->lock);
}

/* ---- descriptors ---- */

static u32 epoll_events(u32 events)
{
	return (events & LOOP_READ ? (u32)EPOLLIN : 0) | (events & LOOP_WRITE ? (u32)EPOLLOUT : 0);
}

/* epoll reports hang-ups even when nothing is asked for, so a descriptor without interest is taken
 * out. */
static int watch(struct loop *l, struct loop_fd *w, u32 events)
{
	struct epoll_event ev = {.events = epoll_events(events), .data.ptr = w};
	int op;

	if (w->events == events)
		return 0;
	op = !w->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
	if (epoll_ctl(l->epoll_fd, op, w->fd, &ev))
		return -errno;
	w->events = events;
	return 0;
}

int loop_modify(struct loop *l, struct loop_fd *w, u32 events)
{
	int r;

	pthread_mutex_lock(&l->lock);
	r = watch(l, w, events);
	pthread_mutex_unlock(&l->lock);
	return r;
}

int loop_add(struct loop *l, struct loop_fd *w)
{
	u32 events = w->events;
	int r;

	pthread_mutex_lock(&l->lock);
	w->events = 0;
	r = watch(l, w, events);
	pthread_mutex_unlock(&l->lock);
	return r;
}

void loop_remove(struct loop *l, struct loop_fd *w)
{
	pthread_mutex_lock(&l->lock);
	watch(l, w, 0);
	w->events = 0;
	for (int i = 0; i < l->batch_count; i++)
		if (l->batch[i].data.ptr == w)
			l->batch[i].data.ptr = NULL;
	pthread_mutex_unlock(&l->lock);
}

/* Take entry @i out of the batch: false when it was removed or nobody wants it any more. */
static bool batch_take(struct loop *l, int i, struct loop_fd *w, u32 *events)
{
	struct loop_fd *entry;
	u32 ev = l->batch[i].events;
	bool live = false;

	pthread_mutex_lock(&l->lock);
	entry = l->batch[i].data.ptr;
	l->batch[i].data.ptr = NULL;
	if (entry) {
		*w = *entry;
		/* An error or hang-up is found by trying what the owner waits for. */
		*events = ev & (EPOLLERR | EPOLLHUP) ? w->events
						     : (ev & EPOLLIN ? LOOP_READ : 0u) |
							       (ev & EPOLLOUT ? LOOP_WRITE : 0u);
		*events &= w->events;
		live = *events;
	}
	pthread_mutex_unlock(&l->lock);
	return live;
}

static void wait_and_dispatch(struct loop *l)
{
	int n = epoll_wait(l->epoll_fd, l->batch, BATCH, -1);
	struct loop_fd w;
	u32 events;

	assert(n >= 0 || errno == EINTR);
	pthread_mutex_lock(&l->lock);
	l->batch_count = MAX(n, 0);
	pthread_mutex_unlock(&l->lock);
	for (int i = 0; i < n; i++)
		if (batch_take(l, i, &w, &events))
			w.ready(w.opaque, events);
	pthread_mutex_lock(&l->lock);
	l->batch_count = 0;
	pthread_mutex_unlock(&l->lock);
}

void loop_run(struct loop *l)
{
	while (!atomic_load(&l->stop))
		wait_and_dispatch(l);
	atomic_store(&l->stop, false);
}

void loop_stop(struct loop *l)
{
	u64 one = 1;

	atomic_store(&l->stop, true);
	/* Fails only when the counter is full, which wakes the loop just as well. */
	if (write(l->stop_fd, &one, sizeof(one)) < 0)
		return;
}

static void stop_ready(void *opaque, u32 events)
{
	struct loop *l = opaque;
	u64 count;

	(void)events;
	if (read(l->stop_fd, &count, sizeof(count)) < 0)
		return;
}

/* ---- life ---- */

static int add_own_fds(struct loop *l)
{
	int r;

	l->timer_watch = (struct loop_fd){
		.fd = l->timer_fd, .events = LOOP_READ, .ready = timers_fire, .opaque = l};
	l->stop_watch = (struct loop_fd){
		.fd = l->stop_fd, .events = LOOP_READ, .ready = stop_ready, .opaque = l};
	r = loop_add(l, &l->timer_watch);
	return r ? r : loop_add(l, &l->stop_watch);
}

int loop_create(struct loop **loop, struct err *e)
{
	struct loop *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return err_set(e, -ENOMEM, "event loop: out of memory");
	pthread_mutex_init(&l->lock, NULL);
	l->programmed_ns = UINT64_MAX;
	l->capacity = HEAP_START;
	l->heap = calloc(l->capacity, sizeof(struct loop_timer *));
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!l->heap)
		r = -ENOMEM;
	else if (l->epoll_fd < 0 || l->timer_fd < 0 || l->stop_fd < 0)
		r = -errno;
	else
		r = add_own_fds(l);
	if (r) {
		loop_destroy(l);
		return err_set(e, r, "event loop: %s", strerror(-r));
	}
	*loop = l;
	return 0;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	close_if_open(l->stop_fd);
	close_if_open(l->timer_fd);
	close_if_open(l->epoll_fd);
	free(l->heap);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
