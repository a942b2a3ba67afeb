/*
 * Far control transfers: JMP, CALL, RET and IRET between segments and privilege levels (SDM vol. 2
 * under the instructions, vol. 3, 5.8).
 *
 * Checks come first, in the manual's order so that error codes are exact; then the stack is
 * written; registers change last. A transfer to a TSS or task gate leaves through task.c.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

/* A code segment that passed the checks, with the offset to go to. */
struct target {
	struct descriptor code;
	u16 sel;
	u32 cpl; /* privilege level there */
	u64 rip;
};

int tss_read_quad(struct soft_cpu *c, u32 offset, u32 ext, u64 *value)
{
	const struct cpu_segment *tr = &c->seg[SEG_TR];

	if (offset + 7 > tr->limit)
		return soft_fault_code(c, VEC_TS, (tr->selector & 0xfffc) | ext);
	return sys_read(c, tr->base + offset, value, 8);
}

int tss_read_stack(struct soft_cpu *c, u32 cpl, u32 ext, u16 *ss, u32 *esp)
{
	const struct cpu_segment *tr = &c->seg[SEG_TR];
	u32 size = tr->type & 8 ? 4 : 2, offset = size + cpl * 2 * size;
	u64 sp, sel;
	int r;

	if (offset + size + 1 > tr->limit)
		return soft_fault_code(c, VEC_TS, (tr->selector & 0xfffc) | ext);
	r = sys_read_value(c, (u32)(tr->base + offset), size, &sp);
	if (r == SOFT_OK)
		r = sys_read_value(c, (u32)(tr->base + offset + size), 2, &sel);
	if (r != SOFT_OK)
		return r;
	*esp = (u32)sp;
	*ss = (u16)sel;
	return SOFT_OK;
}

/* Is the target address usable in its segment? Decides about L with D too. */
static int target_check(struct soft_cpu *c, struct target *t)
{
	struct cpu_segment s;

	if (in_long_mode(c) && desc_is_long(&t->code)) {
		if (desc_is_big(&t->code))
			return fault_gp(c, t->sel & 0xfffc);
		return soft_canonical(t->rip) ? SOFT_OK : fault_gp(c, 0);
	}
	desc_unpack(&t->code, t->sel, &s);
	t->rip &= 0xffffffff;
	return t->rip <= s.limit ? SOFT_OK : fault_gp(c, 0);
}

static void target_enter(struct soft_cpu *c, const struct target *t)
{
	desc_unpack(&t->code, (u16)((t->sel & ~3u) | t->cpl), &c->seg[SEG_CS]);
	c->cpl = (u8)t->cpl;
	soft_interp(c)->next_rip = t->rip;
}

/* Read the far pointer of JMP or CALL: in the instruction or in memory. */
static int read_pointer(struct soft_cpu *c, const struct insn *i, u16 *sel, u64 *offset)
{
	u64 value = 0;
	gva_t lin;
	int r;

	if (!i->has_modrm) {
		*sel = (u16)i->imm2;
		*offset = (u64)i->imm & size_mask(i->opsize);
		return SOFT_OK;
	}
	if (modrm_mod(i) == 3)
		return fault_ud(c);
	r = insn_linear(c, i, i->opsize + 2u, false, &lin);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin, i->opsize, offset);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin + i->opsize, 2, &value);
	*sel = (u16)value;
	return r;
}

static int push_return(struct soft_cpu *c, struct stack *st, u32 size)
{
	u64 frame[2] = {c->seg[SEG_CS].selector, soft_interp(c)->next_rip};

	return stack_push_all(c, st, size, frame, 2);
}

static int far_real(struct soft_cpu *c, const struct insn *i, u16 sel, u64 offset, bool call)
{
	struct stack st;
	int r;

	if (offset > c->seg[SEG_CS].limit)
		return fault_gp(c, 0);
	if (call) {
		stack_open(c, &st);
		r = push_return(c, &st, i->opsize);
		if (r != SOFT_OK)
			return r;
		stack_commit(c, &st);
	}
	seg_make_real(c, SEG_CS, sel, &c->seg[SEG_CS]);
	soft_interp(c)->next_rip = offset;
	soft_update_mode(c);
	return SOFT_OK;
}

/* JMP or CALL straight to a code segment. */
static int far_direct(struct soft_cpu *c, const struct insn *i, struct target *t, bool call)
{
	u32 dpl = desc_dpl(&t->code);
	bool permitted = desc_type(&t->code) & DESC_CONFORMING
				 ? dpl <= c->cpl
				 : dpl == c->cpl && (t->sel & 3u) <= c->cpl;
	struct stack st;
	int r;

	if (!desc_is_code(&t->code) || !permitted)
		return fault_gp(c, t->sel & 0xfffc);
	if (!desc_is_present(&t->code))
		return soft_fault_code(c, VEC_NP, t->sel & 0xfffc);
	t->cpl = c->cpl;
	r = target_check(c, t);
	if (r == SOFT_OK)
		r = desc_mark_accessed(c, &t->code);
	if (r != SOFT_OK)
		return r;
	if (call) {
		stack_open(c, &st);
		r = push_return(c, &st, i->opsize);
		if (r != SOFT_OK)
			return r;
		stack_commit(c, &st);
	}
	target_enter(c, t);
	soft_update_mode(c);
	return SOFT_OK;
}

/* The inner stack of a call gate in long mode: RSP from the TSS, SS null. */
static int open_inner_long(struct soft_cpu *c, u32 cpl, struct cpu_segment *ss, struct stack *st)
{
	int r = tss_read_quad(c, 4 + 8 * cpl, 0, &st->sp);

	seg_make_null((u16)cpl, ss);
	st->ss = NULL;
	st->mask = ~0ul;
	st->error = 0;
	return r;
}

static int open_inner(struct soft_cpu *c, u32 cpl, struct cpu_segment *ss, struct stack *st)
{
	u32 esp;
	u16 sel;
	int r;

	st->access = 0;
	if (in_long_mode(c))
		return open_inner_long(c, cpl, ss, st);
	r = tss_read_stack(c, cpl, 0, &sel, &esp);
	if (r == SOFT_OK)
		r = seg_prepare_stack(c, sel, cpl, VEC_TS, 0, ss);
	if (r != SOFT_OK)
		return r;
	st->ss = ss;
	st->mask = ss->db ? 0xffffffff : 0xffff;
	st->sp = esp & st->mask;
	st->error = sel & 0xfffc;
	return SOFT_OK;
}

/* Copy @count parameters from the current stack, keeping their order. */
static int copy_parameters(struct soft_cpu *c, struct stack *st, u32 size, u32 count)
{
	struct stack old;
	u64 value[32];
	int r;

	stack_open(c, &old);
	for (u32 n = 0; n < count; n++) {
		r = stack_pop(c, &old, size, &value[n]);
		if (r != SOFT_OK)
			return r;
	}
	for (u32 n = count; n-- > 0;) {
		r = stack_push(c, st, size, value[n]);
		if (r != SOFT_OK)
			return r;
	}
	return SOFT_OK;
}

/* CALL through a gate to a more privileged level. */
static int call_inner(struct soft_cpu *c, const struct descriptor *gate, struct target *t, u32 size)
{
	u64 outer[2] = {c->seg[SEG_SS].selector, c->r[RSP]};
	u32 count = in_long_mode(c) ? 0 : gate->low >> 32 & 31;
	struct cpu_segment ss;
	struct stack st;
	int r = open_inner(c, t->cpl, &ss, &st);

	if (r == SOFT_OK)
		r = stack_push_all(c, &st, size, outer, 2);
	if (r == SOFT_OK)
		r = copy_parameters(c, &st, size, count);
	if (r == SOFT_OK)
		r = push_return(c, &st, size);
	if (r != SOFT_OK)
		return r;
	soft_copy(&c->seg[SEG_SS], &ss, sizeof(ss));
	stack_commit(c, &st);
	return SOFT_OK;
}

/* The code segment behind a call gate; finds the privilege level there. */
static int gate_target(struct soft_cpu *c, const struct descriptor *gate, struct target *t,
		       bool call)
{
	bool conforming;
	u32 dpl;
	int r;

	t->sel = gate->low >> 16 & 0xffff;
	t->rip = (gate->low & 0xffff) | (gate->low >> 32 & 0xffff0000) | gate->high << 32;
	if (desc_type(gate) == DESC_CALL_GATE16)
		t->rip &= 0xffff;
	if (selector_is_null(t->sel))
		return fault_gp(c, 0);
	r = desc_read(c, t->sel, VEC_GP, 0, &t->code);
	if (r != SOFT_OK)
		return r;
	dpl = desc_dpl(&t->code);
	conforming = desc_type(&t->code) & DESC_CONFORMING;
	if (!desc_is_code(&t->code) || dpl > c->cpl || (!call && !conforming && dpl != c->cpl))
		return fault_gp(c, t->sel & 0xfffc);
	if (in_long_mode(c) && (!desc_is_long(&t->code) || desc_is_big(&t->code)))
		return fault_gp(c, t->sel & 0xfffc);
	if (!desc_is_present(&t->code))
		return soft_fault_code(c, VEC_NP, t->sel & 0xfffc);
	t->cpl = conforming ? c->cpl : dpl;
	r = target_check(c, t);
	return r == SOFT_OK ? desc_mark_accessed(c, &t->code) : r;
}

static int far_call_gate(struct soft_cpu *c, struct descriptor *gate, u16 sel, bool call)
{
	u32 size = in_long_mode(c) ? 8 : desc_type(gate) == DESC_CALL_GATE16 ? 2 : 4;
	struct stack st;
	struct target t;
	int r = SOFT_OK;

	if (in_long_mode(c)) {
		r = desc_read_high(c, sel, VEC_GP, 0, gate);
		if (r == SOFT_OK && (gate->high & 0x1f00000000))
			r = fault_gp(c, sel & 0xfffc);
	}
	if (r == SOFT_OK)
		r = gate_target(c, gate, &t, call);
	if (r != SOFT_OK)
		return r;
	if (call && t.cpl < c->cpl) {
		r = call_inner(c, gate, &t, size);
	} else if (call) {
		stack_open(c, &st);
		if (in_long_mode(c)) {
			st.ss = NULL;
			st.mask = ~0ul;
		}
		r = push_return(c, &st, size);
		if (r == SOFT_OK)
			stack_commit(c, &st);
	}
	if (r != SOFT_OK)
		return r;
	target_enter(c, &t);
	soft_update_mode(c);
	return SOFT_OK;
}

/* JMP or CALL to a gate or TSS. */
static int far_system(struct soft_cpu *c, struct descriptor *d, u16 sel, bool call)
{
	u32 type = desc_type(d), dpl = desc_dpl(d);
	bool wide = in_long_mode(c);
	bool task = !wide && (type == DESC_TSS_AVAIL || type == DESC_TSS16_AVAIL);
	bool gate = type == DESC_CALL_GATE || (!wide && type == DESC_CALL_GATE16);

	if (!task && !gate && (wide || type != DESC_TASK_GATE))
		return fault_gp(c, sel & 0xfffc);
	if (dpl < c->cpl || dpl < (sel & 3u))
		return fault_gp(c, sel & 0xfffc);
	if (!desc_is_present(d))
		return soft_fault_code(c, VEC_NP, sel & 0xfffc);
	if (gate)
		return far_call_gate(c, d, sel, call);
	if (!task)
		sel = d->low >> 16 & 0xffff;
	return task_switch(c, sel, call ? TASK_CALL : TASK_JMP, soft_interp(c)->next_rip, 0, false,
			   0);
}

static int far_branch(struct soft_cpu *c, const struct insn *i, bool call)
{
	struct target t;
	u64 offset;
	u16 sel;
	int r = read_pointer(c, i, &sel, &offset);

	if (r != SOFT_OK)
		return r;
	if (in_real_or_vm86(c))
		return far_real(c, i, sel, offset, call);
	if (selector_is_null(sel))
		return fault_gp(c, 0);
	r = desc_read(c, sel, VEC_GP, 0, &t.code);
	if (r != SOFT_OK)
		return r;
	if (!desc_is_segment(&t.code))
		return far_system(c, &t.code, sel, call);
	t.sel = sel;
	t.rip = offset;
	return far_direct(c, i, &t, call);
}

int op_far_call(struct soft_cpu *c, const struct insn *i)
{
	return far_branch(c, i, true);
}

int op_far_jmp(struct soft_cpu *c, const struct insn *i)
{
	return far_branch(c, i, false);
}

/* ---- returns ---- */

/* CS:rIP popped by RET or IRET: checks common to both. */
static int return_target(struct soft_cpu *c, u16 sel, u64 rip, struct target *t)
{
	u32 rpl = sel & 3u, dpl;
	bool permitted;
	int r;

	if (selector_is_null(sel))
		return fault_gp(c, 0);
	r = desc_read(c, sel, VEC_GP, 0, &t->code);
	if (r != SOFT_OK)
		return r;
	dpl = desc_dpl(&t->code);
	permitted = desc_type(&t->code) & DESC_CONFORMING ? dpl <= rpl : dpl == rpl;
	if (!desc_is_code(&t->code) || rpl < c->cpl || !permitted)
		return fault_gp(c, sel & 0xfffc);
	if (!desc_is_present(&t->code))
		return soft_fault_code(c, VEC_NP, sel & 0xfffc);
	t->sel = sel;
	t->cpl = rpl;
	t->rip = rip;
	r = target_check(c, t);
	return r == SOFT_OK ? desc_mark_accessed(c, &t->code) : r;
}

/* SS popped for level @t->cpl; null is good for 64-bit code above level 3. */
static int return_stack(struct soft_cpu *c, const struct target *t, u16 sel, struct cpu_segment *ss)
{
	bool to_64bit = in_long_mode(c) && desc_is_long(&t->code);

	if (selector_is_null(sel)) {
		if (!to_64bit || t->cpl == 3 || (sel & 3u) != t->cpl)
			return fault_gp(c, 0);
		seg_make_null(sel, ss);
		return SOFT_OK;
	}
	return seg_prepare_stack(c, sel, t->cpl, VEC_GP, 0, ss);
}

static void set_returned_rsp(struct soft_cpu *c, u64 rsp)
{
	if (soft_is_64bit(c))
		c->r[RSP] = rsp;
	else
		gpr_set(c, RSP, c->seg[SEG_SS].db ? 4 : 2, rsp);
}

/* Everything checked: go to @t, with another stack when the level changes (or IRETQ says so). */
static void return_commit(struct soft_cpu *c, const struct target *t, const struct cpu_segment *ss,
			  u64 rsp)
{
	bool outward = t->cpl > c->cpl;

	soft_copy(&c->seg[SEG_SS], ss, sizeof(*ss));
	target_enter(c, t);
	set_returned_rsp(c, rsp);
	if (outward)
		seg_drop_privileged(c);
}

static int far_ret_real(struct soft_cpu *c, struct stack *st, u64 rip, u16 sel, u32 release)
{
	if (rip > c->seg[SEG_CS].limit)
		return fault_gp(c, 0);
	st->sp = (st->sp + release) & st->mask;
	stack_commit(c, st);
	seg_make_real(c, SEG_CS, sel, &c->seg[SEG_CS]);
	soft_interp(c)->next_rip = rip;
	soft_update_mode(c);
	return SOFT_OK;
}

static int far_ret_outer(struct soft_cpu *c, struct stack *st, const struct target *t, u32 size,
			 u32 release)
{
	struct cpu_segment ss;
	u64 rsp, sel;
	int r;

	st->sp = (st->sp + release) & st->mask;
	r = stack_pop(c, st, size, &rsp);
	if (r == SOFT_OK)
		r = stack_pop(c, st, size, &sel);
	if (r == SOFT_OK)
		r = return_stack(c, t, (u16)sel, &ss);
	if (r != SOFT_OK)
		return r;
	return_commit(c, t, &ss, rsp + release);
	soft_update_mode(c);
	return SOFT_OK;
}

int op_far_ret(struct soft_cpu *c, const struct insn *i)
{
	u32 release = i->has_imm ? (u16)i->imm : 0;
	struct target t;
	struct stack st;
	u64 rip, sel;
	int r;

	stack_open(c, &st);
	r = stack_pop(c, &st, i->opsize, &rip);
	if (r == SOFT_OK)
		r = stack_pop(c, &st, i->opsize, &sel);
	if (r != SOFT_OK)
		return r;
	if (in_real_or_vm86(c))
		return far_ret_real(c, &st, rip, (u16)sel, release);
	r = return_target(c, (u16)sel, rip, &t);
	if (r != SOFT_OK)
		return r;
	if (t.cpl > c->cpl)
		return far_ret_outer(c, &st, &t, i->opsize, release);
	st.sp = (st.sp + release) & st.mask;
	stack_commit(c, &st);
	target_enter(c, &t);
	soft_update_mode(c);
	return SOFT_OK;
}

/* RFLAGS bits that IRET may load at privilege level @cpl (SDM vol. 2, IRET). */
static u64 iret_flags_mask(const struct soft_cpu *c, u32 size)
{
	u64 mask = RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT;

	if (size > 2)
		mask |= RFLAGS_RF | RFLAGS_AC | RFLAGS_ID;
	if (c->cpl <= soft_iopl(c))
		mask |= RFLAGS_IF;
	if (c->cpl == 0) {
		mask |= RFLAGS_IOPL;
		if (size > 2)
			mask |= RFLAGS_VIF | RFLAGS_VIP;
	}
	return mask;
}

static void iret_load_flags(struct soft_cpu *c, u64 flags, u64 mask)
{
	soft_set_rflags(c, (soft_rflags(c) & ~mask) | (flags & mask));
	/* RF only matters to instruction breakpoints; without any it need not outlive IRET. */
	soft_interp(c)->keep_rf = c->dr7 & DR7_ANY;
	c->nmi_blocked = false;
}

static int iret_real(struct soft_cpu *c, const struct insn *i)
{
	u64 rip, sel, flags, mask = iret_flags_mask(c, i->opsize);
	struct stack st;
	int r;

	if (in_vm86(c)) {
		if (soft_iopl(c) < 3)
			return fault_gp(c, 0);
		mask |= RFLAGS_IF;
	}
	stack_open(c, &st);
	r = stack_pop(c, &st, i->opsize, &rip);
	if (r == SOFT_OK)
		r = stack_pop(c, &st, i->opsize, &sel);
	if (r == SOFT_OK)
		r = stack_pop(c, &st, i->opsize, &flags);
	if (r == SOFT_OK)
		r = far_ret_real(c, &st, rip, (u16)sel, 0);
	if (r != SOFT_OK)
		return r;
	iret_load_flags(c, flags, mask & ~(RFLAGS_VIF | RFLAGS_VIP));
	soft_update_mode(c);
	return SOFT_OK;
}

/* To virtual-8086 mode: the frame goes on with ESP SS ES DS FS GS. */
static int iret_to_vm86(struct soft_cpu *c, struct stack *st, u64 rip, u16 cs, u64 flags)
{
	static const u8 order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	u64 value[6];
	int r;

	for (u32 n = 0; n < 6; n++) {
		r = stack_pop(c, st, 4, &value[n]);
		if (r != SOFT_OK)
			return r;
	}
	if (rip > 0xffff)
		return fault_gp(c, 0);
	iret_load_flags(c, flags, ~0ul);
	c->cpl = 3;
	seg_make_real(c, SEG_CS, cs, &c->seg[SEG_CS]);
	for (u32 n = 0; n < ARRAY_SIZE(order); n++)
		seg_make_real(c, order[n], (u16)value[n + 1], &c->seg[order[n]]);
	c->r[RSP] = (u32)value[0];
	soft_interp(c)->next_rip = rip;
	soft_update_mode(c);
	return SOFT_OK;
}

static int iret_task(struct soft_cpu *c)
{
	u64 link;
	int r;

	if (in_long_mode(c))
		return fault_gp(c, 0);
	r = sys_read_value(c, (u32)c->seg[SEG_TR].base, 2, &link);
	if (r != SOFT_OK)
		return r;
	return task_switch(c, (u16)link, TASK_IRET, soft_interp(c)->next_rip, 0, false, 0);
}

/* The frame of IRETQ in one piece, the hot case. False: pop it value by value. */
static bool iret_read_frame(struct soft_cpu *c, struct stack *st, u64 frame[5], int *status)
{
	if ((c->mode & MODE_INTERPRET) || !soft_canonical(st->sp) || !soft_canonical(st->sp + 39))
		return false;
	*status = guest_read(c, st->sp, frame, 40);
	st->sp += 40;
	return true;
}

/* Values @from to @to - 1 of: RIP CS RFLAGS, and from 64-bit mode or to an outer level RSP SS. */
static int iret_pop(struct soft_cpu *c, struct stack *st, u32 size, u64 frame[5], u32 from, u32 to)
{
	int r = SOFT_OK;

	for (u32 n = from; n < to && r == SOFT_OK; n++)
		r = stack_pop(c, st, size, &frame[n]);
	return r;
}

int op_iret(struct soft_cpu *c, const struct insn *i)
{
	u64 frame[5], mask = iret_flags_mask(c, i->opsize);
	bool from_64bit = soft_is_64bit(c);
	struct cpu_segment ss;
	struct target t;
	struct stack st;
	int r;

	if (in_real_or_vm86(c))
		return iret_real(c, i);
	if (c->sysflags & RFLAGS_NT)
		return iret_task(c);
	stack_open(c, &st);
	if (i->opsize != 8 || !iret_read_frame(c, &st, frame, &r))
		r = iret_pop(c, &st, i->opsize, frame, 0, from_64bit ? 5 : 3);
	if (r != SOFT_OK)
		return r;
	if ((frame[2] & RFLAGS_VM) && c->cpl == 0 && !in_long_mode(c) && i->opsize == 4)
		return iret_to_vm86(c, &st, frame[0], (u16)frame[1], frame[2]);
	r = return_target(c, (u16)frame[1], frame[0], &t);
	if (r != SOFT_OK)
		return r;
	if (from_64bit || t.cpl > c->cpl) {
		if (!from_64bit)
			r = iret_pop(c, &st, i->opsize, frame, 3, 5);
		if (r == SOFT_OK)
			r = return_stack(c, &t, (u16)frame[4], &ss);
		if (r != SOFT_OK)
			return r;
		return_commit(c, &t, &ss, frame[3]);
	} else {
		stack_commit(c, &st);
		target_enter(c, &t);
	}
	iret_load_flags(c, frame[2], mask);
	soft_update_mode(c);
	return SOFT_OK;
}
