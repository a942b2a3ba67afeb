/*
 * The interpreter: one instruction at a time, in every processor mode.
 *
 * It is the engine's oracle, the fallback for what the translator does not do, and the way
 * privileged instructions run. soft_interpret() fetches, finds the decoded form (a direct-mapped
 * cache by address, verified against the bytes just fetched, so that it needs no invalidation),
 * dispatches by class and then settles what happens between instructions: RF, interrupt shadow,
 * single step and breakpoints.
 *
 * An instruction that needs a device returns SOFT_EXIT unfinished and is run again from its start
 * once the access is completed; completed accesses are replayed from c->frag[]. So nothing here may
 * change registers before the last access.
 *
 * This folder is compiled without vector instructions; libc and Zydis are called with vector state
 * parked only.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

#include <Zydis/Zydis.h>
#include <stdlib.h>

enum {
	INSN_MAX = 15,
	BYTES_SYSCALL = 0x050f,   /* 0f 05 */
	BYTES_SYSRETQ = 0x070f48, /* 48 0f 07 */
};

struct fetched {
	u64 word[2]; /* bytes from rip on; zero beyond len */
	u32 len;
};

int soft_interp_init(struct soft_cpu *c)
{
	c->interp = aligned_alloc(64, align_up(sizeof(struct interp), 64));
	if (!c->interp)
		return -1;
	soft_fill(c->interp, 0, sizeof(struct interp));
	/* A mask of zero with a nonzero key matches nothing. */
	for (u32 n = 0; n < INTERP_SLOTS; n++)
		soft_interp(c)->slot[n].key[0] = 1;
	system_init(c);
	return 0;
}

void soft_interp_destroy(struct soft_cpu *c)
{
	free(c->interp);
	c->interp = NULL;
}

static int fetch(struct soft_cpu *c, struct fetched *f)
{
	bool flat = soft_is_64bit(c);
	gva_t lin = flat ? c->rip : (u32)(c->seg[SEG_CS].base + c->rip);
	u64 left;
	int r;

	if (flat ? !soft_canonical(lin) : c->rip > c->seg[SEG_CS].limit)
		return fault_gp(c, 0);
	f->word[0] = f->word[1] = 0;
	r = soft_fetch(c, lin, (u8 *)f->word, &f->len);
	if (r != SOFT_OK)
		return r;
	if (!flat) {
		left = c->seg[SEG_CS].limit - c->rip + 1;
		if (f->len > left)
			f->len = (u32)left;
	}
	return SOFT_OK;
}

/* The instruction goes on where fetching stopped: at the limit of CS, or at a page that faults. */
static int fault_beyond(struct soft_cpu *c, u32 have)
{
	u64 next = c->rip + have;
	struct fetched f;
	gva_t lin;

	if (!soft_is_64bit(c)) {
		if (next > c->seg[SEG_CS].limit)
			return fault_gp(c, 0);
		lin = (u32)(c->seg[SEG_CS].base + next);
	} else if (!soft_canonical(next)) {
		return fault_gp(c, 0);
	} else {
		lin = next;
	}
	if (soft_fetch(c, lin, (u8 *)f.word, &f.len) == SOFT_FAULT)
		return SOFT_FAULT;
	return fault_ud(c); /* the mapping appeared meanwhile: the next attempt decodes it */
}

/* Undecodable: #GP when that is for want of a 16th byte (SDM vol. 3, 6.15, #GP), else #UD. */
static int fault_undecodable(struct soft_cpu *c, const struct fetched *f, u32 bits)
{
	struct insn probe;

	if (f->len == INSN_MAX) {
		insn_decode(&probe, (const u8 *)f->word, INSN_MAX - 1, bits);
		if (!probe.len)
			return fault_gp(c, 0);
	}
	return fault_ud(c);
}

static void slot_fill(struct interp_slot *s, const struct fetched *f)
{
	u32 len = s->insn.len;

	s->mask[0] = size_mask(len);
	s->mask[1] = len > 8 ? size_mask(len - 8) : 0;
	s->key[0] = f->word[0] & s->mask[0];
	s->key[1] = f->word[1] & s->mask[1];
}

static int decode(struct soft_cpu *c, const struct insn **out)
{
	struct interp_slot *s = &soft_interp(c)->slot[(c->rip ^ c->rip >> 11) % INTERP_SLOTS];
	u32 bits = code_bits(c);
	struct fetched f;
	int r = SOFT_OK;

	if (soft_interp(c)->given)
		f = (struct fetched){.word[0] = soft_interp(c)->given,
				     .len = soft_interp(c)->given_len};
	else
		r = fetch(c, &f);
	if (r != SOFT_OK)
		return r;
	*out = &s->insn;
	if ((f.word[0] & s->mask[0]) == s->key[0] && (f.word[1] & s->mask[1]) == s->key[1] &&
	    s->insn.bits == bits && s->insn.len <= f.len)
		return SOFT_OK;
	s->mask[0] = 0;
	s->key[0] = 1;
	soft_fpu_park(c);
	insn_decode(&s->insn, (const u8 *)f.word, f.len, bits);
	if (!s->insn.len)
		return fault_beyond(c, f.len);
	if (s->insn.cls == INSN_INVALID)
		return fault_undecodable(c, &f, bits);
	slot_fill(s, &f);
	return SOFT_OK;
}

static int exec_lea(struct soft_cpu *c, const struct insn *i)
{
	gpr_set(c, i->reg.reg, i->opsize, insn_offset(c, i));
	return SOFT_OK;
}

/*
 * A guest that waits for another of its processors by PAUSE may keep that one from running, when
 * the host has fewer: after some of them let others have the host's.
 */
static int exec_nop(struct soft_cpu *c, const struct insn *i)
{
	enum { PAUSES = 128, SYS_SCHED_YIELD = 24 };
	long nr = SYS_SCHED_YIELD;

	if (i->mnemonic != ZYDIS_MNEMONIC_PAUSE)
		return SOFT_OK;
	__builtin_ia32_pause();
	if ((s32)--c->pauses_left >= 0)
		return SOFT_OK;
	c->pauses_left = PAUSES;
	/* Not through libc: vector state stays where it is. */
	__asm__ volatile("syscall" : "+a"(nr) : : "rcx", "r11", "memory");
	return SOFT_OK;
}

static int execute(struct soft_cpu *c, const struct insn *i)
{
	switch (i->cls) {
	case INSN_DATA: return exec_data(c, i);
	case INSN_NOP: return exec_nop(c, i);
	case INSN_LEA: return exec_lea(c, i);
	case INSN_PUSH: return exec_push(c, i);
	case INSN_POP: return exec_pop(c, i);
	case INSN_STRING: return exec_string(c, i);
	case INSN_SYSTEM: return exec_system(c, i);
	case INSN_INVALID: return fault_ud(c);
	default: return exec_branch(c, i);
	}
}

/* Instruction breakpoints are reported before the instruction, as a fault that leaves RF alone. */
static bool at_breakpoint(struct soft_cpu *c)
{
	u32 hits;

	if (!(c->mode & MODE_INTERPRET) || (c->sysflags & RFLAGS_RF) || c->shadow_mov_ss)
		return false;
	hits = debug_match_code(c, seg_linear_unchecked(c, SEG_CS, c->rip));
	if (hits)
		c->dr6 = (c->dr6 & ~0xful) | hits;
	return hits;
}

/* A switch to a task with the T flag is reported before that task's first instruction. */
static int report_task_trap(struct soft_cpu *c)
{
	soft_interp(c)->task_trap = false;
	soft_update_mode(c);
	c->dr6 |= DR6_BT;
	return event_deliver(c, VEC_DB, EVENT_TRAP, c->rip);
}

/* The instruction is complete: report traps, unless MOV SS or POP SS holds them back. */
static int settle(struct soft_cpu *c, bool step)
{
	struct interp *in = soft_interp(c);
	u32 hits = in->debug_hits;

	c->rip = in->next_rip;
	c->frag_count = 0;
	in->waiting = EXIT_NONE;
	if (!in->keep_rf)
		c->sysflags &= ~RFLAGS_RF;
	if (c->shadow_mov_ss) {
		in->held_hits = hits;
		return SOFT_OK;
	}
	in->held_hits = 0;
	if (in->no_step)
		step = false;
	if (!step && !hits)
		return SOFT_OK;
	c->dr6 = (c->dr6 & ~0xful) | hits | (step ? DR6_BS : 0);
	return event_deliver(c, VEC_DB, EVENT_TRAP, c->rip);
}

/* An exit after which the instruction is not run again. */
static bool exit_completes(const struct soft_cpu *c)
{
	return c->exit.type == EXIT_HLT;
}

static int run_one(struct soft_cpu *c)
{
	struct interp *in = soft_interp(c);
	const struct insn *i;
	int r;

	in->no_step = in->keep_rf = false;
	in->debug_hits = in->held_hits;
	r = decode(c, &i);
	if (r != SOFT_OK)
		return r;
	in->executed[i->mnemonic % INSN_MNEMONICS]++;
	in->next_rip = c->rip + i->len;
	if (i->bits != 64)
		in->next_rip &= 0xffffffff;
	return execute(c, i);
}

int soft_interpret(struct soft_cpu *c)
{
	bool step = c->sysflags & RFLAGS_TF;
	bool shadow = c->shadow, shadow_mov_ss = c->shadow_mov_ss;
	int r;

	c->counters[COUNT_INSNS_INTERPRETED]++;
	c->frag_next = 0;
	if (soft_interp(c)->task_trap)
		return report_task_trap(c);
	if (at_breakpoint(c))
		return event_deliver(c, VEC_DB, EVENT_TRAP, c->rip);
	c->shadow = c->shadow_mov_ss = false;
	r = run_one(c);
	if (r == SOFT_OK && c->wants_alone) { /* nothing has happened yet */
		c->shadow = shadow;
		c->shadow_mov_ss = shadow_mov_ss;
		return SOFT_OK;
	}
	if (r == SOFT_OK)
		return settle(c, step);
	if (r == SOFT_EXIT && exit_completes(c)) {
		settle(c, false);
		return SOFT_EXIT;
	}
	if (r == SOFT_EXIT) {
		c->shadow = shadow;
		c->shadow_mov_ss = shadow_mov_ss;
		return r;
	}
	c->frag_count = 0;
	soft_interp(c)->waiting = EXIT_NONE;
	soft_interp(c)->held_hits = 0;
	return r;
}

/*
 * SYSCALL and SYSRET of 64-bit code, without what comes before and after an instruction: translated
 * code runs only when nothing is to be observed, held back or completed.
 */
static int system_call(struct soft_cpu *c, u32 len, u32 mnemonic)
{
	static const struct insn wide = {.opsize = 8};
	struct interp *in = soft_interp(c);
	int r;

	c->counters[COUNT_INSNS_INTERPRETED]++;
	in->executed[mnemonic]++;
	in->next_rip = c->rip + len;
	in->keep_rf = false;
	r = (mnemonic == ZYDIS_MNEMONIC_SYSCALL ? op_syscall : op_sysret)(c, &wide);
	if (r == SOFT_OK)
		c->rip = in->next_rip;
	return r;
}

int soft_interpret_given(struct soft_cpu *c, u64 bytes, u32 len)
{
	struct interp *in = soft_interp(c);
	int r;

	if (bytes == BYTES_SYSCALL && soft_is_64bit(c))
		return system_call(c, len, ZYDIS_MNEMONIC_SYSCALL);
	if (bytes == BYTES_SYSRETQ && soft_is_64bit(c))
		return system_call(c, len, ZYDIS_MNEMONIC_SYSRET);
	in->given = bytes;
	in->given_len = len;
	r = soft_interpret(c);
	in->given = 0;
	return r;
}
