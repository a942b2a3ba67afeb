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
	STARTS = 64, /* anew, at most: its tables do not stay the same */
	SLOTS_APART = 1 << (KERNEL_FOLD_BITS - SLOT_SHIFT),
};

_Static_assert(SLOTS / SLOTS_APART - 1 == SLOTS_BESIDE, "as many share a place");

#define LOWEST (64l * KIB) /* vm.mmap_min_addr */
#define SPAN   (2 * KERNEL_WINDOW + WINDOW_DISP + (1l << 20) - LOWEST)

/* ---- tables that share places ---- */

/* The table at @gpa, or NULL. */
static const u64 *table_at(const struct soft_vm *vm, u64 gpa)
{
	const gpa_t at = gpa & (BIT(vm->cpuid->phys_bits) - 1) & PAGE_MASK;
	const struct physmap *pm = vm->physmap;

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

/* Is anything mapped below entry @e of a root table, in any of the regions @used? */
static bool is_in_use(const struct soft_vm *vm, u64 e, const u64 used[8])
{
	const u64 *table = table_at(vm, e);

	return !table || has_any(table, used);
}

/* Is anything mapped at the places of the regions @used of entry @slot of @root? */
static bool is_shared(const struct soft_vm *vm, const u64 *root, u32 slot, const u64 used[8])
{
	for (u32 other = SLOTS_APART; other < SLOTS; other += SLOTS_APART) {
		u64 e = entry_of(root, SLOTS + (slot ^ other));

		if (e & PTE_P && is_in_use(vm, e, used))
			return true;
	}
	return false;
}

/* What of a root table's entry decides what is behind it. */
static u64 meaning(const struct soft_vm *vm, u64 entry)
{
	const u64 address = (BIT(vm->cpuid->phys_bits) - 1) & PAGE_MASK;

	return entry & PTE_P ? entry & (address | PTE_P | PTE_RW | PTE_US | PTE_NX) : 0;
}

/* Has @root at @slot what those that use the window have, and nothing at the places of @used? */
static bool has_slot(const struct soft_vm *vm, const u64 *root, u32 slot, const u64 used[8])
{
	return meaning(vm, entry_of(root, SLOTS + slot)) == vm->kernel_window->entry[slot] &&
	       !is_shared(vm, root, slot, used);
}

static bool has_all(const struct soft_vm *vm, const u64 *root)
{
	const struct kernel_window *k = vm->kernel_window;
	const u32 count = __atomic_load_n(&k->besides, __ATOMIC_ACQUIRE);

	for (u32 n = 0; n < count; n++) {
		const u32 slot = k->beside[n].slot;
		const u64 e = entry_of(root, k->beside[n].entry);

		if ((e & PTE_P && is_in_use(vm, e, k->regions[slot])) ||
		    (n % SLOTS_BESIDE == 0 &&
		     meaning(vm, entry_of(root, SLOTS + slot)) != k->entry[slot]))
			return false;
	}
	return true;
}

/*
 * A vCPU says that it uses the window after its root table has changed and before it looks at the
 * regions; who adds one looks at the others' root tables after that. So one of them sees the other.
 */
static void look(struct soft_cpu *c)
{
	const u64 *root = table_at(c->vm, c->cr3);

	atomic_store(&c->kernel_agrees, true);
	atomic_thread_fence(memory_order_seq_cst);
	if (!root || !has_all(c->vm, root))
		atomic_store(&c->kernel_agrees, false);
}

void kernel_window_look(struct soft_cpu *c)
{
	if (!c->vm->kernel_window)
		return;
	if (atomic_load(&c->kernel_agrees))
		look(c);
	else
		c->kernel_mode = 0; /* SYSCALL may lead to another mode now */
}

/* Can the others that use the window have @used of @slot in it, too? */
static bool others_have(const struct soft_cpu *c, u32 slot, const u64 used[8])
{
	const struct soft_vm *vm = c->vm;

	for (u32 n = 0; n < vm->cpus; n++) {
		const struct soft_cpu *other = vm->cpu[n];
		const u64 *root;

		if (!other || other == c || !atomic_load(&other->kernel_agrees))
			continue;
		root = table_at(vm, __atomic_load_n(&other->cr3, __ATOMIC_RELAXED));
		if (!root || !has_slot(vm, root, slot, used))
			return false;
	}
	return true;
}

/* ---- pages that are not global: of a single vCPU ---- */

/* What leads to @gva from @root on. False: nothing, or it changes. */
static bool find_path(const struct soft_vm *vm, const u64 *root, gva_t gva, struct local_page *l)
{
	const u64 *table = root;

	*l = (struct local_page){.gva = gva};
	for (u32 shift = SLOT_SHIFT; table && shift >= PAGE_SHIFT; shift -= 9) {
		const u64 *at = &table[gva >> shift & 511];
		u64 e = entry_of(at, 0);

		l->at[l->levels] = at;
		l->entry[l->levels++] = e;
		if (!(e & PTE_P))
			return false;
		if (shift == PAGE_SHIFT || (shift < SLOT_SHIFT && e & PTE_PS))
			return true;
		table = table_at(vm, e);
	}
	return false;
}

/* Is the entry of @level the same one for both, and was it the same when they were entered? */
static bool is_same_entry(const struct local_page *a, const struct local_page *b, u32 level)
{
	bool same = level ? a->at[level] == b->at[level] : !((a->gva ^ b->gva) >> SLOT_SHIFT);

	return same && level < b->levels && a->entry[level] == b->entry[level];
}

/* Which entries need not be looked at, because they have been for the page before? */
static void share_paths(struct kernel_window *k)
{
	for (u32 n = 1; n < k->locals; n++) {
		struct local_page *l = &k->local[n];

		l->own = 0;
		while (l->own < l->levels - 1 && is_same_entry(l, &k->local[n - 1], l->own))
			l->own++;
	}
	k->local[0].own = 0;
}

static bool admit_local(struct soft_cpu *c, const u64 *root, gva_t gva)
{
	struct kernel_window *k = c->vm->kernel_window;
	u32 n = 0;

	while (n < k->locals && k->local[n].gva != gva)
		n++;
	if (c->vm->cpus > 1 || n == LOCAL_PAGES || k->losses >= LOCAL_LOSSES ||
	    !find_path(c->vm, root, gva, &k->local[n]))
		return false;
	k->locals = MAX(k->locals, n + 1);
	c->ctx->local_version = ++k->local_version;
	share_paths(k);
	return true;
}

/* The TLB has them as if they were global: whoever ends the list has to think of that. */
static void forget_locals(struct soft_cpu *c)
{
	struct kernel_window *k = c->vm->kernel_window;

	while (k->locals)
		soft_tlb_drop_kernel(c, k->local[--k->locals].gva);
}

/* ---- what is in it ---- */

/* @slot comes into use: those that look see it from now on. */
static void add_slot(struct kernel_window *k, u32 slot, u64 entry)
{
	u32 count = k->besides;

	k->entry[slot] = entry;
	bitmap_set(k->slots, slot);
	for (u32 other = SLOTS_APART; other < SLOTS; other += SLOTS_APART)
		k->beside[count++] = (struct slot_beside){.entry = (u16)(SLOTS + (slot ^ other)),
							  .slot = (u16)slot};
	__atomic_store_n(&k->besides, count, __ATOMIC_RELEASE);
}

/* ... or not: it is the latest. */
static void remove_slot(struct kernel_window *k, u32 slot)
{
	__atomic_store_n(&k->besides, k->besides - SLOTS_BESIDE, __ATOMIC_RELEASE);
	bitmap_clear(k->slots, slot);
}

/* May the region of @gva be in the window? Then it is. */
static bool admit_region(struct soft_cpu *c, const u64 *root, gva_t gva)
{
	struct kernel_window *k = c->vm->kernel_window;
	const u32 slot = (u32)(gva >> SLOT_SHIFT) % SLOTS,
		  region = (u32)(gva >> REGION_SHIFT) % 512;
	const bool is_new_slot = !bitmap_test(k->slots, slot);
	const bool is_new = !bitmap_test(k->regions[slot], region);
	u64 used[8] = {0};

	bitmap_set(used, region);
	bitmap_set(k->regions[slot], region);
	if (is_new_slot)
		add_slot(k, slot, meaning(c->vm, entry_of(root, SLOTS + slot)));
	atomic_thread_fence(memory_order_seq_cst);
	if (has_slot(c->vm, root, slot, used) && (!is_new || others_have(c, slot, used)))
		return true;
	if (is_new_slot)
		remove_slot(k, slot);
	if (is_new)
		bitmap_clear(k->regions[slot], region);
	return false;
}

bool kernel_window_admits(struct soft_cpu *c, gva_t gva, bool global)
{
	const u64 *root = table_at(c->vm, c->cr3);

	return root && admit_region(c, root, gva) && (global || admit_local(c, root, gva));
}

/* With nothing in it, for the root table that @c has. False: others use it, or it has been done too
 * often. */
static bool start_over(struct soft_cpu *c)
{
	struct kernel_window *k = c->vm->kernel_window;
	bool can = true;

	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	for (u32 n = 0; n < c->vm->cpus; n++)
		can &= !c->vm->cpu[n] || !atomic_load(&c->vm->cpu[n]->kernel_agrees);
	can &= k->starts < STARTS;
	if (can) {
		k->starts++;
		window_empty(c, &k->w);
		forget_locals(c);
		k->besides = 0;
		soft_fill64(k->slots, 0, ARRAY_SIZE(k->slots));
		soft_fill64(&k->regions[0][0], 0, sizeof(k->regions) / sizeof(u64));
		atomic_store(&c->kernel_agrees, true);
	}
	pthread_mutex_unlock(&c->vm->lock);
	return can;
}

/* ---- use ---- */

void kernel_window_create(struct soft_vm *vm)
{
	const u32 flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	struct kernel_window *k;
	long at;

	if (!soft_uses(&vm->options, SOFT_KERNEL_WINDOW))
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
	vm->kernel_window = k;
}

void kernel_window_destroy(struct soft_vm *vm)
{
	if (!vm->kernel_window)
		return;
	raw_call(SYS_munmap, LOWEST, SPAN, 0, 0, 0, 0);
	free(vm->kernel_window);
	vm->kernel_window = NULL;
}

/* Pages that are not global are still to be taken out of the TLB when the time comes. */
void kernel_window_leave(struct soft_vm *vm)
{
	for (u32 n = 0; n < vm->cpus && vm->kernel_window; n++)
		if (vm->cpu[n]) {
			window_empty(vm->cpu[n], &vm->kernel_window->w);
			return;
		}
}

/* Stores by a kernel without CR0.WP reach pages that others must not store to. */
static bool is_usable(const struct soft_cpu *c)
{
	const struct soft_vm *vm = c->vm;

	return !c->cpl && (c->mode & (MODE_BITS | MODE_INTERPRET)) == MODE_BITS_64 &&
	       c->cr0 & CR0_WP && c->cr4 & CR4_PGE && (c->rip | c->msr.lstar) >> 63 &&
	       vm->physmap->fd >= 0 && !vm->dirty_log;
}

/* Compare all its pages with the guest's tables. */
static void compare(struct soft_cpu *c)
{
	__typeof__(c->exc) exc = c->exc;

	c->kernel_stale = false;
	window_revalidate(c, &c->vm->kernel_window->w);
	c->exc = exc;
}

void kernel_window_settle(struct soft_cpu *c)
{
	kernel_window_look(c);
	if (!atomic_load(&c->kernel_agrees))
		soft_update_mode(c);
	else if (c->kernel_stale)
		compare(c);
}

u32 kernel_window_mode(struct soft_cpu *c)
{
	if (!c->vm->kernel_window)
		return 0;
	if (!is_usable(c)) {
		atomic_store(&c->kernel_agrees, false);
		return 0;
	}
	if (!atomic_load(&c->kernel_agrees) || c->kernel_stale)
		look(c);
	if (!atomic_load(&c->kernel_agrees) && !start_over(c))
		return 0;
	if (c->kernel_stale)
		compare(c);
	return MODE_WINDOW;
}

void kernel_window_flush(struct soft_cpu *c)
{
	if (!c->vm->kernel_window)
		return;
	c->kernel_stale = true;
	if (c->vm->cpus == 1)
		c->vm->kernel_window->locals = 0; /* comparing lets none of them stay */
}

void kernel_window_flush_page(struct soft_cpu *c, gva_t gva)
{
	struct soft_window *w = kernel_window_of(c->vm);
	struct window_page *p;

	if (!w || !(gva >> 63))
		return;
	kernel_window_look(c);
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	/* Pages of a larger one may be entered one by one. */
	if (w->has_pieces && window_may_be_large(w, gva))
		c->kernel_stale = true;
	p = w->pages ? window_page_at(w, gva) : NULL;
	if (p && p->prot && !((p->gva ^ gva) >> p->shift))
		window_protect_page(c, w, p, PROT_NONE);
	pthread_mutex_unlock(&c->vm->lock);
}

bool kernel_window_knows(struct soft_cpu *c, gva_t gva, bool write, struct soft_xlat *x)
{
	struct soft_window *w = kernel_window_of(c->vm);
	const struct window_page *p;
	const struct physmap_region *r;

	if (!w || c->vm->cpus > 1 || !w->pages || c->kernel_stale ||
	    !atomic_load(&c->kernel_agrees) || !(gva >> 63) || !is_usable(c))
		return false;
	p = window_page_at(w, gva);
	if (!p || (p->gva ^ gva) >> p->shift || !(p->prot & (write ? PROT_WRITE : PROT_READ)))
		return false;
	x->host = (u8 *)p->host + (gva - p->gva);
	r = window_region(c->vm, (u64)x->host);
	x->gpa = r->gpa + (gpa_t)(x->host - r->hva);
	x->page = window_page_index(r, (u64)x->host);
	x->shift = p->page_shift;
	x->writable = p->prot & PROT_WRITE;
	x->global = true;
	x->rom = x->user = false;
	return true;
}

/* Does the page of @l have the same entries, from @root on? */
static bool path_stays(const struct local_page *l, const u64 *root)
{
	u64 changes = 0;
	u32 n = l->own;

	if (!n)
		changes = entry_of(root, l->gva >> SLOT_SHIFT & 511) ^ l->entry[n++];
	for (; n < l->levels; n++)
		changes |= entry_of(l->at[n], 0) ^ l->entry[n];
	return !changes;
}

static void take_local(struct soft_cpu *c, struct soft_window *w, gva_t gva)
{
	struct window_page *p = window_page_at(w, gva);

	soft_tlb_drop_kernel(c, gva);
	if (!p || !p->prot)
		return;
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	window_protect_page(c, w, p, PROT_NONE);
	pthread_mutex_unlock(&c->vm->lock);
}

void kernel_window_drop_local(struct soft_cpu *c, bool flush)
{
	struct kernel_window *k = c->vm->kernel_window;
	const u64 *root;

	if (!k || (!flush && c->ctx->local_version == k->local_version))
		return;
	c->ctx->local_version = k->local_version;
	root = table_at(c->vm, c->cr3);
	for (u32 n = 0; n < k->locals;) {
		if (root && path_stays(&k->local[n], root)) {
			n++;
			continue;
		}
		take_local(c, &k->w, k->local[n].gva);
		k->losses++;
		k->local[n] = k->local[--k->locals];
		share_paths(k);
	}
}

/* ---- blocks ---- */

static u32 refused_bit(gpa_t pa)
{
	return (u32)(pa * 0x9e3779b97f4a7c15ul >> 48) % REFUSED_BITS;
}

void kernel_window_refuse(struct soft_cpu *c, struct block *b)
{
	bitmap_set(c->vm->kernel_window->refused, refused_bit(b->pa));
	if (!b->dead)
		cache_drop(c->vm, b);
}

bool kernel_window_refuses(const struct soft_cpu *c, gpa_t pa, u32 mode)
{
	return (mode & (MODE_WINDOW | MODE_USER)) == MODE_WINDOW &&
	       bitmap_test(c->vm->kernel_window->refused, refused_bit(pa));
}
