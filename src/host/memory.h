/* Large host allocations: guest RAM. */
#pragma once

#include "base/types.h"

/* Zeroed, page-aligned, lazily populated, huge pages advised; NULL when the host refuses. */
void *host_memory_alloc(u64 size);
void host_memory_free(void *p, u64 size);

/* Bytes the host could give now without swapping out others or hitting a control group's limit. */
u64 host_memory_available(void);
