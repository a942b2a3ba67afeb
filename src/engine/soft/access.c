/*
 * Guest memory as instructions see it: by segment and offset, through the stack, and by operand.
 *
 * Every data access of the interpreter passes seg_linear(), the one place for limits, segment
 * types, canonical form, alignment checks and data breakpoints. The last two apply only while the
 * CPU state carries MODE_INTERPRET, so that the common case pays one test. Addresses below are
 * linear.
 */
#include "engine/soft/system.h"

#define LINEAR_LIMIT (1ul << 32) /* outside 64-bit mode */

u64 insn_offset(const struct soft_cpu *c, const struct insn *i)
{
	u64 off = (u64)i->disp;

	if (i->base != NO_REG)
		off += c->r[i->base];
	if (i->index != NO_REG)
		off += c->r[i->index] * i->scale;
	if (i->is_rip_relative)
		off += c->rip + i->len;
	return off & size_mask(i->addrsize);
}

static int fault_segment(struct soft_cpu *c, u32 seg)
{
	return soft_fault_code(c, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

/* Does the segment's type permit the access? Not asked in real-address and virtual-8086 mode. */
static bool seg_permits(const struct soft_cpu *c, const struct cpu_segment *s, bool write)
{
	if (in_real_or_vm86(c))
		return true;
	if (s->unusable)
		return false;
	if (s->type & DESC_CODE)
		return !write && (s->type & DESC_CODE_READ);
	return !write || (s->type & DESC_DATA_WRITE);
}

static bool seg_expands_down(const struct cpu_segment *s)
{
	return s->s && (s->type & (DESC_CODE | DESC_EXPAND_DOWN)) == DESC_EXPAND_DOWN;
}

static bool seg_covers(const struct cpu_segment *s, u64 off, u32 size)
{
	u64 last = off + size - 1;

	if (seg_expands_down(s))
		return off > s->limit && last <= (s->db ? 0xffffffff : 0xffff);
	return last <= s->limit;
}

u64 seg_span(const struct soft_cpu *c, u32 seg, u32 off, bool write)
{
	const struct cpu_segment *s = &c->seg[seg];
	u64 top = s->limit;

	if (!seg_permits(c, s, write))
		return 0;
	if (seg_expands_down(s)) {
		if (off <= s->limit)
			return 0;
		top = s->db ? 0xffffffff : 0xffff;
	}
	return off > top ? 0 : top - off + 1;
}

/* #AC applies to what the SDM's table 6-7 lists: naturally aligned operands of 2, 4 and 8 bytes. */
static bool is_misaligned(const struct soft_cpu *c, gva_t lin, u32 size)
{
	return c->cpl == 3 && (c->cr0 & CR0_AM) && (c->sysflags & RFLAGS_AC) &&
	       (size == 2 || size == 4 || size == 8) && (lin & (size - 1));
}

static int check_observed(struct soft_cpu *c, gva_t lin, u32 size, bool write)
{
	if (is_misaligned(c, lin, size))
		return soft_fault_code(c, VEC_AC, 0);
	debug_note_data(c, lin, size, write);
	return SOFT_OK;
}

int seg_linear(struct soft_cpu *c, u32 seg, u64 off, u32 size, bool write, gva_t *lin)
{
	const struct cpu_segment *s = &c->seg[seg];

	if (soft_is_64bit(c)) {
		*lin = off + (seg == SEG_FS || seg == SEG_GS ? s->base : 0);
		if (!soft_canonical(*lin) || !soft_canonical(*lin + size - 1))
			return fault_segment(c, seg);
	} else {
		if (!seg_permits(c, s, write) || !seg_covers(s, off, size))
			return fault_segment(c, seg);
		*lin = (u32)(s->base + off);
	}
	if (c->mode & MODE_INTERPRET)
		return check_observed(c, *lin, size, write);
	return SOFT_OK;
}

gva_t seg_linear_unchecked(const struct soft_cpu *c, u32 seg, u64 off)
{
	if (soft_is_64bit(c))
		return off + (seg == SEG_FS || seg == SEG_GS ? c->seg[seg].base : 0);
	return (u32)(c->seg[seg].base + off);
}

int insn_linear(struct soft_cpu *c, const struct insn *i, u32 size, bool write, gva_t *lin)
{
	return seg_linear(c, i->seg, insn_offset(c, i), size, write, lin);
}

/* Bytes of [lin, lin+len) below 4 GiB when the access wraps there; else @len. */
static u32 before_wrap(const struct soft_cpu *c, gva_t lin, u32 len)
{
	if (!(c->mode & MODE_INTERPRET) || lin >= LINEAR_LIMIT || lin + len <= LINEAR_LIMIT ||
	    soft_is_64bit(c))
		return len;
	return (u32)(LINEAR_LIMIT - lin);
}

static int read_as(struct soft_cpu *c, gva_t lin, void *buf, u32 len, u32 access)
{
	u32 first = before_wrap(c, lin, len);
	int r = soft_read(c, lin, buf, first, access);

	if (r == SOFT_OK && first < len)
		r = soft_read(c, 0, (u8 *)buf + first, len - first, access);
	return r;
}

static int probe_as(struct soft_cpu *c, gva_t lin, u32 len, u32 access, bool *device)
{
	struct soft_xlat x;
	int r = soft_translate(c, lin, access, &x);

	if (r != SOFT_OK)
		return r;
	*device = !x.host;
	if (((lin & ~PAGE_MASK) + len) <= PAGE_SIZE)
		return SOFT_OK;
	for (gva_t page = (lin & PAGE_MASK) + PAGE_SIZE; page - lin < len; page += PAGE_SIZE) {
		r = soft_translate(c, soft_is_64bit(c) ? page : (u32)page, access, &x);
		if (r != SOFT_OK)
			return r;
		*device |= !x.host;
	}
	return SOFT_OK;
}

static int write_as(struct soft_cpu *c, gva_t lin, const void *buf, u32 len, u32 access)
{
	u32 first = before_wrap(c, lin, len);
	bool device;
	int r;

	if (first < len) {
		r = probe_as(c, lin, len, access, &device);
		if (r != SOFT_OK)
			return r;
	}
	r = soft_write(c, lin, buf, first, access);
	if (r == SOFT_OK && first < len)
		r = soft_write(c, 0, (const u8 *)buf + first, len - first, access);
	return r;
}

int guest_read(struct soft_cpu *c, gva_t lin, void *buf, u32 len)
{
	return read_as(c, lin, buf, len, soft_acc(c, ACC_READ));
}

int guest_write(struct soft_cpu *c, gva_t lin, const void *buf, u32 len)
{
	return write_as(c, lin, buf, len, soft_acc(c, ACC_WRITE));
}

int guest_probe_write(struct soft_cpu *c, gva_t lin, u32 len, bool *device)
{
	return probe_as(c, lin, len, soft_acc(c, ACC_WRITE), device);
}

int guest_read_value(struct soft_cpu *c, gva_t lin, u32 size, u64 *value)
{
	*value = 0;
	return read_as(c, lin, value, size, soft_acc(c, ACC_READ));
}

int sys_read(struct soft_cpu *c, gva_t lin, void *buf, u32 len)
{
	return read_as(c, lin, buf, len, ACC_READ);
}

int sys_write(struct soft_cpu *c, gva_t lin, const void *buf, u32 len)
{
	return write_as(c, lin, buf, len, ACC_WRITE);
}

int sys_read_value(struct soft_cpu *c, gva_t lin, u32 size, u64 *value)
{
	*value = 0;
	return sys_read(c, lin, value, size);
}

int sys_set_bits(struct soft_cpu *c, gva_t lin, u8 bits)
{
	void *host;
	u8 byte;
	int r = soft_pin_write(c, lin, 1, ACC_WRITE, &host);

	if (r != SOFT_OK)
		return r;
	if (host) {
		__atomic_fetch_or((u8 *)host, bits, __ATOMIC_SEQ_CST);
		return SOFT_OK;
	}
	r = soft_read(c, lin, &byte, 1, ACC_READ);
	byte |= bits;
	return r == SOFT_OK ? soft_write(c, lin, &byte, 1, ACC_WRITE) : r;
}

u8 *guest_read_pointer(struct soft_cpu *c, gva_t lin, u32 len)
{
	const struct tlb_entry *e = &soft_half(c, c->cpl == 3 ? HALF_USER : HALF_SUPER)
					     ->tlb[(lin >> PAGE_SHIFT) % TLB_SIZE];

	if ((lin & ~PAGE_MASK) + len > PAGE_SIZE || e->tag_read != (lin & PAGE_MASK))
		return NULL;
	return (u8 *)e->host + (lin & ~PAGE_MASK);
}

int operand_read(struct soft_cpu *c, const struct insn *i, u32 size, u64 *value)
{
	gva_t lin;
	int r;

	if (modrm_mod(i) == 3) {
		*value = gpr_get(c, modrm_rm(i), size);
		return SOFT_OK;
	}
	r = insn_linear(c, i, size, false, &lin);
	return r == SOFT_OK ? guest_read_value(c, lin, size, value) : r;
}

int operand_write(struct soft_cpu *c, const struct insn *i, u32 reg_size, u32 mem_size, u64 value)
{
	gva_t lin;
	int r;

	if (modrm_mod(i) == 3) {
		gpr_set(c, modrm_rm(i), reg_size, value);
		return SOFT_OK;
	}
	r = insn_linear(c, i, mem_size, true, &lin);
	return r == SOFT_OK ? guest_write(c, lin, &value, mem_size) : r;
}

void stack_open(const struct soft_cpu *c, struct stack *st)
{
	bool flat = soft_is_64bit(c);

	st->ss = flat ? NULL : &c->seg[SEG_SS];
	st->mask = flat ? ~0ul : c->seg[SEG_SS].db ? 0xffffffff : 0xffff;
	st->sp = c->r[RSP] & st->mask;
	st->access = c->cpl == 3 ? ACC_USER : 0;
	st->error = 0;
}

/* Check @size bytes at offset @sp of the stack segment, which need not be the loaded one. */
static int stack_linear(struct soft_cpu *c, const struct stack *st, u64 sp, u32 size, bool write,
			gva_t *lin)
{
	if (!st->ss) {
		*lin = sp;
		if (!soft_canonical(sp) || !soft_canonical(sp + size - 1))
			return soft_fault_code(c, VEC_SS, st->error);
	} else {
		if (!seg_permits(c, st->ss, write) || !seg_covers(st->ss, sp, size))
			return soft_fault_code(c, VEC_SS, st->error);
		*lin = (u32)(st->ss->base + sp);
	}
	if (!(c->mode & MODE_INTERPRET))
		return SOFT_OK;
	if ((st->access & ACC_USER) && is_misaligned(c, *lin, size))
		return soft_fault_code(c, VEC_AC, 0);
	debug_note_data(c, *lin, size, write);
	return SOFT_OK;
}

int stack_push_low(struct soft_cpu *c, struct stack *st, u32 size, u32 stored, u64 value)
{
	u64 sp = (st->sp - size) & st->mask;
	gva_t lin;
	int r = stack_linear(c, st, sp, stored, true, &lin);

	if (r == SOFT_OK)
		r = write_as(c, lin, &value, stored, st->access | ACC_WRITE);
	if (r == SOFT_OK)
		st->sp = sp;
	return r;
}

int stack_push(struct soft_cpu *c, struct stack *st, u32 size, u64 value)
{
	return stack_push_low(c, st, size, size, value);
}

int stack_pop(struct soft_cpu *c, struct stack *st, u32 size, u64 *value)
{
	gva_t lin;
	int r = stack_linear(c, st, st->sp, size, false, &lin);

	*value = 0;
	if (r == SOFT_OK)
		r = read_as(c, lin, value, size, st->access | ACC_READ);
	if (r == SOFT_OK)
		st->sp = (st->sp + size) & st->mask;
	return r;
}

int stack_probe(struct soft_cpu *c, const struct stack *st, u32 size)
{
	bool device;
	gva_t lin;
	int r = stack_linear(c, st, st->sp, size, true, &lin);

	return r == SOFT_OK ? probe_as(c, lin, size, st->access | ACC_WRITE, &device) : r;
}

/* Quadwords on a 64-bit stack in one piece, the hot case. */
static int stack_push_block(struct soft_cpu *c, struct stack *st, const u64 *value, u32 count)
{
	u64 frame[8];
	gva_t lin;
	int r;

	for (u32 n = 0; n < count; n++)
		frame[count - 1 - n] = value[n];
	r = stack_linear(c, st, st->sp - 8ul * count, 8 * count, true, &lin);
	if (r == SOFT_OK)
		r = write_as(c, lin, frame, 8 * count, st->access | ACC_WRITE);
	if (r == SOFT_OK)
		st->sp -= 8ul * count;
	return r;
}

int stack_push_all(struct soft_cpu *c, struct stack *st, u32 size, const u64 *value, u32 count)
{
	int r;

	if (!st->ss && size == 8 && count <= 8) {
		r = stack_push_block(c, st, value, count);
		if (r != SOFT_FAULT)
			return r;
		/* One by one from the top, so that CR2 is the first push that faults. */
	}
	for (u32 n = 0; n < count; n++) {
		r = stack_push(c, st, size, value[n]);
		if (r != SOFT_OK)
			return r;
	}
	return SOFT_OK;
}

void stack_commit(struct soft_cpu *c, const struct stack *st)
{
	if (st->mask == 0xffff)
		gpr_set(c, RSP, 2, st->sp);
	else
		c->r[RSP] = st->sp;
}
