/*
 * Bit strings in memory, XLAT, SALC and decimal adjustment.
 *
 * BT, BTS, BTR and BTC with a register bit offset address memory beyond their operand: the offset
 * is signed and selects the operand-sized unit first (SDM vol. 2, BT). The decimal instructions
 * exist outside 64-bit mode only, so the host cannot run them; they follow the manual's
 * pseudo-code. Flags the manual leaves undefined are computed from the result as SF, ZF and PF are,
 * the others keep their value.
 */
#include "engine/soft/system.h"

enum bit_op { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

/* Opcodes 0f-a3, ab, b3, bb */
static enum bit_op bit_op_of(const struct insn *i)
{
	return (insn_opcode(i) >> 3) & 3;
}

static u64 bit_result(enum bit_op op, u64 value, u64 bit)
{
	switch (op) {
	case BIT_SET: return value | bit;
	case BIT_RESET: return value & ~bit;
	case BIT_COMPLEMENT: return value ^ bit;
	default: return value;
	}
}

/* Change one byte of guest RAM atomically; returns its old value. */
static u8 bit_apply_atomically(u8 *byte, enum bit_op op, u8 bit)
{
	switch (op) {
	case BIT_SET: return __atomic_fetch_or(byte, bit, __ATOMIC_SEQ_CST);
	case BIT_RESET: return __atomic_fetch_and(byte, (u8)~bit, __ATOMIC_SEQ_CST);
	default: return __atomic_fetch_xor(byte, bit, __ATOMIC_SEQ_CST);
	}
}

static void set_cf(struct soft_cpu *c, bool on)
{
	c->flags = on ? c->flags | RFLAGS_CF : c->flags & ~RFLAGS_CF;
}

/* The operand cannot be pinned: device memory, a page crossing, or a page whose stores are watched.
 */
static int bit_modify_slowly(struct soft_cpu *c, gva_t lin, u32 size, enum bit_op op, u32 bit,
			     u64 *old)
{
	bool device;
	u64 value;
	int r = guest_probe_write(c, lin, size, &device);

	if (r == SOFT_OK)
		r = guest_read_value(c, lin, size, old);
	value = bit_result(op, *old, 1ul << bit);
	return r == SOFT_OK ? guest_write(c, lin, &value, size) : r;
}

static int bit_modify(struct soft_cpu *c, gva_t lin, u32 size, enum bit_op op, u32 bit, bool locked,
		      u64 *old)
{
	struct soft_xlat x = {0};
	void *host;
	int r = soft_pin_write(c, lin, size, soft_acc(c, ACC_WRITE), &host);
	bool crosses = (lin & ~PAGE_MASK) + size > PAGE_SIZE;

	if (r == SOFT_OK && !host && locked && !crosses) {
		r = soft_translate(c, lin, soft_acc(c, ACC_WRITE), &x);
		host = x.rom ? NULL : x.host;
	}
	if (r != SOFT_OK)
		return r;
	if (host) {
		*old = (u64)bit_apply_atomically((u8 *)host + bit / 8, op, (u8)(1u << bit % 8))
		       << (bit & ~7u);
		if (x.host)
			soft_stored(c, &x, size);
		return SOFT_OK;
	}
	if (locked && !data_alone(c))
		return SOFT_OK;
	return bit_modify_slowly(c, lin, size, op, bit, old);
}

int op_bit_test(struct soft_cpu *c, const struct insn *i)
{
	u32 size = i->opsize, bits = 8 * size, shift = 64 - bits;
	s64 index = (s64)(c->r[modrm_reg(i)] << shift) >> shift;
	u32 bit = (u32)index & (bits - 1);
	u64 off = insn_offset(c, i) + (u64)((index - bit) / 8), value = 0;
	enum bit_op op = bit_op_of(i);
	gva_t lin;
	int r;

	r = seg_linear(c, i->seg, off & size_mask(i->addrsize), size, op != BIT_TEST, &lin);
	if (r == SOFT_OK)
		r = op == BIT_TEST ? guest_read_value(c, lin, size, &value)
				   : bit_modify(c, lin, size, op, bit, i->lock, &value);
	if (r == SOFT_OK && !c->wants_alone)
		set_cf(c, value >> bit & 1);
	return r;
}

int op_xlat(struct soft_cpu *c, const struct insn *i)
{
	u64 off = (c->r[RBX] + (u8)c->r[RAX]) & size_mask(i->addrsize), value;
	gva_t lin;
	int r = seg_linear(c, insn_override(i, SEG_DS), off, 1, false, &lin);

	if (r == SOFT_OK)
		r = guest_read_value(c, lin, 1, &value);
	if (r == SOFT_OK)
		gpr_set(c, RAX, 1, value);
	return r;
}

int op_salc(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	if (soft_is_64bit(c))
		return fault_ud(c);
	gpr_set(c, RAX, 1, c->flags & RFLAGS_CF ? 0xff : 0);
	return SOFT_OK;
}

/* ---- decimal adjustment ---- */

static void set_result_flags(struct soft_cpu *c, u8 al)
{
	c->flags &= ~(RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF);
	if (al & 0x80)
		c->flags |= RFLAGS_SF;
	if (!al)
		c->flags |= RFLAGS_ZF;
	if (!(__builtin_popcount(al) & 1))
		c->flags |= RFLAGS_PF;
}

static void set_carries(struct soft_cpu *c, bool cf, bool af)
{
	c->flags &= ~(RFLAGS_CF | RFLAGS_AF);
	if (cf)
		c->flags |= RFLAGS_CF;
	if (af)
		c->flags |= RFLAGS_AF;
}

/* AAA and AAS: @step is +1 or -1. */
static int adjust_ascii(struct soft_cpu *c, int step)
{
	u16 ax = (u16)c->r[RAX];
	bool adjust = (ax & 0xf) > 9 || (c->flags & RFLAGS_AF);

	if (soft_is_64bit(c))
		return fault_ud(c);
	if (adjust)
		ax = (u16)(ax + step * 0x106);
	set_carries(c, adjust, adjust);
	ax &= 0xff0f;
	gpr_set(c, RAX, 2, ax);
	set_result_flags(c, (u8)ax);
	return SOFT_OK;
}

int op_aaa(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return adjust_ascii(c, 1);
}

int op_aas(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return adjust_ascii(c, -1);
}

int op_aam(struct soft_cpu *c, const struct insn *i)
{
	u8 al = (u8)c->r[RAX], base = (u8)i->imm;

	if (soft_is_64bit(c))
		return fault_ud(c);
	if (!base)
		return soft_fault(c, VEC_DE);
	gpr_set(c, RAX, 2, (u64)(al / base) << 8 | al % base);
	set_result_flags(c, al % base);
	return SOFT_OK;
}

int op_aad(struct soft_cpu *c, const struct insn *i)
{
	u8 al = (u8)((u8)c->r[RAX] + (u8)(c->r[RAX] >> 8) * (u8)i->imm);

	if (soft_is_64bit(c))
		return fault_ud(c);
	gpr_set(c, RAX, 2, al);
	set_result_flags(c, al);
	return SOFT_OK;
}

/* DAA and DAS: @step is +1 or -1. */
static int adjust_decimal(struct soft_cpu *c, int step)
{
	u8 old = (u8)c->r[RAX], al = old;
	bool low = (old & 0xf) > 9 || (c->flags & RFLAGS_AF);
	bool high = old > 0x99 || (c->flags & RFLAGS_CF);
	bool carry = high;

	if (soft_is_64bit(c))
		return fault_ud(c);
	if (low) {
		al = (u8)(al + step * 6);
		/* DAS keeps the low step's borrow; DAA's carry cannot occur without @high. */
		carry = carry || (step < 0 && old < 6);
	}
	if (high)
		al = (u8)(al + step * 0x60);
	gpr_set(c, RAX, 1, al);
	set_carries(c, carry, low);
	set_result_flags(c, al);
	return SOFT_OK;
}

int op_daa(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return adjust_decimal(c, 1);
}

int op_das(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return adjust_decimal(c, -1);
}
