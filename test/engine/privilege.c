/*
 * Ring 3 and the ways between the rings: privileged instructions, IOPL and the I/O bitmap, flags,
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, IRET.
 */
#include "guest.h"

#define SEL(i) (TEST_SELECTOR + 8 * (i))

/* Bytes that must raise #GP(0) in ring 3. */
struct opcode {
	const char *name;
	u8 length;
	u8 byte[7];
};

static void privileged(void)
{
	static const struct opcode list[] = {
		{"hlt", 1, {0xf4}},
		{"cli", 1, {0xfa}},
		{"sti", 1, {0xfb}},
		{"in imm8", 2, {0xe4, 0x80}},
		{"in dx", 1, {0xec}},
		{"in dx, 32 bits", 1, {0xed}},
		{"out imm8", 2, {0xe6, 0x80}},
		{"out dx", 1, {0xee}},
		{"insb", 1, {0x6c}},
		{"outsl", 1, {0x6f}},
		{"lgdt", 3, {0x0f, 0x01, 0x10}},
		{"lidt", 3, {0x0f, 0x01, 0x18}},
		{"lldt", 3, {0x0f, 0x00, 0xd0}},
		{"ltr", 3, {0x0f, 0x00, 0xd8}},
		{"lmsw", 3, {0x0f, 0x01, 0xf0}},
		{"clts", 2, {0x0f, 0x06}},
		{"invd", 2, {0x0f, 0x08}},
		{"wbinvd", 2, {0x0f, 0x09}},
		{"invlpg", 3, {0x0f, 0x01, 0x38}},
		{"mov cr0, rax", 3, {0x0f, 0x20, 0xc0}},
		{"mov rax, cr3", 3, {0x0f, 0x22, 0xd8}},
		{"mov rax, cr4", 3, {0x0f, 0x22, 0xe0}},
		{"mov cr8, rax", 4, {0x44, 0x0f, 0x20, 0xc0}},
		{"mov dr0, rax", 3, {0x0f, 0x21, 0xc0}},
		{"mov rax, dr7", 3, {0x0f, 0x23, 0xf8}},
		{"rdmsr", 2, {0x0f, 0x32}},
		{"wrmsr", 2, {0x0f, 0x30}},
		{"rdpmc", 2, {0x0f, 0x33}},
		{"swapgs", 3, {0x0f, 0x01, 0xf8}},
		{"sysret", 2, {0x0f, 0x07}},
	};
	static u8 code[16];

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		struct state s;

		memset(code, 0x90, sizeof(code));
		memcpy(code, list[i].byte, list[i].length);
		code[14] = 0xcd;
		code[15] = VEC_DONE;
		s = state_for(USER64, code);
		s.rax = s.rdi = s.rsi = user(code);
		s.rcx = MSR_EFER;
		exec(&s);
		check(s.vector == VEC_GP && s.error == 0 && s.rip == user(code),
		      "%s: vector %d error 0x%lx", list[i].name, (int)s.vector, s.error);
	}
}

CODE(io_allowed, "cli; sti; cli; mov $0x3fd, %edx; in %dx, %al; out %al, $0x80");

static void iopl(void)
{
	struct state s = state_for(USER64, io_allowed);

	s.rflags |= RFLAGS_IOPL;
	exec(&s);
	expect_done(&s, io_allowed);
	expect_eq(s.rflags & (RFLAGS_IF | RFLAGS_IOPL), RFLAGS_IOPL);
	s = state_for(USER32, io_allowed);
	s.rflags |= RFLAGS_IOPL;
	exec(&s);
	expect_done(&s, io_allowed);
}

CODE_AT(in_byte, "", "inb %dx, %al", "");
CODE_AT(in_word, "", "inw %dx, %ax", "");
CODE_AT(in_long, "", "inl %dx, %eax", "");
CODE_AT(in_string, "lea -64(%rsp), %rdi", "insb", "");

static struct state port_access(const u8 *code, u16 port)
{
	struct state s = state_for(USER64, code);

	s.rdx = port;
	exec(&s);
	return s;
}

static void io_bitmap(void)
{
	struct state s;

	memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
	tss.io_bitmap = offsetof(struct tss, bitmap);
	tss.bitmap[0x3f8 / 8] = 0;           /* 0x3f8 to 0x3ff */
	tss.bitmap[0x80 / 8] = 0xff & ~0x03; /* 0x80, 0x81 */
	s = port_access(in_byte, 0x3fd);
	expect_done(&s, in_byte);
	s = port_access(in_string, 0x3fd);
	expect_done(&s, in_string);
	s = port_access(in_byte, 0x400);
	expect_trap(&s, VEC_GP, 0, in_byte_at);
	s = port_access(in_string, 0x400);
	expect_trap(&s, VEC_GP, 0, in_string_at);
	s = port_access(in_word, 0x80);
	expect_done(&s, in_word);
	s = port_access(in_long, 0x80); /* one forbidden byte is enough */
	expect_trap(&s, VEC_GP, 0, in_long_at);
	s = port_access(in_word, 0x81);
	expect_trap(&s, VEC_GP, 0, in_word_at);
	s = port_access(in_word, 0x3ff); /* crosses into the next byte of the map */
	expect_trap(&s, VEC_GP, 0, in_word_at);
	/* The map ends with the TSS. */
	memset(tss.bitmap, 0, sizeof(tss.bitmap));
	gdt_set_system(SEL(0), (u64)&tss, offsetof(struct tss, bitmap) + 0x400 / 8,
		       0x80 | DESC_TSS);
	__asm__ volatile("ltr %w0" : : "r"(SEL(0)));
	s = port_access(in_byte, 0x3fd);
	expect_done(&s, in_byte);
	s = port_access(in_byte, 0x408);
	expect_trap(&s, VEC_GP, 0, in_byte_at);
	tss.io_bitmap = 0xffff;
	s = port_access(in_byte, 0x3fd);
	expect_trap(&s, VEC_GP, 0, in_byte_at);
}

CODE(popf_all, "push %rax; popfq; pushfq; pop %rbx; push %rcx; popfq");
CODE(popf_16, "push %rax; popfw; pushfq; pop %rbx; push %rcx; popfq");

/* What POPF with @value in ring @mode makes of flags that were RFLAGS_1 | @before. */
static u64 popf(enum exec_mode mode, const u8 *code, u64 before, u64 value)
{
	struct state s = state_for(mode, code);

	s.rflags |= before;
	s.rax = value;
	s.rcx = RFLAGS_1;
	exec(&s);
	check(s.vector == VEC_DONE, "POPF of 0x%lx: vector %d", value, (int)s.vector);
	return s.rbx;
}

static void flags(void)
{
	u64 arithmetic =
		RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF | RFLAGS_DF;
	u64 system = RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;

	expect_eq(popf(USER64, popf_all, 0, arithmetic), arithmetic | RFLAGS_1);
	expect_eq(popf(USER64, popf_all, 0, system), system | RFLAGS_1);
	/* Ring 3 cannot change IF and IOPL, and nothing says so. */
	expect_eq(popf(USER64, popf_all, 0, RFLAGS_IF | RFLAGS_IOPL), RFLAGS_1);
	expect_eq(popf(USER64, popf_all, RFLAGS_IF, 0), RFLAGS_1 | RFLAGS_IF);
	expect_eq(popf(USER64, popf_all, RFLAGS_IOPL, RFLAGS_IF),
		  RFLAGS_1 | RFLAGS_IF | RFLAGS_IOPL);
	expect_eq(popf(KERNEL64, popf_all, 0, RFLAGS_IOPL), RFLAGS_1 | RFLAGS_IOPL);
	/* RF and VM cannot be popped; reserved bits read as they must. */
	expect_eq(popf(KERNEL64, popf_all, 0, RFLAGS_RF | RFLAGS_VM), RFLAGS_1);
	expect_eq(popf(KERNEL64, popf_all, 0, ~0xffffull | 0x8028),
		  RFLAGS_1 | RFLAGS_AC | RFLAGS_ID);
	/* 16 bits leave the rest alone; the push is 16 bits wide too, so the stack stays even. */
	expect_eq(popf(USER64, popf_16, RFLAGS_ID, RFLAGS_CF) & RFLAGS_ID, RFLAGS_ID);
}

CODE(pushf_width, ".code32\n pushf; pop %ebx; pushfw; pop %cx");

static void pushf_widths(void)
{
	struct state s = state_for(USER32, pushf_width);

	s.rflags |= RFLAGS_ID | RFLAGS_CF;
	exec(&s);
	expect_done(&s, pushf_width);
	expect_eq(s.rbx, RFLAGS_1 | RFLAGS_ID | RFLAGS_CF);
	expect_eq(s.rcx, RFLAGS_1 | RFLAGS_CF);
}

CODE_AT(rdtsc_user, "", "rdtsc", "");
CODE_AT(rdtscp_user, "", "rdtscp", "");

static void time_stamp_disable(void)
{
	struct state s = run(USER64, rdtsc_user);

	expect_done(&s, rdtsc_user);
	write_cr4(read_cr4() | CR4_TSD);
	s = run(USER64, rdtsc_user);
	expect_trap(&s, VEC_GP, 0, rdtsc_user_at);
	s = run(KERNEL64, rdtsc_user);
	expect_done(&s, rdtsc_user);
	if (cpuid(0x80000001, 0).edx & BIT(27)) {
		s = run(USER64, rdtscp_user);
		expect_trap(&s, VEC_GP, 0, rdtscp_user_at);
	}
}

CODE_AT(do_syscall, "", "syscall", "");
CODE_AT(syscall_entry, "", "mov %cs, %esi; mov %ss, %edi; pushfq; pop %rbx", "");

static void set_syscall(u64 mask)
{
	wrmsr(MSR_STAR, (u64)(UCODE32 & ~3) << 48 | (u64)KCODE64 << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_SFMASK, mask);
}

static void syscall_64(void)
{
	struct state s;
	u64 rsp;

	set_syscall(RFLAGS_CF | RFLAGS_IF | RFLAGS_DF);
	s = state_for(USER64, do_syscall);
	s.rflags |= RFLAGS_CF | RFLAGS_ZF | RFLAGS_IF | RFLAGS_DF | RFLAGS_ID;
	rsp = s.rsp;
	exec(&s);
	expect_done(&s, syscall_entry);
	expect_eq(s.rcx, user(do_syscall_next));
	expect_eq(s.r11, RFLAGS_1 | RFLAGS_CF | RFLAGS_ZF | RFLAGS_IF | RFLAGS_DF | RFLAGS_ID);
	expect_eq(s.rbx, RFLAGS_1 | RFLAGS_ZF | RFLAGS_ID);
	expect_eq(s.rsi, KCODE64);
	expect_eq(s.rdi, KDATA);
	expect_eq(s.rsp, rsp);
	/* From ring 0 as well. */
	s = run(KERNEL64, do_syscall);
	expect_done(&s, syscall_entry);
	expect_eq(s.rcx, (u64)do_syscall_next);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SCE);
	s = run(USER64, do_syscall);
	expect_trap(&s, VEC_UD, 0, do_syscall_at);
}

static void syscall_32(void)
{
	struct state s;

	set_syscall(0);
	wrmsr(MSR_CSTAR, (u64)syscall_entry);
	s = run(USER32, do_syscall);
	if (cpu_is_amd()) {
		expect_done(&s, syscall_entry);
		expect_eq(s.rcx, user(do_syscall_next));
		expect_eq(s.rsi, KCODE64);
	} else {
		expect_trap(&s, VEC_UD, 0, do_syscall_at);
	}
}

CODE_AT(sysret_64, "", "sysretq", "");
CODE_AT(sysret_32, "", "sysretl", "");
CODE(after_sysret, "mov %cs, %esi; mov %ss, %edi; pushf; pop %rbx");

static struct state do_sysret(const u8 *code, u64 rip, u64 rflags)
{
	struct state s = state_for(KERNEL64, code);

	set_syscall(0);
	s.rcx = rip;
	s.r11 = rflags;
	s.rsp = user(user_stack + 4096);
	exec(&s);
	return s;
}

static void sysret(void)
{
	struct state s =
		do_sysret(sysret_64, user(after_sysret), RFLAGS_CF | RFLAGS_IF | RFLAGS_IOPL);

	expect_done(&s, after_sysret);
	expect_eq(s.rsi, UCODE64);
	expect_eq(s.rdi, UDATA);
	expect_eq(s.cs, UCODE64);
	expect_eq(s.ss, UDATA);
	expect_eq(s.rflags, RFLAGS_1 | RFLAGS_CF | RFLAGS_IF | RFLAGS_IOPL);
	s = do_sysret(sysret_64, user(after_sysret), RFLAGS_RF | RFLAGS_VM | ~0x3f7fd7ull);
	expect_done(&s, after_sysret);
	expect_eq(s.rflags, RFLAGS_1);
	s = do_sysret(sysret_32, user(after_sysret) | 1ull << 40, RFLAGS_ZF);
	expect_done(&s, after_sysret);
	expect_eq(s.cs, UCODE32);
	expect_eq(s.rip >> 32, 0);
	s = run(KERNEL32, sysret_32);
	if (!cpu_is_amd()) /* 64-bit mode only on Intel */
		expect_trap(&s, VEC_UD, 0, sysret_32_at);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SCE);
	s = do_sysret(sysret_64, user(after_sysret), RFLAGS_1);
	expect_trap(&s, VEC_UD, 0, sysret_64_at);
}

/* Intel faults in ring 0, AMD at the target in ring 3: either way it is #GP. */
static void sysret_noncanonical(void)
{
	struct state s = do_sysret(sysret_64, 1ull << 47, RFLAGS_1);

	expect_eq(s.vector, VEC_GP);
	expect_eq(s.error, 0);
	check((s.rip == 1ull << 47 && s.cs == UCODE64) ||
		      (s.rip == (u64)sysret_64_at && s.cs == KCODE64),
	      "at 0x%lx:0x%lx", s.cs, s.rip);
}

/* Many times there and back, as a kernel does. */
CODE(syscall_loop, "mov $10000, %ebx; 1: syscall; dec %ebx; jnz 1b");
CODE(syscall_server, "inc %r15; sysretq");

static void syscall_many(void)
{
	struct state s;

	set_syscall(RFLAGS_IF);
	wrmsr(MSR_LSTAR, (u64)syscall_server);
	s = run(USER64, syscall_loop);
	expect_done(&s, syscall_loop);
	expect_eq(s.r15, 10000);
}

/*
 * There and back again with all kinds of flags, r12 and r15 leading to those to call and to return
 * with and r14 to a record of what was seen, so often that shorter ways would be taken.
 */
enum { CALLS = 64, CALL_KINDS = 16, LINUX_SFMASK = 0x257fd5 };

#define RFLAGS_ARITH (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

struct call_record {
	u64 rcx, r11, cs, ss, inside, after, unused[2];
};

static u64 call_flags[CALLS], return_flags[CALLS];
static struct call_record call_record[CALLS];

CODE_AT(flags_loop, "mov $64, %r13d; 1: push (%r12); popfq", "syscall",
	"pushfq; popq 40(%r14); add $8, %r12; add $8, %r15; add $64, %r14; dec %r13d; jnz 1b");
CODE(flags_server, "mov %rcx, (%r14); mov %r11, 8(%r14); mov %cs, %esi; mov %rsi, 16(%r14);"
		   "mov %ss, %esi; mov %rsi, 24(%r14); pushfq; popq 32(%r14);"
		   "mov (%r15), %r11; sysretq");

/* POPFQ at CPL 3 (SDM vol. 2, POPF) */
static u64 popped(u64 flags, u64 value)
{
	u64 mask = RFLAGS_ARITH | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;

	if ((flags & RFLAGS_IOPL) == RFLAGS_IOPL)
		mask |= RFLAGS_IF;
	return (flags & ~mask) | (value & mask);
}

static void call_with_flags(u64 star, u64 mask)
{
	static const u64 kind[CALL_KINDS] = {
		0,
		RFLAGS_CF,
		RFLAGS_ZF | RFLAGS_PF,
		RFLAGS_OF,
		RFLAGS_SF,
		RFLAGS_AF,
		RFLAGS_DF,
		RFLAGS_ID,
		RFLAGS_IF,
		RFLAGS_NT,
		RFLAGS_AC,
		RFLAGS_ARITH,
		RFLAGS_IOPL,
		~0ull << 22,
		RFLAGS_ARITH | RFLAGS_IF | RFLAGS_DF | RFLAGS_ID,
		RFLAGS_RF | RFLAGS_VM | RFLAGS_CF,
	};
	struct state s = state_for(USER64, flags_loop);
	u64 flags = s.rflags, back;

	for (u32 n = 0; n < CALLS; n++) {
		call_flags[n] = kind[n * 5 % CALL_KINDS] & ~(RFLAGS_RF | RFLAGS_VM);
		return_flags[n] = kind[(n + n / CALL_KINDS) % CALL_KINDS];
	}
	wrmsr(MSR_STAR, star);
	wrmsr(MSR_LSTAR, (u64)flags_server);
	wrmsr(MSR_SFMASK, mask);
	s.r12 = user(call_flags);
	s.r15 = user(return_flags);
	s.r14 = user(call_record);
	exec(&s);
	expect_done(&s, flags_loop);
	for (u32 n = 0; n < CALLS; n++) {
		const struct call_record *r = &call_record[n];

		flags = popped(flags, call_flags[n]);
		expect_eq(r->rcx, user(flags_loop_next));
		expect_eq(r->r11, flags);
		expect_eq(r->cs, KCODE64);
		expect_eq(r->ss, KDATA);
		expect_eq(r->inside, (flags & ~mask) | RFLAGS_1);
		back = (return_flags[n] & 0x3c7fd7) | RFLAGS_1;
		expect_eq(r->after, back);
		/* What the loop's own arithmetic leaves does not matter: it is popped next. */
		flags = back;
	}
}

static void syscall_flags(void)
{
	const u64 star = (u64)(UCODE32 & ~3) << 48 | (u64)KCODE64 << 32;

	call_with_flags(star, LINUX_SFMASK);
	call_with_flags(star, RFLAGS_ARITH | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF);
	call_with_flags(star | 3ull << 48 | 3ull << 32, RFLAGS_IF);
	call_with_flags(star, LINUX_SFMASK);
}

/*
 * There and back again between address spaces: each call returns to the other one, r12 and r14
 * being their CR3s, where what user code meets has changed meanwhile.
 */
enum { SPACES = 2, ROUNDS = 400, NOFLUSH_BIT = 63 };

CODE_AT(time_loop, "mov $400, %ebx; 1: syscall", "rdtsc", "dec %ebx; jnz 1b");
CODE(time_server, "inc %r15; cmp $300, %r15; jne 1f; mov %r13, %cr4;"
		  "1: xchg %r12, %r14; mov %r12, %cr3; sysretq");
CODE(sum_loop, "1: syscall; add $0x11111111, %rax; rol %rax; dec %ebx; jnz 1b");
CODE(sum_server, "test $1, %bl; jz 1f; xchg %r9, (%r8);"
		 "1: invpcid (%rdi), %rsi; xchg %rdi, %rbp; xchg %r12, %r14; mov %r12, %cr3;"
		 "sysretq");

/* CR3 values of two address spaces that are alike, the present one's first; not to be flushed. */
static void make_spaces(u64 cr3[SPACES])
{
	u64 *root = page_alloc();

	memcpy(root, (void *)read_cr3(), PAGE_SIZE);
	write_cr4(read_cr4() | CR4_PCIDE);
	cr3[0] = read_cr3() | BIT(NOFLUSH_BIT);
	cr3[1] = (u64)root | 1 | BIT(NOFLUSH_BIT);
}

static void leave_spaces(const u64 cr3[SPACES])
{
	write_cr3(cr3[0] & ~BIT(NOFLUSH_BIT));
	write_cr4(read_cr4() & ~(CR4_PCIDE | CR4_TSD));
}

static void set_server(const u8 *code)
{
	set_syscall(LINUX_SFMASK);
	wrmsr(MSR_LSTAR, (u64)code);
}

static void sysret_elsewhere(void)
{
	struct state s = state_for(USER64, time_loop);
	u64 cr3[SPACES];

	if (!(cpuid(1, 0).ecx & BIT(17))) {
		skip("no PCID");
		return;
	}
	make_spaces(cr3);
	set_server(time_server);
	s.r12 = cr3[0];
	s.r14 = cr3[1];
	s.r13 = read_cr4() | CR4_TSD;
	exec(&s);
	leave_spaces(cr3);
	expect_trap(&s, VEC_GP, 0, time_loop_at);
	expect_eq(s.r15, 300);
}

/* The page that the loop is in is another one with every other call, and so with each return to
 * the same address space, of which it is flushed. */
static void sysret_to_new_page(void)
{
	struct state s = state_for(USER64, (u8 *)TEST_AREA);
	u8 *page[] = {page_alloc(), page_alloc()};
	struct {
		u64 pcid, address;
	} space[SPACES] = {{0, TEST_AREA}, {1, TEST_AREA}};
	u32 sum[] = {1, 0x1000};
	u64 cr3[SPACES], *pte, expected = 0;

	if (!(cpuid(1, 0).ecx & BIT(17)) || !(cpuid(7, 0).ebx & BIT(10))) {
		skip("no PCID or INVPCID");
		return;
	}
	for (u32 n = 0; n < ARRAY_SIZE(page); n++) {
		memcpy(page[n], sum_loop, (u64)(sum_loop_end - sum_loop) + 2);
		memcpy(page[n] + 4, &sum[n], sizeof(sum[n])); /* behind SYSCALL and two bytes */
	}
	pte = page_map(TEST_AREA, (u64)page[0], PTE_P | PTE_W | PTE_U);
	make_spaces(cr3);
	set_server(sum_server);
	s.rip = TEST_AREA;
	s.rbx = ROUNDS;
	s.r12 = cr3[0];
	s.r14 = cr3[1];
	s.r8 = (u64)pte;
	s.r9 = (u64)page[1] | PTE_P | PTE_W | PTE_U;
	s.rdi = (u64)&space[1];
	s.rbp = (u64)&space[0];
	s.rsi = 1; /* a single context */
	exec(&s);
	leave_spaces(cr3);
	expect_eq(s.vector, VEC_DONE);
	for (u32 n = 0; n < ROUNDS; n++) {
		expected += sum[(n + 1) / 2 & 1];
		expected = expected << 1 | expected >> 63;
	}
	expect_eq(s.rax, expected);
}

CODE_AT(do_sysenter, "", "sysenter", "");
CODE(sysenter_entry, "mov %cs, %esi; mov %ss, %edi");
CODE_AT(do_sysexit, "", "sysexitl", "");
CODE_AT(do_sysexit64, "", "sysexitq", "");

static void sysenter(void)
{
	struct state s;

	wrmsr(MSR_SYSENTER_CS, 0);
	s = run(USER64, do_sysenter);
	if (cpu_is_amd()) { /* not in long mode at all */
		expect_trap(&s, VEC_UD, 0, do_sysenter_at);
		s = run(USER32, do_sysenter);
		expect_trap(&s, VEC_UD, 0, do_sysenter_at);
		s = run(KERNEL64, do_sysexit);
		expect_trap(&s, VEC_UD, 0, do_sysexit_at);
		return;
	}
	expect_trap(&s, VEC_GP, 0, do_sysenter_at);
	wrmsr(MSR_SYSENTER_CS, KCODE64);
	wrmsr(MSR_SYSENTER_EIP, (u64)sysenter_entry);
	wrmsr(MSR_SYSENTER_ESP, (u64)(kernel_stack + 4096));
	s = state_for(USER64, do_sysenter);
	s.rflags |= RFLAGS_IF;
	exec(&s);
	expect_done(&s, sysenter_entry);
	expect_eq(s.rsi, KCODE64);
	expect_eq(s.rdi, KDATA);
	expect_eq(s.rsp, (u64)(kernel_stack + 4096));
	expect_eq(s.rflags & RFLAGS_IF, 0);
	s = run(USER32, do_sysenter);
	expect_done(&s, sysenter_entry);
	/* SYSEXIT takes its selectors from behind SYSENTER_CS. */
	s = state_for(KERNEL64, do_sysexit64);
	s.rdx = user(after_sysret);
	s.rcx = user(user_stack + 4096);
	exec(&s);
	expect_done(&s, after_sysret);
	expect_eq(s.cs, (KCODE64 + 32) | 3);
	s = run(USER64, do_sysexit);
	expect_trap(&s, VEC_GP, 0, do_sysexit_at);
}

CODE_AT(do_iret, "push %rdi; push %rsi; push %rdx; push %rcx; push %rax; mov %rsp, %rbp", "iretq",
	"");
CODE(arrived, "mov %ds, %r8d; mov %es, %r9d; mov %fs, %r10d; mov %gs, %r11d");

/* IRETQ in @mode with this frame. */
static struct state iret(enum exec_mode mode, u64 rip, u64 cs, u64 rflags, u64 rsp, u64 ss)
{
	struct state s = state_for(mode, do_iret);

	s.rax = rip;
	s.rcx = cs;
	s.rdx = rflags;
	s.rsi = rsp;
	s.rdi = ss;
	s.fs = UDATA;
	s.gs = mode < USER64 ? KDATA : 0;
	exec(&s);
	return s;
}

static void iret_forms(void)
{
	u64 stack = (u64)(kernel_stack + 4096 + 3), flags_in = RFLAGS_1 | RFLAGS_CF | RFLAGS_ID;
	struct state s = iret(KERNEL64, (u64)arrived, KCODE64, flags_in, stack, KDATA);

	expect_done(&s, arrived);
	expect_eq(s.rsp, stack); /* 64-bit IRET pops SS:RSP always */
	expect_eq(s.rflags, flags_in);
	expect_eq(s.r11, KDATA);
	s = iret(KERNEL64, (u64)arrived, KCODE64, flags_in, stack, 0);
	expect_done(&s, arrived);
	expect_eq(s.ss, 0);
	s = iret(KERNEL64, user(arrived), UCODE64, flags_in | RFLAGS_IF, user(user_stack + 100),
		 UDATA);
	expect_done(&s, arrived);
	expect_eq(s.rsp, user(user_stack + 100));
	expect_eq(s.rflags, flags_in | RFLAGS_IF);
	expect_eq(s.r8 | s.r9 | s.r11, 0); /* DS, ES, GS of ring 0 are nulled */
	expect_eq(s.r10, UDATA);
	s = iret(KERNEL64, user(arrived), UCODE32, flags_in, user(user_stack + 100), UDATA);
	check(s.vector == VEC_DONE && s.cs == UCODE32, "to 32-bit: vector %d cs 0x%lx",
	      (int)s.vector, s.cs);
	s = iret(KERNEL64, (u64)arrived, KCODE32, flags_in, stack, KDATA);
	check(s.vector == VEC_DONE && s.cs == KCODE32, "to 32-bit ring 0: vector %d",
	      (int)s.vector);
	s = iret(USER64, user(arrived), UCODE64, flags_in, user(user_stack + 104), UDATA);
	expect_done(&s, arrived);
	/* Ring 3 changes neither IF nor IOPL by it. */
	s = iret(USER64, user(arrived), UCODE64, flags_in | RFLAGS_IF | RFLAGS_IOPL,
		 user(user_stack + 104), UDATA);
	expect_done(&s, arrived);
	expect_eq(s.rflags, flags_in);
}

static void iret_errors(void)
{
	u64 good = user(arrived), stack = user(user_stack + 4096),
	    kstack = (u64)(kernel_stack + 4096);
	struct state s;

	gdt_set(SEL(0), descriptor(0, 0xfffff, 0x7b, 0xa)); /* code, not present */
	gdt_set(SEL(1), descriptor(0, 0xfffff, 0x73, 0xc)); /* data, not present */
	gdt_set(SEL(2), descriptor(0, 0xfffff, 0xfb, 0xe)); /* L and D */
#define iret_fails(mode, vector, code, ...)                \
	do {                                               \
		s = iret(mode, __VA_ARGS__);               \
		expect_trap(&s, vector, code, do_iret_at); \
		expect_eq(s.rsp, s.rbp);                   \
	} while (0)
	iret_fails(KERNEL64, VEC_GP, 0, good, 0, RFLAGS_1, stack, UDATA);
	iret_fails(KERNEL64, VEC_GP, 0, good, 3, RFLAGS_1, stack, UDATA);
	iret_fails(KERNEL64, VEC_GP, UDATA & ~3, good, UDATA, RFLAGS_1, stack, UDATA);
	iret_fails(KERNEL64, VEC_NP, SEL(0), good, SEL(0) | 3, RFLAGS_1, stack, UDATA);
	iret_fails(KERNEL64, VEC_SS, SEL(1), good, UCODE64, RFLAGS_1, stack, SEL(1) | 3);
	iret_fails(KERNEL64, VEC_GP, 0, good, UCODE64, RFLAGS_1, stack, 0);
	iret_fails(KERNEL64, VEC_GP, 0, good, UCODE64, RFLAGS_1, stack, 3);
	iret_fails(KERNEL64, VEC_GP, KDATA, good, UCODE64, RFLAGS_1, stack, KDATA);
	iret_fails(KERNEL64, VEC_GP, KCODE64, good, KCODE64 | 3, RFLAGS_1, stack, UDATA);
	iret_fails(KERNEL64, VEC_GP, UCODE64 & ~3, (u64)arrived, UCODE64 & ~3, RFLAGS_1, kstack,
		   KDATA);
	iret_fails(KERNEL64, VEC_GP, 0xfff8, good, 0xfffb, RFLAGS_1, stack, UDATA);
	iret_fails(USER64, VEC_GP, KCODE64, (u64)arrived, KCODE64, RFLAGS_1, kstack, KDATA);
#undef iret_fails
}

static void iret_noncanonical(void)
{
	struct state s =
		iret(KERNEL64, 1ull << 47, UCODE64, RFLAGS_1, user(user_stack + 4096), UDATA);

	/* AMD notices at the target, in ring 3; Intel before. */
	check(s.vector == VEC_GP && s.error == 0, "vector %d error 0x%lx", (int)s.vector, s.error);
}

static void iret_long_and_data(void)
{
	struct state s;

	gdt_set(SEL(2), descriptor(0, 0xfffff, 0xfb, 0xe)); /* L and D */
	s = iret(KERNEL64, user(arrived), SEL(2) | 3, RFLAGS_1, user(user_stack + 4096), UDATA);
	expect_trap(&s, VEC_GP, SEL(2), do_iret_at);
}

CODE_AT(iret_nested,
	"push %rdi; push %rsi; push %rdx; push %rcx; push %rax; pushfq;"
	"orl $0x4000, (%rsp); popfq",
	"iretq", "");

static void iret_nested_task(void)
{
	struct state s = state_for(KERNEL64, iret_nested);

	s.rax = (u64)arrived;
	s.rcx = KCODE64;
	s.rdx = RFLAGS_1;
	s.rsi = (u64)(kernel_stack + 4096);
	s.rdi = KDATA;
	exec(&s);
	expect_trap(&s, VEC_GP, 0, iret_nested_at);
	expect_eq(s.rflags & RFLAGS_NT, RFLAGS_NT);
}

CODE_AT(iret_32, ".code32\n pushf; push %cs; call 1f; 1: addl $(2f - 1b), (%esp)", "iretl",
	"ud2; 2: mov $0x32, %ecx");
CODE_AT(iret_32_in_64,
	"mov %ss, %eax; sub $20, %rsp; mov %eax, 16(%rsp); lea 64(%rsp), %rdx;"
	"mov %edx, 12(%rsp); movl $2, 8(%rsp); mov %cs, %eax; mov %eax, 4(%rsp);"
	"lea 2f(%rip), %rdx; mov %edx, (%rsp)",
	"iretl", "ud2; 2: mov $0x64, %ecx");

static void iret_widths(void)
{
	struct state s = run(USER32, iret_32);

	expect_done(&s, iret_32);
	expect_eq(s.rcx, 0x32);
	s = run(KERNEL32, iret_32);
	expect_done(&s, iret_32);
	s = run(KERNEL64, iret_32_in_64);
	expect_done(&s, iret_32_in_64);
	expect_eq(s.rcx, 0x64);
	s = run(USER64, iret_32_in_64);
	expect_done(&s, iret_32_in_64);
}

/* IRET may set RF, TF, NT: what an exception's return needs. */
static void iret_flags(void)
{
	u64 set = RFLAGS_1 | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID | RFLAGS_DF;
	struct state s =
		iret(KERNEL64, user(arrived), UCODE64, set, user(user_stack + 4096), UDATA);

	expect_done(&s, arrived);
	expect_eq(s.rflags, set);
	s = iret(KERNEL64, user(arrived), UCODE64, RFLAGS_IOPL | RFLAGS_IF, user(user_stack + 4096),
		 UDATA);
	expect_eq(s.rflags, RFLAGS_1 | RFLAGS_IOPL | RFLAGS_IF);
	/* Reserved bits are dropped. */
	s = iret(KERNEL64, user(arrived), UCODE64, ~0ull & ~(RFLAGS_TF | RFLAGS_VM),
		 user(user_stack + 4096), UDATA);
	check(s.vector == VEC_DONE, "vector %d", (int)s.vector);
	expect_eq(s.rflags & 0xffffffffffc08028, 0);
}

CODE(lmsw_cycle, "smsw %eax; lmsw %cx; smsw %ebx; lmsw %dx; smsw %esi; lmsw %ax");

static void machine_status_word(void)
{
	struct state s = state_for(KERNEL64, lmsw_cycle);
	u64 cr0 = read_cr0();

	s.rcx = (cr0 & 0xffff) | CR0_TS;
	s.rdx = 0; /* would clear PE */
	exec(&s);
	expect_done(&s, lmsw_cycle);
	expect_eq(s.rax & 0xffff, cr0 & 0xffff);
	expect_eq(s.rbx & 0xf, (cr0 & 0xf) | CR0_TS);
	expect_eq(s.rsi & 0xf, CR0_PE);
	expect_eq(s.rsi & CR0_NE, cr0 & CR0_NE); /* only the low four bits are written */
	write_cr0(cr0);
}

const struct test tests[] = {
	{"#GP: privileged instructions in ring 3", "SDM vol. 3, 5.9", privileged, NULL},
	{"IOPL 3", "SDM vol. 1, 18.5.1", iopl, NULL},
	{"The I/O permission bitmap", "SDM vol. 1, 18.5.2", io_bitmap, NULL},
	{"POPF in both rings", "SDM vol. 2, POPF", flags, NULL},
	{"PUSHF of 16 and 32 bits", "SDM vol. 2, PUSHF", pushf_widths, NULL},
	{"CR4.TSD", "SDM vol. 2, RDTSC", time_stamp_disable, NULL},
	{"SYSCALL", "SDM vol. 2, SYSCALL", syscall_64, "loses the arithmetic flags"},
	{"SYSCALL from 32-bit code", "SDM vol. 2, APM vol. 3, SYSCALL", syscall_32, NULL},
	{"SYSRET", "SDM vol. 2, SYSRET", sysret, "loads VM"},
	{"SYSRET to a non-canonical address", "SDM vol. 2, APM vol. 3, SYSRET", sysret_noncanonical,
	 NULL},
	{"SYSCALL and SYSRET, many times", "SDM vol. 2, SYSCALL", syscall_many, NULL},
	{"SYSCALL and SYSRET with all flags", "SDM vol. 2, SYSCALL and SYSRET", syscall_flags,
	 "loses the arithmetic flags"},
	{"SYSRET to another address space", "SDM vol. 3, 4.10.1", sysret_elsewhere, NULL},
	{"The same, code being elsewhere", "SDM vol. 2, INVPCID", sysret_to_new_page, NULL},
	{"SYSENTER and SYSEXIT", "SDM vol. 2, APM vol. 3, SYSENTER", sysenter,
	 "allows it in compatibility mode on AMD"},
	{"IRET in 64-bit mode", "SDM vol. 2, IRET", iret_forms, NULL},
	{"IRET that must fail", "SDM vol. 2, IRET", iret_errors,
	 "raises #NP for the stack segment"},
	{"IRET to a non-canonical address", "SDM vol. 2, IRET", iret_noncanonical, NULL},
	{"IRET to code with both L and D", "SDM vol. 2, IRET", iret_long_and_data,
	 "takes code with both L and D"},
	{"IRET with NT in 64-bit mode", "SDM vol. 2, IRET", iret_nested_task, NULL},
	{"IRETD in both modes", "SDM vol. 2, IRET", iret_widths, NULL},
	{"Flags loaded by IRET", "SDM vol. 2, IRET", iret_flags, NULL},
	{"SMSW and LMSW", "SDM vol. 2, LMSW", machine_status_word, NULL},
	{NULL},
};
