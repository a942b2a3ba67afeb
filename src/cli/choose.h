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

/* The one that "auto" is, after reports on all engines in their order; NULL: none. */
const struct engine_ops *engine_auto(const struct engine_report *r, u32 count);

/*
 * The engines named in @names, separated by commas, into @out; "auto" is the first that is usable
 * and native. Returns how many, at most @max. @note gets what the user should know about the
 * choice, one line, or stays empty. 0 with the reasons in @e.
 */
u32 engine_choose_all(const char *names, const struct engine_ops **out, u32 max, struct err *note,
		      struct err *e);

/* Is @names "auto" or a list of up to @max different engines? 0, or -EINVAL with @e. */
int engine_check_names(const char *names, u32 max, struct err *e);
