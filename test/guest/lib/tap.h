/*
 * Test cases and their report, in the Test Anything Protocol on the serial port.
 *
 * A guest lists its cases in tests[]; the library runs each in a fresh environment and prints "ok N
 * - name" or "not ok N - name: reason". The first failed check of a case is its reason; the case
 * goes on, so that what it allocated or changed is put back.
 */
#pragma once

#include "types.h"

struct test {
	const char *name;
	const char *clause; /* where the manual says so */
	void (*run)(void);
	const char *qemu; /* not NULL: what QEMU's translator (7.2) does otherwise, and wrongly */
};

/* Ends with a NULL name. */
extern const struct test tests[];

void print(const char *format, ...) __printf(1, 2);
/* Leave the virtual machine; the monitor's exit status is (value << 1) | 1. */
__noreturn void quit(u32 value);
/* Something is wrong with the environment itself: say so and leave. */
__noreturn void die(const char *format, ...) __printf(1, 2);

void check(bool ok, const char *format, ...) __printf(2, 3);
void check_equal(u64 actual, u64 expected, const char *what, int line);
/* The case does not apply to this processor. */
void skip(const char *reason);

/* The processor did wrong, and that is forgiven up to @limit times in a case, as is said behind its
 * result. */
bool excuse(const char *reason, u32 limit);

#define expect(condition)        check(condition, "line %d: %s", __LINE__, #condition)
#define expect_eq(actual, value) check_equal((u64)(actual), (u64)(value), #actual, __LINE__)

/* Provided by each environment: put everything that a case may change back. */
void environment_reset(void);
/* Run tests[] and leave. */
__noreturn void run_tests(void);
