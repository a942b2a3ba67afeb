/* The command line: one file per verb. Only this folder may end the process. */
#pragma once

#include "base/err.h"

/* Exit statuses besides what a guest's debug exit asks for. */
enum { STATUS_OK = 0, STATUS_FAILURE = 1, STATUS_USAGE = 2, STATUS_SIGNAL = 128 };

/* The verbs: @argv[0] is the verb itself; returns the exit status. */
int cli_run(int argc, char **argv);
int cli_check(int argc, char **argv);

/* What 'doppel help VERB' and 'doppel VERB --help' print. */
extern const char cli_run_help[], cli_check_help[];

/* The one line for a wrong command line; returns STATUS_USAGE. */
int cli_usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* True when standard output was closed when the program started. */
bool cli_stdout_was_closed(void);
