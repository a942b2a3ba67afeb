/*
 * XSAVE, XSAVEOPT, XRSTOR, FXSAVE and FXRSTOR, run natively (SDM vol. 1, chapter 13; 10.5).
 *
 * Both go straight to guest memory where the image lies in one piece. A save never faults on what
 * the memory holds. A restore does, on reserved bits, and another processor could set them between
 * any check and its execution: when it faults, a private copy is looked at instead (fault.c).
 *
 * The image has the host's layout, which is the one the CPU model shows. Outside 64-bit mode
 * registers 8 to 15 (and 16 to 31) are neither saved nor restored; the host's instruction, which
 * runs in 64-bit mode, does both, so their bytes are put back.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

#include <cpuid.h>

enum {
	FX_SIZE = 512,
	FX_X87 = 160, /* end of the x87 part */
	FX_XMM8 = 288,
	FX_XMM_END = 416,
	FX_MXCSR = 24,
	FX_MXCSR_MASK = 28,
	XSAVE_HEADER = 512,
	XSAVE_EXTENDED = 576, /* first extended component */
	COMPONENT_AVX = 2,
	COMPONENT_ZMM_HI256 = 6,
	COMPONENT_HI16_ZMM = 7,
};

void xsave_init(struct soft_cpu *c)
{
	struct interp *in = soft_interp(c);
	u32 a, b, ecx, edx;

	for (u32 n = COMPONENT_AVX; n < 63; n++) {
		if (!(c->vm->xsave_mask >> n & 1) || !__get_cpuid_count(13, n, &a, &b, &ecx, &edx))
			continue;
		in->xsave_size[n] = a;
		in->xsave_offset[n] = b;
	}
	__asm__ volatile("fxsave64 %0" : "=m"(in->xsave));
	in->mxcsr_mask = (u32)soft_load(in->xsave + FX_MXCSR_MASK, 4);
	if (!in->mxcsr_mask)
		in->mxcsr_mask = 0xffbf; /* SDM vol. 1, 11.6.6 */
}

static u64 requested_components(const struct soft_cpu *c)
{
	return ((u32)c->r[RAX] | c->r[RDX] << 32) & c->xcr0;
}

/* Bytes from the start of the image to the end of the last of @components. */
static u32 image_extent(struct soft_cpu *c, u64 components)
{
	const struct interp *in = soft_interp(c);
	u32 end = XSAVE_EXTENDED;

	for (u32 n = COMPONENT_AVX; components >> n; n++)
		if (components >> n & 1)
			end = MAX(end, in->xsave_offset[n] + in->xsave_size[n]);
	return MIN(end, (u32)CPU_XSAVE_MAX);
}

/* Give @image the bytes of @from that belong to registers which 32-bit code does not reach. */
static void keep_upper_registers(struct soft_cpu *c, u8 *image, const u8 *from, u32 extent)
{
	const struct interp *in = soft_interp(c);
	const struct {
		u32 at, size;
	} part[] = {
		{FX_XMM8, FX_XMM_END - FX_XMM8},
		{in->xsave_offset[COMPONENT_AVX] + in->xsave_size[COMPONENT_AVX] / 2,
		 in->xsave_size[COMPONENT_AVX] / 2},
		{in->xsave_offset[COMPONENT_ZMM_HI256] + in->xsave_size[COMPONENT_ZMM_HI256] / 2,
		 in->xsave_size[COMPONENT_ZMM_HI256] / 2},
		{in->xsave_offset[COMPONENT_HI16_ZMM], in->xsave_size[COMPONENT_HI16_ZMM]},
	};

	for (u32 n = 0; n < ARRAY_SIZE(part); n++)
		if (part[n].size && part[n].at + part[n].size <= extent)
			soft_copy(image + part[n].at, from + part[n].at, part[n].size);
}

static void host_xsave(void *image, u64 components, bool wide, bool optimized)
{
	u32 low = (u32)components, high = (u32)(components >> 32);

	if (wide && optimized)
		__asm__ volatile("xsaveopt64 (%0)" : : "r"(image), "a"(low), "d"(high) : "memory");
	else if (wide)
		__asm__ volatile("xsave64 (%0)" : : "r"(image), "a"(low), "d"(high) : "memory");
	else
		__asm__ volatile("xsave (%0)" : : "r"(image), "a"(low), "d"(high) : "memory");
}

static void host_xrstor(const void *image, u64 components, bool wide)
{
	u32 low = (u32)components, high = (u32)(components >> 32);

	if (wide)
		__asm__ volatile("xrstor64 (%0)" : : "r"(image), "a"(low), "d"(high) : "memory");
	else
		__asm__ volatile("xrstor (%0)" : : "r"(image), "a"(low), "d"(high) : "memory");
}

static int check_xsave(struct soft_cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		return fault_ud(c);
	return c->cr0 & CR0_TS ? soft_fault(c, VEC_NM) : SOFT_OK;
}

/* The image crosses a page, or its page must not be written directly. */
static int xsave_bounced(struct soft_cpu *c, gva_t lin, u64 components, u32 extent, bool wide)
{
	u8 *image = soft_interp(c)->xsave, *old = soft_interp(c)->page;
	bool device;
	int r = guest_probe_write(c, lin, extent, &device);

	if (r == SOFT_OK)
		r = guest_read(c, lin, image, extent);
	if (r != SOFT_OK)
		return r;
	soft_copy(old, image, extent);
	host_xsave(image, components, wide, false);
	if (!soft_is_64bit(c))
		keep_upper_registers(c, image, old, extent);
	return guest_write(c, lin, image, extent);
}

/* *host = the image's memory if it may be written directly and lies in one piece, else NULL. */
static int pin_image(struct soft_cpu *c, gva_t lin, u32 extent, void **host)
{
	u32 first = MIN(extent, (u32)(PAGE_SIZE - (lin & ~PAGE_MASK)));
	void *rest = NULL;
	int r = soft_pin_write(c, lin, first, soft_acc(c, ACC_WRITE), host);

	if (r != SOFT_OK || !*host || first == extent)
		return r;
	r = soft_pin_write(c, lin + first, extent - first, soft_acc(c, ACC_WRITE), &rest);
	if (rest != (u8 *)*host + first)
		*host = NULL;
	return r;
}

int op_xsave(struct soft_cpu *c, const struct insn *i)
{
	bool optimized = (modrm_reg(i) & 7) == 6, wide = i->opsize == 8;
	u64 components = requested_components(c);
	u32 extent = image_extent(c, components);
	void *host = NULL;
	gva_t lin;
	int r = check_xsave(c);

	if (r == SOFT_OK && optimized && !soft_interp(c)->has_xsaveopt)
		r = fault_ud(c);
	if (r == SOFT_OK)
		r = insn_linear(c, i, extent, true, &lin);
	if (r != SOFT_OK)
		return r;
	if (lin & 63)
		return fault_gp(c, 0);
	soft_fpu_live(c);
	r = soft_is_64bit(c) ? pin_image(c, lin, extent, &host) : SOFT_OK;
	if (r != SOFT_OK)
		return r;
	if (!host)
		return xsave_bounced(c, lin, components, extent, wide);
	host_xsave(host, components, wide, optimized);
	return SOFT_OK;
}

/* Would the host's XRSTOR of @components from @image fault? (SDM vol. 1, 13.8.1, standard form) */
static bool image_is_valid(const struct soft_cpu *c, const u8 *image, u64 components,
			   u32 mxcsr_mask)
{
	u64 present = soft_load(image + XSAVE_HEADER, 8);

	if ((present & ~c->xcr0) || soft_load(image + XSAVE_HEADER + 8, 8) ||
	    soft_load(image + XSAVE_HEADER + 16, 8))
		return false;
	return !(components & (XCR0_SSE | XCR0_AVX)) ||
	       !((u32)soft_load(image + FX_MXCSR, 4) & ~mxcsr_mask);
}

static int read_image(struct soft_cpu *c, const struct insn *i, u64 components, u8 *image)
{
	u32 extent;
	gva_t lin;
	int r = insn_linear(c, i, XSAVE_EXTENDED, false, &lin);

	if (r == SOFT_OK && (lin & 63))
		r = fault_gp(c, 0);
	if (r == SOFT_OK)
		r = guest_read(c, lin, image, XSAVE_EXTENDED);
	if (r != SOFT_OK)
		return r;
	if (!image_is_valid(c, image, components, soft_interp(c)->mxcsr_mask))
		return fault_gp(c, 0);
	extent = image_extent(c, components & soft_load(image + XSAVE_HEADER, 8));
	if (extent == XSAVE_EXTENDED)
		return SOFT_OK;
	r = insn_linear(c, i, extent, false, &lin);
	return r == SOFT_OK ? guest_read(c, lin + XSAVE_EXTENDED, image + XSAVE_EXTENDED,
					 extent - XSAVE_EXTENDED)
			    : r;
}

/* The @extent bytes at @lin if they lie in one piece and the TLB has them, else NULL. */
static const u8 *image_in_place(struct soft_cpu *c, gva_t lin, u32 extent)
{
	u32 first = MIN(extent, (u32)(PAGE_SIZE - (lin & ~PAGE_MASK)));
	const u8 *host = guest_read_pointer(c, lin, first);

	if (host && first < extent &&
	    guest_read_pointer(c, lin + first, extent - first) != host + first)
		return NULL;
	return host;
}

/*
 * Restore without a copy, where nobody observes accesses. False: nothing that counts has happened.
 *
 * Another processor could say meanwhile that the image has more in it, or is compacted, so all that
 * is asked for must be there. A compacted image is no longer.
 */
static bool restore_in_place(struct soft_cpu *c, const struct insn *i, u64 components)
{
	const gva_t lin = seg_linear_unchecked(c, i->seg, insn_offset(c, i));
	const u8 *image = image_in_place(c, lin, image_extent(c, components));

	if (!image || lin & 63 || c->mode & MODE_INTERPRET || !soft_is_64bit(c) ||
	    soft_load(image + XSAVE_HEADER, 8) & ~c->xcr0)
		return false;
	soft_fpu_live(c);
	return soft_try_xrstor(image, (u32)components, (u32)(components >> 32), i->opsize == 8);
}

int op_xrstor(struct soft_cpu *c, const struct insn *i)
{
	u64 components = requested_components(c);
	u8 *image = soft_interp(c)->xsave;
	int r = check_xsave(c);

	if (r == SOFT_OK && restore_in_place(c, i, components))
		return SOFT_OK;
	if (r == SOFT_OK)
		r = read_image(c, i, components, image);
	if (r != SOFT_OK)
		return r;
	soft_fill(image + XSAVE_HEADER + 24, 0, 40); /* the host may insist on zeros there */
	if (!soft_is_64bit(c)) {
		soft_fpu_park(c);
		keep_upper_registers(c, image, c->fpu_area, CPU_XSAVE_MAX);
	}
	soft_fpu_live(c);
	host_xrstor(image, components, i->opsize == 8);
	return SOFT_OK;
}

/* ---- FXSAVE, FXRSTOR ---- */

/* End of what is saved: 32-bit code has eight XMM registers, EFER.FFXSR leaves them out. */
static u32 fx_extent(const struct soft_cpu *c)
{
	if (!soft_is_64bit(c))
		return FX_XMM8;
	return (c->efer & EFER_FFXSR) && !c->cpl ? FX_X87 : FX_XMM_END;
}

static void host_fxsave(void *image, bool wide)
{
	if (wide)
		__asm__ volatile("fxsave64 (%0)" : : "r"(image) : "memory");
	else
		__asm__ volatile("fxsave (%0)" : : "r"(image) : "memory");
}

int op_fxsave(struct soft_cpu *c, const struct insn *i)
{
	u8 *image = soft_interp(c)->xsave;
	gva_t lin;
	int r = data_check_fpu(c);

	if (r == SOFT_OK)
		r = insn_linear(c, i, FX_SIZE, true, &lin);
	if (r != SOFT_OK)
		return r;
	if (lin & 15)
		return fault_gp(c, 0);
	soft_fpu_live(c);
	host_fxsave(image, i->opsize == 8);
	return guest_write(c, lin, image, fx_extent(c));
}

int op_fxrstor(struct soft_cpu *c, const struct insn *i)
{
	u8 *image = soft_interp(c)->xsave, *now = soft_interp(c)->saved_fpu;
	u32 extent = fx_extent(c);
	gva_t lin;
	int r = data_check_fpu(c);

	if (r == SOFT_OK)
		r = insn_linear(c, i, FX_SIZE, false, &lin);
	if (r == SOFT_OK && (lin & 15))
		r = fault_gp(c, 0);
	if (r == SOFT_OK)
		r = guest_read(c, lin, image, FX_SIZE);
	if (r != SOFT_OK)
		return r;
	if ((u32)soft_load(image + FX_MXCSR, 4) & ~soft_interp(c)->mxcsr_mask)
		return fault_gp(c, 0);
	soft_fpu_live(c);
	if (extent < FX_XMM_END) {
		host_fxsave(now, true);
		soft_copy(image + extent, now + extent, FX_XMM_END - extent);
	}
	if (i->opsize == 8)
		__asm__ volatile("fxrstor64 (%0)" : : "r"(image) : "memory");
	else
		__asm__ volatile("fxrstor (%0)" : : "r"(image) : "memory");
	return SOFT_OK;
}
