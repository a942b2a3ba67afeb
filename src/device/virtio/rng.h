/* virtio-rng (virtio 1.1, 5.4): the host's random numbers, at a bounded rate. */
#pragma once

#include "device/virtio/virtio.h"

struct virtio_rng {
	struct virtio_device virtio;
	u32 budget; /* bytes left in the current period */
	struct loop_timer refill;
};

extern const struct device_ops virtio_rng_ops;

int virtio_rng_init(struct virtio_rng *r, const struct virtio_env *env, struct pci_host *pci,
		    struct err *e);
void virtio_rng_destroy(struct virtio_rng *r);
