#include "base/keyvalue.h"

#include <errno.h>
#include <string.h>

int key_values(const char *text,
	       int (*set)(void *opaque, const char *key, const char *value, struct err *e),
	       void *opaque, struct err *e)
{
	char part[320]; /* a path among them */
	int r = 0;

	while (text && !r) {
		size_t n = strcspn(text, ",");
		char *value;

		if (n >= sizeof(part))
			return err_set(e, -EINVAL, "'%.40s...' is not an option", text);
		memcpy(part, text, n);
		part[n] = 0;
		value = strchr(part, '=');
		if (!value)
			return err_set(e, -EINVAL, "'%s' lacks a value", part);
		*value++ = 0;
		r = set(opaque, part, value, e);
		text = text[n] ? text + n + 1 : NULL;
	}
	return r;
}
