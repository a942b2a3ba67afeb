/* User programs in windows: what they access, what they fault with, and when a window must go. */
#include "engine/soft/window.h"
#include "soft_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	AT_PDPT2 = 0x8000, /* another 512 GiB: ends in AT_PT2, which leads to AT_OTHER */
	AT_PD2 = 0x9000,
	AT_PT2 = 0xa000,
	AT_OTHER = 0x60000,
	HOLE = AT_DATA + 0x8000, /* an address whose page tests take away */
	ALL = PTE_P | PTE_RW | PTE_US,
	ROOT_GROUPS = WINDOW_SIZE >> 39,
};

extern const struct engine_ops soft_engine;

/* AT_DATA's place in the window belongs to this address as well. */
#define TWIN (AT_DATA + WINDOW_SIZE)

static int setup(void **state)
{
	struct soft_machine *m = machine_new();

	machine_long_mode(m);
	machine_set_gate(m, VEC_BP, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, 0);
	m->c->vm->options.window_heat = 0;
	assert_true(m->physmap.fd >= 0);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	machine_free(*state);
	return 0;
}

/* Run user code up to the exception that ends it; returns its vector. */
static u8 run_user(struct soft_machine *m, const u8 *code, u32 len)
{
	struct vm_exit exit;

	assert_int_equal(mem_write(&m->physmap, AT_CODE, code, len), 0);
	machine_own_signals();
	machine_user(m, SEL_USER_CODE64);
	m->c->rip = AT_CODE;
	assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
	assert_int_equal(exit.type, EXIT_HLT);
	return (u8)((m->c->rip - 1 - AT_HANDLER) / 16);
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

static void take_page(struct soft_machine *m, gva_t gva)
{
	machine_set_page(m, gva, 0);
}

CODE(stores, 64,
     "mov $0x40000, %ebx\n movq $7, (%rbx)\n addq $5, (%rbx)\n mov (%rbx), %rax\n"
     "push %rax\n pop %rcx\n mov %rcx, 0x1000(%rbx)\n int3");

static void program_runs_in_its_window(void **state)
{
	struct soft_machine *m = *state;

	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_int_equal(machine_get(m, AT_DATA, 8), 12);
	assert_int_equal(machine_get(m, AT_DATA + 0x1000, 8), 12);
	assert_int_equal(m->c->r[RCX], 12);
	assert_int_equal(count(m, COUNT_WINDOWS), 1);
	assert_true(count(m, COUNT_WINDOW_MAPS) >= 3);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_BP);
	assert_int_equal(count(m, COUNT_WINDOWS), 1);
}

CODE(loads, 64, "mov $0x40000, %ebx\n mov (%rbx), %rax\n int3");

static void remapped_page_is_seen(void **state)
{
	struct soft_machine *m = *state;

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
	struct soft_machine *m = *state;

	run_user(m, CODE_OF(loads));
	take_page(m, AT_DATA);
	assert_int_equal(run_user(m, CODE_OF(loads)), VEC_PF);
	assert_int_equal(m->c->cr2, AT_DATA);
	assert_int_equal(frame(m, 0), 4);
	assert_int_equal(frame(m, 1), AT_CODE + 5);
}

static void protected_page_faults_for_stores_only(void **state)
{
	struct soft_machine *m = *state;

	run_user(m, CODE_OF(stores));
	machine_set_page(m, AT_DATA, AT_DATA | PTE_P | PTE_US);
	run_user(m, CODE_OF(loads));
	assert_int_equal(m->c->r[RAX], 12);
	assert_int_equal(run_user(m, CODE_OF(stores)), VEC_PF);
	assert_int_equal(m->c->cr2, AT_DATA);
	assert_int_equal(frame(m, 0), 7);
	assert_int_equal(machine_get(m, AT_DATA, 8), 12);
}

CODE(pushes, 64,
     "lea 16(%rsp), %rbp\n mov $0x48010, %esp\n push %rbp\n push %rbx\n push %r9\n"
     "push %r12\n int3");

static void rsp_is_right_in_the_middle_of_pushes(void **state)
{
	struct soft_machine *m = *state;

	m->c->r[R9] = 9;
	m->c->r[RBX] = 3;
	take_page(m, HOLE - PAGE_SIZE);
	assert_int_equal(run_user(m, CODE_OF(pushes)), VEC_PF);
	assert_int_equal(m->c->cr2, HOLE - 8);
	assert_int_equal(frame(m, 0), 6);
	assert_int_equal(frame(m, 4), HOLE);
	assert_int_equal(machine_get(m, HOLE, 8), 3);
}

CODE(borrows, 64, "mov $0x48000, %r8d\n mulx (%r8), %r9, %r10\n int3");
CODE(high_byte, 64, "mov $0x48000, %eax\n add (%rax), %bh\n int3");

/* Registers lent to the instruction come back. */
static void check_registers(struct soft_machine *m, const u8 *code, u32 len, u32 own)
{
	for (u32 n = 0; n < GPR_COUNT; n++)
		m->c->r[n] = 0x1111111111111111ul * n;
	assert_int_equal(run_user(m, code, len), VEC_PF);
	assert_int_equal(m->c->cr2, HOLE);
	for (u32 n = 0; n < GPR_COUNT; n++)
		if (n != own && n != RSP)
			assert_int_equal(m->c->r[n], 0x1111111111111111ul * n);
}

static void fault_leaves_registers_alone(void **state)
{
	struct soft_machine *m = *state;

	take_page(m, HOLE);
	check_registers(m, CODE_OF(borrows), R8);
	check_registers(m, CODE_OF(high_byte), RAX);
}

CODE(upper_half, 64,
     "mov $0x40000, %ebx\n movabs $0xffff800000040010, %rcx\n mov (%rbx), %rax\n"
     "mov 8(%rcx), %rdx\n int3");
CODE(not_canonical, 64,
     "mov $0x40000, %ebx\n movabs $0x0010000000040000, %rcx\n mov (%rbx), %rax\n"
     "mov (%rcx), %rdx\n int3");
CODE(bad_stack, 64, "movabs $0x0010000000040000, %rsp\n push %rax\n int3");

static void addresses_outside_the_lower_half_fault(void **state)
{
	struct soft_machine *m = *state;

	assert_int_equal(run_user(m, CODE_OF(upper_half)), VEC_PF);
	assert_int_equal(m->c->cr2, 0xffff800000040018);
	assert_int_equal(run_user(m, CODE_OF(not_canonical)), VEC_GP);
	assert_int_equal(run_user(m, CODE_OF(bad_stack)), VEC_SS);
}

CODE(both, 64,
     "mov $0x40000, %ebx\n mov (%rbx), %rax\n movabs $0x40000040000, %rcx\n"
     "mov (%rcx), %rdx\n int3");
CODE(makes_twin, 64,
     "mov $0x40000, %ebx\n mov (%rbx), %rax\n mov $0x4000, %esi\n"
     "movq $0x8007, 64(%rsi)\n movabs $0x40000040000, %rcx\n mov (%rcx), %rdx\n"
     "int3");

/* TWIN leads to AT_OTHER, but for the root entry. */
static void prepare_twin(struct soft_machine *m)
{
	machine_put(m, AT_PDPT2, 8, AT_PD2 | ALL);
	machine_put(m, AT_PD2, 8, AT_PT2 | ALL);
	for (u64 n = 0; n < 512; n++)
		machine_put(m, AT_PT2 + n * 8, 8, 0);
	machine_put(m, AT_PT2 + (AT_DATA >> PAGE_SHIFT) * 8, 8, AT_OTHER | ALL);
	machine_put(m, AT_DATA, 8, 1);
	machine_put(m, AT_OTHER, 8, 2);
}

static void twin_takes_the_window_away(void **state)
{
	const u64 entry = AT_PDPT2 | ALL;
	struct soft_machine *m = *state;

	prepare_twin(m);
	run_user(m, CODE_OF(loads));
	assert_int_equal(count(m, COUNT_WINDOWS), 1);
	/* By a device, which asks nobody. */
	assert_int_equal(mem_write(&m->physmap, AT_PML4 + ROOT_GROUPS * 8ul, &entry, 8), 0);
	assert_int_equal(run_user(m, CODE_OF(both)), VEC_BP);
	assert_int_equal(m->c->r[RAX], 1);
	assert_int_equal(m->c->r[RDX], 2);
	assert_int_equal(count(m, COUNT_WINDOW_DROPS), 1);
}

/* May we read there? The host says so without a signal. */
static bool is_readable(const u8 *at)
{
	int end[2];
	bool ok;

	assert_int_equal(pipe(end), 0);
	ok = write(end[1], at, 1) == 1;
	close(end[0]);
	close(end[1]);
	return ok;
}

/* Whatever becomes of its pages afterwards, as long as somebody may run in it. */
static void lost_window_stays_closed(void **state)
{
	const u64 entry = AT_PDPT2 | ALL;
	struct soft_machine *m = *state;
	const u8 *at;

	prepare_twin(m);
	run_user(m, CODE_OF(stores));
	at = m->c->window[SOFT_BOXES_MAX]->base + AT_DATA;
	assert_true(is_readable(at));
	assert_int_equal(mem_write(&m->physmap, AT_PML4 + ROOT_GROUPS * 8ul, &entry, 8), 0);
	assert_false(is_readable(at));
	assert_int_equal(soft_engine.dirty_log(m->vm, true), 0);
	assert_false(is_readable(at));
}

static void twin_made_by_the_program_itself(void **state)
{
	struct soft_machine *m = *state;

	prepare_twin(m);
	assert_int_equal(run_user(m, CODE_OF(makes_twin)), VEC_BP);
	assert_int_equal(count(m, COUNT_WINDOWS), 1);
	assert_int_equal(m->c->r[RAX], 1);
	assert_int_equal(m->c->r[RDX], 2);
}

static void twins_get_no_window(void **state)
{
	struct soft_machine *m = *state;

	prepare_twin(m);
	machine_put(m, AT_PML4 + ROOT_GROUPS * 8ul, 8, AT_PDPT2 | ALL);
	assert_int_equal(run_user(m, CODE_OF(both)), VEC_BP);
	assert_int_equal(m->c->r[RDX], 2);
	assert_int_equal(count(m, COUNT_WINDOWS), 0);
}

static void dirty_log_sees_stores(void **state)
{
	struct soft_machine *m = *state;
	u64 *bitmap = calloc(m->physmap.pages / 64 + 1, 8);
	const u64 page = AT_DATA >> PAGE_SHIFT;

	run_user(m, CODE_OF(stores));
	assert_int_equal(soft_engine.dirty_log(m->vm, true), 0);
	for (u32 n = 0; n < 2; n++) {
		run_user(m, CODE_OF(stores));
		assert_int_equal(soft_engine.dirty_fetch(m->vm, 0, bitmap), 0);
		assert_true(bitmap[page / 64] & BIT(page % 64));
	}
	run_user(m, CODE_OF(loads));
	assert_int_equal(soft_engine.dirty_fetch(m->vm, 0, bitmap), 0);
	assert_false(bitmap[page / 64] & BIT(page % 64));
	free(bitmap);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(program_runs_in_its_window, setup, teardown),
		cmocka_unit_test_setup_teardown(remapped_page_is_seen, setup, teardown),
		cmocka_unit_test_setup_teardown(lost_page_faults, setup, teardown),
		cmocka_unit_test_setup_teardown(protected_page_faults_for_stores_only, setup,
						teardown),
		cmocka_unit_test_setup_teardown(rsp_is_right_in_the_middle_of_pushes, setup,
						teardown),
		cmocka_unit_test_setup_teardown(fault_leaves_registers_alone, setup, teardown),
		cmocka_unit_test_setup_teardown(addresses_outside_the_lower_half_fault, setup,
						teardown),
		cmocka_unit_test_setup_teardown(twin_takes_the_window_away, setup, teardown),
		cmocka_unit_test_setup_teardown(lost_window_stays_closed, setup, teardown),
		cmocka_unit_test_setup_teardown(twin_made_by_the_program_itself, setup, teardown),
		cmocka_unit_test_setup_teardown(twins_get_no_window, setup, teardown),
		cmocka_unit_test_setup_teardown(dirty_log_sees_stores, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
