/*
 * Contexts: the TLBs and indirect-branch tables of address spaces, and how they are emptied.
 *
 * Theory of operation. A context belongs to one PCID, as the entries of a hardware TLB do; without
 * CR4.PCIDE everything belongs to PCID 0, whose context every MOV CR3 empties. There are
 * SOFT_CONTEXTS of them; the least recently used one is emptied for a PCID that has none, which is
 * as good as hardware's right to forget entries at any time.
 *
 * Emptying costs what was filled: each table keeps a log of the entries in use, and only when that
 * overflows is the whole table written.
 *
 * INVLPG must also drop what a large page contributed, at any address within it (SDM vol.
 * 3, 4.10.4.1), and global translations under every PCID. Both are rare for the pages that INVLPG
 * is used on, so small sets tell whether the search is needed: the regions that have entries from
 * large pages, and whether the address's canonical half has global entries at all.
 *
 * The indirect-branch table depends on where the pages it leads into were mapped. Those are in the
 * hashed set exec_pages; a flush of one of them removes the entries that lead into it.
 *
 * The supervisor half is one per vCPU, not per context: what is not global in it is dropped on
 * every MOV CR3, so that it always belongs to the current address space.
 *
 * A vCPU that loses a write tag to another thread, or to another page, may still be about to store
 * through it; cpu->stale keeps note of that (world.c). What the vCPU itself empties needs no note:
 * the instructions that do so end their block.
 *
 * Threads: a context is changed by its vCPU's thread only, except that soft_drop_write_tags() may
 * empty write tags of any (see mmu.c for how it and filling exclude each other), and that
 * soft_ibt_flush_all() runs while the other vCPUs are kept out of translated code.
 */
#include "engine/soft/tlb.h"
#include "engine/soft/direct.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/places.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>

/* With what gs may lie ahead. */
#define CTX_BYTES (align_up(SOFT_CONTEXTS * sizeof(struct soft_ctx), PAGE_SIZE) + GS_BIAS)

#define EXEC_NONE 1ul

enum {
	IBT_STRADDLE = 15
}; /* an instruction's length: how far before a page one may start that enters it */

/* arch/x86/include/uapi/asm/hwcap2.h and prctl.h of Linux */
#define HWCAP2_FSGSBASE BIT(1)
#define SYS_ARCH_PRCTL  158
#define ARCH_SET_GS     0x1001

/* ---- emptying ---- */

static void tlb_reset(struct soft_half *h)
{
	if (h->tlb_logged > CTX_LOG)
		for (u32 i = 0; i < TLB_SIZE; i++)
			tlb_entry_clear(h, i);
	else
		for (u32 n = 0; n < h->tlb_logged; n++)
			tlb_entry_clear(h, h->tlb_log[n]);
	__atomic_store_n(&h->tlb_logged, 0, __ATOMIC_RELEASE);
	h->local_logged = 0;
	stack_page_clear(h);
}

static void fetch_reset(struct soft_half *h)
{
	for (u32 i = 0; i < FETCH_SIZE; i++)
		h->fetch[i].tag = ~0ul;
	for (u32 i = 0; i < 2; i++)
		h->exec_large[i] = h->exec_huge[i] = 0;
}

/* The code of entry @i of @h when it is empty. */
static u64 ibt_empty(const struct soft_cpu *c, const struct soft_half *h, u32 i)
{
	return i < IBT_SIZE ? c->ibt_miss[h == &c->super ? HALF_SUPER : HALF_USER] : c->ibt_leave;
}

static void ibt_clear(struct soft_cpu *c, struct soft_half *h, u32 i)
{
	h->ibt[i] = (struct ibt_entry){.code = ibt_empty(c, h, i)};
}

static void exec_reset(struct soft_half *h)
{
	for (u32 n = 0; n < MIN(h->exec_logged, (u32)EXEC_LOG); n++)
		h->exec[h->exec_log[n]].gva = EXEC_NONE;
	h->exec_logged = 0;
	h->code_stale = false;
}

static void cross_reset(struct soft_half *h)
{
	if (h->cross_logged > CROSS_LOG)
		soft_fill64(h->cross, 0, CROSS_SIZE);
	else
		for (u32 n = 0; n < h->cross_logged; n++)
			h->cross[h->cross_log[n]] = 0;
	h->cross_logged = 0;
}

static void cross_enter(struct soft_half *h, gva_t gva, gpa_t gpa)
{
	u32 i = CROSS_INDEX(gpa);

	if (CROSS_TAG(gpa) > CROSS_TAGS)
		return;
	if (!h->cross[i]) {
		if (h->cross_logged < CROSS_LOG)
			h->cross_log[h->cross_logged] = (u16)i;
		h->cross_logged = MIN(h->cross_logged, (u32)CROSS_LOG) + 1;
	}
	h->cross[i] = -((gva & PAGE_MASK) + CROSS_TAG(gpa));
}

/* No page is known to be at @gva any more. */
static void cross_drop_page(struct soft_half *h, gva_t gva)
{
	bool all = h->cross_logged > CROSS_LOG;

	for (u32 n = 0; n < (all ? (u32)CROSS_SIZE : h->cross_logged); n++) {
		u32 i = all ? n : h->cross_log[n];

		if (h->cross[i] && !((-h->cross[i] ^ gva) & PAGE_MASK))
			h->cross[i] = 0;
	}
}

static void ibt_reset(struct soft_cpu *c, struct soft_half *h)
{
	cross_reset(h);
	if (h->ibt_logged > IBT_LOG)
		for (u32 i = 0; i < IBT_TOTAL; i++)
			ibt_clear(c, h, i);
	else
		for (u32 n = 0; n < h->ibt_logged; n++)
			ibt_clear(c, h, h->ibt_log[n]);
	h->ibt_logged = 0;
	soft_fill64(h->exec_pages, 0, ARRAY_SIZE(h->exec_pages));
	exec_reset(h);
}

static struct soft_ctx *ctx_of(struct soft_half *user)
{
	return (struct soft_ctx *)(void *)((u8 *)user - offsetof(struct soft_ctx, user));
}

/* Empty all of it but the indirect-branch table. */
static void half_empty(struct soft_cpu *c, struct soft_half *h)
{
	if (h != &c->super) {
		window_flush(ctx_of(h));
		soft_forget_calls(c, ctx_of(h));
		ctx_of(h)->local_version = 0;
	} else {
		kernel_window_flush(c);
	}
	tlb_reset(h);
	fetch_reset(h);
	h->local_code = false;
	soft_fill64(h->write_pages, 0, ARRAY_SIZE(h->write_pages));
	soft_fill64(h->large, 0, sizeof(h->large) / sizeof(u64));
	for (u32 i = 0; i < 2; i++) {
		h->huge[i] = 0;
		h->has_global[i] = false;
	}
	c->counters[COUNT_CONTEXT_FLUSHES]++;
}

static void half_reset(struct soft_cpu *c, struct soft_half *h)
{
	half_empty(c, h);
	ibt_reset(c, h);
}

/*
 * A flush of the address space that the user half still belongs to. Most code will be where it was:
 * the table stays, to be looked through before it is used again.
 */
static void user_flush(struct soft_cpu *c, struct soft_half *h)
{
	if (h->exec_logged > EXEC_LOG) {
		half_reset(c, h);
		return;
	}
	half_empty(c, h);
	h->code_stale = true;
}

/* Zeroed memory is not an empty table: tag 0 is page 0. */
static void half_prepare(struct soft_cpu *c, struct soft_half *h)
{
	h->tlb_logged = CTX_LOG + 1;
	h->ibt_logged = IBT_LOG + 1;
	for (u32 i = 0; i < EXEC_SIZE; i++)
		h->exec[i].gva = EXEC_NONE;
	half_reset(c, h);
}

void soft_ctx_prepare(struct soft_cpu *c, struct soft_ctx *ctx)
{
	if (ctx->ready)
		return;
	half_prepare(c, &ctx->user);
	ctx->ready = true;
}

static void drop_if_local(struct soft_half *h, u32 i)
{
	if (h->tlb_page[i].local)
		tlb_entry_clear(h, i);
}

/* The supervisor half loses what is not global: the address space changes. */
static void drop_local(struct soft_cpu *c)
{
	struct soft_half *h = &c->super;

	stack_page_clear(h);
	if (h->local_logged > CTX_LOG)
		for (u32 i = 0; i < TLB_SIZE; i++)
			drop_if_local(h, i);
	else
		for (u32 n = 0; n < h->local_logged; n++)
			drop_if_local(h, h->local_log[n]);
	h->local_logged = 0;
	if (h->local_code) {
		fetch_reset(h);
		ibt_reset(c, h);
		h->local_code = false;
	}
	if (c->places_local) {
		c->places_local = false;
		places_forget(c);
	}
}

/* The same where the address space stays: its translations are flushed. */
static void flush_local(struct soft_cpu *c)
{
	drop_local(c);
	kernel_window_drop_local(c, true);
}

/* ---- contexts ---- */

static u64 current_pcid(const struct soft_cpu *c)
{
	return c->cr4 & CR4_PCIDE ? c->cr3 & CR3_PCID : 0;
}

static bool ctx_is_free(const struct soft_ctx *ctx)
{
	return ctx->cr3 == CTX_FREE;
}

struct soft_ctx *soft_ctx_at(struct soft_cpu *c, u32 i)
{
	struct soft_window *w;

	if (i < SOFT_CONTEXTS)
		return &c->contexts[i];
	w = c->window[i - SOFT_CONTEXTS];
	return w ? w->ctx : NULL;
}

static bool ctx_has(const struct soft_ctx *ctx, u64 pcid)
{
	return ctx && !ctx_is_free(ctx) && (ctx->cr3 & CR3_PCID) == pcid;
}

/* Contexts are large: to look at each costs a miss in the host's caches and another in its TLB. */
static struct soft_ctx *ctx_find(struct soft_cpu *c, u64 pcid)
{
	u8 *hint = &c->ctx_hint[pcid % ARRAY_SIZE(c->ctx_hint)];
	struct soft_ctx *ctx = soft_ctx_at(c, *hint);

	if (ctx_has(ctx, pcid))
		return ctx;
	for (u32 i = 0; i < SOFT_CONTEXTS_ALL; i++) {
		ctx = soft_ctx_at(c, i);
		if (ctx_has(ctx, pcid)) {
			*hint = (u8)i;
			return ctx;
		}
	}
	return NULL;
}

/* A free context without a window, or the least recently used one, empty. */
static struct soft_ctx *ctx_take(struct soft_cpu *c)
{
	struct soft_ctx *best = &c->contexts[0];

	for (u32 i = 0; i < SOFT_CONTEXTS && !ctx_is_free(best); i++)
		if (ctx_is_free(&c->contexts[i]) || c->contexts[i].last_used < best->last_used)
			best = &c->contexts[i];
	if (best->ready && !ctx_is_free(best))
		half_reset(c, &best->user);
	soft_ctx_prepare(c, best);
	return best;
}

static u64 root_of(const struct soft_cpu *c, u64 cr3)
{
	return cr3 & (BIT(c->vm->cpuid->phys_bits) - 1) & PAGE_MASK;
}

/*
 * The context for cr3, which has been set: the window's, if the address space has one, whatever
 * PCID it had before, else that of the PCID. *ctx: the one that the PCID has had so far.
 */
static struct soft_ctx *ctx_choose(struct soft_cpu *c, struct soft_ctx *old, bool flush)
{
	struct soft_window *w = window_find(c, root_of(c, c->cr3));

	if (old && old->window && old->window != w) { /* the PCID goes to another address space */
		old->cr3 = CTX_FREE;
		old = NULL;
	}
	if (w && old != w->ctx) { /* what happened to it meanwhile is not known */
		half_reset(c, &w->ctx->user);
		if (old) {
			half_reset(c, &old->user);
			old->cr3 = CTX_FREE;
		}
		return w->ctx;
	}
	if (!old)
		return ctx_take(c);
	if (root_of(c, old->cr3) != root_of(c, c->cr3))
		half_reset(c, &old->user);
	else if (flush || !(c->cr4 & CR4_PCIDE))
		user_flush(c, &old->user);
	return old;
}

void soft_load_cr3(struct soft_cpu *c, u64 cr3, bool flush)
{
	struct soft_ctx *ctx;
	u64 pcid;

	c->cr3 = cr3 & ~CR3_NOFLUSH;
	pcid = current_pcid(c);
	ctx = ctx_choose(c, ctx_find(c, pcid), flush);
	if (root_of(c, ctx->cr3) != root_of(c, c->cr3)) {
		ctx->heat = ctx->cooling = ctx->box_cooling = ctx->box_drops = 0;
		soft_forget_calls(c, ctx);
	}
	drop_local(c);
	/* MOV CR3 serialises (SDM vol. 3, 8.3), and kernels rely on it as a barrier. */
	atomic_thread_fence(memory_order_seq_cst);
	ctx->cr3 = (c->cr3 & ~CR3_PCID) | pcid;
	ctx->last_used = ++c->counters[COUNT_CONTEXT_SWITCHES];
	if (ctx->window)
		ctx->window->last_used = ctx->last_used;
	soft_ctx_use(c, ctx);
	kernel_window_drop_local(c, flush);
	kernel_window_look(c);
}

void soft_ctx_move(struct soft_cpu *c, struct soft_ctx *to)
{
	struct soft_ctx *from = c->ctx;

	half_reset(c, &to->user);
	to->window->stale = false; /* it was filled from what is valid */
	to->cr3 = from->cr3;
	to->last_used = to->window->last_used = from->last_used;
	half_reset(c, &from->user);
	from->cr3 = CTX_FREE;
	soft_ctx_use(c, to);
}

void soft_ctx_retake(struct soft_cpu *c)
{
	struct soft_ctx *ctx = ctx_take(c);

	ctx->cr3 = (c->cr3 & ~CR3_PCID) | current_pcid(c);
	ctx->last_used = c->counters[COUNT_CONTEXT_SWITCHES];
	ctx->heat = 0;
	soft_forget_calls(c, ctx);
	soft_ctx_use(c, ctx);
}

void soft_ctx_use(struct soft_cpu *c, struct soft_ctx *ctx)
{
	u64 base = (u64)ctx + GS_BIAS;

	c->ctx = ctx;
	c->user_mode = ctx->call_state == c->call_state ? ctx->call_mode : 0;
	if (c->has_wrgsbase) {
		__asm__ volatile("wrgsbase %0" : : "r"(base) : "memory");
	} else {
		long nr = SYS_ARCH_PRCTL;

		__asm__ volatile("syscall"
				 : "+a"(nr)
				 : "D"(ARCH_SET_GS), "S"(base)
				 : "rcx", "r11", "memory");
	}
}

int soft_contexts_init(struct soft_cpu *c)
{
	void *p = mmap(NULL, CTX_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		       0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	if (mprotect(p, CTX_BYTES - GS_BIAS, PROT_READ | PROT_WRITE) < 0) {
		munmap(p, CTX_BYTES);
		return -ENOMEM;
	}
	c->contexts = p;
	c->has_wrgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
	for (u32 i = 0; i < SOFT_CONTEXTS; i++)
		c->contexts[i].cr3 = CTX_FREE;
	half_prepare(c, &c->super);
	soft_load_cr3(c, c->cr3, true);
	return 0;
}

void soft_contexts_destroy(struct soft_cpu *c)
{
	windows_destroy(c);
	direct_destroy(c);
	if (c->contexts)
		munmap(c->contexts, CTX_BYTES);
	c->contexts = c->ctx = NULL;
}

/* ---- flushes the guest asks for ---- */

void soft_tlb_flush_all(struct soft_cpu *c)
{
	for (u32 i = 0; i < SOFT_CONTEXTS_ALL; i++) {
		struct soft_ctx *ctx = soft_ctx_at(c, i);

		if (!ctx || ctx_is_free(ctx))
			continue;
		half_reset(c, &ctx->user);
		if (ctx != c->ctx)
			ctx->cr3 = CTX_FREE;
	}
	half_reset(c, &c->super);
	places_forget(c);
}

void soft_tlb_flush_context(struct soft_cpu *c)
{
	user_flush(c, &c->ctx->user);
	flush_local(c);
}

static void drop_if_large(struct soft_half *h, u32 i, gva_t gva)
{
	const struct tlb_entry *e = &h->tlb[i];
	u8 shift = h->tlb_page[i].shift;

	if (e->tag_read != TLB_EMPTY(i) && shift > PAGE_SHIFT && !((e->tag_read ^ gva) >> shift))
		tlb_entry_clear(h, i);
}

/* Drop all entries that come from a large page around @gva. */
static void flush_large(struct soft_half *h, gva_t gva)
{
	if (h->tlb_logged > CTX_LOG)
		for (u32 i = 0; i < TLB_SIZE; i++)
			drop_if_large(h, i, gva);
	else
		for (u32 n = 0; n < h->tlb_logged; n++)
			drop_if_large(h, h->tlb_log[n], gva);
}

static bool has_large(const struct soft_half *h, gva_t gva)
{
	u32 upper = address_half(gva);

	return bitmap_test(h->large[upper], large_bit(gva)) || h->huge[upper] & huge_bit(gva);
}

static bool has_executed_large(const struct soft_half *h, gva_t gva)
{
	u32 upper = address_half(gva);

	return h->exec_large[upper] & exec_large_bit(gva) || h->exec_huge[upper] & huge_bit(gva);
}

static void ibt_drop(struct soft_cpu *c, struct soft_half *h, gva_t gva, u32 first, u32 last)
{
	for (u32 i = first; i <= last; i++)
		if (!((-h->ibt[i].minus_gva ^ gva) & PAGE_MASK) &&
		    h->ibt[i].code != ibt_empty(c, h, i))
			ibt_clear(c, h, i);
}

/* Remove indirect-branch entries in the page of @gva, from offset @from on (or more of them). */
static void ibt_drop_page(struct soft_cpu *c, struct soft_half *h, gva_t gva, u32 from)
{
	gva_t page = gva & PAGE_MASK, last = gva | ~PAGE_MASK;

	ibt_drop(c, h, gva, IBT_INDEX(page + from), IBT_INDEX(last));
	ibt_drop(c, h, gva, IBT2_INDEX(page), IBT2_INDEX(last));
}

static void half_flush_page(struct soft_cpu *c, struct soft_half *h, gva_t gva)
{
	struct soft_fetch_entry *f = &h->fetch[fetch_index(gva)];
	u32 i = tlb_index(gva);

	if (h != &c->super)
		window_flush_page(c, ctx_of(h), gva);
	else
		kernel_window_flush_page(c, gva);
	if (h == &c->super && gva >= -(1ul << 31))
		places_forget(c);
	stack_page_clear(h);
	if (h->tlb[i].tag_read == (gva & PAGE_MASK))
		tlb_entry_clear(h, i);
	if (f->tag == (gva & PAGE_MASK))
		f->tag = ~0ul;
	if (has_large(h, gva))
		flush_large(h, gva);
	if (has_executed_large(h, gva)) {
		fetch_reset(h);
		ibt_reset(c, h);
	} else if (bitmap_test(h->exec_pages, exec_page_bit(gva))) {
		cross_drop_page(h, gva);
		ibt_drop_page(c, h, gva, 0);
		/* A block may straddle into this page with its last instruction. */
		ibt_drop_page(c, h, gva - PAGE_SIZE, PAGE_SIZE - IBT_STRADDLE);
	}
}

void soft_tlb_drop_kernel(struct soft_cpu *c, gva_t gva)
{
	struct soft_half *h = &c->super;
	u32 i = tlb_index(gva);

	stack_page_clear(h);
	if (h->tlb[i].tag_read == (gva & PAGE_MASK))
		tlb_entry_clear(h, i);
	if (has_large(h, gva))
		flush_large(h, gva);
}

/* Global translations are used under every PCID, so they are dropped from every context. */
static void flush_page_globally(struct soft_cpu *c, gva_t gva)
{
	for (u32 i = 0; i < SOFT_CONTEXTS_ALL; i++) {
		struct soft_ctx *ctx = soft_ctx_at(c, i);

		if (ctx && ctx != c->ctx && !ctx_is_free(ctx) &&
		    ctx->user.has_global[address_half(gva)])
			half_flush_page(c, &ctx->user, gva);
	}
}

void soft_tlb_flush_page(struct soft_cpu *c, gva_t gva)
{
	half_flush_page(c, &c->ctx->user, gva);
	half_flush_page(c, &c->super, gva);
	flush_page_globally(c, gva);
}

void soft_invpcid(struct soft_cpu *c, u64 type, u64 pcid, gva_t gva)
{
	struct soft_ctx *ctx = ctx_find(c, pcid & CR3_PCID);

	switch (type) {
	case 0: /* individual address */
		if (ctx) {
			half_flush_page(c, &ctx->user, gva);
			ctx->local_version = 0;
		}
		if (ctx == c->ctx)
			half_flush_page(c, &c->super, gva);
		break;
	case 1: /* single context */
		if (ctx)
			user_flush(c, &ctx->user);
		if (ctx == c->ctx)
			flush_local(c);
		break;
	default: /* all contexts; with (2) or without (3) global translations */
		soft_tlb_flush_all(c);
		break;
	}
}

/* ---- write tags ---- */

/* True when there was one. */
static bool drop_write_tag(struct soft_half *h, u32 i, u64 host)
{
	struct tlb_entry *e = &h->tlb[i];

	if (__atomic_load_n(&e->host, __ATOMIC_RELAXED) != host ||
	    __atomic_load_n(&e->tag_write, __ATOMIC_RELAXED) == TLB_EMPTY(i))
		return false;
	tlb_set_tag(&e->tag_write, TLB_EMPTY(i));
	return true;
}

static bool half_drop_write_tags(struct soft_half *h, u64 page, u64 host)
{
	u32 logged = __atomic_load_n(&h->tlb_logged, __ATOMIC_ACQUIRE);
	bool found = false;

	if (!bitmap_test(h->write_pages, write_page_bit(page)))
		return false;
	found = stack_page_is(h, host);
	stack_page_clear(h);
	if (logged > CTX_LOG)
		for (u32 i = 0; i < TLB_SIZE; i++)
			found |= drop_write_tag(h, i, host);
	else
		for (u32 n = 0; n < logged; n++)
			found |= drop_write_tag(h, h->tlb_log[n], host);
	return found;
}

void soft_drop_write_tags(struct soft_vm *vm, u64 page, u8 *host)
{
	/* After the flags that forbid new tags were set and before the tags are looked at. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (u32 n = 0; n < vm->cpus; n++) {
		struct soft_cpu *c = vm->cpu[n];
		bool found;

		if (!c)
			continue;
		found = half_drop_write_tags(&c->super, page, (u64)host);
		for (u32 i = 0; i < SOFT_CONTEXTS_ALL; i++) {
			struct soft_ctx *ctx = soft_ctx_at(c, i);

			if (ctx && !ctx_is_free(ctx))
				found |= half_drop_write_tags(&ctx->user, page, (u64)host);
		}
		if (found) /* after the tag is gone: see world.c */
			atomic_fetch_or(&c->stale, soft_stale_bit((u64)host));
	}
	windows_protect(vm, page, (u64)host);
	atomic_fetch_add(&vm->epoch, 1);
}

/* ---- the indirect-branch table ---- */

static u32 exec_place(const struct soft_half *h, gva_t gva)
{
	u32 i = exec_page_bit(gva) % EXEC_SIZE;

	while (h->exec[i].gva != EXEC_NONE && h->exec[i].gva != gva)
		i = (i + 1) % EXEC_SIZE;
	return i;
}

void soft_ibt_note_page(struct soft_cpu *c, u32 half, gva_t gva, gpa_t gpa)
{
	struct soft_half *h = soft_half(c, half);
	u32 i;

	bitmap_set(h->exec_pages, exec_page_bit(gva));
	cross_enter(h, gva, gpa);
	if (half != HALF_USER || h->exec_logged > EXEC_LOG)
		return;
	gva &= PAGE_MASK;
	i = exec_place(h, gva);
	if (h->exec[i].gva == EXEC_NONE) {
		if (h->exec_logged++ == EXEC_LOG)
			return;
		h->exec_log[h->exec_logged - 1] = (u16)i;
	}
	/* Found elsewhere before, by a translation that was not flushed: one of them is to be
	 * looked for when it is. */
	if (h->exec[i].gva == gva && h->exec[i].gpa != (gpa & PAGE_MASK)) {
		cross_drop_page(h, gva);
		cross_enter(h, gva, gpa);
		ibt_drop_page(c, h, gva, 0);
	}
	h->exec[i] = (struct soft_exec_page){.gva = gva, .gpa = gpa & PAGE_MASK};
}

static bool exec_page_stays(struct soft_cpu *c, const struct soft_exec_page *p)
{
	struct soft_xlat x;

	return soft_translate(c, p->gva, ACC_FETCH | ACC_USER, &x) == SOFT_OK && x.host &&
	       (x.gpa & PAGE_MASK) == p->gpa;
}

void soft_ibt_validate(struct soft_cpu *c)
{
	struct soft_half *h = &c->ctx->user;
	__typeof__(c->exc) exc = c->exc;

	h->code_stale = false;
	for (u32 n = 0; n < h->exec_logged; n++)
		if (!exec_page_stays(c, &h->exec[h->exec_log[n]])) {
			ibt_reset(c, h);
			break;
		}
	c->exc = exc;
}

static void ibt_enter(struct soft_cpu *c, struct soft_half *h, u32 i, gva_t gva, u64 code)
{
	if (h->ibt[i].code == ibt_empty(c, h, i)) {
		if (h->ibt_logged < IBT_LOG)
			h->ibt_log[h->ibt_logged] = i;
		h->ibt_logged = MIN(h->ibt_logged, (u32)IBT_LOG) + 1;
	}
	h->ibt[i] = (struct ibt_entry){.minus_gva = -gva, .code = code};
}

void soft_ibt_insert(struct soft_cpu *c, u32 half, u32 mode, gva_t gva, gpa_t gpa, u64 code)
{
	struct soft_half *h = soft_half(c, half);

	if (h->ibt_mode != mode) {
		ibt_reset(c, h);
		h->ibt_mode = mode;
	}
	soft_ibt_note_page(c, half, gva, gpa);
	ibt_enter(c, h, IBT_INDEX(gva), gva, code);
	ibt_enter(c, h, IBT2_INDEX(gva), gva, code);
}

void soft_ibt_flush_all(struct soft_vm *vm)
{
	for (u32 n = 0; n < vm->cpus; n++) {
		struct soft_cpu *c = vm->cpu[n];

		if (!c)
			continue;
		ibt_reset(c, &c->super);
		for (u32 i = 0; i < SOFT_CONTEXTS_ALL; i++) {
			struct soft_ctx *ctx = soft_ctx_at(c, i);

			if (ctx && ctx->ready)
				ibt_reset(c, &ctx->user);
		}
	}
}
