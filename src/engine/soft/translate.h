/* Translation of one basic block. */
#pragma once

#include "engine/soft/cache.h"

/*
 * How a slow path describes its instruction to soft_miss() and soft_step().
 */
#define SITE_OFFSET     0xfffu /* page offset of the instruction */
#define SITE_LEN_SHIFT  12     /* 4 bits: its length */
#define SITE_WRITE      (1u << 16)
#define SITE_SIZE_SHIFT 17         /* 10 bits: bytes accessed minus one */
#define SITE_MASKED     (1u << 27) /* elements may be masked off: a miss is not a fault */
#define SITE_GROUP      (1u << 29) /* a group's check: fill, or leave by the exit in cpu->link */
#define SITE_STRING     (1u << 30) /* REP MOVS, with SITE_WRITE REP STOS, of that size */
#define SITE_TERMINAL   (1u << 28) /* ends its block: never resume behind it */

/* Bytes that REP STOS stores in place at most. */
enum { STOS_INLINE = 128 };

/* cpu->branch_site: page offset of the last branch that went through the table, and what it did. */
enum {
	BRANCH_SITE_NONE = 0 << 16, /* direct, or not in 64-bit mode */
	BRANCH_SITE_JMP = 1 << 16,
	BRANCH_SITE_CALL = 2 << 16, /* pushed 8 bytes */
	BRANCH_SITE_RET = 3 << 16,  /* popped 8 bytes */
	BRANCH_SITE_KIND = 3 << 16,
};

/*
 * Translate the block at c->rip, whose first byte is at @x (from soft_translate() for fetching), in
 * @mode (c->mode, perhaps with MODE_SINGLE). Called with vm->lock held and vector state parked.
 * Returns the block; NULL when a page must be settled first (c->unsettled), or memory for code ran
 * out (flush): then call again; SOFT_FAULT in *status when fetching the second page of its first
 * instruction faults.
 */
struct block *soft_translate_block(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
				   int *status);

/* Let indirect branches arrive at @b. False when there is no memory for it. vm->lock held. */
bool soft_make_entry(struct soft_cpu *c, struct block *b);

/*
 * Lead exit @x through the indirect-branch table for good: its target straddles a page boundary, so
 * that a direct link would skip the check of the second page's mapping. vm->lock held.
 */
void soft_exit_indirectly(struct soft_cpu *c, struct block_exit *x);
