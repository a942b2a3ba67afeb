/*
 * The MC146818 real-time clock with 128 bytes of CMOS memory, at ports 0x70 and 0x71.
 *
 * The time of day is the host's UTC plus an offset that changes when the guest sets the clock.
 * Flags in register C are worked out when they are looked at; a timer runs only while an interrupt
 * is enabled.
 *
 * Reference: Motorola MC146818A datasheet; register D and the century byte as in ACPI 6.4, 4.8.2.4.
 *
 * Threads: everything under the machine lock; the timer callback takes it.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/loop.h"

#include <pthread.h>

enum {
	RTC_CMOS_SIZE = 128,
	RTC_CENTURY = 0x32, /* for the FADT */
	/* Where PC firmware stores memory sizes, in KiB and 64 KiB units; see rtc_set_memory(). */
	RTC_CMOS_BASE_MEMORY = 0x15,
	RTC_CMOS_EXTENDED_MEMORY = 0x17,
	RTC_CMOS_EXTENDED_MEMORY_2 = 0x30,
	RTC_CMOS_ABOVE_16M = 0x34,
	RTC_CMOS_ABOVE_4G = 0x5b,
};

struct rtc {
	u8 cmos[RTC_CMOS_SIZE]; /* time registers are valid only while SET stops the clock */
	u8 index;               /* last value written to port 0x70, without the NMI bit */
	u64 offset_ns;          /* guest time = host_clock_ns() + offset_ns, since 1970; wraps */
	u64 utc_ns;             /* saved form of offset_ns: guest time now */
	u64 seen_ns;            /* guest time up to which the flags of register C are worked out */
	struct irq_line irq;
	bool irq_level;
	struct loop *loop;
	struct loop_timer timer;
	pthread_mutex_t *machine_lock;
};

extern const struct device_ops rtc_ops;

/* @utc_ns is the time of day (UTC since 1970) that the guest shall see now. */
int rtc_init(struct rtc *rtc, struct bus *bus, struct irq_line irq, u64 utc_ns, struct loop *loop,
	     pthread_mutex_t *machine_lock, struct err *e);
void rtc_destroy(struct rtc *rtc);

/* A byte of CMOS memory, as firmware would set it up. @at below 0x0e is refused (assertion). */
void rtc_set_cmos(struct rtc *rtc, u8 at, u8 value);

/* The memory-size bytes for @below bytes of RAM under 4 GiB and @above bytes over it. */
void rtc_set_memory(struct rtc *rtc, u64 below, u64 above);
