/*
 * Code that one processor changes and others run (SDM vol. 3, 8.1.3): handed over with a
 * serialising instruction, patched by way of a breakpoint as kernels do, and found to be code only
 * while another processor is about to store to its page.
 */
#include "smp.h"

/* Where processors outnumber those of the host, an answer from each takes until the host has run
 * each: milliseconds, tens of them on a busy host. So rounds that wait for answers go on for
 * ROUNDS_SECONDS, but for FEW_ROUNDS at least. */
enum { VEC_SYNC = 0x51, ROUNDS = 4000, FEW_ROUNDS = 100, ROUNDS_SECONDS = 2 };

static u8 *page;
static volatile u32 published, done;
static volatile bool stop;
static volatile u32 wrong, seen_wrong;

static u32 (*function_at(u32 offset))(void)
{
	return (u32(*)(void))(page + offset);
}

/* mov $value, %eax; ret */
static void write_function(u32 offset, u32 value)
{
	volatile u8 *at = page + offset;

	at[0] = 0xb8;
	*(volatile u32 *)(at + 1) = value;
	at[5] = 0xc3;
}

static void serialise(void)
{
	cpuid(0, 0);
}

/* ---- handed over ---- */

static void expect_published(void *argument)
{
	(void)argument;
	for (u32 k = 1;; k++) {
		while (published < k && !stop)
			pause();
		if (published < k)
			return;
		serialise();
		if (function_at(0x100)() != k)
			wrong++;
		__atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
	}
}

static bool go_on(u32 round, u32 rounds, u64 end)
{
	return round <= FEW_ROUNDS || (round <= rounds && rdtsc() < end);
}

/* From this processor to the others of the first @count. */
static void hand_over(u32 count)
{
	u64 end = rdtsc() + ROUNDS_SECONDS * SPIN_TICKS;
	u32 k;

	published = done = 0;
	stop = false;
	write_function(0x100, 0);
	for (u32 cpu = 1; cpu < count; cpu++)
		smp_begin(cpu, expect_published, NULL);
	for (k = 1; go_on(k, ROUNDS, end); k++) {
		write_function(0x100, k);
		published = k;
		if (!spin_until(done == k * (count - 1), 5)) {
			check(false, "round %u: not answered", k);
			break;
		}
	}
	stop = true;
	for (u32 cpu = 1; cpu < count; cpu++)
		smp_wait(cpu);
	print("# %u processors: %u rounds\n", count, k - 1);
}

static void handed_over(void)
{
	page = page_alloc();
	smp_start();
	wrong = 0;
	hand_over(smp_count < 2 ? smp_count : 2);
	if (smp_count > 2)
		hand_over(smp_count);
	expect_eq(wrong, 0);
}

/*
 * The runner translates whenever it likes; the writer's store comes late in straight code that has
 * begun with another store to the same page, when there was no code on it yet.
 */
static void run_always(void *argument)
{
	u32 last = 0;

	(void)argument;
	while (!stop) {
		u32 least = published, value;

		serialise();
		value = function_at(0x100)();
		if (value < least || value < last) {
			wrong++;
			seen_wrong = least - value;
		}
		last = value;
	}
}

static void store_late(u32 value)
{
	/* One check serves both stores; what lies between takes a while. */
	__asm__ volatile("mov %0, 0x800(%1)\n"
			 "fld1\n .rept 24\n fsin\n .endr\n fstp %%st\n"
			 "mov %0, 0x101(%1)\n"
			 "mov %0, %2"
			 :
			 : "r"(value), "r"(page), "m"(published)
			 : "memory", "cc");
}

static void claimed_late(void)
{
	u64 end = rdtsc() + 3 * SPIN_TICKS;

	page = page_alloc();
	smp_start();
	published = wrong = 0;
	stop = false;
	write_function(0x100, 0);
	if (smp_count > 1)
		smp_begin(1, run_always, NULL);
	for (u32 k = 1; rdtsc() < end; k++)
		store_late(k);
	stop = true;
	if (smp_count > 1)
		smp_wait(1);
	check(!wrong, "%u old results, the last %u behind", wrong, seen_wrong);
}

/* Code that appears on a page that others keep storing to, elsewhere on it. */
static void store_beside(void *argument)
{
	u32 me = smp_id();
	volatile u64 *at = (volatile u64 *)(page + 0x800 + 64 * me);

	(void)argument;
	for (u64 n = 1; !stop; n++) {
		at[0] = n;
		at[1] = n;
		if (at[0] != n || at[1] != n)
			wrong++;
	}
}

static void stored_beside(void)
{
	page = page_alloc();
	smp_start();
	wrong = 0;
	stop = false;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, store_beside, NULL);
	for (u32 k = 0; k < ROUNDS; k++) {
		u32 offset = 0x100 + k % 64 * 16;

		write_function(offset, k);
		expect_eq(function_at(offset)(), k);
	}
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	expect_eq(wrong, 0);
}

/* ---- patched by way of a breakpoint ---- */

static volatile u32 synced[SMP_MAX], trapped;
static volatile u8 *site;

static bool patch_hook(struct state *s)
{
	if (s->vector == VEC_SYNC) {
		serialise();
		synced[smp_id()]++;
		apic_write(APIC_EOI, 0);
		return true;
	}
	if (s->vector != VEC_BP || s->rip != (u64)site + 1)
		return false;
	s->rip = (u64)site + 5; /* the instruction under change is skipped */
	__atomic_add_fetch(&trapped, 1, __ATOMIC_SEQ_CST);
	return true;
}

static bool sync_all(void)
{
	static u32 times;

	times++;
	apic_write(APIC_ICR_HIGH, 0);
	apic_write(APIC_ICR, 0xc4000 | VEC_SYNC);
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		if (!spin_until(synced[cpu] == times, 5))
			return false;
	return true;
}

/* eax = 0; site: add $value, %eax (05, 4 bytes); ret */
static void call_site(void *argument)
{
	(void)argument;
	while (!stop) {
		u32 before = published, value, after;

		value = function_at(0x200)();
		after = published;
		/* The value before, after, or in between: nothing added. */
		if (value && (value < before || value > after + 1))
			wrong++;
		sti_cli();
	}
}

static void patch(u32 value)
{
	u8 bytes[5] = {0x05, (u8)value, (u8)(value >> 8), (u8)(value >> 16), (u8)(value >> 24)};

	site[0] = 0xcc;
	if (!sync_all())
		check(false, "no answer at %u", value);
	for (u32 i = 1; i < 5; i++)
		site[i] = bytes[i];
	sync_all();
	site[0] = bytes[0];
	sync_all();
}

static void breakpoint_patched(void)
{
	static const u8 code[] = {0x31, 0xc0, 0x05, 0, 0, 0, 0, 0xc3};

	page = page_alloc();
	memcpy(page + 0x200, code, sizeof(code));
	site = page + 0x202;
	smp_start();
	published = wrong = trapped = 0;
	stop = false;
	any_cpu_hook = patch_hook;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, call_site, NULL);
	for (u32 k = 1; k <= 60; k++) {
		patch(k);
		published = k;
	}
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	any_cpu_hook = NULL;
	expect_eq(wrong, 0);
	expect(smp_count < 2 || trapped);
}

/* A loop without branches elsewhere sees that its own body was changed. */
static void loop_until_patched(void *argument)
{
	(void)argument;
	function_at(0x300)();
}

static void loop_ended(void)
{
	/* 1: cmp $0, %eax; je 1b; ret; the 74 fe becomes 90 90 in one store */
	static const u8 code[] = {0x31, 0xc0, 0x66, 0x90, 0x83, 0xf8, 0x00, 0x90, 0x74, 0xfa, 0xc3};

	page = page_alloc();
	smp_start();
	for (u32 cpu = 1; cpu < smp_count; cpu++) {
		memcpy(page + 0x300, code, sizeof(code));
		smp_begin(cpu, loop_until_patched, NULL);
		for (u32 n = 0; n < 20000; n++)
			pause();
		*(volatile u16 *)(page + 0x308) = 0x9090;
		smp_wait(cpu);
	}
}

/* ---- kernel code in the upper 2 GiB ---- */

#define UPPER  0xffffffffa0000000ul
#define KERNEL (PTE_P | PTE_W | PTE_G)

static volatile u32 flush_asked, flushed;

/* At UPPER: call the page after it, return; there: return @value. */
static u8 *make_callee(u32 value)
{
	page = page_alloc();
	write_function(0, value);
	return page;
}

static void map_caller(void)
{
	static const u8 code[] = {0xe8, 0xfb, 0x0f, 0, 0, 0x90, 0xc3};
	u8 *caller = page_alloc();

	write_cr4(read_cr4() | CR4_PGE);
	memcpy(caller, code, sizeof(code));
	page_map(UPPER, (u64)caller, KERNEL);
}

static u32 call_upper(void)
{
	return ((u32(*)(void))UPPER)();
}

/* Tables of this processor alone, with the page behind UPPER at @callee. */
static u64 own_tables(const u8 *callee)
{
	const u64 at = UPPER + PAGE_SIZE;
	u64 below = (u64)callee;

	for (int level = 1; level <= 4; level++) {
		u64 *entry = page_entry(at, level);
		u64 *copy = page_alloc();

		memcpy(copy, (void *)((u64)entry & ~(PAGE_SIZE - 1ul)), PAGE_SIZE);
		copy[((u64)entry & (PAGE_SIZE - 1ul)) / 8] =
			below | (level == 1 ? KERNEL : PTE_P | PTE_W | PTE_U);
		below = (u64)copy;
	}
	return below;
}

struct own {
	u64 tables;
	u32 value;
};

static void call_own(void *argument)
{
	struct own *own = (struct own *)argument + smp_id();
	u64 cr3 = read_cr3();

	write_cr4(read_cr4() | CR4_PGE);
	write_cr3(own->tables);
	tlb_flush();
	for (u32 k = 0; k < 200 * ROUNDS; k++)
		if (call_upper() != own->value)
			wrong++;
	write_cr3(cr3);
	tlb_flush();
}

/* The same code with another page behind it on each processor. */
static void different_tables(void)
{
	static struct own own[SMP_MAX];

	smp_start();
	map_caller();
	page_map(UPPER + PAGE_SIZE, (u64)make_callee(7), KERNEL);
	for (u32 cpu = 0; cpu < smp_count; cpu++)
		own[cpu] = (struct own){own_tables(make_callee(1000 + cpu)), 1000 + cpu};
	wrong = 0;
	for (u32 k = 0; k < 20; k++)
		expect_eq(call_upper(), 7);
	smp_together(smp_count, call_own, own);
	expect_eq(wrong, 0);
	for (u32 k = 0; k < 20; k++)
		expect_eq(call_upper(), 7);
}

/* Calls, and drops the translation when asked to; from then on it must see the new page. */
static void call_and_flush(void *argument)
{
	u32 seen = 0;

	(void)argument;
	write_cr4(read_cr4() | CR4_PGE);
	tlb_flush();
	while (!stop) {
		if (flush_asked != seen) {
			seen = flush_asked;
			invlpg((void *)(UPPER + PAGE_SIZE));
			if (call_upper() != seen)
				wrong++;
			__atomic_add_fetch(&flushed, 1, __ATOMIC_SEQ_CST);
		}
		if (call_upper() < seen)
			wrong++;
	}
}

static void shot_down(void)
{
	u64 end;

	smp_start();
	end = rdtsc() + ROUNDS_SECONDS * SPIN_TICKS;
	map_caller();
	page_map(UPPER + PAGE_SIZE, (u64)make_callee(0), KERNEL);
	stop = false;
	wrong = flush_asked = flushed = 0;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, call_and_flush, NULL);
	for (u32 k = 1; go_on(k, 300, end); k++) {
		page_map(UPPER + PAGE_SIZE, (u64)make_callee(k), KERNEL);
		flush_asked = k;
		for (u32 n = 0; n < 50; n++)
			if (call_upper() != k)
				wrong++;
		if (!spin_until(flushed == k * (smp_count - 1), 5)) {
			check(false, "round %u: not answered", k);
			break;
		}
	}
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	expect_eq(wrong, 0);
}

const struct test tests[] = {
	{"code handed over with serialisation", "SDM vol. 3, 8.1.3", handed_over},
	{"a store that a page's becoming code overtakes", "SDM vol. 3, 8.1.3", claimed_late},
	{"stores beside new code on its page", "SDM vol. 3, 8.1.3", stored_beside},
	{"code patched by way of a breakpoint", "SDM vol. 3, 8.1.3", breakpoint_patched},
	{"a loop that another processor opens", "SDM vol. 3, 8.1.3", loop_ended},
	{"calls that lead elsewhere on each", "SDM vol. 3, 4.10.2.1", different_tables},
	{"calls to a page that moves", "SDM vol. 3, 4.10.5", shot_down},
	{NULL},
};
