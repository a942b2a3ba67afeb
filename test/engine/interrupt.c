/*
 * Interrupts: the shadows of STI and MOV SS, HLT, priorities, NMIs, and that no kind of loop can
 * keep an interrupt out.
 */
#include "guest.h"

static u32 count;
static u64 seen_rip[16];

/* Note where the interrupt hit, acknowledge it, and let the code go on. */
static bool note_and_continue(struct state *s)
{
	if (s->vector < VEC_PIC || s->vector == VEC_DONE)
		return false;
	if (count < ARRAY_SIZE(seen_rip))
		seen_rip[count] = s->rip;
	count++;
	apic_write(APIC_EOI, 0);
	return true;
}

static void start_timer(u32 mode, u32 initial)
{
	apic_write(APIC_TIMER_DIVIDE, 0xb); /* by 1 */
	apic_write(APIC_LVT_TIMER, mode | VEC_TIMER);
	apic_write(APIC_TIMER_COUNT, initial);
}

CODE_AT(sti_nop, "sti", "nop", "nop");
CODE(sti_cli_only, "sti; cli; nop; sti; cli");
CODE_AT(popf_if, "push $0x202", "popfq", "nop");

static void sti_shadow(void)
{
	struct state s;

	send_self(VEC_IPI);
	s = run(KERNEL64, sti_nop);
	expect_trap(&s, VEC_IPI, 0, sti_nop_next);
	expect_eq(s.rflags & RFLAGS_IF, RFLAGS_IF);
	apic_write(APIC_EOI, 0);
	send_self(VEC_IPI);
	s = run(KERNEL64, sti_cli_only);
	expect_done(&s, sti_cli_only);
	s = run(KERNEL64, popf_if); /* POPF casts no shadow */
	expect_trap(&s, VEC_IPI, 0, popf_if_next);
}

/* STI's shadow in 32-bit code, and with IOPL 3 in ring 3. */
static void sti_shadow_elsewhere(void)
{
	struct state s;

	send_self(VEC_IPI);
	s = run(KERNEL32, sti_nop);
	expect_trap(&s, VEC_IPI, 0, sti_nop_next);
	apic_write(APIC_EOI, 0);
	send_self(VEC_IPI);
	s = state_for(USER64, sti_nop);
	s.rflags |= RFLAGS_IOPL;
	exec(&s);
	expect_trap(&s, VEC_IPI, 0, sti_nop_next);
	expect_eq(s.cs, UCODE64);
}

CODE_AT(sti_fault, "sti", "ud2", "");

/* A fault in the shadow comes first; the interrupt follows when the handler lets it. */
static void fault_in_shadow(void)
{
	struct state s;

	send_self(VEC_IPI);
	s = run(KERNEL64, sti_fault);
	expect_trap(&s, VEC_UD, 0, sti_fault_at);
	expect_eq(s.rflags & RFLAGS_IF, RFLAGS_IF);
}

CODE_AT(target, "", "nop", "");

static void iret_enables(void)
{
	struct state s;

	send_self(VEC_IPI);
	s = state_for(USER64, target);
	s.rflags |= RFLAGS_IF;
	exec(&s); /* exec() ends in IRET: the interrupt hits before the first instruction */
	expect_trap(&s, VEC_IPI, 0, target_at);
	expect_eq(s.cs, UCODE64);
}

CODE_AT(sti_hlt, "sti", "hlt", "nop");

static void halt_pending(void)
{
	struct state s;

	for (int i = 0; i < 20; i++) {
		send_self(VEC_IPI);
		s = run(KERNEL64, sti_hlt);
		expect_trap(&s, VEC_IPI, 0, sti_hlt_next);
		apic_write(APIC_EOI, 0);
	}
}

static void halt_timer(void)
{
	struct state s;

	for (int i = 0; i < 20; i++) {
		start_timer(0, 20000 + 5000 * i);
		s = run(KERNEL64, sti_hlt);
		check(s.vector == VEC_TIMER &&
			      (s.rip == (u64)sti_hlt_next || s.rip == (u64)sti_hlt_at),
		      "vector %d at 0x%lx", (int)s.vector, s.rip);
		apic_write(APIC_EOI, 0);
	}
	expect_eq(apic_read(0x390), 0); /* one-shot: the count stays at zero */
}

/* The code sends the NMI itself: nothing says after how many instructions it arrives. */
CODE_AT(nmi_hlt, "movl $0x400, (%rdi)", "hlt", "nop");

static void halt_nmi(void)
{
	struct state s = state_for(KERNEL64, nmi_hlt);

	apic_write(APIC_ICR_HIGH, apic_read(APIC_ID));
	s.rdi = APIC_BASE + APIC_ICR;
	exec(&s);
	expect_eq(s.vector, VEC_NMI);
	expect(s.rip >= (u64)nmi_hlt && s.rip <= (u64)nmi_hlt_next);
}

static void task_priority(void)
{
	struct state s;

	write_cr8(VEC_IPI >> 4);
	send_self(VEC_IPI);
	s = run(KERNEL64, sti_nop);
	expect_done(&s, sti_nop);
	expect_eq(apic_read(APIC_TPR), (VEC_IPI >> 4) << 4);
	apic_write(APIC_TPR, 0x35);
	expect_eq(read_cr8(), 3);
	s = run(KERNEL64, sti_nop);
	expect_trap(&s, VEC_IPI, 0, sti_nop_next);
}

CODE_AT(lower_cr8, "mov $15, %eax; mov %rax, %cr8; sti; nop; xor %eax, %eax", "mov %rax, %cr8",
	"nop");

static void priority_lowered(void)
{
	struct state s = state_for(KERNEL64, lower_cr8);

	write_cr8(15);
	send_self(VEC_HIGH);
	exec(&s);
	expect_trap(&s, VEC_HIGH, 0, lower_cr8_next);
}

/* The highest vector first; what is in service keeps its class and those below out. */
static void priorities(void)
{
	struct state s;

	send_self(VEC_IPI);
	send_self(VEC_HIGH);
	s = run(KERNEL64, sti_nop);
	expect_eq(s.vector, VEC_HIGH);
	expect_eq(apic_read(APIC_ISR + VEC_HIGH / 32 * 16) >> (VEC_HIGH % 32) & 1, 1);
	s = run(KERNEL64, sti_nop); /* still in service */
	expect_done(&s, sti_nop);
	send_self(VEC_HIGH + 16);
	s = run(KERNEL64, sti_nop);
	expect_eq(s.vector, VEC_HIGH + 16);
	apic_write(APIC_EOI, 0);
	s = run(KERNEL64, sti_nop);
	expect_done(&s, sti_nop);
	apic_write(APIC_EOI, 0);
	s = run(KERNEL64, sti_nop);
	expect_eq(s.vector, VEC_IPI);
}

CODE(spin, "1: jmp 1b");

static void timer_periodic(void)
{
	struct state s;

	start_timer(APIC_PERIODIC, 100000);
	for (int i = 0; i < 5; i++) {
		s = state_for(KERNEL64, spin);
		s.rflags |= RFLAGS_IF;
		exec(&s);
		expect_eq(s.vector, VEC_TIMER);
		apic_write(APIC_EOI, 0);
	}
}

static void timer_deadline(void)
{
	struct state s;
	u64 deadline;

	if (!(cpuid(1, 0).ecx & BIT(24))) {
		skip("no TSC deadline");
		return;
	}
	apic_write(APIC_LVT_TIMER, APIC_TSC_DEADLINE | VEC_TIMER);
	for (int i = 0; i < 5; i++) {
		/* One to be read back: far away, because the host may take long in between. */
		deadline = rdtsc() + (1ul << 42);
		wrmsr(0x6e0, deadline);
		expect_eq(rdmsr(0x6e0), deadline);
		deadline = rdtsc() + 2000000;
		wrmsr(0x6e0, deadline);
		s = state_for(USER64, spin);
		s.rflags |= RFLAGS_IF;
		exec(&s);
		expect_eq(s.vector, VEC_TIMER);
		expect(rdtsc() >= deadline);
		expect_eq(rdmsr(0x6e0), 0);
		apic_write(APIC_EOI, 0);
	}
	/* In the past: at once. */
	wrmsr(0x6e0, 1);
	s = state_for(USER64, spin);
	s.rflags |= RFLAGS_IF;
	exec(&s);
	expect_eq(s.vector, VEC_TIMER);
}

/* The 8254's channel 0 through the 8259A and LINT0. */
static void legacy_timer(void)
{
	struct state s;

	outb(0x21, 0xfe);
	outb(0x43, 0x34);
	outb(0x40, 0xe8);
	outb(0x40, 0x03);
	for (int i = 0; i < 3; i++) {
		s = state_for(KERNEL64, spin);
		s.rflags |= RFLAGS_IF;
		exec(&s);
		expect_eq(s.vector, VEC_PIC);
		outb(0x20, 0x20);
	}
	outb(0x21, 0xff);
	outb(0x43, 0x30); /* one-shot with a long count: quiet from here on */
	outb(0x40, 0xff);
	outb(0x40, 0xff);
}

static u32 nmis, nesting, deepest;

static bool nmi_hook(struct state *s)
{
	if (s->vector != VEC_NMI)
		return false;
	nmis++;
	nesting++;
	if (nesting > deepest)
		deepest = nesting;
	if (nmis < 3)
		send_nmi(); /* must wait for the IRET of this one */
	for (int i = 0; i < 100; i++)
		pause();
	nesting--;
	return true;
}

CODE(nmi_wait, "movl $0x400, (%rdi); mov $200000, %ecx; 1: dec %ecx; jnz 1b");

static void nmi_blocking(void)
{
	struct state s = state_for(KERNEL64, nmi_wait);

	nmis = nesting = deepest = 0;
	trap_hook = nmi_hook;
	apic_write(APIC_ICR_HIGH, apic_read(APIC_ID));
	s.rdi = APIC_BASE + APIC_ICR;
	exec(&s);
	expect_done(&s, nmi_wait);
	expect_eq(nmis, 3);
	expect_eq(deepest, 1);
}

/* Loops of all kinds, none of which may lock the timer out. */
CODE(loop_jump, "1: nop; nop; jmp 1b");
CODE(loop_long, "1: jmp 2f; .skip 5000, 0x90; 2: jmp 1b");
CODE(loop_conditional, "1: inc %rax; jnz 1b; jmp 1b");
CODE(loop_loop, "1: mov $1000, %ecx; 2: loop 2b; jmp 1b");
CODE(loop_call, "1: call 2f; jmp 1b; 2: ret");
CODE(loop_recursion, "1: mov $100, %ecx; call 2f; jmp 1b; 2: dec %ecx; jz 3f; call 2b; 3: ret");
CODE(loop_indirect, "lea 1f(%rip), %rax; 1: jmp *%rax");
CODE(loop_indirect_call, "lea 2f(%rip), %rax; 1: call *%rax; jmp 1b; 2: ret");
CODE(loop_memory, "lea 1f(%rip), %rax; push %rax; 1: jmp *(%rsp)");
CODE(loop_return, "lea 1f(%rip), %rax; 1: push %rax; ret");
CODE(loop_string, "1: mov $-1, %rcx; lea -4096(%rsp), %rdi; mov %rdi, %rsi; cmp %eax, %eax;"
		  "repe cmpsb; mov $1024, %ecx; rep stosb; jmp 1b");
CODE(loop_lodsb, "mov %rsp, %rbx; 1: mov $64, %ecx; mov %rbx, %rsi; rep lodsb; jmp 1b");
CODE(loop_32, ".code32\n 1: inc %eax; push %eax; pop %ebx; jmp 1b");
CODE(loop_cpuid, "1: xor %eax, %eax; xor %ecx, %ecx; cpuid; jmp 1b");
CODE(loop_pause, "1: pause; jmp 1b");
CODE(loop_locked, "push $0; 1: lock incl (%rsp); jmp 1b");

static void loops(void)
{
	static const struct {
		const u8 *code;
		enum exec_mode mode;
		const char *name;
	} list[] = {
		{loop_jump, KERNEL64, "jump"},
		{loop_jump, USER64, "jump in ring 3"},
		{loop_long, KERNEL64, "jump across pages"},
		{loop_conditional, USER64, "conditional"},
		{loop_loop, KERNEL64, "LOOP"},
		{loop_call, KERNEL64, "call"},
		{loop_recursion, USER64, "recursion"},
		{loop_indirect, KERNEL64, "indirect jump"},
		{loop_indirect_call, USER64, "indirect call"},
		{loop_memory, KERNEL64, "jump through memory"},
		{loop_return, USER64, "return"},
		{loop_string, USER64, "string"},
		{loop_lodsb, USER64, "short string"},
		{loop_32, USER32, "32-bit"},
		{loop_32, KERNEL32, "32-bit in ring 0"},
		{loop_cpuid, KERNEL64, "CPUID"},
		{loop_pause, KERNEL64, "PAUSE"},
		{loop_locked, USER64, "LOCK"},
	};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		struct state s = state_for(list[i].mode, list[i].code);

		s.rflags |= RFLAGS_IF;
		start_timer(0, 300000);
		exec(&s);
		check(s.vector == VEC_TIMER, "%s: vector %d error 0x%lx at 0x%lx", list[i].name,
		      (int)s.vector, s.error, s.rip);
		apic_write(APIC_EOI, 0);
	}
}

CODE(copy_much, "cld; rep movsb");
CODE(sum_much, "xor %eax, %eax; 1: add (%rsi), %rax; add $8, %rsi; rol $3, %rax; dec %rcx; jnz 1b");

/*
 * Interrupts anywhere in a computation leave no trace in it. When the timer's interrupts come is up
 * to the host's scheduler, so the computation is repeated until one has hit it.
 */
enum { TRIES = 200 };

static void transparent(void)
{
	enum { BYTES = 1 << 20 };
	u8 *from = pages_alloc(BYTES / PAGE_SIZE, PAGE_SIZE),
	   *to = pages_alloc(BYTES / PAGE_SIZE, PAGE_SIZE);
	u64 sums[2];

	for (u32 i = 0; i < BYTES / 8; i++)
		((volatile u64 *)from)[i] = i * 0x9e3779b97f4a7c15;
	count = 0;
	for (int try = 0; try < 2 || (!count && try < TRIES); try++) {
		struct state s = state_for(USER64, copy_much);
		bool interrupted = try > 0;

		trap_hook = note_and_continue;
		if (interrupted)
			start_timer(APIC_PERIODIC, 60000);
		s.rflags |= RFLAGS_IF;
		s.rsi = user(from);
		s.rdi = user(to);
		s.rcx = BYTES;
		exec(&s);
		expect_done(&s, copy_much);
		expect_eq(s.rcx, 0);
		expect_eq(s.rsi, user(from) + BYTES);
		expect_eq(s.rdi, user(to) + BYTES);
		s = state_for(USER64, sum_much);
		s.rflags |= RFLAGS_IF;
		s.rsi = user(to);
		s.rcx = BYTES / 8;
		exec(&s);
		expect_done(&s, sum_much);
		sums[interrupted] = s.rax;
		apic_write(APIC_LVT_TIMER, APIC_MASKED);
	}
	expect_eq(sums[0], sums[1]);
	expect(count > 0);
}

/* Vector registers, x87 and flags survive interrupts as well. */
CODE(vector_work, "mov $300000, %ecx; mov $3, %eax; movd %eax, %xmm0; pshufd $0, %xmm0, %xmm0;"
		  "pxor %xmm1, %xmm1; fninit; fldz; fld1;"
		  "1: paddd %xmm0, %xmm1; fadd %st, %st(1); dec %ecx; jnz 1b;"
		  "movd %xmm1, %eax; fstp %st; sub $8, %rsp; fistpll (%rsp); pop %rdx");

static void transparent_vectors(void)
{
	count = 0;
	for (int try = 0; !count && try < TRIES; try++) {
		struct state s = state_for(USER64, vector_work);

		trap_hook = note_and_continue;
		start_timer(APIC_PERIODIC, 60000);
		s.rflags |= RFLAGS_IF;
		exec(&s);
		apic_write(APIC_LVT_TIMER, APIC_MASKED);
		expect_done(&s, vector_work);
		expect_eq(s.rax, 900000);
		expect_eq(s.rdx, 300000);
	}
	expect(count > 0);
}

/* An external interrupt whose gate is bad: the error code has EXT set. */
static void external_bad_gate(void)
{
	struct state s;

	idt_set(VEC_IPI, (u64)(trap_stubs + 16 * VEC_IPI), KCODE64, 0x0e, 1);
	send_self(VEC_IPI);
	s = run(KERNEL64, sti_nop);
	expect_trap(&s, VEC_NP, (u64)VEC_IPI << 3 | 3, sti_nop_next);
}

static void stack_switch(void)
{
	struct state s;

	idt_set(VEC_IPI, (u64)(trap_stubs + 16 * VEC_IPI), KCODE64, 0x8e, 0);
	send_self(VEC_IPI);
	s = state_for(USER64, target);
	s.rflags |= RFLAGS_IF;
	exec(&s);
	expect_trap(&s, VEC_IPI, 0, target_at);
	expect_eq(s.frame, tss.rsp[0] - 40);
	expect_eq(s.ss, UDATA);
}

const struct test tests[] = {
	{"STI delays by one instruction", "SDM vol. 2, STI", sti_shadow, NULL},
	{"STI in 32-bit code and ring 3", "SDM vol. 2, STI", sti_shadow_elsewhere, NULL},
	{"A fault in STI's shadow", "SDM vol. 3, 6.8.3", fault_in_shadow, NULL},
	{"IRET enables at once", "SDM vol. 2, IRET", iret_enables, NULL},
	{"STI; HLT with an interrupt pending", "SDM vol. 2, HLT", halt_pending, NULL},
	{"STI; HLT until the timer", "SDM vol. 2, HLT", halt_timer, NULL},
	{"An NMI ends HLT", "SDM vol. 2, HLT", halt_nmi, NULL},
	{"TPR and CR8", "SDM vol. 3, 10.8.6", task_priority, NULL},
	{"Lowering CR8 lets interrupts in", "SDM vol. 3, 10.8.6", priority_lowered, NULL},
	{"Priorities and EOI", "SDM vol. 3, 10.8.4", priorities, NULL},
	{"Periodic timer", "SDM vol. 3, 10.5.4", timer_periodic, NULL},
	{"TSC deadline", "SDM vol. 3, 10.5.4.1", timer_deadline, NULL},
	{"The 8254 through the 8259A", "SDM vol. 3, 10.5.1", legacy_timer, NULL},
	{"NMIs wait for IRET", "SDM vol. 3, 6.7.1", nmi_blocking, NULL},
	{"No loop locks interrupts out", "SDM vol. 3, 6.6", loops, NULL},
	{"Interrupts leave no trace", "SDM vol. 3, 6.6", transparent, NULL},
	{"Interrupts leave vector registers alone", "SDM vol. 3, 6.6", transparent_vectors, NULL},
	{"External interrupt through a bad gate", "SDM vol. 3, 6.13", external_bad_gate,
	 "counts 16 bytes per gate in the error code"},
	{"External interrupt switches stacks", "SDM vol. 3, 6.14.2", stack_switch, NULL},
	{NULL},
};
