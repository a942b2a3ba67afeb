#include "bus/doorbell.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The count does not matter: one look at the queue finds all that is there. */
static void on_event(void *opaque, u32 events)
{
	struct doorbell *d = opaque;
	struct doorbells *set = d->set;
	u64 count;

	(void)events;
	if (read(d->event.fd, &count, sizeof(count)) != sizeof(count))
		return;
	pthread_mutex_lock(set->lock);
	set->rung++;
	d->rung(d->opaque, d->index);
	pthread_mutex_unlock(set->lock);
}

int doorbell_open(struct doorbells *set, struct doorbell *d, struct err *e)
{
	int r;

	d->event = (struct loop_fd){
		.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.events = LOOP_READ,
		.ready = on_event,
		.opaque = d,
	};
	if (d->event.fd < 0)
		return err_set(e, -errno, "eventfd: %s", strerror(errno));
	d->set = set;
	r = loop_add(set->loop, &d->event);
	if (r) {
		close(d->event.fd);
		d->set = NULL;
		return err_set(e, r, "eventfd: %s", strerror(-r));
	}
	d->next = set->first;
	set->first = d;
	return 0;
}

void doorbell_close(struct doorbell *d)
{
	struct doorbell **link;

	if (!d->set)
		return;
	doorbell_remove(d);
	link = &d->set->first;
	while (*link != d)
		link = &(*link)->next;
	*link = d->next;
	loop_remove(d->set->loop, &d->event);
	close(d->event.fd);
	d->set = NULL;
}

void doorbell_place(struct doorbell *d, u64 gpa)
{
	if (!d->set)
		return;
	doorbell_remove(d);
	d->gpa = gpa;
	d->placed = true;
	d->set->listen(d->set->opaque, gpa, d->event.fd, true);
}

void doorbell_remove(struct doorbell *d)
{
	if (!d->set || !d->placed)
		return;
	d->placed = false;
	d->set->listen(d->set->opaque, d->gpa, d->event.fd, false);
}

void doorbells_listen(struct doorbells *set, bool on)
{
	for (struct doorbell *d = set->first; d; d = d->next)
		if (d->placed)
			set->listen(set->opaque, d->gpa, d->event.fd, on);
}
