/*
 * Instruction decoding over Zydis.
 *
 * Zydis says what an instruction is and touches; this file condenses that into struct insn: who
 * executes it, its memory operand, which encoding fields name general registers, its effect on
 * arithmetic flags, and where its bytes lie, so that emit.c can re-encode it with other registers
 * and addresses.
 *
 * Flags. "Kill" means that the old value certainly cannot be observed afterwards. Flags that the
 * manuals call undefined do not count as killed, because processors leave some of them alone; but
 * logical operations and shifts are known to overwrite them, and are too frequent to keep them
 * alive.
 */
#include "engine/soft/decode.h"

#include <Zydis/Zydis.h>

static u8 gpr_of(ZydisRegister reg, u8 *size, bool *high)
{
	*high = false;
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL) {
		*size = 1;
		return (u8)(reg - ZYDIS_REGISTER_AL);
	}
	if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
		*size = 1;
		*high = true;
		return (u8)(reg - ZYDIS_REGISTER_AH);
	}
	if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B) {
		*size = 1;
		return (u8)(reg - ZYDIS_REGISTER_SPL + RSP);
	}
	if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W) {
		*size = 2;
		return (u8)(reg - ZYDIS_REGISTER_AX);
	}
	if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D) {
		*size = 4;
		return (u8)(reg - ZYDIS_REGISTER_EAX);
	}
	if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15) {
		*size = 8;
		return (u8)(reg - ZYDIS_REGISTER_RAX);
	}
	return NO_REG;
}

static u8 segment_of(ZydisRegister reg)
{
	return reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS ? (u8)(reg - ZYDIS_REGISTER_ES)
								    : (u8)SEG_DS;
}

/* Fill in where prefixes, opcode, ModRM and immediates lie. */
static void find_layout(struct insn *i, const ZydisDecodedInstruction *z)
{
	u32 n = 0, end;

	for (; n < i->len; n++) {
		u8 b = i->bytes[n];

		if (insn_is_prefix(b)) {
			i->prefixes = (u8)(n + 1);
			i->rex = 0;
		} else if (i->bits == 64 && (b & 0xf0) == 0x40) {
			i->rex = b;
		} else {
			break;
		}
	}
	i->opcode_off = (u8)n;
	i->opcode_len = 1;
	if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		i->encoding = ENC_VEX;
		i->vex_off = (u8)n;
		i->vex_len = i->bytes[n] == 0xc5 ? 2 : 3;
		i->opcode_off = (u8)(n + i->vex_len);
	} else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
		i->encoding = ENC_EVEX;
		i->vex_off = (u8)n;
		i->vex_len = 4;
		i->opcode_off = (u8)(n + 4);
	} else if (i->bytes[n] == 0x0f) {
		i->opcode_len = i->bytes[n + 1] == 0x38 || i->bytes[n + 1] == 0x3a ? 3 : 2;
	}
	i->has_modrm = (z->attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
	end = i->opcode_off + i->opcode_len;
	if (i->has_modrm) {
		i->modrm_off = (u8)end;
		end++;
		if (z->attributes & ZYDIS_ATTRIB_HAS_SIB)
			end++;
		end += z->raw.disp.size / 8;
	}
	i->imm_off = (u8)end;
	i->imm_len = (u8)(i->len - end);
}

static void set_field(struct insn *i, const ZydisDecodedOperand *op)
{
	struct insn_field *f;
	u8 size = 0;
	bool high;
	u8 reg = gpr_of(op->reg.value, &size, &high);

	if (reg == NO_REG)
		return;
	switch (op->encoding) {
	case ZYDIS_OPERAND_ENCODING_MODRM_REG: f = &i->reg; break;
	case ZYDIS_OPERAND_ENCODING_MODRM_RM: f = &i->rm; break;
	case ZYDIS_OPERAND_ENCODING_NDSNDD: f = &i->vvvv; break;
	case ZYDIS_OPERAND_ENCODING_OPCODE: f = &i->opcode_reg; break;
	default: return;
	}
	f->reg = reg;
	f->size = size;
	f->high = high;
	f->read |= (op->actions & (ZYDIS_OPERAND_ACTION_MASK_READ)) != 0;
	f->write |= (op->actions & (ZYDIS_OPERAND_ACTION_MASK_WRITE)) != 0;
	if (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE || (f->write && size < 4))
		f->read = true;
}

static void note_gpr(struct insn *i, const ZydisDecodedOperand *op)
{
	u8 size;
	bool high;
	u8 reg = gpr_of(op->reg.value, &size, &high);

	if (reg == NO_REG)
		return;
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
		i->gpr_read |= (u16)(1u << reg);
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
		i->gpr_write |= (u16)(1u << reg);
		if (size < 4 || op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE)
			i->gpr_read |= (u16)(1u << reg);
	}
}

static void set_mem(struct insn *i, const ZydisDecodedOperand *op)
{
	u8 size;
	bool high;

	i->has_mem = op->mem.type == ZYDIS_MEMOP_TYPE_MEM;
	i->mem_read = (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
	i->mem_write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
	i->seg = segment_of(op->mem.segment);
	i->is_rip_relative =
		op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP;
	i->base = i->is_rip_relative ? (u8)NO_REG : gpr_of(op->mem.base, &size, &high);
	i->index = gpr_of(op->mem.index, &size, &high);
	i->scale = op->mem.scale ? op->mem.scale : 1;
	i->disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
	i->mem_size = (u16)(op->size / 8);
	i->mem_elem = (u8)(op->element_size / 8);
	if (i->base != NO_REG)
		i->gpr_read |= (u16)(1u << i->base);
	if (i->index != NO_REG)
		i->gpr_read |= (u16)(1u << i->index);
}

/* SIB without base: REX.B does not make one (SDM vol. 2, table 2-5), which Zydis forgets with
 * prefix 67. */
static void drop_phantom_base(struct insn *i, const ZydisDecodedInstruction *z)
{
	if (!(z->attributes & ZYDIS_ATTRIB_HAS_SIB) || z->raw.modrm.mod != 0 ||
	    z->raw.sib.base != 5)
		return;
	i->base = NO_REG;
	i->disp = z->raw.disp.value;
}

/* Returns true when an operand needs more than DATA rewriting can do. */
static bool read_operands(struct insn *i, const ZydisDecodedInstruction *z,
			  const ZydisDecodedOperand *ops)
{
	bool special = false, have_mem = false;

	for (u32 n = 0; n < z->operand_count; n++) {
		const ZydisDecodedOperand *op = &ops[n];

		switch (op->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			set_field(i, op);
			note_gpr(i, op);
			if (op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
			    ((op->reg.value >= ZYDIS_REGISTER_ES &&
			      op->reg.value <= ZYDIS_REGISTER_GS) ||
			     (op->reg.value >= ZYDIS_REGISTER_CR0 &&
			      op->reg.value <= ZYDIS_REGISTER_DR15)))
				special = true;
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN || have_mem ||
			    op->mem.type == ZYDIS_MEMOP_TYPE_VSIB ||
			    op->mem.type == ZYDIS_MEMOP_TYPE_MIB)
				special = true;
			if (!have_mem && op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
				set_mem(i, op);
				drop_phantom_base(i, z);
				have_mem = true;
			}
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			if (!i->has_imm) {
				i->has_imm = true;
				i->imm = op->imm.value.s;
			} else {
				i->imm2 = op->imm.value.s;
			}
			break;
		case ZYDIS_OPERAND_TYPE_POINTER:
			i->has_imm = true;
			i->imm = op->ptr.offset;
			i->imm2 = op->ptr.segment;
			special = true;
			break;
		default: break;
		}
	}
	return special;
}

static bool is_shift(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_RCL:
	case ZYDIS_MNEMONIC_RCR:
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD: return true;
	default: return false;
	}
}

/* Flags the manuals call undefined do not depend on their old value. */
static bool writes_undefined(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_TEST: return true;
	default: return is_shift(m);
	}
}

static bool is_rotate(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_ROL || m == ZYDIS_MNEMONIC_ROR || m == ZYDIS_MNEMONIC_RCL ||
	       m == ZYDIS_MNEMONIC_RCR;
}

static void set_flags(struct insn *i, const ZydisDecodedInstruction *z)
{
	const ZydisAccessedFlags *f = z->cpu_flags;
	u32 defined, undefined;

	if (!f)
		return;
	defined = (f->modified | f->set_0 | f->set_1) & RFLAGS_ARITH;
	undefined = f->undefined & RFLAGS_ARITH;
	i->flags_read = (u16)(f->tested & RFLAGS_ARITH);
	i->flags_write = (u16)(defined | undefined);
	i->flags_kill = writes_undefined(z->mnemonic) ? i->flags_write : (u16)defined;
	if (is_shift(z->mnemonic)) {
		u64 count = (u64)i->imm & (i->opsize == 8 ? 63 : 31);

		if (!i->has_imm || !count)
			i->flags_kill = 0;
		else if (count > 1 && is_rotate(z->mnemonic)) /* Intel's leave OF alone then */
			i->flags_kill &= (u16)~RFLAGS_OF;
	}
	if (i->rep || i->repne)
		i->flags_kill = 0;
}

static bool ext_is_data(ZydisISAExt ext)
{
	switch (ext) {
	case ZYDIS_ISA_EXT_ADOX_ADCX:
	case ZYDIS_ISA_EXT_AES:
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX512EVEX:
	case ZYDIS_ISA_EXT_AVX512VEX:
	case ZYDIS_ISA_EXT_AVXAES:
	case ZYDIS_ISA_EXT_AVX_VNNI:
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_BMI2:
	case ZYDIS_ISA_EXT_CLFSH:
	case ZYDIS_ISA_EXT_CLFLUSHOPT:
	case ZYDIS_ISA_EXT_CLWB:
	case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_FMA:
	case ZYDIS_ISA_EXT_GFNI:
	case ZYDIS_ISA_EXT_LONGMODE:
	case ZYDIS_ISA_EXT_LZCNT:
	case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_MOVBE:
	case ZYDIS_ISA_EXT_PCLMULQDQ:
	case ZYDIS_ISA_EXT_RDRAND:
	case ZYDIS_ISA_EXT_RDSEED:
	case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
	case ZYDIS_ISA_EXT_X87: return true;
	default: return false;
	}
}

/* Instructions of data categories that are not plain data all the same, or the other way round. */
static int class_by_mnemonic(const ZydisDecodedInstruction *z, const struct insn *i)
{
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_LEA: return INSN_LEA;
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_RDSSPD:
	case ZYDIS_MNEMONIC_RDSSPQ:
	case ZYDIS_MNEMONIC_CLDEMOTE: return INSN_NOP;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ: return INSN_LOOP;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		/* A register bit offset reaches beyond the operand. */
		return i->has_mem && !i->has_imm ? INSN_SYSTEM : INSN_DATA;
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC:
	case ZYDIS_MNEMONIC_LAHF:
	case ZYDIS_MNEMONIC_SAHF: return INSN_DATA;
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_SALC:
	case ZYDIS_MNEMONIC_BOUND:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_CLZERO:
	case ZYDIS_MNEMONIC_ARPL:
	case ZYDIS_MNEMONIC_CPUID: return INSN_SYSTEM;
	default: return -1;
	}
}

static int class_by_category(const ZydisDecodedInstruction *z, const struct insn *i, bool special)
{
	bool far_branch = z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;

	switch (z->meta.category) {
	case ZYDIS_CATEGORY_NOP:
	case ZYDIS_CATEGORY_WIDENOP:
	case ZYDIS_CATEGORY_PREFETCH:
	case ZYDIS_CATEGORY_PREFETCHWT1:
	case ZYDIS_CATEGORY_MPX: return i->encoding == ENC_LEGACY ? INSN_NOP : INSN_INVALID;
	case ZYDIS_CATEGORY_CALL:
		if (far_branch)
			return INSN_SYSTEM;
		return i->has_imm ? INSN_CALL : INSN_CALL_INDIRECT;
	case ZYDIS_CATEGORY_UNCOND_BR:
		if (far_branch)
			return INSN_SYSTEM;
		return i->has_imm ? INSN_JMP : INSN_JMP_INDIRECT;
	case ZYDIS_CATEGORY_COND_BR: return INSN_JCC;
	case ZYDIS_CATEGORY_RET:
		return far_branch || z->mnemonic != ZYDIS_MNEMONIC_RET ? INSN_SYSTEM : INSN_RET;
	case ZYDIS_CATEGORY_PUSH:
		return z->mnemonic == ZYDIS_MNEMONIC_PUSH && !special ? INSN_PUSH : INSN_SYSTEM;
	case ZYDIS_CATEGORY_POP:
		return z->mnemonic == ZYDIS_MNEMONIC_POP && !special ? INSN_POP : INSN_SYSTEM;
	case ZYDIS_CATEGORY_STRINGOP: return INSN_STRING;
	case ZYDIS_CATEGORY_DECIMAL:
	case ZYDIS_CATEGORY_FLAGOP:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_RDWRFSGS:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_SMAP:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_VTX:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
	case ZYDIS_CATEGORY_AVX2GATHER:
	case ZYDIS_CATEGORY_GATHER:
	case ZYDIS_CATEGORY_SCATTER:
	case ZYDIS_CATEGORY_CET: return INSN_SYSTEM;
	default: return special || !ext_is_data(z->meta.isa_ext) ? INSN_SYSTEM : INSN_DATA;
	}
}

/* PUSH and POP have a hidden stack operand, branches hidden registers: not special for their
 * classes. */
static bool operands_are_special(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	for (u32 n = 0; n < z->operand_count; n++)
		if (ops[n].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
		    ops[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ops[n].reg.value >= ZYDIS_REGISTER_ES && ops[n].reg.value <= ZYDIS_REGISTER_GS)
			return true;
	return false;
}

static void set_needs(struct insn *i, const ZydisDecodedInstruction *z,
		      const ZydisDecodedOperand *ops)
{
	ZydisISAExt ext = z->meta.isa_ext;

	i->needs_x87 = ext == ZYDIS_ISA_EXT_X87 || ext == ZYDIS_ISA_EXT_MMX ||
		       z->mnemonic == ZYDIS_MNEMONIC_FISTTP;
	i->needs_avx512 = i->encoding == ENC_EVEX || ext == ZYDIS_ISA_EXT_AVX512VEX;
	i->needs_avx = i->encoding == ENC_VEX && !i->needs_avx512 && ext != ZYDIS_ISA_EXT_BMI1 &&
		       ext != ZYDIS_ISA_EXT_BMI2;
	i->needs_sse =
		z->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || z->mnemonic == ZYDIS_MNEMONIC_STMXCSR;
	for (u32 n = 0; n < z->operand_count; n++) {
		ZydisRegister r = ops[n].reg.value;

		if (ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM31)
			i->needs_sse = true;
		if (r >= ZYDIS_REGISTER_MM0 && r <= ZYDIS_REGISTER_MM7)
			i->needs_x87 = true;
	}
}

/* Exception classes without fault suppression: the whole operand is accessed whatever the mask
 * says. */
static bool suppresses_faults(const ZydisDecodedInstruction *z)
{
	switch (z->mnemonic) { /* E4NF in the manuals, not in Zydis 4.0 */
	case ZYDIS_MNEMONIC_VDBPSADBW:
	case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
	case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
	case ZYDIS_MNEMONIC_VCVTNE2PS2BF16: return false;
	default: break;
	}
	switch (z->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_E1NF:
	case ZYDIS_EXCEPTION_CLASS_E4NF:
	case ZYDIS_EXCEPTION_CLASS_E5NF:
	case ZYDIS_EXCEPTION_CLASS_E6NF:
	case ZYDIS_EXCEPTION_CLASS_E9NF:
	case ZYDIS_EXCEPTION_CLASS_E10NF: return false;
	default: return true;
	}
}

static u8 broadcast_lanes(const ZydisDecodedInstruction *z)
{
	if (z->avx.broadcast.is_static)
		return 0;
	switch (z->avx.broadcast.mode) {
	case ZYDIS_BROADCAST_MODE_1_TO_2: return 2;
	case ZYDIS_BROADCAST_MODE_1_TO_4: return 4;
	case ZYDIS_BROADCAST_MODE_1_TO_8: return 8;
	case ZYDIS_BROADCAST_MODE_1_TO_16: return 16;
	case ZYDIS_BROADCAST_MODE_1_TO_32: return 32;
	default: return 0;
	}
}

static bool is_masked(const struct insn *i, const ZydisDecodedInstruction *z)
{
	if (!i->has_mem)
		return false;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
	default:
		return i->encoding == ENC_EVEX && z->avx.mask.reg != ZYDIS_REGISTER_NONE &&
		       z->avx.mask.reg != ZYDIS_REGISTER_K0 && suppresses_faults(z);
	}
}

static ZydisMachineMode machine_mode(u32 bits)
{
	return bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
	       : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
			    : ZYDIS_MACHINE_MODE_LEGACY_16;
}

static void classify(struct insn *i, const ZydisDecodedInstruction *z,
		     const ZydisDecodedOperand *ops, bool special)
{
	int cls = class_by_mnemonic(z, i);

	if (cls < 0)
		cls = class_by_category(z, i,
					z->meta.category == ZYDIS_CATEGORY_PUSH ||
							z->meta.category == ZYDIS_CATEGORY_POP
						? operands_are_special(z, ops)
						: special);
	i->cls = (u8)cls;
	if (i->cls == INSN_NOP || i->cls == INSN_LEA)
		i->mem_read = i->mem_write = false;
	if (i->cls == INSN_NOP)
		i->has_mem = false;
	if (i->cls == INSN_DATA && i->has_mem && !i->mem_read && !i->mem_write)
		i->mem_read = true; /* CLFLUSH and its kin are checked like loads */
	if (i->cls == INSN_JCC) {
		u8 op = i->bytes[i->opcode_off];

		i->cond = (op == 0x0f ? i->bytes[i->opcode_off + 1] : op) & 15;
	}
	if (i->cls == INSN_SYSTEM || i->cls == INSN_STRING) {
		i->flags_read = RFLAGS_ARITH;
		i->flags_kill = 0;
	}
}

static void decoder_init(ZydisDecoder *decoder, u32 bits)
{
	ZydisDecoderInit(decoder, machine_mode(bits),
			 bits == 64   ? ZYDIS_STACK_WIDTH_64
			 : bits == 32 ? ZYDIS_STACK_WIDTH_32
				      : ZYDIS_STACK_WIDTH_16);
	/* Not offered to guests, which makes its encodings NOPs (SDM vol. 1, 17.4). */
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
}

/* Outside 64-bit mode W is ignored where it would choose a 64-bit general register. */
static bool ignores_w(const struct insn *i, u32 w_off, const ZydisDecodedInstruction *z,
		      const ZydisDecodedOperand *ops)
{
	ZydisDecodedOperand other_ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction other;
	ZydisDecoder decoder;
	u8 bytes[15] = {0};

	for (u32 n = 0; n < i->len; n++)
		bytes[n] = i->bytes[n];
	bytes[w_off] &= 0x7f;
	decoder_init(&decoder, i->bits);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, i->len, &other, other_ops)) ||
	    other.mnemonic != z->mnemonic ||
	    other.operand_count_visible != z->operand_count_visible)
		return false;
	/* VPCMPESTRI and VPCMPESTRM choose the width of hidden operands. */
	for (u32 n = 0; n < z->operand_count_visible; n++)
		if (ops[n].size != other_ops[n].size ||
		    ops[n].element_size != other_ops[n].element_size)
			return false;
	return true;
}

/*
 * Host code runs in 64-bit mode. Bits that other modes ignore but 64-bit mode does not are set in
 * the copied bytes as 64-bit mode wants them for the same instruction.
 */
static void make_canonical(struct insn *i, const ZydisDecodedInstruction *z,
			   const ZydisDecodedOperand *ops)
{
	u8 *v = i->bytes + i->vex_off, *opcode = i->bytes + i->opcode_off;

	if (i->encoding == ENC_LEGACY) {
		if (i->opcode_len == 1 && *opcode == 0x82) /* alias of 80 */
			*opcode = 0x80;
		return;
	}
	if (i->encoding == ENC_VEX && i->vex_len == 2)
		return;
	v[1] |= i->encoding == ENC_VEX ? 0x20 : 0x30;
	v[2] |= 0x40;
	if (i->encoding == ENC_EVEX)
		v[3] |= 0x08;
	else if ((v[1] & 0x1f) == 3 && *opcode >= 0x4a && *opcode <= 0x4c)
		i->bytes[i->imm_off] &= 0x7f; /* VBLENDVPS and its kin: the register in imm8[7:4] */
	if (v[2] & 0x80 && ignores_w(i, i->vex_off + 2u, z, ops))
		v[2] &= 0x7f;
}

/* F3 makes a PAUSE of 90 only where that is a NOP; with REX.B it is XCHG r8, rax, and F3 is
 * ignored. */
static bool is_pause_of_xchg(const struct insn *i)
{
	return i->mnemonic == ZYDIS_MNEMONIC_PAUSE && i->rex & 1;
}

static bool has_memory_operand(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	for (u32 n = 0; n < z->operand_count; n++)
		if (ops[n].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    ops[n].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			return true;
	return false;
}

static void describe_form(struct insn_form *form, const struct insn *i,
			  const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	*form = (struct insn_form){
		.disp_size = z->raw.disp.size / 8,
		.imm_size = z->raw.imm[0].size / 8,
		.imm_signed = z->raw.imm[0].is_signed,
		.plain = i->encoding != ENC_EVEX && !z->raw.imm[1].size && i->bits == 64 &&
			 (!z->raw.disp.size || has_memory_operand(z, ops)),
	};
}

/* NOLINTBEGIN(misc-no-recursion): one level: the second decoding meets no F3 */
static void decode_without_f3(struct insn *i)
{
	u8 bytes[15];

	for (u32 n = 0; n < i->len; n++)
		bytes[n] = i->bytes[n] == 0xf3 ? 0x3e : i->bytes[n];
	insn_decode(i, bytes, i->len, i->bits);
}

void insn_decode_form(struct insn *i, const u8 *p, u32 len, u32 bits, struct insn_form *form)
{
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction z;
	ZydisDecoder decoder;
	ZyanStatus status;
	bool special;

	*i = (struct insn){.bits = (u8)bits,
			   .base = NO_REG,
			   .index = NO_REG,
			   .reg.reg = NO_REG,
			   .rm.reg = NO_REG,
			   .vvvv.reg = NO_REG,
			   .opcode_reg.reg = NO_REG};
	*form = (struct insn_form){0};
	decoder_init(&decoder, bits);
	status = ZydisDecoderDecodeFull(&decoder, p, len, &z, ops);
	if (!ZYAN_SUCCESS(status)) {
		i->len = status == ZYDIS_STATUS_NO_MORE_DATA && len < 15 ? 0 : 1;
		return;
	}
	i->len = z.length;
	for (u32 n = 0; n < z.length; n++)
		i->bytes[n] = p[n]; /* NOLINT(clang-analyzer-core.uninitialized.Assign): <= len */
	i->mnemonic = (u16)z.mnemonic;
	i->opsize = z.operand_width / 8;
	i->addrsize = z.address_width / 8;
	i->lock = (z.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
	i->rep = (z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) != 0;
	i->repne = (z.attributes & ZYDIS_ATTRIB_HAS_REPNE) != 0;
	find_layout(i, &z);
	if (is_pause_of_xchg(i)) {
		decode_without_f3(i);
		return;
	}
	if (bits != 64)
		make_canonical(i, &z, ops);
	special = read_operands(i, &z, ops);
	set_flags(i, &z);
	set_needs(i, &z, ops);
	i->masked = is_masked(i, &z);
	i->lanes = broadcast_lanes(&z);
	classify(i, &z, ops, special);
	describe_form(form, i, &z, ops);
}

void insn_decode(struct insn *i, const u8 *p, u32 len, u32 bits)
{
	struct insn_form form;

	insn_decode_form(i, p, len, bits, &form);
}
/* NOLINTEND(misc-no-recursion) */
