/*
 * A 16550A UART in front of a character back end.
 *
 * Transmission takes no time: the transmitter is always empty, and every byte goes to the back end
 * at once (which collects them). Reception is limited by the FIFO; the back end asks for room
 * first.
 *
 * Reference: National Semiconductor PC16550D datasheet.
 *
 * Threads: everything under the machine lock; the back end's callbacks take it where needed.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/chardev.h"

#include <pthread.h>

enum {
	UART_FIFO_SIZE = 16, /* a power of two: indices are masked */
	UART_PORTS = 8,
};

struct uart {
	u8 ier, fcr, lcr, mcr, msr, scr; /* as the guest reads or wrote them */
	u8 lsr_errors;                   /* error bits of LSR since it was last read */
	bool thre_event;                 /* the transmitter-empty interrupt is pending */
	u16 divisor;
	u8 fifo[UART_FIFO_SIZE];
	u8 head, count; /* read position (masked on use) and fill of fifo */

	/* Derived. */
	u32 room;       /* atomic: what the back end may deliver now */
	bool throttled; /* room was zero: tell the back end when it no longer is */

	bool irq_level;
	struct irq_line irq;
	struct chardev *chardev;
	pthread_mutex_t *machine_lock;
};

extern const struct device_ops uart_ops;

/* Put the UART at ports @base..@base+7 and become @chardev's front end. */
int uart_init(struct uart *u, struct bus *bus, u16 base, struct irq_line irq,
	      struct chardev *chardev, pthread_mutex_t *machine_lock, struct err *e);
