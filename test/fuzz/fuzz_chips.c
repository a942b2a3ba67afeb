/*
 * All chips of the PC on one bus, wired up, under random accesses and passing time. Each step of
 * the input is eight bytes: operation, width, address and value. The clock is the harness's own; a
 * chip that would keep the event loop busy trips the limit on timer callbacks.
 */
#include "damage.h"
#include "device/chip/debugexit.h"
#include "device/chip/fwcfg.h"
#include "device/chip/i8042.h"
#include "device/chip/ioapic.h"
#include "device/chip/lapic.h"
#include "device/chip/pic.h"
#include "device/chip/pit.h"
#include "device/chip/pm.h"
#include "device/chip/pvpanic.h"
#include "device/chip/rtc.h"
#include "device/chip/uart.h"
#include "host/chardev.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

enum { CPUS = 3, TIMERS = 16, RAM = 0x10000, CALLBACKS_PER_MS = 200 };

struct step {
	u8 op, width;
	u16 address;
	u32 value;
};

struct machine {
	struct bus bus;
	struct physmap memory;
	pthread_mutex_t lock;
	struct lapic_set lapics;
	struct pic pic;
	struct ioapic ioapic;
	struct pit pit;
	struct rtc rtc;
	struct pm pm;
	struct uart uart;
	struct i8042 i8042;
	struct fwcfg fwcfg;
	struct debugexit debugexit;
	struct pvpanic pvpanic;
	struct chardev chardev;
};

static struct {
	u64 now;
	struct loop_timer *timer[TIMERS];
	u32 count;
} fake_clock;

u64 host_clock_ns(void)
{
	return fake_clock.now;
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *t)
{
	(void)loop;
	for (u32 i = 0; i < fake_clock.count; i++)
		if (fake_clock.timer[i] == t)
			fake_clock.timer[i] = fake_clock.timer[--fake_clock.count];
}

void loop_timer_arm(struct loop *loop, struct loop_timer *t, u64 deadline_ns)
{
	loop_timer_cancel(loop, t);
	if (fake_clock.count == TIMERS)
		abort();
	t->deadline_ns = deadline_ns;
	fake_clock.timer[fake_clock.count++] = t;
}

static void advance(u64 ns)
{
	u64 end = fake_clock.now + ns, budget = 100 + ns * CALLBACKS_PER_MS / 1000000;

	for (u32 i = 0; i < fake_clock.count;) {
		struct loop_timer *t = fake_clock.timer[i++];

		if (t->deadline_ns > end)
			continue;
		if (!budget--)
			abort();
		if (t->deadline_ns > fake_clock.now)
			fake_clock.now = t->deadline_ns;
		loop_timer_cancel(NULL, t);
		t->fire(t->opaque);
		i = 0;
	}
	fake_clock.now = end;
}

static void set_gsi(void *opaque, u32 pin, bool level)
{
	struct machine *m = opaque;

	if (pin < 16)
		pic_set_irq(&m->pic, pin == 2 ? 0 : pin, level);
	ioapic_set_irq(&m->ioapic, pin, level);
}

static struct irq_line gsi(struct machine *m, u32 pin)
{
	return (struct irq_line){set_gsi, m, pin};
}

static void on_cpu(void *opaque, u32 cpu)
{
	(void)opaque;
	if (cpu >= CPUS)
		abort();
}

static void on_sipi(void *opaque, u32 cpu, u8 vector)
{
	(void)vector;
	on_cpu(opaque, cpu);
}

static u64 on_tsc(void *opaque, u32 cpu)
{
	on_cpu(opaque, cpu);
	return fake_clock.now * 3;
}

static void on_eoi(void *opaque, u8 vector)
{
	ioapic_eoi(&((struct machine *)opaque)->ioapic, vector);
}

static u8 on_intack(void *opaque)
{
	return pic_intack(&((struct machine *)opaque)->pic);
}

static void on_event(void *opaque)
{
	(void)opaque;
}

static void on_a20(void *opaque, bool on)
{
	(void)opaque;
	(void)on;
}

static void on_value(void *opaque, u32 value)
{
	(void)opaque;
	(void)value;
}

static void chardev_write(struct chardev *c, const u8 *data, u32 len)
{
	(void)c;
	(void)data;
	(void)len;
}

static void chardev_nothing(struct chardev *c)
{
	(void)c;
}

static const struct chardev_ops chardev_ops = {"none", chardev_write, chardev_nothing,
					       chardev_nothing};

static int connect(struct machine *m)
{
	const struct lapic_ops ops = {on_cpu, on_cpu, on_cpu,    on_sipi,
				      on_tsc, on_eoi, on_intack, m};
	const struct irq_line intr = {lapic_set_lint0, &m->lapics, 0};
	const struct msi_sink msi = {.send = lapic_deliver_msi, .opaque = &m->lapics};
	const struct pm_config pm = {gsi(m, 9), on_event, on_event, m};
	const struct i8042_config i8042 = {gsi(m, 1), gsi(m, 12), on_event, on_a20, m};

	return lapic_set_init(&m->lapics, CPUS, &ops, 3000000000, NULL, &m->lock, NULL) ||
	       pic_init(&m->pic, &m->bus, intr, NULL) ||
	       ioapic_init(&m->ioapic, &m->bus, IOAPIC_BASE, 0, msi, NULL) ||
	       pit_init(&m->pit, &m->bus, gsi(m, 2), NULL, &m->lock, NULL) ||
	       rtc_init(&m->rtc, &m->bus, gsi(m, 8), 1700000000ul * 1000000000, NULL, &m->lock,
			NULL) ||
	       pm_init(&m->pm, &m->bus, &pm, NULL, &m->lock, NULL) ||
	       uart_init(&m->uart, &m->bus, 0x3f8, gsi(m, 4), &m->chardev, &m->lock, NULL) ||
	       i8042_init(&m->i8042, &m->bus, &i8042, NULL) ||
	       physmap_add(&m->memory, 0, RAM, 0, NULL) ||
	       fwcfg_init(&m->fwcfg, &m->bus, &m->memory, NULL) ||
	       fwcfg_add_file(&m->fwcfg, "etc/fuzz", "0123456789", 10) ||
	       debugexit_init(&m->debugexit, &m->bus, on_value, NULL, NULL) ||
	       pvpanic_init(&m->pvpanic, &m->bus, on_value, NULL, NULL);
}

/* Ports that something answers at, so that most accesses hit. */
static u16 port_of(u16 address)
{
	static const u16 base[] = {0x20,  0xa0,  0x4d0, 0x40,  0x60, 0x70,
				   0x3f8, 0x500, 0x510, 0x600, 0x620};

	return base[address % ARRAY_SIZE(base)] + (address >> 8 & 15);
}

static void damage(struct machine *m, const struct step *s)
{
	const struct {
		const struct device_ops *ops;
		void *dev;
	} chips[] = {
		{&pic_ops, &m->pic},
		{&ioapic_ops, &m->ioapic},
		{&pit_ops, &m->pit},
		{&rtc_ops, &m->rtc},
		{&pm_ops, &m->pm},
		{&uart_ops, &m->uart},
		{&i8042_ops, &m->i8042},
		{&fwcfg_ops, &m->fwcfg},
		{&lapic_set_device_ops, &m->lapics},
		{&lapic_device_ops, &m->lapics.cpu[s->width % CPUS]},
	};
	u32 n = s->width % ARRAY_SIZE(chips);

	damage_state(chips[n].ops, chips[n].dev, s->address, (u8)s->value);
}

static void run_step(struct machine *m, const struct step *s)
{
	struct lapic *l = &m->lapics.cpu[s->width >> 4 & 1 ? s->width % CPUS : 0];
	u32 size = 1u << (s->width & 3), room;
	u64 value;

	switch (s->op % 12) {
	case 0: bus_write(&m->bus, BUS_PORT, port_of(s->address), size, s->value); break;
	case 1: bus_read(&m->bus, BUS_PORT, port_of(s->address), size); break;
	case 2:
		bus_write(&m->bus, BUS_MEMORY, IOAPIC_BASE + (s->address & 0xff), size, s->value);
		break;
	case 3: bus_read(&m->bus, BUS_MEMORY, IOAPIC_BASE + (s->address & 0xff), size); break;
	case 4: lapic_mmio_write(l, s->address, size, s->value); break;
	case 5: lapic_mmio_read(l, s->address, size); break;
	case 6: lapic_msr_write(l, 0x800 + (s->address & 0xff), s->value); break;
	case 7:
		lapic_msr_write(l, s->address & 1 ? 0x1b : 0x6e0, (u64)s->address << 24 | s->value);
		lapic_msr_read(l, 0x800 + (s->address & 0xff), &value);
		break;
	case 8:
		room = m->chardev.front.room(&m->uart);
		m->chardev.front.receive(&m->uart, (const u8 *)&s->value, MIN(room, 4u));
		break;
	case 9: lapic_deliver_msi(&m->lapics, 0xfee00000 | s->address << 4, s->value); break;
	case 10: damage(m, s); break;
	default: advance(s->value >> (s->width & 31)); break;
	}
	while (lapic_highest_pending(l) != LAPIC_VECTOR_NONE && s->op & 0x80)
		if (lapic_accept(l) == LAPIC_VECTOR_NONE || m->lapics.lint0)
			break;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	struct machine *m = calloc(1, sizeof(*m));
	struct step s;

	fake_clock.now = 1000000000;
	fake_clock.count = 0;
	m->chardev.ops = &chardev_ops;
	pthread_mutex_init(&m->lock, NULL);
	bus_init(&m->bus);
	physmap_init(&m->memory);
	if (connect(m))
		abort();
	for (; len >= sizeof(s); data += sizeof(s), len -= sizeof(s)) {
		memcpy(&s, data, sizeof(s));
		run_step(m, &s);
	}
	fwcfg_destroy(&m->fwcfg);
	physmap_destroy(&m->memory);
	bus_destroy(&m->bus);
	pthread_mutex_destroy(&m->lock);
	free(m);
	return 0;
}
