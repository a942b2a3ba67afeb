/*
 * The I/O APIC: 24 inputs, each with a redirection entry, delivering to local APICs.
 *
 * An interrupt leaves as the memory write it would be on the bus, so I/O APIC, MSI and MSI-X share
 * one path into the local APICs.
 *
 * References: Intel 82093AA datasheet (290566); ICH9 datasheet, 13.5, for the EOI register of
 * version 0x20; SDM vol. 3, 11.11, for the message format.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"

enum {
	IOAPIC_PINS = 24,
	IOAPIC_VERSION = 0x20,
	IOAPIC_SIZE = 0x1000,
};

#define IOAPIC_BASE 0xfec00000ul

struct ioapic {
	u32 id;    /* bits 27:24 */
	u8 select; /* IOREGSEL */
	u32 lines; /* input levels */
	u64 redirection[IOAPIC_PINS];
	struct msi_sink sink;
};

extern const struct device_ops ioapic_ops;

int ioapic_init(struct ioapic *io, struct bus *bus, gpa_t base, u8 id, struct msi_sink sink,
		struct err *e);

/* Drive input @pin (0..23). Fits struct irq_line. */
void ioapic_set_irq(void *ioapic, u32 pin, bool level);

/* A local APIC completed level-triggered @vector. Fits lapic_ops.eoi. */
void ioapic_eoi(void *ioapic, u8 vector);
