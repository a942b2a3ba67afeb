/*
 * Control, debug and extended control registers, and what follows from them: the processor mode
 * (SDM vol. 3, 2.5, 9.8, 9.9 and 17.2).
 *
 * Every change ends in soft_update_mode(), which condenses privileged state into c->mode, the key
 * of translations. Changes that alter how linear addresses are translated flush the TLB.
 */
#include "engine/soft/kernel_window.h"
#include "engine/soft/system.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"

#define CR0_VALID                                                                                  \
	(CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | \
	 CR0_PG)
/* Bits whose change makes cached translations wrong. */
#define CR0_PAGING (CR0_PG | CR0_PE | CR0_WP)
#define CR4_PAGING (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP)

/* ---- c->mode ---- */

static bool is_flat(const struct cpu_segment *s)
{
	return !s->base && s->limit == 0xffffffff && !s->unusable;
}

static bool is_flat_data(const struct cpu_segment *s)
{
	return is_flat(s) &&
	       (s->type & (DESC_CODE | DESC_EXPAND_DOWN | DESC_DATA_WRITE)) == DESC_DATA_WRITE;
}

/* 32-bit code that can be translated as if there were no segmentation. */
static bool is_flat_32bit(const struct soft_cpu *c)
{
	const struct cpu_segment *cs = &c->seg[SEG_CS];

	return in_protected_mode(c) && !in_vm86(c) && cs->db && is_flat(cs) &&
	       (cs->type & DESC_CODE_READ) && c->seg[SEG_SS].db && is_flat_data(&c->seg[SEG_SS]) &&
	       is_flat_data(&c->seg[SEG_DS]) && is_flat_data(&c->seg[SEG_ES]);
}

static u32 vector_mode(const struct soft_cpu *c)
{
	u32 mode = MODE_X87;

	if (c->cr0 & (CR0_EM | CR0_TS))
		return 0;
	if (!(c->cr4 & CR4_OSFXSR))
		return mode;
	mode |= MODE_SSE;
	if (!(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
		return mode;
	mode |= MODE_AVX;
	return (c->xcr0 & XCR0_AVX512) == XCR0_AVX512 ? mode | MODE_AVX512 : mode;
}

/* Something is to be observed at each instruction or access: single step, breakpoints, #AC. */
static bool is_observed(const struct soft_cpu *c)
{
	return (c->sysflags & RFLAGS_TF) || (c->dr7 & DR7_ANY) || soft_interp(c)->task_trap ||
	       ((c->sysflags & RFLAGS_AC) && (c->cr0 & CR0_AM) && c->cpl == 3);
}

/* Translated code knows CPL 0 and CPL 3, and its RDTSC does not look at CR4.TSD. */
static bool is_unusual_privilege(const struct soft_cpu *c)
{
	return c->cpl == 1 || c->cpl == 2 || (c->cpl == 3 && (c->cr4 & CR4_TSD));
}

/*
 * May dispatch.S do a SYSCALL or SYSRET that leads to the present mode, and so to table @h? What
 * the answer depends on changes in the kernel only, by instructions that come here again or (tlb.c,
 * window.c) take it back.
 */
static bool may_call(const struct soft_cpu *c, const struct soft_half *h)
{
	const struct soft_options *o = &c->vm->options;

	return (c->mode & (MODE_BITS | MODE_INTERPRET | MODE_DIRECT)) == MODE_BITS_64 &&
	       h->ibt_mode == c->mode && c->efer & EFER_SCE && c->call_seg[0][0].present &&
	       o->direct_heat && o->window_heat;
}

/* Does the user code of the present address space stay in the mode it is in? A box that it could
 * run in does not: there is code which it does not take, page by page. */
static bool stays_in_mode(const struct soft_cpu *c)
{
	const struct soft_window *w = c->ctx->window;

	return !w || !w->box || w->recess;
}

static void note_calls(struct soft_cpu *c)
{
	const u32 state = (u32)((c->efer & EFER_SCE) | (c->cr4 & CR4_TSD));

	soft_forget_calls(c, c->ctx);
	/* What other contexts know of it holds while these are the same; the rest is in the mode.
	 */
	c->call_state = state;
	if (!(c->efer & EFER_SCE))
		c->kernel_mode = 0;
	if (!c->cpl) {
		c->kernel_mode = may_call(c, &c->super) ? c->mode : 0;
	} else if (c->ctx && stays_in_mode(c) && may_call(c, &c->ctx->user)) {
		c->user_mode = c->ctx->call_mode = c->mode;
		c->ctx->call_state = state;
	}
}

void soft_update_mode(struct soft_cpu *c)
{
	u32 mode = vector_mode(c);

	if (soft_is_64bit(c))
		mode |= MODE_BITS_64;
	else if (is_flat_32bit(c))
		mode |= MODE_BITS_32;
	else
		mode |= (c->seg[SEG_CS].db ? MODE_BITS_32 : MODE_BITS_16) | MODE_INTERPRET;
	if (c->cpl == 3)
		mode |= MODE_USER;
	if (is_observed(c) || is_unusual_privilege(c))
		mode |= MODE_INTERPRET;
	c->mode = mode;
	if (c->cpl == 3 && c->ctx && c->ctx->user.code_stale)
		soft_ibt_validate(c);
	c->mode |= c->cpl ? window_mode(c) : kernel_window_mode(c);
	note_calls(c);
	c->no_fsgsbase = !(c->cr4 & CR4_FSGSBASE);
}

/* ---- control registers ---- */

static void forget_cpuid(struct soft_cpu *c)
{
	for (u32 n = 0; n < CPUID_SLOTS; n++)
		soft_interp(c)->cpuid[n].valid = false;
}

/* PAE paging: loading CR3 or the paging mode checks the four PDPTEs (SDM vol. 3, 4.4.1). */
static int check_pdptes(struct soft_cpu *c, u64 cr0, u64 cr3, u64 cr4)
{
	u64 reserved = ~soft_interp(c)->phys_mask | 0x1e6, pdpte[4];

	if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (c->efer & EFER_LME))
		return SOFT_OK;
	soft_fpu_park(c);
	if (mem_read(c->vm->physmap, cr3 & 0xffffffe0, pdpte, sizeof(pdpte)))
		return SOFT_OK; /* not RAM: the walk will see it */
	for (u32 n = 0; n < ARRAY_SIZE(pdpte); n++)
		if ((pdpte[n] & PTE_P) && (pdpte[n] & reserved))
			return fault_gp(c, 0);
	return SOFT_OK;
}

static int check_cr0_paging(struct soft_cpu *c, u64 value)
{
	bool on = (value & ~c->cr0) & CR0_PG, off = (c->cr0 & ~value) & CR0_PG;

	if (on && (c->efer & EFER_LME) && (!(c->cr4 & CR4_PAE) || c->seg[SEG_CS].l))
		return fault_gp(c, 0);
	if (off && (soft_is_64bit(c) || (c->cr4 & CR4_PCIDE)))
		return fault_gp(c, 0);
	return on ? check_pdptes(c, value, c->cr3, c->cr4) : SOFT_OK;
}

static int write_cr0(struct soft_cpu *c, u64 value)
{
	u64 old = c->cr0;
	int r;

	if (value >> 32)
		return fault_gp(c, 0);
	value = (value & CR0_VALID) | CR0_ET;
	if ((value & CR0_PG) && !(value & CR0_PE))
		return fault_gp(c, 0);
	if ((value & CR0_NW) && !(value & CR0_CD))
		return fault_gp(c, 0);
	r = check_cr0_paging(c, value);
	if (r != SOFT_OK)
		return r;
	c->cr0 = value;
	c->efer &= ~EFER_LMA;
	if ((value & CR0_PG) && (c->efer & EFER_LME))
		c->efer |= EFER_LMA;
	if ((old ^ value) & CR0_PAGING)
		soft_tlb_flush_all(c);
	soft_update_mode(c);
	return SOFT_OK;
}

static int write_cr3(struct soft_cpu *c, u64 value)
{
	bool flush = true;
	int r;

	if (c->cr4 & CR4_PCIDE) {
		flush = !(value & CR3_NOFLUSH);
		value &= ~CR3_NOFLUSH;
	}
	if (value & ~soft_interp(c)->phys_mask)
		return fault_gp(c, 0);
	r = check_pdptes(c, c->cr0, value, c->cr4);
	if (r == SOFT_OK)
		soft_load_cr3(c, value, flush);
	return r;
}

static int write_cr4(struct soft_cpu *c, u64 value)
{
	u64 changed = value ^ c->cr4, set = value & ~c->cr4;
	int r = SOFT_OK;

	if (value & ~soft_interp(c)->cr4_mask)
		return fault_gp(c, 0);
	if (in_long_mode(c) && !(value & CR4_PAE))
		return fault_gp(c, 0);
	if ((set & CR4_PCIDE) && (!in_long_mode(c) || (c->cr3 & CR3_PCID)))
		return fault_gp(c, 0);
	if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP))
		r = check_pdptes(c, c->cr0, c->cr3, value);
	if (r != SOFT_OK)
		return r;
	c->cr4 = value;
	forget_cpuid(c);
	if (changed & CR4_PAGING)
		soft_tlb_flush_all(c);
	soft_update_mode(c);
	return SOFT_OK;
}

/* A lower priority may let an interrupt in: have the machine look, which owns the local APIC. */
static int write_cr8(struct soft_cpu *c, u64 value)
{
	if (value > 15)
		return fault_gp(c, 0);
	if (value < c->cr8)
		atomic_fetch_or(&c->exit_req, REQ_KICK);
	c->cr8 = value;
	return SOFT_OK;
}

static int write_control(struct soft_cpu *c, u32 n, u64 value)
{
	switch (n) {
	case 0: return write_cr0(c, value);
	case 3: return write_cr3(c, value);
	case 4: return write_cr4(c, value);
	case 8: return write_cr8(c, value);
	default: c->cr2 = value; return SOFT_OK;
	}
}

/* MOV to (0f-22) and from (0f-20) CR0 CR2 CR3 CR4 CR8. */
int op_mov_control(struct soft_cpu *c, const struct insn *i)
{
	const u64 value[] = {[0] = c->cr0, [2] = c->cr2, [3] = c->cr3, [4] = c->cr4, [8] = c->cr8};
	u32 n = modrm_reg(i), size = soft_is_64bit(c) ? 8 : 4;
	int r;

	if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
		return fault_ud(c);
	r = require_cpl0(c);
	if (r != SOFT_OK)
		return r;
	if (insn_opcode(i) == 0x22)
		return write_control(c, n, gpr_get(c, modrm_rm(i), size));
	gpr_set(c, modrm_rm(i), size, value[n]);
	return SOFT_OK;
}

int op_clts(struct soft_cpu *c, const struct insn *i)
{
	int r = require_cpl0(c);

	(void)i;
	if (r == SOFT_OK) {
		c->cr0 &= ~CR0_TS;
		soft_update_mode(c);
	}
	return r;
}

/* LMSW reaches the low four bits of CR0 and cannot clear PE. */
int op_lmsw(struct soft_cpu *c, const struct insn *i)
{
	u64 value;
	int r = require_cpl0(c);

	if (r == SOFT_OK)
		r = operand_read(c, i, 2, &value);
	if (r != SOFT_OK)
		return r;
	return write_cr0(c, (c->cr0 & ~(CR0_MP | CR0_EM | CR0_TS)) | (value & 0xf));
}

int control_set_efer(struct soft_cpu *c, u64 value)
{
	u64 changed = value ^ c->efer;

	if (value & ~soft_interp(c)->efer_mask)
		return fault_gp(c, 0);
	if ((changed & EFER_LME) && (c->cr0 & CR0_PG))
		return fault_gp(c, 0);
	c->efer = (value & ~EFER_LMA) | (c->efer & EFER_LMA);
	if (changed & EFER_NXE)
		soft_tlb_flush_all(c);
	soft_update_mode(c);
	return SOFT_OK;
}

int op_invlpg(struct soft_cpu *c, const struct insn *i)
{
	int r = require_cpl0(c);

	if (r == SOFT_OK && modrm_mod(i) == 3)
		r = fault_ud(c);
	if (r == SOFT_OK)
		soft_tlb_flush_page(c, seg_linear_unchecked(c, i->seg, insn_offset(c, i)));
	return r;
}

/* SDM vol. 2, INVPCID */
int op_invpcid(struct soft_cpu *c, const struct insn *i)
{
	u64 type, desc[2];
	gva_t lin;
	int r;

	if (!soft_interp(c)->has_invpcid || in_vm86(c))
		return fault_ud(c);
	r = require_cpl0(c);
	if (r == SOFT_OK)
		r = insn_linear(c, i, sizeof(desc), false, &lin);
	if (r == SOFT_OK)
		r = guest_read(c, lin, desc, sizeof(desc));
	if (r != SOFT_OK)
		return r;
	type = gpr_get(c, modrm_reg(i), soft_is_64bit(c) ? 8 : 4);
	if (type > 3 || (desc[0] >> 12))
		return fault_gp(c, 0);
	if (type < 2 && desc[0] && !(c->cr4 & CR4_PCIDE))
		return fault_gp(c, 0);
	if (type == 0 && !soft_canonical(desc[1]))
		return fault_gp(c, 0);
	soft_invpcid(c, type, desc[0], desc[1]);
	return SOFT_OK;
}

/* ---- XCR0 ---- */

static bool xcr0_is_valid(const struct soft_cpu *c, u64 value)
{
	u64 avx512 = value & XCR0_AVX512;

	if ((value & ~c->vm->cpuid->xcr0) || !(value & XCR0_X87))
		return false;
	if ((value & XCR0_AVX) && !(value & XCR0_SSE))
		return false;
	return !avx512 || (avx512 == XCR0_AVX512 && (value & XCR0_AVX));
}

int op_xsetbv(struct soft_cpu *c, const struct insn *i)
{
	u64 value = (u32)c->r[RAX] | c->r[RDX] << 32;
	int r;

	(void)i;
	if (!(c->cr4 & CR4_OSXSAVE))
		return fault_ud(c);
	r = require_cpl0(c);
	if (r != SOFT_OK)
		return r;
	if ((u32)c->r[RCX] || !xcr0_is_valid(c, value))
		return fault_gp(c, 0);
	c->xcr0 = value;
	forget_cpuid(c);
	soft_update_mode(c);
	return SOFT_OK;
}

/* XINUSE as the host sees it: the guest's state is the host's. */
static u64 components_in_use(struct soft_cpu *c)
{
	u32 low, high;

	soft_fpu_live(c);
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
	return low | (u64)high << 32;
}

int op_xgetbv(struct soft_cpu *c, const struct insn *i)
{
	u32 index = (u32)c->r[RCX];
	u64 value = c->xcr0;

	(void)i;
	if (!(c->cr4 & CR4_OSXSAVE))
		return fault_ud(c);
	if (index > 1 || (index == 1 && !soft_interp(c)->has_xgetbv1))
		return fault_gp(c, 0);
	if (index == 1)
		value &= components_in_use(c);
	gpr_set(c, RAX, 4, value);
	gpr_set(c, RDX, 4, value >> 32);
	return SOFT_OK;
}

/* ---- debug registers ---- */

static u64 read_debug(const struct soft_cpu *c, u32 n)
{
	return n < 4 ? c->dr[n] : n == 6 ? c->dr6 : c->dr7;
}

static int write_debug(struct soft_cpu *c, u32 n, u64 value)
{
	if (n < 4) {
		c->dr[n] = value;
		return SOFT_OK;
	}
	if (value >> 32)
		return fault_gp(c, 0);
	if (n == 6)
		c->dr6 = (value & (DR6_BD | DR6_BS | DR6_BT | 0xf)) | DR6_FIXED;
	else
		c->dr7 = (value & 0xffff23ff) | DR7_FIXED;
	soft_update_mode(c);
	return SOFT_OK;
}

/* MOV to (0f-23) and from (0f-21) DR0-DR7; DR4 and DR5 are DR6 and DR7 unless CR4.DE. */
int op_mov_debug(struct soft_cpu *c, const struct insn *i)
{
	u32 n = modrm_reg(i), size = soft_is_64bit(c) ? 8 : 4;
	int r;

	if (n > 7 || ((n == 4 || n == 5) && (c->cr4 & CR4_DE)))
		return fault_ud(c);
	r = require_cpl0(c);
	if (r != SOFT_OK)
		return r;
	if (c->dr7 & DR7_GD) {
		c->dr6 |= DR6_BD;
		return soft_fault(c, VEC_DB);
	}
	if (n == 4 || n == 5)
		n += 2;
	if (insn_opcode(i) == 0x23)
		return write_debug(c, n, gpr_get(c, modrm_rm(i), size));
	gpr_set(c, modrm_rm(i), size, read_debug(c, n));
	return SOFT_OK;
}

enum breakpoint_type { BREAK_EXECUTE, BREAK_WRITE, BREAK_IO, BREAK_ACCESS };

/* DR6.B0-B3 of the enabled breakpoints whose types are in @types and that overlap the range. */
static u32 debug_match(const struct soft_cpu *c, u64 addr, u32 size, u32 types)
{
	static const u8 bytes[] = {1, 2, 8, 4}; /* by the LEN field, SDM vol. 3, 17.2.4 */
	u32 hits = 0;

	for (u32 n = 0; n < 4; n++) {
		u32 control = (c->dr7 >> (16 + 4 * n)) & 15;
		u64 len = bytes[control >> 2], start = c->dr[n] & ~(len - 1);

		if (!(c->dr7 >> (2 * n) & 3) || !(types >> (control & 3) & 1))
			continue;
		if (addr - start < len || start - addr < size)
			hits |= 1u << n;
	}
	return hits;
}

void debug_note_data(struct soft_cpu *c, gva_t lin, u32 size, bool write)
{
	u32 types = 1u << BREAK_ACCESS | (write ? 1u << BREAK_WRITE : 0);

	if (c->dr7 & DR7_ANY)
		soft_interp(c)->debug_hits |= debug_match(c, lin, size, types);
}

void debug_note_port(struct soft_cpu *c, u16 port, u32 size)
{
	if ((c->dr7 & DR7_ANY) && (c->cr4 & CR4_DE))
		soft_interp(c)->debug_hits |= debug_match(c, port, size, 1u << BREAK_IO);
}

u32 debug_match_code(const struct soft_cpu *c, gva_t lin)
{
	return c->dr7 & DR7_ANY ? debug_match(c, lin, 1, 1u << BREAK_EXECUTE) : 0;
}
