#include "machine/pci_setup.h"

#include "machine/gsi.h"

#include <errno.h>

/* PCI Local Bus 3.0, 6.1 and 6.2.5 */
enum {
	CONFIG_ADDRESS = 0xcf8,
	CONFIG_DATA = 0xcfc,
	CONFIG_ENABLE = 1 << 31,
	PCI_COMMAND = 0x04,
	COMMAND_IO = 1 << 0,
	COMMAND_MEMORY = 1 << 1,
	PCI_BAR0 = 0x10,
	PCI_INTERRUPT_LINE = 0x3c,
};

static void config_write(struct pci_host *h, u32 slot, u32 off, u32 size, u32 value)
{
	bus_write(h->bus, BUS_PORT, CONFIG_ADDRESS, 4, CONFIG_ENABLE | slot << 11 | (off & ~3u));
	bus_write(h->bus, BUS_PORT, CONFIG_DATA + (off & 3), size, value);
}

/* The next multiple of @size in a window; 0 when there is no room. */
static u64 take(u64 *next, u64 end, u64 size)
{
	u64 at = align_up(*next, size);

	if (range_exceeds(at, size, end))
		return 0;
	*next = at + size;
	return at;
}

static int place_bar(struct pci_host *h, const struct pci_function *f, u32 i, struct pci_windows *w,
		     struct err *e)
{
	const struct pci_bar *b = &f->bar[i];
	u64 size = MAX(b->size, b->is_port ? 16 : PAGE_SIZE), at = 0;

	if (b->is_port)
		at = take(&w->port, w->port_end, size);
	else if (b->is_64bit)
		at = take(&w->memory64, w->memory64_end, size);
	if (!at && !b->is_port)
		at = take(&w->memory32, w->memory32_end, size);
	if (!at)
		return err_set(e, -ENOSPC, "no address space for %s", f->name);
	config_write(h, f->slot, PCI_BAR0 + i * 4, 4, (u32)at);
	if (b->is_64bit)
		config_write(h, f->slot, PCI_BAR0 + i * 4 + 4, 4, (u32)(at >> 32));
	return 0;
}

static int setup_function(struct pci_host *h, const struct pci_function *f, struct pci_windows *w,
			  struct err *e)
{
	u32 command = 0;
	int r = 0;

	for (u32 i = 0; i < PCI_BARS && !r; i++) {
		if (!f->bar[i].size)
			continue;
		command |= f->bar[i].is_port ? COMMAND_IO : COMMAND_MEMORY;
		r = place_bar(h, f, i, w, e);
	}
	config_write(h, f->slot, PCI_COMMAND, 2, command);
	if (f->pin)
		config_write(h, f->slot, PCI_INTERRUPT_LINE, 1,
			     GSI_PCI + (f->slot + f->pin - 1u) % 4);
	return r;
}

int pci_setup(struct pci_host *host, const struct pci_windows *windows, struct err *e)
{
	struct pci_windows w = *windows;
	int r = 0;

	for (u32 slot = 1; slot < PCI_SLOTS && !r; slot++)
		if (host->slot[slot])
			r = setup_function(host, host->slot[slot], &w, e);
	return r;
}
