/* virtio-net (virtio 1.1, 5.1) over a back end that records, and over libslirp; and --net parsing.
 */
#include "virtio_driver.h"

#include "device/virtio/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	HEADER = 12,
	TX = 0x500000,
	RX = 0x600000,
	CTRL = 0x700000,
	QUEUE_RX = 0,
	QUEUE_TX = 1,
	QUEUE_CTRL = 2,
	F_CSUM = 1 << 0,
	F_GUEST_CSUM = 1 << 1,
	F_MRG_RXBUF = 1 << 15,
};

static const u8 guest_mac[NET_MAC] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

struct recorder {
	struct net_backend backend;
	u8 frame[NET_FRAME_MAX];
	u32 len, sent, batches, kicks;
	struct net_offload offload;
};

struct fixture {
	struct test_machine m;
	struct recorder out;
	struct virtio_net net;
	struct test_driver t;
	u32 late; /* buffers that the driver adds when the device asks to be told of them */
};

static void record_send(struct net_backend *n, struct iovec *iov, u32 count, u32 len,
			const struct net_offload *o)
{
	struct recorder *r = container_of(n, struct recorder, backend);

	r->len = 0;
	for (u32 i = 0; i < count; i++) {
		memcpy(r->frame + r->len, iov[i].iov_base, iov[i].iov_len);
		r->len += (u32)iov[i].iov_len;
	}
	assert_int_equal(r->len, len);
	r->offload = *o;
	r->sent++;
}

static void record_send_done(struct net_backend *n)
{
	container_of(n, struct recorder, backend)->batches++;
}

static void record_kick(struct net_backend *n)
{
	container_of(n, struct recorder, backend)->kicks++;
}

static void ignore_offload(struct net_backend *n, u32 can)
{
	(void)n;
	(void)can;
}

static void ignore_close(struct net_backend *n)
{
	(void)n;
}

static const struct net_backend_ops record_ops = {
	.name = "recorder",
	.send = record_send,
	.send_done = record_send_done,
	.kick = record_kick,
	.set_offload = ignore_offload,
	.close = ignore_close,
};

static int setup(void **state)
{
	static struct fixture f;

	test_machine_init(&f.m, false);
	f.out.backend = (struct net_backend){.ops = &record_ops, .can = NET_CAN_CSUM, .mtu = 9000};
	assert_int_equal(
		virtio_net_init(&f.net, &f.m.env, &f.m.pci, &f.out.backend, guest_mac, NULL), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_net_destroy(&f->net);
	test_machine_destroy(&f->m);
	return 0;
}

static void restart(struct fixture *f, u64 features)
{
	test_driver_start(&f->t, &f->m, &f->net.virtio, features);
	f->out.sent = f->out.batches = f->out.kicks = 0;
}

static void virtio_5_1_4_configuration(void **state)
{
	struct fixture *f = *state;

	restart(f, ~0ul);
	for (u32 i = 0; i < NET_MAC; i++)
		assert_int_equal(test_read(&f->t, REG_DEVICE + i, 1), guest_mac[i]);
	assert_int_equal(test_read(&f->t, REG_DEVICE + 6, 2), 1); /* link up */
	assert_int_equal(test_read(&f->t, REG_DEVICE + 10, 2), 9000);
}

static void virtio_5_1_6_2_transmit(void **state)
{
	struct fixture *f = *state;
	struct test_seg seg[] = {{TX, HEADER + 10, false}, {TX + 0x1000, 90, false}};

	restart(f, ~0ul);
	memset(test_ram(&f->m, TX), 0, HEADER);
	memset(test_ram(&f->m, TX + HEADER), 'a', 10);
	memset(test_ram(&f->m, TX + 0x1000), 'b', 90);
	assert_int_equal(test_transfer(&f->t, QUEUE_TX, seg, 2, true), 0);
	assert_int_equal(f->out.sent, 1);
	assert_int_equal(f->out.batches, 1);
	assert_int_equal(f->out.len, 100);
	assert_int_equal(f->out.frame[9], 'a');
	assert_int_equal(f->out.frame[10], 'b');
}

static void transmit_header(struct fixture *f, u8 flags, u8 gso, u16 start, u16 offset, u32 len)
{
	struct test_seg seg = {TX, HEADER + len, false};
	struct net_offload o = {
		.flags = flags, .gso_type = gso, .csum_start = start, .csum_offset = offset};

	memset(test_ram(&f->m, TX), 0, HEADER);
	memcpy(test_ram(&f->m, TX), &o, sizeof(o));
	test_transfer(&f->t, QUEUE_TX, &seg, 1, false);
}

static void virtio_5_1_6_2_offload_is_checked(void **state)
{
	struct fixture *f = *state;

	restart(f, ~0ul);
	transmit_header(f, NET_NEEDS_CSUM, 0, 34, 16, 100);
	assert_int_equal(f->out.sent, 1);
	assert_int_equal(f->out.offload.flags, NET_NEEDS_CSUM);
	transmit_header(f, NET_NEEDS_CSUM, 0, 34, 65, 100); /* field outside of the frame */
	transmit_header(f, NET_NEEDS_CSUM, 0, 100, 0, 100);
	transmit_header(f, NET_NEEDS_CSUM, 0, 0xffff, 0xffff, 100);
	transmit_header(f, NET_NEEDS_CSUM, NET_GSO_TCPV4, 34, 16, 100); /* not negotiated */
	transmit_header(f, 0, 77, 0, 0, 100);
	transmit_header(f, 0, 0, 0, 0, 13); /* no Ethernet header */
	transmit_header(f, 0, 0, 0, 0, NET_FRAME_MAX + 1);
	assert_int_equal(f->out.sent, 1);
	transmit_header(f, 0, 0, 0, 0, NET_FRAME_MAX);
	assert_int_equal(f->out.sent, 2);
	restart(f, ~(u64)F_CSUM);
	transmit_header(f, NET_NEEDS_CSUM, 0, 34, 16, 100);
	assert_int_equal(f->out.offload.flags, 0);
}

static void frame_without_header_needs_a_reset(void **state)
{
	struct fixture *f = *state;
	struct test_seg seg = {TX, HEADER - 1, false};

	restart(f, ~0ul);
	test_add(&f->t.queue[QUEUE_TX], &seg, 1, false);
	test_kick(&f->t, QUEUE_TX);
	assert_true(test_read(&f->t, REG_STATUS, 1) & VIRTIO_NEEDS_RESET);
}

static void add_rx(struct fixture *f, u32 count, u32 size)
{
	for (u32 i = 0; i < count; i++) {
		u32 slot = f->t.queue[QUEUE_RX].avail_idx % 64u;
		struct test_seg seg = {RX + slot * 0x2000, size, true};

		test_add(&f->t.queue[QUEUE_RX], &seg, 1, false);
	}
}

static bool deliver(struct fixture *f, const void *frame, u32 len)
{
	static const struct net_offload valid = {.flags = NET_DATA_VALID};
	struct iovec iov[] = {{(void *)frame, 20}, {(u8 *)frame + 20, len - 20}};
	struct net_front *front = &f->out.backend.front;
	bool taken = front->receive(front->opaque, iov, 2, &valid);

	front->flush(front->opaque);
	return taken;
}

static void make_frame(u8 *frame, u32 len, const u8 *to)
{
	for (u32 i = 0; i < len; i++)
		frame[i] = (u8)(i * 7);
	memcpy(frame, to, NET_MAC);
}

static void virtio_5_1_6_4_receive(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000], *buf = NULL;
	u32 id, len;

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	add_rx(f, 1, 0x2000);
	f->m.msi[1] = 0;
	assert_true(deliver(f, frame, sizeof(frame)));
	assert_true(test_used(&f->t.queue[QUEUE_RX], &id, &len));
	assert_int_equal(len, HEADER + sizeof(frame));
	buf = test_ram(&f->m, RX);
	assert_int_equal(buf[0], NET_DATA_VALID);
	assert_int_equal(buf[10], 1); /* num_buffers */
	assert_memory_equal(buf + HEADER, frame, sizeof(frame));
	assert_int_equal(f->m.msi[1], 1);
	/* Without GUEST_CSUM nothing is said about checksums. */
	restart(f, ~(u64)F_GUEST_CSUM);
	add_rx(f, 1, 0x2000);
	assert_true(deliver(f, frame, sizeof(frame)));
	assert_int_equal(test_ram(&f->m, RX)[0], 0);
}

static void virtio_5_1_6_4_mergeable_buffers(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000], got[1000];
	u32 at = 0, len;

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	add_rx(f, 4, 256);
	/* 244 + 3 * 256 = 1012: just enough. */
	assert_true(deliver(f, frame, sizeof(frame)));
	assert_int_equal(test_ram(&f->m, RX)[10], 4);
	for (u32 i = 0; i < 4; i++) {
		u32 skip = i ? 0 : HEADER;

		assert_true(test_used(&f->t.queue[QUEUE_RX], NULL, &len));
		memcpy(got + at, test_ram(&f->m, RX + i * 0x2000) + skip, len - skip);
		at += len - skip;
	}
	assert_int_equal(at, sizeof(frame));
	assert_memory_equal(got, frame, sizeof(frame));
}

static void virtio_5_1_6_3_back_pressure(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000];

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	assert_false(deliver(f, frame, sizeof(frame)));
	add_rx(f, 3, 256); /* not enough for one frame: nothing is used up */
	test_kick(&f->t, QUEUE_RX);
	assert_int_equal(f->out.kicks, 1);
	assert_false(deliver(f, frame, sizeof(frame)));
	assert_false(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
	add_rx(f, 1, 256);
	test_kick(&f->t, QUEUE_RX);
	assert_int_equal(f->out.kicks, 2);
	assert_true(deliver(f, frame, sizeof(frame)));
	test_kick(&f->t, QUEUE_RX); /* no one waits now */
	assert_int_equal(f->out.kicks, 2);
	for (u32 i = 0; i < 4; i++)
		assert_true(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
}

/* As a driver does with the event index (2.6.7.2): when the device asked for it. */
static void kick_if_asked(struct fixture *f, u16 added)
{
	struct test_queue *q = &f->t.queue[QUEUE_RX];
	u16 event;

	memcpy(&event, test_ram(&f->m, q->used + 4 + 8ul * q->size), sizeof(event));
	if ((u16)(q->avail_idx - event - 1) < added)
		test_kick(&f->t, QUEUE_RX);
}

/* A frame that needs more buffers than there are: the ones that follow are what it waits for. */
static void virtio_2_6_7_2_too_few_buffers(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000];

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	add_rx(f, 2, 256);
	assert_false(deliver(f, frame, sizeof(frame)));
	add_rx(f, 1, 256);
	kick_if_asked(f, 1);
	assert_int_equal(f->out.kicks, 1);
	assert_false(deliver(f, frame, sizeof(frame)));
	add_rx(f, 1, 256);
	kick_if_asked(f, 1);
	assert_int_equal(f->out.kicks, 2);
	assert_true(deliver(f, frame, sizeof(frame)));
	assert_true(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
}

static void add_late_buffer(void *opaque, gpa_t gpa, u64 len)
{
	struct fixture *f = opaque;
	struct test_queue *q = &f->t.queue[QUEUE_RX];

	(void)len;
	if (gpa != q->used + 4 + 8ul * q->size || !f->late)
		return;
	f->late--;
	add_rx(f, 1, 256);
}

/* Buffers that arrive, one at a time, while the device asks to be told of them. */
static void virtio_2_6_7_2_late_buffers(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000];

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	add_rx(f, 1, 256);
	f->late = 2;
	f->m.on_write = add_late_buffer;
	f->m.on_write_opaque = f;
	assert_false(deliver(f, frame, sizeof(frame)));
	add_rx(f, 1, 256);
	kick_if_asked(f, 1);
	assert_int_equal(f->out.kicks, 1);
	assert_true(deliver(f, frame, sizeof(frame)));
	/* All that are needed while it asks. */
	restart(f, ~0ul);
	f->late = 4;
	assert_true(deliver(f, frame, sizeof(frame)));
	f->m.on_write = NULL;
}

static void too_long_without_mergeable_buffers_is_lost(void **state)
{
	struct fixture *f = *state;
	u8 frame[1000];

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~(u64)F_MRG_RXBUF);
	add_rx(f, 1, 500);
	assert_true(deliver(f, frame, sizeof(frame)));
	assert_false(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
	assert_true(deliver(f, frame, 400));
	assert_true(test_used(&f->t.queue[QUEUE_RX], NULL, NULL));
}

static void frames_before_the_driver_are_lost(void **state)
{
	struct fixture *f = *state;
	u8 frame[100];

	make_frame(frame, sizeof(frame), guest_mac);
	restart(f, ~0ul);
	test_write(&f->t, REG_STATUS, 1, 0);
	assert_true(deliver(f, frame, sizeof(frame)));
}

static u8 command(struct fixture *f, u8 class, u8 cmd, const void *data, u32 len)
{
	struct test_seg seg[] = {{CTRL, 2 + len, false}, {CTRL + 0x1000, 1, true}};
	u8 *p = test_ram(&f->m, CTRL);

	p[0] = class;
	p[1] = cmd;
	memcpy(p + 2, data, len);
	p[0x1000] = 0xee;
	test_transfer(&f->t, QUEUE_CTRL, seg, 2, false);
	return test_ram(&f->m, CTRL + 0x1000)[0];
}

static bool accepts(struct fixture *f, const u8 *mac)
{
	u8 frame[64];

	make_frame(frame, sizeof(frame), mac);
	add_rx(f, 1, 0x1000);
	assert_true(deliver(f, frame, sizeof(frame)));
	return test_used(&f->t.queue[QUEUE_RX], NULL, NULL);
}

static void virtio_5_1_6_5_receive_filter(void **state)
{
	static const u8 other[] = {2, 0, 0, 0, 0, 1}, multi[] = {1, 0, 0x5e, 0, 0, 1};
	static const u8 broadcast[] = {255, 255, 255, 255, 255, 255};
	static const u8 table[] = {1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1};
	static const u8 on = 1, off = 0;
	struct fixture *f = *state;

	restart(f, ~0ul);
	assert_true(accepts(f, guest_mac));
	assert_true(accepts(f, broadcast));
	assert_false(accepts(f, other));
	assert_int_equal(command(f, 0, 1, &off, 1), 0); /* not all multicast */
	assert_false(accepts(f, multi));
	assert_int_equal(command(f, 1, 0, table, sizeof(table)), 0);
	assert_true(accepts(f, multi));
	assert_true(accepts(f, other));
	assert_int_equal(command(f, 0, 5, &on, 1), 0); /* no broadcast */
	assert_false(accepts(f, broadcast));
	assert_int_equal(command(f, 0, 0, &on, 1), 0); /* promiscuous */
	assert_true(accepts(f, broadcast));
	assert_int_equal(command(f, 0, 0, &off, 1), 0);
	assert_int_equal(command(f, 1, 1, other, 6), 0); /* another address */
	assert_int_equal(test_read(&f->t, REG_DEVICE + 5, 1), 1);
	assert_true(accepts(f, other));
	assert_false(accepts(f, guest_mac));
	/* Nonsense is refused and changes nothing. */
	assert_int_equal(command(f, 0, 6, &on, 1), 1);
	assert_int_equal(command(f, 9, 0, &on, 1), 1);
	assert_int_equal(command(f, 1, 1, other, 5), 1);
	assert_int_equal(command(f, 1, 0, "\xff\xff\xff\xff", 4), 1);
	assert_int_equal(command(f, 1, 0, table, 10), 1);
	assert_true(accepts(f, multi));
}

static void checksum_is_the_internet_checksum(void **state)
{
	/* RFC 1071's example: sum ddf2, checksum 220d. */
	u8 frame[20] = {0, 0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0};
	struct net_offload o = {.csum_start = 2, .csum_offset = 8};

	(void)state;
	assert_true(net_checksum(frame, 12, &o));
	assert_int_equal(frame[10], 0x22);
	assert_int_equal(frame[11], 0x0d);
	o.csum_offset = 9;
	assert_false(net_checksum(frame, 12, &o));
	o.csum_start = 12;
	assert_false(net_checksum(frame, 12, &o));
	memset(frame, 0xff, sizeof(frame));
	o = (struct net_offload){.csum_start = 1, .csum_offset = 0};
	assert_true(net_checksum(frame, 8, &o)); /* odd length */
}

static void spec_is_parsed(void **state)
{
	static const char *const bad[] = {
		"",
		"bridge",
		"user,",
		"user,ifname=x",
		"user,restrict=maybe",
		"user,hostfwd=tcp::80",
		"user,hostfwd=sctp::80-:80",
		"user,hostfwd=tcp::0-:80",
		"user,hostfwd=tcp::80-:65536",
		"user,hostfwd=tcp:1.2.3:80-:80",
		"user,hostfwd=tcp::-1-:80",
		"tap,restrict=on",
		"tap,ifname=averyverylongname",
		"none,x=y",
		"tap,ifname=a/b",
	};
	struct net_spec s;
	struct err e;

	(void)state;
	assert_int_equal(net_spec_parse("user,hostfwd=tcp:127.0.0.1:8080-:80,restrict=on,"
					"hostfwd=udp::53-10.0.2.20:5353",
					&s, &e),
			 0);
	assert_int_equal(s.kind, NET_USER);
	assert_true(s.isolated);
	assert_int_equal(s.forwards, 2);
	assert_int_equal(s.forward[0].host.s_addr, htonl(INADDR_LOOPBACK));
	assert_int_equal(s.forward[0].host_port, 8080);
	assert_int_equal(s.forward[0].guest_port, 80);
	assert_true(s.forward[1].udp);
	assert_int_equal(s.forward[1].guest.s_addr, inet_addr("10.0.2.20"));
	assert_int_equal(net_spec_parse("tap,ifname=tap7", &s, &e), 0);
	assert_string_equal(s.ifname, "tap7");
	assert_int_equal(net_spec_parse("none", &s, &e), 0);
	assert_int_equal(s.kind, NET_NONE);
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(net_spec_parse(bad[i], &s, &e), -EINVAL);
}

/* An ARP request for the router, through the device, libslirp and back. */
static void user_network_answers_arp(void **state)
{
	static const u8 arp[] = {
		255, 255, 255, 255, 255, 255, 0x52, 0x54, 0,    0x12, 0x34, 0x56, 8,    6,  0,
		1,   8,   0,   6,   4,   0,   1,    0x52, 0x54, 0,    0x12, 0x34, 0x56, 10, 0,
		2,   15,  0,   0,   0,   0,   0,    0,    10,   0,    2,    2,    0,    0,  0,
		0,   0,   0,   0,   0,   0,   0,    0,    0,    0,    0,    0,    0,    0,  0,
	};
	struct test_seg rx = {RX, 0x2000, true}, tx = {TX, HEADER + sizeof(arp), false};
	static struct test_machine m;
	static struct virtio_net net;
	struct net_backend *user;
	struct net_spec spec;
	struct test_driver t;
	u32 len;

	(void)state;
	test_machine_init(&m, true);
	assert_int_equal(net_spec_parse("user", &spec, NULL), 0);
	assert_int_equal(net_open(&spec, m.loop, &m.lock, &user, NULL), 0);
	assert_int_equal(virtio_net_init(&net, &m.env, &m.pci, user, guest_mac, NULL), 0);
	test_driver_start(&t, &m, &net.virtio, ~0ul);
	test_add(&t.queue[QUEUE_RX], &rx, 1, false);
	memset(test_ram(&m, TX), 0, HEADER);
	memcpy(test_ram(&m, TX + HEADER), arp, sizeof(arp));
	test_transfer(&t, QUEUE_TX, &tx, 1, false);
	assert_true(test_used(&t.queue[QUEUE_RX], NULL, &len));
	assert_true(len >= HEADER + 42);
	assert_memory_equal(test_ram(&m, RX + HEADER), guest_mac, 6);
	assert_int_equal(test_ram(&m, RX + HEADER)[21], 2); /* reply */
	pthread_mutex_lock(&m.lock);
	virtio_net_destroy(&net);
	user->ops->close(user);
	pthread_mutex_unlock(&m.lock);
	test_machine_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(virtio_5_1_4_configuration),
		cmocka_unit_test(virtio_5_1_6_2_transmit),
		cmocka_unit_test(virtio_5_1_6_2_offload_is_checked),
		cmocka_unit_test(frame_without_header_needs_a_reset),
		cmocka_unit_test(virtio_5_1_6_4_receive),
		cmocka_unit_test(virtio_5_1_6_4_mergeable_buffers),
		cmocka_unit_test(virtio_5_1_6_3_back_pressure),
		cmocka_unit_test(virtio_2_6_7_2_too_few_buffers),
		cmocka_unit_test(virtio_2_6_7_2_late_buffers),
		cmocka_unit_test(too_long_without_mergeable_buffers_is_lost),
		cmocka_unit_test(frames_before_the_driver_are_lost),
		cmocka_unit_test(virtio_5_1_6_5_receive_filter),
		cmocka_unit_test(checksum_is_the_internet_checksum),
		cmocka_unit_test(spec_is_parsed),
		cmocka_unit_test(user_network_answers_arp),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
