/*
 * The 8254 interval timer, and port 0x61, which gates its channel 2.
 *
 * Counters are not counted down: each remembers when it was loaded, and its value, output level and
 * next edge follow from the clock. Only channel 0, whose output is an interrupt, needs a timer.
 *
 * References: Intel 8254 datasheet (231164); 82371AB datasheet for port 0x61.
 *
 * Threads: everything under the machine lock; the timer callback takes it.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/loop.h"

#include <pthread.h>

enum { PIT_HZ = 1193182 };

struct pit_channel {
	u32 count;   /* in effect: 1..0x10000 */
	u32 pending; /* written, takes effect at the next reload; 0: none */
	u8 mode;     /* 0..5 */
	u8 access;   /* RW bits of the control word: 1 LSB, 2 MSB, 3 both */
	bool bcd;
	bool loaded; /* a count was written since the control word */
	bool gate;
	bool running;    /* counting: loaded, gate and trigger conditions met */
	bool write_high; /* the next write is the MSB */
	bool read_high;  /* the next read is the MSB */
	u8 write_low;    /* LSB waiting for its MSB */
	u8 latched;      /* bytes of latched_count still to be read */
	u16 latched_count;
	bool status_latched;
	u8 status;
	u64 start_ns; /* when @count was loaded */
	u64 frozen;   /* ticks elapsed when counting stopped (not running) */
	u64 age_ns;   /* saved form of start_ns: now - start_ns */
};

struct pit {
	struct pit_channel channel[3];
	u8 port61; /* writable bits of port 0x61 */
	u64 fired; /* channel 0: ticks after start_ns up to which edges were delivered */
	struct irq_line irq;
	struct loop *loop;
	struct loop_timer timer;
	pthread_mutex_t *machine_lock;
};

extern const struct device_ops pit_ops;

int pit_init(struct pit *pit, struct bus *bus, struct irq_line irq, struct loop *loop,
	     pthread_mutex_t *machine_lock, struct err *e);
void pit_destroy(struct pit *pit);
