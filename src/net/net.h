/*
 * Network back ends: where the guest's Ethernet frames go to and come from.
 *
 * Threads: all back-end functions and all front-end hooks run under the machine lock: send,
 * send_done and kick on the caller's thread, the hooks on that thread or on the loop's, where the
 * back end takes the lock itself. A hook may be called from inside send() and send_done() (an
 * answer the back end makes up at once), but no hook calls send().
 */
#pragma once

#include "base/err.h"
#include "base/types.h"
#include "host/loop.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/uio.h>

enum {
	NET_HEADER = 14,                    /* Ethernet header */
	NET_FRAME_MAX = NET_HEADER + 65535, /* greatest frame either way */
	NET_MAC = 6,
};

/* What a back end can take over from the guest. */
enum {
	NET_CAN_CSUM = 1 << 0, /* send() accepts NET_NEEDS_CSUM */
	NET_CAN_TSO4 = 1 << 1, /* send() accepts TCP segmentation over IPv4 */
	NET_CAN_TSO6 = 1 << 2,
};

/* What a frame still needs, or what is already known of it. Layout as in the kernel's vnet header.
 */
struct net_offload {
	u8 flags;    /* NET_NEEDS_CSUM, NET_DATA_VALID */
	u8 gso_type; /* NET_GSO_* */
	u16 hdr_len;
	u16 gso_size;
	u16 csum_start;  /* checksum from here to the end of the frame ... */
	u16 csum_offset; /* ... and store it so far after csum_start */
};

enum {
	NET_NEEDS_CSUM = 1,
	NET_DATA_VALID = 2, /* checksums are known to be right */
	NET_GSO_NONE = 0,
	NET_GSO_TCPV4 = 1,
	NET_GSO_TCPV6 = 4,
	NET_GSO_ECN = 0x80,
};

struct net_front {
	/* A frame for the guest. False: no room now; offer it again after kick(). */
	bool (*receive)(void *opaque, const struct iovec *iov, u32 count,
			const struct net_offload *o);
	/* The batch of frames is over: interrupt the guest if it wants that. */
	void (*flush)(void *opaque);
	void *opaque;
};

struct net_backend;

struct net_backend_ops {
	const char *name;

	/* Send one frame of @len bytes (NET_HEADER to NET_FRAME_MAX) in @iov (consumed). It may be
	 * lost. */
	void (*send)(struct net_backend *n, struct iovec *iov, u32 count, u32 len,
		     const struct net_offload *o);

	/* A batch of send() calls is over. */
	void (*send_done)(struct net_backend *n);

	/* receive() would succeed again. */
	void (*kick)(struct net_backend *n);

	/* The guest can take NET_CAN_* in received frames. */
	void (*set_offload)(struct net_backend *n, u32 can);

	/* Frees @n. */
	void (*close)(struct net_backend *n);
};

/* Embedded first in every back end. */
struct net_backend {
	const struct net_backend_ops *ops;
	struct net_front front; /* set by the front end before the guest runs */
	u32 can;                /* NET_CAN_* */
	u16 mtu;                /* best packet size for the guest to use; 0: the usual 1500 */
};

enum net_kind { NET_NONE, NET_USER, NET_TAP };

enum { NET_FORWARDS_MAX = 32 };

/* A port on the host that leads into the guest. */
struct net_forward {
	bool udp;
	struct in_addr host, guest; /* host 0.0.0.0: all addresses; guest 0.0.0.0: the DHCP one */
	u16 host_port, guest_port;
};

/* What --net says. */
struct net_spec {
	enum net_kind kind;
	bool isolated; /* restrict=on: the guest reaches nothing but its forwards */
	struct net_forward forward[NET_FORWARDS_MAX];
	u32 forwards;
	char ifname[16]; /* tap; empty: the kernel chooses */
};

/*
 * Parse "user[,hostfwd=tcp:127.0.0.1:8080-:80]...[,restrict=on]", "tap[,ifname=NAME]" or "none".
 * Returns 0, or -EINVAL with @e saying which part is wrong.
 */
int net_spec_parse(const char *text, struct net_spec *spec, struct err *e);

/* Open the back end; *@n is NULL for none. 0 or -errno with one clear line in @e. */
int net_open(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	     struct net_backend **n, struct err *e);

/*
 * Finish the Internet checksum @o asks for in the frame at @frame: the field holds the sum of the
 * pseudo header. False when it does not lie inside the frame.
 */
bool net_checksum(u8 *frame, u32 len, const struct net_offload *o);
