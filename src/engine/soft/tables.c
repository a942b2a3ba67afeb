/*
 * Instructions on descriptor tables and descriptors: LGDT .. STR, SMSW, LAR, LSL, VERR, VERW, ARPL.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

/* SGDT, SIDT, SLDT, STR and SMSW are privileged under UMIP. */
static int check_umip(struct soft_cpu *c)
{
	return (c->cr4 & CR4_UMIP) && c->cpl && in_protected_mode(c) ? fault_gp(c, 0) : SOFT_OK;
}

static int load_table(struct soft_cpu *c, const struct insn *i, struct cpu_table *table)
{
	u32 base_size = soft_is_64bit(c) ? 8 : 4;
	u64 base, limit;
	gva_t lin;
	int r = require_cpl0(c);

	if (r == SOFT_OK)
		r = insn_linear(c, i, base_size + 2, false, &lin);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin, 2, &limit);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin + 2, base_size, &base);
	if (r != SOFT_OK)
		return r;
	if (base_size == 8 && !soft_canonical(base))
		return fault_gp(c, 0);
	if (base_size == 4 && i->opsize == 2)
		base &= 0xffffff;
	table->base = base;
	table->limit = (u16)limit;
	return SOFT_OK;
}

int op_lgdt(struct soft_cpu *c, const struct insn *i)
{
	return load_table(c, i, &c->gdtr);
}

int op_lidt(struct soft_cpu *c, const struct insn *i)
{
	return load_table(c, i, &c->idtr);
}

static int store_table(struct soft_cpu *c, const struct insn *i, const struct cpu_table *table)
{
	u32 base_size = soft_is_64bit(c) ? 8 : 4;
	u8 image[10];
	gva_t lin;
	int r = check_umip(c);

	if (r == SOFT_OK)
		r = insn_linear(c, i, base_size + 2, true, &lin);
	if (r != SOFT_OK)
		return r;
	soft_store(image, table->limit, 2);
	soft_store(image + 2, table->base, 8);
	return guest_write(c, lin, image, base_size + 2);
}

int op_sgdt(struct soft_cpu *c, const struct insn *i)
{
	return store_table(c, i, &c->gdtr);
}

int op_sidt(struct soft_cpu *c, const struct insn *i)
{
	return store_table(c, i, &c->idtr);
}

/* LLDT and LTR: the descriptor of @sel, which must lie in the GDT; both halves in long mode. */
static int read_system_descriptor(struct soft_cpu *c, u16 sel, struct descriptor *d)
{
	int r;

	if (sel & 4)
		return fault_gp(c, sel & 0xfffc);
	r = desc_read(c, sel, VEC_GP, 0, d);
	if (r == SOFT_OK && in_long_mode(c))
		r = desc_read_high(c, sel, VEC_GP, 0, d);
	if (r != SOFT_OK)
		return r;
	/* Bits 12:8 of the fourth doubleword must be zero (SDM vol. 3, figure 8-4). */
	if (desc_is_segment(d) || (d->high & 0x1f00000000))
		return fault_gp(c, sel & 0xfffc);
	return SOFT_OK;
}

static int check_load_system(struct soft_cpu *c)
{
	return in_real_or_vm86(c) ? fault_ud(c) : require_cpl0(c);
}

int op_lldt(struct soft_cpu *c, const struct insn *i)
{
	struct descriptor d;
	u64 sel;
	int r = check_load_system(c);

	if (r == SOFT_OK)
		r = operand_read(c, i, 2, &sel);
	if (r != SOFT_OK)
		return r;
	if (selector_is_null((u16)sel)) {
		seg_make_null((u16)sel, &c->seg[SEG_LDTR]);
		return SOFT_OK;
	}
	r = read_system_descriptor(c, (u16)sel, &d);
	if (r != SOFT_OK)
		return r;
	if (desc_type(&d) != DESC_LDT)
		return fault_gp(c, sel & 0xfffc);
	if (!desc_is_present(&d))
		return soft_fault_code(c, VEC_NP, sel & 0xfffc);
	desc_unpack(&d, (u16)sel, &c->seg[SEG_LDTR]);
	return SOFT_OK;
}

int op_ltr(struct soft_cpu *c, const struct insn *i)
{
	struct descriptor d;
	u32 type;
	u64 sel;
	int r = check_load_system(c);

	if (r == SOFT_OK)
		r = operand_read(c, i, 2, &sel);
	if (r != SOFT_OK)
		return r;
	if (selector_is_null((u16)sel))
		return fault_gp(c, 0);
	r = read_system_descriptor(c, (u16)sel, &d);
	if (r != SOFT_OK)
		return r;
	type = desc_type(&d);
	if (type != DESC_TSS_AVAIL && (type != DESC_TSS16_AVAIL || in_long_mode(c)))
		return fault_gp(c, sel & 0xfffc);
	if (!desc_is_present(&d))
		return soft_fault_code(c, VEC_NP, sel & 0xfffc);
	r = sys_set_bits(c, d.addr + 5, DESC_TSS_BUSY ^ DESC_TSS_AVAIL);
	if (r != SOFT_OK)
		return r;
	desc_unpack(&d, (u16)sel, &c->seg[SEG_TR]);
	c->seg[SEG_TR].type |= DESC_TSS_BUSY ^ DESC_TSS_AVAIL;
	return SOFT_OK;
}

static int store_selector(struct soft_cpu *c, const struct insn *i, u32 seg)
{
	int r = in_real_or_vm86(c) ? fault_ud(c) : check_umip(c);

	return r == SOFT_OK ? operand_write(c, i, i->opsize, 2, c->seg[seg].selector) : r;
}

int op_sldt(struct soft_cpu *c, const struct insn *i)
{
	return store_selector(c, i, SEG_LDTR);
}

int op_str(struct soft_cpu *c, const struct insn *i)
{
	return store_selector(c, i, SEG_TR);
}

int op_smsw(struct soft_cpu *c, const struct insn *i)
{
	int r = check_umip(c);

	return r == SOFT_OK ? operand_write(c, i, i->opsize, 2, c->cr0) : r;
}

/*
 * The descriptor named by the operand of LAR, LSL, VERR or VERW, if there is one that CPL and RPL
 * may see. SOFT_OK and *found says which.
 */
static int find_visible(struct soft_cpu *c, const struct insn *i, struct descriptor *d, bool *found)
{
	bool conforming;
	u32 type, dpl;
	u64 sel;
	int r = in_real_or_vm86(c) ? fault_ud(c) : operand_read(c, i, 2, &sel);

	*found = false;
	if (r != SOFT_OK || selector_is_null((u16)sel))
		return r;
	if (!desc_find(c, (u16)sel, d, &r))
		return r;
	type = desc_type(d);
	dpl = desc_dpl(d);
	conforming = desc_is_code(d) && (type & DESC_CONFORMING);
	*found = conforming || (c->cpl <= dpl && (sel & 3u) <= dpl);
	return SOFT_OK;
}

static void set_zf(struct soft_cpu *c, bool on)
{
	c->flags = on ? c->flags | RFLAGS_ZF : c->flags & ~RFLAGS_ZF;
}

/* Does LAR or LSL accept the descriptor? Bit masks of system types (SDM vol. 2, LAR, LSL). */
static bool type_is_listed(const struct soft_cpu *c, const struct descriptor *d, u32 legacy,
			   u32 lng)
{
	return desc_is_segment(d) || ((in_long_mode(c) ? lng : legacy) >> desc_type(d) & 1);
}

int op_lar(struct soft_cpu *c, const struct insn *i)
{
	struct descriptor d;
	bool found;
	int r = find_visible(c, i, &d, &found);

	if (r != SOFT_OK)
		return r;
	found = found && type_is_listed(c, &d, 0x1a3e, 0x1a04);
	if (found)
		gpr_set(c, modrm_reg(i), i->opsize, d.low >> 32 & 0x00f0ff00);
	set_zf(c, found);
	return SOFT_OK;
}

int op_lsl(struct soft_cpu *c, const struct insn *i)
{
	struct cpu_segment s;
	struct descriptor d;
	bool found;
	int r = find_visible(c, i, &d, &found);

	if (r != SOFT_OK)
		return r;
	found = found && type_is_listed(c, &d, 0x0a0e, 0x0a04);
	if (found) {
		desc_unpack(&d, 0, &s);
		gpr_set(c, modrm_reg(i), i->opsize, s.limit);
	}
	set_zf(c, found);
	return SOFT_OK;
}

int op_verr(struct soft_cpu *c, const struct insn *i)
{
	struct descriptor d;
	bool found;
	int r = find_visible(c, i, &d, &found);

	if (r == SOFT_OK)
		set_zf(c, found && desc_is_segment(&d) &&
				  (desc_is_data(&d) || (desc_type(&d) & DESC_CODE_READ)));
	return r;
}

int op_verw(struct soft_cpu *c, const struct insn *i)
{
	struct descriptor d;
	bool found;
	int r = find_visible(c, i, &d, &found);

	if (r == SOFT_OK)
		set_zf(c, found && desc_is_data(&d) && (desc_type(&d) & DESC_DATA_WRITE));
	return r;
}

int op_arpl(struct soft_cpu *c, const struct insn *i)
{
	u64 sel, rpl = c->r[modrm_reg(i)] & 3;
	bool raise;
	int r = in_real_or_vm86(c) ? fault_ud(c) : operand_read(c, i, 2, &sel);

	if (r != SOFT_OK)
		return r;
	raise = (sel & 3) < rpl;
	if (raise)
		r = operand_write(c, i, 2, 2, (sel & ~3ul) | rpl);
	if (r == SOFT_OK)
		set_zf(c, raise);
	return r;
}
