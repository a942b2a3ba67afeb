/*
 * The console on a pseudo-terminal that other programs (screen, minicom) open.
 *
 * We keep the slave side open ourselves: without any opener the master would report a hang-up all
 * the time, and would lose output written before someone attaches.
 */
#include "base/log.h"
#include "host/chardev_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

struct chardev_pty {
	struct chardev_stream stream;
	int master, master_out, slave;
};

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void pty_close(struct chardev *c)
{
	struct chardev_pty *p = container_of(c, struct chardev_pty, stream.chardev);

	stream_destroy(&p->stream);
	close_if_open(p->master_out);
	close_if_open(p->slave);
	close_if_open(p->master);
	free(p);
}

static const struct chardev_ops pty_ops = {
	.name = "pty",
	.write = stream_write,
	.kick = stream_kick,
	.close = pty_close,
};

static int open_pair(struct chardev_pty *p, char *name, size_t len)
{
	struct termios t;

	p->master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (p->master < 0 || grantpt(p->master) || unlockpt(p->master))
		return -errno;
	if (ptsname_r(p->master, name, len))
		return -errno;
	p->slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	/* A second number, so that input and output can be watched apart. */
	p->master_out = fcntl(p->master, F_DUPFD_CLOEXEC, 3);
	if (p->slave < 0 || p->master_out < 0 || tcgetattr(p->slave, &t))
		return -errno;
	cfmakeraw(&t);
	return tcsetattr(p->slave, TCSANOW, &t) ? -errno : 0;
}

int chardev_open_pty(struct loop *loop, struct chardev **c, struct err *e)
{
	struct chardev_pty *p = calloc(1, sizeof(*p));
	char name[64] = "";
	int r;

	if (!p)
		return err_set(e, -ENOMEM, "console pty: out of memory");
	stream_init(&p->stream, &pty_ops, loop, "console pty");
	p->master = p->master_out = p->slave = -1;
	r = open_pair(p, name, sizeof(name));
	if (!r)
		r = stream_set_input(&p->stream, p->master);
	if (r) {
		pty_close(&p->stream.chardev);
		return err_set(e, r, "console pty: %s", strerror(-r));
	}
	stream_set_output(&p->stream, p->master_out, false);
	log_warn("console is %s", name);
	*c = &p->stream.chardev;
	return 0;
}
