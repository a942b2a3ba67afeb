/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions.
 *
 * These load fixed flat segments instead of descriptors (SDM vol. 2, APM vol. 3, under each). Where
 * the vendors differ the CPU model's vendor decides: on AMD SYSCALL also works outside 64-bit mode
 * and SYSENTER does not exist in long mode. SYSRET checks RCX before it leaves ring 0, as Intel
 * does: the fault then hits the kernel with its own stack, and no software relies on the other
 * order.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

static void set_flat(struct cpu_segment *s, u32 sel, u32 dpl, bool code, bool is_64bit)
{
	s->selector = (u16)sel;
	s->limit = 0xffffffff;
	s->base = 0;
	s->type =
		code ? DESC_CODE | DESC_CODE_READ | DESC_ACCESSED : DESC_DATA_WRITE | DESC_ACCESSED;
	s->s = 1;
	s->dpl = (u8)dpl;
	s->present = 1;
	s->avl = 0;
	s->l = is_64bit;
	s->db = !is_64bit;
	s->g = 1;
	s->unusable = 0;
}

/* What dispatch.S loads, as MSR STAR is now. */
static void note_segments(struct soft_cpu *c)
{
	u64 star = c->msr.star;
	u32 kernel = star >> 32 & 0xfffc, user = star >> 48 & 0xfffc;

	if (c->call_star == star && c->call_seg[0][0].present)
		return;
	set_flat(&c->call_seg[0][0], kernel, 0, true, true);
	set_flat(&c->call_seg[0][1], kernel + 8, 0, false, false);
	set_flat(&c->call_seg[1][0], (user + 16) | 3, 3, true, true);
	set_flat(&c->call_seg[1][1], (user + 8) | 3, 3, false, false);
	c->call_star = star;
}

static void enter_level(struct soft_cpu *c, u32 cs, u32 ss, u32 cpl, bool is_64bit)
{
	set_flat(&c->seg[SEG_CS], cs | cpl, cpl, true, is_64bit);
	set_flat(&c->seg[SEG_SS], ss | cpl, cpl, false, false);
	c->cpl = (u8)cpl;
	soft_update_mode(c);
}

/* SYSCALL in legacy mode, AMD only: EIP from STAR. */
static int syscall_legacy(struct soft_cpu *c, u32 cs)
{
	c->r[RCX] = (u32)soft_interp(c)->next_rip;
	soft_interp(c)->next_rip = (u32)c->msr.star;
	c->iflag = 0;
	c->sysflags &= ~(RFLAGS_VM | RFLAGS_RF);
	enter_level(c, cs, cs + 8, 0, false);
	return SOFT_OK;
}

int op_syscall(struct soft_cpu *c, const struct insn *i)
{
	struct interp *in = soft_interp(c);
	u32 cs = c->msr.star >> 32 & 0xfffc;
	bool from_64bit = soft_is_64bit(c);

	c->counters[COUNT_SYSCALLS]++;
	(void)i;
	if (!(c->efer & EFER_SCE) || !in_protected_mode(c) || (!from_64bit && !in->is_amd))
		return fault_ud(c);
	if (!in_long_mode(c))
		return syscall_legacy(c, cs);
	c->r[RCX] = in->next_rip;
	c->r[R11] = soft_rflags(c) & ~RFLAGS_RF;
	in->next_rip = from_64bit ? c->msr.lstar : c->msr.cstar;
	soft_set_rflags(c, c->r[R11] & ~c->msr.sfmask);
	if (!(c->sysflags & RFLAGS_TF))
		in->no_step = true;
	note_segments(c);
	enter_level(c, cs, cs + 8, 0, true);
	return SOFT_OK;
}

int op_sysret(struct soft_cpu *c, const struct insn *i)
{
	u32 base = c->msr.star >> 48 & 0xfffc;
	bool to_64bit = i->opsize == 8;
	int r;

	if (!(c->efer & EFER_SCE) || !in_protected_mode(c) ||
	    (!soft_is_64bit(c) && !soft_interp(c)->is_amd))
		return fault_ud(c);
	r = require_cpl0(c);
	if (r != SOFT_OK)
		return r;
	if (to_64bit && !soft_canonical(c->r[RCX]))
		return fault_gp(c, 0);
	soft_interp(c)->next_rip = to_64bit ? c->r[RCX] : (u32)c->r[RCX];
	if (in_long_mode(c))
		soft_set_rflags(c,
				c->r[R11] & 0x3c7fd7); /* RF and VM cleared: SDM vol. 2, SYSRET */
	else
		c->iflag = 1;
	note_segments(c);
	enter_level(c, to_64bit ? base + 16 : base, base + 8, 3, to_64bit);
	return SOFT_OK;
}

/* SYSENTER and SYSEXIT exist: protected mode, and on AMD not in long mode. */
static bool has_sysenter(struct soft_cpu *c)
{
	return in_protected_mode(c) && !(soft_interp(c)->is_amd && in_long_mode(c));
}

int op_sysenter(struct soft_cpu *c, const struct insn *i)
{
	u32 cs = c->msr.sysenter_cs & 0xfffc;
	bool wide = in_long_mode(c);

	(void)i;
	if (!in_protected_mode(c))
		return fault_gp(c, 0);
	if (!has_sysenter(c))
		return fault_ud(c);
	if (!cs)
		return fault_gp(c, 0);
	c->iflag = 0;
	c->sysflags &= ~(RFLAGS_VM | RFLAGS_RF);
	c->r[RSP] = wide ? c->msr.sysenter_esp : (u32)c->msr.sysenter_esp;
	soft_interp(c)->next_rip = wide ? c->msr.sysenter_eip : (u32)c->msr.sysenter_eip;
	enter_level(c, cs, cs + 8, 0, wide);
	return SOFT_OK;
}

int op_sysexit(struct soft_cpu *c, const struct insn *i)
{
	u32 cs = c->msr.sysenter_cs & 0xfffc;
	bool to_64bit = i->opsize == 8;

	if (!in_protected_mode(c))
		return fault_gp(c, 0);
	if (!has_sysenter(c))
		return fault_ud(c);
	if (c->cpl || !cs)
		return fault_gp(c, 0);
	if (to_64bit && (!soft_canonical(c->r[RDX]) || !soft_canonical(c->r[RCX])))
		return fault_gp(c, 0);
	c->r[RSP] = to_64bit ? c->r[RCX] : (u32)c->r[RCX];
	soft_interp(c)->next_rip = to_64bit ? c->r[RDX] : (u32)c->r[RDX];
	enter_level(c, cs + (to_64bit ? 32 : 16), cs + (to_64bit ? 40 : 24), 3, to_64bit);
	return SOFT_OK;
}

int op_swapgs(struct soft_cpu *c, const struct insn *i)
{
	u64 base = c->seg[SEG_GS].base;

	(void)i;
	if (!soft_is_64bit(c))
		return fault_ud(c);
	if (c->cpl)
		return fault_gp(c, 0);
	c->seg[SEG_GS].base = c->msr.kernel_gs_base;
	c->msr.kernel_gs_base = base;
	return SOFT_OK;
}

/* REX.W alone decides; prefix 66 is ignored. */
static u32 base_size(const struct insn *i)
{
	return i->rex & 8 ? 8 : 4;
}

static int read_base(struct soft_cpu *c, const struct insn *i, u32 seg)
{
	if (!soft_is_64bit(c) || !(c->cr4 & CR4_FSGSBASE))
		return fault_ud(c);
	gpr_set(c, modrm_rm(i), base_size(i), c->seg[seg].base);
	return SOFT_OK;
}

static int write_base(struct soft_cpu *c, const struct insn *i, u32 seg)
{
	u64 base = gpr_get(c, modrm_rm(i), base_size(i));

	if (!soft_is_64bit(c) || !(c->cr4 & CR4_FSGSBASE))
		return fault_ud(c);
	if (!soft_canonical(base))
		return fault_gp(c, 0);
	c->seg[seg].base = base;
	return SOFT_OK;
}

int op_rdfsbase(struct soft_cpu *c, const struct insn *i)
{
	return read_base(c, i, SEG_FS);
}

int op_rdgsbase(struct soft_cpu *c, const struct insn *i)
{
	return read_base(c, i, SEG_GS);
}

int op_wrfsbase(struct soft_cpu *c, const struct insn *i)
{
	return write_base(c, i, SEG_FS);
}

int op_wrgsbase(struct soft_cpu *c, const struct insn *i)
{
	return write_base(c, i, SEG_GS);
}
