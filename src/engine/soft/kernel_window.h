/*
 * The kernel's window: guest kernel memory mapped for the host's own MMU.
 *
 * Kernels map what they use most at addresses in the upper half that hold for all address spaces.
 * What is there is mapped in a window (window.h), and kernel code in MODE_WINDOW accesses it
 * without looking anything up: a PEXT makes bit 47 and the lower KERNEL_FOLD_BITS of an address
 * into an address of the host. It leaves flags alone. Addresses of the upper half come to
 * KERNEL_WINDOW, those of the lower half (user memory) below, where nothing is mapped.
 *
 * All vCPUs share it. What one of them maps there the others must have at the same address: those
 * can use the window whose root tables have the same entries for what is in it, which is looked at
 * whenever one loads a root table, and at all of them when a region comes to be in it. What one of
 * them invalidates goes for all, and comes again for those that still have it.
 *
 * Most of it is global. A few pages may be others: Linux takes the G flag from those it once
 * unmapped. They are in the window if there is one vCPU. Whenever translations that are not global
 * are to be forgotten, or belong to a PCID that has not been seen to have all of them alike, the
 * entries of the guest's tables that lead to them are compared with what they were, and pages that
 * have others now are taken out.
 *
 * A block that met something that is not to be had there (user memory, devices, pages that are
 * watched) is refused: it is translated anew, with checks. That is noted by a hash of its address,
 * so a few others may be refused as well.
 *
 * Exactness. Addresses that differ in bits 45 and 46 only share a place. The guest's tables must
 * not map anything in both of two regions of 1 GiB that do so if the window has pages of one: that
 * is looked at whenever a root table is loaded or something is invalidated, and if so the vCPU
 * cannot use the window, unless nobody else does and it starts over with nothing. What remains is
 * this: an access to memory that nothing is mapped at, or nothing was at that time, or whose
 * address is not canonical but has bit 47 set, reaches a page that is mapped in its place instead
 * of faulting.
 */
#pragma once

#include "engine/soft/window.h"

enum {
	KERNEL_FOLD_BITS = 45,
	REFUSED_BITS = 1 << 16,
	SLOTS = 256,      /* entries of a root table's upper half */
	SLOTS_BESIDE = 3, /* that share its place with each */
	LOCAL_PAGES = 32,
	LOCAL_LOSSES = 256, /* that were not what they had been, before there are none any more */
};

#define KERNEL_WINDOW      (1ul << KERNEL_FOLD_BITS)
#define KERNEL_FOLD        (KERNEL_WINDOW - 1)
#define KERNEL_WINDOW_MASK (BIT(47) | KERNEL_FOLD) /* of PEXT */

/* A page that is not global: what leads to it from the root table on. */
struct local_page {
	gva_t gva;
	const u64 *at[4]; /* of the root table's entry: in the one that was current */
	u64 entry[4];
	u32 levels;
	u32 own; /* entries before this one lead to the page before it in the list as well */
};

/* An entry of the root table that shares its place with a slot in use. */
struct slot_beside {
	u16 entry, slot;
};

struct kernel_window {
	struct soft_window w;
	struct local_page local[LOCAL_PAGES];
	u32 locals, losses;
	u64 local_version; /* of the list: counts what was added, from 1 on */
	/* Where it has had pages: entries of the root table's upper half, and of the tables there;
	 * changed under vm->lock.
	 */
	u64 slots[SLOTS / 64], regions[SLOTS][8];
	struct slot_beside beside[SLOTS * SLOTS_BESIDE];
	u32 besides;
	u64 entry[SLOTS];               /* what the root tables of those that use it have there */
	u32 starts;                     /* how often it has started over */
	u64 refused[REFUSED_BITS / 64]; /* hashed set of blocks */
};

/* Without one, if the host has the addresses in use. */
void kernel_window_create(struct soft_vm *vm);
/* When there are no vCPUs any more. */
void kernel_window_destroy(struct soft_vm *vm);

static inline struct soft_window *kernel_window_of(const struct soft_vm *vm)
{
	return vm->kernel_window ? &vm->kernel_window->w : NULL;
}

/* MODE_WINDOW if the kernel code that c->mode otherwise says can use it, else 0. */
u32 kernel_window_mode(struct soft_cpu *c);

/* Empty it: the kernel is going to be translated with checks. vm->lock held. */
void kernel_window_leave(struct soft_vm *vm);

/* A page at @gva is about to be entered, @global or not. False: not there. vm->lock held. */
bool kernel_window_admits(struct soft_cpu *c, gva_t gva, bool global);

/*
 * Where the page of @gva is, if it is there and may be accessed so: for the kernel's TLB, which may
 * keep it as if it were global.
 */
bool kernel_window_knows(struct soft_cpu *c, gva_t gva, bool write, struct soft_xlat *x);

/* Translations of the present address space that are not global are to be forgotten, or, if not
 * @flush, those of another one: its PCID's are in force. */
void kernel_window_drop_local(struct soft_cpu *c, bool flush);

/* The root table is another one, or may have changed. */
void kernel_window_look(struct soft_cpu *c);

/* Invalidations: of all of it, of the page at @gva. They hold when it is next asked for its mode or
 * settled. */
void kernel_window_flush(struct soft_cpu *c);
void kernel_window_flush_page(struct soft_cpu *c, gva_t gva);

/* Before kernel code goes on that may have invalidated something, or loaded a root table. */
static inline bool kernel_window_is_due(const struct soft_cpu *c)
{
	return (c->kernel_stale || !c->kernel_agrees) &&
	       (c->mode & (MODE_WINDOW | MODE_USER)) == MODE_WINDOW;
}
void kernel_window_settle(struct soft_cpu *c);

/* Is @host an address that folding gives? */
static inline bool kernel_window_has(u64 host)
{
	return host < KERNEL_WINDOW * 2 + WINDOW_DISP;
}

/* Block @b, which met what is not to be had, is to be translated with checks from now on. vm->lock
 * held. */
void kernel_window_refuse(struct soft_cpu *c, struct block *b);
bool kernel_window_refuses(const struct soft_cpu *c, gpa_t pa, u32 mode);
