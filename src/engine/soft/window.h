/*
 * Windows: guest user memory mapped for the host's own MMU.
 *
 * An address space that computes for long gets a window, a reserved range of WINDOW_SIZE host
 * addresses in which its pages are mapped at their folded guest addresses. Blocks of MODE_WINDOW
 * access memory there, by gs, instead of looking up the TLB. What is not mapped there faults, and
 * is mapped or left to the interpreter.
 *
 * Folding clears bits 42 to 46, because a window of the whole lower half would not fit into the
 * host's own. Bits 47 to 63 stay: added to the window's base they give an address that is not
 * canonical, or the host kernel's, so that such an access faults as well and never reaches memory
 * of the monitor.
 *
 * Where the host permits it an address space gets a box instead, which needs no folding: direct.h.
 *
 * Exactness. Pages whose addresses differ in the cleared bits only would share a place. No two root
 * table entries in use may do so: the root table is watched while there is a window, and when such
 * an entry appears the window goes. What remains is this: an access that no root table entry
 * covers, but which folds to a place where a page of the same address space is mapped, reaches that
 * page instead of faulting.
 */
#pragma once

#include "engine/soft/soft.h"
#include "host/box.h"

struct insn;
struct kernel_window;

enum {
	WINDOW_PAGES = 1 << 15, /* at most, of one window: host mappings are limited */
	WINDOW_HASH = 1 << 16,
};

/* A page that is or was mapped. */
struct window_page {
	gva_t gva;
	u64 host;
	u8 prot;       /* PROT_READ, PROT_WRITE, PROT_EXEC; 0: not at present */
	u8 shift;      /* log2 of its size, 12 or 21 */
	u8 page_shift; /* of the guest's page that it is, or is a part of */
};

struct soft_window {
	struct soft_ctx *ctx; /* lies in front of it; NULL: the kernel's, see kernel_window.h */
	u8 *base;
	u64 fold;               /* address bits that are the place in it */
	struct box *box;        /* if it is one: see direct.h */
	gva_t away;             /* a page with code that must be translated, or NO_PAGE */
	gva_t site[BOX_BREAKS]; /* of breakpoints in the box; 0: none */
	u32 steps;              /* blocks of it that may run before that is taken for granted */
	s64 tick_spent;         /* cycles spent since the last tick, less what was gained, */
	u32 evictions;          /* and of breakpoints */
	bool is_cold;           /* the program runs code for the first time */
	bool recess;            /* enough: code is translated, */
	u64 absent;             /* for so many ns of ticks, */
	u32 failures;           /* after as many trials in succession, */
	u32 traps;              /* and this many stops that were no calls for the kernel */
	u64 spacing;            /* ns between calls for the kernel in the latest; 0: not known */
	u32 spared;             /* ticks until dense calls can be a reason for one */
	u32 image_size;
	u8 *image;  /* the vector state in the box when it last stopped */
	u64 in_box; /* cycles that it ran since it was last judged */
	u64 waited; /* cycles in all that it waited for a processor: neither gain nor loss */
	u64 cpu;    /* ns that it had had of one when that was last looked at */
	u64 unseen; /* cycles that it ran since then, in runs too short to look */
	u64 root;   /* address of the root table of the address space; WINDOW_FREE: none */
	u64 last_used;
	bool stale;      /* pages must be compared with the guest's tables before the next use */
	bool is_void;    /* nothing may be accessed in it any more */
	gva_t fault;     /* page that the guest was told to provide, or NO_PAGE */
	u32 root_stores; /* to the root table */
	u32 pages;
	u64 judged_tsc;  /* when it was last judged, */
	u64 spent;       /* cycles that keeping it has cost since then, */
	s64 debt;        /* cycles that it had cost more than it earned by then */
	u32 ticks;       /* and how many came while it was in use, */
	u32 user_ticks;  /* in user mode */
	bool has_pieces; /* of larger pages than they are, among its pages */
	bool is_full;    /* the host or the table of pages has no room */
	u64 large[64];   /* hashed set of 2 MiB regions with pages from larger ones */
	struct window_page page[WINDOW_PAGES];
	u16 hash[WINDOW_HASH]; /* index of a page, plus 1 */
};

/* Place of @gva in @w, unless that is a box. */
static inline u64 window_fold(const struct soft_window *w, gva_t gva)
{
	return gva & w->fold;
}

#define WINDOW_FREE (~0ul)
#define NO_PAGE     1ul

/* An interrupt came: is it time for a window, or for its end? From the run loop. */
void window_tick(struct soft_cpu *c);

/* Is one to be had without waiting for ticks? Then it can be given, from the run loop. */
bool window_is_due(const struct soft_cpu *c);
void window_give(struct soft_cpu *c);

/* MODE_WINDOW or MODE_DIRECT if user code of the current address space can run in its window now,
 * else 0. */
u32 window_mode(struct soft_cpu *c);

/* Is the host address one of the current window? */
bool window_has(const struct soft_cpu *c, u64 host);

/*
 * Instruction @i at c->rip faulted at host address @host in the window, registers being as in @r:
 * map the page. False: the instruction wants the interpreter. On the signal stack.
 */
bool window_fault(struct soft_cpu *c, const struct insn *i, const u64 r[GPR_COUNT], u64 host,
		  bool write);

/* The guest has been told of a page fault at @gva: the page will be wanted. */
void window_expect(struct soft_cpu *c, gva_t gva);

/* The window of the address space @root, or NULL. */
struct soft_window *window_find(struct soft_cpu *c, u64 root);

/* Invalidations of @ctx: of all of it, of the page at @gva. */
void window_flush(struct soft_ctx *ctx);
void window_flush_page(struct soft_cpu *c, struct soft_ctx *ctx, gva_t gva);

/* Compare all its pages with the guest's tables. */
void window_revalidate(struct soft_cpu *c, struct soft_window *w);

/* RAM page @page at @host must not be stored to unseen: by no vCPU after this. vm->lock held. */
void windows_protect(struct soft_vm *vm, u64 page, u64 host);

/* RAM page @page, the root table of some window, has been stored to. */
void windows_root_stored(struct soft_vm *vm, u64 page);

/* ... and a page of code that is executable in boxes. */
void windows_code_stored(struct soft_vm *vm, u64 page);

void windows_destroy(struct soft_cpu *c);

/* ---- for direct.c ---- */

/* How the page at @gva is mapped: PROT_*, or 0. */
u8 window_prot(struct soft_window *w, gva_t gva);
/* Map it, as @x says, for reading, writing if that may be, and @exec: PROT_EXEC or 0. */
bool window_map(struct soft_cpu *c, struct soft_window *w, gva_t gva, const struct soft_xlat *x,
		u8 exec);
/* ... or no longer. */
void window_unmap(struct soft_cpu *c, struct soft_window *w, gva_t gva);
/* What is noted of the box is for its next run: so many changes, or -errno: it is of no use any
 * more.
 */
int window_prepare(struct soft_cpu *c, struct soft_window *w);
/* It is of no use any more. */
void window_close(struct soft_cpu *c, struct soft_window *w);
/* For its judgement: the box ran for @cycles, mappings being changed first. */
void window_ran(struct soft_cpu *c, struct soft_window *w, u64 cycles, u32 changes);
