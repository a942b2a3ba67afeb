/*
 * Direct execution: user code that runs by itself, in a box.
 *
 * A window that is a box (window.h, host/box.h) is an address space of the host in which pages of
 * the guest's are mapped at their own addresses. User code of 64-bit mode needs no translation
 * there: what it may do the host permits its own user code as well, and what it may not do stops
 * the box. The guest's registers are then taken over, and the interpreter executes the instruction
 * by the guest's rules, or the page that was missing is mapped.
 *
 * Some instructions would tell the host's state instead of failing (CPUID, RDTSC, SGDT, LSL, XSAVE
 * ...). Where they can they are made to fault, or guarded by a breakpoint each; the code of a page
 * with too many is translated, as is all code while the processor is in a state that the host
 * cannot have. Pages that are executable in a box are watched like pages with translated code: a
 * store to one takes it away.
 *
 * Safety. A box has access to the pages of guest RAM that its address space maps, and can do
 * nothing but compute; the monitor takes nothing from it but the registers it stopped with.
 */
#pragma once

#include "engine/soft/soft.h"

enum { DIRECT_INTERPRET = SOFT_EXIT + 1 };

/* What time in a box saves, in per cent of it, about: the same code takes three times as long in
 * translation, more if there is much of it, less if it is made of vector instructions. */
enum { DIRECT_GAIN = 150 };

/* Make what boxes are made from. A vCPU without it translates everything. */
void direct_create(struct soft_cpu *c);
void direct_destroy(struct soft_cpu *c);

/*
 * With MODE_DIRECT, from the run loop: run user code. SOFT_OK: look at everything anew;
 * DIRECT_INTERPRET: the instruction at rip wants the interpreter; SOFT_FAULT; SOFT_EXIT.
 */
int direct_run(struct soft_cpu *c);

struct soft_window;

enum { DIRECT_TICK_NS = 4000000 }; /* about what the guest's own ticks take */

/* Since the last tick: */
struct direct_tick {
	u64 ns;      /* that went by */
	u64 entries; /* calls for the kernel */
	bool cold;   /* much time went to translating user code */
};

/* A tick came while the address space with this window was in use. */
void direct_tick(struct soft_cpu *c, struct soft_window *w, struct direct_tick t);

/* It cost so many cycles to keep and use it; code ran in it for so many. */
void direct_account(struct soft_cpu *c, struct soft_window *w, u64 spent, u64 in_box);

/* Translate code until ticks say otherwise. */
void direct_rest(struct soft_cpu *c, struct soft_window *w);

/* The current address space has a window; translated code is about to run in it: must it be? */
void direct_look(struct soft_cpu *c);
