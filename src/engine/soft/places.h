/*
 * Links between blocks on different pages of a kernel.
 *
 * Theory of operation. A block that was made for its address (cache.h: block_place()) knows where
 * its branches lead. One to another page may be linked like one within the page if the page is
 * mapped where it was when the link was made, on every vCPU that can follow it. So each page that
 * such links lead to is noted, with where it lies, as a *place*; there is one list for all vCPUs,
 * to which links only add, and each vCPU knows how many places it has found to be true in its own
 * address space. One that does not know them all has its exit_req set, and every such link leads to
 * a block's poll: it comes to the run loop before it can rely on a place that it has not looked at.
 *
 * A vCPU forgets what it found when it invalidates all of its supervisor translations or one in the
 * upper 2 GiB; MOV CR3 leaves them alone, because places are global pages. What a vCPU finds to be
 * mapped elsewhere is *broken*: all links to it are taken back. When the code there is linked
 * again, a new place is added. The list is emptied with the cache.
 *
 * Order, for a link that another vCPU must not follow unseen: the place is counted, then the
 * others' exit_req set, then the branch patched. They clear exit_req before they read the count.
 */
#pragma once

#include "engine/soft/cache.h"

enum { PLACES = 8192, PLACES_HASH = 2 * PLACES };

struct place {
	gva_t gva; /* of the page */
	gpa_t gpa;
	s64 page; /* physmap page index */
	bool broken;
};

struct places {
	_Atomic u32 count;
	struct place place[PLACES];
	u16 hash[PLACES_HASH]; /* index plus 1 of the latest place of a page */
};

int places_create(struct soft_vm *vm);
void places_destroy(struct soft_vm *vm);

/*
 * May an exit be linked to block @to, on another page, which was just looked up at c->rip? Then the
 * page is a place that this vCPU knows. vm->lock held.
 */
bool places_add(struct soft_cpu *c, const struct block *to);

/* Supervisor translations in the upper 2 GiB are gone. On the vCPU's thread, or while it is not in
 * run(). */
void places_forget(struct soft_cpu *c);

/* Look at the places that this vCPU does not know, if any. Only from the run loop, after exit_req
 * was taken. */
void places_check_all(struct soft_cpu *c);

static inline void places_check(struct soft_cpu *c)
{
	if (c->places_known != atomic_load_explicit(&c->vm->places->count, memory_order_relaxed))
		places_check_all(c);
}

/* The cache is being emptied. vm->lock held, the world stopped. */
void places_reset(struct soft_vm *vm);
