#include "soft_machine.h"

#include "engine/soft/util.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct engine_ops soft_engine;

enum { RAM_SIZE = 32 << 20, MAX_STEPS = 1000000 };

u64 machine_descriptor(u64 base, u32 limit, u8 access, u8 flags)
{
	return (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)access << 40 |
	       (u64)(limit >> 16 & 15) << 48 | (u64)flags << 52 | (base >> 24 & 0xff) << 56;
}

static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "%s: %s\n", what, e->text);
	abort();
}

/* cmocka takes the fault signals before each test; the engine installs its handlers once. */
void machine_own_signals(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	static struct sigaction engine[ARRAY_SIZE(signals)];
	static bool known;

	for (u32 n = 0; n < ARRAY_SIZE(signals); n++) {
		if (known)
			sigaction(signals[n], &engine[n], NULL);
		else
			sigaction(signals[n], NULL, &engine[n]);
	}
	known = true;
}

/* Built once: finding the TSC's frequency takes milliseconds. */
static const struct cpuid_model *cpuid_model(void)
{
	static struct cpuid_model model;
	const struct cpuid_request request = {.vcpus = 1};
	struct err e = {0};

	if (!model.count && cpuid_model_init(&model, &request, &e) < 0)
		die("CPU model", &e);
	return &model;
}

/* What a failed test left behind: a thread has one vCPU. */
static struct soft_machine *leftover;

static struct soft_machine *make_machine(const char *options, const char *cache_dir)
{
	struct soft_machine *m = calloc(1, sizeof(*m));
	struct engine_config config = {.options = options, .cache_dir = cache_dir};
	struct err e = {0};

	if (leftover)
		machine_free(leftover);
	if (!m)
		abort();
	leftover = m;
	physmap_init(&m->physmap);
	physmap_share(&m->physmap);
	if (physmap_add(&m->physmap, 0, RAM_SIZE, 0, &e) < 0)
		die("memory", &e);
	m->cpuid = *cpuid_model();
	config.physmap = &m->physmap;
	config.cpuid = &m->cpuid;
	if (soft_engine.vm_create(&config, &m->vm, &e) < 0)
		die("VM", &e);
	machine_own_signals();
	if (soft_engine.vcpu_create(m->vm, 0, &m->vcpu, &e) < 0)
		die("vCPU", &e);
	m->c = (struct soft_cpu *)m->vcpu;
	m->ram = m->physmap.region[0].hva;
	soft_ctx_use(m->c, m->c->ctx);
	return m;
}

struct soft_machine *machine_new(void)
{
	return make_machine(NULL, NULL);
}

struct soft_machine *machine_new_with(const char *options)
{
	return make_machine(options, "");
}

void machine_free(struct soft_machine *m)
{
	soft_fpu_park(m->c);
	soft_engine.vcpu_destroy(m->vcpu);
	soft_engine.vm_destroy(m->vm);
	physmap_destroy(&m->physmap);
	leftover = NULL;
	free(m);
}

u64 machine_get(struct soft_machine *m, gpa_t gpa, u32 size)
{
	return soft_load(m->ram + gpa, size);
}

void machine_put(struct soft_machine *m, gpa_t gpa, u32 size, u64 value)
{
	soft_store(m->ram + gpa, value, size);
}

void machine_set_descriptor(struct soft_machine *m, u16 sel, u64 low)
{
	machine_put(m, AT_GDT + (sel & 0xfff8u), 8, low);
}

void machine_set_gate(struct soft_machine *m, u8 vector, u32 type, u32 dpl, u32 ist, u16 sel,
		      u64 offset)
{
	bool wide = m->c->efer & EFER_LMA;
	gpa_t at = AT_IDT + vector * (wide ? 16u : 8u);

	if (!offset)
		offset = AT_HANDLER + vector * 16u;
	machine_put(m, at, 8,
		    (offset & 0xffff) | (u64)sel << 16 | (u64)ist << 32 |
			    (u64)(0x80 | dpl << 5 | type) << 40 | (offset & 0xffff0000) << 32);
	if (wide)
		machine_put(m, at + 8, 8, offset >> 32);
}

void machine_set_page(struct soft_machine *m, gva_t gva, u64 entry)
{
	machine_put(m, AT_PT + (gva >> PAGE_SHIFT) * 8, 8, entry);
	soft_tlb_flush_all(m->c);
}

static void load_segment(struct soft_machine *m, u32 seg, u16 sel)
{
	struct descriptor d = {.low = machine_get(m, AT_GDT + (sel & 0xfff8u), 8)};

	desc_unpack(&d, sel, &m->c->seg[seg]);
}

static void build_gdt(struct soft_machine *m, bool wide)
{
	machine_set_descriptor(m, SEL_CODE64, machine_descriptor(0, 0xfffff, 0x9b, 0xa));
	machine_set_descriptor(m, SEL_DATA, machine_descriptor(0, 0xfffff, 0x93, 0xc));
	machine_set_descriptor(m, SEL_CODE32, machine_descriptor(0, 0xfffff, 0x9b, 0xc));
	machine_set_descriptor(m, SEL_USER_CODE32, machine_descriptor(0, 0xfffff, 0xfb, 0xc));
	machine_set_descriptor(m, SEL_USER_DATA, machine_descriptor(0, 0xfffff, 0xf3, 0xc));
	machine_set_descriptor(m, SEL_USER_CODE64, machine_descriptor(0, 0xfffff, 0xfb, 0xa));
	machine_set_descriptor(m, SEL_TSS, machine_descriptor(AT_TSS, 0x3ff, 0x8b, 0));
	machine_set_descriptor(m, SEL_TSS + 8, 0);
	machine_set_descriptor(m, SEL_CODE16, machine_descriptor(0, 0xffff, 0x9b, 0));
	machine_set_descriptor(m, SEL_DATA16, machine_descriptor(0, 0xffff, 0x93, 0));
	m->c->gdtr = (struct cpu_table){.base = AT_GDT, .limit = SEL_GDT_END - 1};
	m->c->idtr = (struct cpu_table){.base = AT_IDT, .limit = (wide ? 16 : 8) * 256 - 1};
	load_segment(m, SEG_TR, SEL_TSS);
	memset(m->ram + AT_HANDLER, 0xf4, 256 * 16);
	if (wide) {
		machine_put(m, AT_TSS + 4, 8, AT_KERNEL_STACK);
		machine_put(m, AT_TSS + 36, 8, AT_IST_STACK);
	} else {
		machine_put(m, AT_TSS + 4, 4, AT_KERNEL_STACK);
		machine_put(m, AT_TSS + 8, 4, SEL_DATA);
	}
	machine_put(m, AT_TSS + 102, 2, 0x400); /* no I/O permission map */
}

static void build_tables(struct soft_machine *m)
{
	machine_put(m, AT_PML4, 8, AT_PDPT | PTE_P | PTE_RW | PTE_US);
	machine_put(m, AT_PDPT, 8, AT_PD | PTE_P | PTE_RW | PTE_US);
	machine_put(m, AT_PD, 8, AT_PT | PTE_P | PTE_RW | PTE_US);
	for (u64 n = 0; n < 512; n++)
		machine_put(m, AT_PT + n * 8, 8, n << PAGE_SHIFT | PTE_P | PTE_RW | PTE_US);
}

static void settle(struct soft_machine *m, u16 code)
{
	struct soft_cpu *c = m->c;
	static const u8 data[] = {SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};

	load_segment(m, SEG_CS, code);
	for (u32 n = 0; n < ARRAY_SIZE(data); n++)
		load_segment(m, data[n], SEL_DATA);
	c->cpl = 0;
	c->r[RSP] = AT_KERNEL_STACK;
	soft_set_rflags(c, RFLAGS_ONE);
	c->xcr0 = m->cpuid.xcr0;
	soft_tlb_flush_all(c);
	soft_load_cr3(c, c->cr3, true);
	soft_update_mode(c);
}

void machine_long_mode(struct soft_machine *m)
{
	struct soft_cpu *c = m->c;

	build_tables(m);
	build_gdt(m, true);
	c->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP | CR0_MP;
	c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	c->cr3 = AT_PML4;
	settle(m, SEL_CODE64);
	for (u32 vector = 0; vector < 256; vector++)
		machine_set_gate(m, (u8)vector, DESC_INTERRUPT_GATE, 0, 0, SEL_CODE64, 0);
}

void machine_protected_mode(struct soft_machine *m)
{
	struct soft_cpu *c = m->c;

	build_gdt(m, false);
	c->cr0 = CR0_PE | CR0_ET | CR0_NE;
	c->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT;
	c->efer = 0;
	settle(m, SEL_CODE32);
	for (u32 vector = 0; vector < 256; vector++)
		machine_set_gate(m, (u8)vector, DESC_INTERRUPT_GATE, 0, 0, SEL_CODE32, 0);
}

void machine_real_mode(struct soft_machine *m)
{
	struct soft_cpu *c = m->c;

	c->cr0 = CR0_ET;
	c->cr4 = 0;
	c->efer = 0;
	c->cpl = 0;
	c->idtr = (struct cpu_table){.base = 0, .limit = 0x3ff};
	for (u32 seg = SEG_ES; seg <= SEG_GS; seg++)
		c->seg[seg] =
			(struct cpu_segment){.limit = 0xffff, .type = 3, .s = 1, .present = 1};
	c->seg[SEG_CS].selector = AT_CODE >> 4;
	c->seg[SEG_CS].base = AT_CODE;
	c->r[RSP] = 0x8000;
	soft_set_rflags(c, RFLAGS_ONE);
	soft_tlb_flush_all(c);
	soft_update_mode(c);
}

void machine_user(struct soft_machine *m, u16 code_selector)
{
	struct soft_cpu *c = m->c;

	load_segment(m, SEG_CS, code_selector);
	load_segment(m, SEG_SS, SEL_USER_DATA);
	c->cpl = 3;
	c->r[RSP] = AT_USER_STACK;
	soft_update_mode(c);
}

void machine_load(struct soft_machine *m, const u8 *code, u32 len)
{
	memcpy(m->ram + AT_CODE, code, len);
	m->c->rip = m->c->cr0 & CR0_PE ? AT_CODE : 0;
}

/* The tests' own C code uses vector registers: the guest's are parked around it. */
int machine_step(struct soft_machine *m)
{
	int status;

	m->c->alone = true; /* the only processor: the world stands still */
	status = soft_interpret(m->c);
	soft_fpu_park(m->c);
	return status;
}

int machine_run(struct soft_machine *m, bool deliver)
{
	for (u32 n = 0; n < MAX_STEPS; n++) {
		int status = machine_step(m);

		if (status == SOFT_FAULT && deliver)
			status = soft_deliver_exception(m->c);
		if (status != SOFT_OK)
			return status;
	}
	fprintf(stderr, "the guest does not stop: rip %#lx\n", m->c->rip);
	abort();
}

void machine_exec(struct soft_machine *m, const u8 *code, u32 len)
{
	int status;

	machine_load(m, code, len);
	status = machine_run(m, false);
	if (status != SOFT_EXIT || m->c->exit.type != EXIT_HLT) {
		fprintf(stderr, "no HLT: status %d, vector %u error %#x rip %#lx exit %d\n", status,
			m->c->exc.vector, m->c->exc.error, m->c->rip, m->c->exit.type);
		abort();
	}
}

void machine_complete(struct soft_machine *m, u64 data)
{
	struct soft_cpu *c = m->c;
	struct soft_fragment *f = &c->frag[c->frag_count++];

	if (c->exit.type == EXIT_PIO)
		*f = (struct soft_fragment){.addr = c->exit.pio.port,
					    .data = data,
					    .size = c->exit.pio.size,
					    .write = !c->exit.pio.in,
					    .is_port = true};
	else
		*f = (struct soft_fragment){.addr = c->exit.mmio.gpa,
					    .data = data,
					    .size = c->exit.mmio.size,
					    .write = c->exit.mmio.write};
}
