/* See stats.h. */
#include "cli/stats.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { ROWS_MAX = 128 };

static void print_row(const struct stat *s)
{
	fprintf(stderr, "%-32s ", s->name);
	switch (s->unit) {
	case UNIT_NS: fprintf(stderr, "%12.6f s", (double)s->value * 1e-9); break;
	case UNIT_BYTES: fprintf(stderr, "%12lu bytes", s->value); break;
	case UNIT_COUNT: fprintf(stderr, "%12lu", s->value); break;
	}
	if (s->share > 0)
		fprintf(stderr, " %5.1f %%", s->share * 100);
	fputc('\n', stderr);
}

/* GROUP.NAME becomes NAME in the object GROUP. */
static void add_row(json_t *all, const struct stat *s)
{
	const char *dot = strchr(s->name, '.');
	char group[STAT_NAME];
	json_t *object;

	snprintf(group, sizeof(group), "%.*s", (int)(dot - s->name), s->name);
	object = json_object_get(all, group);
	if (!object) {
		object = json_object();
		json_object_set_new(all, group, object);
	}
	json_object_set_new(object, dot + 1,
			    s->unit == UNIT_NS ? json_real((double)s->value * 1e-9)
					       : json_integer((json_int_t)s->value));
}

static void print_json(const struct stat *row, u32 n)
{
	json_t *all = json_object();

	for (u32 i = 0; i < n; i++)
		add_row(all, &row[i]);
	json_dumpf(all, stderr, JSON_COMPACT | JSON_REAL_PRECISION(9));
	fputc('\n', stderr);
	json_decref(all);
}

void cli_print_stats(struct pc *pc, bool json)
{
	struct stat row[ROWS_MAX];
	u32 n = pc_stats(pc, row, ROWS_MAX);

	if (json)
		print_json(row, n);
	for (u32 i = 0; i < n && !json; i++)
		print_row(&row[i]);
}
