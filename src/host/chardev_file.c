/* The console into a file (or a device such as a real serial port); no input. */
#include "host/chardev_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct chardev_file {
	struct chardev_stream stream;
	int fd;
};

static void file_close(struct chardev *c)
{
	struct chardev_file *f = container_of(c, struct chardev_file, stream.chardev);

	stream_destroy(&f->stream);
	close(f->fd);
	free(f);
}

static const struct chardev_ops file_ops = {
	.name = "file",
	.write = stream_write,
	.kick = stream_kick,
	.close = file_close,
};

int chardev_open_file(const char *path, struct loop *loop, struct chardev **c, struct err *e)
{
	struct chardev_file *f = calloc(1, sizeof(*f));

	if (!f)
		return err_set(e, -ENOMEM, "console file:%s: out of memory", path);
	f->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
	if (f->fd < 0) {
		int r = -errno;

		free(f);
		return err_set(e, r, "console file:%s: %s", path, strerror(-r));
	}
	stream_init(&f->stream, &file_ops, loop, "console");
	stream_set_output(&f->stream, f->fd, false);
	*c = &f->stream.chardev;
	return 0;
}
