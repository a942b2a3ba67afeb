/* The mappings of windows: what window.c, which says who gets one, and their pages' file share. */
#pragma once

#include "engine/soft/window.h"

/* What is to be mapped. */
struct window_mapping {
	gva_t gva;
	u64 host;
	u8 shift;      /* 12 or 21 */
	u8 page_shift; /* of the guest's page */
	bool writable;
	u8 exec; /* PROT_EXEC or 0: pages of 4 KiB */
};

static inline u64 window_page_size(const struct window_page *p)
{
	return 1ul << p->shift;
}

/* The mapping that holds @gva's place; NULL: none. */
struct window_page *window_page_at(struct soft_window *w, gva_t gva);

/* May pages around @gva come from a larger one? */
bool window_may_be_large(const struct soft_window *w, gva_t gva);

/* The region of RAM that @host is in, or NULL, and the page there. */
const struct physmap_region *window_region(const struct soft_vm *vm, u64 host);
u64 window_page_index(const struct physmap_region *r, u64 host);

/* Those that follow: vm->lock held. */

/* Enter and map. False: no room, or the place is taken. */
bool window_enter(struct soft_cpu *c, struct soft_window *w, struct window_mapping m);

/* How [@gva, @gva + @size) is mapped from now on. False: the host, or the box, has no room. */
bool window_set_prot(struct soft_window *w, gva_t gva, u64 size, u8 prot);
void window_protect_page(struct soft_cpu *c, struct soft_window *w, struct window_page *p, u8 prot);

/* May the page at @gva of @p, which is mapped, be written? Part of a large one may not have been.
 */
bool window_allow_writing(struct soft_cpu *c, struct soft_window *w, struct window_page *p,
			  gva_t gva);

/* Nothing is to be accessed in the window any more. */
void window_shut(struct soft_window *w);

/* A change to it could not be made. */
void window_give_way(struct soft_cpu *c, struct soft_window *w);

/* Unmap everything. */
void window_empty(struct soft_cpu *c, struct soft_window *w);
