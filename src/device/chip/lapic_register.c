/*
 * Theory of operation
 *
 * Both ways in use one register number: the MMIO offset divided by 16, which is the MSR index minus
 * 0x800 (SDM vol. 3, table 11-6). read_register() and write_register() answer false for what does
 * not exist or must not be written that way; xAPIC turns that into an error status, x2APIC into
 * #GP.
 */
#include "cpu/x86.h"
#include "device/chip/lapic_internal.h"

enum {
	REG_ID = 0x02,
	REG_VERSION = 0x03,
	REG_TPR = 0x08,
	REG_APR = 0x09,
	REG_PPR = 0x0a,
	REG_EOI = 0x0b,
	REG_RRD = 0x0c,
	REG_LDR = 0x0d,
	REG_DFR = 0x0e,
	REG_SVR = 0x0f,
	REG_ISR = 0x10,
	REG_TMR = 0x18,
	REG_IRR = 0x20,
	REG_ESR = 0x28,
	REG_ICR_LOW = 0x30,
	REG_ICR_HIGH = 0x31,
	REG_LVT = 0x32,
	REG_TIMER_INITIAL = 0x38,
	REG_TIMER_CURRENT = 0x39,
	REG_TIMER_DIVIDE = 0x3e,
	REG_SELF_IPI = 0x3f,

	TPR_WRITABLE = 0xff,
	SVR_WRITABLE = 0x3ff,
	DIVIDE_WRITABLE = 0xb,
	ICR_WRITABLE = 0x000ccfff,
	DFR_ONES = 0x0fffffff,
	LVT_READ_ONLY = 1 << 14 | 1 << 12,
};

/* Writable bits, SDM vol. 3, figure 11-8. */
static const u32 lvt_writable[LVT_COUNT] = {
	[LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
	[LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static bool read_array(const struct lapic *l, u32 reg, u32 *value)
{
	if (reg >= REG_ISR && reg < REG_ISR + 8)
		*value = l->isr[reg - REG_ISR];
	else if (reg >= REG_TMR && reg < REG_TMR + 8)
		*value = l->tmr[reg - REG_TMR];
	else if (reg >= REG_IRR && reg < REG_IRR + 8)
		*value = l->irr[reg - REG_IRR];
	else if (reg >= REG_LVT && reg < REG_LVT + LVT_COUNT)
		*value = l->lvt[reg - REG_LVT];
	else
		return false;
	return true;
}

/* What only xAPIC has. */
static bool read_xapic_register(const struct lapic *l, u32 reg, u32 *value)
{
	switch (reg) {
	case REG_APR:
	case REG_EOI:
	case REG_RRD: *value = 0; return true;
	case REG_DFR: *value = l->dfr; return true;
	case REG_ICR_HIGH: *value = l->icr_high; return true;
	default: return false;
	}
}

static bool read_register(struct lapic *l, u32 reg, u32 *value)
{
	switch (reg) {
	case REG_ID: *value = lapic_is_x2apic(l) ? l->id : l->id << 24; return true;
	case REG_VERSION: *value = LAPIC_VERSION | (LVT_COUNT - 1) << 16; return true;
	case REG_TPR: *value = l->tpr; return true;
	case REG_PPR: *value = l->ppr; return true;
	case REG_LDR: *value = l->ldr; return true;
	case REG_SVR: *value = l->svr; return true;
	case REG_ESR: *value = l->esr; return true;
	case REG_ICR_LOW: *value = l->icr_low; return true;
	case REG_TIMER_INITIAL: *value = l->timer_initial; return true;
	case REG_TIMER_CURRENT: *value = lapic_timer_current(l); return true;
	case REG_TIMER_DIVIDE: *value = l->timer_divide; return true;
	}
	if (read_array(l, reg, value))
		return true;
	return !lapic_is_x2apic(l) && read_xapic_register(l, reg, value);
}

static void write_svr(struct lapic *l, u32 value)
{
	l->svr = value & SVR_WRITABLE;
	/* SDM vol. 3, 11.4.7.2: software disable masks all local vectors. */
	for (u32 i = 0; !(l->svr & SVR_ENABLE) && i < LVT_COUNT; i++)
		l->lvt[i] |= APIC_LVT_MASKED;
	lapic_refresh(l);
}

static void write_lvt(struct lapic *l, u32 i, u32 value)
{
	value &= lvt_writable[i];
	if (!(l->svr & SVR_ENABLE))
		value |= APIC_LVT_MASKED;
	if (i == LVT_TIMER)
		lapic_timer_set_mode(l, value);
	else
		l->lvt[i] = value;
	lapic_refresh(l);
}

static void write_tpr(struct lapic *l, u32 value)
{
	l->tpr = value & TPR_WRITABLE;
	lapic_refresh(l);
}

static void write_esr(struct lapic *l)
{
	l->esr = l->esr_pending;
	l->esr_pending = 0;
}

/* Registers that both modes have. */
static bool write_common(struct lapic *l, u32 reg, u32 value)
{
	switch (reg) {
	case REG_TPR: write_tpr(l, value); return true;
	case REG_EOI:
		l->eoi_writes++;
		lapic_complete(l);
		return true;
	case REG_SVR: write_svr(l, value); return true;
	case REG_ESR: write_esr(l); return true;
	case REG_TIMER_INITIAL: lapic_timer_set_initial(l, value); return true;
	case REG_TIMER_DIVIDE: lapic_timer_set_divide(l, value & DIVIDE_WRITABLE); return true;
	}
	if (reg < REG_LVT || reg >= REG_LVT + LVT_COUNT)
		return false;
	write_lvt(l, reg - REG_LVT, value);
	return true;
}

static bool write_xapic(struct lapic *l, u32 reg, u32 value)
{
	switch (reg) {
	case REG_ID:
	case REG_VERSION:
	case REG_APR:
	case REG_PPR:
	case REG_RRD:
	case REG_TIMER_CURRENT: return true; /* read-only: ignored */
	case REG_LDR: l->ldr = value & 0xff000000; return true;
	case REG_DFR: l->dfr = value | DFR_ONES; return true;
	case REG_ICR_HIGH: l->icr_high = value & 0xff000000; return true;
	case REG_ICR_LOW:
		l->icr_low = value & ICR_WRITABLE;
		lapic_send_ipi(l, (u64)(l->icr_high >> 24) << 32 | l->icr_low);
		return true;
	default: return write_common(l, reg, value);
	}
}

/* Bits that may be one in a write of @reg in x2APIC mode; others raise #GP (SDM vol. 3, 11.12.1.3).
 */
static u64 x2apic_allowed(u32 reg)
{
	switch (reg) {
	case REG_TPR:
	case REG_SELF_IPI: return 0xff;
	case REG_SVR: return SVR_WRITABLE;
	case REG_ICR_LOW: return 0xffffffff00000000 | ICR_WRITABLE | BIT(12);
	case REG_TIMER_INITIAL: return 0xffffffff;
	case REG_TIMER_DIVIDE: return DIVIDE_WRITABLE;
	}
	if (reg >= REG_LVT && reg < REG_LVT + LVT_COUNT)
		return lvt_writable[reg - REG_LVT] | LVT_READ_ONLY;
	return 0; /* EOI and ESR take only zero */
}

static bool write_x2apic(struct lapic *l, u32 reg, u64 value)
{
	if (value & ~x2apic_allowed(reg))
		return false;
	switch (reg) {
	case REG_ICR_LOW:
		l->icr_low = (u32)value & ICR_WRITABLE;
		l->icr_high = (u32)(value >> 32);
		lapic_send_ipi(l, (u64)l->icr_high << 32 | l->icr_low);
		return true;
	case REG_SELF_IPI: lapic_send_ipi(l, BIT(18) | value); return true;
	default: return write_common(l, reg, (u32)value);
	}
}

/* MMIO -------------------------------------------------------------------- */

bool lapic_claims(const struct lapic *l, gpa_t gpa)
{
	return lapic_is_enabled(l) && !lapic_is_x2apic(l) &&
	       (gpa & PAGE_MASK) == (l->base & APIC_BASE_ADDRESS);
}

u64 lapic_mmio_read(struct lapic *l, u32 off, u32 size)
{
	u32 value = 0;

	(void)size;
	off &= LAPIC_SIZE - 1;
	if (off & 0xc)
		return 0; /* between registers */
	if (!read_register(l, off >> 4, &value))
		lapic_error(l, ESR_ILLEGAL_REGISTER);
	return value >> (8 * (off & 3));
}

void lapic_mmio_write(struct lapic *l, u32 off, u32 size, u64 value)
{
	off &= LAPIC_SIZE - 1;
	/* SDM vol. 3, 11.4.1: registers take aligned 32-bit accesses. */
	if (off & 0xf || size < 4)
		return;
	if (!write_xapic(l, off >> 4, (u32)value))
		lapic_error(l, ESR_ILLEGAL_REGISTER);
}

/* MSRs -------------------------------------------------------------------- */

static bool write_base(struct lapic *l, u64 value)
{
	const u64 mode = APIC_BASE_EN | APIC_BASE_EXTD;
	u64 was = l->base & mode, is = value & mode;

	if (value & ~(APIC_BASE_ADDRESS | APIC_BASE_BSP | mode))
		return false;
	/* SDM vol. 3, 11.12.5: x2APIC is entered from xAPIC and left only by disabling. */
	if (is == APIC_BASE_EXTD || (was == mode && is == APIC_BASE_EN) || (!was && is == mode))
		return false;
	l->base = (value & ~APIC_BASE_BSP) | (l->base & APIC_BASE_BSP);
	if (!is && was)
		lapic_reset_registers(l);
	if (is == mode)
		l->ldr = l->id >> 4 << 16 | 1u << (l->id & 15);
	else if (was == mode)
		l->ldr = 0;
	lapic_refresh(l);
	return true;
}

bool lapic_msr_read(struct lapic *l, u32 index, u64 *value)
{
	u32 low;

	if (index == MSR_APIC_BASE) {
		*value = l->base;
		return true;
	}
	if (index == MSR_TSC_DEADLINE) {
		lapic_timer_poll(l);
		*value = l->tsc_deadline;
		return true;
	}
	if (index == MSR_KVM_PV_EOI_EN) {
		*value = l->pv_eoi;
		return true;
	}
	if (index < MSR_X2APIC_FIRST || index > MSR_X2APIC_LAST || !lapic_is_x2apic(l))
		return false;
	if (!read_register(l, index - MSR_X2APIC_FIRST, &low))
		return false;
	*value = low;
	if (index - MSR_X2APIC_FIRST == REG_ICR_LOW)
		*value |= (u64)l->icr_high << 32;
	return true;
}

bool lapic_msr_write(struct lapic *l, u32 index, u64 value)
{
	if (index == MSR_TSC_DEADLINE) {
		lapic_timer_set_deadline(l, value);
		return true;
	}
	if (index == MSR_APIC_BASE)
		return write_base(l, value);
	if (index == MSR_KVM_PV_EOI_EN)
		return lapic_set_pv_eoi(l, value);
	if (index < MSR_X2APIC_FIRST || index > MSR_X2APIC_LAST || !lapic_is_x2apic(l))
		return false;
	return write_x2apic(l, index - MSR_X2APIC_FIRST, value);
}

void lapic_set_cr8(struct lapic *l, u64 cr8)
{
	write_tpr(l, (u32)(cr8 & 15) << 4);
}

u64 lapic_get_cr8(const struct lapic *l)
{
	return l->tpr >> 4;
}
