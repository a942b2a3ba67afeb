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
	u64 asked; /* bitmap of vCPUs */
	struct soft_cpu *cpu[SOFT_CPUS];
	bool ending;
};

/* Wait until somebody asks; false when it is over. */
static bool wait_for_one(struct ticker *t)
{
	bool more;

	pthread_mutex_lock(&t->lock);
	while (!t->asked && !t->ending)
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
		for (; t->asked; t->asked &= t->asked - 1)
			soft_request(t->cpu[__builtin_ctzl(t->asked)], REQ_TICK);
		pthread_mutex_unlock(&t->lock);
	}
	return NULL;
}

static int start(struct ticker **out)
{
	struct ticker *t = calloc(1, sizeof(*t));
	struct err e;
	int r;

	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);
	r = host_thread_start(&t->thread, "ticker", run, t, &e);
	if (r)
		free(t);
	else
		*out = t;
	return r;
}

int ticker_create(struct soft_vm *vm)
{
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	if (!vm->ticker)
		r = start(&vm->ticker);
	pthread_mutex_unlock(&vm->lock);
	return r;
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

void ticker_ask(struct soft_cpu *c)
{
	struct ticker *t = c->vm->ticker;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->cpu[c->id] = c;
	t->asked |= BIT(c->id);
	pthread_cond_signal(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

void ticker_forget(struct soft_cpu *c)
{
	struct ticker *t = c->vm->ticker;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	t->asked &= ~BIT(c->id);
	pthread_mutex_unlock(&t->lock);
}
