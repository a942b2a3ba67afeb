/* See ticker.h. */
#include "engine/soft/ticker.h"

#include "host/thread.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { PERIOD_NS = 1000000 };

struct ticker {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct soft_cpu *asked[SOFT_CPUS]; /* the first ones have asked */
	u32 count;
	bool ending;
};

/* Wait until somebody asks; false when it is over. */
static bool wait_for_one(struct ticker *t)
{
	bool more;

	pthread_mutex_lock(&t->lock);
	while (!t->count && !t->ending)
		pthread_cond_wait(&t->changed, &t->lock);
	more = !t->ending;
	pthread_mutex_unlock(&t->lock);
	return more;
}

static void *run(void *opaque)
{
	const struct timespec period = {.tv_nsec = PERIOD_NS};
	struct ticker *t = opaque;

	while (wait_for_one(t)) {
		nanosleep(&period, NULL);
		pthread_mutex_lock(&t->lock);
		while (t->count)
			soft_request(t->asked[--t->count], REQ_TICK);
		pthread_mutex_unlock(&t->lock);
	}
	return NULL;
}

int ticker_create(struct soft_vm *vm)
{
	struct ticker *t;
	struct err e;
	int r;

	if (vm->ticker)
		return 0;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);
	r = host_thread_start(&t->thread, "ticker", run, t, &e);
	if (r) {
		free(t);
		return r;
	}
	vm->ticker = t;
	return 0;
}

void ticker_destroy(struct soft_vm *vm)
{
	struct ticker *t = vm->ticker;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->ending = true;
	pthread_cond_signal(&t->changed);
	pthread_mutex_unlock(&t->lock);
	pthread_join(t->thread, NULL);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->changed);
	free(t);
	vm->ticker = NULL;
}

/* Its place among those that have asked, or behind them. */
static u32 place_of(const struct ticker *t, const struct soft_cpu *c)
{
	u32 n = 0;

	while (n < t->count && t->asked[n] != c)
		n++;
	return n;
}

void ticker_ask(struct soft_cpu *c)
{
	struct ticker *t = c->vm->ticker;
	u32 place;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	place = place_of(t, c);
	if (place == t->count) {
		t->asked[t->count++] = c;
		pthread_cond_signal(&t->changed);
	}
	pthread_mutex_unlock(&t->lock);
}

void ticker_forget(struct soft_cpu *c)
{
	struct ticker *t = c->vm->ticker;
	u32 place;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	place = place_of(t, c);
	if (place < t->count)
		t->asked[place] = t->asked[--t->count];
	pthread_mutex_unlock(&t->lock);
}
