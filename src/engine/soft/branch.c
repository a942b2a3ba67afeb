/*
 * Near control flow, stack instructions and ENTER/LEAVE, in all modes and sizes.
 *
 * A branch target is checked before anything is committed: outside 64-bit mode against the limit of
 * CS, in 64-bit mode for canonical form (SDM vol. 1, 3.3.7.1).
 */
#include "engine/soft/system.h"

int branch_check(struct soft_cpu *c, u64 rip)
{
	if (soft_is_64bit(c) ? soft_canonical(rip) : rip <= c->seg[SEG_CS].limit)
		return SOFT_OK;
	return fault_gp(c, 0);
}

static int branch_to(struct soft_cpu *c, u64 rip)
{
	int r = branch_check(c, rip);

	if (r == SOFT_OK)
		soft_interp(c)->next_rip = rip;
	return r;
}

bool condition_holds(u64 flags, u32 cond)
{
	bool zf = flags & RFLAGS_ZF, cf = flags & RFLAGS_CF;
	bool less = !(flags & RFLAGS_SF) != !(flags & RFLAGS_OF);
	bool holds;

	switch (cond >> 1) {
	case 0: holds = flags & RFLAGS_OF; break;
	case 1: holds = cf; break;
	case 2: holds = zf; break;
	case 3: holds = cf || zf; break;
	case 4: holds = flags & RFLAGS_SF; break;
	case 5: holds = flags & RFLAGS_PF; break;
	case 6: holds = less; break;
	default: holds = less || zf; break;
	}
	return holds != (cond & 1);
}

/* In 64-bit mode near branches have 64-bit operands whatever the prefixes (SDM vol. 1, 6.3.7). */
static u32 branch_size(const struct soft_cpu *c, const struct insn *i)
{
	return soft_is_64bit(c) ? 8 : i->opsize;
}

static u64 relative_target(const struct soft_cpu *c, const struct insn *i)
{
	return (c->rip + i->len + (u64)i->imm) & size_mask(branch_size(c, i));
}

/* Target of an indirect branch: register or memory. */
static int indirect_target(struct soft_cpu *c, const struct insn *i, u64 *target)
{
	return operand_read(c, i, branch_size(c, i), target);
}

static int near_call(struct soft_cpu *c, const struct insn *i, u64 target)
{
	struct stack st;
	int r = branch_check(c, target);

	if (r != SOFT_OK)
		return r;
	stack_open(c, &st);
	r = stack_push(c, &st, branch_size(c, i), soft_interp(c)->next_rip);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	soft_interp(c)->next_rip = target;
	return SOFT_OK;
}

static int near_ret(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	u64 target;
	int r;

	stack_open(c, &st);
	r = stack_pop(c, &st, branch_size(c, i), &target);
	if (r == SOFT_OK)
		r = branch_to(c, target);
	if (r != SOFT_OK)
		return r;
	if (i->has_imm)
		st.sp = (st.sp + (u16)i->imm) & st.mask;
	stack_commit(c, &st);
	return SOFT_OK;
}

/* LOOPNE, LOOPE, LOOP, JrCXZ: opcodes e0-e3. */
static int loop(struct soft_cpu *c, const struct insn *i)
{
	u64 count = gpr_get(c, RCX, i->addrsize);
	bool taken, zf = c->flags & RFLAGS_ZF;
	u8 op = insn_opcode(i);
	int r;

	if (op == 0xe3)
		return count ? SOFT_OK : branch_to(c, relative_target(c, i));
	count = (count - 1) & size_mask(i->addrsize);
	taken = count && (op == 0xe2 || (op == 0xe1) == zf);
	if (taken) {
		r = branch_to(c, relative_target(c, i));
		if (r != SOFT_OK)
			return r;
	}
	gpr_set(c, RCX, i->addrsize, count);
	return SOFT_OK;
}

int exec_branch(struct soft_cpu *c, const struct insn *i)
{
	u64 target;
	int r;

	switch (i->cls) {
	case INSN_CALL: return near_call(c, i, relative_target(c, i));
	case INSN_CALL_INDIRECT:
		r = indirect_target(c, i, &target);
		return r == SOFT_OK ? near_call(c, i, target) : r;
	case INSN_JMP: return branch_to(c, relative_target(c, i));
	case INSN_JMP_INDIRECT:
		r = indirect_target(c, i, &target);
		return r == SOFT_OK ? branch_to(c, target) : r;
	case INSN_JCC:
		if (!condition_holds(c->flags, i->cond))
			return SOFT_OK;
		return branch_to(c, relative_target(c, i));
	case INSN_LOOP: return loop(c, i);
	default: return near_ret(c, i);
	}
}

/* PUSH of register, immediate or memory; PUSH rSP pushes the old value. */
int exec_push(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	u64 value;
	int r = SOFT_OK;

	if (i->has_imm)
		value = (u64)i->imm;
	else if (i->has_modrm)
		r = operand_read(c, i, i->opsize, &value);
	else
		value = c->r[i->opcode_reg.reg];
	if (r != SOFT_OK)
		return r;
	stack_open(c, &st);
	r = stack_push(c, &st, i->opsize, value);
	if (r == SOFT_OK)
		stack_commit(c, &st);
	return r;
}

/* A memory operand based on rSP is addressed with the incremented rSP; POP rSP gets the value. */
int exec_pop(struct soft_cpu *c, const struct insn *i)
{
	u64 value, old_rsp = c->r[RSP];
	struct stack st;
	int r;

	stack_open(c, &st);
	r = stack_pop(c, &st, i->opsize, &value);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	if (!i->has_modrm) {
		gpr_set(c, i->opcode_reg.reg, i->opsize, value);
		return SOFT_OK;
	}
	r = operand_write(c, i, i->opsize, i->opsize, value);
	if (r != SOFT_OK)
		c->r[RSP] = old_rsp;
	return r;
}

int op_pusha(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	int r;

	if (soft_is_64bit(c))
		return fault_ud(c);
	stack_open(c, &st);
	r = stack_push_all(c, &st, i->opsize, c->r,
			   8); /* AX CX DX BX SP BP SI DI, as they are numbered */
	if (r == SOFT_OK)
		stack_commit(c, &st);
	return r;
}

int op_popa(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	u64 value[8];
	int r;

	if (soft_is_64bit(c))
		return fault_ud(c);
	stack_open(c, &st);
	for (u32 reg = 8; reg-- > 0;) {
		r = stack_pop(c, &st, i->opsize, &value[reg]);
		if (r != SOFT_OK)
			return r;
	}
	for (u32 reg = 0; reg < 8; reg++)
		if (reg != RSP)
			gpr_set(c, reg, i->opsize, value[reg]);
	stack_commit(c, &st);
	return SOFT_OK;
}

/* Copy the enclosing frames' pointers, ENTER with a nesting level above 1. */
static int enter_display(struct soft_cpu *c, struct stack *st, u32 size, u32 level)
{
	struct stack frames = *st;
	u64 value;
	int r;

	for (u32 n = 1; n < level; n++) {
		frames.sp = (c->r[RBP] - (u64)size * n) & st->mask;
		r = stack_pop(c, &frames, size, &value);
		if (r == SOFT_OK)
			r = stack_push(c, st, size, value);
		if (r != SOFT_OK)
			return r;
	}
	return SOFT_OK;
}

int op_enter(struct soft_cpu *c, const struct insn *i)
{
	u32 size = i->opsize, level = (u32)i->imm2 & 31;
	struct stack st;
	u64 frame;
	int r;

	stack_open(c, &st);
	r = stack_push(c, &st, size, c->r[RBP]);
	frame = st.sp;
	if (r == SOFT_OK && level)
		r = enter_display(c, &st, size, level);
	if (r == SOFT_OK && level)
		r = stack_push(c, &st, size, frame);
	if (r != SOFT_OK)
		return r;
	st.sp = (st.sp - (u16)i->imm) & st.mask;
	/* The final stack top must be writable (SDM vol. 2, ENTER: #SS, #PF). */
	r = stack_probe(c, &st, size);
	if (r != SOFT_OK)
		return r;
	gpr_set(c, RBP, size, frame);
	stack_commit(c, &st);
	return SOFT_OK;
}

int op_leave(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	u64 value;
	int r;

	stack_open(c, &st);
	st.sp = c->r[RBP] & st.mask;
	r = stack_pop(c, &st, i->opsize, &value);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	gpr_set(c, RBP, i->opsize, value);
	return SOFT_OK;
}
