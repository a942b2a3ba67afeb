/*
 * The virtio device core (virtio 1.1, sections 2 and 3): status, feature negotiation, queues, and
 * the services every device shares. The PCI transport (virtio_pci.c) turns register accesses into
 * the calls below; a device type embeds struct virtio_device first and supplies struct virtio_ops.
 *
 * A device that the guest drives wrongly calls virtio_fail(): DEVICE_NEEDS_RESET is set, the driver
 * gets a configuration interrupt, and all queues stand still until it resets the device.
 *
 * Threads: everything under the machine lock. A doorbell is handled on the vCPU's thread that rang
 * it, or on the loop's (bus/doorbell.h); work beyond a fixed budget continues from a timer on the
 * loop's thread, so that a guest which keeps refilling its rings cannot hold the lock for ever.
 */
#pragma once

#include "bus/doorbell.h"
#include "bus/pci.h"
#include "device/device.h"
#include "device/virtio/virtqueue.h"
#include "host/loop.h"

#include <pthread.h>

enum virtio_type {
	VIRTIO_NET = 1,
	VIRTIO_BLK = 2,
	VIRTIO_CONSOLE = 3,
	VIRTIO_RNG = 4,
	VIRTIO_BALLOON = 5,
};

/* Device status, 2.1. */
enum {
	VIRTIO_ACKNOWLEDGE = 1,
	VIRTIO_DRIVER = 2,
	VIRTIO_DRIVER_OK = 4,
	VIRTIO_FEATURES_OK = 8,
	VIRTIO_NEEDS_RESET = 64,
	VIRTIO_FAILED = 128,
};

/* Feature bits common to all devices, section 6. */
#define VIRTIO_F_INDIRECT_DESC BIT(28)
#define VIRTIO_F_EVENT_IDX     BIT(29)
#define VIRTIO_F_VERSION_1     BIT(32)

enum {
	VIRTIO_QUEUES = 3, /* most queues any device type has */
	VIRTIO_ISR_QUEUE = 1,
	VIRTIO_ISR_CONFIG = 2,
};

/* What a virtio device needs from the machine; copied at init, everything in it is borrowed. */
struct virtio_env {
	const struct physmap *pm;
	struct loop *loop;
	pthread_mutex_t *lock;       /* the machine lock; loop callbacks of the device take it */
	struct doorbells *doorbells; /* NULL: vCPUs do the work of those they ring */
};

struct virtio_device;

struct virtio_ops {
	const char *name; /* of the PCI function, for instance "virtio-blk" */
	enum virtio_type type;
	u32 class_rev; /* PCI class code << 8 | revision */

	/* The driver rang queue @q, which is usable: take what is there. */
	void (*notify)(struct virtio_device *d, u32 q);

	/* The driver stored @len bytes at @off of the configuration space; the bytes are checked to
	 * lie inside it, and are not stored unless the device does so. */
	void (*config_write)(struct virtio_device *d, u32 off, const u8 *data, u32 len);

	/* Features are negotiated and all queues set up: DRIVER_OK was written. */
	void (*ready)(struct virtio_device *d);

	/* The driver resets the device. On return the device must not touch guest memory again. The
	 * core's own state is reset afterwards. */
	void (*reset)(struct virtio_device *d);
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct virtio_env env;
	u64 host_features;  /* offered */
	const void *config; /* device configuration space, as the driver reads it */
	u32 config_len;
	u32 queue_count;

	/* Guest-visible; in the device's field table. */
	u64 features; /* written by the driver; a subset of host_features once FEATURES_OK */
	u32 host_feature_select;
	u32 feature_select;
	u16 queue_select;
	u16 config_vector;
	u8 status;
	u8 config_generation;
	u8 isr;
	struct virtqueue queue[VIRTIO_QUEUES];

	struct doorbell doorbell[VIRTIO_QUEUES]; /* with env.doorbells */

	struct pci_function pci;
	u8 access_cap;              /* offset of the PCI access capability in configuration space */
	struct loop_timer deferred; /* goes on with the queues in deferred_mask */
	u32 deferred_mask;
};

/* The part of a device type's field table that the core owns; @struct_ embeds it as member virtio.
 */
#define VIRTIO_FIELDS(struct_)                                                                  \
	FIELD(FIELD_U64, struct_, virtio.features),                                             \
		FIELD(FIELD_U32, struct_, virtio.host_feature_select),                          \
		FIELD(FIELD_U32, struct_, virtio.feature_select),                               \
		FIELD(FIELD_U16, struct_, virtio.queue_select),                                 \
		FIELD(FIELD_U16, struct_, virtio.config_vector),                                \
		FIELD(FIELD_U8, struct_, virtio.status),                                        \
		FIELD(FIELD_U8, struct_, virtio.config_generation),                             \
		FIELD_MAX(FIELD_U8, struct_, virtio.isr, VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG), \
		FIELD_EACH(FIELD_U64, struct_, virtio.queue, desc_gpa),                         \
		FIELD_EACH(FIELD_U64, struct_, virtio.queue, avail_gpa),                        \
		FIELD_EACH(FIELD_U64, struct_, virtio.queue, used_gpa),                         \
		FIELD_EACH_MAX(FIELD_U16, struct_, virtio.queue, size, VIRTQ_SIZE_MAX),         \
		FIELD_EACH(FIELD_U16, struct_, virtio.queue, vector),                           \
		FIELD_EACH(FIELD_U16, struct_, virtio.queue, last_avail),                       \
		FIELD_EACH(FIELD_U16, struct_, virtio.queue, used_idx),                         \
		FIELD_EACH(FIELD_BOOL, struct_, virtio.queue, enabled)

/*
 * Set up the core and plug the device into @pci: @d is zeroed by the caller except for ops,
 * host_features (device-type bits only; the ring features are added here), config and config_len.
 * @queue_sizes has
 * @queue_count powers of two. Returns 0 or -errno.
 */
int virtio_init(struct virtio_device *d, const struct virtio_env *env, struct pci_host *pci,
		const u16 *queue_sizes, u32 queue_count, struct err *e);

/* Stop the deferred work; the machine is going down. */
void virtio_destroy(struct virtio_device *d);

/* Back to the power-up state. Used as device_ops.reset: @dev is the device type's instance. */
void virtio_reset(void *dev);

/* After a restore: check the loaded state and map the rings. Used as device_state.loaded. */
int virtio_loaded(void *dev, struct err *e);

/* Register semantics the transport forwards. */
void virtio_set_status(struct virtio_device *d, u8 status);
u32 virtio_host_features(const struct virtio_device *d);
void virtio_set_features(struct virtio_device *d, u32 value);
void virtio_queue_enable(struct virtio_device *d, u32 q);
void virtio_notify(struct virtio_device *d, u32 q);
void virtio_config_read(const struct virtio_device *d, u32 off, u8 *data, u32 len);
void virtio_config_write(struct virtio_device *d, u32 off, const u8 *data, u32 len);

/* For device types. */

static inline bool virtio_has_feature(const struct virtio_device *d, u64 bit)
{
	return d->features & bit;
}

/* True while queue @q may be used: the driver is up, the queue is enabled, bus mastering is on. */
bool virtio_queue_live(const struct virtio_device *d, u32 q);

/* The driver broke the protocol: needs-reset, configuration interrupt, rate-limited log line. */
void virtio_fail(struct virtio_device *d, const char *why);

/* virtq_pop() with failure handling: true when @c holds a chain. */
bool virtio_pop(struct virtio_device *d, u32 q, struct virtq_chain *c);

/* Publish what was pushed to queue @q and interrupt the driver if it wants that. */
void virtio_publish(struct virtio_device *d, u32 q);

/* The configuration space changed: bump the generation and tell the driver. */
void virtio_config_changed(struct virtio_device *d);

/*
 * Hand the chains of queue @q to @handler until there is none, the handler returns false (it then
 * has given the chain back or the device has failed), or the budget is spent, in which case the
 * rest follows from the loop. Publishes and leaves notifications on.
 */
void virtio_process(struct virtio_device *d, u32 q,
		    bool (*handler)(struct virtio_device *d, struct virtq_chain *c));

/* For devices whose driver has nothing to write, or that need nothing at DRIVER_OK. */
void virtio_config_readonly(struct virtio_device *d, u32 off, const u8 *data, u32 len);
void virtio_no_op(struct virtio_device *d);

/* Transport side (virtio_pci.c). */
int virtio_pci_attach(struct virtio_device *d, struct pci_host *pci, struct err *e);
void virtio_pci_interrupt_queue(struct virtio_device *d, u32 q);
void virtio_pci_interrupt_config(struct virtio_device *d);
void virtio_pci_reset(struct virtio_device *d);
void virtio_pci_detach(struct virtio_device *d);
