/* virtio-net (virtio 1.1, 5.1): one queue pair and a control queue, over a network back end. */
#pragma once

#include "device/virtio/virtio.h"
#include "net/net.h"

enum { VIRTIO_NET_MACS = 64 };

/* Device configuration space, 5.1.4. */
struct virtio_net_config {
	u8 mac[NET_MAC];
	u16 status;
	u16 max_virtqueue_pairs;
	u16 mtu;
};

/* Which frames the driver wants, 5.1.6.5.1 and 5.1.6.5.2. */
struct virtio_net_filter {
	bool promiscuous, all_multicast, all_unicast;
	bool no_multicast, no_unicast, no_broadcast;
	u32 macs;
	u8 mac[VIRTIO_NET_MACS][NET_MAC];
};

struct virtio_net {
	struct virtio_device virtio;
	struct net_backend *backend;
	struct virtio_net_config config;
	u8 initial_mac[NET_MAC];
	struct virtio_net_filter filter;
	bool starved; /* the back end waits for receive buffers */
};

extern const struct device_ops virtio_net_ops;

/* @backend is borrowed and must outlive the device; its front end is set here. */
int virtio_net_init(struct virtio_net *n, const struct virtio_env *env, struct pci_host *pci,
		    struct net_backend *backend, const u8 mac[NET_MAC], struct err *e);
void virtio_net_destroy(struct virtio_net *n);
