/* Frames the guest had no room for, in order, up to a bound; what exceeds it is lost. */
#pragma once

#include "net/net.h"

enum { BACKLOG_BYTES = 1024 * 1024 };

struct backlog_frame;

struct backlog {
	struct backlog_frame *head, **tail;
	u32 bytes;
};

void backlog_init(struct backlog *b);
void backlog_clear(struct backlog *b);

static inline bool backlog_is_empty(const struct backlog *b)
{
	return !b->head;
}

/* Keep a copy of the frame, or lose it. */
void backlog_add(struct backlog *b, const void *frame, u32 len, const struct net_offload *o);

/* Offer frames to @front until it has no room. */
void backlog_deliver(struct backlog *b, const struct net_front *front);
