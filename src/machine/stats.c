/* See stats.h. */
#include "machine/stats.h"

#include <stdio.h>
#include <string.h>

static const u64 PERIOD_NS = 1000000;

enum { COUNTERS_MAX = 64 };

static void book(struct stats *s, struct vcpu *v, u64 ns)
{
	const struct engine_ops *engine = s->vcpus->env.engine;
	u32 what = engine->activity(v->engine);

	if (what)
		s->engine_ns[MIN(what, STATS_ACTIVITIES - 1)] += ns;
	else if (atomic_load(&v->halted))
		s->halted_ns += ns;
	else
		s->machine_ns += ns;
}

static void sample(struct stats *s)
{
	u64 now = host_clock_ns();

	for (u32 i = 0; i < s->vcpus->count; i++)
		book(s, &s->vcpus->cpu[i], now - s->last_ns);
	s->last_ns = now;
	s->samples++;
}

static void on_timer(void *opaque)
{
	struct stats *s = opaque;

	sample(s);
	loop_timer_arm(s->loop, &s->timer, s->last_ns + PERIOD_NS);
}

void stats_start(struct stats *s, struct vcpu_set *vcpus, struct loop *loop)
{
	s->vcpus = vcpus;
	s->loop = loop;
	s->timer.fire = on_timer;
	s->timer.opaque = s;
	s->start_ns = s->last_ns = host_clock_ns();
	loop_timer_arm(loop, &s->timer, s->last_ns + PERIOD_NS);
}

void stats_stop(struct stats *s)
{
	if (!s->loop)
		return;
	loop_timer_cancel(s->loop, &s->timer);
	sample(s);
}

struct rows {
	struct stat *row;
	u32 n, max;
	struct stat spare; /* for what does not fit */
};

static struct stat *add(struct rows *r, const char *group, const char *name, u64 value)
{
	struct stat *s = r->n < r->max ? &r->row[r->n++] : &r->spare;

	memset(s, 0, sizeof(*s));
	snprintf(s->name, sizeof(s->name), "%s.%s", group, name);
	s->value = value;
	return s;
}

static void add_time(struct rows *r, const char *name, u64 ns, u64 whole)
{
	struct stat *s = add(r, "time", name, ns);

	s->unit = UNIT_NS;
	if (whole)
		s->share = (double)ns / (double)whole;
}

static void add_times(struct rows *r, const struct stats *s)
{
	const struct engine_ops *engine = s->vcpus->env.engine;
	u64 wall = s->last_ns - s->start_ns;
	u64 whole = MAX(wall * s->vcpus->count, 1);

	add_time(r, "wall", wall, 0);
	for (u32 i = 1; engine->activities[i] && i < STATS_ACTIVITIES; i++)
		add_time(r, engine->activities[i], s->engine_ns[i], whole);
	add_time(r, "devices", s->machine_ns, whole);
	add_time(r, "halted", s->halted_ns, whole);
	add(r, "time", "samples", s->samples);
}

u32 stats_rows(struct stats *s, struct stat *row, u32 max)
{
	const struct engine_ops *engine = s->vcpus->env.engine;
	struct rows r = {.row = row, .max = max};
	struct engine_counter c[COUNTERS_MAX];
	u32 n = engine->counters(s->vcpus->env.vm, c, COUNTERS_MAX);
	u64 sleeps = 0, eoi_writes = 0, eoi_quiet = 0;

	if (s->loop)
		add_times(&r, s);
	for (u32 i = 0; i < MIN(n, COUNTERS_MAX); i++)
		add(&r, c[i].group ? c[i].group : engine->name, c[i].name, c[i].value)->unit =
			c[i].unit;
	for (u32 i = 0; i < VCPU_EXIT_TYPES; i++)
		add(&r, "exits", vcpu_exit_name(i), vcpus_exits(s->vcpus, i));
	for (u32 i = 0; i < s->vcpus->count; i++) {
		const struct lapic *lapic = s->vcpus->cpu[i].lapic;

		sleeps += s->vcpus->cpu[i].halt_sleeps;
		eoi_writes += lapic ? lapic->eoi_writes : 0;
		eoi_quiet += lapic ? lapic->eoi_quiet : 0;
	}
	add(&r, "vcpus", "count", s->vcpus->count);
	add(&r, "vcpus", "halt_sleeps", sleeps);
	add(&r, "lapic", "eoi_writes", eoi_writes);
	add(&r, "lapic", "eoi_quiet", eoi_quiet);
	return r.n;
}
