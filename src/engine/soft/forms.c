/* See forms.h. */
#include "engine/soft/forms.h"

#include "engine/soft/util.h"

enum { MODRM_UNKNOWN, MODRM_NO, MODRM_YES };
enum { MAP_0F = 1, MAP_0F38, MAP_0F3A, MAP_VEX_0F, MAP_VEX_0F38 };
enum { KEY_MAX = 7, NO_MAP = 0xff };

#define FORM_BLIND (1ul << 63)

/* Position in the first eight bytes of an instruction. */
struct cursor {
	u64 bytes;
	u32 at;
};

static u8 peek(const struct cursor *c)
{
	return c->at < 8 ? (u8)(c->bytes >> (8 * c->at)) : 0;
}

static u8 next(struct cursor *c)
{
	u8 b = peek(c);

	c->at++;
	return b;
}

static u8 next_of_vex(struct cursor *c, u8 escape, u8 *map)
{
	*map = MAP_VEX_0F;
	if (escape == 0xc4) {
		u8 m = next(c) & 0x1f;

		*map = m == 1 ? MAP_VEX_0F : m == 2 ? MAP_VEX_0F38 : NO_MAP;
	}
	next(c);
	return next(c);
}

/* Prefixes and opcode; @map is NO_MAP for what is not remembered. */
static u8 next_opcode(struct cursor *c, u8 *map)
{
	u8 op;

	*map = 0;
	while (insn_is_prefix(peek(c)) && peek(c) != 0x67)
		next(c);
	if ((peek(c) & 0xf0) == 0x40)
		next(c);
	op = next(c);
	if (op == 0xc4 || op == 0xc5)
		return next_of_vex(c, op, map);
	/* A prefix behind REX, address size, EVEX, XOP or POP, MOV with an absolute address */
	if (insn_is_prefix(op) || (op & 0xf0) == 0x40 || op == 0x62 || op == 0x8f ||
	    (op >= 0xa0 && op <= 0xa3))
		*map = NO_MAP;
	if (op != 0x0f)
		return op;
	op = next(c);
	*map = op == 0x38 ? MAP_0F38 : op == 0x3a ? MAP_0F3A : MAP_0F;
	if (*map != MAP_0F)
		return next(c);
	/* 3DNow!, whose opcode comes last; control registers, whose ModRM has no SIB */
	if (op == 0x0f || (op >= 0x20 && op <= 0x23))
		*map = NO_MAP;
	return op;
}

/* What a shift does to flags depends on its count. */
static bool immediate_matters(u8 map, u8 op)
{
	return (map == 0 && (op == 0xc0 || op == 0xc1)) ||
	       (map == MAP_0F && (op == 0xa4 || op == 0xac));
}

/*
 * Does the decoding of opcode @op with @modrm depend on its registers in no other way than that it
 * names them? True of the most frequent instructions with operands of 16 bits and more; not where
 * an implied register could be named as well.
 */
static bool is_register_blind(u8 map, u8 op, u8 modrm)
{
	u32 reg = modrm >> 3 & 7;

	if (map == MAP_0F)
		return (op & 0xf0) == 0x40 || op == 0xaf || op == 0xb7 || op == 0xbf ||
		       ((op == 0xb6 || op == 0xbe) && modrm < 0xc0);
	if (map)
		return false;
	if (op < 0x40)
		return (op & 5) == 1;
	switch (op) {
	case 0x63:
	case 0x69:
	case 0x6b:
	case 0x81:
	case 0x83:
	case 0x85:
	case 0x89:
	case 0x8b:
	case 0x8d:
	case 0xc1:
	case 0xd1: return true;
	case 0xc7: return !reg;
	case 0xf7: return reg < 4;
	case 0xff: return reg < 2;
	default: return false;
	}
}

/* Is ModRM.reg more of the opcode? */
static bool is_group(u8 map, u8 op)
{
	return !map && (op == 0x81 || op == 0x83 || op == 0xc1 || op == 0xd1 || op == 0xc7 ||
			op == 0xf7 || op == 0xff);
}

/* Prefixes that choose a segment, which in 64-bit mode some do not. */
static bool has_segment_prefix(u64 bytes, u32 prefixes)
{
	for (; prefixes--; bytes >>= 8)
		if ((bytes & 0xe7) == 0x26 || (bytes & 0xfe) == 0x64)
			return true;
	return false;
}

/*
 * @key without what names registers. The opcode, of @op_len bytes, ends before @at, where ModRM is,
 * with a SIB behind it if it has one.
 */
static u64 forget_registers(u64 key, u32 at, u32 op_len, bool group)
{
	u8 modrm = (u8)(key >> (8 * at)), sib = (u8)(key >> (8 * at + 8)), rex = 0;
	u32 rex_at = 8 * (at - op_len - 1);
	u64 keep = modrm & (group ? 0xf8 : 0xc0);
	bool has_rex = at > op_len && ((key >> rex_at) & 0xf0) == 0x40;

	if (has_rex) {
		rex = (u8)(key >> rex_at);
		key &= ~(7ul << rex_at);
	}
	key &= ~(0xfful << (8 * at));
	if (modrm < 0xc0 && (modrm & 7) == 4) {
		u64 kept = sib & 0xc0;

		keep |= 4;
		if ((sib & 0x38) == 0x20 && !(rex & 2))
			kept |= 0x20; /* no index */
		if ((sib & 7) == 5 && modrm < 0x40)
			kept |= 5; /* no base */
		key = (key & ~(0xfful << (8 * at + 8))) | kept << (8 * at + 8);
	} else if ((modrm & 0xc7) == 5) {
		keep |= 5; /* relative to rip */
	}
	return key | keep << (8 * at);
}

/*
 * The key of the instruction that begins with @bytes, or 0. @learn: the opcode's ModRM state when
 * that is not known yet.
 */
static u64 find_key(struct forms *f, u64 bytes, u32 len, u8 **learn)
{
	struct cursor c = {.bytes = bytes};
	u8 map, op = next_opcode(&c, &map), modrm = 0;
	u32 at = c.at;
	u64 key;

	*learn = NULL;
	if (map == NO_MAP)
		return 0;
	if (f->modrm[map][op] == MODRM_UNKNOWN) {
		*learn = &f->modrm[map][op];
		return 0;
	}
	if (f->modrm[map][op] == MODRM_YES) {
		modrm = next(&c);
		if (immediate_matters(map, op) && modrm < 0xc0)
			return 0;
		if ((modrm < 0xc0 && (modrm & 7) == 4) || immediate_matters(map, op))
			next(&c);
	}
	if (c.at > KEY_MAX || c.at > len)
		return 0;
	/* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): at is from 1 to 7 */
	key = (bytes & ((1ul << (8 * c.at)) - 1)) | (u64)c.at << 56;
	if (f->modrm[map][op] == MODRM_YES && is_register_blind(map, op, modrm) &&
	    !has_segment_prefix(bytes, at - 1))
		key = forget_registers(key, at, map == MAP_0F ? 2 : 1, is_group(map, op)) |
		      FORM_BLIND;
	return key;
}

/* @size bytes at @p. */
static s64 value_at(const u8 *p, u32 size, bool is_signed)
{
	u64 v = soft_load(p, size);

	if (!is_signed || size == 8)
		return (s64)v;
	return (s64)(v << (64 - 8 * size)) >> (64 - 8 * size);
}

/* The values that the form leaves open, from i->bytes. */
static void fill_in(struct insn *i, const struct insn_form *form)
{
	if (form->disp_size)
		i->disp = value_at(i->bytes + i->imm_off - form->disp_size, form->disp_size, true);
	if (form->imm_size)
		i->imm = value_at(i->bytes + i->imm_off, form->imm_size, form->imm_signed);
}

static void note_field(struct insn *i, const struct insn_field *f)
{
	if (f->reg == NO_REG)
		return;
	if (f->read)
		i->gpr_read |= (u16)(1u << f->reg);
	if (f->write)
		i->gpr_write |= (u16)(1u << f->reg);
}

/* The registers that i->bytes name, in the places where the form has some. */
static void fill_registers(struct insn *i)
{
	u8 modrm = i->bytes[i->modrm_off], sib = i->bytes[i->modrm_off + 1];

	if (i->rex)
		i->rex = i->bytes[i->opcode_off - 1];
	i->gpr_read = i->gpr_write = 0;
	if (i->reg.reg != NO_REG)
		i->reg.reg = (u8)((modrm >> 3 & 7) | (i->rex & 4) << 1);
	if (modrm >= 0xc0) {
		if (i->rm.reg != NO_REG)
			i->rm.reg = (u8)((modrm & 7) | (i->rex & 1) << 3);
	} else {
		if (i->index != NO_REG) {
			i->index = (u8)((sib >> 3 & 7) | (i->rex & 2) << 2);
			i->gpr_read |= (u16)(1u << i->index);
		}
		if (i->base != NO_REG) {
			i->base =
				(u8)(((modrm & 7) == 4 ? sib & 7 : modrm & 7) | (i->rex & 1) << 3);
			i->gpr_read |= (u16)(1u << i->base);
			i->seg = i->base == RSP || i->base == RBP ? SEG_SS : SEG_DS;
		}
	}
	note_field(i, &i->reg);
	note_field(i, &i->rm);
}

static bool is_alike(const struct insn *a, const struct insn *b)
{
	return a->disp == b->disp && a->imm == b->imm && a->gpr_read == b->gpr_read &&
	       a->gpr_write == b->gpr_write && a->reg.reg == b->reg.reg && a->rm.reg == b->rm.reg &&
	       a->base == b->base && a->index == b->index && a->seg == b->seg && a->rex == b->rex;
}

static void remember(struct form_entry *e, u64 key, const struct insn *i,
		     const struct insn_form *form)
{
	struct insn again = *i;

	if (!form->plain || i->imm_len != form->imm_size || (form->imm_size && !i->has_imm) ||
	    (form->disp_size && !i->has_modrm))
		return;
	if (key & FORM_BLIND)
		fill_registers(&again);
	fill_in(&again, form);
	if (!is_alike(&again, i))
		return;
	e->key = key;
	e->insn = *i;
	e->form = *form;
}

static u64 first_bytes(const u8 *p, u32 len)
{
	u64 v = 0;

	if (len >= 8)
		return soft_load(p, 8);
	for (u32 n = 0; n < len; n++)
		v |= (u64)p[n] << (8 * n);
	return v;
}

/* The instruction's own bytes, which begin with @first; those behind them are zero. */
static void copy_bytes(struct insn *i, u64 first, const u8 *p)
{
	if (i->len < 8)
		first &= (1ul << (8 * i->len)) - 1;
	soft_store(i->bytes, first, 8);
	for (u32 n = 8; n < i->len; n++)
		i->bytes[n] = p[n];
}

/* The form of the instruction at @p, which begins with @first, or NULL; for learn_form() otherwise:
 * the opcode's ModRM state in *@learn, the form's key in *@key. */
static const struct form_entry *find_form(struct forms *f, u64 first, u32 len, u8 **learn, u64 *key)
{
	const struct form_entry *e;

	*key = find_key(f, first, len, learn);
	e = &f->entry[*key * 0x9e3779b97f4a7c15ul >> (64 - FORM_BITS)];
	return *key && e->key == *key && e->insn.len <= len ? e : NULL;
}

static void learn_form(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits, u64 key,
		       u8 *learn)
{
	struct insn_form form;

	insn_decode_form(i, p, len, bits, &form);
	if (i->cls == INSN_INVALID || !i->len)
		return;
	if (learn)
		*learn = i->has_modrm ? MODRM_YES : MODRM_NO;
	if (key)
		remember(&f->entry[key * 0x9e3779b97f4a7c15ul >> (64 - FORM_BITS)], key, i, &form);
}

void forms_decode(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits)
{
	const struct form_entry *e = NULL;
	u8 *learn = NULL;
	u64 first = first_bytes(p, len), key = 0;

	if (bits == 64)
		e = find_form(f, first, len, &learn, &key);
	if (!e) {
		learn_form(f, i, p, len, bits, key, learn);
		return;
	}
	*i = e->insn;
	copy_bytes(i, first, p);
	if (key & FORM_BLIND)
		fill_registers(i);
	fill_in(i, &e->form);
}

const struct insn *forms_look(struct forms *f, struct insn *room, const u8 *p, u32 len, u32 bits)
{
	const struct form_entry *e = NULL;
	u8 *learn = NULL;
	u64 key = 0;

	if (bits == 64)
		e = find_form(f, first_bytes(p, len), len, &learn, &key);
	if (e && e->insn.cls != INSN_JMP && e->insn.cls != INSN_CALL)
		return &e->insn;
	forms_decode(f, room, p, len, bits);
	return room;
}
