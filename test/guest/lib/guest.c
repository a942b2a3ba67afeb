/*
 * Descriptor tables, running test code, the local APIC.
 */
#include "guest.h"

enum {
	PIC1 = 0x20,
	PIC2 = 0xa0,
	IST_TRAP = 1,
	IST_NMI = 2,
};

struct gate {
	u16 offset0, selector;
	u8 ist, access;
	u16 offset1;
	u32 offset2, reserved;
};

u64 gdt[GDT_ENTRIES] __attribute__((aligned(16)));
static struct gate idt[256] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
u8 kernel_stack[8192] __attribute__((aligned(4096)));
u8 user_stack[8192] __attribute__((aligned(4096)));
u8 trap_stack[8192] __attribute__((aligned(4096)));
static u8 ist_stack[2][8192] __attribute__((aligned(4096)));

bool (*trap_hook)(struct state *s);
bool (*any_cpu_hook)(struct state *s);
static struct state *running;
static bool draining; /* interrupts left over from the last case are dropped */
static u64 cr0_at_start, cr4_at_start, efer_at_start;

void exec_state(struct state *s);
__noreturn void exec_leave(void);
void trap_entry(struct state *s);
__noreturn void guest_main(void);

u64 descriptor(u32 base, u32 limit, u8 access, u8 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
	       (u64)(limit >> 16 & 15) << 48 | (u64)flags << 52 | (u64)(base >> 24) << 56;
}

void gdt_set(u32 selector, u64 value)
{
	*(volatile u64 *)&gdt[selector >> 3] = value;
}

void gdt_set_system(u32 selector, u64 base, u32 limit, u8 access)
{
	gdt_set(selector, descriptor((u32)base, limit, access, 0));
	gdt_set(selector + 8, base >> 32);
}

void gdt_set_call_gate(u32 selector, u16 target_selector, u64 target, u8 access)
{
	gdt_set(selector, (target & 0xffff) | (u64)target_selector << 16 | (u64)access << 40 |
				  (target >> 16 & 0xffff) << 48);
	gdt_set(selector + 8, target >> 32);
}

void gdt_load_limit(u16 limit)
{
	struct table_register r = {limit, (u64)gdt};

	__asm__ volatile("lgdt %0" : : "m"(r));
}

void idt_set(u8 vector, u64 target, u16 selector, u8 access, u8 ist)
{
	idt[vector] = (struct gate){
		.offset0 = (u16)target,
		.selector = selector,
		.ist = ist,
		.access = access,
		.offset1 = (u16)(target >> 16),
		.offset2 = (u32)(target >> 32),
	};
	barrier();
}

void idt_load_limit(u16 limit)
{
	struct table_register r = {limit, (u64)idt};

	__asm__ volatile("lidt %0" : : "m"(r));
}

static void reset_tables(void)
{
	memset(gdt, 0, sizeof(gdt));
	gdt_set(KCODE64, descriptor(0, 0xfffff, 0x9b, 0xa));
	gdt_set(KDATA, descriptor(0, 0xfffff, 0x93, 0xc));
	gdt_set(UCODE32, descriptor(0, 0xfffff, 0xfb, 0xc));
	gdt_set(UDATA, descriptor(0, 0xfffff, 0xf3, 0xc));
	gdt_set(UCODE64, descriptor(0, 0xfffff, 0xfb, 0xa));
	gdt_set(KCODE32, descriptor(0, 0xfffff, 0x9b, 0xc));
	gdt_set(KCODE16, descriptor(0, 0xfffff, 0x9b, 0x8));
	gdt_set(UCODE16, descriptor(0, 0xfffff, 0xfb, 0x8));
	gdt_set_system(TSS_SELECTOR, (u64)&tss, sizeof(tss) - 1, 0x80 | DESC_TSS);
	gdt_load_limit(sizeof(gdt) - 1);

	memset(&tss, 0, sizeof(tss) - sizeof(tss.bitmap));
	tss.rsp[0] = (u64)(trap_stack + sizeof(trap_stack));
	tss.ist[IST_TRAP - 1] = (u64)(ist_stack[0] + sizeof(ist_stack[0]));
	tss.ist[IST_NMI - 1] = (u64)(ist_stack[1] + sizeof(ist_stack[1]));
	tss.io_bitmap = sizeof(tss); /* beyond the limit: no port is allowed */
	__asm__ volatile("ltr %w0" : : "r"(TSS_SELECTOR));

	for (u32 v = 0; v < 256; v++)
		idt_set((u8)v, (u64)(trap_stubs + 16 * v), KCODE64,
			0x80 | DESC_INTERRUPT | (v == VEC_DONE ? 0x60 : 0),
			v == VEC_NMI || v == VEC_DF ? IST_NMI : IST_TRAP);
	idt_load_limit(sizeof(idt) - 1);
}

/* Both controllers away from the exception vectors, with every line masked. */
static void quiet_pic(void)
{
	static const u8 words[2][4] = {{0x11, VEC_PIC, 4, 1}, {0x11, VEC_PIC + 8, 2, 1}};
	static const u16 port[2] = {PIC1, PIC2};

	for (int chip = 0; chip < 2; chip++) {
		outb(port[chip], words[chip][0]);
		for (int i = 1; i < 4; i++)
			outb(port[chip] + 1, words[chip][i]);
		outb(port[chip] + 1, 0xff);
	}
}

/* A local APIC with nothing pending and nothing in service. */
static void reset_apic(void)
{
	apic_write(APIC_SVR, 0x1ff);
	apic_write(APIC_LVT_TIMER, APIC_MASKED);
	apic_write(APIC_TIMER_COUNT, 0);
	apic_write(APIC_LVT_LINT0, 0x700); /* ExtINT: the 8259A's interrupts come through */
	/* QEMU 7.2, as the host of virtual machines, dies when one writes CR8 while its monitor has
	 * a virtual interrupt pending: not without need. */
	if (read_cr8())
		write_cr8(0);
	for (u32 i = 0; i < 256; i++)
		apic_write(APIC_EOI, 0);
	draining = true;
	sti_cli();
	draining = false;
}

void environment_reset(void)
{
	/* The whole register file as after FNINIT and reset. Not LDMXCSR, which KVM does not
	 * emulate: on hosts where guest kernels are emulated, the cases begin with this. */
	static const u16 fpu[256] __attribute__((aligned(16))) = {[0] = 0x37f, [12] = 0x1f80};

	cli();
	trap_hook = NULL;
	any_cpu_hook = NULL;
	write_dr7(0x400);
	write_dr6(0xffff0ff0);
	write_cr0(cr0_at_start);
	write_cr4(cr4_at_start);
	wrmsr(MSR_EFER, efer_at_start);
	page_reset();
	reset_tables();
	__asm__ volatile("lldt %w0" : : "r"(0));
	__asm__ volatile("fninit; fxrstor %0" : : "m"(fpu));
	quiet_pic();
	reset_apic();
}

__noreturn void guest_main(void)
{
	cr0_at_start = read_cr0();
	cr4_at_start = read_cr4();
	efer_at_start = rdmsr(MSR_EFER);
	run_tests();
}

struct state state_for(enum exec_mode mode, const void *code)
{
	static const u16 cs[] = {KCODE64, KCODE32, KCODE16, UCODE64, UCODE32, UCODE16};
	bool in_user = mode >= USER64;
	u64 data = in_user ? UDATA : KDATA;
	u8 *stack = in_user ? user_stack + sizeof(user_stack) : kernel_stack + sizeof(kernel_stack);

	return (struct state){
		.rip = in_user ? user(code) : (u64)code,
		.cs = cs[mode],
		.rflags = RFLAGS_1,
		.rsp = in_user ? user(stack - 128) : (u64)(stack - 128),
		.ss = data,
		.ds = data,
		.es = data,
	};
}

void exec(struct state *s)
{
	running = s;
	exec_state(s);
	running = NULL;
}

struct state run(enum exec_mode mode, const void *code)
{
	struct state s = state_for(mode, code);

	exec(&s);
	return s;
}

/* Called by trap64.S; returns only when the hook lets the interrupted code go on. */
void trap_entry(struct state *f)
{
	u64 cr2 = read_cr2();

	if (shadow_repair(f, running != NULL))
		return;
	if (draining && f->vector >= VEC_PIC) {
		apic_write(APIC_EOI, 0);
		return;
	}
	if (any_cpu_hook && any_cpu_hook(f))
		return;
	if (!running)
		die("trap %u, error 0x%lx at 0x%lx, cr2 0x%lx, in the test's own code",
		    (u32)f->vector, f->error, f->rip, cr2);
	if (trap_hook && trap_hook(f))
		return;
	memcpy(running, f, offsetof(struct state, cr2));
	running->cr2 = cr2;
	running->frame = (u64)&f->rip;
	exec_leave();
}

/* Where @label is for the code that ran: ring 3 sees it through the alias. */
static u64 address_seen(const struct state *s, const void *label)
{
	return (u64)label + ((s->cs & 3) == 3 ? USER_ALIAS : 0);
}

void check_trap(const struct state *s, u64 vector, u64 error, const void *at, int line)
{
	check(s->vector == vector && s->error == error && s->rip == address_seen(s, at),
	      "line %d: vector %d error 0x%lx at 0x%lx, not vector %d error 0x%lx at 0x%lx", line,
	      (int)s->vector, s->error, s->rip, (int)vector, error, address_seen(s, at));
}

void check_done(const struct state *s, const void *end, int line)
{
	check(s->vector == VEC_DONE && s->rip == address_seen(s, end) + 2,
	      "line %d: vector %d error 0x%lx at 0x%lx cr2 0x%lx instead of the end of the code",
	      line, (int)s->vector, s->error, s->rip, s->cr2);
}

bool cpu_is_amd(void)
{
	return cpuid(0, 0).ebx == 0x68747541; /* "Auth" */
}

u32 physical_bits(void)
{
	return cpuid(0x80000008, 0).eax & 0xff;
}

u32 apic_read(u32 reg)
{
	return *(volatile u32 *)(APIC_BASE + reg);
}

void apic_write(u32 reg, u32 value)
{
	*(volatile u32 *)(APIC_BASE + reg) = value;
}

static void send(u32 icr)
{
	apic_write(APIC_ICR_HIGH, 0);
	apic_write(APIC_ICR, icr);
	while (apic_read(APIC_ICR) & 0x1000)
		pause();
}

void send_self(u8 vector)
{
	send(APIC_SELF | vector);
	while (!(apic_read(APIC_IRR + vector / 32 * 0x10) >> (vector % 32) & 1))
		pause();
}

void send_nmi(void)
{
	apic_write(APIC_ICR_HIGH, apic_read(APIC_ID));
	apic_write(APIC_ICR, APIC_NMI);
}
