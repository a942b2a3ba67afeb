#include "host/keep.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOCK_TRIES = 20, LOCK_WAIT_NS = 500000 };

bool keep_read(int fd, u64 off, void *buf, u64 len)
{
	for (u8 *to = buf; len;) {
		ssize_t n = pread(fd, to, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		to += n;
		off += (u64)n;
		len -= (u64)n;
	}
	return true;
}

bool keep_write(int fd, u64 off, const void *buf, u64 len)
{
	for (const u8 *from = buf; len;) {
		ssize_t n = pwrite(fd, from, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		from += n;
		off += (u64)n;
		len -= (u64)n;
	}
	return true;
}

/* ---- what is trusted ---- */

static int check_status(const char *name, const struct stat *st, bool dir, struct err *e)
{
	if (dir ? !S_ISDIR(st->st_mode) : !S_ISREG(st->st_mode))
		return err_set(e, -EPERM, "%s is not a %s", name, dir ? "directory" : "file");
	if (st->st_uid != geteuid())
		return err_set(e, -EPERM, "%s belongs to user %u", name, st->st_uid);
	if (st->st_mode & 077)
		return err_set(e, -EPERM, "%s is open to others (mode %04o)", name,
			       st->st_mode & 07777);
	return 0;
}

/* The directory, and those it lies in. */
static int make_dir(const char *dir)
{
	char *path = strdup(dir);

	for (char *slash = path; slash && (slash = strchr(slash + 1, '/'));) {
		*slash = 0;
		mkdir(path, 0700);
		*slash = '/';
	}
	free(path);
	return mkdir(dir, 0700);
}

static int open_dir(struct keep *k, const char *dir, bool create, struct err *e)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	struct stat st;

	k->dir = open(dir, flags);
	if (k->dir < 0 && errno == ENOENT && create && !make_dir(dir))
		k->dir = open(dir, flags);
	if (k->dir < 0)
		return err_set(e, -errno, "%s: %s", dir, strerror(errno));
	if (fstat(k->dir, &st))
		return err_set(e, -errno, "%s: %s", dir, strerror(errno));
	return check_status(dir, &st, true, e);
}

/* ---- what others left behind ---- */

struct candidate {
	char name[KEEP_NAME];
	int fd;
	struct timespec written;
};

static bool is_later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

static void drop(const struct keep *k, const struct candidate *c)
{
	unlinkat(k->dir, c->name, 0);
	close(c->fd);
}

/* A new file that its writer has let go of: true when it is whole; else it goes. */
static bool take_candidate(const struct keep *k, struct candidate *c, keep_is_whole *whole)
{
	u8 head[KEEP_HEAD];
	struct stat st;
	struct err e;
	bool ok;

	c->fd = openat(k->dir, c->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	if (c->fd < 0)
		return false;
	if (flock(c->fd, LOCK_EX | LOCK_NB)) { /* being written */
		close(c->fd);
		return false;
	}
	ok = !fstat(c->fd, &st) && !check_status(c->name, &st, false, &e) &&
	     keep_read(c->fd, 0, head, sizeof(head)) && whole(head, (u64)st.st_size);
	if (!ok) {
		drop(k, c);
		return false;
	}
	c->written = st.st_mtim;
	return true;
}

static bool is_new_name(const char *entry, const char *name)
{
	u64 n = strlen(name);

	return !strncmp(entry, name, n) && !strncmp(entry + n, ".new.", 5) &&
	       strlen(entry) < KEEP_NAME;
}

/* The latest whole one among the new files in @d, held by its lock; the others go. */
static struct candidate find_latest(const struct keep *k, DIR *d, const char *name,
				    keep_is_whole *whole)
{
	struct candidate best = {.fd = -1}, c;
	struct dirent *entry;

	while ((entry = readdir(d))) {
		if (!is_new_name(entry->d_name, name))
			continue;
		snprintf(c.name, sizeof(c.name), "%s", entry->d_name);
		if (!take_candidate(k, &c, whole))
			continue;
		if (best.fd < 0) {
			best = c;
		} else if (is_later(&c.written, &best.written)) {
			drop(k, &best);
			best = c;
		} else {
			drop(k, &c);
		}
	}
	return best;
}

/* The latest whole file takes the place of @name. */
static void adopt(const struct keep *k, const char *name, keep_is_whole *whole)
{
	int fd = openat(k->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct candidate best;

	if (!d) {
		if (fd >= 0)
			close(fd);
		return;
	}
	best = find_latest(k, d, name, whole);
	closedir(d);
	if (best.fd < 0)
		return;
	renameat(k->dir, best.name, k->dir, name);
	close(best.fd);
}

/* ---- the old file and the new ---- */

static int open_old(struct keep *k, const char *name, struct err *e)
{
	struct stat st;

	k->old = openat(k->dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	if (k->old < 0 && errno == ENOENT)
		return 0;
	if (k->old < 0 && errno == ELOOP)
		return err_set(e, -EPERM, "%s is a symbolic link", name);
	if (k->old < 0 || fstat(k->old, &st))
		return err_set(e, -errno, "%s: %s", name, strerror(errno));
	k->old_size = (u64)st.st_size;
	return check_status(name, &st, false, e);
}

/* Where nothing can be written, the old file may serve all the same. */
static void create_new(struct keep *k, const char *name)
{
	u64 random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return;
	snprintf(k->new_name, sizeof(k->new_name), "%s.new.%016lx", name, random);
	k->new = openat(k->dir, k->new_name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			0600);
	if (k->new >= 0 && flock(k->new, LOCK_EX | LOCK_NB)) {
		unlinkat(k->dir, k->new_name, 0);
		close(k->new);
		k->new = -1;
	}
}

static int lock_dir(const struct keep *k, const char *dir, struct err *e)
{
	const struct timespec wait = {.tv_nsec = LOCK_WAIT_NS};

	for (u32 n = 0; flock(k->dir, LOCK_EX | LOCK_NB); n++) {
		if (errno != EWOULDBLOCK)
			return err_set(e, -errno, "%s: flock: %s", dir, strerror(errno));
		if (n == LOCK_TRIES)
			return err_set(e, -EBUSY, "%s is locked by another process", dir);
		nanosleep(&wait, NULL);
	}
	return 0;
}

int keep_open(struct keep *k, const char *dir, const char *name, bool create, keep_is_whole *whole,
	      struct err *e)
{
	int r;

	*k = (struct keep){.dir = -1, .old = -1, .new = -1};
	r = open_dir(k, dir, create, e);
	if (!r)
		r = lock_dir(k, dir, e);
	if (!r) {
		adopt(k, name, whole);
		r = open_old(k, name, e);
		if (r)
			err_prefix(e, "%s", dir);
		else
			create_new(k, name);
		flock(k->dir, LOCK_UN);
	}
	if (r)
		keep_close(k, false);
	return r;
}

void keep_close(struct keep *k, bool done)
{
	if (k->new >= 0) {
		if (!done)
			unlinkat(k->dir, k->new_name, 0);
		close(k->new);
	}
	if (k->old >= 0)
		close(k->old);
	if (k->dir >= 0)
		close(k->dir);
	*k = (struct keep){.dir = -1, .old = -1, .new = -1};
}
