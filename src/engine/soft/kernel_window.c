/* See kernel_window.h. */
#include "engine/soft/kernel_window.h"

#include "engine/soft/cache.h"
#include "engine/soft/tlb.h"
#include "engine/soft/window_map.h"
#include "host/raw_call.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum {
	REGION_SHIFT = 30,
	SLOT_SHIFT = 39,
	SLOTS_APART = 1 << (KERNEL_FOLD_BITS - SLOT_SHIFT),
};

#define LOWEST (64l * KIB) /* vm.mmap_min_addr */
#define SPAN   (2 * KERNEL_WINDOW + WINDOW_DISP + (1l << 20) - LOWEST)

void kernel_window_create(struct soft_cpu *c)
{
	const u32 flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	struct kernel_window *k;
	long at;

	if (!soft_uses(&c->vm->options, SOFT_KERNEL_WINDOW) || c->id)
		return;
	k = calloc(1, sizeof(*k));
	if (!k)
		return;
	/* Not through a sanitizer, which would prepare shadows for all of it. */
	at = raw_call(SYS_mmap, LOWEST, SPAN, PROT_NONE, flags, ~0ul, 0);
	if (at != LOWEST) {
		if (at > 0) /* a host that does not know MAP_FIXED_NOREPLACE */
			raw_call(SYS_munmap, (u64)at, SPAN, 0, 0, 0, 0);
		free(k);
		return;
	}
	k->w.base = (u8 *)KERNEL_WINDOW;
	k->w.fold = KERNEL_FOLD;
	k->w.root = WINDOW_FREE;
	k->w.fault = k->w.away = NO_PAGE;
	c->kernel_window = k;
}

void kernel_window_destroy(struct soft_cpu *c)
{
	struct kernel_window *k = c->kernel_window;

	if (!k)
		return;
	pthread_mutex_lock(&c->vm->lock);
	c->kernel_window = NULL;
	pthread_mutex_unlock(&c->vm->lock);
	raw_call(SYS_munmap, LOWEST, SPAN, 0, 0, 0, 0);
	free(k);
}

void kernel_window_leave(struct soft_cpu *c)
{
	if (c && c->kernel_window)
		window_empty(c, &c->kernel_window->w);
}

static bool is_usable(const struct soft_cpu *c)
{
	const struct soft_vm *vm = c->vm;

	return !c->cpl && (c->mode & (MODE_BITS | MODE_INTERPRET)) == MODE_BITS_64 &&
	       c->cr4 & CR4_PGE && (c->rip | c->msr.lstar) >> 63 && vm->cpus == 1 &&
	       vm->physmap->fd >= 0 && !vm->dirty_log && !c->kernel_window->w.is_void;
}

static void compare(struct soft_cpu *c)
{
	__typeof__(c->exc) exc = c->exc;

	kernel_window_look(c);
	if (c->kernel_window->w.stale)
		window_revalidate(c, &c->kernel_window->w);
	c->exc = exc;
}

void kernel_window_settle(struct soft_cpu *c)
{
	compare(c);
	if (c->kernel_window->w.is_void)
		soft_update_mode(c);
}

u32 kernel_window_mode(struct soft_cpu *c)
{
	if (!c->kernel_window || !is_usable(c))
		return 0;
	if (c->kernel_window->w.stale)
		compare(c);
	return c->kernel_window->w.is_void ? 0 : MODE_WINDOW;
}

void kernel_window_flush(struct soft_cpu *c)
{
	if (c->kernel_window && c->kernel_window->w.pages)
		c->kernel_window->w.stale = true;
}

void kernel_window_flush_page(struct soft_cpu *c, gva_t gva)
{
	struct soft_window *w = kernel_window_of(c);
	struct window_page *p;

	if (!w || !w->pages || !(gva >> 63))
		return;
	kernel_window_look(c);
	/* Pages of a larger one may be entered one by one. */
	if (w->has_pieces && window_may_be_large(w, gva))
		w->stale = true;
	p = window_page_at(w, gva);
	if (!p || !p->prot || (p->gva ^ gva) >> p->shift)
		return;
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	window_protect_page(c, w, p, PROT_NONE);
	pthread_mutex_unlock(&c->vm->lock);
}

/* ---- tables that share places ---- */

/* The table at @gpa, or NULL. */
static const u64 *table_at(const struct soft_cpu *c, u64 gpa)
{
	const gpa_t at = gpa & (BIT(c->vm->cpuid->phys_bits) - 1) & PAGE_MASK;
	const struct physmap *pm = c->vm->physmap;

	for (u32 i = 0; i < pm->count; i++)
		if (at - pm->region[i].gpa < pm->region[i].size)
			return (const u64 *)(void *)(pm->region[i].hva + (at - pm->region[i].gpa));
	return NULL;
}

static u64 entry_of(const u64 *table, u32 n)
{
	return __atomic_load_n(&table[n], __ATOMIC_RELAXED);
}

/* Is there an entry in @table for any of @used? */
static bool has_any(const u64 *table, const u64 used[8])
{
	for (u32 n = 0; n < 8; n++)
		for (u64 left = used[n]; left; left &= left - 1)
			if (entry_of(table, n * 64 + (u32)__builtin_ctzl(left)) & PTE_P)
				return true;
	return false;
}

/* Is anything mapped at the places of the regions @used of entry @slot of @root? */
static bool is_shared(const struct soft_cpu *c, const u64 *root, u32 slot, const u64 used[8])
{
	for (u32 other = SLOTS_APART; other < SLOTS; other += SLOTS_APART) {
		u64 e = entry_of(root, SLOTS + (slot ^ other));
		const u64 *table = e & PTE_P ? table_at(c, e) : NULL;

		if (e & PTE_P && (!table || has_any(table, used)))
			return true;
	}
	return false;
}

bool kernel_window_admits(struct soft_cpu *c, gva_t gva)
{
	struct kernel_window *k = c->kernel_window;
	const u64 *root = table_at(c, c->cr3);
	u32 slot = (u32)(gva >> SLOT_SHIFT) % SLOTS, region = (u32)(gva >> REGION_SHIFT) % 512;
	u64 used[8] = {0};

	bitmap_set(used, region);
	if (!root || is_shared(c, root, slot, used))
		return false;
	bitmap_set(k->slots, slot);
	bitmap_set(k->regions[slot], region);
	return true;
}

void kernel_window_look(struct soft_cpu *c)
{
	struct kernel_window *k = c->kernel_window;
	const u64 *root;

	if (!k || !k->w.pages || k->w.is_void)
		return;
	root = table_at(c, c->cr3);
	for (u32 n = 0; n < ARRAY_SIZE(k->slots); n++)
		for (u64 left = k->slots[n]; left; left &= left - 1) {
			u32 slot = n * 64 + (u32)__builtin_ctzl(left);

			if (root && !is_shared(c, root, slot, k->regions[slot]))
				continue;
			pthread_mutex_lock(&c->vm->lock);
			window_shut(&k->w);
			pthread_mutex_unlock(&c->vm->lock);
			return;
		}
}

/* ---- blocks ---- */

static u32 refused_bit(gpa_t pa)
{
	return (u32)(pa * 0x9e3779b97f4a7c15ul >> 48) % REFUSED_BITS;
}

void kernel_window_refuse(struct soft_cpu *c, struct block *b)
{
	bitmap_set(c->kernel_window->refused, refused_bit(b->pa));
	if (!b->dead)
		cache_drop(c->vm, b);
}

bool kernel_window_refuses(const struct soft_cpu *c, gpa_t pa, u32 mode)
{
	return (mode & (MODE_WINDOW | MODE_USER)) == MODE_WINDOW &&
	       bitmap_test(c->kernel_window->refused, refused_bit(pa));
}
