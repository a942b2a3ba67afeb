/*
 * The guest-physical address space: which gpa ranges are RAM (or ROM) and where they live in the
 * host.
 *
 * Regions are added while the machine is assembled and never overlap. Whatever is not RAM is device
 * memory and belongs to the bus. All access by the monitor goes through the bounded accessors here;
 * a listener (the engine) hears of every write so that translated code and dirty logs stay true.
 * The notification comes after the bytes are stored.
 *
 * Threads: the region table is fixed once the machine runs; accessors may be called from any
 * thread.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum {
	PHYSMAP_ROM = 1 << 0, /* guest writes are dropped */
	PHYSMAP_MAX_REGIONS = 16,
	PHYSMAP_MAX_LISTENERS = 2, /* an engine, and the one that takes over from it */
};

struct physmap_region {
	gpa_t gpa;
	u64 size;  /* bytes, multiple of PAGE_SIZE */
	u8 *hva;   /* host mapping of the region's first byte */
	u32 flags; /* PHYSMAP_* */
	u64 page0; /* index of the region's first page in dense page-indexed arrays */
};

struct physmap_listener {
	/* The monitor wrote [gpa, gpa+len) of RAM. Any thread; must not call back into physmap. */
	void (*written)(void *opaque, gpa_t gpa, u64 len);
	void *opaque;
};

struct physmap {
	struct physmap_region region[PHYSMAP_MAX_REGIONS];
	u32 count;
	u64 pages; /* total pages in all regions */
	int fd;    /* the file in memory that regions lie in, each at offset gpa; -1: none */
	struct physmap_listener
		listener[PHYSMAP_MAX_LISTENERS]; /* those with a function are there */
};

enum mem_dir { MEM_READ, MEM_WRITE };

void physmap_init(struct physmap *pm);

/*
 * Let the regions to come lie in a file in memory, so that an engine can map their pages at further
 * addresses. Where the host has no such files they are private memory as before. Before the first
 * physmap_add().
 */
void physmap_share(struct physmap *pm);

/* Unmaps and forgets all regions. */
void physmap_destroy(struct physmap *pm);

/*
 * Add @size bytes of zeroed memory at @gpa, huge pages advised.
 * Returns 0, or -ENOMEM/-EINVAL with @e filled in.
 */
int physmap_add(struct physmap *pm, gpa_t gpa, u64 size, u32 flags, struct err *e);

/* Listeners (engines) come and go while nobody writes. */
void physmap_listen(struct physmap *pm, struct physmap_listener listener);
void physmap_unlisten(struct physmap *pm, const void *opaque);

/* The region that holds @gpa, or NULL for device memory. */
const struct physmap_region *physmap_find(const struct physmap *pm, gpa_t gpa);

/*
 * Host pointer to [gpa, gpa+len), or NULL when that is not wholly inside one RAM region (or is ROM
 * and
 * @dir is MEM_WRITE). The pointer stays valid for the life of the map. After writing through it
 * call mem_unmap() with the number of bytes stored.
 */
void *mem_map(const struct physmap *pm, gpa_t gpa, u64 len, enum mem_dir dir);
void mem_unmap(const struct physmap *pm, gpa_t gpa, u64 written);

/* Copy out of or into guest RAM; regions may be crossed. 0 or -EFAULT (then nothing was copied). */
int mem_read(const struct physmap *pm, gpa_t gpa, void *buf, u64 len);
int mem_write(const struct physmap *pm, gpa_t gpa, const void *buf, u64 len);
