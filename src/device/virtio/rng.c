/*
 * Theory of operation
 *
 * Each chain is filled from getrandom(). Generating numbers costs host time that the guest asks for
 * at will, so there is a budget per period; when it is spent, chains wait in the queue until a
 * timer starts the next period. The timer runs only while something was taken from the budget.
 */
#include "device/virtio/rng.h"

#include <string.h>
#include <sys/random.h>

enum {
	QUEUE_SIZE = 64,
	CHAIN_BYTES_MAX = 4096, /* a longer chain is returned partly filled (5.4.6) */
	PERIOD_BYTES = 256 * 1024,
	PERIOD_NS = 100 * 1000 * 1000,
};

static struct virtio_rng *to_rng(struct virtio_device *d)
{
	return container_of(d, struct virtio_rng, virtio);
}

static void charge(struct virtio_rng *r, u32 bytes)
{
	if (r->budget == PERIOD_BYTES)
		loop_timer_arm(r->virtio.env.loop, &r->refill, host_clock_ns() + PERIOD_NS);
	r->budget -= bytes;
}

static bool fill_chain(struct virtio_device *d, struct virtq_chain *c)
{
	struct virtio_rng *r = to_rng(d);
	u8 bytes[CHAIN_BYTES_MAX];
	u64 want = MIN(c->in_len, sizeof(bytes));
	ssize_t got;

	if (c->out || !want) {
		virtio_fail(d, "entropy request without room");
		return false;
	}
	if (want > r->budget) {
		virtq_unpop(&d->queue[0], 1);
		return false;
	}
	/* The pool is initialised long before a monitor starts, so this neither blocks nor fails;
	 * up to 256 bytes are never cut short, and a short answer is still an answer. */
	got = getrandom(bytes, want, 0);
	if (got <= 0)
		got = 0;
	charge(r, (u32)want);
	virtq_copy_in(c, 0, bytes, (u64)got);
	virtq_push(&d->queue[0], c, (u64)got);
	return true;
}

static void rng_notify(struct virtio_device *d, u32 q)
{
	virtio_process(d, q, fill_chain);
}

static void refill(void *opaque)
{
	struct virtio_rng *r = opaque;

	pthread_mutex_lock(r->virtio.env.lock);
	r->budget = PERIOD_BYTES;
	virtio_notify(&r->virtio, 0);
	pthread_mutex_unlock(r->virtio.env.lock);
}

static const struct virtio_ops rng_ops = {
	.name = "virtio-rng",
	.type = VIRTIO_RNG,
	.class_rev = 0x00ff0001,
	.notify = rng_notify,
	.config_write = virtio_config_readonly,
	.ready = virtio_no_op,
	.reset = virtio_no_op,
};

static const struct field rng_fields[] = {VIRTIO_FIELDS(struct virtio_rng)};

const struct device_ops virtio_rng_ops = {
	.name = "virtio-rng",
	.reset = virtio_reset,
	.state =
		{
			.field = rng_fields,
			.count = ARRAY_SIZE(rng_fields),
			.version = 1,
			.loaded = virtio_loaded,
		},
};

int virtio_rng_init(struct virtio_rng *r, const struct virtio_env *env, struct pci_host *pci,
		    struct err *e)
{
	static const u16 sizes[] = {QUEUE_SIZE};

	memset(r, 0, sizeof(*r));
	r->budget = PERIOD_BYTES;
	r->refill.fire = refill;
	r->refill.opaque = r;
	r->virtio.ops = &rng_ops;
	return virtio_init(&r->virtio, env, pci, sizes, ARRAY_SIZE(sizes), e);
}

void virtio_rng_destroy(struct virtio_rng *r)
{
	loop_timer_cancel(r->virtio.env.loop, &r->refill);
	virtio_destroy(&r->virtio);
}
