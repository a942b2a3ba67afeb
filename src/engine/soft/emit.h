/*
 * Host code emission: a bounded byte writer, the few host instructions the engine itself needs, and
 * the re-encoding of guest data instructions with other registers and another memory operand.
 *
 * The writer never runs past its end: it sets overflow and drops bytes, and the caller starts over
 * with an empty cache.
 */
#pragma once

#include "engine/soft/decode.h"
#include "engine/soft/util.h"

/* Where rel32s were written, for who wants to move the code (reload.c). */
enum { EMIT_SITES = 512 };

struct emit_sites {
	u32 n; /* may pass EMIT_SITES: then some are not known */
	u8 *at[EMIT_SITES];
};

struct emit {
	u8 *p, *end;    /* next byte to write, in the writable mapping */
	s64 exec_delta; /* address in the executable mapping minus address in the writable one */
	s32 cpu;        /* offset of struct soft_cpu from the thread pointer */
	bool overflow;
	struct emit_sites *sites; /* NULL: not wanted */
};

/* Host registers of the translated-code convention. */
enum {
	HOST_SP = R9,  /* guest rsp */
	HOST_S1 = R10, /* scratch */
	HOST_S2 = R11, /* scratch; memory base */
};

/* A memory operand in host terms: [base + index + disp]; base NO_REG: none. */
struct host_mem {
	u8 base, index; /* NO_REG when absent; no scale */
	s32 disp;
	bool is_folded; /* an address in the current window: by gs */
};

/* Displacement from fs of a member of struct soft_cpu. */
#define CPU_DISP(e, member) ((e)->cpu + (s32)offsetof(struct soft_cpu, member))

/* @size bytes (1, 2, 4, 8) of @v, all or none. */
static inline void emit_value(struct emit *e, u64 v, u32 size)
{
	if ((u64)(e->end - e->p) < size) {
		e->overflow = true;
		e->p = e->end;
		return;
	}
	soft_store(e->p, v, size);
	e->p += size;
}

/*
 * The first @n of eight bytes; what follows them in the buffer, up to its end, may be overwritten,
 * so this is not for changing code that is there.
 */
static inline void emit_few(struct emit *e, u64 v, u32 n)
{
	if ((u64)(e->end - e->p) >= 8) {
		soft_store(e->p, v, 8);
		e->p += n;
		return;
	}
	for (; n; n--, v >>= 8)
		emit_value(e, v & 0xff, 1);
}

static inline void emit_u8(struct emit *e, u8 v)
{
	emit_value(e, v, 1);
}

static inline void emit_u32(struct emit *e, u32 v)
{
	emit_value(e, v, 4);
}

static inline void emit_u64(struct emit *e, u64 v)
{
	emit_value(e, v, 8);
}

void emit_bytes(struct emit *e, const void *p, u32 n);

void emit_nops(struct emit *e, u32 n); /* @n bytes */

/* Pad with NOPs until (address + @bias) % @align == 0. */
void emit_align(struct emit *e, u32 align, u32 bias);

/* Pad so that the rel32 which follows @bias bytes lies in one quadword: stores to it are atomic
 * then. */
void emit_align_site(struct emit *e, u32 bias);

/* Executable address of the next byte. */
static inline u64 emit_here(const struct emit *e)
{
	return (u64)e->p + (u64)e->exec_delta;
}

/* Branches: to an executable address (rel32); forward ones return the rel32 to patch with
 * emit_patch(), or NULL, which it leaves alone, when there was no room: hot code's emitter may
 * patch branches of cold code, and another block's code ends where room does. */
void emit_jmp(struct emit *e, u64 target);
void emit_jcc(struct emit *e, u8 cond, u64 target);
void emit_call(struct emit *e, u64 target);
u8 *emit_jmp_forward(struct emit *e);
u8 *emit_call_forward(struct emit *e);
u8 *emit_jcc_forward(struct emit *e, u8 cond);
void emit_patch(struct emit *e, u8 *rel32, u64 target);
void emit_jrcxz(struct emit *e, u8 bytes); /* over @bytes */

/* Without touching flags. */
void emit_not(struct emit *e, u8 reg);
void emit_rorx(struct emit *e, u8 dst, u8 src, u8 count); /* 64 bits */

/* mov to and from fs:[disp], 64 bits; flags untouched, as with all emit_*cpu* except cmp. */
void emit_load_cpu(struct emit *e, u8 reg, s32 disp);
void emit_store_cpu(struct emit *e, s32 disp, u8 reg);
void emit_store_cpu_imm8(struct emit *e, s32 disp, u8 value);
void emit_store_cpu_imm32(struct emit *e, s32 disp, u32 value); /* 32 bits */
void emit_store_cpu_sign(struct emit *e, s32 disp, s32 value);  /* 64 bits, sign-extended */
void emit_cmp_cpu(struct emit *e, u8 reg, s32 disp);            /* 64 bits */
void emit_and_cpu(struct emit *e, u8 reg, s32 disp); /* 64 bits, as the next; sets flags */
void emit_and(struct emit *e, u8 dst, u8 src);
void emit_cmp_cpu32_imm8(struct emit *e, s32 disp, u8 value);
void emit_sub_cpu32_imm8(struct emit *e, s32 disp, u8 value);
void emit_load_cpu32(struct emit *e, u8 reg, s32 disp);
void emit_load_cpu_low16(struct emit *e, u8 reg, s32 disp); /* the rest stays */
void emit_load_cpu16(struct emit *e, u8 reg, s32 disp);     /* zero-extended, as the next */
void emit_load_cpu8(struct emit *e, u8 reg, s32 disp);      /* zero-extended */
void emit_cmp_cpu8_imm8(struct emit *e, s32 disp, u8 value);
void emit_sarx_cpu(struct emit *e, u8 dst, s32 disp,
		   u8 count); /* dst = fs:[disp] >> count, signed */
void emit_movsxd(struct emit *e, u8 dst, u8 src);
void emit_jmp_cpu(struct emit *e, s32 disp);                  /* jmp fs:[disp] */
void emit_call_cpu(struct emit *e, s32 disp);                 /* call fs:[disp] */
void emit_pext_cpu(struct emit *e, u8 dst, u8 src, s32 disp); /* dst = pext(src, fs:[disp]) */
void emit_pdep_cpu(struct emit *e, u8 dst, u8 src, s32 disp);

void emit_mov(struct emit *e, u8 dst, u8 src);
void emit_mov32(struct emit *e, u8 dst, u8 src);
void emit_mov_imm32(struct emit *e, u8 dst, u32 imm); /* zero-extended */
void emit_mov_imm64(struct emit *e, u8 dst, u64 imm); /* as short as possible */

/* lea dst, [base + index * scale + disp]; NO_REG for absent ones; @bits 32 truncates, 16 likewise.
 */
void emit_lea(struct emit *e, u32 bits, u8 dst, u8 base, u8 index, u8 scale, s32 disp);

/* mov between a register and host memory, @size bytes (loads of 4 zero-extend; 1 and 2 too). */
void emit_load(struct emit *e, u8 dst, struct host_mem m, u32 size);
void emit_store(struct emit *e, struct host_mem m, u8 src, u32 size);
void emit_store_imm(struct emit *e, struct host_mem m, s32 imm, u32 size);

/*
 * @opcode between @reg and offset @off of the tables (struct soft_half) of privilege half @half,
 * plus
 * @index * @scale (NO_REG and 1: nothing). 64 bits.
 */
void emit_half_op(struct emit *e, u32 half, u8 opcode, u8 reg, u8 index, u8 scale, u32 off);

/* The displacement that reaches such an offset, by gs or by fs; @cpu as in struct emit. */
s32 emit_half_disp(s32 cpu, u32 half, u32 off);

/* mov of @imm to the 64 bits at offset @off of those tables. */
void emit_half_store_imm(struct emit *e, u32 half, s32 imm, u32 off);

/* The private stack. */
void emit_push_host(struct emit *e, u8 reg);
void emit_pop_host(struct emit *e, u8 reg);

void emit_cmp(struct emit *e, u8 a, u8 b); /* 64 bits */

/*
 * Re-encode the guest data instruction @i. @map gives the host register for each guest register
 * named in an encoding field; @m replaces the memory operand. False when the encoding cannot
 * express it (a high byte register together with anything that needs REX).
 */
bool emit_insn(struct emit *e, const struct insn *i, const u8 map[GPR_COUNT], struct host_mem m);

/* emit_insn() with host register numbers in @i's fields already. */
bool emit_insn_identity(struct emit *e, const struct insn *i, struct host_mem m);

/*
 * The same with the register convention of translated code: rsp in r9, r9-r11 through cpu->r[].
 * @m's base is NO_REG, HOST_S2, or HOST_S2 plus HOST_S1 as index, or a guest register plus HOST_S2,
 * or, folded, HOST_S1 where insn_names_slot() says no, else HOST_S2.
 * HOST_S1 and HOST_S2 are clobbered. False when it cannot be done; then nothing was emitted.
 */
bool emit_data(struct emit *e, const struct insn *i, struct host_mem m);

/* Does a register field of @i name one of r9-r11? */
bool insn_names_slot(const struct insn *i);

/*
 * Which registers has emit_data() borrowed while @i accesses memory? They are in cpu->spill[] from
 * *@spill on. Returns how many.
 */
u32 emit_borrowed(const struct insn *i, u8 reg[2], u32 *spill);

/*
 * To the guest address in HOST_S1 through the indirect-branch table of privilege half @half, by
 * host call or jump; clobbers HOST_S2, leaves flags alone.
 */
void emit_indirect(struct emit *e, u32 half, bool call);

/* The last step of that: HOST_S2 is the entry's position in the table, doubled. */
void emit_table_jump(struct emit *e, u32 half, bool call);
