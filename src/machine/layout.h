/*
 * Where things are in the guest-physical address space.
 *
 *   0x00000000  conventional memory, 640 KiB; boot data in its first pages
 *   0x000a0000  nothing (where a VGA adapter would be)
 *   0x000c0000  memory that firmware shadows into; ACPI and SMBIOS tables from 0xe0000
 *   0x00100000  RAM up to LAYOUT_HOLE at most
 *   0xc0000000  device memory: 32-bit PCI window, ECAM, I/O APIC, local APIC, firmware
 *   4 GiB       the rest of the RAM
 *   above it    64-bit PCI window, LAYOUT_PCI64_SIZE bytes at a multiple of that
 */
#pragma once

#include "base/types.h"

#define LAYOUT_CONVENTIONAL_END 0xa0000ul
/* The last KiB of conventional memory is where BIOSes keep their extended data area. */
#define LAYOUT_EBDA     0x9fc00ul
#define LAYOUT_SHADOW   0xc0000ul
#define LAYOUT_ACPI     0xe0000ul
#define LAYOUT_ACPI_END 0xf0000ul
#define LAYOUT_SMBIOS   0xf0000ul
#define LAYOUT_HIGH     0x100000ul

#define LAYOUT_HOLE       0xc0000000ul
#define LAYOUT_PCI32      0xc0000000ul
#define LAYOUT_PCI32_END  0xe0000000ul
#define LAYOUT_ECAM       0xe0000000ul
#define LAYOUT_ECAM_SIZE  0x100000ul
#define LAYOUT_ABOVE      0x100000000ul
#define LAYOUT_PCI64_SIZE (32 * GIB)

#define LAYOUT_PCI_PORTS     0xc000u
#define LAYOUT_PCI_PORTS_END 0x10000u

/* Boot data in conventional memory: what a loader leaves for the kernel's first steps. */
#define BOOT_GDT         0x1000ul
#define BOOT_PARAMS      0x2000ul
#define BOOT_START_INFO  0x3000ul
#define BOOT_PAGE_TABLES 0x4000ul /* PML4, PDPT, four page directories */
#define BOOT_CMDLINE     0x20000ul
#define BOOT_CMDLINE_MAX 0x10000ul
