/*
 * Theory of operation
 *
 * snapshot=on: the image is the base and is never written. Writes go to a sparse temporary file
 * that has no name, at the same offsets, and vanish with it. A bitmap says for each 512-byte sector
 * where its current contents are. Because the bitmap is as fine as the smallest write, a write
 * never has to copy from the base first, and there are no partly covered units.
 *
 * Requests may run on several pool threads at once. A sector's bit is set after its data is in the
 * file and is never cleared, so a reader that sees the bit clear reads the base, which never
 * changes: that is the state before the write, as it may see while the write is in flight.
 */
#include "base/iov.h"
#include "block/async.h"
#include "block/backend.h"
#include "block/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SECTORS_PER_WORD = 64, IOV_CHUNK = 64 };

struct overlay {
	struct block block;
	int base, file;
	bool punch;
	u64 *written;   /* one bit per sector: its contents are in @file */
	u64 bitmap_len; /* bytes */
	struct image_pace pace;
	struct async *async;
};

static bool sector_is_written(const struct overlay *o, u64 sector)
{
	u64 word = __atomic_load_n(&o->written[sector / SECTORS_PER_WORD], __ATOMIC_ACQUIRE);

	return word >> sector % SECTORS_PER_WORD & 1;
}

static void mark_written(struct overlay *o, u64 offset, u64 len)
{
	u64 sector = offset / BLOCK_SECTOR, end = sector + len / BLOCK_SECTOR;

	while (sector < end) {
		u64 bit = sector % SECTORS_PER_WORD;
		u64 n = MIN(end - sector, SECTORS_PER_WORD - bit);
		u64 mask = n == SECTORS_PER_WORD ? ~0ul : (BIT(n) - 1) << bit;

		__atomic_fetch_or(&o->written[sector / SECTORS_PER_WORD], mask, __ATOMIC_RELEASE);
		sector += n;
	}
}

/* Bytes from @offset on, at most @len, that are all in one file; *@fd is that file. */
static u64 run_length(const struct overlay *o, u64 offset, u64 len, int *fd)
{
	u64 sector = offset / BLOCK_SECTOR, end = sector + len / BLOCK_SECTOR, first = sector;
	bool written = sector_is_written(o, sector);

	*fd = written ? o->file : o->base;
	while (sector < end && sector_is_written(o, sector) == written)
		sector++;
	return (sector - first) * BLOCK_SECTOR;
}

/* Read one run; bytes read (a whole number of sectors unless cached data ends) or -errno. */
static s64 read_run(struct overlay *o, const struct block_request *r, int flags)
{
	struct iovec iov[IOV_CHUNK];
	int fd;
	u64 len = run_length(o, r->offset, r->len, &fd);
	u32 n = iov_head(r->iov, r->iov_count, len, iov, IOV_CHUNK);
	ssize_t got = preadv2(fd, iov, (int)n, (off_t)r->offset, flags);

	return got < 0 ? -errno : got;
}

/*
 * Runs start on sector boundaries, and a short read may end inside a sector; then the rest of the
 * sector is read from the same place again, because its bit is looked up by the sector it lies in.
 * A write to that sector between the two reads may tear it, as on a disk.
 */
static int read_runs(struct overlay *o, struct block_request *r, int flags)
{
	while (r->len) {
		s64 n = read_run(o, r, flags);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n ? (int)n : -EIO;
		n &= ~(s64)(BLOCK_SECTOR - 1);
		if (!n)
			return flags & RWF_NOWAIT ? -EAGAIN : -EIO;
		iov_advance(&r->iov, &r->iov_count, (u64)n);
		r->offset += (u64)n;
		r->len -= (u64)n;
	}
	return 0;
}

static int overlay_write(struct overlay *o, struct block_request *r)
{
	int ret = image_transfer(o->file, true, r->iov, r->iov_count, r->offset, r->len);

	if (!ret)
		mark_written(o, r->offset, r->len);
	return ret;
}

static int overlay_zero(struct overlay *o, struct block_request *r)
{
	int ret = image_zero(o->file, o->punch, r->offset, r->len);

	if (!ret)
		mark_written(o, r->offset, r->len);
	return ret;
}

/* On a pool thread, or on the caller's when that cannot block for long. */
static int overlay_execute(struct block *b, struct block_request *r)
{
	struct overlay *o = container_of(b, struct overlay, block);

	switch (r->op) {
	case BLOCK_READ: return read_runs(o, r, 0);
	case BLOCK_WRITE: return overlay_write(o, r);
	case BLOCK_FLUSH: return 0; /* nothing here outlives the VM */
	case BLOCK_DISCARD:
	case BLOCK_ZERO: return overlay_zero(o, r);
	}
	return -EINVAL;
}

static int read_cached(struct overlay *o, struct block_request *r)
{
	int ret;

	if (o->pace.no_nowait)
		return -EAGAIN;
	ret = read_runs(o, r, RWF_NOWAIT);
	if (ret == -EOPNOTSUPP || ret == -EINVAL || ret == -ENOSYS) {
		o->pace.no_nowait = true;
		ret = -EAGAIN;
	}
	return ret;
}

static int write_now(struct overlay *o, struct block_request *r)
{
	u64 start = host_clock_ns();
	int ret = overlay_write(o, r);

	image_write_timed(&o->pace, start);
	return ret;
}

static int try_now(struct overlay *o, struct block_request *r)
{
	switch (r->op) {
	case BLOCK_READ: return read_cached(o, r);
	case BLOCK_WRITE: return image_write_is_quick(&o->pace, r) ? write_now(o, r) : -EAGAIN;
	case BLOCK_FLUSH: return 0;
	case BLOCK_DISCARD:
	case BLOCK_ZERO: return -EAGAIN;
	}
	return -EINVAL;
}

static int overlay_submit(struct block *b, struct block_request *r)
{
	struct overlay *o = container_of(b, struct overlay, block);
	int ret = try_now(o, r);

	if (ret != -EAGAIN)
		return ret;
	async_submit(o->async, r);
	return -EINPROGRESS;
}

static void overlay_commit(struct block *b)
{
	async_commit(container_of(b, struct overlay, block)->async);
}

static void overlay_drain(struct block *b)
{
	async_drain(container_of(b, struct overlay, block)->async);
}

static void overlay_free(struct overlay *o)
{
	if (o->written)
		munmap(o->written, o->bitmap_len);
	if (o->file >= 0)
		close(o->file);
	free(o);
}

static void overlay_close(struct block *b)
{
	struct overlay *o = container_of(b, struct overlay, block);
	int base = o->base;

	async_destroy(o->async);
	overlay_free(o);
	close(base);
}

static const struct block_ops overlay_ops = {
	.name = "overlay",
	.submit = overlay_submit,
	.commit = overlay_commit,
	.drain = overlay_drain,
	.close = overlay_close,
};

/* An open file without a name. /var/tmp rather than /tmp, which is often memory. */
static int open_unnamed(struct err *e)
{
	const char *dir = getenv("TMPDIR");
	char path[4096];
	int fd;

	if (!dir || !*dir)
		dir = "/var/tmp";
	fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	if ((size_t)snprintf(path, sizeof(path), "%s/doppel-XXXXXX", dir) >= sizeof(path))
		return err_set(e, -ENAMETOOLONG, "snapshot: TMPDIR is too long");
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return err_set(e, -errno, "snapshot: no temporary file in %s: %s", dir,
			       strerror(errno));
	unlink(path);
	return fd;
}

static int overlay_open_storage(struct overlay *o, struct err *e)
{
	u64 sectors = o->block.size / BLOCK_SECTOR;

	o->file = open_unnamed(e);
	if (o->file < 0)
		return o->file;
	if (ftruncate(o->file, (off_t)o->block.size))
		return err_set(e, -errno, "snapshot: temporary file: %s", strerror(errno));
	o->punch = image_can_punch(o->file, o->block.size);
	/* Untouched parts of the bitmap cost no memory. */
	o->bitmap_len = align_up((sectors + 7) / 8, PAGE_SIZE);
	o->written = mmap(NULL, o->bitmap_len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (o->written == MAP_FAILED) {
		o->written = NULL;
		return err_set(e, -ENOMEM, "snapshot: no memory for the bitmap");
	}
	return 0;
}

int overlay_create(int fd, u64 size, struct loop *loop, pthread_mutex_t *lock, struct block **b,
		   struct err *e)
{
	struct overlay *o = calloc(1, sizeof(*o));
	struct async_target target;
	int ret;

	if (!o)
		return err_set(e, -ENOMEM, "out of memory");
	o->base = fd;
	o->file = -1;
	o->block = (struct block){
		.ops = &overlay_ops, .size = size, .discards = true, .batch_done = block_no_batch};
	target = (struct async_target){.block = &o->block, .fd = -1, .execute = overlay_execute};
	ret = overlay_open_storage(o, e);
	if (!ret)
		ret = pool_create(&target, loop, lock, &o->async, e);
	if (ret) {
		overlay_free(o);
		return ret;
	}
	*b = &o->block;
	return 0;
}
