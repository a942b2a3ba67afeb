/*
 * What translated code calls, by way of dispatch.S, and how it goes on from there: in the block, in
 * another one, or in the run loop.
 */
#include "engine/soft/kernel_window.h"
#include "engine/soft/run.h"
#include "engine/soft/tlb.h"
#include "engine/soft/translate.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"

static u32 leave_with(enum soft_leave why)
{
	return 2 + (u32)why;
}

/* Is there something that the run loop must see before the next instruction? */
static bool run_loop_is_due(const struct soft_cpu *c)
{
	return !run_may_translate(c) || c->irq_window || c->nmi_pending || window_is_due(c) ||
	       atomic_load_explicit(&c->exit_req, memory_order_relaxed);
}

/* On at c->rip, which is not in the running block: without a detour through the run loop if
 * possible. */
static u32 go_on(struct soft_cpu *c)
{
	u32 half;

	if (kernel_window_is_due(c))
		kernel_window_settle(c);
	half = c->mode & MODE_USER ? HALF_USER : HALF_SUPER;
	if (!soft_uses(&c->vm->options, SOFT_GO_ON) || run_loop_is_due(c) ||
	    soft_half(c, half)->ibt_mode != c->mode)
		return leave_with(LEAVE_LOOKUP);
	c->branch_site = BRANCH_SITE_NONE;
	c->link = c->vm->cache->entry.ras_bottom[half];
	*(u64 *)c->ras_base = c->link;
	soft_fpu_live(c);
	return leave_with(LEAVE_GO_ON);
}

/* Deliver the exception that is recorded in c->exc, and go on in its handler. */
static u32 deliver(struct soft_cpu *c)
{
	int status = run_deliver_exception(c);

	return status == SOFT_EXIT ? leave_with(LEAVE_EXIT) : go_on(c);
}

/* After the interpreter ran the instruction of @site: go on behind it in the block, or elsewhere?
 */
static u32 resume(struct soft_cpu *c, int status, u64 next, u32 mode, u32 site)
{
	if (status != SOFT_EXIT)
		c->frag_count = 0;
	if (status == SOFT_FAULT)
		return deliver(c);
	if (status == SOFT_EXIT)
		return leave_with(LEAVE_EXIT);
	if (site & SITE_TERMINAL || c->rip != next || c->mode != mode || c->code_changed ||
	    c->shadow || c->shadow_mov_ss || c->irq_window)
		return go_on(c);
	soft_fpu_live(c);
	return 1;
}

/* Interpret the instruction of @site at c->rip; @bytes as for soft_interpret_given(). */
static u32 interpret_site(struct soft_cpu *c, u64 bytes, u32 site)
{
	u32 mode = c->mode, len = site >> SITE_LEN_SHIFT & 15;
	u64 next = c->rip + len;

	if ((mode & MODE_BITS) == MODE_BITS_32)
		next = (u32)next;
	c->code_changed = false;
	c->frag_next = 0;
	soft_doing(c, ACT_INTERPRET);
	return resume(c, soft_interpret_given(c, bytes, len), next, mode, site);
}

static void set_rip(struct soft_cpu *c, u32 site)
{
	c->rip = c->code_va + (site & SITE_OFFSET);
	if ((c->mode & MODE_BITS) == MODE_BITS_32)
		c->rip = (u32)c->rip;
}

static u32 miss(struct soft_cpu *c, gva_t address, u32 site)
{
	u32 size = (site >> SITE_SIZE_SHIFT & 0x3ff) + 1;
	u32 kind = site & SITE_WRITE ? ACC_WRITE : ACC_READ;
	bool filled = false;

	c->counters[COUNT_TLB_MISSES]++;
	set_rip(c, site);
	if ((address & ~PAGE_MASK) + size <= PAGE_SIZE && soft_canonical(address)) {
		int status = soft_tlb_fill(c, address, soft_acc(c, kind), &filled);

		if (status == SOFT_OK && filled)
			return 0;
		if (status == SOFT_FAULT && !(site & (SITE_MASKED | SITE_GROUP)))
			return deliver(c);
	}
	if (site & SITE_GROUP) {
		c->counters[COUNT_GROUP_FALLBACKS]++;
		return leave_with(LEAVE_LINK);
	}
	return interpret_site(c, 0, site);
}

u32 soft_miss(struct soft_cpu *c, gva_t address, u32 site)
{
	u32 r;

	soft_doing(c, ACT_TLB_MISS);
	r = miss(c, address, site);
	soft_doing(c, ACT_TRANSLATED);
	return r;
}

u32 soft_step(struct soft_cpu *c, u64 bytes, u32 site)
{
	u32 r;

	c->counters[COUNT_STEPS]++;
	if (site & SITE_STRING && string_run(c, site))
		return 0;
	set_rip(c, site);
	r = interpret_site(c, bytes, site);
	soft_doing(c, ACT_TRANSLATED);
	return r == 1 ? 0 : r;
}

/*
 * The indirect-branch table does not have rip: find the block, and go on there with the private
 * stack as it is, if nothing stands against it. Otherwise the run loop looks again.
 */
u32 soft_lookup(struct soft_cpu *c)
{
	u32 generation = __atomic_load_n(&c->vm->cache->generation, __ATOMIC_RELAXED);
	struct block *b;
	int status;

	if (run_loop_is_due(c) || !soft_canonical(c->rip))
		return LEAVE_LOOKUP;
	soft_doing(c, ACT_DISPATCH);
	status = run_find_block(c, 0, &b);
	if (status != SOFT_OK || !b ||
	    generation != __atomic_load_n(&c->vm->cache->generation, __ATOMIC_RELAXED))
		return LEAVE_LOOKUP;
	c->link = b->poll;
	soft_fpu_live(c);
	soft_doing(c, ACT_TRANSLATED);
	return LEAVE_GO_ON;
}
