/*
 * Kernel memory in the upper half of the address space when several processors use it: all the same
 * global pages, as kernels have it, or each its own at the same address (SDM vol. 3, 4.10.2.4 and
 * 4.10.5).
 *
 * Loads and stores stand in blocks of code by themselves, which touch no other memory.
 */
#include "smp.h"

#define AT     (TEST_HIGH + 0x5000)
#define GLOBAL (PTE_P | PTE_W | PTE_G)

enum { ROUNDS = 20000, MOVES = 300, CLAIMS = 100 };

static struct barrier gate;
static volatile u32 wrong;
static volatile bool stop;

/* An indirect branch ends a block. */
#define APART(insn) \
	"lea 1f(%%rip), %%rax; jmp *%%rax; 1: " insn "; lea 2f(%%rip), %%rax; jmp *%%rax; 2:"

static inline u64 load(u64 at)
{
	u64 value;

	__asm__ volatile(APART("mov (%1), %0") : "=r"(value) : "r"(at) : "rax", "memory");
	return value;
}

static inline void store(u64 at, u64 value)
{
	__asm__ volatile(APART("mov %0, (%1)") : : "r"(value), "r"(at) : "rax", "memory");
}

/* Each processor for itself. */
static void set_up(void)
{
	/* What tells an engine that there is a kernel in the upper half. */
	wrmsr(MSR_LSTAR, TEST_HIGH);
	write_cr4(read_cr4() | CR4_PGE);
}

/* No kernel any more: those that wait are on other tables. */
static void set_down(void)
{
	wrmsr(MSR_LSTAR, 0);
	write_cr4(read_cr4() & ~CR4_PGE);
}

/* ---- the same pages ---- */

static void count_up(void *argument)
{
	u64 left = ROUNDS;

	(void)argument;
	set_up();
	__asm__ volatile(APART("lock incq (%1); incq 64(%1,%2,8); dec %0; jnz 1b")
			 : "+r"(left)
			 : "r"(AT), "r"((u64)smp_id())
			 : "rax", "memory", "cc");
	set_down();
}

static void counted(void)
{
	volatile u64 *page = page_alloc();

	smp_start();
	page_map(AT, (u64)page, GLOBAL);
	smp_together(smp_count, count_up, NULL);
	expect_eq(page[0], (u64)smp_count * ROUNDS);
	for (u32 cpu = 0; cpu < smp_count; cpu++)
		expect_eq(page[8 + cpu], ROUNDS);
}

static volatile u32 flush_asked, flushed;

/* Loads, and drops the translation when asked to; from then on it must see the new page. */
static void load_and_flush(void *argument)
{
	u32 seen = 0;

	(void)argument;
	set_up();
	while (!stop) {
		if (flush_asked != seen) {
			seen = flush_asked;
			invlpg((void *)AT);
			if (load(AT) != seen)
				wrong++;
			__atomic_add_fetch(&flushed, 1, __ATOMIC_SEQ_CST);
		}
		if (load(AT) < seen)
			wrong++;
		store(AT + 64 + 8ul * smp_id(), seen);
	}
	set_down();
}

static u64 *page_with(u64 value)
{
	u64 *page = page_alloc();

	page[0] = value;
	return page;
}

static void moved(void)
{
	smp_start();
	set_up();
	page_map(AT, (u64)page_with(0), GLOBAL);
	stop = false;
	wrong = flush_asked = flushed = 0;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, load_and_flush, NULL);
	for (u32 k = 1; k <= MOVES; k++) {
		page_map(AT, (u64)page_with(k), GLOBAL);
		flush_asked = k;
		for (u32 n = 0; n < 50; n++)
			if (load(AT) != k)
				wrong++;
		if (!spin_until(flushed == k * (smp_count - 1), 5)) {
			check(false, "move %u: not answered", k);
			break;
		}
	}
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	set_down();
	expect_eq(wrong, 0);
}

/* ---- pages of their own ---- */

/* A copy of the present root table that has @page, and nothing else, at @at. */
static u64 own_root(u64 at, const u64 *page)
{
	u64 *root = page_alloc(), below = (u64)page, *entry;
	u32 shift = 12;

	memcpy(root, (void *)(read_cr3() & ~0xffful), PAGE_SIZE);
	for (; shift < 39; shift += 9) {
		u64 *table = page_alloc();

		table[at >> shift & 511] = below | (shift == 12 ? GLOBAL : PTE_P | PTE_W);
		below = (u64)table;
	}
	entry = &root[at >> 39 & 511];
	*entry = below | PTE_P | PTE_W;
	return (u64)root;
}

struct own {
	u64 root, at, value;
};

static void use_own(void *argument)
{
	struct own *own = (struct own *)argument + smp_id();
	u64 cr3 = read_cr3();

	set_up();
	write_cr3(own->root);
	tlb_flush();
	smp_barrier(&gate, smp_count);
	for (u32 k = 0; k < ROUNDS; k++) {
		if (load(own->at) != own->value)
			wrong++;
		store(own->at + 8, own->value + k);
		if (load(own->at + 8) != own->value + k)
			wrong++;
	}
	write_cr3(cr3);
	set_down();
}

/* Each processor with its page at AT ^ @other[its number]. */
static void use_own_at(const u64 other[4])
{
	struct own own[SMP_MAX];
	u64 *page[SMP_MAX];
	u32 count;

	smp_start();
	count = smp_count;
	for (u32 cpu = 0; cpu < count; cpu++) {
		page[cpu] = page_with(1000ul * (cpu + 1));
		own[cpu].at = AT ^ other[cpu % 4];
		own[cpu].value = page[cpu][0];
		own[cpu].root = own_root(own[cpu].at, page[cpu]);
	}
	wrong = 0;
	smp_together(count, use_own, own);
	expect_eq(wrong, 0);
	for (u32 cpu = 0; cpu < count; cpu++)
		expect_eq(*(volatile u64 *)&page[cpu][1], own[cpu].value + ROUNDS - 1);
}

static void different(void)
{
	use_own_at((u64[4]){0});
}

static void alike(void)
{
	use_own_at((u64[4]){0, BIT(46), BIT(45), BIT(46) | BIT(45)});
}

/* The others use the page that all have; this one now has another, now the same. */
static void now_and_then(void)
{
	u64 *common = page_with(1), *mine = page_with(2), cr3 = read_cr3(), root;

	smp_start();
	set_up();
	page_map(AT, (u64)common, GLOBAL);
	root = own_root(AT, mine);
	stop = false;
	wrong = flush_asked = flushed = 0;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, load_and_flush, NULL);
	flush_asked = 1;
	check(spin_until(flushed == smp_count - 1, 5), "not answered");
	for (u32 k = 0; k < MOVES; k++) {
		write_cr3(k & 1 ? root : cr3);
		tlb_flush();
		for (u32 n = 0; n < 1000; n++) /* the others load theirs again */
			pause();
		for (u32 n = 0; n < 50; n++) {
			if (load(AT) != 1 + (k & 1))
				wrong++;
			store(AT + 8, k);
		}
	}
	write_cr3(cr3);
	tlb_flush();
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	set_down();
	expect_eq(wrong, 0);
	expect_eq(((volatile u64 *)mine)[1], MOVES - 1);
	expect_eq(((volatile u64 *)common)[1], MOVES - 2);
}

/* ---- code ---- */

static volatile u64 target;
static volatile u32 last;

/* Stores the operand of an instruction again and again, by an address in the upper half. */
static void store_operand(void *argument)
{
	u32 value = 0;

	(void)argument;
	set_up();
	while (!stop)
		__asm__ volatile(APART("mov %0, (%1)")
				 :
				 : "r"(++value), "r"(target)
				 : "rax", "memory");
	last = value;
	set_down();
}

/* A page comes to be code while another processor stores to it. */
static void claimed(void)
{
	smp_start();
	set_up();
	for (u32 k = 0; k < CLAIMS && smp_count > 1; k++) {
		u8 *page = page_alloc();
		u32 (*function)(void) = (u32(*)(void))page;

		page[3] = 0xb8; /* mov $value, %eax, the value aligned; ret */
		page[8] = 0xc3;
		memset(page, 0x90, 3);
		page_map(AT + (k + 1) * PAGE_SIZE, (u64)page, GLOBAL);
		target = AT + (k + 1) * PAGE_SIZE + 4;
		stop = false;
		smp_begin(1, store_operand, NULL);
		spin_until(*(volatile u32 *)(page + 4) > 20, 5);
		for (u32 n = 0; n < 20; n++)
			function();
		stop = true;
		smp_wait(1);
		cpuid(0, 0);
		expect_eq(function(), last);
	}
	set_down();
}

const struct test tests[] = {
	{"Counters that all use", "SDM vol. 3, 8.1.2.2", counted, NULL},
	{"A page that moves", "SDM vol. 3, 4.10.5", moved, NULL},
	{"A page that comes to be code", "SDM vol. 3, 8.1.3", claimed,
	 "can miss a store to what is just becoming code"},
	{"Another page for one of them, at times", "SDM vol. 3, 4.10.2.4", now_and_then, NULL},
	{"Another page for each", "SDM vol. 3, 4.10.2.4", different, NULL},
	{"Addresses that differ in few bits", "SDM vol. 3, 4.5", alike, NULL},
	{NULL},
};
