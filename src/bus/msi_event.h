/*
 * A message-signalled interrupt that an event descriptor stands for: raising it is a write to the
 * descriptor, which goes to the interrupt controllers by itself. Only where the message sink can do
 * that (struct msi_sink, on_event); whoever wants to interrupt sends the message otherwise.
 */
#pragma once

#include "base/err.h"
#include "bus/irq.h"

struct msi_event {
	int fd; /* with @open */
	bool open;
	bool wired; /* the sink knows what to send: */
	u64 address;
	u32 data;
};

/* Does nothing with a sink that has no events. 0 or -errno with @e. */
int msi_event_open(struct msi_event *ev, const struct msi_sink *sink, struct err *e);
void msi_event_close(struct msi_event *ev, const struct msi_sink *sink);

/* From now on @ev stands for this message; or for none, when the sink does not take it. */
void msi_event_wire(struct msi_event *ev, const struct msi_sink *sink, u64 address, u32 data);
void msi_event_unwire(struct msi_event *ev, const struct msi_sink *sink);

/* Interrupt. False: it could not be done this way. */
bool msi_event_raise(const struct msi_event *ev);
