/* See places.h. */
#include "engine/soft/places.h"

#include "engine/soft/util.h"

#include <errno.h>
#include <stdlib.h>

int places_create(struct soft_vm *vm)
{
	vm->places = calloc(1, sizeof(*vm->places));
	return vm->places ? 0 : -ENOMEM;
}

void places_destroy(struct soft_vm *vm)
{
	free(vm->places);
	vm->places = NULL;
}

/* Where in hash[] the page at @gva is, or would be. */
static u32 hash_place(const struct places *p, gva_t gva)
{
	u32 i = (u32)(gva >> PAGE_SHIFT) % PLACES_HASH;

	while (p->hash[i] && p->place[p->hash[i] - 1].gva != gva)
		i = (i + 1) % PLACES_HASH;
	return i;
}

/* Is @gva mapped to @gpa for kernel code, and stays so until it is invalidated? */
static bool is_mapped(struct soft_cpu *c, gva_t gva, gpa_t gpa)
{
	struct soft_xlat x;

	if (soft_translate(c, gva, ACC_FETCH, &x) != SOFT_OK || !x.host || x.gpa != gpa)
		return false;
	if (!x.global && !(c->cr4 & CR4_PGE))
		c->places_local = true; /* it is while global pages are off for a moment */
	return x.global || !(c->cr4 & CR4_PGE);
}

static void ask_others(struct soft_cpu *c)
{
	for (u32 n = 0; n < c->vm->cpus; n++)
		if (c->vm->cpu[n] && c->vm->cpu[n] != c)
			atomic_fetch_or(&c->vm->cpu[n]->exit_req, REQ_PASS);
}

bool places_add(struct soft_cpu *c, const struct block *to)
{
	struct places *p = c->vm->places;
	u32 n = atomic_load_explicit(&p->count, memory_order_relaxed), at;
	__typeof__(c->exc) exc = c->exc;
	struct place *known;
	bool mapped;

	if (!to->place || to->place != (c->rip & PAGE_MASK) || !(c->cr4 & CR4_PGE))
		return false;
	at = hash_place(p, to->place);
	known = p->hash[at] ? &p->place[p->hash[at] - 1] : NULL;
	if (known && !known->broken)
		return known->gpa == (to->pa & PAGE_MASK);
	if (n == PLACES || c->places_known != n)
		return false;
	mapped = is_mapped(c, to->place, to->pa & PAGE_MASK);
	c->exc = exc;
	if (!mapped)
		return false;
	p->place[n] =
		(struct place){.gva = to->place, .gpa = to->pa & PAGE_MASK, .page = to->page[0]};
	p->hash[at] = (u16)(n + 1);
	c->places_known = n + 1;
	atomic_store(&p->count, n + 1);
	ask_others(c);
	return true;
}

void places_forget(struct soft_cpu *c)
{
	c->places_known = 0;
	if (!c->vm->places || !atomic_load_explicit(&c->vm->places->count, memory_order_relaxed))
		return;
	atomic_fetch_or(&c->exit_req, REQ_PASS);
}

/* Take back the links to @place. vm->lock held. */
static void take_back(struct cache *cache, struct place *place)
{
	struct block *b = cache->pages[place->page].blocks;
	struct block_exit *x, *next;

	place->broken = true;
	for (; b; b = b->page_next[b->page[0] == place->page ? 0 : 1]) {
		for (x = b->place == place->gva ? b->incoming : NULL; x; x = next) {
			next = x->next_incoming;
			if (x->far)
				cache_link(cache, x, NULL);
		}
	}
}

void places_check_all(struct soft_cpu *c)
{
	struct places *p = c->vm->places;
	u32 n = atomic_load(&p->count);
	__typeof__(c->exc) exc = c->exc;

	/* Outside long mode no such code runs; what leads there forgets all places. */
	if (!(c->efer & EFER_LMA))
		return;
	for (u32 i = c->places_known; i < n; i++) {
		struct place *place = &p->place[i];

		if (__atomic_load_n(&place->broken, __ATOMIC_RELAXED) ||
		    is_mapped(c, place->gva, place->gpa))
			continue;
		soft_fpu_park(c);
		pthread_mutex_lock(&c->vm->lock);
		take_back(c->vm->cache, place);
		pthread_mutex_unlock(&c->vm->lock);
	}
	c->exc = exc;
	c->places_known = n;
}

void places_reset(struct soft_vm *vm)
{
	struct places *p = vm->places;

	if (!p)
		return;
	atomic_store(&p->count, 0);
	soft_fill(p->hash, 0, sizeof(p->hash));
	for (u32 n = 0; n < vm->cpus; n++)
		if (vm->cpu[n])
			vm->cpu[n]->places_known = 0;
}
