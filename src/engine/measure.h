/* How fast an engine runs guest code at a privilege level, found out by running some. */
#pragma once

#include "engine/engine.h"

/*
 * Nanoseconds per simple instruction at privilege level @cpl (0 or 3), in 64-bit mode. Takes some
 * milliseconds even where guest code is emulated. On the calling thread, which has no vCPU of its
 * own. 0 or -errno with @e.
 */
int engine_measure(const struct engine_ops *engine, u32 cpl, double *ns, struct err *e);

/*
 * Slower than this, guest code is emulated, not run. Between what is seen on either side: below 1
 * ns on a processor or under the soft engine, a few under QEMU's translator, 200 and more under the
 * emulator in a kernel.
 */
static const double ENGINE_EMULATES_NS = 25;
