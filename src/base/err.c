#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof(e->text), fmt, ap);
	va_end(ap);
	return code;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
	char tail[sizeof(e->text)];
	size_t used, room;
	va_list ap;

	if (!e)
		return 0;
	memcpy(tail, e->text, sizeof(tail));
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof(e->text), fmt, ap);
	va_end(ap);
	used = strlen(e->text);
	room = sizeof(e->text) - 1 - used;
	if (room > 2) {
		size_t n = MIN(strnlen(tail, sizeof(tail)), room - 2);

		memcpy(e->text + used, ": ", 2);
		memcpy(e->text + used + 2, tail, n);
		e->text[used + 2 + n] = '\0';
	}
	return e->code;
}
