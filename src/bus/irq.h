/* Interrupt wires and messages, seen from the device that raises them. */
#pragma once

#include "base/types.h"

/* A level-signalled line into an interrupt controller; copied by value into devices. */
struct irq_line {
	void (*set)(void *opaque, u32 pin, bool level);
	void *opaque;
	u32 pin;
};

static inline void irq_set(struct irq_line line, bool level)
{
	line.set(line.opaque, line.pin, level);
}

/* A rising edge followed by the falling one. */
static inline void irq_pulse(struct irq_line line)
{
	line.set(line.opaque, line.pin, true);
	line.set(line.opaque, line.pin, false);
}

/* Where message-signalled interrupts go (PCI 3.0, 6.8): the address and data of one memory write.
 */
struct msi_sink {
	void (*send)(void *opaque, u64 address, u32 data);
	void *opaque;

	/*
	 * From now on (@on) each event on descriptor @fd sends this message, instead of the one it
	 * sent so far; or it sends none. 0, or -errno, and then it sends none. NULL: no event does.
	 */
	int (*on_event)(void *opaque, int fd, u64 address, u32 data, bool on);
};
