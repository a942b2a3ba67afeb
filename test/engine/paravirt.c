/*
 * The end of an interrupt through memory (MSR_KVM_PV_EOI_EN): Linux,
 * Documentation/virt/kvm/x86/msr.rst. In each case a trap leaves an interrupt in service, as if its
 * handler had just begun.
 *
 * When an end is offered is left to the monitor. Ours offers whenever it may, and the cases insist
 * on it. KVM's own local APICs do so anew at each entry to the guest, or not at all while they have
 * to look for other interrupts: a guest that is told "lazy-offers" takes what comes.
 */
#include "guest.h"

enum {
	MSR_PV_EOI = 0x4b564d04,
	PV_EOI_ENABLED = 1,
	FEATURE_PV_EOI = 1 << 6,
	VEC_LEVEL = 0x51,
	COM1 = 0x3f8,
	COM1_PIN = 4,
	INTERRUPT_ENABLE = 1,
	TRANSMITTER_EMPTY = 1 << 1,
	MODEM_CONTROL = 4,
	OUT2 = 1 << 3,
};

static u32 word __attribute__((aligned(64)));

CODE_AT(sti_nop, "sti", "nop", "nop");
CODE_AT(write_msr, "", "wrmsr", "");

static bool is_there(void)
{
	struct cpuid id = cpuid(0x40000000, 0);

	return id.ebx == 0x4b4d564b && id.ecx == 0x564b4d56 &&
	       cpuid(0x40000001, 0).eax & FEATURE_PV_EOI;
}

/* False where there is none, which the report then says. */
static bool enable(void)
{
	if (!is_there()) {
		skip("no paravirtual end of interrupts");
		return false;
	}
	word = 0;
	wrmsr(MSR_PV_EOI, (u64)&word | PV_EOI_ENABLED);
	return true;
}

static void disable(void)
{
	wrmsr(MSR_PV_EOI, 0);
}

static u32 offered(void)
{
	return *(volatile u32 *)&word;
}

/* What a handler does at its end instead of writing the register; false: it has to. */
static bool end_quietly(void)
{
	bool was;

	__asm__ volatile("btrl $0, %0" : "+m"(word), "=@ccc"(was) : : "memory");
	return was;
}

/* True: in memory. */
static bool end_as_linux_does(void)
{
	bool quietly = end_quietly();

	if (!quietly)
		apic_write(APIC_EOI, 0);
	return quietly;
}

static bool lazy(void)
{
	return told("lazy-offers");
}

static void expect_offer(bool there)
{
	if (!lazy())
		expect_eq(offered(), there);
}

static void end_offered(void)
{
	bool quietly = end_as_linux_does();

	expect(quietly || lazy());
}

/* The offer has gone, the interrupt is still in service. */
static void end_in_register(void)
{
	bool quietly = end_as_linux_does();

	expect(!quietly || lazy());
}

static bool in_service(u8 vector)
{
	return apic_read(APIC_ISR + vector / 32 * 16) >> (vector % 32) & 1;
}

static void take(u8 vector)
{
	struct state s = run(KERNEL64, sti_nop);

	expect_trap(&s, vector, 0, sti_nop_next);
}

static void take_none(void)
{
	struct state s = run(KERNEL64, sti_nop);

	expect_done(&s, sti_nop);
}

static void try_write(u64 value, bool faults)
{
	struct state s = state_for(KERNEL64, write_msr);

	s.rcx = MSR_PV_EOI;
	s.rax = (u32)value;
	s.rdx = value >> 32;
	exec(&s);
	if (faults)
		expect_trap(&s, VEC_GP, 0, write_msr_at);
	else
		expect_done(&s, write_msr);
}

static void the_register(void)
{
	if (!enable())
		return;
	expect_eq(rdmsr(MSR_PV_EOI), (u64)&word | PV_EOI_ENABLED);
	try_write((u64)&word | 3, true);
	try_write((u64)&word | 2, true);
	expect_eq(rdmsr(MSR_PV_EOI), (u64)&word | PV_EOI_ENABLED);
	try_write(0, false);
	expect_eq(rdmsr(MSR_PV_EOI), 0);
}

static void ended_in_memory(void)
{
	u32 quietly = 0;

	if (!enable())
		return;
	for (int i = 0; i < 50; i++) {
		send_self(VEC_IPI);
		expect_eq(offered(), 0);
		take(VEC_IPI);
		expect_offer(true);
		quietly += end_as_linux_does();
		if (i % 2)
			expect(!in_service(VEC_IPI));
	}
	expect(quietly == 50 || (lazy() && quietly > 10));
	take_none();
	disable();
}

/* Who does not look at the word is served as ever. */
static void register_still_works(void)
{
	if (!enable())
		return;
	send_self(VEC_IPI);
	take(VEC_IPI);
	expect_offer(true);
	apic_write(APIC_EOI, 0);
	expect_eq(offered(), 0);
	expect(!in_service(VEC_IPI));
	send_self(VEC_IPI);
	take(VEC_IPI);
	end_as_linux_does();
	disable();
}

/* Looking at the local APIC, or at another interrupt, withdraws the offer. */
static void withdrawn(void)
{
	if (!enable())
		return;
	send_self(VEC_HIGH);
	take(VEC_HIGH);
	expect_offer(true);
	expect(in_service(VEC_HIGH));
	expect_offer(false);
	send_self(VEC_IPI);
	take_none();
	end_in_register();
	take(VEC_IPI);
	end_offered();
	take_none();
	disable();
}

/* One that waits hangs on the end of the one in service. */
static void another_waits(void)
{
	if (!enable())
		return;
	send_self(VEC_IPI);
	send_self(VEC_HIGH);
	take(VEC_HIGH);
	expect_eq(offered(), 0);
	apic_write(APIC_EOI, 0);
	take(VEC_IPI);
	expect_offer(true);
	end_offered();
	disable();
}

/* The word always speaks of the innermost handler. */
static void nested(void)
{
	if (!enable())
		return;
	for (int i = 0; i < 10; i++) {
		send_self(VEC_IPI);
		take(VEC_IPI);
		expect_offer(true);
		send_self(VEC_HIGH);
		take(VEC_HIGH);
		expect_offer(true);
		end_offered();
		expect(!in_service(VEC_HIGH));
		expect(in_service(VEC_IPI));
		end_in_register();
		expect(!in_service(VEC_IPI));
	}
	take_none();
	disable();
}

static void ioapic_write(u32 reg, u32 value)
{
	volatile u32 *io = (volatile u32 *)0xfec00000;

	io[0] = reg;
	io[4] = value;
}

static void ioapic_route(u32 pin, u32 low)
{
	ioapic_write(0x10 + 2 * pin, APIC_MASKED);
	ioapic_write(0x11 + 2 * pin, apic_read(APIC_ID));
	ioapic_write(0x10 + 2 * pin, low);
}

/* The I/O APIC waits for the end of a level-triggered one: it is never offered. */
static void level_triggered(void)
{
	const u32 level = 1 << 15;

	if (!enable())
		return;
	ioapic_route(COM1_PIN, level | VEC_LEVEL);
	outb(COM1 + MODEM_CONTROL, OUT2);
	outb(COM1 + INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
	for (int i = 0; i < 5; i++) {
		take(VEC_LEVEL);
		expect_eq(offered(), 0);
		if (i == 4)
			outb(COM1 + INTERRUPT_ENABLE, 0);
		end_as_linux_does(); /* the line is still up but for the last time */
	}
	take_none();
	ioapic_route(COM1_PIN, APIC_MASKED);
	send_self(VEC_LEVEL); /* the same vector, as an edge */
	take(VEC_LEVEL);
	expect_offer(true);
	end_offered();
	disable();
}

static void disabled(void)
{
	if (!enable())
		return;
	send_self(VEC_IPI);
	take(VEC_IPI);
	expect_offer(true);
	disable();
	expect_eq(offered(), 0);
	expect(in_service(VEC_IPI));
	apic_write(APIC_EOI, 0);
	send_self(VEC_IPI);
	take(VEC_IPI);
	expect_eq(offered(), 0);
	apic_write(APIC_EOI, 0);
	/* Ended in memory, and disabled before anybody looked. */
	enable();
	send_self(VEC_IPI);
	take(VEC_IPI);
	end_offered();
	disable();
	expect(!in_service(VEC_IPI));
}

CODE(sti_hlt, "sti; hlt; nop");

/* An interrupt that waits behind one already ended, unknown to the monitor, ends HLT. */
static void halt(void)
{
	struct state s;

	if (!enable())
		return;
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, VEC_TIMER);
	for (int i = 0; i < 20; i++) {
		send_self(VEC_HIGH);
		take(VEC_HIGH);
		apic_write(APIC_TIMER_COUNT, 0);
		end_as_linux_does();
		send_self(VEC_HIGH);
		take(VEC_HIGH);
		end_offered();
		apic_write(APIC_TIMER_COUNT, 20000 + 5000 * i);
		s = run(KERNEL64, sti_hlt);
		expect_eq(s.vector, VEC_TIMER);
		end_as_linux_does();
	}
	apic_write(APIC_LVT_TIMER, APIC_MASKED);
	disable();
}

CODE(spin, "1: jmp 1b");

/* The same without HLT or any other exit: the timer runs from before the end. */
static void arrives_while_running(void)
{
	struct state s;

	if (!enable())
		return;
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, VEC_TIMER);
	for (int i = 0; i < 20; i++) {
		apic_write(APIC_TIMER_COUNT, 300000 + 50000 * i);
		send_self(VEC_HIGH);
		take(VEC_HIGH);
		end_as_linux_does();
		s = state_for(KERNEL64, spin);
		s.rflags |= RFLAGS_IF;
		exec(&s);
		expect_eq(s.vector, VEC_TIMER);
		end_as_linux_does();
	}
	apic_write(APIC_LVT_TIMER, APIC_MASKED);
	disable();
}

static const char clause[] = "KVM msr.rst, MSR_KVM_EOI_EN";

const struct test tests[] = {
	{"The register of the word", clause, the_register, NULL},
	{"An interrupt ends in memory", clause, ended_in_memory, NULL},
	{"The EOI register still works", clause, register_still_works, NULL},
	{"The offer is withdrawn", clause, withdrawn, NULL},
	{"No offer while another interrupt waits", clause, another_waits, NULL},
	{"Interrupts in interrupts", clause, nested, NULL},
	{"No offer for level-triggered ones", clause, level_triggered, NULL},
	{"Disabled with an offer open", clause, disabled, NULL},
	{"HLT behind one that ended in memory", clause, halt, NULL},
	{"A loop behind one that ended in memory", clause, arrives_while_running, NULL},
	{NULL},
};
