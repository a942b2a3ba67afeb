/*
 * Guest RAM is private anonymous memory, reserved but not populated: a guest pays for what it
 * touches.
 *
 * The kernel would overcommit cheerfully and kill the process later, in the middle of a guest's
 * work. So the size is compared with what the host has free now (MemAvailable, free swap) and with
 * the limits of the control groups we are in, and refused with a clear message instead.
 */
#include "host/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LINE = 512 };

/* Looking at what is free takes dozens of files: 0.3 ms that a small allocation is not worth. */
static const u64 SMALL = 4 * MIB;

/* The value of the line "@key:  123 kB" of /proc/meminfo in bytes; 0 when @line is another. */
static u64 meminfo_bytes(const char *line, const char *key)
{
	size_t n = strlen(key);

	return strncmp(line, key, n) ? 0 : strtoull(line + n, NULL, 10) * KIB;
}

/* Memory and swap; 0 when there is no telling. */
static u64 meminfo_available(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[LINE];
	u64 bytes = 0;

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		bytes += meminfo_bytes(line, "MemAvailable:") + meminfo_bytes(line, "SwapFree:");
	fclose(f);
	return bytes;
}

/* The number in a one-line file; @none when there is none ("max", or no such file). */
static u64 number_in_file(const char *dir, const char *name, u64 none)
{
	char path[2 * LINE], line[LINE], *end;
	FILE *f;
	u64 v = none;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	if (!f)
		return none;
	if (fgets(line, sizeof(line), f)) {
		u64 n = strtoull(line, &end, 10);

		if (end != line)
			v = n;
	}
	fclose(f);
	return v;
}

static u64 group_available(const char *dir, const char *limit, const char *used)
{
	u64 max = number_in_file(dir, limit, UINT64_MAX);
	u64 now = number_in_file(dir, used, 0);

	if (max == UINT64_MAX)
		return UINT64_MAX;
	return max > now ? max - now : 0;
}

/* A limit may sit at any level between our control group and the root. */
static u64 group_tree_available(const char *root, const char *path, const char *limit,
				const char *used)
{
	char dir[2 * LINE];
	u64 least = UINT64_MAX;
	size_t root_len = strlen(root);
	char *slash;

	snprintf(dir, sizeof(dir), "%s%s", root, path);
	for (;;) {
		least = MIN(least, group_available(dir, limit, used));
		slash = strrchr(dir + root_len, '/');
		if (!slash)
			return least;
		*slash = 0;
	}
}

static u64 groups_available(void)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[LINE];
	u64 least = UINT64_MAX;

	if (!f)
		return least;
	while (fgets(line, sizeof(line), f)) {
		u64 n = UINT64_MAX;
		char *v1 = strstr(line, ":memory:");

		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "0::", 3))
			n = group_tree_available("/sys/fs/cgroup", line + 3, "memory.max",
						 "memory.current");
		else if (v1)
			n = group_tree_available("/sys/fs/cgroup/memory", v1 + 8,
						 "memory.limit_in_bytes", "memory.usage_in_bytes");
		least = MIN(least, n);
	}
	fclose(f);
	return least;
}

u64 host_memory_available(void)
{
	u64 host = meminfo_available();

	/* Without /proc there is nothing to compare with: let mmap() decide. */
	return MIN(host ? host : UINT64_MAX, groups_available());
}

void *host_memory_alloc(u64 size)
{
	void *p;

	if (!size || (size > SMALL && size > host_memory_available()))
		return NULL;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	/* Both are advice: a host without them works, only slower or with guest RAM in its cores.
	 */
	madvise(p, size, MADV_HUGEPAGE);
	madvise(p, size, MADV_DONTDUMP);
	return p;
}

void host_memory_free(void *p, u64 size)
{
	if (p)
		munmap(p, size);
}
