/* virtio-blk over a disk in memory that finishes requests at once, later, or with an error. */
#include "virtio_script.h"

#include "device/virtio/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { DISK = 64 * 1024, IN_FLIGHT_MAX = 1024 };

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

struct disk {
	struct block block;
	u8 bytes[DISK];
	struct block_request *waiting[IN_FLIGHT_MAX];
	u32 count;
	u32 turn; /* which requests wait */
};

static void transfer(struct disk *d, struct block_request *r)
{
	u64 at = r->offset;

	for (u32 i = 0; i < r->iov_count; i++) {
		if (range_exceeds(at, r->iov[i].iov_len, DISK))
			abort();
		if (r->op == BLOCK_READ)
			memcpy(r->iov[i].iov_base, d->bytes + at, r->iov[i].iov_len);
		else
			memcpy(d->bytes + at, r->iov[i].iov_base, r->iov[i].iov_len);
		at += r->iov[i].iov_len;
	}
	if (at != r->offset + r->len)
		abort();
}

static int perform(struct disk *d, struct block_request *r)
{
	if (range_exceeds(r->offset, r->len, DISK) || (r->offset | r->len) % BLOCK_SECTOR)
		abort();
	if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
		transfer(d, r);
	else if (r->op == BLOCK_ZERO)
		memset(d->bytes + r->offset, 0, r->len);
	return r->offset == 512 ? -EIO : 0;
}

static int disk_submit(struct block *b, struct block_request *r)
{
	struct disk *d = container_of(b, struct disk, block);

	if (d->turn++ % 3 && d->count < IN_FLIGHT_MAX) {
		d->waiting[d->count++] = r;
		return -EINPROGRESS;
	}
	return perform(d, r);
}

static void disk_commit(struct block *b)
{
	(void)b;
}

static void finish(struct disk *d, u32 i)
{
	struct block_request *r = d->waiting[i];

	d->waiting[i] = d->waiting[--d->count];
	r->done(r, perform(d, r));
}

static void disk_drain(struct block *b)
{
	struct disk *d = container_of(b, struct disk, block);

	while (d->count)
		finish(d, d->count - 1);
	b->batch_done(b->opaque);
}

static void disk_close(struct block *b)
{
	(void)b;
}

static const struct block_ops disk_ops = {
	.name = "memory",
	.submit = disk_submit,
	.commit = disk_commit,
	.drain = disk_drain,
	.close = disk_close,
};

static void finish_some(void *opaque, struct script *s)
{
	struct disk *d = opaque;

	for (u32 n = script_u8(s) % 8; n && d->count; n--)
		finish(d, script_u8(s) % d->count);
	d->block.batch_done(d->block.opaque);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static struct disk disk = {.block = {.ops = &disk_ops, .size = DISK, .discards = true}};
	static struct test_machine m;
	static struct virtio_blk blk;

	if (!m.loop) {
		test_machine_init(&m, false);
		virtio_blk_init(&blk, &m.env, &m.pci, &disk.block, "fuzz", NULL);
	}
	disk.turn = 0;
	script_run(&m, &(struct script_device){&blk.virtio, &virtio_blk_ops}, data, len,
		   finish_some, &disk);
	if (disk.count)
		abort(); /* the reset at the end waits for all */
	return 0;
}
