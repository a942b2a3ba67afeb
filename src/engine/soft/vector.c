/*
 * Vector memory operands of which only some elements are accessed: EVEX masks, VMASKMOV,
 * MASKMOVDQU, gathers and scatters.
 *
 * Elements that are masked off must not fault (SDM vol. 2, 2.7.7). As long as the whole operand
 * lies in one accessible page the instruction runs natively on it. Otherwise the elements that the
 * mask selects are moved one by one between guest memory and a bounce buffer, and the instruction
 * runs on that.
 *
 * Gathers and scatters are carried out element by element on the parked register image; each
 * completed element clears its mask bit, so that a fault leaves the architected partial result
 * behind (SDM vol. 2, VGATHERDPS).
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

#include <Zydis/Zydis.h>

enum {
	IMAGE_FSW = 2,
	IMAGE_FTW = 4,
	IMAGE_ST = 32,
	IMAGE_XMM = 160,
	IMAGE_HEADER = 512,
	COMPONENT_YMM = 2,
	COMPONENT_OPMASK = 5,
	COMPONENT_ZMM_HI256 = 6,
	COMPONENT_HI16_ZMM = 7,
};

/* ---- registers in the parked image ---- */

static u8 *image_component(struct soft_cpu *c, u32 component)
{
	return c->fpu_area + soft_interp(c)->xsave_offset[component];
}

/* Byte @at of vector register @reg; elements never straddle the parts. */
static u8 *image_vector(struct soft_cpu *c, u32 reg, u32 at)
{
	if (reg >= 16)
		return image_component(c, COMPONENT_HI16_ZMM) + 64ul * (reg - 16) + at;
	if (at < 16)
		return c->fpu_area + IMAGE_XMM + 16ul * reg + at;
	if (at < 32)
		return image_component(c, COMPONENT_YMM) + 16ul * reg + at - 16;
	return image_component(c, COMPONENT_ZMM_HI256) + 32ul * reg + at - 32;
}

static u8 *image_opmask(struct soft_cpu *c, u32 k)
{
	return image_component(c, COMPONENT_OPMASK) + 8ul * k;
}

static void image_mark_used(struct soft_cpu *c, u64 components)
{
	u64 used = soft_load(c->fpu_area + IMAGE_HEADER, 8);

	soft_store(c->fpu_area + IMAGE_HEADER, used | (components & c->vm->xsave_mask), 8);
}

/* Clear bytes [from, end of the register). */
static void image_clear_above(struct soft_cpu *c, u32 reg, u32 from)
{
	u32 end = c->vm->xsave_mask & XCR0_AVX512 ? 64 : 32;

	for (u32 at = from; at < end; at += 8)
		soft_store(image_vector(c, reg, at), 0, 8);
}

/* ---- encoding fields (SDM vol. 2, 2.3.5 and 2.7.1; stored inverted) ---- */

static u8 vex_byte(const struct insn *i, u32 n)
{
	return i->bytes[i->vex_off + n];
}

static u32 vex_vvvv(const struct insn *i)
{
	u8 b = i->encoding == ENC_VEX && i->vex_len == 2 ? vex_byte(i, 1) : vex_byte(i, 2);

	return ~(u32)(b >> 3) & 15;
}

/* Vector length in bytes. */
static u32 vector_bytes(const struct insn *i)
{
	if (i->encoding == ENC_EVEX)
		return 16u << (vex_byte(i, 3) >> 5 & 3);
	return (i->vex_len == 2 ? vex_byte(i, 1) : vex_byte(i, 2)) & 4 ? 32 : 16;
}

static u32 evex_opmask(const struct insn *i)
{
	return vex_byte(i, 3) & 7;
}

/* ModRM.reg as a vector register. */
static u32 vector_reg(const struct insn *i)
{
	u32 reg = i->bytes[i->modrm_off] >> 3 & 7;

	if (!(vex_byte(i, 1) & 0x80))
		reg |= 8;
	if (i->encoding == ENC_EVEX && !(vex_byte(i, 1) & 0x10))
		reg |= 16;
	return reg;
}

/* SIB.index as a vector register; VSIB needs a three-byte VEX or an EVEX prefix. */
static u32 vsib_index(const struct insn *i)
{
	u32 reg = i->bytes[i->modrm_off + 1] >> 3 & 7;

	if (!(vex_byte(i, 1) & 0x40))
		reg |= 8;
	if (i->encoding == ENC_EVEX && !(vex_byte(i, 3) & 8))
		reg |= 16;
	return reg;
}

/* ---- masked operands ---- */

static bool is_compressed(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VCOMPRESSPS:
	case ZYDIS_MNEMONIC_VCOMPRESSPD:
	case ZYDIS_MNEMONIC_VPCOMPRESSB:
	case ZYDIS_MNEMONIC_VPCOMPRESSW:
	case ZYDIS_MNEMONIC_VPCOMPRESSD:
	case ZYDIS_MNEMONIC_VPCOMPRESSQ:
	case ZYDIS_MNEMONIC_VEXPANDPS:
	case ZYDIS_MNEMONIC_VEXPANDPD:
	case ZYDIS_MNEMONIC_VPEXPANDB:
	case ZYDIS_MNEMONIC_VPEXPANDW:
	case ZYDIS_MNEMONIC_VPEXPANDD:
	case ZYDIS_MNEMONIC_VPEXPANDQ: return true;
	default: return false;
	}
}

static bool is_broadcast(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VBROADCASTSS:
	case ZYDIS_MNEMONIC_VBROADCASTSD:
	case ZYDIS_MNEMONIC_VBROADCASTF32X2:
	case ZYDIS_MNEMONIC_VBROADCASTF32X4:
	case ZYDIS_MNEMONIC_VBROADCASTF32X8:
	case ZYDIS_MNEMONIC_VBROADCASTF64X2:
	case ZYDIS_MNEMONIC_VBROADCASTF64X4:
	case ZYDIS_MNEMONIC_VBROADCASTI32X2:
	case ZYDIS_MNEMONIC_VBROADCASTI32X4:
	case ZYDIS_MNEMONIC_VBROADCASTI32X8:
	case ZYDIS_MNEMONIC_VBROADCASTI64X2:
	case ZYDIS_MNEMONIC_VBROADCASTI64X4:
	case ZYDIS_MNEMONIC_VPBROADCASTB:
	case ZYDIS_MNEMONIC_VPBROADCASTW:
	case ZYDIS_MNEMONIC_VPBROADCASTD:
	case ZYDIS_MNEMONIC_VPBROADCASTQ: return true;
	default: return vex_byte(i, 3) & 0x10; /* EVEX.b: {1toN} */
	}
}

static u64 low_bits(u32 n)
{
	return n >= 64 ? ~0ul : (1ul << n) - 1;
}

/* Bit per element of the memory operand: the ones that an EVEX mask has accessed. */
static u64 evex_active(struct soft_cpu *c, const struct insn *i, u32 elements)
{
	u64 mask = soft_load(image_opmask(c, evex_opmask(i)), 8), active = 0;
	u32 lanes = i->lanes ? i->lanes : vector_bytes(i) / i->mem_elem;

	if (is_compressed(i))
		return low_bits((u32)__builtin_popcountl(mask & low_bits(elements)));
	if (!is_broadcast(i))
		return mask & low_bits(elements);
	for (u32 lane = 0; lane < lanes; lane++)
		active |= (mask >> lane & 1) << (lane % elements);
	return active;
}

/* The same by the sign bits of the vector in VEX.vvvv. */
static u64 vex_active(struct soft_cpu *c, const struct insn *i, u32 elements)
{
	u32 mask = vex_vvvv(i);
	u64 active = 0;

	for (u32 n = 0; n < elements; n++)
		active |= (u64)(*image_vector(c, mask, (n + 1) * i->mem_elem - 1) >> 7) << n;
	return active;
}

/* Linear address of element @n of the operand, checked. */
static int element_linear(struct soft_cpu *c, const struct insn *i, u32 n, gva_t *lin)
{
	u64 off = (insn_offset(c, i) + (u64)n * i->mem_elem) & size_mask(i->addrsize);

	return seg_linear(c, i->seg, off, i->mem_elem, i->mem_write, lin);
}

static int load_elements(struct soft_cpu *c, const struct insn *i, u64 active, u8 *buf)
{
	gva_t lin;
	int r;

	soft_fill(buf, 0, i->mem_size);
	for (u32 n = 0; active >> n; n++) {
		if (!(active >> n & 1))
			continue;
		r = element_linear(c, i, n, &lin);
		if (r == SOFT_OK)
			r = guest_read(c, lin, buf + (u64)n * i->mem_elem, i->mem_elem);
		if (r != SOFT_OK || n == 63)
			return r;
	}
	return SOFT_OK;
}

/* Check (@buf NULL) or store the active elements. */
static int store_elements(struct soft_cpu *c, const struct insn *i, u64 active, const u8 *buf)
{
	bool device;
	gva_t lin;
	int r;

	for (u32 n = 0; active >> n; n++) {
		if (!(active >> n & 1))
			continue;
		r = element_linear(c, i, n, &lin);
		if (r == SOFT_OK && !buf)
			r = guest_probe_write(c, lin, i->mem_elem, &device);
		else if (r == SOFT_OK)
			r = guest_write(c, lin, buf + (u64)n * i->mem_elem, i->mem_elem);
		if (r != SOFT_OK || n == 63)
			return r;
	}
	return SOFT_OK;
}

static int masked_by_elements(struct soft_cpu *c, const struct insn *i)
{
	u32 elements = i->mem_size / MAX(i->mem_elem, 1u);
	u8 *buf =
		soft_interp(c)->bounce + (seg_linear_unchecked(c, i->seg, insn_offset(c, i)) & 63);
	u64 active;
	int r;

	if (!i->mem_elem || !elements || elements > 64)
		return fault_ud(c);
	soft_fpu_park(c);
	active = i->encoding == ENC_EVEX ? evex_active(c, i, elements) : vex_active(c, i, elements);
	r = i->mem_write ? store_elements(c, i, active, NULL) : load_elements(c, i, active, buf);
	if (r == SOFT_OK)
		r = soft_thunk(c, i, buf);
	if (r == SOFT_OK && i->mem_write)
		r = store_elements(c, i, active, buf);
	return r;
}

/* Host address of the whole operand when nothing of it can fault, else NULL. */
static void *masked_pointer(struct soft_cpu *c, const struct insn *i)
{
	bool filled;
	void *host;
	gva_t lin;

	if ((c->mode & MODE_INTERPRET) ||
	    insn_linear(c, i, i->mem_size, i->mem_write, &lin) != SOFT_OK ||
	    (lin & ~PAGE_MASK) + i->mem_size > PAGE_SIZE)
		return NULL;
	if (i->mem_write)
		return soft_pin_write(c, lin, i->mem_size, soft_acc(c, ACC_WRITE), &host) == SOFT_OK
			       ? host
			       : NULL;
	host = guest_read_pointer(c, lin, i->mem_size);
	if (!host && soft_tlb_fill(c, lin, soft_acc(c, ACC_READ), &filled) == SOFT_OK && filled)
		host = guest_read_pointer(c, lin, i->mem_size);
	return host;
}

int exec_masked(struct soft_cpu *c, const struct insn *i)
{
	void *host;
	int r = data_check_usable(c, i);

	if (r != SOFT_OK)
		return r;
	host = masked_pointer(c, i);
	return host ? soft_thunk(c, i, host) : masked_by_elements(c, i);
}

/* ---- MASKMOVQ, MASKMOVDQU: bytes to DS:rDI ---- */

/* Any MMX instruction makes TOP zero and all registers valid (SDM vol. 1, 9.5.1). */
static void image_enter_mmx(struct soft_cpu *c)
{
	u8 *image = c->fpu_area, old[8 * 16];
	u32 fsw = (u32)soft_load(image + IMAGE_FSW, 2), top = fsw >> 11 & 7;

	soft_copy(old, image + IMAGE_ST, sizeof(old));
	for (u32 n = 0; n < 8; n++)
		soft_copy(image + IMAGE_ST + 16ul * n, old + 16ul * ((n - top) & 7), 16);
	soft_store(image + IMAGE_FSW, fsw & ~0x3800u, 2);
	image[IMAGE_FTW] = 0xff;
	image_mark_used(c, XCR0_X87);
}

static int maskmov_store(struct soft_cpu *c, const struct insn *i, const u8 *data, const u8 *mask,
			 u32 bytes, bool probe)
{
	u32 seg = insn_override(i, SEG_DS);
	bool device;
	gva_t lin;
	int r = SOFT_OK;

	for (u32 n = 0; n < bytes && r == SOFT_OK; n++) {
		if (!(mask[n] & 0x80))
			continue;
		r = seg_linear(c, seg, (c->r[RDI] + n) & size_mask(i->addrsize), 1, true, &lin);
		if (r == SOFT_OK)
			r = probe ? guest_probe_write(c, lin, 1, &device)
				  : guest_write(c, lin, &data[n], 1);
	}
	return r;
}

int op_maskmov(struct soft_cpu *c, const struct insn *i)
{
	bool mmx = i->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
	u32 data = i->bytes[i->modrm_off] >> 3 & 7, mask = i->bytes[i->modrm_off] & 7;
	u8 value[16] = {0}, select[16] = {0};
	u32 bytes = mmx ? 8 : 16;
	int r = data_check_usable(c, i);

	if (r != SOFT_OK)
		return r;
	soft_fpu_park(c);
	if (mmx) {
		if (soft_load(c->fpu_area + IMAGE_FSW, 2) & 0x80) /* ES: unmasked and pending */
			return soft_fault(c, VEC_MF);
		image_enter_mmx(c);
		soft_copy(value, c->fpu_area + IMAGE_ST + 16ul * data, 8);
		soft_copy(select, c->fpu_area + IMAGE_ST + 16ul * mask, 8);
	} else {
		bool vex = i->encoding == ENC_VEX;

		data |= (vex ? !(vex_byte(i, 1) & 0x80) : i->rex >> 2 & 1) ? 8 : 0;
		mask |= (vex ? i->vex_len == 3 && !(vex_byte(i, 1) & 0x20) : i->rex & 1) ? 8 : 0;
		soft_copy(value, image_vector(c, data, 0), 16);
		soft_copy(select, image_vector(c, mask, 0), 16);
	}
	r = maskmov_store(c, i, value, select, bytes, true);
	return r == SOFT_OK ? maskmov_store(c, i, value, select, bytes, false) : r;
}

/* ---- gathers and scatters ---- */

struct vsib {
	u32 reg, index, mask; /* mask: opmask (EVEX) or vector register (VEX) */
	u32 data_size, index_size;
	u32 count;  /* elements */
	u32 length; /* bytes of the vector length */
	bool evex, scatter;
};

static struct vsib vsib_of(const struct insn *i)
{
	bool evex = i->encoding == ENC_EVEX;
	struct vsib v = {
		.reg = vector_reg(i),
		.index = vsib_index(i),
		.mask = evex ? evex_opmask(i) : vex_vvvv(i),
		.data_size = vex_byte(i, 2) & 0x80 ? 8 : 4, /* W */
		.index_size = insn_opcode(i) & 1 ? 8 : 4,
		.length = vector_bytes(i),
		.evex = evex,
		.scatter = insn_opcode(i) & 0x20,
	};

	v.count = v.length / MAX(v.data_size, v.index_size);
	return v;
}

/* Register combinations that are #UD (SDM vol. 2 under VGATHERDPS). */
static bool vsib_is_invalid(const struct vsib *v)
{
	if (v->length > 64)
		return true;
	if (v->evex)
		return !v->mask || (!v->scatter && v->reg == v->index);
	return v->reg == v->index || v->reg == v->mask || v->index == v->mask;
}

static bool vsib_active(struct soft_cpu *c, const struct vsib *v, u32 n)
{
	if (v->evex)
		return soft_load(image_opmask(c, v->mask), 8) >> n & 1;
	return *image_vector(c, v->mask, (n + 1) * v->data_size - 1) & 0x80;
}

static void vsib_complete(struct soft_cpu *c, const struct vsib *v, u32 n)
{
	if (v->evex) {
		u8 *k = image_opmask(c, v->mask);

		soft_store(k, soft_load(k, 8) & ~BIT(n), 8);
	} else {
		soft_store(image_vector(c, v->mask, n * v->data_size), 0, v->data_size);
	}
	c->frag_count = c->frag_next = 0; /* what comes next starts afresh */
}

static int vsib_element(struct soft_cpu *c, const struct insn *i, const struct vsib *v, u32 n)
{
	u64 index = soft_load(image_vector(c, v->index, n * v->index_size), v->index_size), off,
	    value;
	u8 *data = image_vector(c, v->reg, n * v->data_size);
	gva_t lin;
	int r;

	if (v->index_size == 4)
		index = (u64)(s64)(s32)index;
	off = (insn_offset(c, i) + index * i->scale) & size_mask(i->addrsize);
	r = seg_linear(c, i->seg, off, v->data_size, v->scatter, &lin);
	if (r != SOFT_OK)
		return r;
	if (v->scatter)
		return guest_write(c, lin, data, v->data_size);
	r = guest_read_value(c, lin, v->data_size, &value);
	if (r == SOFT_OK)
		soft_store(data, value, v->data_size);
	return r;
}

static void vsib_finish(struct soft_cpu *c, const struct vsib *v)
{
	if (v->evex)
		soft_store(image_opmask(c, v->mask), 0, 8);
	else
		image_clear_above(c, v->mask, 0);
	if (!v->scatter)
		image_clear_above(c, v->reg, v->count * v->data_size);
}

int op_vsib(struct soft_cpu *c, const struct insn *i)
{
	struct vsib v = vsib_of(i);
	int r = data_check_usable(c, i);

	if (r == SOFT_OK && vsib_is_invalid(&v))
		r = fault_ud(c);
	if (r != SOFT_OK)
		return r;
	soft_fpu_park(c);
	image_mark_used(c, v.evex ? XCR0_SSE | XCR0_AVX | XCR0_AVX512 : XCR0_SSE | XCR0_AVX);
	for (u32 n = 0; n < v.count; n++) {
		if (vsib_active(c, &v, n))
			r = vsib_element(c, i, &v, n);
		if (r != SOFT_OK)
			return r;
		vsib_complete(c, &v, n);
	}
	vsib_finish(c, &v);
	return SOFT_OK;
}
