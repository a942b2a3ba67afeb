/*
 * PCI: configuration space, base address registers, MSI-X, and the host bridge's two access paths
 * (0xCF8/0xCFC and ECAM). References: PCI Local Bus 3.0, PCI Express Base 2.0 section 7.
 *
 * One bus, one function per slot. A function's owner embeds struct pci_function, fills in the
 * identity, declares BARs and capabilities, then attaches it. Configuration writes are masked by a
 * per-byte write mask, so a guest cannot change what hardware would not let it. BAR regions follow
 * the command register and the BAR values onto the machine's bus.
 *
 * Threads: everything under the machine lock, except pci_msix_notify(), which any holder of the
 * machine lock's event side may call (it only sends to the MSI sink when the vector is unmasked).
 */
#pragma once

#include "base/err.h"
#include "bus/bus.h"
#include "bus/irq.h"
#include "bus/msi_event.h"
#include "device/device.h"

enum {
	PCI_SLOTS = 32,
	PCI_BARS = 6,
	PCI_CONFIG_SIZE = 256,
	PCI_MSIX_MAX = 64,
};

struct pci_bar {
	u64 size;                  /* bytes, a power of two >= 16; 0: not there */
	bool is_port;              /* I/O space instead of memory */
	bool is_64bit;             /* takes this BAR and the next */
	const struct bus_ops *ops; /* what the region does; offsets are relative to the BAR */
	u64 mapped_at;             /* where the region is on the bus now, or ~0 */
};

struct pci_msix_entry {
	u64 address;
	u32 data;
	u32 control; /* bit 0: masked */
	bool pending;
	struct msi_event event;
};

struct pci_function {
	const char *name;
	u8 config[PCI_CONFIG_SIZE];
	u8 wmask[PCI_CONFIG_SIZE];   /* bits the guest may change */
	u8 initial[PCI_CONFIG_SIZE]; /* config[] as attached, for reset */
	struct pci_bar bar[PCI_BARS];
	u8 slot;
	u8 pin;           /* INTx pin 1..4, 0: none; the owner sets it before pci_attach() */
	bool intx_level;  /* what the function asks for */
	bool intx_driven; /* what reaches the line: not while INTx is disabled */
	u8 cap_next;      /* offset of the next free capability byte */
	u8 msix_cap;      /* offset of the MSI-X capability, 0: none */
	u8 msix_bar;      /* BAR that holds table and PBA */
	u32 msix_count;
	struct pci_msix_entry msix[PCI_MSIX_MAX];
	struct pci_host *host;
	void *dev; /* passed to bar ops */

	/* Called before a configuration read of @len bytes at @off, so that the owner can refresh
	 * what it computes; NULL when there is nothing of the kind. */
	void (*config_reading)(struct pci_function *f, u32 off, u32 len);

	/* Called after a configuration write of @len bytes at @off took effect. pci_function_init()
	 * sets it to a function that does nothing; never NULL. */
	void (*config_written)(struct pci_function *f, u32 off, u32 len);

	/* Called after BAR @i was mapped elsewhere or unmapped; never NULL either. */
	void (*bar_moved)(struct pci_function *f, u32 i);
};

struct pci_host {
	struct bus *bus;
	struct msi_sink msi;
	struct irq_line intx[4]; /* PIRQ A..D after swizzling: line (slot + pin - 1) % 4 */
	struct pci_function *slot[PCI_SLOTS];
	u8 intx_count[4];
	u32 config_address;               /* last value written to 0xCF8 */
	const struct bus_ops *reset_port; /* byte accesses to 0xCF9, or NULL */
	void *reset_dev;
	struct pci_function bridge; /* 00:00.0 */
};

/*
 * Create the host bridge and put its ports and the ECAM window (@ecam_base, 1 MiB: bus 0) on @bus.
 * Returns 0 or -errno.
 */
int pci_host_init(struct pci_host *h, struct bus *bus, struct msi_sink msi,
		  const struct irq_line intx[4], gpa_t ecam_base, struct err *e);
void pci_host_destroy(struct pci_host *h);

/* Power-up state of the bridge and of the configuration space of every attached function. */
void pci_host_reset(struct pci_host *h);

/* Port 0xCF9 lies inside CONFIG_ADDRESS, which takes only 32-bit accesses. Byte accesses to it go
 * to the chipset's reset control register, whose operations are @ops (offset 0, size 1). */
void pci_host_claim_reset_port(struct pci_host *h, const struct bus_ops *ops, void *dev);

/* Saved state: the host's address register; a function's configuration space and MSI-X table. */
extern const struct device_ops pci_host_ops;
extern const struct device_ops pci_function_ops;

/* Write the header fields; call before anything else on @f. */
void pci_function_init(struct pci_function *f, const char *name, u16 vendor, u16 device,
		       u32 class_rev, u16 subsys_vendor, u16 subsys);

/* Declare BAR @i. The function's own bar[] copy gets mapped_at = ~0. */
void pci_function_bar(struct pci_function *f, u32 i, const struct pci_bar *bar);

/* Append a capability of @len bytes, id and next included; all but those two are copied from @body.
 * Its bytes are read-only unless the owner sets wmask[]. Returns its offset. */
u32 pci_function_capability(struct pci_function *f, u8 id, const void *body, u32 len);

/* MSI-X capability with @count vectors; table at offset 0 and PBA at 0x800 of BAR @bar (size >= 4
 * KiB). The BAR's ops are provided by the PCI layer. */
void pci_function_msix(struct pci_function *f, u32 bar, u32 count);

/* Plug into the first free slot, or into @slot when it is >= 0. 0 or -ENOSPC. The configuration
 * space as it is now is what pci_host_reset() goes back to. */
int pci_attach(struct pci_host *h, struct pci_function *f, int slot);

/* Let events stand for the messages of the function's vectors, if the host's sink can do that; to
 * be undone before the host goes. 0 or -errno with @e. */
int pci_msix_open_events(struct pci_function *f, struct err *e);
void pci_msix_close_events(struct pci_function *f);

/* Send vector @v if MSI-X is enabled and unmasked, else latch it as pending. */
void pci_msix_notify(struct pci_function *f, u32 v);
bool pci_msix_enabled(const struct pci_function *f);

/* Drive the INTx pin. */
void pci_intx_set(struct pci_function *f, bool level);

/* True while the function may master the bus (command register bit 2). */
bool pci_bus_master(const struct pci_function *f);
