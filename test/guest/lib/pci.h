/*
 * Just enough of PCI and virtio for guests that mean harm: finding devices, their capability
 * structures, and raw access to both.
 */
#pragma once

#include "types.h"

enum {
	PCI_VENDOR_VIRTIO = 0x1af4,
	PCI_COMMAND = 4,
	PCI_BAR0 = 0x10,
	PCI_CAPABILITIES = 0x34,
	VIRTIO_NET = 1,
	VIRTIO_BLOCK = 2,
	VIRTIO_CONSOLE = 3,
	VIRTIO_RNG = 4,
};

u32 pci_read(u32 device, u32 offset);
void pci_write(u32 device, u32 offset, u32 value);

/* A virtio 1.x device whose registers are reachable. */
struct virtio {
	u32 device;          /* slot on bus 0 */
	volatile u8 *common; /* struct virtio_pci_common_cfg, virtio 1.1, 4.1.4.3 */
	volatile u8 *notify; /* queue 0's doorbell */
	volatile u8 *isr, *config;
	u32 notify_multiplier;
};

/* Offsets in the common structure. */
enum virtio_common {
	VIRTIO_DEVICE_FEATURE_SELECT = 0,
	VIRTIO_DEVICE_FEATURE = 4,
	VIRTIO_DRIVER_FEATURE_SELECT = 8,
	VIRTIO_DRIVER_FEATURE = 12,
	VIRTIO_CONFIG_VECTOR = 16,
	VIRTIO_NUM_QUEUES = 18,
	VIRTIO_STATUS = 20,
	VIRTIO_QUEUE_SELECT = 22,
	VIRTIO_QUEUE_SIZE = 24,
	VIRTIO_QUEUE_VECTOR = 26,
	VIRTIO_QUEUE_ENABLE = 28,
	VIRTIO_QUEUE_NOTIFY = 30,
	VIRTIO_QUEUE_DESC = 32,
	VIRTIO_QUEUE_DRIVER = 40,
	VIRTIO_QUEUE_DEVICE = 48,
};

/* The first virtio device of type @type (VIRTIO_BLOCK, ...), with BARs assigned. False: not there.
 */
bool virtio_find(u32 type, struct virtio *v);
/* Reset, take the features in @features besides VERSION_1, stop before DRIVER_OK. */
void virtio_start(struct virtio *v, u64 features);

static inline void put16(volatile u8 *at, u16 value)
{
	*(volatile u16 *)at = value;
}

static inline void put32(volatile u8 *at, u32 value)
{
	*(volatile u32 *)at = value;
}

static inline void put64(volatile u8 *at, u64 value)
{
	put32(at, (u32)value);
	put32(at + 4, (u32)(value >> 32));
}

static inline u16 get16(volatile u8 *at)
{
	return *(volatile u16 *)at;
}
