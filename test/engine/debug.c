/*
 * Debugging: single step, breakpoint registers, INT1, and what delays or suppresses #DB.
 */
#include "guest.h"

static u32 count;
static u64 seen[64], seen_dr6[64];

/* Note each #DB and let the code go on, until it ends. */
static bool note_steps(struct state *s)
{
	if (s->vector != VEC_DB)
		return false;
	if (count < ARRAY_SIZE(seen)) {
		seen[count] = s->rip;
		seen_dr6[count] = read_dr6();
	}
	count++;
	if (read_dr6() & 0xf) /* past the breakpoint that hit */
		s->rflags |= RFLAGS_RF;
	write_dr6(0xffff0ff0);
	return true;
}

/* Run @code with TF set from its first instruction on; count the steps. */
static struct state step(enum exec_mode mode, const u8 *code)
{
	struct state s = state_for(mode, code);

	count = 0;
	trap_hook = note_steps;
	s.rflags |= RFLAGS_TF;
	exec(&s);
	trap_hook = NULL;
	return s;
}

CODE(step_plain,
     "nop; mov $1, %eax; add %eax, %eax; jmp 1f; ud2; 1: call 2f; jmp 3f; 2: ret; 3: nop");

static void single_step(void)
{
	static const enum exec_mode modes[] = {KERNEL64, USER64, USER32, KERNEL32};

	for (u32 i = 0; i < ARRAY_SIZE(modes); i++) {
		struct state s = step(modes[i], step_plain);

		check(s.vector == VEC_DONE && count == 8, "mode %d: vector %d, %d steps",
		      (int)modes[i], (int)s.vector, (int)count);
		expect_eq(seen_dr6[0], 0xffff4ff0);
		expect_eq(s.rflags & RFLAGS_TF, RFLAGS_TF);
		expect_eq(seen[0], s.rip - ((u64)step_plain_end + 2 - (u64)step_plain) + 1);
	}
}

CODE_AT(popf_tf, "push $0x102", "popfq", "nop; nop");

/* POPF that sets TF is not stepped itself; the following instruction is. */
static void step_after_popf(void)
{
	struct state s = state_for(USER64, popf_tf);

	exec(&s);
	expect_eq(s.vector, VEC_DB);
	expect_eq(s.rip, user(popf_tf_next) + 1);
	expect_eq(read_dr6() & 0xffff, 0x4ff0);
}

CODE(step_popf_off, "nop; push $2; popfq; nop; nop");

/* POPF that clears TF still ends with a step. */
static void step_off(void)
{
	struct state s = step(USER64, step_popf_off);

	check(s.vector == VEC_DONE && count == 3, "vector %d, %d steps", (int)s.vector, (int)count);
}

CODE(step_string, "mov $5, %ecx; lea -64(%rsp), %rdi; rep stosb; nop");

/* Each iteration of a repeated string instruction is a step. */
static void step_repeat(void)
{
	struct state s = step(USER64, step_string);

	check(s.vector == VEC_DONE && (count == 8 || count == 4), "vector %d, %d steps",
	      (int)s.vector, (int)count);
	if (count == 8)
		expect_eq(seen[2], seen[5]);
}

CODE(step_ss, "mov %ss, %eax; mov %eax, %ss; nop; nop");

/* MOV SS holds #DB back until the next instruction is done. */
static void step_shadow(void)
{
	struct state s = step(KERNEL64, step_ss);

	check(s.vector == VEC_DONE && count == 3, "vector %d, %d steps", (int)s.vector, (int)count);
	expect_eq(seen[0], (u64)step_ss + 2);
	expect_eq(seen[1], (u64)step_ss + 5);
}

CODE(step_pushf, "pushfq; pop %rax; nop");
CODE_AT(step_fault, "nop", "ud2", "");
CODE_AT(step_int, "nop", "int $0x50", "");

static u64 handler_flags;

static bool note_fault(struct state *s)
{
	handler_flags = read_flags();
	return note_steps(s);
}

static void step_and_exceptions(void)
{
	struct state s = step(USER64, step_pushf);

	expect_eq(s.rax & RFLAGS_TF, RFLAGS_TF);
	count = 0;
	trap_hook = note_fault;
	s = state_for(USER64, step_fault);
	s.rflags |= RFLAGS_TF;
	exec(&s);
	expect_trap(&s, VEC_UD, 0, step_fault_at);
	expect_eq(s.rflags & RFLAGS_TF, RFLAGS_TF);
	expect_eq(handler_flags & RFLAGS_TF, 0);
	expect_eq(count, 1);
	/* INT n clears TF before its handler starts: no step inside. */
	idt_set(0x50, (u64)(trap_stubs + 16 * 0x50), KCODE64, 0xee, 1);
	count = 0;
	s = state_for(USER64, step_int);
	s.rflags |= RFLAGS_TF;
	exec(&s);
	expect_trap(&s, 0x50, 0, step_int_next);
	expect_eq(s.rflags & RFLAGS_TF, RFLAGS_TF);
	expect_eq(count, 1);
}

CODE_AT(step_syscall, "nop", "syscall", "nop");
CODE(step_syscall_entry, "nop; sysretq");

static void step_over_syscall(void)
{
	struct state s;

	wrmsr(MSR_STAR, (u64)(UCODE32 & ~3) << 48 | (u64)KCODE64 << 32);
	wrmsr(MSR_LSTAR, (u64)step_syscall_entry);
	wrmsr(MSR_SFMASK, RFLAGS_TF);
	s = step(USER64, step_syscall);
	expect_done(&s, step_syscall);
	/* NOP; SYSRET brings TF back, and its own step may or may not be taken; the last NOP. */
	check(count == 2 || count == 3, "%d steps", (int)count);
}

CODE_AT(int1, "", ".byte 0xf1", "nop");
CODE_AT(int_1, "", "int $1", "nop");

static void interrupt_1(void)
{
	struct state s;

	write_dr6(0xffff0ff0);
	s = run(USER64, int1); /* no check of the gate's DPL */
	expect_trap(&s, VEC_DB, 0, int1_next);
	expect_eq(read_dr6() & 0xe00f, 0);
	s = run(USER64, int_1);
	expect_trap(&s, VEC_GP, VEC_DB << 3 | 2, int_1_at);
}

CODE_AT(breakpoint, "nop", "inc %eax", "nop");
CODE_AT(breakpoint_loop, "mov $3, %ecx; 1: nop", "dec %ecx", "jnz 1b");

static void code_breakpoint(void)
{
	struct state s;

	write_dr0((u64)breakpoint_at);
	write_dr7(0x402); /* G0, execute */
	s = run(KERNEL64, breakpoint);
	expect_trap(&s, VEC_DB, 0, breakpoint_at);
	expect_eq(s.rax, 0); /* a fault: before the instruction */
	expect_eq(read_dr6() & 0xe00f, 1);
	expect_eq(s.rflags & RFLAGS_RF, 0); /* alone among the faults */
	/* RF lets it pass once. */
	s = state_for(KERNEL64, breakpoint_at);
	s.rflags |= RFLAGS_RF;
	exec(&s);
	expect_done(&s, breakpoint);
	expect_eq(s.rax, 1);
	expect_eq(s.rflags & RFLAGS_RF, 0);
	/* At the other address of the same code: no. */
	s = run(USER64, breakpoint);
	expect_done(&s, breakpoint);
	write_dr3(user(breakpoint_at));
	write_dr7(0x440); /* L3 */
	s = run(USER64, breakpoint);
	expect_trap(&s, VEC_DB, 0, breakpoint_at);
	expect_eq(read_dr6() & 8, 8);
	/* Not enabled: no. */
	write_dr7(0x400);
	s = run(USER64, breakpoint);
	expect_done(&s, breakpoint);
}

static void code_breakpoint_loop(void)
{
	struct state s = state_for(USER64, breakpoint_loop);

	write_dr1(user(breakpoint_loop_at));
	write_dr7(0x408);
	count = 0;
	trap_hook = note_steps;
	exec(&s);
	expect_done(&s, breakpoint_loop);
	expect_eq(count, 3);
	expect_eq(seen[2], user(breakpoint_loop_at));
	expect_eq(seen_dr6[2] & 0xf, 2);
}

/* A breakpoint set after the code ran (and was translated) works all the same. */
static void breakpoint_set_late(void)
{
	struct state s;

	for (int i = 0; i < 3; i++) {
		write_dr7(0x400);
		for (int k = 0; k < 50; k++) {
			s = run(USER64, breakpoint_loop);
			expect_done(&s, breakpoint_loop);
		}
		write_dr0(user(breakpoint_loop_at));
		write_dr7(0x402);
		s = run(USER64, breakpoint_loop);
		expect_trap(&s, VEC_DB, 0, breakpoint_loop_at);
	}
}

CODE_AT(data_write, "nop", "movl $1, (%rax)", "nop");
CODE_AT(data_read, "nop", "mov (%rax), %ecx", "nop");
CODE_AT(data_write8, "nop", "mov %rcx, (%rax)", "nop");
CODE_AT(data_push, "mov %rax, %rsp", "push %rcx", "nop");

static u64 watched[8] __attribute__((aligned(64)));

static struct state touch(const u8 *code, u64 address)
{
	struct state s = state_for(USER64, code);

	write_dr6(0xffff0ff0);
	s.rax = address;
	exec(&s);
	return s;
}

static void data_breakpoint(void)
{
	u64 at = user(&watched[2]);
	struct state s;

	write_dr0(at);
	write_dr7(0x402 | 1 << 16 | 3 << 18); /* write, 4 bytes */
	s = touch(data_write, at);
	expect_trap(&s, VEC_DB, 0, data_write_next);
	expect_eq(read_dr6() & 0xe00f, 1);
	expect_eq(*(volatile u32 *)&watched[2], 1); /* a trap: after the instruction */
	s = touch(data_write, at - 3);
	expect_trap(&s, VEC_DB, 0, data_write_next);
	s = touch(data_write, at - 4);
	expect_done(&s, data_write);
	s = touch(data_write, at + 4);
	expect_done(&s, data_write);
	s = touch(data_read, at);
	expect_done(&s, data_read);
	s = touch(data_push, at + 8);
	expect_trap(&s, VEC_DB, 0, data_push_next);
	write_dr7(0x402 | 3 << 16 | 3 << 18); /* read or write */
	s = touch(data_read, at);
	expect_trap(&s, VEC_DB, 0, data_read_next);
	s = touch(data_read, at + 3);
	expect_trap(&s, VEC_DB, 0, data_read_next);
	write_dr7(0x402 | 1 << 16 | 2 << 18); /* 8 bytes */
	s = touch(data_write, at + 4);
	expect_trap(&s, VEC_DB, 0, data_write_next);
	write_dr7(0x402 | 1 << 16 | 0 << 18); /* 1 byte */
	s = touch(data_write8, at - 7);
	expect_trap(&s, VEC_DB, 0, data_write8_next);
	s = touch(data_write8, at + 1);
	expect_done(&s, data_write8);
}

CODE_AT(data_string, "mov $4, %ecx; cld", "rep stosb", "nop");

static void data_breakpoint_string(void)
{
	struct state s = state_for(USER64, data_string);

	write_dr2(user(watched) + 2);
	write_dr7(0x420 | 1 << 24);
	s.rdi = user(watched);
	exec(&s);
	expect_eq(s.vector, VEC_DB);
	/* Reported after the iteration, or when the instruction is done. */
	check((s.rip == user(data_string_at) && s.rcx == 1) || s.rip == user(data_string_next),
	      "at 0x%lx with rcx 0x%lx", s.rip, s.rcx);
	expect_eq(read_dr6() & 0xf, 4);
}

CODE_AT(io_out, "mov $0x80, %edx", "outb %al, %dx", "nop");
CODE(io_other, "mov $0x84, %edx; outb %al, %dx");

static void io_breakpoint(void)
{
	struct state s;

	write_cr4(read_cr4() | CR4_DE);
	write_dr0(0x80);
	write_dr7(0x402 | 2 << 16);
	s = run(KERNEL64, io_out);
	expect_trap(&s, VEC_DB, 0, io_out_next);
	expect_eq(read_dr6() & 0xf, 1);
	s = run(KERNEL64, io_other);
	expect_done(&s, io_other);
}

CODE_AT(move_from_dr7, "", "mov %dr7, %rax", "");
CODE_AT(move_to_dr0, "", "mov %rax, %dr0", "");

static void general_detect(void)
{
	struct state s;

	write_dr7(0x400 | DR7_GD);
	s = run(KERNEL64, move_from_dr7);
	expect_trap(&s, VEC_DB, 0, move_from_dr7_at);
	expect_eq(read_dr7() & DR7_GD, 0); /* cleared, so that the handler can work */
	expect_eq(read_dr6() & 0xe00f, DR6_BD);
	write_dr7(0x400 | DR7_GD);
	s = run(KERNEL64, move_to_dr0);
	expect_trap(&s, VEC_DB, 0, move_to_dr0_at);
	s = run(USER64, move_to_dr0);
	expect_trap(&s, VEC_GP, 0, move_to_dr0_at);
}

CODE_AT(move_from_dr4, "", "mov %db4, %rax", "");
CODE_AT(move_from_dr5, "", "mov %db5, %rax", "");
CODE_AT(move_to_dr7, "", "mov %rax, %dr7", "");
CODE_AT(move_to_dr6, "", "mov %rax, %dr6", "");

static void debug_registers(void)
{
	struct state s;

	write_dr0(0xffff800012345678);
	write_dr1(1ull << 63);
	expect_eq(read_dr0(), 0xffff800012345678);
	expect_eq(read_dr1(), 1ull << 63);
	write_dr6(0);
	write_dr7(0);
	expect_eq(read_dr6() & 0xf000ff0ull, 0xf000ff0);
	expect_eq(read_dr7(), 0x400);
	write_dr7(0xffff03ff);
	expect_eq(read_dr7(), 0xffff07ff);
	write_dr7(0x400);
	s = run(KERNEL64, move_from_dr4);
	expect_done(&s, move_from_dr4);
	expect_eq(s.rax, read_dr6());
	s = run(KERNEL64, move_from_dr5);
	expect_eq(s.rax, 0x400);
	write_cr4(read_cr4() | CR4_DE);
	s = run(KERNEL64, move_from_dr4);
	expect_trap(&s, VEC_UD, 0, move_from_dr4_at);
	s = state_for(KERNEL64, move_to_dr7);
	s.rax = 1ull << 32;
	exec(&s);
	expect_trap(&s, VEC_GP, 0, move_to_dr7_at);
	s = state_for(KERNEL64, move_to_dr6);
	s.rax = 1ull << 40;
	exec(&s);
	expect_trap(&s, VEC_GP, 0, move_to_dr6_at);
}

CODE_AT(two_reasons, "nop", "movl $1, (%rax)", "nop");

/* A step and a data breakpoint at once: one #DB, both bits. */
static void both_at_once(void)
{
	struct state s = state_for(USER64, two_reasons_at);

	write_dr0(user(watched));
	write_dr7(0x402 | 1 << 16 | 3 << 18);
	write_dr6(0xffff0ff0);
	s.rax = user(watched);
	s.rflags |= RFLAGS_TF;
	exec(&s);
	expect_trap(&s, VEC_DB, 0, two_reasons_next);
	expect_eq(read_dr6() & 0xe00f, DR6_BS | 1);
}

const struct test tests[] = {
	{"Single step", "SDM vol. 3, 17.3.1.4", single_step, NULL},
	{"TF set by POPF", "SDM vol. 3, 17.3.1.4", step_after_popf, NULL},
	{"TF cleared by POPF", "SDM vol. 3, 17.3.1.4", step_off, NULL},
	{"Stepping through REP", "SDM vol. 3, 17.3.1.4", step_repeat, NULL},
	{"MOV SS delays the step", "SDM vol. 3, 6.8.3", step_shadow, NULL},
	{"Steps, faults and INT n", "SDM vol. 3, 17.3.1.4", step_and_exceptions, NULL},
	{"Stepping over SYSCALL", "SDM vol. 2, SYSCALL", step_over_syscall, NULL},
	{"INT1 and INT 1", "SDM vol. 2, INT", interrupt_1, "has no INT1"},
	{"Code breakpoints", "SDM vol. 3, 17.3.1.1", code_breakpoint,
	 "keeps RF beyond the instruction"},
	{"Code breakpoint in a loop", "SDM vol. 3, 17.3.1.1", code_breakpoint_loop, NULL},
	{"Code breakpoint set late", "SDM vol. 3, 17.3.1.1", breakpoint_set_late, NULL},
	{"Data breakpoints", "SDM vol. 3, 17.3.1.2", data_breakpoint,
	 "reports an access beside the watched byte"},
	{"Data breakpoint in a string", "SDM vol. 3, 17.3.1.2", data_breakpoint_string, NULL},
	{"I/O breakpoints", "SDM vol. 3, 17.3.1.2", io_breakpoint, NULL},
	{"General detect", "SDM vol. 3, 17.3.1.3", general_detect,
	 "does not look at GD when registers are read"},
	{"DR4 to DR7", "SDM vol. 3, 17.2", debug_registers, NULL},
	{"Step and data breakpoint at once", "SDM vol. 3, 17.2.3", both_at_once,
	 "delivers one after the other"},
	{NULL},
};
