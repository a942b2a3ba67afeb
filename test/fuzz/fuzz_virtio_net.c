/* virtio-net over a back end that reads every frame sent, echoes some, and delivers frames from the
 * input. */
#include "virtio_script.h"

#include "device/virtio/net.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

struct echo {
	struct net_backend backend;
	u8 frame[NET_FRAME_MAX];
};

static void echo_send(struct net_backend *n, struct iovec *iov, u32 count, u32 len,
		      const struct net_offload *o)
{
	struct echo *e = container_of(n, struct echo, backend);
	struct iovec one = {.iov_base = e->frame, .iov_len = len};
	u32 at = 0;

	if (len < NET_HEADER || len > NET_FRAME_MAX)
		abort();
	for (u32 i = 0; i < count; at += (u32)iov[i++].iov_len)
		memcpy(e->frame + at, iov[i].iov_base, iov[i].iov_len);
	if (at != len)
		abort();
	if (o->flags & NET_NEEDS_CSUM && !net_checksum(e->frame, len, o))
		abort(); /* the device checks first */
	if (e->frame[0] & 1)
		n->front.receive(n->front.opaque, &one, 1, o);
}

static void echo_flush(struct net_backend *n)
{
	n->front.flush(n->front.opaque);
}

static void echo_set_offload(struct net_backend *n, u32 can)
{
	(void)n;
	(void)can;
}

static void echo_close(struct net_backend *n)
{
	(void)n;
}

static const struct net_backend_ops echo_ops = {
	.name = "echo",
	.send = echo_send,
	.send_done = echo_flush,
	.kick = echo_flush,
	.set_offload = echo_set_offload,
	.close = echo_close,
};

static void frame_arrives(void *opaque, struct script *s)
{
	struct echo *e = opaque;
	struct net_offload o = {.flags = script_u8(s), .gso_type = script_u8(s)};
	struct iovec iov = {.iov_base = e->frame, .iov_len = script_u16(s) % NET_FRAME_MAX + 1};
	const u8 *p;
	size_t n = script_bytes(s, &p, 32);

	memcpy(e->frame, p, n);
	e->backend.front.receive(e->backend.front.opaque, &iov, 1, &o);
	e->backend.front.flush(e->backend.front.opaque);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static const u8 mac[NET_MAC] = {2, 0, 0, 0, 0, 1};
	static struct echo echo = {
		.backend = {.ops = &echo_ops, .can = NET_CAN_CSUM | NET_CAN_TSO4, .mtu = 1500}};
	static struct test_machine m;
	static struct virtio_net net;

	if (!m.loop) {
		test_machine_init(&m, false);
		virtio_net_init(&net, &m.env, &m.pci, &echo.backend, mac, NULL);
	}
	script_run(&m, &(struct script_device){&net.virtio, &virtio_net_ops}, data, len,
		   frame_arrives, &echo);
	return 0;
}
