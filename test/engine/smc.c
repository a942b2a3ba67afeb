/*
 * Code that changes: by itself, from next to it, through another address, by every kind of store;
 * and code that is the same bytes in another place or mode.
 */
#include "guest.h"

/* The instruction stored to is the very next one; a jump lies between, or it does not. */
CODE(next_jump, "movl $0x1234, 1f+1(%rip); jmp 1f; 1: mov $0, %eax");
CODE(next_direct, "movl $0x5678, 1f+1(%rip); 1: mov $0, %eax");
CODE(next_later, "movl $0x9abc, 1f+1(%rip); mov $1, %ecx; add %ecx, %ecx; lea (%rcx,%rcx), %edx; "
		 "1: mov $0, %eax");

static void same_block(void)
{
	static const struct {
		const u8 *code;
		u64 value;
	} list[] = {{next_jump, 0x1234}, {next_direct, 0x5678}, {next_later, 0x9abc}};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		for (int k = 0; k < 4; k++) {
			struct state s = run(k & 1 ? USER64 : KERNEL64, list[i].code);

			check(s.vector == VEC_DONE && s.rax == list[i].value,
			      "case %d: vector %d, rax 0x%lx", (int)i, (int)s.vector, s.rax);
		}
	}
}

/* A loop whose body gets a new constant in each turn. */
CODE(loop_patched, "xor %eax, %eax; xor %ebx, %ebx; mov $1000, %ecx;"
		   "1: mov %ecx, 2f+2(%rip); 2: add $0x11111111, %ebx; dec %ecx; jnz 1b");

static void patched_loop(void)
{
	struct state s = run(USER64, loop_patched);

	expect_done(&s, loop_patched);
	expect_eq(s.rbx, 1000 * 1001 / 2);
}

/* The store hits an instruction before itself, which runs again in the next turn. */
CODE(loop_backward,
     "mov $100, %ecx; xor %ebx, %ebx; 1: add $1, %ebx; incb 1b+2(%rip); dec %ecx; jnz 1b");

static void backward(void)
{
	struct state s = run(KERNEL64, loop_backward);

	expect_done(&s, loop_backward);
	/* 1 + 2 + ... + 100: the immediate is a signed byte, still positive. */
	expect_eq(s.rbx, 5050);
	s = run(KERNEL64, loop_backward);
	/* 101 to 127, then -128 to -56. */
	expect_eq((u32)s.rbx, (u32)((101 + 127) * 27 / 2 - (128 + 56) * 73 / 2));
}

/* mov $imm32, %eax; int VEC_DONE */
static void write_function(u8 *at, u32 value)
{
	u8 code[7] = {0xb8, (u8)value, (u8)(value >> 8), (u8)(value >> 16), (u8)(value >> 24),
		      0xcd, VEC_DONE};

	for (u32 i = 0; i < sizeof(code); i++)
		((volatile u8 *)at)[i] = code[i];
}

static u64 call_at(enum exec_mode mode, u64 address)
{
	struct state s = state_for(mode, NULL);

	s.rip = address;
	exec(&s);
	check(s.vector == VEC_DONE, "vector %d error 0x%lx at 0x%lx", (int)s.vector, s.error,
	      s.rip);
	return s.rax;
}

#define PRESENT (PTE_P | PTE_W | PTE_U)

static void through_alias(void)
{
	u8 *page = page_alloc();
	u64 at = TEST_AREA + 0x1000, other = TEST_HIGH + 0x2000;

	page_map(at, (u64)page, PRESENT);
	page_map(other, (u64)page, PRESENT);
	for (u32 i = 1; i < 200; i++) {
		u8 *writer = i % 3 == 0 ? page : (u8 *)(i % 3 == 1 ? other : at);

		write_function(writer + 0x100, i * 0x1001);
		expect_eq(call_at(USER64, at + 0x100), i * 0x1001);
		expect_eq(call_at(KERNEL64, other + 0x100), i * 0x1001);
	}
}

/* Every kind of store reaches code. */
CODE(by_mov, "mov %eax, 1(%rdi)");
CODE(by_movb, "mov %al, 1(%rdi); mov %ah, 2(%rdi); shr $16, %eax; mov %ax, 3(%rdi)");
CODE(by_xchg, "xchg %eax, 1(%rdi)");
CODE(by_lock, "mov 1(%rdi), %ebx; sub %ebx, %eax; lock add %eax, 1(%rdi)");
CODE(by_cmpxchg, "mov %eax, %ecx; mov 1(%rdi), %eax; lock cmpxchg %ecx, 1(%rdi)");
CODE(by_string, "push %rax; mov %rsp, %rsi; inc %rdi; mov $4, %ecx; cld; rep movsb");
CODE(by_stos, "inc %rdi; cld; stosl");
CODE(by_push,
     "movzbl 5(%rdi), %ebx; movb 6(%rdi), %bh; movb $0, %cl; movb 7(%rdi), %cl; movb 8(%rdi), %ch;"
     "lea 9(%rdi), %rsp; shl $32, %rbx; shl $48, %rcx; or %rcx, %rbx; or %rbx, %rax; push %rax");
CODE(by_sse, "movups (%rdi), %xmm0; movd %eax, %xmm1; movss %xmm1, 1(%rdi)");
CODE(by_sse_wide,
     "movups 1(%rdi), %xmm0; movd %eax, %xmm1; movss %xmm1, %xmm0; movups %xmm0, 1(%rdi)");
CODE(by_x87, "push %rax; fildl (%rsp); fistpl 1(%rdi)");
CODE(by_unaligned,
     "lea -7(%rdi), %rsi; mov (%rsi), %rbx; shl $32, %rax; mov 1(%rdi), %ecx; mov %rbx, (%rsi);"
     "shr $32, %rax; mov %eax, 1(%rdi)");
CODE(by_bts,
     "mov $0, %ecx; 1: bt %ecx, %eax; jc 2f; btr %ecx, 1(%rdi); jmp 3f; 2: bts %ecx, 1(%rdi);"
     "3: inc %ecx; cmp $32, %ecx; jb 1b");

static void every_store(void)
{
	static const u8 *const code[] = {
		by_mov,  by_movb, by_xchg,     by_lock, by_cmpxchg,   by_string, by_stos,
		by_push, by_sse,  by_sse_wide, by_x87,  by_unaligned, by_bts,
	};
	u8 *page = page_alloc();
	u64 at = TEST_AREA + 0x4000;

	page_map(at, (u64)page, PRESENT);
	for (u32 i = 0; i < ARRAY_SIZE(code); i++) {
		write_function(page + 0x200, 0x11111111);
		for (u32 k = 0; k < 4; k++) {
			u32 value = 0x10203040 * (k + 1) + i;
			struct state s = state_for(k & 1 ? USER64 : KERNEL64, code[i]);

			s.rdi = at + 0x200;
			s.rax = value;
			exec(&s);
			check(s.vector == VEC_DONE, "store %d: vector %d error 0x%lx", (int)i,
			      (int)s.vector, s.error);
			check(call_at(USER64, at + 0x200) == value,
			      "store %d, turn %d: old code ran", (int)i, (int)k);
		}
	}
}

/* Code across two pages: each half changes in turn. */
static void across_pages(void)
{
	u8 *pages = pages_alloc(2, PAGE_SIZE), *other = page_alloc();
	u64 at = TEST_AREA + 0x10000, start = at + PAGE_SIZE - 3;

	page_map(at, (u64)pages, PRESENT);
	page_map(at + PAGE_SIZE, (u64)pages + PAGE_SIZE, PRESENT);
	write_function(pages + PAGE_SIZE - 3, 0x01020304);
	expect_eq(call_at(USER64, start), 0x01020304);
	*(volatile u8 *)(pages + PAGE_SIZE) = 0x55; /* third byte of the constant */
	expect_eq(call_at(USER64, start), 0x01550304);
	*(volatile u8 *)(pages + PAGE_SIZE - 1) = 0x66; /* second byte */
	expect_eq(call_at(USER64, start), 0x01556604);
	*(volatile u8 *)(pages + PAGE_SIZE + 1) = 0x77;
	expect_eq(call_at(KERNEL64, start), 0x77556604);
	/* The second half comes from another page. */
	memcpy(other, pages + PAGE_SIZE, 16);
	*(volatile u8 *)other = 0x99;
	page_map(at + PAGE_SIZE, (u64)other, PRESENT);
	expect_eq(call_at(USER64, start), 0x77996604);
	page_map(at + PAGE_SIZE, (u64)pages + PAGE_SIZE, PRESENT);
	expect_eq(call_at(USER64, start), 0x77556604);
	/* It goes away altogether. */
	page_map(at + PAGE_SIZE, 0, 0);
	{
		struct state s = state_for(USER64, NULL);

		s.rip = start;
		exec(&s);
		check(s.vector == VEC_PF && s.cr2 == at + PAGE_SIZE, "vector %d", (int)s.vector);
	}
}

/* One virtual address, code from different pages. */
static void remapped(void)
{
	u8 *page[3];
	u64 at = TEST_AREA + 0x20000;

	for (u32 i = 0; i < 3; i++) {
		page[i] = page_alloc();
		write_function(page[i] + 0x10, 0xcafe0 + i);
	}
	for (u32 i = 0; i < 30; i++) {
		page_map(at, (u64)page[i % 3], PRESENT);
		expect_eq(call_at(USER64, at + 0x10), 0xcafe0 + i % 3);
	}
}

/* One page of code at several addresses: everything relative to RIP follows the address. */
CODE(position,
     "lea (%rip), %rax; 1: call 2f; 2: pop %rbx; sub %rax, %rbx; jmp 3f; ud2; 3: mov (%rip), %rcx;"
     "lea 4f(%rip), %rdx; jmp *%rdx; ud2; 4: nop");

static void position_independent(void)
{
	u64 pa = (u64)position & ~0xfffull, offset = (u64)position & 0xfff;
	u64 first = 0;

	for (u64 i = 0; i < 20; i++) {
		u64 at = (i & 1 ? TEST_HIGH : TEST_AREA) + 0x100000 * (1 + i);
		struct state s;

		page_map(at, pa, PRESENT);
		page_map(at + PAGE_SIZE, pa + PAGE_SIZE, PRESENT);
		s = state_for(i & 2 ? USER64 : KERNEL64, NULL);
		s.rip = at + offset;
		exec(&s);
		check(s.vector == VEC_DONE, "vector %d error 0x%lx", (int)s.vector, s.error);
		expect_eq(s.rax, at + offset + 7);
		expect_eq(s.rbx, 5);
		expect_eq(s.rip, at + offset + (u64)(position_end + 2 - position));
		if (!i)
			first = s.rcx;
		expect_eq(s.rcx, first);
	}
}

/* The same bytes mean something else in another mode. */
static const u8 dec_inc[] = {0x48, 0xff, 0xc0, 0xb8, 0x34, 0x12, 0xcd, VEC_DONE, 0xcd, VEC_DONE};

static void other_mode(void)
{
	u8 *page = (u8 *)(u64)0x600000;
	struct state s;

	memcpy(page, dec_inc, sizeof(dec_inc));
	for (int i = 0; i < 5; i++) {
		s = state_for(KERNEL64, page);
		s.rax = 0x1ffffffff;
		exec(&s);
		expect_eq(s.rax, VEC_DONE << 24 | 0xcd1234u); /* inc %rax; mov $0x30cd1234, %eax */
		s = state_for(KERNEL16, page);
		s.rax = 0x10000;
		exec(&s);
		expect_eq(s.rax, 0x11234); /* dec %ax; inc %ax; mov $0x1234, %ax */
		expect_eq(s.rip, (u64)page + 8);
		s = state_for(KERNEL32, page);
		exec(&s);
		expect_eq(s.rax, VEC_DONE << 24 | 0xcd1234u); /* dec %eax; inc %eax; mov */
		expect_eq(s.rip, (u64)page + 10);
	}
}

/* And something else in another ring. */
CODE_AT(ring_dependent, "nop", "mov %cr0, %rax", "nop");

static void other_ring(void)
{
	for (int i = 0; i < 5; i++) {
		struct state s = run(KERNEL64, ring_dependent);

		expect_done(&s, ring_dependent);
		s = run(USER64, ring_dependent);
		expect_trap(&s, VEC_GP, 0, ring_dependent_at);
	}
}

/* A breakpoint byte is put over an instruction and taken away, as kernel patching does. */
CODE(patch_site, "mov $1, %eax; .byte 0x0f, 0x1f, 0x44, 0, 0; add $1, %eax");

static void kernel_patching(void)
{
	static const u8 nop5[5] = {0x0f, 0x1f, 0x44, 0, 0};
	volatile u8 *site = (volatile u8 *)patch_site + 5;
	struct state s;

	for (int round = 0; round < 10; round++) {
		s = run(KERNEL64, patch_site);
		expect_done(&s, patch_site);
		expect_eq(s.rax, 2);
		site[0] = 0xcc;
		s = run(KERNEL64, patch_site);
		check(s.vector == VEC_BP && s.rip == (u64)site + 1, "vector %d", (int)s.vector);
		site[1] = 0x07; /* add $7, %eax with a padding byte: 05 07 00 00 00 */
		site[2] = 0;
		site[3] = 0;
		site[4] = 0;
		s = run(KERNEL64, patch_site);
		expect_eq(s.vector, VEC_BP);
		site[0] = 0x05;
		s = run(KERNEL64, patch_site);
		expect_done(&s, patch_site);
		expect_eq(s.rax, 9);
		for (int i = 0; i < 5; i++)
			site[i] = nop5[i];
	}
}

/* Data next to code, written again and again. */
CODE(data_beside, "mov $50000, %ecx; lea 2f(%rip), %rdi; 1: incl (%rdi); dec %ecx; jnz 1b; mov "
		  "(%rdi), %eax; jmp 3f;"
		  "2: .long 0; 3: nop");

static void data_next_to_code(void)
{
	struct state s = run(USER64, data_beside);

	expect_done(&s, data_beside);
	expect_eq(s.rax, 50000);
}

/* A compiler at work: many short-lived functions in one buffer. */
static void generated(void)
{
	u8 *page = pages_alloc(4, PAGE_SIZE);
	u64 at = TEST_AREA + 0x40000;

	for (u64 i = 0; i < 4; i++)
		page_map(at + i * PAGE_SIZE, (u64)page + i * PAGE_SIZE, PRESENT);
	for (u32 i = 0; i < 3000; i++) {
		u32 where = i * 37 % (4 * PAGE_SIZE - 16);

		write_function((u8 *)at + where, i ^ 0xabcd);
		check(call_at(USER64, at + where) == (i ^ 0xabcd), "function %d", (int)i);
	}
}

/* A caller and its callee; the callee changes while the caller is hot. */
CODE(hot_caller,
     "mov $1000, %ecx; xor %ebx, %ebx; 1: call *%rdi; add %eax, %ebx; dec %ecx; jnz 1b");

static void callee_changes(void)
{
	u8 *page = page_alloc();
	u64 at = TEST_AREA + 0x80000;

	page_map(at, (u64)page, PRESENT);
	for (u32 i = 1; i < 10; i++) {
		struct state s = state_for(USER64, hot_caller);

		write_function(page, i);
		*(volatile u8 *)(page + 5) = 0xc3;
		s.rdi = at;
		exec(&s);
		expect_done(&s, hot_caller);
		expect_eq(s.rbx, i * 1000);
	}
}

/*
 * Branches from one page to another: of every kind, with flags set that the target reads. The code
 * is copied to the start of a page; what it leads to is at the same place of the next one.
 */
#define TO_NEXT "0x1000 + 0x400"
CODE(cross_call, "77: mov $1000, %edi; 1: stc; call 77b + " TO_NEXT "; dec %edi; jnz 1b");
CODE(cross_jmp, "77: mov $1, %edi; stc; jmp 77b + " TO_NEXT);
CODE(cross_jcc, "77: mov $1, %edi; stc; jc 77b + " TO_NEXT);

/* setc %al; add $imm32, %eax; then ret, or int VEC_DONE when edi is 1 */
static void write_target(u8 *page, u32 value)
{
	u8 code[] = {0xb8,
		     0,
		     0,
		     0,
		     0,
		     0x0f,
		     0x92,
		     0xc0,
		     0x05,
		     (u8)value,
		     (u8)(value >> 8),
		     (u8)(value >> 16),
		     (u8)(value >> 24),
		     0x83,
		     0xff,
		     0x01,
		     0x74,
		     0x01,
		     0xc3,
		     0xcd,
		     VEC_DONE};

	for (u32 i = 0; i < sizeof(code); i++)
		((volatile u8 *)page)[0x400 + i] = code[i];
}

static u8 *copy_to_page(const u8 *from, const u8 *end)
{
	u8 *page = page_alloc();

	for (u32 i = 0; i < (u32)(end - from); i++)
		((volatile u8 *)page)[i] = from[i];
	return page;
}

static void to_next_page(u8 *caller, enum exec_mode mode, u64 at)
{
	u8 *target[3];
	struct state s;

	for (u32 i = 0; i < 3; i++) {
		target[i] = page_alloc();
		write_target(target[i], 0x100 * (i + 1));
	}
	/* The same page at two places, each with a neighbour of its own, which changes. */
	for (u32 i = 0; i < 40; i++) {
		u64 here = at + 0x10000 * (i & 1);
		u32 n = (i & 1) + (i >> 3 & 1);

		page_map(here, (u64)caller, PRESENT);
		page_map(here + PAGE_SIZE, (u64)target[n], PRESENT);
		expect_eq(call_at(mode, here), 0x100 * (n + 1) + 1);
	}
	/* Its bytes change. */
	page_map(at + PAGE_SIZE, (u64)target[0], PRESENT);
	for (u32 i = 0; i < 10; i++) {
		write_target(target[0], 0x1000 * i);
		expect_eq(call_at(mode, at), 0x1000 * i + 1);
	}
	/* It goes, and comes back. */
	for (u32 i = 0; i < 4; i++) {
		page_map(at + PAGE_SIZE, 0, 0);
		s = state_for(mode, NULL);
		s.rip = at;
		exec(&s);
		expect_eq(s.vector, VEC_PF);
		expect_eq(s.rip, at + PAGE_SIZE + 0x400);
		expect_eq(s.cr2, at + PAGE_SIZE + 0x400);
		page_map(at + PAGE_SIZE, (u64)target[1], PRESENT);
		expect_eq(call_at(mode, at), 0x201);
	}
}

static void branches_across(void)
{
	for (u32 i = 0; i < 2; i++) {
		enum exec_mode mode = i ? KERNEL64 : USER64;
		u64 at = (i ? TEST_HIGH : TEST_AREA) + 0x200000;

		to_next_page(copy_to_page(cross_call, cross_call_end), mode, at);
		to_next_page(copy_to_page(cross_jmp, cross_jmp_end), mode, at + 0x40000);
		to_next_page(copy_to_page(cross_jcc, cross_jcc_end), mode, at + 0x80000);
	}
}

/* The same at a page's end, with @k bytes of it on the next one. */
static void write_across(u8 *page, u8 *next, u32 k, u32 value)
{
	u8 code[16];

	write_function(code, value);
	for (u32 n = 0; n < 7; n++)
		*(volatile u8 *)(n < 7 - k ? page + PAGE_SIZE - 7 + k + n : next + n - 7 + k) =
			code[n];
}

/* Two addresses in a row that are one page: what begins at its end goes on at its start. */
static void across_itself(void)
{
	u64 at = TEST_AREA + 0x300000;
	u8 *page = page_alloc();

	page_map(at, (u64)page, PRESENT);
	page_map(at + PAGE_SIZE, (u64)page, PRESENT);
	for (u32 i = 1; i < 100; i++) {
		enum exec_mode mode = i & 1 ? USER64 : KERNEL64;
		u64 other = at + 0x100 + i * 8 % 0x800;

		for (u32 k = 3; k < 7; k++) {
			write_across(page, page, k, i << k);
			expect_eq(call_at(mode, at + PAGE_SIZE - 7 + k), i << k);
			expect_eq(call_at(mode, at + PAGE_SIZE - 7 + k), i << k);
		}
		write_function((u8 *)other, i);
		expect_eq(call_at(mode, other), i);
		/* Either part alone. */
		write_across(page, page, 4, 0);
		expect_eq(call_at(mode, at + PAGE_SIZE - 3), 0);
		((volatile u8 *)page)[PAGE_SIZE - 2] = (u8)i;
		expect_eq(call_at(mode, at + PAGE_SIZE - 3), i);
		((volatile u8 *)page)[1] = 5;
		expect_eq(call_at(mode, at + PAGE_SIZE - 3), i | 5 << 24);
	}
}

const struct test tests[] = {
	{"The next instruction", "SDM vol. 3, 11.6", same_block, NULL},
	{"A constant changed in each turn", "SDM vol. 3, 11.6", patched_loop, NULL},
	{"An instruction behind the store", "SDM vol. 3, 11.6", backward, NULL},
	{"Through another virtual address", "SDM vol. 3, 11.6", through_alias, NULL},
	{"By every kind of store", "SDM vol. 3, 11.6", every_store, NULL},
	{"Instructions across two pages", "SDM vol. 3, 11.6", across_pages, NULL},
	{"Instructions across a page and itself", "SDM vol. 3, 11.6", across_itself, NULL},
	{"Other pages at the same address", "SDM vol. 3, 4.10.4", remapped, NULL},
	{"The same page at many addresses", "SDM vol. 1, 3.5", position_independent, NULL},
	{"The same bytes in another mode", "SDM vol. 3, 5.2.1", other_mode, NULL},
	{"The same bytes in another ring", "SDM vol. 3, 5.5", other_ring, NULL},
	{"Patching with INT3", "SDM vol. 3, 8.1.3", kernel_patching, NULL},
	{"Data beside code", "SDM vol. 3, 11.6", data_next_to_code, NULL},
	{"Generated functions", "SDM vol. 3, 8.1.3", generated, NULL},
	{"A callee that changes", "SDM vol. 3, 8.1.3", callee_changes, NULL},
	{"Branches to another page", "SDM vol. 3, 4.10.4", branches_across, NULL},
	{NULL},
};
