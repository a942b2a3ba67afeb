#include "cli/offer.h"

#include "host/memory.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LEAF_BRAND = 0x80000002 };

static void find_vendor(struct host_offer *h)
{
	u32 a, b, c, d;

	__cpuid(0, a, b, c, d);
	memcpy(h->vendor, &b, 4);
	memcpy(h->vendor + 4, &d, 4);
	memcpy(h->vendor + 8, &c, 4);
	for (u32 i = 0; i < 3 && __get_cpuid(LEAF_BRAND + i, &a, &b, &c, &d); i++) {
		const u32 text[4] = {a, b, c, d};

		memcpy(h->model + 16ul * i, text, sizeof(text));
	}
	if (!h->model[0])
		snprintf(h->model, sizeof(h->model), "unknown");
}

static void find_features(struct host_offer *h)
{
	u32 a = 0, b = 0, c = 0, d = 0;

	__get_cpuid(1, &a, &b, &c, &d);
	h->vmx = c & BIT(5);
	h->hypervisor = c & BIT(31);
	c = 0;
	__get_cpuid(0x80000001, &a, &b, &c, &d);
	h->svm = c & BIT(2);
	b = 0;
	__get_cpuid_count(7, 0, &a, &b, &c, &d);
	h->avx2 = b & BIT(5);
	h->bmi2 = b & BIT(8);
	h->avx512 = b & BIT(16);
	d = 0;
	__get_cpuid(0x80000007, &a, &b, &c, &d);
	h->invariant_tsc = d & BIT(8);
}

/* The first line of a small file, without its end; false when it cannot be read. */
static bool read_line(const char *path, char *line, int size)
{
	FILE *f = fopen(path, "re");
	bool got = f && fgets(line, size, f);

	if (f)
		fclose(f);
	if (got)
		line[strcspn(line, "\n")] = 0;
	return got;
}

static int find_nested_paging(void)
{
	static const char *const files[] = {"/sys/module/kvm_intel/parameters/ept",
					    "/sys/module/kvm_amd/parameters/npt"};
	char line[8];

	for (u32 i = 0; i < ARRAY_SIZE(files); i++)
		if (read_line(files[i], line, sizeof(line)))
			return line[0] == 'Y' || line[0] == '1';
	return -1;
}

/* "always [madvise] never": the one in brackets. */
static void find_huge_pages(struct host_offer *h)
{
	char line[64], *open;

	snprintf(h->huge_pages, sizeof(h->huge_pages), "unknown");
	if (!read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line)))
		return;
	open = strchr(line, '[');
	if (!open || !strchr(open, ']'))
		return;
	*strchr(open, ']') = 0;
	snprintf(h->huge_pages, sizeof(h->huge_pages), "%.15s", open + 1);
}

static void find_io_uring(struct host_offer *h)
{
	struct io_uring_params params = {0};
	long fd = syscall(SYS_io_uring_setup, 2, &params);

	h->io_uring = fd >= 0;
	if (fd >= 0)
		close((int)fd);
	else
		snprintf(h->io_uring_why, sizeof(h->io_uring_why), "%s", strerror(errno));
}

void host_offer_find(struct host_offer *h)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	memset(h, 0, sizeof(*h));
	find_vendor(h);
	find_features(h);
	h->nested_paging = find_nested_paging();
	find_huge_pages(h);
	find_io_uring(h);
	h->memory = host_memory_available();
	h->processors = n > 0 ? (u32)n : 1;
}
