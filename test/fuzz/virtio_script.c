#include "virtio_script.h"

#include "damage.h"

#include <string.h>

enum {
	STEPS_MAX = 400,
	SEGS_MAX = 8,
	DATA_BASE = 0x600000,
};

enum step {
	STEP_STORE,
	STEP_READ,
	STEP_WRITE,
	STEP_CONFIG,
	STEP_CHAIN,
	STEP_WILD_CHAIN,
	STEP_KICK,
	STEP_START,
	STEP_EVENT,
	STEP_RING,
	STEP_DAMAGE,
	STEPS,
};

u8 script_u8(struct script *s)
{
	if (!s->len)
		return 0;
	s->len--;
	return *s->data++;
}

u16 script_u16(struct script *s)
{
	u16 low = script_u8(s);

	return (u16)(low | script_u8(s) << 8);
}

u32 script_u32(struct script *s)
{
	u32 low = script_u16(s);

	return low | (u32)script_u16(s) << 16;
}

u64 script_u64(struct script *s)
{
	u64 low = script_u32(s);

	return low | (u64)script_u32(s) << 32;
}

size_t script_bytes(struct script *s, const u8 **p, size_t max)
{
	size_t n = MIN(s->len, max);

	*p = s->data;
	s->data += n;
	s->len -= n;
	return n;
}

/* Mostly in memory, sometimes at its end, in ROM, or nowhere. */
static gpa_t script_address(struct script *s)
{
	u32 v = script_u32(s);

	switch (v >> 28) {
	case 0: return TEST_RAM - (v & 0xfff);
	case 1: return TEST_ROM_BASE + (v & 0xffff);
	case 2: return script_u64(s);
	case 3: return TEST_ECAM + (v & 0xfffff);
	default: return DATA_BASE + (v & 0xfffff);
	}
}

static u32 script_length(struct script *s)
{
	u16 v = script_u16(s);

	return v >> 14 == 3 ? (u32)v << 16 : v & (v & 0x2000 ? 0x1fff : 0x3f);
}

static void step_store(struct test_driver *t, struct script *s)
{
	gpa_t at = script_address(s);
	const u8 *p;
	size_t n = script_bytes(s, &p, script_u8(s));

	mem_write(&t->m->pm, at, p, n);
}

static void step_config(struct test_driver *t, struct script *s)
{
	u32 off = script_u8(s), size = 1u << script_u8(s) % 3;

	off &= ~(size - 1);
	/* Moving the BARs would only end the script. */
	if (script_u8(s) & 1 && (off < 0x10 || off >= 0x28))
		test_config_write(t, off, size, script_u32(s));
	else
		test_config_read(t, off, size);
}

static void step_chain(struct test_driver *t, struct script *s)
{
	u16 q = script_u8(s) % t->d->queue_count;
	u8 shape = script_u8(s);
	u32 count = 1 + (shape & 7), out = shape >> 3 & 7;
	struct test_seg seg[SEGS_MAX];

	if (!t->queue[q].size)
		return;
	for (u32 i = 0; i < count; i++)
		seg[i] = (struct test_seg){
			.gpa = script_address(s), .len = script_length(s), .write = i >= out};
	test_add(&t->queue[q], seg, count, shape & 0x40);
}

/* An arbitrary descriptor, and an arbitrary entry in the available ring. */
static void step_wild_chain(struct test_driver *t, struct script *s)
{
	struct test_queue *q = &t->queue[script_u8(s) % t->d->queue_count];
	u16 at = script_u8(s), *avail;
	struct vring_desc d = {
		.addr = script_address(s),
		.len = script_length(s),
		.flags = script_u8(s) & 7,
		.next = script_u8(s),
	};

	if (!q->size)
		return;
	avail = (u16 *)(void *)test_ram(t->m, q->avail);
	memcpy(test_ram(t->m, q->desc + at % q->size * sizeof(d)), &d, sizeof(d));
	avail[2 + q->avail_idx++ % q->size] = at;
	avail[1] = q->avail_idx;
}

static void step_ring(struct test_driver *t, struct script *s)
{
	struct test_queue *q = &t->queue[script_u8(s) % t->d->queue_count];
	u16 off = script_u16(s) % 0x300;

	if (q->size)
		memcpy(test_ram(t->m, q->avail + off), &(u16){script_u16(s)}, sizeof(u16));
}

static void one_step(struct test_driver *t, const struct script_device *d, struct script *s,
		     void (*event)(void *opaque, struct script *s), void *opaque)
{
	u64 off;
	u32 at;

	switch ((enum step)(script_u8(s) % STEPS)) {
	case STEP_STORE: step_store(t, s); break;
	case STEP_READ: test_read(t, script_u16(s) & 0x3fff, 1u << script_u8(s) % 4); break;
	case STEP_WRITE:
		off = script_u16(s) & 0x3fff;
		test_write(t, off, 1u << script_u8(s) % 4, script_u64(s));
		break;
	case STEP_CONFIG: step_config(t, s); break;
	case STEP_CHAIN: step_chain(t, s); break;
	case STEP_WILD_CHAIN: step_wild_chain(t, s); break;
	case STEP_KICK: test_kick(t, script_u8(s) % 4); break;
	case STEP_START: test_driver_start(t, t->m, t->d, script_u64(s)); break;
	case STEP_EVENT:
		pthread_mutex_lock(&t->m->lock);
		if (event)
			event(opaque, s);
		pthread_mutex_unlock(&t->m->lock);
		break;
	case STEP_RING: step_ring(t, s); break;
	case STEP_DAMAGE:
		at = script_u16(s);
		damage_state(d->ops, d->virtio, at, script_u8(s));
		break;
	case STEPS: break;
	}
}

void script_run(struct test_machine *m, const struct script_device *d, const u8 *data, size_t len,
		void (*event)(void *opaque, struct script *s), void *opaque)
{
	struct script s = {.data = data, .len = len};
	struct test_driver t;

	test_driver_probe(&t, m, d->virtio, true);
	test_driver_start(&t, m, d->virtio, script_u8(&s) & 1 ? ~0ul : script_u64(&s));
	for (u32 i = 0; i < STEPS_MAX && s.len; i++)
		one_step(&t, d, &s, event, opaque);
	test_write(&t, REG_STATUS, 1, 0);
}
