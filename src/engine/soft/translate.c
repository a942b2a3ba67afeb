/*
 * Guest basic blocks to host code.
 *
 * A block is decoded whole, arithmetic-flag liveness is computed backwards, then each instruction is
 * emitted. Hot code is straight; slow paths go to the cold half of the cache.
 *
 * Layout of a block's hot code, with its four entries:
 *   indirect: compare r10 (rip) with the table entry at r11, else to the dispatcher
 *   enter:    code_va = r10 - page offset
 *   poll:     leave when exit_req is set
 *   direct:   the instructions
 * Blocks are position independent: everything that depends on rip is computed from code_va, so that one
 * translation serves every mapping of the physical page.
 *
 * A memory access computes its address to r10, looks up the TLB and then uses [r11 + r10]. Where flags
 * are dead the lookup is lea, rorx, and, xor, cmp, ja, mov; where they are live it is made of pext, lea
 * and jrcxz, which leave them alone. A miss calls soft_miss(), which fills the TLB and retries, lets the
 * interpreter run the instruction (device memory, page crossings, stores to code) and resumes behind it,
 * or raises the fault. Guest state is architectural at every such point: stores come before register
 * updates.
 */
#include "engine/soft/translate.h"

#include "engine/soft/util.h"

#include <Zydis/Zydis.h>

enum { COND_B = 2, COND_E = 4, COND_NE = 5, COND_A = 7 };
enum { MAX_SKIPS = 8, PEEK_INSNS = 8, CODE_COPY = 1024 };

struct translation {
	struct soft_cpu *c;
	struct cache *cache;
	struct block *b;
	struct emit hot, cold;
	u32 bits;
	u32 half;
	u32 n;                             /* instructions */
	struct insn in[BLOCK_MAX_INSNS];
	u32 off[BLOCK_MAX_INSNS + 1];      /* page offset of each; may pass PAGE_SIZE at the end */
	u16 live[BLOCK_MAX_INSNS + 1];     /* arithmetic flags live before each */
	u8 *skip[MAX_SKIPS];               /* cold jumps to the next instruction */
	u32 skips;
	u32 exits;
	bool ended;                        /* the last instruction emitted its own way out */
	u32 code_len, code_off;            /* bytes at code[], page offset of its first byte */
	u8 code[CODE_COPY + 16];
};

/* An effective address before segmentation. */
struct ea {
	u8 seg, base, index, scale, bits;
	bool rip_relative; /* disp is then relative to the page of the block */
	s64 disp;
};

static s32 reg_disp(const struct emit *e, u8 reg)
{
	return CPU_DISP(e, r[0]) + 8 * (s32)reg;
}

static bool is_slot(u8 reg)
{
	return reg >= R9 && reg <= R11;
}

static u8 host_reg(u8 guest)
{
	return guest == RSP ? HOST_SP : guest;
}

/* Host register with guest @reg's value: its own, or @scratch loaded from its slot. */
static u8 use_reg(struct emit *e, u8 reg, u8 scratch)
{
	if (!is_slot(reg))
		return host_reg(reg);
	emit_load_cpu(e, scratch, reg_disp(e, reg));
	return scratch;
}

/* ---- effective addresses ---- */

static struct ea insn_ea(const struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct ea ea = {.seg = i->seg, .base = i->base, .index = i->index, .scale = i->scale,
			.bits = (u8)(i->addrsize * 8), .rip_relative = i->is_rip_relative,
			.disp = i->disp};

	if (ea.rip_relative)
		ea.disp += t->off[k] + i->len;
	return ea;
}

static struct ea stack_ea(const struct translation *t, s64 disp)
{
	return (struct ea){.seg = SEG_SS, .base = RSP, .index = NO_REG, .scale = 1,
			   .bits = (u8)t->bits, .disp = disp};
}

static bool has_segment_base(const struct ea *ea)
{
	return ea->seg == SEG_FS || ea->seg == SEG_GS;
}

static bool ea_is_supported(const struct translation *t, const struct ea *ea)
{
	if (ea->bits == 16 || (ea->rip_relative && ea->bits != 64))
		return false;
	if (ea->disp != (s32)ea->disp)
		return ea->base == NO_REG && ea->index == NO_REG && !ea->rip_relative &&
		       t->bits == 64;
	return true;
}

/* lea @dst, [address]; clobbers HOST_S1 and HOST_S2. Leaves flags alone. */
static void emit_offset(struct emit *e, const struct ea *ea, u8 dst, u32 bits)
{
	u8 base = ea->base, index = ea->index;

	if (ea->rip_relative) {
		emit_load_cpu(e, HOST_S1, CPU_DISP(e, code_va));
		emit_lea(e, bits, dst, HOST_S1, NO_REG, 1, (s32)ea->disp);
		return;
	}
	if (ea->disp != (s32)ea->disp || (base == NO_REG && index == NO_REG)) {
		emit_mov_imm64(e, dst, bits == 32 ? (u32)ea->disp : (u64)ea->disp);
		return;
	}
	if (base != NO_REG)
		base = use_reg(e, base, HOST_S1);
	if (index != NO_REG)
		index = use_reg(e, index, HOST_S2);
	emit_lea(e, bits, dst, base, index, ea->scale, (s32)ea->disp);
}

/* The linear address into HOST_S1. */
static void emit_linear(struct translation *t, struct emit *e, const struct ea *ea)
{
	emit_offset(e, ea, HOST_S1, ea->bits);
	if (!has_segment_base(ea))
		return;
	emit_load_cpu(e, HOST_S2, CPU_DISP(e, seg[0].base) +
					  (s32)sizeof(struct cpu_segment) * ea->seg);
	emit_lea(e, t->bits, HOST_S1, HOST_S1, HOST_S2, 1, 0);
}

/* ---- memory checks ---- */

static u32 site_info(const struct translation *t, u32 k)
{
	return (t->off[k] & SITE_OFFSET) | (u32)t->in[k].len << SITE_LEN_SHIFT;
}

static bool is_terminal(const struct insn *i)
{
	switch (i->cls) {
	case INSN_CALL: case INSN_CALL_INDIRECT: case INSN_RET: case INSN_JMP:
	case INSN_JMP_INDIRECT: case INSN_JCC: case INSN_LOOP:
		return true;
	default:
		return false;
	}
}

static s32 tlb_disp(const struct translation *t, u32 member)
{
	return (s32)(offsetof(struct soft_ctx, tlb) + t->half * sizeof(struct tlb_entry) * TLB_SIZE +
		     member);
}

static u32 tag_member(bool write)
{
	return write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
}

static void emit_rorx(struct emit *e, u8 dst, u8 src, u8 count)
{
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((dst & 8 ? 0 : 0x80) | 0x40 | (src & 8 ? 0 : 0x20) | 3));
	emit_u8(e, 0xfb); /* W1, vvvv unused, pp = F2 */
	emit_u8(e, 0xf0);
	emit_u8(e, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)));
	emit_u8(e, count);
}

static void emit_and32_imm(struct emit *e, u8 reg, u32 imm)
{
	emit_u8(e, 0x41);
	emit_u8(e, 0x81);
	emit_u8(e, (u8)(0xe0 | (reg & 7)));
	emit_u32(e, imm);
}

static void emit_cmp64_imm(struct emit *e, u8 reg, u32 imm)
{
	emit_u8(e, 0x49);
	emit_u8(e, 0x81);
	emit_u8(e, (u8)(0xf8 | (reg & 7)));
	emit_u32(e, imm);
}

static void emit_not(struct emit *e, u8 reg)
{
	emit_u8(e, reg & 8 ? 0x49 : 0x48);
	emit_u8(e, 0xf7);
	emit_u8(e, (u8)(0xd0 | (reg & 7)));
}

/* jrcxz over @bytes */
static void emit_jrcxz(struct emit *e, u8 bytes)
{
	emit_u8(e, 0xe3);
	emit_u8(e, bytes);
}

/* Flags dead: HOST_S1 becomes the page offset, HOST_S2 the host page. Returns the branch to patch. */
static u8 *emit_lookup(struct translation *t, u32 size, bool write)
{
	struct emit *e = &t->hot;
	u8 *slow;

	emit_rorx(e, HOST_S2, HOST_S1, PAGE_SHIFT - 5);
	emit_and32_imm(e, HOST_S2, (TLB_SIZE - 1) << 5);
	emit_gs_op(e, 0x33, HOST_S1, HOST_S2, 1, tlb_disp(t, tag_member(write)));
	emit_cmp64_imm(e, HOST_S1, (u32)PAGE_SIZE - size);
	slow = emit_jcc_forward(e, COND_A);
	emit_gs_op(e, 0x8b, HOST_S2, HOST_S2, 1, tlb_disp(t, offsetof(struct tlb_entry, host)));
	return slow;
}

/* The same with flags preserved. rcx is parked in spill[0] when the slow path is taken. */
static u8 *emit_lookup_flags_live(struct translation *t, u32 size, bool write)
{
	struct emit *e = &t->hot;
	u8 *slow;

	emit_pext_cpu(e, HOST_S2, HOST_S1, CPU_DISP(e, tlb_index_mask));
	emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
	emit_lea(e, 64, HOST_S2, NO_REG, HOST_S2, 4, 0);
	emit_gs_op(e, 0x8b, RCX, HOST_S2, 8, tlb_disp(t, tag_member(write)));
	emit_not(e, RCX);
	emit_lea(e, 64, HOST_S1, HOST_S1, RCX, 1, 1);
	emit_lea(e, 64, RCX, HOST_S1, NO_REG, 1, (s32)size - 1);
	emit_pext_cpu(e, RCX, RCX, CPU_DISP(e, page_mask));
	emit_jrcxz(e, 5);
	slow = emit_jmp_forward(e);
	emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	emit_gs_op(e, 0x8b, HOST_S2, HOST_S2, 8, tlb_disp(t, offsetof(struct tlb_entry, host)));
	return slow;
}

/* Check an access of instruction @k and leave its host address in HOST_S2 + HOST_S1. */
static struct host_mem emit_check(struct translation *t, u32 k, const struct ea *ea, u32 size,
				  bool write)
{
	struct emit *cold = &t->cold;
	u64 retry = emit_here(&t->hot);
	bool live = t->live[k] != 0;
	u32 info = site_info(t, k) | (size - 1) << SITE_SIZE_SHIFT;
	u8 *slow;

	emit_linear(t, &t->hot, ea);
	slow = live ? emit_lookup_flags_live(t, size, write) : emit_lookup(t, size, write);
	emit_patch(&t->hot, slow, emit_here(cold));
	if (live)
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_linear(t, cold, ea);
	info |= (write ? SITE_WRITE : 0) | (t->in[k].masked ? SITE_MASKED : 0) |
		(is_terminal(&t->in[k]) ? SITE_TERMINAL : 0);
	emit_mov_imm32(cold, HOST_S2, info);
	emit_call(cold, t->cache->entry.miss);
	emit_jmp(cold, retry);
	if (t->skips == MAX_SKIPS)
		t->hot.overflow = true;
	else
		t->skip[t->skips++] = emit_jmp_forward(cold);
	return (struct host_mem){.base = HOST_S2, .index = HOST_S1};
}

/* As emit_check(), with the host address wholly in HOST_S2, leaving HOST_S1 free. */
static struct host_mem emit_check_one(struct translation *t, u32 k, const struct ea *ea, u32 size,
				      bool write)
{
	struct host_mem m = emit_check(t, k, ea, size, write);

	emit_lea(&t->hot, 64, HOST_S2, m.base, m.index, 1, 0);
	return (struct host_mem){.base = HOST_S2, .index = NO_REG};
}

/* ---- ways out of a block ---- */

/* rip of page offset @off (any distance) into HOST_S1. */
static void emit_rip(struct translation *t, struct emit *e, s64 off)
{
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, code_va));
	emit_lea(e, t->bits, HOST_S1, HOST_S1, NO_REG, 1, (s32)off);
}

static void emit_leave(struct translation *t, struct emit *e, enum soft_leave why)
{
	emit_mov_imm32(e, HOST_S2, why);
	emit_jmp(e, t->cache->entry.leave);
}

/* First byte of a branch: JMP, CALL, or the second byte of a near Jcc. */
enum { BRANCH_JMP = 0xe9, BRANCH_CALL = 0xe8, BRANCH_JCC = 0x80 };

static u8 *emit_branch(struct emit *e, u32 branch)
{
	if (branch == BRANCH_CALL)
		emit_call(e, emit_here(e));
	else if (branch == BRANCH_JMP)
		return emit_jmp_forward(e);
	else
		return emit_jcc_forward(e, branch & 15);
	return e->p - 4;
}

/* A branch to another page goes through the table. */
static void emit_exit_across(struct translation *t, s64 off, u32 branch)
{
	struct emit *e = &t->hot;
	u8 *site;

	if (branch == BRANCH_JMP || branch == BRANCH_CALL) {
		emit_rip(t, e, off);
		emit_indirect(e, t->half, branch == BRANCH_CALL);
		return;
	}
	site = emit_branch(e, branch);
	emit_patch(e, site, emit_here(&t->cold));
	emit_rip(t, &t->cold, off);
	emit_indirect(&t->cold, t->half, false);
}

/* Exit by @branch to page offset @off, which may lie on another page. */
static void emit_exit(struct translation *t, s64 off, u32 branch)
{
	struct emit *hot = &t->hot, *cold = &t->cold;
	struct block_exit *x;
	u8 *site;

	if (off < 0 || off >= (s64)PAGE_SIZE) {
		emit_exit_across(t, off, branch);
		return;
	}
	emit_align(hot, 4, branch == BRANCH_JMP || branch == BRANCH_CALL ? 1 : 2);
	x = &t->b->exit[t->exits++];
	site = emit_branch(hot, branch);
	*x = (struct block_exit){.from = t->b, .site = site, .unlinked = emit_here(cold),
				 .target = (u16)off, .backward = off <= t->off[t->n - 1]};
	emit_patch(hot, site, x->unlinked);
	emit_rip(t, cold, off);
	emit_mov_imm64(cold, HOST_S2, (u64)x);
	emit_store_cpu(cold, CPU_DISP(cold, link), HOST_S2);
	emit_leave(t, cold, LEAVE_LINK);
}

void soft_exit_indirectly(struct soft_cpu *c, struct block_exit *x)
{
	struct cache *cache = c->vm->cache;
	static _Thread_local struct translation t;
	u64 at;

	t.c = c;
	t.cache = cache;

	t.bits = x->from->mode & MODE_BITS_64 ? 64 : 32;
	t.half = x->from->mode & MODE_USER ? HALF_USER : HALF_SUPER;
	cache_emit_begin(cache, &t.hot, &t.cold);
	at = emit_here(&t.cold);
	emit_rip(&t, &t.cold, x->target);
	emit_indirect(&t.cold, t.half, false);
	if (t.cold.overflow)
		return;
	cache->cold = (u64)(t.cold.p - cache->rw);
	x->unlinked = at;
	cache_link(cache, x, NULL);
}

static s64 branch_target(const struct translation *t, u32 k)
{
	return (s64)t->off[k] + t->in[k].len + t->in[k].imm;
}

/* Let the interpreter run instruction @k from within the block. */
static void emit_step(struct translation *t, u32 k, bool terminal)
{
	emit_mov_imm32(&t->hot, HOST_S2, site_info(t, k) | (terminal ? SITE_TERMINAL : 0));
	emit_call(&t->hot, t->cache->entry.step);
	if (terminal)
		t->ended = true;
}

/* ---- what follows an instruction ---- */

/* Privileged instructions that may be followed by more of the block. */
static bool continues_block(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHF: case ZYDIS_MNEMONIC_PUSHFD: case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_RDPID: case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC: case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_IN: case ZYDIS_MNEMONIC_OUT: case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_RDFSBASE: case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE: case ZYDIS_MNEMONIC_WRGSBASE:
		return true;
	default:
		return i->cls == INSN_STRING || i->cls == INSN_DATA || i->cls == INSN_PUSH ||
		       i->cls == INSN_POP || i->cls == INSN_LEA;
	}
}

static bool ends_block(const struct insn *i)
{
	return is_terminal(i) || i->cls == INSN_INVALID ||
	       (i->cls == INSN_SYSTEM && !continues_block(i) && i->mnemonic != ZYDIS_MNEMONIC_CLD &&
		i->mnemonic != ZYDIS_MNEMONIC_STD);
}

static u16 live_before(const struct insn *i, u16 after)
{
	return (u16)((after & ~i->flags_kill) | i->flags_read);
}

/* Flags live at page offset @off, by looking at what is there; all when it cannot be known. */
static u16 peek_live(struct translation *t, s64 off)
{
	u16 unknown = RFLAGS_ARITH, killed = 0, read = 0;
	struct block *b;
	struct insn i;

	if (off < 0 || off >= (s64)PAGE_SIZE)
		return RFLAGS_ARITH;
	b = cache_find(t->cache, (t->b->pa & PAGE_MASK) + (u64)off, t->b->mode);
	if (b)
		return b->flags_live ? RFLAGS_ARITH : 0;
	for (u32 n = 0; n < PEEK_INSNS && unknown; n++) {
		s64 pos = off - t->code_off;

		if (pos < 0 || pos >= t->code_len)
			return read | unknown;
		insn_decode(&i, t->code + pos, MIN(t->code_len - (u32)pos, 15u), t->bits);
		if (!i.len)
			return read | unknown;
		read |= i.flags_read & ~killed;
		killed |= i.flags_kill;
		unknown &= (u16)~killed;
		if (ends_block(&i))
			return read | unknown;
		off += i.len;
	}
	return read | unknown;
}

/* ---- stack and control flow (64-bit mode, or flat 32-bit with 32-bit stack) ---- */

static void emit_adjust_sp(struct translation *t, s32 by)
{
	emit_lea(&t->hot, t->bits, HOST_SP, HOST_SP, NO_REG, 1, by);
}

static bool emit_push(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, -(s64)size);
	struct emit *e = &t->hot;
	struct host_mem m;
	struct ea from;

	if (i->opsize != size)
		return false;
	if (i->has_mem) {
		from = insn_ea(t, k);
		if (!ea_is_supported(t, &from))
			return false;
		m = emit_check(t, k, &from, size, false);
		emit_load(e, HOST_S1, m, size);
		emit_store_cpu(e, CPU_DISP(e, spill[1]), HOST_S1);
	}
	if (i->has_imm && i->imm != (s32)i->imm)
		return false;
	m = emit_check_one(t, k, &ea, size, true);
	if (i->has_imm) {
		emit_store_imm(e, m, (s32)i->imm, size);
	} else {
		u8 reg = i->opcode_reg.reg != NO_REG ? i->opcode_reg.reg : i->rm.reg;

		if (i->has_mem) {
			emit_load_cpu(e, HOST_S1, CPU_DISP(e, spill[1]));
			reg = HOST_S1;
		} else {
			reg = use_reg(e, reg, HOST_S1);
		}
		emit_store(e, m, reg, size);
	}
	emit_adjust_sp(t, -(s32)size);
	return true;
}

static bool emit_pop(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	u8 reg = i->opcode_reg.reg != NO_REG ? i->opcode_reg.reg : i->rm.reg;
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, 0);
	struct host_mem m;

	if (i->opsize != size || i->has_mem)
		return false;
	m = emit_check(t, k, &ea, size, false);
	if (reg == RSP) {
		emit_load(&t->hot, HOST_SP, m, size);
		return true;
	}
	if (is_slot(reg)) {
		emit_load(&t->hot, HOST_S1, m, size);
		emit_store_cpu(&t->hot, reg_disp(&t->hot, reg), HOST_S1);
	} else {
		emit_load(&t->hot, reg, m, size);
	}
	emit_adjust_sp(t, (s32)size);
	return true;
}

/* LEAVE: rsp = rbp, pop rbp. */
static bool emit_leave_frame(struct translation *t, u32 k)
{
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, 0);
	struct host_mem m;

	if (t->in[k].opsize != size)
		return false;
	ea.base = RBP;
	m = emit_check(t, k, &ea, size, false);
	emit_load(&t->hot, HOST_S1, m, size);
	emit_lea(&t->hot, t->bits, HOST_SP, RBP, NO_REG, 1, (s32)size);
	emit_mov(&t->hot, RBP, HOST_S1);
	return true;
}

/* Push the address of the next instruction; it is left in HOST_S1. */
static void emit_push_return(struct translation *t, u32 k)
{
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, -(s64)size);
	struct host_mem m = emit_check_one(t, k, &ea, size, true);

	emit_rip(t, &t->hot, (s64)t->off[k] + t->in[k].len);
	emit_store(&t->hot, m, HOST_S1, size);
	emit_adjust_sp(t, -(s32)size);
}

/*
 * Calls and returns use the host's, so that its return predictor works for the guest: the call keeps
 * the guest return address under the host's on the private stack. A return arrives behind the call with
 * the popped guest address in HOST_S1; if that is not the one kept, it is looked up like any other.
 */
static void emit_return_point(struct translation *t, u32 k)
{
	s64 next = (s64)t->off[k] + t->in[k].len;
	struct emit *e = &t->hot, *cold = &t->cold;
	bool live = peek_live(t, next) != 0;
	u8 *other;

	emit_pop_host(e, HOST_S2);
	if (next >= (s64)PAGE_SIZE) {
		emit_indirect(e, t->half, false);
		return;
	}
	if (live) {
		emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
		emit_mov(e, RCX, HOST_S2);
		emit_not(e, RCX);
		emit_lea(e, 64, RCX, RCX, HOST_S1, 1, 1);
		emit_jrcxz(e, 5);
		other = emit_jmp_forward(e);
		emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	} else {
		emit_cmp(e, HOST_S1, HOST_S2);
		other = emit_jcc_forward(e, COND_NE);
	}
	emit_patch(e, other, emit_here(cold));
	if (live)
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_indirect(cold, t->half, false);
	emit_lea(e, 64, HOST_S2, HOST_S1, NO_REG, 1, -(s32)next);
	emit_store_cpu(e, CPU_DISP(e, code_va), HOST_S2);
	emit_exit(t, next, BRANCH_JMP);
}

static bool emit_call_direct(struct translation *t, u32 k)
{
	emit_push_return(t, k);
	emit_push_host(&t->hot, HOST_S1);
	emit_exit(t, branch_target(t, k), BRANCH_CALL);
	emit_return_point(t, k);
	return true;
}

/* The target of an indirect branch to spill[1]. */
static bool emit_indirect_target(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct emit *e = &t->hot;
	u32 size = t->bits / 8;

	if (i->has_mem) {
		struct ea ea = insn_ea(t, k);
		struct host_mem m;

		if (!ea_is_supported(t, &ea) || i->mem_size != size)
			return false;
		m = emit_check(t, k, &ea, size, false);
		emit_load(e, HOST_S1, m, size);
	} else {
		u8 reg;

		if (i->rm.reg == NO_REG || i->rm.size != size)
			return false;
		reg = use_reg(e, i->rm.reg, HOST_S1);
		if (reg != HOST_S1)
			(t->bits == 64 ? emit_mov : emit_mov32)(e, HOST_S1, reg);
	}
	return true;
}

static bool emit_call_indirect(struct translation *t, u32 k)
{
	struct emit *e = &t->hot;

	if (!emit_indirect_target(t, k))
		return false;
	emit_store_cpu(e, CPU_DISP(e, spill[1]), HOST_S1);
	emit_push_return(t, k);
	emit_push_host(e, HOST_S1);
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, spill[1]));
	emit_indirect(e, t->half, true);
	emit_return_point(t, k);
	return true;
}

static bool emit_ret(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, 0);
	struct host_mem m;

	if (t->bits == 32 && i->opsize != 4)
		return false;
	m = emit_check(t, k, &ea, size, false);
	emit_load(&t->hot, HOST_S1, m, size);
	emit_adjust_sp(t, (s32)size + (i->has_imm ? (s32)(u16)i->imm : 0));
	emit_u8(&t->hot, 0xc3); /* to an emit_return_point(), or to the stack's bottom */
	return true;
}

static bool emit_loop(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct emit *e = &t->hot;
	u8 *over;

	if (i->addrsize != t->bits / 8)
		return false;
	if (i->mnemonic == ZYDIS_MNEMONIC_LOOPE || i->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
		return false;
	if (i->mnemonic == ZYDIS_MNEMONIC_LOOP)
		emit_lea(e, t->bits, RCX, RCX, NO_REG, 1, -1);
	if (t->bits == 32)
		emit_u8(e, 0x67); /* ecx */
	emit_jrcxz(e, 5);
	over = emit_jmp_forward(e);
	if (i->mnemonic == ZYDIS_MNEMONIC_LOOP) {
		emit_exit(t, (s64)t->off[k] + i->len, BRANCH_JMP);
		emit_patch(e, over, emit_here(e));
		emit_exit(t, branch_target(t, k), BRANCH_JMP);
	} else {
		emit_exit(t, branch_target(t, k), BRANCH_JMP);
		emit_patch(e, over, emit_here(e));
		emit_exit(t, (s64)t->off[k] + i->len, BRANCH_JMP);
	}
	return true;
}

/* ---- data instructions ---- */

static bool is_usable(const struct translation *t, const struct insn *i)
{
	u32 mode = t->b->mode;

	return (!i->needs_x87 || mode & MODE_X87) && (!i->needs_sse || mode & MODE_SSE) &&
	       (!i->needs_avx || mode & MODE_AVX) && (!i->needs_avx512 || mode & MODE_AVX512);
}

static bool emit_data_insn(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct host_mem m = {.base = NO_REG, .index = NO_REG};

	if (!is_usable(t, i))
		return false;
	if (i->has_mem) {
		struct ea ea = insn_ea(t, k);

		if (!ea_is_supported(t, &ea) || !i->mem_size || i->mem_size > 512)
			return false;
		m = emit_check(t, k, &ea, i->mem_size, i->mem_write);
	}
	return emit_data(&t->hot, i, m);
}

static bool emit_lea_insn(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct ea ea = insn_ea(t, k);
	u32 bits = MIN(i->opsize, i->addrsize) * 8u;

	if (!ea_is_supported(t, &ea) || bits < 32)
		return false;
	if (is_slot(i->reg.reg)) {
		emit_offset(&t->hot, &ea, HOST_S1, bits);
		emit_store_cpu(&t->hot, reg_disp(&t->hot, i->reg.reg), HOST_S1);
	} else {
		emit_offset(&t->hot, &ea, host_reg(i->reg.reg), bits);
	}
	return true;
}

/* System instructions worth doing in place. */
static bool emit_system(struct translation *t, u32 k)
{
	struct emit *e = &t->hot;

	switch (t->in[k].mnemonic) {
	case ZYDIS_MNEMONIC_CLD:
		emit_store_cpu_imm8(e, CPU_DISP(e, dflag), 0);
		return true;
	case ZYDIS_MNEMONIC_STD:
		emit_store_cpu_imm8(e, CPU_DISP(e, dflag), 1);
		return true;
	case ZYDIS_MNEMONIC_CLI:
		if (t->b->mode & MODE_USER)
			return false; /* CPL 1 and 2 share the supervisor half, but pass IOPL there */
		if (t->c->cpl != 0)
			return false;
		emit_store_cpu_imm8(e, CPU_DISP(e, iflag), 0);
		return true;
	case ZYDIS_MNEMONIC_LEAVE:
		return emit_leave_frame(t, k);
	default:
		return false;
	}
}

static bool emit_one(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];

	if (is_terminal(i) && i->opsize == 2)
		return false; /* truncates rip */
	switch (i->cls) {
	case INSN_DATA:		 return emit_data_insn(t, k);
	case INSN_NOP:		 return true;
	case INSN_LEA:		 return emit_lea_insn(t, k);
	case INSN_PUSH:		 return emit_push(t, k);
	case INSN_POP:		 return emit_pop(t, k);
	case INSN_CALL:		 return emit_call_direct(t, k);
	case INSN_CALL_INDIRECT: return emit_call_indirect(t, k);
	case INSN_RET:		 return emit_ret(t, k);
	case INSN_LOOP:		 return emit_loop(t, k);
	case INSN_JMP:
		emit_exit(t, branch_target(t, k), BRANCH_JMP);
		return true;
	case INSN_JMP_INDIRECT:
		if (!emit_indirect_target(t, k))
			return false;
		emit_indirect(&t->hot, t->half, false);
		return true;
	case INSN_JCC:
		emit_exit(t, branch_target(t, k), BRANCH_JCC | i->cond);
		emit_exit(t, (s64)t->off[k] + i->len, BRANCH_JMP);
		return true;
	case INSN_SYSTEM:	 return emit_system(t, k);
	default:		 return false;
	}
}

/* ---- the block ---- */

static void copy_code(struct translation *t, const struct soft_xlat *x)
{
	u32 off = (u32)(x->gpa & ~PAGE_MASK);

	t->code_off = off;
	t->code_len = MIN((u32)PAGE_SIZE - off, (u32)CODE_COPY);
	soft_copy(t->code, x->host, t->code_len);
}

/* Decode from the copied bytes up to the block's end; stops before an instruction that leaves the page. */
static void decode_block(struct translation *t)
{
	u32 pos = 0;

	while (t->n < BLOCK_MAX_INSNS && pos < t->code_len) {
		struct insn *i = &t->in[t->n];

		insn_decode(i, t->code + pos, MIN(t->code_len - pos, 15u), t->bits);
		if (!i->len)
			break;
		t->off[t->n] = t->code_off + pos;
		pos += i->len;
		t->off[++t->n] = t->code_off + pos;
		if (ends_block(i))
			break;
	}
}

/* The first instruction continues on the next page. */
static int decode_straddling(struct translation *t)
{
	struct soft_cpu *c = t->c;
	u8 bytes[15];
	u32 len;
	int status;

	status = soft_fetch(c, c->rip, bytes, &len);
	if (status != SOFT_OK)
		return status;
	insn_decode(&t->in[0], bytes, len, t->bits);
	if (!t->in[0].len) { /* the second page could not be read: find out why */
		struct soft_xlat x;

		status = soft_translate(c, (c->rip & PAGE_MASK) + PAGE_SIZE,
					soft_acc(c, ACC_FETCH), &x);
		if (status != SOFT_OK)
			return status;
		t->in[0].len = 1; /* device memory: not executable here */
		t->in[0].cls = INSN_INVALID;
	}
	t->off[0] = t->code_off;
	t->off[1] = t->code_off + t->in[0].len;
	t->n = 1;
	return SOFT_OK;
}

static void compute_liveness(struct translation *t)
{
	const struct insn *last = &t->in[t->n - 1];
	u16 live = RFLAGS_ARITH;

	if (last->cls == INSN_JCC)
		live = peek_live(t, branch_target(t, t->n - 1)) | peek_live(t, t->off[t->n]);
	else if (last->cls == INSN_JMP || last->cls == INSN_CALL)
		live = peek_live(t, branch_target(t, t->n - 1));
	else if (!ends_block(last))
		live = peek_live(t, t->off[t->n]);
	t->live[t->n] = live;
	for (u32 k = t->n; k-- > 0;) {
		live = live_before(&t->in[k], live);
		t->live[k] = live;
	}
}

/* Leave through the poll entry's exit: rip of the block's start, LEAVE_POLL. */
static void emit_poll(struct translation *t)
{
	struct emit *e = &t->hot, *cold = &t->cold;
	u8 *leave;

	if (!t->live[0]) {
		emit_cmp_cpu32_imm8(e, CPU_DISP(e, exit_req), 0);
		leave = emit_jcc_forward(e, COND_NE);
	} else {
		emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
		emit_load_cpu32(e, RCX, CPU_DISP(e, exit_req));
		emit_jrcxz(e, 5);
		leave = emit_jmp_forward(e);
		emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	}
	emit_patch(e, leave, emit_here(cold));
	if (t->live[0])
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_rip(t, cold, t->off[0]);
	emit_leave(t, cold, LEAVE_POLL);
}

static void emit_entries(struct translation *t)
{
	struct emit *e = &t->hot, *cold = &t->cold;
	s32 disp = (s32)(offsetof(struct soft_ctx, ibt) + t->half * sizeof(struct ibt_entry) * IBT_SIZE +
			 offsetof(struct ibt_entry, gva));
	u8 *miss;

	t->b->code = emit_here(e);
	if (!t->live[0]) {
		emit_gs_op(e, 0x3b, HOST_S1, HOST_S2, 8, disp);
		emit_jcc(e, COND_NE, t->cache->entry.ibt_miss);
	} else {
		emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
		emit_gs_op(e, 0x8b, RCX, HOST_S2, 8, disp);
		emit_not(e, RCX);
		emit_lea(e, 64, RCX, RCX, HOST_S1, 1, 1);
		emit_jrcxz(e, 5);
		miss = emit_jmp_forward(e);
		emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
		emit_patch(e, miss, emit_here(cold));
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
		emit_jmp(cold, t->cache->entry.ibt_miss);
	}
	t->b->enter = (u32)(emit_here(e) - t->b->code);
	emit_lea(e, 64, HOST_S2, HOST_S1, NO_REG, 1, -(s32)t->off[0]);
	emit_store_cpu(e, CPU_DISP(e, code_va), HOST_S2);
	t->b->poll = (u32)(emit_here(e) - t->b->code);
	emit_poll(t);
	t->b->direct = (u32)(emit_here(e) - t->b->code);
}

static void emit_block(struct translation *t)
{
	const struct insn *last = &t->in[t->n - 1];

	emit_entries(t);
	for (u32 k = 0; k < t->n; k++) {
		u8 *hot = t->hot.p, *cold = t->cold.p;

		t->b->host_off[k] = (u32)(emit_here(&t->hot) - t->b->code);
		t->b->guest_off[k] = (u16)(t->off[k] - t->off[0]);
		t->skips = 0;
		if (!emit_one(t, k)) {
			t->hot.p = hot;
			t->cold.p = cold;
			t->skips = 0;
			emit_step(t, k, !continues_block(&t->in[k]));
		}
		for (u32 s = 0; s < t->skips; s++)
			emit_patch(&t->cold, t->skip[s], emit_here(&t->hot));
	}
	if (!t->ended && !is_terminal(last))
		emit_exit(t, t->off[t->n], BRANCH_JMP);
	t->b->code_size = (u32)(emit_here(&t->hot) - t->b->code);
}

static int gather(struct translation *t, const struct soft_xlat *x)
{
	struct soft_vm *vm = t->c->vm;
	struct soft_xlat second;
	int status;

	t->b->page[0] = (s64)x->page;
	t->b->page[1] = BLOCK_NO_PAGE;
	cache_claim_page(vm, t->b->page[0], x->host - (x->gpa & ~PAGE_MASK));
	copy_code(t, x);
	decode_block(t);
	if (t->n)
		return SOFT_OK;
	status = decode_straddling(t);
	if (status != SOFT_OK)
		return status;
	if (t->off[1] <= PAGE_SIZE)
		return SOFT_OK;
	status = soft_translate(t->c, (t->c->rip & PAGE_MASK) + PAGE_SIZE,
				soft_acc(t->c, ACC_FETCH), &second);
	if (status != SOFT_OK)
		return status;
	t->b->page[1] = (s64)second.page;
	t->b->second = second.gpa;
	cache_claim_page(vm, t->b->page[1], second.host);
	return decode_straddling(t); /* again, now that stores to both pages are seen */
}

struct block *soft_translate_block(struct soft_cpu *c, const struct soft_xlat *x, int *status)
{
	struct cache *cache = c->vm->cache;
	static _Thread_local struct translation t;
	struct block *b = cache_block_alloc(cache, BLOCK_MAX_INSNS);

	*status = SOFT_OK;
	if (!b)
		return NULL;
	t.c = c;
	t.cache = cache;
	t.b = b;
	t.bits = c->mode & MODE_BITS_64 ? 64 : 32;
	t.half = c->mode & MODE_USER ? HALF_USER : HALF_SUPER;
	t.n = t.skips = t.exits = 0;
	t.ended = false;
	b->pa = x->gpa;
	b->mode = (u16)c->mode;
	*status = gather(&t, x);
	if (*status != SOFT_OK)
		return NULL;
	compute_liveness(&t);
	b->insns = (u16)t.n;
	b->size = (u16)(t.off[t.n] - t.off[0]);
	b->flags_live = t.live[0] != 0;
	cache_emit_begin(cache, &t.hot, &t.cold);
	emit_block(&t);
	if (t.hot.overflow || t.cold.overflow)
		return NULL;
	cache_insert(cache, b, &t.hot, &t.cold);
	c->counters[COUNT_BLOCKS_TRANSLATED]++;
	c->counters[COUNT_INSNS_TRANSLATED] += t.n;
	return b;
}
