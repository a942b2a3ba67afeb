/*
 * The console on standard input and output.
 *
 * Standard output usually shares its file description with the shell and with our own standard
 * error, so O_NONBLOCK must not be set on it: it would stay behind and confuse them. Terminals and
 * pipes are opened anew through /proc, which gives a description of our own; where that is not
 * possible, writes are preceded by poll() and kept short.
 *
 * Ctrl-a starts a command to the monitor, as in QEMU, when standard input is a terminal.
 */
#include "host/chardev_stream.h"
#include "host/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CTRL_A = 1 };

static const char escape_help[] = "\n"
				  "Ctrl-a h  this help\n"
				  "Ctrl-a x  stop the virtual machine\n"
				  "Ctrl-a p  press the power button\n"
				  "Ctrl-a e  go on with the other engine\n"
				  "Ctrl-a a  send Ctrl-a to the guest\n";

struct chardev_stdio {
	struct chardev_stream stream;
	int own_out; /* our own description of standard output, or -1 */
	bool tty;
	bool escaped; /* the last byte was Ctrl-a */
	void (*escape)(void *opaque, enum chardev_escape what);
	void *opaque;
};

/* The byte after Ctrl-a: true when it goes to the guest (as *byte). */
static bool escape_command(struct chardev_stdio *s, u8 *byte)
{
	switch (*byte) {
	case CTRL_A:
	case 'a': *byte = CTRL_A; return true;
	case 'x': s->escape(s->opaque, CHARDEV_ESCAPE_QUIT); return false;
	case 'p': s->escape(s->opaque, CHARDEV_ESCAPE_POWER); return false;
	case 'e': s->escape(s->opaque, CHARDEV_ESCAPE_ENGINE); return false;
	case 'h':
	case '?':
		stream_write(&s->stream.chardev, (const u8 *)escape_help, sizeof(escape_help) - 1);
		return false;
	default: return false;
	}
}

static u32 filter_escapes(struct chardev_stream *stream, u8 *data, u32 len)
{
	struct chardev_stdio *s = container_of(stream, struct chardev_stdio, stream);
	u32 kept = 0;

	if (!s->tty)
		return len;
	for (u32 i = 0; i < len; i++) {
		u8 byte = data[i];
		bool keep = byte != CTRL_A;

		if (s->escaped)
			keep = escape_command(s, &byte);
		s->escaped = !s->escaped && data[i] == CTRL_A;
		if (keep)
			data[kept++] = byte;
	}
	return kept;
}

static void stdio_close(struct chardev *c)
{
	struct chardev_stdio *s = container_of(c, struct chardev_stdio, stream.chardev);

	stream_destroy(&s->stream);
	terminal_restore();
	if (s->own_out >= 0)
		close(s->own_out);
	free(s);
}

static const struct chardev_ops stdio_ops = {
	.name = "stdio",
	.write = stream_write,
	.kick = stream_kick,
	.close = stdio_close,
};

static void open_output(struct chardev_stdio *s)
{
	struct stat st;

	if (fstat(STDOUT_FILENO, &st))
		return;
	if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))
		s->own_out = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (s->own_out >= 0)
		stream_set_output(&s->stream, s->own_out, false);
	else
		stream_set_output(&s->stream, STDOUT_FILENO, true);
}

int chardev_open_stdio(struct loop *loop, void (*escape)(void *, enum chardev_escape), void *opaque,
		       struct chardev **c, struct err *e)
{
	struct chardev_stdio *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return err_set(e, -ENOMEM, "console stdio: out of memory");
	stream_init(&s->stream, &stdio_ops, loop, "console");
	s->stream.filter = filter_escapes;
	s->own_out = -1;
	s->escape = escape;
	s->opaque = opaque;
	open_output(s);
	s->tty = terminal_raw(STDIN_FILENO);
	/* A background job reads nothing: the terminal belongs to another one. */
	if (fcntl(STDIN_FILENO, F_GETFL) >= 0 && (s->tty || !isatty(STDIN_FILENO)))
		r = stream_set_input(&s->stream, STDIN_FILENO);
	if (r) {
		stdio_close(&s->stream.chardev);
		return err_set(e, r, "console stdio: %s", strerror(-r));
	}
	*c = &s->stream.chardev;
	return 0;
}
