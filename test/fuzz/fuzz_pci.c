/*
 * PCI configuration space and MSI-X tables under random accesses. Each step of the input is eight
 * bytes: operation with width, slot, offset, value. Whatever the guest writes, read-only bits stay
 * and no message goes out that the table does not hold.
 */
#include "damage.h"

#include "bus/pci.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

enum { ECAM = 0xe0000000, FUNCTIONS = 3, VECTORS = 7 };

struct step {
	u8 op, slot;
	u16 off;
	u32 value;
};

static u64 bar_read(void *dev, u64 off, u32 size)
{
	(void)dev;
	(void)size;
	return off;
}

static void bar_write(void *dev, u64 off, u32 size, u64 value)
{
	(void)dev;
	(void)off;
	(void)size;
	(void)value;
}

static const struct bus_ops bar_ops = {bar_read, bar_write, 1, 8};

static void set_line(void *opaque, u32 pin, bool level)
{
	bool *lines = opaque;

	lines[pin] = level;
}

static void send(void *opaque, u64 address, u32 data)
{
	(void)opaque;
	(void)address;
	(void)data;
}

static void add_function(struct pci_host *host, struct pci_function *f)
{
	const struct pci_bar port = {.size = 16, .is_port = true, .ops = &bar_ops};
	const struct pci_bar memory = {.size = 0x1000, .is_64bit = true, .ops = &bar_ops};
	const struct pci_bar msix = {.size = 0x1000};

	pci_function_init(f, "fuzzed", 0x1af4, 0x1041, 0x02000001, 0x1af4, 0x1041);
	f->pin = 1;
	pci_function_bar(f, 0, &port);
	pci_function_bar(f, 1, &memory);
	pci_function_bar(f, 3, &msix);
	pci_function_msix(f, 3, VECTORS);
	if (pci_attach(host, f, -1))
		abort();
}

static void run_step(struct bus *bus, struct pci_function *f, const struct step *s)
{
	u32 size = 1u << (s->op >> 6);
	u64 config = ECAM + ((u64)s->slot % 8 << 15) + s->off % 0x1000;

	switch (s->op & 7) {
	case 0: bus_write(bus, BUS_MEMORY, config, size, s->value); break;
	case 1: bus_read(bus, BUS_MEMORY, config, size); break;
	case 2: bus_write(bus, BUS_PORT, 0xcf8 + s->off % 8, size, s->value); break;
	case 3: bus_read(bus, BUS_PORT, 0xcf8 + s->off % 8, size); break;
	case 4: bus_write(bus, BUS_MEMORY, f->bar[3].mapped_at + s->off, size, s->value); break;
	case 5: bus_read(bus, BUS_MEMORY, s->value, size); break;
	case 6: pci_msix_notify(f, s->value); break;
	default:
		if (s->op & 8)
			damage_state(&pci_function_ops, f, s->off, (u8)s->value);
		else
			pci_intx_set(f, s->value & 1);
		break;
	}
}

static void check(struct pci_host *host, const struct pci_function *f, const bool *lines)
{
	bool high[4] = {0};

	for (u32 i = 0; i < FUNCTIONS; i++) {
		for (u32 k = 0; k < PCI_CONFIG_SIZE; k++)
			/* The interrupt bit of the status register is the only one that moves. */
			if ((f[i].config[k] ^ f[i].initial[k]) & ~f[i].wmask[k] &
			    (k == 6 ? ~8 : ~0))
				abort();
		high[(f[i].slot + f[i].pin - 1) % 4] |= f[i].intx_driven;
	}
	if (memcmp(high, lines, sizeof(high)))
		abort();
	(void)host;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	struct pci_function f[FUNCTIONS];
	bool lines[4] = {0};
	struct irq_line line[4];
	struct pci_host host;
	struct bus bus;
	struct step s;

	bus_init(&bus);
	for (u32 i = 0; i < 4; i++)
		line[i] = (struct irq_line){set_line, lines, i};
	if (pci_host_init(&host, &bus, (struct msi_sink){.send = send}, line, ECAM, NULL))
		abort();
	for (u32 i = 0; i < FUNCTIONS; i++)
		add_function(&host, &f[i]);
	for (; len >= sizeof(s); data += sizeof(s), len -= sizeof(s)) {
		memcpy(&s, data, sizeof(s));
		run_step(&bus, &f[s.slot % FUNCTIONS], &s);
		check(&host, f, lines);
	}
	pci_host_reset(&host);
	check(&host, f, lines);
	pci_host_destroy(&host);
	bus_destroy(&bus);
	return 0;
}
