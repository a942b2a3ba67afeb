/*
 * Architectural state of one virtual CPU, in the parts in which engines exchange it.
 *
 * These are plain versionless types: what a snapshot stores, what state_get and state_set move,
 * what tests compare. They hold no engine detail.
 */
#pragma once

#include "cpu/x86.h"

struct cpu_gpr {
	u64 r[GPR_COUNT];
	u64 rip;
	u64 rflags;
};

/* A segment register with its hidden part, attributes as in VMX (SDM vol. 3, 24.4.1). */
struct cpu_segment {
	u16 selector;
	u32 limit; /* in bytes, granularity applied */
	u64 base;
	u8 type; /* bits 3:0 of the access byte */
	u8 s;    /* 1 code or data, 0 system */
	u8 dpl;
	u8 present;
	u8 avl;
	u8 l;
	u8 db;
	u8 g;
	u8 unusable; /* null selector loaded */
};

struct cpu_table {
	u64 base;
	u16 limit;
};

struct cpu_segs {
	struct cpu_segment seg[SEG_COUNT];
	struct cpu_table gdtr, idtr;
};

struct cpu_cr {
	u64 cr0, cr2, cr3, cr4, cr8;
	u64 xcr0;
	u64 efer;
};

struct cpu_dr {
	u64 dr[4];
	u64 dr6, dr7;
};

/* XSAVE image in the standard (non-compacted) format, SDM vol. 1, 13.4. */
enum { CPU_XSAVE_MAX = 4096 };

struct cpu_fpu {
	u32 size; /* bytes used of area */
	_Alignas(64) u8 area[CPU_XSAVE_MAX];
};

/* The MSRs that belong to the CPU itself; those of the local APIC live in that device. */
struct cpu_msrs {
	/*
	 * The guest's TSC was @tsc when the host's was @tsc_host. state_get() fills in both, so a
	 * state that is set later, or elsewhere on this host, is exactly as much older. Setting:
	 * @tsc_host 0 means now.
	 */
	u64 tsc, tsc_host;
	u64 tsc_adjust, tsc_aux;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 star, lstar, cstar, sfmask;
	u64 kernel_gs_base;
	u64 pat, misc_enable;
	u64 mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
	u64 spec_ctrl, virt_spec_ctrl, mcg_status, debugctl;
	/* Paravirtual clock: the registers as written, and the guest TSC at which its time is 0. */
	u64 kvm_wall_clock, kvm_system_time, kvm_clock_base;
	u64 kvm_steal_time; /* where the guest's record is; machine/paravirt.c */
};

/* What is in flight between instructions. */
struct cpu_intr {
	bool pending; /* an exception or interrupt still to be delivered */
	u8 vector;
	bool is_exception;
	bool has_error;
	u32 error;
	bool nmi_pending;
	bool nmi_blocked; /* between NMI delivery and IRET */
	bool shadow_sti;  /* one-instruction interrupt shadow */
	bool shadow_mov_ss;
};

/* Local APIC registers by number, MMIO offset / 16 (SDM vol. 3, table 11-1). */
enum apic_reg {
	APIC_ID = 0x02,
	APIC_TPR = 0x08,
	APIC_LDR = 0x0d,
	APIC_DFR = 0x0e,
	APIC_SVR = 0x0f,
	APIC_LVT_TIMER = 0x32,
	APIC_LVT_LINT0 = 0x35,
	APIC_LVT_ERROR = 0x37,
	APIC_REGS = 0x40,
};

/*
 * The local APIC, and what only it knows: of engines that have it (struct engine_chips). Where CR8
 * is set with it, the task priority is CR8's.
 */
struct cpu_apic {
	u64 base; /* IA32_APIC_BASE; bit 8, the bootstrap processor, is the machine's to set */
	u64 tsc_deadline;
	u64 pv_eoi;          /* MSR_KVM_PV_EOI_EN */
	u32 reg[APIC_REGS];  /* APIC_ID is the vCPU's number whatever is here */
	bool waits_for_sipi; /* not started, or after INIT */
	bool halted;         /* HLT without an interrupt yet */
};

enum cpu_part {
	CPU_PART_GPR = 1 << 0,
	CPU_PART_SEG = 1 << 1,
	CPU_PART_CR = 1 << 2,
	CPU_PART_DR = 1 << 3,
	CPU_PART_MSR = 1 << 4,
	CPU_PART_FPU = 1 << 5,
	CPU_PART_INTR = 1 << 6,
	CPU_PART_APIC = 1 << 7,
	CPU_PART_ALL = (1 << 8) - 1,

	/* What the others hold as well, for who needs no more of it: cr.cr8; msr.tsc and tsc_host.
	 */
	CPU_PART_CR8 = 1 << 8,
	CPU_PART_TSC = 1 << 9,
};

struct cpu_state {
	struct cpu_gpr gpr;
	struct cpu_segs segs;
	struct cpu_cr cr;
	struct cpu_dr dr;
	struct cpu_msrs msr;
	struct cpu_fpu fpu;
	struct cpu_intr intr;
	struct cpu_apic apic;
};

/* What to add to the host's TSC to get the guest's. */
static inline u64 cpu_tsc_offset(const struct cpu_msrs *m)
{
	return m->tsc - (m->tsc_host ? m->tsc_host : __builtin_ia32_rdtsc());
}

/* Power-up state, SDM vol. 3, table 9-1: real mode, CS:RIP f000:fff0 with base 0xffff0000. */
void cpu_state_reset(struct cpu_state *s);
