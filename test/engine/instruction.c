/*
 * Corner cases of ordinary instructions and of control flow in 64-, 32- and 16-bit code.
 */
#include "guest.h"

#define PRESENT (PTE_P | PTE_W | PTE_U)

CODE(push_rsp, "mov %rsp, %rbx; push %rsp; mov (%rsp), %rax; lea 8(%rsp), %rcx");
CODE(pop_rsp, "push $0; lea -64(%rsp), %rax; push %rax; pop %rsp; mov %rsp, %rbx");
CODE(pop_memory, "mov %rsp, %rbp; push $0; push $0x1234; popq (%rsp); pop %rax; sub %rsp, %rbp");
CODE(push_memory, "push $0x7777; pushq (%rsp); pop %rax; pop %rbx");
CODE(push_sizes, "mov %rsp, %rbp; push $-1; pop %rax; pushw $0x1234; sub %rsp, %rbp;"
		 "popw %bx; push $0x7fffffff; pop %rcx; push $-0x80000000; pop %rdx");

static void push_pop(void)
{
	struct state s = run(USER64, push_rsp);

	expect_done(&s, push_rsp);
	expect_eq(s.rax, s.rbx); /* the value before the push */
	expect_eq(s.rcx, s.rbx);
	s = run(USER64, pop_rsp);
	expect_done(&s, pop_rsp);
	expect_eq(s.rbx, s.rax);
	s = run(USER64, pop_memory); /* the address is computed with RSP after the pop */
	expect_done(&s, pop_memory);
	expect_eq(s.rax, 0x1234);
	expect_eq(s.rbp, 0);
	s = run(USER64, push_memory);
	expect_eq(s.rax, 0x7777);
	expect_eq(s.rbx, 0x7777);
	s = run(USER64, push_sizes);
	expect_done(&s, push_sizes);
	expect_eq(s.rax, ~0ull);
	expect_eq(s.rbp, 2);
	expect_eq(s.rbx & 0xffff, 0x1234);
	expect_eq(s.rcx, 0x7fffffff);
	expect_eq(s.rdx, 0xffffffff80000000);
}

CODE(pusha_popa, ".code32\n mov $1, %eax; mov $2, %ecx; mov $3, %edx; mov $4, %ebx; mov %esp, "
		 "%edi; mov $5, %ebp;"
		 "mov $6, %esi; pusha; mov 12(%esp), %eax; sub %edi, %eax; movl $0xbad, 12(%esp); "
		 "xor %ecx, %ecx;"
		 "mov %eax, 28(%esp); popa; sub %esp, %edi");

static void push_all(void)
{
	struct state s = run(USER32, pusha_popa);

	expect_done(&s, pusha_popa);
	expect_eq(s.rax, 0); /* the image of ESP is that before PUSHA */
	expect_eq(s.rcx, 2);
	expect_eq(s.rsi, 6);
	expect_eq(s.rdi, 0); /* POPA ignores it */
}

CODE(enter_0,
     "mov $0x5555, %ebp; mov %rsp, %rax; enter $32, $0; mov %rsp, %rcx; mov %rbp, %rdx; leave");
CODE(enter_3,
     "mov %rsp, %rax; sub $64, %rsp; lea 48(%rsp), %rbp; movq $0x11, -8(%rbp); movq $0x22, "
     "-16(%rbp);"
     "mov %rsp, %rbx; enter $16, $3; mov %rsp, %rcx; mov -8(%rbp), %r8; mov -16(%rbp), %r9;"
     "mov -24(%rbp), %r10; mov %rbp, %rdx");

static void enter_leave(void)
{
	struct state s = run(USER64, enter_0);

	expect_done(&s, enter_0);
	expect_eq(s.rdx, s.rax - 8);
	expect_eq(s.rcx, s.rax - 40);
	expect_eq(s.rsp, s.rax);
	expect_eq(s.rbp, 0x5555);
	s = run(USER64, enter_3);
	expect_done(&s, enter_3);
	expect_eq(s.rdx, s.rbx - 8);
	expect_eq(s.r8, 0x11);
	expect_eq(s.r9, 0x22);
	expect_eq(s.r10, s.rdx);
	expect_eq(s.rcx, s.rbx - 8 - 24 - 16);
}

CODE_AT(leave_fault, "mov %rax, %rbp; mov %rsp, %rbx", "leave", "");
CODE_AT(pop_fault, "mov %rax, %rsp; mov $7, %ecx", "pop %rcx", "");
CODE_AT(ret_fault, "mov %rax, %rsp", "ret", "");

/* A stack access that faults leaves RSP and RBP as they were. */
static void stack_faults(void)
{
	static const u8 *const code[][2] = {{leave_fault, leave_fault_at},
					    {pop_fault, pop_fault_at},
					    {ret_fault, ret_fault_at}};

	for (u32 i = 0; i < ARRAY_SIZE(code); i++) {
		struct state s = state_for(USER64, code[i][0]);

		s.rax = TEST_AREA;
		exec(&s);
		expect_trap(&s, VEC_PF, PF_U, code[i][1]);
		expect_eq(s.rsp, i ? TEST_AREA : s.rbx);
		if (!i)
			expect_eq(s.rbp, TEST_AREA);
		if (i == 1)
			expect_eq(s.rcx, 7);
	}
}

CODE(xlat, "lea 1f(%rip), %rbx; mov $0x7702, %eax; xlatb; jmp 2f; 1: .byte 10, 11, 12, 13; 2: nop");
CODE(flags_byte, "mov $0xffff, %eax; sahf; lahf; mov %eax, %ebx; xor %ah, %ah; sahf; lahf");

static void byte_table(void)
{
	struct state s = run(USER64, xlat);

	expect_done(&s, xlat);
	expect_eq(s.rax, 0x770c);
	s = run(USER64, flags_byte);
	expect_done(&s, flags_byte);
	expect_eq(s.rbx, 0xd7ff);
	expect_eq(s.rax, 0x02ff);
}

/* The length limit of 15 bytes. */
static void length(void)
{
	static u8 code[32];

	for (u32 prefixes = 12; prefixes < 18; prefixes++) {
		struct state s;

		memset(code, 0x66, sizeof(code));
		code[prefixes] = 0x90;
		code[prefixes + 1] = 0xcd;
		code[prefixes + 2] = VEC_DONE;
		s = run(USER64, code);
		if (prefixes <= 14)
			check(s.vector == VEC_DONE, "%d prefixes: vector %d", (int)prefixes,
			      (int)s.vector);
		else
			check(s.vector == VEC_GP && s.error == 0 && s.rip == user(code),
			      "%d prefixes: vector %d", (int)prefixes, (int)s.vector);
	}
	/* A real instruction of 15 bytes: lock addq $imm32, %ds:disp32(%esp) */
	{
		static const u8 longest[] = {0x67, 0xf0, 0x3e, 0x48, 0x81,    0x84,
					     0xc4, 0x00, 0x00, 0x00, 0x00,    0x44,
					     0x33, 0x22, 0x11, 0xcd, VEC_DONE};
		struct state s = state_for(USER64, NULL);
		u64 *slot = (u64 *)(user_stack + 1024);

		memcpy(code, longest, sizeof(longest));
		*slot = 1;
		s.rip = user(code);
		s.rsp = user(slot);
		exec(&s);
		check(s.vector == VEC_DONE, "15 bytes: vector %d error 0x%lx", (int)s.vector,
		      s.error);
		expect_eq(*(volatile u64 *)slot, 0x11223345);
	}
}

/* Fifteen bytes that end exactly where the mapped memory ends: nothing beyond is touched. */
static void end_of_page(void)
{
	u8 *page = page_alloc();
	struct state s = state_for(USER64, NULL);

	page_map(TEST_AREA, (u64)page, PRESENT);
	memset(page + PAGE_SIZE - 8, 0x90, 8);
	page[PAGE_SIZE - 2] = 0xcd;
	page[PAGE_SIZE - 1] = VEC_DONE;
	s.rip = TEST_AREA + PAGE_SIZE - 8;
	exec(&s);
	check(s.vector == VEC_DONE && s.rip == TEST_AREA + PAGE_SIZE, "vector %d at 0x%lx",
	      (int)s.vector, s.rip);
	page[PAGE_SIZE - 2] = 0x90;
	page[PAGE_SIZE - 1] = 0x90;
	s = state_for(USER64, NULL);
	s.rip = TEST_AREA + PAGE_SIZE - 8;
	exec(&s);
	check(s.vector == VEC_PF && s.rip == TEST_AREA + PAGE_SIZE &&
		      s.cr2 == TEST_AREA + PAGE_SIZE,
	      "vector %d at 0x%lx", (int)s.vector, s.rip);
}

CODE_AT(cx16, "", "lock cmpxchg16b (%rdi)", "setz %sil");
CODE_AT(cx8, "", "lock cmpxchg8b (%rdi)", "setz %sil");

static void compare_exchange(void)
{
	static u64 pair[4] __attribute__((aligned(32)));
	struct state s = state_for(USER64, cx16);

	pair[0] = 1;
	pair[1] = 2;
	s.rdi = user(pair);
	s.rax = 1;
	s.rdx = 2;
	s.rbx = 3;
	s.rcx = 4;
	exec(&s);
	expect_done(&s, cx16);
	expect_eq(s.rsi, 1);
	expect_eq(*(volatile u64 *)&pair[0], 3);
	expect_eq(*(volatile u64 *)&pair[1], 4);
	s.rip = user(cx16);
	s.rsi = 0;
	exec(&s);
	expect_eq(s.rsi, 0);
	expect_eq(s.rax, 3);
	expect_eq(s.rdx, 4);
	s = state_for(USER64, cx16);
	s.rdi = user(pair) + 8;
	exec(&s);
	expect_trap(&s, VEC_GP, 0, cx16_at);
	/* The 8-byte form has no such rule, and its registers are 32 bits wide. */
	s = state_for(USER64, cx8);
	pair[0] = 0x2222222211111111;
	s.rdi = user(pair);
	s.rax = 0xffffffff11111111;
	s.rdx = 0xffffffff22222222;
	s.rbx = 5;
	s.rcx = 6;
	exec(&s);
	expect_done(&s, cx8);
	expect_eq(*(volatile u64 *)&pair[0], 0x600000005);
	expect_eq(s.rax, 0xffffffff11111111);
	s = state_for(USER64, cx8);
	s.rdi = user(pair) + 3;
	exec(&s);
	expect_done(&s, cx8);
}

CODE(zero_extend,
     "mov $-1, %rax; mov $-1, %rbx; mov $-1, %rcx; mov $-1, %rdx; mov %eax, %eax; add $1, %bx;"
     "xor %ch, %ch; mov $1, %esi; cmove %esi, %edx; mov $-1, %rdi; xor %esi, %esi; bsf %esi, %edi");

static void upper_halves(void)
{
	struct state s = run(USER64, zero_extend);

	expect_done(&s, zero_extend);
	expect_eq(s.rax, 0xffffffff);
	expect_eq(s.rbx, 0xffffffffffff0000);
	expect_eq(s.rcx, 0xffffffffffff00ff);
	/* CMOV with 32 bits clears the upper half whether it moves or not (ZF is set by XOR %ch).
	 */
	expect_eq(s.rdx >> 32, 0);
}

/* 90 is NOP, not XCHG EAX,EAX; 87 C0 clears the upper half; 41 90 exchanges with R8. */
static void exchange_self(void)
{
	struct state s = state_for(USER64, NULL);
	static u8 code[] = {0x48, 0xc7, 0xc0, 0xff,    0xff, 0xff, 0xff, /* mov $-1, %rax */
			    0x90, 0x48, 0x89, 0xc3,                      /* nop; mov %rax, %rbx */
			    0x87, 0xc0, 0x49, 0xc7,    0xc0, 5,    0,
			    0,    0, /* xchg; mov $5, %r8 */
			    0x41, 0x90, 0xcd, VEC_DONE};

	s.rip = user(code);
	exec(&s);
	expect_eq(s.vector, VEC_DONE);
	expect_eq(s.rbx, ~0ull);
	expect_eq(s.rax, 5);
	expect_eq(s.r8, 0xffffffff);
}

CODE(high_bytes, "mov $0x1234, %eax; mov $0x5678, %ebx; mov %ah, %bl; mov %bh, %al; add %ah, %bh; "
		 "mov %spl, %cl;"
		 "mov %rsp, %rdx; sub %dl, %cl; mov $0x9a, %sil; mov %sil, %dil; movzbl %ah, %ebp");

static void byte_registers(void)
{
	struct state s = run(USER64, high_bytes);

	expect_done(&s, high_bytes);
	expect_eq(s.rax, 0x1256);
	expect_eq(s.rbx, 0x6812);
	expect_eq(s.rcx & 0xff, 0);
	expect_eq(s.rdi, 0x9a);
	expect_eq(s.rbp, 0x12);
}

CODE(rip_relative,
     "mov 1f(%rip), %rax; lea 1f(%rip), %rbx; addl $0x11, 1f(%rip); cmpb $0x99, 1f(%rip);"
     "setz %cl; mov 1f(%eip), %rdx; jmp 2f; 1: .quad 0x1122334455667788; 2: subl $0x11, 1b(%rip)");

static void rip_addressing(void)
{
	struct state s = run(USER64, rip_relative);

	expect_done(&s, rip_relative);
	expect_eq(s.rax, 0x1122334455667788);
	expect_eq(s.rcx & 0xff, 1);
	expect_eq(s.rdx, 0x1122334455667799);
}

CODE(address_32, "lea 8(%eax), %rbx; mov (%edi), %rcx; lea (%eax,%eax,4), %rdx; mov %rsi, 8(%edi);"
		 "lea -1(%r8d), %r9");

static void address_size(void)
{
	struct state s = state_for(USER64, address_32);
	u64 *slot = (u64 *)(user_stack + 512);

	slot[0] = 0xfeedface;
	s.rax = 0x1fffffffc;
	s.rdi = user(slot) | 0xdead00000000;
	s.rsi = 0x5151;
	exec(&s);
	expect_done(&s, address_32);
	expect_eq(s.rbx, 4);
	expect_eq(s.rcx, 0xfeedface);
	expect_eq(s.rdx, 0xffffffec);
	expect_eq(*(volatile u64 *)&slot[1], 0x5151);
	expect_eq(s.r9, 0xffffffff);
}

CODE(absolute, "movabs (0x80000123), %al; movabs %al, (0x80000456); .byte 0x67, 0xa0; .long "
	       "0x80000456; mov 0x123(%rdi), %bl;"
	       "movabs 0x80000123, %rax");

static void absolute_address(void)
{
	u8 *page = page_alloc();
	struct state s = state_for(USER64, absolute);

	page_map(TEST_AREA, (u64)page, PRESENT);
	page[0x123] = 0x42;
	s.rdi = TEST_AREA;
	exec(&s);
	expect_done(&s, absolute);
	expect_eq(page[0x456], 0x42);
	expect_eq(s.rax, 0x42);
}

/* BT with a register offset reaches beyond its operand; a negative one before it. */
CODE(bit_string, "mov $100, %eax; bts %rax, (%rdi); setc %bl; bts %rax, (%rdi); setc %bh; mov $-1, "
		 "%rax; btc %rax, (%rdi);"
		 "mov $-33, %eax; btr %eax, (%rdi); setc %cl; btl $100, (%rdi); mov $17, %eax; bts "
		 "%ax, (%rdi)");

static void bit_strings(void)
{
	static u64 bits[8];
	struct state s = state_for(USER64, bit_string);

	memset(bits, 0, sizeof(bits));
	bits[2] = 1ull << 63 >> 32;
	bits[2] |= 1ull << 30 | 1ull << 31;
	s.rdi = user(&bits[3]);
	exec(&s);
	check(s.vector == VEC_DONE, "vector %d cr2 0x%lx", (int)s.vector, s.cr2);
	expect_eq(s.rbx & 0xffff, 0x0100);
	expect_eq(bits[4], 1ull << 36);
	/* -1: bit 63 of the quadword before; -33: bit 31 of the word that lies 8 bytes before. */
	expect_eq(bits[2], 1ull << 63 | 1ull << 30);
	expect_eq(s.rcx & 1, 1);
	expect_eq(bits[3], 1ull << 17);
}

CODE(fib, "mov $20, %edi; call 1f; jmp 2f;"
	  "1: cmp $2, %edi; jae 3f; mov %edi, %eax; ret; 3: push %rdi; dec %edi; call 1b; pop "
	  "%rdi; push %rax;"
	  "sub $2, %edi; call 1b; pop %rcx; add %ecx, %eax; ret; 2: nop");
CODE(deep, "mov %rsp, %rbx; mov $100000, %ecx; call 1f; jmp 2f; 1: dec %ecx; jz 3f; call 1b; inc "
	   "%eax; 3: ret;"
	   "2: sub %rsp, %rbx");

static void calls(void)
{
	u8 *stack = pages_alloc(256, PAGE_SIZE);
	struct state s = run(USER64, fib);

	expect_done(&s, fib);
	expect_eq(s.rax, 6765);
	s = run(USER32, fib); /* the same bytes are good 32-bit code */
	check(s.vector == VEC_DONE || s.vector == VEC_PF || s.vector == VEC_UD ||
		      s.vector == VEC_GP,
	      "vector %d", (int)s.vector);
	s = state_for(USER64, deep);
	s.rsp = user(stack + 256 * PAGE_SIZE);
	exec(&s);
	expect_done(&s, deep);
	expect_eq(s.rax, 99999);
	expect_eq(s.rbx, 0);
}

/* Returns that no call belongs to, calls that never return, stacks exchanged under way. */
CODE(unbalanced, "mov %rsp, %rbp; xor %eax, %eax; mov $1000, %ecx;"
		 "1: lea 2f(%rip), %rdx; push %rdx; ret; 2: call 3f; ud2; 3: inc %eax; dec %ecx; "
		 "jnz 1b; mov %rbp, %rsp");
CODE(changed_return,
     "xor %eax, %eax; mov $500, %ecx; 1: call 2f; ud2; 3: inc %eax; dec %ecx; jnz 1b; jmp 4f;"
     "2: lea 3b(%rip), %rdx; mov %rdx, (%rsp); ret; 4: nop");
CODE(long_jump, "mov $300, %r8d; xor %eax, %eax; 1: mov %rsp, %rbx; lea 2f(%rip), %r9; mov $50, "
		"%ecx; call 3f; ud2;"
		"3: dec %ecx; jz 4f; call 3b; ud2; 4: mov %rbx, %rsp; jmp *%r9; 2: inc %eax; dec "
		"%r8d; jnz 1b");
CODE(two_stacks, "mov %rsp, %rbx; lea -2048(%rsp), %rbp; lea 5f(%rip), %rax; sub $8, %rbp; mov "
		 "%rax, (%rbp); mov $1000, %ecx;"
		 "xor %esi, %esi; xor %edi, %edi; 1: inc %esi; call 2f; dec %ecx; jnz 1b; jmp 6f;"
		 "2: xchg %rsp, %rbp; ret; 5: inc %edi; call 2b; jmp 5b; 6: nop");

static void unpaired(void)
{
	struct state s = run(USER64, unbalanced);

	expect_done(&s, unbalanced);
	expect_eq(s.rax, 1000);
	s = run(USER64, changed_return);
	expect_done(&s, changed_return);
	expect_eq(s.rax, 500);
	s = run(USER64, long_jump);
	expect_done(&s, long_jump);
	expect_eq(s.rax, 300);
	s = run(USER64, two_stacks); /* two coroutines that return to each other */
	expect_done(&s, two_stacks);
	expect_eq(s.rsi, 1000);
	expect_eq(s.rdi, 1000);
}

CODE(ret_imm, "mov %rsp, %rbx; push $1; push $2; call 1f; jmp 2f; 1: ret $16; 2: sub %rsp, %rbx; "
	      "mov %rsp, %rbp;"
	      "sub $0x4000, %rsp; call 3f; jmp 4f; 3: ret $0x4000; 4: sub %rsp, %rbp");

static void ret_immediate(void)
{
	struct state s = state_for(USER64, ret_imm);
	u8 *stack = pages_alloc(8, PAGE_SIZE);

	s.rsp = user(stack + 8 * PAGE_SIZE);
	exec(&s);
	expect_done(&s, ret_imm);
	expect_eq(s.rbx, 0);
	expect_eq(s.rbp, 0);
}

/* A switch: a table of relative targets, all of them taken. */
CODE(jump_table,
     "xor %eax, %eax; mov $4000, %ecx; lea 9f(%rip), %rbx;"
     "1: mov %ecx, %edx; and $3, %edx; movslq (%rbx,%rdx,4), %rdx; add %rbx, %rdx; jmp *%rdx;"
     "2: add $1, %eax; jmp 6f; 3: add $10, %eax; jmp 6f; 4: add $100, %eax; jmp 6f; 5: add $1000, "
     "%eax;"
     "6: dec %ecx; jnz 1b; jmp 7f; .balign 4; 9: .long 2b - 9b, 3b - 9b, 4b - 9b, 5b - 9b; 7: nop");

static void computed_jumps(void)
{
	for (int i = 0; i < 2; i++) {
		struct state s = run(i ? USER64 : KERNEL64, jump_table);

		expect_done(&s, jump_table);
		expect_eq(s.rax, 1111000);
	}
}

CODE(loop_forms, "mov $5, %ecx; xor %eax, %eax; 1: inc %eax; loop 1b; mov $5, %ecx; 2: inc %eax; "
		 "cmp $8, %eax; loopne 2b;"
		 "mov %ecx, %ebx; jrcxz 3f; add $100, %eax; 3: mov $1, %rcx; shl $32, %rcx; jecxz "
		 "4f; add $1000, %eax;"
		 "4: jrcxz 5f; add $10000, %eax; 5: nop");
CODE(loop_32_address,
     "mov $1, %rcx; shl $32, %rcx; add $3, %rcx; xor %eax, %eax; 1: inc %eax; addr32 loop 1b");

static void loops(void)
{
	struct state s = run(USER64, loop_forms);

	expect_done(&s, loop_forms);
	expect_eq(s.rax, 8 + 100 + 10000);
	expect_eq(s.rbx, 2);
	s = run(USER64, loop_32_address);
	expect_done(&s, loop_32_address);
	expect_eq(s.rax, 3);
	expect_eq(s.rcx, 0); /* ECX was written, so RCX's upper half is clear */
}

/* All sixteen conditions with all combinations of their flags. */
CODE(conditions,
     "push %rdi; popfq; seto %al; setno %ah; movzwl %ax, %eax; mov %rax, %r8;"
     "push %rdi; popfq; setb %al; setae %ah; movzwl %ax, %eax; shl $1, %rax; or %rax, %r8;"
     "push %rdi; popfq; sete %al; setne %ah; movzwl %ax, %eax; shl $2, %rax; or %rax, %r8;"
     "push %rdi; popfq; setbe %al; seta %ah; movzwl %ax, %eax; shl $3, %rax; or %rax, %r8;"
     "push %rdi; popfq; sets %al; setns %ah; movzwl %ax, %eax; shl $4, %rax; or %rax, %r8;"
     "push %rdi; popfq; setp %al; setnp %ah; movzwl %ax, %eax; shl $5, %rax; or %rax, %r8;"
     "push %rdi; popfq; setl %al; setge %ah; movzwl %ax, %eax; shl $6, %rax; or %rax, %r8;"
     "push %rdi; popfq; setle %al; setg %ah; movzwl %ax, %eax; shl $7, %rax; or %rax, %r8;"
     "xor %r9d, %r9d;"
     "push %rdi; popfq; jo 1f; bts $8, %r9; 1: push %rdi; popfq; jb 1f; bts $9, %r9; 1: push %rdi; "
     "popfq; je 1f; bts $10, %r9;"
     "1: push %rdi; popfq; jbe 1f; bts $11, %r9; 1: push %rdi; popfq; js 1f; bts $12, %r9; 1: push "
     "%rdi; popfq; jp 1f; bts $13, %r9;"
     "1: push %rdi; popfq; jl 1f; bts $14, %r9; 1: push %rdi; popfq; jle 1f; bts $15, %r9; 1: nop");

static void all_conditions(void)
{
	for (u32 i = 0; i < 32; i++) {
		bool c = i & 1, z = i & 2, n = i & 4, o = i & 8, p = i & 16;
		bool truth[8] = {o, c, z, c || z, n, p, n != o, z || n != o};
		struct state s = state_for(USER64, conditions);
		u64 expected = 0;

		s.rdi = RFLAGS_1 | (c ? RFLAGS_CF : 0) | (z ? RFLAGS_ZF : 0) | (n ? RFLAGS_SF : 0) |
			(o ? RFLAGS_OF : 0) | (p ? RFLAGS_PF : 0);
		exec(&s);
		expect_done(&s, conditions);
		for (u32 k = 0; k < 8; k++)
			expected |= truth[k] ? 1ull << k : 1ull << (k + 8);
		expect_eq(s.r8, expected);
		expect_eq(s.r9, expected & 0xff00);
	}
}

/* 32-bit code: what 64-bit mode gave other meanings to. */
CODE(legacy_32, ".code32\n mov $0x1f, %eax; aaa; mov %eax, %ebx; mov $0x9b, %eax; add $0, %al; "
		"daa; mov %eax, %ecx;"
		"mov $0x0207, %eax; aad; mov %eax, %edx; aam; mov %eax, %esi; inc %esi; dec %esi; "
		"push %ds; pop %es;"
		"stc; .byte 0xd6; movzbl %al, %edi");
CODE(les_32, ".code32\n push %ds; push $0x1234; les (%esp), %ebx; lds (%esp), %ecx; lss (%esp), "
	     "%edx; mov %es, %eax");
CODE(arpl_32, ".code32\n mov $0x10, %eax; mov $0x13, %ecx; arpl %cx, %ax; setz %bl; arpl %cx, %ax; "
	      "setz %bh");

static void legacy_instructions(void)
{
	struct state s = run(USER32, legacy_32);

	expect_done(&s, legacy_32);
	expect_eq(s.rbx, 0x105);
	expect_eq(s.rcx & 0xff, 0x01);
	expect_eq(s.rdx, 27);
	expect_eq(s.rsi, 0x207);
	expect_eq(s.rdi, 0xff);
	s = run(USER32, les_32);
	check(s.vector == VEC_DONE, "LES: vector %d error 0x%lx", (int)s.vector, s.error);
	expect_eq(s.rbx, 0x1234);
	expect_eq(s.rcx, 0x1234);
	expect_eq(s.rax, UDATA);
	s = run(USER32, arpl_32);
	expect_done(&s, arpl_32);
	expect_eq(s.rax, 0x13);
	expect_eq(s.rbx & 0xffff, 0x0001);
}

/* 16-bit code in compatibility mode. */
CODE(code_16, ".code16\n mov $0x1234, %ax; push %ax; pop %bx; mov $0xfff0, %si; mov $0x20, %bx; "
	      "lea (%bx,%si), %cx;"
	      "addl $0x10000, %eax; lea 5(%eax), %edx; call 1f; jmp 2f; 1: inc %di; ret; 2: jmp "
	      "3f; ud2; 3: data32 call 4f;"
	      "jmp 5f; 4: data32 ret; 5: nop");

static void sixteen_bit(void)
{
	struct state s = state_for(KERNEL16, code_16);
	u8 *low = (u8 *)(u64)0x700000;

	/* CS begins at the code, so that its offsets fit 16 bits; the stack segment stays flat. */
	gdt_set(TEST_SELECTOR, descriptor((u32)(u64)code_16, 0xffff, 0x9b, 0));
	s.cs = TEST_SELECTOR;
	s.rip = 0;
	s.rsp = (u64)(low + 0x1000);
	exec(&s);
	check(s.vector == VEC_DONE && s.rip == (u64)(code_16_end - code_16) + 2,
	      "vector %d at 0x%lx", (int)s.vector, s.rip);
	expect_eq(s.rcx & 0xffff, 0x10);
	expect_eq(s.rax, 0x11234);
	expect_eq(s.rdx, 0x11239);
	expect_eq(s.rdi, 1);
	expect_eq(s.rsp, (u64)(low + 0x1000));
}

/* A 16-bit stack wraps within its 64 KiB and leaves the upper half of ESP alone. */
CODE(stack_16,
     ".code32\n mov %edi, %esp; push %eax; push %ecx; mov %esp, %ebx; pop %edx; pop %esi");

static void sixteen_bit_stack(void)
{
	u8 *low = (u8 *)(u64)0x710000;
	struct state s = state_for(KERNEL32, stack_16);

	gdt_set(TEST_SELECTOR, descriptor((u32)(u64)low, 0xffff, 0x93, 0));
	s.ss = TEST_SELECTOR;
	/* IRET would load SP alone, with this segment. */
	s.rsp = 4;
	s.rdi = 0x55550004;
	s.rax = 0xaaaaaaaa;
	s.rcx = 0xcccccccc;
	exec(&s);
	expect_done(&s, stack_16);
	expect_eq(s.rbx, 0x5555fffc);
	expect_eq(s.rdx, 0xcccccccc);
	expect_eq(s.rsi, 0xaaaaaaaa);
	expect_eq(*(volatile u32 *)(low + 0xfffc), 0xcccccccc);
	expect_eq(s.rsp, 0x55550004);
}

const struct test tests[] = {
	{"PUSH and POP", "SDM vol. 2, PUSH, POP", push_pop, NULL},
	{"PUSHA and POPA", "SDM vol. 2, PUSHA", push_all, NULL},
	{"ENTER and LEAVE", "SDM vol. 2, ENTER", enter_leave, NULL},
	{"Faults of stack instructions", "SDM vol. 2, LEAVE, POP, RET", stack_faults, NULL},
	{"XLAT, LAHF, SAHF", "SDM vol. 2, XLAT", byte_table, NULL},
	{"Instructions of 15 bytes and more", "SDM vol. 2, 2.3.11", length, NULL},
	{"Code at the end of a page", "SDM vol. 3, 4.6", end_of_page, NULL},
	{"CMPXCHG8B and CMPXCHG16B", "SDM vol. 2, CMPXCHG8B", compare_exchange, NULL},
	{"32-bit results clear upper halves", "SDM vol. 1, 3.4.1.1", upper_halves, NULL},
	{"XCHG with itself and NOP", "SDM vol. 2, NOP", exchange_self, NULL},
	{"Byte registers with and without REX", "SDM vol. 1, 3.4.1.1", byte_registers, NULL},
	{"RIP-relative addresses", "SDM vol. 2, 2.2.1.6", rip_addressing, NULL},
	{"32-bit addresses", "SDM vol. 1, 3.7.5.1", address_size, NULL},
	{"Absolute addresses", "SDM vol. 2, 2.2.1.4", absolute_address, NULL},
	{"Bit strings", "SDM vol. 2, BT", bit_strings, NULL},
	{"Recursion", "SDM vol. 2, CALL, RET", calls, NULL},
	{"Returns that belong to no call", "SDM vol. 2, RET", unpaired, NULL},
	{"RET imm16", "SDM vol. 2, RET", ret_immediate, NULL},
	{"Jump tables", "SDM vol. 2, JMP", computed_jumps, NULL},
	{"LOOP and JCXZ", "SDM vol. 2, LOOP", loops, NULL},
	{"Conditions", "SDM vol. 2, Jcc, SETcc", all_conditions, NULL},
	{"Instructions of 32-bit code only", "SDM vol. 2", legacy_instructions, NULL},
	{"16-bit code", "SDM vol. 1, 3.6", sixteen_bit, NULL},
	{"16-bit stack", "SDM vol. 1, 6.2.3", sixteen_bit_stack, NULL},
	{NULL},
};
