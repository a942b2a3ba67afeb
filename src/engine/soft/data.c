/*
 * Data instructions: their memory operand is brought to a host address and soft_thunk() runs the
 * instruction natively on it.
 *
 * An operand that is written is pinned where possible, so that the instruction acts on guest RAM
 * itself and LOCK is atomic. Where it is not possible (page crossing, device memory, page with
 * translated code) the operand goes through a bounce buffer; permission to write is checked first,
 * because once the thunk has run its register results stand. A device still interrupts the
 * instruction at the final store; the registers are then put back, and the whole instruction is run
 * again.
 *
 * LOCK off the pinned path: within one RAM page the result is stored by compare-exchange. Across a
 * page boundary, and on device memory, a locked instruction is left to be run again with all other
 * processors standing still (data_alone()).
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

enum { CACHE_LINE = 64, XSAVE_LEGACY = 576 };

static int check_avx(struct soft_cpu *c, u64 need)
{
	if (in_real_or_vm86(c) || !(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & need) != need)
		return fault_ud(c);
	return c->cr0 & CR0_TS ? soft_fault(c, VEC_NM) : SOFT_OK;
}

static int check_sse(struct soft_cpu *c)
{
	if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR))
		return fault_ud(c);
	return c->cr0 & CR0_TS ? soft_fault(c, VEC_NM) : SOFT_OK;
}

/* SDM vol. 3, table 2-2 */
static int check_x87(struct soft_cpu *c, const struct insn *i)
{
	u8 op = i->bytes[i->opcode_off];

	if (op == 0x9b)
		return (c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) ? soft_fault(c, VEC_NM)
									 : SOFT_OK;
	if ((op & 0xf8) == 0xd8)
		return c->cr0 & (CR0_EM | CR0_TS) ? soft_fault(c, VEC_NM) : SOFT_OK;
	if (c->cr0 & CR0_EM)
		return fault_ud(c);
	return c->cr0 & CR0_TS ? soft_fault(c, VEC_NM) : SOFT_OK;
}

int data_check_usable(struct soft_cpu *c, const struct insn *i)
{
	if (i->encoding != ENC_LEGACY && in_real_or_vm86(c))
		return fault_ud(c);
	if (i->needs_avx512)
		return check_avx(c, XCR0_AVX512 | XCR0_AVX | XCR0_SSE);
	if (i->needs_avx)
		return check_avx(c, XCR0_AVX | XCR0_SSE);
	if (i->needs_sse && !(c->mode & MODE_SSE)) {
		int r = check_sse(c);

		if (r != SOFT_OK)
			return r;
	}
	if (i->needs_x87 && !(c->mode & MODE_X87))
		return check_x87(c, i);
	return SOFT_OK;
}

int data_check_fpu(struct soft_cpu *c)
{
	return c->cr0 & (CR0_EM | CR0_TS) ? soft_fault(c, VEC_NM) : SOFT_OK;
}

/* Registers as they were, should the store of the result have to wait for a device. */
struct undo {
	u64 r[GPR_COUNT];
	u64 flags;
	bool fpu;
};

static void undo_save(struct soft_cpu *c, struct undo *u, bool fpu)
{
	soft_copy(u->r, c->r, sizeof(u->r));
	u->flags = c->flags;
	u->fpu = fpu;
	if (!fpu)
		return;
	soft_fpu_park(c);
	soft_copy(soft_interp(c)->saved_fpu, c->fpu_area, XSAVE_LEGACY);
}

static void undo_apply(struct soft_cpu *c, const struct undo *u)
{
	soft_copy(c->r, u->r, sizeof(u->r));
	c->flags = u->flags;
	if (!u->fpu)
		return;
	soft_fpu_park(c);
	/* With the header: it says which components are in their initial state. */
	soft_copy(c->fpu_area, soft_interp(c)->saved_fpu, XSAVE_LEGACY);
}

static int store_bounced(struct soft_cpu *c, const struct insn *i, gva_t lin)
{
	u8 *buf = soft_interp(c)->bounce + (lin & 63);
	struct undo undo;
	bool device;
	int r = guest_probe_write(c, lin, i->mem_size, &device);

	/* x87 stores with an unmasked exception leave memory alone. */
	if (r == SOFT_OK && (i->mem_read || !device))
		r = guest_read(c, lin, buf, i->mem_size);
	if (r != SOFT_OK)
		return r;
	undo_save(c, &undo, device && i->needs_x87);
	r = soft_thunk(c, i, buf);
	if (r != SOFT_OK)
		return r;
	r = guest_write(c, lin, buf, i->mem_size);
	if (r != SOFT_OK)
		undo_apply(c, &undo);
	return r;
}

/* LOCK and the XCHG that implies it. */
static bool is_locked(const struct insn *i)
{
	return i->lock ||
	       (i->encoding == ENC_LEGACY && i->opcode_len == 1 && (insn_opcode(i) & 0xfe) == 0x86);
}

/* Locked compare-exchange of 16 bytes. */
static bool exchange_pair(void *to, const u64 *old, const u64 *new)
{
	u64 low = old[0], high = old[1];
	bool done;

	__asm__ volatile("lock cmpxchg16b (%3)"
			 : "=@ccz"(done), "+a"(low), "+d"(high)
			 : "r"(to), "b"(new[0]), "c"(new[1])
			 : "memory");
	return done;
}

static bool exchange(void *to, const u64 *old, const u64 *new, u32 size)
{
	u64 expected = old[0];

	switch (size) {
	case 1:
		__asm__ volatile("lock cmpxchgb %b2, (%1)"
				 : "+a"(expected)
				 : "r"(to), "q"(new[0])
				 : "memory", "cc");
		break;
	case 2:
		__asm__ volatile("lock cmpxchgw %w2, (%1)"
				 : "+a"(expected)
				 : "r"(to), "r"(new[0])
				 : "memory", "cc");
		break;
	case 4:
		__asm__ volatile("lock cmpxchgl %k2, (%1)"
				 : "+a"(expected)
				 : "r"(to), "r"(new[0])
				 : "memory", "cc");
		expected = (u32)expected;
		break;
	case 8:
		__asm__ volatile("lock cmpxchgq %2, (%1)"
				 : "+a"(expected)
				 : "r"(to), "r"(new[0])
				 : "memory", "cc");
		break;
	default: return exchange_pair(to, old, new);
	}
	return expected == old[0];
}

/*
 * A locked instruction on a page that must not be written directly: computed on a copy, stored by
 * compare-exchange. When another processor was faster the instruction is left to be run again.
 */
static int store_locked(struct soft_cpu *c, const struct insn *i, gva_t lin,
			const struct soft_xlat *x)
{
	u64 new[2] = {0}, old[2] = {0};
	u8 *buf = soft_interp(c)->bounce + (lin & 63);
	struct undo undo;
	int r;

	soft_copy(old, x->host, i->mem_size);
	soft_copy(buf, old, i->mem_size);
	undo_save(c, &undo, false);
	r = soft_thunk(c, i, buf);
	if (r != SOFT_OK)
		return r;
	soft_copy(new, buf, i->mem_size);
	if (exchange(x->host, old, new, i->mem_size)) {
		soft_stored(c, x, i->mem_size);
		return SOFT_OK;
	}
	undo_apply(c, &undo);
	soft_interp(c)->next_rip = c->rip;
	soft_interp(c)->no_step = true;
	return SOFT_OK;
}

/* Is the operand in one RAM page, of a size that can be exchanged? *status as for translations. */
static bool can_exchange(struct soft_cpu *c, const struct insn *i, gva_t lin, struct soft_xlat *x,
			 int *status)
{
	u32 size = i->mem_size;

	*status = SOFT_OK;
	if (!is_locked(i) || (lin & ~PAGE_MASK) + size > PAGE_SIZE || size > 16 ||
	    (size & (size - 1)))
		return false;
	*status = soft_translate(c, lin, soft_acc(c, ACC_WRITE), x);
	return *status == SOFT_OK && x->host && !x->rom;
}

bool data_alone(struct soft_cpu *c)
{
	if (!c->alone)
		c->wants_alone = true;
	return c->alone;
}

static int store_indirectly(struct soft_cpu *c, const struct insn *i, gva_t lin)
{
	struct soft_xlat x;
	int r;

	if (can_exchange(c, i, lin, &x, &r))
		return store_locked(c, i, lin, &x);
	if (r != SOFT_OK || (is_locked(i) && !data_alone(c)))
		return r;
	return store_bounced(c, i, lin);
}

static int exec_store(struct soft_cpu *c, const struct insn *i, gva_t lin)
{
	void *host;
	int r = soft_pin_write(c, lin, i->mem_size, soft_acc(c, ACC_WRITE), &host);

	if (r != SOFT_OK)
		return r;
	return host ? soft_thunk(c, i, host) : store_indirectly(c, i, lin);
}

static int exec_load(struct soft_cpu *c, const struct insn *i, gva_t lin)
{
	u8 *buf = guest_read_pointer(c, lin, i->mem_size);
	int r;

	if (!buf) {
		buf = soft_interp(c)->bounce + (lin & 63);
		r = guest_read(c, lin, buf, i->mem_size);
		if (r != SOFT_OK)
			return r;
	}
	return soft_thunk(c, i, buf);
}

/* CLFLUSH and its kin, the only legacy instructions with such an operand, check like loads. */
static int exec_line(struct soft_cpu *c, const struct insn *i)
{
	struct soft_xlat x;
	gva_t lin;
	int r = insn_linear(c, i, 1, false, &lin);

	return r == SOFT_OK ? soft_translate(c, lin, soft_acc(c, ACC_READ), &x) : r;
}

int exec_data(struct soft_cpu *c, const struct insn *i)
{
	gva_t lin;
	int r = data_check_usable(c, i);

	if (r != SOFT_OK)
		return r;
	if (!i->has_mem)
		return soft_thunk(c, i, NULL);
	if (i->mem_size > BOUNCE_MAX)
		return fault_ud(c);
	if (i->mem_size == CACHE_LINE && i->encoding == ENC_LEGACY)
		return exec_line(c, i);
	if (i->masked)
		return exec_masked(c, i);
	r = insn_linear(c, i, i->mem_size, i->mem_write, &lin);
	if (r != SOFT_OK)
		return r;
	return i->mem_write ? exec_store(c, i, lin) : exec_load(c, i, lin);
}
