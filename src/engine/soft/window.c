/*
 * Windows: which address spaces get one, what is mapped there, and when it must go.
 *
 * Theory of operation. A window is a TLB with the host's MMU for hardware: it obeys the same
 * invalidations as the context it belongs to, and the same things keep a page from being written in
 * it (mmu.c). Invalidating one page takes it out at once; invalidating the whole context only marks
 * the window stale, and before user code runs in it again each page is compared with the guest's
 * tables, because mapping pages anew costs some thousand times more than comparing.
 *
 * To map a page costs a few microseconds, hence only address spaces get a window whose user code
 * was found running by HEAT ticks (interrupts at least a millisecond apart), and one that keeps
 * faulting or losing pages loses it again.
 *
 * A context whose PCID the guest gives to another address space leaves its window detached: it
 * keeps its pages for when the same root table is loaded again.
 *
 * Threads. A window belongs to its vCPU's thread; its pages are changed under vm->lock, because
 * another thread may have to take away write permission (windows_protect()) or the whole window
 * (windows_root_stored()). The host sees to it that no store is under way afterwards.
 */
#include "engine/soft/window_map.h"

#include "engine/soft/decode.h"
#include "engine/soft/direct.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/ticker.h"
#include "engine/soft/tlb.h"
#include "engine/soft/translate.h"
#include "engine/soft/util.h"
#include "host/box.h"

#include <stdlib.h>
#include <sys/mman.h>

enum {
	COOLING = 500,        /* ticks, */
	BOX_COOLING = 30,     /* at first; twice as many with each box that was no gain, */
	BOX_DROPS_MAX = 4,    /* up to this one */
	TICK_NS = 1000000,    /* at least */
	BUSY = 40,            /* system calls and exceptions in DIRECT_TICK_NS, */
	COLD_NS = 400000,     /* spent translating a program that might run by itself */
	JUDGED_TICKS = 8,     /* until a window is judged */
	FAULT_NS = 3000,      /* what a signal costs, about */
	GAIN = 30,            /* per cent of the time in user code that a window earns, about */
	BOX_STOP_NS = 7000,   /* what it costs to start and stop one, about, */
	BOX_CHANGE_NS = 2000, /* and to change a mapping */
	BOX_LONG_NS = 20000,  /* runs of one that are worth a look at its processor time */
	DEBT_MS = 50,         /* what it may owe */
	BOX_DEBT_MS = 120,
	ROOT_STORES = 64,   /* a root table that is written more often is none any more */
	ROOT_ENTRIES = 256, /* of the lower half */
	ROOT_GROUPS = WINDOW_SIZE >> 39,
	FEW_PAGES = 16,   /* say nothing about the program */
	MAX_WINDOWS = 12, /* of a VM that are not boxes: address space is limited */
};
#define WINDOW_TAIL (WINDOW_DISP + (1l << 20))
#define PTE_PRESENT 1ul

/* The time since @start went to keeping the window. */
static void spend(struct soft_cpu *c, struct soft_window *w, u64 start)
{
	u64 cycles = __builtin_ia32_rdtsc() - start;

	if (w->box)
		direct_account(c, w, cycles, 0);
	else if (w->ctx) /* and not the kernel's, which is not judged */
		w->spent += cycles;
	c->counters[COUNT_WINDOW_CYCLES] += cycles;
}

/* ---- the root table ---- */

static const struct physmap_region *root_region(const struct soft_vm *vm, u64 root)
{
	return physmap_find(vm->physmap, root);
}

/* Do two entries in use share a place? */
static bool root_collides(const struct soft_vm *vm, u64 root)
{
	const struct physmap_region *r = root_region(vm, root);
	u32 used[ROOT_GROUPS] = {0};
	const u64 *entry;

	if (!r)
		return true;
	entry = (const u64 *)(void *)(r->hva + (root - r->gpa));
	for (u32 n = 0; n < ROOT_ENTRIES; n++)
		if (__atomic_load_n(&entry[n], __ATOMIC_RELAXED) & PTE_PRESENT &&
		    ++used[n % ROOT_GROUPS] > 1)
			return true;
	return false;
}

static bool root_is_used(const struct soft_vm *vm, u64 root)
{
	for (u32 n = 0; n < vm->cpus; n++)
		for (u32 i = 0; vm->cpu[n] && i < SOFT_WINDOWS_MAX; i++)
			if (vm->cpu[n]->window[i] && vm->cpu[n]->window[i]->root == root)
				return true;
	return false;
}

/* Have stores to the root table seen. False: try again later. Gives up to other vCPUs meanwhile. */
static bool root_watch(struct soft_cpu *c, u64 root)
{
	const struct physmap_region *r = root_region(c->vm, root);
	u64 page, host, epoch;

	if (!r)
		return false;
	page = r->page0 + ((root - r->gpa) >> PAGE_SHIFT);
	host = (u64)r->hva + (root - r->gpa);
	pthread_mutex_lock(&c->vm->lock);
	atomic_fetch_or(&c->vm->page_flags[page], PAGE_IS_ROOT);
	soft_drop_write_tags(c->vm, page, (u8 *)host);
	epoch = atomic_load(&c->vm->epoch);
	pthread_mutex_unlock(&c->vm->lock);
	return soft_settle(c->vm, c, soft_stale_bit(host), epoch);
}

/* vm->lock held. */
static void root_unwatch(struct soft_vm *vm, u64 root)
{
	const struct physmap_region *r = root_region(vm, root);

	if (r && !root_is_used(vm, root))
		atomic_fetch_and(&vm->page_flags[r->page0 + ((root - r->gpa) >> PAGE_SHIFT)],
				 (u8)~PAGE_IS_ROOT);
}

/* The address of RAM page @page. */
static u64 page_gpa(const struct soft_vm *vm, u64 page)
{
	for (u32 i = 0; i < vm->physmap->count; i++) {
		const struct physmap_region *r = &vm->physmap->region[i];

		if (page - r->page0 < r->size >> PAGE_SHIFT)
			return r->gpa + ((page - r->page0) << PAGE_SHIFT);
	}
	return WINDOW_FREE;
}

void windows_root_stored(struct soft_vm *vm, u64 page)
{
	u64 root = page_gpa(vm, page);
	bool collides;

	pthread_mutex_lock(&vm->lock);
	collides = root_collides(vm, root);
	for (u32 n = 0; n < vm->cpus; n++)
		for (u32 i = 0; vm->cpu[n] && i < SOFT_WINDOWS_MAX; i++) {
			struct soft_window *w = vm->cpu[n]->window[i];

			if (!w || w->root != root)
				continue;
			if (collides || ++w->root_stores > ROOT_STORES)
				window_shut(w);
		}
	pthread_mutex_unlock(&vm->lock);
}

/* ---- to have and to lose ---- */

/* A context, and behind it what gs may lead to. */
static u64 span_of(const struct soft_window *w)
{
	return w->box ? align_up(sizeof(struct soft_ctx), PAGE_SIZE) + GS_BIAS
		      : GS_BIAS + WINDOW_SIZE + WINDOW_TAIL;
}

static void free_window(struct soft_window *w)
{
	if (w->ctx)
		munmap(w->ctx, span_of(w));
	if (w->box)
		box_destroy(w->box);
	free(w->image);
	free(w);
}

static bool make_box(struct soft_cpu *c, struct soft_window *w)
{
	w->image = malloc(BOX_FPU_MAX);
	return w->image && !box_fork(c->seed, &w->box);
}

static bool make_context(struct soft_cpu *c, struct soft_window *w)
{
	const u64 size = align_up(sizeof(struct soft_ctx), PAGE_SIZE);
	u8 *at = mmap(NULL, span_of(w), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		      0);

	if (at == MAP_FAILED)
		return false;
	w->ctx = (struct soft_ctx *)(void *)at;
	if (mprotect(at, size, PROT_READ | PROT_WRITE) < 0)
		return false;
	w->ctx->cr3 = CTX_FREE;
	w->ctx->window = w;
	w->base = at + GS_BIAS;
	soft_ctx_prepare(c, w->ctx);
	return true;
}

static struct soft_window *make(struct soft_cpu *c, bool box)
{
	struct soft_window *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->root = WINDOW_FREE;
	w->fold = WINDOW_SIZE - 1;
	w->fault = w->away = NO_PAGE;
	if ((box && !make_box(c, w)) || !make_context(c, w)) {
		free_window(w);
		return NULL;
	}
	return w;
}

void windows_destroy(struct soft_cpu *c)
{
	for (u32 i = 0; i < SOFT_WINDOWS_MAX; i++) {
		struct soft_window *w = c->window[i];

		if (!w)
			continue;
		pthread_mutex_lock(&c->vm->lock);
		c->window[i] = NULL;
		c->vm->windows -= !w->box;
		if (w->root != WINDOW_FREE)
			root_unwatch(c->vm, w->root);
		pthread_mutex_unlock(&c->vm->lock);
		free_window(w);
	}
}

/* Take it from whoever has it. vm->lock held; never the current context's. */
static void give_up(struct soft_cpu *c, struct soft_window *w)
{
	u64 root = w->root;

	w->root = WINDOW_FREE;
	w->is_void = w->stale = false;
	w->fault = w->away = NO_PAGE;
	w->spent = w->in_box = 0;
	w->debt = 0;
	w->absent = w->failures = w->traps = 0;
	w->spacing = w->spared = 0;
	w->is_full = w->recess = w->is_cold = false;
	w->root_stores = w->ticks = w->user_ticks = 0;
	window_empty(c, w);
	if (root != WINDOW_FREE)
		root_unwatch(c->vm, root);
}

/*
 * Nobody knows what a box has mapped that refused something, or whether it lives. Only where no one
 * holds a pointer to one.
 */
static void discard_spoilt(struct soft_cpu *c)
{
	for (u32 i = 0; i < SOFT_BOXES_MAX; i++) {
		struct soft_window *w = c->window[i];

		if (!w || !w->is_void || w->ctx == c->ctx)
			continue;
		pthread_mutex_lock(&c->vm->lock);
		c->window[i] = NULL;
		pthread_mutex_unlock(&c->vm->lock);
		free_window(w);
	}
}

/* A free window of the kind, a new one, or the least recently used one. vm->lock held. */
static struct soft_window *take(struct soft_cpu *c, bool box)
{
	const u32 first = box ? 0 : SOFT_BOXES_MAX, end = box ? SOFT_BOXES_MAX : SOFT_WINDOWS_MAX;
	struct soft_window *best = NULL;

	for (u32 i = first; i < end; i++) {
		struct soft_window *w = c->window[i];

		if (!w && (box || c->vm->windows < MAX_WINDOWS) && (w = make(c, box))) {
			c->window[i] = w;
			c->vm->windows += !box;
		}
		if (w && w->root == WINDOW_FREE)
			return w;
		if (w && w->ctx != c->ctx && (!best || w->last_used < best->last_used))
			best = w;
	}
	return best;
}

struct soft_window *window_find(struct soft_cpu *c, u64 root)
{
	for (u32 i = 0; i < SOFT_WINDOWS_MAX; i++)
		if (c->window[i] && c->window[i]->root == root && !c->window[i]->is_void)
			return c->window[i];
	return NULL;
}

static u64 current_root(const struct soft_cpu *c)
{
	return c->cr3 & (BIT(c->vm->cpuid->phys_bits) - 1) & PAGE_MASK;
}

/* What the TLB knows is what is in use. */
static void fill_from(struct soft_cpu *c, struct soft_window *w, const struct soft_half *h)
{
	for (u32 i = 0; i < TLB_SIZE; i++) {
		const struct tlb_entry *e = &h->tlb[i];
		struct window_mapping m = {.gva = e->tag_read,
					   .host = e->host,
					   .shift = PAGE_SHIFT,
					   .page_shift = h->tlb_page[i].shift,
					   .writable = e->tag_write == e->tag_read};

		if (e->tag_read == TLB_EMPTY(i) || e->tag_read >> 47 || window_page_at(w, m.gva))
			continue;
		pthread_mutex_lock(&c->vm->lock);
		window_enter(c, w, m);
		pthread_mutex_unlock(&c->vm->lock);
	}
}

static bool may_have_box(const struct soft_cpu *c)
{
	return c->seed && !c->ctx->box_cooling;
}

/* Can pages of the address space be told apart in the window? */
static bool is_suitable(struct soft_cpu *c, const struct soft_window *w)
{
	return w->box || (root_watch(c, w->root) && !root_collides(c->vm, w->root));
}

static void promote(struct soft_cpu *c)
{
	struct soft_ctx *old = c->ctx;
	u64 root = current_root(c);
	bool box = may_have_box(c);
	struct soft_window *w;

	soft_fpu_park(c);
	old->heat = 0;
	old->cooling = box ? 0 : COOLING;
	old->box_cooling = box ? COOLING : 0;
	discard_spoilt(c);
	pthread_mutex_lock(&c->vm->lock);
	w = take(c, box);
	if (w) {
		give_up(c, w);
		w->root = root;
	}
	pthread_mutex_unlock(&c->vm->lock);
	if (!w)
		return;
	w->ctx->cr3 = CTX_FREE;
	for (u32 n = 0; n < BOX_BREAKS; n++)
		if (w->site[n] && box_break_at(w->box, n, w->site[n] = 0))
			w->is_void = true;
	if (!is_suitable(c, w)) {
		pthread_mutex_lock(&c->vm->lock);
		give_up(c, w);
		pthread_mutex_unlock(&c->vm->lock);
		return;
	}
	w->ctx->box_drops = old->box_drops;
	fill_from(c, w, &old->user);
	w->spent = 0;
	w->judged_tsc = __builtin_ia32_rdtsc();
	old->cooling = old->box_cooling = 0;
	soft_ctx_move(c, w->ctx);
	c->counters[w->box ? COUNT_BOXES : COUNT_WINDOWS]++;
}

static void demote(struct soft_cpu *c, struct soft_window *w)
{
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	if (w->box && w->is_void)
		w->root = WINDOW_FREE; /* to be discarded */
	else
		give_up(c, w);
	pthread_mutex_unlock(&c->vm->lock);
	w->ctx->cr3 = CTX_FREE;
	c->counters[COUNT_WINDOW_DROPS]++;
	soft_ctx_retake(c);
	c->ctx->cooling = w->box ? 0 : COOLING;
	c->ctx->box_cooling = w->box ? BOX_COOLING << w->ctx->box_drops : 0;
	c->ctx->box_drops = MIN(w->ctx->box_drops + 1, BOX_DROPS_MAX);
}

static u64 tick_ns(const struct soft_cpu *c, u64 cycles)
{
	return (u64)((unsigned __int128)cycles * 1000000000 / MAX(c->vm->cpuid->tsc_hz, 1ul));
}

/*
 * A window earns a share of the time spent in user code and costs what keeping it takes. To fill it
 * is an investment: only when its debt is high does it go.
 */
static void judge(struct soft_cpu *c, struct soft_window *w, u64 now)
{
	s64 time = (s64)(now - w->judged_tsc), in_user = time / w->ticks * w->user_ticks;
	/* Keeping the window looks like user code to a tick. */
	s64 earned = w->box ? (s64)w->in_box * DIRECT_GAIN / 100
			    : MAX(in_user - (s64)w->spent, 0) * GAIN / 100;
	s64 limit = (s64)(c->vm->cpuid->tsc_hz / 1000 * (w->box ? BOX_DEBT_MS : DEBT_MS));

	w->debt = MAX(w->debt + (s64)w->spent - earned, -limit);
	if (w->is_full || w->debt > limit) {
		demote(c, w);
		return;
	}
	w->spent = w->in_box = 0;
	w->ticks = w->user_ticks = 0;
	w->judged_tsc = now;
}

static bool may_have_window(const struct soft_cpu *c)
{
	return (c->mode & (MODE_BITS | MODE_USER | MODE_INTERPRET)) == (MODE_BITS_64 | MODE_USER) &&
	       c->vm->physmap->fd >= 0 &&
	       (soft_uses(&c->vm->options, SOFT_WINDOWS) || may_have_box(c));
}

/* Ticks in user code that make it worth while. */
static u32 heat_wanted(const struct soft_cpu *c)
{
	return may_have_box(c) ? c->vm->options.direct_heat : c->vm->options.window_heat;
}

/* Ticks in the kernel count for windows that are there. */
static void tick_window(struct soft_cpu *c, struct soft_window *w, u64 now, struct direct_tick t)
{
	direct_tick(c, w, t);
	w->ticks++;
	w->user_ticks += c->cpl == 3;
	if (w->ticks >= JUDGED_TICKS || w->is_full)
		judge(c, w, now);
}

/* How often was the kernel called since the last tick? */
static u64 count_entries(struct soft_cpu *c)
{
	u64 before = c->tick_entries;

	c->tick_entries = c->counters[COUNT_EXCEPTIONS] + c->counters[COUNT_SYSCALLS];
	return c->tick_entries - before;
}

/* What a whole tick may have is in one of @ns at most: */
static u64 share(u64 of_tick, u64 ns)
{
	return of_tick * MIN(ns, (u64)DIRECT_TICK_NS) / DIRECT_TICK_NS;
}

/* Has the address space shown, with one more tick, that a window will pay? */
static bool is_hot(struct soft_cpu *c, u64 busy, u64 entries, bool cold)
{
	if (may_have_box(c) && (cold || entries > busy))
		return cold;
	return ++c->ctx->heat >= heat_wanted(c);
}

/* May user code that is translated run by itself soon? The kernel was called @entries times since
 * the last tick, so there is some. */
static bool may_soon(const struct soft_cpu *c, u64 entries)
{
	const struct soft_window *w = c->ctx->window;

	if (w)
		return w->recess && w->absent < DIRECT_TICK_NS;
	return !c->ctx->cooling && may_have_box(c) && (entries || may_have_window(c));
}

static void look_sooner(struct soft_cpu *c, u64 entries)
{
	if (!may_soon(c, entries))
		return;
	soft_fpu_park(c);
	ticker_ask(c);
}

static void take_tick(struct soft_cpu *c, u64 ns, u64 entries)
{
	bool cold = tick_ns(c, c->tick_translating) > share(COLD_NS, ns);

	c->tick_translating = 0;
	c->ctx->box_cooling -= c->ctx->box_cooling > 0;
	if (c->ctx->window)
		tick_window(c, c->ctx->window, c->tick_tsc,
			    (struct direct_tick){.ns = ns, .entries = entries, .cold = cold});
	else if (!may_have_window(c))
		return;
	else if (c->ctx->cooling)
		c->ctx->cooling--;
	else if (is_hot(c, share(BUSY, ns), entries, cold))
		promote(c);
}

void window_tick(struct soft_cpu *c)
{
	u64 now = __builtin_ia32_rdtsc(), ns = tick_ns(c, now - c->tick_tsc), entries;

	if (ns < TICK_NS) {
		look_sooner(c, 0);
		return;
	}
	entries = count_entries(c);
	c->tick_tsc = now;
	if (c->seed)
		box_release(c->seed);
	take_tick(c, ns, entries);
	look_sooner(c, entries);
}

bool window_is_due(const struct soft_cpu *c)
{
	return !c->ctx->window && !c->ctx->cooling && !heat_wanted(c) && may_have_window(c);
}

void window_give(struct soft_cpu *c)
{
	promote(c);
	soft_update_mode(c);
}

/* ---- invalidation ---- */

void window_flush(struct soft_ctx *ctx)
{
	if (ctx->window)
		ctx->window->stale = true;
}

void window_flush_page(struct soft_cpu *c, struct soft_ctx *ctx, gva_t gva)
{
	struct soft_window *w = ctx->window;
	struct window_page *p;
	u64 start;

	if (!w || !w->pages)
		return;
	/* Pages of a larger one may be entered one by one. */
	if (window_may_be_large(w, gva)) {
		w->stale = true;
		soft_forget_calls(c, ctx);
	}
	p = window_page_at(w, gva);
	if (!p || !p->prot || (p->gva ^ gva) >> p->shift)
		return;
	start = __builtin_ia32_rdtsc();
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	window_protect_page(c, w, p, PROT_NONE);
	pthread_mutex_unlock(&c->vm->lock);
	spend(c, w, start);
}

/* As whom the window accesses memory. */
static u32 who(const struct soft_window *w)
{
	return w->ctx ? ACC_USER : 0;
}

/* The kernel's window does not obey SMAP. */
static bool may_map(const struct soft_cpu *c, const struct soft_window *w,
		    const struct soft_xlat *x)
{
	return x->host && (w->ctx || !(c->cr4 & CR4_SMAP && c->sysflags & RFLAGS_AC));
}

/* Is the page as the guest's tables have it? Else how it may stay. */
static u8 prot_now(struct soft_cpu *c, const struct soft_window *w, const struct window_page *p)
{
	struct soft_xlat x;

	u32 access = p->prot & PROT_EXEC ? ACC_FETCH : ACC_READ;

	if (soft_translate(c, p->gva, access | who(w), &x) != SOFT_OK || (u64)x.host != p->host ||
	    (p->shift > PAGE_SHIFT && x.shift < p->shift) || !may_map(c, w, &x) ||
	    (!w->ctx && !x.global))
		return 0;
	return access == ACC_FETCH || x.writable ? p->prot : p->prot & (u8)~PROT_WRITE;
}

void window_revalidate(struct soft_cpu *c, struct soft_window *w)
{
	u32 found = 0, lost = 0;

	soft_fpu_park(c);
	w->stale = false;
	pthread_mutex_lock(&c->vm->lock);
	for (u32 n = 0; n < w->pages && !w->is_void; n++) {
		struct window_page *p = &w->page[n];
		u8 prot = p->prot ? prot_now(c, w, p) : 0;

		found += p->prot != 0;
		lost += p->prot && !prot;
		if (prot != p->prot)
			window_protect_page(c, w, p, prot);
	}
	pthread_mutex_unlock(&c->vm->lock);
	/* Another program has got the root table: most of them end before a box pays. */
	if (w->box && c->vm->options.direct_heat && found >= FEW_PAGES && lost > found / 2) {
		direct_rest(c, w);
		look_sooner(c, 0);
	}
}

/* The page that the guest was told of may be there now. */
static void map_expected(struct soft_cpu *c, struct soft_window *w)
{
	gva_t gva = w->fault & PAGE_MASK;
	struct soft_xlat x;

	w->fault = NO_PAGE;
	if (soft_translate(c, gva, ACC_READ | ACC_USER, &x) != SOFT_OK || !x.host)
		return;
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	window_enter(c, w,
		     (struct window_mapping){.gva = gva,
					     .host = (u64)x.host & PAGE_MASK,
					     .shift = PAGE_SHIFT,
					     .page_shift = x.shift,
					     .writable = x.writable});
	pthread_mutex_unlock(&c->vm->lock);
}

/* Is there code at rip that cannot be run directly? */
static u32 direct_mode(const struct soft_cpu *c, struct soft_window *w)
{
	if (w->recess || (c->rip & PAGE_MASK) == w->away)
		return 0;
	w->away = NO_PAGE;
	return MODE_DIRECT;
}

u32 window_mode(struct soft_cpu *c)
{
	struct soft_window *w;

	if (!may_have_window(c) || !c->ctx)
		return 0;
	w = c->ctx->window;
	if (!w || w->root != current_root(c))
		return 0;
	if (w->is_void) {
		demote(c, w);
		return 0;
	}
	if (w->recess)
		return 0;
	if (w->stale || w->fault != NO_PAGE) {
		__typeof__(c->exc) exc = c->exc;
		u64 start = __builtin_ia32_rdtsc();

		if (w->stale)
			window_revalidate(c, w);
		if (w->fault != NO_PAGE)
			map_expected(c, w);
		c->exc = exc;
		spend(c, w, start);
		if (w->recess)
			return 0;
	}
	return w->box ? direct_mode(c, w) : MODE_WINDOW;
}

typedef void window_change(struct soft_cpu *c, struct soft_window *w, struct window_page *p,
			   u64 host);

/* Each mapping of @host in @w, which may be NULL. */
static void for_each_in(struct soft_cpu *c, struct soft_window *w, u64 host, window_change *what)
{
	for (u32 k = 0; w && !w->is_void && k < w->pages; k++)
		if (host - w->page[k].host < window_page_size(&w->page[k]))
			what(c, w, &w->page[k], host);
}

/* ... in each window, the kernel's being anybody's. vm->lock held. */
static void for_each_page(struct soft_vm *vm, u64 host, window_change *what)
{
	struct soft_window *kernel = kernel_window_of(vm);

	for (u32 n = 0; n < vm->cpus; n++) {
		if (!vm->cpu[n])
			continue;
		for (u32 i = 0; i < SOFT_WINDOWS_MAX; i++)
			for_each_in(vm->cpu[n], vm->cpu[n]->window[i], host, what);
		for_each_in(vm->cpu[n], kernel, host, what);
		kernel = NULL;
	}
}

/* What a box may still do until it stops, world.c knows. */
static void note_stale(struct soft_cpu *c, const struct soft_window *w, u64 host)
{
	if (w->box)
		atomic_fetch_or(&c->stale, soft_stale_bit(host));
}

/* A page has lost its right to be stored to. */
static void protect_part(struct soft_cpu *c, struct soft_window *w, struct window_page *p, u64 host)
{
	if (!(p->prot & PROT_WRITE))
		return;
	if (!window_set_prot(w, p->gva + (host - p->host), PAGE_SIZE, PROT_READ))
		window_give_way(c, w);
	if (p->shift == PAGE_SHIFT)
		p->prot = PROT_READ;
	note_stale(c, w, host);
}

void windows_protect(struct soft_vm *vm, u64 page, u64 host)
{
	if (!(atomic_load(&vm->page_flags[page]) & PAGE_IN_WINDOW))
		return;
	for_each_page(vm, host, protect_part);
	atomic_fetch_and(&vm->page_flags[page], (u8)~PAGE_IN_WINDOW);
}

/* Nobody may execute what has not been looked at. */
static void take_code(struct soft_cpu *c, struct soft_window *w, struct window_page *p, u64 host)
{
	if (!(p->prot & PROT_EXEC))
		return;
	window_protect_page(c, w, p, 0);
	note_stale(c, w, host);
}

void windows_code_stored(struct soft_vm *vm, u64 page)
{
	u64 gpa = page_gpa(vm, page);
	const struct physmap_region *r = physmap_find(vm->physmap, gpa);

	pthread_mutex_lock(&vm->lock);
	atomic_fetch_and(&vm->page_flags[page], (u8)~PAGE_IS_DIRECT);
	for_each_page(vm, (u64)r->hva + (gpa - r->gpa), take_code);
	pthread_mutex_unlock(&vm->lock);
}

/* ---- faults ---- */

bool window_has(const struct soft_cpu *c, u64 host)
{
	const struct soft_window *w = c->ctx ? c->ctx->window : NULL;

	return w && !w->box &&
	       host - ((u64)w->base - WINDOW_DISP) < WINDOW_DISP + WINDOW_SIZE + WINDOW_TAIL;
}

static u64 operand_address(const struct soft_cpu *c, const struct insn *i, const u64 r[GPR_COUNT])
{
	u64 at = (u64)i->disp;

	if (i->base != NO_REG)
		at += r[i->base];
	if (i->index != NO_REG)
		at += r[i->index] * i->scale;
	if (i->is_rip_relative)
		at += c->rip + i->len;
	if (i->addrsize == 4)
		at = (u32)at;
	return i->seg == SEG_FS || i->seg == SEG_GS ? at + c->seg[i->seg].base : at;
}

/* Is @place within @size bytes from @at on? Then *gva is its address. */
static bool is_within(const struct soft_window *w, u64 place, gva_t at, u64 size, gva_t *gva)
{
	u64 from = window_fold(w, place - at);

	*gva = at + from;
	return from < size;
}

/* The address that instruction @i accessed at @place of the window. */
static bool find_address(const struct soft_cpu *c, const struct soft_window *w,
			 const struct insn *i, const u64 r[GPR_COUNT], u64 place, gva_t *gva)
{
	if (i->has_mem && is_within(w, place, operand_address(c, i, r), i->mem_size, gva))
		return true;
	switch (i->cls) {
	case INSN_PUSH:
	case INSN_CALL:
	case INSN_CALL_INDIRECT: return is_within(w, place, r[RSP] - 8, 8, gva);
	case INSN_POP:
	case INSN_RET: return is_within(w, place, r[RSP], 8, gva);
	case INSN_STRING: return is_within(w, place, r[RDI], STOS_INLINE, gva);
	case INSN_SYSTEM: /* LEAVE and PUSHF */
		return is_within(w, place, r[RBP], 8, gva) ||
		       is_within(w, place, r[RSP] - 8, 8, gva);
	default: return false;
	}
}

static bool map_for(struct soft_cpu *c, struct soft_window *w, gva_t gva, bool write)
{
	struct window_page *p = window_page_at(w, gva);
	struct soft_xlat x;

	if (soft_translate(c, gva, who(w) | (write ? ACC_WRITE : ACC_READ), &x) != SOFT_OK ||
	    !may_map(c, w, &x) || (write && !x.writable))
		return false;
	if (p && p->shift > PAGE_SHIFT && p->prot & PROT_WRITE && write && !w->is_void)
		return window_allow_writing(c, w, p, gva);
	if (!w->ctx && !kernel_window_admits(c, gva, x.global))
		return false;
	if (!window_enter(c, w,
			  (struct window_mapping){.gva = gva,
						  .host = (u64)x.host & PAGE_MASK,
						  .shift = PAGE_SHIFT,
						  .page_shift = x.shift,
						  .writable = x.writable}))
		return false;
	p = window_page_at(w, gva);
	return p && (!write || p->prot & PROT_WRITE);
}

bool window_fault(struct soft_cpu *c, const struct insn *i, const u64 r[GPR_COUNT], u64 host,
		  bool write)
{
	struct soft_window *w = c->mode & MODE_USER ? c->ctx->window : kernel_window_of(c->vm);
	__typeof__(c->exc) exc = c->exc;
	u64 place = host - (u64)w->base, start = __builtin_ia32_rdtsc();
	bool mapped = false;
	gva_t gva;

	c->counters[COUNT_WINDOW_FAULTS]++;
	if (w->ctx)
		w->spent += c->vm->cpuid->tsc_hz * FAULT_NS / 1000000000;
	if (place > w->fold || !find_address(c, w, i, r, place, &gva) || !soft_canonical(gva) ||
	    gva >> 63 != !w->ctx)
		return false;
	gva &= PAGE_MASK;
	pthread_mutex_lock(&c->vm->lock);
	mapped = map_for(c, w, gva, write);
	pthread_mutex_unlock(&c->vm->lock);
	c->exc = exc;
	spend(c, w, start);
	return mapped;
}

void window_expect(struct soft_cpu *c, gva_t gva)
{
	struct soft_window *w = c->ctx->window;

	if (!w || gva >> 47)
		return;
	w->fault = gva & PAGE_MASK;
	soft_forget_calls(c, c->ctx);
}

/* ---- boxes ---- */

void window_close(struct soft_cpu *c, struct soft_window *w)
{
	pthread_mutex_lock(&c->vm->lock);
	window_shut(w);
	pthread_mutex_unlock(&c->vm->lock);
	soft_update_mode(c);
}

/*
 * For how much of a run of so many cycles did guest code run, or was the box on its way there and
 * back? In a long one it may have waited for a processor that others have, too.
 */
static u64 ran_for(const struct soft_cpu *c, struct soft_window *w, u64 cycles)
{
	const u64 mhz = c->vm->cpuid->tsc_hz / 1000000, back = mhz * BOX_STOP_NS / 2000;
	u64 cpu, had;

	if (cycles < mhz * BOX_LONG_NS / 1000) {
		w->unseen += cycles - MIN(cycles, back); /* part of a stop is spent outside */
		return cycles;
	}
	cpu = box_cpu_time(w->box);
	had = mhz * (cpu - MIN(cpu, w->cpu)) / 1000;
	had -= MIN(had, w->unseen);
	w->cpu = cpu;
	w->unseen = 0;
	return MIN(cycles, had + back);
}

void window_ran(struct soft_cpu *c, struct soft_window *w, u64 cycles, u32 changes)
{
	u64 stop = c->vm->cpuid->tsc_hz / 1000000 * (BOX_STOP_NS + changes * BOX_CHANGE_NS) / 1000;

	u64 ran = ran_for(c, w, cycles);

	w->in_box += ran - MIN(ran, stop);
	w->waited += cycles - ran;
	c->counters[COUNT_BOX_RUNS]++;
	c->counters[COUNT_BOX_CYCLES] += cycles;
}
