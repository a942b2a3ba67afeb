/*
 * Several processors: starting them, and giving them something to do.
 *
 * The processor that booted runs the cases. The others wait, on page tables that no case touches,
 * for a function to call; while they run it they are on the case's tables. Each has its own stacks,
 * descriptor table and task state; the interrupt table is shared. A case sees their traps through
 * any_cpu_hook.
 */
#pragma once

#include "guest.h"

enum { SMP_MAX = 16 };

extern u32 smp_count; /* processors that run, the first included; 1 before smp_start() */

/* Start the others, once; interrupts can be sent to them afterwards. */
void smp_start(void);

/* The processor this runs on: 0 to smp_count - 1, its APIC id too. */
u32 smp_id(void);

/* Have processor @cpu (not 0) call @job; it must be idle. */
void smp_begin(u32 cpu, void (*job)(void *), void *argument);
/* Wait until it is idle again; dies after some seconds. */
void smp_wait(u32 cpu);
/* @job on the first @count processors at once, this one included. */
void smp_together(u32 count, void (*job)(void *), void *argument);

/* Where the processor's last start-up message made it begin, as a segment; how often it has begun.
 */
u16 smp_start_segment(u32 cpu);
u32 smp_starts(u32 cpu);
/* The boot code at @page << 12, for start-up messages to @page. */
void smp_place_boot_code(u8 page);
/* Wait until @cpu has begun @starts times; false after a second. */
bool smp_wait_start(u32 cpu, u32 starts);

/* All wait here until @count have come. */
struct barrier {
	volatile u32 arrived, turn;
};
void smp_barrier(struct barrier *b, u32 count);

/* Spin until @condition or for about @seconds; true when it came. */
#define spin_until(condition, seconds)                               \
	({                                                           \
		u64 spin_end_ = rdtsc() + (u64)(seconds)*SPIN_TICKS; \
		while (!(condition) && rdtsc() < spin_end_)          \
			pause();                                     \
		(bool)(condition);                                   \
	})
#define SPIN_TICKS 3000000000ull

/* x2APIC mode of the calling processor, on or off. */
void x2apic_enable(void);
void x2apic_disable(void);
#define MSR_X2APIC      0x800
#define MSR_X2APIC_ID   0x802
#define MSR_X2APIC_EOI  0x80b
#define MSR_X2APIC_LDR  0x80d
#define MSR_X2APIC_SVR  0x80f
#define MSR_X2APIC_ICR  0x830
#define MSR_X2APIC_SELF 0x83f
