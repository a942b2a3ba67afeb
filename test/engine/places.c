/*
 * Kernel code in the upper 2 GiB of the address space, where kernels have theirs: branches between
 * its pages when these come to lie elsewhere, and what depends on where code runs.
 */
#include "guest.h"

#define UPPER  0xffffffffa0000000ul
#define LOWER  0xffffffff80000000ul /* just below where code is made for its address */
#define KERNEL (PTE_P | PTE_W | PTE_G)

enum {
	CALLER = 0x20,    /* offsets in the first page: call, add 1, return */
	JUMPER = 0x60,    /* jump */
	BRANCHER = 0xa0,  /* jz, or else 77 */
	LOADER = 0xe0,    /* a word of the second page */
	DIVERTED = 0x120, /* call; 5 bytes that the callee skips; the carry flag it returned with */
	LOCATOR = 0x160,  /* jump */
	CALLEE = 0x310,   /* and in the second: return a constant */
	WORD = 0x340,     /* it lies here */
	DIVERTING = 0x360, /* return 5 bytes further, with the carry flag set */
	LOCATED = 0x3a0,   /* return its own address */
	TURNS = 40,
};

static u64 call(u64 address, u64 argument)
{
	return ((u64(*)(u64))address)(argument);
}

static u8 *put(u8 *at, const char *bytes, u32 n)
{
	for (u32 i = 0; i < n; i++)
		((volatile u8 *)at)[i] = (u8)bytes[i];
	return at + n;
}

/* A branch at @at of the first page, of which @opcode is the beginning, to @to of the second. */
static u8 *put_branch(u8 *page, u8 *at, const char *opcode, u32 n, u32 to)
{
	int rel;

	at = put(at, opcode, n);
	rel = (int)(PAGE_SIZE + to) - (int)(at + 4 - page);
	return put(at, (const char *)&rel, 4);
}

static u8 *make_first(void)
{
	u8 *page = page_alloc(), *p;

	p = put_branch(page, page + CALLER, "\xe8", 1, CALLEE);
	put(p, "\x83\xc0\x01\xc3", 4);
	put_branch(page, page + JUMPER, "\xe9", 1, CALLEE);
	p = put(page + BRANCHER, "\x85\xff", 2); /* test %edi, %edi */
	p = put_branch(page, p, "\x0f\x84", 2, CALLEE);
	put(p, "\xb8\x4d\0\0\0\xc3", 6);
	p = put_branch(page, page + LOADER, "\x8b\x05", 2, WORD);
	put(p, "\xc3", 1);
	put_branch(page, page + LOCATOR, "\xe9", 1, LOCATED);
	p = put(page + DIVERTED, "\x31\xc0\x31\xc9", 4); /* xor %eax, %eax; xor %ecx, %ecx */
	p = put_branch(page, p, "\xe8", 1, DIVERTING);
	/* mov $7, %ecx; setc %al; add %ecx, %eax; ret */
	put(p, "\xb9\x07\0\0\0\x0f\x92\xc0\x01\xc8\xc3", 11);
	return page;
}

static void set_constant(u8 *page, u32 value)
{
	put(page + CALLEE, "\xb8", 1);
	put(page + CALLEE + 1, (const char *)&value, 4);
	put(page + CALLEE + 5, "\xc3", 1);
	put(page + WORD, (const char *)&value, 4);
	/* addq $5, (%rsp); stc; ret */
	put(page + LOCATED, "\x48\x8d\x05\xf9\xff\xff\xff\xc3", 8); /* lea -7(%rip), %rax; ret */
	put(page + DIVERTING, "\x48\x83\x04\x24\x05\xf9\xc3", 7);
}

static u8 *make_second(u32 value)
{
	u8 *page = page_alloc();

	set_constant(page, value);
	return page;
}

/* All ways from the page at @at to the next, which has constant @value. */
static void check_ways(u64 at, u32 value, int line)
{
	for (int k = 0; k < TURNS; k++) {
		u64 called = call(at + CALLER, 0), jumped = call(at + JUMPER, 0);
		u64 taken = call(at + BRANCHER, 0), not_taken = call(at + BRANCHER, 1);
		u64 loaded = call(at + LOADER, 0), diverted = call(at + DIVERTED, 0);

		if (called == value + 1 && jumped == value && taken == value && not_taken == 77 &&
		    loaded == value && diverted == 1)
			continue;
		check(false, "line %d, turn %d, not %u: %lu %lu %lu %lu %lu %lu", line, k, value,
		      called, jumped, taken, not_taken, loaded, diverted);
		return;
	}
}

#define ways(at, value) check_ways(at, value, __LINE__)

/* The first page, and the second with @value, for global pages. */
static void set_up(u32 value)
{
	write_cr4(read_cr4() | CR4_PGE);
	page_map(UPPER, (u64)make_first(), KERNEL);
	page_map(UPPER + PAGE_SIZE, (u64)make_second(value), KERNEL);
}

static void other_page(void)
{
	set_up(100);
	ways(UPPER, 100);
	for (u32 k = 0; k < 5; k++) {
		page_map(UPPER + PAGE_SIZE, (u64)make_second(200 + k), KERNEL);
		ways(UPPER, 200 + k);
	}
}

static void other_page_all_flushed(void)
{
	u64 *pte, cr4;

	set_up(100);
	pte = page_entry(UPPER + PAGE_SIZE, 1);
	for (u32 k = 0; k < 5; k++) {
		ways(UPPER, 100 + k);
		*(volatile u64 *)pte = (u64)make_second(101 + k) | KERNEL;
		tlb_flush();
	}
	ways(UPPER, 105);
	/* In between, pages are not global. */
	cr4 = read_cr4();
	write_cr4(cr4 & ~CR4_PGE);
	ways(UPPER, 105);
	*(volatile u64 *)pte = (u64)make_second(300) | KERNEL;
	write_cr3(read_cr3());
	ways(UPPER, 300);
	write_cr4(cr4);
	ways(UPPER, 300);
}

static void not_global(void)
{
	u64 *pte;

	set_up(100);
	ways(UPPER, 100);
	pte = page_map(UPPER + PAGE_SIZE, (u64)make_second(150), PTE_P | PTE_W);
	for (u32 k = 0; k < 5; k++) {
		ways(UPPER, 150 + k);
		*(volatile u64 *)pte = (u64)make_second(151 + k) | PTE_P | PTE_W;
		write_cr3(read_cr3());
	}
	ways(UPPER, 155);
}

static void expect_fault(u32 from, u64 error)
{
	const u64 target = UPPER + PAGE_SIZE + CALLEE;
	struct state s = state_for(KERNEL64, NULL);

	s.rip = UPPER + from;
	exec(&s);
	check(s.vector == VEC_PF && s.error == error && s.cr2 == target && s.rip == target,
	      "vector %d error 0x%lx cr2 0x%lx rip 0x%lx", (int)s.vector, s.error, s.cr2, s.rip);
}

static void gone(void)
{
	u8 *second = make_second(100);

	set_up(50);
	for (u32 k = 0; k < 3; k++) {
		page_map(UPPER + PAGE_SIZE, (u64)second, KERNEL);
		ways(UPPER, 100);
		page_map(UPPER + PAGE_SIZE, 0, 0);
		expect_fault(CALLER, PF_I);
		expect_fault(JUMPER, PF_I);
		page_map(UPPER + PAGE_SIZE, (u64)second, KERNEL);
		ways(UPPER, 100);
		page_map(UPPER + PAGE_SIZE, (u64)second, KERNEL | PTE_NX);
		expect_fault(CALLER, PF_I | PF_P);
	}
}

/* The same first page, in front of different second ones. */
static void two_places(void)
{
	const u64 other = UPPER + 0x10000;
	u8 *first = make_first();

	set_up(0);
	page_map(UPPER, (u64)first, KERNEL);
	page_map(other, (u64)first, KERNEL);
	page_map(UPPER + PAGE_SIZE, (u64)make_second(10), KERNEL);
	page_map(other + PAGE_SIZE, (u64)make_second(20), KERNEL);
	for (int k = 0; k < 3; k++) {
		ways(UPPER, 10);
		ways(other, 20);
	}
	/* And far from there, where code is not made for its address. */
	page_map(TEST_AREA, (u64)first, KERNEL);
	page_map(TEST_AREA + PAGE_SIZE, (u64)make_second(30), KERNEL);
	ways(TEST_AREA, 30);
	ways(UPPER, 10);
}

/* The same two pages across the border to code that is made for its address, and far from there. */
static void across_border(void)
{
	const u64 at[] = {LOWER, TEST_AREA}, located = PAGE_SIZE + LOCATED;
	u8 *first = make_first(), *second = make_second(0);

	for (u32 n = 0; n < 2; n++) {
		page_map(at[n], (u64)first, KERNEL);
		page_map(at[n] + PAGE_SIZE, (u64)second, KERNEL);
	}
	for (u32 k = 0; k < TURNS; k++) {
		u64 from = at[k & 1], direct = call(from + located, 0);
		u64 jumped = call(from + LOCATOR, 0);

		check(direct == from + located && jumped == from + located,
		      "turn %u, not 0x%lx: 0x%lx 0x%lx", k, from + located, direct, jumped);
	}
	page_map(LOWER, 0, 0);
	page_map(LOWER + PAGE_SIZE, 0, 0);
}

static void changed(void)
{
	u8 *second = make_second(1);

	set_up(0);
	page_map(UPPER + PAGE_SIZE, (u64)second, KERNEL);
	for (u32 k = 1; k < 20; k++) {
		set_constant(second, k);
		ways(UPPER, k);
	}
}

/* Large pages: the second page's translation is that of 2 MiB around it. */
static void large_pages(void)
{
	const u64 at = UPPER + (4 << 20), size = 2 << 20;
	u8 *block[2] = {pages_alloc(512, size), pages_alloc(512, size)};
	u64 *pde;

	set_up(0);
	page_map(at - PAGE_SIZE, (u64)make_first(), KERNEL);
	for (u32 k = 0; k < 2; k++)
		set_constant(block[k], 500 + k);
	pde = page_entry(at, 2);
	for (u32 k = 0; k < 6; k++) {
		*(volatile u64 *)pde = (u64)block[k & 1] | KERNEL | PTE_PS;
		invlpg((void *)(at + 0x123456)); /* anywhere in it */
		ways(at - PAGE_SIZE, 500 + (k & 1));
	}
	*(volatile u64 *)pde = 0;
	invlpg((void *)at);
}

const struct test tests[] = {
	{"Another page where calls lead", "SDM vol. 3, 4.10.4", other_page, NULL},
	{"The same, all translations flushed", "SDM vol. 3, 4.10.4", other_page_all_flushed, NULL},
	{"The same, not global", "SDM vol. 3, 4.10.2.4", not_global, NULL},
	{"No page where calls lead", "SDM vol. 3, 4.7", gone, NULL},
	{"A page at two places", "SDM vol. 1, 3.5", two_places, NULL},
	{"Across the border of upper memory", "SDM vol. 1, 3.5", across_border, NULL},
	{"A callee that changes", "SDM vol. 3, 8.1.3", changed, NULL},
	{"Calls into a large page", "SDM vol. 3, 4.10.4.1", large_pages,
	 "goes on in blocks of a large page after INVLPG of another address in it"},
	{NULL},
};
