/*
 * Effective addresses, memory checks, and groups of accesses that share one check.
 *
 * A single check ends in the host page (HOST_S2) and the page offset (HOST_S1), or, where the
 * access can keep its base register, in the difference between host and guest addresses (HOST_S2);
 * with rsp that comes from the stack page (soft.h) if it is the one. Accesses whose addresses
 * differ by constants only (the stack above all) form a group: one check covers the whole range,
 * before the first of them, and further up where flags are dead if they are live there. When a
 * group's check fails for good (the range crosses a page, is not all writable, or is device
 * memory), execution goes to a variant of the block, from that instruction on, with single checks.
 */
#include "engine/soft/translation.h"

#include "engine/soft/translate.h"

#include <Zydis/Zydis.h>

struct ea insn_ea(const struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct ea ea = {.seg = i->seg,
			.base = i->base,
			.index = i->index,
			.scale = i->scale,
			.bits = (u8)(i->addrsize * 8),
			.rip_relative = i->is_rip_relative,
			.disp = i->disp};

	if (ea.rip_relative) {
		ea.disp += t->off[k] + i->len;
		ea.has_address = address_of(t, ea.disp, &ea.address);
	}
	return ea;
}

struct ea stack_ea(const struct translation *t, s64 disp)
{
	return (struct ea){.seg = SEG_SS,
			   .base = RSP,
			   .index = NO_REG,
			   .scale = 1,
			   .bits = (u8)t->bits,
			   .disp = disp};
}

bool ea_is_supported(const struct translation *t, const struct ea *ea)
{
	if (ea->bits == 16 || (ea->rip_relative && ea->bits != 64))
		return false;
	/* Flat mode says nothing of FS and GS, and code segments are not writable. */
	if (t->bits == 32 && (ea->seg == SEG_CS || has_segment_base(ea)))
		return false;
	if (ea->disp != (s32)ea->disp)
		return ea->base == NO_REG && ea->index == NO_REG && !ea->rip_relative &&
		       t->bits == 64;
	return true;
}

void emit_offset(struct emit *e, const struct ea *ea, u8 dst, u32 bits)
{
	u8 base = ea->base, index = ea->index;

	if (ea->rip_relative) {
		if (ea->has_address && bits == 64) {
			emit_mov_imm64(e, dst, (u64)(s64)ea->address);
			return;
		}
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

/* HOST_S1 += (signed bit offset in @reg / bits per word) * bytes per word. */
static void emit_add_bit_offset(struct emit *e, u8 reg, u32 size)
{
	u8 src = use_reg(e, reg, HOST_S2);

	if (size == 4) { /* only 32 bits of the register count */
		emit_movsxd(e, HOST_S2, src);
		src = HOST_S2;
	}
	emit_store_cpu(e, CPU_DISP(e, spill[1]), src);
	emit_mov_imm32(e, HOST_S2, size == 8 ? 6 : 5);
	emit_sarx_cpu(e, HOST_S2, CPU_DISP(e, spill[1]), HOST_S2);
	emit_lea(e, 64, HOST_S1, HOST_S1, HOST_S2, (u8)size, 0);
}

/* The linear address into HOST_S1. */
static void emit_linear(struct translation *t, struct emit *e, const struct ea *ea, u32 size)
{
	emit_offset(e, ea, HOST_S1, ea->bits);
	if (t->bit_reg != NO_REG)
		emit_add_bit_offset(e, t->bit_reg, size);
	if (!has_segment_base(ea))
		return;
	emit_load_cpu(e, HOST_S2,
		      CPU_DISP(e, seg[0].base) + (s32)sizeof(struct cpu_segment) * ea->seg);
	emit_lea(e, t->bits, HOST_S1, HOST_S1, HOST_S2, 1, 0);
}

#define HOST_OFFSET  ((u32)(offsetof(struct soft_half, tlb) + offsetof(struct tlb_entry, host)))
#define DELTA_OFFSET ((u32)(offsetof(struct soft_half, tlb) + offsetof(struct tlb_entry, delta)))

#define STACK_OFFSET(member) \
	((u32)(offsetof(struct soft_half, stack) + offsetof(struct stack_page, member)))
#define NO_WORD (~0u)

/* Offset of an entry's tag in struct soft_half. */
static u32 tag_offset(bool write)
{
	return (u32)offsetof(struct soft_half, tlb) +
	       (write ? (u32)offsetof(struct tlb_entry, tag_write)
		      : (u32)offsetof(struct tlb_entry, tag_read));
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

/*
 * Flags dead: HOST_S1 becomes the page offset, HOST_S2 the entry's word at @word, or with NO_WORD
 * the entry's offset. @address: a register that holds the address too, for the shorter way. Returns
 * the branch to patch.
 */
static u8 *emit_lookup(struct translation *t, struct emit *e, u8 address, u32 size, bool write,
		       u32 word)
{
	u8 *slow;

	emit_rorx(e, HOST_S2, address, PAGE_SHIFT - 5);
	emit_and32_imm(e, HOST_S2, (TLB_SIZE - 1) << 5);
	emit_half_op(e, t->half, 0x33, HOST_S1, HOST_S2, 1, tag_offset(write));
	emit_cmp64_imm(e, HOST_S1, (u32)PAGE_SIZE - size);
	slow = emit_jcc_forward(e, COND_A);
	if (word != NO_WORD)
		emit_half_op(e, t->half, 0x8b, HOST_S2, HOST_S2, 1, word);
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
	emit_half_op(e, t->half, 0x8b, RCX, HOST_S2, 8, tag_offset(write));
	emit_not(e, RCX);
	emit_lea(e, 64, HOST_S1, HOST_S1, RCX, 1, 1);
	emit_lea(e, 64, RCX, HOST_S1, NO_REG, 1, (s32)size - 1);
	emit_pext_cpu(e, RCX, RCX, CPU_DISP(e, page_mask));
	emit_jrcxz(e, 5);
	slow = emit_jmp_forward(e);
	emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	emit_half_op(e, t->half, 0x8b, HOST_S2, HOST_S2, 8, HOST_OFFSET);
	return slow;
}

/* Check [address, address + size) before instruction @k; the slow path branch is returned. */
static u8 *emit_any_lookup(struct translation *t, u32 k, const struct ea *ea, u32 size, bool write)
{
	emit_linear(t, &t->hot, ea, size);
	return t->live[k] ? emit_lookup_flags_live(t, size, write)
			  : emit_lookup(t, &t->hot, HOST_S1, size, write, HOST_OFFSET);
}

/*
 * Can the access use its own base register and displacement, with the entry's delta for an index?
 * Then the address need not wait for the tag.
 */
static bool is_based(const struct translation *t, const struct ea *ea)
{
	return uses(t, SOFT_DELTAS) && t->bits == 64 && ea->bits == 64 && !has_segment_base(ea) &&
	       !ea->rip_relative && ea->base != NO_REG && !is_slot(ea->base) &&
	       ea->index == NO_REG && t->bit_reg == NO_REG;
}

/*
 * Flags dead, base rsp: HOST_S2 becomes the delta, by the stack page or else the TLB. Returns the
 * branch to patch.
 */
static u8 *emit_stack_lookup(struct translation *t, const struct ea *ea, u32 size, bool write)
{
	u32 limit = size <= STACK_SMALL ? STACK_OFFSET(limit[0]) : STACK_OFFSET(limit[1]);
	struct emit *e = &t->hot, *cold = &t->cold;
	u8 *other, *slow;

	emit_offset(e, ea, HOST_S1, 64);
	emit_half_op(e, t->half, 0x2b, HOST_S1, NO_REG, 1, STACK_OFFSET(base));
	emit_half_op(e, t->half, 0x3b, HOST_S1, NO_REG, 1, limit);
	other = emit_jcc_forward(e, COND_AE);
	emit_half_op(e, t->half, 0x8b, HOST_S2, NO_REG, 1, STACK_OFFSET(delta));
	emit_patch(e, other, emit_here(cold));
	emit_offset(cold, ea, HOST_S1, 64);
	slow = emit_lookup(t, cold, HOST_S1, size, write, NO_WORD);
	if (write)
		emit_call(cold, t->cache->entry.fill_stack_page[t->half]);
	else
		emit_half_op(cold, t->half, 0x8b, HOST_S2, HOST_S2, 1, DELTA_OFFSET);
	emit_jmp(cold, emit_here(e));
	return slow;
}

static u8 *emit_based_lookup(struct translation *t, const struct ea *ea, u32 size, bool write)
{
	if (ea->base == RSP && uses(t, SOFT_STACK_PAGE))
		return emit_stack_lookup(t, ea, size, write);
	emit_offset(&t->hot, ea, HOST_S1, 64);
	return emit_lookup(t, &t->hot, ea->disp ? HOST_S1 : host_reg(ea->base), size, write,
			   DELTA_OFFSET);
}

static struct host_mem emit_single_check(struct translation *t, u32 k, const struct ea *ea,
					 u32 size, bool write)
{
	struct emit *cold = &t->cold;
	u64 retry = emit_here(&t->hot);
	u32 info = site_info(t, k) | (size - 1) << SITE_SIZE_SHIFT;
	bool based = !t->live[k] && is_based(t, ea);
	u8 *slow = based ? emit_based_lookup(t, ea, size, write)
			 : emit_any_lookup(t, k, ea, size, write);

	emit_patch(&t->hot, slow, emit_here(cold));
	if (t->live[k])
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_linear(t, cold, ea, size);
	info |= (write ? SITE_WRITE : 0) | (t->in[k].masked ? SITE_MASKED : 0) |
		(insn_is_terminal(&t->in[k]) ? SITE_TERMINAL : 0);
	emit_mov_imm32(cold, HOST_S2, info);
	emit_call(cold, t->cache->entry.miss);
	emit_jmp(cold, retry);
	if (t->skips == MAX_SKIPS)
		t->hot.overflow = true;
	else
		t->skip[t->skips++] = emit_jmp_forward(cold);
	t->loaded = NO_GROUP;
	if (based)
		return (struct host_mem){
			.base = host_reg(ea->base), .index = HOST_S2, .disp = (s32)ea->disp};
	return (struct host_mem){.base = HOST_S2, .index = HOST_S1};
}

struct host_mem emit_check_bits(struct translation *t, u32 k, const struct ea *ea, u8 reg, u32 size,
				bool write)
{
	struct host_mem m;

	t->bit_reg = reg;
	m = emit_single_check(t, k, ea, size, write);
	t->bit_reg = NO_REG;
	emit_lea(&t->hot, 64, HOST_S2, m.base, m.index, 1, 0);
	return (struct host_mem){.base = HOST_S2, .index = NO_REG};
}

/* @dst: where a folded address is to be made. */
static struct host_mem check(struct translation *t, u32 k, const struct ea *ea, u32 size,
			     bool write, u8 dst)
{
	u32 n = t->access++;
	u8 g = n < 2 ? t->group_of[k][n] : NO_GROUP;

	if (g == NO_GROUP || !t->group[g].used)
		return t->folds ? emit_folded(t, k, ea, dst)
				: emit_single_check(t, k, ea, size, write);
	if (t->loaded != g) {
		emit_load_cpu(&t->hot, HOST_S2, CPU_DISP(&t->hot, group[0]) + 8 * (s32)g);
		t->group[g].reloaded = true;
	}
	t->loaded = g;
	if (t->folds)
		return (struct host_mem){.base = HOST_S2,
					 .index = NO_REG,
					 .disp = (s32)(t->group_off[k][n] - t->group[g].folded_at),
					 .is_folded = t->half == HALF_USER};
	if (t->group[g].by_delta)
		return (struct host_mem){.base = host_reg(ea->base),
					 .index = HOST_S2,
					 .disp = (s32)ea->disp + (ea->base == RSP ? t->sp : 0)};
	return (struct host_mem){.base = HOST_S2,
				 .index = NO_REG,
				 .disp = (s32)(t->group_off[k][n] - t->group[g].lo)};
}

struct host_mem emit_check(struct translation *t, u32 k, const struct ea *ea, u32 size, bool write)
{
	return check(t, k, ea, size, write, insn_names_slot(&t->in[k]) ? HOST_S2 : HOST_S1);
}

struct host_mem emit_check_one(struct translation *t, u32 k, const struct ea *ea, u32 size,
			       bool write)
{
	struct host_mem m = check(t, k, ea, size, write, HOST_S2);

	if (m.index != HOST_S1)
		return m;
	emit_lea(&t->hot, 64, HOST_S2, m.base, m.index, 1, 0);
	return (struct host_mem){.base = HOST_S2, .index = NO_REG};
}

/* ---- groups ---- */

/* Byte range that the group's check covers, as an address where that stands. */
static struct ea group_ea(const struct translation *t, const struct group *g)
{
	struct ea ea = {.seg = g->seg,
			.base = g->base,
			.index = NO_REG,
			.scale = 1,
			.bits = (u8)t->bits,
			.disp = g->lo - g->base_off};

	if (g->base == GROUP_RIP) {
		ea.base = NO_REG;
		ea.rip_relative = true;
		ea.has_address = address_of(t, ea.disp, &ea.address);
	}
	return ea;
}

/* The lookup of group @g before instruction @k; HOST_S2 is then what its members want. */
static u8 *emit_group_lookup(struct translation *t, u32 k, struct group *g, const struct ea *ea)
{
	u32 size = (u32)(g->hi - g->lo);
	u8 *slow;

	g->by_delta = !t->live[k] && is_based(t, ea);
	if (g->by_delta)
		return emit_based_lookup(t, ea, size, g->write);
	slow = emit_any_lookup(t, k, ea, size, g->write);
	emit_lea(&t->hot, 64, HOST_S2, HOST_S2, HOST_S1, 1, 0);
	return slow;
}

static void emit_group_check(struct translation *t, u32 k, u32 n)
{
	struct group *g = &t->group[n];
	struct ea ea = group_ea(t, g);
	struct emit *hot = &t->hot, *cold = &t->cold;
	u64 retry = emit_here(hot);
	u32 size = (u32)(g->hi - g->lo);
	struct block_exit *x = &t->b->exit[t->exits++];
	u8 *slow = emit_group_lookup(t, k, g, &ea);

	g->kept = hot->p;
	emit_store_cpu(hot, CPU_DISP(hot, group[0]) + 8 * (s32)n, HOST_S2);
	g->kept_end = hot->p;
	t->loaded = (u8)n;
	emit_patch(hot, slow, emit_here(cold));
	if (t->live[k])
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_align_site(cold, 1);
	*x = (struct block_exit){.from = t->b, .target = (s32)t->off[k], .single = true};
	x->site = emit_jmp_forward(cold);
	emit_unlinked(t, cold, x);
	emit_mov_imm64(cold, HOST_S2, (u64)x);
	emit_store_cpu(cold, CPU_DISP(cold, link), HOST_S2);
	emit_linear(t, cold, &ea, size);
	emit_mov_imm32(cold, HOST_S2,
		       site_info(t, k) | (size - 1) << SITE_SIZE_SHIFT | SITE_GROUP |
			       (g->write ? SITE_WRITE : 0));
	emit_call(cold, t->cache->entry.miss);
	emit_jmp(cold, retry);
}

bool is_stack_member(const struct translation *t, u32 k, u32 n)
{
	u8 g = t->group_of[k][n];

	return g != NO_GROUP && t->group[g].used && t->group[g].base == RSP &&
	       (t->group[g].by_delta || t->folds);
}

bool has_group_check(const struct translation *t, u32 k)
{
	return t->checks_at >> k & 1;
}

void emit_group_checks(struct translation *t, u32 k)
{
	for (u32 n = 0; n < t->groups && has_group_check(t, k); n++)
		if (t->group[n].used && t->group[n].check_at == k)
			(t->folds ? emit_fold_group : emit_group_check)(t, k, n);
}

void drop_unused_stores(struct translation *t)
{
	struct emit e = t->hot;

	for (u32 n = 0; n < t->groups && !e.overflow; n++)
		if (t->group[n].used && !t->group[n].reloaded) {
			e.p = t->group[n].kept;
			emit_nops(&e, (u32)(t->group[n].kept_end - e.p));
		}
}

/* Folding disturbs no flags. */
static bool folds_freely(const struct translation *t)
{
	return t->folds && t->half == HALF_SUPER;
}

/* An access that can be a group's member. */
struct access {
	u8 base; /* enum gpr or GROUP_RIP */
	u8 seg;
	s64 disp;
	u32 size;
	bool write, groupable;
};

static struct access operand_access(const struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct ea ea = insn_ea(t, k);

	return (struct access){.base = ea.rip_relative ? (u8)GROUP_RIP : ea.base,
			       .seg = ea.seg,
			       .disp = ea.disp,
			       .size = i->mem_size,
			       .write = i->mem_write,
			       .groupable = ea_is_supported(t, &ea) && ea.index == NO_REG &&
					    (ea.base != NO_REG || ea.rip_relative) &&
					    ea.bits == t->bits && !has_segment_base(&ea) &&
					    i->mem_size && i->mem_size <= 64 && !i->masked &&
					    !(ea.has_address && folds_freely(t))};
}

static struct access stack_access(const struct translation *t, u8 base, s64 disp, bool write)
{
	return (struct access){.base = base,
			       .seg = SEG_SS,
			       .disp = disp,
			       .size = t->bits / 8,
			       .write = write,
			       .groupable = true};
}

/* The accesses of instruction @k in the order in which emission checks them. */
static u32 list_accesses(const struct translation *t, u32 k, struct access out[2])
{
	const struct insn *i = &t->in[k];
	s64 size = t->bits / 8;
	u32 n = 0;

	switch (i->cls) {
	case INSN_DATA:
	case INSN_JMP_INDIRECT:
		if (i->has_mem)
			out[n++] = operand_access(t, k);
		break;
	case INSN_PUSH:
	case INSN_CALL:
	case INSN_CALL_INDIRECT:
		if (i->has_mem)
			out[n++] = operand_access(t, k);
		out[n++] = stack_access(t, RSP, -size, true);
		break;
	case INSN_POP:
	case INSN_RET:
		if (!i->has_mem)
			out[n++] = stack_access(t, RSP, 0, false);
		break;
	case INSN_SYSTEM:
		if (i->mnemonic == ZYDIS_MNEMONIC_LEAVE)
			out[n++] = stack_access(t, RBP, 0, false);
		break;
	default: break;
	}
	return n;
}

/* Does instruction @k add a constant to @reg and nothing else (flags aside)? */
static bool adds_constant(const struct translation *t, u32 k, u8 reg, s64 *by)
{
	const struct insn *i = &t->in[k];
	s64 size = t->bits / 8;

	switch (i->cls) {
	case INSN_PUSH: *by = -size; return reg == RSP && i->opsize == size;
	case INSN_POP:
		*by = size;
		return reg == RSP && i->opsize == size && !i->has_mem && i->opcode_reg.reg != RSP &&
		       i->rm.reg != RSP;
	case INSN_LEA:
		*by = i->disp;
		return i->reg.reg == reg && i->base == reg && i->index == NO_REG &&
		       i->opsize == size && i->addrsize == size;
	case INSN_DATA:
		if (i->has_mem || !i->has_imm || i->rm.reg != reg || i->rm.size != size)
			return false;
		*by = i->mnemonic == ZYDIS_MNEMONIC_SUB ? -i->imm : i->imm;
		return i->mnemonic == ZYDIS_MNEMONIC_ADD || i->mnemonic == ZYDIS_MNEMONIC_SUB;
	default: return false;
	}
}

/* Put access @a (of instruction @k, @n-th) into the open group of its base, or open one. */
static void join_group(struct translation *t, u32 k, u32 n, const struct access *a,
		       u8 open[GROUP_BASES], const u8 since[GROUP_BASES])
{
	s64 lo = a->disp + t->base_off[a->base], hi = lo + a->size;
	struct group *g = open[a->base] == NO_GROUP ? NULL : &t->group[open[a->base]];

	if (g && MAX(g->hi, hi) - MIN(g->lo, lo) > (t->folds ? FOLD_SPAN : GROUP_SPAN))
		g = NULL;
	/* A write that a side exit may prevent must not make a page dirty. */
	if (g && a->write && !g->write && g->first < t->certain && !t->folds)
		g = NULL;
	if (!g) {
		if (t->groups == MAX_GROUPS)
			return;
		open[a->base] = (u8)t->groups;
		g = &t->group[t->groups++];
		*g = (struct group){.base = a->base,
				    .seg = a->seg,
				    .since = MAX(since[a->base], t->certain),
				    .first = (u8)k,
				    .base_off = t->base_off[a->base],
				    .lo = lo,
				    .hi = hi};
	}
	g->lo = MIN(g->lo, lo);
	g->hi = MAX(g->hi, hi);
	g->write |= a->write;
	g->members++;
	t->group_of[k][n] = (u8)(g - t->group);
	t->group_off[k][n] = lo;
}

/* Registers that instruction @k changes: their groups end, unless a constant is added. */
static void track_bases(struct translation *t, u32 k, u8 open[GROUP_BASES], u8 since[GROUP_BASES])
{
	const struct insn *i = &t->in[k];
	u32 changed = i->gpr_write;

	if (i->cls == INSN_SYSTEM || i->cls == INSN_STRING)
		changed = 0xffff;
	t->step_of[k] = NO_REG;
	for (; changed; changed &= changed - 1) {
		u32 r = (u32)__builtin_ctz(changed);

		if (adds_constant(t, k, (u8)r, &t->step[k])) {
			t->step_of[k] = (u8)r;
			t->base_off[r] += t->step[k];
		} else {
			open[r] = NO_GROUP;
			since[r] = (u8)(k + 1);
			t->base_off[r] = 0;
		}
	}
}

/* Where is the check of @g to stand? */
static u32 find_place(const struct translation *t, struct group *g)
{
	s64 off = g->base_off;
	u32 at = g->first;

	if (folds_freely(t))
		return at;
	while (at > g->since && t->live[at] && uses(t, SOFT_HOISTING))
		if (t->step_of[--at] == g->base)
			off -= t->step[at];
	if (t->live[at])
		return g->first;
	g->base_off = off;
	return at;
}

/* Decide where each group's check stands and which groups pay. */
static void place_checks(struct translation *t)
{
	for (u32 n = 0; n < t->groups; n++) {
		struct group *g = &t->group[n];
		u32 at = find_place(t, g);

		g->check_at = (u8)at;
		g->used = g->members > 1 || (t->live[g->first] && !t->live[at] && !folds_freely(t));
		/* The check's address must be expressible. */
		if (g->lo - g->base_off != (s32)(g->lo - g->base_off))
			g->used = false;
		if (t->folds && !is_near_group(g))
			g->used = false;
		if (g->used)
			t->checks_at |= BIT(at);
	}
}

void find_groups(struct translation *t)
{
	u8 open[GROUP_BASES], since[GROUP_BASES];
	bool groups = !(t->mode & MODE_SINGLE) && uses(t, SOFT_GROUPS);
	struct access list[2];

	t->groups = t->certain = 0;
	t->checks_at = 0;
	for (u32 r = 0; r < GROUP_BASES; r++) {
		open[r] = NO_GROUP;
		since[r] = 0;
		t->base_off[r] = 0;
	}
	for (u32 k = 0; k < t->n; k++) {
		u32 count = list_accesses(t, k, list);

		t->group_of[k][0] = t->group_of[k][1] = NO_GROUP;
		for (u32 n = 0; n < count && groups; n++)
			if (list[n].groupable)
				join_group(t, k, n, &list[n], open, since);
		track_bases(t, k, open, since);
		if (t->in[k].cls == INSN_JCC)
			t->certain = (u8)(k + 1);
	}
	place_checks(t);
}
