#include "machine/boot.h"

#include "host/memory.h"
#include "machine/layout.h"
#include "machine/load.h"

#include <errno.h>
#include <string.h>

/* Uncompressed kernels with debugging information are large, but not this large. */
#define KERNEL_MAX (2 * GIB)

static int not_enough(gpa_t gpa, u64 len, struct err *e)
{
	return err_set(e, -ENOMEM, "%#lx to %#lx is not guest memory; give the guest more with -m",
		       gpa, gpa + len);
}

int load_store(const struct load *l, gpa_t gpa, const void *data, u64 len, struct err *e)
{
	if (len && (gpa + len < gpa || mem_write(l->env->pm, gpa, data, len)))
		return not_enough(gpa, len, e);
	return 0;
}

int load_zero(const struct load *l, gpa_t gpa, u64 len, struct err *e)
{
	static const u8 zeros[64 * KIB];

	/* Look before filling: a damaged size must not be found out page by page. */
	if (len && !mem_map(l->env->pm, gpa, len, MEM_WRITE))
		return not_enough(gpa, len, e);
	for (u64 n; len; gpa += n, len -= n) {
		n = MIN(len, sizeof(zeros));
		mem_write(l->env->pm, gpa, zeros, n);
	}
	return 0;
}

int load_initrd(struct load *l, u64 limit, struct err *e)
{
	u64 top = MIN(limit, l->env->ram_below), len = l->initrd->size;
	gpa_t at;
	void *p;
	int r;

	if (l->initrd->fd < 0 || !len)
		return 0;
	at = len < top ? align_down(top - len, PAGE_SIZE) : 0;
	p = mem_map(l->env->pm, at, len, MEM_WRITE);
	if (at < l->kernel_end || at < LAYOUT_HIGH || !p)
		return err_set(
			e, -ENOMEM,
			"%s: %lu MiB do not fit into guest memory beside the kernel; give the "
			"guest more with -m",
			l->initrd->path, len / MIB + 1);
	r = host_file_read(l->initrd, 0, p, len, e);
	if (r)
		return r;
	mem_unmap(l->env->pm, at, len);
	l->initrd_at = at;
	l->initrd_len = len;
	return 0;
}

int load_cmdline(const struct load *l, u64 max, struct err *e)
{
	u64 len = strlen(l->cmdline);

	max = MIN(max, BOOT_CMDLINE_MAX - 1);
	if (len > max)
		return err_set(e, -E2BIG,
			       "the command line has %lu characters, this kernel takes %lu", len,
			       max);
	return load_store(l, BOOT_CMDLINE, l->cmdline, len + 1, e);
}

int load_kernel(struct load *l, struct err *e)
{
	if (is_bzimage(l->kernel, l->kernel_len))
		return load_bzimage(l, e);
	if (is_pvh(l->kernel, l->kernel_len))
		return load_pvh(l, e);
	if (is_multiboot(l->kernel, l->kernel_len))
		return load_multiboot(l, e);
	if (is_elf(l->kernel, l->kernel_len)) {
		struct elf_image elf;
		int r = load_elf_segments(l, l->kernel, l->kernel_len, &elf, e);

		return r ? r
			 : err_set(e, -EINVAL,
				   "the ELF file has neither a PVH entry note nor a "
				   "Multiboot header");
	}
	return err_set(e, -EINVAL,
		       "not a kernel: neither a bzImage, nor ELF with a PVH note, nor "
		       "Multiboot");
}

int boot_open(struct boot *b, const char *kernel, const char *initrd, const char *cmdline,
	      struct err *e)
{
	int r;

	b->kernel.fd = b->initrd.fd = -1;
	b->cmdline = cmdline ? cmdline : "";
	r = host_file_open(&b->kernel, kernel, e);
	if (!r && initrd)
		r = host_file_open(&b->initrd, initrd, e);
	if (r) {
		err_prefix(e, b->kernel.fd < 0 ? "kernel" : "initrd");
		boot_close(b);
		return r;
	}
	if (!b->kernel.size || b->kernel.size > KERNEL_MAX) {
		r = err_set(e, -EINVAL, "kernel: %s: %s", kernel,
			    b->kernel.size ? "is too large" : "is empty");
		boot_close(b);
	}
	return r;
}

void boot_close(struct boot *b)
{
	host_file_close(&b->kernel);
	host_file_close(&b->initrd);
}

void boot_expect(const struct boot *b, const struct physmap *pm, struct populate *p)
{
	u8 head[BZIMAGE_HEAD];
	gpa_t at;
	u64 size;
	void *to;

	if (b->kernel.size < sizeof(head) ||
	    host_file_read(&b->kernel, 0, head, sizeof(head), NULL) ||
	    !bzimage_extent(head, sizeof(head), &at, &size))
		return;
	to = mem_map(pm, at, size, MEM_READ);
	if (to)
		populate_ask(p, to, size);
}

int boot_read(const struct boot *b, u8 **kernel, struct err *e)
{
	/* Huge pages: half of the time would go into page faults otherwise. */
	u8 *image = host_memory_alloc(b->kernel.size);
	int r;

	if (!image)
		return err_set(e, -ENOMEM, "kernel: %s: no memory to read it", b->kernel.path);
	r = host_file_read(&b->kernel, 0, image, b->kernel.size, e);
	if (r) {
		boot_forget(b, image);
		return err_prefix(e, "kernel");
	}
	*kernel = image;
	return 0;
}

void boot_forget(const struct boot *b, u8 *kernel)
{
	if (kernel)
		host_memory_free(kernel, b->kernel.size);
}

int boot_load(const struct boot *b, const struct boot_env *env, struct cpu_state *s, struct err *e)
{
	struct load l = {
		.env = env,
		.kernel = env->kernel,
		.kernel_len = b->kernel.size,
		.initrd = &b->initrd,
		.cmdline = b->cmdline,
		.state = s,
	};
	int r = load_kernel(&l, e);

	if (!r)
		return 0;
	err_prefix(e, "%s", b->kernel.path);
	return err_prefix(e, "kernel");
}
