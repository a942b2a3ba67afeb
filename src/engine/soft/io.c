/*
 * Port I/O: IN, OUT, INS, OUTS and the permission check (SDM vol. 1, 19.5).
 *
 * Each access goes to the machine through soft_device_read/write, which replay what is already done
 * when an instruction is run again. The string forms exit once per element.
 */
#include "engine/soft/system.h"

#include <errno.h>

enum { TSS_IO_MAP_BASE = 102 };

int io_check(struct soft_cpu *c, u16 port, u32 size)
{
	const struct cpu_segment *tr = &c->seg[SEG_TR];
	u32 wanted = (1u << size) - 1, at;
	u64 base, bits;
	int r;

	if (!in_protected_mode(c) || (c->cpl <= soft_iopl(c) && !in_vm86(c)))
		return SOFT_OK;
	if (tr->unusable || !(tr->type & 8) || tr->limit < TSS_IO_MAP_BASE + 1)
		return fault_gp(c, 0);
	r = sys_read_value(c, tr->base + TSS_IO_MAP_BASE, 2, &base);
	if (r != SOFT_OK)
		return r;
	/* Two bytes are always read, which is why the map ends in a byte of ones. */
	at = (u32)base + port / 8;
	if (at + 1 > tr->limit)
		return fault_gp(c, 0);
	r = sys_read_value(c, tr->base + at, 2, &bits);
	if (r != SOFT_OK)
		return r;
	return bits >> (port & 7) & wanted ? fault_gp(c, 0) : SOFT_OK;
}

/* The port of IN and OUT: immediate (e4-e7) or DX (ec-ef). */
static u16 port_of(const struct soft_cpu *c, const struct insn *i)
{
	return insn_opcode(i) & 8 ? (u16)c->r[RDX] : (u8)i->imm;
}

/* Bytes: opcode bit 0 clear 1, else 2 or 4; there is no 64-bit port. */
static u32 port_size(const struct insn *i)
{
	return insn_opcode(i) & 1 ? MIN(i->opsize, 4u) : 1;
}

int op_in(struct soft_cpu *c, const struct insn *i)
{
	u32 size = port_size(i);
	u16 port = port_of(c, i);
	u64 data;
	int r = io_check(c, port, size);

	if (r == SOFT_OK)
		r = soft_device_read(c, true, port, size, &data);
	if (r != SOFT_OK)
		return r;
	gpr_set(c, RAX, size, data);
	debug_note_port(c, port, size);
	return SOFT_OK;
}

int op_out(struct soft_cpu *c, const struct insn *i)
{
	u32 size = port_size(i);
	u16 port = port_of(c, i);
	int r = io_check(c, port, size);

	if (r == SOFT_OK)
		r = soft_device_write(c, true, port, size, gpr_get(c, RAX, size));
	if (r == SOFT_OK)
		debug_note_port(c, port, size);
	return r;
}

/* RCX counts repetitions; true when none is left. */
static bool is_finished(const struct soft_cpu *c, const struct insn *i)
{
	return insn_rep_prefix(i) && !gpr_get(c, RCX, i->addrsize);
}

static void advance(struct soft_cpu *c, const struct insn *i, u32 reg, u32 size)
{
	u64 step = c->dflag ? -(u64)size : size;

	gpr_set(c, reg, i->addrsize, c->r[reg] + step);
	debug_note_port(c, (u16)c->r[RDX], size);
	string_step(c, i, true);
}

/* INS checks its destination before the port is read: a device must not be read twice. */
int op_ins(struct soft_cpu *c, const struct insn *i)
{
	u32 size = port_size(i);
	u16 port = (u16)c->r[RDX];
	bool device;
	gva_t lin;
	u64 data;
	int r;

	if (is_finished(c, i))
		return SOFT_OK;
	r = io_check(c, port, size);
	if (r == SOFT_OK)
		r = seg_linear(c, SEG_ES, gpr_get(c, RDI, i->addrsize), size, true, &lin);
	if (r == SOFT_OK)
		r = guest_probe_write(c, lin, size, &device);
	if (r == SOFT_OK)
		r = soft_device_read(c, true, port, size, &data);
	if (r == SOFT_OK)
		r = guest_write(c, lin, &data, size);
	if (r == SOFT_OK)
		advance(c, i, RDI, size);
	return r;
}

int op_outs(struct soft_cpu *c, const struct insn *i)
{
	u32 size = port_size(i);
	u16 port = (u16)c->r[RDX];
	gva_t lin;
	u64 data;
	int r;

	if (is_finished(c, i))
		return SOFT_OK;
	r = io_check(c, port, size);
	if (r == SOFT_OK)
		r = seg_linear(c, insn_override(i, SEG_DS), gpr_get(c, RSI, i->addrsize), size,
			       false, &lin);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin, size, &data);
	if (r == SOFT_OK)
		r = soft_device_write(c, true, port, size, data);
	if (r == SOFT_OK)
		advance(c, i, RSI, size);
	return r;
}

/* ---- accelerations, which this engine does not offer ---- */

int soft_doorbell(struct engine_vm *vm, gpa_t gpa, int fd, bool on)
{
	(void)vm, (void)gpa, (void)fd, (void)on;
	return -ENOTSUP;
}

const struct engine_chips *soft_chips(struct engine_vm *vm)
{
	(void)vm;
	return NULL;
}
