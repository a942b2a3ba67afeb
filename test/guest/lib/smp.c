#include "smp.h"

enum { STACK_SIZE = 16384, BOOT_PAGE = 8, OWN_TSS = 0x60 };

/* One per processor but the first. */
struct processor {
	u64 gdt[GDT_ENTRIES];
	u8 tss[104] __attribute__((aligned(16)));
	u8 trap_stack[2][STACK_SIZE];
	void (*volatile job)(void *);
	void *volatile argument;
	volatile u32 starts;
	volatile u16 segment;
};

extern u64 boot_pml4[512];
extern u8 ap_boot[], ap_boot_end[], ap_boot_gdtr[];
extern struct table_register boot_gdtr;
u8 ap_stacks[(SMP_MAX + 1) * STACK_SIZE] __attribute__((aligned(4096)));
static struct processor processors[SMP_MAX];
static volatile u64 case_cr3;
u32 smp_count = 1;

__noreturn void ap_main(u32 cpu, u32 segment);

u32 smp_id(void)
{
	u16 tr;

	__asm__ volatile("str %0" : "=r"(tr));
	return tr < OWN_TSS ? 0 : (tr - OWN_TSS) / 16;
}

static void load_tables(u32 cpu)
{
	struct processor *p = &processors[cpu];
	u16 selector = (u16)(OWN_TSS + 16 * cpu);
	struct table_register r = {sizeof(p->gdt) - 1, (u64)p->gdt};

	memcpy(p->gdt, gdt, OWN_TSS);
	memset(p->tss, 0, sizeof(p->tss));
	*(u64 *)(p->tss + 36) = (u64)p->trap_stack[1];
	*(u64 *)(p->tss + 44) = (u64)(p->trap_stack[1] + STACK_SIZE);
	p->gdt[selector / 8] = descriptor((u32)(u64)p->tss, sizeof(p->tss) - 1, 0x80 | DESC_TSS, 0);
	p->gdt[selector / 8 + 1] = 0;
	__asm__ volatile("lgdt %0" : : "m"(r));
	__asm__ volatile("ltr %w0" : : "r"(selector));
	idt_load_limit(16 * 256 - 1);
}

__noreturn void ap_main(u32 cpu, u32 segment)
{
	struct processor *p = &processors[cpu];

	if (cpu >= SMP_MAX)
		for (;;)
			__asm__ volatile("cli; hlt");
	load_tables(cpu);
	p->segment = (u16)segment;
	p->job = NULL;
	barrier();
	p->starts++;
	for (;;) {
		while (!p->job)
			pause();
		write_cr3(case_cr3);
		if (!(rdmsr(MSR_APIC_BASE) & BIT(10)))
			apic_write(APIC_SVR, 0x1ff); /* INIT has disabled it */
		p->job(p->argument);
		cli();
		write_cr3((u64)boot_pml4);
		barrier();
		p->job = NULL;
	}
}

void smp_place_boot_code(u8 page)
{
	u8 *to = (u8 *)((u64)page << 12);

	memcpy(to, ap_boot, (u64)(ap_boot_end - ap_boot));
	memcpy(to + (ap_boot_gdtr - ap_boot), &boot_gdtr, 6);
}

u16 smp_start_segment(u32 cpu)
{
	return processors[cpu].segment;
}

u32 smp_starts(u32 cpu)
{
	return processors[cpu].starts;
}

bool smp_wait_start(u32 cpu, u32 starts)
{
	return spin_until(processors[cpu].starts >= starts, 1);
}

static void send_to_others(u32 icr)
{
	apic_write(APIC_ICR_HIGH, 0);
	apic_write(APIC_ICR, icr);
}

/* Logical processors in the package (SDM vol. 2, CPUID leaf 1). */
static u32 processors_there(void)
{
	u32 n = cpuid(1, 0).ebx >> 16 & 0xff;

	return n < SMP_MAX ? n : SMP_MAX;
}

void smp_start(void)
{
	enum { OTHERS = 0xc0000, INIT = 0x4500, STARTUP = 0x4600 };

	if (smp_count > 1)
		return;
	smp_place_boot_code(BOOT_PAGE);
	send_to_others(OTHERS | INIT);
	send_to_others(OTHERS | STARTUP | BOOT_PAGE);
	send_to_others(OTHERS | STARTUP | BOOT_PAGE);
	while (smp_count < processors_there() && smp_wait_start(smp_count, 1))
		smp_count++;
}

void smp_begin(u32 cpu, void (*job)(void *), void *argument)
{
	struct processor *p = &processors[cpu];

	case_cr3 = read_cr3();
	p->argument = argument;
	barrier();
	p->job = job;
}

void smp_wait(u32 cpu)
{
	if (!spin_until(!processors[cpu].job, 20))
		die("processor %u does not end its job", cpu);
}

void smp_together(u32 count, void (*job)(void *), void *argument)
{
	for (u32 cpu = 1; cpu < count; cpu++)
		smp_begin(cpu, job, argument);
	job(argument);
	for (u32 cpu = 1; cpu < count; cpu++)
		smp_wait(cpu);
}

void smp_barrier(struct barrier *b, u32 count)
{
	u32 turn = b->turn;

	if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_SEQ_CST) == count) {
		b->arrived = 0;
		__atomic_store_n(&b->turn, turn + 1, __ATOMIC_SEQ_CST);
	}
	while (b->turn == turn)
		pause();
}

void x2apic_enable(void)
{
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | BIT(10));
	wrmsr(MSR_X2APIC_SVR, 0x1ff);
}

/* x2APIC mode is left by way of a disabled APIC (SDM vol. 3, 11.12.5). */
void x2apic_disable(void)
{
	u64 base = rdmsr(MSR_APIC_BASE) & ~(BIT(10) | BIT(11));

	wrmsr(MSR_APIC_BASE, base);
	wrmsr(MSR_APIC_BASE, base | BIT(11));
	apic_write(APIC_SVR, 0x1ff);
	apic_write(APIC_ICR_HIGH, 0);
}
