/*
 * The saved mode is process-global because the terminal is, and because a signal handler has no
 * other way to reach it. tcsetattr() and write() are async-signal-safe (POSIX 2.4.3).
 */
#include "host/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved_mode;
static atomic_int raw_fd = -1; /* the terminal to put back, or -1 */

/*
 * A background job that changes the mode would be stopped, or disturb the foreground one. A
 * terminal that does not control us (another program's pseudo terminal) has no say in that.
 */
static bool is_background_job(int fd)
{
	pid_t foreground = tcgetpgrp(fd);

	return foreground >= 0 && foreground != getpgrp();
}

bool terminal_raw(int fd)
{
	struct termios t;

	if (!isatty(fd) || is_background_job(fd) || tcgetattr(fd, &t))
		return false;
	if (atomic_load(&raw_fd) < 0)
		saved_mode = t;
	t.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	t.c_cflag &= ~(tcflag_t)(CSIZE | PARENB);
	t.c_cflag |= CS8;
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	atomic_store(&raw_fd, fd);
	return !tcsetattr(fd, TCSANOW, &t);
}

void terminal_resume(void)
{
	int fd = atomic_load(&raw_fd);

	if (fd >= 0)
		terminal_raw(fd);
}

void terminal_restore(void)
{
	int fd = atomic_exchange(&raw_fd, -1);

	if (fd >= 0)
		tcsetattr(fd, TCSANOW, &saved_mode);
}

/* snprintf() is not async-signal-safe. */
static char *put_text(char *p, const char *text)
{
	return stpcpy(p, text);
}

static char *put_number(char *p, u64 v)
{
	char digits[24];
	u32 n = 0;

	do
		digits[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		*p++ = digits[--n];
	return p;
}

void crash_die(int sig, void *siginfo)
{
	const siginfo_t *info = siginfo;
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t set;
	char line[160], *p = line;

	terminal_restore();
	if (sig == SIGSYS && info) {
		p = put_text(p, "doppel: sandbox: refused system call ");
		p = put_number(p, (u64)(u32)info->si_syscall);
	} else {
		p = put_text(p, "doppel: internal error: signal ");
		p = put_number(p, (u64)sig);
	}
	p = put_text(p, "\n");
	if (write(STDERR_FILENO, line, (size_t)(p - line)) < 0)
		errno = 0;
	sigaction(sig, &dfl, NULL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	raise(sig);
	_exit(128 + sig);
}

static void crash_handler(int sig, siginfo_t *info, void *context)
{
	(void)context;
	crash_die(sig, info);
}

void crash_install(void)
{
	static const int sigs[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS};
	struct sigaction sa = {.sa_sigaction = crash_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigemptyset(&sa.sa_mask);
	for (u32 i = 0; i < ARRAY_SIZE(sigs); i++)
		sigaction(sigs[i], &sa, NULL);
}
