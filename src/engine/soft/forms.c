/* See forms.h. */
#include "engine/soft/forms.h"

#include "engine/soft/util.h"

enum { MODRM_UNKNOWN, MODRM_NO, MODRM_YES };
enum { MAP_0F = 1, MAP_0F38, MAP_0F3A, MAP_VEX_0F, MAP_VEX_0F38 };
enum { KEY_MAX = 7, NO_MAP = 0xff };

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
 * The key of the instruction that begins with @bytes, or 0. @learn: the opcode's ModRM state when
 * that is not known yet.
 */
static u64 find_key(struct forms *f, u64 bytes, u32 len, u8 **learn)
{
	struct cursor c = {.bytes = bytes};
	u8 map, op = next_opcode(&c, &map);

	*learn = NULL;
	if (map == NO_MAP)
		return 0;
	if (f->modrm[map][op] == MODRM_UNKNOWN) {
		*learn = &f->modrm[map][op];
		return 0;
	}
	if (f->modrm[map][op] == MODRM_YES) {
		u8 modrm = next(&c);

		if (immediate_matters(map, op) && modrm < 0xc0)
			return 0;
		if ((modrm < 0xc0 && (modrm & 7) == 4) || immediate_matters(map, op))
			next(&c);
	}
	if (c.at > KEY_MAX || c.at > len)
		return 0;
	/* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): at is from 1 to 7 */
	return (bytes & ((1ul << (8 * c.at)) - 1)) | (u64)c.at << 56;
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

static void remember(struct form_entry *e, u64 key, const struct insn *i,
		     const struct insn_form *form)
{
	struct insn again = *i;

	if (!form->plain || i->imm_len != form->imm_size || (form->imm_size && !i->has_imm) ||
	    (form->disp_size && !i->has_modrm))
		return;
	fill_in(&again, form);
	if (again.disp != i->disp || again.imm != i->imm)
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

void forms_decode(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits)
{
	struct insn_form form;
	struct form_entry *e;
	u8 *learn = NULL;
	u64 first = first_bytes(p, len);
	u64 key = bits == 64 ? find_key(f, first, len, &learn) : 0;

	e = &f->entry[key * 0x9e3779b97f4a7c15ul >> (64 - FORM_BITS)];
	if (key && e->key == key && e->insn.len <= len) {
		*i = e->insn;
		copy_bytes(i, first, p);
		fill_in(i, &e->form);
		return;
	}
	insn_decode_form(i, p, len, bits, &form);
	if (learn && i->cls != INSN_INVALID && i->len)
		*learn = i->has_modrm ? MODRM_YES : MODRM_NO;
	if (key && i->cls != INSN_INVALID && i->len)
		remember(e, key, i, &form);
}
