#include "engine/flat.h"

#include <string.h>

enum { CODE_SELECTOR = 0x08, DATA_SELECTOR = 0x10 };

void flat_tables(u8 *ram, gpa_t gpa)
{
	const u64 bits = PTE_P | PTE_RW | PTE_US;
	u64 *pml4 = (u64 *)(void *)ram, *pdpt = pml4 + 512, *pd = pdpt + 512;

	memset(ram, 0, FLAT_TABLES_SIZE);
	pml4[0] = (gpa + PAGE_SIZE) | bits;
	pdpt[0] = (gpa + 2 * PAGE_SIZE) | bits;
	for (u64 i = 0; i < 512; i++)
		pd[i] = i * 2 * MIB | bits | PTE_PS;
}

void flat_state(struct cpu_state *s, gpa_t tables, gva_t rip, gva_t rsp, u32 cpl)
{
	cpu_state_reset(s);
	for (u32 i = SEG_ES; i <= SEG_GS; i++)
		s->segs.seg[i] = (struct cpu_segment){.selector = (u16)(DATA_SELECTOR | cpl),
						      .limit = 0xffffffff,
						      .type = 3,
						      .s = 1,
						      .dpl = (u8)cpl,
						      .present = 1,
						      .db = 1,
						      .g = 1};
	s->segs.seg[SEG_CS].selector = (u16)(CODE_SELECTOR | cpl);
	s->segs.seg[SEG_CS].type = 11;
	s->segs.seg[SEG_CS].db = 0;
	s->segs.seg[SEG_CS].l = 1;
	s->segs.seg[SEG_LDTR] = (struct cpu_segment){.type = 2, .unusable = 1};
	s->segs.seg[SEG_TR].limit = 0x67;
	s->segs.gdtr.limit = s->segs.idtr.limit = 0;
	s->cr.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP | CR0_MP;
	s->cr.cr3 = tables;
	s->cr.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->cr.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	s->gpr.rip = rip;
	s->gpr.r[RSP] = rsp;
	s->gpr.rflags = RFLAGS_ONE | RFLAGS_IOPL;
}
