/*
 * What firmware does to PCI functions before a kernel starts: give base address registers their
 * addresses, turn decoding on, note the interrupt line. Kernels booted directly expect to find that
 * done.
 */
#pragma once

#include "bus/pci.h"

/* Where BARs may go; first address and end. */
struct pci_windows {
	u64 memory32, memory32_end;
	u64 memory64, memory64_end; /* equal: no such window */
	u64 port, port_end;
};

/* Set up all functions of @host through their configuration space. 0 or -ENOSPC with @e. */
int pci_setup(struct pci_host *host, const struct pci_windows *windows, struct err *e);
