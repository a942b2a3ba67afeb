/*
 * Who owns the host's vector and floating-point registers: the guest (live) or the monitor
 * (parked).
 *
 * Guest values stay in the registers across translated code and the engine's own helpers, which are
 * compiled without vector instructions. Only code that calls outside parks them. Parking also gives
 * the monitor the register state its ABI promises: empty x87 stack, default control word and MXCSR.
 * Without that a guest which unmasks floating-point exceptions would make the monitor's own
 * arithmetic fault.
 *
 * fpu_area is in the standard XSAVE format. XRSTOR faults on reserved header or MXCSR bits, so
 * whoever stores to fpu_area from outside (state_set, the guest's XRSTOR) has validated those
 * before.
 */
#include "engine/soft/soft.h"

void soft_fpu_park(struct soft_cpu *c)
{
	const u64 mask = c->vm->xsave_mask;
	const u32 mxcsr = 0x1f80; /* SDM vol. 1, 10.2.3: all exceptions masked */

	if (!c->fpu_is_live)
		return;
	__asm__ volatile("xsave64 %0"
			 : "+m"(c->fpu_area)
			 : "a"((u32)mask), "d"((u32)(mask >> 32))
			 : "memory");
	__asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
	c->fpu_is_live = 0;
	c->counters[COUNT_FPU_PARKS]++;
}

void soft_fpu_live(struct soft_cpu *c)
{
	const u64 mask = c->vm->xsave_mask;

	if (c->fpu_is_live)
		return;
	__asm__ volatile("xrstor64 %0"
			 :
			 : "m"(c->fpu_area), "a"((u32)mask), "d"((u32)(mask >> 32))
			 : "memory");
	c->fpu_is_live = 1;
}
