/*
 * Kernel loaders. The input is a kernel file; bytes that decide its format are steered, because
 * random ones would hardly ever make one: the first byte chooses a skeleton over which the rest is
 * laid. It also says how long the initial RAM disk and the command line are. Invariant: loading
 * succeeds, or fails with a one-line message, and touches nothing but guest RAM; what was loaded
 * does not overlap.
 */
#include "machine/layout.h"
#include "machine/load.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 32 * 1024 * 1024, IMAGE = 64 * 1024, LINK = 16 * 1024 * 1024 };

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

static void put(u8 *image, u64 at, const void *value, u64 len)
{
	memcpy(image + at, value, len);
}

static void put32(u8 *image, u64 at, u32 value)
{
	put(image, at, &value, sizeof(value));
}

static void linux_skeleton(u8 *image, u8 variant)
{
	static const u8 magic[][6] = {{0x02, 0x21, 0x4c, 0x18},   {0x1f, 0x8b, 8},
				      {0xfd, '7', 'z', 'X', 'Z'}, {0x5d, 0, 0, 0, 1},
				      {0x28, 0xb5, 0x2f, 0xfd},   {0x7f, 'E', 'L', 'F'}};
	const u64 link = LINK;

	image[0x1f1] = 1;
	put32(image, 0x1f4, (IMAGE - 1024) / 16);
	put32(image, 0x1fe, 0x6aebaa55);
	put(image, 0x202, "HdrS", 4);
	put32(image, 0x206, 0x20f);
	put32(image, 0x22c, 0x7fffffff);
	put32(image, 0x236, variant & 8 ? 1 : 0);
	put32(image, 0x238, 2047);
	put32(image, 0x248, 1024);
	put32(image, 0x24c, 4096);
	put(image, 0x258, &link, sizeof(link));
	put32(image, 0x260, 0x100000);
	put(image, 2048, magic[variant % ARRAY_SIZE(magic)], 6);
	put32(image, 2048 + 4092, 65536);
}

static void elf_skeleton(u8 *image, u8 variant)
{
	static const u8 note[] = {4, 0, 0,   0,   4,   0, 0, 0, 18, 0,
				  0, 0, 'X', 'e', 'n', 0, 0, 0, 0,  1};
	const Elf64_Ehdr h = {
		.e_ident = {0x7f, 'E', 'L', 'F', variant & 1 ? ELFCLASS32 : ELFCLASS64,
			    ELFDATA2LSB},
		.e_type = ET_EXEC,
		.e_machine = variant & 1 ? EM_386 : EM_X86_64,
		.e_phoff = 64,
		.e_phentsize = 56,
		.e_phnum = 3,
	};
	const Elf64_Phdr p[3] = {
		{.p_type = PT_LOAD,
		 .p_offset = 1024,
		 .p_paddr = LINK,
		 .p_filesz = 512,
		 .p_memsz = 8192},
		{.p_type = PT_LOAD, .p_offset = 0, .p_paddr = LINK + 65536, .p_memsz = 1 << 20},
		{.p_type = PT_NOTE, .p_offset = 512, .p_filesz = 64},
	};

	put(image, 0, &h, sizeof(h));
	put(image, 64, p, sizeof(p));
	put(image, 512, note, sizeof(note));
}

static void multiboot_skeleton(u8 *image, u8 variant)
{
	const u32 flags = (variant & 1 ? 1u << 16 : 0) | 3;
	const u32 h[8] = {0x1badb002, flags,       -(0x1badb002 + flags), LINK + 64,
			  LINK,       LINK + 4096, LINK + 8192,           LINK};

	put(image, 64, h, sizeof(h));
}

/* Bytes of the input other than zero replace those of the skeleton: XOR keeps both interesting. */
static void lay_over(u8 *image, const u8 *data, size_t len)
{
	for (size_t i = 0; i + 2 < len; i += 3) {
		u32 at = (u32)data[i] | (u32)data[i + 1] << 8;

		image[at % IMAGE] ^= data[i + 2];
	}
}

static void check(struct load *l, int result, const struct err *e)
{
	if (result > 0 || (result < 0 && (!e->text[0] || strchr(e->text, '\n'))))
		abort();
	if (result)
		return;
	if (l->kernel_start < LAYOUT_HIGH || l->kernel_end > RAM)
		abort();
	if (l->initrd_len &&
	    (l->initrd_at + l->initrd_len > RAM ||
	     (l->initrd_at < l->kernel_end && l->initrd_at + l->initrd_len > l->kernel_start)))
		abort();
}

/* Up to twice the RAM, mostly less; holes are free. Its descriptor is -1 half of the time. */
static void open_initrd(struct host_file *f, u8 wish)
{
	*f = (struct host_file){.fd = -1, .path = "initrd"};
	if (!(wish & 1))
		return;
	f->size = wish & 2 ? (u64)wish * wish * 1024 : wish;
	f->fd = memfd_create("initrd", MFD_CLOEXEC);
	if (f->fd < 0 || ftruncate(f->fd, (off_t)f->size))
		abort();
}

static const char *command_line(u8 length)
{
	static char text[256 * 20 + 1];

	memset(text, 'x', sizeof(text));
	text[length * (length & 1 ? 20 : 1)] = '\0';
	return text;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	struct host_file initrd;
	struct cpu_state state;
	struct physmap pm;
	struct boot_env env = {.pm = &pm, .ram_below = RAM};
	struct err e = {0};
	struct load l = {.env = &env,
			 .kernel_len = IMAGE,
			 .initrd = &initrd,
			 .cmdline = command_line(len > 5 ? data[5] : 5),
			 .state = &state};
	u8 *image;

	if (len < 4)
		return 0;
	open_initrd(&initrd, len > 4 ? data[4] : 0);
	physmap_init(&pm);
	image = calloc(1, IMAGE);
	if (!image || physmap_add(&pm, LAYOUT_HIGH, RAM - LAYOUT_HIGH, 0, &e) ||
	    physmap_add(&pm, 0, LAYOUT_CONVENTIONAL_END, 0, &e))
		abort();
	e820_build(&env.e820, RAM, 0);
	switch (data[0] & 3) {
	case 0: linux_skeleton(image, data[1]); break;
	case 1: elf_skeleton(image, data[1]); break;
	case 2: multiboot_skeleton(image, data[1]); break;
	default: break;
	}
	if (len > 6)
		lay_over(image, data + 6, MIN(len - 6, 512ul));
	if (data[2] & 1)
		l.kernel_len = MIN(data[3] * 256ul + 1, (u64)IMAGE);
	/* Exactly as long as it says, so that the sanitizer sees reads past the end. */
	l.kernel = memcpy(malloc(l.kernel_len), image, l.kernel_len);
	check(&l, load_kernel(&l, &e), &e);
	free((void *)(uintptr_t)l.kernel);
	free(image);
	if (initrd.fd >= 0)
		close(initrd.fd);
	physmap_destroy(&pm);
	return 0;
}
