/* Threads as the monitor uses them: named, joinable, and deaf to signals meant for the process. */
#pragma once

#include "base/err.h"

#include <pthread.h>

/* Start @fn(@opaque) on a thread called @name (at most 15 characters). 0 or -errno with @e. */
int host_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *opaque,
		      struct err *e);

/* How many processors this process may run on. */
u32 host_thread_cpus(void);
