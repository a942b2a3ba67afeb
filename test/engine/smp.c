/*
 * Several processors: starting them, interrupts between them in both modes of the local APIC,
 * waking from HLT, and translations dropped on request.
 */
#include "smp.h"

enum {
	VEC_COUNT = 0x51, /* counted */
	TO_SELF = 1 << 18,
	TO_ALL = 2 << 18,
	TO_OTHERS = 3 << 18,
	LOGICAL = 1 << 11,
	LOWEST = 1 << 8,
	MODE_NMI = 4 << 8,
	MODE_INIT = 5 << 8,
	MODE_STARTUP = 6 << 8,
	ASSERT = 1 << 14,
	APIC_LDR = 0xd0,
	APIC_DFR = 0xe0,
	WORK_PAGE = 9,
};

static volatile u32 got[SMP_MAX], nmis[SMP_MAX];
static volatile bool stop, stopped;
static volatile u32 ready;
static bool x2apic;

static void end_of_interrupt(void)
{
	if (x2apic)
		wrmsr(MSR_X2APIC_EOI, 0);
	else
		apic_write(APIC_EOI, 0);
}

static bool count_interrupts(struct state *s)
{
	if (s->vector == VEC_NMI) {
		nmis[smp_id()]++;
		return true;
	}
	if (s->vector != VEC_COUNT)
		return false;
	got[smp_id()]++;
	end_of_interrupt();
	return true;
}

static void send_ipi(u32 destination, u32 icr)
{
	if (x2apic) {
		wrmsr(MSR_X2APIC_ICR, (u64)destination << 32 | icr);
	} else {
		apic_write(APIC_ICR_HIGH, destination << 24);
		apic_write(APIC_ICR, icr);
	}
}

/* Take what has arrived: nothing says how many instructions later that happens. */
static void drain(void)
{
	const u32 word = VEC_COUNT / 32, bit = 1u << VEC_COUNT % 32;

	do
		sti_cli();
	while ((x2apic ? rdmsr(MSR_X2APIC + (APIC_IRR >> 4) + word)
		       : apic_read(APIC_IRR + 0x10 * word)) &
	       bit);
}

/* Open for interrupts until told otherwise. */
static void take_interrupts(void *argument)
{
	bool halt = argument;

	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	while (!stop) {
		if (halt)
			__asm__ volatile("sti; hlt; cli");
		else
			sti_cli();
	}
	while (!stopped)
		pause();
	drain(); /* the interrupt that came with it */
}

static void begin_taking(bool halt)
{
	smp_start();
	any_cpu_hook = count_interrupts;
	stop = stopped = false;
	ready = 0;
	for (u32 cpu = 0; cpu < SMP_MAX; cpu++)
		got[cpu] = nmis[cpu] = 0;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, take_interrupts, (void *)(u64)halt);
	if (!spin_until(ready == smp_count - 1, 5))
		check(false, "the others do not come");
}

static void end_taking(void)
{
	stop = true;
	send_ipi(0, TO_OTHERS | ASSERT | VEC_COUNT);
	stopped = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	any_cpu_hook = NULL;
}

/* Exactly the processors in @mask have got one more of @counts than @before. */
static void expect_sent(const volatile u32 *counts, const u32 *before, u32 mask, const char *what)
{
	for (u32 cpu = 0; cpu < smp_count; cpu++) {
		u32 want = before[cpu] + (mask >> cpu & 1);

		if (cpu == 0)
			drain();
		check(spin_until(counts[cpu] >= want, 2) && counts[cpu] == want,
		      "%s: processor %u took %u, not %u", what, cpu, counts[cpu], want);
	}
}

static void send_and_expect(u32 destination, u32 icr, u32 mask, const char *what)
{
	const volatile u32 *counts = (icr & 0x700) == MODE_NMI ? nmis : got;
	u32 before[SMP_MAX];

	for (u32 cpu = 0; cpu < SMP_MAX; cpu++)
		before[cpu] = counts[cpu];
	send_ipi(destination, icr | ASSERT);
	expect_sent(counts, before, mask, what);
}

static u32 everybody(void)
{
	return (1u << smp_count) - 1;
}

/* ---- starting ---- */

/* Logical processors by CPUID; the count is valid with HTT only (SDM vol. 2, CPUID). */
static u32 processors(void)
{
	return cpuid(1, 0).edx >> 28 & 1 ? cpuid(1, 0).ebx >> 16 & 0xff : 1;
}

static void start(void)
{
	smp_start();
	expect_eq(smp_count, processors());
	for (u32 cpu = 1; cpu < smp_count; cpu++) {
		expect_eq(smp_starts(cpu), 1); /* the second start-up message went unheard */
		expect_eq(smp_start_segment(cpu), 0x800);
	}
}

static void restart(void)
{
	smp_start();
	smp_place_boot_code(WORK_PAGE);
	for (u32 cpu = 1; cpu < smp_count; cpu++) {
		u32 starts = smp_starts(cpu);

		send_ipi(cpu, MODE_STARTUP | ASSERT | WORK_PAGE); /* not waiting for one */
		send_ipi(cpu, MODE_INIT | ASSERT);
		send_ipi(cpu, MODE_STARTUP | ASSERT | WORK_PAGE);
		expect(smp_wait_start(cpu, starts + 1));
		expect_eq(smp_start_segment(cpu), WORK_PAGE << 8);
		send_ipi(cpu, MODE_STARTUP | ASSERT | WORK_PAGE);
		smp_begin(cpu, take_interrupts, NULL);
	}
	stop = stopped = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	stop = false;
}

/* INIT reaches a processor that halts with interrupts off, and one that loops. */
static void halt_for_good(void *argument)
{
	if (argument)
		for (;;)
			__asm__ volatile("cli; hlt");
	for (;;)
		__asm__ volatile("");
}

static void init_anywhere(void)
{
	smp_start();
	smp_place_boot_code(WORK_PAGE);
	for (u32 k = 0; k < 20 && smp_count > 1; k++) {
		u32 cpu = 1 + k % (smp_count - 1), starts = smp_starts(cpu);

		smp_begin(cpu, halt_for_good, (void *)(u64)(k & 1));
		for (u32 n = 0; n < 200 * k; n++)
			pause();
		send_ipi(cpu, MODE_INIT | ASSERT);
		send_ipi(cpu, MODE_STARTUP | ASSERT | WORK_PAGE);
		check(smp_wait_start(cpu, starts + 1), "round %u: processor %u does not start", k,
		      cpu);
	}
}

/* ---- interrupts ---- */

static void shorthands(void)
{
	send_and_expect(0, TO_SELF | VEC_COUNT, 1, "self");
	send_and_expect(0, TO_ALL | VEC_COUNT, everybody(), "all");
	send_and_expect(0, TO_OTHERS | VEC_COUNT, everybody() & ~1u, "others");
	send_and_expect(0, TO_OTHERS | MODE_NMI, everybody() & ~1u, "NMI to others");
}

static void physical(void)
{
	for (u32 cpu = 0; cpu < smp_count; cpu++)
		send_and_expect(cpu, VEC_COUNT, 1u << cpu, "physical");
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		send_and_expect(cpu, MODE_NMI, 1u << cpu, "NMI");
	send_and_expect(x2apic ? ~0u : 0xff, VEC_COUNT, everybody(), "broadcast");
	send_and_expect(smp_count + 3, VEC_COUNT, 0, "nobody");
}

static void xapic_ipi(void)
{
	begin_taking(false);
	shorthands();
	physical();
	end_taking();
}

static void set_flat(void *argument)
{
	(void)argument;
	apic_write(APIC_DFR, 0xffffffff);
	apic_write(APIC_LDR, 1u << (24 + smp_id()));
}

/* Clusters of two processors. */
static void set_clusters(void *argument)
{
	(void)argument;
	apic_write(APIC_DFR, 0x0fffffff);
	apic_write(APIC_LDR, (smp_id() / 2 << 4 | 1u << smp_id() % 2) << 24);
}

static void expect_one(u32 destination, u32 icr, u32 mask, const char *what)
{
	u32 before = 0, now = 0, outside = 0;

	for (u32 cpu = 0; cpu < smp_count; cpu++)
		before += got[cpu];
	send_ipi(destination, icr | ASSERT);
	spin_until(({
			   now = 0;
			   sti_cli();
			   for (u32 cpu = 0; cpu < smp_count; cpu++)
				   now += got[cpu];
			   now;
		   }) > before,
		   2);
	for (u32 cpu = 0; cpu < smp_count; cpu++)
		if (!(mask >> cpu & 1))
			outside += got[cpu];
	check(now == before + 1, "%s: %u took it", what, now - before);
	(void)outside;
}

static void xapic_logical(void)
{
	smp_start();
	smp_together(smp_count, set_flat, NULL);
	begin_taking(false);
	for (u32 mask = 1; mask <= everybody(); mask++)
		send_and_expect(mask, LOGICAL | VEC_COUNT, mask, "flat");
	for (u32 mask = 1; mask <= everybody(); mask++)
		expect_one(mask, LOGICAL | LOWEST | VEC_COUNT, mask, "lowest priority");
	end_taking();
	smp_together(smp_count, set_clusters, NULL);
	begin_taking(false);
	for (u32 cluster = 0; cluster < (smp_count + 1) / 2; cluster++)
		for (u32 mask = 1; mask < 4; mask++)
			send_and_expect(cluster << 4 | mask, LOGICAL | VEC_COUNT,
					mask << 2 * cluster & everybody(), "cluster");
	end_taking();
	smp_together(smp_count, set_flat, NULL);
}

static void enter_x2apic(void *argument)
{
	(void)argument;
	x2apic_enable();
}

static void leave_x2apic(void *argument)
{
	(void)argument;
	x2apic_disable();
}

static void x2apic_ipi(void)
{
	smp_start();
	smp_together(smp_count, enter_x2apic, NULL);
	x2apic = true;
	expect_eq(rdmsr(MSR_X2APIC_ID), 0);
	begin_taking(false);
	shorthands();
	physical();
	for (u32 mask = 1; mask <= everybody(); mask++)
		send_and_expect(mask, LOGICAL | VEC_COUNT, mask, "logical");
	for (u32 mask = 1; mask <= everybody(); mask++)
		expect_one(mask, LOGICAL | LOWEST | VEC_COUNT, mask, "lowest priority");
	{
		u32 before[SMP_MAX];

		for (u32 cpu = 0; cpu < SMP_MAX; cpu++)
			before[cpu] = got[cpu];
		wrmsr(MSR_X2APIC_SELF, VEC_COUNT);
		expect_sent(got, before, 1, "self MSR");
	}
	end_taking();
	x2apic = false;
	smp_together(smp_count, leave_x2apic, NULL);
}

/* ---- HLT ---- */

/* Each interrupt is waited for before the next is sent: a lost wake-up shows as a standstill. */
static void halt_wakes(void)
{
	begin_taking(true);
	for (u32 k = 0; k < 3000 && smp_count > 1; k++) {
		u32 cpu = 1 + k % (smp_count - 1), before = got[cpu];

		for (u32 n = 0; n < k % 97 * 8; n++)
			__asm__ volatile("");
		send_ipi(cpu, ASSERT | VEC_COUNT);
		if (!spin_until(got[cpu] != before, 2)) {
			check(false, "round %u: processor %u sleeps on", k, cpu);
			break;
		}
	}
	end_taking();
}

static void halt_nmi(void)
{
	begin_taking(true);
	for (u32 k = 0; k < 500 && smp_count > 1; k++) {
		u32 cpu = 1 + k % (smp_count - 1), before = nmis[cpu];

		send_ipi(cpu, ASSERT | MODE_NMI);
		check(spin_until(nmis[cpu] != before, 2), "round %u: no NMI at %u", k, cpu);
	}
	end_taking();
}

/* Two processors wake each other, both halted in between. */
static volatile u32 ball;

static bool play(struct state *s)
{
	if (s->vector != VEC_COUNT)
		return false;
	apic_write(APIC_EOI, 0);
	got[smp_id()]++;
	return true;
}

static void ping_pong(void *argument)
{
	u32 me = smp_id();

	for (u32 n = 0; n < 2000; n++) {
		while (got[me] <= n && !(me == 0 && n == 0))
			__asm__ volatile("cli; cmpl %1, %0; ja 1f; sti; hlt; 1: cli"
					 :
					 : "m"(got[me]), "r"(n)
					 : "memory", "cc");
		if (me == 0 && n == 0)
			got[0]++;
		ball++;
		send_ipi(!me, ASSERT | VEC_COUNT);
	}
	(void)argument;
}

static void halt_both(void)
{
	smp_start();
	if (smp_count < 2)
		return;
	got[0] = got[1] = ball = 0;
	any_cpu_hook = play;
	smp_together(2, ping_pong, NULL);
	expect_eq(ball, 4000);
	sti_cli();
	any_cpu_hook = NULL;
}

/* ---- translations ---- */

static volatile u64 *const window = (u64 *)(TEST_AREA + 0x5000);
static volatile u32 acknowledged[SMP_MAX], wrong;
static volatile u64 expected;

static bool drop_window(struct state *s)
{
	if (s->vector != VEC_COUNT)
		return false;
	invlpg(window);
	acknowledged[smp_id()]++;
	apic_write(APIC_EOI, 0);
	return true;
}

/* Read all the time; after the acknowledgement only the new page may be seen. */
static void watch_window(void *argument)
{
	u32 me = smp_id();

	(void)argument;
	while (!stop) {
		u32 seen = acknowledged[me];
		u64 least = *(volatile u64 *)&expected;

		for (u32 n = 0; n < 50; n++) {
			u64 value = *window;

			if (seen && acknowledged[me] == seen && value + 1 < least)
				wrong++;
		}
		sti_cli();
	}
}

static void shoot_down(void)
{
	u8 *page[2] = {page_alloc(), page_alloc()};

	smp_start();
	stop = false;
	wrong = 0;
	for (u32 cpu = 0; cpu < SMP_MAX; cpu++)
		acknowledged[cpu] = 0;
	*(u64 *)page[0] = expected = 0;
	page_map((u64)window, (u64)page[0], PTE_P | PTE_W);
	any_cpu_hook = drop_window;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_begin(cpu, watch_window, NULL);
	for (u32 k = 1; k <= 200; k++) {
		*(volatile u64 *)page[k & 1] = k;
		page_map((u64)window, (u64)page[k & 1], PTE_P | PTE_W);
		send_ipi(0, TO_OTHERS | ASSERT | VEC_COUNT);
		for (u32 cpu = 1; cpu < smp_count; cpu++)
			check(spin_until(acknowledged[cpu] == k, 2), "round %u: no answer from %u",
			      k, cpu);
		expected = k;
		*(volatile u64 *)page[!(k & 1)] = 0; /* who still reads it reads an old value */
		expect_eq(*window, k);
	}
	stop = true;
	for (u32 cpu = 1; cpu < smp_count; cpu++)
		smp_wait(cpu);
	any_cpu_hook = NULL;
	expect_eq(wrong, 0);
}

/* ---- the paravirtual interface ---- */

enum { KVM_FEATURES = 0x40000001, CALL_KICK = 5, CALL_IPI = 10, MSR_STEAL = 0x4b564d03 };

static bool offered(u32 bit)
{
	if (cpuid(0x40000000, 0).ebx == 0x4b4d564b && cpuid(KVM_FEATURES, 0).eax >> bit & 1)
		return true;
	skip("not offered");
	return false;
}

static u64 hypercall(u64 nr, u64 a, u64 b, u64 c, u64 d)
{
	u64 result;

	if (cpu_is_amd())
		__asm__ volatile("vmmcall"
				 : "=a"(result)
				 : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d)
				 : "memory");
	else
		__asm__ volatile("vmcall"
				 : "=a"(result)
				 : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d)
				 : "memory");
	return result;
}

static void halt_with_interrupts_off(void *argument)
{
	u32 me = smp_id();

	(void)argument;
	while (!stop) {
		__asm__ volatile("cli; hlt");
		got[me]++;
	}
}

static void unhalt(void)
{
	smp_start();
	if (!offered(7) || smp_count < 2)
		return;
	stop = false;
	got[1] = 0;
	smp_begin(1, halt_with_interrupts_off, NULL);
	for (u32 k = 0; k < 1000; k++) {
		for (u32 n = 0; n < k % 97 * 8; n++)
			__asm__ volatile("");
		expect_eq(hypercall(CALL_KICK, 0, 1, 0, 0), 0);
		if (!spin_until(got[1] == k + 1, 2)) {
			check(false, "round %u: %u wake-ups", k, got[1]);
			break;
		}
	}
	stop = true;
	hypercall(CALL_KICK, 0, 1, 0, 0);
	smp_wait(1);
}

static u32 bits_in(u32 mask)
{
	u32 n = 0;

	for (; mask; mask &= mask - 1)
		n++;
	return n;
}

static void hypercall_ipi(void)
{
	u32 before[SMP_MAX];

	if (!offered(11))
		return;
	begin_taking(true);
	for (u32 mask = 1; mask <= everybody(); mask++) {
		for (u32 cpu = 0; cpu < SMP_MAX; cpu++)
			before[cpu] = got[cpu];
		expect_eq(hypercall(CALL_IPI, mask, 0, 0, VEC_COUNT), bits_in(mask));
		expect_sent(got, before, mask, "from 0");
	}
	for (u32 cpu = 1; cpu < smp_count; cpu++) {
		for (u32 i = 0; i < SMP_MAX; i++)
			before[i] = got[i];
		expect_eq(hypercall(CALL_IPI, ~0ul, ~0ul, cpu, VEC_COUNT), smp_count - cpu);
		expect_sent(got, before, everybody() & ~((1u << cpu) - 1), "from others");
	}
	expect_eq(hypercall(CALL_IPI, ~0ul, ~0ul, smp_count, VEC_COUNT), 0);
	end_taking();
}

/* struct kvm_steal_time */
static struct {
	volatile u64 steal;
	volatile u32 version, flags;
	volatile u8 preempted, pad[47];
} record __attribute__((aligned(64)));

static void sleep_and_look(void *argument)
{
	wrmsr(MSR_STEAL, (u64)&record | 1);
	(void)*(volatile u64 *)window;
	while (!stop) {
		__asm__ volatile("sti; hlt; cli");
		expected = *window;
	}
	wrmsr(MSR_STEAL, 0);
	(void)argument;
}

/* A sleeper says so, and drops its translations when it wakes if it was told to. */
static void flush_asleep(void)
{
	u8 *page[2] = {page_alloc(), page_alloc()};

	smp_start();
	if (!offered(9) || !offered(5) || smp_count < 2)
		return;
	any_cpu_hook = count_interrupts;
	stop = false;
	memset((void *)&record, 0, sizeof(record));
	*(u64 *)page[0] = 1;
	*(u64 *)page[1] = 2;
	page_map((u64)window, (u64)page[0], PTE_P | PTE_W);
	smp_begin(1, sleep_and_look, NULL);
	for (u32 k = 1; k <= 50; k++) {
		u8 asleep = 1;

		if (!spin_until(record.preempted == 1, 2)) {
			check(false, "round %u: not seen asleep", k);
			break;
		}
		expected = 0;
		page_map((u64)window, (u64)page[k & 1], PTE_P | PTE_W);
		expect(__atomic_compare_exchange_n(&record.preempted, &asleep, 3, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
		send_ipi(1, ASSERT | VEC_COUNT);
		expect(spin_until(expected, 2));
		expect_eq(expected, (k & 1) + 1);
		/* Odd for a moment when it falls asleep again, but not for good. */
		expect(spin_until(!(record.version & 1), 2));
	}
	stop = true;
	send_ipi(1, ASSERT | VEC_COUNT);
	smp_wait(1);
	any_cpu_hook = NULL;
}

const struct test tests[] = {
	{"INIT and start-up messages start the others, once", "SDM vol. 3, 9.4", start},
	{"INIT and start-up again, elsewhere", "SDM vol. 3, 9.4.3", restart},
	{"INIT reaches a halted and a looping processor", "SDM vol. 3, 11.6.1", init_anywhere},
	{"IPIs by shorthand and id, xAPIC", "SDM vol. 3, 11.6", xapic_ipi},
	{"IPIs to logical destinations, xAPIC", "SDM vol. 3, 11.6.2.2", xapic_logical},
	{"IPIs in x2APIC mode", "SDM vol. 3, 11.12.9", x2apic_ipi},
	{"HLT wakes for each IPI", "SDM vol. 3, 9.10", halt_wakes},
	{"HLT wakes for each NMI", "SDM vol. 3, 6.7", halt_nmi},
	{"two halted processors wake each other", "SDM vol. 3, 11.6", halt_both},
	{"a translation dropped on request is not used again", "SDM vol. 3, 4.10.5", shoot_down},
	{"a call ends another processor's HLT", "KVM hypercalls, KICK_CPU", unhalt},
	{"a call interrupts many processors", "KVM hypercalls, SEND_IPI", hypercall_ipi},
	{"a sleeper drops translations when it wakes", "KVM MSRs, STEAL_TIME", flush_asleep},
	{NULL},
};
