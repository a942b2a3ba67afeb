/*
 * ACPI fixed hardware: power-management event and control blocks, the PM timer, a general-purpose
 * event block, and the reset control register at port 0xcf9.
 *
 * The hardware is in ACPI mode from the start (SCI_EN reads one), so there is no SMI command port.
 *
 * Reference: ACPI 6.4, 4.8 (fixed hardware), 4.8.3.6 (reset register).
 *
 * Threads: everything under the machine lock; the timer callback takes it.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"
#include "host/loop.h"

#include <pthread.h>

/* Port addresses and register values for the ACPI tables. */
enum {
	PM_BASE = 0x600,
	PM1A_EVT = PM_BASE,       /* 4 bytes: status, enable */
	PM1A_CNT = PM_BASE + 4,   /* 2 bytes */
	PM_TMR = PM_BASE + 8,     /* 4 bytes, 32-bit counter: FADT flag TMR_VAL_EXT */
	PM_GPE0 = PM_BASE + 0x20, /* 4 bytes: two status, two enable */
	PM_GPE0_LEN = 4,
	PM_TMR_HZ = 3579545,
	PM_SLP_TYP_S5 = 5,     /* the \_S5 package's first element */
	PM_RESET_PORT = 0xcf9, /* FADT RESET_REG */
	PM_RESET_VALUE = 0x0f, /* any value that sets bits 1 and 2 resets */
};

struct pm_config {
	struct irq_line sci;             /* level triggered, active high at the pin */
	void (*power_off)(void *opaque); /* S5 entered */
	void (*reset)(void *opaque);     /* reset control register */
	void *opaque;
};

struct pm {
	u16 pm1_status, pm1_enable, pm1_control;
	u16 gpe0_status, gpe0_enable;
	u8 reset_control;
	u64 timer_start_ns; /* host_clock_ns() at which the PM timer read zero */
	u64 timer_age_ns;   /* saved form of timer_start_ns */
	u64 timer_seen;     /* PM timer ticks up to which TMR_STS is worked out */
	bool sci_level;
	struct pm_config config;
	struct loop *loop;
	struct loop_timer timer;
	pthread_mutex_t *machine_lock;
};

extern const struct device_ops pm_ops;

/* Byte accesses to port 0xcf9: give them to pci_host_claim_reset_port(). The device is the struct
 * pm. */
extern const struct bus_ops pm_reset_control_ops;

int pm_init(struct pm *pm, struct bus *bus, const struct pm_config *config, struct loop *loop,
	    pthread_mutex_t *machine_lock, struct err *e);
void pm_destroy(struct pm *pm);

/* The user pressed the power button. */
void pm_power_button(struct pm *pm);

/* Raise general-purpose event @n (0..15). */
void pm_gpe(struct pm *pm, u32 n);

/* The PM timer's value now. Needs no lock. */
u32 pm_timer_read(const struct pm *pm);
