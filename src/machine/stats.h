/*
 * Where a machine's time goes, and what was counted, in rows with stable names.
 *
 * Time is sampled: every millisecond the event loop looks at what each vCPU is at and books the
 * time since its last look there. The vCPUs do nothing for it but keep one word up to date. Without
 * stats_start() nothing is sampled.
 */
#pragma once

#include "host/loop.h"
#include "machine/vcpu.h"

enum { STATS_ACTIVITIES = 16, STAT_NAME = 48 };

/* A name is GROUP.NAME. */
struct stat {
	char name[STAT_NAME];
	u64 value;
	enum engine_unit unit;
	double share; /* of the vCPUs' time; 0 where that means nothing */
};

struct stats {
	struct vcpu_set *vcpus;
	struct loop *loop;
	struct loop_timer timer;
	u64 start_ns, last_ns, samples;
	u64 engine_ns[STATS_ACTIVITIES]; /* by engine_ops.activity, without 0 */
	u64 halted_ns, machine_ns;
};

/* Start sampling @vcpus on @loop, whose thread runs the timer. */
void stats_start(struct stats *s, struct vcpu_set *vcpus, struct loop *loop);
void stats_stop(struct stats *s);

/* Fill up to @max rows, return how many. While the vCPUs stand still. */
u32 stats_rows(struct stats *s, struct stat *row, u32 max);
