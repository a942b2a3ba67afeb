/*
 * Decoded guest instructions: Zydis's output reduced to what translation and interpretation need.
 */
#pragma once

#include "cpu/x86.h"

/* Who executes it. */
enum insn_class {
	INSN_INVALID, /* #UD */
	INSN_DATA,    /* registers and at most one explicit memory operand: runs natively after
			 rewriting */
	INSN_NOP,     /* no effect at all (NOP, PAUSE, ENDBR, prefetches, CLFLUSH of any address) */
	INSN_LEA,
	INSN_PUSH, /* reg, imm, mem */
	INSN_POP,  /* reg, mem */
	INSN_CALL, /* near direct */
	INSN_CALL_INDIRECT,
	INSN_RET, /* near, with or without immediate */
	INSN_JMP, /* near direct */
	INSN_JMP_INDIRECT,
	INSN_JCC,
	INSN_LOOP,   /* LOOP LOOPE LOOPNE JRCXZ JECXZ */
	INSN_STRING, /* MOVS STOS LODS CMPS SCAS with any REP */
	INSN_SYSTEM, /* everything else: soft_interpret() only */
};

enum { NO_REG = 0xff };

enum { INSN_MNEMONICS = 2048 }; /* more than Zydis has */

enum insn_encoding { ENC_LEGACY, ENC_VEX, ENC_EVEX };

/* A GPR named by an encoding field. */
struct insn_field {
	u8 reg;    /* enum gpr, or NO_REG when the field is not a GPR */
	u8 size;   /* bytes: 1, 2, 4, 8 */
	bool high; /* AH CH DH BH: reg is RAX..RBX */
	bool read, write;
};

struct insn {
	u8 cls; /* enum insn_class */
	u8 len; /* bytes */
	u8 bytes[15];
	u8 bits;      /* 16, 32, 64: mode it was decoded in */
	u8 opsize;    /* effective operand size, bytes */
	u8 addrsize;  /* effective address size, bytes */
	u16 mnemonic; /* ZydisMnemonic */
	u8 encoding;  /* enum insn_encoding */

	/* Memory operand. */
	bool has_mem; /* explicit memory operand that is really accessed */
	bool mem_read, mem_write;
	bool is_rip_relative; /* disp then counts from the next instruction */
	bool masked; /* elements may be masked off, and then must not fault (EVEX mask, VMASKMOV) */
	u8 seg;      /* enum seg; already defaulted */
	u8 base, index; /* enum gpr or NO_REG */
	u8 scale;
	s64 disp;
	u16 mem_size; /* bytes accessed */
	u8 mem_elem;  /* bytes per element of a vector operand */
	u8 lanes;     /* {1toN}: N, else 0 */

	/* Immediate: first one, sign-extended; for branches the displacement. */
	bool has_imm;
	s64 imm, imm2;

	/* GPRs in encoding fields, to be rewritten. */
	struct insn_field reg, rm, vvvv, opcode_reg;
	u16 gpr_read, gpr_write; /* bit per GPR, implicit operands and address registers included */

	/* Arithmetic flags (RFLAGS_ARITH bits). */
	u16 flags_read;
	u16 flags_kill;  /* certainly overwritten (or left undefined) */
	u16 flags_write; /* possibly changed */

	bool lock, rep, repne;
	bool needs_x87, needs_sse, needs_avx, needs_avx512;
	u8 cond; /* JCC: condition code 0-15 */

	/* Layout of bytes[]: offsets, 0 when absent (the opcode never is at 0 if there are
	 * prefixes). */
	u8 prefixes;   /* number of legacy prefix bytes, REX/VEX/EVEX not counted */
	u8 rex;        /* the REX byte, 0 when absent */
	u8 opcode_off; /* first byte after prefixes and REX; for VEX/EVEX first byte of that prefix
			*/
	u8 opcode_len; /* escape bytes included; ENC_VEX and ENC_EVEX: 1 */
	u8 vex_off, vex_len;
	bool has_modrm;
	u8 modrm_off;
	u8 imm_off, imm_len; /* all immediates together */
};

/*
 * Decode @len bytes at @p in @bits mode. Never fails: undecodable bytes give INSN_INVALID (len 0
 * when more bytes would be needed). Calls Zydis: vector state must be parked.
 */
void insn_decode(struct insn *i, const u8 *p, u32 len, u32 bits);

/* What instructions may differ in and still be alike in all else. */
struct insn_form {
	u8 disp_size, imm_size; /* bytes; the displacement lies before the immediate */
	bool imm_signed;
	bool plain; /* nothing but these values depends on the bytes behind ModRM and SIB */
};

/* The same, and what is known of the form. */
void insn_decode_form(struct insn *i, const u8 *p, u32 len, u32 bits, struct insn_form *form);

/* A legacy prefix: 26 2E 36 3E 64-67 F0 F2 F3. */
static inline bool insn_is_prefix(u8 b)
{
	static const u64 set[4] = {0x4040404000000000, 0xf000000000, 0, 0x000d000000000000};

	return set[b >> 6] >> (b & 63) & 1;
}
