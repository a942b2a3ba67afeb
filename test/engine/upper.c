/*
 * Kernel memory in the upper half of the address space, global as kernels map theirs: loads, stores
 * and stacks when what is mapped there changes.
 *
 * Each access is made by new code, which an engine knows nothing about. What the guest does itself,
 * and runs time and again, meets all kinds of memory.
 */
#include "guest.h"

#define GLOBAL  (PTE_P | PTE_W | PTE_G)
#define AT      (TEST_HIGH + 0x5000)
#define LARGE   (2ul << 20)
#define PATTERN 0x1122334455667788ul

enum { SLOT = 64, COPIES = 4096 };

CODE_AT(load, "", "mov (%rax), %rbx", "");
CODE_AT(store, "", "mov %rcx, (%rax)", "");
CODE_AT(add, "", "add %rcx, 8(%rax)", "");
CODE_AT(pushes, "", "push %rcx", "push %rcx; pop %rbx; call 1f; 1: pop %rdx; pop %rsi");
CODE(fields, "mov 8(%rax), %rbx; add 16(%rax), %rbx; mov %rbx, 24(%rax); cmp %rbx, %rcx;"
	     "mov (%rax), %rdx; sete %bl; movzbl %bl, %ebx");

static u8 copies[COPIES][SLOT] __attribute__((aligned(64)));
static u32 used;

/* A new copy of the code, in memory that nothing ran in before. */
static const u8 *copy(const u8 *code, const u8 *end)
{
	if (used == COPIES)
		die("out of copies");
	memcpy(copies[used], code, (u64)(end - code) + 2); /* and INT */
	return copies[used++];
}

/* Run a copy of its own of the code; rip is told as in the original. */
static void exec_copy(struct state *s, const u8 *code, const u8 *end)
{
	const u8 *at = copy(code, end);

	s->rip = (u64)at;
	exec(s);
	if (s->rip - (u64)at < SLOT)
		s->rip += (u64)(code - at);
}

static struct state access_by(const u8 *code, const u8 *end, u64 address)
{
	struct state s = state_for(KERNEL64, code);

	s.rax = address;
	s.rcx = PATTERN;
	s.rbx = 0xdead;
	exec_copy(&s, code, end);
	return s;
}
#define access(name, address) access_by(name, name##_end, address)

static void set_up(void)
{
	write_cr4(read_cr4() | CR4_PGE);
	/* What tells an engine that there is a kernel in the upper half. */
	wrmsr(MSR_LSTAR, TEST_HIGH);
}

static void check_access(struct state s, u64 rbx, int line)
{

	check(s.vector == VEC_DONE && s.rbx == rbx,
	      "line %d: vector %d error 0x%lx cr2 0x%lx rbx 0x%lx, not 0x%lx", line, (int)s.vector,
	      s.error, s.cr2, s.rbx, rbx);
}

static void check_fault(struct state s, u64 error, u64 cr2, int line)
{

	check(s.vector == VEC_PF && s.error == error && s.cr2 == cr2 && s.rbx == 0xdead,
	      "line %d: vector %d error 0x%lx cr2 0x%lx rbx 0x%lx, not #PF 0x%lx cr2 0x%lx", line,
	      (int)s.vector, s.error, s.cr2, s.rbx, error, cr2);
}

#define loads(address, value)             check_access(access(load, address), value, __LINE__)
#define stores(address)                   check_access(access(store, address), 0xdead, __LINE__)
#define faults(name, address, error, cr2) check_fault(access(name, address), error, cr2, __LINE__)

static void plain(void)
{
	volatile u64 *page = page_alloc();

	set_up();
	page_map(AT, (u64)page, GLOBAL);
	for (u32 n = 0; n < 6; n++) {
		struct state s;

		page[9] = n;
		loads(AT + 72, n);
		stores(AT + 80);
		expect_eq(page[10], PATTERN);
		page[10] = 0;
		access(add, AT + 80);
		expect_eq(page[11], PATTERN * (n + 1));
		page[21] = PATTERN - 5;
		page[22] = n;
		s = access(fields, AT + 160);
		expect_done(&s, fields);
		expect_eq(s.rbx, n == 5);
		expect_eq(page[23], PATTERN - 5 + n);
	}
}

/* REP STOS of a known count, in one page, across two, and into what is not there. */
CODE_AT(clear, "mov $5, %ecx", "rep stosq", "");

static void clears(u64 address, u32 done, int line)
{
	struct state s = state_for(KERNEL64, clear);

	s.rdi = address;
	s.rax = PATTERN;
	exec_copy(&s, clear, clear_end);
	check(s.vector == (done == 5 ? VEC_DONE : VEC_PF) && s.rcx == 5 - done &&
		      s.rdi == address + 8 * done &&
		      s.rip == (u64)(done == 5 ? clear_end + 2 : clear_at),
	      "line %d: vector %d rcx %d rdi 0x%lx rip 0x%lx", line, (int)s.vector, (int)s.rcx,
	      s.rdi, s.rip);
}

static void cleared(void)
{
	volatile u64 *page[2] = {page_alloc(), page_alloc()};

	set_up();
	for (u32 n = 0; n < 4; n++) {
		page_map(AT, (u64)page[0], GLOBAL);
		page_map(AT + PAGE_SIZE, (u64)page[1], GLOBAL);
		clears(AT + 8, 5, __LINE__);
		expect_eq(page[0][1] + page[0][5], 2 * PATTERN);
		clears(AT + PAGE_SIZE - 16, 5, __LINE__);
		expect_eq(page[0][511] + page[1][2], 2 * PATTERN);
		page_map(AT + PAGE_SIZE, 0, 0);
		page[0][510] = page[0][511] = page[1][0] = 0;
		clears(AT + PAGE_SIZE - 16, 2, __LINE__);
		expect_eq(page[0][510] + page[0][511], 2 * PATTERN);
		clears(AT + PAGE_SIZE, 0, __LINE__);
		expect_eq(page[1][0], 0);
		page[0][1] = page[0][5] = page[1][2] = 0;
	}
}

static void remapped(void)
{
	volatile u64 *page[2] = {page_alloc(), page_alloc()};

	set_up();
	for (u32 n = 0; n < 8; n++) {
		page[n & 1][1] = n;
		page_map(AT, (u64)page[n & 1], GLOBAL);
		loads(AT + 8, n);
		stores(AT);
		expect_eq(page[n & 1][0], PATTERN);
		page[n & 1][0] = 0;
		page_map(AT, 0, 0);
		faults(load, AT + 8, 0, AT + 8);
		faults(store, AT + 8, PF_W, AT + 8);
	}
}

static void flushed(void)
{
	volatile u64 *page[2] = {page_alloc(), page_alloc()};
	u64 *entry = page_map(AT, (u64)page[0], GLOBAL);

	set_up();
	page[0][1] = 1000;
	page[1][1] = 1001;
	for (u32 n = 0; n < 8; n++) {
		*(volatile u64 *)entry = (u64)page[n & 1] | GLOBAL;
		tlb_flush();
		loads(AT + 8, 1000 + (n & 1));
		stores(AT);
		expect_eq(page[n & 1][0], PATTERN);
		page[n & 1][0] = 0;
	}
}

/* CR0.WP says whether the kernel minds (SDM vol. 3, 4.6). */
static void read_only(void)
{
	volatile u64 *page = page_alloc();

	set_up();
	page_map(AT, (u64)page, PTE_P | PTE_G);
	for (u32 n = 0; n < 4; n++) {
		loads(AT + 8, 0);
		faults(store, AT, PF_P | PF_W, AT);
		write_cr0(read_cr0() & ~CR0_WP);
		stores(AT);
		expect_eq(page[0], PATTERN);
		page[0] = 0;
		write_cr0(read_cr0() | CR0_WP);
		faults(store, AT, PF_P | PF_W, AT);
		expect_eq(page[0], 0);
	}
}

static void marks(void)
{
	u64 *entry, pa = (u64)page_alloc();

	set_up();
	for (u32 n = 0; n < 4; n++) {
		entry = page_map(AT, pa, GLOBAL);
		loads(AT, 0);
		loads(AT + 8, 0);
		expect_eq(*(volatile u64 *)entry & (PTE_A | PTE_D), PTE_A);
		stores(AT + 64);
		expect_eq(*(volatile u64 *)entry & (PTE_A | PTE_D), PTE_A | PTE_D);
	}
}

/* What is not global goes with its address space. */
static void not_global(void)
{
	const u32 slot = TEST_HIGH >> 39 & 511;
	volatile u64 *page[2] = {page_alloc(), page_alloc()};
	u64 cr3 = read_cr3(), *root = page_alloc(), first;

	set_up();
	page_map(AT, (u64)page[0], PTE_P | PTE_W);
	memcpy(root, (void *)(cr3 & ~0xffful), PAGE_SIZE);
	first = root[slot];
	((volatile u64 *)cr3)[slot] = 0;
	page_map(AT, (u64)page[1], PTE_P | PTE_W);
	root[slot] = first;
	page[0][1] = 7;
	page[1][1] = 8;
	for (u32 n = 0; n < 8; n++) {
		write_cr3(n & 1 ? cr3 : (u64)root);
		loads(AT + 8, n & 1 ? 8 : 7);
		stores(AT);
		expect_eq(page[n & 1][0], PATTERN);
		page[n & 1][0] = 0;
	}
	write_cr3(cr3);
}

static void invpcid(u64 type, u64 pcid, u64 address)
{
	struct {
		u64 pcid, address;
	} descriptor = {pcid, address};

	__asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

/* One page each for two PCIDs, between which nothing is flushed; then others in their places. */
static void not_global_pcid(void)
{
	const u32 slot = TEST_HIGH >> 39 & 511;
	const u64 bits = PTE_P | PTE_W, keep = BIT(63);
	volatile u64 *page[4], *pte[2];
	u64 cr3[2] = {read_cr3(), (u64)page_alloc() | 1}, first;

	if (!(cpuid(1, 0).ecx & BIT(17)) || !(cpuid(7, 0).ebx & BIT(10))) {
		skip("no PCID or INVPCID");
		return;
	}
	set_up();
	for (u32 n = 0; n < ARRAY_SIZE(page); n++) {
		page[n] = page_alloc();
		page[n][1] = n;
	}
	pte[1] = page_map(AT, (u64)page[1], bits);
	memcpy((void *)(cr3[1] & ~0xffful), (void *)cr3[0], PAGE_SIZE);
	first = ((volatile u64 *)cr3[0])[slot];
	((volatile u64 *)cr3[0])[slot] = 0;
	pte[0] = page_map(AT, (u64)page[0], bits);
	((volatile u64 *)(cr3[1] & ~0xffful))[slot] = first;
	write_cr4(read_cr4() | CR4_PCIDE);
	for (u32 n = 0; n < 16; n++) {
		const u32 now = n & 1, other = now ^ 1, old = n >> 1 & 2;

		write_cr3(cr3[now] | keep);
		loads(AT + 8, now | old);
		stores(AT + 16);
		expect_eq(page[now | old][2], PATTERN);
		page[now | old][2] = 0;
		if (n % 4 < 2)
			continue;
		/* All see others from now on: one by its own flush, one by another's. */
		if (now) {
			*pte[0] = (u64)page[old ^ 2] | bits;
			*pte[1] = (u64)page[1 | (old ^ 2)] | bits;
			invpcid(n & 8 ? 0 : 1, other, n & 8 ? AT : 0);
			write_cr3(cr3[now]);
			loads(AT + 8, now | (old ^ 2));
		}
	}
	write_cr3(cr3[0]);
	write_cr4(read_cr4() & ~CR4_PCIDE);
}

/* What is at @gva, as a load and as a string instruction find it. */
static void check_both(u64 gva, u64 value, int line)
{
	u64 copy = 0, to = (u64)&copy, from = gva, count = sizeof(copy);

	check_access(access(load, gva), value, line);
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
	check(copy == value, "line %d: copied 0x%lx, not 0x%lx", line, copy, value);
}

/* One page for both, which each kind of invalidation changes. */
static void not_global_shared(void)
{
	const u64 bits = PTE_P | PTE_W, keep = BIT(63);
	volatile u64 *page[2] = {page_alloc(), page_alloc()}, *pte;
	u64 cr3[2] = {read_cr3(), (u64)page_alloc() | 1};

	if (!(cpuid(1, 0).ecx & BIT(17)) || !(cpuid(7, 0).ebx & BIT(10))) {
		skip("no PCID or INVPCID");
		return;
	}
	set_up();
	pte = page_map(AT, (u64)page[0], bits);
	memcpy((void *)(cr3[1] & ~0xffful), (void *)cr3[0], PAGE_SIZE);
	page[0][1] = 100;
	page[1][1] = 101;
	write_cr4(read_cr4() | CR4_PCIDE);
	for (u32 n = 0; n < 40; n++) {
		const u32 now = n & 1, kind = n / 2 % 5;

		check_both(AT + 8, 100 + now, __LINE__);
		write_cr3(cr3[now ^ 1] | keep);
		check_both(AT + 8, 100 + now, __LINE__);
		write_cr3(cr3[now] | keep);
		*pte = (u64)page[now ^ 1] | bits;
		if (kind < 2) { /* of the other, then of its own */
			invpcid(kind, now ^ 1, kind ? 0 : AT);
			write_cr3(cr3[now ^ 1] | keep);
			check_both(AT + 8, 100 + (now ^ 1), __LINE__);
			write_cr3(cr3[now] | keep);
			invpcid(kind, now, kind ? 0 : AT);
		} else if (kind == 2) { /* of all of the other, then of one page */
			write_cr3(cr3[now ^ 1]);
			check_both(AT + 8, 100 + (now ^ 1), __LINE__);
			write_cr3(cr3[now] | keep);
			invlpg((void *)AT);
		} else if (kind == 3) {
			tlb_flush();
		} else { /* its own only */
			invpcid(1, now, 0);
		}
		check_both(AT + 8, 100 + (now ^ 1), __LINE__);
		write_cr3(cr3[now ^ 1] | (kind < 4 ? keep : 0));
	}
	write_cr3(cr3[0]);
	write_cr4(read_cr4() & ~CR4_PCIDE);
}

/* Kernels have more than a few. */
static void many_not_global(void)
{
	enum { MANY = 48 };
	volatile u64 *page[MANY], *pte[MANY];

	set_up();
	for (u32 n = 0; n < MANY; n++) {
		page[n] = page_alloc();
		page[n][1] = n;
		pte[n] = page_map(AT + n * PAGE_SIZE, (u64)page[n], PTE_P | PTE_W);
	}
	for (u32 k = 0; k < 3; k++) {
		for (u32 n = 0; n < MANY; n++)
			loads(AT + n * PAGE_SIZE + 8, n ^ k);
		for (u32 n = 0; n < MANY; n++)
			*pte[n] = (u64)page[n ^ (k + 1)] | PTE_P | PTE_W;
		write_cr3(read_cr3());
	}
}

/* A large page, in pieces and whole again. */
static void large(void)
{
	volatile u64 *block = pages_alloc(512, LARGE), *page = page_alloc();
	u64 *pde, *table = page_alloc();

	set_up();
	pde = page_entry(TEST_HIGH, 2);
	for (u32 n = 0; n < 512; n++) {
		block[n * 512] = n;
		table[n] = ((u64)block + n * PAGE_SIZE) | GLOBAL;
	}
	table[3] = (u64)page | GLOBAL;
	page[0] = 99;
	for (u32 n = 0; n < 4; n++) {
		*(volatile u64 *)pde = (u64)block | GLOBAL | PTE_PS;
		tlb_flush();
		loads(TEST_HIGH + 3 * PAGE_SIZE, 3);
		loads(TEST_HIGH + 200 * PAGE_SIZE, 200);
		stores(TEST_HIGH + 7 * PAGE_SIZE + 8);
		expect_eq(block[7 * 512 + 1], PATTERN);
		*(volatile u64 *)pde = (u64)table | GLOBAL;
		invlpg((void *)(TEST_HIGH + 0x54321));
		loads(TEST_HIGH + 3 * PAGE_SIZE, 99);
		loads(TEST_HIGH + 200 * PAGE_SIZE, 200);
		table[5] = 0;
		invlpg((void *)(TEST_HIGH + 5 * PAGE_SIZE));
		faults(load, TEST_HIGH + 5 * PAGE_SIZE, 0, TEST_HIGH + 5 * PAGE_SIZE);
		table[5] = ((u64)block + 5 * PAGE_SIZE) | GLOBAL;
		loads(TEST_HIGH + 5 * PAGE_SIZE, 5);
	}
	*(volatile u64 *)pde = 0;
	invlpg((void *)TEST_HIGH);
}

/* Addresses that differ in few bits have pages of their own. */
static void alike(void)
{
	static const u64 other[] = {BIT(46), BIT(45), BIT(46) | BIT(45)};
	volatile u64 *page[2] = {page_alloc(), page_alloc()};

	set_up();
	page[0][1] = 3;
	page[1][1] = 4;
	for (u32 k = 0; k < ARRAY_SIZE(other); k++) {
		const u64 at = AT ^ other[k];

		page_map(AT, (u64)page[0], GLOBAL);
		loads(AT + 8, 3);
		page_map(at, (u64)page[1], GLOBAL);
		for (u32 n = 0; n < 3; n++) {
			loads(AT + 8, 3);
			loads(at + 8, 4);
			stores(at);
			expect_eq(page[0][0], 0);
			expect_eq(page[1][0], PATTERN);
			page[1][0] = 0;
		}
		page_map(AT, 0, 0);
		faults(load, AT + 8, 0, AT + 8);
		loads(at + 8, 4);
		page_map(at, 0, 0);
		faults(load, at + 8, 0, at + 8);
	}
}

/* A page that is not global beside one that comes and goes. */
static void alike_not_global(void)
{
	const u64 beside = (AT ^ BIT(46)) + PAGE_SIZE;
	volatile u64 *page[2] = {page_alloc(), page_alloc()}, *pte;

	set_up();
	page[0][1] = 100;
	page[1][1] = 101;
	pte = page_map(AT, (u64)page[0], PTE_P | PTE_W);
	for (u32 n = 0; n < 4; n++) {
		check_both(AT + 8, 100 + (n & 1), __LINE__);
		page_map(beside, (u64)page[1], GLOBAL);
		loads(beside + 8, 101);
		page_map(beside, 0, 0);
		*pte = (u64)page[~n & 1] | PTE_P | PTE_W;
		write_cr3(read_cr3());
	}
}

static void alike_large(void)
{
	volatile u64 *block = pages_alloc(512, LARGE), *page = page_alloc();
	const u64 at = AT ^ BIT(46);
	u64 *pde = page_entry(TEST_HIGH, 2);

	set_up();
	block[5 * 512 + 1] = 3;
	page[1] = 4;
	for (u32 n = 0; n < 4; n++) {
		*(volatile u64 *)pde = (u64)block | GLOBAL | PTE_PS;
		if (n & 1)
			loads(AT + 8, 3);
		page_map(at, (u64)page, GLOBAL);
		loads(at + 8, 4);
		loads(AT + 8, 3);
		stores(AT + 16);
		stores(at + 24);
		expect_eq(page[2], 0);
		expect_eq(block[5 * 512 + 3], 0);
		page_map(at, 0, 0);
		*(volatile u64 *)pde = 0;
		invlpg((void *)AT);
	}
}

static void elsewhere(void)
{
	const u64 low = TEST_AREA + 0x7000, odd = 0x00ff200000000000ul;
	volatile u64 *page[2] = {page_alloc(), page_alloc()};
	struct state s;

	set_up();
	page_map(AT, (u64)page[0], GLOBAL);
	page_map(low, (u64)page[1], GLOBAL);
	page[0][1] = 5;
	page[1][1] = 6;
	for (u32 n = 0; n < 4; n++) {
		loads(AT + 8, 5);
		loads(low + 8, 6);
		faults(load, low + PAGE_SIZE, 0, low + PAGE_SIZE);
		s = access(load, odd);
		expect_trap(&s, VEC_GP, 0, load_at);
		s = access(store, odd);
		expect_trap(&s, VEC_GP, 0, store_at);
	}
}

static void two_pages(void)
{
	volatile u8 *page[2] = {page_alloc(), page_alloc()};

	set_up();
	for (u32 n = 0; n < 4; n++) {
		page_map(AT, (u64)page[0], GLOBAL);
		page_map(AT + PAGE_SIZE, (u64)page[1], GLOBAL);
		stores(AT + PAGE_SIZE - 3);
		expect_eq(page[0][PAGE_SIZE - 1], 0x66);
		expect_eq(page[1][0], 0x55);
		loads(AT + PAGE_SIZE - 3, PATTERN);
		page_map(AT + PAGE_SIZE, 0, 0);
		page[0][PAGE_SIZE - 1] = 1;
		faults(load, AT + PAGE_SIZE - 3, 0, AT + PAGE_SIZE);
		faults(store, AT + PAGE_SIZE - 3, PF_W, AT + PAGE_SIZE);
		expect_eq(page[0][PAGE_SIZE - 1], 1);
	}
}

/* mov $value, %eax; ret, stored at @at */
static void put_code(u64 at, u32 value)
{
	struct state s = state_for(KERNEL64, store);

	s.rax = at;
	s.rcx = 0xb8 | (u64)value << 8 | 0xc3ul << 40;
	exec_copy(&s, store, store_end);
	expect_done(&s, store);
}

static u64 call(u64 at)
{
	return ((u64(*)(void))at)();
}

/* Stored to where it runs, and through another address. */
static void code(void)
{
	u64 page = (u64)page_alloc();

	set_up();
	page_map(AT, page, GLOBAL);
	page_map(AT + PAGE_SIZE, page, GLOBAL);
	for (u32 n = 1; n < 20; n++) {
		put_code(n & 1 ? AT : AT + PAGE_SIZE, n);
		expect_eq(call(AT), n);
		put_code(AT + 64, 100 + n); /* beside it */
		expect_eq(call(AT + PAGE_SIZE), n);
		expect_eq(call(AT + 64), 100 + n);
	}
}

/* In a large page that is stored to for the first time when there is code in it already. */
static void code_in_large(void)
{
	u64 block = (u64)pages_alloc(512, LARGE);
	u64 *pde = page_entry(TEST_HIGH, 2);

	set_up();
	for (u32 n = 0; n < 6; n++) {
		put_code(block + 7 * PAGE_SIZE, n);
		put_code(block + 8 * PAGE_SIZE, n);
		expect_eq(call(block + 7 * PAGE_SIZE), n);
		expect_eq(call(block + 8 * PAGE_SIZE), n);
		*(volatile u64 *)pde = block | GLOBAL | PTE_PS;
		stores(TEST_HIGH + 3 * PAGE_SIZE);
		put_code(TEST_HIGH + 7 * PAGE_SIZE, 100 + n);
		expect_eq(call(block + 7 * PAGE_SIZE), 100 + n);
		expect_eq(call(block + 8 * PAGE_SIZE), n);
		put_code(TEST_HIGH + 8 * PAGE_SIZE, 200 + n);
		expect_eq(call(block + 8 * PAGE_SIZE), 200 + n);
		*(volatile u64 *)pde = 0;
		tlb_flush();
	}
}

static void stack(void)
{
	volatile u64 *page = page_alloc();
	struct state s;

	set_up();
	page_map(AT, (u64)page, GLOBAL);
	for (u32 n = 0; n < 4; n++) {
		s = state_for(KERNEL64, pushes);
		s.rsp = AT + 64;
		s.rcx = PATTERN + n;
		exec_copy(&s, pushes, pushes_end);
		expect_done(&s, pushes);
		expect_eq(s.rbx, PATTERN + n);
		expect_eq(s.rsi, PATTERN + n);
		expect_eq(s.rsp, AT + 64);
		expect_eq(page[7], PATTERN + n);
		s = state_for(KERNEL64, pushes);
		s.rsp = AT;
		exec_copy(&s, pushes, pushes_end);
		expect_trap(&s, VEC_PF, PF_W, pushes_at);
		expect_eq(s.cr2, AT - 8);
		expect_eq(s.rsp, AT);
	}
}

static void device(void)
{
	set_up();
	page_map(AT, APIC_BASE, GLOBAL | PTE_PCD);
	for (u32 n = 0; n < 4; n++) {
		expect_eq(*(volatile u32 *)(AT + APIC_ID), apic_read(APIC_ID));
		*(volatile u32 *)(AT + APIC_TPR) = n << 4;
		expect_eq(apic_read(APIC_TPR), n << 4);
	}
	apic_write(APIC_TPR, 0);
}

const struct test tests[] = {
	{"Loads and stores", "SDM vol. 3, 4.5", plain, NULL},
	{"REP STOS of a few words", "SDM vol. 2, STOS", cleared, NULL},
	{"A page that changes", "SDM vol. 3, 4.10.4.1, INVLPG", remapped, NULL},
	{"The same, all translations flushed", "SDM vol. 3, 4.10.4.1, MOV to CR4", flushed, NULL},
	{"A page that is read-only", "SDM vol. 3, 4.6", read_only, NULL},
	{"Accessed and dirty flags", "SDM vol. 3, 4.8", marks, NULL},
	{"A page that is not global", "SDM vol. 3, 4.10.2.4", not_global, NULL},
	{"The same with PCIDs", "SDM vol. 3, 4.10.1", not_global_pcid, NULL},
	{"One that two PCIDs share", "SDM vol. 3, 4.10.4.1", not_global_shared, NULL},
	{"Many of them", "SDM vol. 3, 4.10.4.1, MOV to CR3", many_not_global, NULL},
	{"A large page in pieces", "SDM vol. 3, 4.10.4.1", large,
	 "keeps parts of a large page after INVLPG of another address in it"},
	{"Other addresses", "SDM vol. 1, 3.3.7.1", elsewhere, NULL},
	{"Accesses to two pages", "SDM vol. 3, 4.7", two_pages, NULL},
	{"Code that is stored to", "SDM vol. 3, 11.6", code, NULL},
	{"The same in a large page", "SDM vol. 3, 11.6", code_in_large, NULL},
	{"A stack and its end", "SDM vol. 2, PUSH", stack, NULL},
	{"A device", "SDM vol. 3, 10.4.1", device, NULL},
	/* After these there may be less to test. */
	{"One that is not global beside another", "SDM vol. 3, 4.10.4.1", alike_not_global, NULL},
	{"Addresses that differ in few bits", "SDM vol. 3, 4.5", alike, NULL},
	{"The same, one page being large", "SDM vol. 3, 4.5", alike_large, NULL},
	{NULL},
};
