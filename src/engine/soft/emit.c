/* See emit.h. Encodings: SDM vol. 2, chapter 2. */
#include "engine/soft/emit.h"

#include "engine/soft/soft.h"

enum { PREFIX_FS = 0x64, PREFIX_GS = 0x65, REX = 0x40, REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8 };

void emit_bytes(struct emit *e, const void *p, u32 n)
{
	const u8 *b = p;

	if (!n)
		return;
	if (n == 1 || n == 4) { /* most immediates */
		emit_value(e, soft_load(p, n), n);
		return;
	}
	for (u32 i = 0; i < n; i++)
		emit_u8(e, b[i]);
}

void emit_nops(struct emit *e, u32 n)
{
	static const u8 nop[][9] = {
		{0},
		{0x90},
		{0x66, 0x90},
		{0x0f, 0x1f, 0x00},
		{0x0f, 0x1f, 0x40, 0x00},
		{0x0f, 0x1f, 0x44, 0x00, 0x00},
		{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
		{0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
		{0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
		{0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
	};

	for (; n > 9; n -= 9)
		emit_bytes(e, nop[9], 9);
	emit_bytes(e, nop[n], n);
}

void emit_align_site(struct emit *e, u32 bias)
{
	u32 at = (u32)(emit_here(e) + bias) & 7;

	if (at > 4)
		emit_nops(e, 8 - at);
}

void emit_align(struct emit *e, u32 align, u32 bias)
{
	emit_nops(e, (u32)(-(emit_here(e) + bias)) & (align - 1));
}

static void note_site(const struct emit *e, u8 *rel32)
{
	struct emit_sites *sites = e->sites;

	if (!sites)
		return;
	if (sites->n < EMIT_SITES)
		sites->at[sites->n] = rel32;
	sites->n++;
}

static void put_rel32(struct emit *e, u64 target)
{
	note_site(e, e->p);
	emit_u32(e, (u32)(target - (emit_here(e) + 4)));
}

void emit_jmp(struct emit *e, u64 target)
{
	emit_u8(e, 0xe9);
	put_rel32(e, target);
}

void emit_jcc(struct emit *e, u8 cond, u64 target)
{
	emit_u8(e, 0x0f);
	emit_u8(e, 0x80 | cond);
	put_rel32(e, target);
}

void emit_call(struct emit *e, u64 target)
{
	emit_u8(e, 0xe8);
	put_rel32(e, target);
}

/* Room for a rel32 to be patched; NULL when there is none. */
static u8 *put_site(struct emit *e)
{
	emit_u32(e, 0);
	return e->overflow ? NULL : e->p - 4;
}

u8 *emit_jmp_forward(struct emit *e)
{
	emit_u8(e, 0xe9);
	return put_site(e);
}

u8 *emit_call_forward(struct emit *e)
{
	emit_u8(e, 0xe8);
	return put_site(e);
}

u8 *emit_jcc_forward(struct emit *e, u8 cond)
{
	emit_u8(e, 0x0f);
	emit_u8(e, 0x80 | cond);
	return put_site(e);
}

void emit_not(struct emit *e, u8 reg)
{
	emit_u8(e, reg & 8 ? 0x49 : 0x48);
	emit_u8(e, 0xf7);
	emit_u8(e, (u8)(0xd0 | (reg & 7)));
}

void emit_jrcxz(struct emit *e, u8 bytes)
{
	emit_u8(e, 0xe3);
	emit_u8(e, bytes);
}

void emit_rorx(struct emit *e, u8 dst, u8 src, u8 count)
{
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((dst & 8 ? 0 : 0x80) | 0x40 | (src & 8 ? 0 : 0x20) | 3));
	emit_u8(e, 0xfb); /* W1, vvvv unused, pp = F2 */
	emit_u8(e, 0xf0);
	emit_u8(e, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)));
	emit_u8(e, count);
}

void emit_patch(struct emit *e, u8 *rel32, u64 target)
{
	u32 rel = (u32)(target - ((u64)rel32 + (u64)e->exec_delta + 4));

	if (e->overflow || !rel32)
		return;
	note_site(e, rel32);
	__atomic_store_n((u32 *)(void *)rel32, rel, __ATOMIC_RELAXED);
}

/* The beginning of an instruction, put together before it is written. */
struct head {
	u64 bytes;
	u32 n;
};

static inline void head_add(struct head *h, u8 b)
{
	h->bytes |= (u64)b << (8 * h->n++);
}

static u8 rex_of(bool w, u8 reg, u8 index, u8 base)
{
	return (u8)(REX | (w ? REX_W : 0) | (reg != NO_REG && reg & 8 ? REX_R : 0) |
		    (index != NO_REG && index & 8 ? REX_X : 0) |
		    (base != NO_REG && base & 8 ? REX_B : 0));
}

static void put_rex(struct emit *e, bool w, u8 reg, u8 index, u8 base)
{
	u8 rex = rex_of(w, reg, index, base);

	if (rex != REX)
		emit_u8(e, rex);
}

/* ModRM, SIB and displacement for [base + index * scale + disp]; @long_disp forces disp32 (EVEX).
 */
static void put_mem(struct emit *e, u8 reg, u8 base, u8 index, u8 scale, s32 disp, bool long_disp)
{
	u8 field = (u8)((reg & 7) << 3);
	u8 ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
	struct head h = {0};
	u8 mod;

	if (base == NO_REG) { /* SIB without base always has disp32 */
		head_add(&h, field | 4);
		head_add(&h, (u8)(ss << 6 | (index == NO_REG ? 4 : index & 7) << 3 | 5));
		emit_few(e, h.bytes | (u64)(u32)disp << 16, 6);
		return;
	}
	if (!disp && (base & 7) != RBP)
		mod = 0;
	else if (!long_disp && disp == (s8)disp)
		mod = 1;
	else
		mod = 2;
	if (index != NO_REG || (base & 7) == RSP) {
		head_add(&h, (u8)(mod << 6 | field | 4));
		head_add(&h, (u8)(ss << 6 | (index == NO_REG ? 4 : index & 7) << 3 | (base & 7)));
	} else {
		head_add(&h, (u8)(mod << 6 | field | (base & 7)));
	}
	emit_few(e, h.bytes | (u64)(u32)disp << (8 * h.n), h.n + (mod == 2 ? 4 : mod));
}

static void put_cpu(struct emit *e, bool w, u8 opcode, u8 reg, s32 disp)
{
	struct head h = {.bytes = PREFIX_FS, .n = 1};

	if (w || reg & 8)
		head_add(&h, rex_of(w, reg, NO_REG, NO_REG));
	head_add(&h, opcode);
	head_add(&h, (u8)(4 | (reg & 7) << 3)); /* SIB, */
	head_add(&h, 0x25);                     /* which says disp32 alone */
	emit_few(e, h.bytes, h.n);
	emit_u32(e, (u32)disp);
}

void emit_load_cpu(struct emit *e, u8 reg, s32 disp)
{
	put_cpu(e, true, 0x8b, reg, disp);
}

void emit_load_cpu32(struct emit *e, u8 reg, s32 disp)
{
	put_cpu(e, false, 0x8b, reg, disp);
}

static void put_movzx_cpu(struct emit *e, u8 opcode, u8 reg, s32 disp)
{
	emit_u8(e, PREFIX_FS);
	put_rex(e, false, reg, NO_REG, NO_REG);
	emit_u8(e, 0x0f);
	emit_u8(e, opcode);
	put_mem(e, reg, NO_REG, NO_REG, 1, disp, false);
}

void emit_load_cpu_low16(struct emit *e, u8 reg, s32 disp)
{
	emit_u8(e, 0x66);
	put_cpu(e, false, 0x8b, reg, disp);
}

void emit_load_cpu16(struct emit *e, u8 reg, s32 disp)
{
	put_movzx_cpu(e, 0xb7, reg, disp);
}

void emit_load_cpu8(struct emit *e, u8 reg, s32 disp)
{
	put_movzx_cpu(e, 0xb6, reg, disp);
}

void emit_cmp_cpu8_imm8(struct emit *e, s32 disp, u8 value)
{
	put_cpu(e, false, 0x80, 7, disp);
	emit_u8(e, value);
}

void emit_sarx_cpu(struct emit *e, u8 dst, s32 disp, u8 count)
{
	emit_u8(e, PREFIX_FS);
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((dst & 8 ? 0 : 0x80) | 0x60 | 2));
	emit_u8(e, (u8)(0x80 | (~count & 15) << 3 | 2)); /* W1, vvvv, pp = F3 */
	emit_u8(e, 0xf7);
	put_mem(e, dst, NO_REG, NO_REG, 1, disp, false);
}

void emit_movsxd(struct emit *e, u8 dst, u8 src)
{
	put_rex(e, true, dst, NO_REG, src);
	emit_u8(e, 0x63);
	emit_u8(e, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)));
}

void emit_store_cpu(struct emit *e, s32 disp, u8 reg)
{
	put_cpu(e, true, 0x89, reg, disp);
}

void emit_store_cpu_imm8(struct emit *e, s32 disp, u8 value)
{
	put_cpu(e, false, 0xc6, 0, disp);
	emit_u8(e, value);
}

void emit_store_cpu_imm32(struct emit *e, s32 disp, u32 value)
{
	put_cpu(e, false, 0xc7, 0, disp);
	emit_u32(e, value);
}

void emit_store_cpu_sign(struct emit *e, s32 disp, s32 value)
{
	put_cpu(e, true, 0xc7, 0, disp);
	emit_u32(e, (u32)value);
}

void emit_cmp_cpu(struct emit *e, u8 reg, s32 disp)
{
	put_cpu(e, true, 0x3b, reg, disp);
}

void emit_and_cpu(struct emit *e, u8 reg, s32 disp)
{
	put_cpu(e, true, 0x23, reg, disp);
}

void emit_and(struct emit *e, u8 dst, u8 src)
{
	emit_few(e,
		 rex_of(true, src, NO_REG, dst) | 0x21u << 8 |
			 (0xc0u | (src & 7u) << 3 | (dst & 7u)) << 16,
		 3);
}

void emit_cmp_cpu32_imm8(struct emit *e, s32 disp, u8 value)
{
	put_cpu(e, false, 0x83, 7, disp);
	emit_u8(e, value);
}

void emit_sub_cpu32_imm8(struct emit *e, s32 disp, u8 value)
{
	put_cpu(e, false, 0x83, 5, disp);
	emit_u8(e, value);
}

void emit_jmp_cpu(struct emit *e, s32 disp)
{
	put_cpu(e, false, 0xff, 4, disp);
}

void emit_call_cpu(struct emit *e, s32 disp)
{
	put_cpu(e, false, 0xff, 2, disp);
}

/* PEXT (@pp 2: F3) or PDEP (3: F2). */
static void put_bits_cpu(struct emit *e, u8 pp, u8 dst, u8 src, s32 disp)
{
	emit_u8(e, PREFIX_FS);
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((dst & 8 ? 0 : 0x80) | 0x60 | 2)); /* R, X = B = 1 (inverted), map 0F38 */
	emit_u8(e, (u8)(0x80 | (~src & 15) << 3 | pp));    /* W1, vvvv */
	emit_u8(e, 0xf5);
	put_mem(e, dst, NO_REG, NO_REG, 1, disp, false);
}

void emit_pext_cpu(struct emit *e, u8 dst, u8 src, s32 disp)
{
	put_bits_cpu(e, 2, dst, src, disp);
}

void emit_pdep_cpu(struct emit *e, u8 dst, u8 src, s32 disp)
{
	put_bits_cpu(e, 3, dst, src, disp);
}

void emit_mov(struct emit *e, u8 dst, u8 src)
{
	emit_few(e,
		 rex_of(true, src, NO_REG, dst) | 0x89u << 8 |
			 (0xc0u | (src & 7u) << 3 | (dst & 7u)) << 16,
		 3);
}

void emit_mov32(struct emit *e, u8 dst, u8 src)
{
	put_rex(e, false, src, NO_REG, dst);
	emit_u8(e, 0x89);
	emit_u8(e, (u8)(0xc0 | (src & 7) << 3 | (dst & 7)));
}

void emit_mov_imm32(struct emit *e, u8 dst, u32 imm)
{
	put_rex(e, false, NO_REG, NO_REG, dst);
	emit_u8(e, 0xb8 | (dst & 7));
	emit_u32(e, imm);
}

void emit_mov_imm64(struct emit *e, u8 dst, u64 imm)
{
	if (imm == (u32)imm) {
		emit_mov_imm32(e, dst, (u32)imm);
		return;
	}
	if (imm == (u64)(s64)(s32)imm) {
		put_rex(e, true, NO_REG, NO_REG, dst);
		emit_u8(e, 0xc7);
		emit_u8(e, 0xc0 | (dst & 7));
		emit_u32(e, (u32)imm);
		return;
	}
	put_rex(e, true, NO_REG, NO_REG, dst);
	emit_u8(e, 0xb8 | (dst & 7));
	emit_u64(e, imm);
}

void emit_lea(struct emit *e, u32 bits, u8 dst, u8 base, u8 index, u8 scale, s32 disp)
{
	if (bits == 16)
		emit_u8(e, 0x66);
	put_rex(e, bits == 64, dst, index, base);
	emit_u8(e, 0x8d);
	put_mem(e, dst, base, index, scale, disp, false);
}

static void put_segment(struct emit *e, struct host_mem m)
{
	if (m.is_folded)
		emit_u8(e, PREFIX_GS);
}

void emit_load(struct emit *e, u8 dst, struct host_mem m, u32 size)
{
	put_segment(e, m);
	put_rex(e, size == 8, dst, m.index, m.base);
	if (size < 4) {
		emit_u8(e, 0x0f);
		emit_u8(e, size == 1 ? 0xb6 : 0xb7);
	} else {
		emit_u8(e, 0x8b);
	}
	put_mem(e, dst, m.base, m.index, 1, m.disp, false);
}

void emit_store(struct emit *e, struct host_mem m, u8 src, u32 size)
{
	put_segment(e, m);
	if (size == 2)
		emit_u8(e, 0x66);
	if (size == 1)
		emit_u8(e, (u8)(REX | (src & 8 ? REX_R : 0) | (m.base & 8 ? REX_B : 0) |
				(m.index != NO_REG && m.index & 8 ? REX_X : 0)));
	else
		put_rex(e, size == 8, src, m.index, m.base);
	emit_u8(e, size == 1 ? 0x88 : 0x89);
	put_mem(e, src, m.base, m.index, 1, m.disp, false);
}

void emit_store_imm(struct emit *e, struct host_mem m, s32 imm, u32 size)
{
	put_segment(e, m);
	if (size == 2)
		emit_u8(e, 0x66);
	put_rex(e, size == 8, NO_REG, m.index, m.base);
	emit_u8(e, 0xc7);
	put_mem(e, 0, m.base, m.index, 1, m.disp, false);
	emit_bytes(e, &imm, size == 2 ? 2 : 4);
}

s32 emit_half_disp(s32 cpu, u32 half, u32 off)
{
	return half == HALF_USER ? (s32)((s64)offsetof(struct soft_ctx, user) + off - (s64)GS_BIAS)
				 : cpu + (s32)offsetof(struct soft_cpu, super) + (s32)off;
}

/* The segment and displacement that reach offset @off of a privilege half's tables. */
static s32 put_half(struct emit *e, u32 half, u32 off)
{
	emit_u8(e, half == HALF_USER ? PREFIX_GS : PREFIX_FS);
	return emit_half_disp(e->cpu, half, off);
}

void emit_half_op(struct emit *e, u32 half, u8 opcode, u8 reg, u8 index, u8 scale, u32 off)
{
	s32 disp = put_half(e, half, off);
	bool is_base = scale == 1; /* one byte less than a SIB */

	emit_few(e,
		 rex_of(true, reg, is_base ? NO_REG : index, is_base ? index : NO_REG) |
			 (u32)opcode << 8,
		 2);
	if (is_base)
		put_mem(e, reg, index, NO_REG, 1, disp, true);
	else
		put_mem(e, reg, NO_REG, index, scale, disp, false);
}

void emit_half_store_imm(struct emit *e, u32 half, s32 imm, u32 off)
{
	s32 disp = put_half(e, half, off);

	put_rex(e, true, NO_REG, NO_REG, NO_REG);
	emit_u8(e, 0xc7);
	put_mem(e, 0, NO_REG, NO_REG, 1, disp, true);
	emit_u32(e, (u32)imm);
}

void emit_push_host(struct emit *e, u8 reg)
{
	put_rex(e, false, NO_REG, NO_REG, reg);
	emit_u8(e, 0x50 | (reg & 7));
}

void emit_pop_host(struct emit *e, u8 reg)
{
	put_rex(e, false, NO_REG, NO_REG, reg);
	emit_u8(e, 0x58 | (reg & 7));
}

void emit_cmp(struct emit *e, u8 a, u8 b)
{
	put_rex(e, true, b, NO_REG, a);
	emit_u8(e, 0x39);
	emit_u8(e, (u8)(0xc0 | (b & 7) << 3 | (a & 7)));
}

/* ---- re-encoding ---- */

static u8 mapped(const struct insn_field *f, const u8 map[GPR_COUNT])
{
	return f->high ? f->reg : map[f->reg];
}

/* Host number for the ModRM.reg field, with its bit 3: a mapped GPR or what the guest encoded. */
static u8 reg_field(const struct insn *i, const u8 map[GPR_COUNT], u8 raw)
{
	return i->reg.reg == NO_REG ? raw
	       : i->reg.high        ? (u8)(i->reg.reg + 4)
				    : mapped(&i->reg, map);
}

static u8 rm_field(const struct insn *i, const u8 map[GPR_COUNT], u8 raw)
{
	return i->rm.reg == NO_REG ? raw : i->rm.high ? (u8)(i->rm.reg + 4) : mapped(&i->rm, map);
}

static bool uses_memory(const struct insn *i, struct host_mem m)
{
	return i->has_mem && m.base != NO_REG;
}

/* ModRM, operand and immediates, common to all encodings. */
static void put_tail(struct emit *e, const struct insn *i, u8 reg, u8 rm, struct host_mem m)
{
	if (i->has_modrm) {
		if (uses_memory(i, m))
			put_mem(e, reg, m.base, m.index, 1, m.disp, i->encoding == ENC_EVEX);
		else
			emit_u8(e, (u8)(0xc0 | (reg & 7) << 3 | (rm & 7)));
	}
	emit_bytes(e, i->bytes + i->imm_off, i->imm_len);
}

/* Legacy encodings for which 66 selects the operand size rather than another instruction. */
static bool has_operand_size(const struct insn *i)
{
	u8 op = i->bytes[i->opcode_off + i->opcode_len - 1];

	switch (i->opcode_len) {
	case 1: return true;
	case 2:
		return (op & 0xf0) == 0x40 || (op >= 0xa3 && op <= 0xa5) ||
		       (op >= 0xab && op <= 0xad) || (op & 0xf0) == 0xb0 || op == 0xaf ||
		       op == 0xc1 || (op == 0xc7 && !i->has_mem) || (op >= 0xc8 && op <= 0xcf);
	default: return i->bytes[i->opcode_off + 1] == 0x38 && (op == 0xf0 || op == 0xf1);
	}
}

static void put_prefixes(struct emit *e, const struct insn *i)
{
	/* 16-bit code has the other default. */
	bool invert = i->bits == 16 && has_operand_size(i);

	if (invert && i->opsize == 2)
		emit_u8(e, 0x66);
	for (u32 n = 0; n < i->prefixes; n++) {
		u8 b = i->bytes[n];

		if ((b == 0x66 && !invert) || b == 0xf2 || b == 0xf3 || b == 0xf0)
			emit_u8(e, b);
	}
}

static bool has_high_byte(const struct insn *i)
{
	return (i->reg.reg != NO_REG && i->reg.high) || (i->rm.reg != NO_REG && i->rm.high);
}

/* MOV between the accumulator and an absolute address (A0-A3): has no ModRM, gets one. */
static bool is_moffs(const struct insn *i)
{
	u8 op = i->bytes[i->opcode_off];

	return i->encoding == ENC_LEGACY && i->opcode_len == 1 && op >= 0xa0 && op <= 0xa3;
}

static void put_moffs(struct emit *e, const struct insn *i, struct host_mem m)
{
	u8 op = i->bytes[i->opcode_off];

	if (i->opsize == 2)
		emit_u8(e, 0x66);
	put_rex(e, i->opsize == 8, NO_REG, m.index, m.base);
	emit_u8(e, (u8)((op & 1) | (op & 2 ? 0x88 : 0x8a)));
	put_mem(e, RAX, m.base, m.index, 1, m.disp, false);
}

/* INC and DEC in one byte (40-4F) exist outside 64-bit mode only. */
static bool is_short_incdec(const struct insn *i)
{
	return i->bits != 64 && i->opcode_len == 1 && (i->bytes[i->opcode_off] & 0xf0) == 0x40 &&
	       i->encoding == ENC_LEGACY;
}

static void put_short_incdec(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT])
{
	u8 op = i->bytes[i->opcode_off];
	u8 reg = map[op & 7];

	put_rex(e, false, NO_REG, NO_REG, reg);
	emit_u8(e, 0xff);
	emit_u8(e, (u8)(0xc0 | (op & 8) | (reg & 7)));
}

static bool emit_legacy(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT],
			struct host_mem m)
{
	u8 modrm = i->has_modrm ? i->bytes[i->modrm_off] : 0;
	u8 reg = reg_field(i, map, (u8)((modrm >> 3 & 7) | (i->rex & REX_R ? 8 : 0)));
	u8 rm = rm_field(i, map, (u8)((modrm & 7) | (i->rex & REX_B ? 8 : 0)));
	u8 opcode_reg = i->opcode_reg.reg == NO_REG ? 0
			: i->opcode_reg.high        ? (u8)(i->opcode_reg.reg + 4)
						    : map[i->opcode_reg.reg];
	u8 rex = (u8)(i->rex & (REX | REX_W));
	u8 last = (u8)(i->opcode_off + i->opcode_len - 1);

	if (i->has_modrm && reg & 8)
		rex |= REX | REX_R;
	if (uses_memory(i, m)) {
		if (m.base & 8)
			rex |= REX | REX_B;
		if (m.index != NO_REG && m.index & 8)
			rex |= REX | REX_X;
	} else if (i->has_modrm && rm & 8) {
		rex |= REX | REX_B;
	}
	if (opcode_reg & 8)
		rex |= REX | REX_B;
	if (rex && has_high_byte(i))
		return false;
	put_prefixes(e, i);
	if (is_short_incdec(i)) {
		put_short_incdec(e, i, map);
		return true;
	}
	if (rex)
		emit_u8(e, rex);
	emit_bytes(e, i->bytes + i->opcode_off, i->opcode_len - 1u);
	emit_u8(e, i->opcode_reg.reg == NO_REG ? i->bytes[last]
					       : (u8)((i->bytes[last] & 0xf8) | (opcode_reg & 7)));
	put_tail(e, i, reg, rm, m);
	return true;
}

static void emit_vex(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT],
		     struct host_mem m)
{
	const u8 *v = i->bytes + i->vex_off;
	u8 modrm = i->has_modrm ? i->bytes[i->modrm_off] : 0;
	bool is_short = i->vex_len == 2;
	u8 ext = is_short ? (u8)((v[1] & 0x80) | 0x61) : v[1];
	u8 rest = is_short ? (u8)(v[1] & 0x7f) : v[2];
	u8 reg = reg_field(i, map, (u8)((modrm >> 3 & 7) | (ext & 0x80 ? 0 : 8)));
	u8 rm = rm_field(i, map, (u8)((modrm & 7) | (ext & 0x20 ? 0 : 8)));
	u8 base = uses_memory(i, m) ? m.base : rm;

	if (i->vvvv.reg != NO_REG)
		rest = (u8)((rest & 0x87) | (~map[i->vvvv.reg] & 15) << 3);
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((ext & 0x1f) | (reg & 8 ? 0 : 0x80) |
			(m.index != NO_REG && m.index & 8 ? 0 : 0x40) | (base & 8 ? 0 : 0x20)));
	emit_u8(e, rest);
	emit_u8(e, i->bytes[i->opcode_off]);
	put_tail(e, i, reg, rm, m);
}

static void emit_evex(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT],
		      struct host_mem m)
{
	const u8 *v = i->bytes + i->vex_off;
	u8 modrm = i->bytes[i->modrm_off];
	u8 p0 = v[1], p1 = v[2], p2 = v[3];
	u8 reg = (u8)(modrm >> 3 & 7), rm = modrm & 7;

	if (i->reg.reg != NO_REG) {
		reg = map[i->reg.reg];
		p0 = (u8)((p0 & 0x7f) | (reg & 8 ? 0 : 0x80));
	}
	if (i->rm.reg != NO_REG) {
		rm = map[i->rm.reg];
		p0 = (u8)((p0 & ~0x20) | (rm & 8 ? 0 : 0x20));
	}
	if (i->vvvv.reg != NO_REG)
		p1 = (u8)((p1 & 0x87) | (~map[i->vvvv.reg] & 15) << 3);
	if (uses_memory(i, m))
		p0 = (u8)((p0 & ~0x60) | (m.index != NO_REG && m.index & 8 ? 0 : 0x40) |
			  (m.base & 8 ? 0 : 0x20));
	emit_u8(e, 0x62);
	emit_u8(e, p0);
	emit_u8(e, p1);
	emit_u8(e, p2);
	emit_u8(e, i->bytes[i->opcode_off]);
	put_tail(e, i, reg, rm, m);
}

/* VZEROUPPER and VZEROALL reach registers 8 to 15 in 64-bit mode only (SDM vol. 2, VZEROALL). */
static bool is_short_vzero(const struct insn *i)
{
	return i->bits != 64 && i->encoding == ENC_VEX && i->bytes[i->opcode_off] == 0x77;
}

static void put_short_vzero(struct emit *e, const struct insn *i)
{
	bool all = i->bytes[i->vex_off + i->vex_len - 1] & 4;

	for (u8 n = 0; n < 8; n++) {
		/* vpxor xmm, xmm, xmm or vmovaps xmm, xmm */
		emit_u8(e, 0xc5);
		emit_u8(e, all ? (u8)(0x80 | (~n & 15) << 3 | 1) : 0xf8);
		emit_u8(e, all ? 0xef : 0x28);
		emit_u8(e, (u8)(0xc0 | n << 3 | n));
	}
}

bool emit_insn(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT], struct host_mem m)
{
	if (is_short_vzero(i)) {
		put_short_vzero(e, i);
		return true;
	}
	put_segment(e, m);
	if (is_moffs(i)) {
		put_moffs(e, i, m);
		return true;
	}
	switch (i->encoding) {
	case ENC_LEGACY: return emit_legacy(e, i, map, m);
	case ENC_VEX: emit_vex(e, i, map, m); return true;
	default: emit_evex(e, i, map, m); return true;
	}
}

bool emit_insn_identity(struct emit *e, const struct insn *i, struct host_mem m)
{
	u8 map[GPR_COUNT];

	for (u32 r = 0; r < GPR_COUNT; r++)
		map[r] = (u8)r;
	return emit_insn(e, i, map, m);
}

/* ---- translated-code convention ---- */

/* Registers of @i's fields that live in cpu->r[] (guest r9-r11): at most four, without repetition.
 */
static u32 slot_registers(const struct insn *i, u8 slot[4], u8 written[4])
{
	const struct insn_field *field[] = {&i->reg, &i->rm, &i->vvvv, &i->opcode_reg};
	u32 n = 0;

	if (!((i->gpr_read | i->gpr_write) & (1u << R9 | 1u << R10 | 1u << R11)))
		return 0;
	for (u32 k = 0; k < ARRAY_SIZE(field); k++) {
		u32 j = 0;

		if (field[k]->reg < R9 || field[k]->reg > R11)
			continue;
		while (j < n && slot[j] != field[k]->reg)
			j++;
		if (j == n) {
			slot[n] = field[k]->reg;
			written[n++] = 0;
		}
		written[j] |= field[k]->write;
	}
	return n;
}

bool insn_names_slot(const struct insn *i)
{
	u8 slot[4], written[4];

	return slot_registers(i, slot, written);
}

/* Registers the instruction does not touch, to borrow: low ones when @low. */
static u8 borrow_register(const struct insn *i, u32 taken)
{
	static const u8 order[] = {RDI, RSI, RBP, RBX, RDX, RCX, RAX};
	u32 used = i->gpr_read | i->gpr_write | taken;

	for (u32 k = 0; k < ARRAY_SIZE(order); k++)
		if (!(used & 1u << order[k]))
			return order[k];
	return NO_REG;
}

/* A high byte register with memory: address through a borrowed register that needs no REX. */
static bool emit_high_byte(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT],
			   struct host_mem m)
{
	u8 reg = borrow_register(i, 0);

	if (reg == NO_REG || m.base == NO_REG)
		return false;
	emit_store_cpu(e, CPU_DISP(e, spill[2]), reg);
	emit_lea(e, 64, reg, m.base, m.index, 1, m.disp);
	emit_insn(e, i, map,
		  (struct host_mem){.base = reg, .index = NO_REG, .is_folded = m.is_folded});
	emit_load_cpu(e, reg, CPU_DISP(e, spill[2]));
	return true;
}

/* A high byte register together with rsp, whose host register needs REX: through a borrowed one. */
static bool emit_high_byte_sp(struct emit *e, const struct insn *i, u8 map[GPR_COUNT])
{
	u8 reg = borrow_register(i, 0);

	if (reg == NO_REG)
		return false;
	map[RSP] = reg;
	emit_store_cpu(e, CPU_DISP(e, spill[2]), reg);
	emit_mov(e, reg, HOST_SP);
	emit_insn(e, i, map, (struct host_mem){.base = NO_REG, .index = NO_REG});
	emit_mov(e, HOST_SP, reg);
	emit_load_cpu(e, reg, CPU_DISP(e, spill[2]));
	return true;
}

static bool uses_sp(const struct insn *i)
{
	return i->reg.reg == RSP || i->rm.reg == RSP;
}

u32 emit_borrowed(const struct insn *i, u8 reg[2], u32 *spill)
{
	u8 slot[4], written[4];
	u32 n = slot_registers(i, slot, written), taken = 0;

	if (has_high_byte(i)) {
		*spill = 2;
		reg[0] = borrow_register(i, 0);
		return reg[0] != NO_REG;
	}
	*spill = 3;
	if (i->encoding == ENC_LEGACY || n < 2)
		return 0;
	n = MIN(n - 1, 2u);
	for (u32 k = 0; k < n; k++) {
		reg[k] = borrow_register(i, taken);
		if (reg[k] == NO_REG)
			return 0;
		taken |= 1u << reg[k];
	}
	return n;
}

bool emit_data(struct emit *e, const struct insn *i, struct host_mem m)
{
	u8 map[GPR_COUNT], slot[4], written[4], temp[4], borrowed[2];
	u32 slots = slot_registers(i, slot, written), borrows = 0, taken = 0;
	u8 *start = e->p;

	for (u32 r = 0; r < GPR_COUNT; r++)
		map[r] = (u8)r;
	map[RSP] = HOST_SP;
	if (has_high_byte(i) && i->has_mem && m.base != NO_REG)
		return emit_high_byte(e, i, map, m);
	if (has_high_byte(i) && uses_sp(i))
		return emit_high_byte_sp(e, i, map);
	if (slots && m.index == HOST_S1) {
		emit_lea(e, 64, HOST_S2, m.base, m.index, 1, m.disp);
		m = (struct host_mem){.base = HOST_S2, .index = NO_REG};
	}
	for (u32 k = 0; k < slots; k++) {
		if (k == 0) {
			temp[k] = HOST_S1;
		} else if (k == 1 && m.base == NO_REG) {
			temp[k] = HOST_S2;
		} else {
			/* Only BMI forms name so many registers, and they cannot fault natively. */
			u8 reg = borrow_register(i, taken);

			if (reg == NO_REG || i->encoding == ENC_LEGACY || borrows == 2) {
				e->p = start;
				return false;
			}
			taken |= 1u << reg;
			emit_store_cpu(e, CPU_DISP(e, spill[3]) + 8 * (s32)borrows, reg);
			borrowed[borrows++] = reg;
			temp[k] = reg;
		}
		map[slot[k]] = temp[k];
		emit_load_cpu(e, temp[k], CPU_DISP(e, r[0]) + 8 * slot[k]);
	}
	if (!emit_insn(e, i, map, m)) {
		e->p = start;
		return false;
	}
	for (u32 k = 0; k < slots; k++)
		if (written[k])
			emit_store_cpu(e, CPU_DISP(e, r[0]) + 8 * slot[k], temp[k]);
	while (borrows--)
		emit_load_cpu(e, borrowed[borrows], CPU_DISP(e, spill[3]) + 8 * (s32)borrows);
	return true;
}

void emit_table_jump(struct emit *e, u32 half, bool call)
{
	s32 disp = put_half(e, half,
			    offsetof(struct soft_half, ibt) + offsetof(struct ibt_entry, code));

	put_rex(e, false, NO_REG, HOST_S2, NO_REG);
	emit_u8(e, 0xff);
	put_mem(e, call ? 2 : 4, NO_REG, HOST_S2, 8, disp, false);
}

void emit_indirect(struct emit *e, u32 half, bool call)
{
	emit_pext_cpu(e, HOST_S2, HOST_S1, CPU_DISP(e, ibt_mask));
	emit_lea(e, 64, HOST_S2, HOST_S2, HOST_S2, 1, 0);
	emit_table_jump(e, half, call);
}
