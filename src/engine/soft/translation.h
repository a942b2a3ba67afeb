/*
 * One block while it is being translated: shared by translate.c, check.c and exits.c.
 */
#pragma once

#include "engine/soft/cache.h"

enum { COND_B = 2, COND_AE = 3, COND_E = 4, COND_NE = 5, COND_A = 7 };
enum {
	MAX_SKIPS = 8,
	MAX_SIDE_EXITS = 3,
	PEEK_INSNS = 8,
	CODE_COPY = 512,      /* bytes from a block's start on that are copied, */
	CODE_COPY_FIRST = 64, /* most often so many */
	MAX_GROUPS = 8,
	GROUP_SPAN = 512,
	FOLD_SPAN = 1 << 20, /* of groups in a window */
	NO_GROUP = 0xff,
	GROUP_RIP = GPR_COUNT,
	GROUP_BASES
};

/*
 * Memory accesses with the same base register (its value changing by constants at most), checked
 * once. The check is made before instruction @check_at, where flags are dead if possible; it leaves
 * the host address of the lowest byte, or the difference between host and guest addresses, in
 * HOST_S2, and in cpu->group[] for when something else comes to HOST_S2 before the last member.
 */
struct group {
	u8 base; /* enum gpr, or GROUP_RIP */
	u8 seg;
	u8 since;    /* first instruction before which the base is known relative to the range */
	u8 first;    /* first member */
	u8 check_at; /* instruction before which the check stands */
	u8 members;
	bool write;
	bool used;
	bool by_delta; /* HOST_S2 is what to add to an address, not the address of the range */
	bool reloaded; /* from cpu->group[] */
	u8 *kept, *kept_end; /* the store to it */
	s64 folded_at;       /* constant added to the base where it was folded: see fold.c */
	s64 base_off;        /* constants added to the base, since it is known, before the check */
	s64 lo, hi;          /* byte range, relative to the base before instruction @since */
	struct block_exit *exit; /* to the block variant without groups, for when the check fails */
};

struct translation {
	struct soft_cpu *c;
	struct cache *cache;
	struct block *b;
	struct emit hot, cold;
	struct emit_sites sites;
	const u8 *cold_start;
	u32 mode;
	u32 bits;
	u32 half;
	bool folds; /* memory is accessed through a window */
	u32 n;      /* instructions */
	struct insn in[BLOCK_MAX_INSNS];
	u32 off[BLOCK_MAX_INSNS + 1];  /* page offset of each; may pass PAGE_SIZE at the end */
	u16 live[BLOCK_MAX_INSNS + 1]; /* arithmetic flags live before each */
	u8 *skip[MAX_SKIPS];           /* cold jumps to the next instruction */
	u32 skips;
	u32 exits;
	u32 peeks; /* byte ranges outside the block that liveness relies on */
	u16 peek_from[MAX_PEEKS], peek_to[MAX_PEEKS];
	u8 peek_bytes[MAX_PEEKS][PEEK_BYTES]; /* as they were when they were looked at */
	bool ended;                           /* the last instruction emitted its own way out */
	s64 page[2];                          /* as in struct block */
	gpa_t pa, second;
	gva_t place; /* as in struct block */
	u32 groups;
	struct group group[MAX_GROUPS];
	u64 checks_at;                     /* bit k: a group's check stands before instruction k */
	u8 group_of[BLOCK_MAX_INSNS][2];   /* group of each access of each instruction, in order */
	s64 group_off[BLOCK_MAX_INSNS][2]; /* and its offset in the range */
	s64 base_off[GROUP_BASES];   /* find_groups(): constants added to each since it is known */
	u8 step_of[BLOCK_MAX_INSNS]; /* base that the instruction adds a constant to, or NO_REG */
	s64 step[BLOCK_MAX_INSNS];   /* that constant */
	s32 sp;                      /* what HOST_SP lacks of guest rsp: see keeps_sp() */
	bool defers_sp;              /* the current instruction may leave it so */
	u32 current;                 /* instruction being emitted */
	u32 access;                  /* next access of the current instruction */
	u8 bit_reg;                  /* emit_check_bits(): the register with the bit offset */
	u8 certain;             /* find_groups(): first instruction behind the latest side exit */
	u8 loaded;              /* group whose host address HOST_S2 holds, or NO_GROUP */
	const u8 *page_host;    /* the first page */
	u32 code_len, code_off; /* bytes at code[], page offset of its first byte */
	u8 code[CODE_COPY + 16];
};

/* An effective address before segmentation. */
struct ea {
	u8 seg, base, index, scale, bits;
	bool rip_relative; /* disp is then relative to the page of the block */
	bool has_address;  /* and this is the address, if it is known */
	s32 address;
	s64 disp;
};

static inline bool has_segment_base(const struct ea *ea)
{
	return ea->seg == SEG_FS || ea->seg == SEG_GS;
}

static inline bool uses(const struct translation *t, enum soft_mechanism m)
{
	return soft_uses(&t->c->vm->options, m);
}

/* ---- translate.c ---- */

void decode_insn(const struct translation *t, struct insn *i, const u8 *p, u32 len);
bool insn_is_terminal(const struct insn *i);
bool insn_reads_selector(const struct insn *i); /* MOV r, Sreg */
bool insn_ends_block(const struct insn *i);
u32 site_info(const struct translation *t, u32 k);
/* string.c: what soft_step() is told of a REP MOVS or REP STOS that string_run() can do; 0: of
 * another instruction. */
u32 string_site(const struct insn *i);
/* Have soft_step() run instruction @k. @flags: of its site. */
void emit_call_step(struct translation *t, struct emit *e, u32 k, u32 flags);
/* SYSCALL of user code, SYSRET of the kernel: without C code if nothing stands against it. False:
 * the interpreter is wanted. */
bool emit_system_call(struct translation *t, u32 k);
s32 reg_disp(const struct emit *e, u8 reg);
bool is_slot(u8 reg);
u8 host_reg(u8 guest);
/* Host register with guest @reg's value: its own, or @scratch loaded from its slot. */
u8 use_reg(struct emit *e, u8 reg, u8 scratch);

/* ---- check.c: effective addresses, memory checks, groups ---- */

struct ea insn_ea(const struct translation *t, u32 k);
struct ea stack_ea(const struct translation *t, s64 disp);
bool ea_is_supported(const struct translation *t, const struct ea *ea);

/* lea @dst, [address]; clobbers HOST_S1 and HOST_S2. Leaves flags alone. */
void emit_offset(struct emit *e, const struct ea *ea, u8 dst, u32 bits);

/*
 * Check the next access of instruction @k. Returns its host address: HOST_S2 + HOST_S1, HOST_S2 and
 * a displacement, or the access's base register + HOST_S2 and its displacement. emit_check_one()
 * leaves HOST_S1 free.
 */
struct host_mem emit_check(struct translation *t, u32 k, const struct ea *ea, u32 size, bool write);
struct host_mem emit_check_one(struct translation *t, u32 k, const struct ea *ea, u32 size,
			       bool write);

/* As emit_check_one() for the word of @size bytes that bit offset @reg selects (BT and its kin). */
struct host_mem emit_check_bits(struct translation *t, u32 k, const struct ea *ea, u8 reg, u32 size,
				bool write);

/* ---- fold.c ---- */

/* The host address of an access through the window, in register @dst, HOST_S1 or HOST_S2, and a
 * displacement. */
struct host_mem emit_folded(struct translation *t, u32 k, const struct ea *ea, u8 dst);
/* Can all of group @g be reached when its base is folded where its check stands? */
bool is_near_group(const struct group *g);
/* Fold the base of group @n before instruction @k, to HOST_S2. */
void emit_fold_group(struct translation *t, u32 k, u32 n);

/* ---- check.c again ---- */

void find_groups(struct translation *t);
/* Is access @n of instruction @k checked by a group of rsp that gave a delta? */
bool is_stack_member(const struct translation *t, u32 k, u32 n);
/* Does a group's check stand before instruction @k? */
bool has_group_check(const struct translation *t, u32 k);
/* The checks that stand before instruction @k. */
void emit_group_checks(struct translation *t, u32 k);
/* When the block is complete: groups that were never reloaded need not be kept in cpu->group[]. */
void drop_unused_stores(struct translation *t);

/* ---- inline.c ---- */

/* NOP, or PAUSE: the host's, and every now and then a step that yields. */
bool emit_nop(struct translation *t, u32 k);

/* A string instruction in place; false: the interpreter is wanted. */
bool emit_string(struct translation *t, u32 k);

/* A system instruction in place; false: the interpreter is wanted. */
bool emit_system(struct translation *t, u32 k);

/* ---- exits.c: ways out of a block ---- */

/* First byte of a branch: JMP, CALL, or the second byte of a near Jcc. */
enum { BRANCH_JMP = 0xe9, BRANCH_CALL = 0xe8, BRANCH_JCC = 0x80 };

/* The address of page offset @off, if it is known and can be an immediate operand of 64 bits. */
bool address_of(const struct translation *t, s64 off, s32 *address);
void emit_rip(struct translation *t, struct emit *e, s64 off);
void emit_exit(struct translation *t, s64 off, u32 branch);
/* Exit @x, whose site is in @e, leads to what comes next in cold code while it is not linked. */
void emit_unlinked(struct translation *t, struct emit *e, struct block_exit *x);
s64 branch_target(const struct translation *t, u32 k);
u16 peek_live(struct translation *t, s64 off);
bool emit_call_direct(struct translation *t, u32 k);
bool emit_call_indirect(struct translation *t, u32 k);
bool emit_jmp_indirect(struct translation *t, u32 k);
bool emit_ret(struct translation *t, u32 k);
bool emit_loop(struct translation *t, u32 k);
void emit_adjust_sp(struct translation *t, s32 by);
void flush_sp(struct translation *t);
void compute_liveness(struct translation *t);
bool flags_live_by_itself(const struct translation *t);
