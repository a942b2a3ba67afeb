/*
 * Theory of operation
 *
 * config[] always holds what a read returns; a write changes only the bits of wmask[], then
 * config_changed() brings everything derived from it in line: BAR regions, the INTx wire, events
 * that stand for MSI-X messages, messages that a mask had held back. All of these compare what
 * should be with what is, so they can be called after any change, a reset or a restore.
 *
 * A BAR is on the bus when its decode bit is set and its range is free. The guest may place BARs
 * over each other or over other devices: then the one that came first keeps the range, and whenever
 * a range becomes free every BAR that wants one is tried again.
 */
#include "bus/pci.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Type 0 header, PCI 3.0, 6.1. */
enum {
	PCI_VENDOR_ID = 0x00,
	PCI_DEVICE_ID = 0x02,
	PCI_COMMAND = 0x04,
	PCI_STATUS = 0x06,
	PCI_REVISION_ID = 0x08,
	PCI_CACHE_LINE_SIZE = 0x0c,
	PCI_LATENCY_TIMER = 0x0d,
	PCI_BASE_ADDRESS = 0x10,
	PCI_SUBSYSTEM_VENDOR_ID = 0x2c,
	PCI_SUBSYSTEM_ID = 0x2e,
	PCI_CAPABILITY_LIST = 0x34,
	PCI_INTERRUPT_LINE = 0x3c,
	PCI_INTERRUPT_PIN = 0x3d,
	PCI_FIRST_CAPABILITY = 0x40,

	COMMAND_IO = 1 << 0,
	COMMAND_MEMORY = 1 << 1,
	COMMAND_MASTER = 1 << 2,
	COMMAND_PARITY = 1 << 6,
	COMMAND_SERR = 1 << 8,
	COMMAND_INTX_DISABLE = 1 << 10,
	COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY |
			   COMMAND_SERR | COMMAND_INTX_DISABLE,

	STATUS_INTERRUPT = 1 << 3,
	STATUS_CAPABILITIES = 1 << 4,

	BAR_IO = 1 << 0,
	BAR_64BIT = 2 << 1,
};

/* MSI-X, PCI 3.0, 6.8.2. */
enum {
	CAP_MSIX = 0x11,
	MSIX_CONTROL = 2,
	MSIX_TABLE = 4,
	MSIX_PBA = 8,
	MSIX_CAP_LEN = 12,
	MSIX_CONTROL_MASK_ALL = 1 << 14,
	MSIX_CONTROL_ENABLE = 1 << 15,
	MSIX_ENTRY_SIZE = 16,
	MSIX_ENTRY_MASKED = 1 << 0,
	MSIX_PBA_OFFSET = 0x800,
};

enum {
	CONFIG_ADDRESS = 0xcf8,
	CONFIG_DATA = 0xcfc,
	CONFIG_ENABLE = BIT(31),
	RESET_PORT_OFFSET = 1,
	ECAM_SIZE = 1 << 20, /* one bus, PCI Express 2.0, 7.2.2 */
	PORT_SPACE_SIZE = 0x10000,
};

#define NOT_MAPPED (~0ul)

static u16 get16(const u8 *p)
{
	return (u16)(p[0] | p[1] << 8);
}

static u32 get32(const u8 *p)
{
	return get16(p) | (u32)get16(p + 2) << 16;
}

static void put16(u8 *p, u16 v)
{
	p[0] = (u8)v;
	p[1] = (u8)(v >> 8);
}

static void put32(u8 *p, u32 v)
{
	put16(p, (u16)v);
	put16(p + 2, (u16)(v >> 16));
}

static u16 command(const struct pci_function *f)
{
	return get16(f->config + PCI_COMMAND);
}

bool pci_bus_master(const struct pci_function *f)
{
	return command(f) & COMMAND_MASTER;
}

/* Base address registers -------------------------------------------------- */

static u32 bar_offset(u32 i)
{
	return PCI_BASE_ADDRESS + 4 * i;
}

/* Where BAR @i asks to be, or NOT_MAPPED. Zero is the value after reset and means "not placed". */
static u64 bar_wanted(const struct pci_function *f, u32 i)
{
	const struct pci_bar *bar = &f->bar[i];
	u64 at = get32(f->config + bar_offset(i));

	if (!bar->size || !(command(f) & (bar->is_port ? COMMAND_IO : COMMAND_MEMORY)))
		return NOT_MAPPED;
	if (bar->is_64bit)
		at |= (u64)get32(f->config + bar_offset(i + 1)) << 32;
	at &= ~(bar->size - 1);
	if (!at || (bar->is_port && range_exceeds(at, bar->size, PORT_SPACE_SIZE)))
		return NOT_MAPPED;
	return at;
}

static enum bus_space bar_space(const struct pci_bar *bar)
{
	return bar->is_port ? BUS_PORT : BUS_MEMORY;
}

static void *bar_device(struct pci_function *f, u32 i)
{
	return f->msix_cap && i == f->msix_bar ? f : f->dev;
}

static void bar_unmap(struct pci_function *f, u32 i)
{
	struct pci_bar *bar = &f->bar[i];

	if (bar->mapped_at == NOT_MAPPED)
		return;
	bus_remove(f->host->bus, bar_space(bar), bar->mapped_at, bar_device(f, i));
	bar->mapped_at = NOT_MAPPED;
	f->bar_moved(f, i);
}

static void bar_map(struct pci_function *f, u32 i)
{
	struct pci_bar *bar = &f->bar[i];
	struct bus_region region = {
		.name = f->name,
		.base = bar_wanted(f, i),
		.size = bar->size,
		.ops = bar->ops,
		.dev = bar_device(f, i),
	};

	if (region.base == NOT_MAPPED || bar->mapped_at != NOT_MAPPED)
		return;
	if (bus_add(f->host->bus, bar_space(bar), &region))
		return;
	bar->mapped_at = region.base;
	f->bar_moved(f, i);
}

static void bars_update(struct pci_function *f)
{
	struct pci_host *h = f->host;

	for (u32 i = 0; i < PCI_BARS; i++)
		if (f->bar[i].mapped_at != bar_wanted(f, i))
			bar_unmap(f, i);
	for (u32 s = 0; s < PCI_SLOTS; s++)
		for (u32 i = 0; h->slot[s] && i < PCI_BARS; i++)
			bar_map(h->slot[s], i);
}

/* Interrupts -------------------------------------------------------------- */

static u16 msix_control(const struct pci_function *f)
{
	return f->msix_cap ? get16(f->config + f->msix_cap + MSIX_CONTROL) : 0;
}

bool pci_msix_enabled(const struct pci_function *f)
{
	return msix_control(f) & MSIX_CONTROL_ENABLE;
}

static bool msix_is_masked(const struct pci_function *f, u32 v)
{
	return msix_control(f) & MSIX_CONTROL_MASK_ALL || f->msix[v].control & MSIX_ENTRY_MASKED ||
	       !pci_bus_master(f);
}

void pci_msix_notify(struct pci_function *f, u32 v)
{
	struct pci_msix_entry *entry;

	if (v >= f->msix_count || !pci_msix_enabled(f))
		return;
	entry = &f->msix[v];
	entry->pending = msix_is_masked(f, v);
	if (!entry->pending && !msi_event_raise(&entry->event))
		f->host->msi.send(f->host->msi.opaque, entry->address, entry->data);
}

/*
 * Bring the events in line with the table: a masked vector's stays as it is, since drivers mask
 * vectors for a moment to move them, and nobody raises it meanwhile.
 */
static void msix_wire(struct pci_function *f)
{
	const struct msi_sink *sink = &f->host->msi;

	for (u32 v = 0; v < f->msix_count; v++) {
		struct pci_msix_entry *entry = &f->msix[v];

		if (!pci_msix_enabled(f))
			msi_event_unwire(&entry->event, sink);
		else if (!msix_is_masked(f, v))
			msi_event_wire(&entry->event, sink, entry->address, entry->data);
	}
}

static void msix_changed(struct pci_function *f)
{
	msix_wire(f);
	for (u32 v = 0; v < f->msix_count; v++)
		if (f->msix[v].pending && !msix_is_masked(f, v))
			pci_msix_notify(f, v);
}

int pci_msix_open_events(struct pci_function *f, struct err *e)
{
	int r = 0;

	for (u32 v = 0; v < f->msix_count && !r; v++)
		r = msi_event_open(&f->msix[v].event, &f->host->msi, e);
	if (r)
		pci_msix_close_events(f);
	return r;
}

void pci_msix_close_events(struct pci_function *f)
{
	for (u32 v = 0; v < f->msix_count; v++)
		msi_event_close(&f->msix[v].event, &f->host->msi);
}

static void intx_update(struct pci_function *f)
{
	bool level = f->intx_level && !(command(f) & COMMAND_INTX_DISABLE) && !pci_msix_enabled(f);
	u16 status = get16(f->config + PCI_STATUS) & ~STATUS_INTERRUPT;
	u32 line = (f->slot + f->pin - 1u) % 4;
	struct pci_host *h = f->host;

	/* PCI 3.0, 6.2.3: the status bit shows the request whether or not it is disabled. */
	put16(f->config + PCI_STATUS, f->intx_level ? status | STATUS_INTERRUPT : status);
	if (!f->pin || level == f->intx_driven)
		return;
	f->intx_driven = level;
	h->intx_count[line] += level ? 1 : -1;
	irq_set(h->intx[line], h->intx_count[line]);
}

void pci_intx_set(struct pci_function *f, bool level)
{
	f->intx_level = level;
	intx_update(f);
}

static u64 msix_pba_word(const struct pci_function *f)
{
	u64 word = 0;

	for (u32 v = 0; v < f->msix_count; v++)
		word |= (u64)f->msix[v].pending << v;
	return word;
}

static u32 msix_read32(const struct pci_function *f, u64 off)
{
	const struct pci_msix_entry *entry = &f->msix[off / MSIX_ENTRY_SIZE % PCI_MSIX_MAX];

	if (off >= MSIX_PBA_OFFSET && off < MSIX_PBA_OFFSET + sizeof(u64))
		return (u32)(msix_pba_word(f) >> (off & 4 ? 32 : 0));
	if (off / MSIX_ENTRY_SIZE >= f->msix_count)
		return 0;
	switch (off % MSIX_ENTRY_SIZE) {
	case 0: return (u32)entry->address;
	case 4: return (u32)(entry->address >> 32);
	case 8: return entry->data;
	default: return entry->control;
	}
}

static void msix_write32(struct pci_function *f, u64 off, u32 value)
{
	struct pci_msix_entry *entry = &f->msix[off / MSIX_ENTRY_SIZE % PCI_MSIX_MAX];

	if (off / MSIX_ENTRY_SIZE >= f->msix_count)
		return;
	switch (off % MSIX_ENTRY_SIZE) {
	case 0: entry->address = (entry->address & ~0xfffffffful) | (value & ~3u); break;
	case 4: entry->address = (entry->address & 0xffffffff) | (u64)value << 32; break;
	case 8: entry->data = value; break;
	default: entry->control = value & MSIX_ENTRY_MASKED; break;
	}
}

static u64 msix_bar_read(void *dev, u64 off, u32 size)
{
	const struct pci_function *f = dev;
	u64 value = msix_read32(f, off);

	return size == 8 ? value | (u64)msix_read32(f, off + 4) << 32 : value;
}

static void msix_bar_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pci_function *f = dev;

	msix_write32(f, off, (u32)value);
	if (size == 8)
		msix_write32(f, off + 4, (u32)(value >> 32));
	msix_changed(f);
}

static const struct bus_ops msix_bar_ops = {
	.read = msix_bar_read, .write = msix_bar_write, .min = 4, .max = 8};

/* Configuration space ----------------------------------------------------- */

static void config_changed(struct pci_function *f)
{
	intx_update(f);
	bars_update(f);
	msix_changed(f);
}

static u32 config_read(struct pci_host *h, u32 slot, u32 off, u32 len)
{
	struct pci_function *f = h->slot[slot];
	u32 value = 0;

	if (!f || range_exceeds(off, len, PCI_CONFIG_SIZE))
		return ~0u;
	if (f->config_reading)
		f->config_reading(f, off, len);
	for (u32 i = 0; i < len; i++)
		value |= (u32)f->config[off + i] << (8 * i);
	return value;
}

static void config_write(struct pci_host *h, u32 slot, u32 off, u32 len, u32 value)
{
	struct pci_function *f = h->slot[slot];

	if (!f || range_exceeds(off, len, PCI_CONFIG_SIZE))
		return;
	for (u32 i = 0; i < len; i++) {
		u8 mask = f->wmask[off + i], byte = (u8)(value >> (8 * i));

		f->config[off + i] = (f->config[off + i] & ~mask) | (byte & mask);
	}
	config_changed(f);
	f->config_written(f, off, len);
}

/* An ECAM offset or the like: is it function 0 of some slot? The others do not exist. */
static bool names_function_0(u32 devfn)
{
	return !(devfn & 7);
}

static u64 ecam_read(void *dev, u64 off, u32 size)
{
	if (!names_function_0(off >> 12 & 0xff))
		return ~0ul;
	return config_read(dev, off >> 15 & 31, off & 0xfff, size);
}

static void ecam_write(void *dev, u64 off, u32 size, u64 value)
{
	if (names_function_0(off >> 12 & 0xff))
		config_write(dev, off >> 15 & 31, off & 0xfff, size, (u32)value);
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write, .min = 1, .max = 4};

static u64 address_read(void *dev, u64 off, u32 size)
{
	struct pci_host *h = dev;

	if (size == 4)
		return h->config_address;
	if (off == RESET_PORT_OFFSET && size == 1 && h->reset_port)
		return h->reset_port->read(h->reset_dev, 0, size);
	return ~0ul;
}

static void address_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pci_host *h = dev;

	/* PCI 3.0, 3.2.2.3.2: only a full double word is for CONFIG_ADDRESS; bits 30:24 and 1:0 are
	 * reserved. */
	if (size == 4)
		h->config_address = (u32)value & 0x80fffffc;
	else if (off == RESET_PORT_OFFSET && size == 1 && h->reset_port)
		h->reset_port->write(h->reset_dev, 0, size, value);
}

static const struct bus_ops address_ops = {
	.read = address_read, .write = address_write, .min = 1, .max = 4};

static bool address_selects(const struct pci_host *h)
{
	return h->config_address & CONFIG_ENABLE && !(h->config_address >> 16 & 0xff) &&
	       names_function_0(h->config_address >> 8 & 0xff);
}

static u64 data_read(void *dev, u64 off, u32 size)
{
	struct pci_host *h = dev;

	if (!address_selects(h))
		return ~0ul;
	return config_read(h, h->config_address >> 11 & 31, (h->config_address & 0xfc) + (u32)off,
			   size);
}

static void data_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pci_host *h = dev;

	if (address_selects(h))
		config_write(h, h->config_address >> 11 & 31, (h->config_address & 0xfc) + (u32)off,
			     size, (u32)value);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write, .min = 1, .max = 4};

/* Functions --------------------------------------------------------------- */

static void ignore_config_written(struct pci_function *f, u32 off, u32 len)
{
	(void)f;
	(void)off;
	(void)len;
}

static void ignore_bar_moved(struct pci_function *f, u32 i)
{
	(void)f;
	(void)i;
}

void pci_function_init(struct pci_function *f, const char *name, u16 vendor, u16 device,
		       u32 class_rev, u16 subsys_vendor, u16 subsys)
{
	memset(f, 0, sizeof(*f));
	f->name = name;
	f->cap_next = PCI_FIRST_CAPABILITY;
	f->config_written = ignore_config_written;
	f->bar_moved = ignore_bar_moved;
	for (u32 i = 0; i < PCI_BARS; i++)
		f->bar[i].mapped_at = NOT_MAPPED;
	put16(f->config + PCI_VENDOR_ID, vendor);
	put16(f->config + PCI_DEVICE_ID, device);
	put32(f->config + PCI_REVISION_ID, class_rev);
	put16(f->config + PCI_SUBSYSTEM_VENDOR_ID, subsys_vendor);
	put16(f->config + PCI_SUBSYSTEM_ID, subsys);
	put16(f->wmask + PCI_COMMAND, COMMAND_WRITABLE);
	f->wmask[PCI_CACHE_LINE_SIZE] = 0xff;
	f->wmask[PCI_LATENCY_TIMER] = 0xff;
	f->wmask[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_function_bar(struct pci_function *f, u32 i, const struct pci_bar *bar)
{
	u64 mask = ~(bar->size - 1);

	assert(i < PCI_BARS && bar->size >= 16 && !(bar->size & (bar->size - 1)));
	assert(!bar->is_64bit || (i + 1 < PCI_BARS && !bar->is_port));
	f->bar[i] = *bar;
	f->bar[i].mapped_at = NOT_MAPPED;
	put32(f->config + bar_offset(i), bar->is_port ? BAR_IO : bar->is_64bit ? BAR_64BIT : 0);
	put32(f->wmask + bar_offset(i), (u32)mask);
	if (bar->is_64bit)
		put32(f->wmask + bar_offset(i + 1), (u32)(mask >> 32));
}

u32 pci_function_capability(struct pci_function *f, u8 id, const void *body, u32 len)
{
	u32 at = f->cap_next;

	assert(len >= 2 && !range_exceeds(at, len, PCI_CONFIG_SIZE));
	memcpy(f->config + at, body, len);
	f->config[at] = id;
	/* New capabilities go to the front of the list, so that no link has to be looked for. */
	f->config[at + 1] = f->config[PCI_CAPABILITY_LIST];
	f->config[PCI_CAPABILITY_LIST] = (u8)at;
	put16(f->config + PCI_STATUS, get16(f->config + PCI_STATUS) | STATUS_CAPABILITIES);
	/* 0x100 does not fit; a full list is caught by the assertion because 0xfc is then taken. */
	f->cap_next = (u8)MIN(align_up(at + len, 4), 0xfful);
	return at;
}

static void msix_reset(struct pci_function *f)
{
	for (u32 v = 0; v < PCI_MSIX_MAX; v++)
		f->msix[v] = (struct pci_msix_entry){.control = MSIX_ENTRY_MASKED,
						     .event = f->msix[v].event};
}

void pci_function_msix(struct pci_function *f, u32 bar, u32 count)
{
	u8 body[MSIX_CAP_LEN] = {0};

	assert(count && count <= PCI_MSIX_MAX && f->bar[bar].size >= PAGE_SIZE);
	put16(body + MSIX_CONTROL, (u16)(count - 1));
	put32(body + MSIX_TABLE, bar);
	put32(body + MSIX_PBA, MSIX_PBA_OFFSET | bar);
	f->msix_cap = (u8)pci_function_capability(f, CAP_MSIX, body, sizeof(body));
	f->msix_bar = (u8)bar;
	f->msix_count = count;
	f->bar[bar].ops = &msix_bar_ops;
	put16(f->wmask + f->msix_cap + MSIX_CONTROL, MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK_ALL);
	msix_reset(f);
}

int pci_attach(struct pci_host *h, struct pci_function *f, int slot)
{
	u32 s = slot < 0 ? 0 : (u32)slot;

	while (slot < 0 && s < PCI_SLOTS && h->slot[s])
		s++;
	if (s >= PCI_SLOTS || h->slot[s])
		return -ENOSPC;
	f->host = h;
	f->slot = (u8)s;
	f->config[PCI_INTERRUPT_PIN] = f->pin;
	memcpy(f->initial, f->config, sizeof(f->initial));
	h->slot[s] = f;
	return 0;
}

static void function_reset(void *dev)
{
	struct pci_function *f = dev;

	memcpy(f->config, f->initial, sizeof(f->config));
	f->intx_level = false;
	msix_reset(f);
	config_changed(f);
}

static int function_loaded(void *dev, struct err *e)
{
	struct pci_function *f = dev;

	(void)e;
	/* What a guest could not have changed is ours to say, not the snapshot's. */
	for (u32 i = 0; i < PCI_CONFIG_SIZE; i++)
		f->config[i] = (f->config[i] & f->wmask[i]) | (f->initial[i] & ~f->wmask[i]);
	config_changed(f);
	return 0;
}

static const struct field function_fields[] = {
	FIELD_ARRAY(FIELD_BYTES, struct pci_function, config),
	FIELD(FIELD_BOOL, struct pci_function, intx_level),
	FIELD_EACH(FIELD_U64, struct pci_function, msix, address),
	FIELD_EACH(FIELD_U32, struct pci_function, msix, data),
	FIELD_EACH_MAX(FIELD_U32, struct pci_function, msix, control, MSIX_ENTRY_MASKED),
	FIELD_EACH(FIELD_BOOL, struct pci_function, msix, pending),
};

const struct device_ops pci_function_ops = {
	.name = "pci-function",
	.reset = function_reset,
	.state = {.field = function_fields,
		  .count = ARRAY_SIZE(function_fields),
		  .version = 1,
		  .loaded = function_loaded},
};

/* The host bridge --------------------------------------------------------- */

static void bridge_init(struct pci_host *h)
{
	/* An Intel root complex without registers of its own; no driver or quirk looks for it. */
	pci_function_init(&h->bridge, "host bridge", 0x8086, 0x0d57, 0x06000000, 0, 0);
	pci_attach(h, &h->bridge, 0);
}

int pci_host_init(struct pci_host *h, struct bus *bus, struct msi_sink msi,
		  const struct irq_line intx[4], gpa_t ecam_base, struct err *e)
{
	const struct bus_region ecam = {"pci ecam", ecam_base, ECAM_SIZE, &ecam_ops, h};
	const struct bus_region address = {"pci address", CONFIG_ADDRESS, 4, &address_ops, h};
	const struct bus_region data = {"pci data", CONFIG_DATA, 4, &data_ops, h};
	int rc;

	memset(h, 0, sizeof(*h));
	h->bus = bus;
	h->msi = msi;
	memcpy(h->intx, intx, sizeof(h->intx));
	bridge_init(h);
	rc = bus_add(bus, BUS_MEMORY, &ecam);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &address);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &data);
	return rc ? err_set(e, rc, "pci: cannot place the host bridge on the bus") : 0;
}

void pci_host_destroy(struct pci_host *h)
{
	for (u32 s = 0; s < PCI_SLOTS; s++)
		for (u32 i = 0; h->slot[s] && i < PCI_BARS; i++)
			bar_unmap(h->slot[s], i);
	memset(h->slot, 0, sizeof(h->slot));
}

void pci_host_claim_reset_port(struct pci_host *h, const struct bus_ops *ops, void *dev)
{
	h->reset_port = ops;
	h->reset_dev = dev;
}

static void host_reset(void *dev)
{
	struct pci_host *h = dev;

	h->config_address = 0;
	for (u32 s = 0; s < PCI_SLOTS; s++)
		if (h->slot[s])
			function_reset(h->slot[s]);
}

void pci_host_reset(struct pci_host *h)
{
	host_reset(h);
}

static const struct field host_fields[] = {
	FIELD(FIELD_U32, struct pci_host, config_address),
};

const struct device_ops pci_host_ops = {
	.name = "pci-host",
	.reset = host_reset,
	.state = {.field = host_fields, .count = ARRAY_SIZE(host_fields), .version = 1},
};
