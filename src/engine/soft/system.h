/*
 * What the files of the interpreter and of the privileged state share.
 *
 * An instruction handler takes the CPU and the decoded instruction and returns an enum soft_status.
 * It may set interp->next_rip (preset to the following instruction) and changes guest registers
 * only once nothing can fail any more: after SOFT_FAULT and SOFT_EXIT the instruction has not
 * happened. Memory may have been written before a failure only where running the instruction again
 * writes the same.
 *
 * Addresses. "Linear" means segment base added, and outside 64-bit mode truncated to 32 bits.
 * Checks of limits, types, canonical form, alignment (#AC) and data breakpoints are made by
 * seg_linear(); what follows works on linear addresses.
 */
#pragma once

#include "engine/soft/decode.h"
#include "engine/soft/soft.h"

enum {
	INTERP_SLOTS = 2048, /* decoded instructions, direct-mapped by address */
	CPUID_SLOTS = 64,
	BOUNCE_MAX = 512, /* largest memory operand of a data instruction, and then some */
};

#define EFER_TCE      BIT(15)
#define EFER_AUTOIBRS BIT(21)

/* Debug registers, SDM vol. 3, 17.2 */
#define DR6_BD    BIT(13)
#define DR6_BS    BIT(14)
#define DR6_BT    BIT(15)
#define DR6_FIXED 0xffff0ff0ul /* bits that read as one */
#define DR7_GD    BIT(13)
#define DR7_FIXED BIT(10)
#define DR7_ANY   0xfful /* L0 G0 .. L3 G3 */

/* A decoded instruction and the bytes it came from; those beyond its length are masked out. */
struct interp_slot {
	u64 key[2], mask[2];
	struct insn insn;
};

struct cpuid_slot {
	u32 leaf, subleaf;
	bool valid;
	u32 out[4];
};

/* Private state of the interpreter; soft_cpu.interp points to it. */
struct interp {
	u64 next_rip; /* where execution goes when the instruction completes */
	u64 given;    /* soft_interpret_given(): its bytes, 0: to be fetched */
	u32 given_len;
	bool no_step;   /* it completes without a single-step trap */
	bool keep_rf;   /* it has loaded RFLAGS.RF */
	bool task_trap; /* a task with the T flag was entered: #DB before its next instruction */
	u32 debug_hits; /* data and I/O breakpoints (DR6.B0-B3) that it has met */
	u32 held_hits;  /* the same, held back by MOV SS until the next instruction is through */
	enum exit_type
		waiting; /* c->exit of this type is being completed for the instruction at rip */
	u64 waiting_rip;
	u64 executed[INSN_MNEMONICS]; /* instructions, for --stats */

	/* Properties of the CPU model, looked up once. */
	bool is_amd; /* where the APM and the SDM differ (SYSCALL, SYSENTER, PUSH) the APM is
			followed */
	bool has_hypervisor;
	bool has_rdtscp, has_rdpid, has_invpcid, has_smap, has_xsaveopt, has_xgetbv1;
	u64 cr4_mask; /* bits the guest may set */
	u64 efer_mask;
	u64 phys_mask;                        /* bits of a physical address */
	u32 mxcsr_mask;                       /* of the host */
	u32 xsave_offset[64], xsave_size[64]; /* standard format, by component; 0 when absent */

	struct cpuid_slot cpuid[CPUID_SLOTS]; /* emptied when CR4 or XCR0 changes */

	_Alignas(64) u8 bounce[64 + BOUNCE_MAX];
	_Alignas(64) u8 xsave[CPU_XSAVE_MAX];
	_Alignas(64) u8 saved_fpu[1024]; /* x87 and SSE image for taking back a store to a device */
	u8 page[PAGE_SIZE];
	struct interp_slot slot[INTERP_SLOTS];
};

static inline struct interp *soft_interp(const struct soft_cpu *c)
{
	return c->interp;
}

/* ---- processor mode ---- */

static inline bool in_protected_mode(const struct soft_cpu *c)
{
	return c->cr0 & CR0_PE;
}

static inline bool in_vm86(const struct soft_cpu *c)
{
	return c->sysflags & RFLAGS_VM;
}

/* Segment registers hold paragraph numbers: real-address or virtual-8086 mode. */
static inline bool in_real_or_vm86(const struct soft_cpu *c)
{
	return !in_protected_mode(c) || in_vm86(c);
}

static inline bool in_long_mode(const struct soft_cpu *c)
{
	return c->efer & EFER_LMA;
}

static inline u32 soft_iopl(const struct soft_cpu *c)
{
	return (u32)(c->sysflags >> 12) & 3;
}

/* Bits of the current code segment: 16, 32 or 64. */
static inline u32 code_bits(const struct soft_cpu *c)
{
	if (soft_is_64bit(c))
		return 64;
	return c->seg[SEG_CS].db ? 32 : 16;
}

/* Faults most handlers raise. */
static inline int fault_gp(struct soft_cpu *c, u32 error)
{
	return soft_fault_code(c, VEC_GP, error);
}

static inline int fault_ud(struct soft_cpu *c)
{
	return soft_fault(c, VEC_UD);
}

static inline int require_cpl0(struct soft_cpu *c)
{
	return c->cpl ? fault_gp(c, 0) : SOFT_OK;
}

/* ---- general registers ---- */

static inline u64 size_mask(u32 size)
{
	return size >= 8 ? ~0ul : (1ul << size * 8) - 1;
}

static inline u64 gpr_get(const struct soft_cpu *c, u32 reg, u32 size)
{
	return c->r[reg] & size_mask(size);
}

/* As hardware does: 8- and 16-bit writes keep the rest, 32-bit writes clear the upper half. */
static inline void gpr_set(struct soft_cpu *c, u32 reg, u32 size, u64 value)
{
	u64 keep = size >= 4 ? 0 : ~size_mask(size);

	c->r[reg] = (c->r[reg] & keep) | (value & size_mask(size));
}

/* ModRM fields with their REX extensions. */
static inline u32 modrm_mod(const struct insn *i)
{
	return i->bytes[i->modrm_off] >> 6;
}

static inline u32 modrm_reg(const struct insn *i)
{
	return (u32)((i->bytes[i->modrm_off] >> 3) & 7) | (i->rex & 4 ? 8 : 0);
}

static inline u32 modrm_rm(const struct insn *i)
{
	return (u32)(i->bytes[i->modrm_off] & 7) | (i->rex & 1 ? 8 : 0);
}

static inline u8 insn_opcode(const struct insn *i)
{
	return i->bytes[i->opcode_off + i->opcode_len - 1];
}

/* ---- access.c: memory by segment and by linear address ---- */

/* Offset of the memory operand within its segment, truncated to the address size. */
u64 insn_offset(const struct soft_cpu *c, const struct insn *i);

/* Check an access of @size bytes at @off of @seg and return its linear address. */
int seg_linear(struct soft_cpu *c, u32 seg, u64 off, u32 size, bool write, gva_t *lin);

/* Linear address without any check (INVLPG, and ranges checked otherwise). */
gva_t seg_linear_unchecked(const struct soft_cpu *c, u32 seg, u64 off);

/* Outside 64-bit mode: bytes from @off upwards that an access may cover, or 0. */
u64 seg_span(const struct soft_cpu *c, u32 seg, u32 off, bool write);

/* Linear address of the memory operand of @i, checked for @size bytes. */
int insn_linear(struct soft_cpu *c, const struct insn *i, u32 size, bool write, gva_t *lin);

/* Data at a linear address with the current privilege; wraps at 4 GiB outside 64-bit mode. */
int guest_read(struct soft_cpu *c, gva_t lin, void *buf, u32 len);
int guest_write(struct soft_cpu *c, gva_t lin, const void *buf, u32 len);
/* Zero-extended value of 1, 2, 4 or 8 bytes. */
int guest_read_value(struct soft_cpu *c, gva_t lin, u32 size, u64 *value);

/* Raise the fault that writing @len bytes would raise. @device: part of them is not RAM. */
int guest_probe_write(struct soft_cpu *c, gva_t lin, u32 len, bool *device);

/* System structures (descriptor tables, TSS): supervisor access whatever the CPL. */
int sys_read(struct soft_cpu *c, gva_t lin, void *buf, u32 len);
int sys_write(struct soft_cpu *c, gva_t lin, const void *buf, u32 len);
int sys_read_value(struct soft_cpu *c, gva_t lin, u32 size, u64 *value);
/* Atomically set bits in one byte. */
int sys_set_bits(struct soft_cpu *c, gva_t lin, u8 bits);

/* Host address of @len readable bytes, when they are in one page and the TLB has it; else NULL. */
u8 *guest_read_pointer(struct soft_cpu *c, gva_t lin, u32 len);

/* Value of a register or memory operand in ModRM.rm, and the way back. */
int operand_read(struct soft_cpu *c, const struct insn *i, u32 size, u64 *value);
/* Registers take @reg_size bytes of @value, memory @mem_size. */
int operand_write(struct soft_cpu *c, const struct insn *i, u32 reg_size, u32 mem_size, u64 value);

/* A stack being pushed to or popped from; the registers follow by stack_commit(). */
struct stack {
	const struct cpu_segment *ss; /* NULL: 64-bit, no segmentation */
	u64 sp;
	u64 mask;   /* bits of rsp in use */
	u32 access; /* ACC_USER or 0 */
	u32 error;  /* error code of #SS */
};

/* The current stack. */
void stack_open(const struct soft_cpu *c, struct stack *st);
int stack_push(struct soft_cpu *c, struct stack *st, u32 size, u64 value);
/* The same, but of the @size bytes only the lower @stored are written. */
int stack_push_low(struct soft_cpu *c, struct stack *st, u32 size, u32 stored, u64 value);
int stack_pop(struct soft_cpu *c, struct stack *st, u32 size, u64 *value);
/* Push @count values of @size bytes, value[0] first (at the highest address). */
int stack_push_all(struct soft_cpu *c, struct stack *st, u32 size, const u64 *value, u32 count);
/* Raise the fault that writing @size bytes at the stack pointer would raise. */
int stack_probe(struct soft_cpu *c, const struct stack *st, u32 size);
/* Give the stack pointer of @st to rsp. */
void stack_commit(struct soft_cpu *c, const struct stack *st);

/* ---- debug registers (control.c) ---- */

/* Note breakpoints on a data access; hits are reported after the instruction. */
void debug_note_data(struct soft_cpu *c, gva_t lin, u32 size, bool write);
void debug_note_port(struct soft_cpu *c, u16 port, u32 size);
/* B0-B3 of the enabled instruction breakpoints at @lin. */
u32 debug_match_code(const struct soft_cpu *c, gva_t lin);

/* ---- segment.c ---- */

/* A descriptor as it lies in its table. */
struct descriptor {
	u64 low, high; /* high: second half of a 16-byte system descriptor in long mode */
	gva_t addr;    /* linear address of low */
};

enum {
	DESC_DATA_WRITE = 1 << 1,
	DESC_CODE_READ = 1 << 1,
	DESC_CONFORMING = 1 << 2,
	DESC_EXPAND_DOWN = 1 << 2,
	DESC_CODE = 1 << 3,
	DESC_ACCESSED = 1 << 0,
};

/* Types of system descriptors, SDM vol. 3, table 3-2 */
enum desc_type {
	DESC_TSS16_AVAIL = 1,
	DESC_LDT = 2,
	DESC_TSS16_BUSY = 3,
	DESC_CALL_GATE16 = 4,
	DESC_TASK_GATE = 5,
	DESC_INTERRUPT_GATE16 = 6,
	DESC_TRAP_GATE16 = 7,
	DESC_TSS_AVAIL = 9,
	DESC_TSS_BUSY = 11,
	DESC_CALL_GATE = 12,
	DESC_INTERRUPT_GATE = 14,
	DESC_TRAP_GATE = 15,
};

static inline u32 desc_type(const struct descriptor *d)
{
	return (d->low >> 40) & 15;
}

static inline bool desc_is_segment(const struct descriptor *d)
{
	return d->low & BIT(44);
}

static inline bool desc_is_code(const struct descriptor *d)
{
	return (d->low >> 43 & 3) == 3;
}

static inline bool desc_is_data(const struct descriptor *d)
{
	return (d->low >> 43 & 3) == 2;
}

static inline u32 desc_dpl(const struct descriptor *d)
{
	return (d->low >> 45) & 3;
}

static inline bool desc_is_present(const struct descriptor *d)
{
	return d->low & BIT(47);
}

static inline bool desc_is_long(const struct descriptor *d)
{
	return d->low & BIT(53);
}

static inline bool desc_is_big(const struct descriptor *d)
{
	return d->low & BIT(54);
}

static inline bool selector_is_null(u16 sel)
{
	return !(sel & 0xfffc);
}

/*
 * Read the descriptor that @sel names. Outside its table: fault @vector with the selector and @ext
 * as error code. @sel is not null.
 */
int desc_read(struct soft_cpu *c, u16 sel, u8 vector, u32 ext, struct descriptor *d);
/* desc_read() without the fault: false when it lies outside its table; *status as for reads. */
bool desc_find(struct soft_cpu *c, u16 sel, struct descriptor *d, int *status);
/* Read the second half of a system descriptor in long mode. */
int desc_read_high(struct soft_cpu *c, u16 sel, u8 vector, u32 ext, struct descriptor *d);
/* Set the accessed bit in memory when it is clear. */
int desc_mark_accessed(struct soft_cpu *c, struct descriptor *d);
void desc_unpack(const struct descriptor *d, u16 sel, struct cpu_segment *s);
/* A null selector, as the segment register then looks like. */
void seg_make_null(u16 sel, struct cpu_segment *s);
/* A segment of real-address or virtual-8086 mode. */
void seg_make_real(struct soft_cpu *c, u32 seg, u16 sel, struct cpu_segment *s);

/* Load a data or stack segment register with all checks (MOV, POP, LDS ...). */
int seg_load(struct soft_cpu *c, u32 seg, u16 sel);
/* The same into *s, with @cpl; errors of type and privilege raise @vector (#GP or #TS). */
int seg_prepare(struct soft_cpu *c, u32 seg, u16 sel, u32 cpl, u8 vector, u32 ext,
		struct cpu_segment *s);
/* SS for an inner or outer stack: RPL and DPL must equal @cpl; #TS or #GP by @vector. */
int seg_prepare_stack(struct soft_cpu *c, u16 sel, u32 cpl, u8 vector, u32 ext,
		      struct cpu_segment *s);

/* After a switch to a less privileged level: data segments it may not hold become null. */
void seg_drop_privileged(struct soft_cpu *c);

int op_mov_segment(struct soft_cpu *c, const struct insn *i);
int op_load_far_pointer(struct soft_cpu *c, const struct insn *i);
int op_push_segment(struct soft_cpu *c, const struct insn *i);
int op_pop_segment(struct soft_cpu *c, const struct insn *i);
int op_lgdt(struct soft_cpu *c, const struct insn *i);
int op_lidt(struct soft_cpu *c, const struct insn *i);
int op_sgdt(struct soft_cpu *c, const struct insn *i);
int op_sidt(struct soft_cpu *c, const struct insn *i);
int op_lldt(struct soft_cpu *c, const struct insn *i);
int op_ltr(struct soft_cpu *c, const struct insn *i);
int op_sldt(struct soft_cpu *c, const struct insn *i);
int op_str(struct soft_cpu *c, const struct insn *i);
int op_lar(struct soft_cpu *c, const struct insn *i);
int op_lsl(struct soft_cpu *c, const struct insn *i);
int op_verr(struct soft_cpu *c, const struct insn *i);
int op_verw(struct soft_cpu *c, const struct insn *i);
int op_arpl(struct soft_cpu *c, const struct insn *i);

/* ---- far.c ---- */

/* 32- or 16-bit TSS: stack pointer and selector for privilege level @cpl. */
int tss_read_stack(struct soft_cpu *c, u32 cpl, u32 ext, u16 *ss, u32 *esp);
/* 64-bit TSS: quadword at @offset. */
int tss_read_quad(struct soft_cpu *c, u32 offset, u32 ext, u64 *value);

int op_far_call(struct soft_cpu *c, const struct insn *i);
int op_far_jmp(struct soft_cpu *c, const struct insn *i);
int op_far_ret(struct soft_cpu *c, const struct insn *i);
int op_iret(struct soft_cpu *c, const struct insn *i);

/* ---- task.c ---- */

enum task_switch { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };

/*
 * Hardware task switch to the TSS @sel. @next_rip is the address saved in the old task. With
 * @has_error the error code is pushed on the new stack. On return the CPU runs the new task.
 * SOFT_FAULT after the commit point is delivered in the new task's context.
 */
int task_switch(struct soft_cpu *c, u16 sel, enum task_switch how, u64 next_rip, u32 ext,
		bool has_error, u32 error);

/* ---- exception.c ---- */

enum event_kind {
	EVENT_FAULT,    /* return address is the instruction; RF is set in the image */
	EVENT_TRAP,     /* exception reported after the instruction, and breakpoints */
	EVENT_SOFTWARE, /* INT n, INT3, INTO: gate DPL checked */
	EVENT_EXTERNAL, /* interrupt, NMI, INT1 */
};

/*
 * Deliver @vector with the return address @rip; faults on the way are delivered in turn, up to #DF
 * and shutdown. EVENT_SOFTWARE: such faults are returned as SOFT_FAULT, since they belong to the
 * instruction.
 */
int event_deliver(struct soft_cpu *c, u8 vector, enum event_kind kind, u64 rip);

int op_int_n(struct soft_cpu *c, const struct insn *i);
int op_int3(struct soft_cpu *c, const struct insn *i);
int op_int1(struct soft_cpu *c, const struct insn *i);
int op_into(struct soft_cpu *c, const struct insn *i);
int op_bound(struct soft_cpu *c, const struct insn *i);
int op_ud(struct soft_cpu *c, const struct insn *i);

/* ---- control.c ---- */

/* Page-directory-pointer entries of PAE paging must be valid when CR3 is loaded; else #GP(0). */
int control_set_efer(struct soft_cpu *c, u64 value);
int op_mov_control(struct soft_cpu *c, const struct insn *i);
int op_mov_debug(struct soft_cpu *c, const struct insn *i);
int op_lmsw(struct soft_cpu *c, const struct insn *i);
int op_smsw(struct soft_cpu *c, const struct insn *i);
int op_clts(struct soft_cpu *c, const struct insn *i);
int op_invlpg(struct soft_cpu *c, const struct insn *i);
int op_invpcid(struct soft_cpu *c, const struct insn *i);
int op_xsetbv(struct soft_cpu *c, const struct insn *i);
int op_xgetbv(struct soft_cpu *c, const struct insn *i);

/* ---- msrs.c ---- */
int op_rdmsr(struct soft_cpu *c, const struct insn *i);
int op_wrmsr(struct soft_cpu *c, const struct insn *i);

/* ---- syscall.c ---- */
int op_syscall(struct soft_cpu *c, const struct insn *i);
int op_sysret(struct soft_cpu *c, const struct insn *i);
int op_sysenter(struct soft_cpu *c, const struct insn *i);
int op_sysexit(struct soft_cpu *c, const struct insn *i);
int op_swapgs(struct soft_cpu *c, const struct insn *i);
int op_rdfsbase(struct soft_cpu *c, const struct insn *i);
int op_rdgsbase(struct soft_cpu *c, const struct insn *i);
int op_wrfsbase(struct soft_cpu *c, const struct insn *i);
int op_wrgsbase(struct soft_cpu *c, const struct insn *i);

/* ---- io.c ---- */

/* #GP(0) unless IOPL or the TSS's I/O permission bitmap allows the access. */
int io_check(struct soft_cpu *c, u16 port, u32 size);
int op_in(struct soft_cpu *c, const struct insn *i);
int op_out(struct soft_cpu *c, const struct insn *i);
int op_ins(struct soft_cpu *c, const struct insn *i);
int op_outs(struct soft_cpu *c, const struct insn *i);

/* ---- string.c ---- */

/* The prefix that decides about repetition: 0xf3, 0xf2 or 0. */
u8 insn_rep_prefix(const struct insn *i);
/* The segment override among the prefixes, or @seg. */
u32 insn_override(const struct insn *i, u32 seg);
int exec_string(struct soft_cpu *c, const struct insn *i);
/* One repetition of a string instruction is done: count it, and stay while some are left. */
void string_step(struct soft_cpu *c, const struct insn *i, bool more);

/* ---- branch.c ---- */
int exec_branch(struct soft_cpu *c, const struct insn *i);
int exec_push(struct soft_cpu *c, const struct insn *i);
int exec_pop(struct soft_cpu *c, const struct insn *i);
/* True when condition code @cond (low nibble of Jcc) holds in @flags. */
bool condition_holds(u64 flags, u32 cond);
/* #GP(0) unless execution may continue at @rip. */
int branch_check(struct soft_cpu *c, u64 rip);
int op_pusha(struct soft_cpu *c, const struct insn *i);
int op_popa(struct soft_cpu *c, const struct insn *i);
int op_enter(struct soft_cpu *c, const struct insn *i);
int op_leave(struct soft_cpu *c, const struct insn *i);

/* ---- data.c: instructions that run natively on their operands ---- */
/*
 * True when the world stands still. Else the instruction at hand, of which nothing has happened
 * yet, shall return SOFT_OK: it is run again in that state.
 */
bool data_alone(struct soft_cpu *c);
int exec_data(struct soft_cpu *c, const struct insn *i);
/* #UD or #NM unless the x87, SSE, AVX or AVX-512 state that @i needs is enabled. */
int data_check_usable(struct soft_cpu *c, const struct insn *i);
/* x87 or SSE state as such, for FXSAVE and its like. */
int data_check_fpu(struct soft_cpu *c);

/* ---- vector.c: masked and indexed memory operands ---- */
int exec_masked(struct soft_cpu *c, const struct insn *i);
int op_vsib(struct soft_cpu *c, const struct insn *i);
int op_maskmov(struct soft_cpu *c, const struct insn *i);

/* ---- xsave.c ---- */
int op_xsave(struct soft_cpu *c, const struct insn *i);
int op_xrstor(struct soft_cpu *c, const struct insn *i);
int op_fxsave(struct soft_cpu *c, const struct insn *i);
int op_fxrstor(struct soft_cpu *c, const struct insn *i);
void xsave_init(struct soft_cpu *c);

/* dispatch.S: XRSTOR of guest memory. False when it faulted, which it does from soft_xrstor_at to
 * soft_xrstor_failed, where fault.c goes on then. */
bool soft_try_xrstor(const void *image, u32 low, u32 high, bool wide);
extern const u8 soft_xrstor_at[], soft_xrstor_failed[];

/* ---- bits.c: bit strings, XLAT, decimal adjustment ---- */
int op_bit_test(struct soft_cpu *c, const struct insn *i);
int op_xlat(struct soft_cpu *c, const struct insn *i);
int op_aaa(struct soft_cpu *c, const struct insn *i);
int op_aas(struct soft_cpu *c, const struct insn *i);
int op_aam(struct soft_cpu *c, const struct insn *i);
int op_aad(struct soft_cpu *c, const struct insn *i);
int op_daa(struct soft_cpu *c, const struct insn *i);
int op_das(struct soft_cpu *c, const struct insn *i);
int op_salc(struct soft_cpu *c, const struct insn *i);

/* ---- system.c ---- */

/* Instructions of class INSN_SYSTEM, by mnemonic. */
int exec_system(struct soft_cpu *c, const struct insn *i);
/* Look up what the CPU model offers. Calls out: vector state parked. */
void system_init(struct soft_cpu *c);
