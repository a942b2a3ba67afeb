/*
 * The console on a Unix stream socket: we listen, one client at a time; output without a client is
 * dropped. The socket file goes with the VM. One that an earlier VM left behind is replaced; one
 * that somebody answers on is not.
 */
#include "host/chardev_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct chardev_unix {
	struct chardev_stream stream;
	struct sockaddr_un address;
	int listener, client, client_out;
	bool bound;
	struct loop_fd accept;
};

static void drop_client(struct chardev_unix *u)
{
	if (u->client < 0)
		return;
	stream_clear_output(&u->stream);
	if (u->stream.in_fd >= 0)
		stream_clear_input(&u->stream);
	close(u->client_out);
	close(u->client);
	u->client = -1;
	loop_modify(u->stream.loop, &u->accept, LOOP_READ);
}

static void client_ended(struct chardev_stream *s)
{
	drop_client(container_of(s, struct chardev_unix, stream));
}

static void client_connects(void *opaque, u32 events)
{
	struct chardev_unix *u = opaque;

	(void)events;
	u->client = accept4(u->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (u->client < 0)
		return;
	u->client_out = fcntl(u->client, F_DUPFD_CLOEXEC, 3);
	if (u->client_out < 0) {
		close(u->client);
		u->client = -1;
		return;
	}
	loop_modify(u->stream.loop, &u->accept, 0);
	stream_set_output(&u->stream, u->client_out, false);
	if (stream_set_input(&u->stream, u->client))
		drop_client(u);
}

static void unix_close(struct chardev *c)
{
	struct chardev_unix *u = container_of(c, struct chardev_unix, stream.chardev);

	stream_drain(&u->stream);
	drop_client(u);
	if (u->listener >= 0) {
		loop_remove(u->stream.loop, &u->accept);
		close(u->listener);
	}
	if (u->bound)
		unlink(u->address.sun_path);
	stream_destroy(&u->stream);
	free(u);
}

static const struct chardev_ops unix_ops = {
	.name = "unix",
	.write = stream_write,
	.kick = stream_kick,
	.close = unix_close,
};

/*
 * Remove the file at the address if it is a socket nobody listens on. 0, or -errno: to connect is
 * refused by files of other kinds, too, and these are none of ours.
 */
static int remove_stale(const struct sockaddr_un *a)
{
	struct stat st;
	int fd, r = -EADDRINUSE;

	if (lstat(a->sun_path, &st))
		return -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)a, sizeof(*a)) && errno == ECONNREFUSED)
		r = unlink(a->sun_path) ? -errno : 0;
	close(fd);
	return r;
}

static int listen_on(struct chardev_unix *u)
{
	const struct sockaddr *a = (const struct sockaddr *)&u->address;
	int r;

	u->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (u->listener < 0)
		return -errno;
	if (bind(u->listener, a, sizeof(u->address))) {
		if (errno != EADDRINUSE)
			return -errno;
		r = remove_stale(&u->address);
		if (r)
			return r;
		if (bind(u->listener, a, sizeof(u->address)))
			return -errno;
	}
	u->bound = true;
	if (listen(u->listener, 1))
		return -errno;
	u->accept = (struct loop_fd){
		.fd = u->listener, .events = LOOP_READ, .ready = client_connects, .opaque = u};
	return loop_add(u->stream.loop, &u->accept);
}

int chardev_open_unix(const char *path, struct loop *loop, struct chardev **c, struct err *e)
{
	struct chardev_unix *u;
	int r;

	if (!*path || strlen(path) >= sizeof(u->address.sun_path))
		return err_set(e, -EINVAL,
			       "console unix:%s: the path must have 1 to %zu characters", path,
			       sizeof(u->address.sun_path) - 1);
	u = calloc(1, sizeof(*u));
	if (!u)
		return err_set(e, -ENOMEM, "console unix:%s: out of memory", path);
	stream_init(&u->stream, &unix_ops, loop, "console");
	u->stream.in_ended = client_ended;
	/* A client that leaves is nothing to talk about. */
	u->stream.quiet = true;
	u->listener = u->client = u->client_out = -1;
	u->address.sun_family = AF_UNIX;
	memcpy(u->address.sun_path, path, strlen(path) + 1);
	r = listen_on(u);
	if (r) {
		unix_close(&u->stream.chardev);
		return err_set(e, r, "console unix:%s: %s", path, strerror(-r));
	}
	*c = &u->stream.chardev;
	return 0;
}
