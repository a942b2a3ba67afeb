#include "machine/chips.h"

#include "machine/gsi.h"
#include "machine/vcpu.h"

#include <errno.h>
#include <string.h>

/* ---- the machine's own ---- */

/* ISA interrupts go to both kinds of controller. */
static void own_line(void *opaque, u32 pin, bool level)
{
	struct chips *c = opaque;

	if (pin < GSI_ISA)
		pic_set_irq(&c->pic, pin == GSI_PIT ? 0 : pin, level);
	ioapic_set_irq(&c->ioapic, pin, level);
}

static void on_eoi(void *opaque, u8 vector)
{
	ioapic_eoi(&((struct chips *)opaque)->ioapic, vector);
}

static u8 on_intack(void *opaque)
{
	return pic_intack(&((struct chips *)opaque)->pic);
}

static void on_notify(void *opaque, u32 cpu)
{
	vcpus_notify(((struct chips *)opaque)->cpus, cpu);
}

static void on_nmi(void *opaque, u32 cpu)
{
	vcpus_nmi(((struct chips *)opaque)->cpus, cpu);
}

static void on_init(void *opaque, u32 cpu)
{
	vcpus_init(((struct chips *)opaque)->cpus, cpu);
}

static void on_sipi(void *opaque, u32 cpu, u8 vector)
{
	vcpus_sipi(((struct chips *)opaque)->cpus, cpu, vector);
}

static u64 on_tsc(void *opaque, u32 cpu)
{
	return vcpus_tsc(((struct chips *)opaque)->cpus, cpu);
}

static int init_own(struct chips *c, const struct chips_env *env, struct err *e)
{
	const struct lapic_ops ops = {
		.notify = on_notify,
		.nmi = on_nmi,
		.init = on_init,
		.sipi = on_sipi,
		.tsc = on_tsc,
		.eoi = on_eoi,
		.intack = on_intack,
		.opaque = c,
	};
	const struct irq_line intr = {.set = lapic_set_lint0, .opaque = &c->lapics};
	const struct irq_line timer = {.set = own_line, .opaque = c, .pin = GSI_PIT};
	int r = lapic_set_init(&c->lapics, env->count, &ops, env->tsc_hz, env->loop,
			       env->machine_lock, e);

	if (!r)
		r = pic_init(&c->pic, env->bus, intr, e);
	if (!r)
		r = ioapic_init(&c->ioapic, env->bus, IOAPIC_BASE, 0, chips_msi(c), e);
	if (!r)
		r = pit_init(&c->pit, env->bus, timer, env->loop, env->machine_lock, e);
	return r;
}

/* ---- the engine's ---- */

static void engine_line(void *opaque, u32 pin, bool level)
{
	struct chips *c = opaque;
	u32 lines = level ? c->lines | (u32)BIT(pin) : c->lines & ~(u32)BIT(pin);

	if (lines == c->lines)
		return;
	c->lines = lines;
	c->engine->set_line(c->vm, pin, level);
}

/*
 * Does a device that stores this ask for an interrupt? As in lapic_deliver_msi(): other addresses
 * are no business of an APIC, INIT and SIPI none of a device (SDM vol. 3, 11.11).
 */
static bool is_interrupt(u64 address, u32 data)
{
	enum { MODE_INIT = 5, MODE_SIPI = 6 };
	const u32 mode = data >> 8 & 7;
	const bool level = data & BIT(15), asserted = data & BIT(14);

	return address >> 20 == 0xfee && mode != MODE_INIT && mode != MODE_SIPI &&
	       (!level || asserted);
}

static void engine_send(void *opaque, u64 address, u32 data)
{
	struct chips *c = opaque;

	if (is_interrupt(address, data))
		c->engine->send_msi(c->vm, address, data);
}

static int engine_event(void *opaque, int fd, u64 address, u32 data, bool on)
{
	struct chips *c = opaque;

	if (on && !is_interrupt(address, data))
		return -EINVAL;
	return c->engine->msi_event(c->vm, fd, address, data, on);
}

/* Inputs are low then; devices that keep theirs high do so. */
static int reset_engine(struct chips *c, struct err *e)
{
	int r = c->engine->reset(c->vm, e);

	for (u32 pin = 0; pin < IOAPIC_PINS && !r; pin++)
		if (c->lines & BIT(pin))
			c->engine->set_line(c->vm, pin, true);
	return r;
}

/* ---- either ---- */

int chips_init(struct chips *c, const struct chips_env *env, struct err *e)
{
	memset(c, 0, sizeof(*c));
	c->engine = env->engine->chips(env->vm);
	c->vm = env->vm;
	c->cpus = env->cpus;
	return c->engine ? 0 : init_own(c, env, e);
}

void chips_destroy(struct chips *c)
{
	if (c->engine)
		return;
	pit_destroy(&c->pit);
	lapic_set_destroy(&c->lapics);
}

int chips_reset(struct chips *c, struct err *e)
{
	if (c->engine)
		return reset_engine(c, e);
	device_reset(&pit_ops, &c->pit);
	device_reset(&ioapic_ops, &c->ioapic);
	device_reset(&pic_ops, &c->pic);
	lapic_set_reset(&c->lapics);
	return 0;
}

struct irq_line chips_line(struct chips *c, u32 pin)
{
	return (struct irq_line){
		.set = c->engine ? engine_line : own_line, .opaque = c, .pin = pin};
}

struct msi_sink chips_msi(struct chips *c)
{
	if (c->engine)
		return (struct msi_sink){
			.send = engine_send, .on_event = engine_event, .opaque = c};
	return (struct msi_sink){.send = lapic_deliver_msi, .opaque = &c->lapics};
}

struct lapic_set *chips_lapics(struct chips *c)
{
	return c->engine ? NULL : &c->lapics;
}
