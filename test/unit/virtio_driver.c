#include "virtio_driver.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

enum {
	BAR_REGISTERS_AT = 0x80000000,
	BAR_MSIX_AT = 0x90000000,
	QUEUE_MEMORY = 0x10000, /* per queue; queues start at 1 MiB */
	QUEUE_BASE = 0x100000,
	TABLES_BASE = 0x200000, /* indirect tables, 1 MiB per queue: up to 0x500000 */
	CAP_MSIX = 0x11,
};

static void count_message(void *opaque, u64 address, u32 data)
{
	struct test_machine *m = opaque;

	(void)address;
	m->msi[data % TEST_VECTORS]++;
}

static void set_line(void *opaque, u32 pin, bool level)
{
	struct test_machine *m = opaque;

	m->intx[pin] = level;
}

static void count_write(void *opaque, gpa_t gpa, u64 len)
{
	struct test_machine *m = opaque;

	__atomic_fetch_add(&m->writes, len, __ATOMIC_RELAXED);
	if (m->on_write)
		m->on_write(m->on_write_opaque, gpa, len);
}

static void *run_loop(void *opaque)
{
	struct test_machine *m = opaque;

	loop_run(m->loop);
	return NULL;
}

void test_machine_init(struct test_machine *m, bool loop_start)
{
	struct irq_line line[4];

	memset(m, 0, sizeof(*m));
	physmap_init(&m->pm);
	assert(!physmap_add(&m->pm, 0, TEST_RAM, 0, NULL));
	assert(!physmap_add(&m->pm, TEST_ROM_BASE, TEST_ROM, PHYSMAP_ROM, NULL));
	physmap_listen(&m->pm, (struct physmap_listener){.written = count_write, .opaque = m});
	bus_init(&m->bus);
	for (u32 i = 0; i < 4; i++)
		line[i] = (struct irq_line){.set = set_line, .opaque = m, .pin = i};
	assert(!pci_host_init(&m->pci, &m->bus,
			      (struct msi_sink){.send = count_message, .opaque = m}, line,
			      TEST_ECAM, NULL));
	assert(!loop_create(&m->loop, NULL));
	pthread_mutex_init(&m->lock, NULL);
	m->env = (struct virtio_env){.pm = &m->pm, .loop = m->loop, .lock = &m->lock};
	m->running = loop_start && !pthread_create(&m->thread, NULL, run_loop, m);
}

void test_machine_destroy(struct test_machine *m)
{
	if (m->running) {
		loop_stop(m->loop);
		pthread_join(m->thread, NULL);
	}
	pci_host_destroy(&m->pci);
	bus_destroy(&m->bus);
	loop_destroy(m->loop);
	physmap_destroy(&m->pm);
	pthread_mutex_destroy(&m->lock);
}

u8 *test_ram(struct test_machine *m, gpa_t gpa)
{
	assert(gpa < TEST_RAM);
	return m->pm.region[0].hva + gpa;
}

static u64 locked_read(struct test_machine *m, u64 addr, u32 size)
{
	u64 value;

	pthread_mutex_lock(&m->lock);
	value = bus_read(&m->bus, BUS_MEMORY, addr, size);
	pthread_mutex_unlock(&m->lock);
	return value;
}

static void locked_write(struct test_machine *m, u64 addr, u32 size, u64 value)
{
	pthread_mutex_lock(&m->lock);
	bus_write(&m->bus, BUS_MEMORY, addr, size, value);
	pthread_mutex_unlock(&m->lock);
}

u64 test_read(struct test_driver *t, u64 off, u32 size)
{
	return locked_read(t->m, t->bar + off, size);
}

void test_write(struct test_driver *t, u64 off, u32 size, u64 value)
{
	locked_write(t->m, t->bar + off, size, value);
}

u32 test_config_read(struct test_driver *t, u32 off, u32 size)
{
	return (u32)locked_read(t->m, TEST_ECAM + (t->d->pci.slot << 15) + off, size);
}

void test_config_write(struct test_driver *t, u32 off, u32 size, u32 value)
{
	locked_write(t->m, TEST_ECAM + (t->d->pci.slot << 15) + off, size, value);
}

static void enable_msix(struct test_driver *t)
{
	u64 table = BAR_MSIX_AT + t->d->pci.slot * 0x10000ul;
	u32 cap = test_config_read(t, 0x34, 1);

	while (cap && test_config_read(t, cap, 1) != CAP_MSIX)
		cap = test_config_read(t, cap + 1, 1);
	assert(cap);
	for (u32 v = 0; v <= t->d->queue_count; v++) {
		locked_write(t->m, table + v * 16, 4, 0xfee00000);
		locked_write(t->m, table + v * 16 + 4, 4, 0);
		locked_write(t->m, table + v * 16 + 8, 4, v);
		locked_write(t->m, table + v * 16 + 12, 4, 0);
	}
	test_config_write(t, cap + 2, 2, 0x8000);
}

void test_driver_probe(struct test_driver *t, struct test_machine *m, struct virtio_device *d,
		       bool msix)
{
	*t = (struct test_driver){.m = m, .d = d};
	t->bar = BAR_REGISTERS_AT + d->pci.slot * 0x10000ul;
	test_config_write(t, 0x10 + 4 * 1, 4, (u32)(BAR_MSIX_AT + d->pci.slot * 0x10000ul));
	test_config_write(t, 0x10 + 4 * 4, 4, (u32)t->bar);
	test_config_write(t, 0x10 + 4 * 5, 4, 0);
	test_config_write(t, 0x04, 2, 6);
	if (msix)
		enable_msix(t);
}

void test_driver_negotiate(struct test_driver *t, u64 features)
{
	u64 offered = 0;

	test_write(t, REG_STATUS, 1, 0);
	test_write(t, REG_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
	for (u32 i = 0; i < 2; i++) {
		test_write(t, REG_HOST_FEATURE_SELECT, 4, i);
		offered |= test_read(t, REG_HOST_FEATURE, 4) << 32 * i;
	}
	t->features = (features | VIRTIO_F_VERSION_1) & offered;
	for (u32 i = 0; i < 2; i++) {
		test_write(t, REG_FEATURE_SELECT, 4, i);
		test_write(t, REG_FEATURE, 4, (u32)(t->features >> 32 * i));
	}
	test_write(t, REG_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
	test_write(t, REG_CONFIG_VECTOR, 2, 0);
}

void test_driver_queue(struct test_driver *t, u16 q, u16 size)
{
	struct test_queue *tq = &t->queue[q];
	gpa_t base = QUEUE_BASE + q * QUEUE_MEMORY;

	*tq = (struct test_queue){
		.m = t->m,
		.index = q,
		.size = size,
		.desc = base,
		.avail = base + 0x4000,
		.used = base + 0x8000,
		.table = TABLES_BASE + q * 0x100000,
	};
	memset(test_ram(t->m, base), 0, QUEUE_MEMORY);
	test_write(t, REG_QUEUE_SELECT, 2, q);
	test_write(t, REG_QUEUE_SIZE, 2, size);
	test_write(t, REG_QUEUE_VECTOR, 2, q + 1);
	test_write(t, REG_QUEUE_DESC, 4, (u32)tq->desc);
	test_write(t, REG_QUEUE_DESC + 4, 4, 0);
	test_write(t, REG_QUEUE_AVAIL, 4, (u32)tq->avail);
	test_write(t, REG_QUEUE_AVAIL + 4, 4, 0);
	test_write(t, REG_QUEUE_USED, 4, (u32)tq->used);
	test_write(t, REG_QUEUE_USED + 4, 4, 0);
	test_write(t, REG_QUEUE_ENABLE, 2, 1);
}

void test_driver_ok(struct test_driver *t)
{
	test_write(t, REG_STATUS, 1,
		   VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
}

void test_driver_start(struct test_driver *t, struct test_machine *m, struct virtio_device *d,
		       u64 features)
{
	test_driver_probe(t, m, d, true);
	test_driver_negotiate(t, features);
	for (u32 q = 0; q < d->queue_count; q++) {
		u16 size;

		test_write(t, REG_QUEUE_SELECT, 2, q);
		size = (u16)test_read(t, REG_QUEUE_SIZE, 2);
		test_driver_queue(t, (u16)q, size);
	}
	test_driver_ok(t);
}

static void put_desc(struct test_machine *m, gpa_t at, const struct test_seg *s, bool last,
		     u16 next)
{
	struct vring_desc d = {
		.addr = s->gpa,
		.len = s->len,
		.flags = (u16)((s->write ? VRING_DESC_WRITE : 0) | (last ? 0 : VRING_DESC_NEXT)),
		.next = next,
	};

	memcpy(test_ram(m, at), &d, sizeof(d));
}

static u16 add_direct(struct test_queue *q, const struct test_seg *seg, u32 count)
{
	u16 head = q->next_desc % q->size;

	for (u32 i = 0; i < count; i++) {
		u16 at = q->next_desc++ % q->size;

		put_desc(q->m, q->desc + at * 16ul, &seg[i], i + 1 == count,
			 q->next_desc % q->size);
	}
	return head;
}

static u16 add_indirect(struct test_queue *q, const struct test_seg *seg, u32 count)
{
	u16 head = q->next_desc++ % q->size;
	gpa_t table = q->table + head * PAGE_SIZE;
	struct vring_desc d = {.addr = table, .len = count * 16, .flags = VRING_DESC_INDIRECT};

	for (u32 i = 0; i < count; i++)
		put_desc(q->m, table + i * 16ul, &seg[i], i + 1 == count, (u16)(i + 1));
	memcpy(test_ram(q->m, q->desc + head * 16ul), &d, sizeof(d));
	return head;
}

u16 test_add(struct test_queue *q, const struct test_seg *seg, u32 count, bool indirect)
{
	u16 head = indirect ? add_indirect(q, seg, count) : add_direct(q, seg, count);
	u16 *avail = (u16 *)(void *)test_ram(q->m, q->avail);

	avail[2 + q->avail_idx % q->size] = head;
	q->avail_idx++;
	__atomic_store_n(&avail[1], q->avail_idx, __ATOMIC_SEQ_CST);
	return head;
}

void test_kick(struct test_driver *t, u16 q)
{
	test_write(t, REG_NOTIFY + q * 4ul, 2, q);
}

bool test_used(struct test_queue *q, u32 *id, u32 *len)
{
	u16 *used = (u16 *)(void *)test_ram(q->m, q->used);
	struct vring_used_elem *ring = (void *)(used + 2);
	u32 tries = q->m->running ? 50000 : 1;

	while (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == q->used_seen) {
		if (!--tries)
			return false;
		usleep(100);
	}
	if (id)
		*id = ring[q->used_seen % q->size].id;
	if (len)
		*len = ring[q->used_seen % q->size].len;
	q->used_seen++;
	return true;
}

u32 test_transfer(struct test_driver *t, u16 q, const struct test_seg *seg, u32 count,
		  bool indirect)
{
	u16 head = test_add(&t->queue[q], seg, count, indirect);
	u32 id = ~0u, len = 0;
	bool came_back;

	test_kick(t, q);
	came_back = test_used(&t->queue[q], &id, &len);
	assert(came_back && id == head);
	return len;
}
