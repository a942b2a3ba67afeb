/*
 * Linux bzImage.
 *
 * The decompressor inside the image is skipped: its payload, a compressed vmlinux, is decompressed
 * here, at native speed, loaded to its link address and entered at startup_64, which is how boot
 * loaders that understand vmlinux do it as well. Loaded at the address it was linked for, the
 * kernel needs none of the relocations that may follow the ELF file in the payload. The kernel's
 * base is then not randomised; it says so itself by a clear KASLR flag. When the payload is of an
 * unknown kind, the image is loaded and entered as the boot protocol has it, at its own 64-bit or
 * 32-bit entry.
 *
 * Reference: Linux, Documentation/x86/boot.rst.
 */
#include "machine/decompress.h"
#include "machine/layout.h"
#include "machine/load.h"

#include <errno.h>
#include <string.h>

/* The setup header, at SETUP_HEADER in the image and in boot_params. */
struct setup_header {
	u8 setup_sects;
	u16 root_flags;
	u32 syssize;
	u16 ram_size;
	u16 vid_mode;
	u16 root_dev;
	u16 boot_flag;
	u16 jump;
	u32 header;
	u16 version;
	u32 realmode_swtch;
	u16 start_sys_seg;
	u16 kernel_version;
	u8 type_of_loader;
	u8 loadflags;
	u16 setup_move_size;
	u32 code32_start;
	u32 ramdisk_image;
	u32 ramdisk_size;
	u32 bootsect_kludge;
	u16 heap_end_ptr;
	u8 ext_loader_ver;
	u8 ext_loader_type;
	u32 cmd_line_ptr;
	u32 initrd_addr_max;
	u32 kernel_alignment;
	u8 relocatable_kernel;
	u8 min_alignment;
	u16 xloadflags;
	u32 cmdline_size;
	u32 hardware_subarch;
	u64 hardware_subarch_data;
	u32 payload_offset;
	u32 payload_length;
	u64 setup_data;
	u64 pref_address;
	u32 init_size;
	u32 handover_offset;
	u32 kernel_info_offset;
} __attribute__((packed));

enum {
	SECTOR = 512,
	SETUP_HEADER = 0x1f1,
	SETUP_MAGIC = 0x202,
	/* Offsets in boot_params. */
	PARAMS_RSDP = 0x70,
	PARAMS_EXT_CMDLINE = 0xc8,
	PARAMS_ALT_MEM_K = 0x1e0,
	PARAMS_E820_COUNT = 0x1e8,
	PARAMS_E820 = 0x2d0,
	PARAMS_SIZE = 4096,
	VERSION_MIN = 0x20c, /* xloadflags, and with it the 64-bit entry; Linux 3.8 */
	LOADER_UNDEFINED = 0xff,
	XLF_KERNEL_64 = 1 << 0,
	ENTRY_64 = 0x200, /* from the start of the protected-mode code */
};

/* More than any kernel; a damaged size field must not make us ask for gigabytes. */
#define PAYLOAD_MAX (1 * GIB)

struct bzimage {
	struct setup_header h;
	u64 header_len; /* bytes of the setup header that this version has */
	const u8 *code; /* protected-mode part */
	u64 code_len;
};

static u32 read_u32(const u8 *p)
{
	u32 v;

	memcpy(&v, p, sizeof(v));
	return v;
}

bool is_bzimage(const u8 *image, u64 len)
{
	return len >= SETUP_MAGIC + 4 && !memcmp(image + SETUP_MAGIC, "HdrS", 4);
}

bool bzimage_extent(const u8 *image, u64 len, gpa_t *at, u64 *size)
{
	struct setup_header h;

	if (!is_bzimage(image, len) || len < SETUP_HEADER + sizeof(h))
		return false;
	memcpy(&h, image + SETUP_HEADER, sizeof(h));
	*at = h.pref_address;
	*size = h.init_size;
	return h.version >= VERSION_MIN;
}

static int parse(const struct load *l, struct bzimage *bz, struct err *e)
{
	struct setup_header *h = &bz->h;
	u64 setup;

	if (l->kernel_len < SETUP_HEADER + sizeof(*h))
		return err_set(e, -EINVAL, "the kernel image is truncated: %lu bytes",
			       l->kernel_len);
	memcpy(h, l->kernel + SETUP_HEADER, sizeof(*h));
	if (h->boot_flag != 0xaa55)
		return err_set(e, -EINVAL, "the kernel image has no boot signature");
	if (h->version < VERSION_MIN)
		return err_set(e, -EINVAL,
			       "boot protocol %u.%02u is too old; Linux 3.8 or newer is needed",
			       h->version >> 8, h->version & 0xff);
	setup = ((h->setup_sects ? h->setup_sects : 4) + 1ul) * SECTOR;
	bz->code_len = h->syssize * 16ul;
	if (range_exceeds(setup, bz->code_len, l->kernel_len))
		return err_set(e, -EINVAL,
			       "the kernel image is truncated: %lu bytes, its header says %lu",
			       l->kernel_len, setup + bz->code_len);
	if (bz->code_len < ENTRY_64 + SECTOR)
		return err_set(e, -EINVAL, "the kernel image has no code");
	bz->code = l->kernel + setup;
	/* The jump at 0x200 leads over the header: its second byte is the header's length from
	 * 0x202. */
	bz->header_len = MIN(SETUP_MAGIC + (u64)(h->jump >> 8) - SETUP_HEADER, sizeof(*h));
	return 0;
}

static int need_memory(const struct load *l, gpa_t start, u64 size, struct err *e)
{
	if (start >= LAYOUT_HIGH && !range_exceeds(start, size, l->env->ram_below))
		return 0;
	return err_set(e, -ENOMEM,
		       "the kernel needs memory at %#lx to %#lx; give the guest at "
		       "least %lu MiB with -m",
		       start, start + size, align_up(start + size, MIB) / MIB + 1);
}

/* The payload on its way into guest memory. */
struct vmlinux {
	const struct load *l;
	u64 size, at; /* of the next piece */
	struct elf_file file;
	struct elf_image elf;
	bool is_other; /* than an ELF file */
	bool refused;  /* and why is said in *e */
	struct err *e;
};

/* See payload_sink. */
static int take_piece(void *opaque, const u8 *bytes, u64 len)
{
	struct vmlinux *v = opaque;
	int r = 0;

	if (!v->at && !is_elf(bytes, len)) {
		v->is_other = true;
		return -ENOTSUP;
	}
	if (!v->at) {
		r = elf_open(&v->file, bytes, len, v->size, v->e);
		if (!r)
			r = load_elf_begin(v->l, &v->file, &v->elf, v->e);
	}
	if (!r)
		r = load_elf_part(v->l, &v->file, v->at, bytes, len, v->e);
	v->at += len;
	v->refused = r != 0;
	return r;
}

/* 1: loaded and *entry set. 0: the payload is not what we know. */
static int load_payload(struct load *l, const struct bzimage *bz, u64 *entry, struct err *e)
{
	const u8 *payload = bz->code + bz->h.payload_offset;
	u64 len = bz->h.payload_length, size;
	struct vmlinux v = {.l = l, .e = e};
	enum payload_format format;
	int r;

	if (len < 8 || range_exceeds(bz->h.payload_offset, len, bz->code_len))
		return 0;
	format = payload_detect(payload, len);
	size = format == PAYLOAD_ELF ? len : read_u32(payload + len - 4);
	if (format == PAYLOAD_UNKNOWN || size < SECTOR || size > PAYLOAD_MAX)
		return 0;
	v.size = size;
	r = payload_decompress(format, payload, len, size, take_piece, &v);
	if (v.is_other)
		return 0;
	if (r && !v.refused)
		r = err_set(e, r,
			    r == -ENOMEM ? "no memory to decompress the kernel"
					 : "the kernel's compressed payload is damaged");
	if (r || !v.elf.is_64bit)
		return r;
	l->kernel_start = v.elf.start;
	l->kernel_end = v.elf.end;
	*entry = v.elf.entry;
	return 1;
}

/* The image as it is, to be decompressed by its own code. */
static int load_stub(struct load *l, const struct bzimage *bz, struct err *e)
{
	gpa_t at = bz->h.pref_address;
	u64 size = MAX((u64)bz->h.init_size, bz->code_len);
	int r = need_memory(l, at, size, e);

	if (r)
		return r;
	l->kernel_start = at;
	l->kernel_end = at + size;
	return load_store(l, at, bz->code, bz->code_len, e);
}

static int store_params(struct load *l, const struct bzimage *bz, struct err *e)
{
	const struct e820_map *map = &l->env->e820;
	struct setup_header h = bz->h;
	u8 params[PARAMS_SIZE] = {0};
	u32 high_kib = (u32)((l->env->ram_below - LAYOUT_HIGH) / KIB);

	h.type_of_loader = LOADER_UNDEFINED;
	h.vid_mode = 0xffff;
	h.code32_start = (u32)l->kernel_start;
	h.ramdisk_image = (u32)l->initrd_at;
	h.ramdisk_size = (u32)l->initrd_len;
	h.cmd_line_ptr = BOOT_CMDLINE;
	h.setup_data = 0;
	memcpy(params + SETUP_HEADER, &h, bz->header_len);
	memcpy(params + PARAMS_RSDP, &l->env->rsdp, sizeof(l->env->rsdp));
	memcpy(params + PARAMS_ALT_MEM_K, &high_kib, sizeof(high_kib));
	params[PARAMS_E820_COUNT] = (u8)map->count;
	memcpy(params + PARAMS_E820, map->entry, map->count * sizeof(map->entry[0]));
	return load_store(l, BOOT_PARAMS, params, sizeof(params), e);
}

static int enter(const struct load *l, const struct bzimage *bz, bool direct, u64 entry,
		 struct err *e)
{
	int r;

	if (direct)
		return entry_long_mode(l, entry, BOOT_PARAMS, e);
	if (bz->h.xloadflags & XLF_KERNEL_64)
		return entry_long_mode(l, l->kernel_start + ENTRY_64, BOOT_PARAMS, e);
	r = entry_protected_mode(l, (u32)l->kernel_start, e);
	l->state->gpr.r[RSI] = BOOT_PARAMS;
	return r;
}

int load_bzimage(struct load *l, struct err *e)
{
	struct bzimage bz = {0};
	u64 entry = 0;
	int direct, r;

	r = parse(l, &bz, e);
	if (!r)
		r = need_memory(l, bz.h.pref_address, bz.h.init_size, e);
	if (!r)
		r = load_cmdline(l, bz.h.cmdline_size, e);
	if (r)
		return r;
	direct = load_payload(l, &bz, &entry, e);
	if (direct < 0)
		return direct;
	if (!direct)
		r = load_stub(l, &bz, e);
	/* The kernel's own early allocations follow its image. */
	l->kernel_end = MAX(l->kernel_end, bz.h.pref_address + bz.h.init_size);
	if (!r)
		r = load_initrd(l, bz.h.initrd_addr_max + 1ul, e);
	if (!r)
		r = store_params(l, &bz, e);
	return r ? r : enter(l, &bz, direct, entry, e);
}
