/* What the files of the local APIC share. Nothing here is for other modules. */
#pragma once

#include "device/chip/lapic.h"

#define APIC_BASE_ADDRESS 0x000ffffffffff000ul

#define SVR_ENABLE BIT(8)

/* Local vector table, SDM vol. 3, 11.5.1. */
#define APIC_LVT_MASKED     BIT(16)
#define APIC_LVT_LEVEL      BIT(15)
#define APIC_LVT_REMOTE_IRR BIT(14)
#define APIC_LVT_TIMER_MODE (3u << 17)

enum { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE };

enum delivery_mode {
	MODE_FIXED = 0,
	MODE_LOWEST = 1,
	MODE_SMI = 2,
	MODE_NMI = 4,
	MODE_INIT = 5,
	MODE_SIPI = 6,
	MODE_EXTINT = 7,
};

/* Error status, SDM vol. 3, 11.5.3. */
enum {
	ESR_SEND_ILLEGAL = 1 << 5,
	ESR_RECEIVE_ILLEGAL = 1 << 6,
	ESR_ILLEGAL_REGISTER = 1 << 7,
	FIRST_LEGAL_VECTOR = 16,
};

static inline bool lapic_is_enabled(const struct lapic *l)
{
	return l->base & APIC_BASE_EN;
}

static inline bool lapic_is_x2apic(const struct lapic *l)
{
	return lapic_is_enabled(l) && l->base & APIC_BASE_EXTD;
}

/* Enabled in hardware and by the spurious-interrupt vector register. */
static inline bool lapic_accepts(const struct lapic *l)
{
	return lapic_is_enabled(l) && l->svr & SVR_ENABLE;
}

static inline u32 lapic_timer_mode(const struct lapic *l)
{
	return (l->lvt[LVT_TIMER] & APIC_LVT_TIMER_MODE) >> 17;
}

/* Recompute PPR and the attention flag, which it returns. Call after any change of TPR, ISR, IRR,
 * the enable bits or LINT0. */
bool lapic_refresh(struct lapic *l);

/* Raise the interrupt of local vector @i unless it is masked. */
void lapic_local_interrupt(struct lapic *l, enum lapic_lvt i);

/* Latch an error and raise the error interrupt. */
void lapic_error(struct lapic *l, u32 esr_bit);

/* The interrupt highest in service has ended. */
void lapic_complete(struct lapic *l);

/* MSR_KVM_PV_EOI_EN was written; false: #GP. */
bool lapic_set_pv_eoi(struct lapic *l, u64 value);

/* The interrupt command register was written; @icr in the x2APIC layout. */
void lapic_send_ipi(struct lapic *l, u64 icr);

/* State after INIT: all but the id, the base address and what the set shares. */
void lapic_reset_registers(struct lapic *l);

/* Timer. */
void lapic_timer_init(struct lapic *l);
void lapic_timer_stop(struct lapic *l);
void lapic_timer_set_mode(struct lapic *l, u32 lvt);
void lapic_timer_set_initial(struct lapic *l, u32 count);
void lapic_timer_set_divide(struct lapic *l, u32 divide);
void lapic_timer_set_deadline(struct lapic *l, u64 tsc);
u32 lapic_timer_current(const struct lapic *l);
void lapic_timer_save(struct lapic *l);
void lapic_timer_load(struct lapic *l);
