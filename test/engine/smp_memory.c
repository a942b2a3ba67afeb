/*
 * Memory between processors: locked instructions wherever their operand lies, and the orders of
 * loads and stores that the processor allows and forbids (SDM vol. 3, 8.2.3).
 *
 * The litmus tests run their few instructions again and again, each time on fresh cache lines and
 * with the processors released together. What the manual forbids must never be seen; what it
 * allows, the store buffer passing a load, must be, or the test would prove nothing.
 */
#include "smp.h"

enum { ROUNDS = 20000, LINE = 64 };

static u8 *area; /* two pages in a row, one of which may be special */
static struct barrier gate;

static u32 processors(void)
{
	smp_start();
	return smp_count < 4 ? smp_count : 4;
}

/* ---- locked counters ---- */

struct counter {
	volatile void *at;
	void (*add)(volatile void *at);
	u32 rounds;
};

static void add_inc(volatile void *at)
{
	__asm__ volatile("lock incq %0" : "+m"(*(volatile u64 *)at) : : "memory", "cc");
}

static void add_inc32(volatile void *at)
{
	__asm__ volatile("lock incl %0" : "+m"(*(volatile u32 *)at) : : "memory", "cc");
}

static void add_inc16(volatile void *at)
{
	__asm__ volatile("lock incw %0" : "+m"(*(volatile u16 *)at) : : "memory", "cc");
}

static void add_xadd(volatile void *at)
{
	u64 one = 1;

	__asm__ volatile("lock xadd %1, %0"
			 : "+m"(*(volatile u64 *)at), "+r"(one)
			 :
			 : "memory", "cc");
}

static void add_cmpxchg(volatile void *at)
{
	volatile u64 *p = at;
	u64 old = *p;
	bool done;

	do
		__asm__ volatile("lock cmpxchg %3, %0"
				 : "+m"(*p), "=@ccz"(done), "+a"(old)
				 : "r"(old + 1)
				 : "memory");
	while (!done);
}

/* A lock that XCHG takes, without prefix; the value it guards lies apart. */
static u64 guarded;

static void add_xchg(volatile void *at)
{
	volatile u32 *lock = at;
	u32 taken;

	do {
		taken = 1;
		__asm__ volatile("xchg %1, %0" : "+m"(*lock), "+r"(taken) : : "memory");
		if (taken)
			pause();
	} while (taken);
	*(volatile u64 *)&guarded = *(volatile u64 *)&guarded + 1;
	barrier();
	*lock = 0;
}

/* The same by LOCK BTS with a register bit offset. */
static void add_bts(volatile void *at)
{
	u64 bit = 13;
	bool taken;

	do {
		__asm__ volatile("lock btsq %2, %0"
				 : "+m"(*(volatile u64 *)at), "=@ccc"(taken)
				 : "r"(bit)
				 : "memory");
		if (taken)
			pause();
	} while (taken);
	*(volatile u64 *)&guarded = *(volatile u64 *)&guarded + 1;
	__asm__ volatile("lock btrq %1, %0"
			 : "+m"(*(volatile u64 *)at)
			 : "r"(bit)
			 : "memory", "cc");
}

/* 128 bits: the low half counts up, the high half down. */
static void add_cmpxchg16b(volatile void *at)
{
	volatile u64 *p = at;
	u64 low = p[0], high = p[1];
	bool done;

	do
		__asm__ volatile("lock cmpxchg16b %0"
				 : "+m"(*(volatile unsigned __int128 *)at), "=@ccz"(done),
				   "+a"(low), "+d"(high)
				 : "b"(low + 1), "c"(high - 1)
				 : "memory");
	while (!done);
}

static void add_cmpxchg8b(volatile void *at)
{
	volatile u32 *p = at;
	u32 low = p[0], high = p[1];
	bool done;

	do
		__asm__ volatile("lock cmpxchg8b %0"
				 : "+m"(*(volatile u64 *)at), "=@ccz"(done), "+a"(low), "+d"(high)
				 : "b"(low + 1), "c"(high - 1)
				 : "memory");
	while (!done);
}

static void count_up(void *argument)
{
	const struct counter *c = argument;

	for (u32 n = 0; n < c->rounds; n++)
		c->add(c->at);
}

/* What the counter at @at holds after all processors have added @rounds, from zero. */
static void count_together(volatile void *at, void (*add)(volatile void *), u32 rounds)
{
	struct counter c = {at, add, rounds};

	memset((void *)at, 0, 16);
	guarded = 0;
	smp_together(processors(), count_up, &c);
}

/* Every operation with its operand @offset bytes into the area. */
static void count_at(u32 offset, u32 rounds)
{
	static const struct {
		void (*add)(volatile void *at);
		u64 mask;
		const char *name;
	} list[] = {{add_inc, ~0ul, "inc"},
		    {add_inc32, 0xffffffff, "incl"},
		    {add_inc16, 0xffff, "incw"},
		    {add_xadd, ~0ul, "xadd"},
		    {add_cmpxchg, ~0ul, "cmpxchg"}};
	u8 *at = area + offset;
	u32 total = processors() * rounds, low, high;

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		u64 value;

		count_together(at, list[i].add, rounds);
		memcpy(&value, at, 8);
		check((value & list[i].mask) == (total & list[i].mask), "%s at 0x%x: %u, not %u",
		      list[i].name, offset, (u32)value, total);
	}
	count_together(at, add_xchg, rounds);
	check(guarded == total, "xchg at 0x%x: %u, not %u", offset, (u32)guarded, total);
	count_together(at, add_bts, rounds);
	check(guarded == total, "bts at 0x%x: %u, not %u", offset, (u32)guarded, total);
	count_together(at, add_cmpxchg8b, rounds);
	memcpy(&low, at, 4);
	memcpy(&high, at + 4, 4);
	check(low == total && high == -total, "cmpxchg8b at 0x%x: %u, not %u", offset, low, total);
}

static void locked_aligned(void)
{
	u64 value[2];

	area = pages_alloc(2, PAGE_SIZE);
	count_at(0x100, 20000);
	count_together(area + 0x100, add_cmpxchg16b, 20000);
	memcpy(value, area + 0x100, 16);
	expect_eq(value[0], processors() * 20000);
	expect_eq(value[1], -(u64)processors() * 20000);
}

static void locked_unaligned(void)
{
	area = pages_alloc(2, PAGE_SIZE);
	count_at(0x103, 2000);
	for (u32 k = 1; k < 8; k += 2)
		count_at(0x140 - k,
			 60); /* across a cache line, as far as the operand is that long */
}

static void locked_across_pages(void)
{
	area = pages_alloc(2, PAGE_SIZE);
	for (u32 k = 1; k < 8; k += 2)
		count_at(PAGE_SIZE - k, 200);
}

/* Pages that are not next to each other in memory, and nothing is aligned. */
static void locked_across_scattered_pages(void)
{
	u8 *first = page_alloc(), *second;

	page_alloc();
	second = page_alloc();
	page_map(TEST_AREA, (u64)second, PTE_P | PTE_W);
	page_map(TEST_AREA + PAGE_SIZE, (u64)first, PTE_P | PTE_W);
	area = (u8 *)TEST_AREA;
	count_at(PAGE_SIZE - 3, 200);
}

/* One processor counts with translated code's own instructions, others through the interpreter's.
 */
static void plain_reader(void *argument)
{
	const struct counter *c = argument;
	u64 last = 0;

	if (smp_id()) {
		count_up(argument);
		return;
	}
	/* Across a page a plain load is two: only the low half, on its own, never runs backwards.
	 */
	for (u32 n = 0; n < c->rounds; n++) {
		u64 now = *(volatile u16 *)c->at;

		check(now >= last, "from %u back to %u", (u32)last, (u32)now);
		last = now;
	}
}

static void locked_beside_reader(void)
{
	struct counter c;

	area = pages_alloc(2, PAGE_SIZE);
	c = (struct counter){area + PAGE_SIZE - 4, add_inc, 2000};
	smp_together(processors(), plain_reader, &c);
	expect_eq(*(volatile u64 *)(area + PAGE_SIZE - 4), (processors() - 1) * 2000);
}

/* ---- locked, on a page with code and on a device ---- */

CODE(on_code_page, "nop");

static void run_beside(void *argument)
{
	void (*code)(void) = (void (*)(void))(area + 0x800);
	const struct counter *c = argument;

	for (u32 n = 0; n < c->rounds; n++) {
		c->add(c->at);
		code();
	}
}

static void locked_on_code_page(void)
{
	struct counter c;

	area = pages_alloc(2, PAGE_SIZE);
	area[0x800] = 0xc3; /* ret */
	area[0x1800] = 0xc3;
	c = (struct counter){area + 0x7f8, add_inc, 3000};
	smp_together(processors(), run_beside, &c);
	expect_eq(*(volatile u64 *)c.at, processors() * 3000);
	c.add = add_bts;
	guarded = *(volatile u64 *)c.at = 0;
	smp_together(processors(), run_beside, &c);
	expect_eq(guarded, processors() * 3000);
}

#define IOAPIC_SELECT ((volatile u32 *)0xfec00000)
static volatile u32 returned[256];

/* The select register of the I/O APIC holds 8 bits and does nothing by itself. */
static void count_on_device(void *argument)
{
	for (u32 n = 0; n < (u64)argument; n++) {
		u32 value = 1;

		__asm__ volatile("lock xadd %1, %0"
				 : "+m"(*IOAPIC_SELECT), "+r"(value)
				 :
				 : "memory", "cc");
		__asm__ volatile("lock incl %0" : "+m"(returned[value & 255]) : : "memory", "cc");
	}
}

static void locked_on_device(void)
{
	u32 rounds = 4 * 256;

	*IOAPIC_SELECT = 0;
	for (u32 i = 0; i < 256; i++)
		returned[i] = 0;
	smp_together(processors(), count_on_device, (void *)(u64)rounds);
	for (u32 i = 0; i < 256; i++)
		check(returned[i] == processors() * rounds / 256, "value %u came %u times", i,
		      returned[i]);
}

/* ---- litmus tests ---- */

/* Shared locations, each on a line of its own, and the registers of up to four processors. */
struct cell {
	volatile u64 x, pad_x[7], y, pad_y[7];
	volatile u64 reg[4][2], pad[8];
};

enum { CELLS = 256 };

static struct cell cells[CELLS] __attribute__((aligned(LINE)));
static volatile u32 progress[4][16];
static u64 litmus_end;

struct litmus {
	u32 threads;
	void (*step)(u32 thread, struct cell *c);
	bool (*relaxed)(const struct cell *c); /* the outcome in question */
	bool loose;                            /* do not line up for each cell */
};

static struct litmus litmus;
static u32 outcomes, runs;
static u32 rounds_together; /* that the first one began while the others ran, too */

enum { SPINS = 200 };

static void line_up(u32 me, u32 round)
{
	u32 longest = 0;

	progress[me][0] = round;
	for (u32 other = 0; other < litmus.threads; other++) {
		u32 spins = 0;

		while (progress[other][0] < round)
			if (++spins > SPINS) /* it may have lost its processor */
				pause();
		longest = spins > longest ? spins : longest;
	}
	if (me == 0 && longest && longest <= SPINS)
		rounds_together++;
}

static void litmus_thread(void *argument)
{
	u32 me = smp_id(), round = 0;

	(void)argument;
	progress[me][0] = 0;
	smp_barrier(&gate, litmus.threads);
	for (;;) {
		for (u32 i = 0; i < CELLS; i++) {
			if (!litmus.loose || !i)
				line_up(me, ++round);
			litmus.step(me, &cells[i]);
		}
		smp_barrier(&gate, litmus.threads);
		if (me == 0) {
			for (u32 i = 0; i < CELLS; i++) {
				outcomes += litmus.relaxed(&cells[i]);
				memset(&cells[i], 0, sizeof(cells[i]));
			}
			runs += CELLS;
			if (rdtsc() > litmus_end)
				litmus_end = 0;
		}
		smp_barrier(&gate, litmus.threads);
		if (!litmus_end)
			return;
	}
}

/* How often the outcome was seen within @tenths of a second. */
static u32 run_litmus(const struct litmus *l, u32 tenths)
{
	litmus = *l;
	outcomes = runs = rounds_together = 0;
	litmus_end = rdtsc() + tenths * SPIN_TICKS / 10;
	smp_together(litmus.threads, litmus_thread, NULL);
	return outcomes;
}

/* Forbidden: never in @tenths of a second. */
static void forbid(const struct litmus *l, u32 tenths)
{
	u32 seen;

	if (processors() < l->threads) {
		skip("needs more processors");
		return;
	}
	seen = run_litmus(l, tenths);
	check(!seen, "seen %u times in %u", seen, runs);
	expect(runs >= CELLS);
}

#define STORE(at, value) __asm__ volatile("movq %1, %0" : "=m"(at) : "i"(value))
#define LOAD(reg, at)    __asm__ volatile("mov %1, %0" : "=r"(reg) : "m"(at))

/* Two in one go, so that nothing comes between. */
#define STORE_LOAD(store, between, load)                                        \
	({                                                                      \
		u64 loaded_;                                                    \
                                                                                \
		__asm__ volatile("movq $1, %1; " between "; mov %2, %0"         \
				 : "=&r"(loaded_), "=m"(store)                  \
				 : "m"(load)                                    \
				 : "memory", "cc", "rax", "rbx", "rcx", "rdx"); \
		loaded_;                                                        \
	})

static void mp_step(u32 thread, struct cell *c)
{
	u64 flag, data;

	if (thread == 0) {
		__asm__ volatile("movq $1, %0; movq $1, %1" : "=m"(c->x), "=m"(c->y));
		return;
	}
	__asm__ volatile("mov %2, %0; mov %3, %1"
			 : "=&r"(flag), "=&r"(data)
			 : "m"(c->y), "m"(c->x));
	c->reg[1][0] = flag;
	c->reg[1][1] = data;
}

static bool mp_relaxed(const struct cell *c)
{
	return c->reg[1][0] && !c->reg[1][1];
}

static void message_passing(void)
{
	forbid(&(struct litmus){2, mp_step, mp_relaxed}, 10);
	forbid(&(struct litmus){2, mp_step, mp_relaxed, true}, 5);
}

static bool sb_relaxed(const struct cell *c)
{
	return !c->reg[0][0] && !c->reg[1][0];
}

#define SB_STEP(name, between)                                                \
	static void name(u32 thread, struct cell *c)                          \
	{                                                                     \
		c->reg[thread][0] = thread ? STORE_LOAD(c->y, between, c->x)  \
					   : STORE_LOAD(c->x, between, c->y); \
	}

SB_STEP(sb_step, "")
SB_STEP(sb_mfence_step, "mfence")
SB_STEP(sb_locked_step, "lock orq $0, (%%rsp)")
SB_STEP(sb_cpuid_step, "xor %%eax, %%eax; cpuid")
SB_STEP(sb_cr3_step, "mov %%cr3, %%rax; mov %%rax, %%cr3")

static void sb_xchg_step(u32 thread, struct cell *c)
{
	u64 one = 1, loaded;

	__asm__ volatile("xchg %1, %2; mov %3, %0"
			 : "=&r"(loaded), "+r"(one), "+m"(*(thread ? &c->y : &c->x))
			 : "m"(*(thread ? &c->x : &c->y)));
	c->reg[thread][0] = loaded;
}

/*
 * The outcome must be seen, but only processors that run side by side can show it, and the host may
 * have none to spare. How often two of them arrived at a cell together tells: 1 in 5 such rounds
 * shows the outcome on a Sapphire Rapids, and there are next to none when they take turns on one
 * host processor.
 */
static void store_buffering(void)
{
	enum { ENOUGH = 1000 };
	struct litmus l = {2, sb_step, sb_relaxed};
	u32 seen = 0, together = 0;

	if (processors() < 2) {
		skip("needs more processors");
		return;
	}
	for (u32 k = 0; k < 40 && !seen && together < ENOUGH; k++) {
		l.loose = k & 1;
		seen = run_litmus(&l, 3);
		together += l.loose ? 0 : rounds_together;
	}
	if (!seen && together < ENOUGH)
		skip("the host has no two processors free at once");
	else
		check(seen, "not seen in %u rounds side by side", together);
}

static void store_buffering_fenced(void)
{
	static void (*const steps[])(u32, struct cell *) = {
		sb_mfence_step, sb_locked_step, sb_xchg_step, sb_cpuid_step, sb_cr3_step};

	for (u32 i = 0; i < ARRAY_SIZE(steps); i++) {
		forbid(&(struct litmus){2, steps[i], sb_relaxed}, 2);
		forbid(&(struct litmus){2, steps[i], sb_relaxed, true}, 2);
	}
}

static void lb_step(u32 thread, struct cell *c)
{
	u64 loaded;

	__asm__ volatile("mov %2, %0; movq $1, %1"
			 : "=&r"(loaded), "=m"(*(thread ? &c->x : &c->y))
			 : "m"(*(thread ? &c->y : &c->x)));
	c->reg[thread][0] = loaded;
}

static bool lb_relaxed(const struct cell *c)
{
	return c->reg[0][0] && c->reg[1][0];
}

static void load_buffering(void)
{
	forbid(&(struct litmus){2, lb_step, lb_relaxed}, 5);
}

static void iriw_step(u32 thread, struct cell *c)
{
	u64 first, second;

	if (thread == 0) {
		STORE(c->x, 1);
	} else if (thread == 1) {
		STORE(c->y, 1);
	} else {
		volatile u64 *a = thread == 2 ? &c->x : &c->y, *b = thread == 2 ? &c->y : &c->x;

		__asm__ volatile("mov %2, %0; mov %3, %1"
				 : "=&r"(first), "=&r"(second)
				 : "m"(*a), "m"(*b));
		c->reg[thread][0] = first;
		c->reg[thread][1] = second;
	}
}

static bool iriw_relaxed(const struct cell *c)
{
	return c->reg[2][0] && !c->reg[2][1] && c->reg[3][0] && !c->reg[3][1];
}

static void independent_reads(void)
{
	forbid(&(struct litmus){4, iriw_step, iriw_relaxed}, 10);
	forbid(&(struct litmus){4, iriw_step, iriw_relaxed, true}, 5);
}

/* Two loads of one location do not run backwards. */
static void coherence_step(u32 thread, struct cell *c)
{
	if (thread == 0)
		STORE(c->x, 1);
	else
		__asm__ volatile("mov %2, %0; mov %2, %1"
				 : "=&r"(c->reg[1][0]), "=&r"(c->reg[1][1])
				 : "m"(c->x));
}

static void coherence(void)
{
	forbid(&(struct litmus){2, coherence_step, mp_relaxed}, 5);
}

const struct test tests[] = {
	{"locked instructions on aligned operands", "SDM vol. 3, 8.1.2.2", locked_aligned},
	{"locked instructions on unaligned operands", "SDM vol. 3, 8.1.2.2", locked_unaligned},
	{"locked instructions across pages", "SDM vol. 3, 8.1.2.2", locked_across_pages},
	{"locked instructions across scattered pages", "SDM vol. 3, 8.1.2.2",
	 locked_across_scattered_pages},
	{"locked instructions beside plain loads", "SDM vol. 3, 8.1.2.2", locked_beside_reader},
	{"locked instructions on a page with code", "SDM vol. 3, 8.1.2.2", locked_on_code_page},
	{"locked instructions on a device", "SDM vol. 3, 8.1.2.2", locked_on_device},
	{"stores are seen in order", "SDM vol. 3, 8.2.3.2", message_passing},
	{"loads pass older stores", "SDM vol. 3, 8.2.3.4", store_buffering},
	{"loads do not pass fences, locks and serialisation", "SDM vol. 3, 8.2.3.9, 8.3",
	 store_buffering_fenced},
	{"stores do not pass older loads", "SDM vol. 3, 8.2.3.3", load_buffering},
	{"all see two stores in the same order", "SDM vol. 3, 8.2.3.7", independent_reads},
	{"a location does not go back", "SDM vol. 3, 8.2.2", coherence},
	{NULL},
};
