/* Turns --disk into an open, locked back end, or into one line that says what is wrong. */
#include "block/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void block_no_batch(void *opaque)
{
	(void)opaque;
}

/* Copy up to the next single comma, undoubling commas; returns what follows, or NULL when it does
 * not fit. */
static const char *next_part(const char *text, char *out, size_t size)
{
	size_t n = 0;

	for (; *text; text++) {
		if (*text == ',' && *++text != ',')
			break;
		if (n + 1 == size)
			return NULL;
		out[n++] = *text;
	}
	out[n] = '\0';
	return text;
}

static int parse_switch(const char *key, const char *value, bool *on, struct err *e)
{
	*on = !strcmp(value, "on");
	if (*on || !strcmp(value, "off"))
		return 0;
	return err_set(e, -EINVAL, "%s takes on or off, not \"%s\"", key, value);
}

static int parse_format(const char *value, enum block_format *format, struct err *e)
{
	if (!strcmp(value, "raw"))
		*format = BLOCK_FORMAT_RAW;
	else if (!strcmp(value, "qcow2"))
		*format = BLOCK_FORMAT_QCOW2;
	else
		return err_set(e, -EINVAL, "unknown format \"%s\": raw or qcow2", value);
	return 0;
}

static int parse_part(char *part, struct block_spec *spec, struct err *e)
{
	char *value = strchr(part, '=');

	if (!value)
		return err_set(e, -EINVAL, "\"%s\" is not of the form key=value%s", part,
			       *spec->path ? "" : "; the image is named by path=FILE");
	*value++ = '\0';
	if (!strcmp(part, "path")) {
		memcpy(spec->path, value, strlen(value) + 1); /* a part is no longer than a path */
		return 0;
	}
	if (!strcmp(part, "format"))
		return parse_format(value, &spec->format, e);
	if (!strcmp(part, "readonly"))
		return parse_switch(part, value, &spec->readonly, e);
	if (!strcmp(part, "snapshot"))
		return parse_switch(part, value, &spec->snapshot, e);
	return err_set(e, -EINVAL, "unknown key \"%s\": path, format, readonly or snapshot", part);
}

int block_spec_parse(const char *text, struct block_spec *spec, struct err *e)
{
	char part[sizeof(spec->path)];
	int ret;

	memset(spec, 0, sizeof(*spec));
	while (*text) {
		text = next_part(text, part, sizeof(part));
		if (!text)
			return err_set(e, -EINVAL, "disk: file name too long");
		ret = parse_part(part, spec, e);
		if (ret) {
			err_prefix(e, "disk");
			return ret;
		}
	}
	if (!*spec->path)
		return err_set(e, -EINVAL, "disk: path=FILE is missing");
	return 0;
}

static int check_file(int fd, u64 *size, struct err *e)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st))
		return err_set(e, -errno, "%s", strerror(errno));
	if (S_ISDIR(st.st_mode))
		return err_set(e, -EISDIR, "is a directory, not a disk image");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(e, -EINVAL, "is neither a file nor a block device");
	end = lseek(fd, 0, SEEK_END);
	if (end < 0)
		return err_set(e, -errno, "its size cannot be found out: %s", strerror(errno));
	if (!end)
		return err_set(e, -EINVAL, "is empty");
	if (end % BLOCK_SECTOR)
		return err_set(e, -EINVAL, "its size, %lu bytes, is not a multiple of %u", (u64)end,
			       BLOCK_SECTOR);
	*size = (u64)end;
	return 0;
}

/* Open file description locks: they end with the descriptor, and no other close() drops them. */
static int lock_file(int fd, bool write, struct err *e)
{
	struct flock lock = {.l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};

	if (!fcntl(fd, F_OFD_SETLK, &lock))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return err_set(
			e, -EBUSY, "is in use by another virtual machine%s",
			write ? "; readonly=on or snapshot=on can share an image that no one writes"
			      : ", which writes to it");
	if (errno == EINVAL || errno == ENOLCK || errno == EOPNOTSUPP)
		return 0; /* a file system without locks */
	return err_set(e, -errno, "cannot be locked: %s", strerror(errno));
}

static int check_format(int fd, enum block_format format, struct err *e)
{
	static const u8 qcow2_magic[4] = {'Q', 'F', 'I', 0xfb};
	u8 magic[sizeof(qcow2_magic)];

	if (format == BLOCK_FORMAT_QCOW2)
		return err_set(e, -ENOTSUP,
			       "qcow2 images cannot be opened yet; convert it with "
			       "\"qemu-img convert -O raw\"");
	if (format == BLOCK_FORMAT_RAW)
		return 0;
	if (pread(fd, magic, sizeof(magic), 0) == sizeof(magic) &&
	    !memcmp(magic, qcow2_magic, sizeof(magic)))
		return err_set(e, -ENOTSUP,
			       "looks like a qcow2 image: convert it with \"qemu-img convert "
			       "-O raw\", or say format=raw if it is not one");
	return 0;
}

static int open_file(const struct block_spec *spec, bool write, struct err *e)
{
	struct stat st;
	int fd;

	/* Before opening: a FIFO would block, a directory gives a riddle for an error. */
	if (!stat(spec->path, &st) && S_ISDIR(st.st_mode))
		return err_set(e, -EISDIR, "is a directory, not a disk image");
	fd = open(spec->path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		return fd;
	if (write && (errno == EACCES || errno == EROFS || errno == EPERM))
		return err_set(e, -errno,
			       "cannot be written to (%s); readonly=on or snapshot=on may help",
			       strerror(errno));
	return err_set(e, -errno, "%s", strerror(errno));
}

int block_open(const struct block_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	       struct block **b, struct err *e)
{
	bool write = !spec->readonly && !spec->snapshot;
	int fd = open_file(spec, write, e), ret;
	u64 size = 0;

	if (fd < 0) {
		err_prefix(e, "disk %s", spec->path);
		return fd;
	}
	ret = check_file(fd, &size, e);
	if (!ret)
		ret = lock_file(fd, write, e);
	if (!ret)
		ret = check_format(fd, spec->format, e);
	if (!ret)
		ret = spec->snapshot && !spec->readonly
			      ? overlay_create(fd, size, loop, lock, b, e)
			      : raw_create(fd, size, spec->readonly, loop, lock, b, e);
	if (ret) {
		err_prefix(e, "disk %s", spec->path);
		close(fd);
	}
	return ret;
}
