#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

/* Set once before threads start; read-only afterwards. */
static enum log_level log_level = LOG_WARN;

enum { LIMIT_BURST = 10 };

void log_set_level(enum log_level level)
{
	log_level = level;
}

static void print_line(const char *fmt, va_list ap)
{
	char line[1024];

	vsnprintf(line, sizeof(line), fmt, ap);
	fprintf(stderr, "doppel: %s\n", line);
}

void log_print(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (level > log_level)
		return;
	va_start(ap, fmt);
	print_line(fmt, ap);
	va_end(ap);
}

void log_limited(struct log_limit *limit, const char *fmt, ...)
{
	struct timespec now;
	va_list ap;
	u64 ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ns = (u64)now.tv_sec * 1000000000ul + (u64)now.tv_nsec;
	if (ns - limit->window_ns > 1000000000ul) {
		limit->window_ns = ns;
		limit->count = 0;
	}
	if (++limit->count > LIMIT_BURST) {
		limit->dropped++;
		return;
	}
	if (limit->dropped) {
		log_print(LOG_WARN, "guest: %u similar messages dropped", limit->dropped);
		limit->dropped = 0;
	}
	va_start(ap, fmt);
	print_line(fmt, ap);
	va_end(ap);
}
