/* See cache.h. */
#include "engine/soft/cache.h"
#include "host/memory_file.h"
#include "host/populate.h"

#include "engine/soft/places.h"
#include "engine/soft/reload.h"
#include "engine/soft/translate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	BYTES_PER_BUCKET = 2048, /* of code memory; a block takes about 500 */
	LINE_BYTES = 64,
	THUNK_BYTES = 64 * 64 * 1024, /* 64 KiB per vCPU */
	GRANULE_SHIFT = 6,
};

/* Asked for at a time: of another thread, which is to be ahead of us; by ourselves. */
#define READY_AHEAD (2 * MIB)
#define READY_BYTES (256 * KIB)

static u32 hash_of(const struct cache *c, gpa_t pa, u32 mode)
{
	u64 h = (pa >> PAGE_SHIFT ^ ((u64)mode << 44)) * 0x9e3779b97f4a7c15ul;

	/* What lies together is looked for together. */
	return ((u32)(h >> 32) + (u32)(pa & ~PAGE_MASK) / 2) & (c->buckets - 1);
}

static u64 emit_trampoline(struct cache *c, struct emit *e, u32 stub)
{
	u64 at = emit_here(e);

	(void)c;
	emit_jmp_cpu(e, CPU_DISP(e, stub[0]) + 8 * (s32)stub);
	emit_align(e, 16, 0);
	return at;
}

static s32 cpu_offset(void)
{
	return (s32)((char *)&soft_tls_cpu - (char *)__builtin_thread_pointer());
}

static struct emit emitter(struct cache *c, u64 from, u64 to)
{
	return (struct emit){.p = c->rw + from,
			     .end = c->rw + to,
			     .exec_delta = c->exec_delta,
			     .cpu = cpu_offset()};
}

/* HOST_S1 = rip, which the first level of the indirect-branch table does not have. Flags stay. */
static void emit_second_level(struct cache *c, struct emit *e, u32 half)
{
	const u32 tag = offsetof(struct soft_half, ibt) + offsetof(struct ibt_entry, minus_gva);
	u8 *other;

	emit_align(e, 16, 0);
	c->entry.ibt_miss[half] = emit_here(e);
	emit_store_cpu(e, CPU_DISP(e, spill[0]), RCX);
	emit_pext_cpu(e, HOST_S2, HOST_S1, CPU_DISP(e, ibt2_mask));
	emit_lea(e, 64, HOST_S2, HOST_S2, HOST_S2, 1, 2 * IBT_SIZE);
	emit_half_op(e, half, 0x8b, RCX, HOST_S2, 8, tag);
	emit_lea(e, 64, RCX, RCX, HOST_S1, 1, 0);
	emit_jrcxz(e, 5);
	other = emit_jmp_forward(e);
	emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	emit_table_jump(e, half, false);
	emit_patch(e, other, emit_here(e));
	emit_load_cpu(e, RCX, CPU_DISP(e, spill[0]));
	emit_jmp(e, c->entry.ibt_leave);
}

/*
 * The stack page becomes that of the TLB entry at HOST_S2, which then holds the delta; HOST_S1 and
 * flags are clobbered. Its address is host - delta: the write tag may be gone since it was
 * compared, by another thread.
 */
static void emit_fill_stack_page(struct cache *c, struct emit *e, u32 half)
{
	const u32 tlb = offsetof(struct soft_half, tlb), stack = offsetof(struct soft_half, stack);
	const u32 delta = tlb + (u32)offsetof(struct tlb_entry, delta);

	emit_align(e, 16, 0);
	c->entry.fill_stack_page[half] = emit_here(e);
	emit_half_op(e, half, 0x8b, HOST_S1, HOST_S2, 1,
		     tlb + (u32)offsetof(struct tlb_entry, host));
	emit_half_op(e, half, 0x2b, HOST_S1, HOST_S2, 1, delta);
	emit_half_op(e, half, 0x89, HOST_S1, NO_REG, 1,
		     stack + (u32)offsetof(struct stack_page, base));
	emit_half_op(e, half, 0x8b, HOST_S2, HOST_S2, 1, delta);
	emit_half_op(e, half, 0x89, HOST_S2, NO_REG, 1,
		     stack + (u32)offsetof(struct stack_page, delta));
	emit_half_store_imm(e, half, PAGE_SIZE - STACK_SMALL + 1,
			    stack + (u32)offsetof(struct stack_page, limit[0]));
	emit_half_store_imm(e, half, PAGE_SIZE - STACK_LARGE + 1,
			    stack + (u32)offsetof(struct stack_page, limit[1]));
	emit_u8(e, 0xc3);
}

/* rip = code_va + HOST_S2, then to the run loop. */
static void emit_leave_on_page(struct cache *c, struct emit *e, bool is_64bit, enum soft_leave why)
{
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, code_va));
	emit_lea(e, is_64bit ? 64 : 32, HOST_S1, HOST_S1, HOST_S2, 1, 0);
	emit_mov_imm32(e, HOST_S2, why);
	emit_jmp(e, c->entry.leave);
}

/* The exit's target is on the page of code_va. */
static void emit_page_leaves(struct cache *c, struct emit *e, bool is_64bit)
{
	const struct host_mem target = {
		.base = HOST_S2, .index = NO_REG, .disp = offsetof(struct block_exit, target)};

	emit_align(e, 16, 0);
	c->entry.link[is_64bit] = emit_here(e);
	emit_store_cpu(e, CPU_DISP(e, link), HOST_S2);
	emit_load(e, HOST_S2, target, sizeof(((struct block_exit *)0)->target));
	emit_movsxd(e, HOST_S2, HOST_S2);
	emit_leave_on_page(c, e, is_64bit, LEAVE_LINK);
	emit_align(e, 16, 0);
	c->entry.poll[is_64bit] = emit_here(e);
	emit_leave_on_page(c, e, is_64bit, LEAVE_POLL);
}

/*
 * HOST_S2 = an exit to another page, which is not known to be where the exit was linked to, or
 * which was not linked yet. HOST_S1 becomes rip. Direct branches are no reason to take one back.
 */
static void emit_crossing_rip(struct emit *e, bool is_64bit)
{
	/* movsxd HOST_S2, [HOST_S2 + distance] */
	const u8 load[] = {0x4d, 0x63, 0x5b, offsetof(struct block_exit, distance)};

	emit_store_cpu_imm32(e, CPU_DISP(e, branch_site), BRANCH_SITE_NONE);
	emit_bytes(e, load, sizeof(load));
	emit_load_cpu(e, HOST_S1, CPU_DISP(e, code_va));
	emit_lea(e, is_64bit ? 64 : 32, HOST_S1, HOST_S1, HOST_S2, 1, 0);
}

static void emit_crossings(struct cache *c, struct emit *e, bool is_64bit)
{
	emit_align(e, 16, 0);
	c->entry.cross_link[is_64bit] = emit_here(e);
	emit_store_cpu(e, CPU_DISP(e, link), HOST_S2);
	emit_crossing_rip(e, is_64bit);
	emit_mov_imm32(e, HOST_S2, LEAVE_LINK);
	emit_jmp(e, c->entry.leave);
	for (u32 half = 0; half < HALVES; half++) {
		emit_align(e, 16, 0);
		c->entry.cross_table[half][is_64bit] = emit_here(e);
		emit_crossing_rip(e, is_64bit);
		emit_indirect(e, half, false);
	}
}

static void emit_entries(struct cache *c, const struct soft_options *o)
{
	struct emit e = emitter(c, 0, CACHE_ENTRY_BYTES);

	c->entry.leave = emit_trampoline(c, &e, STUB_LEAVE);
	c->entry.miss = emit_trampoline(c, &e, STUB_MISS);
	c->entry.step = emit_trampoline(c, &e, STUB_STEP);
	c->entry.syscall = emit_trampoline(c, &e, STUB_SYSCALL);
	c->entry.sysret = emit_trampoline(c, &e, STUB_SYSRET);
	c->entry.thunk_done = emit_trampoline(c, &e, STUB_THUNK_DONE);
	c->entry.ibt_leave = emit_trampoline(c, &e, STUB_LOOKUP);
	for (u32 half = 0; half < HALVES; half++)
		if (soft_uses(o, SOFT_SECOND_LEVEL))
			emit_second_level(c, &e, half);
		else
			c->entry.ibt_miss[half] = c->entry.ibt_leave;
	for (u32 half = 0; half < HALVES; half++)
		emit_fill_stack_page(c, &e, half);
	emit_page_leaves(c, &e, false);
	emit_page_leaves(c, &e, true);
	emit_crossings(c, &e, false);
	emit_crossings(c, &e, true);
	for (u32 half = 0; half < HALVES; half++) {
		emit_align(&e, 16, 0);
		c->entry.ras_bottom[half] = emit_here(&e);
		emit_load_cpu(&e, RSP, CPU_DISP(&e, ras_base));
		emit_indirect(&e, half, false);
	}
}

/* Code in huge pages takes fewer entries of the host's instruction TLB. */
static u8 *map_file(int fd, u64 size, int prot)
{
	u8 *p = mmap(NULL, size, prot, MAP_SHARED, fd, 0);

	if (p != MAP_FAILED)
		madvise(p, size, MADV_HUGEPAGE);
	return p;
}

/* Code memory of @fd, emptied. */
static int map_code(struct cache *c, int fd, struct err *e)
{
	int code;

	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)c->size) < 0)
		return err_set(e, -errno, "cannot create code memory: %s", strerror(errno));
	c->rw = map_file(fd, c->size, PROT_READ | PROT_WRITE);
	c->rx = (u64)map_file(fd, c->size, PROT_READ | PROT_EXEC);
	code = -errno;
	if (c->rw == MAP_FAILED || c->rx == (u64)MAP_FAILED)
		return err_set(e, code, "cannot map code memory: %s", strerror(-code));
	c->exec_delta = (s64)(c->rx - (u64)c->rw);
	return 0;
}

static int create_code(struct cache *c, int fd, struct err *e)
{
	int own = fd < 0 ? host_memory_file() : -1, r;

	if (fd < 0 && own < 0)
		return err_set(e, own, "cannot create code memory: %s", strerror(-own));
	r = map_code(c, fd < 0 ? own : fd, e);
	if (own >= 0)
		close(own);
	return r;
}

static void *map_zeroed(u64 size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int soft_cache_create(struct soft_vm *vm, int fd, struct populate *populate, struct err *e)
{
	struct cache *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return err_set(e, -ENOMEM, "out of memory");
	vm->cache = c;
	c->populate = populate;
	c->size = align_up(vm->options.code_cache, PAGE_SIZE);
	r = create_code(c, fd, e);
	if (r < 0)
		return r;
	c->pages_count = vm->physmap->pages;
	c->arena_size = c->size;
	c->arena = map_zeroed(c->arena_size);
	if (c->arena)
		madvise(c->arena, c->arena_size, MADV_HUGEPAGE);
	for (c->buckets = 1; c->buckets < c->size / BYTES_PER_BUCKET;)
		c->buckets *= 2;
	c->hash = map_zeroed(c->buckets * sizeof(*c->hash));
	c->pages = map_zeroed(MAX(c->pages_count, 1) * sizeof(*c->pages));
	c->index = map_zeroed(c->size / 16 * sizeof(struct block *));
	c->forms = map_zeroed(sizeof(*c->forms));
	if (places_create(vm) < 0 || !c->forms || !c->arena || !c->hash || !c->pages || !c->index)
		return err_set(e, -ENOMEM, "cannot allocate code cache tables");
	emit_entries(c, &vm->options);
	c->thunk = emitter(c, CACHE_ENTRY_BYTES, CACHE_ENTRY_BYTES + THUNK_BYTES);
	c->hot_start = c->hot = CACHE_ENTRY_BYTES + THUNK_BYTES;
	c->hot_end = c->cold = align_up(c->hot_start + (c->size - c->hot_start) / 8 * 5, PAGE_SIZE);
	c->hot_ready = align_up(c->hot_start, PAGE_SIZE);
	c->cold_ready = c->hot_end;
	return 0;
}

void soft_cache_destroy(struct soft_vm *vm)
{
	struct cache *c = vm->cache;

	if (!c)
		return;
	places_destroy(vm);
	if (c->rw && c->rw != MAP_FAILED)
		munmap(c->rw, c->size);
	if (c->rx && c->rx != (u64)MAP_FAILED)
		munmap((void *)c->rx, c->size);
	if (c->arena)
		munmap(c->arena, c->arena_size);
	if (c->forms)
		munmap(c->forms, sizeof(*c->forms));
	if (c->hash)
		munmap(c->hash, c->buckets * sizeof(*c->hash));
	if (c->pages)
		munmap(c->pages, MAX(c->pages_count, 1) * sizeof(*c->pages));
	if (c->index)
		munmap(c->index, c->size / 16 * sizeof(struct block *));
	free(c);
	vm->cache = NULL;
}

void cache_expect(const struct cache *c, gpa_t pa, u32 mode)
{
	__builtin_prefetch(&c->hash[hash_of(c, pa, mode)], 1);
}

struct block *cache_find(struct cache *c, gpa_t pa, u32 mode, gva_t place)
{
	struct block *b = __atomic_load_n(&c->hash[hash_of(c, pa, mode)], __ATOMIC_ACQUIRE);

	while (b && (b->pa != pa || b->mode != mode || b->place != place))
		b = __atomic_load_n(&b->hash_next, __ATOMIC_ACQUIRE);
	return b;
}

bool cache_may_have(const struct cache *c, s64 page, u32 offset)
{
	return c->pages[page].granules >> (offset >> GRANULE_SHIFT) & 1;
}

void *cache_alloc(struct cache *c, u64 size)
{
	void *p = c->arena + c->arena_used;

	size = align_up(size, 16);
	if (range_exceeds(c->arena_used, size, c->arena_size))
		return NULL;
	c->arena_used += size;
	return p;
}

struct block *cache_block_alloc(struct cache *c, u32 insns, u32 exits)
{
	u64 used = c->arena_used;
	struct block *b = cache_alloc(c, align_up(used, LINE_BYTES) - used)
				  ? cache_alloc(c, sizeof(*b))
				  : NULL;
	u32 *host_off = cache_alloc(c, insns * sizeof(u32));
	u16 *guest_off = cache_alloc(c, insns * sizeof(u16));
	s16 *sp_lag = cache_alloc(c, insns * sizeof(s16));
	struct block_exit *exit = cache_alloc(c, exits * sizeof(struct block_exit));

	if (!b || !host_off || !guest_off || !sp_lag || !exit) {
		c->arena_used = used;
		return NULL;
	}
	memset(b, 0, sizeof(*b));
	b->host_off = host_off;
	b->guest_off = guest_off;
	b->sp_lag = sp_lag;
	b->exit = exit;
	return b;
}

void cache_block_trim(struct cache *c, struct block *b, u32 exits)
{
	c->arena_used = align_up((u64)((u8 *)(b->exit + exits) - c->arena), 16);
}

/*
 * Code memory is asked for in pieces: to fault for each page takes several times as long. It is
 * only for speed, so nobody minds when it fails.
 */
static u64 make_ready(struct cache *c, u64 ready, u64 used, u64 end)
{
	u64 piece = c->populate ? READY_AHEAD : READY_BYTES, size = MIN(piece, end - ready);

	if (used + piece / 2 < ready || !size)
		return ready;
	if (c->populate)
		populate_ask(c->populate, c->rw + ready, size);
	else
		madvise(c->rw + ready, size, MADV_POPULATE_WRITE);
	return ready + size;
}

/* The same for the arena, which consists of huge pages: one costs one fault. */
static void make_arena_ready(struct cache *c)
{
	u64 size = MIN(READY_AHEAD, c->arena_size - c->arena_ready);

	if (!c->populate || c->arena_used + READY_AHEAD / 2 < c->arena_ready || !size)
		return;
	populate_ask(c->populate, c->arena + c->arena_ready, size);
	c->arena_ready += size;
}

void cache_emit_begin(struct cache *c, struct emit *hot, struct emit *cold)
{
	c->hot_ready = make_ready(c, c->hot_ready, c->hot, c->hot_end);
	c->cold_ready = make_ready(c, c->cold_ready, c->cold, c->size);
	make_arena_ready(c);
	*hot = emitter(c, c->hot, c->hot_end);
	*cold = emitter(c, MIN(align_up(c->cold, 8), c->size), c->size);
	emit_align(hot, 16, 0);
}

static u64 granule_mask(u32 off, u32 len)
{
	u32 first = off >> GRANULE_SHIFT, last = (off + len - 1) >> GRANULE_SHIFT;

	/* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): all on one page */
	return (last - first == 63 ? ~0ul : (1ul << (last - first + 1)) - 1) << first;
}

/* Part @k of block @b on its page: offset and length. */
static void block_span(const struct block *b, u32 k, u32 *off, u32 *len)
{
	u32 start = (u32)(b->pa & ~PAGE_MASK);
	u32 on_first = MIN((u32)b->size, (u32)PAGE_SIZE - start);

	*off = k ? 0 : start;
	*len = k ? b->size - on_first : on_first;
}

/* A guest may have one page at two addresses in a row: are both parts of the block on it? */
static bool meets_itself(const struct block *b)
{
	return b->page[1] == b->page[0];
}

/* Pages in whose lists the block is; one with both parts on a page is there once. */
static u32 block_pages(const struct block *b)
{
	return b->page[1] == BLOCK_NO_PAGE || meets_itself(b) ? 1 : 2;
}

static u64 span_granules(const struct block *b, u32 k)
{
	u32 off, len;

	block_span(b, k, &off, &len);
	return granule_mask(off, len);
}

/* Granules of the block's part @k: its bytes, and on the first page what its translation relies on.
 */
static u64 block_granules(const struct block *b, u32 k)
{
	u64 mask = span_granules(b, k);

	if (k)
		return mask;
	if (meets_itself(b))
		mask |= span_granules(b, 1);
	for (u32 n = 0; n < b->peeks; n++)
		mask |= granule_mask(b->peek_from[n], b->peek_to[n] - b->peek_from[n]);
	return mask;
}

static bool span_is_hit(const struct block *b, u32 k, u32 offset, u32 len)
{
	u32 off, n;

	block_span(b, k, &off, &n);
	return offset < off + n && off < offset + len;
}

/* Does a store of @len bytes at @offset of the page of part @k change what the block was made from?
 */
static bool block_is_hit(const struct block *b, u32 k, u32 offset, u32 len)
{
	if (span_is_hit(b, k, offset, len))
		return true;
	if (k)
		return false;
	if (meets_itself(b) && span_is_hit(b, 1, offset, len))
		return true;
	for (u32 n = 0; n < b->peeks; n++)
		if (offset < b->peek_to[n] && b->peek_from[n] < offset + len)
			return true;
	return false;
}

/* The same, but remembered for the first page, which most blocks have only. */
static u64 known_granules(const struct block *b, u32 k)
{
	return k ? block_granules(b, k) : b->granules;
}

static void page_add(struct cache *c, struct block *b, u32 k)
{
	struct page_code *pc = &c->pages[b->page[k]];

	b->page_next[k] = pc->blocks;
	pc->blocks = b;
	pc->granules |= known_granules(b, k);
}

void cache_insert(struct cache *c, struct block *b, const struct emit *hot, const struct emit *cold)
{
	u32 h = hash_of(c, b->pa, b->mode);

	b->hash_next = c->hash[h];
	__atomic_store_n(&c->hash[h], b, __ATOMIC_RELEASE);
	c->index[c->blocks++] = b;
	b->granules = block_granules(b, 0);
	for (u32 k = 0; k < block_pages(b); k++)
		page_add(c, b, k);
	c->hot = (u64)(hot->p - c->rw);
	c->cold = (u64)(cold->p - c->rw);
}

static void set32(u8 *at, u32 value)
{
	__atomic_store_n((u32 *)(void *)at, value, __ATOMIC_RELEASE);
}

static void set_site(struct cache *c, struct block_exit *x, u64 target)
{
	set32(x->site, (u32)(target - ((u64)x->site + (u64)c->exec_delta + 4)));
}

s32 cache_cross_place(const struct cache *c, u32 half, u32 index)
{
	(void)c;
	return emit_half_disp(cpu_offset(), half,
			      (u32)offsetof(struct soft_half, cross) + 8 * index);
}

/*
 * Link an exit to another page. The branch has let nobody pass so far: the sum comes last, when all
 * else is as it should be. It is linked to one page only, so that who has compared with the page
 * goes to code of that page.
 */
static void link_crossing(struct cache *c, struct block_exit *x, const struct block *to, u64 target)
{
	u32 half = to->mode & MODE_USER ? HALF_USER : HALF_SUPER;

	if (!x->page)
		set32(x->site + CROSS_PLACE, (u32)cache_cross_place(c, half, CROSS_INDEX(to->pa)));
	set_site(c, x, target);
	if (!x->page)
		set32(x->site + CROSS_SUM, (u32)CROSS_TAG(to->pa));
	x->page = (u32)(to->pa >> PAGE_SHIFT) + 1;
}

/* Whoever is not let pass goes by the table from now on. May the exit be linked to @to? */
static bool may_cross(struct cache *c, struct block_exit *x, const struct block *to)
{
	cache_cross_by_table(c, x);
	/* Such a branch may lead to the page at any address; the code is made for one. */
	if (to->place && !x->from->place)
		return false;
	return x->page ? x->page == (to->pa >> PAGE_SHIFT) + 1 : CROSS_TAG(to->pa) <= CROSS_TAGS;
}

void cache_cross_by_table(struct cache *c, struct block_exit *x)
{
	u32 mode = x->from->mode, half = mode & MODE_USER ? HALF_USER : HALF_SUPER;

	__atomic_store_n(&x->otherwise,
			 c->entry.cross_table[half][(mode & MODE_BITS) == MODE_BITS_64],
			 __ATOMIC_RELAXED);
}

static void forget_incoming(struct block_exit *x)
{
	struct block_exit **p = &x->to->incoming;

	while (*p != x)
		p = &(*p)->next_incoming;
	*p = x->next_incoming;
	x->to = NULL;
}

void cache_link(struct cache *c, struct block_exit *x, struct block *to)
{
	u64 target;

	if (x->to)
		forget_incoming(x);
	if (!to || (x->crosses && !may_cross(c, x, to))) {
		set_site(c, x, c->rx + x->unlinked);
		return;
	}
	x->to = to;
	x->next_incoming = to->incoming;
	to->incoming = x;
	if (x->far)
		target = to->poll - BLOCK_FAR;
	else
		target = x->backward ? to->poll : to->code + to->direct;
	if (x->crosses)
		link_crossing(c, x, to, target);
	else
		set_site(c, x, target);
}

static void unhash(struct cache *c, struct block *b)
{
	struct block **p = &c->hash[hash_of(c, b->pa, b->mode)];

	while (*p != b)
		p = &(*p)->hash_next;
	__atomic_store_n(p, b->hash_next, __ATOMIC_RELEASE);
}

/* Which of the block's pages this list belongs to. */
static u32 page_slot(const struct block *b, s64 page)
{
	return b->page[0] == page ? 0 : 1;
}

static void page_remove(struct cache *c, struct block *b, u32 k)
{
	s64 page = b->page[k];
	struct block **p = &c->pages[page].blocks;

	while (*p != b)
		p = &(*p)->page_next[page_slot(*p, page)];
	*p = b->page_next[k];
}

void cache_drop(struct soft_vm *vm, struct block *b)
{
	struct cache *c = vm->cache;
	u8 patch[8] = {0xe9};
	u32 rel = (u32)(c->entry.ibt_leave - (b->entry + 5));
	u64 word;

	while (b->incoming)
		cache_link(c, b->incoming, NULL);
	for (u32 k = 0; k < b->exits; k++)
		if (b->exit[k].to)
			cache_link(c, &b->exit[k], NULL);
	unhash(c, b);
	for (u32 k = 0; k < block_pages(b); k++)
		page_remove(c, b, k);
	memcpy(patch + 1, &rel, 4);
	memcpy(&word, patch, 8);
	if (b->entry)
		__atomic_store_n((u64 *)(void *)(b->entry - (u64)c->exec_delta), word,
				 __ATOMIC_RELEASE);
	b->dead = true;
	c->dropped++;
}

int soft_cache_resize(struct soft_vm *vm, struct err *e)
{
	struct cache *c = vm->cache;
	struct page_code *pages = map_zeroed(MAX(vm->physmap->pages, 1) * sizeof(*pages));

	if (!pages)
		return err_set(e, -ENOMEM, "cannot allocate code cache tables");
	cache_flush(vm);
	munmap(c->pages, MAX(c->pages_count, 1) * sizeof(*c->pages));
	c->pages = pages;
	c->pages_count = vm->physmap->pages;
	return 0;
}

void cache_flush(struct soft_vm *vm)
{
	struct cache *c = vm->cache;

	reload_keep_all(vm);
	places_reset(vm);
	for (u32 n = 0; n < c->blocks; n++)
		for (u32 k = 0; k < 2; k++)
			if (c->index[n]->page[k] != BLOCK_NO_PAGE) {
				s64 page = c->index[n]->page[k];

				atomic_fetch_and(&vm->page_flags[page], (u8)~PAGE_HAS_CODE);
				c->pages[page] = (struct page_code){0};
			}
	memset(c->hash, 0, c->buckets * sizeof(*c->hash));
	c->blocks = 0;
	c->arena_used = 0;
	c->hot = c->hot_start;
	c->cold = c->hot_end;
	c->generation++;
}

struct block *cache_by_pc(struct cache *c, u64 pc)
{
	u32 lo = 0, hi = c->blocks;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;

		if (c->index[mid]->code <= pc)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo || pc - c->index[lo - 1]->code >= c->index[lo - 1]->code_size)
		return NULL;
	return c->index[lo - 1];
}

bool cache_claim_page(struct soft_cpu *cpu, s64 page, u8 *host)
{
	struct soft_vm *vm = cpu->vm;
	struct page_code *pc = &vm->cache->pages[page];
	u64 bit = soft_stale_bit((u64)host);

	if (!(atomic_fetch_or(&vm->page_flags[page], PAGE_HAS_CODE) & PAGE_HAS_CODE)) {
		soft_drop_write_tags(vm, (u64)page, host);
		pc->epoch = atomic_load(&vm->epoch);
	}
	if (soft_is_settled(vm, cpu, bit, pc->epoch))
		return true;
	cpu->unsettled |= bit;
	cpu->unsettled_epoch = MAX(cpu->unsettled_epoch, pc->epoch);
	return false;
}

/* Blocks left on the page decide what its granule map must keep. */
static void recompute_granules(struct page_code *pc, s64 page)
{
	u64 granules = 0;

	for (struct block *b = pc->blocks; b; b = b->page_next[page_slot(b, page)])
		granules |= known_granules(b, page_slot(b, page));
	__atomic_store_n(&pc->granules, granules, __ATOMIC_RELEASE); /* at once: others look */
}

static bool drop_overlapping(struct soft_vm *vm, struct page_code *pc, s64 page, u32 offset,
			     u32 len)
{
	u64 granules = granule_mask(offset, len);
	struct block *b = pc->blocks, *next;
	bool dropped = false;

	for (; b; b = next) {
		u32 k = page_slot(b, page);

		next = b->page_next[k];
		if (known_granules(b, k) & granules && block_is_hit(b, k, offset, len)) {
			cache_drop(vm, b);
			dropped = true;
		}
	}
	return dropped;
}

/*
 * Whoever translates says so before he reads bytes, with a full fence, and until the granules that
 * they cover are in the map. So when nobody does, either the map is complete, or he will read what
 * has been stored.
 */
bool soft_code_is_far(const struct soft_vm *vm, u64 page, u32 offset, u32 len)
{
	const struct page_code *pc = &vm->cache->pages[page];

	if (atomic_load(&vm->translating))
		return false;
	return !len ||
	       !(__atomic_load_n(&pc->granules, __ATOMIC_ACQUIRE) & granule_mask(offset, len));
}

bool soft_code_stored(struct soft_vm *vm, u64 page, u32 offset, u32 len)
{
	struct page_code *pc;
	bool dropped = false;

	pthread_mutex_lock(&vm->lock);
	pc = &vm->cache->pages[page];
	if (len && pc->granules & granule_mask(offset, len)) {
		dropped = drop_overlapping(vm, pc, (s64)page, offset, len);
		if (dropped)
			recompute_granules(pc, (s64)page);
		if (!pc->blocks)
			atomic_fetch_and(&vm->page_flags[page], (u8)~PAGE_HAS_CODE);
	}
	pthread_mutex_unlock(&vm->lock);
	return dropped;
}
