/*
 * Memory files.
 *
 * A page of a file in memory costs several times what one of anonymous memory costs when it is
 * first touched, unless the file is made of huge pages. Whether memory files may be is the host's
 * setting, and mostly they may not. A tmpfs says so itself, but mounting one takes privileges. So
 * where the setting forbids it a child process enters a user namespace of its own, where it has
 * them, mounts a tmpfs that nobody else sees and opens an unnamed file in it. It shares our table
 * of open files and nothing else that outlives it. A host without user namespaces gives small
 * pages.
 */
#include "host/memory_file.h"

#include "host/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_STACK = 64 * 1024 };

static bool shmem_is_huge(void)
{
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
	char line[128] = "";
	bool huge;

	if (!f)
		return false;
	huge = fgets(line, sizeof(line), f) && !strstr(line, "[never]") && !strstr(line, "[deny]");
	fclose(f);
	return huge;
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* Files need an owner that exists in the namespace. */
static bool map_ids(u32 uid, u32 gid)
{
	char users[32], groups[32];

	snprintf(users, sizeof(users), "0 %u 1", uid);
	snprintf(groups, sizeof(groups), "0 %u 1", gid);
	return write_file("/proc/self/setgroups", "deny") &&
	       write_file("/proc/self/uid_map", users) && write_file("/proc/self/gid_map", groups);
}

static int open_in_tmpfs(void)
{
	int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), mnt = -1, fd = -1;

	if (fs >= 0 && !fsconfig(fs, FSCONFIG_SET_STRING, "huge", "always", 0) &&
	    !fsconfig(fs, FSCONFIG_SET_STRING, "size", "100%", 0) &&
	    !fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mnt = fsmount(fs, FSMOUNT_CLOEXEC, 0);
	if (mnt >= 0)
		fd = openat(mnt, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (mnt >= 0)
		close(mnt);
	if (fs >= 0)
		close(fs);
	return fd;
}

struct order {
	u32 uid, gid;
	int fd; /* what came of it */
};

static int child(void *opaque)
{
	struct order *o = opaque;

	if (map_ids(o->uid, o->gid))
		o->fd = open_in_tmpfs();
	return 0;
}

/* -1: not on this host. */
static int huge_file(void)
{
	struct order o = {.uid = geteuid(), .gid = getegid(), .fd = -1};
	void *stack =
		mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pid;

	if (stack == MAP_FAILED)
		return -1;
	pid = clone(child, (u8 *)stack + CHILD_STACK,
		    CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS | SIGCHLD,
		    &o);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	munmap(stack, CHILD_STACK);
	return o.fd;
}

int host_memory_file(void)
{
	int fd = shmem_is_huge() || !MAY_CLONE ? -1 : huge_file();

	if (fd < 0)
		fd = memfd_create("guest-memory", MFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

void *host_memory_map(int fd, u64 offset, u64 size)
{
	struct stat st;
	void *p;

	if (!size || size > host_memory_available() || fstat(fd, &st) < 0)
		return NULL;
	if ((u64)st.st_size < offset + size && ftruncate(fd, (off_t)(offset + size)) < 0)
		return NULL;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
	if (p == MAP_FAILED)
		return NULL;
	madvise(p, size, MADV_HUGEPAGE);
	madvise(p, size, MADV_DONTDUMP);
	return p;
}
