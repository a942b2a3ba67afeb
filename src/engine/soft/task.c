/*
 * Hardware task switches with 32- and 16-bit TSSs (SDM vol. 3, chapter 7).
 *
 * Up to the commit point (all reads of the new TSS, all writes to memory) a fault belongs to the
 * old task. From then on the new task's registers are in place, and what its selectors do wrong is
 * reported there: the segment registers hold the selectors meanwhile, marked unusable.
 *
 * The debug trap of a TSS with the T flag is not delivered here but before the next instruction, so
 * that a chain of such tasks cannot nest deliveries.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

enum {
	TSS_LINK = 0,
	TSS32_CR3 = 0x1c,
	TSS32_STATE = 0x20, /* EIP EFLAGS, 8 registers, 6 selectors */
	TSS32_LDT = 0x60,
	TSS32_TRAP = 0x64,
	TSS32_LIMIT = 0x67,
	TSS16_STATE = 0x0e, /* IP FLAGS, 8 registers, 4 selectors */
	TSS16_LDT = 0x2a,
	TSS16_LIMIT = 0x2b,
	TSS_SAVED = 16,
	TSS_BUSY_BIT = 2, /* in the type */
};

/* What a TSS holds of a task. */
struct task {
	u64 cr3, ldt;
	bool trap;
	u64 rip, flags, r[8];
	u64 sel[6]; /* ES CS SS DS FS GS */
};

static bool tss_is_32bit(const struct cpu_segment *s)
{
	return s->type & 8;
}

/* Find and check the descriptor of the new TSS. */
static int find_tss(struct soft_cpu *c, u16 sel, enum task_switch how, u32 ext,
		    struct descriptor *d, struct cpu_segment *tr)
{
	u8 vector = how == TASK_IRET ? VEC_TS : VEC_GP;
	u32 error = (sel & 0xfffc) | ext, wanted = how == TASK_IRET ? TSS_BUSY_BIT : 0;
	int r;

	if (sel & 4)
		return soft_fault_code(c, vector, error);
	r = desc_read(c, sel, vector, ext, d);
	if (r != SOFT_OK)
		return r;
	/* Types 1, 3, 9 and 11 are TSSs; bit 1 says busy. */
	if (desc_is_segment(d) || (desc_type(d) & 5) != 1 ||
	    (desc_type(d) & TSS_BUSY_BIT) != wanted)
		return soft_fault_code(c, vector, error);
	if (!desc_is_present(d))
		return soft_fault_code(c, VEC_NP, error);
	desc_unpack(d, sel, tr);
	if (tr->limit < (tss_is_32bit(tr) ? TSS32_LIMIT : TSS16_LIMIT))
		return soft_fault_code(c, VEC_TS, error);
	return SOFT_OK;
}

static int read_field(struct soft_cpu *c, const struct cpu_segment *tr, u32 offset, u32 size,
		      u64 *value)
{
	return sys_read_value(c, (u32)(tr->base + offset), size, value);
}

static int read_state(struct soft_cpu *c, const struct cpu_segment *tr, struct task *t)
{
	bool wide = tss_is_32bit(tr);
	u32 size = wide ? 4 : 2, at = wide ? TSS32_STATE : TSS16_STATE, sels = wide ? 6 : 4;
	u64 word[TSS_SAVED] = {0};
	int r = SOFT_OK;

	for (u32 n = 0; n < 10 + sels && r == SOFT_OK; n++, at += size)
		r = read_field(c, tr, at, size, &word[n]);
	t->rip = word[0];
	t->flags = word[1];
	for (u32 n = 0; n < 8; n++)
		t->r[n] = word[2 + n];
	for (u32 n = 0; n < 6; n++)
		t->sel[n] = word[10 + n];
	return r;
}

static int read_task(struct soft_cpu *c, const struct cpu_segment *tr, struct task *t)
{
	u64 trap = 0;
	int r = read_state(c, tr, t);

	t->cr3 = c->cr3;
	if (r == SOFT_OK && tss_is_32bit(tr)) {
		r = read_field(c, tr, TSS32_CR3, 4, &t->cr3);
		if (r == SOFT_OK)
			r = read_field(c, tr, TSS32_TRAP, 2, &trap);
	}
	if (r == SOFT_OK)
		r = read_field(c, tr, tss_is_32bit(tr) ? TSS32_LDT : TSS16_LDT, 2, &t->ldt);
	t->trap = trap & 1;
	return r;
}

/* Store the running task in its TSS. */
static int save_task(struct soft_cpu *c, u64 rip, u64 flags)
{
	static const u8 order[] = {SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS};
	const struct cpu_segment *tr = &c->seg[SEG_TR];
	bool wide = tss_is_32bit(tr);
	u32 size = wide ? 4 : 2, at = wide ? TSS32_STATE : TSS16_STATE, sels = wide ? 6 : 4;
	u8 image[TSS_SAVED * 4];

	soft_store(image, rip, size);
	soft_store(image + size, flags, size);
	for (u32 n = 0; n < 8; n++)
		soft_store(image + (u64)(2 + n) * size, c->r[n], size);
	for (u32 n = 0; n < sels; n++)
		soft_store(image + (u64)(10 + n) * size, c->seg[order[n]].selector, size);
	return sys_write(c, (u32)(tr->base + at), image, (10 + sels) * size);
}

/* The busy bit of the old task goes when it will not be returned to. */
static int clear_busy(struct soft_cpu *c)
{
	gva_t lin = (u32)(c->gdtr.base + (c->seg[SEG_TR].selector & 0xfff8) + 5);
	u64 access;
	int r = sys_read_value(c, lin, 1, &access);

	access &= ~(u64)TSS_BUSY_BIT;
	return r == SOFT_OK ? sys_write(c, lin, &access, 1) : r;
}

/* All writes to memory; a fault here leaves the old task running. */
static int write_memory(struct soft_cpu *c, enum task_switch how, const struct descriptor *d,
			const struct cpu_segment *tr, u64 rip)
{
	bool nests = how == TASK_CALL || how == TASK_GATE;
	u64 flags = soft_rflags(c);
	int r;

	if (how == TASK_IRET)
		flags &= ~RFLAGS_NT;
	r = save_task(c, rip, flags);
	if (r == SOFT_OK && nests)
		r = sys_write(c, (u32)(tr->base + TSS_LINK), &c->seg[SEG_TR].selector, 2);
	if (r == SOFT_OK && !nests)
		r = clear_busy(c);
	if (r == SOFT_OK && how != TASK_IRET)
		r = sys_set_bits(c, d->addr + 5, TSS_BUSY_BIT);
	return r;
}

/* ---- the new task ---- */

static int load_ldt(struct soft_cpu *c, u16 sel, u32 ext)
{
	u32 error = (sel & 0xfffc) | ext;
	struct descriptor d;
	int r;

	if (selector_is_null(sel))
		return SOFT_OK;
	if (sel & 4)
		return soft_fault_code(c, VEC_TS, error);
	r = desc_read(c, sel, VEC_TS, ext, &d);
	if (r != SOFT_OK)
		return r;
	if (desc_is_segment(&d) || desc_type(&d) != DESC_LDT || !desc_is_present(&d))
		return soft_fault_code(c, VEC_TS, error);
	desc_unpack(&d, sel, &c->seg[SEG_LDTR]);
	return SOFT_OK;
}

static int load_code(struct soft_cpu *c, u16 sel, u32 ext)
{
	u32 error = (sel & 0xfffc) | ext, rpl = sel & 3, dpl;
	struct descriptor d;
	int r;

	if (selector_is_null(sel))
		return soft_fault_code(c, VEC_TS, error);
	r = desc_read(c, sel, VEC_TS, ext, &d);
	if (r != SOFT_OK)
		return r;
	dpl = desc_dpl(&d);
	if (!desc_is_code(&d) || (desc_type(&d) & DESC_CONFORMING ? dpl > rpl : dpl != rpl))
		return soft_fault_code(c, VEC_TS, error);
	if (!desc_is_present(&d))
		return soft_fault_code(c, VEC_NP, error);
	r = desc_mark_accessed(c, &d);
	if (r == SOFT_OK)
		desc_unpack(&d, sel, &c->seg[SEG_CS]);
	return r;
}

static int load_segments(struct soft_cpu *c, const struct task *t, u32 ext)
{
	static const u8 data[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	struct cpu_segment s;
	int r = load_ldt(c, (u16)t->ldt, ext);

	if (r != SOFT_OK)
		return r;
	if (in_vm86(c)) {
		for (u32 n = SEG_ES; n <= SEG_GS; n++)
			seg_make_real(c, n, (u16)t->sel[n], &c->seg[n]);
		return SOFT_OK;
	}
	r = load_code(c, (u16)t->sel[SEG_CS], ext);
	for (u32 n = 0; n < ARRAY_SIZE(data) && r == SOFT_OK; n++) {
		u32 seg = data[n];

		r = seg_prepare(c, seg, (u16)t->sel[seg], c->cpl, VEC_TS, ext, &s);
		if (r == SOFT_OK)
			soft_copy(&c->seg[seg], &s, sizeof(s));
	}
	return r;
}

/* Registers of the new task; its segments are selectors only so far. */
static void load_registers(struct soft_cpu *c, const struct task *t, const struct cpu_segment *tr)
{
	soft_copy(&c->seg[SEG_TR], tr, sizeof(*tr));
	c->seg[SEG_TR].type |= TSS_BUSY_BIT;
	if (tss_is_32bit(tr) && (c->cr0 & CR0_PG))
		soft_load_cr3(c, t->cr3, true);
	c->cr0 |= CR0_TS;
	c->dr7 &= ~0x155ul; /* L0-L3 and LE are local to the task (SDM vol. 3, 17.2.4) */
	c->rip = t->rip;
	soft_set_rflags(c, t->flags);
	for (u32 n = 0; n < 8; n++)
		c->r[n] = t->r[n];
	for (u32 n = SEG_ES; n <= SEG_GS; n++)
		seg_make_null((u16)t->sel[n], &c->seg[n]);
	seg_make_null((u16)t->ldt, &c->seg[SEG_LDTR]);
	c->cpl = in_vm86(c) ? 3 : t->sel[SEG_CS] & 3;
}

static int push_error(struct soft_cpu *c, u32 error)
{
	u32 size = tss_is_32bit(&c->seg[SEG_TR]) ? 4 : 2;
	struct stack st;
	int r;

	stack_open(c, &st);
	r = stack_push(c, &st, size, error);
	if (r == SOFT_OK)
		stack_commit(c, &st);
	return r;
}

int task_switch(struct soft_cpu *c, u16 sel, enum task_switch how, u64 next_rip, u32 ext,
		bool has_error, u32 error)
{
	struct interp *in = soft_interp(c);
	struct cpu_segment tr;
	struct descriptor d;
	struct task t;
	int r = find_tss(c, sel, how, ext, &d, &tr);

	if (r == SOFT_OK)
		r = read_task(c, &tr, &t);
	if (r == SOFT_OK)
		r = write_memory(c, how, &d, &tr, next_rip);
	if (r != SOFT_OK)
		return r;
	if (how == TASK_CALL || how == TASK_GATE)
		t.flags |= RFLAGS_NT;
	load_registers(c, &t, &tr);
	in->next_rip = c->rip;
	in->keep_rf = true;
	in->no_step = true;
	in->task_trap = t.trap;
	r = load_segments(c, &t, ext);
	soft_update_mode(c);
	if (r == SOFT_OK && c->rip > c->seg[SEG_CS].limit)
		r = fault_gp(c, ext);
	if (r == SOFT_OK && has_error)
		r = push_error(c, error);
	return r;
}
