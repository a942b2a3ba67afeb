/* Large host allocations: guest RAM. */
#pragma once

#include "base/types.h"

/* Zeroed, page-aligned, lazily populated, huge pages advised; NULL when the host refuses. */
void *host_memory_alloc(u64 size);
void host_memory_free(void *p, u64 size);
