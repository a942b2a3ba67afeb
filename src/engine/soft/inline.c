/*
 * System instructions that translated code does in place, because kernels use them all the time.
 *
 * Each returns false when the state at hand wants the interpreter. The supervisor half runs at CPL
 * 0 only: soft_update_mode() has CPL 1 and 2 interpreted.
 */
#include "engine/soft/translation.h"

#include "engine/soft/translate.h"

#include <Zydis/Zydis.h>

/* LEAVE: rsp = rbp, pop rbp. */
static bool emit_leave_frame(struct translation *t, u32 k)
{
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, 0);
	struct host_mem m;

	if (t->in[k].opsize != size)
		return false;
	ea.base = RBP;
	m = emit_check(t, k, &ea, size, false);
	emit_load(&t->hot, HOST_S1, m, size);
	emit_lea(&t->hot, t->bits, HOST_SP, RBP, NO_REG, 1, (s32)size);
	emit_mov(&t->hot, RBP, HOST_S1);
	return true;
}

static s32 seg_base_disp(const struct emit *e, u32 seg)
{
	return CPU_DISP(e, seg[0].base) + (s32)(seg * sizeof(struct cpu_segment));
}

static bool is_kernel64(const struct translation *t)
{
	return t->bits == 64 && !(t->mode & MODE_USER);
}

static void emit_rorx32(struct emit *e, u8 dst, u8 src, u8 count)
{
	emit_u8(e, 0xc4);
	emit_u8(e, (u8)((dst & 8 ? 0 : 0x80) | 0x40 | (src & 8 ? 0 : 0x20) | 3));
	emit_u8(e, 0x7b);
	emit_u8(e, 0xf0);
	emit_u8(e, (u8)(0xc0 | (dst & 7) << 3 | (src & 7)));
	emit_u8(e, count);
}

/* rax = byte at fs:[disp] << shift, added to HOST_S1. Flags untouched. */
static void emit_add_bit(struct emit *e, s32 disp, u8 shift)
{
	emit_load_cpu8(e, RAX, disp);
	emit_rorx32(e, RAX, RAX, (u8)(32 - shift));
	emit_lea(e, 64, HOST_S1, HOST_S1, RAX, 1, 0);
}

/* PUSHF: the flags image is put together without disturbing flags. */
static bool emit_pushf(struct translation *t, u32 k)
{
	u32 size = t->bits / 8;
	struct ea ea = stack_ea(t, -(s64)size);
	struct emit *e = &t->hot;
	struct host_mem m;

	if (t->in[k].opsize != size)
		return false;
	m = emit_check_one(t, k, &ea, size, true);
	emit_store_cpu(e, CPU_DISP(e, spill[1]), RAX);
	emit_bytes(e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
	emit_bytes(e, "\x44\x0f\xb6\xd0", 4); /* movzx r10d, al */
	emit_bytes(e, "\x0f\xb6\xc4", 3);     /* movzx eax, ah */
	emit_rorx32(e, HOST_S1, HOST_S1, 32 - 11);
	emit_lea(e, 64, HOST_S1, HOST_S1, RAX, 1, 0);
	emit_add_bit(e, CPU_DISP(e, iflag), 9);
	emit_add_bit(e, CPU_DISP(e, dflag), 10);
	emit_load_cpu(e, RAX, CPU_DISP(e, sysflags));
	emit_lea(e, 64, HOST_S1, HOST_S1, RAX, 1, 0);
	emit_load_cpu(e, RAX, CPU_DISP(e, spill[1]));
	emit_store(e, m, HOST_S1, size);
	emit_adjust_sp(t, -(s32)size);
	return true;
}

/*
 * STI: with an interrupt waiting for the window the interpreter does it, so that exactly one more
 * instruction runs before delivery. Without, requests are seen at the next poll, at least one
 * instruction away.
 */
static bool emit_sti(struct translation *t, u32 k)
{
	struct emit *e = &t->hot, *cold = &t->cold;
	bool live = t->live[k] != 0;
	u8 *waiting, *back;

	if (!is_kernel64(t))
		return false;
	if (live) {
		emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
		emit_load_cpu8(e, RCX, CPU_DISP(e, irq_window));
		emit_jrcxz(e, 5);
		waiting = emit_jmp_forward(e);
		emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	} else {
		emit_cmp_cpu8_imm8(e, CPU_DISP(e, irq_window), 0);
		waiting = emit_jcc_forward(e, COND_NE);
	}
	emit_store_cpu_imm8(e, CPU_DISP(e, iflag), 1);
	emit_patch(e, waiting, emit_here(cold));
	if (live)
		emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_call_step(t, cold, k, 0);
	back = emit_jmp_forward(cold);
	emit_patch(cold, back, emit_here(e));
	return true;
}

/* MOV of a selector to a register, zero-extended unless that is named by its lower half. */
static bool emit_read_selector(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	u8 modrm = i->bytes[i->modrm_off];
	u8 reg = (u8)((modrm & 7) | (i->rex & 1) << 3);
	u8 dst = is_slot(reg) ? HOST_S1 : host_reg(reg);
	struct emit *e = &t->hot;

	s32 selector =
		CPU_DISP(e, seg[0].selector) + (s32)((modrm >> 3 & 7) * sizeof(struct cpu_segment));

	if (!insn_reads_selector(i) || t->bits != 64 || (i->opsize < 4 && is_slot(reg)))
		return false;
	(i->opsize < 4 ? emit_load_cpu_low16 : emit_load_cpu16)(e, dst, selector);
	if (is_slot(reg))
		emit_store_cpu(e, reg_disp(e, reg), HOST_S1);
	return true;
}

/* rcx = 0 if CR4.FSGSBASE is set and, when @written, HOST_S2 is a canonical address; HOST_S1 is
 * lost. */
static void emit_base_check(struct emit *e, bool written)
{
	if (written) { /* + 2^47: bits 63 to 48 are zero then */
		emit_mov_imm64(e, HOST_S1, 1ul << 47);
		emit_lea(e, 64, HOST_S1, HOST_S1, HOST_S2, 1, 0);
		emit_rorx(e, HOST_S1, HOST_S1, 48);
		emit_bytes(e, "\x45\x0f\xb7\xd2", 4); /* movzx r10d, r10w */
	}
	emit_load_cpu8(e, RCX, CPU_DISP(e, no_fsgsbase));
	if (written)
		emit_lea(e, 64, RCX, RCX, HOST_S1, 1, 0);
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE of 64 bits. Flags may be live. */
static bool emit_base(struct translation *t, u32 k, u32 seg, bool write)
{
	const struct insn *i = &t->in[k];
	u8 reg = (u8)((i->bytes[i->modrm_off] & 7) | (i->rex & 1) << 3);
	struct emit *e = &t->hot, *cold = &t->cold;
	u8 *refused;

	if (t->bits != 64 || !(i->rex & 8) || reg == RSP)
		return false;
	if (write)
		emit_mov(e, HOST_S2, use_reg(e, reg, HOST_S2));
	emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
	emit_base_check(e, write);
	emit_jrcxz(e, 5);
	refused = emit_jmp_forward(e);
	emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	if (write) {
		emit_store_cpu(e, seg_base_disp(e, seg), HOST_S2);
	} else if (is_slot(reg)) {
		emit_load_cpu(e, HOST_S1, seg_base_disp(e, seg));
		emit_store_cpu(e, reg_disp(e, reg), HOST_S1);
	} else {
		emit_load_cpu(e, reg, seg_base_disp(e, seg));
	}
	emit_patch(e, refused, emit_here(cold));
	emit_load_cpu(cold, RCX, CPU_DISP(cold, spill[0]));
	emit_call_step(t, cold, k, 0);
	emit_jmp(cold, emit_here(e));
	return true;
}

static bool emit_swapgs(struct translation *t)
{
	struct emit *e = &t->hot;
	s32 gs = seg_base_disp(e, SEG_GS), kernel = CPU_DISP(e, msr.kernel_gs_base);

	if (!is_kernel64(t))
		return false;
	emit_load_cpu(e, HOST_S1, gs);
	emit_load_cpu(e, HOST_S2, kernel);
	emit_store_cpu(e, gs, HOST_S2);
	emit_store_cpu(e, kernel, HOST_S1);
	return true;
}

/* RDTSC and RDTSCP. CR4.TSD at CPL 3 is interpreted (soft_update_mode). */
static bool emit_rdtsc(struct translation *t, bool with_aux)
{
	struct emit *e = &t->hot;

	if (with_aux && !cpuid_has(t->c->vm->cpuid, 0x80000001, 0, 3, 27))
		return false;
	emit_u8(e, 0x0f);
	emit_u8(e, 0x31);
	emit_rorx(e, RDX, RDX, 32);
	emit_lea(e, 64, RAX, RAX, RDX, 1, 0);
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, tsc_offset));
	emit_lea(e, 64, RAX, RAX, HOST_S1, 1, 0);
	emit_rorx(e, RDX, RAX, 32);
	emit_mov32(e, RDX, RDX);
	emit_mov32(e, RAX, RAX);
	if (with_aux)
		emit_load_cpu32(e, RCX, CPU_DISP(e, msr.tsc_aux));
	return true;
}

/*
 * BT, BTS, BTR, BTC with memory and a register bit offset: the offset, signed, selects a word of
 * the operand size around the address (SDM vol. 2, BT).
 */
static bool emit_bit_string(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	struct insn direct = *i;
	struct emit *e = &t->hot;
	struct ea ea = insn_ea(t, k);
	struct host_mem m;
	bool wide = i->opsize == 8;

	if (t->bits != 64 || i->opsize < 4 || !i->has_mem || i->reg.reg == NO_REG ||
	    i->addrsize != 8 || !ea_is_supported(t, &ea))
		return false;
	m = emit_check_bits(t, k, &ea, i->reg.reg, i->opsize, i->mem_write);
	/* HOST_S1 = bit within the word; the instruction then stays within it. */
	emit_pext_cpu(e, HOST_S1, use_reg(e, i->reg.reg, HOST_S1),
		      wide ? CPU_DISP(e, bit_mask64) : CPU_DISP(e, bit_mask32));
	direct.reg.reg = HOST_S1;
	direct.reg.read = true;
	return emit_insn_identity(e, &direct, m);
}

/* What RCX is before instruction @k, if that is a constant of the block; else 0. */
static u64 known_count(const struct translation *t, u32 k)
{
	while (k--) {
		const struct insn *i = &t->in[k];

		if (i->cls == INSN_SYSTEM || i->cls == INSN_STRING)
			return 0;
		if (i->gpr_write & 1u << RCX) /* MOV ECX, imm32 */
			return i->cls == INSN_DATA && i->opsize == 4 && i->opcode_len == 1 &&
					       i->bytes[i->opcode_off] == 0xb9 &&
					       i->opcode_reg.reg == RCX
				       ? (u32)i->imm
				       : 0;
	}
	return 0;
}

/*
 * REP STOS of a few words, their number known: compilers clear structures so. When a store faults
 * half-way, the interpreter begins anew, with the same value for the same places.
 */
bool emit_string(struct translation *t, u32 k)
{
	const struct insn *i = &t->in[k];
	const u64 count = known_count(t, k);
	const u32 size = i->opsize;
	struct emit *e = &t->hot, *cold = &t->cold;
	struct ea ea = {.seg = SEG_ES, .base = RDI, .index = NO_REG, .scale = 1, .bits = 64};
	u8 *down, *back;
	struct host_mem m;

	if (!(string_site(i) & SITE_WRITE) || i->bytes[i->opcode_off] != 0xab || size < 4 ||
	    !count || count * size > STOS_INLINE)
		return false;
	emit_load_cpu8(e, RCX, CPU_DISP(e, dflag)); /* RFLAGS.DF */
	emit_jrcxz(e, 5);
	down = emit_jmp_forward(e);
	emit_mov_imm32(e, RCX, (u32)count);
	m = emit_check_one(t, k, &ea, (u32)count * size, true);
	for (u32 n = 0; n < count; n++, m.disp += (s32)size)
		emit_store(e, m, RAX, size);
	emit_lea(e, 64, RDI, RDI, NO_REG, 1, (s32)(count * size));
	emit_mov_imm32(e, RCX, 0);
	emit_patch(e, down, emit_here(cold));
	emit_mov_imm32(cold, RCX, (u32)count);
	emit_call_step(t, cold, k, 0);
	back = emit_jmp_forward(cold);
	emit_patch(cold, back, emit_here(e));
	return true;
}

bool emit_nop(struct translation *t, u32 k)
{
	struct emit *e = &t->hot, *cold = &t->cold;
	u8 *spent, *back;

	if (t->in[k].mnemonic != ZYDIS_MNEMONIC_PAUSE)
		return true;
	emit_bytes(e, "\xf3\x90", 2);
	if (t->live[k])
		return true; /* hardly in a loop that waits: those test something */
	emit_sub_cpu32_imm8(e, CPU_DISP(e, pauses_left), 1);
	spent = emit_jcc_forward(e, COND_B);
	emit_patch(e, spent, emit_here(cold));
	emit_call_step(t, cold, k, 0);
	back = emit_jmp_forward(cold);
	emit_patch(cold, back, emit_here(e));
	t->loaded = NO_GROUP;
	return true;
}

bool emit_system(struct translation *t, u32 k)
{
	struct emit *e = &t->hot;

	switch (t->in[k].mnemonic) {
	case ZYDIS_MNEMONIC_CLD: emit_store_cpu_imm8(e, CPU_DISP(e, dflag), 0); return true;
	case ZYDIS_MNEMONIC_STD: emit_store_cpu_imm8(e, CPU_DISP(e, dflag), 1); return true;
	case ZYDIS_MNEMONIC_CLI:
		if (!is_kernel64(t))
			return false;
		emit_store_cpu_imm8(e, CPU_DISP(e, iflag), 0);
		return true;
	case ZYDIS_MNEMONIC_STI: return emit_sti(t, k);
	case ZYDIS_MNEMONIC_MOV: return emit_read_selector(t, k);
	case ZYDIS_MNEMONIC_RDFSBASE: return emit_base(t, k, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE: return emit_base(t, k, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE: return emit_base(t, k, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE: return emit_base(t, k, SEG_GS, true);
	case ZYDIS_MNEMONIC_SWAPGS: return emit_swapgs(t);
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET: return emit_system_call(t, k);
	case ZYDIS_MNEMONIC_RDTSC: return emit_rdtsc(t, false);
	case ZYDIS_MNEMONIC_RDTSCP: return emit_rdtsc(t, true);
	case ZYDIS_MNEMONIC_LEAVE: return emit_leave_frame(t, k);
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ: return emit_pushf(t, k);
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC: return emit_bit_string(t, k);
	default: return false;
	}
}
