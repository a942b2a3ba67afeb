/*
 * The soft engine's vCPUs among each other: when the bytes of a page that becomes code may be read.
 * The second vCPU has no thread; the test does for it what its run loop would.
 */
#include "engine/soft/cache.h"
#include "engine/soft/translate.h"
#include "soft_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
	PAGE = AT_DATA >> PAGE_SHIFT,
	TLB_SPAN = TLB_SIZE << PAGE_SHIFT, /* addresses so far apart share a TLB entry */
};

CODE(stops, 64, "nop\n hlt");

struct fixture {
	struct soft_machine *m;
	struct soft_vm *vm;
	struct soft_cpu *other;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct soft_cpu *c = aligned_alloc(64, align_up(sizeof(*c), 64));

	f->m = machine_new();
	f->vm = f->m->c->vm;
	machine_long_mode(f->m);
	memset(c, 0, sizeof(*c));
	c->vm = f->vm;
	c->id = 1;
	c->cr0 = CR0_ET; /* no paging */
	assert_int_equal(soft_contexts_init(c), 0);
	atomic_store(&c->active, true);
	f->vm->cpu[1] = f->other = c;
	f->vm->cpus = 2;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->vm->cpu[1] = NULL;
	f->vm->cpus = 1;
	soft_contexts_destroy(f->other);
	free(f->other);
	machine_free(f->m);
	free(f);
	return 0;
}

static void other_writes(struct fixture *f, gva_t at)
{
	u8 byte = 1;

	assert_int_equal(soft_write(f->other, at, &byte, 1, ACC_WRITE), SOFT_OK);
}

static bool claim(struct fixture *f, u32 page)
{
	f->m->c->unsettled = 0;
	return cache_claim_page(f->m->c, page, f->m->ram + ((u64)page << PAGE_SHIFT));
}

static u64 stale_bit(struct fixture *f, u32 page)
{
	return soft_stale_bit((u64)f->m->ram + ((u64)page << PAGE_SHIFT));
}

static void page_waits_for_who_may_still_store_to_it(void **state)
{
	struct fixture *f = *state;

	other_writes(f, AT_DATA);
	assert_false(claim(f, PAGE));
	assert_int_equal(f->m->c->unsettled, stale_bit(f, PAGE));
	assert_false(claim(f, PAGE));
	assert_true(soft_pass(f->other));
	assert_true(claim(f, PAGE));
}

static void page_does_not_wait_for_who_is_outside(void **state)
{
	struct fixture *f = *state;

	other_writes(f, AT_DATA);
	assert_false(claim(f, PAGE));
	atomic_store(&f->other->active, false);
	assert_true(claim(f, PAGE));
}

static void page_does_not_wait_for_who_never_wrote_to_it(void **state)
{
	struct fixture *f = *state;

	other_writes(f, AT_DATA + PAGE_SIZE);
	assert_true(claim(f, PAGE));
}

/* Pages that take each other's TLB entry, until all of the set's bits are taken. */
static void fill_set(struct fixture *f)
{
	for (u32 n = 1; ~atomic_load(&f->other->stale); n++) {
		assert_true(n < TLB_SIZE);
		other_writes(f, AT_DATA + n * PAGE_SIZE);
		other_writes(f, AT_DATA + n * PAGE_SIZE + TLB_SPAN);
	}
}

/* With dozens of vCPUs the moment when none has the bit in its set might never come. */
static void page_does_not_wait_for_who_passed_and_took_up_others(void **state)
{
	struct fixture *f = *state;

	other_writes(f, AT_DATA);
	assert_false(claim(f, PAGE));
	assert_true(soft_pass(f->other));
	fill_set(f);
	assert_true(claim(f, PAGE));
	assert_true(soft_settle(f->vm, f->m->c, stale_bit(f, PAGE), f->m->c->unsettled_epoch));
}

static void page_that_is_claimed_anew_waits_anew(void **state)
{
	struct fixture *f = *state;
	const u32 page = AT_CODE >> PAGE_SHIFT;
	struct soft_xlat x;
	int status;

	machine_load(f->m, CODE_OF(stops));
	assert_int_equal(soft_translate(f->m->c, AT_CODE, ACC_FETCH, &x), SOFT_OK);
	assert_non_null(soft_translate_block(f->m->c, &x, f->m->c->mode, &status));
	assert_true(soft_code_stored(f->vm, page, AT_CODE % PAGE_SIZE, 1));
	assert_int_equal(f->vm->page_flags[page] & PAGE_HAS_CODE, 0);
	other_writes(f, AT_CODE);
	assert_false(claim(f, page));
	assert_true(soft_pass(f->other));
	assert_true(claim(f, page));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		CASE(page_waits_for_who_may_still_store_to_it),
		CASE(page_does_not_wait_for_who_is_outside),
		CASE(page_does_not_wait_for_who_never_wrote_to_it),
		CASE(page_does_not_wait_for_who_passed_and_took_up_others),
		CASE(page_that_is_claimed_anew_waits_anew),
	};

	return cmocka_run_group_tests_name("soft engine, several vCPUs", tests, NULL, NULL);
}
