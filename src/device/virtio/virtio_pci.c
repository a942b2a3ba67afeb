/*
 * Theory of operation
 *
 * Virtio over PCI, modern interface only (virtio 1.1, 4.1). One 16 KiB memory BAR holds four
 *register blocks, one page each, so that a hypervisor of the guest's own could map the doorbells
 *alone:
 *
 *	0x0000 common configuration    0x1000 ISR
 *	0x2000 device configuration    0x3000 doorbells, 4 bytes per queue
 *
 * MSI-X lives in a BAR of its own: vector 0 up to the number of queues. Without MSI-X the function
 *falls back to INTx, level held until the driver reads the ISR (4.1.4.5).
 *
 * Reads of the common block build its 56-byte image and copy from it, so any width and offset
 *works. Writes take effect only at exact field boundaries, as 4.1.3.1 demands of the driver.
 */
#include "device/virtio/virtio.h"

#include <string.h>

enum {
	PCI_VENDOR_VIRTIO = 0x1af4,
	PCI_DEVICE_MODERN = 0x1040, /* plus the device type */
	PCI_CAP_VENDOR = 9,

	BAR_MSIX = 1,
	BAR_REGISTERS = 4,
	BAR_SIZE = 0x4000,
	BLOCK_SIZE = 0x1000,
	NOTIFY_MULTIPLIER = 4,
};

enum register_block { BLOCK_COMMON, BLOCK_ISR, BLOCK_DEVICE, BLOCK_NOTIFY };

/* Capability types, 4.1.4. */
enum {
	CAP_COMMON_CFG = 1,
	CAP_NOTIFY_CFG = 2,
	CAP_ISR_CFG = 3,
	CAP_DEVICE_CFG = 4,
	CAP_PCI_CFG = 5,
};

/* struct virtio_pci_cap, followed by what the notify and PCI access capabilities add. */
struct capability {
	u8 id, next, len, type;
	u8 bar, reserved[3];
	u32 offset;
	u32 length;
	u32 extra; /* notify_off_multiplier, or pci_cfg_data */
};

/* struct virtio_pci_common_cfg, 4.1.4.3. */
struct common_cfg {
	u32 device_feature_select;
	u32 device_feature;
	u32 driver_feature_select;
	u32 driver_feature;
	u16 msix_config;
	u16 num_queues;
	u8 device_status;
	u8 config_generation;
	u16 queue_select;
	u16 queue_size;
	u16 queue_msix_vector;
	u16 queue_enable;
	u16 queue_notify_off;
	u32 queue_desc_lo, queue_desc_hi;
	u32 queue_driver_lo, queue_driver_hi;
	u32 queue_device_lo, queue_device_hi;
};

static struct virtqueue *selected_queue(struct virtio_device *d)
{
	return d->queue_select < d->queue_count ? &d->queue[d->queue_select] : NULL;
}

static u32 active_features(const struct virtio_device *d)
{
	return d->feature_select > 1 ? 0 : (u32)(d->features >> 32 * d->feature_select);
}

static void common_image(struct virtio_device *d, struct common_cfg *c)
{
	const struct virtqueue *vq = selected_queue(d);

	*c = (struct common_cfg){
		.device_feature_select = d->host_feature_select,
		.device_feature = virtio_host_features(d),
		.driver_feature_select = d->feature_select,
		.driver_feature = active_features(d),
		.msix_config = d->config_vector,
		.num_queues = (u16)d->queue_count,
		.device_status = d->status,
		.config_generation = d->config_generation,
		.queue_select = d->queue_select,
	};
	if (!vq) {
		c->queue_msix_vector = VIRTQ_NO_VECTOR;
		return; /* queue_size 0: no such queue */
	}
	c->queue_size = vq->size;
	c->queue_msix_vector = vq->vector;
	c->queue_enable = vq->enabled;
	c->queue_notify_off = d->queue_select;
	c->queue_desc_lo = (u32)vq->desc_gpa;
	c->queue_desc_hi = (u32)(vq->desc_gpa >> 32);
	c->queue_driver_lo = (u32)vq->avail_gpa;
	c->queue_driver_hi = (u32)(vq->avail_gpa >> 32);
	c->queue_device_lo = (u32)vq->used_gpa;
	c->queue_device_hi = (u32)(vq->used_gpa >> 32);
}

static void set_low(u64 *reg, u64 value)
{
	*reg = (*reg & ~0xfffffffful) | (u32)value;
}

static void set_high(u64 *reg, u64 value)
{
	*reg = (u32)*reg | value << 32;
}

/* 4.1.5.1.2.1: a vector that does not exist reads back as "none", which tells the driver. */
static u16 valid_vector(const struct virtio_device *d, u64 value)
{
	return value < d->pci.msix_count ? (u16)value : VIRTQ_NO_VECTOR;
}

/* 2.6: a power of two, not above what the device offers; anything else is ignored. */
static void set_queue_size(struct virtqueue *vq, u64 size)
{
	if (size && size <= vq->size_max && !(size & (size - 1)))
		vq->size = (u16)size;
}

static void queue_write(struct virtio_device *d, u64 off, u64 value)
{
	struct virtqueue *vq = selected_queue(d);

	if (!vq)
		return;
	if (off == offsetof(struct common_cfg, queue_msix_vector)) {
		vq->vector = valid_vector(d, value);
		return;
	}
	if (vq->enabled)
		return;
	switch (off) {
	case offsetof(struct common_cfg, queue_size): set_queue_size(vq, value); break;
	case offsetof(struct common_cfg, queue_desc_lo): set_low(&vq->desc_gpa, value); break;
	case offsetof(struct common_cfg, queue_desc_hi): set_high(&vq->desc_gpa, value); break;
	case offsetof(struct common_cfg, queue_driver_lo): set_low(&vq->avail_gpa, value); break;
	case offsetof(struct common_cfg, queue_driver_hi): set_high(&vq->avail_gpa, value); break;
	case offsetof(struct common_cfg, queue_device_lo): set_low(&vq->used_gpa, value); break;
	case offsetof(struct common_cfg, queue_device_hi): set_high(&vq->used_gpa, value); break;
	case offsetof(struct common_cfg, queue_enable):
		if (value == 1)
			virtio_queue_enable(d, d->queue_select);
		break;
	default: break;
	}
}

static void common_write(struct virtio_device *d, u64 off, u64 value)
{
	switch (off) {
	case offsetof(struct common_cfg, device_feature_select):
		d->host_feature_select = (u32)value;
		break;
	case offsetof(struct common_cfg, driver_feature_select):
		d->feature_select = (u32)value;
		break;
	case offsetof(struct common_cfg, driver_feature): virtio_set_features(d, (u32)value); break;
	case offsetof(struct common_cfg, msix_config):
		d->config_vector = valid_vector(d, value);
		break;
	case offsetof(struct common_cfg, device_status): virtio_set_status(d, (u8)value); break;
	case offsetof(struct common_cfg, queue_select): d->queue_select = (u16)value; break;
	default: queue_write(d, off, value); break;
	}
}

static u8 isr_read(struct virtio_device *d)
{
	u8 isr = d->isr;

	d->isr = 0;
	pci_intx_set(&d->pci, false);
	return isr;
}

static u64 register_read(void *dev, u64 off, u32 size)
{
	struct virtio_device *d = dev;
	u64 in_block = off % BLOCK_SIZE, value = 0;
	struct common_cfg c;

	switch ((enum register_block)(off / BLOCK_SIZE)) {
	case BLOCK_COMMON:
		common_image(d, &c);
		if (in_block < sizeof(c))
			memcpy(&value, (u8 *)&c + in_block, MIN(size, sizeof(c) - in_block));
		break;
	case BLOCK_ISR: value = in_block ? 0 : isr_read(d); break;
	case BLOCK_DEVICE: virtio_config_read(d, (u32)in_block, (u8 *)&value, size); break;
	case BLOCK_NOTIFY: break;
	}
	return value;
}

static void register_write(void *dev, u64 off, u32 size, u64 value)
{
	struct virtio_device *d = dev;
	u64 in_block = off % BLOCK_SIZE;

	switch ((enum register_block)(off / BLOCK_SIZE)) {
	case BLOCK_COMMON: common_write(d, in_block, value); break;
	case BLOCK_ISR: break;
	case BLOCK_DEVICE: virtio_config_write(d, (u32)in_block, (const u8 *)&value, size); break;
	case BLOCK_NOTIFY:
		if (in_block % NOTIFY_MULTIPLIER == 0)
			virtio_notify(d, (u32)(in_block / NOTIFY_MULTIPLIER));
		break;
	}
}

static const struct bus_ops register_ops = {
	.read = register_read,
	.write = register_write,
	.min = 1,
	.max = 4,
};

/* The PCI access capability (4.1.4.7): a window into the BARs for drivers that cannot map them. */
static struct capability *access_window(struct pci_function *f)
{
	struct virtio_device *d = f->dev;

	return (struct capability *)(void *)&f->config[d->access_cap];
}

static bool access_window_is_valid(const struct capability *c)
{
	u32 len = c->length;

	return c->bar == BAR_REGISTERS && (len == 1 || len == 2 || len == 4) &&
	       c->offset % len == 0 && !range_exceeds(c->offset, len, BAR_SIZE);
}

static bool touches_access_data(const struct pci_function *f, u32 off, u32 len)
{
	const struct virtio_device *d = f->dev;
	u32 data = d->access_cap + offsetof(struct capability, extra);

	return off < data + sizeof(u32) && data < off + len;
}

static void config_reading(struct pci_function *f, u32 off, u32 len)
{
	struct capability *c = access_window(f);

	if (touches_access_data(f, off, len) && access_window_is_valid(c))
		c->extra = (u32)register_read(f->dev, c->offset, c->length);
}

static void config_written(struct pci_function *f, u32 off, u32 len)
{
	struct capability *c = access_window(f);

	if (touches_access_data(f, off, len) && access_window_is_valid(c))
		register_write(f->dev, c->offset, c->length,
			       c->extra & (c->length == 4 ? ~0u : (1u << 8 * c->length) - 1));
}

static u32 add_capability(struct virtio_device *d, u8 type, u32 block, u32 length, u32 extra)
{
	bool long_form = type == CAP_NOTIFY_CFG || type == CAP_PCI_CFG;
	struct capability c = {
		.len = long_form ? sizeof(c) : offsetof(struct capability, extra),
		.type = type,
		.bar = type == CAP_PCI_CFG ? 0 : BAR_REGISTERS,
		.offset = block * BLOCK_SIZE,
		.length = length,
		.extra = extra,
	};

	return pci_function_capability(&d->pci, PCI_CAP_VENDOR, &c, c.len);
}

static void add_capabilities(struct virtio_device *d)
{
	add_capability(d, CAP_COMMON_CFG, BLOCK_COMMON, sizeof(struct common_cfg), 0);
	add_capability(d, CAP_ISR_CFG, BLOCK_ISR, 1, 0);
	if (d->config_len)
		add_capability(d, CAP_DEVICE_CFG, BLOCK_DEVICE, d->config_len, 0);
	add_capability(d, CAP_NOTIFY_CFG, BLOCK_NOTIFY, d->queue_count * NOTIFY_MULTIPLIER,
		       NOTIFY_MULTIPLIER);
	d->access_cap = (u8)add_capability(d, CAP_PCI_CFG, 0, 0, 0);
	d->pci.wmask[d->access_cap + offsetof(struct capability, bar)] = 0xff;
	memset(&d->pci.wmask[d->access_cap + offsetof(struct capability, offset)], 0xff,
	       3 * sizeof(u32));
}

/* ---- doorbells through events ---- */

static void doorbell_rung(void *opaque, u32 index)
{
	virtio_notify(opaque, index);
}

static void bar_moved(struct pci_function *f, u32 i)
{
	struct virtio_device *d = f->dev;
	const u64 at = f->bar[i].mapped_at, first = (u64)BLOCK_NOTIFY * BLOCK_SIZE;

	if (i != BAR_REGISTERS)
		return;
	for (u32 q = 0; q < d->queue_count; q++)
		if (at == ~0ul)
			doorbell_remove(&d->doorbell[q]);
		else
			doorbell_place(&d->doorbell[q], at + first + (u64)q * NOTIFY_MULTIPLIER);
}

void virtio_pci_detach(struct virtio_device *d)
{
	for (u32 q = 0; q < d->queue_count; q++)
		doorbell_close(&d->doorbell[q]);
	if (d->pci.host)
		pci_msix_close_events(&d->pci);
}

static int open_doorbells(struct virtio_device *d, struct err *e)
{
	int r = 0;

	for (u32 q = 0; q < d->queue_count && d->env.doorbells && !r; q++) {
		d->doorbell[q] = (struct doorbell){.rung = doorbell_rung, .opaque = d, .index = q};
		r = doorbell_open(d->env.doorbells, &d->doorbell[q], e);
	}
	if (r)
		virtio_pci_detach(d);
	return r;
}

int virtio_pci_attach(struct virtio_device *d, struct pci_host *pci, struct err *e)
{
	static const struct pci_bar registers = {
		.size = BAR_SIZE, .is_64bit = true, .ops = &register_ops};
	static const struct pci_bar msix = {.size = PAGE_SIZE};
	u16 type = (u16)d->ops->type;
	int ret;

	pci_function_init(&d->pci, d->ops->name, PCI_VENDOR_VIRTIO, PCI_DEVICE_MODERN + type,
			  d->ops->class_rev, PCI_VENDOR_VIRTIO, PCI_DEVICE_MODERN + type);
	d->pci.dev = d;
	d->pci.pin = 1;
	pci_function_bar(&d->pci, BAR_REGISTERS, &registers);
	pci_function_bar(&d->pci, BAR_MSIX, &msix);
	pci_function_msix(&d->pci, BAR_MSIX, d->queue_count + 1);
	add_capabilities(d);
	d->pci.config_reading = config_reading;
	d->pci.config_written = config_written;
	d->pci.bar_moved = bar_moved;
	ret = open_doorbells(d, e);
	if (ret)
		return ret;
	ret = pci_attach(pci, &d->pci, -1);
	if (ret < 0) {
		virtio_pci_detach(d);
		return err_set(e, ret, "%s: no free PCI slot", d->ops->name);
	}
	ret = pci_msix_open_events(&d->pci, e);
	if (ret)
		virtio_pci_detach(d);
	return ret;
}

static void interrupt(struct virtio_device *d, u16 vector, u8 isr)
{
	if (pci_msix_enabled(&d->pci)) {
		if (vector < d->pci.msix_count)
			pci_msix_notify(&d->pci, vector);
		return;
	}
	d->isr |= isr;
	pci_intx_set(&d->pci, true);
}

void virtio_pci_interrupt_queue(struct virtio_device *d, u32 q)
{
	interrupt(d, d->queue[q].vector, VIRTIO_ISR_QUEUE);
}

void virtio_pci_interrupt_config(struct virtio_device *d)
{
	interrupt(d, d->config_vector, VIRTIO_ISR_CONFIG);
}

void virtio_pci_reset(struct virtio_device *d)
{
	if (d->pci.host)
		pci_intx_set(&d->pci, false);
}
