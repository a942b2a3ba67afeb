/* virtio-console (virtio 1.1, 5.3) with one port, over a character back end. */
#pragma once

#include "device/virtio/virtio.h"
#include "host/chardev.h"

enum { VIRTIO_CONSOLE_INPUT = 4096 };

/* Device configuration space, 5.3.4. */
struct virtio_console_config {
	u16 cols, rows;
	u32 max_nr_ports;
	u32 emerg_wr;
};

struct virtio_console {
	struct virtio_device virtio;
	struct chardev *chardev;
	struct virtio_console_config config;
	u8 input[VIRTIO_CONSOLE_INPUT]; /* typed, but the guest has given no buffer yet */
	u32 input_len;
};

extern const struct device_ops virtio_console_ops;

/* @chardev is borrowed and must outlive the device; its front end is set here. */
int virtio_console_init(struct virtio_console *c, const struct virtio_env *env,
			struct pci_host *pci, struct chardev *chardev, struct err *e);
void virtio_console_destroy(struct virtio_console *c);
