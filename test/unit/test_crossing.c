/*
 * A guest's state crosses from one engine to the other in the middle of its work, back and forth,
 * and the work comes out right. 77: one of the engines cannot run here.
 *
 * Both run with the CPU model that the more limited engine (kvm) leaves.
 */
#include "engine_guest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Sums in registers and memory, an OUT each round. */
CODE(work,
     "xor %eax, %eax; mov $1, %ebx; mov $0x100000, %edi; 1: add %rbx, %rax; mov %rax, (%rdi);"
     "add (%rdi), %r8; lea 8(%rdi), %rdi; rol $7, %r9; xor %rax, %r9; mov %r9, %r10; push %r10;"
     "pop %r11; add %r11, %r12; inc %rbx; out %al, $0x80; cmp $200, %rbx; jbe 1b; hlt");

static const struct engine_ops *soft, *kvm;

/* Finish the exit at hand, then stop between two instructions. */
static bool stand_still(struct guest *g, struct vm_exit *x)
{
	do {
		g->engine->kick(g->cpu);
		guest_run(g, x);
	} while (x->type == EXIT_PIO);
	return x->type == EXIT_KICKED;
}

static void load_alike(struct guest *a, struct guest *b)
{
	guest_load(a, CODE_OF(work));
	guest_load(b, CODE_OF(work));
}

/* Run @rounds exits; false when the guest came to its end. */
static bool run_some(struct guest *g, u32 rounds)
{
	struct vm_exit x = {0};

	for (u32 i = 0; i < rounds; i++)
		if (guest_run(g, &x) == EXIT_HLT)
			return false;
	return stand_still(g, &x);
}

static void move(struct guest *from, struct guest *to)
{
	static struct cpu_state s;

	s = *guest_state(from, CPU_PART_ALL);
	memcpy(to->ram, from->ram, RAM_SIZE);
	mem_unmap(&to->physmap, 0, RAM_SIZE);
	assert_int_equal(to->engine->state_set(to->cpu, CPU_PART_ALL, &s), 0);
}

static void state_crosses_engines(void **state)
{
	const struct cpuid_request request = {.vcpus = 1};
	struct guest *on_kvm, *on_soft, *here, *there, *end;
	struct cpuid_model model;
	struct cpu_state reference;
	struct err e = {0};
	u32 moves = 0;

	(void)state;
	assert_int_equal(cpuid_model_init(&model, &request, &e), 0);
	on_kvm = guest_new_with(kvm, &model);
	on_soft = guest_new_with(soft, &on_kvm->cpuid);
	load_alike(on_kvm, on_soft);
	/* What it comes to without moving. */
	while (run_some(on_soft, 50)) {
	}
	reference = *guest_state(on_soft, CPU_PART_GPR);
	load_alike(on_kvm, on_soft);
	for (here = on_soft, there = on_kvm; run_some(here, 7); moves++) {
		move(here, there);
		end = here;
		here = there;
		there = end;
	}
	assert_in_range(moves, 10, 100);
	assert_memory_equal(&guest_state(here, CPU_PART_GPR)->gpr, &reference.gpr,
			    sizeof(reference.gpr));
	guest_free(on_soft);
	guest_free(on_kvm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(state_crosses_engines)};

	if (!guest_both_engines(&soft, &kvm))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
