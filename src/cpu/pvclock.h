/*
 * The paravirtual clock of the KVM hypervisor interface: time as a linear function of the TSC, in
 * pages that the guest names by MSR (Linux, Documentation/virt/kvm/x86/msr.rst).
 *
 * Our guest TSC runs at a constant rate, so a page is written when the guest registers it and again
 * only when the guest moves its TSC; PVCLOCK_TSC_STABLE_BIT says that all vCPUs' pages agree. Time
 * starts at guest TSC kvm_clock_base, which moves along with the TSC so that time does not jump.
 */
#pragma once

#include "cpu/msr.h"

/* Bit 0 of MSR_KVM_SYSTEM_TIME_NEW: the page is in use. */
#define PVCLOCK_ENABLE BIT(0)

/* ns = ((shift < 0 ? ticks >> -shift : ticks << shift) * mul) >> 32 */
struct pvclock_scale {
	u32 mul;
	s8 shift;
};

struct pvclock_scale pvclock_scale(u64 tsc_hz);

/* Nanoseconds of @ticks by the guest's own formula. */
u64 pvclock_ns(struct pvclock_scale scale, u64 ticks);

/* Store the wall clock time at which the clock was 0 to the page of MSR_KVM_WALL_CLOCK_NEW. */
void pvclock_write_wall(const struct msr_env *env);

/* Store the time page of this vCPU, if it is in use. */
void pvclock_write_time(const struct msr_env *env);
