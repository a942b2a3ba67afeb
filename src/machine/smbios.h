/* A minimal SMBIOS 3 table: who made the machine and how much memory it has (DMTF DSP0134 3.4). */
#pragma once

#include "memory/physmap.h"

/* Store the entry point and the structures from @base on; @base is a multiple of 16. 0 or -EFAULT.
 */
int smbios_store(const struct physmap *pm, gpa_t base, u64 ram_bytes);
