/* doppel: the verbs. */
#include "base/log.h"
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Set at the very start of main(), read-only afterwards. */
static bool stdout_was_closed;

static int cli_help(int argc, char **argv);

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} verbs[] = {
	{"run", cli_run, "run a virtual machine; 'doppel run --help' lists the options"},
	{"check", cli_check, "show what this host offers"},
	{"version", cli_version, "show the version"},
	{"help", cli_help, "show this text"},
};

int cli_usage_error(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_error("%s", text);
	return STATUS_USAGE;
}

bool cli_stdout_was_closed(void)
{
	return stdout_was_closed;
}

static int cli_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("Usage: doppel VERB [options]\n");
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-8s %s\n", verbs[i].name, verbs[i].help);
	return STATUS_OK;
}

int cli_version(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("doppel " DOPPEL_VERSION);
	return STATUS_OK;
}

/* A standard descriptor that is closed would be reused, for a disk image perhaps. */
static void open_standard_descriptors(void)
{
	stdout_was_closed = fcntl(STDOUT_FILENO, F_GETFD) < 0;
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			_exit(STATUS_FAILURE);
}

static int run_verb(int argc, char **argv)
{
	const char *name = argv[1];

	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		name = "version";
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(name, verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	return cli_usage_error("unknown verb '%s'; try 'doppel help'", name);
}

int main(int argc, char **argv)
{
	int status;

	open_standard_descriptors();
	if (argc < 2)
		return cli_usage_error("what to do? try 'doppel help'");
	status = run_verb(argc, argv);
	if (fflush(stdout)) {
		log_error("standard output: %s", strerror(errno));
		return status ? status : STATUS_FAILURE;
	}
	return status;
}
