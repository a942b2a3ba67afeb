/*
 * Theory of operation
 *
 * --net tap: a network interface of the host, one frame per read() and write(), each with the
 * kernel's vnet header in front, so that checksums and TCP segmentation are left to the host's
 * stack and cost the guest nothing. Needs an interface made for this user beforehand, or
 * CAP_NET_ADMIN.
 *
 * When the guest has no room the descriptor is taken out of the loop until kick(); the kernel then
 * keeps or drops frames by the interface's queue length.
 */
#include "net/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
	VNET_HEADER = 12, /* struct net_offload and the buffer count, which a tap does not use */
	READ_BATCH = 64,  /* frames before other descriptors get their turn */
	IOV_MAX_SEGS = 300,
};

struct tap {
	struct net_backend backend;
	struct loop *loop;
	pthread_mutex_t *lock;
	struct loop_fd watch;
	u32 held; /* bytes in buf that the guest had no room for, header included */
	u8 buf[VNET_HEADER + NET_FRAME_MAX];
};

static struct tap *to_tap(struct net_backend *n)
{
	return container_of(n, struct tap, backend);
}

static void tap_send(struct net_backend *n, struct iovec *iov, u32 count, u32 len,
		     const struct net_offload *o)
{
	struct iovec all[IOV_MAX_SEGS + 1];
	u8 header[VNET_HEADER] = {0};

	(void)len;
	if (count > IOV_MAX_SEGS)
		return;
	memcpy(header, o, sizeof(*o));
	all[0] = (struct iovec){.iov_base = header, .iov_len = sizeof(header)};
	memcpy(all + 1, iov, count * sizeof(*iov));
	/* A full queue loses the frame, as Ethernet does. */
	if (writev(to_tap(n)->watch.fd, all, (int)count + 1) < 0)
		return;
}

static void tap_send_done(struct net_backend *n)
{
	n->front.flush(n->front.opaque);
}

/* False: the guest has no room. */
static bool deliver_held(struct tap *t)
{
	struct iovec iov = {.iov_base = t->buf + VNET_HEADER, .iov_len = t->held - VNET_HEADER};
	struct net_offload o;

	memcpy(&o, t->buf, sizeof(o));
	if (!t->backend.front.receive(t->backend.front.opaque, &iov, 1, &o))
		return false;
	t->held = 0;
	return true;
}

static void read_frames(struct tap *t)
{
	bool room = !t->held || deliver_held(t);

	for (u32 i = 0; room && i < READ_BATCH; i++) {
		ssize_t n = read(t->watch.fd, t->buf, sizeof(t->buf));

		if (n < VNET_HEADER + NET_HEADER)
			break;
		t->held = (u32)n;
		room = deliver_held(t);
	}
	t->backend.front.flush(t->backend.front.opaque);
	if (!room)
		loop_modify(t->loop, &t->watch, 0);
}

static void tap_ready(void *opaque, u32 events)
{
	struct tap *t = opaque;

	(void)events;
	pthread_mutex_lock(t->lock);
	read_frames(t);
	pthread_mutex_unlock(t->lock);
}

static void tap_kick(struct net_backend *n)
{
	struct tap *t = to_tap(n);

	loop_modify(t->loop, &t->watch, LOOP_READ);
	read_frames(t);
}

static void tap_set_offload(struct net_backend *n, u32 can)
{
	unsigned int flags = (can & NET_CAN_CSUM ? TUN_F_CSUM : 0) |
			     (can & NET_CAN_TSO4 ? TUN_F_TSO4 : 0) |
			     (can & NET_CAN_TSO6 ? TUN_F_TSO6 : 0);

	/* A kernel that refuses delivers plain frames, which is right as well. */
	if (ioctl(to_tap(n)->watch.fd, TUNSETOFFLOAD, (unsigned long)flags))
		return;
}

static void tap_close(struct net_backend *n)
{
	struct tap *t = to_tap(n);

	loop_remove(t->loop, &t->watch);
	close(t->watch.fd);
	free(t);
}

static const struct net_backend_ops tap_ops = {
	.name = "tap",
	.send = tap_send,
	.send_done = tap_send_done,
	.kick = tap_kick,
	.set_offload = tap_set_offload,
	.close = tap_close,
};

static int open_interface(const char ifname[IFNAMSIZ], struct err *e)
{
	struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), header = VNET_HEADER;

	if (fd < 0)
		return err_set(e, -errno, "/dev/net/tun: %s", strerror(errno));
	memcpy(req.ifr_name, ifname, sizeof(req.ifr_name));
	if (ioctl(fd, TUNSETIFF, &req) || ioctl(fd, TUNSETVNETHDRSZ, &header)) {
		int ret = err_set(
			e, -errno, "tap %s: %s%s", ifname, strerror(errno),
			errno == EPERM ? "; make it first: ip tuntap add NAME mode tap user $USER"
				       : "");

		close(fd);
		return ret;
	}
	return fd;
}

int tap_create(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	       struct net_backend **n, struct err *e)
{
	struct tap *t = calloc(1, sizeof(*t));
	int fd, ret;

	if (!t)
		return err_set(e, -ENOMEM, "out of memory");
	fd = open_interface(spec->ifname, e);
	if (fd < 0) {
		free(t);
		return fd;
	}
	t->backend = (struct net_backend){
		.ops = &tap_ops,
		.front = net_front_none,
		.can = NET_CAN_CSUM | NET_CAN_TSO4 | NET_CAN_TSO6,
	};
	t->loop = loop;
	t->lock = lock;
	t->watch = (struct loop_fd){.fd = fd, .events = LOOP_READ, .ready = tap_ready, .opaque = t};
	ret = loop_add(loop, &t->watch);
	if (ret) {
		close(fd);
		free(t);
		return err_set(e, ret, "event loop: %s", strerror(-ret));
	}
	*n = &t->backend;
	return 0;
}
