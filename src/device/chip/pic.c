/*
 * Theory of operation
 *
 * After every change pic_update() works out which request each chip would present and drives the
 * wire from the slave to the master's input 2 and from the master to the CPU. There is no other
 * stored conclusion, so a restore needs nothing beyond the registers.
 *
 * A difference from the datasheet: an edge request stays latched when its line falls before INTA,
 * where the chip would answer with a spurious IRQ 7. Devices here pulse their lines.
 */
#include "device/chip/pic.h"

#include <errno.h>
#include <string.h>

enum {
	PIC_MASTER_PORT = 0x20,
	PIC_SLAVE_PORT = 0xa0,
	PIC_ELCR_PORT = 0x4d0,
	CASCADE = 2,
	SPURIOUS = 7,
	NO_REQUEST = 8,

	ICW1_INIT = 1 << 4,
	ICW1_LTIM = 1 << 3,
	ICW1_SNGL = 1 << 1,
	ICW1_IC4 = 1 << 0,
	ICW4_SFNM = 1 << 4,
	ICW4_AEOI = 1 << 1,
	OCW3_SELECT = 1 << 3,
	OCW3_ESMM = 1 << 6,
	OCW3_SMM = 1 << 5,
	OCW3_POLL = 1 << 2,
	OCW3_RR = 1 << 1,
	OCW3_RIS = 1 << 0,

	/* The timer, keyboard, cascade, RTC and coprocessor inputs are always edge triggered. */
	ELCR_MASTER = 0xf8,
	ELCR_SLAVE = 0xde,
};

static bool is_master(const struct pic *pic, const struct pic_chip *c)
{
	return c == &pic->chip[0];
}

/* Inputs that act on their level. */
static u8 level_inputs(const struct pic_chip *c)
{
	return c->icw1 & ICW1_LTIM ? 0xff : c->elcr;
}

/* The set bit of @bits with the highest priority, or NO_REQUEST. */
static u32 first_by_priority(const struct pic_chip *c, u8 bits)
{
	for (u32 i = 1; i <= 8; i++) {
		u32 input = (c->lowest + i) & 7;

		if (bits & BIT(input))
			return input;
	}
	return NO_REQUEST;
}

/* Position of @input in the priority order, 0 first; NO_REQUEST comes last. */
static u32 rank(const struct pic_chip *c, u32 input)
{
	return input == NO_REQUEST ? NO_REQUEST : (input - c->lowest - 1u) & 7;
}

/* The input whose request the chip presents, or NO_REQUEST. */
static u32 presented(const struct pic *pic, const struct pic_chip *c)
{
	u32 request = first_by_priority(c, c->irr & ~c->imr);
	u8 blocking = c->isr;

	if (c->special_mask)
		blocking &= ~c->imr;
	/* The slave orders its own requests; in special fully nested mode the master lets them all
	 * in. */
	if (is_master(pic, c) && c->icw4 & ICW4_SFNM)
		blocking &= ~BIT(CASCADE);
	if (rank(c, request) < rank(c, first_by_priority(c, blocking)))
		return request;
	return NO_REQUEST;
}

static void pic_update(struct pic *pic)
{
	struct pic_chip *master = &pic->chip[0];
	bool intr;

	if (presented(pic, &pic->chip[1]) != NO_REQUEST)
		master->irr |= BIT(CASCADE);
	else
		master->irr &= ~BIT(CASCADE);
	intr = presented(pic, master) != NO_REQUEST;
	if (intr != pic->intr_level) {
		pic->intr_level = intr;
		irq_set(pic->intr, intr);
	}
}

void pic_set_irq(void *dev, u32 pin, bool level)
{
	struct pic *pic = dev;
	struct pic_chip *c;
	u8 bit = (u8)BIT(pin & 7);

	if (pin > 15 || pin == CASCADE)
		return;
	c = &pic->chip[pin >> 3];
	if (level && (level_inputs(c) & bit || !(c->lines & bit)))
		c->irr |= bit;
	else if (!level && level_inputs(c) & bit)
		c->irr &= ~bit;
	c->lines = level ? c->lines | bit : c->lines & ~bit;
	pic_update(pic);
}

static void complete(struct pic_chip *c, u32 input, bool rotate)
{
	if (input == NO_REQUEST)
		return;
	c->isr &= ~BIT(input);
	if (rotate)
		c->lowest = (u8)input;
}

/* Take the presented request into service; SPURIOUS when it is gone. */
static u32 acknowledge(struct pic *pic, struct pic_chip *c)
{
	u32 input = presented(pic, c);

	if (input == NO_REQUEST)
		return SPURIOUS;
	if (!(level_inputs(c) & BIT(input)))
		c->irr &= ~BIT(input);
	c->isr |= BIT(input);
	if (c->icw4 & ICW4_AEOI)
		complete(c, input, c->rotate_auto);
	return input;
}

u8 pic_intack(struct pic *pic)
{
	struct pic_chip *c = &pic->chip[0];
	u32 input = acknowledge(pic, c);

	if (input == CASCADE) {
		c = &pic->chip[1];
		input = acknowledge(pic, c);
	}
	pic_update(pic);
	return (u8)(c->base | input);
}

static void write_icw1(struct pic_chip *c, u8 value)
{
	c->icw1 = value;
	c->icw_next = 2;
	if (!(value & ICW1_IC4))
		c->icw4 = 0;
	/* The edge sense circuit is reset: a level input that is still high asks again. */
	c->irr = c->lines & level_inputs(c);
	c->isr = c->imr = 0;
	c->lowest = 7;
	c->special_mask = c->read_isr = c->poll = c->rotate_auto = false;
}

static void write_ocw2(struct pic_chip *c, u8 value)
{
	u32 input = value & 7;

	switch (value >> 5) {
	case 0: c->rotate_auto = false; break;
	case 4: c->rotate_auto = true; break;
	case 1:
	case 5:
		complete(c, first_by_priority(c, c->special_mask ? c->isr & ~c->imr : c->isr),
			 value >> 5 == 5);
		break;
	case 3: complete(c, input, false); break;
	case 6: c->lowest = (u8)input; break;
	case 7: complete(c, input, true); break;
	default: break;
	}
}

static void write_ocw3(struct pic_chip *c, u8 value)
{
	if (value & OCW3_RR)
		c->read_isr = value & OCW3_RIS;
	if (value & OCW3_ESMM)
		c->special_mask = value & OCW3_SMM;
	c->poll = value & OCW3_POLL;
}

/* ICW2 to ICW4, or the mask. */
static void write_odd(struct pic_chip *c, u8 value)
{
	bool cascaded = !(c->icw1 & ICW1_SNGL), wants_icw4 = c->icw1 & ICW1_IC4;

	switch (c->icw_next) {
	case 2:
		c->base = value & 0xf8;
		c->icw_next = cascaded ? 3 : wants_icw4 ? 4 : 0;
		break;
	case 3: c->icw_next = wants_icw4 ? 4 : 0; break; /* a PC's wiring is fixed */
	case 4:
		c->icw4 = value;
		c->icw_next = 0;
		break;
	default: c->imr = value; break;
	}
}

static void write_port(struct pic *pic, struct pic_chip *c, u64 off, u8 value)
{
	if (off)
		write_odd(c, value);
	else if (value & ICW1_INIT)
		write_icw1(c, value);
	else if (value & OCW3_SELECT)
		write_ocw3(c, value);
	else
		write_ocw2(c, value);
	pic_update(pic);
}

static u8 read_poll(struct pic *pic, struct pic_chip *c)
{
	u32 input = presented(pic, c);

	c->poll = false;
	if (input == NO_REQUEST)
		return 0;
	acknowledge(pic, c);
	pic_update(pic);
	return (u8)(0x80 | input);
}

static u64 read_port(struct pic *pic, struct pic_chip *c, u64 off)
{
	if (c->poll)
		return read_poll(pic, c);
	if (off)
		return c->imr;
	return c->read_isr ? c->isr : c->irr;
}

static u64 master_read(void *dev, u64 off, u32 size)
{
	struct pic *pic = dev;

	(void)size;
	return read_port(pic, &pic->chip[0], off);
}

static void master_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pic *pic = dev;

	(void)size;
	write_port(pic, &pic->chip[0], off, (u8)value);
}

static u64 slave_read(void *dev, u64 off, u32 size)
{
	struct pic *pic = dev;

	(void)size;
	return read_port(pic, &pic->chip[1], off);
}

static void slave_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pic *pic = dev;

	(void)size;
	write_port(pic, &pic->chip[1], off, (u8)value);
}

static u64 elcr_read(void *dev, u64 off, u32 size)
{
	struct pic *pic = dev;

	(void)size;
	return pic->chip[off].elcr;
}

static void elcr_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pic *pic = dev;
	struct pic_chip *c = &pic->chip[off];

	(void)size;
	c->elcr = (u8)value & (off ? ELCR_SLAVE : ELCR_MASTER);
	c->irr |= c->lines & c->elcr;
	pic_update(pic);
}

static const struct bus_ops master_ops = {
	.read = master_read, .write = master_write, .min = 1, .max = 1};
static const struct bus_ops slave_ops = {
	.read = slave_read, .write = slave_write, .min = 1, .max = 1};
static const struct bus_ops elcr_ops = {.read = elcr_read, .write = elcr_write, .min = 1, .max = 1};

/* Input levels belong to the devices, so they outlive a reset. */
static void pic_reset(void *dev)
{
	struct pic *pic = dev;

	for (u32 i = 0; i < 2; i++)
		pic->chip[i] = (struct pic_chip){.lines = pic->chip[i].lines, .lowest = 7};
	pic_update(pic);
}

static int pic_loaded(void *dev, struct err *e)
{
	struct pic *pic = dev;

	(void)e;
	pic_update(pic);
	return 0;
}

static const struct field pic_fields[] = {
	FIELD_EACH(FIELD_U8, struct pic, chip, lines),
	FIELD_EACH(FIELD_U8, struct pic, chip, irr),
	FIELD_EACH(FIELD_U8, struct pic, chip, isr),
	FIELD_EACH(FIELD_U8, struct pic, chip, imr),
	FIELD_EACH(FIELD_U8, struct pic, chip, elcr),
	FIELD_EACH(FIELD_U8, struct pic, chip, base),
	FIELD_EACH_MAX(FIELD_U8, struct pic, chip, lowest, 7),
	FIELD_EACH(FIELD_U8, struct pic, chip, icw1),
	FIELD_EACH(FIELD_U8, struct pic, chip, icw4),
	FIELD_EACH_MAX(FIELD_U8, struct pic, chip, icw_next, 4),
	FIELD_EACH(FIELD_BOOL, struct pic, chip, read_isr),
	FIELD_EACH(FIELD_BOOL, struct pic, chip, poll),
	FIELD_EACH(FIELD_BOOL, struct pic, chip, special_mask),
	FIELD_EACH(FIELD_BOOL, struct pic, chip, rotate_auto),
};

const struct device_ops pic_ops = {
	.name = "8259",
	.reset = pic_reset,
	.state = {.field = pic_fields,
		  .count = ARRAY_SIZE(pic_fields),
		  .version = 1,
		  .loaded = pic_loaded},
};

int pic_init(struct pic *pic, struct bus *bus, struct irq_line intr, struct err *e)
{
	const struct bus_region master = {"8259 master", PIC_MASTER_PORT, 2, &master_ops, pic};
	const struct bus_region slave = {"8259 slave", PIC_SLAVE_PORT, 2, &slave_ops, pic};
	const struct bus_region elcr = {"8259 elcr", PIC_ELCR_PORT, 2, &elcr_ops, pic};
	int rc;

	memset(pic, 0, sizeof(*pic));
	pic->intr = intr;
	pic_reset(pic);
	rc = bus_add(bus, BUS_PORT, &master);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &slave);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &elcr);
	return rc ? err_set(e, rc, "8259: cannot place its ports") : 0;
}
