/*
 * One data instruction, run natively on the guest's registers.
 *
 * A thunk is the instruction re-encoded exactly as translated code would have it, between a load of
 * its memory operand's address and the way back. Thunks are kept per vCPU, found by the
 * instruction's bytes.
 */
#include "engine/soft/cache.h"
#include "engine/soft/util.h"

#include <errno.h>
#include <stdlib.h>

enum { THUNK_SLOTS = 256, THUNK_SIZE = 256, THUNK_REGION = THUNK_SLOTS * THUNK_SIZE };

struct thunk_slot {
	u8 bytes[15];
	u8 len; /* 0: empty */
	u8 bits;
};

int soft_thunk_init(struct soft_cpu *c, struct err *e)
{
	c->thunks = calloc(THUNK_SLOTS, sizeof(*c->thunks));
	return c->thunks ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static u32 slot_of(const struct insn *i)
{
	u32 h = i->bits;

	for (u32 n = 0; n < i->len; n++)
		h = h * 31 + i->bytes[n];
	return (h ^ h >> 8) % THUNK_SLOTS;
}

static bool slot_matches(const struct thunk_slot *s, const struct insn *i)
{
	if (s->len != i->len || s->bits != i->bits)
		return false;
	for (u32 n = 0; n < i->len; n++)
		if (s->bytes[n] != i->bytes[n])
			return false;
	return true;
}

static bool build(struct soft_cpu *c, struct thunk_slot *s, const struct insn *i, struct emit e)
{
	struct host_mem m = {.base = i->has_mem ? HOST_S2 : NO_REG, .index = NO_REG};

	if (i->has_mem)
		emit_load_cpu(&e, HOST_S2, CPU_DISP(&e, spill[0]));
	if (!emit_data(&e, i, m))
		return false;
	emit_jmp(&e, c->vm->cache->entry.thunk_done);
	s->len = i->len;
	s->bits = i->bits;
	soft_copy(s->bytes, i->bytes, i->len);
	return !e.overflow;
}

int soft_thunk(struct soft_cpu *c, const struct insn *i, void *mem)
{
	u32 n = slot_of(i);
	struct thunk_slot *s = &c->thunks[n];
	struct emit e = c->vm->cache->thunk;

	e.p += (u64)c->id * THUNK_REGION + (u64)n * THUNK_SIZE;
	e.end = e.p + THUNK_SIZE;
	if (!slot_matches(s, i)) {
		s->len = 0;
		if (!build(c, s, i, e)) {
			s->len = 0;
			return soft_fault(c, VEC_UD);
		}
	}
	c->spill[0] = (u64)mem;
	soft_fpu_live(c);
	if (soft_enter(c, emit_here(&e), 0) == LEAVE_HOST_FAULT)
		return soft_fault_from_trap(c);
	return SOFT_OK;
}
