/* See reload.h. */
#include "engine/soft/reload.h"
#include "engine/soft/kernel_window.h"

#include "base/log.h"
#include "engine/soft/store.h"
#include "engine/soft/translate.h"
#include "engine/soft/translation.h"
#include "engine/soft/util.h"
#include "host/sandbox.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

enum {
	MAX_TRIES = 8, /* records with the same first bytes: so that a guest cannot make it slow */
	KEPT_MODES = MODE_BITS | MODE_USER | MODE_X87 | MODE_SSE | MODE_AVX | MODE_AVX512 |
		     MODE_SINGLE | MODE_WINDOW,
	BUILD_ID = 32,
	STUB_IMM = 2, /* where the address of the exit is in its stub */
};

_Static_assert((u32)STORE_INSNS == (u32)BLOCK_MAX_INSNS && (u32)STORE_PEEKS == (u32)MAX_PEEKS &&
		       (u32)STORE_PEEK_BYTES == (u32)PEEK_BYTES &&
		       (u32)STORE_EXITS >= 2 * (MAX_SIDE_EXITS + 1) + MAX_GROUPS,
	       "store.h");
_Static_assert((u32)STORE_FAR_ENTRY == (u32)BLOCK_FAR, "store.h");
_Static_assert((s32)CROSS_PLACE >= -(s32)STORE_CROSSING && (s32)CROSS_SUM >= -(s32)STORE_CROSSING,
	       "store.h");

/*
 * What must be added to a rel32 of code at 0 when hot code goes to H, cold code to C, by the site's
 * part and where it leads: the two highest bits of a relocation.
 */
enum reloc { HOT_TO_COLD, HOT_TO_ENTRY, COLD_TO_HOT, COLD_TO_ENTRY, RELOCS };

/* What a record of a block needs besides the block. */
struct block_origin {
	u64 first; /* of its code, which is overwritten when it is dropped */
	u64 cold;  /* offset in code memory */
	u32 hash;  /* of the guest bytes it begins with */
	u16 cold_size, relocs, peeked;
	u8 *bytes;   /* of the block, and of its peeks */
	u16 reloc[]; /* as in a record */
};

static const int run_calls[] = {SYS_pread64, SYS_pwrite64, SYS_unlinkat, SYS_wait4,
				SYS_sched_setaffinity};
const struct sandbox_list reload_sandbox = {"soft", run_calls, ARRAY_SIZE(run_calls)};

/* ---- the key: all that emission depends on besides guest bytes and mode ---- */

struct key {
	u8 build[BUILD_ID];
	u32 host, guest, off, check; /* features, mechanisms */
	s64 cpu;                     /* where struct soft_cpu is from fs */
	u64 zero;
};

_Static_assert(sizeof(struct key) == STORE_KEY, "store.h");

/* The GNU build id of the program, which comes first. */
static int find_build_id(struct dl_phdr_info *info, size_t size, void *to)
{
	(void)size;
	for (u32 n = 0; n < info->dlpi_phnum; n++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[n];
		const u8 *at = (const u8 *)(info->dlpi_addr + p->p_vaddr), *end = at + p->p_memsz;

		while (p->p_type == PT_NOTE && at + sizeof(ElfW(Nhdr)) + 4 <= end) {
			const ElfW(Nhdr) *note = (const void *)at;
			const u8 *name = at + sizeof(*note);
			const u8 *value = name + align_up(note->n_namesz, 4);

			if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 &&
			    !memcmp(name, "GNU", 4) && note->n_descsz <= BUILD_ID) {
				memcpy(to, value, note->n_descsz);
				return 1;
			}
			at = value + align_up(note->n_descsz, 4);
		}
	}
	return -1;
}

static u32 fold(u32 sum, u32 word)
{
	return (sum ^ word) * 0x9e3779b1u ^ sum >> 15;
}

/* The host's processor: what it is and can do, without what differs between its cores. */
static u32 host_features(void)
{
	u32 a, b, c, d, sum = 0;

	if (__get_cpuid(0, &a, &b, &c, &d))
		sum = fold(fold(fold(sum, b), c), d);
	if (__get_cpuid(1, &a, &b, &c, &d))
		sum = fold(fold(fold(sum, a), c), d);
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
		sum = fold(fold(fold(sum, b), c), d);
	if (__get_cpuid(0x80000001, &a, &b, &c, &d))
		sum = fold(fold(sum, c), d);
	return sum;
}

/* The guest's, likewise. */
static u32 guest_features(const struct cpuid_model *m)
{
	const u32 htt = BIT(28); /* of leaf 1: there are several processors */
	u32 sum = m->is_amd;

	for (u32 n = 0; n < m->count; n++) {
		const struct cpuid_leaf *l = &m->leaf[n];

		if (l->leaf == 1 || l->leaf == 7 || l->leaf == 0x80000001)
			sum = fold(fold(fold(fold(sum, l->leaf), l->subleaf), l->ecx),
				   l->leaf == 1 ? l->edx & ~htt : l->edx);
		if (l->leaf == 7)
			sum = fold(sum, l->ebx);
	}
	return sum;
}

static bool make_key(const struct soft_vm *vm, u8 out[STORE_KEY])
{
	struct key key = {
		.host = host_features(),
		.guest = guest_features(vm->cpuid),
		.off = vm->options.off,
		.check = vm->options.check_translations,
		.cpu = (char *)&soft_tls_cpu - (char *)__builtin_thread_pointer(),
	};

	if (dl_iterate_phdr(find_build_id, key.build) != 1)
		return false;
	memcpy(out, &key, sizeof(key));
	return true;
}

/* ---- opening and closing ---- */

/* Unless asked to, nothing is created: who wants translations kept makes the directory. */
void reload_open(struct soft_vm *vm, const char *dir)
{
	const struct soft_options *o = &vm->options;
	bool asked = o->translations == TRANSLATIONS_ON || o->translations == TRANSLATIONS_IN;
	u8 key[STORE_KEY];
	struct err e = {0};
	int r;

	if (!dir || o->translations == TRANSLATIONS_OFF)
		return;
	if (o->translations == TRANSLATIONS_IN)
		dir = o->translations_dir;
	if (!*dir)
		r = err_set(&e, -ENOENT, "no directory: neither XDG_CACHE_HOME nor HOME is set");
	else if (!make_key(vm, key))
		r = err_set(&e, -ENOTSUP, "the program has no build id");
	else
		r = store_open(&vm->store, dir, asked, key, &e);
	if (vm->store && o->check_translations && store_records(vm->store)) {
		/* Not where it lay before, so that what was not moved is found out. */
		vm->cache->hot_start = vm->cache->hot += 592;
		vm->cache->cold += 40;
	}
	if (r == -EBUSY || ((r == -ENOENT || r == -EACCES) && !asked))
		log_info("translations are not kept: %s", e.text);
	else if (r)
		log_warn("translations are not kept: %s", e.text);
	else if (e.text[0])
		log_warn("%s; going on without it", e.text);
}

void reload_close(struct soft_vm *vm)
{
	if (!vm->store)
		return;
	reload_keep_all(vm);
	store_close(vm->store);
	vm->store = NULL;
}

/* ---- from block to record ---- */

struct extent {
	u64 from, to; /* executable addresses */
};

static bool is_in(const struct extent *x, u64 at)
{
	return at >= x->from && at <= x->to;
}

/* The relocation of the rel32 at @site, into *@out unless it leads to its own part. False when it
 * leads nowhere that is known. */
static bool classify(const struct cache *c, const struct extent part[2], const u8 *site, u16 *out,
		     u32 *count)
{
	u64 at = (u64)site + (u64)c->exec_delta;
	u64 to = at + 4 + (u64)(s64)(s32)(u32)soft_load(site, 4);
	bool cold = is_in(&part[1], at), to_cold = is_in(&part[1], to);
	u32 kind = cold ? COLD_TO_HOT : HOT_TO_COLD;

	if (!cold && !is_in(&part[0], at))
		return false;
	if (to - c->rx < CACHE_ENTRY_BYTES)
		kind = cold ? COLD_TO_ENTRY : HOT_TO_ENTRY;
	else if (!to_cold && !is_in(&part[0], to))
		return false;
	else if (to_cold == cold)
		return true;
	out[(*count)++] = (u16)(kind << STORE_RELOC_SHIFT | (at - part[cold].from));
	return true;
}

static u32 peeked_bytes(const struct block *b)
{
	u32 n = 0;

	for (u32 k = 0; k < b->peeks; k++)
		n += (u32)(b->peek_to[k] - b->peek_from[k]);
	return n;
}

static void copy_bytes(struct block_origin *o, const struct translation *t)
{
	u8 *to = o->bytes;

	memcpy(to, t->code, t->b->size);
	to += t->b->size;
	for (u32 k = 0; k < t->peeks; k++) {
		u32 n = (u32)(t->peek_to[k] - t->peek_from[k]);

		memcpy(to, t->peek_bytes[k], n);
		to += n;
	}
}

void reload_note(struct translation *t)
{
	struct cache *c = t->cache;
	struct block *b = t->b;
	u64 cold = (u64)t->cold_start + (u64)c->exec_delta, cold_end = emit_here(&t->cold);
	const struct extent part[2] = {{b->code, b->code + b->code_size}, {cold, cold_end}};
	u16 reloc[EMIT_SITES];
	struct block_origin *o;
	u32 relocs = 0;

	if (!t->c->vm->store || b->page[1] != BLOCK_NO_PAGE || b->mode & ~KEPT_MODES ||
	    kernel_window_refuses(t->c, b->pa, b->mode) || t->sites.n > EMIT_SITES ||
	    b->code_size > STORE_PART || cold_end - cold > STORE_PART || b->size > t->code_len)
		return;
	for (u32 n = 0; n < t->sites.n; n++)
		if (!classify(c, part, t->sites.at[n], reloc, &relocs))
			return;
	o = cache_alloc(c, sizeof(*o) + relocs * sizeof(u16) + b->size + peeked_bytes(b));
	if (!o)
		return;
	*o = (struct block_origin){
		.first = soft_load((u8 *)(b->code - (u64)c->exec_delta), 8),
		.cold = cold - c->rx,
		.hash = store_hash(t->code, MIN(t->code_len, 8u), t->off[0], b->mode),
		.cold_size = (u16)(cold_end - cold),
		.relocs = (u16)relocs,
		.peeked = (u16)peeked_bytes(b),
		.bytes = (u8 *)(o->reloc + relocs)};
	memcpy(o->reloc, reloc, relocs * sizeof(u16));
	copy_bytes(o, t);
	b->origin = o;
}

const u8 *reload_bytes(const struct block *b)
{
	return b->origin ? b->origin->bytes : NULL;
}

/* How rel32s change from code at 0 to hot code at offset @hot of code memory and cold at @cold. */
static void find_shifts(u64 hot, u64 cold, u32 shift[RELOCS])
{
	shift[HOT_TO_COLD] = (u32)(cold - hot);
	shift[HOT_TO_ENTRY] = (u32)-hot;
	shift[COLD_TO_HOT] = (u32)(hot - cold);
	shift[COLD_TO_ENTRY] = (u32)-cold;
}

static u32 part_of(u16 reloc)
{
	return reloc >> 15; /* 0: hot */
}

static void add32(u8 *at, u32 by)
{
	soft_store(at, (u32)soft_load(at, 4) + by, 4);
}

/* The branch of an exit to another page, copied to @site with its stubs at @stub, as if it had
 * never been linked. */
static void forget_crossing(const struct cache *c, const struct block *b, u8 *site, u8 *stub)
{
	u32 half = b->mode & MODE_USER ? HALF_USER : HALF_SUPER;

	soft_store(site + CROSS_PLACE, (u32)cache_cross_place(c, half, 0), 4);
	soft_store(site + CROSS_SUM, CROSS_NEVER, 4);
	soft_store(stub + STORE_OTHERWISE + STUB_IMM, 0, 8);
}

/* The code of @b as if it lay at 0 and its exits were not linked. */
static void copy_code_from(const struct cache *c, const struct block *b, struct store_record *r)
{
	const struct block_origin *o = b->origin;
	u8 *part[2] = {r->hot, r->cold};
	u32 shift[RELOCS];

	memcpy(r->hot, (u8 *)(b->code - (u64)c->exec_delta), b->code_size);
	memcpy(r->cold, c->rw + o->cold, o->cold_size);
	if (!(r->head->parts & STORE_NO_ENTRY))
		soft_store(r->hot, o->first, 8);
	for (u32 k = 0; k < b->exits; k++) {
		const struct store_exit *x = &r->exit[k];
		u64 stub = c->rx + o->cold + x->stub;
		u64 site = (u64)b->exit[k].site + (u64)c->exec_delta;

		soft_store(part[x->flags & STORE_IN_COLD ? 1 : 0] + x->site, stub - (site + 4), 4);
		soft_store(r->cold + x->stub + STUB_IMM, 0, 8);
		if (x->flags & STORE_CROSSES)
			forget_crossing(c, b, part[x->flags & STORE_IN_COLD ? 1 : 0] + x->site,
					r->cold + x->stub);
	}
	find_shifts(b->code - c->rx, o->cold, shift);
	for (u32 n = 0; n < o->relocs; n++)
		add32(part[part_of(o->reloc[n])] + (o->reloc[n] & STORE_RELOC_OFFSET),
		      -shift[o->reloc[n] >> STORE_RELOC_SHIFT]);
}

static void fill_exits(const struct cache *c, const struct block *b, struct store_record *r)
{
	u64 hot = b->code - (u64)c->exec_delta, cold = (u64)c->rw + b->origin->cold;

	for (u32 k = 0; k < b->exits; k++) {
		const struct block_exit *x = &b->exit[k];
		bool in_cold = (u64)x->site - hot >= b->code_size;

		r->exit[k] = (struct store_exit){
			.site = (u16)((u64)x->site - (in_cold ? cold : hot)),
			.stub = (u16)(x->stub - b->origin->cold),
			.target = x->target,
			.flags = (u8)((x->backward ? STORE_BACKWARD : 0) |
				      (x->single ? STORE_SINGLE : 0) | (x->far ? STORE_FAR : 0) |
				      (in_cold ? STORE_IN_COLD : 0) |
				      (x->crosses ? STORE_CROSSES : 0)),
			.distance = x->distance,
		};
	}
}

static void fill_record(const struct cache *c, const struct block *b, struct store_record *r)
{
	const struct block_origin *o = b->origin;

	fill_exits(c, b, r);
	for (u32 k = 0; k < b->peeks; k++)
		r->peek[k] = (struct store_peek){b->peek_from[k], b->peek_to[k]};
	memcpy(r->reloc, o->reloc, o->relocs * sizeof(u16));
	for (u32 k = 0; k < b->insns; k++) {
		r->host_off[k] = (u16)b->host_off[k];
		r->guest_off[k] = b->guest_off[k];
		r->sp_lag[k] = b->sp_lag[k];
	}
	memcpy(r->guest, o->bytes, (u64)b->size + o->peeked);
	copy_code_from(c, b, r);
}

/* What tells records apart: all that they depend on but the key. */
static u64 record_id(const struct block *b)
{
	const struct block_origin *o = b->origin;
	u64 id = store_sum(o->bytes, (u64)b->size + o->peeked);

	id ^= (u64)b->size << 16 ^ (u64)b->mode << 32 ^ (b->pa & ~PAGE_MASK) << 48;
	id ^= (u64)(u32)b->place * 0x9e3779b97f4a7c15ul;
	for (u32 k = 0; k < b->peeks; k++)
		id = (id ^ (u64)b->peek_from[k] << 16 ^ b->peek_to[k]) * 0x9e3779b97f4a7c15ul;
	return id ^ id >> 31;
}

static struct store_head make_head(const struct cache *c, const struct block *b)
{
	u64 cold = c->rx + b->origin->cold;
	bool cold_poll = b->poll - b->code >= b->code_size;

	return (struct store_head){.hash = b->origin->hash,
				   .id = record_id(b),
				   .mode = b->mode,
				   .offset = (u16)(b->pa & ~PAGE_MASK),
				   .guest = b->size,
				   .insns = b->insns,
				   .hot = (u16)b->code_size,
				   .cold = b->origin->cold_size,
				   .poll = (u16)(b->poll - (cold_poll ? cold : b->code)),
				   .direct = (u16)b->direct,
				   .parts = (u8)((b->entry == b->code ? 0 : STORE_NO_ENTRY) |
						 (cold_poll ? STORE_COLD_POLL : 0)),
				   .relocs = b->origin->relocs,
				   .exits = (u8)b->exits,
				   .peeks = b->peeks,
				   .flags_live = b->flags_live,
				   .place = (u32)b->place};
}

/* Does each rel32 lead to where its relocation says? Code that was spoilt must not outlive us. */
static bool is_sound(const struct store_record *r)
{
	const u32 end[RELOCS] = {r->head->cold, CACHE_ENTRY_BYTES - 1, r->head->hot,
				 CACHE_ENTRY_BYTES - 1};
	const u8 *const part[2] = {r->hot, r->cold};

	for (u32 n = 0; n < r->head->relocs; n++) {
		u32 at = r->reloc[n] & STORE_RELOC_OFFSET;

		if (at + 4 + (u32)soft_load(part[part_of(r->reloc[n])] + at, 4) >
		    end[r->reloc[n] >> STORE_RELOC_SHIFT])
			return false;
	}
	return true;
}

void reload_keep_all(struct soft_vm *vm)
{
	struct cache *c = vm->cache;

	for (u32 n = 0; n < c->blocks && vm->store; n++) {
		const struct block *b = c->index[n];
		struct store_record r;
		struct store_head head;

		if (!b->origin)
			continue;
		head = make_head(c, b);
		if (!store_reserve(vm->store, &head, b->origin->peeked, &r))
			continue;
		fill_record(c, b, &r);
		if (is_sound(&r))
			store_commit(vm->store, &r);
	}
}

/* ---- from record to block ---- */

static bool is_made_from(const struct store_record *r, const u8 *page, u32 offset, u32 mode,
			 gva_t place)
{
	const u8 *bytes = r->peeked;

	if (r->head->mode != mode || r->head->offset != offset || r->head->place != (u32)place ||
	    !soft_same(page + offset, r->guest, r->head->guest))
		return false;
	for (u32 k = 0; k < r->head->peeks; k++) {
		u32 n = (u32)(r->peek[k].to - r->peek[k].from);

		if (!soft_same(page + r->peek[k].from, bytes, n))
			return false;
		bytes += n;
	}
	return true;
}

/* The record for @x in @mode: its number, or 0. */
static u32 find_record(struct store *s, const struct soft_xlat *x, u32 mode, gva_t place,
		       struct store_record *r)
{
	u32 offset = (u32)(x->gpa & ~PAGE_MASK), tries = 0;
	u32 hash = store_hash(x->host, (u32)MIN(PAGE_SIZE - offset, 8ul), offset, mode);
	const u8 *page = x->host - offset;
	u32 n = store_guess(s, hash);

	if (n && store_get(s, n, r) && is_made_from(r, page, offset, mode, place))
		return n;
	for (n = store_first(s, hash); n && tries < MAX_TRIES; n = store_next(s, n), tries++) {
		if (store_get(s, n, r) && is_made_from(r, page, offset, mode, place))
			return n;
	}
	return 0;
}

static void take_exits(struct block *b, const struct store_record *r, u8 *hot, u8 *cold,
		       const struct cache *c)
{
	bool is_64bit = (r->head->mode & MODE_BITS) == MODE_BITS_64;

	for (u32 k = 0; k < r->head->exits; k++) {
		const struct store_exit *x = &r->exit[k];

		b->exit[k] = (struct block_exit){
			.from = b,
			.site = (x->flags & STORE_IN_COLD ? cold : hot) + x->site,
			.unlinked = (u32)(cold + x->stub - c->rw),
			.stub = (u32)(cold + x->stub - c->rw),
			.target = x->target,
			.backward = x->flags & STORE_BACKWARD,
			.single = x->flags & STORE_SINGLE,
			.far = x->flags & STORE_FAR,
			.crosses = x->flags & STORE_CROSSES,
			.otherwise = c->entry.cross_link[is_64bit],
			.distance = x->distance,
		};
		soft_store(cold + x->stub + STUB_IMM, (u64)&b->exit[k], 8);
		if (x->flags & STORE_CROSSES)
			soft_store(cold + x->stub + STORE_OTHERWISE + STUB_IMM, (u64)&b->exit[k],
				   8);
	}
}

static void take_code(const struct store_record *r, u8 *hot, u8 *cold, const struct cache *c)
{
	u8 *part[2] = {hot, cold};
	u32 shift[RELOCS];

	memcpy(hot, r->hot, r->head->hot);
	memcpy(cold, r->cold, r->head->cold);
	find_shifts((u64)(hot - c->rw), (u64)(cold - c->rw), shift);
	for (u32 n = 0; n < r->head->relocs; n++)
		add32(part[part_of(r->reloc[n])] + (r->reloc[n] & STORE_RELOC_OFFSET),
		      shift[r->reloc[n] >> STORE_RELOC_SHIFT]);
}

static void take_tables(struct block *b, const struct store_record *r)
{
	for (u32 k = 0; k < r->head->insns; k++) {
		b->host_off[k] = r->host_off[k];
		b->guest_off[k] = r->guest_off[k];
		b->sp_lag[k] = r->sp_lag[k];
	}
	for (u32 k = 0; k < r->head->peeks; k++) {
		b->peek_from[k] = r->peek[k].from;
		b->peek_to[k] = r->peek[k].to;
	}
	b->peeks = r->head->peeks;
}

/* NULL when there is no room: the translator will find that out too. */
static struct block *enter_block(struct cache *c, const struct soft_xlat *x, gva_t place,
				 const struct store_record *r)
{
	const struct store_head *h = r->head;
	struct emit hot, cold;
	struct block *b;

	cache_emit_begin(c, &hot, &cold);
	if (hot.end - hot.p < h->hot || cold.end - cold.p < h->cold)
		return NULL;
	b = cache_block_alloc(c, h->insns, h->exits);
	if (!b)
		return NULL;
	b->pa = x->gpa;
	b->place = place;
	b->mode = h->mode;
	b->page[0] = (s64)x->page;
	b->page[1] = BLOCK_NO_PAGE;
	b->size = h->guest;
	b->insns = h->insns;
	b->exits = h->exits;
	b->flags_live = h->flags_live;
	b->code = emit_here(&hot);
	b->code_size = h->hot;
	b->direct = h->direct;
	b->entry = h->parts & STORE_NO_ENTRY ? 0 : b->code;
	b->poll = h->poll + (h->parts & STORE_COLD_POLL ? emit_here(&cold) : b->code);
	take_tables(b, r);
	take_code(r, hot.p, cold.p, c);
	take_exits(b, r, hot.p, cold.p, c);
	hot.p += h->hot;
	cold.p += h->cold;
	cache_insert(c, b, &hot, &cold);
	return b;
}

static struct block *reload_block(struct soft_cpu *c, const struct soft_xlat *x, u32 mode)
{
	struct soft_vm *vm = c->vm;
	struct store_record r;
	struct block *b;
	gva_t place;
	u32 n;

	if (!vm->store || vm->options.check_translations || mode & ~KEPT_MODES ||
	    kernel_window_refuses(c, x->gpa, mode))
		return NULL;
	c->unsettled = c->unsettled_epoch = 0;
	if (!cache_claim_page(c, (s64)x->page, (u8 *)((u64)x->host & PAGE_MASK)))
		return NULL;
	place = block_place(&vm->options, mode, c->rip);
	n = find_record(vm->store, x, mode, place, &r);
	if (!n)
		return NULL;
	b = enter_block(vm->cache, x, place, &r);
	if (b) {
		store_use(vm->store, n);
		c->counters[COUNT_BLOCKS_LOADED]++;
	}
	return b;
}

struct block *reload_or_translate(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
				  int *status)
{
	u8 was = soft_doing(c, ACT_TRANSLATE);
	u64 start = __builtin_ia32_rdtsc(), cycles;
	struct block *b;
	u32 clock;

	atomic_store(&c->vm->translating, true);
	b = reload_block(c, x, mode);
	clock = b ? COUNT_LOADING_CYCLES : COUNT_TRANSLATION_CYCLES;
	if (!b)
		b = soft_translate_block(c, x, mode, status);
	atomic_store_explicit(&c->vm->translating, false, memory_order_release);
	cycles = __builtin_ia32_rdtsc() - start;
	c->counters[clock] += cycles;
	if (mode & MODE_USER)
		c->tick_translating += cycles;
	soft_doing(c, was);
	return b;
}

/* ---- checking ---- */

static bool has_same_peeks(const struct block *b, const struct store_record *r)
{
	bool same = r->head->peeks == b->peeks;

	for (u32 k = 0; k < b->peeks && same; k++)
		same = r->peek[k].from == b->peek_from[k] && r->peek[k].to == b->peek_to[k];
	return same;
}

/*
 * The record of @b: its number, or 0. A record that took flags for live, because at that time what
 * is behind its block did not tell, is good for @b's bytes as well, but need not have the same
 * code.
 */
static u32 find_twin(const struct cache *c, struct store *s, const struct soft_xlat *x,
		     const struct block *b, struct store_record *r)
{
	u32 offset = (u32)(b->pa & ~PAGE_MASK);
	u32 n = store_first(s, b->origin->hash), parts = make_head(c, b).parts;

	while (n && !(store_get(s, n, r) &&
		      is_made_from(r, x->host - offset, offset, b->mode, b->place) &&
		      r->head->guest == b->size && r->head->parts == parts && has_same_peeks(b, r)))
		n = store_next(s, n);
	return n;
}

/* Does @b's translation give the record @r? Room for it at @mine. */
static bool is_same(const struct cache *c, const struct block *b, const struct store_record *r,
		    u8 *mine)
{
	struct store_head head = make_head(c, b);
	struct store_record now;

	head.size = store_layout(&head, b->origin->peeked, mine, &now);
	if (head.size != r->head->size)
		return false;
	memset(mine, 0, head.size);
	*now.head = head;
	fill_record(c, b, &now);
	return !memcmp(mine, r->head, head.size);
}

void reload_check(struct soft_cpu *c, const struct soft_xlat *x, struct block *b)
{
	struct soft_vm *vm = c->vm;
	struct store_record r;
	u8 *mine;
	u32 n;

	if (!vm->store || !vm->options.check_translations || !b->origin)
		return;
	n = find_twin(vm->cache, vm->store, x, b, &r);
	mine = n ? malloc(STORE_WINDOW) : NULL;
	if (!mine)
		return;
	c->counters[COUNT_BLOCKS_COMPARED]++;
	if (is_same(vm->cache, b, &r, mine)) {
		store_use(vm->store, n);
		b->origin = NULL; /* not to be kept twice */
	} else if (!c->counters[COUNT_BLOCKS_DIFFERENT]++) {
		log_error("the translation of %#lx (mode %#x) differs from the kept one", b->pa,
			  b->mode);
	}
	free(mine);
}
