/* Memory asked for ahead: what is there afterwards. */
#include "host/loop.h"
#include "host/memory.h"
#include "host/populate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

#define SIZE (16 * MIB)

enum { PAGES = SIZE / PAGE_SIZE };

static u32 resident(void *p)
{
	static u8 vec[PAGES];
	u32 n = 0;

	assert_int_equal(mincore(p, SIZE, vec), 0);
	for (u32 i = 0; i < PAGES; i++)
		n += vec[i] & 1;
	return n;
}

static void what_is_asked_for_comes(void **state)
{
	u8 *memory = host_memory_alloc(SIZE);
	struct populate *p = NULL;
	struct err e = {0};

	(void)state;
	assert_non_null(memory);
	assert_int_equal(populate_create(&p, &e), 0);
	assert_int_equal(resident(memory), 0);
	memory[SIZE / 2] = 7; /* some of it is there already, and stays as it is */
	populate_ask(p, memory, SIZE / 4);
	populate_ask(p, memory + SIZE / 4, SIZE - SIZE / 4);
	for (u32 n = 0; resident(memory) < PAGES && n < 10000; n++)
		host_sleep_ns(1000000);
	assert_int_equal(resident(memory), PAGES);
	assert_int_equal(memory[SIZE / 2], 7);
	assert_int_equal(memory[SIZE - 1], 0);
	populate_destroy(p);
	host_memory_free(memory, SIZE);
}

/* More than it takes, memory that is not there, and an end in the middle. */
static void too_much_is_left_undone(void **state)
{
	u8 *memory = host_memory_alloc(SIZE), *gone = host_memory_alloc(SIZE);
	struct populate *p = NULL;
	struct err e = {0};

	(void)state;
	assert_non_null(memory);
	assert_non_null(gone);
	host_memory_free(gone, SIZE);
	assert_int_equal(populate_create(&p, &e), 0);
	for (u32 n = 0; n < 1000; n++) {
		populate_ask(p, n & 1 ? gone : memory, SIZE);
		populate_ask(p, memory, 0);
	}
	populate_destroy(p);
	host_memory_free(memory, SIZE);
	populate_ask(NULL, memory, SIZE);
	populate_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_asked_for_comes),
		cmocka_unit_test(too_much_is_left_undone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
