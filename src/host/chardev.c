/* Which back end a console specification means, and the one that goes nowhere. */
#include "host/chardev.h"

#include "host/chardev_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void none_write(struct chardev *c, const u8 *data, u32 len)
{
	(void)c;
	(void)data;
	(void)len;
}

static void none_kick(struct chardev *c)
{
	(void)c;
}

static void none_close(struct chardev *c)
{
	free(c);
}

static const struct chardev_ops none_ops = {
	.name = "none",
	.write = none_write,
	.kick = none_kick,
	.close = none_close,
};

static int open_none(struct chardev **c, struct err *e)
{
	*c = calloc(1, sizeof(**c));
	if (!*c)
		return err_set(e, -ENOMEM, "console none: out of memory");
	(*c)->ops = &none_ops;
	return 0;
}

/* The text after "@prefix" in @spec, or NULL. */
static const char *after(const char *spec, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(spec, prefix, n) ? NULL : spec + n;
}

int chardev_open(const char *spec, struct loop *loop, void (*escape)(void *, enum chardev_escape),
		 void *opaque, struct chardev **c, struct err *e)
{
	const char *path;

	if (!strcmp(spec, "stdio"))
		return chardev_open_stdio(loop, escape, opaque, c, e);
	if (!strcmp(spec, "pty"))
		return chardev_open_pty(loop, c, e);
	if (!strcmp(spec, "none"))
		return open_none(c, e);
	path = after(spec, "unix:");
	if (path)
		return chardev_open_unix(path, loop, c, e);
	path = after(spec, "file:");
	if (path)
		return chardev_open_file(path, loop, c, e);
	return err_set(e, -EINVAL, "console '%s' is none of stdio, pty, unix:PATH, file:PATH, none",
		       spec);
}
