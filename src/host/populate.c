/* See populate.h. */
#include "host/populate.h"

#include "host/thread.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { ORDERS = 16 };

/* At a time, so that neither the next order nor the end has to wait for long. */
#define STEP (2 * MIB)

struct order {
	u8 *at;
	u64 size;
};

struct populate {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct order order[ORDERS]; /* the first come first */
	u32 orders;
	bool ending;
};

/* The next step; false when it is over. */
static bool next_step(struct populate *p, struct order *step)
{
	struct order *first = &p->order[0];
	bool more;

	pthread_mutex_lock(&p->lock);
	while (!p->orders && !p->ending)
		pthread_cond_wait(&p->changed, &p->lock);
	more = !p->ending;
	if (more) {
		*step = (struct order){first->at, MIN(first->size, STEP)};
		first->at += step->size;
		first->size -= step->size;
		if (!first->size) {
			p->orders--;
			for (u32 i = 0; i < p->orders; i++)
				p->order[i] = p->order[i + 1];
		}
	}
	pthread_mutex_unlock(&p->lock);
	return more;
}

static void *run(void *opaque)
{
	struct order step;

	while (next_step(opaque, &step))
		madvise(step.at, step.size, MADV_POPULATE_WRITE);
	return NULL;
}

int populate_create(struct populate **out, struct err *e)
{
	struct populate *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->changed, NULL);
	r = host_thread_start(&p->thread, "populate", run, p, e);
	if (r) {
		free(p);
		return r;
	}
	*out = p;
	return 0;
}

void populate_destroy(struct populate *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->ending = true;
	pthread_cond_signal(&p->changed);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->changed);
	free(p);
}

void populate_ask(struct populate *p, void *at, u64 size)
{
	if (!p || !size)
		return;
	pthread_mutex_lock(&p->lock);
	if (p->orders < ORDERS) {
		p->order[p->orders++] = (struct order){at, size};
		pthread_cond_signal(&p->changed);
	}
	pthread_mutex_unlock(&p->lock);
}
