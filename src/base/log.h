/*
 * Diagnostics on standard error, one line each, prefixed "doppel: ".
 *
 * log_guest() is for guest misbehaviour: a guest can cause it at will, so each call site is limited
 * to a burst per second and says how many lines were dropped.
 */
#pragma once

#include "base/types.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Messages above @level are dropped. Default LOG_WARN. Called once, before threads start. */
void log_set_level(enum log_level level);

void log_print(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct log_limit {
	u64 window_ns; /* start of the current one-second window */
	u32 count;     /* lines in this window */
	u32 dropped;   /* lines dropped since the last printed one */
};

void log_limited(struct log_limit *limit, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#define log_error(...) log_print(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_print(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_print(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_print(LOG_DEBUG, __VA_ARGS__)

#define log_guest(...)                              \
	do {                                        \
		static struct log_limit limit__;    \
		log_limited(&limit__, __VA_ARGS__); \
	} while (0)
