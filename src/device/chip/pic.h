/*
 * The two cascaded 8259A interrupt controllers of a PC, with the edge/level registers of later
 * chipsets.
 *
 * References: Intel 8259A datasheet (231468); 82371AB (PIIX4) datasheet for ports 0x4d0 and 0x4d1.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"

struct pic_chip {
	u8 lines;      /* input levels */
	u8 irr;        /* interrupt request register */
	u8 isr;        /* in-service register */
	u8 imr;        /* interrupt mask register */
	u8 elcr;       /* 1: level triggered */
	u8 base;       /* ICW2: vector of input 0 */
	u8 lowest;     /* input with the lowest priority; 7 after initialisation */
	u8 icw1, icw4; /* as written */
	u8 icw_next;   /* initialisation word expected at the odd port: 2..4, 0: none */
	bool read_isr; /* OCW3: the even port reads ISR instead of IRR */
	bool poll;     /* OCW3: the next read is a poll */
	bool special_mask;
	bool rotate_auto; /* rotate in automatic EOI mode */
};

struct pic {
	struct pic_chip chip[2]; /* master, slave */
	struct irq_line intr;    /* INTR output */
	bool intr_level;
};

extern const struct device_ops pic_ops;

/* Put the chips on @bus; @intr follows the master's INT output. */
int pic_init(struct pic *pic, struct bus *bus, struct irq_line intr, struct err *e);

/* Drive input @pin (0..15; 2 is the cascade and ignored). Fits struct irq_line. */
void pic_set_irq(void *pic, u32 pin, bool level);

/* The INTA cycle: acknowledge and return the vector; a spurious one when no request is left. */
u8 pic_intack(struct pic *pic);
