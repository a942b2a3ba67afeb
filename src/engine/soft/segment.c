/*
 * Descriptors and segment registers (SDM vol. 3, chapters 3 and 5).
 *
 * A load is done in two steps: "prepare" makes every check, sets the accessed bit and fills in a
 * struct cpu_segment; assigning that to c->seg[] cannot fail. So instructions that load several
 * registers can prepare all of them before they change any.
 *
 * Descriptor tables are read with supervisor rights whatever the CPL. The accessed and busy bits
 * are set by an atomic OR in guest memory, as processors do with a locked access.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

bool desc_find(struct soft_cpu *c, u16 sel, struct descriptor *d, int *status)
{
	const struct cpu_segment *ldt = &c->seg[SEG_LDTR];
	bool local = sel & 4;
	u64 base = local ? ldt->base : c->gdtr.base;
	u64 limit = local ? ldt->limit : c->gdtr.limit;
	u32 offset = sel & 0xfff8;

	*status = SOFT_OK;
	if ((local && ldt->unusable) || offset + 7 > limit)
		return false;
	d->addr = base + offset;
	if (!in_long_mode(c))
		d->addr = (u32)d->addr;
	d->high = 0;
	*status = sys_read(c, d->addr, &d->low, 8);
	return *status == SOFT_OK;
}

int desc_read(struct soft_cpu *c, u16 sel, u8 vector, u32 ext, struct descriptor *d)
{
	int status;

	if (desc_find(c, sel, d, &status))
		return SOFT_OK;
	return status == SOFT_OK ? soft_fault_code(c, vector, (sel & 0xfffc) | ext) : status;
}

int desc_read_high(struct soft_cpu *c, u16 sel, u8 vector, u32 ext, struct descriptor *d)
{
	u64 limit = sel & 4 ? c->seg[SEG_LDTR].limit : c->gdtr.limit;

	if ((u32)(sel & 0xfff8) + 15 > limit)
		return soft_fault_code(c, vector, (sel & 0xfffc) | ext);
	return sys_read(c, d->addr + 8, &d->high, 8);
}

int desc_mark_accessed(struct soft_cpu *c, struct descriptor *d)
{
	int r;

	if (d->low & BIT(40))
		return SOFT_OK;
	r = sys_set_bits(c, d->addr + 5, DESC_ACCESSED);
	if (r == SOFT_OK)
		d->low |= BIT(40);
	return r;
}

void desc_unpack(const struct descriptor *d, u16 sel, struct cpu_segment *s)
{
	u64 low = d->low;
	u32 limit = (u32)(low & 0xffff) | (u32)(low >> 32 & 0xf0000);

	s->selector = sel;
	s->g = low >> 55 & 1;
	s->limit = s->g ? limit << 12 | 0xfff : limit;
	s->base = (low >> 16 & 0xffffff) | (low >> 32 & 0xff000000);
	if (!(low & BIT(44)))
		s->base |= d->high << 32;
	s->type = low >> 40 & 15;
	s->s = low >> 44 & 1;
	s->dpl = low >> 45 & 3;
	s->present = low >> 47 & 1;
	s->avl = low >> 52 & 1;
	s->l = low >> 53 & 1;
	s->db = low >> 54 & 1;
	s->unusable = 0;
}

void seg_make_null(u16 sel, struct cpu_segment *s)
{
	soft_fill(s, 0, sizeof(*s));
	s->selector = sel;
	s->dpl = sel & 3;
	s->unusable = 1;
}

void seg_make_real(struct soft_cpu *c, u32 seg, u16 sel, struct cpu_segment *s)
{
	const struct cpu_segment *old = &c->seg[seg];

	soft_copy(s, old, sizeof(*s));
	s->selector = sel;
	s->base = (u64)sel << 4;
	s->present = 1;
	s->s = 1;
	if (in_vm86(c)) {
		s->limit = 0xffff;
		s->type = DESC_DATA_WRITE | DESC_ACCESSED;
		s->dpl = 3;
		s->db = s->l = s->g = 0;
	} else {
		/* Limit and attributes stay: code relies on segments larger than 64 KiB. */
		s->dpl = 0;
		if (old->unusable) {
			s->limit = 0xffff;
			s->type = DESC_DATA_WRITE | DESC_ACCESSED;
		}
	}
	s->unusable = 0;
}

static int finish_load(struct soft_cpu *c, u16 sel, struct descriptor *d, struct cpu_segment *s)
{
	int r = desc_mark_accessed(c, d);

	if (r == SOFT_OK)
		desc_unpack(d, sel, s);
	return r;
}

int seg_prepare_stack(struct soft_cpu *c, u16 sel, u32 cpl, u8 vector, u32 ext,
		      struct cpu_segment *s)
{
	u32 error = (sel & 0xfffc) | ext;
	struct descriptor d;
	int r;

	if (selector_is_null(sel)) {
		if (vector != VEC_TS && soft_is_64bit(c) && cpl != 3 && (sel & 3u) == cpl) {
			seg_make_null(sel, s);
			return SOFT_OK;
		}
		return soft_fault_code(c, vector, error);
	}
	r = desc_read(c, sel, vector, ext, &d);
	if (r != SOFT_OK)
		return r;
	if ((sel & 3u) != cpl || !desc_is_data(&d) || !(desc_type(&d) & DESC_DATA_WRITE) ||
	    desc_dpl(&d) != cpl)
		return soft_fault_code(c, vector, error);
	if (!desc_is_present(&d))
		return soft_fault_code(c, VEC_SS, error);
	return finish_load(c, sel, &d, s);
}

/* May a data segment register hold this descriptor? (SDM vol. 3, 5.6) */
static bool data_load_permitted(const struct descriptor *d, u16 sel, u32 cpl)
{
	u32 type = desc_type(d), dpl = desc_dpl(d);

	if (!desc_is_segment(d))
		return false;
	if ((type & DESC_CODE) && !(type & DESC_CODE_READ))
		return false;
	if ((type & DESC_CODE) && (type & DESC_CONFORMING))
		return true;
	return (sel & 3u) <= dpl && cpl <= dpl;
}

int seg_prepare(struct soft_cpu *c, u32 seg, u16 sel, u32 cpl, u8 vector, u32 ext,
		struct cpu_segment *s)
{
	struct descriptor d;
	int r;

	if (seg == SEG_SS)
		return seg_prepare_stack(c, sel, cpl, vector, ext, s);
	if (selector_is_null(sel)) {
		seg_make_null(sel, s);
		return SOFT_OK;
	}
	r = desc_read(c, sel, vector, ext, &d);
	if (r != SOFT_OK)
		return r;
	if (!data_load_permitted(&d, sel, cpl))
		return soft_fault_code(c, vector, (sel & 0xfffc) | ext);
	if (!desc_is_present(&d))
		return soft_fault_code(c, VEC_NP, (sel & 0xfffc) | ext);
	return finish_load(c, sel, &d, s);
}

int seg_load(struct soft_cpu *c, u32 seg, u16 sel)
{
	struct cpu_segment s;
	int r;

	if (in_real_or_vm86(c)) {
		seg_make_real(c, seg, sel, &s);
	} else {
		r = seg_prepare(c, seg, sel, c->cpl, VEC_GP, 0, &s);
		if (r != SOFT_OK)
			return r;
	}
	soft_copy(&c->seg[seg], &s, sizeof(s));
	/* In 64-bit mode DS, ES, FS and GS do not select translations. */
	if (!soft_is_64bit(c))
		soft_update_mode(c);
	return SOFT_OK;
}

void seg_drop_privileged(struct soft_cpu *c)
{
	static const u8 data_segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	for (u32 n = 0; n < ARRAY_SIZE(data_segs); n++) {
		struct cpu_segment *s = &c->seg[data_segs[n]];
		bool conforming =
			(s->type & (DESC_CODE | DESC_CONFORMING)) == (DESC_CODE | DESC_CONFORMING);

		if (!s->unusable && !conforming && s->dpl < c->cpl)
			seg_make_null(0, s);
	}
}

/* MOV to and from segment registers, opcodes 8c and 8e. */
int op_mov_segment(struct soft_cpu *c, const struct insn *i)
{
	u32 seg = modrm_reg(i) & 7;
	u64 value;
	int r;

	if (seg > SEG_GS)
		return fault_ud(c);
	if (insn_opcode(i) == 0x8c)
		return operand_write(c, i, i->opsize, 2, c->seg[seg].selector);
	if (seg == SEG_CS)
		return fault_ud(c);
	r = operand_read(c, i, 2, &value);
	if (r == SOFT_OK)
		r = seg_load(c, seg, (u16)value);
	if (r == SOFT_OK && seg == SEG_SS)
		c->shadow_mov_ss = true;
	return r;
}

/* LES LDS LSS LFS LGS: opcodes c4 c5 0f-b2 0f-b4 0f-b5 */
int op_load_far_pointer(struct soft_cpu *c, const struct insn *i)
{
	static const struct {
		u8 opcode, seg;
	} row[] = {{0xc4, SEG_ES}, {0xc5, SEG_DS}, {0xb2, SEG_SS}, {0xb4, SEG_FS}, {0xb5, SEG_GS}};
	u64 offset, sel;
	gva_t lin;
	u32 n = 0;
	int r;

	if (modrm_mod(i) == 3)
		return fault_ud(c);
	while (n < ARRAY_SIZE(row) - 1 && row[n].opcode != insn_opcode(i))
		n++;
	r = insn_linear(c, i, i->opsize + 2u, false, &lin);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin, i->opsize, &offset);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin + i->opsize, 2, &sel);
	if (r == SOFT_OK)
		r = seg_load(c, row[n].seg, (u16)sel);
	if (r == SOFT_OK)
		gpr_set(c, modrm_reg(i), i->opsize, offset);
	return r;
}

/* The register a PUSH or POP opcode names: 06 0e 16 1e, 0f-a0, 0f-a8 (+1 for POP). */
static u32 pushed_segment(const struct insn *i)
{
	u8 op = insn_opcode(i) & 0xfe;

	if (i->opcode_len == 2)
		return op == 0xa0 ? SEG_FS : SEG_GS;
	return (op >> 3) & 3;
}

int op_push_segment(struct soft_cpu *c, const struct insn *i)
{
	/* Intel's processors leave the upper half of a 32-bit slot alone (SDM vol. 2, PUSH). */
	u32 stored = i->opsize == 4 && !soft_interp(c)->is_amd ? 2 : i->opsize;
	struct stack st;
	int r;

	stack_open(c, &st);
	r = stack_push_low(c, &st, i->opsize, stored, c->seg[pushed_segment(i)].selector);
	if (r == SOFT_OK)
		stack_commit(c, &st);
	return r;
}

int op_pop_segment(struct soft_cpu *c, const struct insn *i)
{
	u32 seg = pushed_segment(i);
	struct stack st;
	u64 sel;
	int r;

	stack_open(c, &st);
	r = stack_pop(c, &st, i->opsize, &sel);
	if (r == SOFT_OK)
		r = seg_load(c, seg, (u16)sel);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	if (seg == SEG_SS)
		c->shadow_mov_ss = true;
	return SOFT_OK;
}
