/*
 * A system call without the C library: where no thread-local data may be touched, no lock taken and
 * no vector register used. The kernel's result, -errno when it failed.
 */
#pragma once

#include "base/types.h"

static inline long raw_call(long nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 __asm__("r10") = d;
	register u64 r8 __asm__("r8") = e;
	register u64 r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "+a"(nr)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return nr;
}
