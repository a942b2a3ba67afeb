/*
 * Theory of operation
 *
 * The SCI line follows (status & enable) of both event blocks. The PM timer is not counted: its
 * value is the clock scaled. TMR_STS, set whenever the timer's top bit changes, is worked out when
 * the status register is looked at; a timer runs only while TMR_EN asks for the interrupt.
 */
#include "device/chip/pm.h"

#include <errno.h>
#include <string.h>

/* ACPI 6.4, tables 4.12 to 4.15. */
enum {
	STS_TMR = 1 << 0,
	STS_PWRBTN = 1 << 8,
	STS_RTC = 1 << 10,
	STS_WAK = 1 << 15,
	STS_ALL = STS_TMR | 1 << 4 | 1 << 5 | STS_PWRBTN | 1 << 9 | STS_RTC | STS_WAK,
	EN_ALL = STS_TMR | 1 << 5 | STS_PWRBTN | 1 << 9 | STS_RTC,
	CNT_SCI_EN = 1 << 0,
	CNT_SLP_TYP = 7 << 10,
	CNT_SLP_TYP_SHIFT = 10,
	CNT_SLP_EN = 1 << 13,
	CNT_WRITABLE = 1 << 1 | CNT_SLP_TYP, /* BM_RLD and the sleep type */

	RESET_SYSTEM = 1 << 1,
	RESET_CPU = 1 << 2,
	RESET_FULL = 1 << 3,
};

#define TMR_HALF BIT(31) /* ticks between changes of the top bit */

static u64 ticks_at(const struct pm *pm, u64 now)
{
	return (u64)((unsigned __int128)(now - pm->timer_start_ns) * PM_TMR_HZ / 1000000000u);
}

static u64 ns_of(u64 ticks)
{
	return (u64)(((unsigned __int128)ticks * 1000000000u + PM_TMR_HZ - 1) / PM_TMR_HZ);
}

u32 pm_timer_read(const struct pm *pm)
{
	return (u32)ticks_at(pm, host_clock_ns());
}

/* Bring TMR_STS up to date. */
static void advance(struct pm *pm)
{
	u64 ticks = ticks_at(pm, host_clock_ns());

	if (ticks / TMR_HALF != pm->timer_seen / TMR_HALF)
		pm->pm1_status |= STS_TMR;
	pm->timer_seen = ticks;
}

static void update(struct pm *pm)
{
	bool level = pm->pm1_status & pm->pm1_enable || pm->gpe0_status & pm->gpe0_enable;
	u64 change = (pm->timer_seen / TMR_HALF + 1) * TMR_HALF;

	if (level != pm->sci_level) {
		pm->sci_level = level;
		irq_set(pm->config.sci, level);
	}
	if (pm->pm1_enable & STS_TMR && !(pm->pm1_status & STS_TMR))
		loop_timer_arm(pm->loop, &pm->timer, pm->timer_start_ns + ns_of(change));
	else
		loop_timer_cancel(pm->loop, &pm->timer);
}

static void pm_fire(void *opaque)
{
	struct pm *pm = opaque;

	pthread_mutex_lock(pm->machine_lock);
	advance(pm);
	update(pm);
	pthread_mutex_unlock(pm->machine_lock);
}

void pm_power_button(struct pm *pm)
{
	pm->pm1_status |= STS_PWRBTN;
	update(pm);
}

void pm_gpe(struct pm *pm, u32 n)
{
	if (n < 16)
		pm->gpe0_status |= (u16)BIT(n);
	update(pm);
}

/* The event block: status, enable. */
static u64 event_read(void *dev, u64 off, u32 size)
{
	struct pm *pm = dev;

	(void)size;
	if (off)
		return pm->pm1_enable;
	advance(pm);
	return pm->pm1_status;
}

static void event_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pm *pm = dev;

	(void)size;
	advance(pm);
	if (off)
		pm->pm1_enable = (u16)value & EN_ALL;
	else
		pm->pm1_status &= ~(u16)value; /* write one to clear */
	update(pm);
}

static u64 control_read(void *dev, u64 off, u32 size)
{
	struct pm *pm = dev;

	(void)off;
	(void)size;
	return pm->pm1_control | CNT_SCI_EN;
}

static void control_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pm *pm = dev;

	(void)off;
	(void)size;
	pm->pm1_control = (u16)value & CNT_WRITABLE;
	/* Only S5 is offered; other sleep types are as if they woke at once. */
	if (!(value & CNT_SLP_EN))
		return;
	if ((value & CNT_SLP_TYP) >> CNT_SLP_TYP_SHIFT == PM_SLP_TYP_S5)
		pm->config.power_off(pm->config.opaque);
	else
		pm->pm1_status |= STS_WAK;
}

static u64 timer_read(void *dev, u64 off, u32 size)
{
	(void)off;
	(void)size;
	return pm_timer_read(dev);
}

static void timer_write(void *dev, u64 off, u32 size, u64 value)
{
	/* Read-only. */
	(void)dev;
	(void)off;
	(void)size;
	(void)value;
}

static u64 gpe0_read(void *dev, u64 off, u32 size)
{
	struct pm *pm = dev;
	u32 both = pm->gpe0_status | (u32)pm->gpe0_enable << 16;

	(void)size;
	return both >> (8 * off);
}

static void gpe0_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pm *pm = dev;

	(void)size;
	switch (off) {
	case 0: pm->gpe0_status &= ~(value & 0xff); break;
	case 1: pm->gpe0_status &= ~((value & 0xff) << 8); break;
	case 2: pm->gpe0_enable = (u16)((pm->gpe0_enable & 0xff00) | value); break;
	default: pm->gpe0_enable = (u16)((pm->gpe0_enable & 0xff) | value << 8); break;
	}
	update(pm);
}

static u64 reset_read(void *dev, u64 off, u32 size)
{
	struct pm *pm = dev;

	(void)off;
	(void)size;
	return pm->reset_control;
}

/* ICH9, 13.7.5: the transition of bit 2 to one resets. ACPI drivers write the value in one go. */
static void reset_write(void *dev, u64 off, u32 size, u64 value)
{
	struct pm *pm = dev;
	bool was = pm->reset_control & RESET_CPU;

	(void)off;
	(void)size;
	pm->reset_control = (u8)value & (RESET_SYSTEM | RESET_CPU | RESET_FULL);
	if (!was && value & RESET_CPU)
		pm->config.reset(pm->config.opaque);
}

static const struct bus_ops event_ops = {
	.read = event_read, .write = event_write, .min = 2, .max = 2};
static const struct bus_ops control_ops = {
	.read = control_read, .write = control_write, .min = 2, .max = 2};
static const struct bus_ops timer_ops = {
	.read = timer_read, .write = timer_write, .min = 4, .max = 4};
static const struct bus_ops gpe0_ops = {.read = gpe0_read, .write = gpe0_write, .min = 1, .max = 1};
const struct bus_ops pm_reset_control_ops = {
	.read = reset_read, .write = reset_write, .min = 1, .max = 1};

static void pm_reset(void *dev)
{
	struct pm *pm = dev;

	pm->pm1_status = pm->pm1_enable = pm->pm1_control = 0;
	pm->gpe0_status = pm->gpe0_enable = 0;
	pm->reset_control = 0;
	pm->timer_start_ns = host_clock_ns();
	pm->timer_seen = 0;
	update(pm);
}

static void pm_saving(void *dev)
{
	struct pm *pm = dev;

	advance(pm);
	pm->timer_age_ns = host_clock_ns() - pm->timer_start_ns;
}

static int pm_loaded(void *dev, struct err *e)
{
	struct pm *pm = dev;

	(void)e;
	pm->timer_start_ns = host_clock_ns() - pm->timer_age_ns;
	pm->pm1_status &= STS_ALL;
	pm->pm1_enable &= EN_ALL;
	pm->pm1_control &= CNT_WRITABLE;
	advance(pm);
	update(pm);
	return 0;
}

static const struct field pm_fields[] = {
	FIELD(FIELD_U16, struct pm, pm1_status),   FIELD(FIELD_U16, struct pm, pm1_enable),
	FIELD(FIELD_U16, struct pm, pm1_control),  FIELD(FIELD_U16, struct pm, gpe0_status),
	FIELD(FIELD_U16, struct pm, gpe0_enable),  FIELD(FIELD_U8, struct pm, reset_control),
	FIELD(FIELD_U64, struct pm, timer_age_ns), FIELD(FIELD_U64, struct pm, timer_seen),
};

const struct device_ops pm_ops = {
	.name = "acpi-pm",
	.reset = pm_reset,
	.state = {.field = pm_fields,
		  .count = ARRAY_SIZE(pm_fields),
		  .version = 1,
		  .saving = pm_saving,
		  .loaded = pm_loaded},
};

int pm_init(struct pm *pm, struct bus *bus, const struct pm_config *config, struct loop *loop,
	    pthread_mutex_t *machine_lock, struct err *e)
{
	const struct bus_region region[] = {
		{"pm1a event", PM1A_EVT, 4, &event_ops, pm},
		{"pm1a control", PM1A_CNT, 2, &control_ops, pm},
		{"pm timer", PM_TMR, 4, &timer_ops, pm},
		{"gpe0", PM_GPE0, PM_GPE0_LEN, &gpe0_ops, pm},
	};

	memset(pm, 0, sizeof(*pm));
	pm->config = *config;
	pm->loop = loop;
	pm->machine_lock = machine_lock;
	pm->timer = (struct loop_timer){.fire = pm_fire, .opaque = pm};
	pm_reset(pm);
	for (u32 i = 0; i < ARRAY_SIZE(region); i++) {
		int rc = bus_add(bus, BUS_PORT, &region[i]);

		if (rc)
			return err_set(e, rc, "%s: cannot place its ports", region[i].name);
	}
	return 0;
}

void pm_destroy(struct pm *pm)
{
	loop_timer_cancel(pm->loop, &pm->timer);
}
