/*
 * Theory of operation
 *
 * Ring memory is mapped once, when the driver enables the queue: physmap regions do not change
 * while the machine runs. Loads and stores of shared words are single C11 atomics, so the compiler
 * can neither tear nor repeat them.
 *
 * Ordering (virtio 1.1, 2.6.13 and 2.6.14):
 *   - avail->idx is loaded with acquire before the entries it covers;
 *   - used entries are stored before used->idx, which is a release store;
 *   - between storing used->idx and loading used_event (or avail->flags), and between storing
 *     avail_event (or used->flags) and loading avail->idx, stands a full barrier: both sides store
 * one word and then load the other's, and at least one must see the other's store.
 */
#include "device/virtio/virtqueue.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

static u16 load16(const u16 *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void store16(const struct virtqueue *vq, u16 *p, u16 v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
	mem_unmap(vq->pm, vq->used_gpa + (u64)((u8 *)p - (u8 *)vq->used), sizeof(*p));
}

static struct vring_desc load_desc(const struct vring_desc *p)
{
	struct vring_desc d;
	const u64 *word = (const u64 *)(const void *)p;
	u64 w[2] = {__atomic_load_n(&word[0], __ATOMIC_RELAXED),
		    __atomic_load_n(&word[1], __ATOMIC_RELAXED)};

	memcpy(&d, w, sizeof(d));
	return d;
}

static int broken(struct virtqueue *vq, const char *why)
{
	if (!vq->broken)
		vq->broken = why;
	return -EINVAL;
}

void virtq_reset(struct virtqueue *vq)
{
	*vq = (struct virtqueue){
		.size = vq->size_max,
		.vector = VIRTQ_NO_VECTOR,
		.size_max = vq->size_max,
		.pm = vq->pm,
	};
}

bool virtq_enable(struct virtqueue *vq, bool event_index, bool indirect)
{
	u64 event = event_index ? sizeof(u16) : 0;
	u64 n = vq->size;

	vq->event_index = event_index;
	vq->indirect = indirect;
	vq->broken = NULL;
	if (vq->desc_gpa & 15 || vq->avail_gpa & 1 || vq->used_gpa & 3) {
		broken(vq, "misaligned ring");
		return false;
	}
	vq->desc = mem_map(vq->pm, vq->desc_gpa, n * sizeof(struct vring_desc), MEM_READ);
	vq->avail = mem_map(vq->pm, vq->avail_gpa,
			    sizeof(struct vring_avail) + n * sizeof(u16) + event, MEM_READ);
	vq->used = mem_map(vq->pm, vq->used_gpa,
			   sizeof(struct vring_used) + n * sizeof(struct vring_used_elem) + event,
			   MEM_WRITE);
	if (!vq->desc || !vq->avail || !vq->used) {
		broken(vq, "ring outside of memory");
		return false;
	}
	vq->avail_seen = vq->last_avail;
	vq->used_published = vq->used_idx;
	vq->enabled = true;
	return true;
}

/* Map [gpa, gpa+len) and append it to the chain; a range across RAM regions takes several segments.
 */
static int add_segments(struct virtqueue *vq, struct virtq_chain *c, const struct vring_desc *d)
{
	bool write = d->flags & VRING_DESC_WRITE;
	gpa_t gpa = d->addr;

	for (u64 n, len = d->len; len; gpa += n, len -= n) {
		const struct physmap_region *r = physmap_find(vq->pm, gpa);
		u32 i = c->out + c->in;

		if (!r || i == VIRTQ_SEGS_MAX)
			return broken(vq, r ? "too many segments" : "buffer outside of memory");
		n = MIN(len, r->size - (gpa - r->gpa));
		c->iov[i].iov_base = mem_map(vq->pm, gpa, n, write ? MEM_WRITE : MEM_READ);
		c->iov[i].iov_len = n;
		c->gpa[i] = gpa;
		if (!c->iov[i].iov_base)
			return broken(vq, "device-writable buffer in read-only memory");
		if (write)
			c->in++;
		else
			c->out++;
	}
	return 0;
}

static int add_descriptor(struct virtqueue *vq, struct virtq_chain *c, const struct vring_desc *d)
{
	if (d->flags & VRING_DESC_WRITE)
		c->in_len += d->len;
	else if (c->in_len)
		return broken(vq, "readable buffer after a writable one"); /* 2.6.4.2 */
	else
		c->out_len += d->len;
	if (c->in_len + c->out_len > UINT32_MAX)
		return broken(vq, "chain longer than 4 GiB"); /* 2.6.5.2 */
	return add_segments(vq, c, d);
}

/* 2.6.5.3: the table is one buffer; its descriptors link by index inside it. */
static int walk_indirect(struct virtqueue *vq, struct virtq_chain *c,
			 const struct vring_desc *table)
{
	u32 count = table->len / sizeof(struct vring_desc), i = 0;
	struct vring_desc d;

	if (!vq->indirect || table->flags & VRING_DESC_NEXT)
		return broken(vq, "indirect descriptor not allowed here");
	if (!count || table->len % sizeof(struct vring_desc))
		return broken(vq, "indirect table of a wrong length");
	for (u32 walked = 0; walked < VIRTQ_CHAIN_MAX; walked++) {
		if (mem_read(vq->pm, table->addr + (u64)i * sizeof(d), &d, sizeof(d)))
			return broken(vq, "indirect table outside of memory");
		if (d.flags & VRING_DESC_INDIRECT)
			return broken(vq, "nested indirect table");
		if (add_descriptor(vq, c, &d))
			return -EINVAL;
		if (!(d.flags & VRING_DESC_NEXT))
			return 0;
		i = d.next;
		if (i >= count)
			return broken(vq, "indirect link out of range");
	}
	return broken(vq, "descriptor chain too long");
}

static int walk_chain(struct virtqueue *vq, struct virtq_chain *c)
{
	u32 i = c->head;

	for (u32 walked = 0; walked < vq->size; walked++) {
		struct vring_desc d = load_desc(&vq->desc[i]);

		if (d.flags & VRING_DESC_INDIRECT)
			return walk_indirect(vq, c, &d);
		if (add_descriptor(vq, c, &d))
			return -EINVAL;
		if (!(d.flags & VRING_DESC_NEXT))
			return 0;
		i = d.next;
		if (i >= vq->size)
			return broken(vq, "descriptor link out of range");
	}
	return broken(vq, "descriptor chain too long");
}

u16 virtq_pending(struct virtqueue *vq)
{
	u16 count;

	if (vq->broken || !vq->enabled)
		return 0;
	vq->avail_seen = __atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE);
	count = vq->avail_seen - vq->last_avail;
	if (count > vq->size) {
		broken(vq, "available index out of range");
		return 0;
	}
	return count;
}

int virtq_pop(struct virtqueue *vq, struct virtq_chain *c)
{
	if (vq->avail_seen == vq->last_avail && !virtq_pending(vq))
		return vq->broken ? -EINVAL : 0;
	if (vq->broken || !vq->enabled)
		return -EINVAL;
	c->head = load16(&vq->avail->ring[vq->last_avail & (vq->size - 1)]);
	c->out = c->in = 0;
	c->out_len = c->in_len = 0;
	if (c->head >= vq->size)
		return broken(vq, "descriptor head out of range");
	if (walk_chain(vq, c))
		return -EINVAL;
	vq->last_avail++;
	return 1;
}

void virtq_unpop(struct virtqueue *vq, u16 count)
{
	vq->last_avail -= count;
}

void virtq_withdraw(struct virtqueue *vq, u16 count)
{
	vq->used_idx -= count;
	vq->last_avail -= count;
}

void virtq_mark_written(const struct virtqueue *vq, const gpa_t *gpa, const struct iovec *iov,
			u32 count, u64 written)
{
	for (u32 i = 0; i < count && written; i++) {
		u64 n = MIN(written, iov[i].iov_len);

		mem_unmap(vq->pm, gpa[i], n);
		written -= n;
	}
}

void virtq_push_head(struct virtqueue *vq, u16 head, u64 written)
{
	struct vring_used_elem *e;

	if (vq->broken || !vq->enabled)
		return;
	e = &vq->used->ring[vq->used_idx++ & (vq->size - 1)];
	__atomic_store_n(&e->id, head, __ATOMIC_RELAXED);
	__atomic_store_n(&e->len, (u32)written, __ATOMIC_RELAXED);
	mem_unmap(vq->pm, vq->used_gpa + (u64)((u8 *)e - (u8 *)vq->used), sizeof(*e));
}

void virtq_push(struct virtqueue *vq, const struct virtq_chain *c, u64 written)
{
	virtq_mark_written(vq, c->gpa + c->out, c->iov + c->out, c->in, written);
	virtq_push_head(vq, c->head, written);
}

/* 2.6.7.2: would crossing from @old to @new pass @event? */
static bool passes_event(u16 event, u16 new, u16 old)
{
	return (u16)(new - event - 1) < (u16)(new - old);
}

bool virtq_publish(struct virtqueue *vq)
{
	u16 old = vq->used_published, new = vq->used_idx;

	if (old == new || vq->broken || !vq->enabled)
		return false;
	store16(vq, &vq->used->idx, new);
	vq->used_published = new;
	atomic_thread_fence(memory_order_seq_cst);
	if (vq->event_index)
		return passes_event(load16(&vq->avail->ring[vq->size]), new, old);
	return !(load16(&vq->avail->flags) & VRING_AVAIL_NO_INTERRUPT);
}

/* The word after the used ring (2.6.8). */
static u16 *avail_event(const struct virtqueue *vq)
{
	return (u16 *)(void *)&vq->used->ring[vq->size];
}

void virtq_notify_off(struct virtqueue *vq)
{
	/* With the event index, not moving avail_event is what keeps the driver silent. */
	if (vq->enabled && !vq->broken && !vq->event_index)
		store16(vq, &vq->used->flags, VRING_USED_NO_NOTIFY);
}

bool virtq_notify_on(struct virtqueue *vq)
{
	u16 seen = vq->avail_seen; /* chains before it may have been left there */

	if (vq->broken || !vq->enabled)
		return false;
	if (vq->event_index)
		store16(vq, avail_event(vq), seen);
	else
		store16(vq, &vq->used->flags, 0);
	atomic_thread_fence(memory_order_seq_cst);
	return virtq_pending(vq) && vq->avail_seen != seen;
}

static u64 copy_segments(const struct iovec *iov, u32 count, u64 off, u8 *buf, u64 len,
			 bool to_guest)
{
	u64 done = 0;

	for (u32 i = 0; i < count && done < len; i++) {
		u64 n;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		n = MIN(len - done, iov[i].iov_len - off);
		if (to_guest)
			memcpy((u8 *)iov[i].iov_base + off, buf + done, n);
		else
			memcpy(buf + done, (u8 *)iov[i].iov_base + off, n);
		done += n;
		off = 0;
	}
	return done;
}

u64 virtq_copy_out(const struct virtq_chain *c, u64 off, void *buf, u64 len)
{
	return copy_segments(c->iov, c->out, off, buf, len, false);
}

u64 virtq_copy_in(const struct virtq_chain *c, u64 off, const void *buf, u64 len)
{
	return copy_segments(c->iov + c->out, c->in, off, (u8 *)buf, len, true);
}
