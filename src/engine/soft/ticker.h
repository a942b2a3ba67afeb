/*
 * Ticks between the guest's own.
 *
 * Which code is hot is looked at when the guest's timer interrupts (window_tick()). That may be
 * only every few milliseconds, much of what a short program has. So while user code runs that might
 * soon be given a box, a thread asks for further ticks.
 */
#pragma once

#include "engine/soft/soft.h"

/* Once for all vCPUs of @vm, by the first of them. 0 or -errno; then all else here does nothing. */
int ticker_create(struct soft_vm *vm);
void ticker_destroy(struct soft_vm *vm);

/* REQ_TICK for this vCPU in a millisecond, at the latest; once. */
void ticker_ask(struct soft_cpu *c);

/* The vCPU is about to be gone. */
void ticker_forget(struct soft_cpu *c);
