/*
 * The i8042 keyboard controller with a PS/2 keyboard and a PS/2 mouse that answer commands.
 *
 * Nobody types on them yet; what matters is that a driver's probe finds a complete controller at
 * once, and that command 0xfe resets the machine.
 *
 * References: IBM PS/2 Hardware Interface Technical Reference, keyboard and auxiliary device
 * controller.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "bus/bus.h"
#include "bus/irq.h"
#include "device/device.h"

enum { I8042_QUEUE = 16 };

/* Bytes from one device to the controller. */
struct i8042_queue {
	u8 data[I8042_QUEUE];
	u8 head, count;
};

struct i8042_config {
	struct irq_line keyboard, mouse;    /* IRQ 1 and 12 */
	void (*reset)(void *opaque);        /* the CPU's reset line was pulsed */
	void (*a20)(void *opaque, bool on); /* may do nothing: A20 is always on */
	void *opaque;
};

struct i8042 {
	u8 ram[32]; /* controller memory; byte 0 is the command byte */
	u8 output_port;
	u8 pending;            /* controller command that waits for its data byte; 0: none */
	bool last_was_command; /* status bit 3: the last write went to port 0x64 */
	u8 output;             /* byte at port 0x60 */
	bool output_full, output_from_aux;
	struct i8042_queue controller;     /* answers of the controller itself */
	struct i8042_queue controller_aux; /* the same, to look like the mouse's */
	struct i8042_queue keyboard, mouse;
	u8 keyboard_pending; /* keyboard command that waits for its parameter; 0: none */
	u8 keyboard_leds, keyboard_set, keyboard_rate;
	bool keyboard_scanning;
	u8 mouse_pending, mouse_rate, mouse_resolution;
	bool mouse_reporting, mouse_scaling;
	struct i8042_config config;
};

extern const struct device_ops i8042_ops;

int i8042_init(struct i8042 *k, struct bus *bus, const struct i8042_config *config, struct err *e);

/* A key event, as the bytes that shall appear at port 0x60. False when the keyboard is off or its
 * queue has no room for all of them. */
bool i8042_key(struct i8042 *k, const u8 *codes, u32 count);
