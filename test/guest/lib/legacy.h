/*
 * An excursion out of 64-bit mode: legacy_run() leaves long mode, runs a piece of code in protected
 * mode, 32-bit, without or with paging of the older kinds, in virtual-8086 mode, or (CR0.PE clear)
 * in real mode, until an exception or INT, notes what that found, and comes back. Everything below
 * 64 MiB has to be mapped one to one there. Real mode starts with the segment registers given, not
 * with the others, and uses the two selectors from LEGACY_FREE on for its ways in and out.
 */
#pragma once

#include "guest.h"

enum {
	LEGACY_TSS = 0x60, /* the task that begins; its stack for traps is legacy.stack */
	LEGACY_FREE = 0x68 /* from here on free for test cases */
};

/* A 32-bit task state segment (SDM vol. 3, figure 7-2). */
struct tss32 {
	u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
	u32 eax, ecx, edx, ebx, esp, ebp, esi, edi;
	u32 es, cs, ss, ds, fs, gs, ldt;
	u16 trap, io_bitmap;
};

/* Laid out for legacy.S. */
struct legacy {
	u32 cr0, cr3, cr4, efer;
	u32 eax, ecx, edx, ebx, esi, edi;

	/* What the trap found. The last six only if it came from an outer ring; the last four from
	 * virtual-8086 mode.
	 */
	struct {
		u32 cr2, cr0, tr;
		u32 edi, esi, ebp, esp, ebx, edx, ecx, eax;
		u32 vector, error, eip, cs, eflags;
		u32 outer_esp, outer_ss, es, ds, fs, gs;
	} trap;

	u32 stack[256];
	/* Where it begins: what IRET takes. */
	struct {
		u32 eip, cs, eflags, esp, ss, es, ds, fs, gs;
	} start;
};

extern struct legacy legacy;
extern struct tss32 legacy_tss;

/* Ring 0 or ring 3, flat segments, no paging, everything else zero. */
void legacy_prepare(u32 ring, const void *code);
/* A gate of the excursion's own interrupt table; those for all vectors up to 0x3f lead to the
 * note-taker. */
void legacy_gate(u8 vector, u32 offset, u16 selector, u8 access);
void legacy_run(void);
