/* Scalar types of the address spaces, and the small helpers every file uses. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

typedef u64 gva_t; /* guest virtual (linear) address */
typedef u64 gpa_t; /* guest physical address */
typedef u64 hva_t; /* host virtual address, as a number */

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n)        (1ul << (n))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ul
#define PAGE_MASK  (~(PAGE_SIZE - 1))

#define KIB 1024ul
#define MIB (1024ul * KIB)
#define GIB (1024ul * MIB)

/* True when [off, off+len) does not lie inside [0, size): the one overflow idiom. */
static inline bool range_exceeds(u64 off, u64 len, u64 size)
{
	return len > size || off > size - len;
}

static inline u64 align_up(u64 v, u64 to)
{
	return (v + to - 1) & ~(to - 1);
}

static inline u64 align_down(u64 v, u64 to)
{
	return v & ~(to - 1);
}
