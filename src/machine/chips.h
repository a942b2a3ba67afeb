/*
 * Interrupt controllers and the interval timer of a PC: those of device/chip/, or the engine's
 * where it has them (engine.h, struct engine_chips). Devices see lines and a message sink either
 * way.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "bus/irq.h"
#include "device/chip/ioapic.h"
#include "device/chip/lapic.h"
#include "device/chip/pic.h"
#include "device/chip/pit.h"
#include "engine/engine.h"

struct vcpu_set;

struct chips {
	const struct engine_chips *engine; /* NULL: those below */
	struct engine_vm *vm;
	u32 lines; /* levels of the engine's inputs */

	struct lapic_set lapics;
	struct ioapic ioapic;
	struct pic pic;
	struct pit pit;
	struct vcpu_set *cpus;
};

/* What is around the chips; borrowed, and outlives them. */
struct chips_env {
	const struct engine_ops *engine;
	struct engine_vm *vm;
	struct bus *bus;
	struct loop *loop;
	pthread_mutex_t *machine_lock;
	struct vcpu_set *cpus; /* may be created later */
	u32 count;             /* of them */
	u64 tsc_hz;
};

int chips_init(struct chips *c, const struct chips_env *env, struct err *e);
void chips_destroy(struct chips *c);

/* As after power-on; vCPUs are stopped. 0 or -errno with @e. */
int chips_reset(struct chips *c, struct err *e);

/* Global system interrupt @pin (gsi.h), and where messages go. */
struct irq_line chips_line(struct chips *c, u32 pin);
struct msi_sink chips_msi(struct chips *c);

/* The local APICs, or NULL: the engine has them. */
struct lapic_set *chips_lapics(struct chips *c);
