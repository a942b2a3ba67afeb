/*
 * Decoding by memory: instructions that were met before in the same form.
 *
 * Code is made of few forms: prefixes, opcode, ModRM and SIB repeat, displacements and immediates
 * do not. A table keeps the decoded instruction of each form, so that most instructions are not
 * decoded but copied, and their values filled in. The most frequent opcodes share one form between
 * all registers, which are filled in as well. What cannot be remembered (other modes than
 * 64-bit, EVEX, rare encodings) is decoded as ever; the result is always that of insn_decode().
 */
#pragma once

#include "engine/soft/decode.h"

enum { FORM_BITS = 12, FORM_MAPS = 6 };

struct form_entry {
	u64 key; /* the form's bytes, and their number in the highest byte; 0: none */
	struct insn insn;
	struct insn_form form;
};

struct forms {
	struct form_entry entry[1 << FORM_BITS];
	u16 opcode[FORM_MAPS][256]; /* what was learned of each: enum in forms.c */
};

/*
 * The same, but registers and values need not be right unless it is JMP or CALL. In *@room, or
 * where it was remembered.
 */
const struct insn *forms_look(struct forms *f, struct insn *room, const u8 *p, u32 len, u32 bits);

/* As insn_decode(); the same locks and the same parking. @f begins as zeroes. */
void forms_decode(struct forms *f, struct insn *i, const u8 *p, u32 len, u32 bits);
