/*
 * The code cache: executable memory, translated blocks, and how to find and drop them.
 *
 * Code memory is one memory file mapped twice, once writable and once executable. Hot code grows
 * from the front, cold code (slow paths) behind 5/8 of it; when either part, or the metadata arena,
 * is full, everything is dropped and translation starts over. A dropped block's code stays in place
 * until then, so that a vCPU still inside it leaves it normally; its entries are patched to lead to
 * the dispatcher.
 *
 * Blocks are keyed by guest-physical address and mode, those of kernels also by their place. Each
 * page of guest RAM that holds translated code has a list of its blocks and a map of the 64-byte
 * granules they cover, so that a store costs a bit test unless it really hits code.
 *
 * Locking: every function here is called with vm->lock held, except the predicates on a block and
 * cache_find(): blocks are published complete, and what is dropped stays in memory, leading on,
 * until the world stands still. So whoever finds a block without the lock finds what he could have
 * found with it a moment before.
 */
#pragma once

#include "engine/soft/emit.h"
#include "engine/soft/forms.h"
#include "engine/soft/soft.h"

enum {
	BLOCK_MAX_INSNS = 64,
	BLOCK_NO_PAGE = -1,
	MAX_PEEKS = 8,
	PEEK_BYTES = 256, /* of a peek at most */
	BLOCK_FAR = 13,   /* where links from other pages arrive: so long before the poll entry */
	CACHE_ENTRY_BYTES = 4096, /* at the start of code memory: the trampolines */
};

/*
 * A direct branch out of a block. One to another page either knows where that is, for its block was
 * made for its place (far: see places.h), or arrives at its site only when the page is where it was
 * when the branch was linked first (crosses: see emit_crossing() in exits.c).
 */
struct block_exit {
	struct block *from, *to;          /* to: NULL while unlinked */
	struct block_exit *next_incoming; /* list of to's incoming exits */
	u8 *site;                         /* rel32 to patch, in the writable mapping */
	u64 otherwise;                    /* crosses: where it goes when the page is not there */
	u32 unlinked;  /* offset in code memory of where site leads while unlinked */
	u32 stub;      /* and before anybody asks */
	s32 distance;  /* crosses: of the target from code_va */
	u32 page;      /* crosses: the page of RAM it was linked to, plus one; 0: never linked */
	s32 target;    /* relative to from's page; crosses: to its own */
	bool backward; /* goes through the target's poll */
	bool single;   /* leads to the MODE_SINGLE variant */
	bool far;      /* to another page, whose place is known */
	bool crosses;  /* to another page, elsewhere */
};

struct block {
	/* One cache line, for who looks for it. */
	struct block *hash_next;
	gpa_t pa;
	u64 entry, poll; /* entry points, addresses: see translate.c; entry 0: none */
	s64 page[2];     /* physmap page indices; [1] is BLOCK_NO_PAGE unless the block straddles */
	gva_t place;     /* page that it was made for, or 0: see block_place() */
	u16 mode;
	u16 size; /* guest bytes */
	u16 insns;
	bool dead;
	bool flags_live; /* arithmetic flags are live at its entry, whatever follows the block */

	u64 code;      /* executable address of its hot code */
	u32 code_size; /* of that */
	u32 direct;    /* the third entry point, relative to code */
	struct block *page_next[2];
	u64 granules; /* of page[0] that it was made from: its bytes and what else was looked at */
	struct block_exit *incoming;
	struct block_exit *exit; /* [exits] */
	u32 exits;
	u8 peeks; /* ranges of page[0] that were looked at besides the block's own bytes */
	u16 peek_from[MAX_PEEKS], peek_to[MAX_PEEKS];
	gpa_t second;   /* gpa of the second page */
	u32 *host_off;  /* [insns]: where each instruction's hot code starts, relative to code */
	u16 *guest_off; /* [insns]: each instruction's offset from pa */
	s16 *sp_lag;    /* [insns]: what HOST_SP lacks of guest rsp when it faults */
	struct block_origin *origin; /* reload.c; NULL: not to be kept from run to run */
};

/* Trampolines at fixed places in code memory: rel32-reachable from everywhere in it. */
struct cache_entries {
	u64 leave, miss, step, syscall, sysret;
	u64 thunk_done, ibt_miss[HALVES], ibt_leave, ras_bottom[HALVES];
	u64 link[2];                 /* HOST_S2 = an unlinked exit, in 32-bit and in 64-bit code */
	u64 fill_stack_page[HALVES]; /* called: see emit_fill_stack_page() */
	u64 cross_link[2], cross_table[HALVES][2]; /* struct block_exit.otherwise: HOST_S2 is it */
	u64 poll[2]; /* HOST_S2 = page offset of rip, in 32-bit and in 64-bit code */
};

/* What translated code covers of one page of RAM. */
struct page_code {
	struct block
		*blocks; /* linked by page_next[k], k = 1 when the page is the block's second */
	u64 granules;
	u64 epoch; /* vm->epoch after its write tags were dropped */
};

struct cache {
	u8 *rw;
	u64 rx; /* executable mapping */
	u64 size;
	s64 exec_delta;
	u64 hot, cold;          /* next free offsets */
	u64 hot_start, hot_end; /* limits of the hot part; cold runs from hot_end to size */
	u64 hot_ready, cold_ready, arena_ready; /* memory was asked for up to here */
	struct populate *populate;              /* by whom; NULL: by ourselves */
	struct cache_entries entry;
	struct emit thunk;   /* region for thunk.c */
	struct forms *forms; /* of the instructions decoded so far */
	u8 *arena;           /* metadata */
	u64 arena_used, arena_size;
	struct block **hash;
	u32 buckets;             /* of it, a power of two */
	struct page_code *pages; /* per physmap page */
	struct block **index;    /* in order of code address */
	u32 blocks;
	u32 generation; /* counts full flushes */
	u64 pages_count;
	u64 dropped; /* single blocks, ever; under the VM's lock */
};

/*
 * Kernels run at one address, in the upper 2 GiB: their code is made for that, so that what depends
 * on rip is an immediate operand. The page of @rip for such code, else 0: then the block serves
 * wherever its page is mapped.
 */
static inline gva_t block_place(const struct soft_options *o, u32 mode, gva_t rip)
{
	bool is_placed = soft_uses(o, SOFT_PLACES) &&
			 (mode & (MODE_BITS | MODE_USER)) == MODE_BITS_64 &&
			 rip >= PAGE_SIZE - (1ul << 31);

	return is_placed ? rip & PAGE_MASK : 0;
}

/* A block for @pa in @mode will be looked for, or entered. */
void cache_expect(const struct cache *c, gpa_t pa, u32 mode);

/* Look up a live block. Without vm->lock only from inside run(). */
struct block *cache_find(struct cache *c, gpa_t pa, u32 mode, gva_t place);

/* May a block begin at (or cover) byte @offset of RAM page @page? Cheaper than to look for it; the
 * same holds without the lock. */
bool cache_may_have(const struct cache *c, s64 page, u32 offset);

/* Metadata for one translation: a zeroed block with tables for so many instructions and exits; NULL
 * when full. */
struct block *cache_block_alloc(struct cache *c, u32 insns, u32 exits);

/* @size bytes of metadata that live as long as the blocks; NULL when full. */
void *cache_alloc(struct cache *c, u64 size);

/* Start emitting hot and cold code, at multiples of 16 and 8; *hot and *cold are bounded by what is
 * free. */
void cache_emit_begin(struct cache *c, struct emit *hot, struct emit *cold);

/* @b, the latest one allocated, keeps its first @exits exits. */
void cache_block_trim(struct cache *c, struct block *b, u32 exits);

/* Enter the finished @b (code, entries and pages filled in) and account its code. */
void cache_insert(struct cache *c, struct block *b, const struct emit *hot,
		  const struct emit *cold);

/*
 * The branch of an exit to another page, from its site: the places to be patched, of 4 bytes each.
 * They have the same position in their quadwords.
 */
enum {
	CROSS_PLACE = -32,            /* displacement of the place in soft_half.cross[] */
	CROSS_SUM = -24,              /* added to what is there: the tag */
	CROSS_NEVER = CROSS_TAGS + 1, /* a sum that is never right */
};

/* An exit to another page goes by the table unless it is linked to that page. */
void cache_cross_by_table(struct cache *c, struct block_exit *x);

/* The displacement of a place in soft_half.cross[]. */
s32 cache_cross_place(const struct cache *c, u32 half, u32 index);

/* Direct the exit to @to, or back to its stub when @to is NULL. */
void cache_link(struct cache *c, struct block_exit *x, struct block *to);

/* Drop one block: unlink, unhash, patch its entries. */
void cache_drop(struct soft_vm *vm, struct block *b);

/* Drop everything and start over. No vCPU may be in translated code. */
void cache_flush(struct soft_vm *vm);

/* The block whose hot code holds @pc, dead or alive; NULL outside. */
struct block *cache_by_pc(struct cache *c, u64 pc);

/*
 * Mark page @page at @host as holding code: drops all write tags. False when a vCPU may still have
 * a store to it under way: its bytes must not be read yet (soft_settle()).
 */
bool cache_claim_page(struct soft_cpu *c, s64 page, u8 *host);
