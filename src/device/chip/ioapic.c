/*
 * Theory of operation
 *
 * An edge is delivered when it happens, or lost when its entry is masked (82093AA, 3.2.4). A level
 * is delivered when its entry is unmasked and Remote IRR is clear; Remote IRR stays set until the
 * EOI for its vector comes back, and if the line is still high then, it is delivered again.
 *
 * Lines mean "asserted"; the polarity bit describes a voltage that does not exist here.
 */
#include "device/chip/ioapic.h"

#include <errno.h>
#include <string.h>

enum {
	IOREGSEL = 0x00,
	IOWIN = 0x10,
	IOEOI = 0x40,
	REG_ID = 0,
	REG_VERSION = 1,
	REG_ARBITRATION = 2,
	REG_REDIRECTION = 0x10,
	ID_MASK = 0x0f000000,

	MODE_LOWEST_PRIORITY = 1,
};

/* Redirection entry, 82093AA, 3.2.4. */
#define RED_VECTOR      0xfful
#define RED_MODE        (7ul << 8)
#define RED_LOGICAL     BIT(11)
#define RED_STATUS      BIT(12)
#define RED_REMOTE_IRR  BIT(14)
#define RED_LEVEL       BIT(15)
#define RED_MASKED      BIT(16)
#define RED_DESTINATION (0xfful << 56)
#define RED_WRITABLE    (0x1fffful & ~(RED_STATUS | RED_REMOTE_IRR))

/* The message of SDM vol. 3, 11.11. */
static void send(struct ioapic *io, u64 entry)
{
	u64 mode = (entry & RED_MODE) >> 8;
	u64 address = 0xfee00000ul | (entry >> 56) << 12;
	u32 data = (u32)(entry & (RED_VECTOR | RED_MODE));

	if (entry & RED_LOGICAL)
		address |= BIT(2);
	if (mode == MODE_LOWEST_PRIORITY)
		address |= BIT(3);
	if (entry & RED_LEVEL)
		data |= BIT(15) | BIT(14);
	io->sink.send(io->sink.opaque, address, data);
}

static void service_level(struct ioapic *io, u32 pin)
{
	u64 *entry = &io->redirection[pin];

	if (!(io->lines & BIT(pin)) || !(*entry & RED_LEVEL) ||
	    *entry & (RED_MASKED | RED_REMOTE_IRR))
		return;
	*entry |= RED_REMOTE_IRR;
	send(io, *entry);
}

void ioapic_set_irq(void *dev, u32 pin, bool level)
{
	struct ioapic *io = dev;
	bool rising;
	u64 entry;

	if (pin >= IOAPIC_PINS)
		return;
	entry = io->redirection[pin];
	rising = level && !(io->lines & BIT(pin));
	if (level)
		io->lines |= (u32)BIT(pin);
	else
		io->lines &= ~(u32)BIT(pin);
	if (entry & RED_LEVEL)
		service_level(io, pin);
	else if (rising && !(entry & RED_MASKED))
		send(io, entry);
}

void ioapic_eoi(void *dev, u8 vector)
{
	struct ioapic *io = dev;

	for (u32 pin = 0; pin < IOAPIC_PINS; pin++) {
		u64 *entry = &io->redirection[pin];

		if (!(*entry & RED_REMOTE_IRR) || (*entry & RED_VECTOR) != vector)
			continue;
		*entry &= ~RED_REMOTE_IRR;
		service_level(io, pin);
	}
}

static u32 register_read(const struct ioapic *io)
{
	u32 pin = (io->select - REG_REDIRECTION) / 2u;

	switch (io->select) {
	case REG_ID:
	case REG_ARBITRATION: return io->id;
	case REG_VERSION: return IOAPIC_VERSION | (IOAPIC_PINS - 1) << 16;
	}
	if (io->select < REG_REDIRECTION || pin >= IOAPIC_PINS)
		return 0;
	return (u32)(io->redirection[pin] >> (io->select & 1 ? 32 : 0));
}

static void redirection_write(struct ioapic *io, u32 pin, bool high, u32 value)
{
	u64 *entry = &io->redirection[pin];

	if (high) {
		*entry = (*entry & 0xffffffff) | ((u64)value << 32 & RED_DESTINATION);
		return;
	}
	*entry = (*entry & ~RED_WRITABLE) | (value & RED_WRITABLE);
	/* An edge entry has no Remote IRR; drivers switch the mode to and fro to clear it. */
	if (!(*entry & RED_LEVEL))
		*entry &= ~RED_REMOTE_IRR;
	service_level(io, pin);
}

static void register_write(struct ioapic *io, u32 value)
{
	u32 pin = (io->select - REG_REDIRECTION) / 2u;

	if (io->select == REG_ID)
		io->id = value & ID_MASK;
	else if (io->select >= REG_REDIRECTION && pin < IOAPIC_PINS)
		redirection_write(io, pin, io->select & 1, value);
}

static u64 ioapic_read(void *dev, u64 off, u32 size)
{
	struct ioapic *io = dev;

	(void)size;
	switch (off) {
	case IOREGSEL: return io->select;
	case IOWIN: return register_read(io);
	default: return 0;
	}
}

static void ioapic_write(void *dev, u64 off, u32 size, u64 value)
{
	struct ioapic *io = dev;

	(void)size;
	switch (off) {
	case IOREGSEL: io->select = (u8)value; break;
	case IOWIN: register_write(io, (u32)value); break;
	case IOEOI: ioapic_eoi(io, (u8)value); break;
	}
}

static const struct bus_ops ioapic_bus_ops = {
	.read = ioapic_read, .write = ioapic_write, .min = 4, .max = 4};

/* Input levels belong to the devices, and the id to the board, so they outlive a reset. */
static void ioapic_reset(void *dev)
{
	struct ioapic *io = dev;

	io->select = 0;
	for (u32 pin = 0; pin < IOAPIC_PINS; pin++)
		io->redirection[pin] = RED_MASKED;
}

static int ioapic_loaded(void *dev, struct err *e)
{
	struct ioapic *io = dev;

	(void)e;
	io->id &= ID_MASK;
	for (u32 pin = 0; pin < IOAPIC_PINS; pin++)
		io->redirection[pin] &= RED_WRITABLE | RED_REMOTE_IRR | RED_DESTINATION;
	return 0;
}

static const struct field ioapic_fields[] = {
	FIELD(FIELD_U32, struct ioapic, id),
	FIELD(FIELD_U8, struct ioapic, select),
	FIELD_MAX(FIELD_U32, struct ioapic, lines, BIT(IOAPIC_PINS) - 1),
	FIELD_ARRAY(FIELD_U64, struct ioapic, redirection),
};

const struct device_ops ioapic_ops = {
	.name = "ioapic",
	.reset = ioapic_reset,
	.state = {.field = ioapic_fields,
		  .count = ARRAY_SIZE(ioapic_fields),
		  .version = 1,
		  .loaded = ioapic_loaded},
};

int ioapic_init(struct ioapic *io, struct bus *bus, gpa_t base, u8 id, struct msi_sink sink,
		struct err *e)
{
	const struct bus_region region = {"ioapic", base, IOAPIC_SIZE, &ioapic_bus_ops, io};
	int rc;

	memset(io, 0, sizeof(*io));
	io->id = (u32)(id & 15) << 24;
	io->sink = sink;
	ioapic_reset(io);
	rc = bus_add(bus, BUS_MEMORY, &region);
	return rc ? err_set(e, rc, "ioapic: cannot place its registers at %#lx", base) : 0;
}
