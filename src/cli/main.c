/* doppel: the verbs. */
#include "base/log.h"
#include "cli/cli.h"
#include "engine/engine.h"

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
static int cli_version(int argc, char **argv);

static const char help_help[] =
	"Usage: doppel help [VERB]\n"
	"\n"
	"Shows the verbs, or how to use one, as 'doppel VERB --help' does.\n";

static const char version_help[] = "Usage: doppel version\n"
				   "\n"
				   "Shows the version, as 'doppel --version' does.\n";

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
	const char *help;
} verbs[] = {
	{"run", cli_run, "run a virtual machine", cli_run_help},
	{"check", cli_check, "show what this host offers", cli_check_help},
	{"version", cli_version, "show the version", version_help},
	{"help", cli_help, "show this text, or how to use a verb", help_help},
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

static const struct verb *find_verb(const char *name)
{
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(name, verbs[i].name))
			return &verbs[i];
	return NULL;
}

static bool asks_for_help(const char *arg)
{
	return !strcmp(arg, "--help") || !strcmp(arg, "-h");
}

static int cli_help(int argc, char **argv)
{
	const struct verb *verb = argc > 1 ? find_verb(argv[1]) : NULL;

	if (argc > 2)
		return cli_usage_error("help: '%s' is one word too many", argv[2]);
	if (argc > 1 && !verb)
		return cli_usage_error("help: unknown verb '%s'; try 'doppel help'", argv[1]);
	if (verb) {
		fputs(verb->help, stdout);
		return STATUS_OK;
	}
	puts("Usage: doppel VERB [options]\n");
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-8s %s\n", verbs[i].name, verbs[i].summary);
	puts("\n'doppel VERB --help' says more of each.");
	return STATUS_OK;
}

static int cli_version(int argc, char **argv)
{
	if (argc > 1)
		return cli_usage_error("version: '%s' is not an option", argv[1]);
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
	const struct verb *verb;

	if (asks_for_help(name))
		name = "help";
	if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		name = "version";
	verb = find_verb(name);
	if (!verb)
		return cli_usage_error("unknown verb '%s'; try 'doppel help'", name);
	if (argc > 2 && asks_for_help(argv[2])) {
		fputs(verb->help, stdout);
		return STATUS_OK;
	}
	return verb->run(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	int status;

	open_standard_descriptors();
	engines_trim_thread(NULL); /* vCPUs have threads of their own */
	if (argc < 2)
		return cli_usage_error("what to do? try 'doppel help'");
	status = run_verb(argc, argv);
	if (fflush(stdout)) {
		log_error("standard output: %s", strerror(errno));
		return status ? status : STATUS_FAILURE;
	}
	return status;
}
