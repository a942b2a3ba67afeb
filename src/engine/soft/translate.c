/*
 * Guest basic blocks to host code.
 *
 * A block is decoded whole, past forward conditional branches, which become side exits;
 * arithmetic-flag liveness is computed backwards, then each instruction is emitted. Hot code is
 * straight; slow paths go to the cold half of the cache.
 *
 * A block has three entries, each going on to the next:
 *   entry:    code_va = r10 (rip) - page offset; r10 must be the table entry's at r11, else to the
 *             table's second level
 *   poll:     leave when exit_req is set
 *   direct:   the instructions
 * C code enters at the poll. A block that a direct branch wanted, which then leads straight to its
 * instructions, gets an entry when somebody else looks for it, and has its poll in its cold code
 * unless the branch was a backward one.
 * A block with a place (cache.h: block_place()) compares r10 with that instead of asking the table,
 * and has a store of code_va before its poll, where links from other places arrive (BLOCK_FAR).
 * Others are position independent: everything that depends on rip is computed from code_va, so that
 * one translation serves every mapping of the physical page.
 *
 * A memory access computes its address to r10, looks up the TLB and then uses [r11 + r10], or its
 * own base register with r11 as index (see check.c). Where flags are dead the lookup is lea, rorx,
 * and, xor, cmp, ja, mov; where they are live it is made of pext, lea and jrcxz, which leave them
 * alone. A miss calls soft_miss(), which fills the TLB and retries, lets the interpreter run the
 * instruction (device memory, page crossings, stores to code) and resumes behind it, or raises the
 * fault. Guest state is architectural at every such point: stores come before register updates.
 */
#include "engine/soft/translation.h"

#include "engine/soft/kernel_window.h"
#include "engine/soft/reload.h"
#include "engine/soft/translate.h"
#include "engine/soft/util.h"

#include <Zydis/Zydis.h>

s32 reg_disp(const struct emit *e, u8 reg)
{
	return CPU_DISP(e, r[0]) + 8 * (s32)reg;
}

bool is_slot(u8 reg)
{
	return reg >= R9 && reg <= R11;
}

u8 host_reg(u8 guest)
{
	return guest == RSP ? HOST_SP : guest;
}

u8 use_reg(struct emit *e, u8 reg, u8 scratch)
{
	if (!is_slot(reg))
		return host_reg(reg);
	emit_load_cpu(e, scratch, reg_disp(e, reg));
	return scratch;
}

u32 site_info(const struct translation *t, u32 k)
{
	return (t->off[k] & SITE_OFFSET) | (u32)t->in[k].len << SITE_LEN_SHIFT;
}

bool insn_is_terminal(const struct insn *i)
{
	switch (i->cls) {
	case INSN_CALL:
	case INSN_CALL_INDIRECT:
	case INSN_RET:
	case INSN_JMP:
	case INSN_JMP_INDIRECT:
	case INSN_JCC:
	case INSN_LOOP: return true;
	default: return false;
	}
}

bool insn_reads_selector(const struct insn *i)
{
	u8 modrm = i->bytes[i->modrm_off];

	return i->cls == INSN_SYSTEM && i->mnemonic == ZYDIS_MNEMONIC_MOV && i->opcode_len == 1 &&
	       i->bytes[i->opcode_off] == 0x8c && modrm >= 0xc0 && (modrm >> 3 & 7) <= SEG_GS;
}

/* Privileged instructions that may be followed by more of the block. */
static bool continues_block(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_XGETBV:
	case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE: return true;
	default:
		return insn_reads_selector(i) || i->cls == INSN_STRING || i->cls == INSN_DATA ||
		       i->cls == INSN_PUSH || i->cls == INSN_POP || i->cls == INSN_LEA;
	}
}

bool insn_ends_block(const struct insn *i)
{
	return insn_is_terminal(i) || i->cls == INSN_INVALID ||
	       (i->cls == INSN_SYSTEM && !continues_block(i) && i->mnemonic != ZYDIS_MNEMONIC_CLD &&
		i->mnemonic != ZYDIS_MNEMONIC_STD && i->mnemonic != ZYDIS_MNEMONIC_STI);
}

/* Call @entry as it would soft_step(). */
static void emit_call_helper(struct translation *t, struct emit *e, u32 k, u32 flags, u64 entry)
{
	const struct insn *i = &t->in[k];

	emit_mov_imm64(e, HOST_S1,
		       i->len <= 8 ? soft_load(i->bytes, 8) & ~0ul >> (64 - 8 * i->len) : 0);
	emit_mov_imm32(e, HOST_S2, site_info(t, k) | string_site(i) | flags);
	emit_call(e, entry);
}

void emit_call_step(struct translation *t, struct emit *e, u32 k, u32 flags)
{
	emit_call_helper(t, e, k, flags, t->cache->entry.step);
}

bool emit_system_call(struct translation *t, u32 k)
{
	bool is_return = t->in[k].mnemonic == ZYDIS_MNEMONIC_SYSRET;
	u32 mode = MODE_BITS_64 | (is_return ? 0 : MODE_USER);

	if ((t->mode & (MODE_BITS | MODE_USER)) != mode || !uses(t, SOFT_GO_ON) ||
	    (is_return && t->in[k].opsize != 8))
		return false;
	emit_call_helper(t, &t->hot, k, SITE_TERMINAL,
			 is_return ? t->cache->entry.sysret : t->cache->entry.syscall);
	t->loaded = NO_GROUP;
	t->ended = true;
	return true;
}

/* Let the interpreter run instruction @k from within the block. */
static void emit_step(struct translation *t, u32 k, bool terminal)
{
	emit_call_step(t, &t->hot, k, terminal ? SITE_TERMINAL : 0);
	t->loaded = NO_GROUP;
	if (terminal)
		t->ended = true;
}

/* ---- stack and control flow (64-bit mode, or flat 32-bit with 32-bit stack) ---- */

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

/* ---- data instructions ---- */

static bool is_usable(const struct translation *t, const struct insn *i)
{
	u32 mode = t->mode;

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

/* ---- rsp ----
 *
 * Pushes and pops in a row would make a chain of additions to HOST_SP, each waiting for the one
 * before. So HOST_SP may lag behind guest rsp by t->sp while nothing can tell: over instructions
 * that neither name rsp, nor leave the block, nor can fault or take a slow path. Those that access
 * the stack are members of a group checked before.
 */

static bool names_sp(const struct insn *i)
{
	return i->reg.reg == RSP || i->rm.reg == RSP || i->vvvv.reg == RSP ||
	       i->opcode_reg.reg == RSP;
}

/* A constant added to rsp by an instruction whose flags nobody wants. */
static bool moves_sp(const struct translation *t, u32 k, s64 *by)
{
	const struct insn *i = &t->in[k];

	*by = t->step[k];
	return t->step_of[k] == RSP && t->bits == 64 &&
	       (i->cls == INSN_DATA || i->cls == INSN_LEA) && !(i->flags_write & t->live[k + 1]) &&
	       *by == (s16)*by && t->sp + *by == (s16)(t->sp + *by);
}

static bool is_plain(const struct insn *i)
{
	return i->cls == INSN_DATA && !i->needs_x87 && !i->needs_sse && !i->needs_avx &&
	       !i->needs_avx512 && i->mnemonic != ZYDIS_MNEMONIC_DIV &&
	       i->mnemonic != ZYDIS_MNEMONIC_IDIV && !names_sp(i);
}

/* May HOST_SP lag while instruction @k is executed? */
static bool keeps_sp(const struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	s64 by;

	if (t->bits != 64 || has_group_check(t, k) ||
	    (k + 1 < t->n && t->in[k + 1].cls == INSN_JCC))
		return false;
	switch (i->cls) {
	case INSN_NOP: return true;
	case INSN_PUSH:
	case INSN_POP: return !i->has_mem && !names_sp(i) && is_stack_member(t, k, 0);
	case INSN_CALL:
	case INSN_RET: /* these adjust it themselves at last */ return is_stack_member(t, k, 0);
	case INSN_LEA:
		return moves_sp(t, k, &by) || (i->base != RSP && i->index != RSP && !names_sp(i));
	default:
		return moves_sp(t, k, &by) ||
		       (is_plain(i) && (!i->has_mem || is_stack_member(t, k, 0)));
	}
}

/* May it leave HOST_SP behind for what follows? */
static bool may_defer_sp(const struct translation *t, u32 k)
{
	s64 by;

	if (!uses(t, SOFT_LAZY_RSP))
		return false;
	switch (t->in[k].cls) {
	case INSN_PUSH:
	case INSN_POP:
		return t->bits == 64 && !t->in[k].has_mem && !names_sp(&t->in[k]) &&
		       is_stack_member(t, k, 0);
	default: return moves_sp(t, k, &by);
	}
}

static bool emit_one(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	s64 by;

	if (moves_sp(t, k, &by)) {
		emit_adjust_sp(t, (s32)by);
		return true;
	}
	if (insn_is_terminal(i) && i->opsize == 2)
		return false; /* truncates rip */
	switch (i->cls) {
	case INSN_DATA: return emit_data_insn(t, k);
	case INSN_NOP: return emit_nop(t, k);
	case INSN_LEA: return emit_lea_insn(t, k);
	case INSN_PUSH: return emit_push(t, k);
	case INSN_POP: return emit_pop(t, k);
	case INSN_CALL: return emit_call_direct(t, k);
	case INSN_CALL_INDIRECT: return emit_call_indirect(t, k);
	case INSN_RET: return emit_ret(t, k);
	case INSN_LOOP: return emit_loop(t, k);
	case INSN_JMP: emit_exit(t, branch_target(t, k), BRANCH_JMP); return true;
	case INSN_JMP_INDIRECT: return emit_jmp_indirect(t, k);
	case INSN_JCC:
		emit_exit(t, branch_target(t, k), BRANCH_JCC | i->cond);
		if (k + 1 == t->n)
			emit_exit(t, (s64)t->off[k] + i->len, BRANCH_JMP);
		return true;
	case INSN_STRING: return uses(t, SOFT_IN_PLACE) && emit_string(t, k);
	case INSN_SYSTEM: return uses(t, SOFT_IN_PLACE) && emit_system(t, k);
	default: return false;
	}
}

/* ---- the block ---- */

static void copy_code(struct translation *t, const struct soft_xlat *x)
{
	u32 off = (u32)(x->gpa & ~PAGE_MASK);

	t->page_host = x->host - off;
	t->code_off = off;
	t->code_len = MIN((u32)PAGE_SIZE - off, (u32)CODE_COPY);
	if (t->code_len < CODE_COPY_FIRST)
		soft_copy(t->code, x->host, t->code_len);
	else /* REP MOVSB takes longer to begin than this takes */
		for (u32 n = 0; n < CODE_COPY_FIRST; n += 8)
			soft_store(t->code + n, soft_load(x->host + n, 8), 8);
}

/*
 * Does the block go on behind its latest instruction, a conditional branch? Not behind loops, and
 * not for long: other blocks will cover what follows too, when it is jumped to.
 */
static bool goes_on_behind(const struct translation *t, u32 branches)
{
	const struct insn *i = &t->in[t->n - 1];

	return uses(t, SOFT_SIDE_EXITS) && i->cls == INSN_JCC && i->opsize != 2 && i->imm >= 0 &&
	       branches < MAX_SIDE_EXITS && t->n < BLOCK_MAX_INSNS && t->off[t->n] < PAGE_SIZE;
}

void decode_insn(const struct translation *t, struct insn *i, const u8 *p, u32 len)
{
	if (uses(t, SOFT_FORMS))
		forms_decode(t->cache->forms, i, p, len, t->bits);
	else
		insn_decode(i, p, len, t->bits);
}

/*
 * Decode from the copied bytes up to the block's end; stops before an instruction that leaves the
 * page. A conditional branch need not be the end: it becomes a side exit.
 */
static void decode_block(struct translation *t)
{
	u32 pos = 0, branches = 0, have = CODE_COPY_FIRST;

	while (t->n < BLOCK_MAX_INSNS && pos < t->code_len) {
		struct insn *i = &t->in[t->n];

		if (pos + 15 > have && have < t->code_len) {
			soft_copy(t->code + have, t->page_host + t->code_off + have,
				  t->code_len - have);
			have = t->code_len;
		}
		decode_insn(t, i, t->code + pos, MIN(t->code_len - pos, 15u));
		if (!i->len)
			break;
		t->off[t->n] = t->code_off + pos;
		pos += i->len;
		t->off[++t->n] = t->code_off + pos;
		if (insn_ends_block(i) && !goes_on_behind(t, branches++))
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

		status = soft_translate(c, (c->rip & PAGE_MASK) + PAGE_SIZE, soft_acc(c, ACC_FETCH),
					&x);
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

/*
 * Leave with rip of the block's start when exit_req is set. In cold code that is between here and
 * the jump to the instructions.
 */
static void emit_poll(struct translation *t, struct emit *e)
{
	struct emit *cold = &t->cold;
	u64 direct = t->b->code + t->b->direct;
	u8 *leave = NULL;

	t->b->poll = emit_here(e);
	if (!t->live[0]) {
		emit_cmp_cpu32_imm8(e, CPU_DISP(e, exit_req), 0);
		if (e == cold)
			emit_jcc(e, COND_E, direct);
		else
			leave = emit_jcc_forward(e, COND_NE);
	} else {
		emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
		emit_load_cpu32(e, RCX, CPU_DISP(e, exit_req));
		emit_jrcxz(e, 5);
		leave = emit_jmp_forward(e);
		emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
		if (e == cold)
			emit_jmp(e, direct);
	}
	if (leave)
		emit_patch(e, leave, emit_here(cold));
	if (t->live[0])
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_mov_imm32(cold, HOST_S2, t->off[0]);
	emit_jmp(cold, t->cache->entry.poll[t->bits == 64]);
}

/* rip at @b's start, which was made for that: no need to ask the table for it. */
static u8 *emit_placed_entry(struct emit *e, const struct block *b)
{
	u8 *miss;

	emit_mov(e, HOST_S2, RCX);
	emit_lea(e, 64, RCX, HOST_S1, NO_REG, 1, -(s32)(b->place + (b->pa & ~PAGE_MASK)));
	emit_jrcxz(e, 5);
	miss = emit_jmp_forward(e);
	emit_mov(e, RCX, HOST_S2);
	return miss;
}

/*
 * Indirect branches arrive wherever the table leads, and whoever is meant may need the flags: so
 * they are left alone, also where this block needs none. rcx is moved aside, not exchanged: XCHG
 * would make it wait for the table (Golden Cove), and with it whatever the guest computes from rcx.
 * Returns the branch to emit_entry_miss().
 */
static u8 *emit_entry(struct emit *e, const struct block *b)
{
	const u32 tag = offsetof(struct soft_half, ibt) + offsetof(struct ibt_entry, minus_gva);
	u32 half = b->mode & MODE_USER ? HALF_USER : HALF_SUPER;
	u8 *miss;

	if (b->place)
		return emit_placed_entry(e, b);
	emit_half_op(e, half, 0x8b, HOST_S2, HOST_S2, 8, tag);
	emit_lea(e, 64, HOST_S2, HOST_S2, HOST_S1, 1, 0);
	emit_lea(e, 64, HOST_S1, HOST_S1, NO_REG, 1, -(s32)(b->pa & ~PAGE_MASK));
	emit_store_cpu(e, CPU_DISP(e, code_va), HOST_S1);
	emit_mov(e, HOST_S1, RCX);
	emit_mov(e, RCX, HOST_S2);
	emit_jrcxz(e, 5);
	miss = emit_jmp_forward(e);
	emit_mov(e, RCX, HOST_S1);
	return miss;
}

/* The table's entry is another's: try its second level, with rip in HOST_S1. */
static void emit_entry_miss(const struct cache *c, struct emit *cold, const struct block *b)
{
	u32 half = b->mode & MODE_USER ? HALF_USER : HALF_SUPER;

	emit_mov(cold, RCX, b->place ? HOST_S2 : HOST_S1);
	if (!b->place) {
		emit_load_cpu(cold, HOST_S1, CPU_DISP(cold, code_va));
		emit_lea(cold, b->mode & MODE_BITS_64 ? 64 : 32, HOST_S1, HOST_S1, NO_REG, 1,
			 (s32)(b->pa & ~PAGE_MASK));
	}
	emit_jmp(cold, c->entry.ibt_miss[half]);
}

/* What a branch looks for that will be linked needs no entry, and perhaps no poll. */
static void emit_entries(struct translation *t)
{
	struct emit *hot = &t->hot, *cold = &t->cold;
	u8 arrival = t->c->arrival;
	struct emit *e = arrival == ARRIVAL_FORWARD ? cold : hot;
	u8 *miss = NULL;

	t->b->code = emit_here(hot);
	t->b->direct = 0;
	if (arrival == ARRIVAL_ANY) {
		t->b->entry = t->b->code;
		miss = emit_entry(hot, t->b);
	}
	if (t->place) /* BLOCK_FAR bytes */
		emit_store_cpu_sign(e, CPU_DISP(e, code_va), (s32)t->place);
	emit_poll(t, e);
	t->b->direct = (u32)(emit_here(hot) - t->b->code);
	if (miss) {
		emit_patch(hot, miss, emit_here(cold));
		emit_entry_miss(t->cache, cold, t->b);
	}
}

bool soft_make_entry(struct soft_cpu *c, struct block *b)
{
	struct cache *cache = c->vm->cache;
	struct emit hot, cold;
	u64 entry;
	u8 *miss;

	if (b->entry)
		return true;
	cache_emit_begin(cache, &hot, &cold);
	entry = emit_here(&cold);
	miss = emit_entry(&cold, b);
	emit_jmp(&cold, b->place ? b->poll - BLOCK_FAR : b->poll);
	emit_patch(&cold, miss, emit_here(&cold));
	emit_entry_miss(cache, &cold, b);
	if (cold.overflow)
		return false;
	cache->cold = (u64)(cold.p - cache->rw);
	__atomic_store_n(&b->entry, entry, __ATOMIC_RELEASE);
	return true;
}

static bool field_is_slot(const struct insn_field *f)
{
	return f->reg != NO_REG && is_slot(f->reg);
}

/* Whether code for @i may change HOST_S2 other than through a memory check. */
static bool clobbers_s2(const struct insn *i)
{
	switch (i->cls) {
	case INSN_NOP:
	case INSN_PUSH:
	case INSN_POP:
	case INSN_JCC: return false;
	case INSN_DATA:
		return field_is_slot(&i->reg) + field_is_slot(&i->rm) + field_is_slot(&i->vvvv) +
			       field_is_slot(&i->opcode_reg) >
		       1;
	default: return true;
	}
}

static void emit_block(struct translation *t)
{
	const struct insn *last = &t->in[t->n - 1];

	emit_entries(t);
	for (u32 k = 0; k < t->n; k++) {
		u8 *hot, *cold;
		u32 sites;
		s32 sp;

		t->b->host_off[k] = (u32)(emit_here(&t->hot) - t->b->code);
		t->b->guest_off[k] = (u16)(t->off[k] - t->off[0]);
		if (t->sp && !keeps_sp(t, k))
			flush_sp(t);
		sp = t->sp;
		t->b->sp_lag[k] = (s16)sp;
		emit_group_checks(t, k);
		t->defers_sp = may_defer_sp(t, k);
		hot = t->hot.p;
		cold = t->cold.p;
		sites = t->sites.n;
		t->skips = t->access = 0;
		t->current = k;
		if (!emit_one(t, k)) {
			t->hot.p = hot;
			t->cold.p = cold;
			t->sites.n = sites;
			t->skips = 0;
			t->sp = sp;
			flush_sp(t);
			emit_step(t, k, !continues_block(&t->in[k]));
		}
		/* A slow path that runs the instruction comes back with something else in it. */
		if (clobbers_s2(&t->in[k]) || t->skips)
			t->loaded = NO_GROUP;
		for (u32 s = 0; s < t->skips; s++)
			emit_patch(&t->cold, t->skip[s], emit_here(&t->hot));
	}
	flush_sp(t);
	if (!t->ended && !insn_is_terminal(last))
		emit_exit(t, t->off[t->n], BRANCH_JMP);
	drop_unused_stores(t);
	t->b->code_size = (u32)(emit_here(&t->hot) - t->b->code);
}

static bool claim(struct translation *t, s64 page, u8 *host)
{
	return cache_claim_page(t->c, page, (u8 *)((u64)host & PAGE_MASK));
}

/* SOFT_EXIT: a page must be settled first. */
static int gather(struct translation *t, const struct soft_xlat *x)
{
	struct soft_xlat second;
	int status;

	t->page[0] = (s64)x->page;
	t->page[1] = BLOCK_NO_PAGE;
	if (!claim(t, t->page[0], x->host))
		return SOFT_EXIT;
	copy_code(t, x);
	decode_block(t);
	if (t->n)
		return SOFT_OK;
	status = decode_straddling(t);
	if (status != SOFT_OK || t->off[1] <= PAGE_SIZE)
		return status;
	status = soft_translate(t->c, (t->c->rip & PAGE_MASK) + PAGE_SIZE,
				soft_acc(t->c, ACC_FETCH), &second);
	if (status != SOFT_OK)
		return status;
	if (!second.host) { /* device memory: not executable here */
		t->in[0].cls = INSN_INVALID;
		t->in[0].len = 1;
		t->off[1] = t->off[0] + 1;
		return SOFT_OK;
	}
	t->page[1] = (s64)second.page;
	t->second = second.gpa;
	if (!claim(t, t->page[1], second.host))
		return SOFT_EXIT;
	return decode_straddling(t); /* again, now that stores to both pages are seen */
}

static void begin(struct translation *t, struct soft_cpu *c, const struct soft_xlat *x, u32 mode)
{
	t->c = c;
	t->cache = c->vm->cache;
	t->mode = mode;
	t->bits = mode & MODE_BITS_64 ? 64 : 32;
	t->half = mode & MODE_USER ? HALF_USER : HALF_SUPER;
	t->folds = mode & MODE_WINDOW && !(mode & MODE_SINGLE) &&
		   !kernel_window_refuses(c, x->gpa, mode);
	t->n = t->skips = t->exits = t->peeks = 0;
	t->ended = false;
	t->sp = 0;
	t->loaded = NO_GROUP;
	t->bit_reg = NO_REG;
	t->pa = x->gpa;
	t->place = block_place(&c->vm->options, mode, c->rip);
}

/* The decoded instructions become code. NULL when memory ran out. */
static struct block *finish(struct translation *t)
{
	struct block *b = cache_block_alloc(t->cache, t->n, 2 + MAX_SIDE_EXITS + t->groups);

	if (!b)
		return NULL;
	t->b = b;
	b->pa = t->pa;
	b->mode = (u16)t->mode;
	b->page[0] = t->page[0];
	b->page[1] = t->page[1];
	b->second = t->second;
	b->place = t->place;
	b->insns = (u16)t->n;
	b->size = (u16)(t->off[t->n] - t->off[0]);
	b->flags_live = flags_live_by_itself(t);
	cache_emit_begin(t->cache, &t->hot, &t->cold);
	t->hot.sites = t->cold.sites = &t->sites;
	t->sites.n = 0;
	t->cold_start = t->cold.p;
	emit_block(t);
	b->exits = t->exits;
	b->peeks = (u8)t->peeks;
	for (u32 k = 0; k < t->peeks; k++) {
		b->peek_from[k] = t->peek_from[k];
		b->peek_to[k] = t->peek_to[k];
	}
	if (t->hot.overflow || t->cold.overflow)
		return NULL;
	cache_block_trim(t->cache, b, t->exits);
	reload_note(t);
	cache_insert(t->cache, b, &t->hot, &t->cold);
	return b;
}

struct block *soft_translate_block(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
				   int *status)
{
	static _Thread_local struct translation t;
	struct block *b;

	begin(&t, c, x, mode);
	c->unsettled = c->unsettled_epoch = 0;
	*status = gather(&t, x);
	if (*status == SOFT_EXIT)
		*status = SOFT_OK;
	if (*status != SOFT_OK || c->unsettled)
		return NULL;
	compute_liveness(&t);
	find_groups(&t);
	b = finish(&t);
	if (b) {
		c->counters[COUNT_BLOCKS_TRANSLATED]++;
		c->counters[COUNT_INSNS_TRANSLATED] += t.n;
		c->counters[COUNT_GUEST_BYTES] += b->size;
		c->counters[COUNT_HOT_BYTES] += b->code_size;
		c->counters[COUNT_COLD_BYTES] += (u64)(t.cold.p - t.cold_start);
		reload_check(c, x, b);
	}
	return b;
}
