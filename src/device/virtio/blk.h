/* virtio-blk (virtio 1.1, 5.2): one queue over a block back end. */
#pragma once

#include "block/block.h"
#include "device/virtio/virtio.h"

enum { VIRTIO_BLK_ID_LEN = 20 };

/* Device configuration space, 5.2.4. */
struct virtio_blk_config {
	u64 capacity; /* in 512-byte sectors */
	u32 size_max; /* bytes in one segment */
	u32 seg_max;  /* data segments in one request */
	u16 cylinders;
	u8 heads, sectors;
	u32 blk_size;
	u8 physical_block_exp;
	u8 alignment_offset;
	u16 min_io_size;
	u32 opt_io_size;
	u8 writeback;
	u8 unused0;
	u16 num_queues;
	u32 max_discard_sectors;
	u32 max_discard_seg;
	u32 discard_sector_alignment;
	u32 max_write_zeroes_sectors;
	u32 max_write_zeroes_seg;
	u8 write_zeroes_may_unmap;
	u8 unused1[3];
};

struct blk_request;

struct virtio_blk {
	struct virtio_device virtio;
	struct block *block;
	struct virtio_blk_config config;
	char id[VIRTIO_BLK_ID_LEN];
	struct blk_request *spare; /* free list; as many as were ever in flight at once */
};

extern const struct device_ops virtio_blk_ops;

/*
 * @id is what the guest sees as the serial number, cut to 20 bytes. @block is borrowed and must
 * outlive the device. Returns 0 or -errno.
 */
int virtio_blk_init(struct virtio_blk *b, const struct virtio_env *env, struct pci_host *pci,
		    struct block *block, const char *id, struct err *e);

/* Waits for what is in flight. The caller closes the block back end afterwards. */
void virtio_blk_destroy(struct virtio_blk *b);
