#include "net/backlog.h"

#include <stdlib.h>
#include <string.h>

struct backlog_frame {
	struct backlog_frame *next;
	u32 len;
	struct net_offload offload;
	u8 data[];
};

void backlog_init(struct backlog *b)
{
	b->head = NULL;
	b->tail = &b->head;
	b->bytes = 0;
}

static void drop_first(struct backlog *b)
{
	struct backlog_frame *f = b->head;

	b->head = f->next;
	if (!b->head)
		b->tail = &b->head;
	b->bytes -= f->len;
	free(f);
}

void backlog_clear(struct backlog *b)
{
	while (b->head)
		drop_first(b);
}

void backlog_add(struct backlog *b, const void *frame, u32 len, const struct net_offload *o)
{
	struct backlog_frame *f;

	if (len > BACKLOG_BYTES - b->bytes)
		return;
	f = malloc(sizeof(*f) + len);
	if (!f)
		return;
	f->next = NULL;
	f->len = len;
	f->offload = *o;
	memcpy(f->data, frame, len);
	*b->tail = f;
	b->tail = &f->next;
	b->bytes += len;
}

void backlog_deliver(struct backlog *b, const struct net_front *front)
{
	while (b->head) {
		struct iovec iov = {.iov_base = b->head->data, .iov_len = b->head->len};

		if (!front->receive(front->opaque, &iov, 1, &b->head->offload))
			return;
		drop_first(b);
	}
}
