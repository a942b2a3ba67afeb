/*
 * The model-specific registers of a virtual CPU: one table, shared by engines.
 *
 * Each row of the table in msr.c gives an index (or a run of them), what reading returns and what
 * writing accepts; whatever has no row raises #GP(0), as on hardware. Registers that hold state
 * keep it in struct cpu_msrs, so a snapshot of that struct is a snapshot of them all.
 *
 * Not here: EFER, FS_BASE and GS_BASE are control and segment state, which the engine handles
 * before it asks; APIC_BASE, TSC_DEADLINE and the x2APIC range are devices of the machine
 * (MSR_MACHINE).
 *
 * Compiled without vector instructions and free of library calls, so that an engine may call it
 * while guest vector state is in the host registers. The callbacks in struct msr_env need not be:
 * they run only for the paravirtual clock.
 */
#pragma once

#include "cpu/cpuid.h"
#include "cpu/state.h"

enum msr_result {
	MSR_OK,
	MSR_GP,      /* raise #GP(0) */
	MSR_MACHINE, /* EXIT_RDMSR or EXIT_WRMSR */
};

/* What the registers of one vCPU act on. The engine fills it in per call. */
struct msr_env {
	struct cpu_msrs *msr;
	const struct cpuid_model *cpuid;
	u64 tsc;       /* guest TSC at this moment */
	s64 tsc_delta; /* out: how far a write moved the guest TSC; add it to the TSC offset */

	/* Paravirtual clock: store to guest RAM (0 or -errno), and CLOCK_REALTIME in nanoseconds.
	 */
	int (*store)(void *opaque, gpa_t gpa, const void *buf, u64 len);
	u64 (*realtime_ns)(void *opaque);
	void *opaque;
};

/* RDMSR: *value is set with MSR_OK only. */
enum msr_result msr_read(struct msr_env *env, u32 index, u64 *value);

/* WRMSR: nothing has changed unless MSR_OK is returned. */
enum msr_result msr_write(struct msr_env *env, u32 index, u64 value);

/* True when register @index belongs to a device of the machine. */
bool msr_is_machine(u32 index);

/* Power-up values (SDM vol. 3, table 9-1); TSC is 0. */
void msr_reset(struct cpu_msrs *m);

/* Could these values have been written by a guest of this model? For state that comes from outside.
 */
bool msr_state_is_valid(const struct cpu_msrs *m, const struct cpuid_model *cpuid);

/*
 * What firmware leaves behind in the MTRRs: everything write-back, except the legacy video window
 * and [hole, 4 GiB), where devices are. @hole is a multiple of 64 KiB. For guests that start
 * without firmware.
 */
void msr_set_firmware_mtrrs(struct cpu_msrs *m, const struct cpuid_model *cpuid, gpa_t hole);

/* Index of the @n-th register in the table, for tests and listings; false past the end. */
bool msr_index(u32 n, u32 *index);
