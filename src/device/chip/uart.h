/*
 * A 16550A UART in front of a character back end.
 *
 * Transmission takes no time: the transmitter is always empty. Bytes are collected and handed to
 * the back end at the end of a line, when the buffer is full or after a millisecond, because one
 * host write per byte would dominate a boot's console output. Reception is limited by the FIFO; the
 * back end asks for room first.
 *
 * Reference: National Semiconductor PC16550D datasheet.
 *
 * Threads: everything under the machine lock; timer and back-end callbacks take it.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/chardev.h"

#include <pthread.h>

enum {
	UART_FIFO_SIZE = 16, /* a power of two: indices are masked */
	UART_TX_BUFFER = 256,
	UART_PORTS = 8,
};

struct uart {
	u8 ier, fcr, lcr, mcr, msr, scr; /* as the guest reads or wrote them */
	u8 lsr_errors;                   /* error bits of LSR since it was last read */
	bool thre_event;                 /* the transmitter-empty interrupt is pending */
	u16 divisor;
	u8 fifo[UART_FIFO_SIZE];
	u8 head, count; /* read position (masked on use) and fill of fifo */

	/* Not part of the saved state: uart_flush() and the back end see to it. */
	u8 tx[UART_TX_BUFFER];
	u32 tx_count;
	u32 room;       /* atomic: what the back end may deliver now */
	bool throttled; /* room was zero: tell the back end when it no longer is */

	bool irq_level;
	struct irq_line irq;
	struct chardev *chardev;
	struct loop *loop;
	struct loop_timer timer;
	pthread_mutex_t *machine_lock;
};

extern const struct device_ops uart_ops;

/* Put the UART at ports @base..@base+7 and become @chardev's front end. */
int uart_init(struct uart *u, struct bus *bus, u16 base, struct irq_line irq,
	      struct chardev *chardev, struct loop *loop, pthread_mutex_t *machine_lock,
	      struct err *e);

/* Hand what is buffered to the back end; call before the back end closes. */
void uart_flush(struct uart *u);
void uart_destroy(struct uart *u);
