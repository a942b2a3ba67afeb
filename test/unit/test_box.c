/*
 * Boxes: code runs natively in them, and whatever it does they come back, with nothing done to us.
 */
#include "host/box.h"
#include "host/memory_file.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

enum { CODE_AT = 0x400000, DATA_AT = 0x500000, PAGES = 8 };

struct world {
	int fd;
	u8 *memory;
	struct box_crowd crowd;
	struct box *box;
	struct user_regs_struct regs;
	enum box_stop why;
	struct box_signal signal;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	int r;

	*state = w;
	w->fd = host_memory_file();
	assert_true(w->fd >= 0);
	w->memory = host_memory_map(w->fd, 0, PAGES * PAGE_SIZE);
	assert_non_null(w->memory);
	r = box_create(w->fd, &w->crowd, &w->box);
	if (r == -ENOTSUP)
		return 0;
	assert_int_equal(r, 0);
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	if (w->box)
		box_destroy(w->box);
	munmap(w->memory, PAGES * PAGE_SIZE);
	close(w->fd);
	free(w);
	return 0;
}

/* NULL, and the test skipped, where this build has no boxes. */
static struct world *need_box(void **state)
{
	struct world *w = *state;

	if (!w->box)
		skip();
	return w;
}

static void put_code(struct world *w, const void *code, u64 len)
{
	memcpy(w->memory, code, len);
	assert_true(box_map(w->box, CODE_AT, PAGE_SIZE, PROT_READ | PROT_EXEC, 0));
	assert_true(box_map(w->box, DATA_AT, PAGE_SIZE, PROT_READ | PROT_WRITE, PAGE_SIZE));
	assert_int_equal(box_settle(w->box), 0);
	w->regs = (struct user_regs_struct){.rip = CODE_AT, .eflags = 0x202};
}

#define PUT_CODE(w, ...)                                \
	do {                                            \
		static const u8 code[] = {__VA_ARGS__}; \
		put_code(w, code, sizeof(code));        \
	} while (0)

static void run(struct world *w)
{
	assert_int_equal(box_run(w->box, &w->regs, &w->why, &w->signal), 0);
}

static void test_code_runs_and_stops_at_its_system_call(void **state)
{
	struct world *w = need_box(state);

	/* mov eax, 39 (getpid); mov rbx, [rdi]; mov [rdi+8], rsi; syscall; hlt */
	PUT_CODE(w, 0xb8, 39, 0, 0, 0, 0x48, 0x8b, 0x1f, 0x48, 0x89, 0x77, 8, 0x0f, 0x05, 0xf4);
	*(u64 *)(void *)(w->memory + PAGE_SIZE) = 0x1122334455667788;
	w->regs.rdi = DATA_AT;
	w->regs.rsi = 77;
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	assert_int_equal(w->regs.orig_rax, 39);
	assert_int_equal(w->regs.rip, CODE_AT + 14);
	assert_true(w->regs.rbx == 0x1122334455667788);
	assert_int_equal(*(u64 *)(void *)(w->memory + PAGE_SIZE + 8), 77);
	/* Behind it: a privileged instruction. */
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
	assert_int_equal(w->signal.nr, SIGSEGV);
	assert_int_equal(w->regs.rip, CODE_AT + 14);
}

static void test_no_system_call_is_made(void **state)
{
	struct world *w = need_box(state);

	/* syscall; int 0x80 */
	PUT_CODE(w, 0x0f, 0x05, 0xcd, 0x80);
	w->regs.rax = 231; /* exit_group */
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	w->regs.rax = 1; /* exit, of 32-bit code */
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	assert_int_equal(w->regs.rip, CODE_AT + 4);
	/* The stub's own SYSCALL, reached by code that is not ours: to map what it likes. */
	w->regs.rip = BOX_AT;
	w->regs.rax = 9;
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	assert_int_equal(w->regs.orig_rax, 11);
}

static void test_faults_tell_their_address(void **state)
{
	struct world *w = need_box(state);

	PUT_CODE(w, 0x48, 0x89, 0x07); /* mov [rdi], rax */
	w->regs.rdi = 0x123456789000;
	run(w);
	assert_int_equal(w->signal.nr, SIGSEGV);
	assert_true(w->signal.code > 0 && w->signal.code != SI_KERNEL);
	assert_true(w->signal.address == 0x123456789000);
	/* Our own stack and code are not there. */
	w->regs.rdi = (u64)&w;
	run(w);
	assert_true(w->signal.address == (u64)&w);
	w->regs.rip = (u64)run;
	run(w);
	assert_true(w->signal.address == (u64)run);
	/* What it can see of ours it cannot change. */
	w->regs.rip = CODE_AT;
	w->regs.rdi = BOX_AT + PAGE_SIZE;
	run(w);
	assert_true(w->signal.address == BOX_AT + PAGE_SIZE);
}

static void test_mappings_follow_the_notes(void **state)
{
	struct world *w = need_box(state);

	PUT_CODE(w, 0x48, 0x89, 0x07, 0x0f, 0x05); /* mov [rdi], rax; syscall */
	w->regs.rdi = DATA_AT;
	w->regs.rax = 5;
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	box_protect(w->box, DATA_AT, PAGE_SIZE, PROT_READ);
	assert_int_equal(box_settle(w->box), 0);
	w->regs.rip = CODE_AT;
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
	box_map(w->box, DATA_AT, PAGE_SIZE, PROT_READ | PROT_WRITE, 2 * PAGE_SIZE);
	assert_int_equal(box_settle(w->box), 0);
	w->regs.rax = 6;
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	assert_int_equal(w->memory[PAGE_SIZE], 5);
	assert_int_equal(w->memory[2 * PAGE_SIZE], 6);
	box_clear(w->box);
	assert_int_equal(box_settle(w->box), 0);
	w->regs.rip = CODE_AT;
	run(w);
	assert_true(w->signal.address == CODE_AT);
}

static void test_many_notes(void **state)
{
	struct world *w = need_box(state);
	u32 n = 0;

	/* Every second page, so that none extends the last. */
	while (box_map(w->box, 0x10000000ul + 2 * PAGE_SIZE * n, PAGE_SIZE, PROT_READ, 0))
		n++;
	assert_true(n > 1000);
	assert_int_equal(box_settle(w->box), 0);
	PUT_CODE(w, 0x48, 0x8b, 0x07, 0x0f, 0x05); /* mov rax, [rdi]; syscall */
	w->regs.rdi = 0x10000000ul + 2 * PAGE_SIZE * (n - 1);
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	w->regs.rip = CODE_AT;
	w->regs.rdi += PAGE_SIZE;
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
}

static void *kick_later(void *box)
{
	usleep(20000);
	box_kick(box);
	return NULL;
}

static void test_a_kick_stops_a_loop(void **state)
{
	struct world *w = need_box(state);
	pthread_t thread;

	PUT_CODE(w, 0xeb, 0xfe);
	assert_int_equal(pthread_create(&thread, NULL, kick_later, w->box), 0);
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
	assert_int_equal(w->regs.rip, CODE_AT);
	pthread_join(thread, NULL);
	/* One that comes before it runs, too; and settling in between survives it. */
	box_kick(w->box);
	box_protect(w->box, DATA_AT, PAGE_SIZE, PROT_READ);
	assert_int_equal(box_settle(w->box), 0);
	box_kick(w->box);
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
}

/* What is noted is done on the way into the code, with every register as it should be. */
static void test_prepared_notes(void **state)
{
	struct world *w = need_box(state);
	struct user_regs_struct before;

	PUT_CODE(w, 0x48, 0x89, 0x03, 0x0f, 0x05); /* mov %rax,(%rbx); syscall */
	for (u32 n = 0; n < 3; n++) {
		const u64 at = DATA_AT + (1 + n) * PAGE_SIZE;

		w->regs = (struct user_regs_struct){.rax = 1,
						    .rbx = at,
						    .rcx = 3,
						    .rdx = 4,
						    .rsi = 5,
						    .rdi = 6,
						    .rbp = 7,
						    .rsp = 8,
						    .r8 = 9,
						    .r9 = 10,
						    .r10 = 11,
						    .r11 = 12,
						    .r12 = 13,
						    .r13 = 14,
						    .r14 = 15,
						    .r15 = 16,
						    .rip = CODE_AT,
						    .eflags = 0xad7,
						    .fs_base = 17};
		before = w->regs;
		assert_true(box_map(w->box, at, PAGE_SIZE, PROT_READ | PROT_WRITE,
				    (2 + n) * PAGE_SIZE));
		assert_int_equal(box_prepare(w->box), 1);
		run(w);
		assert_int_equal(w->why, BOX_CALL);
		assert_int_equal(w->regs.orig_rax, 1);
		assert_int_equal(w->memory[(2 + n) * PAGE_SIZE], 1);
		assert_int_equal(w->regs.rip, CODE_AT + 5);
		assert_int_equal(w->regs.rcx, CODE_AT + 5);
		assert_int_equal(w->regs.r11, 0xad7);
		assert_int_equal(w->regs.eflags, 0xad7);
		assert_memory_equal(&w->regs, &before, offsetof(struct user_regs_struct, r11));
		assert_true(w->regs.rsi == 5 && w->regs.rdi == 6 && w->regs.rdx == 4 &&
			    w->regs.r10 == 11 && w->regs.r8 == 9 && w->regs.rsp == 8 &&
			    w->regs.fs_base == 17);
	}
}

static void test_a_kick_comes_on_the_way(void **state)
{
	struct world *w = need_box(state);

	PUT_CODE(w, 0x90, 0xeb, 0xfd);
	box_map(w->box, DATA_AT + PAGE_SIZE, PAGE_SIZE, PROT_READ, 2 * PAGE_SIZE);
	assert_true(box_prepare(w->box) >= 0);
	w->regs.r15 = 15;
	box_kick(w->box);
	run(w);
	assert_int_equal(w->why, BOX_SIGNAL);
	assert_int_equal(w->signal.nr, SIGUSR1);
	assert_int_equal(w->regs.rip, CODE_AT);
	assert_int_equal(w->regs.r15, 15);
	/* What was noted has been done. */
	w->memory[0] = 0xa1; /* mov DATA_AT + PAGE_SIZE,%eax; syscall */
	memcpy(w->memory + 1, &(u64){DATA_AT + PAGE_SIZE}, 8);
	memcpy(w->memory + 9, "\x0f\x05", 2);
	run(w);
	assert_int_equal(w->why, BOX_CALL);
}

/* The host refuses what is prepared: the box is of no use, and says so. */
static void test_a_prepared_note_may_fail(void **state)
{
	struct world *w = need_box(state);

	PUT_CODE(w, 0x0f, 0x05);
	box_protect(w->box, DATA_AT + PAGE_SIZE, PAGE_SIZE, PROT_READ); /* nothing is there */
	assert_true(box_prepare(w->box) >= 0);
	assert_true(box_run(w->box, &w->regs, &w->why, &w->signal) < 0);
}

/* Code that is not ours goes to the stub to have calls made there: they are its own. */
static void test_nothing_is_to_be_had_from_the_stub(void **state)
{
	struct world *w = need_box(state);
	u32 calls = 0, failed = 0;

	for (u64 at = 0; at < 256; at++) {
		PUT_CODE(w, 0xff, 0xe2); /* jmp *%rdx */
		box_map(w->box, DATA_AT + PAGE_SIZE, PAGE_SIZE, PROT_READ, 2 * PAGE_SIZE);
		assert_true(box_prepare(w->box) >= 0);
		/* Orders of its own: munmap(CODE_AT, 4096). */
		((u64 *)(void *)(w->memory + PAGE_SIZE))[0] = 11;
		((u64 *)(void *)(w->memory + PAGE_SIZE))[1] = CODE_AT;
		((u64 *)(void *)(w->memory + PAGE_SIZE))[2] = PAGE_SIZE;
		w->regs.rbx = DATA_AT;
		w->regs.r12 = 1;
		w->regs.rax = 11;
		w->regs.rdi = CODE_AT;
		w->regs.rsi = PAGE_SIZE;
		w->regs.rdx = BOX_AT + at;
		if (box_run(w->box, &w->regs, &w->why, &w->signal) < 0) {
			/* It went to where a batch ends that failed. */
			box_destroy(w->box);
			assert_int_equal(box_create(w->fd, &w->crowd, &w->box), 0);
			failed++;
			continue;
		}
		calls += w->why == BOX_CALL;
		w->regs = (struct user_regs_struct){
			.rip = CODE_AT, .rdx = CODE_AT + 16, .eflags = 0x202};
		w->memory[16] = 0x0f;
		w->memory[17] = 0x05;
		run(w); /* the code is still there */
		assert_int_equal(w->why, BOX_CALL);
	}
	assert_true(calls > 3);
	assert_true(failed <= 64);
}

static void test_forks_are_apart(void **state)
{
	struct world *w = need_box(state);
	struct box *first = w->box, *second;

	PUT_CODE(w, 0xff, 0xc0, 0x0f, 0x05); /* inc eax; syscall */
	assert_int_equal(box_fork(first, &second), 0);
	assert_int_equal(box_settle(second), 0);
	w->box = second;
	run(w);
	assert_true(w->signal.nr == SIGSEGV && w->signal.address == CODE_AT);
	box_map(second, CODE_AT, PAGE_SIZE, PROT_READ | PROT_EXEC, 0);
	assert_int_equal(box_settle(second), 0);
	run(w);
	assert_int_equal(w->regs.orig_rax, 1);
	w->box = first;
	w->regs.rip = CODE_AT;
	w->regs.rax = 10;
	run(w);
	assert_int_equal(w->regs.orig_rax, 11);
	box_destroy(second);
}

static void test_threads_keep_out_of_each_others_way(void **state)
{
	struct world *w = need_box(state);
	int before;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		skip();
	PUT_CODE(w, 0xff, 0xc0, 0x0f, 0x05);
	box_release(w->box);
	before = sched_getcpu();
	atomic_fetch_add(&w->crowd.at[before], 1);
	run(w);
	assert_int_equal(w->why, BOX_CALL);
	assert_int_not_equal(sched_getcpu(), before);
	assert_int_equal(w->crowd.at[sched_getcpu()], 1);
	box_release(w->box);
	assert_int_equal(w->crowd.at[sched_getcpu()], 0);
}

static void test_vector_state(void **state)
{
	struct world *w = need_box(state);
	u8 image[BOX_FPU_MAX];
	u32 size;

	/* paddq xmm1, xmm1; syscall */
	PUT_CODE(w, 0x66, 0x0f, 0xd4, 0xc9, 0x0f, 0x05);
	assert_int_equal(box_fpu_get(w->box, image, &size), 0);
	assert_true(size >= 576);
	image[512] |= 2; /* XSTATE_BV: SSE */
	memset(image + 160 + 16, 0, 16);
	image[160 + 16] = 21;
	assert_int_equal(box_fpu_set(w->box, image, size), 0);
	run(w);
	memset(image, 0, sizeof(image));
	assert_int_equal(box_fpu_get(w->box, image, &size), 0);
	assert_int_equal(image[160 + 16], 42);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_code_runs_and_stops_at_its_system_call, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_no_system_call_is_made, setup, teardown),
		cmocka_unit_test_setup_teardown(test_faults_tell_their_address, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mappings_follow_the_notes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_notes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_kick_stops_a_loop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_prepared_notes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_kick_comes_on_the_way, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_prepared_note_may_fail, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_is_to_be_had_from_the_stub, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_forks_are_apart, setup, teardown),
		cmocka_unit_test_setup_teardown(test_threads_keep_out_of_each_others_way, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_vector_state, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
