/*
 * What guests that know they are virtualised ask of the machine, by the interface of Linux's KVM
 * (Documentation/virt/kvm/x86/hypercalls.rst and msr.rst there): to wake a processor that waits for
 * a lock, to interrupt many at once, to tell which ones do not run, and to end interrupts without
 * a register access.
 */
#pragma once

#include "engine/engine.h"

struct vcpu;

/* Complete EXIT_HYPERCALL. On the vCPU's thread. */
void paravirt_call(struct vcpu *v, struct vm_exit *x);

/* The vCPU is about to sleep, and will run again; no guest code runs in between. On its thread. */
void paravirt_sleeps(struct vcpu *v);
void paravirt_wakes(struct vcpu *v);

/*
 * Let the guest end the interrupt in service without an exit, if it has asked for that, and find
 * out whether it has. Under the machine lock, on the vCPU's thread while it is outside the engine.
 * Whatever looks at the vCPU's own local APIC settles first.
 */
void paravirt_offer_eoi(struct vcpu *v);
void paravirt_settle_eoi(struct vcpu *v);

/* Every now and then while it runs: bring the time it was kept from running up to date. */
void paravirt_account(struct vcpu *v);
