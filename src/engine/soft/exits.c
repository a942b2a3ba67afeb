/*
 * Ways out of a block: direct and indirect branches, calls and returns, and what is live behind
 * them.
 *
 * A direct branch is a jump that cache_link() patches. To another page it has a guard before it,
 * for the page need not be there in every address space: see emit_crossing(). Indirect branches go
 * through the indirect-branch table of the current context.
 */
#include "engine/soft/reload.h"
#include "engine/soft/translate.h"
#include "engine/soft/translation.h"
#include "engine/soft/util.h"

#include <Zydis/Zydis.h>

static u16 live_before(const struct insn *i, u16 after)
{
	return (u16)((after & ~i->flags_kill) | i->flags_read);
}

/* The translation depends on the @n bytes from page offset @from on being as they are at @bytes. */
static void note_peek(struct translation *t, s64 from, u32 n, const u8 *bytes)
{
	if (t->c->vm->store)
		soft_copy(t->peek_bytes[t->peeks], bytes, n);
	t->peek_from[t->peeks] = (u16)from;
	t->peek_to[t->peeks++] = (u16)(from + n);
}

/* Instruction at page offset @off, which need not be in the block, as forms_look() gives it. NULL
 * when it cannot be known. */
static const struct insn *decode_ahead(const struct translation *t, s64 off, struct insn *room,
				       u8 bytes[16])
{
	const struct insn *i = room;
	u32 len;

	if (off < 0 || off >= (s64)PAGE_SIZE)
		return NULL;
	len = MIN((u32)(PAGE_SIZE - off), 15u);
	if (off + 16 <= (s64)PAGE_SIZE) {
		soft_store(bytes, soft_load(t->page_host + off, 8), 8);
		soft_store(bytes + 8, soft_load(t->page_host + off + 8, 8), 8);
	} else {
		soft_copy(bytes, t->page_host + off, len);
	}
	if (uses(t, SOFT_FORMS))
		i = forms_look(t->cache->forms, room, bytes, len, t->bits);
	else
		insn_decode(room, bytes, len, t->bits);
	return i->len ? i : NULL;
}

/* Flags live at page offset @off, by looking at what is there; all when it cannot be known. */
/* NOLINTNEXTLINE(misc-no-recursion): each level takes one of MAX_PEEKS */
static u16 look_ahead(struct translation *t, s64 off, u32 insns)
{
	u16 unknown = RFLAGS_ARITH, killed = 0, read = 0;
	u8 seen[PEEK_INSNS * 15 + 16];
	s64 start = off, next = -1;
	const struct insn *i;
	struct insn room;

	while (insns-- && unknown) {
		i = decode_ahead(t, off, &room, seen + (off - start));
		if (!i)
			break;
		read |= i->flags_read & ~killed;
		killed |= i->flags_kill;
		unknown &= (u16)~killed;
		off += i->len;
		if ((i->cls == INSN_JMP || i->cls == INSN_CALL) && i->opsize != 2)
			next = off + i->imm;
		if (insn_ends_block(i))
			break;
	}
	if ((read | unknown) == RFLAGS_ARITH && next < 0)
		return RFLAGS_ARITH;
	note_peek(t, start, (u32)(off - start), seen);
	if (unknown && next >= 0 && t->peeks < MAX_PEEKS)
		unknown &= look_ahead(t, next, insns);
	return read | unknown;
}

/*
 * Does block @b say by itself that no flags are live where it begins? Where translations are kept,
 * only if it is known which bytes it was made from; and when they are checked not at all, because
 * which blocks there are is different from run to run.
 */
static bool may_rely_on(const struct translation *t, const struct block *b)
{
	const struct soft_vm *vm = t->c->vm;

	if (b->page[1] != BLOCK_NO_PAGE || b->flags_live || b->size > PEEK_BYTES)
		return false;
	return !vm->store || (reload_bytes(b) && !vm->options.check_translations);
}

u16 peek_live(struct translation *t, s64 off)
{
	struct block *b = NULL;

	if (off < 0 || off >= (s64)PAGE_SIZE || t->peeks == MAX_PEEKS || !uses(t, SOFT_LOOK_AHEAD))
		return RFLAGS_ARITH;
	if (cache_may_have(t->cache, t->page[0], (u32)off))
		b = cache_find(t->cache, (t->pa & PAGE_MASK) + (u64)off,
			       t->mode & ~(u32)MODE_SINGLE, t->place);
	if (b && may_rely_on(t, b)) {
		note_peek(t, off, b->size, reload_bytes(b));
		return 0;
	}
	return look_ahead(t, off, PEEK_INSNS);
}

/* Flags live at the block's entry whatever follows it: what others may rely on while its bytes
 * stay. */
bool flags_live_by_itself(const struct translation *t)
{
	u16 live = RFLAGS_ARITH;

	for (u32 k = t->n; k-- > 0;) {
		if (t->in[k].cls == INSN_JCC)
			live = RFLAGS_ARITH;
		live = live_before(&t->in[k], live);
	}
	return live != 0;
}

void compute_liveness(struct translation *t)
{
	const struct insn *last = &t->in[t->n - 1];
	u16 live = RFLAGS_ARITH;

	if (last->cls == INSN_JCC)
		live = peek_live(t, branch_target(t, t->n - 1)) | peek_live(t, t->off[t->n]);
	else if (last->cls == INSN_JMP || last->cls == INSN_CALL)
		live = peek_live(t, branch_target(t, t->n - 1));
	else if (!insn_ends_block(last))
		live = peek_live(t, t->off[t->n]);
	t->live[t->n] = live;
	for (u32 k = t->n; k-- > 0;) {
		if (t->in[k].cls == INSN_JCC && k + 1 < t->n)
			live |= peek_live(t, branch_target(t, k));
		live = live_before(&t->in[k], live);
		t->live[k] = live;
	}
}

bool address_of(const struct translation *t, s64 off, s32 *address)
{
	u64 va = t->place + (u64)off;

	*address = (s32)va;
	return t->place && (s64)va == (s32)va;
}

/* rip of page offset @off (any distance) into HOST_S1. */
void emit_rip(struct translation *t, struct emit *e, s64 off)
{
	s32 address;

	if (address_of(t, off, &address)) {
		emit_mov_imm64(e, HOST_S1, (u64)(s64)address);
		return;
	}
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, code_va));
	emit_lea(e, t->bits, HOST_S1, HOST_S1, NO_REG, 1, (s32)off);
}

static u8 *emit_branch(struct emit *e, u32 branch)
{
	if (branch == BRANCH_CALL)
		return emit_call_forward(e);
	if (branch == BRANCH_JMP)
		return emit_jmp_forward(e);
	return emit_jcc_forward(e, branch & 15);
}

/*
 * A branch to a non-canonical address faults at the branch (SDM vol. 2, JMP), but is found out only
 * when its target is looked up: leave a note of where it is and how it moved the stack pointer.
 */
static void emit_note_branch(struct translation *t, struct emit *e, u32 off, u32 kind)
{
	if (t->bits == 64)
		emit_store_cpu_imm32(e, CPU_DISP(e, branch_site), (off & SITE_OFFSET) | kind);
}

/* A branch to another page goes through the table. */
static void emit_exit_across(struct translation *t, s64 off, u32 branch)
{
	struct emit *e = &t->hot;
	u8 *site;

	if (branch == BRANCH_JMP || branch == BRANCH_CALL) {
		emit_note_branch(t, e, 0, BRANCH_SITE_NONE);
		emit_rip(t, e, off);
		emit_indirect(e, t->half, branch == BRANCH_CALL);
		return;
	}
	site = emit_branch(e, branch);
	emit_patch(e, site, emit_here(&t->cold));
	emit_note_branch(t, &t->cold, 0, BRANCH_SITE_NONE);
	emit_rip(t, &t->cold, off);
	emit_indirect(&t->cold, t->half, false);
}

/* Can a branch to another page be linked? The page must be one of the kernel, too. */
static bool may_link_far(const struct translation *t, s64 off)
{
	s32 address;

	return uses(t, SOFT_FAR_LINKS) && t->page[1] == BLOCK_NO_PAGE &&
	       address_of(t, off, &address) && address < 0 && off == (s32)off;
}

/* Page offset of the beginning of the page that @off lies on. */
static s64 page_of(s64 off)
{
	return off & (s64)PAGE_MASK;
}

/* Can a branch to @off be linked though that is on another page? */
static bool may_cross(const struct translation *t, s64 off)
{
	return uses(t, SOFT_CROSS_LINKS) && page_of(off) == (s32)page_of(off);
}

void emit_unlinked(struct translation *t, struct emit *e, struct block_exit *x)
{
	u64 stub = emit_here(&t->cold);

	x->stub = x->unlinked = (u32)(stub - t->cache->rx);
	emit_patch(e, x->site, stub);
}

/* jmp or call HOST_S2's exit's way otherwise. */
static void emit_otherwise(struct emit *e, bool call)
{
	const u8 code[] = {0x41, 0xff, call ? 0x53 : 0x63, offsetof(struct block_exit, otherwise)};

	emit_bytes(e, code, sizeof(code));
}

/*
 * A branch to another page, in @e, whose code_va is in HOST_S2. It may go straight to the block it
 * was linked to if in this address space that page is there: soft_half.cross[] knows by the page of
 * RAM, of which there is just one. Flags stay, for what they are good for is known over there only.
 * What is to be patched has the same position in three quadwords.
 */
static void emit_crossing(struct translation *t, struct emit *e, s64 off, bool call)
{
	/* lea rcx, [rcx + HOST_S2 + CROSS_NEVER] */
	static const u8 sum[] = {0x4a, 0x8d, 0x8c, 0x19, CROSS_NEVER & 0xff, CROSS_NEVER >> 8,
				 0,    0};
	struct emit *cold = &t->cold;
	struct block_exit *x = &t->b->exit[t->exits++];
	u8 *other;

	emit_align_site(e, 8);
	emit_mov(e, HOST_S1, RCX);
	emit_half_op(e, t->half, 0x8b, RCX, NO_REG, 1, offsetof(struct soft_half, cross));
	emit_bytes(e, sum, sizeof(sum));
	emit_jrcxz(e, 5);
	other = emit_jmp_forward(e);
	emit_mov(e, RCX, HOST_S1);
	emit_store_cpu(e, CPU_DISP(e, code_va), HOST_S2);
	*x = (struct block_exit){.from = t->b,
				 .site = call ? emit_call_forward(e) : emit_jmp_forward(e),
				 .target = (s32)(off - page_of(off)),
				 .backward = off < 0,
				 .crosses = true,
				 .otherwise = t->cache->entry.cross_link[t->bits == 64],
				 .distance = (s32)off};
	emit_unlinked(t, e, x);
	emit_mov_imm64(cold, HOST_S2, (u64)x);
	emit_jmp(cold, t->cache->entry.link[t->bits == 64]);
	emit_patch(e, other, emit_here(cold));
	emit_mov(cold, RCX, HOST_S1);
	emit_mov_imm64(cold, HOST_S2, (u64)x);
	emit_otherwise(cold, call);
	if (call)
		emit_jmp(cold, emit_here(e));
}

/* HOST_S2 = code_va of the page that @off lies on. */
static void emit_other_page(const struct translation *t, struct emit *e, s64 off)
{
	s32 address;

	if (address_of(t, page_of(off), &address)) {
		emit_mov_imm64(e, HOST_S2, (u64)(s64)address);
		return;
	}
	emit_load_cpu(e, HOST_S2, CPU_DISP(e, code_va));
	emit_lea(e, 64, HOST_S2, HOST_S2, NO_REG, 1, (s32)page_of(off));
}

static void emit_exit_crossing(struct translation *t, s64 off, u32 branch)
{
	struct emit *e = &t->hot;
	u8 *site;

	if (branch == BRANCH_JMP) {
		emit_other_page(t, e, off);
		emit_crossing(t, e, off, false);
		return;
	}
	/* A conditional one: mostly not taken, or the block would not go on behind it. */
	site = emit_branch(e, branch);
	emit_patch(e, site, emit_here(&t->cold));
	emit_other_page(t, &t->cold, off);
	emit_crossing(t, &t->cold, off, false);
}

/* Exit by @branch to page offset @off, which may lie on another page. */
void emit_exit(struct translation *t, s64 off, u32 branch)
{
	struct emit *hot = &t->hot, *cold = &t->cold;
	bool far = off < 0 || off >= (s64)PAGE_SIZE;
	struct block_exit *x;
	u8 *site;

	if (far && !may_link_far(t, off)) {
		(may_cross(t, off) && branch != BRANCH_CALL ? emit_exit_crossing
							    : emit_exit_across)(t, off, branch);
		return;
	}
	emit_align_site(hot, branch == BRANCH_JMP || branch == BRANCH_CALL ? 1 : 2);
	x = &t->b->exit[t->exits++];
	site = emit_branch(hot, branch);
	*x = (struct block_exit){.from = t->b,
				 .site = site,
				 .target = (s32)off,
				 .far = far,
				 .backward = off <= t->off[t->current]};
	emit_unlinked(t, hot, x);
	emit_mov_imm64(cold, HOST_S2, (u64)x);
	emit_jmp(cold, t->cache->entry.link[t->bits == 64]);
}

void soft_exit_indirectly(struct soft_cpu *c, struct block_exit *x)
{
	struct cache *cache = c->vm->cache;
	static _Thread_local struct translation t;
	u64 at;

	if (x->crosses && !x->page) {
		cache_cross_by_table(cache, x);
		return;
	}
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
	x->unlinked = (u32)(at - cache->rx);
	cache_link(cache, x, NULL);
}

s64 branch_target(const struct translation *t, u32 k)
{
	return (s64)t->off[k] + t->in[k].len + t->in[k].imm;
}

void flush_sp(struct translation *t)
{
	if (t->sp)
		emit_lea(&t->hot, t->bits, HOST_SP, HOST_SP, NO_REG, 1, t->sp);
	t->sp = 0;
}

void emit_adjust_sp(struct translation *t, s32 by)
{
	t->sp += by;
	if (!t->defers_sp)
		flush_sp(t);
}

/* Is the return address known, so that the private stack need not keep it? */
static bool returns_to_place(const struct translation *t, s64 next, s32 *address)
{
	return next < (s64)PAGE_SIZE && address_of(t, next, address);
}

/*
 * Push the address of the next instruction, and its complement on the private stack. With @page
 * HOST_S2 becomes code_va of the page at that page offset.
 */
static void emit_push_return(struct translation *t, u32 k, const s64 *page)
{
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, -(s64)size);
	struct host_mem m = emit_check_one(t, k, &ea, size, true);
	s64 next = (s64)t->off[k] + t->in[k].len;
	s32 address;

	if (returns_to_place(t, next, &address)) {
		emit_store_imm(&t->hot, m, address, size);
		emit_adjust_sp(t, -(s32)size);
		if (page)
			emit_other_page(t, &t->hot, *page);
		return;
	}
	emit_rip(t, &t->hot, next);
	emit_store(&t->hot, m, HOST_S1, size);
	emit_adjust_sp(t, -(s32)size);
	if (!uses(t, SOFT_HOST_CALLS))
		return;
	if (page)
		emit_lea(&t->hot, 64, HOST_S2, HOST_S1, NO_REG, 1,
			 (s32)(*page - t->off[k] - t->in[k].len));
	emit_not(&t->hot, HOST_S1);
	emit_push_host(&t->hot, HOST_S1);
}

/*
 * Behind a return to page offset @next: code_va = HOST_S1 - @next. After a call within the page
 * (@from_page) it mostly has that value; comparing instead of storing keeps the addresses that
 * later calls push from depending on this one, through memory, call by call.
 */
static void emit_code_va(struct translation *t, s64 next, bool from_page)
{
	struct emit *e = &t->hot, *cold = &t->cold;
	u8 *other;

	emit_lea(e, 64, HOST_S2, HOST_S1, NO_REG, 1, -(s32)next);
	if (!from_page || peek_live(t, next)) {
		emit_store_cpu(e, CPU_DISP(e, code_va), HOST_S2);
		return;
	}
	emit_cmp_cpu(e, HOST_S2, CPU_DISP(e, code_va));
	other = emit_jcc_forward(e, COND_NE);
	emit_patch(e, other, emit_here(cold));
	emit_store_cpu(cold, CPU_DISP(cold, code_va), HOST_S2);
	emit_jmp(cold, emit_here(e));
}

/*
 * Calls and returns use the host's, so that its return predictor works for the guest: the call
 * keeps the complement of the guest return address under the host's on the private stack. A return
 * arrives behind the call with the popped guest address in HOST_S1; if that is not the one kept, it
 * is looked up like any other.
 */
static void emit_return_point(struct translation *t, u32 k, bool from_page)
{
	s64 next = (s64)t->off[k] + t->in[k].len;
	struct emit *e = &t->hot, *cold = &t->cold;
	s32 address;
	u8 *other;

	if (next >= (s64)PAGE_SIZE) {
		emit_pop_host(e, HOST_S2);
		emit_indirect(e, t->half, false);
		return;
	}
	emit_mov(e, HOST_S2, RCX);
	if (returns_to_place(t, next, &address)) {
		emit_lea(e, 64, RCX, HOST_S1, NO_REG, 1, -address);
	} else {
		emit_pop_host(e, RCX);
		emit_lea(e, 64, RCX, RCX, HOST_S1, 1, 1);
	}
	emit_jrcxz(e, 5);
	other = emit_jmp_forward(e);
	emit_mov(e, RCX, HOST_S2);
	emit_patch(e, other, emit_here(cold));
	emit_mov(cold, RCX, HOST_S2);
	emit_indirect(cold, t->half, false);
	if (t->place)
		emit_store_cpu_sign(e, CPU_DISP(e, code_va), (s32)t->place);
	else
		emit_code_va(t, next, from_page);
	emit_exit(t, next, BRANCH_JMP);
}

bool emit_call_direct(struct translation *t, u32 k)
{
	s64 target = branch_target(t, k), page = page_of(target);
	bool crosses = page && !may_link_far(t, target) && may_cross(t, target) &&
		       page - t->off[k] > INT32_MIN + 16;

	if (!uses(t, SOFT_HOST_CALLS)) {
		emit_push_return(t, k, NULL);
		emit_exit(t, target, BRANCH_JMP);
		return true;
	}
	emit_push_return(t, k, crosses ? &page : NULL);
	if (crosses)
		emit_crossing(t, &t->hot, target, true);
	else
		emit_exit(t, target, BRANCH_CALL);
	emit_return_point(t, k, !page);
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

bool emit_call_indirect(struct translation *t, u32 k)
{
	struct emit *e = &t->hot;

	if (!emit_indirect_target(t, k))
		return false;
	emit_store_cpu(e, CPU_DISP(e, spill[1]), HOST_S1);
	emit_push_return(t, k, NULL);
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, spill[1]));
	emit_note_branch(t, e, t->off[k], BRANCH_SITE_CALL);
	emit_indirect(e, t->half, uses(t, SOFT_HOST_CALLS));
	if (uses(t, SOFT_HOST_CALLS))
		emit_return_point(t, k, false);
	return true;
}

bool emit_jmp_indirect(struct translation *t, u32 k)
{
	if (!emit_indirect_target(t, k))
		return false;
	emit_note_branch(t, &t->hot, t->off[k], BRANCH_SITE_JMP);
	emit_indirect(&t->hot, t->half, false);
	return true;
}

bool emit_ret(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, 0);
	struct host_mem m;

	if (t->bits == 32 ? i->opsize != 4 : i->has_imm)
		return false;
	emit_note_branch(t, &t->hot, t->off[k], BRANCH_SITE_RET);
	m = emit_check(t, k, &ea, size, false);
	emit_load(&t->hot, HOST_S1, m, size);
	emit_adjust_sp(t, (s32)size + (i->has_imm ? (s32)(u16)i->imm : 0));
	if (uses(t, SOFT_HOST_CALLS))
		emit_u8(&t->hot, 0xc3); /* to an emit_return_point(), or to the stack's bottom */
	else
		emit_indirect(&t->hot, t->half, false);
	return true;
}

bool emit_loop(struct translation *t, u32 k)
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
