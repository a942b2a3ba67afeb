/*
 * What mmu.c, which fills the tables of a context, and tlb.c, which empties them, have in common.
 */
#pragma once

#include "engine/soft/soft.h"

static inline u32 tlb_index(gva_t gva)
{
	return (gva >> PAGE_SHIFT) % TLB_SIZE;
}

static inline u32 fetch_index(gva_t gva)
{
	return (gva >> PAGE_SHIFT) % FETCH_SIZE;
}

/* Lower (0) or upper (1) half of the address space. */
static inline u32 address_half(gva_t gva)
{
	return gva >> 47 & 1;
}

static inline u32 tlb_half(u32 access)
{
	return access & ACC_USER ? HALF_USER : HALF_SUPER;
}

/*
 * Tags are read by soft_drop_write_tags() on other threads, hence atomic stores; the order of
 * stores is the program's on x86.
 */
static inline void tlb_set_tag(u64 *tag, u64 value)
{
	__atomic_store_n(tag, value, __ATOMIC_RELEASE);
}

/* Also from other threads. */
static inline void stack_page_clear(struct soft_half *h)
{
	for (u32 n = 0; n < 2; n++)
		__atomic_store_n(&h->stack.limit[n], 0, __ATOMIC_RELEASE);
}

/* May the page at @host be written through the stack page? Another thread's question. */
static inline bool stack_page_is(const struct soft_half *h, u64 host)
{
	return (__atomic_load_n(&h->stack.limit[0], __ATOMIC_RELAXED) ||
		__atomic_load_n(&h->stack.limit[1], __ATOMIC_RELAXED)) &&
	       h->stack.base + h->stack.delta == host;
}

static inline void tlb_entry_clear(struct soft_half *h, u32 i)
{
	struct tlb_entry *e = &h->tlb[i];

	tlb_set_tag(&e->tag_write, TLB_EMPTY(i));
	tlb_set_tag(&e->tag_read, TLB_EMPTY(i));
	stack_page_clear(h);
}

/* Forget what the kernel knows of the page of @gva, and of what else comes from a larger one. */
void soft_tlb_drop_kernel(struct soft_cpu *c, gva_t gva);

/* Position of RAM page @page in soft_half.write_pages. */
static inline u32 write_page_bit(u64 page)
{
	return page % (64 * ARRAY_SIZE(((struct soft_half *)0)->write_pages));
}

/* Positions in the sets of large regions. */
static inline u32 large_bit(gva_t gva)
{
	return (gva >> 21) % (64 * ARRAY_SIZE(((struct soft_half *)0)->large[0]));
}

static inline u64 exec_large_bit(gva_t gva)
{
	return BIT((gva >> 21) % 64);
}

static inline u64 huge_bit(gva_t gva)
{
	return BIT((gva >> 30) % 64);
}

/* Position of a virtual page in soft_half.exec_pages: libraries lie far apart, so higher bits
 * count.
 */
static inline u32 exec_page_bit(gva_t gva)
{
	u64 vpn = gva >> PAGE_SHIFT;

	return (vpn ^ vpn >> 12) % (64 * ARRAY_SIZE(((struct soft_half *)0)->exec_pages));
}

static inline void bitmap_set(u64 *map, u32 bit)
{
	__atomic_store_n(&map[bit / 64], map[bit / 64] | BIT(bit % 64), __ATOMIC_RELAXED);
}

static inline void bitmap_clear(u64 *map, u32 bit)
{
	map[bit / 64] &= ~BIT(bit % 64);
}

static inline bool bitmap_test(const u64 *map, u32 bit)
{
	return __atomic_load_n(&map[bit / 64], __ATOMIC_RELAXED) & BIT(bit % 64);
}
