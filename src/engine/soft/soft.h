/*
 * The soft engine's internal types, shared by its files.
 *
 * Theory of operation. Each vCPU thread owns one struct soft_cpu in thread-local storage;
 * translated code reaches it at a constant displacement from fs. Another per-address-space
 * structure, struct soft_ctx, holds the TLB and the indirect-branch table; translated code reaches
 * it through gs, so that a CR3 switch between known PCIDs is one wrgsbase.
 *
 * While translated code runs, guest rax rcx rdx rbx rbp rsi rdi r8 r12-r15 are in their own host
 * registers, guest rsp is in host r9, guest r9-r11 live in cpu->r[], host r10 and r11 are scratch,
 * host rsp is a private stack. Guest arithmetic flags are host flags. Vector, mask, x87 registers
 * and MXCSR hold guest values also while the engine's C code runs: everything in this folder is
 * compiled with -mgeneral-regs-only, and code that must call outside (libc, Zydis, devices) first
 * calls soft_fpu_park(), which saves them; translated code is entered only after soft_fpu_live().
 *
 * Status of an operation that touches the guest: see enum soft_status. A failed operation has
 * changed no guest state.
 */
#pragma once

#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "engine/engine.h"
#include "engine/soft/options.h"
#include "host/box.h"

#include <pthread.h>
#include <stdatomic.h>

struct box;
struct soft_cpu;
struct soft_vm;
struct block;
struct places;

enum soft_status {
	SOFT_OK = 0,
	SOFT_FAULT, /* an exception is recorded in cpu->exc, to be delivered at cpu->rip */
	SOFT_EXIT,  /* cpu->exit describes what is needed; run the instruction again afterwards */
};

/* ---- TLB and per-address-space context (layout known to emit.c and dispatch.S) ---- */

enum {
	TLB_BITS = 12,
	TLB_SIZE = 1 << TLB_BITS,
	IBT_BITS = 16, /* a compiler's functions conflict in fewer */
	IBT_SIZE = 1 << IBT_BITS,
	IBT2_BITS = 14,
	IBT2_SIZE = 1 << IBT2_BITS,
	IBT_TOTAL = IBT_SIZE + IBT2_SIZE, /* first and second level */
	IBT_LOG = 16384,
	CTX_LOG = 1024,
	EXEC_SIZE = 4096,
	EXEC_LOG = 2048,
	CROSS_BITS = 13,
	CROSS_SIZE = 1 << CROSS_BITS,
	CROSS_TAGS = 0x7ff, /* tags are from 1 on */
	CROSS_LOG = 1024,
	FETCH_SIZE = 64,
	SOFT_CONTEXTS = 16,   /* without windows */
	SOFT_BOXES_MAX = 4,   /* windows of one vCPU that are boxes */
	SOFT_WINDOWS_MAX = 8, /* with those that are not */
	SOFT_CONTEXTS_ALL = SOFT_CONTEXTS + SOFT_WINDOWS_MAX,
};

/*
 * One page translation. A tag is the page's gva, or TLB_EMPTY(i), which no address hashing to entry
 * i can match even with a page crossing. A valid write tag implies a valid read tag of the same
 * page, and a host page that holds no translated code, is dirty in the guest's tables and in the
 * dirty log.
 */
struct tlb_entry {
	u64 tag_read, tag_write;
	u64 host;  /* hva of the page's first byte */
	u64 delta; /* host - gva: what to add to an address in the page */
};
struct tlb_page {
	u8 shift;     /* log2 of the size of the page that it is a part of */
	bool local;   /* not global */
	bool watched; /* may be written, but not unseen: a write tag is all that it lacks */
};
#define TLB_EMPTY(i) ((u64)((i) ^ (TLB_SIZE / 2)) << PAGE_SHIFT)

/*
 * The page that the stack was last written in: translated code compares with it before it asks the
 * TLB, so that the address of a stack access does not wait for a tag. An access at offset < limit[]
 * of the page that spans up to STACK_SMALL or STACK_LARGE bytes stays in it; 0 when nothing is
 * known. Filled by translated code from a write tag, emptied with the TLB, when write tags are
 * dropped, and whenever translated code is entered.
 */
enum { STACK_SMALL = 64, STACK_LARGE = 512 };

struct stack_page {
	u64 base, delta;
	u64 limit[2];
};

/*
 * gva to translated code. The jump goes through code unconditionally; the block it reaches compares
 * gva with the address wanted (it knows whether it may clobber flags). When they differ, and
 * through the code of an empty entry, the second level is tried, which follows the first in the
 * table and is indexed by other bits: functions 256 KiB apart share an entry of the first. What is
 * not there either is looked up in C. Every block is entered in both levels.
 */
struct ibt_entry {
	u64 minus_gva; /* so that a sum compares */
	u64 code;      /* host address of the block's indirect entry */
};
#define IBT_MASK        0x3fffcul /* address bits that index the first level */
#define IBT_INDEX(gva)  (((gva)&IBT_MASK) >> 2)
#define IBT2_MASK       0x3ff0f0ul /* and the second */
#define IBT2_INDEX(gva) (IBT_SIZE + (((gva) >> 4 & 0xf) | ((gva) >> 12 & 0x3ff) << 4))

/* Index of the privilege half: supervisor (CPL 0-2) or user. */
enum { HALF_SUPER, HALF_USER, HALVES };

/* A page that code was found on. gva 1: none. */
struct soft_exec_page {
	gva_t gva;
	gpa_t gpa;
};

/*
 * Branches to other pages ask whether the page that they were linked to is where they go: cross[]
 * says for a page of RAM where it was found, as -(gva + tag). The page's number selects the place
 * and, together with that, the tag, which no gva of a page has in its place. 0: nowhere.
 */
#define CROSS_INDEX(gpa) ((u32)((gpa) >> PAGE_SHIFT) & (CROSS_SIZE - 1))
#define CROSS_TAG(gpa)   (((gpa) >> (PAGE_SHIFT + CROSS_BITS)) + 1)

/* An instruction fetch that was permitted: where the page of @tag lies. ~0: none. */
struct soft_fetch_entry {
	u64 tag;
	gpa_t gpa;
	u8 *host;
	u64 page;
	bool rom, global;
};

/*
 * What is known of the address space at one privilege level. The user half belongs to a context and
 * is reached through gs; the supervisor half belongs to the vCPU and is reached through fs: kernels
 * map themselves globally, so that it survives MOV CR3 but for what is not global.
 */
struct soft_half {
	struct tlb_entry tlb[TLB_SIZE];
	struct tlb_page tlb_page[TLB_SIZE]; /* what else is known of each entry's page */
	struct stack_page stack;
	struct ibt_entry ibt[IBT_TOTAL];
	/* Touched indices since the last flush, so that a flush costs what was used; full: flush
	 * all. */
	u32 tlb_logged, ibt_logged;
	u16 tlb_log[CTX_LOG];
	u32 ibt_log[IBT_LOG];
	u32 ibt_mode;       /* mode key of the blocks in ibt[] */
	u64 exec_pages[64]; /* hashed set of virtual pages with entries in ibt[] */
	/* Where they were, in a hash table; exec_log[] has the positions in use. */
	struct soft_exec_page exec[EXEC_SIZE];
	u16 exec_log[EXEC_LOG];
	u32 exec_logged; /* full: some are missing */
	bool code_stale; /* ibt[] and cross[] may be used only when they still are there */
	u64 cross[CROSS_SIZE];
	u16 cross_log[CROSS_LOG]; /* places in use; full: some are missing */
	u32 cross_logged;

	/* Private to mmu.c and tlb.c. */
	u32 local_logged; /* TLB entries of pages that are not global, logged likewise */
	u16 local_log[CTX_LOG];
	bool local_code; /* fetch[] or ibt[] depend on pages that are not global */
	struct soft_fetch_entry fetch[FETCH_SIZE];
	u64 write_pages[32]; /* hashed set of RAM pages that have had a write tag */
	/* Regions with entries from pages of 2 or 4 MiB (gva bits 30:21) and 1 GiB (35:30), and
	 * those that instructions were fetched from (26:21, 35:30), for the lower and upper half of
	 * the addresses. */
	u64 large[2][16], huge[2];
	u64 exec_large[2], exec_huge[2];
	bool has_global[2]; /* global entries in the lower, upper half */
};

struct soft_ctx {
	struct soft_half user;
	u64 cr3; /* bits 63:12 and PCID of the owner; ~0 when free */
	u64 last_used;
	bool ready;                 /* the tables have been initialised */
	u16 heat;                   /* ticks that came while its user code ran */
	u16 cooling;                /* ticks during which it gets no window, */
	u16 box_cooling;            /* and none that is a box, */
	u8 box_drops;               /* of which it has lost so many */
	u32 call_mode;              /* what soft_cpu.user_mode was when it was last left, */
	u32 call_state;             /* with this soft_cpu.call_state */
	u64 local_version;          /* kernel_window.local_version whose pages are its, too */
	struct soft_window *window; /* behind it, or NULL */
};

#define CTX_FREE (~0ul)

/*
 * gs leads to GS_BIAS bytes behind the start of a context. There its window begins, if it has one,
 * with a guard in between that displacements up to WINDOW_DISP cannot cross.
 */
#define GS_BIAS     (1ul << 29)
#define WINDOW_BITS 42
#define WINDOW_SIZE (1ul << WINDOW_BITS)
#define WINDOW_DISP (1l << 28)
#define WINDOW_FOLD (~(0x1ful << WINDOW_BITS)) /* address bits that stay: see window.h */

/* ---- guest CPU ---- */

/* What selects a translation besides the physical address. */
enum soft_mode {
	MODE_BITS_16 = 0,
	MODE_BITS_32 = 1, /* flat: CS, DS, ES, SS base 0 and limit 4 GiB - 1; else interpreted */
	MODE_BITS_64 = 2,
	MODE_BITS = 3,
	MODE_USER = 1 << 2,
	MODE_X87 = 1 << 3,    /* x87 and MMX usable: neither CR0.EM nor CR0.TS */
	MODE_SSE = 1 << 4,    /* and CR4.OSFXSR */
	MODE_AVX = 1 << 5,    /* and CR4.OSXSAVE, XCR0.AVX */
	MODE_AVX512 = 1 << 6, /* and XCR0's three AVX-512 bits */
	MODE_SINGLE = 1 << 7, /* block variant with one check per access */
	MODE_INTERPRET =
		1 << 8, /* this state is not translated at all (16-bit, not flat, TF, DR7, ...) */
	MODE_WINDOW = 1 << 9,  /* memory is accessed through a window: see window.h */
	MODE_DIRECT = 1 << 10, /* user code runs in a box: see direct.h; nothing is translated */
	MODE_COUNT = 1 << 11,
};

enum { SOFT_FRAGMENTS = 24 };

/* One completed device access of the instruction being (re)run. */
struct soft_fragment {
	u64 addr; /* gpa or port */
	u64 data;
	u8 size;
	bool write;
	bool is_port;
};

/* Why translated code came back to the dispatcher (set by dispatch.S and by helpers). */
enum soft_leave {
	LEAVE_LOOKUP,     /* cpu->rip is set: find the next block */
	LEAVE_LINK,       /* as LOOKUP, and cpu->link names the exit to patch */
	LEAVE_POLL,       /* exit_req was seen at a block entry */
	LEAVE_INTERPRET,  /* run one instruction at cpu->rip in the interpreter */
	LEAVE_FAULT,      /* exception recorded in cpu->exc */
	LEAVE_EXIT,       /* cpu->exit is filled in */
	LEAVE_HOST_FAULT, /* a host fault in translated code: cpu->fault_* */
	LEAVE_THUNK,      /* soft_thunk's instruction is done */
	LEAVE_GO_ON, /* not left at all: on to the code that cpu->link leads to, for cpu->rip */
};

/*
 * A direct branch that is going to be linked, forward, or backward or from another place and so to
 * the poll; or anything else.
 */
enum soft_arrival { ARRIVAL_ANY, ARRIVAL_FORWARD, ARRIVAL_BACKWARD };

enum { SOFT_CPUS = 64 };

/* Bits of exit_req. */
enum {
	REQ_KICK = 1 << 0, /* return EXIT_KICKED */
	REQ_PASS = 1 << 1, /* another thread wants soft_pass() called: see world.c */
	REQ_LOOK = 1 << 2, /* can user code be run directly again? See direct.c */
	REQ_TICK = 1 << 3, /* window_tick() is to be called: see ticker.h */
};

enum soft_stub {
	STUB_LEAVE,
	STUB_MISS,
	STUB_STEP,
	STUB_THUNK_DONE,
	STUB_LOOKUP,
	STUB_SYSCALL,
	STUB_SYSRET,
	SOFT_STUBS
};

enum soft_counter {
	COUNT_BLOCKS_TRANSLATED,
	COUNT_INSNS_TRANSLATED,
	COUNT_GUEST_BYTES, /* of translated blocks */
	COUNT_HOT_BYTES,   /* of code made of them */
	COUNT_COLD_BYTES,
	COUNT_TRANSLATION_CYCLES, /* TSC */
	COUNT_BLOCKS_LOADED,      /* instead of being translated */
	COUNT_LOADING_CYCLES,
	COUNT_BLOCKS_COMPARED, /* translations-check */
	COUNT_BLOCKS_DIFFERENT,
	COUNT_INSNS_INTERPRETED,
	COUNT_LOOKUPS,
	COUNT_LINKS,
	COUNT_TLB_MISSES,
	COUNT_STEPS, /* instructions that translated code leaves to the interpreter */
	COUNT_TLB_FILLS,
	COUNT_CONTEXT_SWITCHES,
	COUNT_CONTEXT_FLUSHES,
	COUNT_BLOCK_INVALIDATIONS,
	COUNT_CACHE_FLUSHES,
	COUNT_EXCEPTIONS,
	COUNT_SYSCALLS, /* SYSCALL */
	COUNT_INTERRUPTS,
	COUNT_EXITS,
	COUNT_FPU_PARKS,
	COUNT_CODE_STORES,
	COUNT_GROUP_FALLBACKS,
	COUNT_WINDOWS,
	COUNT_WINDOW_FAULTS,
	COUNT_WINDOW_MAPS,
	COUNT_WINDOW_UNMAPS,
	COUNT_WINDOW_DROPS,
	COUNT_WINDOW_CYCLES, /* TSC */
	COUNT_BOXES,
	COUNT_BOX_RUNS,
	COUNT_BOX_CYCLES, /* TSC, of these runs */
	COUNT_BOX_FPU,    /* times that vector state had to be given to one */
	COUNT_BOX_AWAY,   /* times that code had to be translated nevertheless */
	COUNT_LEAVES,     /* translated code left for the run loop, by enum soft_leave */
	SOFT_COUNTERS = COUNT_LEAVES + LEAVE_THUNK,
};

/* What a vCPU's thread is at: soft_activities[] names them. */
enum soft_activity {
	ACT_OUTSIDE,
	ACT_TRANSLATED, /* in translated code */
	ACT_BOX,        /* in a box */
	ACT_TLB_MISS,
	ACT_INTERPRET,
	ACT_EXCEPTION,
	ACT_DISPATCH, /* run loop: finding and linking blocks, requests */
	ACT_TRANSLATE,
	ACT_WAIT, /* for other vCPUs */
	SOFT_ACTIVITIES,
};

/* Where a guest page is, and what may be done there: see soft_translate(). */
struct soft_xlat {
	gpa_t gpa;
	u8 *host;      /* RAM: hva of @gpa; NULL: device memory */
	u64 page;      /* RAM: page index in page_flags */
	u8 shift;      /* log2 of the size of the guest's page */
	bool writable; /* a write tag may be filled: permitted, dirty bit set, not ROM */
	bool global;
	bool rom;
	bool user; /* user code may access it likewise */
};

struct soft_cpu {
	/* First: what translated code touches (short displacements do not matter, cache lines do).
	 */
	u64 r[GPR_COUNT];     /* all of them outside translated code; r9-r11 always */
	u64 rip;              /* next instruction; valid outside translated code */
	u64 flags;            /* RFLAGS_ARITH bits only; valid outside translated code */
	u64 code_va;          /* gva of the page of the running block (translated code only) */
	_Atomic u32 exit_req; /* nonzero: leave translated code at the next poll */
	u8 iflag;             /* RFLAGS.IF */
	u8 dflag;             /* RFLAGS.DF */
	u8 fpu_is_live;       /* guest vector state is in the host registers */
	u8 irq_window;        /* request_irq_window() is armed */
	u64 sysflags;         /* the other RFLAGS bits: TF IOPL NT RF VM AC VIF VIP ID */
	u64 spill[8];         /* translated code's temporaries */
	u64 group[8];         /* host addresses of memory groups */
	u64 link;     /* LEAVE_LINK: host address of the exit's descriptor; LEAVE_GO_ON: of code */
	u64 host_rsp; /* the C stack while translated code runs */
	u64 ras_base; /* initial host rsp for translated code */
	u64 stub[8];  /* entry points in dispatch.S (enum soft_stub) */
	u64 tsc_offset;     /* guest TSC = host TSC + this */
	u64 tlb_index_mask; /* constants for flag-free checks: pext masks */
	u64 page_mask;
	u64 ibt_mask, ibt2_mask;
	u64 ibt_miss[HALVES], ibt_leave; /* code of empty entries of the first and second level */
	u64 bit_mask64, bit_mask32;      /* 63 and 31 */
	u32 branch_site;                 /* see translate.h */
	u32 pauses_left; /* PAUSE instructions until the next look for others who could run */
	u64 ras_rsp;     /* host rsp of translated code while a helper runs */
	u64 window_mask; /* WINDOW_FOLD */
	struct soft_ctx *ctx;
	/* For SYSCALL and SYSRET in dispatch.S: the mode behind them, 0: the interpreter is wanted;
	 * the segments they load, and MSR STAR that these were made from. */
	u32 kernel_mode, user_mode;
	u64 call_star;
	struct cpu_segment call_seg[2][2]; /* kernel's and user's CS and SS */
	u64 ras_bottom[HALVES];            /* code at the bottom of the private stack */
	u64 kernel_mask;                   /* KERNEL_WINDOW_MASK */
	u64 fault_pc; /* LEAVE_HOST_FAULT: host instruction, trap number, error code */
	u64 fault_trap, fault_error;
	_Atomic u8 activity; /* enum soft_activity; read by other threads */

	/* Architectural state without arithmetic flags. */
	struct cpu_segment seg[SEG_COUNT];
	struct cpu_table gdtr, idtr;
	u64 cr0, cr2, cr3, cr4, cr8, xcr0, efer;
	u64 dr[4], dr6, dr7;
	struct cpu_msrs msr;
	u8 cpl;
	u8 no_fsgsbase; /* CR4.FSGSBASE is not set */
	u8 arrival;     /* enum soft_arrival: by what the block that is looked for is reached */
	u32 mode;       /* enum soft_mode of the current state; recomputed by soft_update_mode() */

	/* Between instructions. */
	bool nmi_pending, nmi_blocked;
	bool shadow;        /* interrupts inhibited for the next instruction (STI) */
	bool shadow_mov_ss; /* same, and debug exceptions too (MOV SS, POP SS) */
	bool halted;
	bool would_mark;   /* soft_peek() met an entry that a walk would mark */
	bool code_changed; /* the running block's bytes were overwritten: do not continue in it */

	/* Exception being raised; meaningful with SOFT_FAULT. For #PF cr2 is already set... by
	 * delivery. */
	struct {
		u8 vector;
		bool has_error;
		u32 error;
		u64 cr2;
	} exc;

	/* Device accesses of the instruction that exited, in order. */
	struct soft_fragment frag[SOFT_FRAGMENTS];
	u32 frag_count; /* completed */
	u32 frag_next;  /* consumed by the current attempt */
	struct vm_exit exit;

	bool completing;  /* the next run() first completes the instruction that exited */
	bool refused;     /* ... and has its result already: run() was kicked before it began */
	bool exc_latched; /* state_set(): deliver exc before the next instruction */
	bool irq_latched; /* inject_irq(): deliver irq_vector before the next instruction */
	u8 irq_vector;
	_Atomic bool
		active; /* inside run(): may hold pointers to blocks and guest pages; see world.c */
	_Atomic u64
		stale; /* hashed set of pages it may store to though it has no write tag for them */
	_Atomic u64 seen;    /* vm->epoch at its last pass, or before */
	bool alone;          /* has the world stopped */
	bool wants_alone;    /* the instruction at rip must run with the world stopped */
	u64 unsettled;       /* soft_translate_block(): pages to settle before it can succeed */
	u64 unsettled_epoch; /* ... which lost their write tags in this epoch at the latest */

	struct soft_vm *vm;
	u32 id;
	void *interp;              /* interp.c: decoded-instruction and thunk caches */
	u32 call_state;            /* privileged state that user_mode depends on */
	u32 places_known;          /* places.h: how many it has found to be true */
	bool places_local;         /* MOV CR3 may make some of them wrong */
	struct soft_ctx *contexts; /* SOFT_CONTEXTS of them */
	u8 ctx_hint[16];           /* which was found for a PCID */
	struct soft_window *window[SOFT_WINDOWS_MAX]; /* made as needed */
	bool kernel_stale;           /* something was invalidated in the kernel's window */
	_Atomic bool kernel_agrees;  /* it uses that, its root table has the same there */
	struct box *seed;            /* what boxes are made from; NULL: there are none */
	struct box *_Atomic running; /* the box that runs, or is about to */
	u64 tick_entries;            /* what the kernel had been called for by then */
	u64 tick_tsc;                /* of the latest window_tick() that counted */
	void *ras_map;               /* mapping that holds the private stack */
	bool has_wrgsbase;           /* the host lets user code set gs.base without a system call */
	void *alt_stack;             /* for signal handlers */
	struct thunk_slot *thunks;
	u64 counters[SOFT_COUNTERS];
	u64 tick_translating; /* cycles that translating user code took since the latest tick */
	/* The page that was found watched latest (tlb_page.watched). Kernels that patch themselves
	 * store to the same one again and again. */
	struct {
		gva_t tag;
		u32 half;
		struct soft_xlat x;
	} watched;
	_Alignas(64) struct soft_half super;
	_Alignas(64) u8 fpu_area[CPU_XSAVE_MAX]; /* parked vector state, standard format */
};

/* Say what follows; returns what it was, to be said again afterwards. */
static inline u8 soft_doing(struct soft_cpu *c, u8 what)
{
	u8 was = atomic_load_explicit(&c->activity, memory_order_relaxed);

	atomic_store_explicit(&c->activity, what, memory_order_relaxed);
	return was;
}

/* Per-page state of guest RAM, indexed by physmap page number. */
enum {
	PAGE_HAS_CODE = 1 << 0, /* translated code covers part of it: stores go the slow way */
	PAGE_LOG_DIRTY =
		1 << 1, /* dirty log on and page not yet dirty: first store goes the slow way */
	PAGE_IS_ROOT = 1 << 2,   /* root of an address space with a window: likewise */
	PAGE_IN_WINDOW = 1 << 3, /* writable in a window, or was */
	PAGE_IS_DIRECT = 1 << 4, /* executable in boxes, its bytes checked: likewise */
	PAGE_HAS_SITES = 1 << 5, /* ... and something found: see direct.c */
	PAGE_WATCHED = PAGE_HAS_CODE | PAGE_LOG_DIRTY | PAGE_IS_ROOT | PAGE_IS_DIRECT,
};

struct soft_vm {
	struct physmap *physmap;
	const struct cpuid_model *cpuid;
	struct soft_options options;
	_Atomic u8 *page_flags; /* physmap->pages entries */
	bool dirty_log;         /* on; changed under lock */
	struct cache *cache;    /* cache.c */
	struct places *places;  /* places.c */
	struct store *store;    /* translations kept from run to run; NULL: none */
	pthread_mutex_t lock;   /* translation, invalidation, vCPU list */
	pthread_mutex_t world;  /* world.c: guards holder; leaf */
	pthread_cond_t world_changed;
	struct soft_cpu *_Atomic holder; /* has the world stopped, or is about to */
	_Atomic bool translating;        /* a vCPU is reading guest code: see soft_code_is_far() */
	_Atomic u64 epoch; /* counts pages that lost their write tags; changed under lock */
	struct soft_cpu *cpu[SOFT_CPUS];
	u32 cpus;
	u32 windows; /* of all vCPUs, not boxes; under lock */
	struct box_crowd crowd;
	struct ticker *ticker;               /* ticker.h; NULL: none */
	struct kernel_window *kernel_window; /* kernel_window.h; NULL: none */
	bool is_confined;                    /* no process can be made */
	u64 xsave_mask;                      /* XCR0 bits the host saves and restores */
	u64 start_tsc, start_ns;             /* when it was made: what a cycle is in time */
};

/* The @i-th context of SOFT_CONTEXTS_ALL; NULL for one of a window that has not been made. */
struct soft_ctx *soft_ctx_at(struct soft_cpu *c, u32 i);

/* The tables that privilege half @half uses now. */
static inline struct soft_half *soft_half(struct soft_cpu *c, u32 half)
{
	return half == HALF_USER ? &c->ctx->user : &c->super;
}

/* ---- rflags ---- */

static inline u64 soft_rflags(const struct soft_cpu *c)
{
	return (c->flags & RFLAGS_ARITH) | c->sysflags | RFLAGS_ONE | (u64)c->iflag << 9 |
	       (u64)c->dflag << 10;
}

/* Sets every bit; the caller has applied the privilege rules. Call soft_update_mode() if TF or VM
 * changed. */
static inline void soft_set_rflags(struct soft_cpu *c, u64 v)
{
	c->flags = v & RFLAGS_ARITH;
	c->iflag = (v >> 9) & 1;
	c->dflag = (v >> 10) & 1;
	c->sysflags = v & (RFLAGS_TF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | RFLAGS_AC |
			   RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID);
}

static inline bool soft_is_64bit(const struct soft_cpu *c)
{
	return (c->efer & EFER_LMA) && c->seg[SEG_CS].l;
}

/* Record an exception; always returns SOFT_FAULT. */
static inline int soft_fault(struct soft_cpu *c, u8 vector)
{
	c->exc.vector = vector;
	c->exc.has_error = false;
	c->exc.error = 0;
	return SOFT_FAULT;
}

static inline int soft_fault_code(struct soft_cpu *c, u8 vector, u32 error)
{
	c->exc.vector = vector;
	c->exc.has_error = true;
	c->exc.error = error;
	return SOFT_FAULT;
}

/* ---- mmu.c: address translation and guest memory ---- */

enum soft_access {
	ACC_READ = 0,
	ACC_WRITE = 1,
	ACC_FETCH = 2,
	ACC_KIND = 3,
	ACC_USER = 4, /* checked as a user-mode access */
};

/* Access kind with the current privilege level. */
static inline u32 soft_acc(const struct soft_cpu *c, u32 kind)
{
	return kind | (c->cpl == 3 ? ACC_USER : 0);
}

/*
 * Walk the guest's tables for linear address @gva (already truncated outside 64-bit mode). Sets A,
 * and D for writes. SOFT_FAULT: #PF with error code and cr2 recorded (or #GP/#SS by the caller for
 * non-canonical addresses, see soft_canonical()).
 */
int soft_translate(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x);

/* What that would find, if it would change nothing in the guest's tables. */
bool soft_peek(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x);

/* Translate and enter into the TLB of the current context. SOFT_OK with *filled = false when the
 * page cannot be entered (device memory, code page or dirty log for writes). */
int soft_tlb_fill(struct soft_cpu *c, gva_t gva, u32 access, bool *filled);

static inline bool soft_canonical(gva_t gva)
{
	return (u64)((s64)(gva << 16) >> 16) == gva;
}

/*
 * Guest memory by linear address. Any length up to 4096, any alignment, page crossings and device
 * memory included (the latter through cpu->frag and SOFT_EXIT). A write checks all its pages before
 * it stores, keeps translated code coherent (sets cpu->code_changed) and the dirty log true.
 */
int soft_read(struct soft_cpu *c, gva_t gva, void *buf, u32 len, u32 access);
int soft_write(struct soft_cpu *c, gva_t gva, const void *buf, u32 len, u32 access);

/*
 * Pin [gva, gva+len) for a read-modify-write: the host pointer when it lies in one RAM page that
 * may be written directly (so that LOCK is native), else *host = NULL and the caller uses
 * soft_read/soft_write.
 */
int soft_pin_write(struct soft_cpu *c, gva_t gva, u32 len, u32 access, void **host);

/*
 * For who has changed RAM bytes at @x->host himself, after soft_translate() for writing: keeps
 * translated code and the dirty log true. Within one page.
 */
void soft_stored(struct soft_cpu *c, const struct soft_xlat *x, u32 len);

/* Fetch up to 15 bytes of code at linear address @gva; returns SOFT_OK with *len bytes (fewer than
 * 15 only when the next page faults: then decoding decides whether that matters), SOFT_FAULT when
 * the first byte faults. */
int soft_fetch(struct soft_cpu *c, gva_t gva, u8 buf[15], u32 *len);

/* TLB maintenance of this vCPU (SDM vol. 3, 4.10.4). All of them also drop indirect-branch entries
 * and the return-address stack. */
void soft_tlb_flush_all(struct soft_cpu *c);             /* every context, globals too */
void soft_tlb_flush_context(struct soft_cpu *c);         /* the current one */
void soft_tlb_flush_page(struct soft_cpu *c, gva_t gva); /* INVLPG */
void soft_invpcid(struct soft_cpu *c, u64 type, u64 pcid, gva_t gva);
void soft_load_cr3(struct soft_cpu *c, u64 cr3, bool flush); /* sets c->cr3 and switches context */
int soft_contexts_init(struct soft_cpu *c);
void soft_contexts_destroy(struct soft_cpu *c);
void soft_ctx_use(struct soft_cpu *c, struct soft_ctx *ctx); /* set gs and c->ctx */

/* SYSRET to user code of @ctx (NULL: nothing to do) must find out anew which mode that runs in. */
static inline void soft_forget_calls(struct soft_cpu *c, struct soft_ctx *ctx)
{
	if (ctx)
		ctx->call_mode = 0;
	if (ctx == c->ctx)
		c->user_mode = 0;
}
/* Give the current address space the empty context @to, with what it needs of its own. */
void soft_ctx_move(struct soft_cpu *c, struct soft_ctx *to);
/* An ordinary context for the current address space, whose own has gone. */
void soft_ctx_retake(struct soft_cpu *c);
void soft_ctx_prepare(struct soft_cpu *c, struct soft_ctx *ctx);

/*
 * Other vCPUs or the monitor changed a page's status: drop write tags for it in all contexts of all
 * vCPUs. Those that had one may go on storing to the page until they pass, which they have done
 * when they have seen vm->epoch as it is afterwards. vm->lock held.
 */
void soft_drop_write_tags(struct soft_vm *vm, u64 page, u8 *host);

/* ---- world.c: vCPUs among each other ---- */

/* Position of the page at @host in soft_cpu.stale. */
static inline u64 soft_stale_bit(u64 host)
{
	return BIT((host >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ul >> 58);
}

/* Add REQ_* bits @what to exit_req and see to it that they are looked at soon. From any thread. */
void soft_request(struct soft_cpu *c, u32 what);

/* Into and out of run(). False: kicked while the world is stopped; run() must return. */
bool soft_world_enter(struct soft_cpu *c);
void soft_world_leave(struct soft_cpu *c);

/* Wait until the world goes on. False as above. */
bool soft_world_wait(struct soft_cpu *c);

/*
 * Between two turns of the run loop, after exit_req was taken: no pointer to a block or a page is
 * held. False as above.
 */
static inline bool soft_pass(struct soft_cpu *c)
{
	u64 epoch = atomic_load_explicit(&c->vm->epoch, memory_order_relaxed);

	if (atomic_load_explicit(&c->stale, memory_order_relaxed))
		atomic_exchange(&c->stale, 0);
	if (atomic_load_explicit(&c->seen, memory_order_relaxed) != epoch)
		atomic_store(&c->seen,
			     epoch); /* a full fence: stores are done, tags looked at anew */
	if (!atomic_load_explicit(&c->vm->holder, memory_order_relaxed) || c->alone)
		return true;
	return soft_world_wait(c);
}

/*
 * Every other vCPU stands still in its pass, or is outside run(), until soft_world_resume(). Only
 * where soft_pass() may be called, without vm->lock. False as above; the world is then not stopped.
 */
bool soft_world_stop(struct soft_cpu *c);
void soft_world_resume(struct soft_cpu *c);

/*
 * No vCPU but @self may still store to @pages (soft_stale_bit), which lost their write tags in
 * @epoch at the latest, without asking. vm->lock held.
 */
bool soft_is_settled(struct soft_vm *vm, const struct soft_cpu *self, u64 pages, u64 epoch);
/* Wait for that. @self (NULL: not on a vCPU's thread) passes meanwhile; false as above. No locks
 * held. */
bool soft_settle(struct soft_vm *vm, struct soft_cpu *self, u64 pages, u64 epoch);

/* ---- system.c, segment.c, exception.c: privileged state ---- */

/* Recompute cpl-, cr- and flag-derived c->mode; call after any change to them. */
void soft_update_mode(struct soft_cpu *c);

/* Deliver c->exc (faults at c->rip) through the IDT; escalates to #DF and returns SOFT_EXIT with
 * EXIT_SHUTDOWN on a triple fault. */
int soft_deliver_exception(struct soft_cpu *c);
/* The same for an exception that is reported behind its instruction. */
int soft_deliver_trap(struct soft_cpu *c);
int soft_deliver_interrupt(struct soft_cpu *c, u8 vector);
int soft_deliver_nmi(struct soft_cpu *c);

/* ---- io.c ---- */

/* See struct engine_ops. */
int soft_doorbell(struct engine_vm *vm, gpa_t gpa, int fd, bool on);
const struct engine_chips *soft_chips(struct engine_vm *vm);

/* ---- state.c ---- */

int soft_state_get(struct engine_vcpu *vcpu, u32 parts, struct cpu_state *s);
int soft_state_set(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s);

/* engine_ops.trim_thread */
void soft_trim_thread(void);

/* ---- interp.c ---- */

/*
 * Execute one instruction at c->rip. SOFT_OK: state and rip advanced. SOFT_FAULT: c->exc set, rip
 * at the faulting instruction (traps such as #DB and INT n are delivered inside and return
 * SOFT_OK). SOFT_EXIT: c->exit set; call again after completion (or, for HLT, rip is already past
 * it).
 */
int soft_interpret(struct soft_cpu *c);
/* The same for an instruction of @len bytes, up to 8, that has been fetched: @bytes, or 0 if it has
 * not been. */
int soft_interpret_given(struct soft_cpu *c, u64 bytes, u32 len);
int soft_interp_init(struct soft_cpu *c);
void soft_interp_destroy(struct soft_cpu *c);

/*
 * string.c: the string instruction of @site (SITE_STRING), as far as it goes forwards on pages that
 * the TLB has. True when it is complete; else the interpreter goes on from the registers as they
 * are.
 */
bool string_run(struct soft_cpu *c, u32 site);

/* Device access for the interpreter: takes the completed fragment, or records the exit. */
int soft_device_read(struct soft_cpu *c, bool is_port, u64 addr, u32 size, u64 *data);
int soft_device_write(struct soft_cpu *c, bool is_port, u64 addr, u32 size, u64 data);

/* ---- fpu.c ---- */
void soft_fpu_park(struct soft_cpu *c); /* guest vector state to c->fpu_area; host state clean */
void soft_fpu_live(struct soft_cpu *c); /* and back */

/* ---- thunk.c: run one data instruction natively ---- */
struct insn;

/*
 * Execute the data instruction @i on the guest registers in c, with its memory operand (if any) at
 * host address @mem (host-writable, 64 bytes at least, alignment congruent to the guest's modulo
 * 64). GPRs, flags and vector state are updated; rip is not. SOFT_FAULT for #DE, #XM, #MF, #GP(0)
 * for alignment: then no register has changed.
 */
int soft_thunk(struct soft_cpu *c, const struct insn *i, void *mem);

int soft_thunk_init(struct soft_cpu *c, struct err *e);

/* ---- mmu.c: the indirect-branch table ---- */

/* Enter @gva -> @code (an indirect entry) for blocks of mode @mode on the page at @gpa into the
 * current context. */
void soft_ibt_insert(struct soft_cpu *c, u32 half, u32 mode, gva_t gva, gpa_t gpa, u64 code);
/* Translated code depends on the mapping of this page to @gpa: flushing it flushes the table. */
void soft_ibt_note_page(struct soft_cpu *c, u32 half, gva_t gva, gpa_t gpa);
/* User code is about to run: is what its table leads to where it was, if it was flushed meanwhile?
 */
void soft_ibt_validate(struct soft_cpu *c);
/* Empty all tables of all vCPUs. */
void soft_ibt_flush_all(struct soft_vm *vm);

/* ---- dispatch.S, soft.c, helpers.c, fault.c ---- */

/* Run translated code at @code, an indirect entry with its table position @index2 (IBT_INDEX * 2).
 */
int soft_enter(struct soft_cpu *c, u64 code, u64 index2);
void soft_stub_leave(void);
void soft_stub_miss(void);
void soft_stub_step(void);
void soft_stub_thunk_done(void);
void soft_stub_lookup(void);
void soft_stub_syscall(void);
void soft_stub_sysret(void);
void soft_stub_host_fault(void);

/* Helpers of the stubs: see dispatch.S for what they return. */
u32 soft_miss(struct soft_cpu *c, gva_t address, u32 site);
u32 soft_step(struct soft_cpu *c, u64 bytes, u32 site);
u32 soft_lookup(struct soft_cpu *c);

/* Drop all translated code, with the world stopped. As soft_world_stop(). */
bool soft_flush_code(struct soft_cpu *c);

/* Host faults in translated code become guest exceptions. */
int soft_faults_init(struct err *e);
int soft_fault_stack_init(struct soft_cpu *c, struct err *e);
void soft_fault_stack_destroy(struct soft_cpu *c);
/* LEAVE_HOST_FAULT: find the guest instruction and the exception. SOFT_OK: the interpreter knows.
 */
int soft_host_fault(struct soft_cpu *c);
/* The exception of host trap c->fault_trap, recorded as the guest's; aborts when it is our own bug.
 */
int soft_fault_from_trap(struct soft_cpu *c);

/* ---- stats.c ---- */

void soft_stats_init(struct soft_vm *vm);
u32 soft_counters(struct engine_vm *vm, struct engine_counter *out, u32 max);
extern const char *const soft_activities[];
u32 soft_activity(struct engine_vcpu *vcpu);

/* The vCPU of this thread. */
extern _Thread_local struct soft_cpu soft_tls_cpu;

/* ---- cache.c ---- */
/*
 * As large as vm->options say; blocks of guest RAM as it is now. @fd: a memory file for code,
 * borrowed, with nothing in it that is still in use; -1: one of its own. @populate may be NULL.
 */
int soft_cache_create(struct soft_vm *vm, int fd, struct populate *populate, struct err *e);
/* Guest RAM has changed: drop everything. No vCPU is inside run(). */
int soft_cache_resize(struct soft_vm *vm, struct err *e);
void soft_cache_destroy(struct soft_vm *vm);

/*
 * A store of @len bytes at @offset of RAM page @page happened, and a full fence: is there no code
 * near that it could concern? Without vm->lock, from inside run().
 */
bool soft_code_is_far(const struct soft_vm *vm, u64 page, u32 offset, u32 len);

/* A store of @len bytes at @offset of RAM page @page happened: drop the blocks it overlaps. True if
 * any was dropped. */
bool soft_code_stored(struct soft_vm *vm, u64 page, u32 offset, u32 len);
