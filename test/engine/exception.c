/*
 * Exceptions: which vector, which error code, which saved state; gates of the IDT; exceptions while
 * an exception is delivered.
 */
#include "guest.h"

/* Error codes that name a gate of the IDT. */
#define IDT_ERROR(vector) ((u64)(vector) << 3 | 2)
#define EXT               1ull

CODE_AT(div_zero, "mov $7, %eax; mov $9, %edx; xor %ecx, %ecx", "div %ecx", "");
CODE_AT(div_overflow, "mov $7, %eax; mov $9, %edx; mov $9, %ecx", "div %rcx", "");
CODE_AT(idiv_overflow, "mov $0x80000000, %eax; cltd; mov $-1, %ecx", "idiv %ecx", "");
CODE_AT(div_byte, "mov $0x1234, %eax; mov $0x12, %ecx", "div %cl", "");
CODE_AT(div_memory, "mov $7, %eax; mov $9, %edx; push $0", "divq (%rsp)", "");
CODE_AT(aam_zero, ".code32\n mov $0x1234, %eax", "aam $0", "");

static void divide_errors(void)
{
	struct state s = run(KERNEL64, div_zero);

	expect_trap(&s, VEC_DE, 0, div_zero_at);
	expect_eq(s.rax, 7);
	expect_eq(s.rdx, 9);
	s = run(USER64, div_overflow);
	expect_trap(&s, VEC_DE, 0, div_overflow_at);
	expect_eq(s.rax, 7);
	expect_eq(s.cs, UCODE64);
	expect_eq(s.ss, UDATA);
	s = run(KERNEL64, idiv_overflow);
	expect_trap(&s, VEC_DE, 0, idiv_overflow_at);
	s = run(USER32, div_zero);
	expect_trap(&s, VEC_DE, 0, div_zero_at);
	s = run(KERNEL64, div_byte);
	expect_trap(&s, VEC_DE, 0, div_byte_at);
	expect_eq(s.rax, 0x1234);
	s = run(KERNEL64, div_memory);
	expect_trap(&s, VEC_DE, 0, div_memory_at);
	s = run(USER32, aam_zero);
	expect_trap(&s, VEC_DE, 0, aam_zero_at);
}

CODE_AT(breakpoint, "", "int3", "nop");
CODE_AT(breakpoint2, "", "int $3", "nop");
CODE_AT(overflow_taken, ".code32\n mov $0x7fffffff, %eax; inc %eax", "into", "nop");
CODE(overflow_not_taken, ".code32\n xor %eax, %eax; into");
CODE_AT(bound_out, ".code32\n push $20; push $10; mov $21, %eax", "bound %eax, (%esp)", "");
CODE(bound_in, ".code32\n push $20; push $10; mov $10, %eax; bound %eax, (%esp);"
	       "mov $20, %eax; bound %eax, (%esp)");
CODE_AT(bound_below, ".code32\n push $20; push $-10; mov $-11, %eax", "bound %eax, (%esp)", "");

static void traps(void)
{
	struct state s = run(KERNEL64, breakpoint);

	expect_trap(&s, VEC_BP, 0, breakpoint_next);
	idt_set(VEC_BP, (u64)(trap_stubs + 16 * VEC_BP), KCODE64, 0xee, 0);
	idt_set(VEC_OF, (u64)(trap_stubs + 16 * VEC_OF), KCODE64, 0xee, 0);
	s = run(USER64, breakpoint);
	expect_trap(&s, VEC_BP, 0, breakpoint_next);
	s = run(USER64, breakpoint2);
	expect_trap(&s, VEC_BP, 0, breakpoint2_next);
	s = run(USER32, overflow_taken);
	expect_trap(&s, VEC_OF, 0, overflow_taken_next);
	s = run(USER32, overflow_not_taken);
	expect_done(&s, overflow_not_taken);
}

static void bound(void)
{
	struct state s = run(USER32, bound_out);

	expect_trap(&s, VEC_BR, 0, bound_out_at);
	s = run(USER32, bound_below);
	expect_trap(&s, VEC_BR, 0, bound_below_at);
	s = run(USER32, bound_in);
	expect_done(&s, bound_in);
}

/* One instruction that must raise #UD, as bytes. */
struct opcode {
	u8 length;
	u8 byte[11];
};

static void check_undefined(enum exec_mode mode, const struct opcode *list, u32 count)
{
	static u8 code[32];

	for (u32 i = 0; i < count; i++) {
		struct state s;

		memset(code, 0x90, sizeof(code));
		memcpy(code, list[i].byte, list[i].length);
		code[30] = 0xcd; /* int: where code ends that did not raise #UD */
		code[31] = VEC_DONE;
		s = state_for(mode, code);
		s.rax = s.rcx = (u64)code;
		exec(&s);
		check(s.vector == VEC_UD && s.error == 0 &&
			      (s.rip & 0xfffff) == ((u64)code & 0xfffff),
		      "instruction %d (0x%x 0x%x 0x%x): vector %d at 0x%lx", (int)i,
		      list[i].byte[0], list[i].byte[1], list[i].byte[2], (int)s.vector, s.rip);
	}
}

static void undefined(void)
{
	static const struct opcode everywhere[] = {
		{2, {0x0f, 0x0b}},       /* ud2 */
		{3, {0x0f, 0xb9, 0xc0}}, /* ud1 */
		{3, {0x0f, 0xff, 0xc0}}, /* ud0 */
		{2, {0x8e, 0xc8}},       /* mov %eax, %cs */
		{2, {0x8c, 0xf0}},       /* mov %seg6, %eax */
		{2, {0x8e, 0xf8}},       /* mov %eax, %seg7 */
		{3, {0x0f, 0xba, 0xc0}}, /* group 8 /0 */
		{2, {0xc6, 0xc8}},       /* group 11 /1 */
		{2, {0xfe, 0xd0}},       /* group 4 /2 */
		{2, {0xff, 0xf8}},       /* group 5 /7 */
		{2, {0xff, 0xd8}},       /* lcall %eax */
		{2, {0xff, 0xe8}},       /* ljmp %eax */
		{2, {0x8d, 0xc0}},       /* lea %eax, %eax */
		{2, {0x8f, 0xc8}},       /* group 1A /1 */
		{3, {0x0f, 0xc7, 0xc8}}, /* cmpxchg8b %eax */
		{3, {0x0f, 0x01, 0xd2}}, /* lgdt %edx: no such encoding */
		{3, {0x0f, 0xb2, 0xc0}}, /* lss %eax, %eax */
		{3, {0x0f, 0x0f, 0xc0}}, /* 3DNow without suffix of meaning: next byte is nop */
		{2, {0x0f, 0x04}},       {2, {0x0f, 0x0a}},
		{2, {0x0f, 0x24}},       /* mov to test registers */
		{3, {0x0f, 0x20, 0xc8}}, /* mov %cr1, %eax */
		{3, {0x0f, 0x22, 0xe8}}, /* mov %eax, %cr5 */
	};

	check_undefined(KERNEL64, everywhere, ARRAY_SIZE(everywhere));
	check_undefined(KERNEL32, everywhere, ARRAY_SIZE(everywhere));
}

static void undefined_in_64bit(void)
{
	static const struct opcode list[] = {
		{1, {0x06}}, {1, {0x07}},       {1, {0x0e}},       {1, {0x16}},       {1, {0x17}},
		{1, {0x1e}}, {1, {0x1f}},       {1, {0x27}},       {1, {0x2f}},       {1, {0x37}},
		{1, {0x3f}}, {1, {0x60}},       {1, {0x61}},       {2, {0x82, 0xc0}}, {1, {0x9a}},
		{1, {0xce}}, {2, {0xd4, 0x0a}}, {2, {0xd5, 0x0a}}, {1, {0xd6}},       {1, {0xea}},
	};

	check_undefined(KERNEL64, list, ARRAY_SIZE(list));
	check_undefined(USER64, list, ARRAY_SIZE(list));
}

static void undefined_lock(void)
{
	static const struct opcode list[] = {
		{2, {0xf0, 0x90}},             /* lock nop */
		{3, {0xf0, 0x01, 0xc8}},       /* lock add %ecx, %eax */
		{3, {0xf0, 0x03, 0x01}},       /* lock add (%rcx), %eax */
		{3, {0xf0, 0x39, 0x01}},       /* lock cmp %eax, (%rcx) */
		{3, {0xf0, 0x89, 0x01}},       /* lock mov %eax, (%rcx) */
		{4, {0xf0, 0x0f, 0xa3, 0x01}}, /* lock bt %eax, (%rcx) */
		{4, {0xf0, 0x0f, 0xc1, 0xc8}}, /* lock xadd %ecx, %eax */
		{3, {0xf0, 0xf7, 0xd0}},       /* lock not %eax */
		{3, {0xf0, 0xf7, 0x21}},       /* lock mul (%rcx) */
		{2, {0xf0, 0x50}},             /* lock push */
		{3, {0xf0, 0xd1, 0x21}},       /* lock shl (%rcx) */
		{3, {0xf0, 0x8d, 0x01}},       /* lock lea */
	};

	check_undefined(KERNEL64, list, ARRAY_SIZE(list));
	check_undefined(USER64, list, ARRAY_SIZE(list));
	check_undefined(USER32, list, ARRAY_SIZE(list));
}

CODE_AT(x87_instruction, "", "fld1", "");
CODE_AT(sse_instruction, "", "addps %xmm0, %xmm1", "");
CODE_AT(wait_instruction, "", "fwait", "");
CODE(mmx_done, "pxor %mm0, %mm0; emms");
CODE_AT(mmx_instruction, "", "pxor %mm0, %mm0", "emms");
CODE(prefetch, "prefetcht0 (%rsp); sfence; lfence; mfence");

static void not_available(void)
{
	u64 cr0 = read_cr0() & ~(CR0_TS | CR0_EM | CR0_MP);
	struct state s;

	write_cr0(cr0 | CR0_TS | CR0_MP);
	s = run(USER64, x87_instruction);
	expect_trap(&s, VEC_NM, 0, x87_instruction_at);
	s = run(USER64, sse_instruction);
	expect_trap(&s, VEC_NM, 0, sse_instruction_at);
	s = run(USER64, mmx_instruction);
	expect_trap(&s, VEC_NM, 0, mmx_instruction_at);
	s = run(KERNEL64, wait_instruction);
	expect_trap(&s, VEC_NM, 0, wait_instruction_at);
	s = run(KERNEL64, prefetch);
	expect_done(&s, prefetch);
	write_cr0(cr0 | CR0_TS);
	s = run(USER64, wait_instruction);
	expect_done(&s, wait_instruction);
	write_cr0(cr0 | CR0_EM);
	s = run(USER64, x87_instruction);
	expect_trap(&s, VEC_NM, 0, x87_instruction_at);
	s = run(USER64, sse_instruction);
	expect_trap(&s, VEC_UD, 0, sse_instruction_at);
	s = run(USER64, mmx_instruction);
	expect_trap(&s, VEC_UD, 0, mmx_instruction_at);
	write_cr0(cr0 | CR0_MP);
	s = run(USER64, mmx_done);
	expect_done(&s, mmx_done);
	write_cr4(read_cr4() & ~CR4_OSFXSR);
	s = run(USER64, sse_instruction);
	expect_trap(&s, VEC_UD, 0, sse_instruction_at);
}

CODE(clts, "clts; fld1; fstp %st(0)");

static void clear_task_switched(void)
{
	struct state s;

	write_cr0(read_cr0() | CR0_TS);
	s = run(KERNEL64, clts);
	expect_done(&s, clts);
	expect((read_cr0() & CR0_TS) == 0);
}

/* The x87 reports late: at the next instruction that waits. */
CODE_AT(x87_error,
	"fninit; push $0x37b; fldcw (%rsp); fldz; fld1; fdiv %st(1), %st; nop; fnstsw %ax", "fwait",
	"fnclex");
CODE_AT(x87_error_fld, "fninit; push $0x37b; fldcw (%rsp); fldz; fld1; fdiv %st(1), %st; nop",
	"fld1", "");
CODE(x87_masked, "fninit; fldz; fld1; fdiv %st(1), %st; fwait; fnstsw %ax");
CODE(x87_no_wait,
     "fninit; push $0x37b; fldcw (%rsp); fldz; fld1; fdiv %st(1), %st; fnstsw %ax; fnclex; fninit");

static void x87_exception(void)
{
	struct state s = run(USER64, x87_error);

	expect_trap(&s, VEC_MF, 0, x87_error_at);
	expect_eq(s.rax & 0x84, 0x84); /* ES and ZE */
	s = run(USER64, x87_error_fld);
	expect_trap(&s, VEC_MF, 0, x87_error_fld_at);
	s = run(USER64, x87_masked);
	expect_done(&s, x87_masked);
	expect_eq(s.rax & 0x84, 0x04);
	s = run(USER64, x87_no_wait);
	expect_done(&s, x87_no_wait);
}

CODE_AT(simd_error,
	"movl $0x1d80, -8(%rsp); ldmxcsr -8(%rsp); mov $1, %eax; cvtsi2ss %eax, %xmm0;"
	"xorps %xmm1, %xmm1",
	"divss %xmm1, %xmm0", "");
CODE(simd_masked, "movl $0x1f80, -8(%rsp); ldmxcsr -8(%rsp); mov $1, %eax; cvtsi2ss %eax, %xmm0;"
		  "xorps %xmm1, %xmm1; divss %xmm1, %xmm0; movd %xmm0, %eax;"
		  "stmxcsr -8(%rsp); mov -8(%rsp), %edx");

static void simd_exception(void)
{
	struct state s = run(USER64, simd_error);

	expect_trap(&s, VEC_XM, 0, simd_error_at);
	s = run(USER64, simd_masked);
	expect_done(&s, simd_masked);
	expect_eq(s.rax, 0x7f800000);
	expect_eq(s.rdx, 0x1f84);
	write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
	s = run(USER64, simd_error);
	expect_trap(&s, VEC_UD, 0, simd_error_at);
}

CODE_AT(unaligned_load, "", "mov 1(%rsp), %eax", "");
CODE_AT(unaligned_sse, "", "movaps 8(%rsp), %xmm0", "");
CODE_AT(unaligned_sse_store, "", "movaps %xmm0, 8(%rsp)", "");
CODE_AT(unaligned_sse_operand, "", "paddd 8(%rsp), %xmm0", "");
CODE(unaligned_allowed, "mov 1(%rsp), %eax; movups 8(%rsp), %xmm0");

static void alignment_check(void)
{
	struct state s;

	write_cr0(read_cr0() | CR0_AM);
	s = state_for(USER64, unaligned_load);
	s.rflags |= RFLAGS_AC;
	exec(&s);
	expect_trap(&s, VEC_AC, 0, unaligned_load_at);
	s = state_for(KERNEL64, unaligned_load);
	s.rflags |= RFLAGS_AC;
	exec(&s);
	expect_done(&s, unaligned_load);
	s = run(USER64, unaligned_load);
	expect_done(&s, unaligned_load);
	write_cr0(read_cr0() & ~CR0_AM);
	s = state_for(USER64, unaligned_load);
	s.rflags |= RFLAGS_AC;
	exec(&s);
	expect_done(&s, unaligned_load);
}

static void unaligned_vectors(void)
{
	struct state s = run(USER64, unaligned_sse);

	expect_trap(&s, VEC_GP, 0, unaligned_sse_at);
	s = run(USER64, unaligned_sse_store);
	expect_trap(&s, VEC_GP, 0, unaligned_sse_store_at);
	s = run(KERNEL64, unaligned_sse_operand);
	expect_trap(&s, VEC_GP, 0, unaligned_sse_operand_at);
	s = run(USER64, unaligned_allowed);
	expect_done(&s, unaligned_allowed);
}

CODE_AT(ud2, "", "ud2", "");
CODE_AT(ud2_in_32bit, ".code32\n", "ud2", "");
CODE_AT(ud2_in_16bit, ".code16\n", "ud2", "");

/* Each mode saves its own selector; the upper parts of what is saved are zero. */
static void saved_state(void)
{
	static const struct {
		enum exec_mode mode;
		u16 cs, ss;
	} modes[] = {
		{KERNEL64, KCODE64, KDATA},
		{KERNEL32, KCODE32, KDATA},
		{USER64, UCODE64, UDATA},
		{USER32, UCODE32, UDATA},
	};

	for (u32 i = 0; i < ARRAY_SIZE(modes); i++) {
		struct state s = state_for(modes[i].mode, ud2);
		u64 rsp = s.rsp;

		s.rflags |= RFLAGS_CF | RFLAGS_OF | RFLAGS_ID | RFLAGS_DF;
		exec(&s);
		expect_trap(&s, VEC_UD, 0, ud2_at);
		expect_eq(s.cs, modes[i].cs);
		expect_eq(s.ss, modes[i].ss);
		expect_eq(s.rsp, rsp);
		expect_eq(s.rflags & ~RFLAGS_RF,
			  RFLAGS_1 | RFLAGS_CF | RFLAGS_OF | RFLAGS_ID | RFLAGS_DF);
	}
}

/* Faults save RF set, so that a breakpoint on the instruction does not hit again; traps do not. */
static void resume_flag(void)
{
	struct state s = run(USER64, ud2);

	expect_eq(s.rflags & RFLAGS_RF, RFLAGS_RF);
	s = run(KERNEL64, breakpoint);
	expect_eq(s.rflags & RFLAGS_RF, 0);
}

CODE_AT(int_50, "", "int $0x50", "nop");

static void software_interrupt(void)
{
	struct state s = run(USER64, int_50);

	expect_trap(&s, VEC_GP, IDT_ERROR(0x50), int_50_at);
	s = run(USER64, breakpoint);
	expect_trap(&s, VEC_GP, IDT_ERROR(VEC_BP), breakpoint_at);
	s = run(KERNEL64, int_50);
	expect_trap(&s, 0x50, 0, int_50_next);
	idt_set(0x50, (u64)(trap_stubs + 16 * 0x50), KCODE64, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, 0x50, 0, int_50_next);
	s = run(USER32, int_50);
	expect_trap(&s, 0x50, 0, int_50_next);
}

static void bad_gates(void)
{
	u64 stub = (u64)(trap_stubs + 16 * 0x50);
	struct state s;

	idt_set(0x50, stub, KCODE64, 0x6e, 0); /* not present */
	s = run(USER64, int_50);
	expect_trap(&s, VEC_NP, IDT_ERROR(0x50), int_50_at);
	idt_set(0x50, stub, KCODE64, 0x0e, 0); /* not present, DPL 0: privilege comes first */
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, IDT_ERROR(0x50), int_50_at);
	idt_set(0x50, stub, 0, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, 0, int_50_at);
	idt_set(0x50, stub, KDATA, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, KDATA, int_50_at);
	idt_set(0x50, stub, KCODE32, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, KCODE32, int_50_at);
	idt_set(0x50, stub, GDT_ENTRIES * 8, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, GDT_ENTRIES * 8, int_50_at);
	for (u8 type = 0; type < 14; type++) {
		idt_set(0x50, stub, KCODE64, 0xe0 | type, 0);
		s = run(USER64, int_50);
		expect_trap(&s, VEC_GP, IDT_ERROR(0x50), int_50_at);
	}
	gdt_set(TEST_SELECTOR, descriptor(0, 0xfffff, 0x1b, 0xa));
	idt_set(0x50, stub, TEST_SELECTOR, 0xee, 0);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_NP, TEST_SELECTOR, int_50_at);
	idt_load_limit(0x50 * 16 + 14);
	s = run(USER64, int_50);
	expect_trap(&s, VEC_GP, IDT_ERROR(0x50), int_50_at);
}

/* Code of lower privilege than the interrupted cannot be a handler. */
static void gate_to_user_code(void)
{
	struct state s;

	idt_set(0x50, (u64)(trap_stubs + 16 * 0x50), UCODE64, 0xee, 0);
	s = run(KERNEL64, int_50);
	expect_trap(&s, VEC_GP, UCODE64 & ~3, int_50_at);
}

static u64 flags_in_handler;
static u16 ss_in_handler;

static bool note_flags(struct state *s)
{
	(void)s;
	flags_in_handler = read_flags();
	__asm__ volatile("mov %%ss, %0" : "=r"(ss_in_handler));
	return false;
}

static void gate_types(void)
{
	u64 stub = (u64)(trap_stubs + 16 * 0x50);
	u64 set = RFLAGS_IF | RFLAGS_NT | RFLAGS_CF;
	struct state s;

	trap_hook = note_flags;
	for (int is_trap = 0; is_trap < 2; is_trap++) {
		idt_set(0x50, stub, KCODE64, is_trap ? 0xef : 0xee, 0);
		s = state_for(USER64, int_50);
		s.rflags |= set;
		/* IRET with NT set is #GP in 64-bit mode, so the code sets it itself. */
		s.rflags &= ~RFLAGS_NT;
		exec(&s);
		expect_trap(&s, 0x50, 0, int_50_next);
		expect_eq(s.rflags & RFLAGS_IF, RFLAGS_IF);
		expect_eq(flags_in_handler & RFLAGS_IF, is_trap ? RFLAGS_IF : 0);
		expect_eq(flags_in_handler & (RFLAGS_NT | RFLAGS_TF), 0);
	}
}

CODE_AT(set_nt, "pushf; orl $0x4000, (%rsp); popf", "ud2", "");

static void nested_task_cleared(void)
{
	struct state s;

	trap_hook = note_flags;
	s = run(USER64, set_nt);
	expect_trap(&s, VEC_UD, 0, set_nt_at);
	expect_eq(s.rflags & RFLAGS_NT, RFLAGS_NT);
	expect_eq(flags_in_handler & RFLAGS_NT, 0);
}

/* Without IST: RSP is aligned down to 16 bytes first; from ring 3 the stack comes from the TSS. */
static void stack_of_handler(void)
{
	u64 stub = (u64)(trap_stubs + 16 * VEC_UD);
	struct state s;

	trap_hook = note_flags;
	idt_set(VEC_UD, stub, KCODE64, 0x8e, 0);
	s = state_for(KERNEL64, ud2);
	s.rsp -= 21;
	exec(&s);
	expect_trap(&s, VEC_UD, 0, ud2_at);
	expect_eq(s.frame, (s.rsp & ~15ull) - 40);
	expect_eq(ss_in_handler, KDATA);

	s = run(USER64, ud2);
	expect_eq(s.frame, tss.rsp[0] - 40);
	expect_eq(ss_in_handler, 0);

	tss.rsp[0] -= 9;
	s = run(USER64, ud2);
	expect_eq(s.frame, (tss.rsp[0] & ~15ull) - 40);

	tss.ist[6] = (u64)(kernel_stack + 4096 + 3);
	idt_set(VEC_UD, stub, KCODE64, 0x8e, 7);
	s = run(KERNEL64, ud2);
	expect_eq(s.frame, (u64)(kernel_stack + 4096) - 40);
	s = run(USER32, ud2);
	expect_eq(s.frame, (u64)(kernel_stack + 4096) - 40);
}

CODE_AT(load_noncanonical, "mov $1, %rax; shl $63, %rax", "mov (%rax), %ebx", "");
CODE_AT(store_noncanonical, "mov $1, %rax; shl $47, %rax", "mov %ebx, (%rax)", "");
CODE_AT(push_noncanonical, "mov $1, %rsp; shl $60, %rsp", "push %rax", "");
CODE_AT(stack_noncanonical, "mov $1, %rbp; shl $60, %rbp", "mov 8(%rbp), %eax", "");
CODE_AT(stack_overridden, "mov $1, %rbp; shl $60, %rbp", "mov %ds:8(%rbp), %eax", "");
CODE_AT(straddle_canonical, "mov $1, %rax; shl $47, %rax", "mov -4(%rax), %rbx", "");
CODE_AT(jump_noncanonical, "mov $1, %rax; shl $47, %rax", "jmp *%rax", "");
CODE_AT(call_noncanonical, "mov $1, %rax; shl $50, %rax; mov %rsp, %rbx", "call *%rax", "");
CODE_AT(ret_noncanonical, "mov $1, %rax; shl $50, %rax; push %rax; mov %rsp, %rbx", "ret", "");

static void noncanonical_data(void)
{
	struct state s = run(KERNEL64, load_noncanonical);

	expect_trap(&s, VEC_GP, 0, load_noncanonical_at);
	s = run(USER64, store_noncanonical);
	expect_trap(&s, VEC_GP, 0, store_noncanonical_at);
	s = run(USER64, stack_overridden);
	check(s.vector == VEC_SS || s.vector == VEC_GP, "vector %d", (int)s.vector);
}

static void noncanonical_stack(void)
{
	struct state s = run(KERNEL64, push_noncanonical);

	expect_trap(&s, VEC_SS, 0, push_noncanonical_at);
	expect_eq(s.rsp, 1ull << 60);
	s = run(USER64, stack_noncanonical);
	expect_trap(&s, VEC_SS, 0, stack_noncanonical_at);
}

/* The last bytes below the hole of the address space and the first in it, in one access. */
static void noncanonical_straddle(void)
{
	struct state s;

	page_map(0x7ffffffff000, (u64)page_alloc(), PTE_P | PTE_W | PTE_U);
	s = run(USER64, straddle_canonical);
	expect_trap(&s, VEC_GP, 0, straddle_canonical_at);
}

/* Near branches check their target before they commit: RSP and memory stay as they were. */
static void noncanonical_branch(void)
{
	struct state s = run(USER64, jump_noncanonical);

	expect_trap(&s, VEC_GP, 0, jump_noncanonical_at);
	s = run(USER64, call_noncanonical);
	expect_trap(&s, VEC_GP, 0, call_noncanonical_at);
	expect_eq(s.rsp, s.rbx);
	s = run(USER64, ret_noncanonical);
	expect_trap(&s, VEC_GP, 0, ret_noncanonical_at);
	expect_eq(s.rsp, s.rbx);
}

CODE_AT(cause_gp, "", "mov (%rax), %eax", "");
CODE_AT(cause_pf, "", "mov (%rax), %eax", "");

static struct state fault_with(u64 address)
{
	struct state s = state_for(KERNEL64, cause_gp);

	s.rax = address;
	exec(&s);
	return s;
}

/* SDM table 6-5: benign, contributory and page-fault classes. */
static void double_fault(void)
{
	u64 noncanonical = 1ull << 63;
	struct state s;

	idt_set(VEC_GP, (u64)(trap_stubs + 16 * VEC_GP), KCODE64, 0x0e, 1);
	s = fault_with(noncanonical); /* #GP, then #NP */
	expect_trap(&s, VEC_DF, 0, cause_gp_at);
	idt_set(VEC_DE, (u64)(trap_stubs + 16 * VEC_DE), KCODE64, 0x0e, 1);
	s = run(KERNEL64, div_zero); /* #DE, then #NP */
	expect_trap(&s, VEC_DF, 0, div_zero_at);
	idt_set(VEC_PF, (u64)(trap_stubs + 16 * VEC_PF), KCODE64, 0x0e, 1);
	s = fault_with(TEST_AREA); /* #PF, then #NP */
	expect_trap(&s, VEC_DF, 0, cause_gp_at);
	expect_eq(s.cr2, TEST_AREA);
	idt_set(VEC_UD, (u64)(trap_stubs + 16 * VEC_UD), KCODE64, 0x0e, 1);
	/* Benign first: one after the other. Processors differ in whether EXT is set for this. */
	s = run(KERNEL64, ud2);
	s.error &= ~EXT;
	expect_trap(&s, VEC_NP, IDT_ERROR(VEC_UD), ud2_at);
}

/* #PF while the frame of #PF is pushed. */
static void double_fault_on_stack(void)
{
	struct state s;

	idt_set(VEC_PF, (u64)(trap_stubs + 16 * VEC_PF), KCODE64, 0x8e, 0);
	s = state_for(KERNEL64, cause_pf);
	s.rax = TEST_AREA;
	s.rsp = TEST_AREA + 0x8000;
	exec(&s);
	expect_trap(&s, VEC_DF, 0, cause_pf_at);
	/* In which order the frame's words are written is the processor's business. */
	expect_eq(s.cr2 >> 12, (TEST_AREA + 0x7000) >> 12);
}

/* A contributory exception followed by #PF is not a double fault. */
static void page_fault_on_stack(void)
{
	struct state s;

	idt_set(VEC_GP, (u64)(trap_stubs + 16 * VEC_GP), KCODE64, 0x8e, 0);
	s = state_for(KERNEL64, cause_gp);
	s.rax = 1ull << 63;
	s.rsp = TEST_AREA + 0x8000;
	exec(&s);
	expect_trap(&s, VEC_PF, PF_W, cause_gp_at);
	expect_eq(s.cr2 >> 12, (TEST_AREA + 0x7000) >> 12);
	expect_eq(s.rsp, TEST_AREA + 0x8000);
}

/* A frame that crosses into an unmapped page must fault, not be cut. */
static void frame_across_pages(void)
{
	struct state s;

	page_map(TEST_AREA + 0x1000, (u64)page_alloc(), PTE_P | PTE_W);
	idt_set(VEC_UD, (u64)(trap_stubs + 16 * VEC_UD), KCODE64, 0x8e, 0);
	s = state_for(KERNEL64, ud2);
	s.rsp = TEST_AREA + 0x1010;
	exec(&s);
	expect_trap(&s, VEC_PF, PF_W, ud2_at);
	expect_eq(s.rsp, TEST_AREA + 0x1010);
}

const struct test tests[] = {
	{"#DE: quotient and operands", "SDM vol. 3, 6.15 interrupt 0", divide_errors, NULL},
	{"#BP and #OF are traps", "SDM vol. 3, 6.15 interrupts 3 and 4", traps, NULL},
	{"#BR from BOUND", "SDM vol. 2, BOUND", bound, NULL},
	{"#UD: undefined in every mode", "SDM vol. 2, app. A", undefined,
	 "decodes the reserved register forms of some groups"},
	{"#UD: removed from 64-bit mode", "SDM vol. 2, app. A", undefined_in_64bit, NULL},
	{"#UD: LOCK where it does not belong", "SDM vol. 2, LOCK", undefined_lock,
	 "ignores LOCK on some instructions"},
	{"#NM: CR0.TS, EM, MP", "SDM vol. 3, table 2-2 and 13.1", not_available, NULL},
	{"CLTS", "SDM vol. 2, CLTS", clear_task_switched, NULL},
	{"#MF at the next waiting instruction", "SDM vol. 1, 8.7", x87_exception,
	 "looks for pending x87 exceptions at FWAIT only"},
	{"#XM, or #UD without OSXMMEXCPT", "SDM vol. 1, 11.5", simd_exception,
	 "raises no unmasked SSE exceptions"},
	{"#AC in ring 3 only", "SDM vol. 3, 6.15 interrupt 17", alignment_check,
	 "has no alignment check"},
	{"#GP: aligned vector accesses", "SDM vol. 1, 11.3", unaligned_vectors,
	 "does not check the alignment of vectors"},
	{"Saved CS, SS, RSP and RFLAGS", "SDM vol. 3, 6.14.2", saved_state, NULL},
	{"Faults save RF, traps do not", "SDM vol. 3, 17.3.1.1", resume_flag,
	 "does not set RF in the saved image"},
	{"INT n checks the gate's DPL", "SDM vol. 3, 6.12.1.2", software_interrupt,
	 "counts 16 bytes per gate in the error code"},
	{"Bad gates and their error codes", "SDM vol. 3, 6.13", bad_gates,
	 "counts 16 bytes per gate in the error code"},
	{"A gate cannot lead to lower privilege", "SDM vol. 3, 6.12.1.1", gate_to_user_code, NULL},
	{"Interrupt and trap gates", "SDM vol. 3, 6.12.1.3", gate_types, NULL},
	{"NT is cleared in the handler", "SDM vol. 3, 6.12.1.3", nested_task_cleared, NULL},
	{"Stacks: alignment, TSS, IST, null SS", "SDM vol. 3, 6.14.2 to 6.14.5", stack_of_handler,
	 NULL},
	{"#GP: non-canonical data", "SDM vol. 1, 3.3.7.1", noncanonical_data, NULL},
	{"#SS: non-canonical stack", "SDM vol. 1, 3.3.7.1", noncanonical_stack,
	 "raises #GP for the stack too"},
	{"#GP: access into the address hole", "SDM vol. 1, 3.3.7.1", noncanonical_straddle, NULL},
	{"#GP: branch to a non-canonical address", "SDM vol. 2, JMP, CALL, RET",
	 noncanonical_branch, "faults at the target, after the branch"},
	{"#DF classes", "SDM vol. 3, table 6-5", double_fault,
	 "counts 16 bytes per gate in the error code"},
	{"#DF: #PF while #PF is delivered", "SDM vol. 3, table 6-5", double_fault_on_stack, NULL},
	{"#PF while #GP is delivered", "SDM vol. 3, table 6-5", page_fault_on_stack, NULL},
	{"#PF in the middle of a frame", "SDM vol. 3, 6.14", frame_across_pages, NULL},
	{NULL},
};
