/* The sandbox, each case in a child process that gives up its rights. */
#include "host/sandbox.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CANNOT_CONFINE = 100, DONE = 42 };

static const struct sandbox_list *const lists[] = {&base_sandbox, NULL};

/* Run @fn in a child under the system-call filter; returns its wait status. */
static int confined(enum sandbox_mode mode, int (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		/* What a sanitizer or cmocka installed for it is not of interest here. */
		signal(SIGSYS, SIG_DFL);
		if (sandbox_install(mode, SANDBOX_PROCESS, lists, NULL))
			_exit(CANNOT_CONFINE);
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static int do_nothing(void)
{
	return DONE;
}

static int open_for_writing(void)
{
	return open("/tmp/doppel-test-sandbox", O_WRONLY | O_CREAT, 0600) < 0 ? 1 : 2;
}

static int create_socket(void)
{
	return (int)syscall(SYS_socket, 1, 1, 0);
}

static int map_writable_code(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0) == MAP_FAILED;
}

static int make_writable_code(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p, 4096, PROT_READ | PROT_EXEC))
		return 1;
	return mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static int start_process(void)
{
	return (int)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void *thread(void *opaque)
{
	return opaque;
}

static int start_thread(void)
{
	pthread_t t;

	if (pthread_create(&t, NULL, thread, NULL))
		return 1;
	return pthread_join(t, NULL) ? 2 : DONE;
}

static void what_is_listed_is_allowed(void **state)
{
	(void)state;
	assert_int_equal(confined(SANDBOX_ENFORCE, do_nothing), DONE << 8);
	assert_int_equal(confined(SANDBOX_ENFORCE, start_thread), DONE << 8);
	assert_int_equal(confined(SANDBOX_OFF, do_nothing), DONE << 8);
}

static void what_is_not_listed_is_fatal(void **state)
{
	static int (*const forbidden[])(void) = {open_for_writing, create_socket, map_writable_code,
						 make_writable_code, start_process};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(forbidden); i++) {
		int status = confined(SANDBOX_ENFORCE, forbidden[i]);

		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
			fail_msg("case %u: status %#x", i, status);
	}
	assert_int_equal(access("/tmp/doppel-test-sandbox", F_OK), -1);
}

static bool host_has_landlock(void)
{
	return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

static void other_files_cannot_be_opened(void **state)
{
	static const char *const readable[] = {"/proc/version", "/nonexistent", NULL};
	int status;
	pid_t pid;

	(void)state;
	if (!host_has_landlock())
		skip();
	pid = fork();
	if (!pid) {
		int kept = open("/etc/passwd", O_RDONLY);
		char byte;

		if (sandbox_confine_files(SANDBOX_ENFORCE, readable, NULL))
			_exit(CANNOT_CONFINE);
		if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
			_exit(1);
		if (open("/tmp/doppel-test-sandbox", O_RDWR | O_CREAT, 0600) >= 0)
			_exit(2);
		if (open("/proc/version", O_RDONLY) < 0)
			_exit(3);
		_exit(read(kept, &byte, 1) == 1 ? DONE : 4);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, DONE << 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_listed_is_allowed),
		cmocka_unit_test(what_is_not_listed_is_fatal),
		cmocka_unit_test(other_files_cannot_be_opened),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
