/*
 * The states in which kernels expect to be entered. The descriptor table is the one the Linux boot
 * protocol names (__BOOT_CS 0x10, __BOOT_DS 0x18) plus a task state segment, which PVH asks for;
 * one table serves all protocols.
 */
#include "machine/load.h"

#include "machine/layout.h"

enum {
	SEL_CODE = 0x10,
	SEL_DATA = 0x18,
	SEL_TSS = 0x20,
	TYPE_CODE = 0xb, /* execute, read, accessed */
	TYPE_DATA = 0x3, /* read, write, accessed */
	TYPE_TSS = 0xb,  /* 32/64-bit TSS, busy */
	TSS_LIMIT = 0x67,
};

static struct cpu_segment flat_segment(u16 selector, u8 type, bool is_long)
{
	return (struct cpu_segment){
		.selector = selector,
		.limit = 0xffffffff,
		.type = type,
		.s = 1,
		.present = 1,
		.l = is_long,
		.db = !is_long,
		.g = 1,
	};
}

/* SDM vol. 3, figure 3-8. */
static u64 descriptor(const struct cpu_segment *s)
{
	u64 limit = s->g ? s->limit >> 12 : s->limit;
	u64 access = (u64)s->type | (u64)s->s << 4 | (u64)s->dpl << 5 | (u64)s->present << 7;
	u64 flags = (u64)s->avl | (u64)s->l << 1 | (u64)s->db << 2 | (u64)s->g << 3;

	return (limit & 0xffff) | (s->base & 0xffffff) << 16 | access << 40 |
	       (limit >> 16 & 0xf) << 48 | flags << 52 | (s->base >> 24 & 0xff) << 56;
}

static int set_segments(const struct load *l, bool is_long, struct err *e)
{
	struct cpu_segs *segs = &l->state->segs;
	struct cpu_segment code = flat_segment(SEL_CODE, TYPE_CODE, is_long);
	struct cpu_segment data = flat_segment(SEL_DATA, TYPE_DATA, false);
	struct cpu_segment tss = {
		.selector = SEL_TSS, .limit = TSS_LIMIT, .type = TYPE_TSS, .present = 1};
	u64 gdt[6] = {0, 0, descriptor(&code), descriptor(&data), descriptor(&tss), 0};

	for (u32 i = 0; i < SEG_LDTR; i++)
		segs->seg[i] = data;
	segs->seg[SEG_CS] = code;
	segs->seg[SEG_TR] = tss;
	segs->seg[SEG_LDTR] = (struct cpu_segment){.unusable = 1};
	segs->gdtr = (struct cpu_table){.base = BOOT_GDT, .limit = sizeof(gdt) - 1};
	segs->idtr = (struct cpu_table){0};
	return load_store(l, BOOT_GDT, gdt, sizeof(gdt), e);
}

/* Identity map of the first 4 GiB in 2 MiB pages. */
static int store_page_tables(const struct load *l, struct err *e)
{
	const gpa_t pdpt = BOOT_PAGE_TABLES + PAGE_SIZE, pd = pdpt + PAGE_SIZE;
	const u64 table = PTE_P | PTE_RW;
	u64 page[512];
	int r;

	for (u64 d = 0; d < 4; d++) {
		for (u64 i = 0; i < 512; i++)
			page[i] = (d * 512 + i) << 21 | table | PTE_PS;
		r = load_store(l, pd + d * PAGE_SIZE, page, sizeof(page), e);
		if (r)
			return r;
	}
	for (u64 i = 0; i < 512; i++)
		page[i] = i < 4 ? (pd + i * PAGE_SIZE) | table : 0;
	r = load_store(l, pdpt, page, sizeof(page), e);
	if (r)
		return r;
	for (u64 i = 0; i < 512; i++)
		page[i] = i ? 0 : pdpt | table;
	return load_store(l, BOOT_PAGE_TABLES, page, sizeof(page), e);
}

int entry_long_mode(const struct load *l, u64 rip, u64 rsi, struct err *e)
{
	struct cpu_state *s = l->state;
	int r;

	cpu_state_reset(s);
	r = set_segments(l, true, e);
	if (!r)
		r = store_page_tables(l, e);
	if (r)
		return r;
	s->cr.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
	s->cr.cr3 = BOOT_PAGE_TABLES;
	s->cr.cr4 = CR4_PAE;
	s->cr.efer = EFER_LME | EFER_LMA;
	s->gpr.rip = rip;
	s->gpr.rflags = RFLAGS_ONE;
	s->gpr.r[RSI] = rsi;
	return 0;
}

int entry_protected_mode(const struct load *l, u32 eip, struct err *e)
{
	struct cpu_state *s = l->state;

	cpu_state_reset(s);
	s->cr.cr0 = CR0_PE | CR0_ET;
	s->gpr.rip = eip;
	s->gpr.rflags = RFLAGS_ONE;
	return set_segments(l, false, e);
}
