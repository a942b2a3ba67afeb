/*
 * Theory of operation
 *
 * Output chains go to the character back end, whose write() never blocks. Input is kept in a small
 * buffer until the guest provides receive buffers; while that buffer is full, room() is 0 and the
 * back end stops reading from the host. room() and receive() come from the loop's thread and take
 * the machine lock.
 */
#include "device/virtio/console.h"

#include <string.h>

enum { QUEUE_RX, QUEUE_TX, QUEUE_SIZE = 64 };

/* Output in one chain beyond this is lost: descriptors may name the same memory again and again. */
enum { CHAIN_BYTES_MAX = 1024 * 1024 };

#define VIRTIO_CONSOLE_F_EMERG_WRITE BIT(2)

static struct virtio_console *to_console(struct virtio_device *d)
{
	return container_of(d, struct virtio_console, virtio);
}

static bool send_chain(struct virtio_device *d, struct virtq_chain *c)
{
	struct chardev *out = to_console(d)->chardev;
	u32 left = CHAIN_BYTES_MAX;

	for (u32 i = 0; i < c->out && left; i++) {
		u32 n = (u32)MIN(c->iov[i].iov_len, left);

		out->ops->write(out, c->iov[i].iov_base, n);
		left -= n;
	}
	virtq_push(&d->queue[QUEUE_TX], c, 0);
	return true;
}

static bool fill_chain(struct virtio_device *d, struct virtq_chain *c)
{
	struct virtio_console *con = to_console(d);
	u32 n = (u32)MIN(con->input_len, c->in_len);

	if (!con->input_len) {
		virtq_unpop(&d->queue[QUEUE_RX], 1);
		return false;
	}
	virtq_copy_in(c, 0, con->input, n);
	con->input_len -= n;
	memmove(con->input, con->input + n, con->input_len);
	virtq_push(&d->queue[QUEUE_RX], c, n);
	return true;
}

static void deliver_input(struct virtio_console *con)
{
	if (con->input_len && virtio_queue_live(&con->virtio, QUEUE_RX))
		virtio_process(&con->virtio, QUEUE_RX, fill_chain);
}

static void console_notify(struct virtio_device *d, u32 q)
{
	struct virtio_console *con = to_console(d);
	bool was_full = con->input_len == sizeof(con->input);

	if (q == QUEUE_TX) {
		virtio_process(d, q, send_chain);
		return;
	}
	deliver_input(con);
	if (was_full && con->input_len < sizeof(con->input))
		con->chardev->ops->kick(con->chardev);
}

static u32 console_room(void *opaque)
{
	struct virtio_console *con = opaque;
	u32 room;

	pthread_mutex_lock(con->virtio.env.lock);
	room = (u32)sizeof(con->input) - con->input_len;
	pthread_mutex_unlock(con->virtio.env.lock);
	return room;
}

static void console_receive(void *opaque, const u8 *data, u32 len)
{
	struct virtio_console *con = opaque;

	pthread_mutex_lock(con->virtio.env.lock);
	len = MIN(len, (u32)sizeof(con->input) - con->input_len);
	memcpy(con->input + con->input_len, data, len);
	con->input_len += len;
	deliver_input(con);
	pthread_mutex_unlock(con->virtio.env.lock);
}

/* 5.3.4: a character for the console without any queue, from a driver in distress. */
static void console_config_write(struct virtio_device *d, u32 off, const u8 *data, u32 len)
{
	struct chardev *out = to_console(d)->chardev;

	if (len && off == offsetof(struct virtio_console_config, emerg_wr))
		out->ops->write(out, data, 1);
}

static void console_reset(struct virtio_device *d)
{
	struct virtio_console *con = to_console(d);

	con->input_len = 0;
	con->chardev->ops->kick(con->chardev);
}

static const struct virtio_ops console_ops = {
	.name = "virtio-console",
	.type = VIRTIO_CONSOLE,
	.class_rev = 0x07800001,
	.notify = console_notify,
	.config_write = console_config_write,
	.ready = virtio_no_op,
	.reset = console_reset,
};

static const struct field console_fields[] = {
	VIRTIO_FIELDS(struct virtio_console),
	FIELD_MAX(FIELD_U32, struct virtio_console, input_len, VIRTIO_CONSOLE_INPUT),
	FIELD_ARRAY(FIELD_BYTES, struct virtio_console, input),
};

const struct device_ops virtio_console_ops = {
	.name = "virtio-console",
	.reset = virtio_reset,
	.state =
		{
			.field = console_fields,
			.count = ARRAY_SIZE(console_fields),
			.version = 1,
			.loaded = virtio_loaded,
		},
};

int virtio_console_init(struct virtio_console *c, const struct virtio_env *env,
			struct pci_host *pci, struct chardev *chardev, struct err *e)
{
	static const u16 sizes[] = {QUEUE_SIZE, QUEUE_SIZE};

	memset(c, 0, sizeof(*c));
	c->chardev = chardev;
	c->config.max_nr_ports = 1;
	c->virtio.ops = &console_ops;
	c->virtio.host_features = VIRTIO_CONSOLE_F_EMERG_WRITE;
	c->virtio.config = &c->config;
	c->virtio.config_len = sizeof(c->config);
	chardev->front = (struct chardev_front){
		.room = console_room, .receive = console_receive, .opaque = c};
	return virtio_init(&c->virtio, env, pci, sizes, ARRAY_SIZE(sizes), e);
}

void virtio_console_destroy(struct virtio_console *c)
{
	virtio_destroy(&c->virtio);
}
