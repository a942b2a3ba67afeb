/*
 * Theory of operation
 *
 * An interrupt travels as (destination, delivery mode, vector, trigger) from lapic_deliver_msi() or
 * lapic_send_ipi() through deliver(), which finds the targets, to accept_message() of each. A fixed
 * interrupt becomes a bit in IRR; lapic_refresh() then says whether the CPU has something to take,
 * and if so the CPU is notified. The rest is the CPU's own doing: lapic_accept() moves IRR to ISR,
 * lapic_complete() ends it.
 *
 * The attention flag repeats lapic_highest_pending() != LAPIC_VECTOR_NONE for readers without the
 * lock, and is set as well when an interrupt waits that may only seem blocked: the one in service
 * can have ended in the guest's memory (lapic_offer_eoi()). It is stored with release before
 * notify(), so a vCPU that was notified sees it.
 *
 * Hooks may re-enter: an EOI reaches the I/O APIC, which may send the next message at once. State
 * is therefore consistent before every hook.
 */
#include "device/chip/lapic_internal.h"

#include <errno.h>
#include <string.h>

/* Bitmaps of 256 vectors -------------------------------------------------- */

static void vector_set(u32 *map, u32 v)
{
	map[v / 32] |= 1u << v % 32;
}

static void vector_clear(u32 *map, u32 v)
{
	map[v / 32] &= ~(1u << v % 32);
}

static bool vector_test(const u32 *map, u32 v)
{
	return map[v / 32] >> v % 32 & 1;
}

/* The highest vector in @map, or LAPIC_VECTOR_NONE. */
static int vector_highest(const u32 *map)
{
	for (int i = 7; i >= 0; i--)
		if (map[i])
			return i * 32 + 31 - __builtin_clz(map[i]);
	return LAPIC_VECTOR_NONE;
}

/* What the CPU would take ------------------------------------------------- */

/* The 8259 reaches the CPU through LINT0 in ExtINT mode, or directly while the APIC is off. */
static bool extint_is_ready(const struct lapic *l)
{
	u32 lvt = l->lvt[LVT_LINT0];

	if (!lapic_is_enabled(l))
		return l->set->lint0 && l->base & APIC_BASE_BSP;
	if (l->extint)
		return true;
	return l->set->lint0 && !(lvt & APIC_LVT_MASKED) && (lvt >> 8 & 7) == MODE_EXTINT;
}

int lapic_highest_pending(struct lapic *l)
{
	int v;

	if (l->wait_for_sipi)
		return LAPIC_VECTOR_NONE;
	if (extint_is_ready(l))
		return LAPIC_EXTINT;
	if (!lapic_accepts(l))
		return LAPIC_VECTOR_NONE;
	v = vector_highest(l->irr);
	return v >= 0 && (u32)v >> 4 > l->ppr >> 4 ? v : LAPIC_VECTOR_NONE;
}

bool lapic_refresh(struct lapic *l)
{
	int in_service = vector_highest(l->isr);
	bool attention;

	l->ppr = l->tpr;
	if (in_service >= 0 && (u32)in_service >> 4 > l->tpr >> 4)
		l->ppr = (u32)in_service & 0xf0;
	attention = lapic_highest_pending(l) != LAPIC_VECTOR_NONE ||
		    (l->pv_eoi_offered && vector_highest(l->irr) >= 0);
	__atomic_store_n(&l->attention, attention, __ATOMIC_RELEASE);
	return attention;
}

static void refresh_and_notify(struct lapic *l)
{
	if (lapic_refresh(l))
		l->set->ops.notify(l->set->ops.opaque, l->id);
}

int lapic_accept(struct lapic *l)
{
	int v = lapic_highest_pending(l);

	if (v == LAPIC_EXTINT) {
		l->extint = false;
		v = l->set->ops.intack(l->set->ops.opaque);
	} else if (v != LAPIC_VECTOR_NONE) {
		vector_clear(l->irr, (u32)v);
		vector_set(l->isr, (u32)v);
	}
	lapic_refresh(l);
	return v;
}

void lapic_complete(struct lapic *l)
{
	int v = vector_highest(l->isr);

	if (v < 0)
		return;
	vector_clear(l->isr, (u32)v);
	lapic_refresh(l);
	if (vector_test(l->tmr, (u32)v))
		l->set->ops.eoi(l->set->ops.opaque, (u8)v);
}

/* The end of an interrupt in memory ----------------------------------------- */

enum { PV_EOI_ENABLED = 1 << 0, PV_EOI_RESERVED = 1 << 1 };

bool lapic_offer_eoi(struct lapic *l)
{
	int v = vector_highest(l->isr);

	l->pv_eoi_offered = l->pv_eoi & PV_EOI_ENABLED && v >= 0 && !vector_test(l->tmr, (u32)v) &&
			    vector_highest(l->irr) < 0;
	return l->pv_eoi_offered;
}

void lapic_settle_eoi(struct lapic *l, bool ended)
{
	l->pv_eoi_offered = false;
	if (ended) {
		l->eoi_quiet++;
		lapic_complete(l);
	} else {
		lapic_refresh(l);
	}
}

gpa_t lapic_eoi_word(const struct lapic *l)
{
	return l->pv_eoi & ~(u64)(PV_EOI_ENABLED | PV_EOI_RESERVED);
}

bool lapic_set_pv_eoi(struct lapic *l, u64 value)
{
	if (value & PV_EOI_RESERVED) /* the word is aligned */
		return false;
	l->pv_eoi = value;
	return true;
}

/* Arrival ----------------------------------------------------------------- */

/* NOLINTBEGIN(misc-no-recursion): the error entry's own vector is checked, so one level */
static void accept_fixed(struct lapic *l, u8 vector, bool level)
{
	if (!lapic_accepts(l))
		return;
	if (vector < FIRST_LEGAL_VECTOR) {
		lapic_error(l, ESR_RECEIVE_ILLEGAL);
		return;
	}
	vector_set(l->irr, vector);
	if (level)
		vector_set(l->tmr, vector);
	else
		vector_clear(l->tmr, vector);
	refresh_and_notify(l);
}

static void accept_init(struct lapic *l)
{
	lapic_reset_registers(l);
	/* SDM vol. 3, 9.1: the bootstrap processor starts over, the others wait for SIPI. */
	l->wait_for_sipi = !(l->base & APIC_BASE_BSP);
	lapic_refresh(l);
	l->set->ops.init(l->set->ops.opaque, l->id);
}

static void accept_sipi(struct lapic *l, u8 vector)
{
	if (!l->wait_for_sipi)
		return;
	l->wait_for_sipi = false;
	lapic_refresh(l);
	l->set->ops.sipi(l->set->ops.opaque, l->id, vector);
}

static void accept_message(struct lapic *l, enum delivery_mode mode, u8 vector, bool level)
{
	switch (mode) {
	case MODE_FIXED:
	case MODE_LOWEST: accept_fixed(l, vector, level); break;
	case MODE_NMI: l->set->ops.nmi(l->set->ops.opaque, l->id); break;
	case MODE_INIT: accept_init(l); break;
	case MODE_SIPI: accept_sipi(l, vector); break;
	case MODE_EXTINT:
		l->extint = true;
		refresh_and_notify(l);
		break;
	case MODE_SMI: break; /* there is no system management mode */
	}
}

void lapic_error(struct lapic *l, u32 esr_bit)
{
	l->esr_pending |= esr_bit;
	lapic_local_interrupt(l, LVT_ERROR);
}

void lapic_local_interrupt(struct lapic *l, enum lapic_lvt i)
{
	enum delivery_mode mode = l->lvt[i] >> 8 & 7;
	u8 vector = (u8)l->lvt[i];

	if (l->lvt[i] & APIC_LVT_MASKED)
		return;
	/* SDM vol. 3, 11.5.1: the timer and error entries have no delivery mode. */
	if (i == LVT_TIMER || i == LVT_ERROR)
		mode = MODE_FIXED;
	/* An illegal vector of the error entry must not raise itself. */
	if (i == LVT_ERROR && vector < FIRST_LEGAL_VECTOR)
		l->esr_pending |= ESR_RECEIVE_ILLEGAL;
	else if (mode == MODE_FIXED || mode == MODE_NMI)
		accept_message(l, mode, vector, false);
}
/* NOLINTEND(misc-no-recursion) */

/* Destinations ------------------------------------------------------------ */

struct destination {
	u32 id; /* physical id or logical mask */
	bool logical;
	bool all;
	const struct lapic *except; /* not this one; NULL: no exception */
};

static bool matches_logical(const struct lapic *l, u32 mask)
{
	u32 ldr = l->ldr >> 24;

	if (lapic_is_x2apic(l))
		return mask >> 16 == l->ldr >> 16 && mask & l->ldr & 0xffff;
	if (l->dfr >> 28 == 0xf)
		return mask & ldr;
	/* Cluster model, SDM vol. 3, 11.6.2.2. */
	return (mask >> 4 & 0xf) == ldr >> 4 && mask & ldr & 0xf;
}

static bool matches(const struct lapic *l, const struct destination *d)
{
	if (l == d->except || !lapic_is_enabled(l))
		return false;
	if (d->all)
		return true;
	return d->logical ? matches_logical(l, d->id) : l->id == d->id;
}

/* Of the targets the one with the lowest processor priority; ties go round. */
static struct lapic *lowest_priority(struct lapic_set *set, const struct destination *d)
{
	struct lapic *best = NULL;

	for (u32 i = 0; i < set->count; i++) {
		struct lapic *l = &set->cpu[(set->arbiter + i) % set->count];

		if (matches(l, d) && lapic_accepts(l) && (!best || l->ppr < best->ppr))
			best = l;
	}
	if (best)
		set->arbiter = (best->id + 1) % set->count;
	return best;
}

static void deliver(struct lapic_set *set, const struct destination *d, enum delivery_mode mode,
		    u8 vector, bool level)
{
	struct lapic *l;

	if (mode == MODE_LOWEST) {
		l = lowest_priority(set, d);
		if (l)
			accept_message(l, MODE_FIXED, vector, level);
		return;
	}
	if (!d->all && !d->logical) {
		if (d->id < set->count && matches(&set->cpu[d->id], d))
			accept_message(&set->cpu[d->id], mode, vector, level);
		return;
	}
	for (u32 i = 0; i < set->count; i++)
		if (matches(&set->cpu[i], d))
			accept_message(&set->cpu[i], mode, vector, level);
}

void lapic_deliver_msi(void *opaque, u64 address, u32 data)
{
	struct lapic_set *set = opaque;
	enum delivery_mode mode = data >> 8 & 7;
	bool level = data & BIT(15), asserted = data & BIT(14), redirect = address & BIT(3);
	struct destination d = {
		.id = address >> 12 & 0xff,
		.logical = address & BIT(2),
		.all = (address >> 12 & 0xff) == 0xff,
	};

	if (address >> 20 != 0xfee || (level && !asserted))
		return;
	/* SDM vol. 3, 11.11.1: the redirection hint picks one of a logical group. */
	if (redirect && d.logical && mode == MODE_FIXED)
		mode = MODE_LOWEST;
	if (mode == MODE_INIT || mode == MODE_SIPI)
		return; /* not as a device's message */
	deliver(set, &d, mode, (u8)data, level);
}

void lapic_send_ipi(struct lapic *l, u64 icr)
{
	enum { TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS } shorthand = icr >> 18 & 3;
	enum delivery_mode mode = icr >> 8 & 7;
	bool level = icr & BIT(15), asserted = icr & BIT(14);
	u32 broadcast = lapic_is_x2apic(l) ? ~0u : 0xff;
	struct destination d = {
		.id = (u32)(icr >> 32),
		.logical = icr & BIT(11),
		.all = shorthand >= TO_ALL || icr >> 32 == broadcast,
		.except = shorthand == TO_OTHERS ? l : NULL,
	};

	if (mode == MODE_INIT && level && !asserted)
		return; /* INIT level de-assert: nothing since the Pentium 4 */
	if ((mode == MODE_FIXED || mode == MODE_LOWEST) && (u8)icr < FIRST_LEGAL_VECTOR) {
		lapic_error(l, ESR_SEND_ILLEGAL);
		return;
	}
	if (mode == MODE_EXTINT)
		return;
	if (shorthand == TO_SELF)
		d = (struct destination){.id = l->id};
	deliver(l->set, &d, mode, (u8)icr, false);
}

/* Pins -------------------------------------------------------------------- */

void lapic_set_lint0(void *opaque, u32 pin, bool level)
{
	struct lapic_set *set = opaque;
	bool rising = level && !set->lint0;

	(void)pin;
	set->lint0 = level;
	for (u32 i = 0; i < set->count; i++) {
		struct lapic *l = &set->cpu[i];

		if (rising && lapic_is_enabled(l))
			lapic_local_interrupt(l, LVT_LINT0);
		refresh_and_notify(l);
	}
}

void lapic_pulse_lint1(struct lapic_set *set)
{
	for (u32 i = 0; i < set->count; i++)
		if (lapic_is_enabled(&set->cpu[i]))
			lapic_local_interrupt(&set->cpu[i], LVT_LINT1);
}

/* Life and state ---------------------------------------------------------- */

void lapic_reset_registers(struct lapic *l)
{
	lapic_timer_stop(l);
	l->tpr = 0;
	l->svr = 0xff;
	l->ldr = lapic_is_x2apic(l) ? l->id >> 4 << 16 | 1u << (l->id & 15) : 0;
	l->dfr = ~0u;
	l->esr = l->esr_pending = 0;
	l->icr_low = l->icr_high = 0;
	l->timer_initial = l->timer_divide = 0;
	l->tsc_deadline = 0;
	l->extint = false;
	l->pv_eoi = 0;
	l->pv_eoi_offered = false;
	for (u32 i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = APIC_LVT_MASKED;
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->irr, 0, sizeof(l->irr));
	memset(l->tmr, 0, sizeof(l->tmr));
	lapic_refresh(l);
}

static void lapic_reset(void *dev)
{
	struct lapic *l = dev;

	l->base = LAPIC_DEFAULT_BASE | APIC_BASE_EN | (l->id ? 0 : APIC_BASE_BSP);
	l->wait_for_sipi = l->id != 0;
	lapic_reset_registers(l);
	/* Firmware leaves the 8259 connected to the bootstrap processor (MP
	 * specification 1.4, 3.6.2.2); a kernel entered without firmware expects the same. */
	if (!l->id)
		l->lvt[LVT_LINT0] = LAPIC_LINT0_BY_FIRMWARE;
	lapic_refresh(l);
}

static void lapic_saving(void *dev)
{
	lapic_timer_save(dev);
}

static int lapic_loaded(void *dev, struct err *e)
{
	struct lapic *l = dev;

	if (l->id != (u32)(l - l->set->cpu))
		return err_set(e, -EINVAL, "local APIC: state of another CPU (%u)", l->id);
	if (l->base & APIC_BASE_EXTD && !(l->base & APIC_BASE_EN))
		return err_set(e, -EINVAL, "local APIC: impossible base register %#lx", l->base);
	if (l->pv_eoi & PV_EOI_RESERVED)
		return err_set(e, -EINVAL, "local APIC: impossible word for the end of interrupts");
	l->pv_eoi_offered = false;
	l->tpr &= 0xff;
	l->timer_divide &= 0xb;
	/* Vectors below 16 cannot be in service or requested. */
	l->isr[0] &= 0xffff0000;
	l->irr[0] &= 0xffff0000;
	lapic_timer_load(l);
	refresh_and_notify(l);
	return 0;
}

static const struct field lapic_fields[] = {
	FIELD(FIELD_U32, struct lapic, id),
	FIELD(FIELD_U64, struct lapic, base),
	FIELD(FIELD_U32, struct lapic, tpr),
	FIELD(FIELD_U32, struct lapic, svr),
	FIELD(FIELD_U32, struct lapic, ldr),
	FIELD(FIELD_U32, struct lapic, dfr),
	FIELD(FIELD_U32, struct lapic, esr),
	FIELD(FIELD_U32, struct lapic, esr_pending),
	FIELD(FIELD_U32, struct lapic, icr_low),
	FIELD(FIELD_U32, struct lapic, icr_high),
	FIELD_ARRAY(FIELD_U32, struct lapic, lvt),
	FIELD_ARRAY(FIELD_U32, struct lapic, isr),
	FIELD_ARRAY(FIELD_U32, struct lapic, irr),
	FIELD_ARRAY(FIELD_U32, struct lapic, tmr),
	FIELD(FIELD_U32, struct lapic, timer_initial),
	FIELD(FIELD_U32, struct lapic, timer_divide),
	FIELD(FIELD_U64, struct lapic, tsc_deadline),
	FIELD(FIELD_BOOL, struct lapic, wait_for_sipi),
	FIELD(FIELD_BOOL, struct lapic, extint),
	FIELD(FIELD_U64, struct lapic, timer_left_ns),
	FIELD(FIELD_U64, struct lapic, pv_eoi),
};

const struct device_ops lapic_device_ops = {
	.name = "lapic",
	.reset = lapic_reset,
	.state = {.field = lapic_fields,
		  .count = ARRAY_SIZE(lapic_fields),
		  .version = 2,
		  .saving = lapic_saving,
		  .loaded = lapic_loaded},
};

static void set_reset(void *dev)
{
	struct lapic_set *set = dev;

	set->arbiter = 0;
	for (u32 i = 0; i < set->count; i++)
		lapic_reset(&set->cpu[i]);
}

static int set_loaded(void *dev, struct err *e)
{
	struct lapic_set *set = dev;

	(void)e;
	set->arbiter %= set->count;
	for (u32 i = 0; i < set->count; i++)
		refresh_and_notify(&set->cpu[i]);
	return 0;
}

static const struct field set_fields[] = {
	FIELD(FIELD_BOOL, struct lapic_set, lint0),
	FIELD(FIELD_U32, struct lapic_set, arbiter),
};

const struct device_ops lapic_set_device_ops = {
	.name = "lapic-set",
	.reset = set_reset,
	.state = {.field = set_fields,
		  .count = ARRAY_SIZE(set_fields),
		  .version = 1,
		  .loaded = set_loaded},
};

void lapic_set_reset(struct lapic_set *set)
{
	set_reset(set);
}

int lapic_set_init(struct lapic_set *set, u32 count, const struct lapic_ops *ops, u64 tsc_hz,
		   struct loop *loop, pthread_mutex_t *machine_lock, struct err *e)
{
	if (!count || count > LAPIC_MAX)
		return err_set(e, -EINVAL, "%u vCPUs: 1 to %u are possible", count, LAPIC_MAX);
	if (!tsc_hz)
		return err_set(e, -EINVAL, "local APIC: the frequency of the TSC is not known");
	memset(set, 0, sizeof(*set));
	set->count = count;
	set->ops = *ops;
	set->tsc_hz = tsc_hz;
	set->loop = loop;
	set->machine_lock = machine_lock;
	for (u32 i = 0; i < count; i++) {
		set->cpu[i].id = i;
		set->cpu[i].set = set;
		lapic_timer_init(&set->cpu[i]);
	}
	set_reset(set);
	return 0;
}

void lapic_set_destroy(struct lapic_set *set)
{
	for (u32 i = 0; i < set->count; i++)
		lapic_timer_stop(&set->cpu[i]);
}
