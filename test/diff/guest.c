/*
 * The soft engine as a runner.
 *
 * A machine without devices: 32 MiB of RAM, long mode, page tables that show the data and the code
 * region at the addresses native.c maps them at, and in the upper half a supervisor-only window
 * with descriptor tables, a TSS and one HLT per exception vector. All gates use one interrupt
 * stack, so that the guest's own stack pointer may be anything; the frame there tells where the
 * exception happened. Selectors equal those of a Linux process.
 *
 * An armed breakpoint at an address nobody uses makes the engine interpret everything.
 */
#include "diff.h"
#include "engine/engine.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

enum {
	RAM_SIZE = 32 * 1024 * 1024,

	/* Guest-physical addresses. */
	GPA_PML4 = 0x1000,
	GPA_PDPT = 0x2000,
	GPA_PD = 0x3000,
	GPA_PT_DATA = 0x4000,
	GPA_PT_CODE = 0x5000,
	GPA_PDPT_HIGH = 0x6000,
	GPA_PD_HIGH = 0x7000,
	GPA_IDT = 0x8000,
	GPA_GDT = 0x9000,
	GPA_TSS = 0xa000,
	GPA_HANDLERS = 0xb000,
	GPA_STACK_TOP = 0xd000,
	GPA_DATA = 0x400000,
	GPA_CODE = 0x600000,

	SEL_KERNEL_CS = 0x10,
	SEL_KERNEL_DS = 0x18,
	SEL_USER_CS32 = 0x23,
	SEL_USER_DS = 0x2b,
	SEL_USER_CS = 0x33,
	SEL_KERNEL_CS32 = 0x38,
	SEL_TSS = 0x40,

	HANDLER_STEP = 16,
	HLT = 0xf4,
};

#define WINDOW 0xffff9a6bc5e00000ul /* gva of gpa 0; no case hits it by chance */
#define UNUSED 0xffffc00000001000ul /* nothing is there */

struct guest {
	struct physmap physmap;
	struct cpuid_model cpuid;
	const struct engine_ops *ops;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	const struct layout *layout;
	struct cpu_state *base; /* what does not depend on the case */
	struct cpu_state *state;
};

static void store64(struct guest *g, gpa_t at, u64 v)
{
	mem_write(&g->physmap, at, &v, 8);
}

static void map_pages(struct guest *g, gpa_t table, u64 gva, gpa_t to, u32 pages)
{
	u64 first = gva >> 12 & 511;

	for (u32 n = 0; n < pages; n++)
		store64(g, table + (first + n) * 8,
			(to + n * PAGE_SIZE) | PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D);
}

static void build_tables(struct guest *g)
{
	const u64 link = PTE_P | PTE_RW | PTE_US | PTE_A;

	store64(g, GPA_PML4, GPA_PDPT | link);
	store64(g, GPA_PDPT, GPA_PD | link);
	store64(g, GPA_PD + (DATA_BASE >> 21) * 8, GPA_PT_DATA | link);
	store64(g, GPA_PD + (CODE_BASE >> 21) * 8, GPA_PT_CODE | link);
	map_pages(g, GPA_PT_DATA, DATA_BASE, GPA_DATA, DATA_PAGES);
	map_pages(g, GPA_PT_CODE, CODE_BASE, GPA_CODE, CODE_PAGES);
	store64(g, GPA_PT_DATA + PAGE_HOLE * 8, 0);
	store64(g, GPA_PT_DATA + PAGE_READ_ONLY * 8,
		(GPA_DATA + PAGE_READ_ONLY * PAGE_SIZE) | PTE_P | PTE_US | PTE_A);
	store64(g, GPA_PML4 + (WINDOW >> 39 & 511) * 8, GPA_PDPT_HIGH | PTE_P | PTE_RW);
	store64(g, GPA_PDPT_HIGH + (WINDOW >> 30 & 511) * 8, GPA_PD_HIGH | PTE_P | PTE_RW);
	store64(g, GPA_PD_HIGH + (WINDOW >> 21 & 511) * 8, PTE_P | PTE_RW | PTE_PS);
}

static void build_descriptors(struct guest *g)
{
	const u64 tss = WINDOW + GPA_TSS;

	store64(g, GPA_GDT + SEL_KERNEL_CS, 0x00af9b000000ffff);
	store64(g, GPA_GDT + SEL_KERNEL_DS, 0x00cf93000000ffff);
	store64(g, GPA_GDT + (SEL_USER_CS32 & ~7), 0x00cffb000000ffff);
	store64(g, GPA_GDT + (SEL_USER_DS & ~7), 0x00cff3000000ffff);
	store64(g, GPA_GDT + (SEL_USER_CS & ~7), 0x00affb000000ffff);
	store64(g, GPA_GDT + SEL_KERNEL_CS32, 0x00cf9b000000ffff);
	store64(g, GPA_GDT + SEL_TSS,
		0x67 | (tss & 0xffffff) << 16 | 0x8bul << 40 | (tss >> 24 & 0xff) << 56);
	store64(g, GPA_GDT + SEL_TSS + 8, tss >> 32);
	store64(g, GPA_TSS + 4, WINDOW + GPA_STACK_TOP);  /* RSP0 */
	store64(g, GPA_TSS + 36, WINDOW + GPA_STACK_TOP); /* IST1 */
}

static void build_gates(struct guest *g)
{
	const u8 hlt = HLT;

	for (u32 n = 0; n < 256; n++) {
		u64 to = WINDOW + GPA_HANDLERS + n * HANDLER_STEP;
		/* Interrupt gate, DPL 3 so that INT3 may use it, stack IST1. */
		u64 low = (to & 0xffff) | (u64)SEL_KERNEL_CS << 16 | 1ul << 32 | 0xeeul << 40 |
			  (to >> 16 & 0xffff) << 48;

		store64(g, GPA_IDT + n * 16, low);
		store64(g, GPA_IDT + n * 16 + 8, to >> 32);
		mem_write(&g->physmap, to - WINDOW, &hlt, 1);
	}
}

static struct cpu_segment segment(u16 selector)
{
	bool code = selector == SEL_USER_CS || selector == SEL_USER_CS32 ||
		    selector == SEL_KERNEL_CS || selector == SEL_KERNEL_CS32;
	bool is_long = selector == SEL_USER_CS || selector == SEL_KERNEL_CS;

	return (struct cpu_segment){.selector = selector,
				    .limit = 0xffffffff,
				    .type = code ? 11 : 3,
				    .s = 1,
				    .dpl = selector & 3,
				    .present = 1,
				    .l = is_long,
				    .db = !is_long,
				    .g = 1};
}

/* What all runs have in common; the reset values of everything else are already there. */
static void set_base_state(struct guest *g)
{
	struct cpu_state *s = g->base;

	s->cr = (struct cpu_cr){
		.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG,
		.cr3 = GPA_PML4,
		.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE,
		.xcr0 = g->cpuid.xcr0,
		.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE,
	};
	s->segs.gdtr = (struct cpu_table){.base = WINDOW + GPA_GDT, .limit = 0x4f};
	s->segs.idtr = (struct cpu_table){.base = WINDOW + GPA_IDT, .limit = 0xfff};
	s->segs.seg[SEG_TR] = (struct cpu_segment){.selector = SEL_TSS,
						   .limit = 0x67,
						   .base = WINDOW + GPA_TSS,
						   .type = 11,
						   .present = 1};
	s->segs.seg[SEG_LDTR] = (struct cpu_segment){.unusable = 1, .type = 2};
	s->segs.seg[SEG_FS] = (struct cpu_segment){.unusable = 1};
	s->segs.seg[SEG_GS] = (struct cpu_segment){.unusable = 1};
	s->fpu.size = g->cpuid.xsave_max;
}

static int start_engine(struct guest *g, const char *options, struct err *e)
{
	const struct cpuid_request request = {.vcpus = 1};
	struct engine_config config = {
		.physmap = &g->physmap, .cpuid = &g->cpuid, .options = options, .cache_dir = ""};
	int r;

	physmap_init(&g->physmap);
	physmap_share(&g->physmap);
	r = physmap_add(&g->physmap, 0, RAM_SIZE, 0, e);
	if (r == 0)
		r = cpuid_model_init(&g->cpuid, &request, e);
	if (r == 0)
		r = g->ops->probe(e);
	if (r == 0)
		r = g->ops->vm_create(&config, &g->vm, e);
	if (r == 0)
		r = g->ops->vcpu_create(g->vm, 0, &g->vcpu, e);
	return r;
}

struct guest *guest_create(struct layout *layout, const char *options)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct err e = {0};

	if (!g)
		return NULL;
	g->ops = engine_by_name("soft");
	g->base = aligned_alloc(64, align_up(sizeof(*g->base), 64));
	g->state = aligned_alloc(64, align_up(sizeof(*g->state), 64));
	if (!g->ops || !g->base || !g->state || start_engine(g, options, &e) < 0) {
		fprintf(stderr, "diff: %s\n", e.code ? e.text : "no soft engine");
		guest_destroy(g);
		return NULL;
	}
	build_tables(g);
	build_descriptors(g);
	build_gates(g);
	memset(g->base, 0, sizeof(*g->base));
	g->ops->state_get(g->vcpu, CPU_PART_ALL, g->base);
	set_base_state(g);
	layout_init(layout, g->cpuid.xcr0, g->cpuid.xsave_max);
	g->layout = layout;
	return g;
}

void guest_destroy(struct guest *g)
{
	if (g->vcpu)
		g->ops->vcpu_destroy(g->vcpu);
	if (g->vm)
		g->ops->vm_destroy(g->vm);
	physmap_destroy(&g->physmap);
	free(g->base);
	free(g->state);
	free(g);
}

void guest_kick(struct guest *g)
{
	g->ops->kick(g->vcpu);
}

static void set_state(struct guest *g, const struct test_case *t, bool interpret)
{
	struct cpu_state *s = g->state;
	u16 cs = t->bits == 64 ? t->user ? SEL_USER_CS : SEL_KERNEL_CS
		 : t->user     ? SEL_USER_CS32
			       : SEL_KERNEL_CS32;
	u16 ds = t->user ? SEL_USER_DS : SEL_KERNEL_DS;

	*s = *g->base;
	memcpy(s->gpr.r, t->r, sizeof(t->r));
	s->gpr.rip = CODE_BASE + t->code_offset;
	s->gpr.rflags = t->flags | RFLAGS_IF | RFLAGS_ONE;
	s->segs.seg[SEG_CS] = segment(cs);
	s->segs.seg[SEG_SS] = segment(ds);
	s->segs.seg[SEG_DS] = segment(SEL_USER_DS);
	s->segs.seg[SEG_ES] = segment(SEL_USER_DS);
	s->segs.seg[SEG_FS].base = t->fs_base;
	s->segs.seg[SEG_GS].base = t->gs_base;
	s->dr.dr[0] = UNUSED;
	s->dr.dr7 = interpret ? 0x401 : 0x400;
	memcpy(s->fpu.area, t->xsave, g->layout->xsave_size);
}

static void set_memory(struct guest *g, const u8 *memory, bool code_too)
{
	for (u32 n = 0; n < DATA_PAGES; n++)
		if (n != PAGE_HOLE)
			mem_write(&g->physmap, GPA_DATA + n * PAGE_SIZE, memory + n * PAGE_SIZE,
				  PAGE_SIZE);
	if (code_too)
		mem_write(&g->physmap, GPA_CODE, memory + DATA_PAGES * PAGE_SIZE,
			  CODE_PAGES * PAGE_SIZE);
}

static void get_memory(struct guest *g, const u8 *before, u8 *memory)
{
	mem_read(&g->physmap, GPA_DATA, memory, DATA_PAGES * PAGE_SIZE);
	memcpy(memory + PAGE_HOLE * PAGE_SIZE, before + PAGE_HOLE * PAGE_SIZE, PAGE_SIZE);
	mem_read(&g->physmap, GPA_CODE, memory + DATA_PAGES * PAGE_SIZE, CODE_PAGES * PAGE_SIZE);
}

static bool has_error_code(u8 vector)
{
	return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

/* The exception that a handler's HLT stands for: registers from its stack frame. */
static void read_exception(struct guest *g, struct outcome *o)
{
	const struct cpu_state *s = g->state;
	u64 frame[6], *at = frame;

	o->vector = (u8)((s->gpr.rip - 1 - WINDOW - GPA_HANDLERS) / HANDLER_STEP);
	mem_read(&g->physmap, GPA_STACK_TOP - sizeof(frame), frame, sizeof(frame));
	o->error = has_error_code(o->vector) ? (u32)frame[0] : 0;
	at++;
	o->rip = at[0];
	o->flags = at[2];
	o->cr2 = s->cr.cr2;
	memcpy(o->r, s->gpr.r, sizeof(o->r));
	o->r[RSP] = at[3];
	o->fs_base = s->segs.seg[SEG_FS].base;
	o->gs_base = s->segs.seg[SEG_GS].base;
}

static bool is_in_handler(const struct cpu_state *s)
{
	return s->gpr.rip - (WINDOW + GPA_HANDLERS) < 256 * HANDLER_STEP;
}

void guest_run(struct guest *g, const struct test_case *t, const u8 memory[MEMORY_BYTES],
	       enum guest_how how, struct outcome *o)
{
	struct vm_exit exit = {0};
	int r;

	set_memory(g, memory, how != GUEST_AGAIN);
	set_state(g, t, how == GUEST_INTERPRETED);
	r = g->ops->state_set(g->vcpu, CPU_PART_ALL, g->state);
	if (r == 0)
		r = g->ops->run(g->vcpu, &exit);
	g->ops->state_get(g->vcpu, CPU_PART_ALL, g->state);
	o->vector = OUTCOME_NONE;
	if (r == 0 && exit.type == EXIT_HLT && is_in_handler(g->state))
		read_exception(g, o);
	else
		snprintf(o->note, sizeof(o->note), "result %d, exit %d at rip %lx", r, exit.type,
			 g->state->gpr.rip);
	memcpy(o->xsave, g->state->fpu.area, g->layout->xsave_size);
	get_memory(g, memory, o->memory);
	outcome_normalise(g->layout, o);
}
