/*
 * Theory of operation
 *
 * The interrupt line and the identification register are computed from the other registers after
 * every change. A receive FIFO filled below its trigger level reports the character timeout at once
 * instead of after four character times: bytes arrive in bursts here, and nobody gains by waiting.
 *
 * The back end asks for room without the machine lock; that figure is kept in one atomic word. Only
 * the guest makes room, and only the loop's thread, which asked, takes it.
 */
#include "device/chip/uart.h"

#include <errno.h>
#include <string.h>

enum {
	REG_DATA = 0,
	REG_IER = 1,
	REG_IIR_FCR = 2,
	REG_LCR = 3,
	REG_MCR = 4,
	REG_LSR = 5,
	REG_MSR = 6,
	REG_SCR = 7,

	IER_RDI = 0x01,
	IER_THRI = 0x02,
	IER_RLSI = 0x04,
	IER_MSI = 0x08,
	IER_MASK = 0x0f,
	IIR_NONE = 0x01,
	IIR_THRI = 0x02,
	IIR_RDI = 0x04,
	IIR_RLSI = 0x06,
	IIR_TIMEOUT = 0x0c,
	IIR_MSI = 0x00,
	IIR_FIFO = 0xc0,
	FCR_ENABLE = 0x01,
	FCR_CLEAR_RX = 0x02,
	FCR_STORED = 0xc9,
	LCR_DLAB = 0x80,
	MCR_DTR = 0x01,
	MCR_RTS = 0x02,
	MCR_OUT1 = 0x04,
	MCR_OUT2 = 0x08, /* on a PC the gate between the chip and the interrupt line */
	MCR_LOOP = 0x10,
	MCR_MASK = 0x1f,
	LSR_DR = 0x01,
	LSR_OE = 0x02,
	LSR_THRE = 0x20,
	LSR_TEMT = 0x40,
	MSR_TERI = 0x04,
	MSR_CTS = 0x10,
	MSR_DSR = 0x20,
	MSR_RI = 0x40,
	MSR_DCD = 0x80,
	MSR_DELTA = 0x0f,
	DIVISOR_9600 = 12,
};

static u32 capacity(const struct uart *u)
{
	return u->fcr & FCR_ENABLE ? UART_FIFO_SIZE : 1;
}

static u32 trigger(const struct uart *u)
{
	static const u8 level[] = {1, 4, 8, 14};

	return u->fcr & FCR_ENABLE ? level[u->fcr >> 6] : 1;
}

static u8 interrupt_id(const struct uart *u)
{
	if (u->ier & IER_RLSI && u->lsr_errors)
		return IIR_RLSI;
	if (u->ier & IER_RDI && u->count >= trigger(u))
		return IIR_RDI;
	if (u->ier & IER_RDI && u->count)
		return IIR_TIMEOUT;
	if (u->ier & IER_THRI && u->thre_event)
		return IIR_THRI;
	if (u->ier & IER_MSI && u->msr & MSR_DELTA)
		return IIR_MSI;
	return IIR_NONE;
}

static void update_irq(struct uart *u)
{
	bool level = interrupt_id(u) != IIR_NONE && u->mcr & MCR_OUT2 && !(u->mcr & MCR_LOOP);

	if (level == u->irq_level)
		return;
	u->irq_level = level;
	irq_set(u->irq, level);
}

/* In loop-back mode the receiver is cut off from the wire. */
static void update_room(struct uart *u)
{
	u32 limit = capacity(u), room = u->count < limit ? limit - u->count : 0;

	if (u->mcr & MCR_LOOP)
		room = 0;
	__atomic_store_n(&u->room, room, __ATOMIC_RELEASE);
	if (!room) {
		u->throttled = true;
	} else if (u->throttled && !u->count) {
		u->throttled = false;
		u->chardev->ops->kick(u->chardev);
	}
}

static void update(struct uart *u)
{
	update_room(u);
	update_irq(u);
}

/* Receive ----------------------------------------------------------------- */

static void push(struct uart *u, u8 byte)
{
	if (u->count >= capacity(u)) {
		u->lsr_errors |= LSR_OE;
		return;
	}
	u->fifo[(u->head + u->count++) % UART_FIFO_SIZE] = byte;
}

static u8 pop(struct uart *u)
{
	u8 byte;

	if (!u->count)
		return 0;
	byte = u->fifo[u->head++ % UART_FIFO_SIZE];
	u->count--;
	update(u);
	return byte;
}

static u32 front_room(void *opaque)
{
	struct uart *u = opaque;

	return __atomic_load_n(&u->room, __ATOMIC_ACQUIRE);
}

static void front_receive(void *opaque, const u8 *data, u32 len)
{
	struct uart *u = opaque;

	pthread_mutex_lock(u->machine_lock);
	for (u32 i = 0; i < len; i++)
		push(u, data[i]);
	update(u);
	pthread_mutex_unlock(u->machine_lock);
}

/* Transmit ---------------------------------------------------------------- */

static void transmit(struct uart *u, u8 byte)
{
	if (u->mcr & MCR_LOOP)
		push(u, byte);
	else
		u->chardev->ops->write(u->chardev, &byte, 1);
	u->thre_event = true;
	update(u);
}

/* Registers --------------------------------------------------------------- */

/* Modem status as the wires, or in loop-back mode the modem control outputs, have it. */
static u8 modem_lines(const struct uart *u)
{
	u8 lines = 0;

	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	if (u->mcr & MCR_RTS)
		lines |= MSR_CTS;
	if (u->mcr & MCR_DTR)
		lines |= MSR_DSR;
	if (u->mcr & MCR_OUT1)
		lines |= MSR_RI;
	if (u->mcr & MCR_OUT2)
		lines |= MSR_DCD;
	return lines;
}

static void update_modem(struct uart *u)
{
	u8 lines = modem_lines(u), changed = (u->msr ^ lines) & 0xf0;
	u8 delta = changed >> 4;

	/* The ring indicator reports only its trailing edge. */
	if (changed & MSR_RI && lines & MSR_RI)
		delta &= ~MSR_TERI;
	u->msr = lines | (u->msr & MSR_DELTA) | delta;
}

static u8 read_iir(struct uart *u)
{
	u8 id = interrupt_id(u);

	if (id == IIR_THRI)
		u->thre_event = false;
	update_irq(u);
	return id | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static u8 read_lsr(struct uart *u)
{
	u8 value = LSR_THRE | LSR_TEMT | u->lsr_errors | (u->count ? LSR_DR : 0);

	u->lsr_errors = 0;
	update_irq(u);
	return value;
}

static u8 read_msr(struct uart *u)
{
	u8 value = u->msr;

	u->msr &= ~MSR_DELTA;
	update_irq(u);
	return value;
}

static u64 uart_read(void *dev, u64 off, u32 size)
{
	struct uart *u = dev;

	(void)size;
	switch (off) {
	case REG_DATA: return u->lcr & LCR_DLAB ? u->divisor & 0xff : pop(u);
	case REG_IER: return u->lcr & LCR_DLAB ? u->divisor >> 8 : u->ier;
	case REG_IIR_FCR: return read_iir(u);
	case REG_LCR: return u->lcr;
	case REG_MCR: return u->mcr;
	case REG_LSR: return read_lsr(u);
	case REG_MSR: return read_msr(u);
	default: return u->scr;
	}
}

static void write_data(struct uart *u, u8 value)
{
	if (u->lcr & LCR_DLAB)
		u->divisor = (u->divisor & 0xff00) | value;
	else
		transmit(u, value);
}

static void write_ier(struct uart *u, u8 value)
{
	if (u->lcr & LCR_DLAB) {
		u->divisor = (u16)((u->divisor & 0xff) | value << 8);
		return;
	}
	/* Enabling the interrupt while the transmitter is empty raises it: drivers start that way.
	 */
	if (value & IER_THRI && !(u->ier & IER_THRI))
		u->thre_event = true;
	u->ier = value & IER_MASK;
	update_irq(u);
}

static void write_fcr(struct uart *u, u8 value)
{
	/* Switching the FIFOs on or off clears them. */
	if (value & FCR_CLEAR_RX || (value ^ u->fcr) & FCR_ENABLE)
		u->count = 0;
	u->fcr = value & FCR_ENABLE ? value & FCR_STORED : 0;
	update(u);
}

static void write_mcr(struct uart *u, u8 value)
{
	u->mcr = value & MCR_MASK;
	update_modem(u);
	update(u);
}

static void uart_write(void *dev, u64 off, u32 size, u64 value)
{
	struct uart *u = dev;

	(void)size;
	switch (off) {
	case REG_DATA: write_data(u, (u8)value); break;
	case REG_IER: write_ier(u, (u8)value); break;
	case REG_IIR_FCR: write_fcr(u, (u8)value); break;
	case REG_LCR: u->lcr = (u8)value; break;
	case REG_MCR: write_mcr(u, (u8)value); break;
	case REG_SCR: u->scr = (u8)value; break;
	default: break; /* LSR and MSR are read-only */
	}
}

static const struct bus_ops uart_bus_ops = {
	.read = uart_read, .write = uart_write, .min = 1, .max = 1};

/* State ------------------------------------------------------------------- */

static void uart_reset(void *dev)
{
	struct uart *u = dev;

	u->ier = u->fcr = u->lcr = u->mcr = u->scr = 0;
	u->msr = modem_lines(u);
	u->lsr_errors = 0;
	u->thre_event = false;
	u->divisor = DIVISOR_9600;
	u->head = u->count = 0;
	update(u);
}

static int uart_loaded(void *dev, struct err *e)
{
	struct uart *u = dev;

	(void)e;
	u->ier &= IER_MASK;
	u->fcr &= FCR_STORED;
	u->mcr &= MCR_MASK;
	update(u);
	return 0;
}

static const struct field uart_fields[] = {
	FIELD(FIELD_U8, struct uart, ier),
	FIELD(FIELD_U8, struct uart, fcr),
	FIELD(FIELD_U8, struct uart, lcr),
	FIELD(FIELD_U8, struct uart, mcr),
	FIELD(FIELD_U8, struct uart, msr),
	FIELD(FIELD_U8, struct uart, scr),
	FIELD(FIELD_U8, struct uart, lsr_errors),
	FIELD(FIELD_BOOL, struct uart, thre_event),
	FIELD(FIELD_U16, struct uart, divisor),
	FIELD_ARRAY(FIELD_BYTES, struct uart, fifo),
	FIELD(FIELD_U8, struct uart, head),
	FIELD_MAX(FIELD_U8, struct uart, count, UART_FIFO_SIZE),
};

const struct device_ops uart_ops = {
	.name = "16550",
	.reset = uart_reset,
	.state = {.field = uart_fields,
		  .count = ARRAY_SIZE(uart_fields),
		  .version = 1,
		  .loaded = uart_loaded},
};

int uart_init(struct uart *u, struct bus *bus, u16 base, struct irq_line irq,
	      struct chardev *chardev, pthread_mutex_t *machine_lock, struct err *e)
{
	const struct bus_region ports = {"16550", base, UART_PORTS, &uart_bus_ops, u};
	int rc;

	memset(u, 0, sizeof(*u));
	u->irq = irq;
	u->chardev = chardev;
	u->machine_lock = machine_lock;
	uart_reset(u);
	chardev->front =
		(struct chardev_front){.room = front_room, .receive = front_receive, .opaque = u};
	rc = bus_add(bus, BUS_PORT, &ports);
	return rc ? err_set(e, rc, "16550: cannot place its ports at %#x", base) : 0;
}
