#include "virtio_script.h"

#include "device/virtio/console.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

/* Reads every byte it is given, so that a sanitizer sees wrong ones. */
static void sink_write(struct chardev *c, const u8 *data, u32 len)
{
	u32 sum = 0;

	(void)c;
	for (u32 i = 0; i < len; i += 61)
		sum += data[i];
	if (sum > len * 255u)
		abort();
}

static void sink_nothing(struct chardev *c)
{
	(void)c;
}

static const struct chardev_ops sink_ops = {
	.name = "sink", .write = sink_write, .kick = sink_nothing, .close = sink_nothing};

static void type_something(void *opaque, struct script *s)
{
	struct chardev *c = opaque;
	struct virtio_console *con = c->front.opaque;
	const u8 *p;
	u32 n, room;

	pthread_mutex_unlock(con->virtio.env.lock);
	room = c->front.room(con);
	n = (u32)script_bytes(s, &p, MIN(room, script_u8(s) * 16u));
	c->front.receive(con, p, n);
	pthread_mutex_lock(con->virtio.env.lock);
	if (con->input_len > sizeof(con->input))
		abort();
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static struct chardev sink = {.ops = &sink_ops};
	static struct virtio_console console;
	static struct test_machine m;

	if (!m.loop) {
		test_machine_init(&m, false);
		virtio_console_init(&console, &m.env, &m.pci, &sink, NULL);
	}
	script_run(&m, &(struct script_device){&console.virtio, &virtio_console_ops}, data, len,
		   type_something, &sink);
	return 0;
}
