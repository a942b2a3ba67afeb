#include "virtio_script.h"

#include "device/virtio/rng.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

/* The period's timer. */
static void refill(void *opaque, struct script *s)
{
	struct virtio_rng *rng = opaque;

	(void)s;
	pthread_mutex_unlock(rng->virtio.env.lock);
	rng->refill.fire(rng->refill.opaque);
	pthread_mutex_lock(rng->virtio.env.lock);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static struct test_machine m;
	static struct virtio_rng rng;

	if (!m.loop) {
		test_machine_init(&m, false);
		virtio_rng_init(&rng, &m.env, &m.pci, NULL);
	}
	script_run(&m, &(struct script_device){&rng.virtio, &virtio_rng_ops}, data, len, refill,
		   &rng);
	return 0;
}
