/* Host memory that can be mapped at several addresses: guest RAM of an engine that wants that. */
#pragma once

#include "base/types.h"

/*
 * An empty, unnamed file in memory, in huge pages if the host lets us. Returns its descriptor, to
 * be closed by the caller, or -errno.
 */
int host_memory_file(void);

/*
 * @size bytes of it from @offset on, both multiples of the page size: zeroed, lazily populated, the
 * file grown as needed. NULL when the host refuses. Freed with host_memory_free().
 */
void *host_memory_map(int fd, u64 offset, u64 size);
