/* Lists of options as the command line has them. */
#pragma once

#include "base/err.h"

/*
 * Call @set for each part of "key=value,key=value...", in order, until one is refused; NULL is an
 * empty list. 0, or -EINVAL or @set's answer with @e.
 */
int key_values(const char *text,
	       int (*set)(void *opaque, const char *key, const char *value, struct err *e),
	       void *opaque, struct err *e);
