#include "host/thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct start {
	void *(*fn)(void *);
	void *opaque;
	char name[16];
};

/* A thread names itself: naming another one means writing to a file, which the sandbox forbids. */
static void *begin(void *opaque)
{
	struct start start = *(struct start *)opaque;

	free(opaque);
	pthread_setname_np(pthread_self(), start.name);
	return start.fn(start.opaque);
}

/* SIGTERM and friends belong to the main thread; faults stay deliverable where they happen. */
static void block_process_signals(sigset_t *old)
{
	static const int sigs[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCONT, SIGWINCH};
	sigset_t set;

	sigemptyset(&set);
	for (u32 i = 0; i < ARRAY_SIZE(sigs); i++)
		sigaddset(&set, sigs[i]);
	pthread_sigmask(SIG_BLOCK, &set, old);
}

int host_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *opaque,
		      struct err *e)
{
	struct start *start = calloc(1, sizeof(*start));
	sigset_t old;
	int r;

	if (!start)
		return err_set(e, -ENOMEM, "cannot start thread %s: out of memory", name);
	*start = (struct start){.fn = fn, .opaque = opaque};
	strncpy(start->name, name, sizeof(start->name) - 1);
	block_process_signals(&old);
	r = pthread_create(t, NULL, begin, start);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!r)
		return 0;
	free(start);
	return err_set(e, -r, "cannot start thread %s: %s", name, strerror(r));
}

u32 host_thread_cpus(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	return (u32)MAX(CPU_COUNT(&set), 1);
}
