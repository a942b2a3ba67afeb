/*
 * The i8042 keyboard controller with a PS/2 keyboard and a PS/2 mouse that answer commands.
 *
 * Nobody types on them yet; what matters is that a driver's probe finds a complete controller at once,
 * and that command 0xfe resets the machine.
 *
 * References: IBM PS/2 Hardware Interface Technical Reference, keyboard and auxiliary device controller.
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
	struct irq_line keyboard, mouse;   /* IRQ 1 and 12 */
	void (*reset)(void *opaque);       /* the CPU's reset line was pulsed */
	void (*a20)(void *opaque, bool on); /* may do nothing: A20 is always on */
	void *opaque;
};

struct i8042 {
	u8 command_byte;
	u8 output_port;
	u8 pending;         /* controller command that waits for its data byte; 0: none */
	u8 output;          /* byte at port 0x60 */
	bool output_full, output_from_aux;
	u8 ram[32];         /* controller memory, byte 0 is the command byte */
	struct i8042_queue controller, keyboard, mouse;
	u8 keyboard_pending; /* keyboard command that waits for its parameter */
	u8 keyboard_leds, keyboard_set, keyboard_rate;
	bool keyboard_scanning;
	u8 mouse_pending, mouse_rate, mouse_resolution;
	bool mouse_reporting, mouse_scaling;
	struct i8042_config config;
};

extern const struct device_ops i8042_ops;

int i8042_init(struct i8042 *k, struct bus *bus, const struct i8042_config *config, struct err *e);

/* A key event as scan codes of set 2 translated by the caller's table; false when the queue is full. */
bool i8042_key(struct i8042 *k, const u8 *codes, u32 count);
