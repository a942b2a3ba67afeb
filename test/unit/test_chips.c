/*
 * Interrupt controllers of an engine's own (engine/engine.h, struct engine_chips): test_chips NAME
 * [no-sti-shadow]. 77: this host cannot run the engine. The second argument says that the processor
 * loses STI's shadow at times. Clauses are of the SDM unless said otherwise.
 *
 * Most cases look at the local APIC's request register and run no more than port and memory
 * accesses. Those where an interrupt is delivered are left out where the host's KVM emulates what
 * runs in ring 0, whose emulator cannot do that.
 */
#include "engine_guest.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	HIGH_TABLE_AT = 0x50000, /* maps the last of 4 GiB, where the chips are */
	APIC_IRR = 0x20,
	APIC_ENABLED = 0x1ff,
	PATIENCE_MS = 10000,
};

static const u64 msi_address = 0xfee00000;

static const struct engine_ops *engine;
static const struct engine_chips *chips;

/* ---- the guest ---- */

static void map_chips(struct guest *g)
{
	const u64 bits = PTE_P | PTE_RW, gib = 0xc0000000;
	u64 *pdpt = (u64 *)(void *)(g->ram + TABLES_AT + PAGE_SIZE);
	u64 *pd = (u64 *)(void *)(g->ram + HIGH_TABLE_AT);

	pdpt[gib / GIB] = HIGH_TABLE_AT | bits;
	for (u64 i = 0; i < 512; i++)
		pd[i] = (gib + i * 2 * MIB) | bits | PTE_PS;
}

static void set_apic(struct guest *g, const struct cpu_apic *a)
{
	static struct cpu_state s;

	s.apic = *a;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_APIC, &s), 0);
}

static struct cpu_apic get_apic(struct guest *g)
{
	return guest_state(g, CPU_PART_APIC)->apic;
}

/* With a local APIC that is enabled, and the 8259's interrupts let through to it. */
static struct guest *fresh(const u8 *code, u32 len)
{
	struct guest *g = guest_new_options(engine, "chips=kernel");
	struct cpu_apic a;

	chips = engine->chips(g->vm);
	assert_non_null(chips);
	guest_load(g, code, len);
	map_chips(g);
	a = get_apic(g);
	a.base |= BIT(8);
	a.reg[APIC_SVR] = APIC_ENABLED;
	a.reg[APIC_LVT_LINT0] = 0x700;
	set_apic(g, &a);
	return g;
}

static bool is_requested(struct guest *g, u32 vector)
{
	const struct cpu_apic a = get_apic(g);

	return a.reg[APIC_IRR + vector / 32] >> vector % 32 & 1;
}

static u32 requests(struct guest *g)
{
	const struct cpu_apic a = get_apic(g);
	u32 n = 0;

	for (u32 i = 0; i < 8; i++)
		n += (u32)__builtin_popcount(a.reg[APIC_IRR + i]);
	return n;
}

/* Events are delivered a little later, possibly by another thread. */
static void await_request(struct guest *g, u32 vector)
{
	for (u32 ms = 0; ms < PATIENCE_MS && !is_requested(g, vector); ms++)
		usleep(1000);
	assert_true(is_requested(g, vector));
}

/* Run until the guest writes to a port; what it wrote. */
static u32 until_out(struct guest *g)
{
	struct vm_exit x = {0};

	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	assert_false(x.pio.in);
	return x.pio.data;
}

/* ---- which chips there are ---- */

CODE(nothing, "out %al, $0x80; hlt");

static void chips_are_there_when_asked_for(void **state)
{
	struct guest *g = guest_new_options(engine, "chips=user");

	(void)state;
	assert_null(engine->chips(g->vm));
	guest_free(g);
	g = guest_new(engine);
	assert_null(engine->chips(g->vm));
	guest_free(g);
	g = fresh(CODE_OF(nothing));
	guest_free(g);
}

CODE(ports, "in $0x21, %al; in $0xa1, %al; mov $0x4d0, %edx; in %dx, %al; in $0x40, %al;"
	    "in $0x61, %al; mov $0xfec00000, %edi; mov (%rdi), %eax; mov $0xfee00000, %edi;"
	    "mov 0x30(%rdi), %eax; out %al, $0x80; hlt");

/* None of the accesses leaves the engine. */
static void chips_answer_themselves(void **state)
{
	struct guest *g = fresh(CODE_OF(ports));

	(void)state;
	assert_int_equal(until_out(g) & 0xff, 0x14); /* 11.4.8: an integrated APIC */
	guest_free(g);
}

/* ---- messages ---- */

static void sdm3_11_11_message_is_requested(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));

	(void)state;
	chips->send_msi(g->vm, msi_address, 0x41);
	assert_true(is_requested(g, 0x41));
	chips->send_msi(g->vm, msi_address | 0x7f << 12, 0x42); /* nobody's */
	assert_int_equal(requests(g), 1);
	guest_free(g);
}

static void raise_event(int fd)
{
	const u64 one = 1;

	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static void event_sends_its_message(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));
	int fd = eventfd(0, EFD_NONBLOCK);

	(void)state;
	assert_int_not_equal(chips->msi_event(g->vm, fd, msi_address, 0x41, false), 0);
	assert_int_equal(chips->msi_event(g->vm, fd, msi_address, 0x41, true), 0);
	assert_int_equal(requests(g), 0);
	raise_event(fd);
	await_request(g, 0x41);
	assert_int_equal(chips->msi_event(g->vm, fd, msi_address, 0x52, true), 0);
	raise_event(fd);
	await_request(g, 0x52);
	assert_int_equal(requests(g), 2);
	assert_int_equal(chips->msi_event(g->vm, fd, msi_address, 0x52, false), 0);
	assert_int_not_equal(chips->msi_event(g->vm, fd, msi_address, 0x52, false), 0);
	close(fd);
	guest_free(g);
}

static void ended_event_sends_nothing(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));
	int fd = eventfd(0, EFD_NONBLOCK);
	u64 count = 0;

	(void)state;
	assert_int_equal(chips->msi_event(g->vm, fd, msi_address, 0x41, true), 0);
	assert_int_equal(chips->msi_event(g->vm, fd, msi_address, 0x41, false), 0);
	raise_event(fd);
	/* It is an ordinary descriptor again: nobody has taken the event. */
	assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
	assert_int_equal(count, 1);
	assert_int_equal(requests(g), 0);
	close(fd);
	guest_free(g);
}

/* Each descriptor has its own message, whichever of them come and go. */
static void events_are_told_apart(void **state)
{
	enum { FIRST = 0x30, EVENTS = 200 };
	struct guest *g = fresh(CODE_OF(nothing));
	int fd[EVENTS];

	(void)state;
	for (u32 i = 0; i < EVENTS; i++) {
		fd[i] = eventfd(0, EFD_NONBLOCK);
		assert_int_equal(chips->msi_event(g->vm, fd[i], msi_address, FIRST + i, true), 0);
	}
	for (u32 i = 0; i < EVENTS; i += 2)
		assert_int_equal(chips->msi_event(g->vm, fd[i], 0, 0, false), 0);
	for (u32 i = 0; i < EVENTS; i += 4)
		assert_int_equal(chips->msi_event(g->vm, fd[i], msi_address, FIRST + i, true), 0);
	for (u32 i = 0; i < EVENTS; i++)
		raise_event(fd[i]);
	for (u32 i = 0; i < EVENTS; i++)
		if (i % 4 != 2)
			await_request(g, FIRST + i);
	assert_int_equal(requests(g), EVENTS - EVENTS / 4);
	for (u32 i = 0; i < EVENTS; i++)
		close(fd[i]);
	guest_free(g);
}

/* ---- lines ---- */

/* Redirection entries of inputs 2, 5 and 16; the latter reacts to its level. Then entry 5 is read
 * once a round. */
CODE(route, "mov $0xfec00000, %edi; movl $0x14, (%rdi); movl $0x62, 0x10(%rdi);"
	    "movl $0x1a, (%rdi); movl $0x65, 0x10(%rdi);"
	    "movl $0x30, (%rdi); movl $0x8070, 0x10(%rdi);"
	    "1: movl $0x1a, (%rdi); mov 0x10(%rdi), %eax; out %eax, $0x80; jmp 1b");

static void ioapic_3_2_4_lines_follow_their_entries(void **state)
{
	struct guest *g = fresh(CODE_OF(route));

	(void)state;
	chips->set_line(g->vm, 5, true); /* masked: lost */
	chips->set_line(g->vm, 5, false);
	assert_int_equal(until_out(g) & 0xff, 0x65);
	assert_int_equal(requests(g), 0);
	chips->set_line(g->vm, 5, true);
	assert_true(is_requested(g, 0x65));
	assert_int_equal(requests(g), 1);
	chips->set_line(g->vm, 16, true);
	assert_true(is_requested(g, 0x70));
	/* Input 2 is the 8254's alone. */
	chips->set_line(g->vm, 2, true);
	assert_int_equal(requests(g), 2);
	guest_free(g);
}

static void reset_masks_everything(void **state)
{
	struct guest *g = fresh(CODE_OF(route));
	struct err e = {0};

	(void)state;
	assert_int_equal(until_out(g) & 0xff, 0x65);
	assert_int_equal(chips->reset(g->vm, &e), 0);
	chips->set_line(g->vm, 5, true);
	chips->set_line(g->vm, 16, true);
	assert_int_equal(requests(g), 0);
	assert_int_equal(until_out(g) & 0x100ff, 0x10000);
	guest_free(g);
}

/* The 8254's output as a level: channel 2, mode 0, which port 61H gates and shows. */
CODE(speaker, "mov $1, %al; out %al, $0x61; mov $0xb0, %al; out %al, $0x43; mov $100, %al;"
	      "out %al, $0x42; xor %eax, %eax; out %al, $0x42;"
	      "1: in $0x61, %al; test $0x20, %al; jz 1b; out %al, $0x80; hlt");

static void i8254_channel_2_counts(void **state)
{
	struct guest *g = fresh(CODE_OF(speaker));

	(void)state;
	assert_int_equal(until_out(g) & 0x21, 0x21);
	guest_free(g);
}

/* ---- the local APIC's state ---- */

static void apic_state_comes_back(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));
	struct cpu_apic a = get_apic(g), b;

	(void)state;
	a.reg[APIC_TPR] = 0x35;
	a.reg[APIC_LDR] = 0x04000000;
	a.reg[APIC_LVT_TIMER] = 0x40000 | 0xec; /* TSC deadline */
	a.reg[APIC_LVT_ERROR] = 0xfe;
	a.reg[APIC_IRR + 2] = 1u << 3;
	a.tsc_deadline = guest_state(g, CPU_PART_MSR)->msr.tsc + BIT(50);
	set_apic(g, &a);
	b = get_apic(g);
	assert_int_equal(b.base, a.base);
	assert_int_equal(b.tsc_deadline, a.tsc_deadline);
	assert_int_equal(b.reg[APIC_TPR], 0x35);
	assert_int_equal(b.reg[APIC_LDR], 0x04000000);
	assert_int_equal(b.reg[APIC_SVR], APIC_ENABLED);
	assert_int_equal(b.reg[APIC_LVT_TIMER], a.reg[APIC_LVT_TIMER]);
	assert_int_equal(b.reg[APIC_LVT_LINT0], 0x700);
	assert_int_equal(b.reg[APIC_LVT_ERROR], 0xfe);
	assert_true(is_requested(g, 0x43));
	assert_int_equal(guest_state(g, CPU_PART_CR)->cr.cr8, 3); /* 11.8.6 */
	guest_free(g);
}

/* 11.12: x2APIC mode; back from it as no guest could, as a reset does. */
static void sdm3_11_12_mode_comes_back(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));
	const struct cpu_apic a = get_apic(g);
	struct cpu_apic b = a;

	(void)state;
	b.base |= BIT(10);
	set_apic(g, &b);
	assert_int_equal(get_apic(g).base, a.base | BIT(10));
	chips->send_msi(g->vm, msi_address, 0x41);
	assert_true(is_requested(g, 0x41));
	set_apic(g, &a);
	assert_int_equal(get_apic(g).base, a.base);
	assert_int_equal(requests(g), 0);
	guest_free(g);
}

/* The CPU's other state can be set without harm to the APIC's, and its CR8 is the TPR. */
static void sdm3_11_8_6_cr8_is_the_priority(void **state)
{
	struct guest *g = fresh(CODE_OF(nothing));
	struct cpu_state *s;

	(void)state;
	chips->send_msi(g->vm, msi_address, 0x41);
	s = guest_state(g, CPU_PART_CR | CPU_PART_SEG | CPU_PART_APIC);
	s->cr.cr8 = 7;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_CR | CPU_PART_SEG, s), 0);
	assert_int_equal(get_apic(g).reg[APIC_TPR], 0x70);
	assert_true(is_requested(g, 0x41));
	/* Together, CR8 is right. */
	s = guest_state(g, CPU_PART_ALL);
	s->cr.cr8 = 2;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_ALL, s), 0);
	assert_int_equal(get_apic(g).reg[APIC_TPR], 0x20);
	guest_free(g);
}

/* ---- halting ---- */

CODE(halt, "out %al, $0x80; hlt; out %al, $0x81; hlt");

static void *kick_later(void *opaque)
{
	struct guest *g = opaque;

	usleep(20000);
	engine->kick(g->cpu);
	return NULL;
}

/* HLT stays inside, a kick gets out of it, and the state says that it still halts. */
static void kick_ends_a_halt(void **state)
{
	struct guest *g = fresh(CODE_OF(halt));
	struct vm_exit x = {0};
	struct cpu_apic a;
	pthread_t thread;

	(void)state;
	until_out(g);
	for (u32 i = 0; i < 2; i++) {
		assert_int_equal(pthread_create(&thread, NULL, kick_later, g), 0);
		assert_int_equal(guest_run(g, &x), EXIT_KICKED);
		pthread_join(thread, NULL);
		a = get_apic(g);
		assert_true(a.halted);
		assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.rip, CODE_AT + 3);
	}
	a.halted = false;
	set_apic(g, &a);
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	assert_int_equal(x.pio.port, 0x81);
	guest_free(g);
}

static void sdm3_9_4_3_processor_waits_for_sipi(void **state)
{
	struct guest *g = fresh(CODE_OF(halt));
	struct cpu_apic a = get_apic(g);
	struct vm_exit x = {0};
	pthread_t thread;

	(void)state;
	a.base &= ~BIT(8);
	a.waits_for_sipi = true;
	set_apic(g, &a);
	assert_int_equal(pthread_create(&thread, NULL, kick_later, g), 0);
	assert_int_equal(guest_run(g, &x), EXIT_KICKED);
	pthread_join(thread, NULL);
	assert_true(get_apic(g).waits_for_sipi);
	a.waits_for_sipi = false;
	set_apic(g, &a);
	assert_int_equal(guest_run(g, &x), EXIT_PIO);
	guest_free(g);
}

/* ---- delivery ---- */

/* Interrupts are open in HLT only, so that none is taken before it. */
CODE(wait, "out %al, $0x80; 1: sti; hlt; cli; out %al, $0x81; jmp 1b");

static void *send_later(void *opaque)
{
	struct guest *g = opaque;

	usleep(20000);
	chips->send_msi(g->vm, msi_address, 0x41);
	return NULL;
}

static void sdm2_hlt_ends_with_a_message(void **state)
{
	struct guest *g = fresh(CODE_OF(wait));
	pthread_t thread;

	(void)state;
	until_out(g);
	assert_int_equal(pthread_create(&thread, NULL, send_later, g), 0);
	until_out(g);
	pthread_join(thread, NULL);
	assert_int_equal(guest_count(g, 0x41), 1);
	guest_free(g);
}

/* Both 8259s, vectors from 0x30; input 4 and, through the cascade, input 12. */
CODE(pics,
     "mov $0x11, %al; out %al, $0x20; out %al, $0xa0; mov $0x30, %al; out %al, $0x21;"
     "mov $0x38, %al; out %al, $0xa1; mov $4, %al; out %al, $0x21; mov $2, %al; out %al, $0xa1;"
     "mov $1, %al; out %al, $0x21; out %al, $0xa1; mov $0xeb, %al; out %al, $0x21;"
     "mov $0xef, %al; out %al, $0xa1; out %al, $0x80; 1: sti; hlt; cli; mov $0x20, %al;"
     "out %al, $0xa0; out %al, $0x20; out %al, $0x80; jmp 1b");

static void i8259_interrupts_are_delivered(void **state)
{
	struct guest *g = fresh(CODE_OF(pics));

	(void)state;
	until_out(g);
	chips->set_line(g->vm, 4, true);
	until_out(g);
	assert_int_equal(guest_count(g, 0x34), 1);
	chips->set_line(g->vm, 12, true);
	until_out(g);
	assert_int_equal(guest_count(g, 0x3c), 1);
	assert_int_equal(guest_count(g, 0x34), 1);
	guest_free(g);
}

/* Input 2 of the I/O APIC, channel 0 in mode 2 at 1 kHz. */
CODE(tick, "mov $0xfec00000, %edi; movl $0x14, (%rdi); movl $0x62, 0x10(%rdi); mov $0x34, %al;"
	   "out %al, $0x43; mov $0xa9, %al; out %al, $0x40; mov $4, %al; out %al, $0x40;"
	   "mov $0xfee00000, %edi; 1: sti; hlt; cli; movl $0, 0xb0(%rdi); out %al, $0x80; jmp 1b");

static void i8254_ticks(void **state)
{
	struct guest *g = fresh(CODE_OF(tick));

	(void)state;
	for (u32 i = 1; i <= 20; i++) {
		until_out(g);
		assert_int_equal(guest_count(g, 0x62), i);
	}
	guest_free(g);
}

/* 11.5.4.1, through the registers of x2APIC mode. */
CODE(deadline, "mov $0x1b, %ecx; mov $0xfee00d00, %eax; xor %edx, %edx; wrmsr; mov $0x80f, %ecx;"
	       "mov $0x1ff, %eax; wrmsr; mov $0x832, %ecx; mov $0x40051, %eax; wrmsr; mov $0x6e0, "
	       "%ecx; rdtsc;"
	       "add $1000000, %eax; adc $0, %edx; wrmsr; sti; hlt; out %al, $0x80; hlt");

static void sdm3_11_5_4_1_deadline_passes(void **state)
{
	struct guest *g = fresh(CODE_OF(deadline));

	(void)state;
	until_out(g);
	assert_int_equal(guest_count(g, 0x51), 1);
	assert_int_equal(get_apic(g).tsc_deadline, 0);
	guest_free(g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest everywhere[] = {
		cmocka_unit_test(chips_are_there_when_asked_for),
		cmocka_unit_test(chips_answer_themselves),
		cmocka_unit_test(sdm3_11_11_message_is_requested),
		cmocka_unit_test(event_sends_its_message),
		cmocka_unit_test(ended_event_sends_nothing),
		cmocka_unit_test(events_are_told_apart),
		cmocka_unit_test(ioapic_3_2_4_lines_follow_their_entries),
		cmocka_unit_test(reset_masks_everything),
		cmocka_unit_test(i8254_channel_2_counts),
		cmocka_unit_test(apic_state_comes_back),
		cmocka_unit_test(sdm3_11_12_mode_comes_back),
		cmocka_unit_test(sdm3_11_8_6_cr8_is_the_priority),
		cmocka_unit_test(kick_ends_a_halt),
		cmocka_unit_test(sdm3_9_4_3_processor_waits_for_sipi),
	};
	const struct CMUnitTest on_processors[] = {
		cmocka_unit_test(sdm2_hlt_ends_with_a_message),
		cmocka_unit_test(i8259_interrupts_are_delivered),
		cmocka_unit_test(i8254_ticks),
		cmocka_unit_test(sdm3_11_5_4_1_deadline_passes),
	};
	const char *name = argc > 1 ? argv[1] : "kvm";
	struct err e = {0};
	int failed;

	engine = engine_by_name(name);
	if (!engine || engine->probe(&e)) {
		printf("%s cannot run here: %s\n", name, engine ? e.text : "no such engine");
		return 77;
	}
	if (argc > 2 && !strcmp(argv[2], "no-sti-shadow"))
		guest_forgive_lost_shadows();
	alarm(30); /* what is never delivered is waited for inside the engine */
	failed = cmocka_run_group_tests_name(name, everywhere, NULL, NULL);
	if (guest_ring0_is_emulated(engine))
		printf("%s: ring 0 is emulated here, %zu cases left out\n", name,
		       ARRAY_SIZE(on_processors));
	else
		failed += cmocka_run_group_tests_name(name, on_processors, NULL, NULL);
	return failed;
}
