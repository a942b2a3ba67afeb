/*
 * Doorbells: registers whose writing means "look at this queue", whatever is written.
 *
 * By default the vCPU that rings one does the device's work itself. Where the machine wants it
 * otherwise and the engine can, the store is made known through an event descriptor: the vCPU goes
 * on at once, and the loop's thread does the work. A doorbell that nobody listens to in this way
 * stays an ordinary register of the bus, so a device behaves the same with and without.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "base/err.h"
#include "host/loop.h"

#include <pthread.h>

struct doorbells;

struct doorbell {
	struct doorbells *set; /* NULL: closed */
	struct doorbell *next;
	struct loop_fd event;
	u64 gpa; /* while placed */
	bool placed;
	void (*rung)(void *opaque, u32 index); /* on the loop's thread, under the machine lock */
	void *opaque;
	u32 index;
};

/* Those of a machine. The caller sets the first part. */
struct doorbells {
	struct loop *loop;
	pthread_mutex_t *lock;
	/* Begin or end turning stores at @gpa into events on @fd. 0, or -errno: they stay stores.
	 */
	int (*listen)(void *opaque, u64 gpa, int fd, bool on);
	void *opaque;

	struct doorbell *first;
	u64 rung; /* events so far */
};

/* 0 or -errno. Set @d->rung, @opaque and @index, zero the rest. */
int doorbell_open(struct doorbells *set, struct doorbell *d, struct err *e);
void doorbell_close(struct doorbell *d);

/* The register is at @gpa now; or nowhere. */
void doorbell_place(struct doorbell *d, u64 gpa);
void doorbell_remove(struct doorbell *d);

/* Begin or end listening to all that are placed: who listens changes. */
void doorbells_listen(struct doorbells *set, bool on);
