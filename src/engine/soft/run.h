/* What the run loop, in soft.c, and the helpers of translated code, in helpers.c, share. */
#pragma once

#include "engine/soft/cache.h"

/*
 * The block at c->rip in c->mode, or its MODE_SINGLE variant, with code_va as it is there. SOFT_OK
 * with *out NULL: rip is not in RAM.
 */
int run_find_block(struct soft_cpu *c, u32 variant, struct block **out);

/* Deliver the exception that is recorded in c->exc. */
int run_deliver_exception(struct soft_cpu *c);

/* May the next instruction be part of a block, as far as the processor's state is concerned? */
static inline bool run_may_translate(const struct soft_cpu *c)
{
	return !(c->mode & (MODE_INTERPRET | MODE_DIRECT)) && !(c->sysflags & RFLAGS_RF) &&
	       !c->shadow && !c->shadow_mov_ss && !c->wants_alone;
}
