/*
 * Segmentation: loading selectors, limits and bases outside 64-bit mode, far control transfers,
 * gates, the instructions about descriptors, FS and GS bases.
 */
#include "guest.h"

/* Access bytes. */
enum {
	DATA_RO = 0x91,
	DATA_RW = 0x93,
	DATA_DOWN = 0x97,
	CODE_X = 0x99,
	CODE_RX = 0x9b,
	CODE_CONFORMING = 0x9f,
	DPL3 = 0x60,
	FLAT = 0xc,  /* G, D/B */
	LONG = 0xa,  /* G, L */
	BYTES = 0x4, /* D/B, limit in bytes */
};

#define SEL(i) (TEST_SELECTOR + 8 * (i))

CODE_AT(load_ds, "", "mov %eax, %ds", "");
CODE_AT(load_es, "", "mov %eax, %es", "");
CODE_AT(load_fs, "", "mov %eax, %fs", "");
CODE_AT(load_gs, "", "mov %eax, %gs", "");
CODE_AT(load_ss, "", "mov %eax, %ss", "");
CODE_AT(pop_fs, "push %rax", "pop %fs", "");

/* Load @selector by one of the codes above and return what came of it. */
static struct state load(enum exec_mode mode, const u8 *code, u64 selector)
{
	struct state s = state_for(mode, code);

	s.rax = selector;
	exec(&s);
	return s;
}

#define load_fails(mode, name, selector, vector, error)       \
	do {                                                  \
		struct state s_ = load(mode, name, selector); \
                                                              \
		expect_trap(&s_, vector, error, name##_at);   \
	} while (0)

#define load_works(mode, name, selector)                      \
	do {                                                  \
		struct state s_ = load(mode, name, selector); \
                                                              \
		expect_done(&s_, name);                       \
	} while (0)

static void make_descriptors(void)
{
	gdt_set(SEL(0), descriptor(0, 0xfffff, DATA_RW, FLAT));
	gdt_set(SEL(1), descriptor(0, 0xfffff, DATA_RW & ~0x80, FLAT)); /* not present */
	gdt_set(SEL(2), descriptor(0, 0xfffff, CODE_X, FLAT));
	gdt_set(SEL(3), descriptor(0, 0xfffff, CODE_RX, FLAT));
	gdt_set(SEL(4), descriptor(0, 0xfffff, CODE_CONFORMING, FLAT));
	gdt_set(SEL(5), descriptor(0, 0xfffff, DATA_RO, FLAT));
	gdt_set(SEL(6), descriptor(0, 0xfffff, DATA_RW | DPL3, FLAT));
	gdt_set_system(SEL(8), 0x12345678, 0x77, 0x80 | DESC_LDT);
	gdt_set(SEL(10), descriptor(0, 0xfffff, (DATA_RW & ~0x80) | DPL3, FLAT));
}

static void load_data(void)
{
	make_descriptors();
	load_works(KERNEL64, load_ds, 0);
	load_works(KERNEL64, load_es, 3);
	load_works(USER64, load_fs, 2);
	load_works(USER64, load_gs, 0);
	load_works(KERNEL64, load_ds, SEL(0));
	load_works(KERNEL64, load_ds, SEL(5));
	load_works(KERNEL64, load_ds, SEL(3));
	load_works(USER64, load_ds, SEL(4) | 3); /* conforming: no privilege check */
	load_works(USER64, load_ds, SEL(6) | 3);
	load_works(USER64, load_es, SEL(6));
	load_works(KERNEL64, load_es, SEL(6) | 3);
	load_fails(KERNEL64, load_ds, SEL(1), VEC_NP, SEL(1));
	load_fails(KERNEL64, load_ds, SEL(2), VEC_GP, SEL(2));
	load_fails(KERNEL64, load_fs, SEL(8), VEC_GP, SEL(8));
	load_fails(KERNEL64, load_gs, GDT_ENTRIES * 8 + 3, VEC_GP, GDT_ENTRIES * 8);
	load_fails(KERNEL64, load_ds, SEL(0) | 3, VEC_GP, SEL(0)); /* DPL 0, RPL 3 */
	load_fails(USER64, load_ds, SEL(0), VEC_GP, SEL(0));
	load_fails(USER64, load_ds, SEL(3) | 3, VEC_GP, SEL(3));
	load_fails(USER64, load_ds, SEL(10) | 3, VEC_NP, SEL(10));
	load_fails(KERNEL64, load_ds, 4 | 3, VEC_GP, 4); /* LDT is null: the TI bit stays */
	load_fails(KERNEL64, load_ds, SEL(0) | 4, VEC_GP, SEL(0) | 4);
	load_fails(USER64, pop_fs, 0xfffb, VEC_GP, 0xfff8);
	load_works(KERNEL64, pop_fs, SEL(0));
	load_fails(KERNEL64, pop_fs, SEL(1), VEC_NP, SEL(1));
	/* The last byte of the descriptor must lie within the limit. */
	gdt_load_limit(SEL(6) + 6);
	load_fails(KERNEL64, load_ds, SEL(6), VEC_GP, SEL(6));
	gdt_load_limit(SEL(6) + 7);
	load_works(KERNEL64, load_ds, SEL(6));
}

static void load_stack(void)
{
	make_descriptors();
	load_works(KERNEL64, load_ss, 0); /* null is a stack in ring 0 of 64-bit mode */
	load_fails(KERNEL64, load_ss, 3, VEC_GP, 0);
	load_fails(USER64, load_ss, 0, VEC_GP, 0);
	load_fails(USER64, load_ss, 3, VEC_GP, 0);
	load_fails(KERNEL32, load_ss, 0, VEC_GP, 0);
	load_works(KERNEL64, load_ss, SEL(0));
	load_fails(KERNEL64, load_ss, SEL(0) | 3, VEC_GP, SEL(0));
	load_fails(KERNEL64, load_ss, SEL(1), VEC_SS, SEL(1));
	load_fails(KERNEL64, load_ss, SEL(3), VEC_GP, SEL(3));
	load_fails(KERNEL64, load_ss, SEL(5), VEC_GP, SEL(5));
	load_fails(KERNEL64, load_ss, SEL(6), VEC_GP, SEL(6));
	load_fails(USER64, load_ss, SEL(0) | 3, VEC_GP, SEL(0));
	load_works(USER64, load_ss, SEL(6) | 3);
	load_fails(USER64, load_ss, SEL(6), VEC_GP, SEL(6));
	load_fails(USER64, load_ss, SEL(10) | 3, VEC_SS, SEL(10));
	load_fails(KERNEL64, load_ss, SEL(8), VEC_GP, SEL(8));
}

static void accessed_bit(void)
{
	gdt_set(SEL(0), descriptor(0, 0xfffff, DATA_RW - 1, FLAT));
	load_works(KERNEL64, load_ds, SEL(0));
	expect_eq(*(volatile u64 *)&gdt[SEL(0) / 8], descriptor(0, 0xfffff, DATA_RW, FLAT));
	gdt_set(SEL(0), descriptor(0, 0xfffff, (DATA_RW - 1) & ~0x80, FLAT));
	load_fails(KERNEL64, load_ds, SEL(0), VEC_NP, SEL(0));
	expect_eq(*(volatile u64 *)&gdt[SEL(0) / 8], descriptor(0, 0xfffff, 0x12, FLAT));
}

CODE_AT(read32, ".code32\n", "mov (%eax), %ebx", "");
CODE_AT(write32, ".code32\n", "mov %ebx, (%eax)", "");
CODE_AT(read_stack32, ".code32\n mov %eax, %ebp", "mov 0(%ebp), %ebx", "");
CODE_AT(push32, ".code32\n", "push %eax", "");
CODE_AT(read_cs32, ".code32\n", "mov %cs:(%eax), %ebx", "");
CODE_AT(write_cs32, ".code32\n", "mov %ebx, %cs:(%eax)", "");
CODE_AT(read_fs32, ".code32\n", "mov %fs:(%eax), %ebx", "");

static struct state access32(const u8 *code, u64 ds, u32 address)
{
	struct state s = state_for(USER32, code);

	s.ds = ds;
	s.rax = address;
	exec(&s);
	return s;
}

static u32 buffer[64] __attribute__((aligned(4096)));

static void null_in_compatibility(void)
{
	struct state s = access32(read32, 0, (u32)user(buffer));

	expect_trap(&s, VEC_GP, 0, read32_at);
	s = access32(write32, 3, (u32)user(buffer));
	expect_trap(&s, VEC_GP, 0, write32_at);
	s = access32(read32, UDATA, (u32)user(buffer));
	expect_done(&s, read32);
}

static void bases(void)
{
	struct state s;

	buffer[3] = 0xfeed;
	gdt_set(SEL(0), descriptor((u32)user(buffer), 0xfffff, DATA_RW | DPL3, FLAT));
	s = access32(read32, SEL(0) | 3, 12);
	expect_done(&s, read32);
	expect_eq(s.rbx, 0xfeed);
	/* Linear addresses wrap at 4 GiB. */
	gdt_set(SEL(0), descriptor((u32)user(buffer) + 0x1000, 0xfffff, DATA_RW | DPL3, FLAT));
	s = access32(read32, SEL(0) | 3, -0x1000 + 12);
	expect_done(&s, read32);
	expect_eq(s.rbx, 0xfeed);
	gdt_set(SEL(1), descriptor((u32)user(buffer) - 0x80, 0xfffff, DATA_RW | DPL3, FLAT));
	s = state_for(USER32, read_fs32);
	s.fs = SEL(1) | 3;
	s.rax = 0x8c;
	exec(&s);
	expect_done(&s, read_fs32);
	expect_eq(s.rbx, 0xfeed);
	/* 64-bit mode knows no base of DS. */
	s = state_for(USER64, read32); /* mov (%rax), %ebx */
	s.ds = SEL(0) | 3;
	s.rax = user(&buffer[3]);
	exec(&s);
	expect_eq(s.rbx, 0xfeed);
}

static void limits(void)
{
	u32 base = (u32)user(buffer);
	struct state s;

	gdt_set(SEL(0), descriptor(base, 0xff, DATA_RW | DPL3, BYTES));
	s = access32(read32, SEL(0) | 3, 0xfc);
	expect_done(&s, read32);
	s = access32(read32, SEL(0) | 3, 0xfd);
	expect_trap(&s, VEC_GP, 0, read32_at);
	s = access32(write32, SEL(0) | 3, 0x100);
	expect_trap(&s, VEC_GP, 0, write32_at);
	s = access32(read32, SEL(0) | 3, 0xffffffff);
	expect_trap(&s, VEC_GP, 0, read32_at);
	/* Expand-down: what lies above the limit is valid. */
	gdt_set(SEL(0), descriptor(base, 0x7f, DATA_DOWN | DPL3, BYTES));
	s = access32(read32, SEL(0) | 3, 0x80);
	expect_done(&s, read32);
	s = access32(read32, SEL(0) | 3, 0x7f);
	expect_trap(&s, VEC_GP, 0, read32_at);
	s = access32(read32, SEL(0) | 3, 0);
	expect_trap(&s, VEC_GP, 0, read32_at);
	/* 16-bit expand-down ends at 64 KiB. */
	gdt_set(SEL(0), descriptor(base, 0x7f, DATA_DOWN | DPL3, 0));
	s = access32(read32, SEL(0) | 3, 0x10000);
	expect_trap(&s, VEC_GP, 0, read32_at);
	s = access32(read32, SEL(0) | 3, 0xfffd);
	expect_trap(&s, VEC_GP, 0, read32_at);
	/* Page granularity. */
	gdt_set(SEL(0), descriptor(base, 0, DATA_RW | DPL3, FLAT));
	s = access32(read32, SEL(0) | 3, 0xffc);
	expect_done(&s, read32);
	s = access32(read32, SEL(0) | 3, 0xffd);
	expect_trap(&s, VEC_GP, 0, read32_at);
}

static void stack_limits(void)
{
	struct state s;

	gdt_set(SEL(0), descriptor((u32)user(buffer), 0xff, DATA_RW | DPL3, BYTES));
	s = state_for(USER32, push32);
	s.ss = SEL(0) | 3;
	s.rsp = 0x80;
	exec(&s);
	expect_done(&s, push32);
	expect_eq(s.rsp, 0x7c);
	s = state_for(USER32, push32);
	s.ss = SEL(0) | 3;
	s.rsp = 0x110;
	exec(&s);
	expect_trap(&s, VEC_SS, 0, push32_at);
	expect_eq(s.rsp, 0x110);
	s.rip = user(push32);
	s.rsp = 2;
	exec(&s);
	expect_trap(&s, VEC_SS, 0, push32_at);
	s = state_for(USER32, read_stack32);
	s.ss = SEL(0) | 3;
	s.rax = 0xfe;
	exec(&s);
	expect_trap(&s, VEC_SS, 0, read_stack32_at);
}

static void segment_types(void)
{
	u32 address = (u32)user(buffer);
	struct state s;

	gdt_set(SEL(0), descriptor(0, 0xfffff, DATA_RO | DPL3, FLAT));
	s = access32(read32, SEL(0) | 3, address);
	expect_done(&s, read32);
	s = access32(write32, SEL(0) | 3, address);
	expect_trap(&s, VEC_GP, 0, write32_at);
	s = access32(read_cs32, UDATA, address);
	expect_done(&s, read_cs32);
	s = access32(write_cs32, UDATA, address);
	expect_trap(&s, VEC_GP, 0, write_cs32_at);
	gdt_set(SEL(1), descriptor(0, 0xfffff, CODE_X | DPL3, FLAT));
	s = state_for(USER32, read_cs32);
	s.cs = SEL(1) | 3;
	s.rax = address;
	exec(&s);
	expect_trap(&s, VEC_GP, 0, read_cs32_at);
}

CODE_AT(far_in_limit, ".code32\n nop; nop", "jmp . + 0x80", "");
CODE_AT(run_off, ".code32\n", "nop; nop; nop", "nop");

static void code_limit(void)
{
	struct state s;

	gdt_set(SEL(0), descriptor((u32)user(far_in_limit), 0x3f, CODE_RX | DPL3, BYTES));
	s = state_for(USER32, NULL);
	s.cs = SEL(0) | 3;
	s.rip = 0;
	exec(&s);
	check(s.vector == VEC_GP && s.error == 0 && s.rip == 2, "vector %d error 0x%lx rip 0x%lx",
	      (int)s.vector, s.error, s.rip);
	gdt_set(SEL(0), descriptor((u32)user(run_off), 2, CODE_RX | DPL3, BYTES));
	s = state_for(USER32, NULL);
	s.cs = SEL(0) | 3;
	s.rip = 0;
	exec(&s);
	check(s.vector == VEC_GP && s.error == 0 && s.rip == 3, "vector %d error 0x%lx rip 0x%lx",
	      (int)s.vector, s.error, s.rip);
}

CODE(descriptor_query, "lar %eax, %ebx; setz %sil; lsl %eax, %ecx; setz %dil;"
		       "verr %ax; setz %r8b; verw %ax; setz %r9b");

static struct state query(enum exec_mode mode, u64 selector)
{
	struct state s = state_for(mode, descriptor_query);

	s.rax = selector;
	s.rbx = s.rcx = 0x5555;
	exec(&s);
	expect_done(&s, descriptor_query);
	return s;
}

static void lar_lsl(void)
{
	struct state s;

	make_descriptors();
	s = query(KERNEL64, SEL(0));
	expect_eq(s.rsi, 1);
	expect_eq(s.rbx & 0xf0ff00, 0xc09300); /* bits 19:16 are undefined */
	expect_eq(s.rdi, 1);
	expect_eq(s.rcx, 0xffffffff);
	gdt_set(SEL(7), descriptor(0x12345678, 0x54321, DATA_RW, BYTES));
	s = query(KERNEL64, SEL(7));
	expect_eq(s.rbx & 0xf0ff00, 0x409300);
	expect_eq(s.rcx, 0x54321);
	s = query(KERNEL64, SEL(1)); /* not present makes no difference */
	expect_eq(s.rsi, 1);
	expect_eq(s.rbx & 0xff00, 0x1300);
	s = query(KERNEL64, SEL(8));
	expect_eq(s.rbx & 0xff00, 0x8200);
	expect_eq(s.rcx, 0x77);
	s = query(USER64, SEL(0)); /* not visible from ring 3: nothing changes */
	expect_eq(s.rsi, 0);
	expect_eq(s.rbx, 0x5555);
	expect_eq(s.rdi, 0);
	expect_eq(s.rcx, 0x5555);
	s = query(KERNEL64, SEL(0) | 3);
	expect_eq(s.rsi, 0);
	s = query(USER64, SEL(4) | 3);
	expect_eq(s.rsi, 1);
	s = query(KERNEL64, 0);
	expect_eq(s.rsi | s.rdi | s.r8 | s.r9, 0);
	s = query(KERNEL64, 0xfff8);
	expect_eq(s.rsi | s.rdi | s.r8 | s.r9, 0);
	gdt_set(SEL(12), 0x00008e0000000000 | (u64)KCODE64 << 16);
	s = query(KERNEL64, SEL(12)); /* interrupt gate: neither */
	expect_eq(s.rsi | s.rdi, 0);
	gdt_set_call_gate(SEL(12), KCODE64, 0, 0x8c);
	s = query(KERNEL64, SEL(12)); /* call gate: access but no limit */
	expect_eq(s.rsi, 1);
	expect_eq(s.rdi, 0);
}

static void verify(void)
{
	static const struct {
		u8 entry, rpl;
		bool user, read, write;
	} cases[] = {
		{0, 0, false, true, true},  {0, 3, false, false, false},
		{0, 0, true, false, false}, {2, 0, false, false, false},
		{3, 0, false, true, false}, {4, 3, true, true, false},
		{5, 0, false, true, false}, {6, 3, true, true, true},
		{6, 0, false, true, true},  {8, 0, false, false, false},
	};

	make_descriptors();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct state s = query(cases[i].user ? USER64 : KERNEL64,
				       (u64)(SEL(cases[i].entry) | cases[i].rpl));

		check(s.r8 == cases[i].read && s.r9 == cases[i].write, "case %d: read %d write %d",
		      (int)i, (int)s.r8, (int)s.r9);
	}
}

CODE(store_tables, "sgdt (%rax); sidt 16(%rax); sldt %ebx; str %ecx; smsw %edx; sldt 32(%rax);"
		   "str 34(%rax)");
CODE_AT(user_sgdt, "", "sgdt (%rax)", "");
CODE_AT(user_sidt, "", "sidt (%rax)", "");
CODE_AT(user_sldt, "", "sldt %ebx", "");
CODE_AT(user_str, "", "str %ebx", "");
CODE_AT(user_smsw, "", "smsw %ebx", "");

static void tables(void)
{
	volatile u8 *out = (volatile u8 *)buffer;
	struct state s = state_for(USER64, store_tables);

	s.rax = user(buffer);
	s.rbx = s.rcx = ~0ull;
	exec(&s);
	expect_done(&s, store_tables);
	expect_eq(*(volatile u16 *)out, GDT_ENTRIES * 8 - 1);
	expect_eq(*(volatile u64 *)(out + 2), (u64)gdt);
	expect_eq(*(volatile u16 *)(out + 16), 256 * 16 - 1);
	expect_eq(s.rbx, 0);
	expect_eq(s.rcx, TSS_SELECTOR);
	expect_eq(s.rdx & 0xffff, read_cr0() & 0xffff);
	expect_eq(*(volatile u16 *)(out + 32), 0);
	expect_eq(*(volatile u16 *)(out + 34), TSS_SELECTOR);
}

static void umip(void)
{
	static const u8 *const code[][2] = {{user_sgdt, user_sgdt_at},
					    {user_sidt, user_sidt_at},
					    {user_sldt, user_sldt_at},
					    {user_str, user_str_at},
					    {user_smsw, user_smsw_at}};

	if (!(cpuid(7, 0).ecx & BIT(2))) {
		skip("no UMIP");
		return;
	}
	write_cr4(read_cr4() | CR4_UMIP);
	for (u32 i = 0; i < ARRAY_SIZE(code); i++) {
		struct state s = state_for(USER64, code[i][0]);

		s.rax = user(buffer);
		exec(&s);
		expect_trap(&s, VEC_GP, 0, code[i][1]);
		s = state_for(KERNEL64, code[i][0]);
		s.rax = (u64)buffer;
		exec(&s);
		check(s.vector == VEC_DONE, "ring 0: vector %d", (int)s.vector);
	}
}

CODE_AT(lldt, "", "lldt %ax", "");
CODE_AT(ltr, "", "ltr %ax", "");

static void local_table(void)
{
	static u64 ldt[4];

	ldt[1] = descriptor(0, 0xfffff, DATA_RW, FLAT);
	ldt[2] = descriptor(0, 0xfffff, DATA_RW & ~0x80, FLAT);
	gdt_set_system(SEL(0), (u64)ldt, sizeof(ldt) - 1, 0x80 | DESC_LDT);
	gdt_set_system(SEL(2), (u64)ldt, sizeof(ldt) - 1, DESC_LDT);
	gdt_set_system(SEL(4), (u64)ldt, sizeof(ldt) - 1, 0x80 | DESC_TSS);
	load_works(KERNEL64, lldt, SEL(0));
	load_works(KERNEL64, load_ds, 8 | 4);
	load_fails(KERNEL64, load_ds, 16 | 4, VEC_NP, 16 | 4);
	load_fails(KERNEL64, load_ds, 32 | 4, VEC_GP, 32 | 4);
	load_fails(KERNEL64, lldt, SEL(2), VEC_NP, SEL(2));
	load_fails(KERNEL64, lldt, SEL(4), VEC_GP, SEL(4));
	load_fails(KERNEL64, lldt, KDATA, VEC_GP, KDATA);
	load_fails(KERNEL64, lldt, 8 | 4, VEC_GP, 8 | 4); /* must be in the GDT */
	load_fails(KERNEL64, lldt, 0xfff0, VEC_GP, 0xfff0);
	load_fails(USER64, lldt, SEL(0), VEC_GP, 0);
	load_works(KERNEL64, load_ds, 8 | 4); /* what failed changed nothing */
	load_works(KERNEL64, lldt, 3);
	load_fails(KERNEL64, load_ds, 8 | 4, VEC_GP, 8 | 4);
}

static void task_register(void)
{
	gdt_set_system(SEL(0), (u64)&tss, sizeof(tss) - 1, 0x80 | DESC_TSS);
	gdt_set_system(SEL(2), (u64)&tss, sizeof(tss) - 1, DESC_TSS);
	load_works(KERNEL64, ltr, SEL(0));
	expect_eq(gdt[SEL(0) / 8] >> 40 & 0xff, 0x80 | DESC_TSS_BUSY);
	load_fails(KERNEL64, ltr, SEL(0), VEC_GP, SEL(0)); /* busy now */
	load_fails(KERNEL64, ltr, SEL(2), VEC_NP, SEL(2));
	load_fails(KERNEL64, ltr, 4, VEC_GP, 4);
	load_fails(KERNEL64, ltr, KDATA, VEC_GP, KDATA);
	load_fails(USER64, ltr, SEL(0), VEC_GP, 0);
}

static void task_register_refused(void)
{
	if (cpuid(0x40000000, 0).ebx == 0x54474354) { /* "TCGT" */
		skip("QEMU 7.2 loads these and aborts at the next exception");
		return;
	}
	gdt_set_system(SEL(4), (u64)&tss, sizeof(tss) - 1, 0x80 | DESC_TSS16);
	load_fails(KERNEL64, ltr, SEL(4), VEC_GP, SEL(4));
	load_fails(KERNEL64, ltr, 0, VEC_GP, 0);
}

static void fs_gs_bases(void)
{
	u64 *p = page_alloc();
	u64 value;

	p[0] = 0x1001;
	p[1] = 0x1002;
	page_map(TEST_HIGH, (u64)p, PTE_P | PTE_W | PTE_U);
	wrmsr(MSR_FS_BASE, TEST_HIGH - 0x100);
	wrmsr(MSR_GS_BASE, TEST_HIGH + 0x100);
	expect_eq(rdmsr(MSR_FS_BASE), TEST_HIGH - 0x100);
	__asm__ volatile("mov %%fs:0x100, %0" : "=r"(value));
	expect_eq(value, 0x1001);
	__asm__ volatile("mov %%gs:(%1), %0" : "=r"(value) : "r"(-0xf8ll));
	expect_eq(value, 0x1002);
	/* The other overrides mean nothing. */
	__asm__ volatile("mov %%es:(%1), %0" : "=r"(value) : "r"(TEST_HIGH));
	expect_eq(value, 0x1001);
	wrmsr(MSR_KERNEL_GS_BASE, 0x1234);
	expect_eq(rdmsr(MSR_KERNEL_GS_BASE), 0x1234);
	/* A descriptor's base is 32 bits wide. */
	gdt_set(SEL(0), descriptor(0xfffff000, 0xfffff, DATA_RW | DPL3, FLAT));
	load_works(KERNEL64, load_fs, SEL(0));
	expect_eq(rdmsr(MSR_FS_BASE), 0xfffff000);
	load_works(KERNEL64, load_gs, SEL(0));
	expect_eq(rdmsr(MSR_GS_BASE), 0xfffff000);
}

CODE_AT(use_wrfsbase, "", "wrfsbase %rcx", "mov %fs:(%rax), %rbx; rdfsbase %rdx");
CODE_AT(use_wrgsbase, "", "wrgsbase %rcx", "mov %gs:(%rax), %rbx; rdgsbase %rdx");
CODE_AT(use_wrfsbase32, "", "wrfsbase %ecx", "rdfsbase %rdx");
CODE_AT(use_rdfsbase, "", "rdfsbase %rcx", "");
CODE_AT(fs_address32, "", "wrfsbase %rcx",
	"mov %fs:(%eax), %rbx; .byte 0x64; lea 8(%rax), %rdx;"
	"mov %ds:(%rdi), %rsi");

static void fsgsbase(void)
{
	u64 *p = page_alloc();
	struct state s = run(USER64, use_rdfsbase);

	expect_trap(&s, VEC_UD, 0, use_rdfsbase_at);
	if (!(cpuid(7, 0).ebx & BIT(0))) {
		skip("no FSGSBASE");
		return;
	}
	write_cr4(read_cr4() | CR4_FSGSBASE);
	p[0] = 0x77;
	page_map(TEST_HIGH, (u64)p, PTE_P | PTE_W | PTE_U);
	for (int gs = 0; gs < 2; gs++) {
		s = state_for(USER64, gs ? use_wrgsbase : use_wrfsbase);
		s.rcx = TEST_HIGH - 0x40;
		s.rax = 0x40;
		exec(&s);
		check(s.vector == VEC_DONE, "vector %d", (int)s.vector);
		expect_eq(s.rbx, 0x77);
		expect_eq(s.rdx, TEST_HIGH - 0x40);
		s = state_for(USER64, gs ? use_wrgsbase : use_wrfsbase);
		s.rcx = 1ull << 55;
		exec(&s);
		expect_trap(&s, VEC_GP, 0, gs ? use_wrgsbase_at : use_wrfsbase_at);
	}
	s = state_for(USER64, use_wrfsbase32);
	s.rcx = 0xffffffff80000000;
	exec(&s);
	expect_done(&s, use_wrfsbase32);
	expect_eq(s.rdx, 0x80000000);
	/* A 32-bit effective address is extended before the base is added; LEA ignores the base. */
	s = state_for(USER64, fs_address32);
	s.rcx = TEST_HIGH - 0xfffffff0;
	s.rax = 0xabcdef00fffffff0;
	s.rdi = TEST_HIGH;
	exec(&s);
	expect_done(&s, fs_address32);
	expect_eq(s.rbx, 0x77);
	expect_eq(s.rdx, s.rax + 8);
	expect_eq(s.rsi, 0x77);
	s = run(KERNEL32, use_rdfsbase); /* 32-bit: no such instruction */
	check(s.vector == VEC_UD, "vector %d in 32-bit code", (int)s.vector);
}

CODE_AT(swapgs, "", "swapgs", "rdgsbase %rax");

static void swap_gs(void)
{
	struct state s = run(USER64, swapgs);

	expect_trap(&s, VEC_GP, 0, swapgs_at);
	if (!(cpuid(7, 0).ebx & BIT(0))) {
		skip("no FSGSBASE");
		return;
	}
	write_cr4(read_cr4() | CR4_FSGSBASE);
	wrmsr(MSR_KERNEL_GS_BASE, 0xffff800012345678);
	s = run(KERNEL64, swapgs);
	expect_done(&s, swapgs);
	expect_eq(s.rax, 0xffff800012345678);
	s = run(KERNEL32, swapgs);
	check(s.vector == VEC_UD, "vector %d in 32-bit code", (int)s.vector);
}

struct far_pointer32 {
	u32 offset;
	u16 selector;
} __packed;

struct far_pointer64 {
	u64 offset;
	u16 selector;
} __packed;

static struct far_pointer32 far32;
static struct far_pointer64 far64;

CODE_AT(jump_far32, "", "ljmp *(%rax)", "");
CODE_AT(jump_far64, "", "rex64 ljmp *(%rax)", "");
CODE_AT(call_far64, "", "rex64 lcall *(%rax)", "");
CODE_AT(call_far32, "", "lcall *(%rax)", "");
CODE(landed, "mov $0x4c, %esi; mov %cs, %edi");

static struct state far_jump(enum exec_mode mode, u16 selector, const u8 *target)
{
	struct state s = state_for(mode, jump_far32);
	bool in_user = mode >= USER64;

	far32 = (struct far_pointer32){(u32)(in_user ? user(target) : (u64)target), selector};
	s.rax = in_user ? user(&far32) : (u64)&far32;
	exec(&s);
	return s;
}

static void far_jumps(void)
{
	struct state s = far_jump(KERNEL64, KCODE64, landed);

	expect_done(&s, landed);
	expect_eq(s.rdi, KCODE64);
	s = far_jump(KERNEL64, KCODE32, landed);
	expect_done(&s, landed);
	expect_eq(s.cs, KCODE32);
	s = far_jump(KERNEL32, KCODE64, landed);
	expect_done(&s, landed);
	expect_eq(s.cs, KCODE64);
	s = far_jump(USER64, UCODE32, landed);
	expect_done(&s, landed);
	expect_eq(s.cs, UCODE32);
	s = far_jump(USER64, UCODE64 & ~3, landed); /* RPL becomes CPL */
	expect_done(&s, landed);
	expect_eq(s.cs, UCODE64);
	s = state_for(KERNEL64, jump_far64);
	far64 = (struct far_pointer64){(u64)landed, KCODE64};
	s.rax = (u64)&far64;
	exec(&s);
	/* With REX.W the pointer is 64 bits wide on Intel; AMD ignores the prefix. */
	if (!cpu_is_amd())
		expect_done(&s, landed);
}

static void far_jump_errors(void)
{
	struct state s;

	make_descriptors();
	gdt_set(SEL(12), descriptor(0, 0xfffff, CODE_RX & ~0x80, LONG));
	gdt_set(SEL(13), descriptor(0, 0xfffff, CODE_RX, LONG | BYTES)); /* L and D */
	gdt_set_system(SEL(14), (u64)&tss, sizeof(tss) - 1, 0x80 | DESC_TSS);
#define jump_fails(mode, selector, vector, code)              \
	do {                                                  \
		s = far_jump(mode, selector, landed);         \
		expect_trap(&s, vector, code, jump_far32_at); \
	} while (0)
	jump_fails(KERNEL64, 0, VEC_GP, 0);
	jump_fails(KERNEL64, 3, VEC_GP, 0);
	jump_fails(KERNEL64, KDATA, VEC_GP, KDATA);
	jump_fails(KERNEL64, 0xfff8, VEC_GP, 0xfff8);
	jump_fails(KERNEL64, SEL(12), VEC_NP, SEL(12));
	jump_fails(KERNEL64, SEL(13), VEC_GP, SEL(13));
	jump_fails(KERNEL64, SEL(14), VEC_GP, SEL(14));
	jump_fails(KERNEL64, SEL(8), VEC_GP, SEL(8));
	jump_fails(KERNEL64, UCODE64, VEC_GP, UCODE64 & ~3); /* DPL is not CPL */
	jump_fails(KERNEL64, KCODE64 | 3, VEC_GP, KCODE64);  /* RPL above CPL */
	jump_fails(USER64, KCODE64, VEC_GP, KCODE64);
#undef jump_fails
}

static void conforming_code(void)
{
	struct state s;

	gdt_set(SEL(0), descriptor(0, 0xfffff, CODE_CONFORMING, LONG));
	gdt_set(SEL(1), descriptor(0, 0xfffff, CODE_CONFORMING | DPL3, LONG));
	s = far_jump(USER64, SEL(0), landed);
	expect_done(&s, landed);
	expect_eq(s.cs, SEL(0) | 3); /* CPL stays 3 */
	s = far_jump(KERNEL64, SEL(1), landed);
	expect_trap(&s, VEC_GP, SEL(1), jump_far32_at);
}

CODE(gate_target, "mov %cs, %edi; mov %ss, %esi; mov %rsp, %rbx; mov (%rsp), %r8;"
		  "mov 8(%rsp), %r9; mov 16(%rsp), %r10; mov 24(%rsp), %r11");
CODE(gate_target_return, "mov $0x99, %ebp; rex64 lret");

static void call_gate(void)
{
	struct state s;
	u64 rsp;

	gdt_set_call_gate(SEL(0), KCODE64, (u64)gate_target, 0x80 | DPL3 | DESC_CALL);
	far32 = (struct far_pointer32){0xbad, SEL(0) | 3};
	s = state_for(USER64, call_far32);
	rsp = s.rsp;
	s.rax = user(&far32);
	exec(&s);
	expect_done(&s, gate_target);
	expect_eq(s.rdi, KCODE64);
	expect_eq(s.rsi, 0);
	expect_eq(s.rbx, tss.rsp[0] - 32);
	expect_eq(s.r8, user(call_far32_next));
	expect_eq(s.r9, UCODE64);
	expect_eq(s.r10, rsp);
	expect_eq(s.r11, UDATA);

	/* There and back. */
	gdt_set_call_gate(SEL(0), KCODE64, (u64)gate_target_return, 0x80 | DPL3 | DESC_CALL);
	s = state_for(USER64, call_far32);
	s.rax = user(&far32);
	exec(&s);
	expect_done(&s, call_far32);
	expect_eq(s.rbp, 0x99);
	expect_eq(s.cs, UCODE64);
	expect_eq(s.ss, UDATA);
	expect_eq(s.rsp, rsp);

	/* Without a change of privilege the stack stays. */
	s = state_for(KERNEL64, call_far32);
	s.rax = (u64)&far32;
	far32.selector = SEL(0);
	exec(&s);
	expect_done(&s, call_far32);
	expect_eq(s.rbp, 0x99);
}

static void call_gate_errors(void)
{
	static const struct {
		u8 access;
		u16 target;
		u8 vector;
		u16 error;
	} cases[] = {
		{DPL3 | DESC_CALL, KCODE64, VEC_NP, SEL(0)},
		{0x80 | DESC_CALL, KCODE64, VEC_GP, SEL(0)},
		{0x80 | DPL3 | DESC_CALL, 0, VEC_GP, 0},
		{0x80 | DPL3 | DESC_CALL, KDATA, VEC_GP, KDATA},
		{0x80 | DPL3 | DESC_CALL, KCODE32, VEC_GP, KCODE32},
		{0x80 | DPL3 | DESC_CALL, 0xfff8, VEC_GP, 0xfff8},
		{0x80 | DPL3 | DESC_CALL16, KCODE64, VEC_GP, SEL(0)},
		{0x80 | DPL3 | DESC_TASK, KCODE64, VEC_GP, SEL(0)},
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct state s = state_for(USER64, call_far32);

		gdt_set_call_gate(SEL(0), cases[i].target, (u64)gate_target, cases[i].access);
		far32 = (struct far_pointer32){0, SEL(0) | 3};
		s.rax = user(&far32);
		exec(&s);
		check(s.vector == cases[i].vector && s.error == cases[i].error &&
			      s.rip == user(call_far32_at),
		      "case %d: vector %d error 0x%lx", (int)i, (int)s.vector, s.error);
	}
}

CODE_AT(far_call_return, "mov %rsp, %rbp", "lcall *(%rax)", "");
CODE(return_far32, "lretl");
CODE(return_far32_imm, "lretl $16");

static void far_call(void)
{
	struct state s = state_for(KERNEL64, far_call_return);

	far32 = (struct far_pointer32){(u32)(u64)return_far32, KCODE64};
	s.rax = (u64)&far32;
	exec(&s);
	expect_done(&s, far_call_return);
	expect_eq(s.rsp, s.rbp);
	far32.offset = (u32)(u64)return_far32_imm;
	s = state_for(KERNEL64, far_call_return);
	s.rax = (u64)&far32;
	exec(&s);
	expect_done(&s, far_call_return);
	expect_eq(s.rsp, s.rbp + 16);
	/* Into 32-bit code and back: the frame has the caller's width. */
	s = state_for(KERNEL32, call_far32);
	far32 = (struct far_pointer32){(u32)(u64)return_far32, KCODE32};
	s.rax = (u64)&far32;
	exec(&s);
	expect_done(&s, call_far32);
}

CODE_AT(return_outer, "push %rdx; push %rcx; push %rbx; push %rax", "rex64 lret", "");
CODE(returned, "mov %ds, %eax; mov %es, %ebx; mov %fs, %ecx; mov %gs, %edx");

static struct state far_return(u64 rip, u64 cs, u64 rsp, u64 ss)
{
	struct state s = state_for(KERNEL64, return_outer);

	s.rax = rip;
	s.rbx = cs;
	s.rcx = rsp;
	s.rdx = ss;
	s.fs = UDATA;
	s.gs = KCODE32; /* readable code, DPL 0 */
	exec(&s);
	return s;
}

/* A far return to ring 3 nulls what ring 3 may not keep in DS, ES, FS, GS. */
static void far_return_outer(void)
{
	u64 stack = user(user_stack + 4096);
	struct state s = far_return(user(returned), UCODE64, stack, UDATA);

	expect_done(&s, returned);
	expect_eq(s.rsp, stack);
	expect_eq(s.ss, UDATA);
	expect_eq(s.rax, 0);
	expect_eq(s.rbx, 0);
	expect_eq(s.rcx, UDATA);
	expect_eq(s.rdx, 0);
	s = far_return(user(returned), UCODE32, stack, UDATA);
	expect_done(&s, returned);
	expect_eq(s.cs, UCODE32);
	s = far_return(user(returned), UCODE64, stack, 3); /* a null stack in 64-bit ring 3 */
	expect_trap(&s, VEC_GP, 0, return_outer_at);
	s = far_return(user(returned), UCODE64, stack, KDATA);
	expect_trap(&s, VEC_GP, KDATA, return_outer_at);
	s = far_return(user(returned), UDATA, stack, UDATA);
	expect_trap(&s, VEC_GP, UDATA & ~3, return_outer_at);
	s = far_return(user(returned), 3, stack, UDATA);
	expect_trap(&s, VEC_GP, 0, return_outer_at);
	s = far_return(user(returned), KCODE64 | 3, stack, UDATA);
	expect_trap(&s, VEC_GP, KCODE64, return_outer_at);
	s = far_return(1ull << 60, UCODE64, stack, UDATA);
	expect_trap(&s, VEC_GP, 0, return_outer_at);
	gdt_set(SEL(0), descriptor(0, 0xfffff, (CODE_RX | DPL3) & ~0x80, LONG));
	s = far_return(user(returned), SEL(0) | 3, stack, UDATA);
	expect_trap(&s, VEC_NP, SEL(0), return_outer_at);
	gdt_set(SEL(1), descriptor(0, 0xfffff, (DATA_RW | DPL3) & ~0x80, FLAT));
	s = far_return(user(returned), UCODE64, stack, SEL(1) | 3);
	expect_trap(&s, VEC_SS, SEL(1), return_outer_at);
}

CODE_AT(return_inner, "push $0x08; lea 1f(%rip), %rax; push %rax; 1:", "rex64 lret", "");

static void far_return_inner(void)
{
	struct state s = run(USER64, return_inner);

	expect_trap(&s, VEC_GP, KCODE64, return_inner_at);
}

CODE(load_pointers,
     "lfs (%rax), %ebx; lgs (%rax), %ecx; lss (%rdx), %esi; mov %fs, %r8d; mov %gs, %r9d");

static void load_far_pointers(void)
{
	struct state s = state_for(KERNEL64, load_pointers);

	far32 = (struct far_pointer32){0x11223344, UDATA};
	memset(buffer, 0, sizeof(buffer));
	s.rax = (u64)&far32;
	s.rdx = (u64)buffer;
	exec(&s);
	check(s.vector == VEC_DONE, "vector %d error 0x%lx", (int)s.vector, s.error);
	expect_eq(s.rbx, 0x11223344);
	expect_eq(s.rcx, 0x11223344);
	expect_eq(s.r8, UDATA);
	expect_eq(s.r9, UDATA);
}

/* A selector is stored with 16 bits to memory, zero-extended to a register. */
CODE(store_selectors, "mov $-1, %rbx; mov %ss, %ebx; mov $-1, %rcx; mov %ss, %cx; push $-1;"
		      "mov %ss, (%rsp); pop %rdx; push %fs; pop %rsi");

static void store_selector(void)
{
	struct state s = state_for(USER64, store_selectors);

	s.fs = UDATA;
	exec(&s);
	expect_done(&s, store_selectors);
	expect_eq(s.rbx, UDATA);
	expect_eq(s.rcx, 0xffffffffffff0000 | UDATA);
	expect_eq(s.rdx, 0xffffffffffff0000 | UDATA);
	expect_eq(s.rsi & 0xffff, UDATA);
}

const struct test tests[] = {
	{"Loading DS, ES, FS, GS", "SDM vol. 2, MOV", load_data, NULL},
	{"Loading SS", "SDM vol. 2, MOV", load_stack, "takes a null SS with RPL 3 in ring 0"},
	{"The accessed bit", "SDM vol. 3, 3.4.5.1", accessed_bit, NULL},
	{"Null selectors outside 64-bit mode", "SDM vol. 3, 3.4.2", null_in_compatibility,
	 "does not check for null selectors on access"},
	{"Segment bases", "SDM vol. 3, 3.2", bases, NULL},
	{"Segment limits", "SDM vol. 3, 5.3", limits, "has no segment limits"},
	{"Stack limits", "SDM vol. 3, 5.3", stack_limits, "has no segment limits"},
	{"Read-only and execute-only segments", "SDM vol. 3, 5.5", segment_types,
	 "does not check segment types on access"},
	{"Code limit", "SDM vol. 3, 5.3", code_limit, "has no segment limits"},
	{"LAR and LSL", "SDM vol. 2, LAR, LSL", lar_lsl, NULL},
	{"VERR and VERW", "SDM vol. 2, VERR", verify, NULL},
	{"SGDT, SIDT, SLDT, STR, SMSW", "SDM vol. 2", tables, NULL},
	{"UMIP", "SDM vol. 3, 2.5", umip, NULL},
	{"LLDT and the local table", "SDM vol. 2, LLDT", local_table, NULL},
	{"LTR", "SDM vol. 2, LTR", task_register, NULL},
	{"LTR of a 16-bit TSS or nothing", "SDM vol. 3, 7.2.3", task_register_refused, NULL},
	{"FS and GS base MSRs", "SDM vol. 3, 3.4.4", fs_gs_bases, NULL},
	{"RDFSBASE to WRGSBASE", "SDM vol. 2, WRFSBASE", fsgsbase,
	 "does not check WRFSBASE for canonical addresses"},
	{"SWAPGS", "SDM vol. 2, SWAPGS", swap_gs, NULL},
	{"Far jumps", "SDM vol. 2, JMP", far_jumps, NULL},
	{"Far jumps that must fail", "SDM vol. 2, JMP", far_jump_errors,
	 "takes code with both L and D"},
	{"Conforming code", "SDM vol. 3, 5.8.1.2", conforming_code, NULL},
	{"Call gates", "SDM vol. 3, 5.8.3.1 and 5.8.5.1", call_gate, NULL},
	{"Call gates that must fail", "SDM vol. 3, 5.8.3.1", call_gate_errors, NULL},
	{"Far call and return", "SDM vol. 2, CALL, RET", far_call, NULL},
	{"Far return to ring 3", "SDM vol. 2, RET", far_return_outer,
	 "faults at a non-canonical target, after the return"},
	{"Far return to an inner ring", "SDM vol. 2, RET", far_return_inner, NULL},
	{"LFS, LGS, LSS", "SDM vol. 2, LFS", load_far_pointers, NULL},
	{"Storing selectors", "SDM vol. 2, MOV", store_selector, NULL},
	{NULL},
};
