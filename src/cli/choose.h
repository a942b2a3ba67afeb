/* Which engine runs a machine: what `doppel check` prints and `doppel run --engine` decides by. */
#pragma once

#include "engine/engine.h"

struct engine_report {
	const struct engine_ops *engine;
	bool usable;       /* it starts and runs a loop in ring 0 */
	bool native;       /* ... at a speed that is no emulation's */
	double ring_ns[2]; /* per instruction in ring 0 and ring 3; 0: not known */
	struct err why;    /* why it is not usable, or not native */
};

/* Measures; takes some milliseconds. */
void engine_examine(const struct engine_ops *engine, struct engine_report *r);

/*
 * The engine called @name, or with "auto" the first that is usable and native. @note gets what the
 * user should know about the choice, one line, or stays empty. NULL with the reasons in @e.
 */
const struct engine_ops *engine_choose(const char *name, struct err *note, struct err *e);
