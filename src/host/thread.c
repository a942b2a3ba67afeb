#include "host/thread.h"

#include <signal.h>
#include <string.h>

int host_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *opaque,
		      struct err *e)
{
	sigset_t block, old;
	int r;

	/* SIGTERM and friends belong to the main thread; faults stay deliverable where they happen.
	 */
	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigaddset(&block, SIGINT);
	sigaddset(&block, SIGHUP);
	sigaddset(&block, SIGQUIT);
	sigaddset(&block, SIGCONT);
	sigaddset(&block, SIGWINCH);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	r = pthread_create(t, NULL, fn, opaque);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return err_set(e, -r, "cannot start thread %s: %s", name, strerror(r));
	pthread_setname_np(*t, name);
	return 0;
}
