/*
 * The instructions of class INSN_SYSTEM by mnemonic, and those of them that are too small for a
 * file of their own: CPUID, time stamps, flags, HLT, cache control, hypercalls.
 *
 * What has no row raises #UD; that covers extensions which the CPU model hides.
 */
#include "engine/soft/system.h"
#include "engine/soft/util.h"

#include <Zydis/Zydis.h>

/* ---- CPUID ---- */

static struct cpuid_slot *cpuid_lookup(struct soft_cpu *c, u32 leaf, u32 subleaf)
{
	u32 hash = leaf ^ leaf >> 28 ^ subleaf << 4;
	struct cpuid_slot *s = &soft_interp(c)->cpuid[hash % CPUID_SLOTS];

	if (s->valid && s->leaf == leaf && s->subleaf == subleaf)
		return s;
	soft_fpu_park(c);
	cpuid_query(c->vm->cpuid, c->id, c->cr4, c->xcr0, leaf, subleaf, s->out);
	s->leaf = leaf;
	s->subleaf = subleaf;
	s->valid = true;
	return s;
}

static int op_cpuid(struct soft_cpu *c, const struct insn *i)
{
	const struct cpuid_slot *s = cpuid_lookup(c, (u32)c->r[RAX], (u32)c->r[RCX]);

	(void)i;
	c->r[RAX] = s->out[0];
	c->r[RBX] = s->out[1];
	c->r[RCX] = s->out[2];
	c->r[RDX] = s->out[3];
	atomic_thread_fence(memory_order_seq_cst); /* it serialises (SDM vol. 3, 8.3) */
	return SOFT_OK;
}

/* ---- time ---- */

static int check_tsd(struct soft_cpu *c)
{
	return (c->cr4 & CR4_TSD) && c->cpl && in_protected_mode(c) ? fault_gp(c, 0) : SOFT_OK;
}

static void read_tsc(struct soft_cpu *c)
{
	u32 low, high;
	u64 tsc;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	tsc = (low | (u64)high << 32) + c->tsc_offset;
	c->r[RAX] = (u32)tsc;
	c->r[RDX] = tsc >> 32;
}

static int op_rdtsc(struct soft_cpu *c, const struct insn *i)
{
	int r = check_tsd(c);

	(void)i;
	if (r == SOFT_OK)
		read_tsc(c);
	return r;
}

static int op_rdtscp(struct soft_cpu *c, const struct insn *i)
{
	int r = soft_interp(c)->has_rdtscp ? check_tsd(c) : fault_ud(c);

	(void)i;
	if (r != SOFT_OK)
		return r;
	read_tsc(c);
	c->r[RCX] = (u32)c->msr.tsc_aux;
	return SOFT_OK;
}

static int op_rdpid(struct soft_cpu *c, const struct insn *i)
{
	if (!soft_interp(c)->has_rdpid)
		return fault_ud(c);
	gpr_set(c, modrm_rm(i), soft_is_64bit(c) ? 8 : 4, (u32)c->msr.tsc_aux);
	return SOFT_OK;
}

/* There are no performance counters: every index is out of range. */
static int op_rdpmc(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return fault_gp(c, 0);
}

/* ---- flags ---- */

/* May this code change RFLAGS.IF? Virtual-8086 mode runs at CPL 3. */
static bool may_change_if(const struct soft_cpu *c)
{
	return c->cpl <= soft_iopl(c);
}

static int op_cli(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	if (!may_change_if(c))
		return fault_gp(c, 0);
	c->iflag = 0;
	return SOFT_OK;
}

static int op_sti(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	if (!may_change_if(c))
		return fault_gp(c, 0);
	if (!c->iflag)
		c->shadow = true;
	c->iflag = 1;
	return SOFT_OK;
}

static int op_cld(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	c->dflag = 0;
	return SOFT_OK;
}

static int op_std(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	c->dflag = 1;
	return SOFT_OK;
}

static int set_ac(struct soft_cpu *c, u64 ac)
{
	if (!soft_interp(c)->has_smap || c->cpl)
		return fault_ud(c);
	c->sysflags = (c->sysflags & ~RFLAGS_AC) | ac;
	soft_update_mode(c);
	return SOFT_OK;
}

static int op_clac(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return set_ac(c, 0);
}

static int op_stac(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return set_ac(c, RFLAGS_AC);
}

static int op_pushf(struct soft_cpu *c, const struct insn *i)
{
	struct stack st;
	int r;

	if (in_vm86(c) && soft_iopl(c) < 3)
		return fault_gp(c, 0);
	stack_open(c, &st);
	r = stack_push(c, &st, i->opsize, soft_rflags(c) & ~(RFLAGS_VM | RFLAGS_RF));
	if (r == SOFT_OK)
		stack_commit(c, &st);
	return r;
}

static int op_popf(struct soft_cpu *c, const struct insn *i)
{
	u64 mask = RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT, value, old = c->sysflags;
	struct stack st;
	int r;

	if (in_vm86(c) && soft_iopl(c) < 3)
		return fault_gp(c, 0);
	if (i->opsize > 2)
		mask |= RFLAGS_AC | RFLAGS_ID;
	if (may_change_if(c))
		mask |= RFLAGS_IF;
	if (c->cpl == 0)
		mask |= RFLAGS_IOPL;
	stack_open(c, &st);
	r = stack_pop(c, &st, i->opsize, &value);
	if (r != SOFT_OK)
		return r;
	stack_commit(c, &st);
	soft_set_rflags(c, (soft_rflags(c) & ~mask & ~RFLAGS_RF) | (value & mask));
	if ((old ^ c->sysflags) & (RFLAGS_TF | RFLAGS_AC))
		soft_update_mode(c);
	return SOFT_OK;
}

/* ---- the rest ---- */

static int op_hlt(struct soft_cpu *c, const struct insn *i)
{
	int r = require_cpl0(c);

	(void)i;
	if (r != SOFT_OK)
		return r;
	c->exit.type = EXIT_HLT;
	return SOFT_EXIT;
}

/* INVD, WBINVD, WBNOINVD: caches are the host's. */
static int op_cache_control(struct soft_cpu *c, const struct insn *i)
{
	(void)i;
	return require_cpl0(c);
}

static int op_nothing(struct soft_cpu *c, const struct insn *i)
{
	(void)c;
	(void)i;
	return SOFT_OK;
}

/* Only the kernel may ask; others get what KVM answers them, -KVM_EPERM. */
static int op_hypercall(struct soft_cpu *c, const struct insn *i)
{
	struct interp *in = soft_interp(c);

	(void)i;
	if (!in->has_hypervisor || !in_protected_mode(c))
		return fault_ud(c);
	if (c->cpl) {
		gpr_set(c, RAX, 8, ~0ul);
		return SOFT_OK;
	}
	if (in->waiting == EXIT_HYPERCALL && in->waiting_rip == c->rip &&
	    c->exit.type == EXIT_HYPERCALL) {
		c->r[RAX] = c->exit.hypercall.result;
		return SOFT_OK;
	}
	c->exit.type = EXIT_HYPERCALL;
	c->exit.hypercall.nr = c->r[RAX];
	c->exit.hypercall.arg[0] = c->r[RBX];
	c->exit.hypercall.arg[1] = c->r[RCX];
	c->exit.hypercall.arg[2] = c->r[RDX];
	c->exit.hypercall.arg[3] = c->r[RSI];
	c->exit.hypercall.result = ~0ul;
	in->waiting = EXIT_HYPERCALL;
	in->waiting_rip = c->rip;
	return SOFT_EXIT;
}

/* MOV of this class: segment (8c 8e), control (0f-20 0f-22) or debug (0f-21 0f-23) register. */
static int op_mov(struct soft_cpu *c, const struct insn *i)
{
	if (i->opcode_len == 1)
		return op_mov_segment(c, i);
	return insn_opcode(i) & 1 ? op_mov_debug(c, i) : op_mov_control(c, i);
}

static int op_push(struct soft_cpu *c, const struct insn *i)
{
	return op_push_segment(c, i);
}

static int op_pop(struct soft_cpu *c, const struct insn *i)
{
	return op_pop_segment(c, i);
}

/* ---- dispatch ---- */

static int (*const handlers[ZYDIS_MNEMONIC_MAX_VALUE + 1])(struct soft_cpu *,
							   const struct insn *) = {
	[ZYDIS_MNEMONIC_CPUID] = op_cpuid,
	[ZYDIS_MNEMONIC_RDTSC] = op_rdtsc,
	[ZYDIS_MNEMONIC_RDTSCP] = op_rdtscp,
	[ZYDIS_MNEMONIC_RDPID] = op_rdpid,
	[ZYDIS_MNEMONIC_RDPMC] = op_rdpmc,
	[ZYDIS_MNEMONIC_RDMSR] = op_rdmsr,
	[ZYDIS_MNEMONIC_WRMSR] = op_wrmsr,

	[ZYDIS_MNEMONIC_CLI] = op_cli,
	[ZYDIS_MNEMONIC_STI] = op_sti,
	[ZYDIS_MNEMONIC_CLD] = op_cld,
	[ZYDIS_MNEMONIC_STD] = op_std,
	[ZYDIS_MNEMONIC_CLAC] = op_clac,
	[ZYDIS_MNEMONIC_STAC] = op_stac,
	[ZYDIS_MNEMONIC_PUSHF] = op_pushf,
	[ZYDIS_MNEMONIC_PUSHFD] = op_pushf,
	[ZYDIS_MNEMONIC_PUSHFQ] = op_pushf,
	[ZYDIS_MNEMONIC_POPF] = op_popf,
	[ZYDIS_MNEMONIC_POPFD] = op_popf,
	[ZYDIS_MNEMONIC_POPFQ] = op_popf,

	[ZYDIS_MNEMONIC_SYSCALL] = op_syscall,
	[ZYDIS_MNEMONIC_SYSRET] = op_sysret,
	[ZYDIS_MNEMONIC_SYSENTER] = op_sysenter,
	[ZYDIS_MNEMONIC_SYSEXIT] = op_sysexit,
	[ZYDIS_MNEMONIC_SWAPGS] = op_swapgs,
	[ZYDIS_MNEMONIC_RDFSBASE] = op_rdfsbase,
	[ZYDIS_MNEMONIC_RDGSBASE] = op_rdgsbase,
	[ZYDIS_MNEMONIC_WRFSBASE] = op_wrfsbase,
	[ZYDIS_MNEMONIC_WRGSBASE] = op_wrgsbase,

	[ZYDIS_MNEMONIC_INT] = op_int_n,
	[ZYDIS_MNEMONIC_INT3] = op_int3,
	[ZYDIS_MNEMONIC_INT1] = op_int1,
	[ZYDIS_MNEMONIC_INTO] = op_into,
	[ZYDIS_MNEMONIC_BOUND] = op_bound,
	[ZYDIS_MNEMONIC_IRET] = op_iret,
	[ZYDIS_MNEMONIC_IRETD] = op_iret,
	[ZYDIS_MNEMONIC_IRETQ] = op_iret,
	[ZYDIS_MNEMONIC_CALL] = op_far_call,
	[ZYDIS_MNEMONIC_JMP] = op_far_jmp,
	[ZYDIS_MNEMONIC_RET] = op_far_ret,
	[ZYDIS_MNEMONIC_HLT] = op_hlt,
	[ZYDIS_MNEMONIC_VMCALL] = op_hypercall,
	[ZYDIS_MNEMONIC_VMMCALL] = op_hypercall,

	[ZYDIS_MNEMONIC_MOV] = op_mov,
	[ZYDIS_MNEMONIC_PUSH] = op_push,
	[ZYDIS_MNEMONIC_POP] = op_pop,
	[ZYDIS_MNEMONIC_LDS] = op_load_far_pointer,
	[ZYDIS_MNEMONIC_LES] = op_load_far_pointer,
	[ZYDIS_MNEMONIC_LFS] = op_load_far_pointer,
	[ZYDIS_MNEMONIC_LGS] = op_load_far_pointer,
	[ZYDIS_MNEMONIC_LSS] = op_load_far_pointer,
	[ZYDIS_MNEMONIC_LGDT] = op_lgdt,
	[ZYDIS_MNEMONIC_LIDT] = op_lidt,
	[ZYDIS_MNEMONIC_SGDT] = op_sgdt,
	[ZYDIS_MNEMONIC_SIDT] = op_sidt,
	[ZYDIS_MNEMONIC_LLDT] = op_lldt,
	[ZYDIS_MNEMONIC_LTR] = op_ltr,
	[ZYDIS_MNEMONIC_SLDT] = op_sldt,
	[ZYDIS_MNEMONIC_STR] = op_str,
	[ZYDIS_MNEMONIC_LAR] = op_lar,
	[ZYDIS_MNEMONIC_LSL] = op_lsl,
	[ZYDIS_MNEMONIC_VERR] = op_verr,
	[ZYDIS_MNEMONIC_VERW] = op_verw,
	[ZYDIS_MNEMONIC_ARPL] = op_arpl,
	[ZYDIS_MNEMONIC_LMSW] = op_lmsw,
	[ZYDIS_MNEMONIC_SMSW] = op_smsw,
	[ZYDIS_MNEMONIC_CLTS] = op_clts,
	[ZYDIS_MNEMONIC_INVLPG] = op_invlpg,
	[ZYDIS_MNEMONIC_INVPCID] = op_invpcid,
	[ZYDIS_MNEMONIC_INVD] = op_cache_control,
	[ZYDIS_MNEMONIC_WBINVD] = op_cache_control,
	[ZYDIS_MNEMONIC_XSETBV] = op_xsetbv,
	[ZYDIS_MNEMONIC_XGETBV] = op_xgetbv,

	[ZYDIS_MNEMONIC_IN] = op_in,
	[ZYDIS_MNEMONIC_OUT] = op_out,
	[ZYDIS_MNEMONIC_INSB] = op_ins,
	[ZYDIS_MNEMONIC_INSW] = op_ins,
	[ZYDIS_MNEMONIC_INSD] = op_ins,
	[ZYDIS_MNEMONIC_OUTSB] = op_outs,
	[ZYDIS_MNEMONIC_OUTSW] = op_outs,
	[ZYDIS_MNEMONIC_OUTSD] = op_outs,

	[ZYDIS_MNEMONIC_FXSAVE] = op_fxsave,
	[ZYDIS_MNEMONIC_FXSAVE64] = op_fxsave,
	[ZYDIS_MNEMONIC_FXRSTOR] = op_fxrstor,
	[ZYDIS_MNEMONIC_FXRSTOR64] = op_fxrstor,
	[ZYDIS_MNEMONIC_XSAVE] = op_xsave,
	[ZYDIS_MNEMONIC_XSAVE64] = op_xsave,
	[ZYDIS_MNEMONIC_XSAVEOPT] = op_xsave,
	[ZYDIS_MNEMONIC_XSAVEOPT64] = op_xsave,
	[ZYDIS_MNEMONIC_XRSTOR] = op_xrstor,
	[ZYDIS_MNEMONIC_XRSTOR64] = op_xrstor,

	[ZYDIS_MNEMONIC_BT] = op_bit_test,
	[ZYDIS_MNEMONIC_BTS] = op_bit_test,
	[ZYDIS_MNEMONIC_BTR] = op_bit_test,
	[ZYDIS_MNEMONIC_BTC] = op_bit_test,
	[ZYDIS_MNEMONIC_XLAT] = op_xlat,
	[ZYDIS_MNEMONIC_ENTER] = op_enter,
	[ZYDIS_MNEMONIC_LEAVE] = op_leave,
	[ZYDIS_MNEMONIC_PUSHA] = op_pusha,
	[ZYDIS_MNEMONIC_PUSHAD] = op_pusha,
	[ZYDIS_MNEMONIC_POPA] = op_popa,
	[ZYDIS_MNEMONIC_POPAD] = op_popa,
	[ZYDIS_MNEMONIC_AAA] = op_aaa,
	[ZYDIS_MNEMONIC_AAS] = op_aas,
	[ZYDIS_MNEMONIC_AAM] = op_aam,
	[ZYDIS_MNEMONIC_AAD] = op_aad,
	[ZYDIS_MNEMONIC_DAA] = op_daa,
	[ZYDIS_MNEMONIC_DAS] = op_das,
	[ZYDIS_MNEMONIC_SALC] = op_salc,

	[ZYDIS_MNEMONIC_MASKMOVQ] = op_maskmov,
	[ZYDIS_MNEMONIC_MASKMOVDQU] = op_maskmov,
	[ZYDIS_MNEMONIC_VMASKMOVDQU] = op_maskmov,
	[ZYDIS_MNEMONIC_VMASKMOVPS] = exec_masked,
	[ZYDIS_MNEMONIC_VMASKMOVPD] = exec_masked,
	[ZYDIS_MNEMONIC_VPMASKMOVD] = exec_masked,
	[ZYDIS_MNEMONIC_VPMASKMOVQ] = exec_masked,
	[ZYDIS_MNEMONIC_VGATHERDPS] = op_vsib,
	[ZYDIS_MNEMONIC_VGATHERDPD] = op_vsib,
	[ZYDIS_MNEMONIC_VGATHERQPS] = op_vsib,
	[ZYDIS_MNEMONIC_VGATHERQPD] = op_vsib,
	[ZYDIS_MNEMONIC_VPGATHERDD] = op_vsib,
	[ZYDIS_MNEMONIC_VPGATHERDQ] = op_vsib,
	[ZYDIS_MNEMONIC_VPGATHERQD] = op_vsib,
	[ZYDIS_MNEMONIC_VPGATHERQQ] = op_vsib,
	[ZYDIS_MNEMONIC_VSCATTERDPS] = op_vsib,
	[ZYDIS_MNEMONIC_VSCATTERDPD] = op_vsib,
	[ZYDIS_MNEMONIC_VSCATTERQPS] = op_vsib,
	[ZYDIS_MNEMONIC_VSCATTERQPD] = op_vsib,
	[ZYDIS_MNEMONIC_VPSCATTERDD] = op_vsib,
	[ZYDIS_MNEMONIC_VPSCATTERDQ] = op_vsib,
	[ZYDIS_MNEMONIC_VPSCATTERQD] = op_vsib,
	[ZYDIS_MNEMONIC_VPSCATTERQQ] = op_vsib,

	[ZYDIS_MNEMONIC_PREFETCH] = op_nothing,
	[ZYDIS_MNEMONIC_PREFETCHW] = op_nothing,
};

int exec_system(struct soft_cpu *c, const struct insn *i)
{
	int (*handler)(struct soft_cpu *, const struct insn *) = handlers[i->mnemonic];

	return handler ? handler(c, i) : fault_ud(c);
}

/* ---- the CPU model ---- */

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

static u64 allowed_cr4(const struct cpuid_model *m)
{
	static const struct {
		u64 bits;
		u32 leaf;
		u8 reg, bit;
	} row[] = {
		{CR4_TSD, 1, CPUID_EDX, 4},      {CR4_DE, 1, CPUID_EDX, 2},
		{CR4_PSE, 1, CPUID_EDX, 3},      {CR4_PAE, 1, CPUID_EDX, 6},
		{CR4_MCE, 1, CPUID_EDX, 7},      {CR4_PGE, 1, CPUID_EDX, 13},
		{CR4_OSFXSR, 1, CPUID_EDX, 24},  {CR4_OSXMMEXCPT, 1, CPUID_EDX, 25},
		{CR4_PCIDE, 1, CPUID_ECX, 17},   {CR4_OSXSAVE, 1, CPUID_ECX, 26},
		{CR4_FSGSBASE, 7, CPUID_EBX, 0}, {CR4_SMEP, 7, CPUID_EBX, 7},
		{CR4_SMAP, 7, CPUID_EBX, 20},    {CR4_UMIP, 7, CPUID_ECX, 2},
	};
	u64 bits = CR4_PCE;

	for (u32 n = 0; n < ARRAY_SIZE(row); n++)
		if (cpuid_has(m, row[n].leaf, 0, row[n].reg, row[n].bit))
			bits |= row[n].bits;
	return bits;
}

static u64 allowed_efer(const struct cpuid_model *m)
{
	u64 bits = EFER_SCE | EFER_LME | EFER_LMA;

	if (cpuid_has(m, 0x80000001, 0, CPUID_EDX, 20))
		bits |= EFER_NXE;
	if (cpuid_has(m, 0x80000001, 0, CPUID_EDX, 25))
		bits |= EFER_FFXSR;
	if (cpuid_has(m, 0x80000001, 0, CPUID_ECX, 17))
		bits |= EFER_TCE;
	if (cpuid_has(m, 0x80000021, 0, CPUID_EAX, 8))
		bits |= EFER_AUTOIBRS;
	return bits;
}

void system_init(struct soft_cpu *c)
{
	const struct cpuid_model *m = c->vm->cpuid;
	struct interp *in = soft_interp(c);

	in->is_amd = m->is_amd;
	in->has_hypervisor = m->has_hypervisor;
	in->has_rdtscp = cpuid_has(m, 0x80000001, 0, CPUID_EDX, 27);
	in->has_rdpid = cpuid_has(m, 7, 0, CPUID_ECX, 22);
	in->has_invpcid = cpuid_has(m, 7, 0, CPUID_EBX, 10);
	in->has_smap = cpuid_has(m, 7, 0, CPUID_EBX, 20);
	in->has_xsaveopt = cpuid_has(m, 13, 1, CPUID_EAX, 0);
	in->has_xgetbv1 = cpuid_has(m, 13, 1, CPUID_EAX, 2);
	in->cr4_mask = allowed_cr4(m);
	in->efer_mask = allowed_efer(m);
	in->phys_mask = BIT(m->phys_bits) - 1;
	xsave_init(c);
}
