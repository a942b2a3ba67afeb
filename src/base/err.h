/*
 * Host and configuration errors: a negative errno plus a text with its origin.
 *
 * Library code returns -errno and, where the caller passed a struct err, says what was wrong, where
 * and what to do. Callers add context in front with err_prefix() on the way up, so that the command
 * line prints one line such as "disk debian.img: qcow2 header: cluster size 3 is not a power of
 * two".
 */
#pragma once

#include "base/types.h"

struct err {
	int code;       /* 0 or a negative errno */
	char text[480]; /* one line, no trailing newline */
};

/* Record @code (negative errno) and the formatted text; returns @code. @e may be NULL. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "formatted: " in front of the recorded text; returns the recorded code. @e may be NULL. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
