/*
 * ELF executables: copying their segments, and the PVH entry.
 *
 * References: ELF-64 Object File Format 1.5; Xen, docs/misc/pvh.pandoc and
 * public/arch-x86/hvm/start_info.h for the boot ABI.
 */
#include "machine/layout.h"
#include "machine/load.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

enum {
	PVH_NOTE = 18, /* XEN_ELFNOTE_PHYS32_ENTRY */
	PVH_MODULES = BOOT_START_INFO + 0x100,
	PVH_MEMMAP = BOOT_START_INFO + 0x200,
	PVH_MAGIC = 0x336ec578,
};

struct pvh_start_info {
	u32 magic;
	u32 version;
	u32 flags;
	u32 nr_modules;
	u64 modlist_paddr;
	u64 cmdline_paddr;
	u64 rsdp_paddr;
	u64 memmap_paddr;
	u32 memmap_entries;
	u32 reserved;
};

struct pvh_module {
	u64 paddr;
	u64 size;
	u64 cmdline_paddr;
	u64 reserved;
};

struct pvh_memmap {
	u64 addr;
	u64 size;
	u32 type; /* as in E820 */
	u32 reserved;
};

bool is_elf(const u8 *image, u64 len)
{
	return len >= sizeof(Elf32_Ehdr) && !memcmp(image, ELFMAG, SELFMAG);
}

static Elf64_Phdr program_header(const u8 *at, bool is_64bit)
{
	Elf64_Phdr p;
	Elf32_Phdr p32;

	if (is_64bit) {
		memcpy(&p, at, sizeof(p));
		return p;
	}
	memcpy(&p32, at, sizeof(p32));
	return (Elf64_Phdr){
		.p_type = p32.p_type,
		.p_flags = p32.p_flags,
		.p_offset = p32.p_offset,
		.p_vaddr = p32.p_vaddr,
		.p_paddr = p32.p_paddr,
		.p_filesz = p32.p_filesz,
		.p_memsz = p32.p_memsz,
		.p_align = p32.p_align,
	};
}

/* The fields of the file header that have different places in the classes. */
static Elf64_Ehdr file_header(const u8 *image, bool is_64bit)
{
	Elf64_Ehdr h;
	Elf32_Ehdr h32;

	if (is_64bit) {
		memcpy(&h, image, sizeof(h));
		return h;
	}
	memcpy(&h32, image, sizeof(h32));
	return (Elf64_Ehdr){.e_type = h32.e_type,
			    .e_machine = h32.e_machine,
			    .e_entry = h32.e_entry,
			    .e_phoff = h32.e_phoff,
			    .e_phentsize = h32.e_phentsize,
			    .e_phnum = h32.e_phnum};
}

int elf_open(struct elf_file *f, const u8 *image, u64 have, u64 len, struct err *e)
{
	Elf64_Ehdr h;

	*f = (struct elf_file){.len = len};
	if (!is_elf(image, have) || image[EI_DATA] != ELFDATA2LSB)
		return err_set(e, -EINVAL, "not a little-endian ELF file");
	f->is_64bit = image[EI_CLASS] == ELFCLASS64;
	if (f->is_64bit && have < sizeof(h))
		return err_set(e, -EINVAL, "the ELF file is truncated: %lu bytes", len);
	h = file_header(image, f->is_64bit);
	f->entry = h.e_entry;
	f->phnum = h.e_phnum;
	if (h.e_type != ET_EXEC && h.e_type != ET_DYN)
		return err_set(e, -EINVAL, "the ELF file is not an executable");
	if (h.e_machine != (f->is_64bit ? EM_X86_64 : EM_386))
		return err_set(e, -EINVAL, "the ELF file is not for x86");
	if (h.e_phentsize < (f->is_64bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) ||
	    range_exceeds(h.e_phoff, (u64)f->phnum * h.e_phentsize, have))
		return err_set(e, -EINVAL, "the ELF file is truncated: no program headers");
	if (f->phnum > ELF_SEGMENTS_MAX)
		return err_set(e, -EINVAL, "the ELF file has %u program headers, more than %d",
			       f->phnum, ELF_SEGMENTS_MAX);
	for (u32 i = 0; i < f->phnum; i++)
		f->segment[i] =
			program_header(image + h.e_phoff + (u64)i * h.e_phentsize, f->is_64bit);
	return 0;
}

static bool is_loaded(const Elf64_Phdr *p)
{
	return p->p_type == PT_LOAD && p->p_memsz;
}

static int begin_segment(const struct load *l, const struct elf_file *f, const Elf64_Phdr *p,
			 struct err *e)
{
	if (range_exceeds(p->p_offset, p->p_filesz, f->len) || p->p_filesz > p->p_memsz)
		return err_set(e, -EINVAL,
			       "the ELF file is truncated: %lu bytes, a segment ends at %lu",
			       f->len, p->p_offset + p->p_filesz);
	/* Lower down are the boot data and the firmware tables. */
	if (p->p_paddr < LAYOUT_HIGH)
		return err_set(e, -EINVAL, "a segment's physical address %#lx is below 1 MiB",
			       p->p_paddr);
	return load_zero(l, p->p_paddr + p->p_filesz, p->p_memsz - p->p_filesz, e);
}

int load_elf_begin(const struct load *l, const struct elf_file *f, struct elf_image *elf,
		   struct err *e)
{
	*elf = (struct elf_image){.entry = f->entry, .is_64bit = f->is_64bit, .start = UINT64_MAX};
	for (u32 i = 0; i < f->phnum; i++) {
		const Elf64_Phdr *p = &f->segment[i];
		int r;

		if (!is_loaded(p))
			continue;
		r = begin_segment(l, f, p, e);
		if (r)
			return r;
		elf->start = MIN(elf->start, p->p_paddr);
		elf->end = MAX(elf->end, p->p_paddr + p->p_memsz);
	}
	if (!elf->end)
		return err_set(e, -EINVAL, "the ELF file has nothing to load");
	return 0;
}

int load_elf_part(const struct load *l, const struct elf_file *f, u64 at, const u8 *bytes, u64 n,
		  struct err *e)
{
	int r = 0;

	for (u32 i = 0; i < f->phnum && !r; i++) {
		const Elf64_Phdr *p = &f->segment[i];
		u64 from = MAX(at, p->p_offset), to = MIN(at + n, p->p_offset + p->p_filesz);

		if (is_loaded(p) && from < to)
			r = load_store(l, p->p_paddr + (from - p->p_offset), bytes + (from - at),
				       to - from, e);
	}
	return r;
}

int load_elf_segments(const struct load *l, const u8 *image, u64 len, struct elf_image *elf,
		      struct err *e)
{
	struct elf_file f;
	int r = elf_open(&f, image, len, len, e);

	if (!r)
		r = load_elf_begin(l, &f, elf, e);
	return r ? r : load_elf_part(l, &f, 0, image, len, e);
}

/* Search one PT_NOTE segment of @len bytes whose notes are aligned to @align. */
static bool find_in_notes(const u8 *p, u64 len, u64 align, u32 *entry)
{
	Elf64_Nhdr n; /* same layout in both classes */
	u64 off = 0;

	while (!range_exceeds(off, sizeof(n), len)) {
		u64 name = off + sizeof(n), desc;

		memcpy(&n, p + off, sizeof(n));
		desc = align_up(name + n.n_namesz, align);
		if (range_exceeds(desc, n.n_descsz, len))
			return false;
		if (n.n_type == PVH_NOTE && n.n_namesz == 4 && !memcmp(p + name, "Xen", 4) &&
		    n.n_descsz >= sizeof(*entry)) {
			memcpy(entry, p + desc, sizeof(*entry));
			return true;
		}
		off = align_up(desc + n.n_descsz, align);
	}
	return false;
}

static bool find_pvh_entry(const struct elf_file *f, const u8 *image, u32 *entry)
{
	for (u32 i = 0; i < f->phnum; i++) {
		const Elf64_Phdr *p = &f->segment[i];

		if (p->p_type == PT_NOTE && !range_exceeds(p->p_offset, p->p_filesz, f->len) &&
		    find_in_notes(image + p->p_offset, p->p_filesz, p->p_align == 8 ? 8 : 4, entry))
			return true;
	}
	return false;
}

bool is_pvh(const u8 *image, u64 len)
{
	struct elf_file f;
	u32 entry;

	return !elf_open(&f, image, len, len, NULL) && find_pvh_entry(&f, image, &entry);
}

static int store_memmap(const struct load *l, struct err *e)
{
	const struct e820_map *map = &l->env->e820;
	struct pvh_memmap m[E820_MAX] = {0};

	for (u32 i = 0; i < map->count; i++)
		m[i] = (struct pvh_memmap){.addr = map->entry[i].addr,
					   .size = map->entry[i].size,
					   .type = map->entry[i].type};
	return load_store(l, PVH_MEMMAP, m, sizeof(m), e);
}

static int store_start_info(const struct load *l, struct err *e)
{
	struct pvh_module module = {.paddr = l->initrd_at, .size = l->initrd_len};
	struct pvh_start_info info = {
		.magic = PVH_MAGIC,
		.version = 1,
		.nr_modules = l->initrd_len ? 1 : 0,
		.modlist_paddr = l->initrd_len ? PVH_MODULES : 0,
		.cmdline_paddr = BOOT_CMDLINE,
		.rsdp_paddr = l->env->rsdp,
		.memmap_paddr = PVH_MEMMAP,
		.memmap_entries = l->env->e820.count,
	};
	int r = load_store(l, BOOT_START_INFO, &info, sizeof(info), e);

	if (!r)
		r = load_store(l, PVH_MODULES, &module, sizeof(module), e);
	return r ? r : store_memmap(l, e);
}

int load_pvh(struct load *l, struct err *e)
{
	struct elf_image elf;
	struct elf_file f;
	u32 entry;
	int r = elf_open(&f, l->kernel, l->kernel_len, l->kernel_len, e);

	if (r)
		return r;
	if (!find_pvh_entry(&f, l->kernel, &entry))
		return err_set(e, -EINVAL, "the ELF file has no PVH entry note");
	r = load_elf_segments(l, l->kernel, l->kernel_len, &elf, e);
	if (r)
		return r;
	l->kernel_start = elf.start;
	l->kernel_end = elf.end;
	r = load_cmdline(l, BOOT_CMDLINE_MAX - 1, e);
	if (!r)
		r = load_initrd(l, LAYOUT_HOLE, e);
	if (!r)
		r = store_start_info(l, e);
	if (!r)
		r = entry_protected_mode(l, entry, e);
	l->state->gpr.r[RBX] = BOOT_START_INFO;
	return r;
}
