/* Between boot.c, which reads the files, and the loaders, one per kernel format. */
#pragma once

#include "machine/boot.h"

#include <elf.h>

/* One boot in progress. The kernel image is untrusted: every offset in it is checked. */
struct load {
	const struct boot_env *env;
	const u8 *kernel;
	u64 kernel_len;
	const struct host_file *initrd; /* fd -1: none */
	const char *cmdline;

	gpa_t kernel_start, kernel_end; /* guest memory the kernel occupies when it starts */
	gpa_t initrd_at;
	u64 initrd_len;
	struct cpu_state *state; /* out: how the boot processor starts */
};

/* Put @l->kernel, whatever format it has, into guest memory. */
int load_kernel(struct load *l, struct err *e);

/* The formats. The is_ functions look at the magic numbers only. */
bool is_bzimage(const u8 *image, u64 len);
enum { BZIMAGE_HEAD = 1024 }; /* bytes that tell: */
/* Where such a kernel goes, and how much memory it needs there to start. */
bool bzimage_extent(const u8 *image, u64 len, gpa_t *at, u64 *size);
int load_bzimage(struct load *l, struct err *e);
bool is_elf(const u8 *image, u64 len);
bool is_pvh(const u8 *image, u64 len);
int load_pvh(struct load *l, struct err *e);
bool is_multiboot(const u8 *image, u64 len);
int load_multiboot(struct load *l, struct err *e);

/* What the formats share. */

struct elf_image {
	u64 entry; /* e_entry */
	bool is_64bit;
	gpa_t start, end; /* extent of the loaded segments */
};

/* Copy the PT_LOAD segments of the ELF file @image to their physical addresses. */
int load_elf_segments(const struct load *l, const u8 *image, u64 len, struct elf_image *elf,
		      struct err *e);

enum {
	/* Linux has five; without a bound a damaged file could make us fill memory 65,535 times. */
	ELF_SEGMENTS_MAX = 64,
};

/* An ELF file's headers, those of both classes in one shape. */
struct elf_file {
	u64 len;
	bool is_64bit;
	u64 entry;
	u32 phnum;
	Elf64_Phdr segment[ELF_SEGMENTS_MAX];
};

/* The headers of an ELF file of @len bytes, whose first @have bytes are at @image. */
int elf_open(struct elf_file *f, const u8 *image, u64 have, u64 len, struct err *e);

/* The same in parts, in any order: what is not in the file, and the @n bytes at @bytes from file
 * offset @at on. */
int load_elf_begin(const struct load *l, const struct elf_file *f, struct elf_image *elf,
		   struct err *e);
int load_elf_part(const struct load *l, const struct elf_file *f, u64 at, const u8 *bytes, u64 n,
		  struct err *e);

/* Store to guest memory; -ENOMEM with a message that asks for more memory when it is not there. */
int load_store(const struct load *l, gpa_t gpa, const void *data, u64 len, struct err *e);
int load_zero(const struct load *l, gpa_t gpa, u64 len, struct err *e);

/* Put the initrd as high as possible below @limit and clear of the kernel. Sets initrd_at and _len.
 */
int load_initrd(struct load *l, u64 limit, struct err *e);

/* Store the command line, at most @max bytes without the final zero, at BOOT_CMDLINE. */
int load_cmdline(const struct load *l, u64 max, struct err *e);

/* Entry states. Both build the GDT they name at BOOT_GDT. */

/* 64-bit mode at @rip, the first 4 GiB identity-mapped (Linux boot protocol, 64-bit). */
int entry_long_mode(const struct load *l, u64 rip, u64 rsi, struct err *e);

/* Flat 32-bit protected mode at @eip, paging off (PVH, Multiboot, Linux 32-bit boot protocol). */
int entry_protected_mode(const struct load *l, u32 eip, struct err *e);
