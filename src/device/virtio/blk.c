/*
 * Theory of operation
 *
 * A request is a chain: a 16-byte header the device reads, data in one direction, and one status
 * byte the device writes, with any division into descriptors (5.2.6). What the back end can do at
 * once is completed within the doorbell; the rest is completed on the loop's thread, where one
 * interrupt covers a batch.
 *
 * A request owns copies of its segment list, because the chain it came from is scratch. Requests
 * live on a free list; the queue size bounds their number.
 *
 * Reset waits for requests in flight, since the guest may reuse their memory once the reset is
 * done.
 */
#include "device/virtio/blk.h"

#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	QUEUE_SIZE = VIRTQ_SIZE_MAX,
	/* The header and the status byte take a descriptor each. */
	SEG_MAX = VIRTQ_CHAIN_MAX - 2,
	SEG_BYTES_MAX = 1024 * 1024,
	REQUEST_BYTES_MAX = SEG_MAX * SEG_BYTES_MAX,
	DISCARD_SECTORS_MAX = 1 << 21,
	ZEROES_SECTORS_MAX = 1 << 18,
};

/* Feature bits, 5.2.3. */
#define VIRTIO_BLK_F_SIZE_MAX     BIT(1)
#define VIRTIO_BLK_F_SEG_MAX      BIT(2)
#define VIRTIO_BLK_F_RO           BIT(5)
#define VIRTIO_BLK_F_BLK_SIZE     BIT(6)
#define VIRTIO_BLK_F_FLUSH        BIT(9)
#define VIRTIO_BLK_F_TOPOLOGY     BIT(10)
#define VIRTIO_BLK_F_DISCARD      BIT(13)
#define VIRTIO_BLK_F_WRITE_ZEROES BIT(14)

enum {
	VIRTIO_BLK_T_IN = 0,
	VIRTIO_BLK_T_OUT = 1,
	VIRTIO_BLK_T_FLUSH = 4,
	VIRTIO_BLK_T_GET_ID = 8,
	VIRTIO_BLK_T_DISCARD = 11,
	VIRTIO_BLK_T_WRITE_ZEROES = 13,
};

enum { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP };

enum { VIRTIO_BLK_WRITE_ZEROES_UNMAP = 1 };

struct blk_header {
	u32 type;
	u32 reserved;
	u64 sector;
};

struct blk_range {
	u64 sector;
	u32 num_sectors;
	u32 flags;
};

struct blk_request {
	struct block_request request; /* first */
	struct virtio_blk *blk;
	struct blk_request *next; /* on the free list */
	struct blk_header header;
	u16 head;
	u64 in_len; /* bytes of the writable part, status included */
	u8 *status;
	gpa_t status_gpa;
	u64 data_len;
	u32 count;                         /* data segments */
	struct iovec data[VIRTQ_SEGS_MAX]; /* as the guest gave them */
	struct iovec work[VIRTQ_SEGS_MAX]; /* consumed by the back end */
	gpa_t gpa[VIRTQ_SEGS_MAX];
};

static struct virtio_blk *to_blk(struct virtio_device *d)
{
	return container_of(d, struct virtio_blk, virtio);
}

static struct blk_request *request_get(struct virtio_blk *b)
{
	struct blk_request *r = b->spare;

	if (r)
		b->spare = r->next;
	else
		r = malloc(sizeof(*r));
	if (r)
		r->blk = b;
	return r;
}

static void request_put(struct blk_request *r)
{
	r->next = r->blk->spare;
	r->blk->spare = r;
}

static void finish(struct blk_request *r, u8 status)
{
	struct virtqueue *vq = &r->blk->virtio.queue[0];

	*r->status = status;
	mem_unmap(vq->pm, r->status_gpa, 1);
	virtq_push_head(vq, r->head, r->in_len);
	request_put(r);
}

static u8 status_of(int error)
{
	if (!error)
		return VIRTIO_BLK_S_OK;
	return error == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void request_done(struct block_request *request, int error);

/* 5.2.6.2: a driver that did not accept FLUSH gets a write-through disk. */
static bool needs_write_through(const struct blk_request *r)
{
	return r->request.op != BLOCK_READ && r->request.op != BLOCK_FLUSH &&
	       !virtio_has_feature(&r->blk->virtio, VIRTIO_BLK_F_FLUSH);
}

/* Of the host: what the guest itself asks for in vain does not come so far. */
static void report(const struct blk_request *r, int error)
{
	static const char *const names[] = {
		[BLOCK_READ] = "read",       [BLOCK_WRITE] = "write", [BLOCK_FLUSH] = "flush",
		[BLOCK_DISCARD] = "discard", [BLOCK_ZERO] = "zero",
	};

	log_guest("%.*s: %s of %lu bytes at %lu: %s", VIRTIO_BLK_ID_LEN, r->blk->id,
		  names[r->request.op], r->request.len, r->request.offset, strerror(-error));
}

/* The back end is done with the operation in @r; maybe another one has to follow. */
static void operation_done(struct blk_request *r, int error)
{
	struct virtio_blk *b = r->blk;

	if (r->header.type == VIRTIO_BLK_T_IN)
		virtq_mark_written(&b->virtio.queue[0], r->gpa, r->data, r->count, r->data_len);
	if (!error && needs_write_through(r)) {
		r->request.op = BLOCK_FLUSH;
		error = b->block->ops->submit(b->block, &r->request);
		if (error == -EINPROGRESS)
			return;
	}
	if (error && error != -EOPNOTSUPP)
		report(r, error);
	finish(r, status_of(error));
}

static void request_done(struct block_request *request, int error)
{
	struct blk_request *r = container_of(request, struct blk_request, request);

	operation_done(r, error);
}

static void start(struct blk_request *r, enum block_op op, u64 sector, u64 len)
{
	struct block *block = r->blk->block;
	int ret;

	/* The sector number is the guest's: compare before multiplying. */
	if (sector > block->size / BLOCK_SECTOR ||
	    range_exceeds(sector * BLOCK_SECTOR, len, block->size) || len % BLOCK_SECTOR) {
		finish(r, VIRTIO_BLK_S_IOERR);
		return;
	}
	memcpy(r->work, r->data, r->count * sizeof(r->data[0]));
	r->request = (struct block_request){
		.op = op,
		.offset = sector * BLOCK_SECTOR,
		.len = len,
		.iov = r->work,
		.iov_count = r->count,
		.done = request_done,
	};
	ret = block->ops->submit(block, &r->request);
	if (ret != -EINPROGRESS)
		operation_done(r, ret);
}

static void start_transfer(struct blk_request *r)
{
	bool write = r->header.type == VIRTIO_BLK_T_OUT;

	if (!r->data_len || r->data_len > REQUEST_BYTES_MAX || (write && r->blk->block->readonly))
		finish(r, VIRTIO_BLK_S_IOERR);
	else
		start(r, write ? BLOCK_WRITE : BLOCK_READ, r->header.sector, r->data_len);
}

static void start_range(struct blk_request *r, const struct virtq_chain *c)
{
	bool discard = r->header.type == VIRTIO_BLK_T_DISCARD;
	u32 max = discard ? DISCARD_SECTORS_MAX : ZEROES_SECTORS_MAX;
	u32 allowed = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_UNMAP;
	struct blk_range range;

	if (r->data_len != sizeof(range)) {
		finish(r, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	virtq_copy_out(c, sizeof(r->header), &range, sizeof(range));
	r->count = 0;
	if (range.flags & ~allowed)
		finish(r, VIRTIO_BLK_S_UNSUPP); /* 5.2.6.2 */
	else if (range.num_sectors > max || !range.num_sectors || r->blk->block->readonly)
		finish(r, VIRTIO_BLK_S_IOERR);
	else
		start(r, discard ? BLOCK_DISCARD : BLOCK_ZERO, range.sector,
		      (u64)range.num_sectors * BLOCK_SECTOR);
}

static void get_id(struct blk_request *r, const struct virtq_chain *c)
{
	u64 n = MIN(r->data_len, VIRTIO_BLK_ID_LEN);

	virtq_copy_in(c, 0, r->blk->id, n);
	virtq_mark_written(&r->blk->virtio.queue[0], r->gpa, r->data, r->count, n);
	finish(r, VIRTIO_BLK_S_OK);
}

static bool reads_from_guest(u32 type)
{
	return type == VIRTIO_BLK_T_OUT || type == VIRTIO_BLK_T_DISCARD ||
	       type == VIRTIO_BLK_T_WRITE_ZEROES;
}

/* Segments of the chain's data: without the header in front or the status byte at the end. */
static void take_data(struct blk_request *r, const struct virtq_chain *c)
{
	bool out = reads_from_guest(r->header.type);
	u64 skip = out ? sizeof(struct blk_header) : 0;
	u64 left = out ? c->out_len - skip : c->in_len - 1;
	u32 first = out ? 0 : c->out, end = out ? c->out : c->out + c->in;

	r->data_len = left;
	r->count = 0;
	for (u32 i = first; i < end && left; i++) {
		u64 drop = MIN(skip, c->iov[i].iov_len), n = MIN(left, c->iov[i].iov_len - drop);

		skip -= drop;
		if (!n)
			continue;
		r->data[r->count].iov_base = (u8 *)c->iov[i].iov_base + drop;
		r->data[r->count].iov_len = n;
		r->gpa[r->count++] = c->gpa[i] + drop;
		left -= n;
	}
}

/* Segments are never empty, so the last one ends with the status byte. */
static void take_status(struct blk_request *r, const struct virtq_chain *c)
{
	u32 last = c->out + c->in - 1;
	u64 off = c->iov[last].iov_len - 1;

	r->status = (u8 *)c->iov[last].iov_base + off;
	r->status_gpa = c->gpa[last] + off;
}

static bool handle_chain(struct virtio_device *d, struct virtq_chain *c)
{
	struct blk_request *r;

	if (c->out_len < sizeof(r->header) || !c->in_len) {
		virtio_fail(d, "request without header or status");
		return false;
	}
	r = request_get(to_blk(d));
	if (!r) {
		virtio_fail(d, "out of memory for requests");
		return false;
	}
	virtq_copy_out(c, 0, &r->header, sizeof(r->header));
	r->head = c->head;
	r->in_len = c->in_len;
	take_data(r, c);
	take_status(r, c);
	switch (r->header.type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT: start_transfer(r); break;
	case VIRTIO_BLK_T_FLUSH:
		r->count = 0;
		start(r, BLOCK_FLUSH, 0, 0);
		break;
	case VIRTIO_BLK_T_GET_ID: get_id(r, c); break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES: start_range(r, c); break;
	default: finish(r, VIRTIO_BLK_S_UNSUPP); break;
	}
	return true;
}

static void blk_notify(struct virtio_device *d, u32 q)
{
	struct virtio_blk *b = to_blk(d);

	virtio_process(d, q, handle_chain);
	b->block->ops->commit(b->block);
}

static void blk_batch_done(void *opaque)
{
	struct virtio_blk *b = opaque;

	virtio_publish(&b->virtio, 0);
}

static void blk_reset(struct virtio_device *d)
{
	struct virtio_blk *b = to_blk(d);

	b->block->ops->drain(b->block);
}

static const struct virtio_ops blk_ops = {
	.name = "virtio-blk",
	.type = VIRTIO_BLK,
	.class_rev = 0x01000001, /* mass storage, SCSI: what other machines show for virtio disks */
	.notify = blk_notify,
	.config_write = virtio_config_readonly,
	.ready = virtio_no_op,
	.reset = blk_reset,
};

static const struct field blk_fields[] = {VIRTIO_FIELDS(struct virtio_blk)};

const struct device_ops virtio_blk_ops = {
	.name = "virtio-blk",
	.reset = virtio_reset,
	.state =
		{
			.field = blk_fields,
			.count = ARRAY_SIZE(blk_fields),
			.version = 1,
			.loaded = virtio_loaded,
		},
};

static u64 features(const struct block *block)
{
	u64 f = VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE |
		VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY;

	if (block->readonly)
		return f | VIRTIO_BLK_F_RO;
	f |= VIRTIO_BLK_F_WRITE_ZEROES;
	return block->discards ? f | VIRTIO_BLK_F_DISCARD : f;
}

static void fill_config(struct virtio_blk *b)
{
	b->config = (struct virtio_blk_config){
		.capacity = b->block->size / BLOCK_SECTOR,
		.size_max = SEG_BYTES_MAX,
		.seg_max = SEG_MAX,
		.blk_size = BLOCK_SECTOR,
		.physical_block_exp = 3, /* the host's page cache works in 4 KiB */
		.min_io_size = PAGE_SIZE / BLOCK_SECTOR,
		.num_queues = 1,
		.max_discard_sectors = DISCARD_SECTORS_MAX,
		.max_discard_seg = 1,
		.discard_sector_alignment = PAGE_SIZE / BLOCK_SECTOR,
		.max_write_zeroes_sectors = ZEROES_SECTORS_MAX,
		.max_write_zeroes_seg = 1,
		.write_zeroes_may_unmap = b->block->discards,
	};
}

int virtio_blk_init(struct virtio_blk *b, const struct virtio_env *env, struct pci_host *pci,
		    struct block *block, const char *id, struct err *e)
{
	static const u16 sizes[] = {QUEUE_SIZE};

	memset(b, 0, sizeof(*b));
	b->block = block;
	memcpy(b->id, id, strnlen(id, sizeof(b->id)));
	fill_config(b);
	b->virtio.ops = &blk_ops;
	b->virtio.host_features = features(block);
	b->virtio.config = &b->config;
	b->virtio.config_len = sizeof(b->config);
	block->batch_done = blk_batch_done;
	block->opaque = b;
	return virtio_init(&b->virtio, env, pci, sizes, ARRAY_SIZE(sizes), e);
}

void virtio_blk_destroy(struct virtio_blk *b)
{
	b->block->ops->drain(b->block);
	virtio_destroy(&b->virtio);
	while (b->spare) {
		struct blk_request *r = b->spare;

		b->spare = r->next;
		free(r);
	}
}
