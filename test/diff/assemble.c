/* Cases as bytes, as memory and as text. */
#include "diff.h"

#include <Zydis/Zydis.h>
#include <string.h>

enum { INT3 = 0xcc };

static u32 item_length(const struct item *i)
{
	switch (i->kind) {
	case ITEM_INSN: return i->len;
	case ITEM_CALL: return 5;
	case ITEM_RET: return 6;
	case ITEM_JMP_REG:
	case ITEM_CALL_REG: return 7;
	default: return 2;
	}
}

static void put32(u8 *p, u32 v)
{
	memcpy(p, &v, 4);
}

/* @at: address of the item, @to: where it leads. */
static void item_assemble(const struct item *i, u8 *p, u32 at, u32 to)
{
	switch (i->kind) {
	case ITEM_INSN: memcpy(p, i->bytes, i->len); return;
	case ITEM_CALL:
		p[0] = 0xe8;
		put32(p + 1, to - (at + 5));
		return;
	case ITEM_RET:
		p[0] = 0x68;
		put32(p + 1, to);
		p[5] = 0xc3;
		return;
	case ITEM_JMP_REG:
		p[0] = 0xb8;
		put32(p + 1, to);
		p[5] = 0xff;
		p[6] = 0xe0;
		return;
	case ITEM_CALL_REG:
		p[0] = 0xb9;
		put32(p + 1, to);
		p[5] = 0xff;
		p[6] = 0xd1;
		return;
	case ITEM_JCC: p[0] = 0x70 | (i->cond & 15); break;
	case ITEM_JRCXZ: p[0] = 0xe3; break;
	case ITEM_LOOP: p[0] = 0xe0 + i->cond % 3; break;
	default: p[0] = 0xeb; break;
	}
	p[1] = (u8)(to - (at + 2));
}

u32 case_assemble(const struct test_case *t, u8 code[DIFF_MAX_CODE])
{
	u32 off[DIFF_MAX_ITEMS + 1], base = CODE_BASE + t->code_offset;

	off[0] = 0;
	for (u32 n = 0; n < t->items; n++)
		off[n + 1] = off[n] + item_length(&t->item[n]);
	for (u32 n = 0; n < t->items; n++)
		item_assemble(&t->item[n], code + off[n], base + off[n],
			      base + off[MIN(t->item[n].target, t->items)]);
	code[off[t->items]] = INT3;
	return off[t->items] + 1;
}

void case_memory(const struct test_case *t, const u8 *pattern, u8 memory[MEMORY_BYTES])
{
	u8 *code = memory + DATA_PAGES * PAGE_SIZE;
	u8 bytes[DIFF_MAX_CODE];
	u32 n = case_assemble(t, bytes);

	memcpy(memory, pattern, DATA_PAGES * PAGE_SIZE);
	memset(code, INT3, CODE_PAGES * PAGE_SIZE);
	memcpy(code + t->code_offset, bytes, n);
}

u64 case_flags_live(const struct test_case *t, u64 rip)
{
	u64 at = CODE_BASE + t->code_offset, live = 0, unknown = RFLAGS_ARITH;

	for (u32 n = 0; n < t->items && unknown; n++) {
		const struct item *item = &t->item[n];
		struct insn i;

		at += item_length(item);
		if (at <= rip)
			continue;
		if (item->kind != ITEM_INSN)
			return live; /* what is live at its target is for the translator to find out
				      */
		insn_decode(&i, item->bytes, item->len, t->bits);
		live |= i.flags_read & unknown;
		unknown &= ~(u64)i.flags_kill;
	}
	return live | unknown;
}

static void print_code(const struct test_case *t, FILE *f)
{
	u8 code[DIFF_MAX_CODE] = {0};
	u32 len = case_assemble(t, code), pos = 0;
	u64 at = CODE_BASE + t->code_offset;
	ZydisDisassembledInstruction d;

	while (pos < len) {
		bool ok = ZYAN_SUCCESS(ZydisDisassembleIntel(
			t->bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
			at + pos, code + pos, len - pos, &d));
		u32 n = ok ? d.info.length : 1;

		fprintf(f, "  %08lx ", at + pos);
		for (u32 k = 0; k < n; k++)
			fprintf(f, " %02x", code[pos + k]);
		fprintf(f, "%*s%s\n", (int)(3 * (16 - MIN(n, 15u))), "", ok ? d.text : "(bad)");
		pos += n;
	}
}

static void print_vectors(const struct test_case *t, FILE *f)
{
	const u8 *x = t->xsave;
	u64 present;
	u32 mxcsr;
	u16 fcw, fsw;

	memcpy(&fcw, x, 2);
	memcpy(&fsw, x + 2, 2);
	memcpy(&mxcsr, x + 24, 4);
	memcpy(&present, x + 512, 8);
	fprintf(f, "  fcw %04x fsw %04x ftw %02x mxcsr %08x xstate_bv %lx\n", fcw, fsw, x[4], mxcsr,
		present);
}

void case_print(const struct test_case *t, FILE *f)
{
	static const char *const name[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

	fprintf(f, "case %lu, %u-bit, guest at CPL %d\n", t->number, t->bits, t->user ? 3 : 0);
	print_code(t, f);
	for (u32 n = 0; n < (t->bits == 64 ? 16u : 8u); n++)
		fprintf(f, "  %-3s %016lx%s", name[n], t->r[n], n % 4 == 3 ? "\n" : "");
	fprintf(f, "  flags %03lx fs %lx gs %lx\n", t->flags, t->fs_base, t->gs_base);
	print_vectors(t, f);
}
