/*
 * The engine contract (engine/engine.h), the same cases on every engine: test_engine NAME.
 *
 * An engine that this host cannot run is skipped. Where the host's KVM emulates what runs in ring 0
 * instruction by instruction, the cases that need more than its emulator knows are skipped, too.
 */
#include "engine_guest.h"

#include "cpu/msr.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

enum { HOLE_SIZE = 1 << 30 };

static const struct engine_ops *engine;
static void *hole;

static struct guest *fresh(const u8 *code, u32 len)
{
	struct guest *g = guest_new(engine);

	guest_load(g, code, len);
	return g;
}

#define expect_exit(g, x, t) assert_int_equal(guest_run(g, x), t)

/* ---- ports ---- */

CODE(pio, "mov $0x1234, %edx; mov $0x11223344, %eax; out %al, %dx; out %ax, %dx; out %eax, %dx;"
	  "xor %eax, %eax; in %dx, %al; mov %eax, %ebx; in %dx, %ax; mov %eax, %ecx; in %dx, %eax;"
	  "out %al, $0x80; hlt");

static void expect_out(struct guest *g, struct vm_exit *x, u16 port, u8 size, u32 data)
{
	expect_exit(g, x, EXIT_PIO);
	assert_false(x->pio.in);
	assert_int_equal(x->pio.port, port);
	assert_int_equal(x->pio.size, size);
	assert_int_equal(x->pio.data, data);
}

static void answer_in(struct guest *g, struct vm_exit *x, u8 size, u32 data)
{
	expect_exit(g, x, EXIT_PIO);
	assert_true(x->pio.in);
	assert_int_equal(x->pio.size, size);
	x->pio.data = data;
}

static void sdm1_19_3_port_sizes(void **state)
{
	struct guest *g = fresh(CODE_OF(pio));
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	expect_out(g, &x, 0x1234, 1, 0x44);
	expect_out(g, &x, 0x1234, 2, 0x3344);
	expect_out(g, &x, 0x1234, 4, 0x11223344);
	answer_in(g, &x, 1, 0xa1);
	answer_in(g, &x, 2, 0xb2b1);
	answer_in(g, &x, 4, 0xc4c3c2c1);
	expect_out(g, &x, 0x80, 1, 0xc1);
	expect_exit(g, &x, EXIT_HLT);
	s = guest_state(g, CPU_PART_GPR);
	assert_int_equal(s->gpr.r[RBX], 0xa1);
	assert_int_equal(s->gpr.r[RCX], 0xb2b1);
	assert_int_equal(s->gpr.r[RAX], 0xc4c3c2c1);
	assert_int_equal(s->gpr.rip, CODE_AT + (pio_end - pio_start));
	guest_free(g);
}

CODE(string_io, "mov $0x55, %edx; mov $0x100000, %edi; mov $5, %ecx; cld; rep insw;"
		"mov $0x100000, %esi; mov $5, %ecx; rep outsw; hlt");

static void sdm1_19_3_string_elements(void **state)
{
	struct guest *g = fresh(CODE_OF(string_io));
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	for (u32 i = 0; i < 5; i++)
		answer_in(g, &x, 2, 0x1100 + i);
	for (u32 i = 0; i < 5; i++)
		expect_out(g, &x, 0x55, 2, 0x1100 + i);
	expect_exit(g, &x, EXIT_HLT);
	s = guest_state(g, CPU_PART_GPR);
	assert_int_equal(s->gpr.r[RCX], 0);
	assert_int_equal(s->gpr.r[RSI], 0x10000a);
	assert_int_equal(s->gpr.r[RDI], 0x10000a);
	assert_int_equal(guest_get(g, DATA_AT) & 0xffffffff, 0x11011100);
	guest_free(g);
}

/* ---- device memory ---- */

CODE(mmio, "mov $0x20000000, %ebx; mov $0x8877665544332211, %rax;"
	   "mov %al, 1(%rbx); mov %ax, 2(%rbx); mov %eax, 4(%rbx); mov %rax, 8(%rbx);"
	   "mov 1(%rbx), %cl; mov 2(%rbx), %si; mov 4(%rbx), %edi; mov 8(%rbx), %r8; hlt");

static void expect_mmio(struct guest *g, struct vm_exit *x, u64 offset, u8 size, bool write)
{
	expect_exit(g, x, EXIT_MMIO);
	assert_int_equal(x->mmio.gpa, MMIO_AT + offset);
	assert_int_equal(x->mmio.size, size);
	assert_int_equal(x->mmio.write, write);
}

static void mmio_of_each_width(void **state)
{
	static const u8 size[] = {1, 2, 4, 8};
	static const u8 offset[] = {1, 2, 4, 8};
	struct guest *g = fresh(CODE_OF(mmio));
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	for (u32 i = 0; i < 4; i++) {
		expect_mmio(g, &x, offset[i], size[i], true);
		assert_int_equal(x.mmio.data, 0x8877665544332211 & (~0ul >> (64 - 8 * size[i])));
	}
	for (u32 i = 0; i < 4; i++) {
		expect_mmio(g, &x, offset[i], size[i], false);
		x.mmio.data = 0xf8f7f6f5f4f3f2f1;
	}
	expect_exit(g, &x, EXIT_HLT);
	s = guest_state(g, CPU_PART_GPR);
	assert_int_equal(s->gpr.r[RCX] & 0xff, 0xf1);
	assert_int_equal(s->gpr.r[RSI] & 0xffff, 0xf2f1);
	assert_int_equal(s->gpr.r[RDI], 0xf4f3f2f1);
	assert_int_equal(s->gpr.r[R8], 0xf8f7f6f5f4f3f2f1);
	guest_free(g);
}

CODE(mmio_crossing, "mov $0x20000000, %ebx; mov $0x8877665544332211, %rax;"
		    "mov %rax, 0xffc(%rbx); mov 0x2ffd(%rbx), %rcx; hlt");

/* Unaligned and across pages: whatever the pieces, each byte once and in its place. */
static void mmio_across_pages(void **state)
{
	struct guest *g = fresh(CODE_OF(mmio_crossing));
	struct vm_exit x = {0};
	u8 seen[8] = {0}, value[8];
	u64 all = 0x8877665544332211;

	(void)state;
	memcpy(value, &all, 8);
	for (u32 done = 0; done < 8; done += x.mmio.size) {
		expect_exit(g, &x, EXIT_MMIO);
		assert_true(x.mmio.write);
		assert_int_equal(x.mmio.gpa, MMIO_AT + 0xffc + done);
		assert_true((x.mmio.gpa & 7) + x.mmio.size <= 8);
		memcpy(seen + done, &x.mmio.data, x.mmio.size);
	}
	assert_memory_equal(seen, value, 8);
	for (u32 done = 0; done < 8; done += x.mmio.size) {
		expect_exit(g, &x, EXIT_MMIO);
		assert_false(x.mmio.write);
		assert_int_equal(x.mmio.gpa, MMIO_AT + 0x2ffd + done);
		assert_true((x.mmio.gpa & 7) + x.mmio.size <= 8);
		x.mmio.data = 0;
		memcpy(&x.mmio.data, value + done, x.mmio.size);
	}
	expect_exit(g, &x, EXIT_HLT);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RCX], all);
	guest_free(g);
}

CODE(mmio_rmw, "mov $0x20000000, %ebx; orl $0x10, 8(%rbx); lock addl $1, 8(%rbx);"
	       "mov $0x77, %eax; xchg %al, 16(%rbx); hlt");

static void mmio_read_modify_write(void **state)
{
	struct guest *g = fresh(CODE_OF(mmio_rmw));
	struct vm_exit x = {0};

	(void)state;
	expect_mmio(g, &x, 8, 4, false);
	x.mmio.data = 0x401;
	expect_mmio(g, &x, 8, 4, true);
	assert_int_equal(x.mmio.data, 0x411);
	expect_mmio(g, &x, 8, 4, false);
	x.mmio.data = 0x411;
	expect_mmio(g, &x, 8, 4, true);
	assert_int_equal(x.mmio.data, 0x412);
	expect_mmio(g, &x, 16, 1, false);
	x.mmio.data = 0x66;
	expect_mmio(g, &x, 16, 1, true);
	assert_int_equal(x.mmio.data, 0x77);
	expect_exit(g, &x, EXIT_HLT);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RAX] & 0xff, 0x66);
	guest_free(g);
}

/* ---- CPUID and MSRs ---- */

CODE(cpuid, "cpuid; out %al, $0x80; hlt");

static void cpuid_is_the_model(void **state)
{
	struct guest *g = guest_new(engine);
	struct vm_exit x = {0};

	(void)state;
	for (u32 i = 0; i < g->cpuid.count; i++) {
		const struct cpuid_leaf *l = &g->cpuid.leaf[i];
		struct cpu_state *s;
		u32 want[4];

		guest_load(g, CODE_OF(cpuid));
		s = guest_state(g, CPU_PART_GPR);
		s->gpr.r[RAX] = l->leaf;
		s->gpr.r[RCX] = l->subleaf;
		assert_int_equal(engine->state_set(g->cpu, CPU_PART_GPR, s), 0);
		expect_exit(g, &x, EXIT_PIO);
		expect_exit(g, &x, EXIT_HLT);
		s = guest_state(g, CPU_PART_GPR);
		cpuid_query(&g->cpuid, 0, s->cr.cr4, XCR0_X87, l->leaf, l->subleaf, want);
		if (s->gpr.r[RAX] != want[0] || s->gpr.r[RBX] != want[1] ||
		    s->gpr.r[RCX] != want[2] || s->gpr.r[RDX] != want[3])
			fail_msg("leaf %#x.%u: %#lx %#lx %#lx %#lx, the model has %#x %#x %#x %#x",
				 l->leaf, l->subleaf, s->gpr.r[RAX], s->gpr.r[RBX], s->gpr.r[RCX],
				 s->gpr.r[RDX], want[0], want[1], want[2], want[3]);
	}
	guest_free(g);
}

CODE(rdmsr, "rdmsr; out %al, $0x80; hlt");
CODE(wrmsr, "wrmsr; out %al, $0x80; hlt");

static struct cpu_state *with_msr(struct guest *g, u32 index, u64 value)
{
	struct cpu_state *s = guest_state(g, CPU_PART_GPR);

	s->gpr.r[RCX] = index;
	s->gpr.r[RAX] = (u32)value;
	s->gpr.r[RDX] = value >> 32;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_GPR, s), 0);
	return s;
}

static void msrs_of_the_table(void **state)
{
	static const u32 readable[] = {MSR_PAT,         MSR_MISC_ENABLE, 0xfe,           0x179,
				       0x2ff,           0x250,           MSR_TSC_ADJUST, MSR_STAR,
				       MSR_SYSENTER_CS, MSR_EFER};
	struct guest *g = guest_new(engine);
	struct vm_exit x = {0};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(readable); i++) {
		struct cpu_state *s;
		struct msr_env env = {.cpuid = &g->cpuid};
		static struct cpu_state saved;
		u64 want = 0;

		guest_load(g, CODE_OF(rdmsr));
		with_msr(g, readable[i], 0);
		saved = *guest_state(g, CPU_PART_MSR | CPU_PART_CR);
		env.msr = &saved.msr;
		if (readable[i] == MSR_EFER)
			want = saved.cr.efer;
		else
			assert_int_equal(msr_read(&env, readable[i], &want), MSR_OK);
		expect_exit(g, &x, EXIT_PIO);
		s = guest_state(g, CPU_PART_GPR);
		if (((s->gpr.r[RDX] << 32) | s->gpr.r[RAX]) != want)
			fail_msg("MSR %#x: %#lx, not %#lx", readable[i],
				 s->gpr.r[RDX] << 32 | s->gpr.r[RAX], want);
	}
	guest_free(g);
}

static void msrs_of_the_machine(void **state)
{
	static const u32 index[] = {MSR_APIC_BASE, MSR_TSC_DEADLINE, 0x802, 0x830, 0x83f};
	struct guest *g = guest_new(engine);
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(index); i++) {
		guest_load(g, CODE_OF(rdmsr));
		with_msr(g, index[i], 0);
		expect_exit(g, &x, EXIT_RDMSR);
		assert_int_equal(x.msr.index, index[i]);
		x.msr.value = 0x1122334455667788;
		x.msr.fault = false;
		expect_exit(g, &x, EXIT_PIO);
		s = guest_state(g, CPU_PART_GPR);
		assert_int_equal(s->gpr.r[RAX], 0x55667788);
		assert_int_equal(s->gpr.r[RDX], 0x11223344);

		guest_load(g, CODE_OF(wrmsr));
		with_msr(g, index[i], 0xaabbccdd00112233);
		expect_exit(g, &x, EXIT_WRMSR);
		assert_int_equal(x.msr.index, index[i]);
		assert_int_equal(x.msr.value, 0xaabbccdd00112233);
		x.msr.fault = false;
		expect_exit(g, &x, EXIT_PIO);
	}
	guest_free(g);
}

/* SDM vol. 2, RDMSR: a reserved or unimplemented register raises #GP(0). Without an IDT that ends
 * in a shutdown, on any host. */
static void sdm2_wrmsr_invalid_faults(void **state)
{
	static const struct {
		u32 index;
		u64 value;
	} bad[] = {{0x9999, 0}, {MSR_PAT, 0x0202}, {0x2ff, 2}, {0xfe, 0}, {MSR_EFER, BIT(3)}};
	struct guest *g = guest_new(engine);
	struct vm_exit x = {0};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		struct cpu_state *s;

		guest_load(g, CODE_OF(wrmsr));
		s = guest_state(g, CPU_PART_SEG);
		s->segs.idtr.limit = 0;
		assert_int_equal(engine->state_set(g->cpu, CPU_PART_SEG, s), 0);
		with_msr(g, bad[i].index, bad[i].value);
		expect_exit(g, &x, EXIT_SHUTDOWN);
	}
	guest_load(g, CODE_OF(rdmsr));
	with_msr(g, MSR_TSC_DEADLINE, 0);
	expect_exit(g, &x, EXIT_RDMSR);
	x.msr.fault = true;
	/* The handler returns to RDMSR. */
	expect_exit(g, &x, EXIT_RDMSR);
	assert_int_equal(guest_count(g, VEC_GP), 1);
	guest_free(g);
}

CODE(tsc, "mov $0x10, %ecx; xor %eax, %eax; mov $0x100, %edx; wrmsr; rdtsc; out %al, $0x80; hlt");

/* SDM vol. 3, 17.17.3: writing the TSC shows in TSC_ADJUST. */
static void sdm3_17_17_3_tsc_moves(void **state)
{
	struct guest *g = fresh(CODE_OF(tsc));
	struct vm_exit x = {0};
	struct cpu_state *s;
	u64 now;

	(void)state;
	expect_exit(g, &x, EXIT_PIO);
	s = guest_state(g, CPU_PART_GPR | CPU_PART_MSR);
	now = s->gpr.r[RDX] << 32 | s->gpr.r[RAX];
	assert_in_range(now, 0x100ul << 32, 0x104ul << 32);
	assert_in_range(s->msr.tsc, now, 0x104ul << 32);
	assert_int_not_equal(s->msr.tsc_adjust, 0);
	guest_free(g);
}

/* ---- halting, interrupts, NMI ---- */

CODE(sti_loop, "sti; 1: out %al, $0x80; jmp 1b");
CODE(sti_hlt, "sti; hlt; out %al, $0x80; hlt");
CODE(cli_out, "1: out %al, $0x80; jmp 1b");

static void interrupt_is_delivered(void **state)
{
	struct guest *g = fresh(CODE_OF(sti_loop));
	struct vm_exit x = {0};

	(void)state;
	expect_exit(g, &x, EXIT_PIO);
	engine->request_irq_window(g->cpu);
	expect_exit(g, &x, EXIT_IRQ_WINDOW);
	assert_true(engine->irq_ready(g->cpu));
	assert_int_equal(engine->inject_irq(g->cpu, 0x41), 0);
	assert_false(engine->irq_ready(g->cpu));
	assert_int_not_equal(engine->inject_irq(g->cpu, 0x42), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(guest_count(g, 0x41), 1);
	assert_int_equal(guest_count(g, 0x42), 0);
	guest_free(g);
}

static void no_window_while_interrupts_are_off(void **state)
{
	struct guest *g = fresh(CODE_OF(cli_out));
	struct vm_exit x = {0};

	(void)state;
	assert_false(engine->irq_ready(g->cpu));
	assert_int_not_equal(engine->inject_irq(g->cpu, 0x41), 0);
	engine->request_irq_window(g->cpu);
	for (u32 i = 0; i < 20; i++)
		expect_exit(g, &x, EXIT_PIO);
	guest_free(g);
}

/* HLT in STI's shadow: an interrupt wakes, and goes on behind HLT. */
static void sdm2_hlt_wakes(void **state)
{
	struct guest *g = fresh(CODE_OF(sti_hlt));
	struct vm_exit x = {0};

	(void)state;
	expect_exit(g, &x, EXIT_HLT);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.rip, CODE_AT + 2);
	assert_true(engine->irq_ready(g->cpu));
	assert_int_equal(engine->inject_irq(g->cpu, 0x55), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(guest_count(g, 0x55), 1);
	guest_free(g);
}

static void nmi_with_interrupts_off(void **state)
{
	struct guest *g = fresh(CODE_OF(cli_out));
	struct vm_exit x = {0};

	(void)state;
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(engine->inject_nmi(g->cpu), 0);
	expect_exit(g, &x, EXIT_PIO);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(guest_count(g, VEC_NMI), 1);
	assert_false(guest_state(g, CPU_PART_INTR)->intr.nmi_blocked);
	guest_free(g);
}

/* ---- shutdown ---- */

CODE(triple, "ud2");

static void sdm3_6_15_triple_fault(void **state)
{
	struct guest *g = fresh(CODE_OF(triple));
	struct vm_exit x = {0};
	struct cpu_state *s = guest_state(g, CPU_PART_SEG);

	(void)state;
	s->segs.idtr.limit = 0;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_SEG, s), 0);
	expect_exit(g, &x, EXIT_SHUTDOWN);
	/* The vCPU is good for another life. */
	guest_load(g, CODE_OF(pio));
	expect_out(g, &x, 0x1234, 1, 0x44);
	guest_free(g);
}

/* ---- kicks ---- */

CODE(spin, "1: inc %rax; jmp 1b");

static void kick_before_run(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	struct vm_exit x = {0};

	(void)state;
	for (u32 i = 0; i < 100; i++) {
		engine->kick(g->cpu);
		expect_exit(g, &x, EXIT_KICKED);
	}
	guest_free(g);
}

struct kicker {
	struct guest *g;
	atomic_uint kicks, seen;
	atomic_bool stop;
};

static void *kick_again_and_again(void *opaque)
{
	struct kicker *k = opaque;

	while (!atomic_load(&k->stop)) {
		u32 seen = atomic_load(&k->seen);

		engine->kick(k->g->cpu);
		atomic_fetch_add(&k->kicks, 1);
		/* Only once the last kick was seen: one that is lost leaves the guest spinning. */
		while (atomic_load(&k->seen) == seen && !atomic_load(&k->stop))
			sched_yield();
	}
	return NULL;
}

/* Each kick ends run(), at whatever moment it comes; a lost one hangs here until the alarm. */
static void no_kick_is_lost(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	struct kicker k = {.g = g};
	struct vm_exit x = {0};
	pthread_t thread;

	(void)state;
	alarm(60);
	assert_int_equal(pthread_create(&thread, NULL, kick_again_and_again, &k), 0);
	for (u32 i = 0; i < 1000; i++) {
		expect_exit(g, &x, EXIT_KICKED);
		atomic_fetch_add(&k.seen, 1);
	}
	atomic_store(&k.stop, true);
	pthread_join(thread, NULL);
	alarm(0);
	guest_free(g);
}

static void *kick_when_busy(void *opaque)
{
	struct kicker *k = opaque;

	while (!engine->activity(k->g->cpu))
		sched_yield();
	engine->kick(k->g->cpu);
	return NULL;
}

/* What a vCPU is at can be seen from another thread, and ends with run(). */
static void activity_is_seen_from_outside(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	struct kicker k = {.g = g};
	struct vm_exit x = {0};
	pthread_t thread;

	(void)state;
	assert_int_equal(engine->activity(g->cpu), 0);
	alarm(60);
	assert_int_equal(pthread_create(&thread, NULL, kick_when_busy, &k), 0);
	expect_exit(g, &x, EXIT_KICKED);
	pthread_join(thread, NULL);
	alarm(0);
	assert_int_equal(engine->activity(g->cpu), 0);
	guest_free(g);
}

/* A kick in the middle of an access waits until the instruction is complete. */
static void kick_leaves_instructions_whole(void **state)
{
	struct guest *g = fresh(CODE_OF(string_io));
	struct vm_exit x = {0};

	(void)state;
	for (u32 i = 0; i < 5; i++) {
		answer_in(g, &x, 2, 0x2200 + i);
		engine->kick(g->cpu);
		while (i < 4 && x.type != EXIT_KICKED && engine->run(g->cpu, &x) == 0 &&
		       x.type == EXIT_PIO) {
			x.pio.data = 0x2200 + ++i;
			if (i == 4)
				break;
		}
	}
	while (guest_run(g, &x) == EXIT_KICKED)
		;
	assert_int_equal(x.type, EXIT_PIO);
	assert_false(x.pio.in);
	assert_int_equal(guest_get(g, DATA_AT + 2), 0x2204220322022201);
	guest_free(g);
}

/* ---- dirty log and memory ---- */

CODE(touch,
     "mov $0x100000, %ebx; movb $1, 0x3000(%rbx); mov 0x5000(%rbx), %al; movb $2, 0x8000(%rbx);"
     "out %al, $0x80; movb $3, 0x3000(%rbx); out %al, $0x80; hlt");

enum { BITMAP_WORDS = RAM_SIZE / PAGE_SIZE / 64 };

/* The pages from DATA_AT on that were written, as a bitmap; those below are tables, code, stack. */
static u64 dirty_data(struct guest *g)
{
	u64 bitmap[BITMAP_WORDS];

	assert_int_equal(engine->dirty_fetch(g->vm, 0, bitmap), 0);
	for (u32 i = DATA_AT / PAGE_SIZE / 64 + 1; i < BITMAP_WORDS; i++)
		assert_int_equal(bitmap[i], 0);
	return bitmap[DATA_AT / PAGE_SIZE / 64];
}

/* KVM logs a writable page when it maps it, also for a read: page 5 may be there, nothing else. */
static u64 may_be_reported(void)
{
	return strcmp(engine->name, "kvm") ? 0 : BIT(5);
}

static void dirty_log_is_exact(void **state)
{
	struct guest *g = fresh(CODE_OF(touch));
	struct vm_exit x = {0};

	(void)state;
	assert_int_equal(engine->dirty_log(g->vm, true), 0);
	assert_int_equal(dirty_data(g), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(dirty_data(g) & ~may_be_reported(), BIT(3) | BIT(8));
	assert_int_equal(dirty_data(g), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(dirty_data(g), BIT(3));
	/* The monitor's own stores, DMA. */
	assert_int_equal(mem_write(&g->physmap, DATA_AT + 0x6fff, "ab", 2), 0);
	assert_int_equal(dirty_data(g), BIT(6) | BIT(7));
	assert_int_equal(engine->dirty_log(g->vm, false), 0);
	guest_free(g);
}

CODE(far_memory, "mov $0x10000000, %ebx; mov $0x77, %eax; mov %rax, (%rbx); mov (%rbx), %rcx;"
		 "out %al, $0x80; mov %rax, (%rbx); mov (%rbx), %rdx; hlt");

/* What was device memory becomes RAM. */
static void memory_is_added(void **state)
{
	struct guest *g = fresh(CODE_OF(far_memory));
	struct vm_exit x = {0};
	struct err e = {0};

	(void)state;
	expect_exit(g, &x, EXIT_MMIO);
	assert_true(x.mmio.write);
	expect_exit(g, &x, EXIT_MMIO);
	x.mmio.data = 0x99;
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(physmap_add(&g->physmap, 0x10000000, 2 * MIB, 0, &e), 0);
	assert_int_equal(engine->memory_update(g->vm, &e), 0);
	expect_exit(g, &x, EXIT_HLT);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RCX], 0x99);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RDX], 0x77);
	assert_int_equal(*g->physmap.region[1].hva, 0x77);
	guest_free(g);
}

CODE(calls, "mov $0x10000000, %ebx; mov $100, %ecx; lea leaf(%rip), %rdx;"
	    "1: call leaf; call *%rdx; out %al, $0x80; dec %ecx; jnz 1b; hlt;"
	    ".balign 4096; leaf: inc %rax; ret");

/*
 * Code found before guest RAM changed is found again, by calls, returns and branches across pages.
 * What an engine maps anew meanwhile comes to lie elsewhere: in the hole that main() reserved above
 * all it has mapped so far.
 */
static void code_outlives_a_change_of_memory(void **state)
{
	struct guest *g = fresh(CODE_OF(calls));
	struct vm_exit x = {0};
	struct err e = {0};

	(void)state;
	assert_ptr_not_equal(hole, MAP_FAILED);
	munmap(hole, HOLE_SIZE);
	for (u32 i = 1; i <= 100; i++) {
		expect_exit(g, &x, EXIT_PIO);
		assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RAX], 2 * i);
		if (i % 40 == 0)
			assert_int_equal(physmap_add(&g->physmap, i * 0x10000000ul, 2 * MIB, 0, &e),
					 0);
		if (i % 20 == 0)
			assert_int_equal(engine->memory_update(g->vm, &e), 0);
	}
	expect_exit(g, &x, EXIT_HLT);
	guest_free(g);
}

CODE(touch_both, "mov $0x100000, %ebx; movb $1, 0x3000(%rbx); out %al, $0x80;"
		 "mov $0x10000000, %ebx; movb $1, 0x2000(%rbx); out %al, $0x80; hlt");

/* Neither the guest's nor the monitor's stores are forgotten, and the new pages are watched. */
static void dirty_log_outlives_a_change_of_memory(void **state)
{
	struct guest *g = fresh(CODE_OF(touch_both));
	u64 bitmap[2 * MIB / PAGE_SIZE / 64];
	struct vm_exit x = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(engine->dirty_fetch(g->vm, 0, bitmap), -EINVAL);
	assert_int_equal(engine->dirty_log(g->vm, true), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(mem_write(&g->physmap, DATA_AT + 0x6000, "a", 1), 0);
	assert_int_equal(physmap_add(&g->physmap, 0x10000000, 2 * MIB, 0, &e), 0);
	assert_int_equal(engine->memory_update(g->vm, &e), 0);
	assert_int_equal(dirty_data(g), BIT(3) | BIT(6));
	assert_int_equal(dirty_data(g), 0);
	assert_int_equal(engine->dirty_fetch(g->vm, 1, bitmap), 0);
	assert_int_equal(bitmap[0], 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(engine->dirty_fetch(g->vm, 1, bitmap), 0);
	assert_int_equal(bitmap[0], BIT(2));
	assert_int_equal(engine->dirty_log(g->vm, false), 0);
	guest_free(g);
}

CODE(rom, "mov $0x10000000, %ebx; mov (%rbx), %rcx; mov %rbx, (%rbx); mov (%rbx), %rdx; hlt");

static void stores_to_rom_are_dropped(void **state)
{
	struct guest *g = fresh(CODE_OF(rom));
	struct vm_exit x = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(physmap_add(&g->physmap, 0x10000000, 2 * MIB, PHYSMAP_ROM, &e), 0);
	memset(g->physmap.region[1].hva, 0xab, PAGE_SIZE);
	assert_int_equal(engine->memory_update(g->vm, &e), 0);
	expect_exit(g, &x, EXIT_HLT);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RCX], 0xabababababababab);
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RDX], 0xabababababababab);
	guest_free(g);
}

/* ---- state ---- */

CODE(steps, "xor %eax, %eax; mov $1, %ebx; 1: add %rbx, %rax; inc %rbx; mov %rax, 0x100000;"
	    "out %al, $0x80; cmp $50, %rbx; jbe 1b; hlt");

/* All state out and in again at each exit changes nothing. */
static void state_round_trip_anywhere(void **state)
{
	struct guest *g = fresh(CODE_OF(steps));
	struct vm_exit x = {0};
	static struct cpu_state s;

	(void)state;
	while (guest_run(g, &x) != EXIT_HLT) {
		if (x.type == EXIT_PIO) {
			engine->kick(
				g->cpu); /* complete the OUT, then stand between instructions */
			continue;
		}
		assert_int_equal(x.type, EXIT_KICKED);
		s = *guest_state(g, CPU_PART_ALL);
		guest_load(g, CODE_OF(steps)); /* forget everything */
		assert_int_equal(engine->state_set(g->cpu, CPU_PART_ALL, &s), 0);
	}
	assert_int_equal(guest_state(g, CPU_PART_GPR)->gpr.r[RAX], 50 * 51 / 2);
	guest_free(g);
}

static void state_parts_come_back(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	static struct cpu_state a, b;

	(void)state;
	a = *guest_state(g, CPU_PART_ALL);
	for (u32 i = 0; i < GPR_COUNT; i++)
		a.gpr.r[i] = 0x0101010101010101 * i;
	a.gpr.rflags = RFLAGS_ONE | RFLAGS_CF | RFLAGS_IF | RFLAGS_IOPL;
	a.segs.seg[SEG_FS].base = 0x123456789abc;
	a.segs.seg[SEG_GS].base = 0xffff800000001000;
	a.cr.cr2 = 0x1234567890;
	a.cr.cr8 = 5;
	a.dr.dr[0] = 0x1000;
	a.dr.dr[3] = 0x2000;
	a.msr.star = 0x0023001000000000;
	a.msr.lstar = 0xffffffff81000000;
	a.msr.kernel_gs_base = 0xffff888000000000;
	a.msr.pat = 0x0407010600070106;
	a.msr.mtrr_fixed[4] = 0x0606060606060606;
	a.msr.kvm_system_time = 0;
	memset(a.fpu.area + 160, 0x5a, 256); /* XMM0 to XMM15 */
	a.fpu.area[512] = XCR0_X87 | XCR0_SSE;
	a.intr.nmi_blocked = true;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_ALL, &a), 0);
	b = *guest_state(g, CPU_PART_ALL);
	assert_memory_equal(&a.gpr, &b.gpr, sizeof(a.gpr));
	for (u32 i = 0; i < SEG_COUNT; i++) {
		if (a.segs.seg[i].unusable && b.segs.seg[i].unusable)
			continue;
		assert_int_equal(a.segs.seg[i].selector, b.segs.seg[i].selector);
		assert_int_equal(a.segs.seg[i].base, b.segs.seg[i].base);
		assert_int_equal(a.segs.seg[i].limit, b.segs.seg[i].limit);
		assert_int_equal(a.segs.seg[i].dpl, b.segs.seg[i].dpl);
	}
	assert_memory_equal(&a.cr, &b.cr, sizeof(a.cr));
	assert_memory_equal(&a.dr.dr, &b.dr.dr, sizeof(a.dr.dr));
	/* Time went on in between, for guest and host alike. */
	assert_int_not_equal(b.msr.tsc, a.msr.tsc);
	assert_int_equal(b.msr.tsc - b.msr.tsc_host, a.msr.tsc - a.msr.tsc_host);
	b.msr.tsc = a.msr.tsc;
	b.msr.tsc_host = a.msr.tsc_host;
	assert_memory_equal(&a.msr, &b.msr, sizeof(a.msr));
	assert_memory_equal(a.fpu.area + 160, b.fpu.area + 160, 256);
	assert_true(b.intr.nmi_blocked);
	guest_free(g);
}

/* An exception on its way to its handler moves with the rest of the state. */
static void pending_exception_moves(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	struct cpu_state *s = guest_state(g, CPU_PART_INTR);

	(void)state;
	s->intr.pending = s->intr.is_exception = s->intr.has_error = true;
	s->intr.vector = VEC_GP;
	s->intr.error = 0x18;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_INTR, s), 0);
	assert_false(engine->irq_ready(g->cpu));
	memset(&s->intr, 0, sizeof(s->intr));
	s = guest_state(g, CPU_PART_INTR);
	assert_true(s->intr.pending && s->intr.is_exception && s->intr.has_error);
	assert_int_equal(s->intr.vector, VEC_GP);
	assert_int_equal(s->intr.error, 0x18);
	guest_free(g);
}

/* Stores of two widths at a doorbell, one beside it, and an OUT. */
CODE(ring, "mov $0x20000000, %edi; movw $1, (%rdi); movl $2, (%rdi); movl $3, 4(%rdi);"
	   "out %al, $0x80; movw $4, (%rdi); hlt");

static void doorbell_becomes_an_event(void **state)
{
	struct guest *g = fresh(CODE_OF(ring));
	struct vm_exit x = {0};
	int fd = eventfd(0, EFD_NONBLOCK);
	bool can = !engine->doorbell(g->vm, MMIO_AT, fd, true);
	u64 count = 0;

	(void)state;
	for (u32 n = can ? 3 : 1; n <= 3; n++) {
		expect_exit(g, &x, EXIT_MMIO);
		assert_int_equal(x.mmio.data, n);
	}
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(read(fd, &count, sizeof(count)) > 0, can);
	assert_int_equal(count, can ? 2 : 0);
	assert_int_equal(engine->doorbell(g->vm, MMIO_AT, fd, false) == 0, can);
	expect_exit(g, &x, EXIT_MMIO);
	assert_int_equal(x.mmio.data, 4);
	expect_exit(g, &x, EXIT_HLT);
	close(fd);
	guest_free(g);
}

CODE(two_outs, "out %al, $0x80; out %al, $0x80; hlt");

/* SDM vol. 3, 6.5 and 17.3.1.1: a trap's return address is the next instruction, without RF. */
static void sdm3_6_5_pending_trap_is_delivered(void **state)
{
	struct guest *g = fresh(CODE_OF(two_outs));
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	expect_exit(g, &x, EXIT_PIO);
	engine->kick(g->cpu);
	expect_exit(g, &x, EXIT_KICKED);
	s = guest_state(g, CPU_PART_INTR);
	s->intr.pending = s->intr.is_exception = true;
	s->intr.vector = VEC_DB;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_INTR, s), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(guest_count(g, VEC_DB), 1);
	assert_int_equal(guest_get(g, STACK_AT - 40), CODE_AT + 2);
	assert_false(guest_get(g, STACK_AT - 24) & RFLAGS_RF);
	expect_exit(g, &x, EXIT_HLT);
	guest_free(g);
}

/* A fault keeps its error code and address. */
static void sdm3_6_15_pending_fault_is_delivered(void **state)
{
	struct guest *g = fresh(CODE_OF(two_outs));
	struct vm_exit x = {0};
	struct cpu_state *s;

	(void)state;
	s = guest_state(g, CPU_PART_INTR | CPU_PART_CR);
	s->intr.pending = s->intr.is_exception = s->intr.has_error = true;
	s->intr.vector = VEC_PF;
	s->intr.error = 2;
	s->cr.cr2 = 0x123456;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_INTR | CPU_PART_CR, s), 0);
	expect_exit(g, &x, EXIT_PIO);
	assert_int_equal(guest_count(g, VEC_PF), 1);
	assert_int_equal(guest_get(g, STACK_AT - 48), 2);
	assert_int_equal(guest_get(g, STACK_AT - 40), CODE_AT);
	assert_int_equal(guest_state(g, CPU_PART_CR)->cr.cr2, 0x123456);
	guest_free(g);
}

static void impossible_state_is_refused(void **state)
{
	struct guest *g = fresh(CODE_OF(spin));
	struct cpu_state *s = guest_state(g, CPU_PART_ALL);

	(void)state;
	s->cr.xcr0 = BIT(63) | 1;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_CR, s), -EINVAL);
	s->msr.pat = 0x0202;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_MSR, s), -EINVAL);
	s->fpu.area[519] = 0x80;
	assert_int_equal(engine->state_set(g->cpu, CPU_PART_FPU, s), -EINVAL);
	guest_free(g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest everywhere[] = {
		cmocka_unit_test(sdm1_19_3_port_sizes),
		cmocka_unit_test(sdm1_19_3_string_elements),
		cmocka_unit_test(mmio_of_each_width),
		cmocka_unit_test(mmio_across_pages),
		cmocka_unit_test(mmio_read_modify_write),
		cmocka_unit_test(msrs_of_the_table),
		cmocka_unit_test(msrs_of_the_machine),
		cmocka_unit_test(no_window_while_interrupts_are_off),
		cmocka_unit_test(sdm3_6_15_triple_fault),
		cmocka_unit_test(kick_before_run),
		cmocka_unit_test(no_kick_is_lost),
		cmocka_unit_test(activity_is_seen_from_outside),
		cmocka_unit_test(kick_leaves_instructions_whole),
		cmocka_unit_test(dirty_log_is_exact),
		cmocka_unit_test(memory_is_added),
		cmocka_unit_test(code_outlives_a_change_of_memory),
		cmocka_unit_test(dirty_log_outlives_a_change_of_memory),
		cmocka_unit_test(stores_to_rom_are_dropped),
		cmocka_unit_test(state_round_trip_anywhere),
		cmocka_unit_test(state_parts_come_back),
		cmocka_unit_test(pending_exception_moves),
		cmocka_unit_test(doorbell_becomes_an_event),
		cmocka_unit_test(impossible_state_is_refused),
	};
	const struct CMUnitTest on_processors[] = {
		/* The emulator lets CPUID and RDTSC through to the processor, forgets windows,
		 * takes bad values for MSRs, and cannot deliver an interrupt in 64-bit mode. */
		cmocka_unit_test(cpuid_is_the_model),
		cmocka_unit_test(sdm2_wrmsr_invalid_faults),
		cmocka_unit_test(sdm3_17_17_3_tsc_moves),
		cmocka_unit_test(interrupt_is_delivered),
		cmocka_unit_test(sdm2_hlt_wakes),
		cmocka_unit_test(nmi_with_interrupts_off),
		cmocka_unit_test(sdm3_6_5_pending_trap_is_delivered),
		cmocka_unit_test(sdm3_6_15_pending_fault_is_delivered),
	};
	const char *name = argc > 1 ? argv[1] : "soft";
	struct err e = {0};
	int failed;

	hole = mmap(NULL, HOLE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	engine = engine_by_name(name);
	if (!engine || engine->probe(&e)) {
		printf("%s cannot run here: %s\n", name, engine ? e.text : "no such engine");
		return 77;
	}
	failed = cmocka_run_group_tests_name(name, everywhere, NULL, NULL);
	if (guest_ring0_is_emulated(engine))
		printf("%s: ring 0 is emulated here, %zu cases left out\n", name,
		       ARRAY_SIZE(on_processors));
	else
		failed += cmocka_run_group_tests_name(name, on_processors, NULL, NULL);
	return failed;
}
