/*
 * Memory helpers for code that runs while guest vector state is in the host registers.
 *
 * libc's memcpy and memset use vector registers, and so may whatever the compiler calls for a loop
 * it recognises; these do not, at any optimisation level.
 */
#pragma once

#include "base/types.h"

/* Unaligned scalars: one host access each, so that an aligned guest access stays atomic. */
struct soft_u16 {
	u16 v;
} __attribute__((packed, may_alias));

struct soft_u32 {
	u32 v;
} __attribute__((packed, may_alias));

struct soft_u64 {
	u64 v;
} __attribute__((packed, may_alias));

static inline u64 soft_load(const void *p, u32 size)
{
	switch (size) {
	case 1: return *(const u8 *)p;
	case 2: return ((const struct soft_u16 *)p)->v;
	case 4: return ((const struct soft_u32 *)p)->v;
	default: return ((const struct soft_u64 *)p)->v;
	}
}

static inline void soft_store(void *p, u64 v, u32 size)
{
	switch (size) {
	case 1: *(u8 *)p = (u8)v; break;
	case 2: ((struct soft_u16 *)p)->v = (u16)v; break;
	case 4: ((struct soft_u32 *)p)->v = (u32)v; break;
	default: ((struct soft_u64 *)p)->v = v; break;
	}
}

static inline void soft_copy_bytes(void *to, const void *from, u64 n)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* Copy @n bytes between buffers that do not overlap; 1, 2, 4 and 8 bytes are single accesses. */
static inline void soft_copy(void *to, const void *from, u64 n)
{
	if (n == 8 || n == 4 || n == 2 || n == 1) {
		soft_store(to, soft_load(from, (u32)n), (u32)n);
		return;
	}
	if (n == 16) {
		u64 low = soft_load(from, 8), high = soft_load((const u8 *)from + 8, 8);

		soft_store(to, low, 8);
		soft_store((u8 *)to + 8, high, 8);
		return;
	}
	soft_copy_bytes(to, from, n);
}

static inline void soft_fill(void *to, u8 byte, u64 n)
{
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
}

static inline void soft_fill64(void *to, u64 word, u64 words)
{
	__asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(word) : "memory");
}

static inline bool soft_same(const void *a, const void *b, u64 n)
{
	const u8 *p = a, *q = b;

	for (; n >= 8; n -= 8, p += 8, q += 8)
		if (soft_load(p, 8) != soft_load(q, 8))
			return false;
	for (; n; n--, p++, q++)
		if (*p != *q)
			return false;
	return true;
}
