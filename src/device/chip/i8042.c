/*
 * Theory of operation
 *
 * Port 0x60 holds one byte; behind it wait four short queues, tried in order: the controller's own
 * answers, then the keyboard's bytes, then the mouse's, each device only while its clock is
 * enabled. The two interrupt lines follow the byte at port 0x60. Reading it lowers the line, and
 * the next byte raises it again, so an edge-triggered interrupt controller sees every byte.
 *
 * A queue that is full drops what does not fit, as the devices' own buffers do.
 */
#include "device/chip/i8042.h"

#include <errno.h>
#include <string.h>

enum {
	PORT_DATA = 0x60,
	PORT_COMMAND = 0x64,

	STATUS_OUTPUT_FULL = 0x01,
	STATUS_SYSTEM = 0x04,
	STATUS_COMMAND = 0x08,
	STATUS_UNLOCKED = 0x10,
	STATUS_AUX = 0x20,

	CB_KEYBOARD_IRQ = 0x01,
	CB_AUX_IRQ = 0x02,
	CB_SYSTEM = 0x04,
	CB_KEYBOARD_OFF = 0x10,
	CB_AUX_OFF = 0x20,
	CB_TRANSLATE = 0x40,

	CMD_READ_RAM = 0x20,
	CMD_WRITE_RAM = 0x60,
	CMD_AUX_OFF = 0xa7,
	CMD_AUX_ON = 0xa8,
	CMD_AUX_TEST = 0xa9,
	CMD_SELF_TEST = 0xaa,
	CMD_KEYBOARD_TEST = 0xab,
	CMD_KEYBOARD_OFF = 0xad,
	CMD_KEYBOARD_ON = 0xae,
	CMD_READ_INPUT = 0xc0,
	CMD_READ_OUTPUT = 0xd0,
	CMD_WRITE_OUTPUT = 0xd1,
	CMD_WRITE_KEYBOARD_BUFFER = 0xd2,
	CMD_WRITE_AUX_BUFFER = 0xd3,
	CMD_WRITE_AUX = 0xd4,
	CMD_A20_OFF = 0xdd,
	CMD_A20_ON = 0xdf,
	CMD_READ_TEST = 0xe0,
	CMD_PULSE = 0xf0,

	OUTPUT_NOT_RESET = 0x01,
	OUTPUT_A20 = 0x02,

	REPLY_ACK = 0xfa,
	REPLY_RESEND = 0xfe,
	REPLY_SELF_TEST = 0xaa,
};

/* Queues and port 0x60 ---------------------------------------------------- */

static void push(struct i8042_queue *q, u8 byte)
{
	if (q->count < I8042_QUEUE)
		q->data[(q->head + q->count++) % I8042_QUEUE] = byte;
}

static bool pop(struct i8042_queue *q, u8 *byte)
{
	if (!q->count)
		return false;
	*byte = q->data[q->head % I8042_QUEUE];
	q->head = (q->head + 1) % I8042_QUEUE;
	q->count--;
	return true;
}

static void update_lines(struct i8042 *k)
{
	bool keyboard = k->output_full && !k->output_from_aux, aux = k->output_full && !keyboard;

	irq_set(k->config.keyboard, keyboard && k->ram[0] & CB_KEYBOARD_IRQ);
	irq_set(k->config.mouse, aux && k->ram[0] & CB_AUX_IRQ);
}

/* Put the next byte at port 0x60 if it is free. */
static void refill(struct i8042 *k)
{
	if (k->output_full)
		return;
	if (pop(&k->controller, &k->output) ||
	    (!(k->ram[0] & CB_KEYBOARD_OFF) && pop(&k->keyboard, &k->output)))
		k->output_from_aux = false;
	else if (pop(&k->controller_aux, &k->output) ||
		 (!(k->ram[0] & CB_AUX_OFF) && pop(&k->mouse, &k->output)))
		k->output_from_aux = true;
	else
		return;
	k->output_full = true;
}

static void update(struct i8042 *k)
{
	refill(k);
	update_lines(k);
}

/* Keyboard ---------------------------------------------------------------- */

static void keyboard_defaults(struct i8042 *k)
{
	k->keyboard_set = 2;
	k->keyboard_rate = 0x2b;
	k->keyboard_pending = 0;
}

static void keyboard_parameter(struct i8042 *k, u8 value)
{
	u8 command = k->keyboard_pending;

	k->keyboard_pending = 0;
	push(&k->keyboard, REPLY_ACK);
	switch (command) {
	case 0xed: k->keyboard_leds = value & 7; break;
	case 0xf3: k->keyboard_rate = value; break;
	case 0xf0:
		if (!value)
			push(&k->keyboard, k->keyboard_set);
		else if (value <= 3)
			k->keyboard_set = value;
		break;
	}
}

static void keyboard_identify(struct i8042 *k)
{
	push(&k->keyboard, 0xab);
	push(&k->keyboard, k->ram[0] & CB_TRANSLATE ? 0x41 : 0x83);
}

static void keyboard_write(struct i8042 *k, u8 value)
{
	if (k->keyboard_pending && value < 0xed) {
		keyboard_parameter(k, value);
		return;
	}
	k->keyboard_pending = 0;
	if (value == 0xee) { /* echo */
		push(&k->keyboard, 0xee);
		return;
	}
	if (value < 0xed || value == 0xef || value == 0xf1 || value == REPLY_RESEND) {
		push(&k->keyboard, REPLY_RESEND);
		return;
	}
	push(&k->keyboard, REPLY_ACK);
	switch (value) {
	case 0xed:
	case 0xf0:
	case 0xf3: k->keyboard_pending = value; break;
	case 0xf2: keyboard_identify(k); break;
	case 0xf4: k->keyboard_scanning = true; break;
	case 0xf5:
		k->keyboard_scanning = false;
		keyboard_defaults(k);
		break;
	case 0xf6: keyboard_defaults(k); break;
	case 0xff:
		keyboard_defaults(k);
		k->keyboard_scanning = true;
		push(&k->keyboard, REPLY_SELF_TEST);
		break;
	}
}

bool i8042_key(struct i8042 *k, const u8 *codes, u32 count)
{
	if (!k->keyboard_scanning || count > (u32)(I8042_QUEUE - k->keyboard.count))
		return false;
	for (u32 i = 0; i < count; i++)
		push(&k->keyboard, codes[i]);
	update(k);
	return true;
}

/* Mouse ------------------------------------------------------------------- */

static void mouse_defaults(struct i8042 *k)
{
	k->mouse_rate = 100;
	k->mouse_resolution = 2;
	k->mouse_reporting = k->mouse_scaling = false;
	k->mouse_pending = 0;
}

static void mouse_status(struct i8042 *k)
{
	push(&k->mouse, (u8)(k->mouse_reporting << 5 | k->mouse_scaling << 4));
	push(&k->mouse, k->mouse_resolution);
	push(&k->mouse, k->mouse_rate);
}

static void mouse_write(struct i8042 *k, u8 value)
{
	u8 command = k->mouse_pending;

	k->mouse_pending = 0;
	push(&k->mouse, REPLY_ACK);
	if (command) {
		*(command == 0xe8 ? &k->mouse_resolution : &k->mouse_rate) = value;
		return;
	}
	switch (value) {
	case 0xe6: k->mouse_scaling = false; break;
	case 0xe7: k->mouse_scaling = true; break;
	case 0xe8:
	case 0xf3: k->mouse_pending = value; break;
	case 0xe9: mouse_status(k); break;
	case 0xeb: /* a movement packet: no buttons, no movement */
		push(&k->mouse, 0x08);
		push(&k->mouse, 0);
		push(&k->mouse, 0);
		break;
	case 0xf2: push(&k->mouse, 0); break; /* a standard mouse */
	case 0xf4: k->mouse_reporting = true; break;
	case 0xf5: k->mouse_reporting = false; break;
	case 0xf6: mouse_defaults(k); break;
	case 0xff:
		mouse_defaults(k);
		push(&k->mouse, REPLY_SELF_TEST);
		push(&k->mouse, 0);
		break;
	}
}

/* Controller -------------------------------------------------------------- */

static void write_output_port(struct i8042 *k, u8 value)
{
	u8 changed = k->output_port ^ value;

	k->output_port = value;
	if (changed & OUTPUT_A20)
		k->config.a20(k->config.opaque, value & OUTPUT_A20);
	if (!(value & OUTPUT_NOT_RESET))
		k->config.reset(k->config.opaque);
}

static void self_test(struct i8042 *k)
{
	k->ram[0] |= CB_SYSTEM;
	push(&k->controller, 0x55);
}

static void command_ram(struct i8042 *k, u8 command)
{
	if (command >= CMD_WRITE_RAM)
		k->pending = command;
	else
		push(&k->controller, k->ram[command & 31]);
}

static void write_command(struct i8042 *k, u8 command)
{
	k->pending = 0;
	if ((command >= CMD_READ_RAM && command < 0x40) ||
	    (command >= CMD_WRITE_RAM && command < 0x80)) {
		command_ram(k, command);
		return;
	}
	/* A pulse of the output bits that are zero in the command; bit 0 is the CPU's reset. */
	if (command >= CMD_PULSE) {
		if (!(command & OUTPUT_NOT_RESET))
			k->config.reset(k->config.opaque);
		return;
	}
	switch (command) {
	case CMD_AUX_OFF: k->ram[0] |= CB_AUX_OFF; break;
	case CMD_AUX_ON: k->ram[0] &= ~CB_AUX_OFF; break;
	case CMD_AUX_TEST:
	case CMD_KEYBOARD_TEST:
	case CMD_READ_TEST: push(&k->controller, 0); break;
	case CMD_SELF_TEST: self_test(k); break;
	case CMD_KEYBOARD_OFF: k->ram[0] |= CB_KEYBOARD_OFF; break;
	case CMD_KEYBOARD_ON: k->ram[0] &= ~CB_KEYBOARD_OFF; break;
	case CMD_READ_INPUT: push(&k->controller, 0x80); break; /* keyboard not locked */
	case CMD_READ_OUTPUT: push(&k->controller, k->output_port); break;
	case CMD_A20_OFF: write_output_port(k, k->output_port & ~OUTPUT_A20); break;
	case CMD_A20_ON: write_output_port(k, k->output_port | OUTPUT_A20); break;
	case CMD_WRITE_OUTPUT:
	case CMD_WRITE_KEYBOARD_BUFFER:
	case CMD_WRITE_AUX_BUFFER:
	case CMD_WRITE_AUX: k->pending = command; break;
	}
}

static void write_data(struct i8042 *k, u8 value)
{
	u8 command = k->pending;

	k->pending = 0;
	switch (command) {
	case 0:
		/* IBM: a write to the keyboard enables its clock. */
		k->ram[0] &= ~CB_KEYBOARD_OFF;
		keyboard_write(k, value);
		break;
	case CMD_WRITE_OUTPUT: write_output_port(k, value); break;
	case CMD_WRITE_KEYBOARD_BUFFER: push(&k->controller, value); break;
	case CMD_WRITE_AUX_BUFFER: push(&k->controller_aux, value); break;
	case CMD_WRITE_AUX:
		k->ram[0] &= ~CB_AUX_OFF;
		mouse_write(k, value);
		break;
	default: k->ram[command & 31] = value; break;
	}
}

static u64 data_read(void *dev, u64 off, u32 size)
{
	struct i8042 *k = dev;
	u8 value = k->output;

	(void)off;
	(void)size;
	k->output_full = false;
	update_lines(k);
	update(k);
	return value;
}

static void data_write(void *dev, u64 off, u32 size, u64 value)
{
	struct i8042 *k = dev;

	(void)off;
	(void)size;
	k->last_was_command = false;
	write_data(k, (u8)value);
	update(k);
}

static u64 status_read(void *dev, u64 off, u32 size)
{
	struct i8042 *k = dev;
	u8 status = STATUS_UNLOCKED;

	(void)off;
	(void)size;
	if (k->output_full)
		status |= STATUS_OUTPUT_FULL | (k->output_from_aux ? STATUS_AUX : 0);
	if (k->ram[0] & CB_SYSTEM)
		status |= STATUS_SYSTEM;
	if (k->last_was_command)
		status |= STATUS_COMMAND;
	return status;
}

static void command_write(void *dev, u64 off, u32 size, u64 value)
{
	struct i8042 *k = dev;

	(void)off;
	(void)size;
	k->last_was_command = true;
	write_command(k, (u8)value);
	update(k);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write, .min = 1, .max = 1};
static const struct bus_ops command_ops = {
	.read = status_read, .write = command_write, .min = 1, .max = 1};

/* State ------------------------------------------------------------------- */

static void i8042_reset(void *dev)
{
	struct i8042 *k = dev;

	*k = (struct i8042){.config = k->config};
	/* As firmware leaves it: tested, translating, interrupts on, mouse off. */
	k->ram[0] = CB_KEYBOARD_IRQ | CB_SYSTEM | CB_AUX_OFF | CB_TRANSLATE;
	k->output_port = OUTPUT_NOT_RESET | OUTPUT_A20;
	keyboard_defaults(k);
	k->keyboard_scanning = true;
	mouse_defaults(k);
	update(k);
}

static int i8042_loaded(void *dev, struct err *e)
{
	(void)e;
	update_lines(dev);
	return 0;
}

/* NOLINTBEGIN(bugprone-macro-parentheses): a member's name */
#define QUEUE_FIELDS(queue)                                                     \
	FIELD_ARRAY(FIELD_BYTES, struct i8042, queue.data),                     \
		FIELD_MAX(FIELD_U8, struct i8042, queue.head, I8042_QUEUE - 1), \
		FIELD_MAX(FIELD_U8, struct i8042, queue.count, I8042_QUEUE)
/* NOLINTEND(bugprone-macro-parentheses) */

static const struct field i8042_fields[] = {
	FIELD_ARRAY(FIELD_BYTES, struct i8042, ram),
	FIELD(FIELD_U8, struct i8042, output_port),
	FIELD(FIELD_U8, struct i8042, pending),
	FIELD(FIELD_BOOL, struct i8042, last_was_command),
	FIELD(FIELD_U8, struct i8042, output),
	FIELD(FIELD_BOOL, struct i8042, output_full),
	FIELD(FIELD_BOOL, struct i8042, output_from_aux),
	QUEUE_FIELDS(controller),
	QUEUE_FIELDS(controller_aux),
	QUEUE_FIELDS(keyboard),
	QUEUE_FIELDS(mouse),
	FIELD(FIELD_U8, struct i8042, keyboard_pending),
	FIELD(FIELD_U8, struct i8042, keyboard_leds),
	FIELD(FIELD_U8, struct i8042, keyboard_set),
	FIELD(FIELD_U8, struct i8042, keyboard_rate),
	FIELD(FIELD_BOOL, struct i8042, keyboard_scanning),
	FIELD(FIELD_U8, struct i8042, mouse_pending),
	FIELD(FIELD_U8, struct i8042, mouse_rate),
	FIELD(FIELD_U8, struct i8042, mouse_resolution),
	FIELD(FIELD_BOOL, struct i8042, mouse_reporting),
	FIELD(FIELD_BOOL, struct i8042, mouse_scaling),
};

const struct device_ops i8042_ops = {
	.name = "i8042",
	.reset = i8042_reset,
	.state = {.field = i8042_fields,
		  .count = ARRAY_SIZE(i8042_fields),
		  .version = 1,
		  .loaded = i8042_loaded},
};

int i8042_init(struct i8042 *k, struct bus *bus, const struct i8042_config *config, struct err *e)
{
	const struct bus_region data = {"i8042 data", PORT_DATA, 1, &data_ops, k};
	const struct bus_region command = {"i8042 command", PORT_COMMAND, 1, &command_ops, k};
	int rc;

	k->config = *config;
	i8042_reset(k);
	rc = bus_add(bus, BUS_PORT, &data);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &command);
	return rc ? err_set(e, rc, "i8042: cannot place its ports") : 0;
}
