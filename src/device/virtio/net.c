/*
 * Theory of operation
 *
 * Every frame has a 12-byte header in front (5.1.6) which says what is left to do: the transmit
 * side passes checksum and segmentation requests to back ends that can serve them (the features
 * offered follow from that), the receive side tells the driver what need not be checked.
 *
 * Receive: a frame is copied into as many buffers as it takes (VIRTIO_NET_F_MRG_RXBUF) and
 * published with the rest of its batch by flush(). When the buffers run out midway, the frame is
 * withdrawn: the used entries were not published yet and the chains go back. The driver's
 * notifications for the receive queue are wanted only then.
 *
 * Transmit: all frames of a doorbell form one batch for the back end, and one interrupt.
 */
#include "device/virtio/net.h"

#include "base/iov.h"

#include <string.h>

enum { QUEUE_RX, QUEUE_TX, QUEUE_CTRL };

/* Feature bits, 5.1.3. */
#define VIRTIO_NET_F_CSUM          BIT(0)
#define VIRTIO_NET_F_GUEST_CSUM    BIT(1)
#define VIRTIO_NET_F_MTU           BIT(3)
#define VIRTIO_NET_F_MAC           BIT(5)
#define VIRTIO_NET_F_GUEST_TSO4    BIT(7)
#define VIRTIO_NET_F_GUEST_TSO6    BIT(8)
#define VIRTIO_NET_F_HOST_TSO4     BIT(11)
#define VIRTIO_NET_F_HOST_TSO6     BIT(12)
#define VIRTIO_NET_F_MRG_RXBUF     BIT(15)
#define VIRTIO_NET_F_STATUS        BIT(16)
#define VIRTIO_NET_F_CTRL_VQ       BIT(17)
#define VIRTIO_NET_F_CTRL_RX       BIT(18)
#define VIRTIO_NET_F_CTRL_RX_EXTRA BIT(20)
#define VIRTIO_NET_F_CTRL_MAC_ADDR BIT(23)

enum {
	VIRTIO_NET_S_LINK_UP = 1,

	VIRTIO_NET_OK = 0,
	VIRTIO_NET_ERR = 1,

	CTRL_RX = 0,
	CTRL_RX_PROMISC = 0,
	CTRL_RX_ALLMULTI = 1,
	CTRL_RX_ALLUNI = 2,
	CTRL_RX_NOMULTI = 3,
	CTRL_RX_NOUNI = 4,
	CTRL_RX_NOBCAST = 5,
	CTRL_MAC = 1,
	CTRL_MAC_TABLE_SET = 0,
	CTRL_MAC_ADDR_SET = 1,
};

struct net_header {
	struct net_offload offload;
	u16 num_buffers;
};

struct control_header {
	u8 class, command;
};

static struct virtio_net *to_net(struct virtio_device *d)
{
	return container_of(d, struct virtio_net, virtio);
}

/* Transmit
 * ----------------------------------------------------------------------------------------- */

static bool segmentation_allowed(const struct virtio_device *d, u8 type)
{
	switch (type & ~NET_GSO_ECN) {
	case NET_GSO_NONE: return true;
	case NET_GSO_TCPV4: return virtio_has_feature(d, VIRTIO_NET_F_HOST_TSO4);
	case NET_GSO_TCPV6: return virtio_has_feature(d, VIRTIO_NET_F_HOST_TSO6);
	default: return false;
	}
}

/* Keep only what was negotiated and makes sense for a frame of @len bytes. False: drop the frame.
 */
static bool check_offload(const struct virtio_device *d, struct net_offload *o, u64 len)
{
	if (!segmentation_allowed(d, o->gso_type))
		return false;
	if (!virtio_has_feature(d, VIRTIO_NET_F_CSUM))
		o->flags = 0;
	o->flags &= NET_NEEDS_CSUM;
	if (!(o->flags & NET_NEEDS_CSUM))
		return o->gso_type == NET_GSO_NONE;
	return o->csum_start < len && !range_exceeds((u64)o->csum_start + o->csum_offset, 2, len);
}

static bool transmit(struct virtio_device *d, struct virtq_chain *c)
{
	struct net_backend *out = to_net(d)->backend;
	struct net_header header;
	struct iovec *iov = c->iov;
	u32 count = c->out;
	u64 len;

	if (c->out_len < sizeof(header)) {
		virtio_fail(d, "frame without a header");
		return false;
	}
	virtq_copy_out(c, 0, &header, sizeof(header));
	len = c->out_len - sizeof(header);
	iov_advance(&iov, &count, sizeof(header));
	if (len >= NET_HEADER && len <= NET_FRAME_MAX && check_offload(d, &header.offload, len))
		out->ops->send(out, iov, count, (u32)len, &header.offload);
	virtq_push(&d->queue[QUEUE_TX], c, 0);
	return true;
}

/* Receive
 * ------------------------------------------------------------------------------------------ */

static bool in_mac_table(const struct virtio_net_filter *f, const u8 *mac)
{
	for (u32 i = 0; i < f->macs; i++)
		if (!memcmp(f->mac[i], mac, NET_MAC))
			return true;
	return false;
}

static bool is_wanted(const struct virtio_net *n, const u8 *to)
{
	static const u8 broadcast[NET_MAC] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	const struct virtio_net_filter *f = &n->filter;

	if (f->promiscuous)
		return true;
	if (!memcmp(to, broadcast, NET_MAC))
		return !f->no_broadcast;
	if (to[0] & 1)
		return !f->no_multicast && (f->all_multicast || in_mac_table(f, to));
	if (f->no_unicast)
		return false;
	return f->all_unicast || !memcmp(to, n->config.mac, NET_MAC) || in_mac_table(f, to);
}

/* What the driver may hear about the frame: only what it negotiated (5.1.6.4.1). */
static struct net_offload visible_offload(const struct virtio_device *d,
					  const struct net_offload *o)
{
	static const struct net_offload nothing;

	return virtio_has_feature(d, VIRTIO_NET_F_GUEST_CSUM) ? *o : nothing;
}

/* A position in the frame being delivered. */
struct frame_reader {
	const struct iovec *iov;
	u32 count;
	u64 skip; /* bytes of iov[0] already taken */
	u64 left;
};

/* Copy the next bytes of the frame into chain @c from offset @off on; returns how many. */
static u64 fill_from_frame(const struct virtq_chain *c, u64 off, struct frame_reader *f)
{
	u64 total = 0;

	while (f->left && f->count) {
		u64 n = MIN(f->left, f->iov->iov_len - f->skip);
		u64 done = virtq_copy_in(c, off + total, (const u8 *)f->iov->iov_base + f->skip, n);

		total += done;
		f->left -= done;
		f->skip += done;
		if (done < n)
			break;
		f->iov++;
		f->count--;
		f->skip = 0;
	}
	return total;
}

/* Further buffers for what did not fit into the first; returns how many, 0 when they ran out. */
static u16 fill_more(struct virtio_device *d, struct frame_reader *f)
{
	struct virtq_chain c;
	u16 used = 0;

	for (; f->left; used++) {
		u64 n;

		if (!virtio_pop(d, QUEUE_RX, &c)) {
			virtq_withdraw(&d->queue[QUEUE_RX], used);
			return 0;
		}
		n = fill_from_frame(&c, 0, f);
		virtq_push(&d->queue[QUEUE_RX], &c, n);
	}
	return used;
}

/* False: not enough buffers; the queue is as before. */
static bool deliver(struct virtio_device *d, struct frame_reader *f, const struct net_offload *o)
{
	struct net_header header = {.offload = *o, .num_buffers = 1};
	struct virtqueue *vq = &d->queue[QUEUE_RX];
	struct virtq_chain c;
	u64 n;

	if (!virtio_pop(d, QUEUE_RX, &c))
		return false;
	if (c.in_len < sizeof(header)) {
		virtio_fail(d, "receive buffer without room for the header");
		return false;
	}
	n = sizeof(header) + fill_from_frame(&c, sizeof(header), f);
	if (f->left && !virtio_has_feature(d, VIRTIO_NET_F_MRG_RXBUF)) {
		virtq_unpop(vq, 1); /* too long for the driver's buffers: lost */
		return true;
	}
	virtq_push_head(vq, c.head, n);
	if (f->left) {
		u16 more = fill_more(d, f);

		if (!more) {
			virtq_withdraw(vq, 1);
			return false;
		}
		header.num_buffers += more;
	}
	virtq_copy_in(&c, 0, &header, sizeof(header));
	virtq_mark_written(vq, c.gpa + c.out, c.iov + c.out, c.in, n);
	return true;
}

static u64 iov_length(const struct iovec *iov, u32 count)
{
	u64 len = 0;

	for (u32 i = 0; i < count; i++)
		len += iov[i].iov_len;
	return len;
}

/*
 * Deliver a frame for which there were too few buffers after all, or ask to be told of new ones
 * (false). Buffers that arrive meanwhile may be too few as well, but not each time for ever.
 */
static bool deliver_late(struct virtio_device *d, const struct frame_reader *f,
			 const struct net_offload *o)
{
	struct virtqueue *vq = &d->queue[QUEUE_RX];

	for (u32 n = 0; n < vq->size && virtq_notify_on(vq); n++) {
		struct frame_reader again = *f;

		if (deliver(d, &again, o) || !virtio_queue_live(d, QUEUE_RX))
			return true;
	}
	return false;
}

static bool net_receive(void *opaque, const struct iovec *iov, u32 count,
			const struct net_offload *o)
{
	struct virtio_net *n = opaque;
	struct virtio_device *d = &n->virtio;
	struct net_offload visible = visible_offload(d, o);
	struct frame_reader f = {.iov = iov, .count = count, .left = iov_length(iov, count)};
	const struct frame_reader whole = f;

	/* A link without a driver behind it loses frames; waiting for one could take for ever. */
	if (!virtio_queue_live(d, QUEUE_RX) || !count || iov->iov_len < NET_MAC ||
	    !is_wanted(n, iov->iov_base))
		return true;
	if (deliver(d, &f, &visible))
		return true;
	if (!virtio_queue_live(d, QUEUE_RX))
		return true;
	n->starved = !deliver_late(d, &whole, &visible);
	return !n->starved;
}

static void net_flush(void *opaque)
{
	struct virtio_net *n = opaque;

	if (virtio_queue_live(&n->virtio, QUEUE_RX))
		virtio_publish(&n->virtio, QUEUE_RX);
}

/* Control
 * ------------------------------------------------------------------------------------------ */

static bool set_rx_mode(struct virtio_net *n, u8 command, const struct virtq_chain *c)
{
	struct virtio_net_filter *f = &n->filter;
	bool *const mode[] = {
		[CTRL_RX_PROMISC] = &f->promiscuous, [CTRL_RX_ALLMULTI] = &f->all_multicast,
		[CTRL_RX_ALLUNI] = &f->all_unicast,  [CTRL_RX_NOMULTI] = &f->no_multicast,
		[CTRL_RX_NOUNI] = &f->no_unicast,    [CTRL_RX_NOBCAST] = &f->no_broadcast,
	};
	u8 on;

	if (command >= ARRAY_SIZE(mode) ||
	    !virtq_copy_out(c, sizeof(struct control_header), &on, 1))
		return false;
	*mode[command] = on;
	return true;
}

/* One of the two tables of a TABLE_SET command at *@off; moves *@off behind it. */
static bool add_macs(struct virtio_net_filter *f, const struct virtq_chain *c, u64 *off,
		     bool *overflow)
{
	u32 count;

	if (virtq_copy_out(c, *off, &count, sizeof(count)) != sizeof(count))
		return false;
	*off += sizeof(count);
	if (range_exceeds(*off, (u64)count * NET_MAC, c->out_len))
		return false;
	*overflow = count > VIRTIO_NET_MACS - f->macs;
	if (!*overflow) {
		virtq_copy_out(c, *off, f->mac[f->macs], (u64)count * NET_MAC);
		f->macs += count;
	}
	*off += (u64)count * NET_MAC;
	return true;
}

/* 5.1.6.5.2: unicast addresses, then multicast ones; too many for us means all of the kind. */
static bool set_mac_table(struct virtio_net *n, const struct virtq_chain *c)
{
	struct virtio_net_filter f = n->filter;
	u64 off = sizeof(struct control_header);
	bool many_unicast, many_multicast;

	f.macs = 0;
	if (!add_macs(&f, c, &off, &many_unicast) || !add_macs(&f, c, &off, &many_multicast))
		return false;
	f.all_unicast |= many_unicast;
	f.all_multicast |= many_multicast;
	n->filter = f;
	return true;
}

static bool set_mac(struct virtio_net *n, u8 command, const struct virtq_chain *c)
{
	u64 off = sizeof(struct control_header);

	if (command == CTRL_MAC_TABLE_SET)
		return set_mac_table(n, c);
	if (command != CTRL_MAC_ADDR_SET || range_exceeds(off, NET_MAC, c->out_len))
		return false;
	virtq_copy_out(c, off, n->config.mac, NET_MAC);
	return true;
}

static bool control(struct virtio_device *d, struct virtq_chain *c)
{
	struct virtio_net *n = to_net(d);
	struct control_header header;
	bool ok = false;
	u8 ack;

	if (virtq_copy_out(c, 0, &header, sizeof(header)) != sizeof(header) || !c->in_len) {
		virtio_fail(d, "control command without header or room for the answer");
		return false;
	}
	if (header.class == CTRL_RX)
		ok = set_rx_mode(n, header.command, c);
	else if (header.class == CTRL_MAC)
		ok = set_mac(n, header.command, c);
	ack = ok ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
	virtq_copy_in(c, 0, &ack, sizeof(ack));
	virtq_push(&d->queue[QUEUE_CTRL], c, sizeof(ack));
	return true;
}

/* The device
 * --------------------------------------------------------------------------------------- */

static void receive_buffers_added(struct virtio_net *n)
{
	if (!n->starved)
		return;
	n->starved = false;
	virtq_notify_off(&n->virtio.queue[QUEUE_RX]);
	n->backend->ops->kick(n->backend);
}

static void net_notify(struct virtio_device *d, u32 q)
{
	struct virtio_net *n = to_net(d);

	switch (q) {
	case QUEUE_RX: receive_buffers_added(n); break;
	case QUEUE_TX:
		virtio_process(d, q, transmit);
		n->backend->ops->send_done(n->backend);
		break;
	case QUEUE_CTRL: virtio_process(d, q, control); break;
	}
}

static void net_ready(struct virtio_device *d)
{
	struct virtio_net *n = to_net(d);
	u32 can = 0;

	if (virtio_has_feature(d, VIRTIO_NET_F_GUEST_CSUM))
		can |= NET_CAN_CSUM;
	if (virtio_has_feature(d, VIRTIO_NET_F_GUEST_TSO4))
		can |= NET_CAN_TSO4;
	if (virtio_has_feature(d, VIRTIO_NET_F_GUEST_TSO6))
		can |= NET_CAN_TSO6;
	n->backend->ops->set_offload(n->backend, can);
	virtq_notify_off(&d->queue[QUEUE_RX]);
	/* The last driver may have left the back end waiting for buffers. */
	n->backend->ops->kick(n->backend);
}

static void reset_net(struct virtio_net *n)
{
	/* Without a control queue nothing else could ask for multicast. */
	n->filter = (struct virtio_net_filter){.all_multicast = true};
	memcpy(n->config.mac, n->initial_mac, NET_MAC);
	n->starved = false;
}

static void net_reset(struct virtio_device *d)
{
	reset_net(to_net(d));
}

static const struct virtio_ops net_ops = {
	.name = "virtio-net",
	.type = VIRTIO_NET,
	.class_rev = 0x02000001,
	.notify = net_notify,
	.config_write = virtio_config_readonly,
	.ready = net_ready,
	.reset = net_reset,
};

static const struct field net_fields[] = {
	VIRTIO_FIELDS(struct virtio_net),
	FIELD_ARRAY(FIELD_BYTES, struct virtio_net, config.mac),
	FIELD(FIELD_BOOL, struct virtio_net, filter.promiscuous),
	FIELD(FIELD_BOOL, struct virtio_net, filter.all_multicast),
	FIELD(FIELD_BOOL, struct virtio_net, filter.all_unicast),
	FIELD(FIELD_BOOL, struct virtio_net, filter.no_multicast),
	FIELD(FIELD_BOOL, struct virtio_net, filter.no_unicast),
	FIELD(FIELD_BOOL, struct virtio_net, filter.no_broadcast),
	FIELD_MAX(FIELD_U32, struct virtio_net, filter.macs, VIRTIO_NET_MACS),
	{.name = "filter.mac",
	 .offset = offsetof(struct virtio_net, filter.mac),
	 .count = VIRTIO_NET_MACS * NET_MAC,
	 .type = FIELD_BYTES},
};

/* After a restore the back end knows nothing yet of what was negotiated. */
static int net_loaded(void *dev, struct err *e)
{
	struct virtio_net *n = dev;
	int ret = virtio_loaded(dev, e);

	if (!ret && n->virtio.status & VIRTIO_DRIVER_OK)
		net_ready(&n->virtio);
	return ret;
}

const struct device_ops virtio_net_ops = {
	.name = "virtio-net",
	.reset = virtio_reset,
	.state =
		{
			.field = net_fields,
			.count = ARRAY_SIZE(net_fields),
			.version = 1,
			.loaded = net_loaded,
		},
};

static u64 features(const struct net_backend *b)
{
	u64 f = VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF |
		VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_RX |
		VIRTIO_NET_F_CTRL_RX_EXTRA | VIRTIO_NET_F_CTRL_MAC_ADDR;

	if (b->mtu)
		f |= VIRTIO_NET_F_MTU;
	if (b->can & NET_CAN_CSUM)
		f |= VIRTIO_NET_F_CSUM;
	if (b->can & NET_CAN_TSO4)
		f |= VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_GUEST_TSO4;
	if (b->can & NET_CAN_TSO6)
		f |= VIRTIO_NET_F_HOST_TSO6 | VIRTIO_NET_F_GUEST_TSO6;
	return f;
}

int virtio_net_init(struct virtio_net *n, const struct virtio_env *env, struct pci_host *pci,
		    struct net_backend *backend, const u8 mac[NET_MAC], struct err *e)
{
	static const u16 sizes[] = {VIRTQ_SIZE_MAX, VIRTQ_SIZE_MAX, 64};

	memset(n, 0, sizeof(*n));
	n->backend = backend;
	memcpy(n->initial_mac, mac, NET_MAC);
	reset_net(n);
	n->config.status = VIRTIO_NET_S_LINK_UP;
	n->config.max_virtqueue_pairs = 1;
	n->config.mtu = backend->mtu;
	n->virtio.ops = &net_ops;
	n->virtio.host_features = features(backend);
	n->virtio.config = &n->config;
	n->virtio.config_len = sizeof(n->config);
	backend->front =
		(struct net_front){.receive = net_receive, .flush = net_flush, .opaque = n};
	return virtio_init(&n->virtio, env, pci, sizes, ARRAY_SIZE(sizes), e);
}

void virtio_net_destroy(struct virtio_net *n)
{
	virtio_destroy(&n->virtio);
}
