/*
 * A /dev/kvm that opens need not be worth using: where the outer hypervisor offers no
 * virtualization, a kernel may emulate what a guest runs in ring 0, thousands of times slower than
 * the processor. So the choice is by measurement.
 */
#include "cli/choose.h"

#include "engine/measure.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { ENGINE_NAME = 32 };

static void examine_ring0(const struct engine_ops *engine, struct engine_report *r)
{
	memset(r, 0, sizeof(*r));
	r->engine = engine;
	if (engine->probe(&r->why) || engine_measure(engine, 0, &r->ring_ns[0], &r->why))
		return;
	r->usable = true;
	r->native = r->ring_ns[0] < ENGINE_EMULATES_NS;
	if (!r->native)
		err_set(&r->why, -ENOTSUP,
			"guest ring 0 is emulated here: %.0f ns for an instruction, and some are "
			"missing",
			r->ring_ns[0]);
}

void engine_examine(const struct engine_ops *engine, struct engine_report *r)
{
	struct err ignored;

	examine_ring0(engine, r);
	if (r->usable && engine_measure(engine, 3, &r->ring_ns[1], &ignored))
		r->ring_ns[1] = 0;
}

const struct engine_ops *engine_auto(const struct engine_report *r, u32 count)
{
	for (u32 i = 0; i < count; i++)
		if (r[i].usable && (r[i].native || i + 1 == count))
			return r[i].engine;
	return NULL;
}

/* The last engine needs nothing but the processor: there is nothing to choose, and nothing to
 * measure. */
static const struct engine_ops *choose_any(struct err *note, struct err *e)
{
	struct engine_report r;
	u32 i;

	for (i = 0; engines[i + 1]; i++) {
		examine_ring0(engines[i], &r);
		if (r.usable && r.native)
			return engines[i];
		/* Absence is the normal case and needs no words; the others are worth knowing. */
		if (r.why.code != -ENOENT)
			err_set(note, 0, "%s engine not used: %.400s; using %s", engines[i]->name,
				r.why.text, engines[i + 1]->name);
	}
	if (!engines[i]->probe(e))
		return engines[i];
	err_prefix(e, "%s engine", engines[i]->name);
	return NULL;
}

static const struct engine_ops *choose(const char *name, struct err *note, struct err *e)
{
	const struct engine_ops *engine = engine_by_name(name);
	struct engine_report r;

	if (!strcmp(name, "auto"))
		return choose_any(note, e);
	if (!engine || engine->probe(e)) {
		err_prefix(e, "%s engine", name);
		return NULL;
	}
	/* The last one is what is always there: nothing to warn of. */
	if (engine == engine_by_name("soft"))
		return engine;
	examine_ring0(engine, &r);
	if (!r.usable || !r.native)
		err_set(note, 0, "%s engine: %.400s", name, r.why.text);
	return engine;
}

/* Take the first name off @names; false when there is none left. */
static bool next_name(const char **names, char *name, u32 size)
{
	u32 len = (u32)strcspn(*names, ",");

	if (!**names)
		return false;
	snprintf(name, size, "%.*s", (int)len, *names);
	*names += len + ((*names)[len] == ',');
	return true;
}

u32 engine_choose_all(const char *names, const struct engine_ops **out, u32 max, struct err *note,
		      struct err *e)
{
	char name[ENGINE_NAME];
	u32 n = 0;

	while (n < max && next_name(&names, name, sizeof(name))) {
		out[n] = choose(name, note, e);
		if (!out[n++])
			return 0;
	}
	return n;
}

int engine_check_names(const char *names, u32 max, struct err *e)
{
	const struct engine_ops *seen[8];
	const char *rest = names;
	char name[ENGINE_NAME];
	u32 n = 0;

	if (!strcmp(names, "auto"))
		return 0;
	while (next_name(&rest, name, sizeof(name))) {
		const struct engine_ops *engine = engine_by_name(name);

		if (!engine)
			return err_set(e, -EINVAL,
				       "--engine '%s': there is no such engine, see 'doppel check'",
				       name);
		for (u32 i = 0; i < n; i++)
			if (seen[i] == engine)
				return err_set(e, -EINVAL, "--engine %s: '%s' is there twice",
					       names, name);
		if (n == MIN(max, ARRAY_SIZE(seen)))
			return err_set(e, -EINVAL, "--engine %s: more than %u engines", names, max);
		seen[n++] = engine;
	}
	if (!n || rest[-1] == ',')
		return err_set(e, -EINVAL, "--engine '%s' lacks a name, see 'doppel check'", names);
	return 0;
}
