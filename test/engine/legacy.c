/*
 * Outside 64-bit mode: paging of 32-bit and PAE mode, task switches, virtual-8086 mode, real mode.
 * Each case leaves long mode for it (legacy.h).
 */
#include "legacy.h"

enum {
	AT = 0x80000000, /* the page under test */
	LOW_END = 64 << 20,
	LARGE32 = 4 << 20,
	LARGE_PAE = 2 << 20,
};

static void expect_legacy(u32 vector, u32 error, const void *at, int line)
{
	check(legacy.trap.vector == vector && legacy.trap.error == error &&
		      legacy.trap.eip == (u32)(u64)at,
	      "line %d: vector %d error 0x%x at 0x%x cr2 0x%x, not vector %d error 0x%x at 0x%x",
	      line, (int)legacy.trap.vector, legacy.trap.error, legacy.trap.eip, legacy.trap.cr2,
	      (int)vector, error, (u32)(u64)at);
}
#define expect_fault(vector, error, at) expect_legacy(vector, error, at, __LINE__)
#define expect_end(name)                expect_legacy(VEC_DONE, 0, name##_end + 2, __LINE__)

/* ---- paging ---- */

/* What the two kinds differ in. */
struct kind {
	bool pae;
	u32 cr4, large;
	u32 entries_shift; /* of a table: 10 or 9 address bits */
};

static const struct kind kinds[] = {
	{false, CR4_PSE, LARGE32, 10},
	{true, CR4_PAE, LARGE_PAE, 9},
};

static const struct kind *kind;
static void *top; /* what CR3 is to hold */

static u64 get_entry(const void *table, u32 n)
{
	return kind->pae ? ((volatile const u64 *)table)[n] : ((volatile const u32 *)table)[n];
}

static void put_entry(void *table, u32 n, u64 value)
{
	if (kind->pae)
		((volatile u64 *)table)[n] = value;
	else
		((volatile u32 *)table)[n] = (u32)value;
}

/* The directory that maps @va, and the index in it. */
static void *directory(u32 va, u32 *n)
{
	*n = va / kind->large & ((1u << kind->entries_shift) - 1);
	if (!kind->pae)
		return top;
	if (!(get_entry(top, va >> 30) & PTE_P))
		put_entry(top, va >> 30, (u64)page_alloc() | PTE_P);
	return (void *)(get_entry(top, va >> 30) & ~0xffful);
}

static void put_directory(u32 va, u64 value)
{
	u32 n;
	void *d = directory(va, &n);

	put_entry(d, n, value);
}

static u64 get_directory(u32 va)
{
	u32 n;
	void *d = directory(va, &n);

	return get_entry(d, n);
}

/* Tables of @k with all that the excursion needs, in large pages. */
static void begin_paging(const struct kind *k)
{
	kind = k;
	top = page_alloc();
	for (u32 va = 0; va < LOW_END; va += k->large)
		put_directory(va, va | PTE_P | PTE_W | PTE_U | PTE_PS);
}

/* QEMU marks the pointers accessed (see pointers_unmarked()), and then KVM rightly refuses these
 * bits. */
static void unmark_pointers(void)
{
	for (u32 n = 0; kind->pae && n < 4; n++)
		put_entry(top, n, get_entry(top, n) & ~PTE_A);
}

static void with_paging(u32 ring, const void *code)
{
	unmark_pointers();
	legacy_prepare(ring, code);
	legacy.cr0 |= CR0_PG | CR0_WP;
	legacy.cr3 = (u32)(u64)top;
	legacy.cr4 = kind->cr4;
	legacy.ebx = AT;
}

CODE_AT(load32, ".code32\n", "mov (%ebx), %eax", "nop");
CODE_AT(store32, ".code32\n", "mov %ecx, (%ebx)", "nop");
CODE_AT(jump32, ".code32\n", "jmp *%ebx", "nop");

static void rights_of(u64 *table)
{
	static const struct {
		u32 flags, ring;
		bool store, wp;
		u32 error; /* 0: none */
	} list[] = {
		{0, 0, false, true, 0x10000},
		{0, 3, true, true, 0x10000 | PF_W | PF_U},
		{PTE_P, 0, false, true, 0},
		{PTE_P, 0, true, true, PF_P | PF_W},
		{PTE_P, 0, true, false, 0},
		{PTE_P, 3, false, true, PF_P | PF_U},
		{PTE_P | PTE_U, 3, false, true, 0},
		{PTE_P | PTE_U, 3, true, true, PF_P | PF_W | PF_U},
		{PTE_P | PTE_U, 3, true, false, PF_P | PF_W | PF_U},
		{PTE_P | PTE_W, 3, true, true, PF_P | PF_W | PF_U},
		{PTE_P | PTE_W | PTE_U, 3, true, true, 0},
	};
	void *page = page_alloc();

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		const void *at = list[i].store ? store32_at : load32_at;

		put_entry(table, 0, (u64)page | list[i].flags);
		with_paging(list[i].ring, list[i].store ? store32 : load32);
		if (!list[i].wp)
			legacy.cr0 &= ~(u32)CR0_WP;
		legacy_run();
		if (list[i].error) {
			expect_fault(VEC_PF, list[i].error & 0xffff, at);
			expect_eq(legacy.trap.cr2, AT);
		} else {
			expect_eq(legacy.trap.vector, VEC_DONE);
		}
	}
}

static void paging_rights(void)
{
	for (u32 k = 0; k < ARRAY_SIZE(kinds); k++) {
		void *table;

		begin_paging(&kinds[k]);
		with_paging(0, load32);
		legacy_run(); /* the directory's entry is missing */
		expect_fault(VEC_PF, 0, load32_at);
		table = page_alloc();
		put_directory(AT, (u64)table | PTE_P | PTE_W | PTE_U);
		rights_of(table);
		/* A directory's entry takes rights away. */
		put_entry(table, 0, (u64)page_alloc() | PTE_P | PTE_W | PTE_U);
		put_directory(AT, (u64)table | PTE_P | PTE_U);
		with_paging(3, store32);
		legacy_run();
		expect_fault(VEC_PF, PF_P | PF_W | PF_U, store32_at);
	}
}

static void paging_marks(void)
{
	for (u32 k = 0; k < ARRAY_SIZE(kinds); k++) {
		void *table = page_alloc();
		u32 *page = page_alloc();

		begin_paging(&kinds[k]);
		put_directory(AT, (u64)table | PTE_P | PTE_W);
		put_entry(table, 0, (u64)page | PTE_P | PTE_W);
		page[0] = 0x12345678;
		with_paging(0, load32);
		legacy_run();
		expect_end(load32);
		expect_eq(legacy.trap.eax, 0x12345678);
		expect_eq(get_entry(table, 0), (u64)page | PTE_P | PTE_W | PTE_A);
		expect_eq(get_directory(AT) & (PTE_A | PTE_D), PTE_A);
		with_paging(0, store32);
		legacy.ecx = 0xabcd;
		legacy_run();
		expect_end(store32);
		expect_eq(*(volatile u32 *)page, 0xabcd);
		expect_eq(get_entry(table, 0), (u64)page | PTE_P | PTE_W | PTE_A | PTE_D);
	}
}

static void paging_large(void)
{
	for (u32 k = 0; k < ARRAY_SIZE(kinds); k++) {
		u32 *word = page_alloc();
		u64 base = (u64)word & ~(u64)(kinds[k].large - 1);

		begin_paging(&kinds[k]);
		put_directory(AT, base | PTE_P | PTE_W | PTE_PS);
		with_paging(0, store32);
		legacy.ebx = AT + (u32)((u64)word - base);
		legacy.ecx = 0x4711;
		legacy_run();
		expect_end(store32);
		expect_eq(*(volatile u32 *)word, 0x4711);
		expect_eq(get_directory(AT), base | PTE_P | PTE_W | PTE_PS | PTE_A | PTE_D);
		/* Bit 21 in 32-bit mode, 13 to 20 in PAE mode lie below the address. */
		put_directory(AT, base | PTE_P | PTE_W | PTE_PS | (kind->pae ? BIT(13) : BIT(21)));
		with_paging(0, load32);
		legacy_run();
		expect_fault(VEC_PF, PF_P | PF_RSVD, load32_at);
	}
}

/* Without CR4.PSE bit 7 means nothing. */
static void paging_no_pse(void)
{
	void *table = page_alloc();
	u32 *page = page_alloc();

	begin_paging(&kinds[0]);
	for (u32 va = 0; va < LOW_END; va += LARGE32) {
		void *low = page_alloc();

		for (u32 n = 0; n < 1024; n++)
			put_entry(low, n, (va + n * PAGE_SIZE) | PTE_P | PTE_W | PTE_U);
		put_directory(va, (u64)low | PTE_P | PTE_W | PTE_U);
	}
	put_directory(AT, (u64)table | PTE_P | PTE_W | PTE_PS);
	put_entry(table, 0, (u64)page | PTE_P | PTE_W);
	page[0] = 0x77;
	with_paging(0, load32);
	legacy.cr4 = 0;
	legacy_run();
	expect_end(load32);
	expect_eq(legacy.trap.eax, 0x77);
}

static void paging_no_execute(void)
{
	void *table = page_alloc();
	u8 *page = page_alloc();

	begin_paging(&kinds[1]);
	put_directory(AT, (u64)table | PTE_P | PTE_W | PTE_U);
	page[0] = 0xcd; /* INT VEC_DONE */
	page[1] = VEC_DONE;
	for (u32 nx = 0; nx < 2; nx++) {
		for (u32 nxe = 0; nxe < 2; nxe++) {
			put_entry(table, 0, (u64)page | PTE_P | PTE_W | PTE_U | (nx ? PTE_NX : 0));
			with_paging(0, nx && !nxe ? load32 : jump32);
			legacy.efer &= ~(u32)EFER_NXE;
			legacy.efer |= nxe ? EFER_NXE : 0;
			legacy_run();
			if (!nx)
				expect_fault(VEC_DONE, 0, (void *)(u64)(AT + 2));
			else if (nxe)
				expect_fault(VEC_PF, PF_P | PF_I, (void *)(u64)AT);
			else
				expect_fault(VEC_PF, PF_P | PF_RSVD, load32_at);
		}
	}
}

static void paging_pointers(void)
{
	begin_paging(&kinds[1]);
	put_entry(top, 2, 0);
	with_paging(3, load32);
	legacy_run();
	expect_fault(VEC_PF, PF_U, load32_at);
}

/* They have no accessed bit: it is reserved. */
static void pointers_unmarked(void)
{
	void *table = page_alloc();

	begin_paging(&kinds[1]);
	put_directory(AT, (u64)table | PTE_P | PTE_W);
	put_entry(table, 0, (u64)page_alloc() | PTE_P | PTE_W);
	with_paging(0, store32);
	legacy_run();
	expect_end(store32);
	expect_eq(get_entry(top, 0) & ~0xffful, get_entry(top, 0) - PTE_P);
	expect_eq(get_entry(top, 2) & ~0xffful, get_entry(top, 2) - PTE_P);
	/* Reserved bits are found when paging is switched on. */
	with_paging(0, load32);
	put_entry(top, 2, get_entry(top, 2) | PTE_W);
	legacy_run();
	expect_eq(legacy.trap.vector, VEC_GP);
	expect_eq(legacy.trap.error, 0);
	expect_eq(legacy.trap.cr0 & CR0_PG, 0);
}

/* ---- task switches ---- */

enum {
	TASK = LEGACY_FREE,
	TASK_GATE = TASK + 8,
	VEC_TASK = 0x31,
	TSS_AVAILABLE = 0x89,
	TSS_IS_BUSY = 0x8b
};

static struct tss32 task __attribute__((aligned(128)));

CODE(in_task, ".code32\n nop");
CODE(task_returns, ".code32\n mov $0x99, %eax; iret; int $0x31");
CODE_AT(task_jump, ".code32\n mov $1, %eax; mov $2, %ebx", "ljmp $0x68, $0", "nop");
CODE_AT(task_call, ".code32\n", "lcall $0x68, $0", "mov %cr0, %ecx");
CODE_AT(task_by_gate, ".code32\n", "ljmp $0x70, $0", "nop");
CODE_AT(task_int, ".code32\n", "int $0x31", "nop");

static u8 access_of(u32 selector)
{
	return (u8)(*(volatile u64 *)&gdt[selector / 8] >> 40);
}

static void prepare_task(const void *code, const void *task_code)
{
	legacy_prepare(0, code);
	memset(&task, 0, sizeof(task));
	task.eip = (u32)(u64)task_code;
	task.eflags = RFLAGS_1 | RFLAGS_CF;
	task.eax = 0x1001;
	task.ecx = 0x1002;
	task.edx = 0x1003;
	task.ebx = 0x1004;
	task.ebp = 0x1006;
	task.esi = 0x1007;
	task.edi = 0x1008;
	task.esp = (u32)(u64)(kernel_stack + sizeof(kernel_stack) - 256);
	task.cs = KCODE32;
	task.ss = task.ds = task.es = KDATA;
	task.fs = task.gs = KDATA;
	task.io_bitmap = sizeof(task);
	gdt_set(TASK, descriptor((u32)(u64)&task, sizeof(task) - 1, TSS_AVAILABLE, 0));
	gdt_set(TASK_GATE, (u64)TASK << 16 | (u64)0x85 << 40);
	legacy_gate(VEC_TASK, 0, TASK, 0x85);
}

static void expect_task_ran(int line)
{
	expect_legacy(VEC_DONE, 0, in_task_end + 2, line);
	expect_eq(legacy.trap.eax, 0x1001);
	expect_eq(legacy.trap.ecx, 0x1002);
	expect_eq(legacy.trap.edx, 0x1003);
	expect_eq(legacy.trap.ebx, 0x1004);
	expect_eq(legacy.trap.ebp, 0x1006);
	expect_eq(legacy.trap.esi, 0x1007);
	expect_eq(legacy.trap.edi, 0x1008);
	expect_eq(legacy.trap.tr, TASK);
	expect_eq(legacy.trap.cr0 & CR0_TS, CR0_TS);
	expect_eq(access_of(TASK), TSS_IS_BUSY);
	expect_eq(legacy.trap.eflags & RFLAGS_CF, RFLAGS_CF);
}

static void task_by_jump(void)
{
	for (u32 gate = 0; gate < 2; gate++) {
		prepare_task(gate ? task_by_gate : task_jump, in_task);
		legacy_run();
		expect_task_ran(__LINE__);
		expect_eq(legacy.trap.eflags & RFLAGS_NT, 0);
		expect_eq(access_of(LEGACY_TSS), TSS_AVAILABLE);
		expect_eq(legacy_tss.eip, (u32)(u64)(gate ? task_by_gate_next : task_jump_next));
		if (!gate) {
			expect_eq(legacy_tss.eax, 1);
			expect_eq(legacy_tss.ebx, 2);
		}
		expect_eq(legacy_tss.cs, KCODE32);
		expect_eq(legacy_tss.ds, KDATA);
	}
}

static void task_nested(void)
{
	static const struct {
		const u8 *code, *next;
	} list[] = {{task_call, task_call_next}, {task_int, task_int_next}};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		prepare_task(list[i].code, in_task);
		legacy_run();
		expect_task_ran(__LINE__);
		expect_eq(legacy.trap.eflags & RFLAGS_NT, RFLAGS_NT);
		expect_eq(task.link & 0xffff, LEGACY_TSS);
		expect_eq(access_of(LEGACY_TSS), TSS_IS_BUSY);
		expect_eq(legacy_tss.eip, (u32)(u64)list[i].next);
	}
}

static void task_return(void)
{
	prepare_task(task_call, task_returns);
	legacy_run();
	expect_end(task_call);
	expect_eq(legacy.trap.tr, LEGACY_TSS);
	expect_eq(legacy.trap.ecx & CR0_TS, CR0_TS);
	expect_eq(legacy.trap.eflags & RFLAGS_NT, 0);
	expect_eq(access_of(LEGACY_TSS), TSS_IS_BUSY);
	expect_eq(access_of(TASK), TSS_AVAILABLE);
	/* The outgoing task's state: NT is cleared in what is saved. */
	expect_eq(task.eax, 0x99);
	expect_eq(task.eflags & RFLAGS_NT, 0);
}

static void task_refused(void)
{
	prepare_task(task_jump, in_task);
	gdt_set(TASK, descriptor((u32)(u64)&task, sizeof(task) - 1, TSS_IS_BUSY, 0));
	legacy_run();
	expect_fault(VEC_GP, TASK, task_jump_at);
	prepare_task(task_jump, in_task);
	gdt_set(TASK, descriptor((u32)(u64)&task, 0x66, TSS_AVAILABLE, 0));
	legacy_run();
	expect_fault(VEC_TS, TASK, task_jump_at);
	prepare_task(task_jump, in_task);
	gdt_set(TASK, descriptor((u32)(u64)&task, sizeof(task) - 1, TSS_AVAILABLE & 0x7f, 0));
	legacy_run();
	expect_fault(VEC_NP, TASK, task_jump_at);
	/* Found in the new task: the fault is its own. */
	prepare_task(task_jump, in_task);
	task.ds = LEGACY_TSS;
	legacy_run();
	expect_fault(VEC_TS, LEGACY_TSS, in_task);
	expect_eq(legacy.trap.tr, TASK);
}

/* The new task has an address space of its own. */
static void task_loads_cr3(void)
{
	void *table = page_alloc(), *first;
	u32 *page = page_alloc();

	begin_paging(&kinds[0]);
	first = top;
	begin_paging(&kinds[0]);
	put_directory(AT, (u64)table | PTE_P | PTE_W);
	put_entry(table, 0, (u64)page | PTE_P | PTE_W);
	page[0] = 0x5151;
	prepare_task(task_jump, load32);
	legacy.cr0 |= CR0_PG;
	legacy.cr3 = (u32)(u64)first;
	legacy.cr4 = CR4_PSE;
	task.cr3 = (u32)(u64)top;
	task.ebx = AT;
	legacy_run();
	expect_end(load32);
	expect_eq(legacy.trap.eax, 0x5151);
}

/* ---- virtual-8086 mode ---- */

enum { V86_SEGMENT = 0x900, V86_DATA = 0xa00, V86_STACK = 0xb00 };

CODE(v86_work, ".code16\n mov (0x10), %ax; mov %es:(0x20), %bx; push %ax; pop %cx; add $0x11, %cx");
CODE(v86_cli, ".code16\n cli");
CODE(v86_pushf, ".code16\n pushf");
CODE(v86_iret, ".code16\n iret");
CODE(v86_hlt, ".code16\n hlt");
CODE(v86_lldt, ".code16\n lldt %ax");
CODE(v86_word, ".code16\n mov %ds:(0xffff), %ax");
CODE(v86_in, ".code16\n in $0x61, %al");

/* @code is copied to its segment. */
static void prepare_v86(const u8 *code, const u8 *end, u32 iopl)
{
	legacy_prepare(3, NULL);
	memcpy((void *)(u64)(V86_SEGMENT * 16), code, (u64)(end - code) + 2);
	legacy.start.eip = 0;
	legacy.start.cs = V86_SEGMENT;
	legacy.start.ss = V86_STACK;
	legacy.start.esp = 0x800;
	legacy.start.ds = legacy.start.es = legacy.start.fs = V86_DATA;
	legacy.start.gs = 0x1234;
	legacy.start.eflags = RFLAGS_1 | (u32)RFLAGS_VM | iopl << 12;
}
#define PREPARE_V86(name, iopl) prepare_v86(name, name##_end, iopl)

static void v86_runs(void)
{
	volatile u16 *data = (u16 *)(u64)(V86_DATA * 16);

	PREPARE_V86(v86_work, 3);
	legacy.start.es = V86_DATA + 1;
	data[0x10 / 2] = 0xbeef;
	data[0x30 / 2] = 0xcafe;
	legacy_run();
	expect_fault(VEC_DONE, 0, (void *)(v86_work_end - v86_work + 2));
	expect_eq(legacy.trap.eax & 0xffff, 0xbeef);
	expect_eq(legacy.trap.ebx & 0xffff, 0xcafe);
	expect_eq(legacy.trap.ecx & 0xffff, 0xbf00);
	/* All segment registers are on the stack. */
	expect_eq(legacy.trap.cs, V86_SEGMENT);
	expect_eq(legacy.trap.eflags & RFLAGS_VM, RFLAGS_VM);
	expect_eq(legacy.trap.outer_ss, V86_STACK);
	expect_eq(legacy.trap.outer_esp, 0x800);
	expect_eq(legacy.trap.es, V86_DATA + 1);
	expect_eq(legacy.trap.ds, V86_DATA);
	expect_eq(legacy.trap.fs, V86_DATA);
	expect_eq(legacy.trap.gs, 0x1234);
}

static void v86_refuses(void)
{
	static const struct {
		const u8 *code, *end;
		u32 iopl, vector;
	} list[] = {
		{v86_cli, v86_cli_end, 0, VEC_GP},     {v86_cli, v86_cli_end, 3, VEC_DONE},
		{v86_pushf, v86_pushf_end, 0, VEC_GP}, {v86_pushf, v86_pushf_end, 3, VEC_DONE},
		{v86_iret, v86_iret_end, 0, VEC_GP},   {v86_iret_end, v86_iret_end, 0, VEC_GP},
		{v86_hlt, v86_hlt_end, 3, VEC_GP},     {v86_lldt, v86_lldt_end, 3, VEC_UD},
		{v86_word, v86_word_end, 3, VEC_GP},   {v86_in, v86_in_end, 3, VEC_GP},
	};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		u32 length = (u32)(list[i].end - list[i].code);

		prepare_v86(list[i].code, list[i].end, list[i].iopl);
		legacy_run();
		check(legacy.trap.vector == list[i].vector && !legacy.trap.error &&
			      legacy.trap.eip == (list[i].vector == VEC_DONE ? length + 2 : 0) &&
			      legacy.trap.eflags & RFLAGS_VM,
		      "%u: vector %d error 0x%x at 0x%x", i, (int)legacy.trap.vector,
		      legacy.trap.error, legacy.trap.eip);
	}
}

/* ---- real mode ---- */

CODE(real_work, ".code16\n mov (0x10), %ax; mov %es:(0x20), %bx; push %ax; pop %cx; smsw %dx; sti");
CODE(real_word, ".code16\n mov %ds:(0xffff), %ax");
CODE(real_far, ".code16\n mov $0x10000, %ebx; mov (%ebx), %ax");
CODE(real_lldt, ".code16\n lldt %ax");
CODE(real_divide, ".code16\n xor %cx, %cx; div %cx");

static void prepare_real(const u8 *code, const u8 *end)
{
	prepare_v86(code, end, 0);
	legacy.cr0 = 0;
	legacy.start.eflags = RFLAGS_1;
	legacy.start.fs = legacy.start.gs = 0;
}

static void real_runs(void)
{
	volatile u16 *data = (u16 *)(u64)(V86_DATA * 16);

	prepare_real(real_work, real_work_end);
	legacy.start.es = V86_DATA + 1;
	data[0x10 / 2] = 0xbeef;
	data[0x30 / 2] = 0xcafe;
	legacy_run();
	expect_fault(VEC_DONE, 0, (void *)(real_work_end - real_work + 2));
	expect_eq(legacy.trap.eax & 0xffff, 0xbeef);
	expect_eq(legacy.trap.ebx & 0xffff, 0xcafe);
	expect_eq(legacy.trap.ecx & 0xffff, 0xbeef);
	expect_eq(legacy.trap.edx & CR0_PE, 0);
	expect_eq(legacy.trap.cs, V86_SEGMENT);
	expect_eq(legacy.trap.eflags & RFLAGS_IF, RFLAGS_IF); /* the handler's is clear */
	expect_eq(legacy.trap.outer_ss, V86_STACK);
	expect_eq(legacy.trap.outer_esp, 0x800 - 6);
}

/* Exceptions have no error codes there. */
static void real_exceptions(void)
{
	static const struct {
		const u8 *code, *end;
		u32 vector, ip;
	} list[] = {
		{real_lldt, real_lldt_end, VEC_UD, 0},
		{real_divide, real_divide_end, VEC_DE, 2},
		{real_word, real_word_end, VEC_GP, 0},
		{real_far, real_far_end, VEC_GP, 6},
	};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		prepare_real(list[i].code, list[i].end);
		legacy_run();
		check(legacy.trap.vector == list[i].vector && legacy.trap.eip == list[i].ip &&
			      legacy.trap.cs == V86_SEGMENT && legacy.trap.outer_esp == 0x800 - 6,
		      "%u: vector %d at 0x%x", i, (int)legacy.trap.vector, legacy.trap.eip);
	}
}

static const char rsvd_alone[] = "leaves out P beside RSVD";

const struct test tests[] = {
	{"32-bit and PAE paging: rights", "SDM vol. 3, 4.6", paging_rights, NULL},
	{"32-bit and PAE paging: accessed and dirty", "SDM vol. 3, 4.8", paging_marks, NULL},
	{"32-bit and PAE paging: large pages", "SDM vol. 3, 4.3 and 4.4.2", paging_large,
	 rsvd_alone},
	{"32-bit paging without CR4.PSE", "SDM vol. 3, 4.3", paging_no_pse, NULL},
	{"PAE paging: NX", "SDM vol. 3, 4.4.2 and 4.6", paging_no_execute, rsvd_alone},
	{"PAE paging: a missing directory", "SDM vol. 3, 4.4.1", paging_pointers, NULL},
	{"PAE paging: bits of the pointers", "SDM vol. 3, 4.4.1", pointers_unmarked,
	 "marks them accessed"},
	{"A task switch by JMP, and through a gate", "SDM vol. 3, 7.3", task_by_jump, NULL},
	{"Task switches by CALL and INT are nested", "SDM vol. 3, 7.4", task_nested, NULL},
	{"IRET switches back", "SDM vol. 3, 7.4", task_return, NULL},
	{"Task switches that must fail", "SDM vol. 3, table 7-1", task_refused,
	 "raises the new task's fault with the old one's EIP"},
	{"A task switch loads CR3", "SDM vol. 3, 7.3", task_loads_cr3, NULL},
	{"Virtual-8086 mode", "SDM vol. 3, 20.2 and 20.3", v86_runs, NULL},
	{"What virtual-8086 mode refuses", "SDM vol. 3, 20.2.7 and 20.3", v86_refuses,
	 "does not check limits"},
	{"Real mode", "SDM vol. 3, 20.1", real_runs, NULL},
	{"Exceptions of real mode", "SDM vol. 3, 20.1.4 and table 20-1", real_exceptions,
	 "does not check limits"},
	{NULL},
};
