/* Split rings whose every byte the input chooses. Invariant: what pop() returns lies in guest RAM.
 */
#include "virtio_script.h"

#include <stdlib.h>
#include <string.h>

enum { SIZE = 16, DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, TABLE = 0x4000 };

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

static void check_chain(struct test_machine *m, const struct virtq_chain *c)
{
	u64 out = 0, in = 0;

	if (c->out + c->in > VIRTQ_SEGS_MAX || c->head >= SIZE)
		abort();
	for (u32 i = 0; i < c->out + c->in; i++) {
		enum mem_dir dir = i < c->out ? MEM_READ : MEM_WRITE;

		if (mem_map(&m->pm, c->gpa[i], c->iov[i].iov_len, dir) != c->iov[i].iov_base)
			abort();
		*(i < c->out ? &out : &in) += c->iov[i].iov_len;
	}
	if (out != c->out_len || in != c->in_len)
		abort();
}

static void use_queue(struct test_machine *m, struct virtqueue *vq, struct script *s)
{
	struct virtq_chain c;
	u8 bytes[64];

	for (u32 i = 0; i < 64 && virtq_pop(vq, &c) > 0; i++) {
		u8 what = script_u8(s);

		check_chain(m, &c);
		virtq_copy_out(&c, what, bytes, sizeof(bytes));
		virtq_push(vq, &c, virtq_copy_in(&c, what & 7, bytes, what >> 2));
		if (what & 1)
			virtq_publish(vq);
		else if (what & 2)
			virtq_withdraw(vq, vq->used_idx != vq->used_published);
		if (what & 4)
			virtq_notify_on(vq);
		else
			virtq_notify_off(vq);
	}
	virtq_publish(vq);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static struct test_machine m;
	struct virtqueue vq = {.size_max = SIZE, .pm = &m.pm};
	struct script s = {.data = data, .len = len};
	const u8 *p;
	u8 flags;

	if (!m.loop)
		test_machine_init(&m, false);
	memset(test_ram(&m, 0), 0, 0x8000);
	virtq_reset(&vq);
	flags = script_u8(&s);
	vq.size = (u16)(1 << flags % 5);
	vq.desc_gpa = flags & 0x80 ? script_u64(&s) : DESC;
	vq.avail_gpa = AVAIL;
	vq.used_gpa = USED;
	vq.last_avail = vq.used_idx = script_u16(&s);
	if (!virtq_enable(&vq, flags & 0x20, flags & 0x40))
		return 0;
	for (u32 round = 0; round < 4 && s.len; round++) {
		size_t n = script_bytes(&s, &p, SIZE * sizeof(struct vring_desc));

		memcpy(test_ram(&m, DESC), p, n);
		n = script_bytes(&s, &p, 64);
		memcpy(test_ram(&m, TABLE), p, n);
		n = script_bytes(&s, &p, sizeof(struct vring_avail) + (SIZE + 1) * sizeof(u16));
		memcpy(test_ram(&m, AVAIL), p, n);
		use_queue(&m, &vq, &s);
	}
	return 0;
}
