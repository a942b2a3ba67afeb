/*
 * Split virtqueues (virtio 1.1, 2.6), seen from the device.
 *
 * The guest owns every byte of the rings and may change them at any time. So each descriptor is
 * copied in once, checked, and only the copy is used; a chain has at most VIRTQ_CHAIN_MAX
 * descriptors, which also ends descriptor loops. Buffers are handed out as iovecs into guest RAM
 * obtained from the physmap, never as guest addresses.
 *
 * Anything a conforming driver cannot produce marks the queue broken: virtq_pop() returns -EINVAL
 * from then on, and the device core sets DEVICE_NEEDS_RESET.
 *
 * Threads: all calls under the machine lock. The guest's CPUs run meanwhile, hence the barriers.
 */
#pragma once

#include "memory/physmap.h"

#include <sys/uio.h>

enum {
	VIRTQ_SIZE_MAX = 256,  /* greatest queue size any device offers */
	VIRTQ_CHAIN_MAX = 256, /* descriptors in one chain, indirect ones included */
	/* A descriptor that spans two RAM regions becomes two segments; leave room for a few. */
	VIRTQ_SEGS_MAX = VIRTQ_CHAIN_MAX + 16,
	VIRTQ_NO_VECTOR = 0xffff,
};

/* Ring layout, virtio 1.1 sections 2.6.5 to 2.6.8. All fields little endian. */
struct vring_desc {
	u64 addr;
	u32 len;
	u16 flags; /* VRING_DESC_* */
	u16 next;
};

enum {
	VRING_DESC_NEXT = 1,
	VRING_DESC_WRITE = 2,
	VRING_DESC_INDIRECT = 4,
	VRING_AVAIL_NO_INTERRUPT = 1,
	VRING_USED_NO_NOTIFY = 1,
};

struct vring_avail {
	u16 flags;
	u16 idx;
	u16 ring[]; /* size entries, then used_event */
};

struct vring_used_elem {
	u32 id;
	u32 len;
};

struct vring_used {
	u16 flags;
	u16 idx;
	struct vring_used_elem ring[]; /* size entries, then avail_event */
};

struct virtqueue {
	/* Guest-visible; in the device's field table. */
	u64 desc_gpa, avail_gpa, used_gpa;
	u16 size;       /* power of two, at most size_max */
	u16 vector;     /* MSI-X vector or VIRTQ_NO_VECTOR */
	u16 last_avail; /* next avail ring entry to take */
	u16 used_idx;   /* next used ring entry to fill */
	bool enabled;

	/* Fixed by the device. */
	u16 size_max;
	const struct physmap *pm;

	/* Derived when the queue is enabled. */
	bool event_index; /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;    /* VIRTIO_F_INDIRECT_DESC was negotiated */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	u16 avail_seen;     /* last value read from avail->idx */
	u16 used_published; /* last value written to used->idx */
	const char *broken; /* why the queue is unusable, or NULL */
};

/* A buffer the driver made available: readable segments first, then writable ones. */
struct virtq_chain {
	u16 head;            /* identifies the chain in the used ring */
	u32 out;             /* segments the device reads: iov[0 .. out) */
	u32 in;              /* segments the device writes: iov[out .. out + in) */
	u64 out_len, in_len; /* bytes in them */
	struct iovec iov[VIRTQ_SEGS_MAX];
	gpa_t gpa[VIRTQ_SEGS_MAX]; /* guest address of each segment */
};

/* Back to the state after a device reset: disabled, size at its maximum. */
void virtq_reset(struct virtqueue *vq);

/*
 * Map the rings at the addresses the driver set. False when they are misaligned or not in RAM (then
 * the queue is broken). @event_index and @indirect say what was negotiated.
 */
bool virtq_enable(struct virtqueue *vq, bool event_index, bool indirect);

/* Take the next available chain: 1, 0 when there is none, -EINVAL when the queue is broken. */
int virtq_pop(struct virtqueue *vq, struct virtq_chain *c);

/* Give back the @count chains popped last, untouched. */
void virtq_unpop(struct virtqueue *vq, u16 count);

/* Number of chains available and not yet taken, as far as the ring tells now. */
u16 virtq_pending(struct virtqueue *vq);

/*
 * Return chain @c with @written bytes stored at the start of its writable part. The driver does not
 * see it before virtq_publish().
 */
void virtq_push(struct virtqueue *vq, const struct virtq_chain *c, u64 written);

/* The same in two steps, for requests that outlive their struct virtq_chain. */
void virtq_mark_written(const struct virtqueue *vq, const gpa_t *gpa, const struct iovec *iov,
			u32 count, u64 written);
void virtq_push_head(struct virtqueue *vq, u16 head, u64 written);

/* Take back the @count chains pushed last, which are not published yet, and make them available
 * again. */
void virtq_withdraw(struct virtqueue *vq, u16 count);

/* Make pushed chains visible. True when the driver wants an interrupt for them. */
bool virtq_publish(struct virtqueue *vq);

/* Ask the driver not to notify (a hint). */
void virtq_notify_off(struct virtqueue *vq);

/*
 * Ask for notifications of chains beyond those that virtq_pop() has seen, taken or not. True when
 * some arrived meanwhile, for which none will come.
 */
bool virtq_notify_on(struct virtqueue *vq);

/* Copy between @buf and a segment list from byte @off on; returns the bytes copied (may be short).
 */
u64 virtq_copy_out(const struct virtq_chain *c, u64 off, void *buf, u64 len);
u64 virtq_copy_in(const struct virtq_chain *c, u64 off, const void *buf, u64 len);
