/*
 * What the tests of chips share: a clock that moves only when told, interrupt lines that remember,
 * port access, and the state property that every device has to keep.
 *
 * chip_test.c defines host_clock_ns() and the loop's timers itself, so programs that use it never
 * link the real event loop.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/loop.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
/* cmocka wants these before it. */
#include <cmocka.h>

/* Set the clock to @ns; no timer fires. Forgets all timers. */
void clock_start(u64 ns);

/* Move the clock forward and fire what becomes due, in order. */
void clock_advance(u64 ns);

/* Number of timers armed now. */
u32 clock_timers(void);

/* A line that remembers its level and counts rising edges, per pin. */
struct wire {
	bool level[32];
	u32 edges[32];
};

struct irq_line wire_line(struct wire *w, u32 pin);

/* Ports of @bus. */
u8 inb(struct bus *bus, u16 port);
void outb(struct bus *bus, u16 port, u8 value);
u16 inw(struct bus *bus, u16 port);
void outw(struct bus *bus, u16 port, u16 value);
u32 inl(struct bus *bus, u16 port);
void outl(struct bus *bus, u16 port, u32 value);

extern pthread_mutex_t test_lock;

/*
 * The snapshot property: @from saved and loaded into @to makes the two equal, and keeps them so
 * when saved again; no truncated form loads, and a refused one leaves @to alone; forms with random
 * contents either load or are refused, and the device can be reset and saved afterwards.
 */
void check_state(const struct device_ops *ops, void *from, void *to);

/* A repeatable stream of random numbers. */
u32 random32(void);
