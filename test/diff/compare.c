/* Outcomes: what must be equal. */
#include "diff.h"
#include "filter.h"

#include <cpuid.h>
#include <string.h>

enum {
	X87_FOP = 6,
	X87_FDP_END = 24,
	X87_MXCSR = 24,
	X87_FSW = 2,
	X87_FSW_ES = 0x80,
	X87_ST = 32,
	XMM = 160,
	LEGACY_END = 416,
	HEADER = 512,
	EXTENDED = 576
};

/* Flags a sequence can change. */
#define FLAGS_COMPARED (RFLAGS_ARITH | RFLAGS_DF | RFLAGS_AC | RFLAGS_ID | RFLAGS_NT)

void layout_init(struct layout *l, u64 xcr0, u32 size)
{
	memset(l, 0, sizeof(*l));
	l->xcr0 = xcr0;
	l->xsave_size = size;
	for (u32 n = 2; n < 63; n++) {
		u32 a, b, c, d;

		if (!(xcr0 & BIT(n)))
			continue;
		__cpuid_count(0xd, n, a, b, c, d);
		l->size[n] = a;
		l->offset[n] = b;
	}
}

/*
 * Components in their initial state may be left out of the image, and the addresses of the last x87
 * instruction depend on where it ran.
 */
void outcome_normalise(const struct layout *l, struct outcome *o)
{
	u8 *x = o->xsave;
	u64 present;

	memcpy(&present, x + HEADER, 8);
	if (!(present & XCR0_X87)) {
		memset(x, 0, X87_MXCSR);
		memset(x + X87_ST, 0, XMM - X87_ST);
		x[0] = 0x7f;
		x[1] = 0x03;
	}
	if (!(present & XCR0_SSE))
		memset(x + XMM, 0, LEGACY_END - XMM);
	memset(x + X87_FOP, 0, X87_FDP_END - X87_FOP);
	memset(x + X87_MXCSR + 4, 0, 4);
	for (u32 n = 0; n < 8; n++)
		memset(x + X87_ST + 16 * n + 10, 0, 6);
	x[5] = 0;
	memset(x + LEGACY_END, 0, EXTENDED - LEGACY_END);
	for (u32 n = 2; n < 63; n++)
		if (l->size[n] && !(present & BIT(n)))
			memset(x + l->offset[n], 0, l->size[n]);
}

struct report {
	FILE *f;
	const char *name;
	bool same;
};

static void differ(struct report *r, const char *what, u64 native, u64 other)
{
	if (native == other)
		return;
	r->same = false;
	if (r->f)
		fprintf(r->f, "  %-12s native %016lx %s %016lx\n", what, native, r->name, other);
}

static u64 word(const u8 *p)
{
	u64 v;

	memcpy(&v, p, 8);
	return v;
}

static void compare_bytes(struct report *r, const char *what, u32 unit, const u8 *a, const u8 *b,
			  u32 len)
{
	char name[32];

	for (u32 n = 0; n < len; n += 8) {
		if (word(a + n) == word(b + n))
			continue;
		snprintf(name, sizeof(name), "%s%u+%u", what, n / unit, n % unit);
		differ(r, name, word(a + n), word(b + n));
	}
}

/* State that processors differ in when an instruction's access faults. */
enum open_state { OPEN_NONE, OPEN_X87, OPEN_MXCSR, OPEN_ALL };

static void compare_vectors(struct report *r, const struct layout *l, const u8 *a, const u8 *b,
			    enum open_state open)
{
	static const struct {
		const char *name;
		u32 unit;
	} part[] = {[2] = {"ymmh", 16}, [5] = {"k", 8}, [6] = {"zmmh", 32}, [7] = {"zmm16+", 64}};

	if (open != OPEN_MXCSR)
		compare_bytes(r, "mxcsr", 8, a + X87_MXCSR, b + X87_MXCSR, 8);
	if (open != OPEN_X87) {
		compare_bytes(r, "fcw/fsw/ftw", 8, a, b, 8);
		compare_bytes(r, "st", 16, a + X87_ST, b + X87_ST, XMM - X87_ST);
	}
	compare_bytes(r, "xmm", 16, a + XMM, b + XMM, LEGACY_END - XMM);
	for (u32 n = 2; n < ARRAY_SIZE(part); n++)
		if (l->size[n] && part[n].name)
			compare_bytes(r, part[n].name, part[n].unit, a + l->offset[n],
				      b + l->offset[n], l->size[n]);
}

static void compare_memory(struct report *r, const u8 *a, const u8 *b)
{
	char name[32];

	for (u32 n = 0; n < MEMORY_BYTES; n += 8) {
		u64 at = n < DATA_PAGES * PAGE_SIZE ? DATA_BASE + n
						    : CODE_BASE + n - DATA_PAGES * PAGE_SIZE;

		if (word(a + n) == word(b + n))
			continue;
		snprintf(name, sizeof(name), "[%08lx]", at);
		differ(r, name, word(a + n), word(b + n));
	}
}

/*
 * Two faults of one instruction: the processor reports a misaligned SSE operand, a pending x87
 * exception, or that it does not know the instruction, before the address that faults too; the
 * engine reports the address, and the other fault once the guest has put that right.
 */
static bool is_later_fault(const struct outcome *a, const struct outcome *b)
{
	bool early =
		(a->vector == VEC_GP && !a->error) || a->vector == VEC_UD || a->vector == VEC_MF;
	bool late = b->vector == VEC_PF || b->vector == VEC_SS || b->vector == VEC_GP;

	return early && late && a->rip == b->rip;
}

/*
 * An operand that runs past the end of a flat 4 GiB segment: a limit violation to some processors,
 * to others two pieces, one at each end (SDM vol. 3, 5.3).
 */
static bool is_past_the_end(const struct test_case *t, const struct outcome *a,
			    const struct outcome *b)
{
	return t->bits == 32 && a->vector == VEC_PF && a->rip == b->rip &&
	       (b->vector == VEC_GP || b->vector == VEC_SS);
}

/* The item at @rip, or NULL. */
static const struct item *item_at(const struct test_case *t, u64 rip)
{
	struct test_case part = *t;
	u8 code[DIFF_MAX_CODE];

	for (part.items = 0; part.items < t->items; part.items++)
		if (CODE_BASE + t->code_offset + case_assemble(&part, code) - 1 == rip)
			return &t->item[part.items];
	return NULL;
}

static bool insn_at(const struct test_case *t, u64 rip, struct insn *i)
{
	const struct item *item = item_at(t, rip);

	if (!item || item->kind != ITEM_INSN)
		return false;
	insn_decode(i, item->bytes, item->len, t->bits);
	return true;
}

/* FRSTOR and its like load in parts, in the processor's own order. */
static bool has_parts(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: return true;
	default: return i->needs_x87 && i->mem_size == 10;
	}
}

static bool is_address_fault(const struct outcome *o)
{
	return o->vector == VEC_PF || o->vector == VEC_GP || o->vector == VEC_SS;
}

/* Several parts or operands may fault; which does first is the processor's own affair. */
static bool has_several_faults(const struct test_case *t, const struct outcome *a,
			       const struct outcome *b)
{
	struct insn i;

	return is_address_fault(a) && is_address_fault(b) && a->rip == b->rip &&
	       insn_at(t, a->rip, &i) && (i.cls == INSN_STRING || has_parts(&i));
}

/*
 * An x87 store with an unmasked exception stores nothing: some processors do not look at the
 * address then.
 */
static bool is_refused_store(const struct test_case *t, const struct outcome *a,
			     const struct outcome *b)
{
	struct insn i;

	return is_address_fault(b) && insn_at(t, b->rip, &i) && i.needs_x87 && i.opcode_len == 1 &&
	       i.mem_write && a->xsave[X87_FSW] & X87_FSW_ES;
}

/*
 * Has an MMX instruction set the top of the x87 stack and the tags when its access faults, and
 * VCVTPS2PH the exception flags? The mask of a gather that faults: some processors widen what is
 * left of it, and clear the rest.
 */
static enum open_state open_at(const struct test_case *t, const struct outcome *a)
{
	struct insn i;

	if (!is_address_fault(a) || !insn_at(t, a->rip, &i))
		return OPEN_NONE;
	if (i.needs_x87 && i.opcode_len > 1)
		return OPEN_X87;
	if (i.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH)
		return OPEN_MXCSR;
	return i.encoding != ENC_LEGACY && i.cls == INSN_SYSTEM &&
			       (i.bytes[i.opcode_off] & 0xfc) == 0x90
		       ? OPEN_ALL
		       : OPEN_NONE;
}

static bool is_torn_store(const struct test_case *t, const struct outcome *a)
{
	struct insn i;

	return is_address_fault(a) && insn_at(t, a->rip, &i) && has_parts(&i) && i.mem_write;
}

/* MASKMOVDQU with an empty mask: whether the address is checked is left to the implementation. */
static bool is_empty_store(const struct test_case *t, const struct outcome *a)
{
	struct insn i;

	return is_address_fault(a) && insn_at(t, a->rip, &i) &&
	       (i.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || i.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
		i.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU);
}

/*
 * Did the sequence overwrite itself? Then anything may have run, privileged instructions among it;
 * a repeated string instruction may not have noticed; and translated code may have clobbered flags
 * that only the new instructions read.
 */
static bool has_changed_itself(const struct test_case *t, const struct outcome *a)
{
	const u8 *now = a->memory + DATA_PAGES * PAGE_SIZE + t->code_offset;
	u8 code[DIFF_MAX_CODE];
	u32 len = case_assemble(t, code);

	return memcmp(now, code, len) != 0;
}

static void compare_exception(struct report *r, const struct test_case *t, const struct outcome *a,
			      const struct outcome *b)
{
	u64 mask = t->user ? ~0ul : ~PF_U;
	struct insn i;

	if (b->vector == OUTCOME_NONE && r->f)
		fprintf(r->f, "  %s: %s\n", r->name, b->note);
	differ(r, "vector", a->vector, b->vector);
	if (a->vector == VEC_PF && b->vector == VEC_PF) {
		/* The host's own kernel is mapped at the top, the guest's is not. */
		if (a->cr2 >= 0x7ffffffff000)
			mask &= ~PF_P;
		/* Of a masked access the whole or the first element may be meant. */
		if (!insn_at(t, a->rip, &i) || !i.masked)
			differ(r, "cr2", a->cr2, b->cr2);
	}
	differ(r, "error code", a->error & mask, b->error & mask);
}

static u64 flags_compared(const struct test_case *t, const struct outcome *a, bool translated)
{
	const struct item *last = &t->item[t->items - 1];
	u64 flags = FLAGS_COMPARED;
	struct insn i;

	if (last->kind == ITEM_INSN) {
		insn_decode(&i, last->bytes, last->len, t->bits);
		flags &= ~filter_undefined_flags(&i);
	}
	if (translated && a->vector != VEC_BP)
		flags &= ~RFLAGS_ARITH | case_flags_live(t, a->rip);
	/* Interpreted, each element may be followed by an interrupt, which shows the flags so far.
	 */
	if (!translated && is_address_fault(a) && insn_at(t, a->rip, &i) && i.cls == INSN_STRING)
		flags &= ~RFLAGS_ARITH;
	return flags;
}

bool outcome_compare(const struct layout *l, const struct test_case *t, const struct outcome *a,
		     const struct outcome *b, bool translated, const char *name, FILE *f)
{
	static const char *const reg[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					  "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	u64 width = t->bits == 64 ? ~0ul : 0xfffffffful;
	u64 flags = flags_compared(t, a, translated);
	struct report r = {.f = f, .name = name, .same = true};

	if (is_empty_store(t, a) || is_refused_store(t, a, b))
		return true;
	if (has_changed_itself(t, a) && (translated || a->vector != VEC_BP || b->vector != VEC_BP))
		return true;
	if (!is_later_fault(a, b) && !is_past_the_end(t, a, b) && !has_several_faults(t, a, b))
		compare_exception(&r, t, a, b);
	differ(&r, "rip", a->rip, b->rip);
	differ(&r, "flags", a->flags & flags, b->flags & flags);
	for (u32 n = 0; n < (t->bits == 64 ? 16u : 8u); n++)
		differ(&r, reg[n], a->r[n] & width, b->r[n] & width);
	if (t->bits == 64) {
		differ(&r, "fs base", a->fs_base, b->fs_base);
		differ(&r, "gs base", a->gs_base, b->gs_base);
	}
	if (memcmp(a->xsave, b->xsave, l->xsave_size) && open_at(t, a) != OPEN_ALL)
		compare_vectors(&r, l, a->xsave, b->xsave, open_at(t, a));
	/* The first part of a store may be done when the second faults. */
	if (memcmp(a->memory, b->memory, MEMORY_BYTES) && !is_torn_store(t, a))
		compare_memory(&r, a->memory, b->memory);
	return r.same;
}
