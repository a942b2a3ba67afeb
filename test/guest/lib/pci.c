/*
 * PCI configuration by ports 0xcf8 and 0xcfc, bus 0, function 0 of each device; BARs are put into
 * the 32-bit window one after the other when they are first needed.
 */
#include "pci.h"
#include "x86.h"

enum {
	CONFIG_ADDRESS = 0xcf8,
	CONFIG_DATA = 0xcfc,
	WINDOW = 0xc8000000, /* 1 MiB for each device from here */
	CAPABILITY_VENDOR = 9,
	/* cfg_type of virtio 1.1, 4.1.4 */
	CFG_COMMON = 1,
	CFG_NOTIFY = 2,
	CFG_ISR = 3,
	CFG_DEVICE = 4,
};

u32 pci_read(u32 device, u32 offset)
{
	outl(CONFIG_ADDRESS, 0x80000000 | device << 11 | (offset & 0xfc));
	return inl(CONFIG_DATA);
}

void pci_write(u32 device, u32 offset, u32 value)
{
	outl(CONFIG_ADDRESS, 0x80000000 | device << 11 | (offset & 0xfc));
	outl(CONFIG_DATA, value);
}

/* Give every memory BAR of @device a place and turn memory decoding and bus mastering on. */
static void assign_bars(u32 device)
{
	u32 at = WINDOW + (device << 20);

	pci_write(device, PCI_COMMAND, 0);
	for (u32 i = 0; i < 6; i++) {
		u32 bar = PCI_BAR0 + 4 * i, mask, size;

		pci_write(device, bar, 0xffffffff);
		mask = pci_read(device, bar);
		if (!mask || mask & 1) {
			pci_write(device, bar, 0);
			continue;
		}
		size = ~(mask & ~15u) + 1;
		at = (at + size - 1) & ~(size - 1);
		pci_write(device, bar, at);
		at += size;
		if ((mask & 6) == 4)
			pci_write(device, PCI_BAR0 + 4 * ++i, 0);
	}
	pci_write(device, PCI_COMMAND, 6);
}

static volatile u8 *capability_target(u32 device, u32 cap)
{
	u32 bar = pci_read(device, cap + 4) & 7;

	return (volatile u8 *)(u64)((pci_read(device, PCI_BAR0 + 4 * bar) & ~15u) +
				    pci_read(device, cap + 8));
}

static void read_capabilities(struct virtio *v)
{
	u32 cap = pci_read(v->device, PCI_CAPABILITIES) & 0xfc;

	for (u32 i = 0; cap && i < 48; i++) {
		u32 head = pci_read(v->device, cap);

		if ((head & 0xff) == CAPABILITY_VENDOR) {
			volatile u8 *at = capability_target(v->device, cap);

			switch (head >> 24) {
			case CFG_COMMON: v->common = at; break;
			case CFG_NOTIFY:
				v->notify = at;
				v->notify_multiplier = pci_read(v->device, cap + 16);
				break;
			case CFG_ISR: v->isr = at; break;
			case CFG_DEVICE: v->config = at; break;
			default: break;
			}
		}
		cap = head >> 8 & 0xfc;
	}
}

bool virtio_find(u32 type, struct virtio *v)
{
	for (u32 device = 0; device < 32; device++) {
		if (pci_read(device, 0) != ((0x1040 + type) << 16 | PCI_VENDOR_VIRTIO))
			continue;
		*v = (struct virtio){.device = device};
		assign_bars(device);
		read_capabilities(v);
		return v->common && v->notify;
	}
	return false;
}

void virtio_start(struct virtio *v, u64 features)
{
	features |= 1ull << 32;
	v->common[VIRTIO_STATUS] = 0;
	while (v->common[VIRTIO_STATUS])
		pause();
	v->common[VIRTIO_STATUS] = 1;
	v->common[VIRTIO_STATUS] = 3;
	for (u32 i = 0; i < 2; i++) {
		put32(v->common + VIRTIO_DRIVER_FEATURE_SELECT, i);
		put32(v->common + VIRTIO_DRIVER_FEATURE, (u32)(features >> 32 * i));
	}
	v->common[VIRTIO_STATUS] = 11;
}
