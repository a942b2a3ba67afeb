/* Power-up state of a processor; see state.h. */
#include "cpu/msr.h"

#include <string.h>

/* Offsets in the XSAVE area, SDM vol. 1, 10.5.1 and 13.4.2 */
enum {
	FXSAVE_FCW = 0,
	FXSAVE_FTW = 4,
	FXSAVE_MXCSR = 24,
	XSAVE_XSTATE_BV = 512,
	XSAVE_LEGACY = 576
};

static void reset_segments(struct cpu_segs *s)
{
	for (u32 i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct cpu_segment){.limit = 0xffff, .type = 3, .s = 1, .present = 1};
	s->seg[SEG_CS].type = 11;
	s->seg[SEG_CS].selector = 0xf000;
	s->seg[SEG_CS].base = 0xffff0000;
	s->seg[SEG_LDTR].type = 2;
	s->seg[SEG_LDTR].s = 0;
	s->seg[SEG_TR].type = 11;
	s->seg[SEG_TR].s = 0;
	s->gdtr.limit = s->idtr.limit = 0xffff;
}

static void reset_fpu(struct cpu_fpu *f)
{
	u16 fcw = 0x40;
	u32 mxcsr = 0x1f80;

	f->size = XSAVE_LEGACY;
	memcpy(f->area + FXSAVE_FCW, &fcw, sizeof(fcw));
	f->area[FXSAVE_FTW] = 0xff; /* tag word 5555H, abridged */
	memcpy(f->area + FXSAVE_MXCSR, &mxcsr, sizeof(mxcsr));
	f->area[XSAVE_XSTATE_BV] = XCR0_X87 | XCR0_SSE;
}

/* SDM vol. 3, 11.4.7.1 */
static void reset_apic(struct cpu_apic *a)
{
	const u32 masked = 1u << 16;

	a->base = 0xfee00000 | BIT(11);
	a->reg[APIC_DFR] = ~0u;
	a->reg[APIC_SVR] = 0xff;
	for (u32 i = APIC_LVT_TIMER; i <= APIC_LVT_ERROR; i++)
		a->reg[i] = masked;
}

void cpu_state_reset(struct cpu_state *s)
{
	memset(s, 0, sizeof(*s));
	s->gpr.rip = 0xfff0;
	s->gpr.rflags = RFLAGS_ONE;
	s->gpr.r[RDX] = 0x600;
	reset_segments(&s->segs);
	s->cr.cr0 = CR0_ET | CR0_NW | CR0_CD;
	s->cr.xcr0 = XCR0_X87;
	s->dr.dr6 = 0xffff0ff0;
	s->dr.dr7 = 0x400;
	msr_reset(&s->msr);
	reset_fpu(&s->fpu);
	reset_apic(&s->apic);
}
