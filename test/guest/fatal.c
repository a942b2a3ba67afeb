/*
 * Guests that cannot go on, or never end. The first word of the kernel command line says in which
 * way; test/system/test_hostile.py knows what is to come of each.
 */
#include "guest.h"

extern u32 boot_info;

static u64 seed = 0x2545f4914f6cdd1d;

static u64 random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void set_idt(u64 base, u16 limit)
{
	struct table_register r = {limit, base};

	__asm__ volatile("lidt %0" : : "m"(r));
}

static void set_gdt(u64 base, u16 limit)
{
	struct table_register r = {limit, base};

	__asm__ volatile("lgdt %0" : : "m"(r));
}

static void triple_fault(void)
{
	set_idt(0, 0);
	__asm__ volatile("ud2");
}

static void tables_in_device(void)
{
	write_cr3(APIC_BASE);
}

static void tables_nowhere(void)
{
	write_cr3(1ull << (physical_bits() - 1));
}

static void idt_in_device(void)
{
	set_idt(APIC_BASE, 0xfff);
	__asm__ volatile("int $0x30");
}

static void gdt_in_device(void)
{
	set_gdt(0xd0000000, 0xff);
	__asm__ volatile("mov %0, %%ds; mov %0, %%es; int3" : : "r"(KDATA));
}

static void stack_in_device(void)
{
	idt_set(VEC_UD, (u64)(trap_stubs + 16 * VEC_UD), KCODE64, 0x8e, 0);
	__asm__ volatile("mov %0, %%rsp; ud2" : : "r"(0xd0000800ull));
}

static void task_in_device(void)
{
	gdt_set_system(TSS_SELECTOR, 0xd0000000, 0x67, 0x80 | DESC_TSS);
	__asm__ volatile("ltr %w0; ud2" : : "r"(TSS_SELECTOR));
}

/* Interrupt handlers that cause the interrupt again, down the stack until it ends. */
static void nested_interrupts(void)
{
	static const u8 again[] = {0xcd, 0x50};

	idt_set(0x50, (u64)again, KCODE64, 0x8e, 0);
	__asm__ volatile("mov %0, %%rsp; int $0x50" : : "r"((u64)1 << 21));
}

static void spin(void)
{
	__asm__ volatile("cli; 1: jmp 1b");
}

static void halt(void)
{
	__asm__ volatile("cli; 1: hlt; jmp 1b");
}

static void spin_string(void)
{
	__asm__ volatile(
		"cli; cld; 1: mov $0x1000000, %%rsi; mov $0x1800000, %%rdi; mov $0x800000, %%rcx;"
		"rep movsb; jmp 1b"
		:
		:
		: "rsi", "rdi", "rcx", "memory");
}

/* A page fault whose handler returns to the same instruction. */
static void fault_forever(void)
{
	static const u8 handler[] = {0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf}; /* add $8, %rsp; iretq */

	idt_set(VEC_PF, (u64)handler, KCODE64, 0x8e, 1);
	*(volatile u8 *)TEST_AREA = 1;
}

/* An endless double fault that never becomes a triple one. */
static void double_fault_forever(void)
{
	static const u8 handler[] = {0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf};

	idt_set(VEC_DF, (u64)handler, KCODE64, 0x8e, 2);
	idt_set(VEC_PF, 0, 0, 0x0e, 0);
	*(volatile u8 *)TEST_AREA = 1;
}

/* Code that changes itself in every turn. */
static void rewrite_forever(void)
{
	__asm__ volatile("1: incl 2f+1(%%rip); 2: mov $0, %%eax; jmp 1b" : : : "eax", "memory");
}

/* New code without end, each piece at another place: what a code cache must bear. */
static void code_forever(void)
{
	u8 *area = (u8 *)(8ul << 20);

	for (u32 round = 0;; round++) {
		for (u32 at = 0; at + 64 < 40u << 20; at += 32 + (random() & 31)) {
			/* mov $n, %eax; test %eax, %eax; jz .+2; nop; nop; ret */
			u8 code[] = {0xb8, (u8)round, (u8)at, (u8)(at >> 8), 0,    0x85,
				     0xc0, 0x74,      2,      0x90,          0x90, 0xc3};

			memcpy(area + at, code, sizeof(code));
			__asm__ volatile("call *%0" : : "r"(area + at) : "rax", "memory");
		}
	}
}

/* A TLB entry more in every turn, and a flush now and then. */
static void pages_forever(void)
{
	u64 *table = page_alloc();
	u64 *directory = page_entry(TEST_HIGH, 2);

	*directory = (u64)table | PTE_P | PTE_W;
	for (u64 i = 0;; i++) {
		volatile u64 *at = (volatile u64 *)(TEST_HIGH + (i & 511) * PAGE_SIZE);

		table[i & 511] = (i * PAGE_SIZE % (32ul << 20)) | PTE_P | PTE_W;
		invlpg(at);
		(void)*at;
		if (i % 1000 == 0)
			write_cr3(read_cr3());
	}
}

static void output_forever(void)
{
	for (;;)
		print("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n");
}

static void reset_forever(void)
{
	outb(0xcf9, 6);
	spin();
}

static void timer_storm(void)
{
	static const u8 handler[] = {0x48, 0xcf}; /* iretq, without end of interrupt */

	idt_set(VEC_TIMER, (u64)handler, KCODE64, 0x8e, 1);
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, APIC_PERIODIC | VEC_TIMER);
	apic_write(APIC_TIMER_COUNT, 1);
	__asm__ volatile("sti");
	for (;;)
		apic_write(APIC_EOI, 0);
}

/* Noise in ring 0, over and over while it lasts: it may do anything to its own machine. */
static void noise(void)
{
	u8 *area = (u8 *)(4ul << 20);

	for (u32 i = 0; i < 1 << 20; i++)
		area[i] = (u8)(random() >> 24);
	for (;;) {
		struct state s = state_for((enum exec_mode)(KERNEL64 + random() % 3),
					   area + random() % (1 << 20));

		for (u64 *r = &s.r15; r <= &s.rax; r++)
			*r = random() & 1 ? random() % (64 << 20) : random();
		s.rsp = (u64)(kernel_stack + 4096);
		exec(&s);
	}
}

static const struct {
	const char *word;
	void (*run)(void);
} ways[] = {
	{"triple-fault", triple_fault},
	{"tables-in-device", tables_in_device},
	{"tables-nowhere", tables_nowhere},
	{"idt-in-device", idt_in_device},
	{"gdt-in-device", gdt_in_device},
	{"stack-in-device", stack_in_device},
	{"task-in-device", task_in_device},
	{"nested-interrupts", nested_interrupts},
	{"spin", spin},
	{"halt", halt},
	{"spin-string", spin_string},
	{"fault-forever", fault_forever},
	{"double-fault-forever", double_fault_forever},
	{"rewrite-forever", rewrite_forever},
	{"code-forever", code_forever},
	{"pages-forever", pages_forever},
	{"output-forever", output_forever},
	{"reset-forever", reset_forever},
	{"timer-storm", timer_storm},
	{"noise", noise},
};

static bool is_word(const char *text, const char *word)
{
	while (*word && *text == *word) {
		text++;
		word++;
	}
	return !*word && (!*text || *text == ' ');
}

static void run_way(void)
{
	const char *text = (const char *)*(const u64 *)(u64)(boot_info + 24); /* cmdline_paddr */

	for (u32 i = 0; i < ARRAY_SIZE(ways); i++) {
		const char *number = text;

		if (!is_word(text, ways[i].word))
			continue;
		/* A number behind the word is a seed. */
		for (; *number; number++)
			if (*number >= '0' && *number <= '9')
				seed = seed * 31 + (u64)*number;
		print("%s\n", ways[i].word);
		ways[i].run();
		die("%s: still there", ways[i].word);
	}
	die("no such way: %s", text);
}

const struct test tests[] = {
	{"Never ends well", "-", run_way, NULL},
	{NULL},
};
