/* Kernel loaders, on images made here: Linux bzImage, PVH, Multiboot; sound ones and broken ones.
 */
#include "machine/decompress.h"
#include "machine/layout.h"
#include "machine/load.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <elf.h>
#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum {
	RAM = 64 * 1024 * 1024,
	LINK = 16 * 1024 * 1024, /* where the kernels below are linked */
	TEXT = 100000,           /* bytes of their one segment */
	BSS = 5000,
	IMAGE_MAX = 400000,
	SETUP = 5 * 512,
};

struct fixture {
	struct physmap pm;
	struct boot_env env;
	struct host_file initrd;
	struct cpu_state state;
	struct err e;
	struct load l;
	u8 image[IMAGE_MAX];
	u64 len;
	u8 elf[TEXT + 0x1000];
	u64 elf_len;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	physmap_init(&f->pm);
	assert_int_equal(physmap_add(&f->pm, LAYOUT_HIGH, RAM - LAYOUT_HIGH, 0, &f->e), 0);
	assert_int_equal(physmap_add(&f->pm, 0, LAYOUT_CONVENTIONAL_END, 0, &f->e), 0);
	f->env = (struct boot_env){.pm = &f->pm, .ram_below = RAM, .rsdp = LAYOUT_ACPI};
	e820_build(&f->env.e820, RAM, 0);
	f->initrd.fd = -1;
	f->l = (struct load){
		.env = &f->env,
		.kernel = f->image,
		.initrd = &f->initrd,
		.cmdline = "console=ttyS0",
		.state = &f->state,
	};
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	physmap_destroy(&f->pm);
	if (f->initrd.fd >= 0)
		close(f->initrd.fd);
	free(f);
	return 0;
}

static u8 text_byte(u64 i)
{
	return (u8)(i * 7 + (i >> 9));
}

/* An ELF64 file with one segment at LINK and, if asked for, a PVH note. */
static void make_elf(struct fixture *f, bool note)
{
	static const u8 pvh[] = {4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0, 0, 0, 0, 1};
	Elf64_Ehdr h = {
		.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_entry = LINK + 0x40,
		.e_phoff = sizeof(h),
		.e_ehsize = sizeof(h),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = note ? 2 : 1,
	};
	Elf64_Phdr p[2] = {
		{.p_type = PT_LOAD,
		 .p_offset = 0x1000,
		 .p_vaddr = 0xffffffff80000000ul + LINK,
		 .p_paddr = LINK,
		 .p_filesz = TEXT,
		 .p_memsz = TEXT + BSS},
		{.p_type = PT_NOTE, .p_offset = 0x800, .p_filesz = sizeof(pvh), .p_align = 4},
	};

	memset(f->elf, 0, sizeof(f->elf));
	memcpy(f->elf, &h, sizeof(h));
	memcpy(f->elf + sizeof(h), p, sizeof(p));
	memcpy(f->elf + 0x800, pvh, sizeof(pvh));
	for (u64 i = 0; i < TEXT; i++)
		f->elf[0x1000 + i] = text_byte(i);
	f->elf_len = sizeof(f->elf);
}

static void put16(struct fixture *f, u64 at, u16 v)
{
	memcpy(f->image + at, &v, sizeof(v));
}

static void put32(struct fixture *f, u64 at, u32 v)
{
	memcpy(f->image + at, &v, sizeof(v));
}

static void put64(struct fixture *f, u64 at, u64 v)
{
	memcpy(f->image + at, &v, sizeof(v));
}

static u64 compress_gzip(const u8 *in, u64 len, u8 *out, u64 max)
{
	z_stream z = {0};

	assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
	z.next_in = (u8 *)(uintptr_t)in;
	z.avail_in = (uInt)len;
	z.next_out = out;
	z.avail_out = (uInt)max;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return z.total_out;
}

static u64 compress_xz(const u8 *in, u64 len, u8 *out, u64 max)
{
	lzma_options_lzma options;
	lzma_filter filters[] = {
		{LZMA_FILTER_X86, NULL}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, NULL}};
	size_t n = 0;

	lzma_lzma_preset(&options, 1);
	assert_int_equal(
		lzma_stream_buffer_encode(filters, LZMA_CHECK_CRC32, NULL, in, len, out, &n, max),
		LZMA_OK);
	return n;
}

static u64 compress_lzma(const u8 *in, u64 len, u8 *out, u64 max)
{
	lzma_stream s = LZMA_STREAM_INIT;
	lzma_options_lzma options;

	lzma_lzma_preset(&options, 1);
	assert_int_equal(lzma_alone_encoder(&s, &options), LZMA_OK);
	s.next_in = in;
	s.avail_in = len;
	s.next_out = out;
	s.avail_out = max;
	assert_int_equal(lzma_code(&s, LZMA_FINISH), LZMA_STREAM_END);
	lzma_end(&s);
	return s.total_out;
}

static u64 compress_zstd(const u8 *in, u64 len, u8 *out, u64 max)
{
	return ZSTD_compress(out, max, in, len, 3);
}

/* Two blocks at least, to have more than one. */
static u64 compress_lz4(const u8 *in, u64 len, u8 *out, u64 max)
{
	static const u8 magic[] = {0x02, 0x21, 0x4c, 0x18};
	u64 block = MIN(len / 2 + 1, 6 * MIB), done = sizeof(magic);

	memcpy(out, magic, sizeof(magic));
	for (u64 at = 0, n; at < len; at += n) {
		int size;

		n = MIN(len - at, block);
		size = LZ4_compress_default((const char *)in + at, (char *)out + done + 4, (int)n,
					    (int)(max - done - 4));
		assert_true(size > 0);
		memcpy(out + done, &size, 4);
		done += 4 + (u64)size;
	}
	return done;
}

static u64 compress_not(const u8 *in, u64 len, u8 *out, u64 max)
{
	assert_true(len <= max);
	memcpy(out, in, len);
	return len;
}

typedef u64 compressor(const u8 *in, u64 len, u8 *out, u64 max);

/* A bzImage around the ELF file: setup sectors, a 1 KiB stub, the payload with its size behind it.
 */
static void make_bzimage(struct fixture *f, compressor *compress, bool with_size)
{
	u64 payload = SETUP + 1024, n;

	make_elf(f, false);
	memset(f->image, 0, sizeof(f->image));
	n = compress(f->elf, f->elf_len, f->image + payload, sizeof(f->image) - payload - 64);
	if (with_size) {
		put32(f, payload + n, (u32)f->elf_len);
		n += 4;
	}
	f->len = align_up(payload + n, 16);
	f->image[0x1f1] = 4;
	put32(f, 0x1f4, (u32)((f->len - SETUP) / 16));
	put16(f, 0x1fe, 0xaa55);
	put16(f, 0x200, 0x6aeb);
	memcpy(f->image + 0x202, "HdrS", 4);
	put16(f, 0x206, 0x20f);
	f->image[0x211] = 1;
	put32(f, 0x22c, 0x7fffffff);
	put32(f, 0x230, 0x200000);
	f->image[0x234] = 1;
	put16(f, 0x236, 1);
	put32(f, 0x238, 2047);
	put32(f, 0x248, 1024);
	put32(f, 0x24c, (u32)n);
	put64(f, 0x258, LINK);
	put32(f, 0x260, 0x800000);
	f->l.kernel_len = f->len;
}

static void check_text(struct fixture *f)
{
	const u8 *p = mem_map(&f->pm, LINK, TEXT + BSS, MEM_READ);

	for (u64 i = 0; i < TEXT; i++)
		assert_int_equal(p[i], text_byte(i));
	for (u64 i = TEXT; i < TEXT + BSS; i++)
		assert_int_equal(p[i], 0);
}

static void *guest(struct fixture *f, gpa_t gpa, u64 len)
{
	void *p = mem_map(&f->pm, gpa, len, MEM_READ);

	assert_non_null(p);
	return p;
}

static u32 guest32(struct fixture *f, gpa_t gpa)
{
	u32 v;

	memcpy(&v, guest(f, gpa, 4), 4);
	return v;
}

static void open_initrd(struct fixture *f, u64 size)
{
	char path[] = "/tmp/doppel-test-XXXXXX";

	f->initrd = (struct host_file){.path = "initrd", .fd = mkstemp(path), .size = size};
	unlink(path);
	assert_int_equal(ftruncate(f->initrd.fd, (off_t)size), 0);
	assert_int_equal(pwrite(f->initrd.fd, "initrd!", 7, 0), 7);
}

/* ---- Linux ---- */

static void bzimage_every_compression_is_entered_directly(void **state)
{
	static compressor *const all[] = {compress_gzip, compress_xz,  compress_lzma,
					  compress_zstd, compress_lz4, compress_not};
	struct fixture *f = *state;

	for (u32 i = 0; i < ARRAY_SIZE(all); i++) {
		memset(guest(f, LINK, TEXT + BSS), 0xcc, TEXT + BSS);
		make_bzimage(f, all[i], all[i] != compress_not);
		if (load_kernel(&f->l, &f->e))
			fail_msg("format %u: %s", i, f->e.text);
		check_text(f);
		assert_int_equal(f->state.gpr.rip, LINK + 0x40);
		assert_int_equal(f->state.gpr.r[RSI], BOOT_PARAMS);
	}
}

static void linux_boot_params(void **state)
{
	struct fixture *f = *state;
	const u8 *p;
	u64 rsdp;

	make_bzimage(f, compress_lz4, true);
	open_initrd(f, 12345);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	p = guest(f, BOOT_PARAMS, 4096);
	assert_int_equal(p[0x1e8], f->env.e820.count);
	assert_memory_equal(p + 0x2d0, f->env.e820.entry,
			    f->env.e820.count * sizeof(struct e820_entry));
	assert_memory_equal(p + 0x202, "HdrS", 4);
	assert_int_equal(p[0x210], 0xff);
	memcpy(&rsdp, p + 0x70, 8);
	assert_int_equal(rsdp, LAYOUT_ACPI);
	assert_int_equal(guest32(f, BOOT_PARAMS + 0x228), BOOT_CMDLINE);
	assert_string_equal(guest(f, BOOT_CMDLINE, 32), "console=ttyS0");
	assert_int_equal(guest32(f, BOOT_PARAMS + 0x21c), 12345);
	assert_int_equal(guest32(f, BOOT_PARAMS + 0x218), f->l.initrd_at);
	assert_int_equal(f->l.initrd_at, align_down(RAM - 12345, PAGE_SIZE));
	assert_memory_equal(guest(f, f->l.initrd_at, 7), "initrd!", 7);
	/* What the header does not cover stays zero: the sentinel above all. */
	assert_int_equal(p[0x1ef], 0);
}

static void linux_64bit_entry_state(void **state)
{
	struct fixture *f = *state;
	const struct cpu_state *s = &f->state;
	u64 entry;

	make_bzimage(f, compress_lz4, true);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(s->cr.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
	assert_int_equal(s->cr.cr4 & CR4_PAE, CR4_PAE);
	assert_int_equal(s->cr.efer, EFER_LME | EFER_LMA);
	assert_int_equal(s->gpr.rflags, RFLAGS_ONE);
	assert_int_equal(s->segs.seg[SEG_CS].selector, 0x10);
	assert_true(s->segs.seg[SEG_CS].l && !s->segs.seg[SEG_CS].db);
	assert_int_equal(s->segs.seg[SEG_DS].selector, 0x18);
	memcpy(&entry, guest(f, s->segs.gdtr.base + 0x10, 8), 8);
	assert_int_equal(entry, 0x00af9b000000fffful);
	memcpy(&entry, guest(f, s->segs.gdtr.base + 0x18, 8), 8);
	assert_int_equal(entry, 0x00cf93000000fffful);
	/* The page tables map 3 GiB + 2 MiB to itself: PML4[0], PDPT[3], PD[1]. */
	memcpy(&entry, guest(f, s->cr.cr3, 8), 8);
	memcpy(&entry, guest(f, (entry & PAGE_MASK) + 3 * 8, 8), 8);
	memcpy(&entry, guest(f, (entry & PAGE_MASK) + 8, 8), 8);
	assert_int_equal(entry, (3 * GIB + 2 * MIB) | PTE_P | PTE_RW | PTE_PS);
}

static void unknown_payload_runs_the_image_itself(void **state)
{
	struct fixture *f = *state;

	make_bzimage(f, compress_lz4, true);
	f->image[SETUP + 1024] ^= 0xff;
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(f->state.gpr.rip, LINK + 0x200);
	assert_true(f->state.segs.seg[SEG_CS].l);
	assert_memory_equal(guest(f, LINK, 4096), f->image + SETUP, 4096);
	/* Without a 64-bit entry: the 32-bit one. */
	put16(f, 0x236, 0);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(f->state.gpr.rip, LINK);
	assert_int_equal(f->state.cr.cr0, CR0_PE | CR0_ET);
	assert_int_equal(f->state.gpr.r[RSI], BOOT_PARAMS);
}

static void refuse(struct fixture *f, int code, const char *says)
{
	int r;

	f->e.text[0] = 0;
	r = load_kernel(&f->l, &f->e);
	if (r != code || !strstr(f->e.text, says) || strchr(f->e.text, '\n'))
		fail_msg("%d '%s' instead of %d '%s'", r, f->e.text, code, says);
}

static void bad_bzimages_are_refused(void **state)
{
	struct fixture *f = *state;

	make_bzimage(f, compress_lz4, true);
	f->l.kernel_len = f->len - 100;
	refuse(f, -EINVAL, "truncated");
	f->l.kernel_len = 0x220;
	refuse(f, -EINVAL, "truncated");
	make_bzimage(f, compress_lz4, true);
	put16(f, 0x1fe, 0);
	refuse(f, -EINVAL, "boot signature");
	make_bzimage(f, compress_lz4, true);
	put16(f, 0x206, 0x0203);
	refuse(f, -EINVAL, "2.03 is too old");
	make_bzimage(f, compress_zstd, true);
	f->image[SETUP + 1024 + 200] ^= 0x55;
	memset(f->image + SETUP + 1024 + 300, 0x55, 300);
	refuse(f, -EINVAL, "damaged");
	make_bzimage(f, compress_lz4, true);
	put32(f, 0x260, RAM);
	refuse(f, -ENOMEM, "-m");
	make_bzimage(f, compress_lz4, true);
	put32(f, 0x238, 4);
	refuse(f, -E2BIG, "command line");
}

static void an_initrd_that_does_not_fit_is_refused(void **state)
{
	struct fixture *f = *state;

	make_bzimage(f, compress_lz4, true);
	open_initrd(f, RAM - LINK - 0x800000 + 1);
	refuse(f, -ENOMEM, "initrd");
	f->initrd.size = 2ul * RAM;
	refuse(f, -ENOMEM, "initrd");
	f->initrd.size = RAM - LINK - 0x800000;
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(f->l.initrd_at, LINK + 0x800000);
}

static void initrd_honours_the_kernels_limit(void **state)
{
	struct fixture *f = *state;

	make_bzimage(f, compress_lz4, true);
	put32(f, 0x22c, 0x2ffffff);
	open_initrd(f, 4096);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(f->l.initrd_at, 0x3000000 - 4096);
}

/* ---- PVH ---- */

static void use_elf(struct fixture *f, bool note)
{
	make_elf(f, note);
	memcpy(f->image, f->elf, f->elf_len);
	f->l.kernel_len = f->elf_len;
}

static void pvh_start_info_and_entry(void **state)
{
	struct fixture *f = *state;
	const struct cpu_state *s = &f->state;
	gpa_t info;
	u64 v;

	use_elf(f, true);
	open_initrd(f, 5000);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	check_text(f);
	assert_int_equal(s->gpr.rip, 0x01000000);
	assert_int_equal(s->cr.cr0, CR0_PE | CR0_ET);
	assert_int_equal(s->cr.cr4, 0);
	assert_true(s->segs.seg[SEG_CS].db && !s->segs.seg[SEG_CS].l);
	assert_int_equal(s->segs.seg[SEG_CS].limit, 0xffffffff);
	assert_int_equal(s->segs.seg[SEG_TR].limit, 0x67);
	info = s->gpr.r[RBX];
	assert_int_equal(guest32(f, info), 0x336ec578);
	assert_int_equal(guest32(f, info + 4), 1);
	assert_int_equal(guest32(f, info + 12), 1);
	memcpy(&v, guest(f, info + 16, 8), 8);
	memcpy(&v, guest(f, v, 8), 8);
	assert_memory_equal(guest(f, v, 7), "initrd!", 7);
	memcpy(&v, guest(f, info + 24, 8), 8);
	assert_string_equal(guest(f, v, 32), "console=ttyS0");
	memcpy(&v, guest(f, info + 32, 8), 8);
	assert_int_equal(v, LAYOUT_ACPI);
	assert_int_equal(guest32(f, info + 48), f->env.e820.count);
}

static void bad_elf_files_are_refused(void **state)
{
	struct fixture *f = *state;
	Elf64_Phdr *p = (Elf64_Phdr *)(void *)(f->image + sizeof(Elf64_Ehdr));
	Elf64_Ehdr *h = (Elf64_Ehdr *)(void *)f->image;

	use_elf(f, false);
	refuse(f, -EINVAL, "PVH");
	use_elf(f, true);
	f->l.kernel_len -= 1;
	refuse(f, -EINVAL, "truncated");
	use_elf(f, true);
	p->p_paddr = RAM - 100;
	refuse(f, -ENOMEM, "-m");
	use_elf(f, true);
	p->p_paddr = UINT64_MAX - 100;
	refuse(f, -ENOMEM, "-m");
	use_elf(f, true);
	p->p_memsz = UINT64_MAX;
	refuse(f, -ENOMEM, "-m");
	use_elf(f, true);
	p->p_paddr = 0x1000;
	refuse(f, -EINVAL, "below 1 MiB");
	use_elf(f, true);
	h->e_phnum = 2000;
	refuse(f, -EINVAL, "program headers");
	use_elf(f, true);
	h->e_machine = EM_AARCH64;
	refuse(f, -EINVAL, "not for x86");
	use_elf(f, true);
	h->e_phoff = UINT64_MAX - 8;
	refuse(f, -EINVAL, "truncated");
}

static void what_is_no_kernel_is_refused(void **state)
{
	struct fixture *f = *state;

	memset(f->image, 'x', sizeof(f->image));
	f->l.kernel_len = 100;
	refuse(f, -EINVAL, "not a kernel");
	f->l.kernel_len = 1;
	refuse(f, -EINVAL, "not a kernel");
	f->l.kernel_len = sizeof(f->image);
	refuse(f, -EINVAL, "not a kernel");
}

/* ---- Multiboot ---- */

static void make_multiboot(struct fixture *f)
{
	const u32 flags = 1 << 16 | 3;

	memset(f->image, 0x90, sizeof(f->image));
	put32(f, 64, 0x1badb002);
	put32(f, 68, flags);
	put32(f, 72, -(0x1badb002 + flags));
	put32(f, 76, LINK + 32);   /* header_addr: 32 bytes in front of it are loaded */
	put32(f, 80, LINK);        /* load_addr */
	put32(f, 84, LINK + 8192); /* load_end_addr */
	put32(f, 88, LINK + 9000); /* bss_end_addr */
	put32(f, 92, LINK + 0x123);
	f->l.kernel_len = 32 + 8192;
}

static void multiboot_by_addresses(void **state)
{
	struct fixture *f = *state;
	gpa_t info;

	make_multiboot(f);
	assert_int_equal(load_kernel(&f->l, &f->e), 0);
	assert_int_equal(f->state.gpr.rip, LINK + 0x123);
	assert_int_equal(f->state.gpr.r[RAX], 0x2badb002);
	assert_memory_equal(guest(f, LINK, 8192), f->image + 32, 8192);
	assert_int_equal(guest32(f, LINK + 8192), 0);
	info = f->state.gpr.r[RBX];
	assert_int_equal(guest32(f, info) & 0x45, 0x45);
	assert_string_equal(guest(f, guest32(f, info + 16), 32), "console=ttyS0");
	assert_int_equal(guest32(f, info + 44), f->env.e820.count * 24);
}

static void bad_multiboot_images_are_refused(void **state)
{
	struct fixture *f = *state;

	make_multiboot(f);
	f->l.kernel_len -= 1;
	refuse(f, -EINVAL, "truncated");
	make_multiboot(f);
	put32(f, 76, LINK + 4096);
	refuse(f, -EINVAL, "addresses");
	make_multiboot(f);
	put32(f, 80, 0x1000);
	put32(f, 76, 0x1000);
	refuse(f, -EINVAL, "");
	make_multiboot(f);
	put32(f, 68, 4);
	put32(f, 72, -(0x1badb002 + 4));
	refuse(f, -ENOTSUP, "video");
	make_multiboot(f);
	put32(f, 88, 0xffffff00);
	refuse(f, -ENOMEM, "-m");
}

/* ---- payload decoders ---- */

struct gathered {
	u8 *to;
	u64 len, refused_at;
};

static int gather(void *opaque, const u8 *bytes, u64 len)
{
	struct gathered *g = opaque;

	if (g->refused_at && g->len + len >= g->refused_at)
		return -EIO;
	memcpy(g->to + g->len, bytes, len);
	g->len += len;
	return 0;
}

static int decompress(enum payload_format format, const u8 *data, u64 len, u8 *out, u64 out_len)
{
	struct gathered g = {.to = out};
	int r = payload_decompress(format, data, len, out_len, gather, &g);

	if (!r)
		assert_int_equal(g.len, out_len);
	return r;
}

static void a_payload_of_the_wrong_size_is_an_error(void **state)
{
	static compressor *const all[] = {compress_gzip, compress_xz, compress_lzma, compress_zstd,
					  compress_lz4};
	struct fixture *f = *state;
	u8 *out = malloc(sizeof(f->elf) + 1);

	make_elf(f, false);
	for (u32 i = 0; i < ARRAY_SIZE(all); i++) {
		u64 n = all[i](f->elf, f->elf_len, f->image, sizeof(f->image));
		enum payload_format format = payload_detect(f->image, n);

		assert_int_equal(decompress(format, f->image, n, out, f->elf_len), 0);
		assert_memory_equal(out, f->elf, f->elf_len);
		assert_int_equal(decompress(format, f->image, n, out, f->elf_len + 1), -EINVAL);
		assert_int_equal(decompress(format, f->image, n / 2, out, f->elf_len), -EINVAL);
		assert_int_equal(decompress(format, f->image, 4, out, f->elf_len), -EINVAL);
	}
	free(out);
}

/* Larger than a piece, and compressible in places only. */
static void a_large_payload_comes_in_order(void **state)
{
	static compressor *const all[] = {compress_gzip, compress_xz, compress_lzma, compress_zstd,
					  compress_lz4};
	enum { SIZE = PAYLOAD_PIECE * 3 / 2 + 12345, ROOM = SIZE + SIZE / 64 + 4096 };
	u8 *in = malloc(SIZE), *packed = malloc(ROOM), *out = malloc(SIZE);
	struct gathered g = {.to = out, .refused_at = 1};
	u64 x = 1;

	(void)state;
	for (u64 i = 0; i < SIZE; i++) {
		x = x * 6364136223846793005ul + 1442695040888963407ul;
		in[i] = i >> 12 & 7 ? (u8)(i >> 8) : (u8)(x >> 56);
	}
	for (u32 i = 0; i < ARRAY_SIZE(all); i++) {
		u64 n = all[i](in, SIZE, packed, ROOM);
		enum payload_format format = payload_detect(packed, n);

		memset(out, 0, SIZE);
		assert_int_equal(decompress(format, packed, n, out, SIZE), 0);
		assert_memory_equal(out, in, SIZE);
		g.len = 0;
		assert_int_equal(payload_decompress(format, packed, n, SIZE, gather, &g), -EIO);
	}
	free(in);
	free(packed);
	free(out);
}

/* ---- files ---- */

static void missing_files_are_named(void **state)
{
	struct err e = {0};
	struct boot b;

	(void)state;
	assert_int_equal(boot_open(&b, "/nonexistent/vmlinuz", NULL, NULL, &e), -ENOENT);
	assert_string_equal(e.text, "kernel: /nonexistent/vmlinuz: No such file or directory");
	assert_int_equal(boot_open(&b, "/tmp", NULL, NULL, &e), -EISDIR);
	assert_int_equal(boot_open(&b, "/dev/null", NULL, NULL, &e), -EINVAL);
	assert_int_equal(boot_open(&b, "/proc/self/exe", "/nonexistent/i", NULL, &e), -ENOENT);
	assert_string_equal(e.text, "initrd: /nonexistent/i: No such file or directory");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(bzimage_every_compression_is_entered_directly),
		TEST(linux_boot_params),
		TEST(linux_64bit_entry_state),
		TEST(unknown_payload_runs_the_image_itself),
		TEST(bad_bzimages_are_refused),
		TEST(an_initrd_that_does_not_fit_is_refused),
		TEST(initrd_honours_the_kernels_limit),
		TEST(pvh_start_info_and_entry),
		TEST(bad_elf_files_are_refused),
		TEST(what_is_no_kernel_is_refused),
		TEST(multiboot_by_addresses),
		TEST(bad_multiboot_images_are_refused),
		TEST(a_payload_of_the_wrong_size_is_an_error),
		TEST(a_large_payload_comes_in_order),
		TEST(missing_files_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
