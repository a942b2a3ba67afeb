/* The ACPI tables that describe the machine (ACPI 6.4, chapter 5). */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum { ACPI_MAX = 0x10000 };

struct acpi_config {
	u32 vcpus;
	u64 pci64_base, pci64_size; /* window for 64-bit BARs; size 0: none */
};

struct acpi_tables {
	u64 base; /* guest-physical address of data[0], a multiple of 64 */
	u64 rsdp; /* of the root pointer */
	u32 len;
	u8 data[ACPI_MAX];
};

/* Build all tables for address @base. 0, or -ENOSPC. */
int acpi_build(struct acpi_tables *t, u64 base, const struct acpi_config *config, struct err *e);
