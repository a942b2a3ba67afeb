/*
 * See filter.h.
 *
 * Left out: what the guest's processor does not have though the host's may, what enters the kernel,
 * what depends on the host's own system state (descriptor tables, selectors, counters), what is not
 * deterministic, and what stores addresses of the last x87 instruction.
 */
#include "filter.h"

static bool category_is_comparable(ZydisInstructionCategory c)
{
	switch (c) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR: /* the generator makes its own */
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_VTX:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
	case ZYDIS_CATEGORY_RDRAND:
	case ZYDIS_CATEGORY_RDSEED:
	case ZYDIS_CATEGORY_RDPID:
	case ZYDIS_CATEGORY_RDPRU:
	case ZYDIS_CATEGORY_SMAP:
	case ZYDIS_CATEGORY_CET:
	case ZYDIS_CATEGORY_SGX:
	case ZYDIS_CATEGORY_UINTR:
	case ZYDIS_CATEGORY_CLZERO:
	case ZYDIS_CATEGORY_WAITPKG:
	case ZYDIS_CATEGORY_PKU:
	case ZYDIS_CATEGORY_PCONFIG:
	case ZYDIS_CATEGORY_PADLOCK:
	case ZYDIS_CATEGORY_ENQCMD:
	case ZYDIS_CATEGORY_AMX_TILE: /* see src/cpu/cpuid_model.c */
	case ZYDIS_CATEGORY_MOVDIR:
	case ZYDIS_CATEGORY_PT:
	case ZYDIS_CATEGORY_KEYLOCKER:
	case ZYDIS_CATEGORY_KEYLOCKER_WIDE:
	case ZYDIS_CATEGORY_TSX_LDTRK:
	case ZYDIS_CATEGORY_SERIALIZE:
	case ZYDIS_CATEGORY_HRESET: return false;
	default: return true;
	}
}

static bool mnemonic_is_comparable(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_MONITORX:
	case ZYDIS_MNEMONIC_MWAITX:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_XBEGIN:
	case ZYDIS_MNEMONIC_XABORT:
	case ZYDIS_MNEMONIC_XEND:
	case ZYDIS_MNEMONIC_XTEST:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INVLPGA:
	case ZYDIS_MNEMONIC_PVALIDATE:
	case ZYDIS_MNEMONIC_RMPADJUST:
	case ZYDIS_MNEMONIC_RMPUPDATE:
	case ZYDIS_MNEMONIC_PSMASH: /* #UD or #GP by what the host's EFER says */
	case ZYDIS_MNEMONIC_SEAMCALL:
	case ZYDIS_MNEMONIC_SEAMOPS:
	case ZYDIS_MNEMONIC_SEAMRET:
	case ZYDIS_MNEMONIC_TDCALL:
	case ZYDIS_MNEMONIC_XSAVES:
	case ZYDIS_MNEMONIC_XSAVES64:
	case ZYDIS_MNEMONIC_XRSTORS:
	case ZYDIS_MNEMONIC_XRSTORS64:
	case ZYDIS_MNEMONIC_HRESET: return false; /* #GP, or #UD where it is not offered */
	default: return true;
	}
}

/* Selectors (at CPL 3 they have the host's values: reading is fine), control and debug registers.
 */
static bool names_system_register(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops,
				  bool user)
{
	for (u32 n = 0; n < z->operand_count; n++) {
		ZydisRegister r = ops[n].reg.value;

		if (ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    ops[n].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		if (r >= ZYDIS_REGISTER_ES && r <= ZYDIS_REGISTER_GS &&
		    (!user || ops[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return true;
		if (r >= ZYDIS_REGISTER_CR0 && r <= ZYDIS_REGISTER_DR15)
			return true;
	}
	return false;
}

/* Faults at CPL 3, which is where the host runs it. */
static bool is_privileged(const ZydisDecodedInstruction *z)
{
	return z->attributes & ZYDIS_ATTRIB_IS_PRIVILEGED || z->mnemonic == ZYDIS_MNEMONIC_CLI ||
	       z->mnemonic == ZYDIS_MNEMONIC_STI;
}

/*
 * PREFETCH of a register: AMD processors raise #UD, others take it as a NOP. VPINSRQ and VPEXTRQ
 * outside 64-bit mode: #UD or VPINSRD and VPEXTRD. F3 before an XCHG of r8 and rax: ignored, or it
 * is a PAUSE all the same. MOVSXD to 16 bits reads two bytes or four.
 */
static bool is_vendor_specific(const ZydisDecodedInstruction *z, const struct insn *i)
{
	if (i->bits != 64 && i->encoding != ENC_LEGACY &&
	    (i->mnemonic == ZYDIS_MNEMONIC_VPINSRD || i->mnemonic == ZYDIS_MNEMONIC_VPEXTRD))
		return z->raw.vex.W || z->raw.evex.W;
	if (z->mnemonic == ZYDIS_MNEMONIC_MOVSXD)
		return i->opsize == 2;
	if (z->mnemonic == ZYDIS_MNEMONIC_PAUSE)
		return i->rex & 1;
	return i->encoding == ENC_LEGACY && i->opcode_len == 2 &&
	       i->bytes[i->opcode_off + 1] == 0x0d && i->bytes[i->modrm_off] >= 0xc0;
}

/*
 * EVEX instructions that read rsp with bit X set, which is ignored for general registers: Zen 4
 * then takes the value from before the last push or call.
 */
static bool reads_sp_wrongly(const struct insn *i)
{
	return i->encoding == ENC_EVEX && i->rm.reg == RSP && !(i->bytes[i->vex_off + 1] & 0x40);
}

bool filter_accepts(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops,
		    const struct insn *i, bool user)
{
	if (!mnemonic_is_comparable(z->mnemonic))
		return false;
	if (is_privileged(z))
		return user && z->meta.category != ZYDIS_CATEGORY_VTX &&
		       z->meta.category != ZYDIS_CATEGORY_SYSRET &&
		       z->mnemonic != ZYDIS_MNEMONIC_HLT;
	return category_is_comparable(z->meta.category) && !names_system_register(z, ops, user) &&
	       !is_vendor_specific(z, i) && !reads_sp_wrongly(i);
}

u64 filter_undefined_flags(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS: return RFLAGS_OF | RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF;
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD: return RFLAGS_OF | RFLAGS_AF | RFLAGS_CF;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS: return RFLAGS_OF;
	default: return 0;
	}
}

bool filter_undecodable(const u8 *bytes, u32 bits)
{
	(void)bits;
	/* Far pointers and system calls are known to the decoder; what is left is not one of those,
	 * except with prefixes it rejects. */
	for (u32 n = 0; n < 6; n++)
		if (bytes[n] == 0x0f &&
		    (bytes[n + 1] == 0x05 || bytes[n + 1] == 0x34 || bytes[n + 1] == 0x01))
			return false;
	return true;
}
