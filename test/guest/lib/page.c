/*
 * Page tables of the 64-bit environment: see the map in guest.h.
 */
#include "guest.h"

enum { ARENA_END = 56 << 20 };

extern u8 image_end[];
extern u64 boot_pml4[512]; /* boot64.S: in use while the others are made anew */

static u64 pml4[512] __attribute__((aligned(4096)));
static u64 pdpt[512] __attribute__((aligned(4096)));
static u64 directory[3][512] __attribute__((aligned(4096)));
static u64 arena;

static void fill_directory(u64 *table, u64 pa, u64 bits)
{
	for (u32 i = 0; i < 512; i++) {
		*(volatile u64 *)&table[i] = pa | bits;
		pa += 2 << 20;
	}
}

void page_reset(void)
{
	arena = (u64)image_end;
	write_cr3((u64)boot_pml4);
	memset(pml4, 0, sizeof(pml4));
	memset(pdpt, 0, sizeof(pdpt));
	fill_directory(directory[0], 0, PTE_P | PTE_W | PTE_PS);
	fill_directory(directory[1], 0, PTE_P | PTE_W | PTE_U | PTE_PS);
	fill_directory(directory[2], 0xc0000000, PTE_P | PTE_W | PTE_PCD | PTE_PS);
	pml4[0] = (u64)pdpt | PTE_P | PTE_W | PTE_U;
	pdpt[0] = (u64)directory[0] | PTE_P | PTE_W;
	pdpt[1] = (u64)directory[1] | PTE_P | PTE_W | PTE_U;
	pdpt[3] = (u64)directory[2] | PTE_P | PTE_W;
	write_cr3((u64)pml4);
}

void *pages_alloc(u32 count, u64 align)
{
	void *p = (void *)((arena + align - 1) & ~(align - 1));

	arena = (u64)p + count * PAGE_SIZE;
	if (arena > ARENA_END)
		die("out of pages");
	memset(p, 0, count * PAGE_SIZE);
	return p;
}

void *page_alloc(void)
{
	return pages_alloc(1, PAGE_SIZE);
}

u64 *page_entry(u64 va, int level)
{
	u64 *table = pml4;

	for (int l = 4; l > level; l--) {
		u64 *entry = &table[va >> (12 + 9 * (l - 1)) & 511];

		if (!(*entry & PTE_P))
			*entry = (u64)page_alloc() | PTE_P | PTE_W | PTE_U;
		else if (*entry & PTE_PS)
			die("0x%lx lies in a large page", va);
		table = (u64 *)(*entry & 0xffffffffff000);
	}
	return &table[va >> (12 + 9 * (level - 1)) & 511];
}

u64 *page_map(u64 va, u64 pa, u64 bits)
{
	u64 *entry = page_entry(va, 1);

	*(volatile u64 *)entry = pa | bits;
	invlpg((void *)va);
	return entry;
}

/* Global pages too. */
void tlb_flush(void)
{
	u64 cr4 = read_cr4();

	write_cr4(cr4 ^ CR4_PGE);
	write_cr4(cr4);
}
