/*
 * Multiboot 1 kernels, as ELF files or with load addresses in the header.
 *
 * Reference: Multiboot Specification 0.6.96.
 */
#include "machine/layout.h"
#include "machine/load.h"

#include <errno.h>
#include <string.h>

enum {
	MB_SEARCH = 8192, /* the header lies within these first bytes */
	MB_MAGIC = 0x1badb002,
	MB_LOADER_MAGIC = 0x2badb002,
	MB_PAGE_ALIGN = 1 << 0,
	MB_MEMORY_INFO = 1 << 1,
	MB_REQUIRED = 0xffff, /* flags the loader must understand */
	MB_ADDRESSES = 1 << 16,
	/* Flags of the information structure. */
	MB_HAS_MEMORY = 1 << 0,
	MB_HAS_CMDLINE = 1 << 2,
	MB_HAS_MODULES = 1 << 3,
	MB_HAS_MMAP = 1 << 6,
	MB_HAS_LOADER_NAME = 1 << 9,
	MB_MODULES = BOOT_START_INFO + 0x100,
	MB_MMAP = BOOT_START_INFO + 0x200,
	MB_LOADER_NAME = BOOT_START_INFO + 0x400,
};

struct mb_header {
	u32 magic, flags, checksum;
	u32 header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr; /* with MB_ADDRESSES */
};

struct mb_info {
	u32 flags;
	u32 mem_lower, mem_upper; /* KiB */
	u32 boot_device;
	u32 cmdline;
	u32 mods_count, mods_addr;
	u32 syms[4];
	u32 mmap_length, mmap_addr;
	u32 drives_length, drives_addr;
	u32 config_table;
	u32 boot_loader_name;
	u32 apm_table;
};

struct mb_module {
	u32 mod_start, mod_end;
	u32 string;
	u32 reserved;
};

struct mb_mmap {
	u32 size; /* of what follows */
	struct e820_entry entry;
} __attribute__((packed));

/* The header and its offset in the file. */
static bool find_header(const u8 *image, u64 len, struct mb_header *h, u64 *offset)
{
	u64 end = MIN(len, (u64)MB_SEARCH);

	for (u64 off = 0; !range_exceeds(off, 12, end); off += 4) {
		memset(h, 0, sizeof(*h));
		memcpy(h, image + off, MIN(sizeof(*h), len - off));
		if (h->magic != MB_MAGIC || h->magic + h->flags + h->checksum)
			continue;
		if (h->flags & MB_ADDRESSES && len - off < sizeof(*h))
			continue;
		*offset = off;
		return true;
	}
	return false;
}

bool is_multiboot(const u8 *image, u64 len)
{
	struct mb_header h;
	u64 offset;

	return find_header(image, len, &h, &offset);
}

/* Load by the addresses in the header (specification, 3.1.3). */
static int load_by_addresses(struct load *l, const struct mb_header *h, u64 offset, struct err *e)
{
	u64 skip, len, bss;
	int r;

	if (h->header_addr < h->load_addr || h->header_addr - h->load_addr > offset)
		return err_set(e, -EINVAL, "the Multiboot header has wrong load addresses");
	skip = offset - (h->header_addr - h->load_addr);
	len = l->kernel_len - skip;
	if (h->load_end_addr) {
		if (h->load_end_addr < h->load_addr || h->load_end_addr - h->load_addr > len)
			return err_set(
				e, -EINVAL,
				"the Multiboot kernel is truncated: %lu bytes, its header says %lu",
				l->kernel_len, skip + (h->load_end_addr - h->load_addr));
		len = h->load_end_addr - h->load_addr;
	}
	if (h->load_addr < LAYOUT_HIGH)
		return err_set(e, -EINVAL, "the Multiboot load address %#x is below 1 MiB",
			       h->load_addr);
	l->kernel_start = h->load_addr;
	l->kernel_end = MAX(h->load_addr + len, (u64)h->bss_end_addr);
	r = load_store(l, l->kernel_start, l->kernel + skip, len, e);
	bss = l->kernel_end - (h->load_addr + len);
	return r ? r : load_zero(l, l->kernel_end - bss, bss, e);
}

static int load_image(struct load *l, const struct mb_header *h, u64 offset, u32 *entry,
		      struct err *e)
{
	struct elf_image elf;
	int r;

	if (h->flags & MB_ADDRESSES) {
		*entry = h->entry_addr;
		return load_by_addresses(l, h, offset, e);
	}
	r = load_elf_segments(l, l->kernel, l->kernel_len, &elf, e);
	if (r)
		return r;
	if (elf.entry > UINT32_MAX)
		return err_set(e, -EINVAL, "the Multiboot kernel's entry %#lx is above 4 GiB",
			       elf.entry);
	*entry = (u32)elf.entry;
	l->kernel_start = elf.start;
	l->kernel_end = elf.end;
	return 0;
}

static int store_mmap(const struct load *l, struct err *e)
{
	const struct e820_map *map = &l->env->e820;
	struct mb_mmap m[E820_MAX] = {0};

	for (u32 i = 0; i < map->count; i++)
		m[i] = (struct mb_mmap){.size = sizeof(m[i].entry), .entry = map->entry[i]};
	return load_store(l, MB_MMAP, m, sizeof(m), e);
}

static int store_info(const struct load *l, struct err *e)
{
	static const char name[] = "doppel";
	struct mb_module module = {.mod_start = (u32)l->initrd_at,
				   .mod_end = (u32)(l->initrd_at + l->initrd_len)};
	struct mb_info info = {
		.flags = MB_HAS_MEMORY | MB_HAS_CMDLINE | MB_HAS_MODULES | MB_HAS_MMAP |
			 MB_HAS_LOADER_NAME,
		.mem_lower = LAYOUT_EBDA / KIB,
		.mem_upper = (u32)((l->env->ram_below - LAYOUT_HIGH) / KIB),
		.cmdline = BOOT_CMDLINE,
		.mods_count = l->initrd_len ? 1 : 0,
		.mods_addr = MB_MODULES,
		.mmap_length = (u32)(l->env->e820.count * sizeof(struct mb_mmap)),
		.mmap_addr = MB_MMAP,
		.boot_loader_name = MB_LOADER_NAME,
	};
	int r = load_store(l, BOOT_START_INFO, &info, sizeof(info), e);

	if (!r)
		r = load_store(l, MB_MODULES, &module, sizeof(module), e);
	if (!r)
		r = load_store(l, MB_LOADER_NAME, name, sizeof(name), e);
	return r ? r : store_mmap(l, e);
}

int load_multiboot(struct load *l, struct err *e)
{
	struct mb_header h;
	u32 entry = 0;
	u64 offset;
	int r;

	if (!find_header(l->kernel, l->kernel_len, &h, &offset))
		return err_set(e, -EINVAL, "no Multiboot header");
	if (h.flags & MB_REQUIRED & ~(u32)(MB_PAGE_ALIGN | MB_MEMORY_INFO))
		return err_set(e, -ENOTSUP,
			       "the Multiboot kernel wants a video mode or other "
			       "features that are not there (flags %#x)",
			       h.flags);
	r = load_image(l, &h, offset, &entry, e);
	if (!r)
		r = load_cmdline(l, BOOT_CMDLINE_MAX - 1, e);
	if (!r)
		r = load_initrd(l, LAYOUT_HOLE, e);
	if (!r)
		r = store_info(l, e);
	if (!r)
		r = entry_protected_mode(l, entry, e);
	l->state->gpr.r[RAX] = MB_LOADER_MAGIC;
	l->state->gpr.r[RBX] = BOOT_START_INFO;
	return r;
}
