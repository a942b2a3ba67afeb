/*
 * Cases out of random numbers.
 *
 * Opcodes are walked: each opcode map has a counter, so that all 256 opcodes of a map come up
 * equally often; prefixes, ModRM and what follows are random. The decoder says where the
 * instruction ends and what it touches; filter.c says whether it may run. Then its operands are
 * given sense: base registers that no earlier instruction of the sequence has written are chosen so
 * that the address falls into the data region (aligned, misaligned, across pages, sometimes into
 * the hole or the read-only page).
 */
#include "diff.h"
#include "filter.h"
#include "random.h"

#include <Zydis/Zydis.h>
#include <regex.h>
#include <string.h>

enum opcode_map {
	MAP_ONE_BYTE,
	MAP_0F,
	MAP_0F38,
	MAP_0F3A,
	MAP_X87,
	MAP_VEX1,
	MAP_VEX2,
	MAP_VEX3,
	MAP_EVEX1,
	MAP_EVEX2,
	MAP_EVEX3,
	MAP_EVEX5,
	MAP_EVEX6,
	MAP_COUNT,
};

static const u8 map_weight[MAP_COUNT] = {26, 22, 5, 4, 7, 8, 7, 4, 6, 6, 4, 1, 1};

/* A case under construction. */
struct draft {
	struct generator *g;
	struct test_case *t;
	u16 known;  /* registers whose initial value something depends on */
	u16 dirty;  /* registers written by an earlier instruction */
	u32 offset; /* of the instruction being made, from the first one */
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	struct insn insn;
};

/* A memory operand to be aimed. */
struct aim {
	u8 base, index, scale;
	bool rip_relative;
	u8 seg;
	u32 bits, size;
	s64 disp;
};

static u32 pick_map(struct generator *g)
{
	u64 at = random_below(&g->rng, 101);
	u32 n = 0;

	while (n < MAP_COUNT - 1 && at >= map_weight[n])
		at -= map_weight[n++];
	return n;
}

static u32 put_prefixes(struct generator *g, u32 bits, u8 *p)
{
	static const u8 segment[] = {0x64, 0x65, 0x2e, 0x36, 0x3e, 0x26};
	u64 *s = &g->rng;
	u32 n = 0;

	if (random_chance(s, 6))
		p[n++] = bits == 64 ? segment[random_below(s, 6)] : segment[2 + random_below(s, 4)];
	if (random_chance(s, 4))
		p[n++] = 0x67;
	if (random_chance(s, 22))
		p[n++] = 0x66;
	if (random_chance(s, 16))
		p[n++] = 0xf2;
	if (random_chance(s, 16))
		p[n++] = 0xf3;
	if (random_chance(s, 5))
		p[n++] = 0xf0;
	return n;
}

static u32 put_vex(struct generator *g, u32 bits, u32 map, u8 *p)
{
	u64 r = random_next(&g->rng);
	u8 rxb = bits == 64 ? (u8)(r & 0xe0) : 0xc0 | (r & 0x20);
	u8 vvvv = r & 0x100 ? 0x78 : (u8)(r >> 16 & 0x78);

	if (map == 1 && r & 0x200) {
		p[0] = 0xc5;
		p[1] = (u8)((rxb & 0x80) | vvvv | (r >> 24 & 7));
		if (bits == 32)
			p[1] |= 0xc0;
		return 2;
	}
	p[0] = 0xc4;
	p[1] = (u8)(rxb | map);
	p[2] = (u8)((r >> 24 & 0x87) | vvvv);
	return 3;
}

static u32 put_evex(struct generator *g, u32 bits, u32 map, u8 *p)
{
	u64 r = random_next(&g->rng);

	p[0] = 0x62;
	p[1] = (u8)((bits == 64 ? r & 0xf0 : 0xc0 | (r & 0x30)) | map);
	p[2] = (u8)((r >> 8 & 0x83) | 4 | (r & 0x10000 ? 0x78 : r >> 16 & 0x78));
	p[3] = (u8)((r >> 32 & 0x60) | (r >> 40 & 3 ? 8 : r >> 48 & 8));
	if (random_chance(&g->rng, 50))
		p[3] |= r >> 56 & 7;
	if (p[3] & 7 && random_chance(&g->rng, 40))
		p[3] |= 0x80;
	if (random_chance(&g->rng, 25))
		p[3] |= 0x10;
	return 4;
}

/* Prefixes and opcode; the rest of the 15 bytes is random. */
static void random_bytes(struct generator *g, u32 bits, u8 p[15])
{
	u32 map = pick_map(g), n;
	u8 opcode = (u8)(g->walk[map]++ * 167 + 13);

	for (n = 0; n < 15; n++)
		p[n] = (u8)random_next(&g->rng);
	n = map < MAP_VEX1              ? put_prefixes(g, bits, p)
	    : random_chance(&g->rng, 3) ? put_prefixes(g, bits, p)
					: 0;
	if (map < MAP_VEX1 && bits == 64 && random_chance(&g->rng, 45))
		p[n++] = (u8)(0x40 | random_below(&g->rng, 16));
	if (map == MAP_0F || map == MAP_0F38 || map == MAP_0F3A)
		p[n++] = 0x0f;
	if (map == MAP_0F38 || map == MAP_0F3A)
		p[n++] = map == MAP_0F38 ? 0x38 : 0x3a;
	if (map == MAP_X87)
		opcode = 0xd8 | (opcode & 7);
	if (map >= MAP_VEX1 && map <= MAP_VEX3)
		n += put_vex(g, bits, map - MAP_VEX1 + 1, p + n);
	else if (map >= MAP_EVEX1 && map <= MAP_EVEX3)
		n += put_evex(g, bits, map - MAP_EVEX1 + 1, p + n);
	else if (map >= MAP_EVEX5)
		n += put_evex(g, bits, map - MAP_EVEX5 + 5, p + n);
	p[n++] = opcode;
	/* Random ModRM bytes name a register in a quarter of all cases; make that nearly half. */
	if (random_chance(&g->rng, 25))
		p[n] |= 0xc0;
}

static bool decode(struct draft *d, const u8 *p)
{
	ZydisDecoder decoder;

	insn_decode(&d->insn, p, 15, d->t->bits);
	ZydisDecoderInit(&decoder,
			 d->t->bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64
					  : ZYDIS_MACHINE_MODE_LEGACY_32,
			 d->t->bits == 64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
	ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, p, 15, &d->z, d->ops));
}

/* ---- addresses ---- */

static u64 pick_address(struct generator *g, u32 size)
{
	static const u8 writable[] = {0, 1, 2, 4, 6, 7};
	u64 *s = &g->rng;
	u64 page = DATA_BASE + writable[random_below(s, 6)] * PAGE_SIZE;
	u32 kind = (u32)random_below(s, 100);

	if (kind < 55)
		return page + align_down(random_below(s, PAGE_SIZE), 64) +
		       (size < 64 ? random_below(s, 64 / MAX(size, 1u)) * size : 0);
	if (kind < 78)
		return page + random_below(s, PAGE_SIZE);
	if (kind < 88) /* across the first two boundaries */
		return DATA_BASE + (1 + random_below(s, 2)) * PAGE_SIZE - random_below(s, size + 1);
	if (kind < 93) /* around the hole */
		return DATA_BASE + (PAGE_HOLE + random_below(s, 2)) * PAGE_SIZE -
		       random_below(s, size + 8);
	if (kind < 97) /* around the read-only page */
		return DATA_BASE + PAGE_READ_ONLY * PAGE_SIZE + random_below(s, PAGE_SIZE + 16) - 8;
	if (kind < 98) /* beside the code, sometimes into it */
		return CODE_BASE + random_below(s, CODE_PAGES * PAGE_SIZE);
	return random_integer(s);
}

static u64 pick_pointer(struct generator *g)
{
	return DATA_BASE + PAGE_SIZE / 2 + random_below(&g->rng, 2 * PAGE_SIZE);
}

static bool is_free(const struct draft *d, u8 reg)
{
	return reg != NO_REG && !((d->known | d->dirty) & 1u << reg);
}

static void fix(struct draft *d, u8 reg, u64 value)
{
	if (d->t->bits == 32)
		value = (u32)value;
	d->t->r[reg] = value;
	d->known |= (u16)(1u << reg);
}

static u64 segment_base(const struct draft *d, u8 seg)
{
	return d->t->bits != 64 ? 0
	       : seg == SEG_FS  ? d->t->fs_base
	       : seg == SEG_GS  ? d->t->gs_base
				: 0;
}

/* Overwrite the instruction's displacement (or absolute address) of @size bytes. */
static void patch(struct item *item, u32 at, u64 v, u32 size)
{
	memcpy(item->bytes + at, &v, MIN(size, 15u - at));
}

static u64 aim_rest(const struct draft *d, const struct aim *a)
{
	u64 v = (u64)a->disp + segment_base(d, a->seg);

	if (a->index != NO_REG)
		v += d->t->r[a->index] * a->scale;
	return v;
}

/* No base register: change the displacement. */
static void aim_displacement(struct draft *d, struct item *item, const struct aim *a, u64 target)
{
	u64 v = target - (aim_rest(d, a) - (u64)a->disp);

	if (!d->insn.has_modrm) {
		patch(item, d->insn.opcode_off + d->insn.opcode_len, v, d->insn.addrsize);
		return;
	}
	if (a->rip_relative)
		v -= CODE_BASE + d->t->code_offset + d->offset + d->insn.len;
	if (d->z.raw.disp.size == 32)
		patch(item, d->z.raw.disp.offset, v, 4);
}

/* Choose registers (or the displacement) so that the operand lies at a picked address. */
static void aim_at(struct draft *d, struct item *item, const struct aim *a)
{
	u64 target = pick_address(d->g, MIN(a->size, 256u));
	u64 mask = a->bits == 64 ? ~0ul : 0xffffffff;

	if (a->index != NO_REG && a->index != a->base && is_free(d, a->index) &&
	    (random_chance(&d->g->rng, 50) || !is_free(d, a->base)))
		fix(d, a->index, random_below(&d->g->rng, 64));
	if (a->base == NO_REG) {
		aim_displacement(d, item, a, target);
	} else if (is_free(d, a->base) && a->base != a->index) {
		u64 upper = random_next(&d->g->rng) & ~mask;

		fix(d, a->base, ((target - aim_rest(d, a)) & mask) | upper);
		if (a->index != NO_REG)
			d->known |= (u16)(1u << a->index);
	} else if (d->z.raw.disp.size == 32 && !(d->dirty & 1u << a->base)) {
		u64 v = target - (aim_rest(d, a) - (u64)a->disp) - d->t->r[a->base];

		if (v == (u64)(s64)(s32)v)
			patch(item, d->z.raw.disp.offset, v, 4);
	}
}

static u8 gpr_number(ZydisRegister r)
{
	ZyanI8 id =
		ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r));
	ZydisRegisterClass c = ZydisRegisterGetClass(r);

	if (c != ZYDIS_REGCLASS_GPR64 && c != ZYDIS_REGCLASS_GPR32 && c != ZYDIS_REGCLASS_GPR16 &&
	    c != ZYDIS_REGCLASS_GPR8)
		return NO_REG;
	return (u8)id;
}

/* Element @n (64 bits) of vector register @reg in the image. */
static void set_lane(struct draft *d, u32 reg, u32 n, u64 v)
{
	const struct layout *l = d->g->layout;
	u8 *x = d->t->xsave;
	u32 at;

	if (reg >= 16)
		at = l->offset[7] + (reg - 16) * 64 + n * 8;
	else if (n < 2)
		at = 160 + reg * 16 + n * 8;
	else if (n < 4)
		at = l->offset[2] + reg * 16 + (n - 2) * 8;
	else
		at = l->offset[6] + reg * 32 + (n - 4) * 8;
	if (at + 8 <= l->xsave_size)
		memcpy(x + at, &v, 8);
}

/* Small element indices in the index register of a gather or scatter. */
static void set_indices(struct draft *d, ZydisRegister index)
{
	u32 reg = (u32)ZydisRegisterGetId(index);
	bool words = random_chance(&d->g->rng, 50);
	u64 all = d->g->layout->xcr0;

	memcpy(d->t->xsave + 512, &all, 8);
	for (u32 n = 0; n < 8; n++) {
		u64 low = random_below(&d->g->rng, 160), high = random_below(&d->g->rng, 160);

		set_lane(d, reg, n, words ? low | high << 32 : low);
	}
}

static void aim_operand(struct draft *d, struct item *item, const ZydisDecodedOperand *op)
{
	bool vsib = op->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
	struct aim a = {
		.base = NO_REG,
		.index = NO_REG,
		.scale = op->mem.scale ? op->mem.scale : 1,
		.rip_relative =
			op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP,
		.seg = op->mem.segment == ZYDIS_REGISTER_FS   ? SEG_FS
		       : op->mem.segment == ZYDIS_REGISTER_GS ? SEG_GS
							      : SEG_DS,
		.bits = d->insn.addrsize * 8u,
		.size = op->size / 8,
		.disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0,
	};

	if (op->mem.type == ZYDIS_MEMOP_TYPE_AGEN || d->insn.addrsize == 2)
		return;
	if (!a.rip_relative && op->mem.base != ZYDIS_REGISTER_NONE)
		a.base = gpr_number(op->mem.base);
	if (vsib)
		set_indices(d, op->mem.index);
	else if (op->mem.index != ZYDIS_REGISTER_NONE)
		a.index = gpr_number(op->mem.index);
	if (a.base == RSP && op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
		return; /* push and pop: the stack pointer is good already */
	aim_at(d, item, &a);
}

/* ---- operands with a meaning ---- */

/* What the compare-exchange instructions expect in memory, half of the time. */
static void expect_memory(struct draft *d)
{
	const struct insn *i = &d->insn;
	u64 at, v, size = i->mem_size;

	if (!i->has_mem || i->base == NO_REG || i->index != NO_REG || i->seg >= SEG_FS)
		return;
	at = d->t->r[i->base] + (u64)i->disp - DATA_BASE;
	if (range_exceeds(at, size, sizeof(d->g->pattern)) || (d->known & 1u << RAX))
		return;
	memcpy(&v, d->g->pattern + at, 8);
	fix(d, RAX, v);
	if (i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG || (d->known & 1u << RDX))
		return;
	if (i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B)
		v >>= 32;
	else
		memcpy(&v, d->g->pattern + at + 8, 8);
	fix(d, RDX, v);
}

static void fix_if_free(struct draft *d, u8 reg, u64 value)
{
	if (is_free(d, reg))
		fix(d, reg, value);
}

static void give_sense(struct draft *d, struct item *item)
{
	const struct insn *i = &d->insn;
	u64 *s = &d->g->rng;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		if (random_chance(s, 70))
			fix_if_free(d, RDX, random_below(s, 4));
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		if (random_chance(s, 50))
			expect_memory(d);
		break;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		if (i->has_mem && i->reg.reg != NO_REG && random_chance(s, 80))
			fix_if_free(d, i->reg.reg, random_below(s, 16384) - 8192);
		break;
	case ZYDIS_MNEMONIC_XLAT: fix_if_free(d, RAX, random_next(s)); break;
	case ZYDIS_MNEMONIC_ENTER:
		fix_if_free(d, RBP, pick_pointer(d->g));
		if (random_chance(s, 80))
			item->bytes[i->opcode_off + 2] = 0;
		if (random_chance(s, 80))
			item->bytes[i->opcode_off + 3] = (u8)random_below(s, 4);
		break;
	case ZYDIS_MNEMONIC_LEAVE: fix_if_free(d, RBP, pick_pointer(d->g)); break;
	default: break;
	}
	if (i->cls == INSN_STRING && (i->rep || i->repne) && random_chance(s, 85))
		fix_if_free(d, RCX, random_below(s, 200));
}

/* ---- sequences ---- */

static bool matches(const struct draft *d)
{
	const char *name = ZydisMnemonicGetString(d->z.mnemonic);

	return !d->g->only || regexec(d->g->only, name ? name : "", 0, NULL, 0) == 0;
}

/* An instruction that may run, with its operands aimed. */
static bool make_insn(struct draft *d, struct item *item)
{
	random_bytes(d->g, d->t->bits, item->bytes);
	if (!decode(d, item->bytes)) {
		/* Is it really undefined? */
		if (!d->g->undecodable || d->insn.len == 0 || d->t->items)
			return false;
		item->len = 15;
		return filter_undecodable(item->bytes, d->t->bits);
	}
	if (!matches(d) || !filter_accepts(&d->z, d->ops, &d->insn, d->t->user))
		return false;
	item->kind = ITEM_INSN;
	item->len = d->insn.len;
	give_sense(d, item);
	for (u32 n = 0; n < d->z.operand_count; n++)
		if (d->ops[n].type == ZYDIS_OPERAND_TYPE_MEMORY)
			aim_operand(d, item, &d->ops[n]);
	give_sense(d, item);
	for (u32 n = 0; n < d->z.operand_count; n++)
		if (d->ops[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    d->ops[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
			u8 reg = gpr_number(d->ops[n].reg.value);

			if (reg != NO_REG)
				d->dirty |= (u16)(1u << reg);
		}
	return true;
}

static void make_branch(struct draft *d, struct item *item)
{
	u64 *s = &d->g->rng;

	*item = (struct item){.kind = (u8)(ITEM_JCC + random_below(s, ITEM_KINDS - ITEM_JCC)),
			      .cond = (u8)random_below(s, 16),
			      .target = (u8)(d->t->items + 1 + random_below(s, 3))};
	if (random_chance(s, 50))
		item->kind = ITEM_JCC;
	d->dirty |= item->kind == ITEM_JMP_REG                               ? 1u << RAX
		    : item->kind == ITEM_CALL_REG || item->kind == ITEM_LOOP ? 1u << RCX
									     : 0;
}

/* Run the whole sequence two or three times, when nothing in it changes rcx. */
static void make_loop(struct draft *d)
{
	struct test_case *t = d->t;

	if (t->items < 2 || t->items == DIFF_MAX_ITEMS || !is_free(d, RCX) ||
	    filter_undefined_flags(&d->insn) || !random_chance(&d->g->rng, 25))
		return;
	fix(d, RCX, 2 + random_below(&d->g->rng, 2));
	t->item[t->items++] =
		(struct item){.kind = ITEM_LOOP, .cond = (u8)random_below(&d->g->rng, 16)};
}

static void random_state(struct draft *d)
{
	struct test_case *t = d->t;
	u64 *s = &d->g->rng;

	for (u32 n = 0; n < GPR_COUNT; n++)
		t->r[n] = random_chance(s, 25) ? pick_pointer(d->g) : random_integer(s);
	t->r[RSP] = align_down(pick_pointer(d->g), random_chance(s, 90) ? 16 : 1);
	d->known = 1u << RSP;
	if (t->bits == 32)
		for (u32 n = 0; n < GPR_COUNT; n++)
			t->r[n] = n < R8 ? (u32)t->r[n] : 0;
	t->flags = random_next(s) & RFLAGS_ARITH;
	if (random_chance(s, 15))
		t->flags |= RFLAGS_DF;
	t->fs_base = t->bits == 64 ? DATA_BASE + random_below(s, PAGE_SIZE) : 0;
	t->gs_base = t->bits == 64 ? DATA_BASE + random_below(s, 2 * PAGE_SIZE) : 0;
	random_xsave(s, t->xsave, d->g->layout->xcr0, d->g->layout->xsave_size);
}

static void place_code(struct draft *d)
{
	u64 *s = &d->g->rng;
	u32 page = (u32)random_below(s, CODE_PAGES - 1) * PAGE_SIZE;

	d->t->code_offset = page + (u32)(random_chance(s, 15) ? PAGE_SIZE - random_below(s, 40)
							      : random_below(s, PAGE_SIZE - 256));
}

static u32 pick_length(struct generator *g)
{
	if (g->singles || random_chance(&g->rng, 50))
		return 1;
	return 2 + (u32)random_below(&g->rng, DIFF_MAX_ITEMS - 1);
}

static u32 pick_bits(struct generator *g)
{
	if (g->bits_only)
		return g->bits_only;
	return random_chance(&g->rng, 75) ? 64 : 32;
}

bool generator_next(struct generator *g, struct test_case *t)
{
	struct draft d = {.g = g, .t = t};
	u8 code[DIFF_MAX_CODE];
	u32 want = pick_length(g);
	bool branch;

	*t = (struct test_case){
		.number = t->number + 1, .bits = pick_bits(g), .user = random_chance(&g->rng, 60)};
	random_state(&d);
	place_code(&d);
	branch = want > 1 && random_chance(&g->rng, 12);
	for (u32 tries = 0; t->items < want && tries < 1000000; tries++) {
		struct item *item = &t->item[t->items];

		d.offset = case_assemble(t, code) - 1;
		if (branch)
			make_branch(&d, item);
		else if (!make_insn(&d, item))
			continue;
		t->items++;
		branch = want > 1 && random_chance(&g->rng, 12);
		if (item->kind == ITEM_INSN && filter_undefined_flags(&d.insn))
			want = t->items; /* nothing may look at them */
	}
	if (t->items < want)
		return false;
	make_loop(&d);
	return true;
}

void generator_init(struct generator *g, u64 seed, const struct layout *layout)
{
	*g = (struct generator){.rng = seed, .layout = layout};
	for (u32 n = 0; n < sizeof(g->pattern); n += 8) {
		u64 v = random_lane(&g->rng);

		memcpy(g->pattern + n, &v, 8);
	}
	for (u32 n = 0; n < MAP_COUNT; n++)
		g->walk[n] = random_next(&g->rng) & 0xff;
}
