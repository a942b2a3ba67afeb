/* See forms.h. */
#include "engine/soft/forms.h"

#include "engine/soft/util.h"

/* What is known of an opcode, once it was met. */
enum {
	OPCODE_KNOWN = 1 << 0,
	OPCODE_MODRM = 1 << 1,        /* has a ModRM */
	OPCODE_COUNT = 1 << 2,        /* a shift: what it does to flags depends on the immediate */
	OPCODE_GROUP = 1 << 3,        /* ModRM.reg is more of the opcode */
	OPCODE_BLIND = 1 << 4,        /* may be remembered for all registers, */
	OPCODE_BLIND_MEMORY = 1 << 5, /* with an operand in memory only */
	OPCODE_BLIND_BELOW = 8,       /* bits from here: while ModRM.reg is less than this */
};
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
 * Does the decoding of opcode @op depend on its registers in no other way than that it names them?
 * True of the most frequent instructions with operands of 16 bits and more; not where an implied
 * register could be named as well. The answer holds for some values of ModRM.
 */
static u16 blindness(u8 map, u8 op)
{
	const u16 always = OPCODE_BLIND | 8 << OPCODE_BLIND_BELOW;
	const u16 group = OPCODE_BLIND | OPCODE_GROUP;

	if (map == MAP_0F && (op == 0xb6 || op == 0xbe))
		return always | OPCODE_BLIND_MEMORY;
	if (map == MAP_0F)
		return (op & 0xf0) == 0x40 || op == 0xaf || op == 0xb7 || op == 0xbf ? always : 0;
	if (map)
		return 0;
	if (op < 0x40)
		return (op & 5) == 1 ? always : 0;
	switch (op) {
	case 0x63:
	case 0x69:
	case 0x6b:
	case 0x85:
	case 0x89:
	case 0x8b:
	case 0x8d: return always;
	case 0x81:
	case 0x83:
	case 0xc1:
	case 0xd1: return always | OPCODE_GROUP;
	case 0xc7: return group | 1 << OPCODE_BLIND_BELOW;
	case 0xf7: return group | 4 << OPCODE_BLIND_BELOW;
	case 0xff: return group | 2 << OPCODE_BLIND_BELOW;
	default: return 0;
	}
}

static u16 describe_opcode(u8 map, u8 op, bool has_modrm)
{
	u16 what = OPCODE_KNOWN;

	if (has_modrm)
		what |= OPCODE_MODRM | blindness(map, op);
	if (immediate_matters(map, op))
		what |= OPCODE_COUNT;
	return what;
}

static bool is_blind(u16 what, u8 modrm)
{
	return what & OPCODE_BLIND && (modrm >> 3 & 7) < what >> OPCODE_BLIND_BELOW &&
	       !(what & OPCODE_BLIND_MEMORY && modrm >= 0xc0);
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

/* An opcode, and where it is in the instruction. */
struct place {
	u8 map, op;
	u32 end;
	bool prefixed; /* legacy prefixes come first */
};

/*
 * Where most instructions have it: at the beginning, or behind REX. If the opcode that would be
 * there is known, then it is one: none that is a prefix or leads to another map ever is.
 */
static struct place find_opcode(const struct forms *f, u64 bytes)
{
	struct place p = {.end = (bytes & 0xf0) == 0x40};
	struct cursor c = {.bytes = bytes};

	p.op = (u8)(bytes >> 8 * p.end++);
	if (p.op == 0x0f) {
		p.map = MAP_0F;
		p.op = (u8)(bytes >> 8 * p.end++);
	}
	if (f->opcode[p.map][p.op])
		return p;
	p.op = next_opcode(&c, &p.map);
	p.end = c.at;
	p.prefixed = true;
	return p;
}

/* The key of the instruction that begins with @bytes and has its opcode at @p, or 0. */
static u64 find_key(u64 bytes, u32 len, const struct place *p, u16 what)
{
	u32 end = p->end;
	u8 modrm = 0;
	u64 key;

	if (what & OPCODE_MODRM && end < 8) {
		modrm = (u8)(bytes >> 8 * end++);
		if (what & OPCODE_COUNT && modrm < 0xc0)
			return 0;
		end += (modrm < 0xc0 && (modrm & 7) == 4) || what & OPCODE_COUNT;
	}
	if (end > KEY_MAX || end > len)
		return 0;
	/* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): end is from 1 to 7 */
	key = (bytes & ((1ul << (8 * end)) - 1)) | (u64)end << 56;
	if (is_blind(what, modrm) && !(p->prefixed && has_segment_prefix(bytes, p->end - 1)))
		key = forget_registers(key, p->end, p->map == MAP_0F ? 2 : 1, what & OPCODE_GROUP) |
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

/* What learn_form() is to learn: the opcode, if any, and the form of this key, if not 0. */
struct lesson {
	struct place place;
	bool has_opcode;
	u64 key;
};

static struct form_entry *entry_of(struct forms *f, u64 key)
{
	return &f->entry[key * 0x9e3779b97f4a7c15ul >> (64 - FORM_BITS)];
}

/* The form of the instruction that begins with @first, or NULL; then *l says what is not known. */
static const struct form_entry *find_form(struct forms *f, u64 first, u32 len, struct lesson *l)
{
	struct place place = find_opcode(f, first);
	const struct form_entry *e;
	u16 what = 0;
	u64 key = 0;

	if (place.map != NO_MAP)
		what = f->opcode[place.map][place.op];
	if (what)
		key = find_key(first, len, &place, what);
	if (key) {
		e = entry_of(f, key);
		if (e->key == key && e->insn.len <= len)
			return e;
	}
	*l = (struct lesson){
		.place = place, .has_opcode = place.map != NO_MAP && !what, .key = key};
	return NULL;
}

static void learn_form(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits,
		       const struct lesson *l)
{
	struct insn_form form;

	insn_decode_form(i, p, len, bits, &form);
	if (i->cls == INSN_INVALID || !i->len)
		return;
	if (l->has_opcode)
		f->opcode[l->place.map][l->place.op] =
			describe_opcode(l->place.map, l->place.op, i->has_modrm);
	if (l->key)
		remember(entry_of(f, l->key), l->key, i, &form);
}

void forms_decode(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits)
{
	const struct form_entry *e = NULL;
	struct lesson lesson = {0};
	u64 first = first_bytes(p, len);

	if (bits == 64)
		e = find_form(f, first, len, &lesson);
	if (!e) {
		learn_form(f, i, p, len, bits, &lesson);
		return;
	}
	*i = e->insn;
	copy_bytes(i, first, p);
	if (e->key & FORM_BLIND)
		fill_registers(i);
	fill_in(i, &e->form);
}

const struct insn *forms_look(struct forms *f, struct insn *room, const u8 *p, u32 len, u32 bits)
{
	const struct form_entry *e = NULL;
	struct lesson lesson;

	if (bits == 64)
		e = find_form(f, first_bytes(p, len), len, &lesson);
	if (e && e->insn.cls != INSN_JMP && e->insn.cls != INSN_CALL)
		return &e->insn;
	forms_decode(f, room, p, len, bits);
	return room;
}
