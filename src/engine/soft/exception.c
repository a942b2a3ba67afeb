/*
 * Delivery of exceptions and interrupts through the IDT, in every mode (SDM vol. 3, chapter 6).
 *
 * One attempt (deliver_once) makes all checks and all stack writes first and changes registers
 * last, so that a fault on the way leaves the CPU at the interrupted instruction. The loop around
 * it decides what a fault during delivery becomes: the new exception, #DF or shutdown (SDM table
 * 6-5). Faults met by INT n belong to that instruction and are handed back to the caller instead.
 *
 * Stacks and tables in device memory: such reads give all ones and such writes vanish, because a
 * delivery cannot be suspended half-way. The number of such accesses is bounded by SOFT_FRAGMENTS.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

struct event {
	u8 vector;
	u8 kind; /* enum event_kind */
	bool has_error;
	u32 error;
	u64 rip; /* return address */
};

/* A gate of the IDT, and the code segment it leads to. */
struct gate {
	u64 low, high;
	u64 offset;
	u16 sel;
	u32 type; /* enum desc_type */
	struct descriptor code;
	u32 cpl; /* the handler's */
};

static u32 event_ext(const struct event *ev)
{
	return ev->kind != EVENT_SOFTWARE;
}

/* RF is set for faults: an instruction breakpoint must not be met twice (SDM vol. 3, 17.3.1.1). */
static u64 event_rflags(const struct soft_cpu *c, const struct event *ev)
{
	u64 flags = soft_rflags(c);

	if (ev->kind == EVENT_FAULT)
		return flags | RFLAGS_RF;
	return ev->kind == EVENT_EXTERNAL ? flags : flags & ~RFLAGS_RF;
}

static int shutdown(struct soft_cpu *c)
{
	c->exit.type = EXIT_SHUTDOWN;
	return SOFT_EXIT;
}

static u32 gate_error(const struct event *ev)
{
	return ev->vector * 8u + 2 + event_ext(ev);
}

/* Read and check the gate itself. */
static int gate_read(struct soft_cpu *c, const struct event *ev, struct gate *g)
{
	bool wide = in_long_mode(c);
	u32 size = wide ? 16 : 8, offset = ev->vector * size;
	u32 valid = wide ? BIT(DESC_INTERRUPT_GATE) | BIT(DESC_TRAP_GATE)
			 : BIT(DESC_TASK_GATE) | BIT(DESC_INTERRUPT_GATE16) |
				    BIT(DESC_TRAP_GATE16) | BIT(DESC_INTERRUPT_GATE) |
				    BIT(DESC_TRAP_GATE);
	gva_t lin = c->idtr.base + offset;
	int r;

	if (offset + size - 1 > c->idtr.limit)
		return fault_gp(c, gate_error(ev));
	g->high = 0;
	r = sys_read(c, wide ? lin : (u32)lin, &g->low, size);
	if (r != SOFT_OK)
		return r;
	g->type = g->low >> 40 & 15;
	if ((g->low & BIT(44)) || !(valid >> g->type & 1))
		return fault_gp(c, gate_error(ev));
	if (ev->kind == EVENT_SOFTWARE && (g->low >> 45 & 3) < c->cpl)
		return fault_gp(c, gate_error(ev));
	if (!(g->low & BIT(47)))
		return soft_fault_code(c, VEC_NP, gate_error(ev));
	g->sel = g->low >> 16 & 0xffff;
	g->offset = (g->low & 0xffff) | (g->low >> 32 & 0xffff0000) | g->high << 32;
	if (g->type == DESC_INTERRUPT_GATE16 || g->type == DESC_TRAP_GATE16)
		g->offset &= 0xffff;
	return SOFT_OK;
}

/* Read and check the handler's code segment; finds the handler's privilege level. */
static int gate_read_code(struct soft_cpu *c, const struct event *ev, struct gate *g)
{
	u32 ext = event_ext(ev), error = (g->sel & 0xfffc) | ext;
	u32 dpl;
	int r;

	if (selector_is_null(g->sel))
		return fault_gp(c, ext);
	r = desc_read(c, g->sel, VEC_GP, ext, &g->code);
	if (r != SOFT_OK)
		return r;
	dpl = desc_dpl(&g->code);
	if (!desc_is_code(&g->code) || dpl > c->cpl)
		return fault_gp(c, error);
	if (in_long_mode(c) && (!desc_is_long(&g->code) || desc_is_big(&g->code)))
		return fault_gp(c, error);
	if (!desc_is_present(&g->code))
		return soft_fault_code(c, VEC_NP, error);
	g->cpl = desc_type(&g->code) & DESC_CONFORMING ? c->cpl : dpl;
	if (in_vm86(c) && g->cpl != 0)
		return fault_gp(c, error);
	return desc_mark_accessed(c, &g->code);
}

/* All checks are made: the CPU is in the handler. */
static void gate_enter(struct soft_cpu *c, const struct gate *g)
{
	desc_unpack(&g->code, (u16)((g->sel & ~3u) | g->cpl), &c->seg[SEG_CS]);
	c->cpl = (u8)g->cpl;
	c->rip = g->offset;
	c->sysflags &= ~(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
	if (!(g->type & 1))
		c->iflag = 0;
	soft_update_mode(c);
}

/* 64-bit mode, SDM vol. 3, 6.14 */
static int deliver_long(struct soft_cpu *c, const struct event *ev)
{
	struct stack st = {.mask = ~0ul, .error = event_ext(ev)};
	u64 frame[6], rsp = c->r[RSP];
	struct gate g;
	u32 ist;
	int r = gate_read(c, ev, &g);

	if (r == SOFT_OK)
		r = gate_read_code(c, ev, &g);
	if (r != SOFT_OK)
		return r;
	ist = g.low >> 32 & 7;
	if (ist)
		r = tss_read_quad(c, 36 + 8 * (ist - 1), st.error, &rsp);
	else if (g.cpl < c->cpl)
		r = tss_read_quad(c, 4 + 8 * g.cpl, st.error, &rsp);
	if (r != SOFT_OK)
		return r;
	if (!soft_canonical(g.offset))
		return fault_gp(c, st.error);
	frame[0] = c->seg[SEG_SS].selector;
	frame[1] = c->r[RSP];
	frame[2] = event_rflags(c, ev);
	frame[3] = c->seg[SEG_CS].selector;
	frame[4] = ev->rip;
	frame[5] = ev->error;
	st.sp = rsp & ~15ul;
	st.access = g.cpl == 3 ? ACC_USER : 0;
	r = stack_push_all(c, &st, 8, frame, ev->has_error ? 6 : 5);
	if (r != SOFT_OK)
		return r;
	if (g.cpl != c->cpl)
		seg_make_null((u16)g.cpl, &c->seg[SEG_SS]);
	c->r[RSP] = st.sp;
	gate_enter(c, &g);
	return SOFT_OK;
}

/* The frame of a protected-mode handler: returns how many values it has. */
static u32 build_frame(struct soft_cpu *c, const struct event *ev, bool inner, u64 frame[10])
{
	u32 n = 0;

	if (in_vm86(c)) {
		frame[n++] = c->seg[SEG_GS].selector;
		frame[n++] = c->seg[SEG_FS].selector;
		frame[n++] = c->seg[SEG_DS].selector;
		frame[n++] = c->seg[SEG_ES].selector;
	}
	if (inner) {
		frame[n++] = c->seg[SEG_SS].selector;
		frame[n++] = c->r[RSP];
	}
	frame[n++] = event_rflags(c, ev);
	frame[n++] = c->seg[SEG_CS].selector;
	frame[n++] = ev->rip;
	if (ev->has_error)
		frame[n++] = ev->error;
	return n;
}

/* Stack of the handler: the TSS's for an inner level, else the current one. */
static int open_handler_stack(struct soft_cpu *c, const struct event *ev, const struct gate *g,
			      struct cpu_segment *ss, struct stack *st)
{
	u32 ext = event_ext(ev), esp;
	u16 sel;
	int r;

	stack_open(c, st);
	st->error = ext;
	if (g->cpl == c->cpl)
		return SOFT_OK;
	r = tss_read_stack(c, g->cpl, ext, &sel, &esp);
	if (r == SOFT_OK)
		r = seg_prepare_stack(c, sel, g->cpl, VEC_TS, ext, ss);
	if (r != SOFT_OK)
		return r;
	st->ss = ss;
	st->mask = ss->db ? 0xffffffff : 0xffff;
	st->sp = esp & st->mask;
	st->access = g->cpl == 3 ? ACC_USER : 0;
	st->error = (sel & 0xfffc) | ext;
	return SOFT_OK;
}

static void leave_vm86(struct soft_cpu *c)
{
	seg_make_null(0, &c->seg[SEG_GS]);
	seg_make_null(0, &c->seg[SEG_FS]);
	seg_make_null(0, &c->seg[SEG_DS]);
	seg_make_null(0, &c->seg[SEG_ES]);
}

/* Protected and virtual-8086 mode, SDM vol. 3, 6.12 and 20.3 */
static int deliver_protected(struct soft_cpu *c, const struct event *ev)
{
	struct cpu_segment ss, cs;
	struct stack st;
	struct gate g;
	u64 frame[10];
	bool inner;
	u32 count, size;
	int r = gate_read(c, ev, &g);

	if (r != SOFT_OK)
		return r;
	if (g.type == DESC_TASK_GATE)
		return task_switch(c, g.sel, TASK_GATE, ev->rip, event_ext(ev), ev->has_error,
				   ev->error);
	r = gate_read_code(c, ev, &g);
	if (r == SOFT_OK)
		r = open_handler_stack(c, ev, &g, &ss, &st);
	if (r != SOFT_OK)
		return r;
	inner = g.cpl != c->cpl;
	size = g.type & 8 ? 4 : 2;
	count = build_frame(c, ev, inner, frame);
	r = stack_push_all(c, &st, size, frame, count);
	if (r != SOFT_OK)
		return r;
	desc_unpack(&g.code, g.sel, &cs);
	if (g.offset > cs.limit)
		return fault_gp(c, event_ext(ev));
	if (in_vm86(c))
		leave_vm86(c);
	if (inner)
		soft_copy(&c->seg[SEG_SS], &ss, sizeof(ss));
	stack_commit(c, &st);
	gate_enter(c, &g);
	return SOFT_OK;
}

/* Real-address mode: the interrupt vector table, SDM vol. 3, 20.1.4 */
static int deliver_real(struct soft_cpu *c, const struct event *ev)
{
	u32 offset = ev->vector * 4u;
	u64 entry, frame[3];
	struct stack st;
	int r;

	if (offset + 3 > c->idtr.limit)
		return fault_gp(c, gate_error(ev));
	r = sys_read_value(c, (u32)(c->idtr.base + offset), 4, &entry);
	if (r != SOFT_OK)
		return r;
	frame[0] = soft_rflags(c);
	frame[1] = c->seg[SEG_CS].selector;
	frame[2] = ev->rip;
	stack_open(c, &st);
	r = stack_push_all(c, &st, 2, frame, 3);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	seg_make_real(c, SEG_CS, (u16)(entry >> 16), &c->seg[SEG_CS]);
	c->rip = entry & 0xffff;
	c->iflag = 0;
	c->sysflags &= ~(RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
	soft_update_mode(c);
	return SOFT_OK;
}

static int deliver_once(struct soft_cpu *c, const struct event *ev)
{
	if (!in_protected_mode(c))
		return deliver_real(c, ev);
	return in_long_mode(c) ? deliver_long(c, ev) : deliver_protected(c, ev);
}

/* deliver_once() with device memory answered at once: see the head of the file. */
static int deliver_undisturbed(struct soft_cpu *c, const struct event *ev)
{
	int r;

	c->frag_count = 0;
	for (;;) {
		c->frag_next = 0;
		r = deliver_once(c, ev);
		if (r != SOFT_EXIT || c->exit.type != EXIT_MMIO)
			break;
		if (c->frag_count == SOFT_FRAGMENTS) {
			r = shutdown(c);
			break;
		}
		c->frag[c->frag_count++] = (struct soft_fragment){
			.addr = c->exit.mmio.gpa,
			.data = ~0ul,
			.size = c->exit.mmio.size,
			.write = c->exit.mmio.write,
		};
	}
	c->frag_count = 0;
	return r;
}

static bool is_contributory(u8 vector)
{
	return vector == VEC_DE || (vector >= VEC_TS && vector <= VEC_GP);
}

/* Two exceptions in a row, SDM vol. 3, table 6-5 */
static bool makes_double_fault(u8 first, u8 second)
{
	if (first == VEC_PF)
		return second == VEC_PF || is_contributory(second);
	return is_contributory(first) && is_contributory(second);
}

/* The exception that came up while @ev was delivered takes its place. False: shutdown. */
static bool escalate(struct soft_cpu *c, struct event *ev)
{
	u8 vector = c->exc.vector;
	bool was_exception = ev->kind == EVENT_FAULT || ev->kind == EVENT_TRAP;

	if (vector == VEC_PF)
		c->cr2 = c->exc.cr2;
	if (was_exception && ev->vector == VEC_DF)
		return false;
	if (was_exception && makes_double_fault(ev->vector, vector))
		*ev = (struct event){.vector = VEC_DF, .has_error = true};
	else
		*ev = (struct event){
			.vector = vector, .has_error = c->exc.has_error, .error = c->exc.error};
	ev->kind = EVENT_FAULT;
	ev->rip = c->rip;
	return true;
}

static int deliver(struct soft_cpu *c, struct event *ev)
{
	int r;

	for (;;) {
		r = deliver_undisturbed(c, ev);
		if (r != SOFT_FAULT || ev->kind == EVENT_SOFTWARE)
			break;
		if (!escalate(c, ev))
			return shutdown(c);
	}
	if (r == SOFT_OK) {
		c->shadow = c->shadow_mov_ss = false;
		c->halted = false;
		if (ev->vector == VEC_DB && ev->kind != EVENT_EXTERNAL)
			c->dr7 &= ~DR7_GD;
	}
	return r;
}

int event_deliver(struct soft_cpu *c, u8 vector, enum event_kind kind, u64 rip)
{
	struct event ev = {.vector = vector, .kind = (u8)kind, .rip = rip};

	return deliver(c, &ev);
}

int soft_deliver_exception(struct soft_cpu *c)
{
	struct event ev = {.vector = c->exc.vector,
			   .kind = EVENT_FAULT,
			   .has_error = c->exc.has_error && in_protected_mode(c),
			   .error = c->exc.error,
			   .rip = c->rip};

	if (ev.vector == VEC_PF)
		c->cr2 = c->exc.cr2;
	return deliver(c, &ev);
}

int soft_deliver_trap(struct soft_cpu *c)
{
	return event_deliver(c, c->exc.vector, EVENT_TRAP, c->rip);
}

int soft_deliver_interrupt(struct soft_cpu *c, u8 vector)
{
	return event_deliver(c, vector, EVENT_EXTERNAL, c->rip);
}

int soft_deliver_nmi(struct soft_cpu *c)
{
	int r = event_deliver(c, VEC_NMI, EVENT_EXTERNAL, c->rip);

	if (r == SOFT_OK)
		c->nmi_blocked = true;
	return r;
}

/* Deliver from within an instruction: it completes in the handler and is not single-stepped. */
static int interrupt_now(struct soft_cpu *c, u8 vector, enum event_kind kind)
{
	struct interp *in = soft_interp(c);
	int r = event_deliver(c, vector, kind, in->next_rip);

	if (r == SOFT_OK) {
		in->next_rip = c->rip;
		in->no_step = true;
	}
	return r;
}

int op_int_n(struct soft_cpu *c, const struct insn *i)
{
	if (in_vm86(c) && soft_iopl(c) < 3)
		return fault_gp(c, 0);
	return interrupt_now(c, (u8)i->imm, EVENT_SOFTWARE);
}

int op_int3(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return interrupt_now(c, VEC_BP, EVENT_SOFTWARE);
}

/* INT1 ignores the gate's DPL and is not single-step: DR6 stays (SDM vol. 2, INT1). */
int op_int1(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return interrupt_now(c, VEC_DB, EVENT_TRAP);
}

int op_into(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	if (soft_is_64bit(c))
		return fault_ud(c);
	return c->flags & RFLAGS_OF ? interrupt_now(c, VEC_OF, EVENT_SOFTWARE) : SOFT_OK;
}

int op_bound(struct soft_cpu *c, const struct insn *i)
{
	u32 shift = 64 - 8u * i->opsize;
	u64 lower, upper;
	s64 value, low, high;
	gva_t lin;
	int r;

	if (soft_is_64bit(c) || modrm_mod(i) == 3)
		return fault_ud(c);
	r = insn_linear(c, i, 2u * i->opsize, false, &lin);
	if (r == SOFT_OK)
		r = guest_read_value(c, lin, i->opsize, &lower);
	if (r == SOFT_OK)
		r = guest_read_value(c, (u32)(lin + i->opsize), i->opsize, &upper);
	if (r != SOFT_OK)
		return r;
	value = (s64)(c->r[modrm_reg(i)] << shift) >> shift;
	low = (s64)(lower << shift) >> shift;
	high = (s64)(upper << shift) >> shift;
	return value < low || value > high ? soft_fault(c, VEC_BR) : SOFT_OK;
}

int op_ud(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return fault_ud(c);
}
