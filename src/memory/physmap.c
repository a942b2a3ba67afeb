#include "memory/physmap.h"

#include "host/memory.h"
#include "host/memory_file.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

void physmap_init(struct physmap *pm)
{
	memset(pm, 0, sizeof(*pm));
	pm->fd = -1;
}

void physmap_share(struct physmap *pm)
{
	int fd = host_memory_file();

	assert(!pm->count && pm->fd < 0);
	pm->fd = fd < 0 ? -1 : fd;
}

void physmap_destroy(struct physmap *pm)
{
	while (pm->count) {
		struct physmap_region *r = &pm->region[--pm->count];

		host_memory_free(r->hva, r->size);
	}
	pm->pages = 0;
	if (pm->fd >= 0)
		close(pm->fd);
	pm->fd = -1;
}

static bool overlaps_region(const struct physmap *pm, gpa_t gpa, u64 size)
{
	for (u32 i = 0; i < pm->count; i++) {
		const struct physmap_region *r = &pm->region[i];

		if (gpa < r->gpa + r->size && r->gpa < gpa + size)
			return true;
	}
	return false;
}

int physmap_add(struct physmap *pm, gpa_t gpa, u64 size, u32 flags, struct err *e)
{
	struct physmap_region *r;
	void *hva;

	if (!size || (gpa | size) & ~PAGE_MASK || gpa + size < gpa)
		return err_set(e, -EINVAL, "memory region %#lx+%#lx is not page aligned", gpa,
			       size);
	if (pm->count == PHYSMAP_MAX_REGIONS || overlaps_region(pm, gpa, size))
		return err_set(e, -EINVAL, "memory region %#lx+%#lx does not fit", gpa, size);
	hva = pm->fd < 0 ? host_memory_alloc(size) : host_memory_map(pm->fd, gpa, size);
	if (!hva)
		return err_set(e, -ENOMEM,
			       "the host cannot give %lu MiB of guest memory; use a smaller -m",
			       size / MIB);
	r = &pm->region[pm->count++];
	*r = (struct physmap_region){
		.gpa = gpa, .size = size, .hva = hva, .flags = flags, .page0 = pm->pages};
	pm->pages += size / PAGE_SIZE;
	return 0;
}

void physmap_listen(struct physmap *pm, struct physmap_listener listener)
{
	for (u32 i = 0; i < PHYSMAP_MAX_LISTENERS; i++)
		if (!pm->listener[i].written) {
			pm->listener[i] = listener;
			return;
		}
	assert(!"more listeners than an engine and its successor");
}

void physmap_unlisten(struct physmap *pm, const void *opaque)
{
	for (u32 i = 0; i < PHYSMAP_MAX_LISTENERS; i++)
		if (pm->listener[i].opaque == opaque)
			pm->listener[i] = (struct physmap_listener){0};
}

const struct physmap_region *physmap_find(const struct physmap *pm, gpa_t gpa)
{
	for (u32 i = 0; i < pm->count; i++) {
		const struct physmap_region *r = &pm->region[i];

		if (gpa - r->gpa < r->size)
			return r;
	}
	return NULL;
}

void *mem_map(const struct physmap *pm, gpa_t gpa, u64 len, enum mem_dir dir)
{
	const struct physmap_region *r = physmap_find(pm, gpa);

	if (!r || range_exceeds(gpa - r->gpa, len, r->size))
		return NULL;
	if (dir == MEM_WRITE && r->flags & PHYSMAP_ROM)
		return NULL;
	return r->hva + (gpa - r->gpa);
}

void mem_unmap(const struct physmap *pm, gpa_t gpa, u64 written)
{
	for (u32 i = 0; written && i < PHYSMAP_MAX_LISTENERS; i++)
		if (pm->listener[i].written)
			pm->listener[i].written(pm->listener[i].opaque, gpa, written);
}

/* Bytes of [gpa, gpa+len) that lie in the region of @gpa; 0 when @gpa is not usable RAM. */
static u64 chunk(const struct physmap *pm, gpa_t gpa, u64 len, enum mem_dir dir, u8 **hva)
{
	const struct physmap_region *r = physmap_find(pm, gpa);

	if (!r || (dir == MEM_WRITE && r->flags & PHYSMAP_ROM))
		return 0;
	*hva = r->hva + (gpa - r->gpa);
	return MIN(len, r->size - (gpa - r->gpa));
}

static bool range_is_usable(const struct physmap *pm, gpa_t gpa, u64 len, enum mem_dir dir)
{
	u8 *hva;

	for (u64 n; len; gpa += n, len -= n) {
		n = chunk(pm, gpa, len, dir, &hva);
		if (!n)
			return false;
	}
	return true;
}

int mem_read(const struct physmap *pm, gpa_t gpa, void *buf, u64 len)
{
	u8 *to = buf, *hva = NULL;

	if (!range_is_usable(pm, gpa, len, MEM_READ))
		return -EFAULT;
	for (u64 n; len; gpa += n, to += n, len -= n) {
		n = chunk(pm, gpa, len, MEM_READ, &hva);
		assert(n);
		memcpy(to, hva, n);
	}
	return 0;
}

int mem_write(const struct physmap *pm, gpa_t gpa, const void *buf, u64 len)
{
	const u8 *from = buf;
	u8 *hva = NULL;

	if (!range_is_usable(pm, gpa, len, MEM_WRITE))
		return -EFAULT;
	for (u64 n; len; gpa += n, from += n, len -= n) {
		n = chunk(pm, gpa, len, MEM_WRITE, &hva);
		assert(n);
		memcpy(hva, from, n);
		mem_unmap(pm, gpa, n);
	}
	return 0;
}
