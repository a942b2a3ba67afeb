/* Pages in windows: what is mapped, how, and how that is changed. */
#include "engine/soft/window_map.h"

#include "engine/soft/tlb.h"
#include "engine/soft/util.h"
#include "host/raw_call.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { LARGE_SHIFT = 21 };

/* ---- host mappings; vector state may be live ---- */

static bool host_protect(u8 *at, u64 size, u8 prot)
{
	return raw_call(SYS_mprotect, (u64)at, size, prot, 0, 0, 0) == 0;
}

static bool host_map(u8 *at, u64 size, u8 prot, int fd, u64 offset)
{
	u32 flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;

	return raw_call(SYS_mmap, (u64)at, size, prot, flags, (u64)fd, offset) == (long)at;
}

static bool host_unmap(u8 *at, u64 size)
{
	u32 flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	return raw_call(SYS_mmap, (u64)at, size, PROT_NONE, flags, ~0ul, 0) == (long)at;
}

/* ---- pages of a window ---- */

/* What of an address tells two places in the window apart. */
static u64 place_in(const struct soft_window *w, gva_t gva)
{
	return w->box ? gva : window_fold(w, gva);
}

static u32 hash_of(const struct soft_window *w, gva_t gva, u8 shift)
{
	return (u32)(((window_fold(w, gva) >> shift) * 0x9e3779b97f4a7c15ul + shift) >> 40) %
	       WINDOW_HASH;
}

/* Where the mapping of 1 << @shift bytes around @gva is entered, or where it would be. */
static u16 *place_of(struct soft_window *w, gva_t gva, u8 shift)
{
	u32 n = hash_of(w, gva, shift);

	for (; w->hash[n]; n = (n + 1) % WINDOW_HASH) {
		const struct window_page *p = &w->page[w->hash[n] - 1];

		if (p->shift == shift && !(place_in(w, p->gva ^ gva) >> shift))
			break;
	}
	return &w->hash[n];
}

bool window_may_be_large(const struct soft_window *w, gva_t gva)
{
	return bitmap_test(w->large, (gva >> LARGE_SHIFT) % (64 * ARRAY_SIZE(w->large)));
}

/* The mapping that holds @gva's place; NULL: none. */
struct window_page *window_page_at(struct soft_window *w, gva_t gva)
{
	u16 at = *place_of(w, gva, PAGE_SHIFT);

	if (!at && window_may_be_large(w, gva))
		at = *place_of(w, gva, LARGE_SHIFT);
	return at ? &w->page[at - 1] : NULL;
}

static u8 *address_in(const struct soft_window *w, gva_t gva)
{
	return w->base + window_fold(w, gva);
}

bool window_set_prot(struct soft_window *w, gva_t gva, u64 size, u8 prot)
{
	if (!w->box)
		return host_protect(address_in(w, gva), size, prot);
	return prot ? box_protect(w->box, gva, size, prot) : box_unmap(w->box, gva, size);
}

static bool set_mapping(struct soft_window *w, gva_t gva, u64 size, u8 prot, int fd, u64 offset)
{
	return w->box ? box_map(w->box, gva, size, prot, offset)
		      : host_map(address_in(w, gva), size, prot, fd, offset);
}

/*
 * Nothing is to be accessed in the window any more. The host splits no mapping for that, so that
 * it has no reason to refuse, as it has for a single page where it counts too many mappings.
 */
void window_shut(struct soft_window *w)
{
	if (!w->box && !host_protect(w->base, w->fold + 1, PROT_NONE))
		__builtin_trap();
	w->is_void = true; /* which a box's own thread looks at before it runs */
}

void window_empty(struct soft_cpu *c, struct soft_window *w)
{
	if (!w->pages)
		return;
	if (w->box)
		box_clear(w->box);
	else if (!host_unmap(w->base, w->fold + 1) &&
		 !host_protect(w->base, w->fold + 1, PROT_NONE))
		__builtin_trap();
	c->counters[COUNT_WINDOW_UNMAPS] += w->pages;
	w->pages = 0;
	w->has_pieces = false;
	soft_fill64((u64 *)(void *)w->hash, 0, sizeof(w->hash) / (sizeof(u64)));
	soft_fill64(w->large, 0, ARRAY_SIZE(w->large));
}

/*
 * A change could not be made. A box has more of them than it can note, the kernel's window more
 * mappings than the host allows: they start over.
 */
void window_give_way(struct soft_cpu *c, struct soft_window *w)
{
	if (!w->ctx || (w->box && c == &soft_tls_cpu))
		window_empty(c, w);
	else
		window_shut(w);
}

void window_protect_page(struct soft_cpu *c, struct soft_window *w, struct window_page *p, u8 prot)
{
	if (!window_set_prot(w, p->gva, window_page_size(p), prot))
		window_give_way(c, w);
	p->prot = prot;
	c->counters[COUNT_WINDOW_UNMAPS]++;
}

const struct physmap_region *window_region(const struct soft_vm *vm, u64 host)
{
	for (u32 i = 0; i < vm->physmap->count; i++) {
		const struct physmap_region *r = &vm->physmap->region[i];

		if (host - (u64)r->hva < r->size)
			return r;
	}
	return NULL;
}

u64 window_page_index(const struct physmap_region *r, u64 host)
{
	return r->page0 + ((host - (u64)r->hva) >> PAGE_SHIFT);
}

static bool window_any_is_watched(struct soft_vm *vm, u64 page, u64 count)
{
	u8 all = 0;

	for (u64 n = 0; n < count; n++)
		all |= atomic_load_explicit(&vm->page_flags[page + n], memory_order_relaxed);
	return all & PAGE_WATCHED;
}

/*
 * Does the guest's large page around lie in one piece here too, with nothing in it watched, or, in
 * the kernel's window, with little?
 */
static bool widen(struct soft_vm *vm, const struct soft_window *w, const struct physmap_region *r,
		  struct window_mapping *m)
{
	const u64 size = 1ul << LARGE_SHIFT, rest = m->gva & (size - 1);
	u64 host = m->host - rest, gpa = host - (u64)r->hva + r->gpa;

	if (m->exec || m->page_shift < LARGE_SHIFT || gpa & (size - 1) || host < (u64)r->hva ||
	    host + size > (u64)r->hva + r->size ||
	    (w->ctx && window_any_is_watched(vm, window_page_index(r, host), size >> PAGE_SHIFT)))
		return false;
	m->gva -= rest;
	m->host = host;
	m->shift = LARGE_SHIFT;
	return true;
}

static void window_note_writable(struct soft_vm *vm, u64 page, u64 count)
{
	for (u64 n = 0; n < count; n++)
		atomic_fetch_or(&vm->page_flags[page + n], PAGE_IN_WINDOW);
}

/* What was just mapped as @m for reading may be stored to where it is not watched. */
static bool allow_unwatched(struct soft_vm *vm, struct soft_window *w, u64 page,
			    const struct window_mapping *m)
{
	const u64 count = 1ul << (m->shift - PAGE_SHIFT);
	bool done = true;

	for (u64 n = 0, end; n < count && done; n = end) {
		while (n < count && window_any_is_watched(vm, page + n, 1))
			n++;
		for (end = n; end < count && !window_any_is_watched(vm, page + end, 1);)
			end++;
		if (n < count)
			done = window_set_prot(w, m->gva + (n << PAGE_SHIFT),
					       (end - n) << PAGE_SHIFT, PROT_READ | PROT_WRITE);
	}
	return done;
}

/* Forget pages that are not mapped any more. */
static void compact(struct soft_window *w)
{
	u32 kept = 0;

	soft_fill64((u64 *)(void *)w->hash, 0, sizeof(w->hash) / (sizeof(u64)));
	for (u32 n = 0; n < w->pages; n++)
		if (w->page[n].prot)
			w->page[kept++] = w->page[n];
	for (u32 n = 0; n < kept; n++)
		*place_of(w, w->page[n].gva, w->page[n].shift) = (u16)(n + 1);
	w->pages = kept;
}

/*
 * A program may have more pages than its window has room for, or those before it that had the same
 * root table may have left theirs. If forgetting these helps little, a box and the kernel's window
 * start over.
 */
static bool make_room(struct soft_cpu *c, struct soft_window *w)
{
	compact(w);
	if (w->pages < WINDOW_PAGES - WINDOW_PAGES / 4)
		return true;
	w->is_full = w->ctx && !w->box;
	if (!w->is_full)
		window_empty(c, w);
	return !w->is_full;
}

/* Map @p of @w, or have it mapped, as @m says, which has @prot. False: the host refused. */
static bool set_page(struct soft_cpu *c, struct soft_window *w, const struct window_page *p,
		     const struct window_mapping *m, u8 prot)
{
	const struct physmap_region *r = window_region(c->vm, m->host);
	const u64 page = window_page_index(r, m->host), size = 1ul << m->shift;
	bool in_part = m->writable && m->shift > PAGE_SHIFT &&
		       window_any_is_watched(c->vm, page, size >> PAGE_SHIFT);
	bool done;

	if (in_part) /* others may be storing to it already */
		prot &= (u8)~PROT_WRITE;
	if (p->prot && p->host == m->host && p->gva == m->gva)
		done = window_set_prot(w, m->gva, size, prot);
	else
		done = set_mapping(w, m->gva, size, prot, c->vm->physmap->fd,
				   r->gpa + (m->host - (u64)r->hva));
	return done && (!in_part || allow_unwatched(c->vm, w, page, m));
}

/* The entry for @m, a new one if there is none; NULL: no room. */
static struct window_page *get_entry(struct soft_cpu *c, struct soft_window *w,
				     const struct window_mapping *m)
{
	u16 *place = place_of(w, m->gva, m->shift);

	if (!*place && w->pages == WINDOW_PAGES) {
		if (!make_room(c, w))
			return NULL;
		place = place_of(w, m->gva, m->shift);
	}
	if (!*place) {
		w->page[w->pages] = (struct window_page){.gva = m->gva, .shift = m->shift};
		*place = (u16)++w->pages;
	}
	return &w->page[*place - 1];
}

/* Enter and map. vm->lock held. False: no room, or the place is taken. */
bool window_enter(struct soft_cpu *c, struct soft_window *w, struct window_mapping m)
{
	const struct physmap_region *r = window_region(c->vm, m.host);
	struct window_page *p;
	u8 prot;

	if (!r || w->is_void)
		return false;
	if (!widen(c->vm, w, r, &m) &&
	    window_any_is_watched(c->vm, window_page_index(r, m.host), 1))
		m.writable = false;
	p = get_entry(c, w, &m);
	if (!p || (p->gva != m.gva && p->prot))
		return false;
	prot = PROT_READ | (m.writable ? PROT_WRITE : 0) | m.exec;
	if (p->prot & PROT_EXEC && p->host == m.host && !m.writable)
		prot |= PROT_EXEC;
	if (m.writable)
		window_note_writable(c->vm, window_page_index(r, m.host),
				     1ul << (m.shift - PAGE_SHIFT));
	w->has_pieces |= m.page_shift > m.shift && m.shift == PAGE_SHIFT;
	if (m.page_shift > PAGE_SHIFT)
		bitmap_set(w->large, (m.gva >> LARGE_SHIFT) % (64 * ARRAY_SIZE(w->large)));
	if (!set_page(c, w, p, &m, prot)) {
		window_give_way(c, w); /* who knows what is there now */
		return false;
	}
	p->gva = m.gva;
	p->host = m.host;
	p->prot = prot;
	p->page_shift = m.page_shift;
	c->counters[COUNT_WINDOW_MAPS]++;
	return true;
}

/* May the page of @p, which is mapped, be written now? Part of a large mapping may not have been.
 */
bool window_allow_writing(struct soft_cpu *c, struct soft_window *w, struct window_page *p,
			  gva_t gva)
{
	u64 host = p->host + (gva - p->gva);
	const struct physmap_region *r = window_region(c->vm, host);

	if (!r || window_any_is_watched(c->vm, window_page_index(r, host), 1))
		return false;
	window_note_writable(c->vm, window_page_index(r, host), 1);
	return window_set_prot(w, gva & PAGE_MASK, PAGE_SIZE, PROT_READ | PROT_WRITE);
}

/* ---- boxes ---- */

u8 window_prot(struct soft_window *w, gva_t gva)
{
	const struct window_page *p = window_page_at(w, gva);

	return p ? p->prot : 0;
}

bool window_map(struct soft_cpu *c, struct soft_window *w, gva_t gva, const struct soft_xlat *x,
		u8 exec)
{
	const struct window_mapping m = {.gva = gva,
					 .host = (u64)x->host & PAGE_MASK,
					 .shift = PAGE_SHIFT,
					 .page_shift = x->shift,
					 .writable = x->writable && !exec,
					 .exec = exec};
	struct window_page *p;
	bool done = false;

	pthread_mutex_lock(&c->vm->lock);
	p = w->is_void ? NULL : window_page_at(w, gva);
	if (p && p->shift > PAGE_SHIFT && p->prot & PROT_WRITE && x->writable)
		done = window_allow_writing(c, w, p, gva);
	else if (!exec || atomic_load(&c->vm->page_flags[x->page]) & PAGE_IS_DIRECT)
		done = window_enter(c, w, m);
	pthread_mutex_unlock(&c->vm->lock);
	return done;
}

void window_unmap(struct soft_cpu *c, struct soft_window *w, gva_t gva)
{
	struct window_page *p;

	pthread_mutex_lock(&c->vm->lock);
	p = window_page_at(w, gva);
	if (p && p->prot)
		window_protect_page(c, w, p, 0);
	pthread_mutex_unlock(&c->vm->lock);
}

int window_prepare(struct soft_cpu *c, struct soft_window *w)
{
	int r;

	pthread_mutex_lock(&c->vm->lock);
	r = w->is_void ? -ESTALE : box_prepare(w->box);
	pthread_mutex_unlock(&c->vm->lock);
	return r;
}
