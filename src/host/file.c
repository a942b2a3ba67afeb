#include "host/file.h"

#include "host/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int file_calls[] = {SYS_pread64, SYS_close};
const struct sandbox_list file_sandbox = {"file", file_calls, ARRAY_SIZE(file_calls)};

int host_file_open(struct host_file *f, const char *path, struct err *e)
{
	struct stat st;
	int r = 0;

	f->path = path;
	/* A FIFO would block in open(). */
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (f->fd < 0)
		return err_set(e, -errno, "%s: %s", path, strerror(errno));
	if (fstat(f->fd, &st))
		r = err_set(e, -errno, "%s: %s", path, strerror(errno));
	else if (S_ISDIR(st.st_mode))
		r = err_set(e, -EISDIR, "%s: is a directory", path);
	else if (!S_ISREG(st.st_mode))
		r = err_set(e, -EINVAL, "%s: is not a regular file", path);
	if (r)
		host_file_close(f);
	else
		f->size = (u64)st.st_size;
	return r;
}

void host_file_close(struct host_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

int host_file_read(const struct host_file *f, u64 off, void *buf, u64 len, struct err *e)
{
	u8 *to = buf;

	while (len) {
		ssize_t n = pread(f->fd, to, MIN(len, GIB), (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set(e, -errno, "%s: %s", f->path, strerror(errno));
		if (!n)
			return err_set(e, -EIO, "%s: the file became shorter", f->path);
		to += n;
		off += (u64)n;
		len -= (u64)n;
	}
	return 0;
}
