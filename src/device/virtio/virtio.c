#include "device/virtio/virtio.h"

#include "base/log.h"

#include <errno.h>
#include <string.h>

enum {
	/* What one doorbell may cost before the rest is left to the loop: bytes in buffers, and so
	 * many for each chain. */
	PROCESS_BUDGET = 64 * 1024 * 1024,
	CHAIN_COST = 64 * 1024,
};

void virtio_config_readonly(struct virtio_device *d, u32 off, const u8 *data, u32 len)
{
	(void)d;
	(void)off;
	(void)data;
	(void)len;
}

void virtio_no_op(struct virtio_device *d)
{
	(void)d;
}

static void run_deferred(void *opaque)
{
	struct virtio_device *d = opaque;
	u32 mask;

	pthread_mutex_lock(d->env.lock);
	mask = d->deferred_mask;
	d->deferred_mask = 0;
	for (u32 q = 0; q < d->queue_count; q++)
		if (mask & 1u << q)
			virtio_notify(d, q);
	pthread_mutex_unlock(d->env.lock);
}

static void reset_core(struct virtio_device *d)
{
	d->features = 0;
	d->host_feature_select = d->feature_select = 0;
	d->queue_select = 0;
	d->config_vector = VIRTQ_NO_VECTOR;
	d->status = 0;
	d->config_generation = 0;
	d->isr = 0;
	d->deferred_mask = 0;
	for (u32 q = 0; q < VIRTIO_QUEUES; q++)
		virtq_reset(&d->queue[q]);
	virtio_pci_reset(d);
}

int virtio_init(struct virtio_device *d, const struct virtio_env *env, struct pci_host *pci,
		const u16 *queue_sizes, u32 queue_count, struct err *e)
{
	d->env = *env;
	d->host_features |= VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
	d->queue_count = queue_count;
	for (u32 q = 0; q < VIRTIO_QUEUES; q++) {
		d->queue[q].size_max = q < queue_count ? queue_sizes[q] : 0;
		d->queue[q].pm = env->pm;
	}
	d->deferred.fire = run_deferred;
	d->deferred.opaque = d;
	reset_core(d);
	return virtio_pci_attach(d, pci, e);
}

void virtio_destroy(struct virtio_device *d)
{
	virtio_pci_detach(d);
	loop_timer_cancel(d->env.loop, &d->deferred);
}

void virtio_reset(void *dev)
{
	struct virtio_device *d = dev;

	d->ops->reset(d);
	reset_core(d);
}

/* FEATURES_OK stays clear when the driver's choice cannot be served (virtio 1.1, 2.2.2 and 3.1.1).
 */
static bool features_acceptable(const struct virtio_device *d)
{
	return !(d->features & ~d->host_features) && d->features & VIRTIO_F_VERSION_1;
}

void virtio_set_status(struct virtio_device *d, u8 status)
{
	bool was_ready = d->status & VIRTIO_DRIVER_OK;

	if (!status) {
		virtio_reset(d);
		return;
	}
	if (status & VIRTIO_FEATURES_OK && !(d->status & VIRTIO_FEATURES_OK) &&
	    !features_acceptable(d))
		status &= (u8)~VIRTIO_FEATURES_OK;
	if (!(status & VIRTIO_FEATURES_OK))
		status &= (u8)~VIRTIO_DRIVER_OK;
	d->status = status | (d->status & VIRTIO_NEEDS_RESET);
	if (!was_ready && d->status & VIRTIO_DRIVER_OK)
		d->ops->ready(d);
}

u32 virtio_host_features(const struct virtio_device *d)
{
	if (d->host_feature_select > 1)
		return 0;
	return (u32)(d->host_features >> 32 * d->host_feature_select);
}

void virtio_set_features(struct virtio_device *d, u32 value)
{
	u32 shift = 32 * (d->feature_select & 1);

	if (d->feature_select > 1 || d->status & VIRTIO_FEATURES_OK)
		return;
	d->features = (d->features & ~(0xfffffffful << shift)) | (u64)value << shift;
}

void virtio_queue_enable(struct virtio_device *d, u32 q)
{
	struct virtqueue *vq = &d->queue[q];

	if (q >= d->queue_count || vq->enabled || !(d->status & VIRTIO_FEATURES_OK))
		return;
	if (!virtq_enable(vq, virtio_has_feature(d, VIRTIO_F_EVENT_IDX),
			  virtio_has_feature(d, VIRTIO_F_INDIRECT_DESC)))
		virtio_fail(d, vq->broken);
}

bool virtio_queue_live(const struct virtio_device *d, u32 q)
{
	return q < d->queue_count && d->queue[q].enabled && !d->queue[q].broken &&
	       (d->status & (VIRTIO_DRIVER_OK | VIRTIO_NEEDS_RESET)) == VIRTIO_DRIVER_OK &&
	       pci_bus_master(&d->pci);
}

void virtio_notify(struct virtio_device *d, u32 q)
{
	if (virtio_queue_live(d, q))
		d->ops->notify(d, q);
}

void virtio_fail(struct virtio_device *d, const char *why)
{
	if (d->status & VIRTIO_NEEDS_RESET)
		return;
	log_guest("%s: the driver broke the protocol: %s", d->ops->name, why);
	d->status |= VIRTIO_NEEDS_RESET;
	/* 2.1.2: notify only a driver that has finished its setup. */
	if (d->status & VIRTIO_DRIVER_OK)
		virtio_pci_interrupt_config(d);
}

bool virtio_pop(struct virtio_device *d, u32 q, struct virtq_chain *c)
{
	int n = virtq_pop(&d->queue[q], c);

	if (n < 0)
		virtio_fail(d, d->queue[q].broken);
	return n > 0;
}

void virtio_publish(struct virtio_device *d, u32 q)
{
	if (virtq_publish(&d->queue[q]))
		virtio_pci_interrupt_queue(d, q);
}

void virtio_config_changed(struct virtio_device *d)
{
	d->config_generation++;
	if (d->status & VIRTIO_DRIVER_OK)
		virtio_pci_interrupt_config(d);
}

static void defer(struct virtio_device *d, u32 q)
{
	d->deferred_mask |= 1u << q;
	loop_timer_arm(d->env.loop, &d->deferred, host_clock_ns());
}

void virtio_process(struct virtio_device *d, u32 q,
		    bool (*handler)(struct virtio_device *d, struct virtq_chain *c))
{
	struct virtqueue *vq = &d->queue[q];
	s64 budget = PROCESS_BUDGET;
	struct virtq_chain c;
	bool more = true;

	virtq_notify_off(vq);
	do {
		while (more && budget > 0 && virtio_pop(d, q, &c)) {
			budget -= (s64)(CHAIN_COST + c.out_len + c.in_len);
			more = handler(d, &c);
		}
		virtio_publish(d, q);
		if (budget <= 0 && more) {
			defer(d, q);
			return;
		}
	} while (virtq_notify_on(vq) && more && virtio_queue_live(d, q));
	if (vq->broken)
		virtio_fail(d, vq->broken);
}

void virtio_config_read(const struct virtio_device *d, u32 off, u8 *data, u32 len)
{
	memset(data, 0, len);
	if (off < d->config_len)
		memcpy(data, (const u8 *)d->config + off, MIN(len, d->config_len - off));
}

void virtio_config_write(struct virtio_device *d, u32 off, const u8 *data, u32 len)
{
	if (!range_exceeds(off, len, d->config_len))
		d->ops->config_write(d, off, data, len);
}

static bool queue_state_is_valid(const struct virtqueue *vq)
{
	return vq->size <= vq->size_max && !(vq->size & (vq->size - 1)) &&
	       (vq->size || !vq->enabled);
}

static int enable_saved_queues(struct virtio_device *d, struct err *e)
{
	if (d->status & VIRTIO_FEATURES_OK && !features_acceptable(d))
		return err_set(e, -EINVAL, "%s: saved features %#lx are not offered here",
			       d->ops->name, d->features);
	for (u32 q = 0; q < VIRTIO_QUEUES; q++) {
		struct virtqueue *vq = &d->queue[q];

		if (!queue_state_is_valid(vq))
			return err_set(e, -EINVAL, "%s: saved queue %u has size %u", d->ops->name,
				       q, vq->size);
		if (vq->enabled && !virtq_enable(vq, virtio_has_feature(d, VIRTIO_F_EVENT_IDX),
						 virtio_has_feature(d, VIRTIO_F_INDIRECT_DESC)))
			return err_set(e, -EINVAL, "%s: saved queue %u: %s", d->ops->name, q,
				       vq->broken);
	}
	return 0;
}

/* @dev is a device type's instance, whose first member is the struct virtio_device. */
int virtio_loaded(void *dev, struct err *e)
{
	struct virtio_device *d = dev;
	int r = enable_saved_queues(d, e);

	/* What is refused is reset next: nobody may take a queue for enabled that has no rings. */
	for (u32 q = 0; r && q < VIRTIO_QUEUES; q++)
		d->queue[q].enabled = false;
	return r;
}
