/* User programs in boxes: what they compute, what stops them, what is not left to the host. */
#include "engine/soft/direct.h"
#include "engine/soft/ticker.h"
#include "engine/soft/window.h"
#include "host/box.h"
#include "soft_machine.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	AT_OTHER = 0x60000,
	AT_CODE2 = AT_CODE + PAGE_SIZE,
	HOLE = AT_DATA + 0x8000,
	ALL = PTE_P | PTE_RW | PTE_US,
	ACCESSED = 0x20,
	DIRTY = 0x40,
};

extern const struct engine_ops soft_engine;

static void user_state(struct soft_machine *m)
{
	static const u8 null[] = {SEG_DS, SEG_ES, SEG_FS, SEG_GS};
	struct soft_cpu *c = m->c;

	machine_user(m, SEL_USER_CODE64);
	for (u32 n = 0; n < ARRAY_SIZE(null); n++)
		seg_make_null(0, &c->seg[null[n]]);
	c->cr0 |= CR0_MP | CR0_NE;
	c->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	c->xcr0 = m->cpuid.xcr0;
	c->efer |= EFER_SCE;
	c->iflag = 1;
	soft_update_mode(c);
}

static int setup_with(void **state, const char *options)
{
	struct soft_machine *m = machine_new_with(options);

	machine_long_mode(m);
	machine_set_gate(m, VEC_BP, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, 0);
	*state = m;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, "direct-heat=0");
}

static int setup_patient(void **state)
{
	return setup_with(state, "direct=on");
}

static int teardown(void **state)
{
	machine_free(*state);
	return 0;
}

/* NULL, and the test skipped, where this build has no boxes. */
static struct soft_machine *need_boxes(void **state)
{
	struct soft_machine *m = *state;

	if (!m->c->seed)
		skip();
	return m;
}

/* Run user code from @at on up to the exception that ends it; returns its vector. */
static u8 run_at(struct soft_machine *m, u64 at)
{
	struct vm_exit exit;

	machine_own_signals();
	user_state(m);
	m->c->rip = at;
	do
		assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
	while (exit.type == EXIT_KICKED);
	assert_int_equal(exit.type, EXIT_HLT);
	return (u8)((m->c->rip - 1 - AT_HANDLER) / 16);
}

static u8 run_user(struct soft_machine *m, const u8 *code, u32 len)
{
	assert_int_equal(mem_write(&m->physmap, AT_CODE, code, len), 0);
	return run_at(m, AT_CODE);
}

/* Word @n of the interrupt frame: the error code, if any, then rip, cs, rflags, rsp. */
static u64 frame(struct soft_machine *m, u32 n)
{
	return machine_get(m, m->c->r[RSP] + n * 8, 8);
}

static u64 count(struct soft_machine *m, enum soft_counter what)
{
	return m->c->counters[what];
}

CODE(stores, 64,
     "mov $0x40000, %ebx\n movq $7, (%rbx)\n addq $5, (%rbx)\n mov (%rbx), %rax\n"
     "push %rax\n pop %rcx\n mov %rcx, 0x1000(%rbx)\n stc\n int3");

static void program_runs_in_its_box(void **state)
{
	struct soft_machine *m = need_boxes(state);

	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_int_equal(machine_get(m, AT_DATA, 8), 12);
	assert_int_equal(machine_get(m, AT_DATA + 0x1000, 8), 12);
	assert_int_equal(m->c->r[RCX], 12);
	assert_int_equal(m->c->r[RBX], AT_DATA);
	assert_int_equal(frame(m, 0), AT_CODE + (u64)(stores_end - stores_start));
	assert_true(frame(m, 2) & RFLAGS_CF);
	assert_int_equal(count(m, COUNT_BOXES), 1);
	assert_true(count(m, COUNT_BOX_RUNS) > 0);
	assert_int_equal(count(m, COUNT_BOX_AWAY), 0);
	/* The guest's tables say what was used. */
	assert_int_equal(machine_get(m, AT_PT + (AT_DATA >> PAGE_SHIFT) * 8, 8) &
				 (ACCESSED | DIRTY),
			 ACCESSED | DIRTY);
}

CODE(loads, 64, "mov $0x40000, %ebx\n mov (%rbx), %rax\n int3");

static void loads_leave_pages_clean(void **state)
{
	struct soft_machine *m = need_boxes(state);

	run_user(m, CODE_OF(loads));
	assert_int_equal(machine_get(m, AT_PT + (AT_DATA >> PAGE_SHIFT) * 8, 8) &
				 (ACCESSED | DIRTY),
			 ACCESSED);
	/* What lies around is not looked at by the guest. */
	assert_int_equal(
		machine_get(m, AT_PT + (AT_DATA >> PAGE_SHIFT) * 8 + 8, 8) & (ACCESSED | DIRTY), 0);
	run_user(m, CODE_OF(stores));
	assert_int_equal(machine_get(m, AT_PT + (AT_DATA >> PAGE_SHIFT) * 8, 8) & DIRTY, DIRTY);
}

static void remapped_page_is_seen(void **state)
{
	struct soft_machine *m = need_boxes(state);

	machine_put(m, AT_DATA, 8, 1);
	machine_put(m, AT_OTHER, 8, 2);
	run_user(m, CODE_OF(loads));
	assert_int_equal(m->c->r[RAX], 1);
	machine_put(m, AT_PT + (AT_DATA >> PAGE_SHIFT) * 8, 8, AT_OTHER | ALL);
	soft_tlb_flush_page(m->c, AT_DATA);
	run_user(m, CODE_OF(loads));
	assert_int_equal(m->c->r[RAX], 2);
	machine_set_page(m, AT_DATA, AT_DATA | ALL);
	run_user(m, CODE_OF(loads));
	assert_int_equal(m->c->r[RAX], 1);
}

static void lost_page_faults(void **state)
{
	struct soft_machine *m = need_boxes(state);

	run_user(m, CODE_OF(loads));
	machine_set_page(m, AT_DATA, 0);
	assert_int_equal(run_user(m, CODE_OF(loads)), VEC_PF);
	assert_int_equal(m->c->cr2, AT_DATA);
	assert_int_equal(frame(m, 0), 4);
	assert_int_equal(frame(m, 1), AT_CODE + 5);
}

static void protected_page_faults_for_stores_only(void **state)
{
	struct soft_machine *m = need_boxes(state);

	run_user(m, CODE_OF(stores));
	machine_set_page(m, AT_DATA, AT_DATA | PTE_P | PTE_US);
	assert_int_equal(run_user(m, CODE_OF(loads)), VEC_BP);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_PF);
	assert_int_equal(frame(m, 0), 7);
	machine_set_page(m, AT_DATA, AT_DATA | PTE_P | PTE_RW); /* the supervisor's */
	assert_int_equal(run_user(m, CODE_OF(loads)), VEC_PF);
	assert_int_equal(frame(m, 0), 5);
}

CODE(jumps, 64, "mov $0x48000, %ebx\n jmp *%rbx");

static void fetches_fault(void **state)
{
	struct soft_machine *m = need_boxes(state);

	m->c->efer |= EFER_NXE;
	machine_set_page(m, HOLE, 0);
	assert_int_equal(run_user(m, CODE_OF(jumps)), VEC_PF);
	assert_int_equal(m->c->cr2, HOLE);
	assert_int_equal(frame(m, 0), 0x14);
	machine_set_page(m, HOLE, HOLE | ALL | PTE_NX);
	assert_int_equal(run_user(m, CODE_OF(jumps)), VEC_PF);
	assert_int_equal(frame(m, 0), 0x15);
	assert_int_equal(frame(m, 1), HOLE);
}

/* mov $1, %eax at the end of a page, its last byte in the next. */
static void instruction_across_pages(void **state)
{
	struct soft_machine *m = need_boxes(state);
	static const u8 code[] = {0xb8, 1, 0, 0, 0, 0xcc};

	m->c->efer |= EFER_NXE;
	memcpy(m->ram + AT_CODE2 - 4, code, sizeof(code));
	assert_int_equal(run_at(m, AT_CODE2 - 4), VEC_BP);
	assert_int_equal(m->c->r[RAX], 1);
	machine_set_page(m, AT_CODE2, AT_CODE2 | ALL | PTE_NX);
	assert_int_equal(run_at(m, AT_CODE2 - 4), VEC_PF);
	assert_int_equal(frame(m, 0), 0x15);
	assert_int_equal(m->c->cr2, AT_CODE2);
	machine_set_page(m, AT_CODE2, 0);
	assert_int_equal(run_at(m, AT_CODE2 - 4), VEC_PF);
	assert_int_equal(frame(m, 0), 0x14);
	assert_int_equal(frame(m, 1), AT_CODE2 - 4);
}

CODE(divides, 64, "xor %ecx, %ecx\n div %ecx");
CODE(undefined, 64, "nop\n ud2");
CODE(privileged, 64, "nop\n hlt");
CODE(far_out, 64, "movabs $0x800000000000, %rbx\n mov (%rbx), %rax");
CODE(kernels, 64, "movabs $0xffff800000000000, %rbx\n mov (%rbx), %rax");
CODE(software, 64, "int $0x80");
/* time() of the host kernel's vsyscall page, if it has one, is not the guest's. */
CODE(old_call, 64, "mov $0xffffffffff600400, %rax\n xor %edi, %edi\n call *%rax");

static void exceptions_are_the_guests(void **state)
{
	struct soft_machine *m = need_boxes(state);

	assert_int_equal(run_user(m, CODE_OF(divides)), VEC_DE);
	assert_int_equal(frame(m, 0), AT_CODE + 2);
	assert_int_equal(run_user(m, CODE_OF(undefined)), VEC_UD);
	assert_int_equal(frame(m, 0), AT_CODE + 1);
	assert_int_equal(run_user(m, CODE_OF(privileged)), VEC_GP);
	assert_int_equal(frame(m, 1), AT_CODE + 1);
	assert_int_equal(run_user(m, CODE_OF(far_out)), VEC_GP);
	assert_int_equal(run_user(m, CODE_OF(kernels)), VEC_PF);
	assert_true(m->c->cr2 == 0xffff800000000000);
	assert_int_equal(frame(m, 0), 4);
	assert_int_equal(run_user(m, CODE_OF(software)), VEC_GP); /* no gate */
	assert_int_equal(frame(m, 0), 0x80 * 8 + 2);
	assert_int_equal(run_user(m, CODE_OF(old_call)), VEC_PF);
	assert_true(m->c->cr2 == 0xffffffffff600400);
	assert_int_equal(frame(m, 0), 0x14);
	assert_int_equal(frame(m, 4), AT_USER_STACK - 8);
	machine_set_gate(m, 0x80, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, AT_HANDLER + 0x80 * 16);
	assert_int_equal(run_user(m, CODE_OF(software)), 0x80);
	assert_int_equal(frame(m, 0), AT_CODE + 2);
}

CODE(calls, 64, "mov $17, %eax\n mov $5, %ecx\n syscall\n int3");

static void system_call_enters_the_guests_kernel(void **state)
{
	struct soft_machine *m = need_boxes(state);

	m->c->msr.star = (u64)SEL_CODE64 << 32;
	m->c->msr.lstar = AT_HANDLER + 77 * 16;
	assert_int_equal(run_user(m, CODE_OF(calls)), 77);
	assert_int_equal(m->c->r[RAX], 17);
	assert_int_equal(m->c->r[RCX], AT_CODE + 12);
	assert_int_equal(m->c->cpl, 0);
}

CODE(steps, 64, "pushf\n orl $0x100, (%rsp)\n popf\n nop\n nop\n int3");

static void single_step_is_the_guests(void **state)
{
	struct soft_machine *m = need_boxes(state);

	assert_int_equal(run_user(m, CODE_OF(steps)), VEC_DB);
	assert_int_equal(frame(m, 0), AT_CODE + 10); /* behind the first NOP */
	assert_true(m->c->dr6 & DR6_BS);
	assert_true(frame(m, 2) & RFLAGS_TF);
	assert_false(frame(m, 2) & RFLAGS_RF); /* a trap, not a fault */
}

/* Instructions that work at CPL 3 and would show the host's state. */
CODE(asks, 64,
     "mov $0, %eax\n xor %ecx, %ecx\n cpuid\n mov %ebx, %r8d\n mov $1, %eax\n cpuid\n"
     "mov %ebx, %r9d\n xor %ecx, %ecx\n xgetbv\n mov %eax, %r10d\n rdtsc\n shl $32, %rdx\n"
     "or %rdx, %rax\n mov %rax, %r11\n int3");
CODE(asks_more, 64, "rdpid %r12\n mov $0x33, %eax\n lsl %eax, %r13d\n sgdt 0x40000\n int3\n");
/* More than there are breakpoints for. */
CODE(asks_often, 64,
     "xor %ecx, %ecx\n xgetbv\n xgetbv\n rdpid %r12\n rdpid %r13\n rdpid %r14\n int3");

static void answers_are_the_guests(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u64 before;
	u32 leaf[4];

	m->c->tsc_offset = 1ul << 60;
	m->c->msr.tsc_aux = 1234;
	before = __builtin_ia32_rdtsc();
	assert_int_equal(run_user(m, CODE_OF(asks)), VEC_BP);
	cpuid_query(&m->cpuid, 0, m->c->cr4, m->c->xcr0, 0, 0, leaf);
	assert_int_equal(m->c->r[R8], leaf[1]);
	cpuid_query(&m->cpuid, 0, m->c->cr4, m->c->xcr0, 1, 0, leaf);
	assert_int_equal(m->c->r[R9], leaf[1]);
	assert_int_equal(m->c->r[R10], (u32)m->c->xcr0);
	assert_true(m->c->r[R11] - (before + (1ul << 60)) < 1ul << 36);
	assert_int_equal(count(m, COUNT_BOX_AWAY), 0);
	assert_int_equal(run_user(m, CODE_OF(asks_more)), VEC_BP);
	assert_int_equal(m->c->r[R12], 1234);
	assert_int_equal(m->c->r[R13], 0xffffffff);
	assert_int_equal(machine_get(m, AT_DATA, 2), SEL_GDT_END - 1);
	assert_int_equal(machine_get(m, AT_DATA + 2, 8), AT_GDT);
	assert_int_equal(count(m, COUNT_BOX_AWAY), 0);
	assert_true(count(m, COUNT_BOX_RUNS) > 0);
	assert_int_equal(run_user(m, CODE_OF(asks_often)), VEC_BP);
	assert_int_equal(m->c->r[R14], 1234);
	assert_true(count(m, COUNT_BOX_AWAY) > 0);
}

/* This thread may find itself without CPUID after a box ran, and gets it back. */
static void this_thread_has_cpuid(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u32 a = 0, b, c = 0, d;

	assert_int_equal(run_user(m, CODE_OF(asks)), VEC_BP);
	for (u32 n = 0; n < 2; n++) {
		__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
		assert_true(a > 0);
		a = c = 0;
		assert_int_equal(run_user(m, CODE_OF(asks)), VEC_BP);
	}
}

/* Stores over code that ran in the box; the new code has an instruction that must not. */
CODE(patches, 64,
     "mov $0x11000, %ebx\n movl $0xccf9010f, (%rbx)\n movb $0x0f, (%rbx)\n movb $0xa2, 1(%rbx)\n"
     "movb $0xcc, 2(%rbx)\n xor %eax, %eax\n jmp *%rbx");

static void changed_code_is_looked_at_again(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u32 leaf[4];

	cpuid_query(&m->cpuid, 0, m->c->cr4, m->c->xcr0, 0, 0, leaf);
	for (u32 n = 0; n < 3; n++) {
		memcpy(m->ram + AT_CODE2, "\x90\x90\xcc", 3);
		soft_engine.code_written(m->vm, AT_CODE2, 3);
		m->c->r[RBX] = 0;
		assert_int_equal(run_at(m, AT_CODE2), VEC_BP);
		assert_int_equal(m->c->r[RBX], 0);
		assert_int_equal(run_user(m, CODE_OF(patches)), VEC_BP);
		assert_int_equal(m->c->r[RBX], leaf[1]);
	}
}

/* The guest has a page where the box has something of its own. */
CODE(overlaps, 64, "movabs $0x6b5a3c000000, %rbx\n mov (%rbx), %rax\n mov %rax, (%rbx)\n int3");

static void guest_may_use_any_address(void **state)
{
	struct soft_machine *m = need_boxes(state);
	const u64 at = BOX_AT;

	run_user(m, CODE_OF(loads));
	machine_put(m, AT_OTHER + PAGE_SIZE + (at >> 21 & 0x1ff) * 8, 8,
		    AT_OTHER + 2 * PAGE_SIZE + ALL);
	machine_put(m, AT_OTHER + (at >> 30 & 0x1ff) * 8, 8, AT_OTHER + PAGE_SIZE + ALL);
	machine_put(m, AT_OTHER + 2 * PAGE_SIZE + (at >> 12 & 0x1ff) * 8, 8, AT_DATA + ALL);
	machine_put(m, AT_PML4 + (at >> 39) * 8, 8, AT_OTHER + ALL);
	machine_put(m, AT_DATA, 8, 4711);
	assert_int_equal(run_user(m, CODE_OF(overlaps)), VEC_BP);
	assert_int_equal(m->c->r[RAX], 4711);
}

CODE(vectors, 64,
     "mov $3, %eax\n movd %eax, %xmm5\n paddq %xmm5, %xmm5\n fninit\n fld1\n syscall\n");
CODE(vectors_on, 64, "movd %xmm5, %ebx\n fld1\n faddp\n fistpl 0x40000\n int3");

static void vector_state_goes_along(void **state)
{
	struct soft_machine *m = need_boxes(state);

	m->c->msr.star = (u64)SEL_CODE64 << 32;
	m->c->msr.lstar = AT_HANDLER + 77 * 16;
	assert_int_equal(run_user(m, CODE_OF(vectors)), 77);
	assert_int_equal(run_user(m, CODE_OF(vectors_on)), VEC_BP);
	assert_int_equal(m->c->r[RBX], 6);
	assert_int_equal(machine_get(m, AT_DATA, 4), 2);
}

CODE(spins, 64, "1: inc %rax\n cmpl $0, 0x40000\n je 1b\n int3");

struct kicker {
	struct soft_machine *m;
	_Atomic u32 kicked;
};

/* Until enough kicks were seen, then let the loop end. */
static void *kick_and_end(void *opaque)
{
	struct kicker *k = opaque;

	while (atomic_load(&k->kicked) < 20) {
		usleep(1000);
		soft_engine.kick(k->m->vcpu);
	}
	__atomic_store_n((u32 *)(void *)(k->m->ram + AT_DATA), 1, __ATOMIC_RELEASE);
	return NULL;
}

/* The next run() goes on until something else ends it. */
static void prepare_to_spin(struct soft_machine *m)
{
	memcpy(m->ram + AT_CODE, spins_start, (u64)(spins_end - spins_start));
	machine_own_signals();
	user_state(m);
	m->c->rip = AT_CODE;
}

static void kicks_are_seen(void **state)
{
	struct soft_machine *m = need_boxes(state);
	struct kicker kicker = {.m = m};
	struct vm_exit exit;
	pthread_t thread;

	prepare_to_spin(m);
	assert_int_equal(pthread_create(&thread, NULL, kick_and_end, &kicker), 0);
	do {
		assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
		atomic_fetch_add(&kicker.kicked, exit.type == EXIT_KICKED);
	} while (exit.type == EXIT_KICKED);
	pthread_join(thread, NULL);
	assert_int_equal(exit.type, EXIT_HLT);
	assert_true(m->c->r[RAX] > 1000);
}

/* Until the loop runs in a box, or long enough has passed. */
static void *end_in_box(void *opaque)
{
	struct soft_machine *m = opaque;

	for (u32 n = 0;
	     n < 5000 && !__atomic_load_n(&m->c->counters[COUNT_BOXES], __ATOMIC_RELAXED); n++)
		usleep(1000);
	__atomic_store_n((u32 *)(void *)(m->ram + AT_DATA), 1, __ATOMIC_RELEASE);
	return NULL;
}

static void one_tick_is_enough(void **state)
{
	struct soft_machine *m = need_boxes(state);
	struct vm_exit exit;
	pthread_t thread;

	prepare_to_spin(m);
	window_tick(m->c);
	assert_int_equal(count(m, COUNT_BOXES), 0);
	assert_int_equal(pthread_create(&thread, NULL, end_in_box, m), 0);
	assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
	pthread_join(thread, NULL);
	assert_int_equal(exit.type, EXIT_HLT);
	assert_int_equal(count(m, COUNT_BOXES), 1);
}

static u32 count_tickers(void)
{
	DIR *dir = opendir("/proc/self/task");
	u32 count = 0;

	assert_non_null(dir);
	for (struct dirent *d; (d = readdir(dir));) {
		char path[300], name[16] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
		f = fopen(path, "r");
		count += f && fgets(name, sizeof(name), f) && !strcmp(name, "ticker\n");
		if (f)
			fclose(f);
	}
	closedir(dir);
	return count;
}

enum { CREATORS = 2 };

struct creators {
	struct soft_vm *vm;
	_Atomic u32 arrived;
};

static void *create_ticker(void *opaque)
{
	struct creators *all = opaque;

	atomic_fetch_add(&all->arrived, 1);
	while (atomic_load(&all->arrived) < CREATORS)
		sched_yield();
	ticker_create(all->vm);
	return NULL;
}

/* vCPUs are made at the same time, each by its thread. */
static void one_ticker_for_all(void **state)
{
	struct soft_machine *m = need_boxes(state);
	struct creators all = {.vm = m->c->vm};
	pthread_t thread[CREATORS];

	for (u32 round = 0; round < 20; round++) {
		ticker_destroy(all.vm);
		atomic_store(&all.arrived, 0);
		for (u32 n = 0; n < CREATORS; n++)
			assert_int_equal(pthread_create(&thread[n], NULL, create_ticker, &all), 0);
		for (u32 n = 0; n < CREATORS; n++)
			pthread_join(thread[n], NULL);
		/* Threads name themselves: the first tick is behind that. */
		usleep(2000);
		assert_int_equal(count_tickers(), 1);
	}
}

/* Children of this process: all of them are boxes. Returns how many were killed. */
static u32 kill_boxes(void)
{
	char path[64], line[256];
	u32 killed = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	f = fopen(path, "r");
	assert_non_null(f);
	if (fgets(line, sizeof(line), f))
		for (char *at = line, *end; strtol(at, &end, 10) > 0; at = end, killed++)
			kill((pid_t)strtol(at, NULL, 10), SIGKILL);
	fclose(f);
	return killed;
}

static void dead_boxes_are_done_without(void **state)
{
	struct soft_machine *m = need_boxes(state);

	run_user(m, CODE_OF(loads));
	assert_int_equal(count(m, COUNT_BOXES), 1);
	assert_int_equal(kill_boxes(), 2); /* the seed, too */
	for (u32 n = 0; n < 3; n++) {
		machine_put(m, AT_DATA, 8, 0);
		assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
		assert_int_equal(machine_get(m, AT_DATA, 8), 12);
		m->c->ctx->box_cooling = 0;
	}
	/* Found out, thrown away, and none to be had. */
	for (u32 n = 0; n < SOFT_BOXES_MAX; n++)
		assert_null(m->c->window[n]);
}

/* More pages than a window has room for: 70 times the first 2 MiB. */
CODE(wanders, 64,
     "mov $0x200000, %ebx\n 1: mov 0x40000(%rbx), %eax\n add %eax, %edx\n mov 0x80000(%rbx), %eax\n"
     "add %eax, %edx\n add $0x1000, %rbx\n cmp $0x8e00000, %rbx\n jb 1b\n int3");

static void more_pages_than_there_is_room_for(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u64 runs;

	for (u32 n = 1; n <= 72; n++)
		machine_put(m, AT_PD + 8 * n, 8, AT_PT | ALL);
	m->c->r[RDX] = 0;
	assert_int_equal(run_user(m, CODE_OF(wanders)), VEC_BP);
	assert_int_equal(m->c->r[RBX], 0x8e00000);
	assert_int_equal(count(m, COUNT_BOXES), 1);
	assert_true(count(m, COUNT_WINDOW_MAPS) > WINDOW_PAGES);
	assert_false(m->c->ctx->window->is_full);
	/* It is still of use. */
	runs = count(m, COUNT_BOX_RUNS);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_int_equal(m->c->r[RAX], 12);
	assert_true(count(m, COUNT_BOX_RUNS) > runs);
	assert_int_equal(count(m, COUNT_BOXES), 1);
}

CODE(spreads, 64,
     "mov $0x240000, %ebx\n 1: mov (%rbx), %eax\n add $0x200000, %rbx\n cmp $0x3240000, %rbx\n"
     "jb 1b\n int3");

/* Another program gets the root table. */
static void next_program_begins_with_a_recess(void **state)
{
	struct soft_machine *m = need_boxes(state);
	struct soft_cpu *c = m->c;
	u64 runs;

	for (u32 n = 1; n <= 24; n++)
		machine_put(m, AT_PD + 8 * n, 8, AT_PT | ALL);
	assert_int_equal(run_user(m, CODE_OF(spreads)), VEC_BP);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	c->vm->options.direct_heat = 2;
	direct_tick(c, c->ctx->window, (struct direct_tick){.ns = 4000000}); /* no debts */
	soft_tlb_flush_context(c); /* of the same one: nothing is lost */
	runs = count(m, COUNT_BOX_RUNS);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_true(count(m, COUNT_BOX_RUNS) > runs);
	for (u32 n = 1; n <= 24; n++)
		machine_put(m, AT_PD + 8 * n, 8, 0);
	soft_tlb_flush_context(c);
	runs = count(m, COUNT_BOX_RUNS);
	machine_put(m, AT_DATA, 8, 0);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_int_equal(machine_get(m, AT_DATA, 8), 12);
	assert_int_equal(count(m, COUNT_BOX_RUNS), runs);
	direct_tick(c, c->ctx->window, (struct direct_tick){.ns = 4000000});
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_true(count(m, COUNT_BOX_RUNS) > runs);
	assert_int_equal(count(m, COUNT_BOXES), 1);
}

static void *kill_soon(void *opaque)
{
	struct soft_cpu *c = opaque;

	while (!atomic_load(&c->running)) /* one that dies before is done without */
		usleep(1000);
	usleep(20000);
	kill_boxes();
	return NULL;
}

static void box_that_dies_with_registers_ends_the_run(void **state)
{
	struct soft_machine *m = need_boxes(state);
	struct vm_exit exit;
	pthread_t thread;

	prepare_to_spin(m);
	assert_int_equal(pthread_create(&thread, NULL, kill_soon, m->c), 0);
	assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
	pthread_join(thread, NULL);
	assert_int_equal(exit.type, EXIT_ERROR);
	assert_non_null(strstr(exit.error, "is gone"));
}

static void dirty_log_sees_stores(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u64 bitmap[128];

	run_user(m, CODE_OF(stores));
	assert_int_equal(soft_engine.dirty_log(m->vm, true), 0);
	assert_int_equal(soft_engine.dirty_fetch(m->vm, 0, bitmap), 0);
	run_user(m, CODE_OF(loads));
	assert_int_equal(soft_engine.dirty_fetch(m->vm, 0, bitmap), 0);
	assert_false(bitmap[1] & 1);
	run_user(m, CODE_OF(stores));
	assert_int_equal(soft_engine.dirty_fetch(m->vm, 0, bitmap), 0);
	assert_int_equal(bitmap[1] & 7, 3); /* pages 0x40 and 0x41 */
	soft_engine.dirty_log(m->vm, false);
}

enum { MS = 1000000 };

/* Time for which others had the processor is no gain. */
static void waiting_is_not_running(void **state)
{
	struct soft_machine *m = need_boxes(state);
	u64 ms = m->cpuid.tsc_hz / 1000, cpu;
	struct soft_window *w;

	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	w = m->c->window[0];
	assert_non_null(w);
	cpu = box_cpu_time(w->box);
	assert_true(cpu > 0);
	w->in_box = 0;
	window_ran(m->c, w, ms / 100, 0); /* too short to look */
	assert_int_equal(w->in_box, ms / 100 - m->cpuid.tsc_hz / 1000000 * 7);
	window_ran(m->c, w, 2000 * ms, 0);
	assert_int_equal(box_cpu_time(w->box), cpu);
	assert_true(w->in_box < 1000 * ms); /* what the process took to be made is in it */
	w->in_box = 0;
	window_ran(m->c, w, 2000 * ms, 0);
	assert_int_equal(w->in_box, 0);
	w->cpu = cpu - MIN(cpu, 50000ul); /* as if it had run for 50 us */
	window_ran(m->c, w, 2000 * ms, 0);
	assert_in_range(w->in_box, 20 * ms / 1000, 50 * ms / 1000);
}

/* A tick of 4 ms in which the kernel was called so often; is the box in a recess now? */
static bool rests_after(struct soft_machine *m, struct soft_window *w, u64 entries)
{
	direct_tick(m->c, w, (struct direct_tick){.ns = 4 * MS, .entries = entries});
	return w->recess;
}

/* What it would gain is found out by trying, where calls are too dense for a guess. */
static void dense_calls_are_counted(void **state)
{
	static struct soft_window w;
	struct soft_machine *m = *state;

	memset(&w, 0, sizeof(w));
	m->c->vm->options.direct_heat = 2;
	assert_false(rests_after(m, &w, 0));
	assert_false(rests_after(m, &w, 150));
	assert_true(rests_after(m, &w, 200)); /* dense: with and without are compared */
	assert_true(rests_after(m, &w, 250)); /* part of that may have been spent in the box */
	assert_false(rests_after(m, &w, 300));
	assert_int_equal(w.spacing, 4 * MS / 300);
	assert_true(rests_after(m, &w, 299)); /* fewer than without */
	assert_true(rests_after(m, &w, 300));
	assert_true(rests_after(m, &w, 300));
	assert_false(rests_after(m, &w, 300)); /* a trial, later than the first */
	assert_false(rests_after(m, &w, 301)); /* that went well */
	assert_int_equal(w.failures, 0);
}

/* While there is new code, which would have to be translated for that, the comparison waits. */
static void new_code_is_spared(void **state)
{
	static struct soft_window w;
	struct soft_machine *m = *state;
	u32 ticks = 0;

	memset(&w, 0, sizeof(w));
	m->c->vm->options.direct_heat = 2;
	assert_true(rests_after(m, &w, 200));
	direct_tick(m->c, &w, (struct direct_tick){.ns = 4 * MS, .entries = 200, .cold = true});
	assert_false(w.recess);
	while (!rests_after(m, &w, 200))
		ticks++;
	assert_in_range(ticks, 4, 16);
}

/* Where stops alone would take longer than all takes now, nothing is tried. */
static void hopeless_calls_are_not_tried(void **state)
{
	static struct soft_window w;
	struct soft_machine *m = *state;

	memset(&w, 0, sizeof(w));
	m->c->vm->options.direct_heat = 2;
	assert_true(rests_after(m, &w, 200));
	for (u32 n = 0; n < 200; n++)
		assert_true(rests_after(m, &w, 401));
	assert_false(rests_after(m, &w, 400));
	assert_true(rests_after(m, &w, 390));
	for (u32 n = 0; n < 200; n++)
		assert_true(rests_after(m, &w, 401));
	assert_false(rests_after(m, &w, 79)); /* calm */
	m->c->vm->options.direct_heat = 0;    /* to the end of each tick, whatever it costs */
	assert_false(rests_after(m, &w, 4000));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(program_runs_in_its_box),
		TEST(loads_leave_pages_clean),
		TEST(remapped_page_is_seen),
		TEST(lost_page_faults),
		TEST(protected_page_faults_for_stores_only),
		TEST(fetches_fault),
		TEST(instruction_across_pages),
		TEST(exceptions_are_the_guests),
		TEST(system_call_enters_the_guests_kernel),
		TEST(single_step_is_the_guests),
		TEST(answers_are_the_guests),
		TEST(this_thread_has_cpuid),
		TEST(changed_code_is_looked_at_again),
		TEST(guest_may_use_any_address),
		TEST(vector_state_goes_along),
		TEST(kicks_are_seen),
		cmocka_unit_test_setup_teardown(one_tick_is_enough, setup_patient, teardown),
		TEST(one_ticker_for_all),
		TEST(dead_boxes_are_done_without),
		TEST(box_that_dies_with_registers_ends_the_run),
		TEST(more_pages_than_there_is_room_for),
		TEST(next_program_begins_with_a_recess),
		TEST(dirty_log_sees_stores),
		TEST(waiting_is_not_running),
		TEST(dense_calls_are_counted),
		TEST(new_code_is_spared),
		TEST(hopeless_calls_are_not_tried),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
