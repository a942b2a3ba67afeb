/*
 * Guest memory by linear address: translation, TLB fill, reads and writes.
 *
 * Theory of operation. A page walk (cpu/paging.h) over guest RAM gives a struct soft_xlat; what it
 * found is entered into the TLB of the current context, which translated code probes inline and the
 * functions here probe first. Translations are cached as hardware may (SDM vol. 3, 4.10): until a
 * flush, never when not present, and a write tag only once the dirty flag is set. Guest page tables
 * are ordinary memory to us; they are never write-protected.
 *
 * Three things keep a RAM page out of the TLB for writes, so that stores to it come here:
 * translated code (PAGE_HAS_CODE), an armed dirty log (PAGE_LOG_DIRTY) and ROM. Another thread sets
 * those flags, then drops existing tags (soft_drop_write_tags). Filling stores the tag first and
 * looks at the flags afterwards, with a fence on either side, so one of the two sees the other.
 *
 * Linear addresses outside RAM are device accesses. They leave through cpu->exit one piece at a
 * time and the instruction runs again once a piece is done, finding it in cpu->frag; therefore
 * device pieces of a write go before any RAM is changed. An access of more pieces than frag[] holds
 * reads ones and drops writes beyond that: only FXSAVE and XSAVE images in device memory are that
 * large.
 *
 * The flags that a walk sets in an entry reach the dirty log, but not translated code: an entry
 * whose own bytes are also executed keeps its translation until the next ordinary store there.
 * vm->lock may be held during a walk, and dropping blocks needs it.
 *
 * Fetches have a small cache of their own per context, so that finding a block does not walk.
 */
#include "cpu/paging.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/tlb.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"

/* ---- physical memory ---- */

/* physmap_find(), but callable while vector state is live. */
static inline const struct physmap_region *find_region(const struct soft_cpu *c, gpa_t gpa)
{
	const struct physmap *pm = c->vm->physmap;

	for (u32 i = 0; i < pm->count; i++)
		if (gpa - pm->region[i].gpa < pm->region[i].size)
			return &pm->region[i];
	return NULL;
}

static inline u64 table_load(void *opaque, gpa_t gpa, u32 size)
{
	const struct physmap_region *r = find_region(opaque, gpa);
	const void *p;

	if (!r)
		return size == 8 ? ~0ul : 0xffffffff;
	p = r->hva + (gpa - r->gpa);
	if (size == 8)
		return __atomic_load_n((const u64 *)p, __ATOMIC_RELAXED);
	return __atomic_load_n((const u32 *)p, __ATOMIC_RELAXED);
}

static inline bool table_swap(void *opaque, gpa_t gpa, u32 size, u64 old, u64 new)
{
	const struct soft_cpu *c = opaque;
	const struct physmap_region *r = find_region(c, gpa);
	_Atomic u8 *flags;
	bool done;
	void *p;

	if (!r || r->flags & PHYSMAP_ROM)
		return true;
	p = r->hva + (gpa - r->gpa);
	if (size == 8) {
		done = __atomic_compare_exchange_n((u64 *)p, &old, new, false, __ATOMIC_SEQ_CST,
						   __ATOMIC_RELAXED);
	} else {
		u32 old32 = (u32)old;

		done = __atomic_compare_exchange_n((u32 *)p, &old32, (u32) new, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	}
	flags = &c->vm->page_flags[r->page0 + (gpa - r->gpa) / PAGE_SIZE];
	if (done && atomic_load_explicit(flags, memory_order_relaxed) & PAGE_LOG_DIRTY)
		atomic_fetch_and(flags, (u8)~PAGE_LOG_DIRTY);
	return done;
}

static const struct paging_memory tables = {.load = table_load, .swap = table_swap};

/* Nothing is changed, but noted where something would be. */
static inline bool table_keep(void *opaque, gpa_t gpa, u32 size, u64 old, u64 new)
{
	struct soft_cpu *c = opaque;

	(void)gpa, (void)size, (void)old, (void)new;
	c->would_mark = true;
	return true;
}

static const struct paging_memory frozen_tables = {.load = table_load, .swap = table_keep};

/* ---- translation ---- */

static inline bool is_long_mode(const struct soft_cpu *c)
{
	return c->efer & EFER_LMA;
}

/* The linear address of the page after that of @gva. */
static inline gva_t next_page(const struct soft_cpu *c, gva_t gva)
{
	gva_t next = (gva & PAGE_MASK) + PAGE_SIZE;

	return is_long_mode(c) ? next : (u32)next;
}

static int page_fault(struct soft_cpu *c, gva_t gva, u32 error)
{
	c->exc.cr2 = gva;
	return soft_fault_code(c, VEC_PF, error);
}

static bool walk(struct soft_cpu *c, gva_t gva, u32 access, const struct paging_memory *mem,
		 struct paging_result *r)
{
	const struct paging_state s = {.cr0 = c->cr0,
				       .cr3 = c->cr3,
				       .cr4 = c->cr4,
				       .efer = c->efer,
				       .phys_mask = BIT(c->vm->cpuid->phys_bits) - 1};

	if (!paging_is_enabled(&s)) {
		*r = (struct paging_result){.gpa = gva, .shift = PAGE_SHIFT, .writable = true};
		return true;
	}
	if (c->sysflags & RFLAGS_AC)
		access |= PAGING_AC;
	return paging_walk(&s, gva, access, mem, c, r);
}

/* Where the page of @r is, and what may be done with it. */
static void describe(struct soft_cpu *c, const struct paging_result *r, struct soft_xlat *x)
{
	const struct physmap_region *region = find_region(c, r->gpa);

	x->shift = r->shift;
	x->gpa = r->gpa;
	x->global = r->global;
	/* What only CR0.WP = 0 lets the kernel write is no user's. */
	x->user = r->user && c->cr0 & CR0_WP;
	x->host = NULL;
	x->page = 0;
	x->rom = false;
	x->writable = false;
	if (region) {
		u64 offset = r->gpa - region->gpa;

		x->host = region->hva + offset;
		x->page = region->page0 + offset / PAGE_SIZE;
		x->rom = region->flags & PHYSMAP_ROM;
		x->writable = r->writable && !x->rom;
	}
}

/* Walk and look up where the page is; *shift gets log2 of its size. */
static int translate(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x, u8 *shift)
{
	struct paging_result r;

	if (!is_long_mode(c))
		gva = (u32)gva;
	else if (!soft_canonical(gva))
		return soft_fault_code(c, VEC_GP, 0);
	if (!walk(c, gva, access, &tables, &r))
		return page_fault(c, gva, r.error);
	describe(c, &r, x);
	*shift = x->shift;
	return SOFT_OK;
}

/* ---- instruction fetch ---- */

static void fetch_enter(struct soft_half *h, gva_t gva, const struct soft_xlat *x, u8 shift)
{
	struct soft_fetch_entry *f = &h->fetch[fetch_index(gva)];
	u32 upper = address_half(gva);

	f->tag = gva & PAGE_MASK;
	f->gpa = x->gpa & PAGE_MASK;
	f->host = x->host - (x->gpa & ~PAGE_MASK);
	f->page = x->page;
	f->rom = x->rom;
	f->global = x->global;
	if (shift == 30)
		h->exec_huge[upper] |= huge_bit(gva);
	else if (shift > PAGE_SHIFT)
		h->exec_large[upper] |= exec_large_bit(gva);
	if (shift == 22)
		h->exec_large[upper] |= exec_large_bit(gva ^ BIT(21));
	if (x->global)
		h->has_global[upper] = true;
	else
		h->local_code = true;
}

static int translate_fetch(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x)
{
	struct soft_half *h = soft_half(c, tlb_half(access));
	const struct soft_fetch_entry *f = &h->fetch[fetch_index(gva)];
	u8 shift;
	int status;

	if (f->tag == (gva & PAGE_MASK)) {
		*x = (struct soft_xlat){.gpa = f->gpa | (gva & ~PAGE_MASK),
					.host = f->host + (gva & ~PAGE_MASK),
					.page = f->page,
					.global = f->global,
					.rom = f->rom};
		return SOFT_OK;
	}
	status = translate(c, gva, access, x, &shift);
	if (status == SOFT_OK && x->host)
		fetch_enter(h, is_long_mode(c) ? gva : (u32)gva, x, shift);
	return status;
}

int soft_translate(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x)
{
	u8 shift;

	if ((access & ACC_KIND) == ACC_FETCH)
		return translate_fetch(c, gva, access, x);
	return translate(c, gva, access, x, &shift);
}

bool soft_peek(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x)
{
	struct paging_result r;

	c->would_mark = false;
	if (!is_long_mode(c) || !soft_canonical(gva) || !walk(c, gva, access, &frozen_tables, &r) ||
	    c->would_mark)
		return false;
	describe(c, &r, x);
	return x->host;
}

/* Code outside RAM reads as what an empty bus returns: FF FF is #UD, so the guest ends in a fault.
 */
static void fetch_copy(u8 *to, const struct soft_xlat *x, u32 n)
{
	if (!x->host) {
		soft_fill(to, 0xff, n);
	} else if (n == 15) {
		soft_store(to, soft_load(x->host, 8), 8);
		soft_store(to + 7, soft_load(x->host + 7, 8), 8);
	} else {
		soft_copy_bytes(to, x->host, n);
	}
}

int soft_fetch(struct soft_cpu *c, gva_t gva, u8 buf[15], u32 *len)
{
	u32 access = soft_acc(c, ACC_FETCH), first = (u32)(PAGE_SIZE - (gva & ~PAGE_MASK));
	struct soft_xlat x;
	int status = translate_fetch(c, gva, access, &x);

	if (status != SOFT_OK)
		return status;
	*len = MIN(first, 15u);
	fetch_copy(buf, &x, *len);
	if (*len < 15 && translate_fetch(c, next_page(c, gva), access, &x) == SOFT_OK) {
		fetch_copy(buf + *len, &x, 15 - *len);
		*len = 15;
	}
	return SOFT_OK;
}

/* ---- TLB fill ---- */

static bool page_is_watched(const struct soft_cpu *c, u64 page)
{
	return atomic_load_explicit(&c->vm->page_flags[page], memory_order_relaxed) & PAGE_WATCHED;
}

static void note_entry(struct soft_half *h, u32 i, gva_t gva, bool global, u8 shift)
{
	u32 upper = address_half(gva);

	if (h->tlb[i].tag_read == TLB_EMPTY(i)) {
		u32 n = h->tlb_logged;

		if (n < CTX_LOG)
			h->tlb_log[n] = (u16)i;
		__atomic_store_n(&h->tlb_logged, MIN(n, (u32)CTX_LOG) + 1, __ATOMIC_RELEASE);
	}
	if (!global) {
		if (h->local_logged < CTX_LOG)
			h->local_log[h->local_logged] = (u16)i;
		h->local_logged = MIN(h->local_logged, (u32)CTX_LOG) + 1;
	}
	if (shift == 30)
		h->huge[upper] |= huge_bit(gva);
	else if (shift > PAGE_SHIFT)
		bitmap_set(h->large[upper], large_bit(gva));
	if (shift == 22)
		bitmap_set(h->large[upper], large_bit(gva ^ BIT(21)));
	if (global)
		h->has_global[upper] = true;
}

/* Entry for page @tag could have had a write tag, but for somebody who wants to see stores to it.
 */
static void note_watched(struct soft_cpu *c, gva_t tag, u32 half, const struct soft_xlat *x)
{
	soft_half(c, half)->tlb_page[tlb_index(tag)].watched = true;
	c->watched.tag = tag;
	c->watched.half = half;
	c->watched.x = *x;
	c->watched.x.gpa &= PAGE_MASK;
	c->watched.x.host -= x->gpa & ~PAGE_MASK;
}

/* Is that still known, so that a store there need not walk the guest's tables again? */
static bool is_known_watched(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x)
{
	const struct soft_half *h = soft_half(c, tlb_half(access));
	u32 i = tlb_index(gva);

	if (!is_long_mode(c))
		gva = (u32)gva;
	if ((access & ACC_KIND) != ACC_WRITE || (gva & PAGE_MASK) != c->watched.tag ||
	    tlb_half(access) != c->watched.half || h->tlb[i].tag_read != c->watched.tag ||
	    h->tlb[i].host != (u64)c->watched.x.host || !h->tlb_page[i].watched ||
	    !page_is_watched(c, c->watched.x.page))
		return false;
	*x = c->watched.x;
	x->gpa += gva & ~PAGE_MASK;
	x->host += gva & ~PAGE_MASK;
	return true;
}

/* Enter a RAM page. True when it is there for the kind of @access. */
static bool tlb_enter(struct soft_cpu *c, gva_t gva, u32 access, const struct soft_xlat *x,
		      u8 shift)
{
	struct soft_half *h = soft_half(c, tlb_half(access));
	u32 i = tlb_index(gva);
	struct tlb_entry *e = &h->tlb[i];
	const gva_t tag = gva & PAGE_MASK;

	note_entry(h, i, gva, x->global, shift);
	/* The block at hand may have checked a group on the page that goes. */
	if (e->tag_write != TLB_EMPTY(i))
		atomic_fetch_or(&c->stale, soft_stale_bit(e->host));
	tlb_set_tag(&e->tag_write, TLB_EMPTY(i));
	__atomic_store_n(&e->host, (u64)x->host & PAGE_MASK, __ATOMIC_RELEASE);
	e->delta = e->host - tag;
	h->tlb_page[i] = (struct tlb_page){.shift = shift, .local = !x->global};
	tlb_set_tag(&e->tag_read, tag);
	c->counters[COUNT_TLB_FILLS]++;
	if (!x->writable)
		return !(access & ACC_WRITE);
	bitmap_set(h->write_pages, write_page_bit(x->page));
	tlb_set_tag(&e->tag_write, tag);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!page_is_watched(c, x->page))
		return true;
	tlb_set_tag(&e->tag_write, TLB_EMPTY(i));
	note_watched(c, tag, tlb_half(access), x);
	return !(access & ACC_WRITE);
}

/* What user code, or the kernel's window, has found out about the page of @gva, for the kernel. */
static bool borrow(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x)
{
	const struct soft_half *user = &c->ctx->user;
	u32 i = tlb_index(gva);
	const struct tlb_entry *e = &user->tlb[i];
	const struct physmap_region *r = c->vm->physmap->region;
	const gva_t tag = gva & PAGE_MASK;
	u64 offset = gva & ~PAGE_MASK;

	if (access & ACC_USER)
		return false;
	if (kernel_window_knows(c, gva, access & ACC_WRITE, x))
		return true;
	if (c->cr4 & CR4_SMAP || (access & ACC_WRITE ? e->tag_write : e->tag_read) != tag)
		return false;
	while (e->host - (u64)r->hva >= r->size)
		r++;
	*x = (struct soft_xlat){.gpa = r->gpa + (e->host - (u64)r->hva) + offset,
				.host = (u8 *)e->host + offset,
				.page = r->page0 + ((e->host - (u64)r->hva) >> PAGE_SHIFT),
				.shift = user->tlb_page[i].shift,
				.writable = e->tag_write == tag,
				.global = !user->tlb_page[i].local};
	return true;
}

/*
 * Translate for data and enter what was found. *cached as tlb_enter(). The supervisor half loses
 * user memory with each MOV CR3. The user half stays: what was found for the kernel goes there,
 * too, to be borrowed the next time.
 */
static int lookup(struct soft_cpu *c, gva_t gva, u32 access, struct soft_xlat *x, bool *cached)
{
	u8 shift;
	int status;

	*cached = false;
	if (is_known_watched(c, gva, access, x))
		return SOFT_OK;
	if (borrow(c, gva, access, x)) {
		*cached = tlb_enter(c, gva, access, x, x->shift);
		return SOFT_OK;
	}
	status = translate(c, gva, access, x, &shift);
	if (status != SOFT_OK || !x->host)
		return status;
	if (!is_long_mode(c))
		gva = (u32)gva;
	if (x->user && !x->global && !(access & ACC_USER) && !(c->cr4 & CR4_SMAP))
		tlb_enter(c, gva, access | ACC_USER, x, shift);
	*cached = tlb_enter(c, gva, access, x, shift);
	return status;
}

int soft_tlb_fill(struct soft_cpu *c, gva_t gva, u32 access, bool *filled)
{
	struct soft_xlat x;

	return lookup(c, gva, access, &x, filled);
}

/* Host address of [gva, gva+len) when the TLB holds it for @access, else NULL. */
static inline u8 *tlb_probe(struct soft_cpu *c, gva_t gva, u32 len, u32 access)
{
	const struct tlb_entry *e = &soft_half(c, tlb_half(access))->tlb[tlb_index(gva)];
	u64 offset = gva ^ (access & ACC_WRITE ? e->tag_write : e->tag_read);

	return offset <= PAGE_SIZE - len ? (u8 *)e->host + offset : NULL;
}

/* ---- devices ---- */

/* Take the fragment of this access if it is done already. */
static bool take_fragment(struct soft_cpu *c, bool is_port, u64 addr, u32 size, bool write,
			  u64 *data)
{
	const struct soft_fragment *f = &c->frag[c->frag_next];

	if (c->frag_next >= c->frag_count)
		return false;
	if (f->is_port != is_port || f->addr != addr || f->size != size || f->write != write) {
		/* The instruction goes another way this time: what was done for the old one is
		 * void. */
		c->frag_count = c->frag_next;
		return false;
	}
	*data = f->data;
	c->frag_next++;
	return true;
}

/* One place is left to the run loop, which completes an exit there. */
static bool fragments_are_full(const struct soft_cpu *c)
{
	return c->frag_next >= SOFT_FRAGMENTS - 1;
}

static int device_exit(struct soft_cpu *c, bool is_port, u64 addr, u32 size, bool write, u64 data)
{
	struct vm_exit *exit = &c->exit;

	if (is_port) {
		exit->type = EXIT_PIO;
		exit->pio.port = (u16)addr;
		exit->pio.size = (u8)size;
		exit->pio.in = !write;
		exit->pio.data = (u32)data;
	} else {
		exit->type = EXIT_MMIO;
		exit->mmio.gpa = addr;
		exit->mmio.size = (u8)size;
		exit->mmio.write = write;
		exit->mmio.data = data;
	}
	return SOFT_EXIT;
}

int soft_device_read(struct soft_cpu *c, bool is_port, u64 addr, u32 size, u64 *data)
{
	if (fragments_are_full(c)) {
		*data = ~0ul;
		return SOFT_OK;
	}
	if (take_fragment(c, is_port, addr, size, false, data))
		return SOFT_OK;
	return device_exit(c, is_port, addr, size, false, 0);
}

int soft_device_write(struct soft_cpu *c, bool is_port, u64 addr, u32 size, u64 data)
{
	u64 written;

	if (fragments_are_full(c) || take_fragment(c, is_port, addr, size, true, &written))
		return SOFT_OK;
	return device_exit(c, is_port, addr, size, true, data);
}

/* The largest naturally aligned power of two, up to 8, that [gpa, gpa+len) starts with. */
static u32 device_piece(gpa_t gpa, u32 len)
{
	u32 size = 8;

	while (size > len || gpa & (size - 1))
		size /= 2;
	return size;
}

static int device_read(struct soft_cpu *c, gpa_t gpa, u8 *buf, u32 len)
{
	for (u32 n; len; gpa += n, buf += n, len -= n) {
		u64 data;

		n = device_piece(gpa, len);
		if (soft_device_read(c, false, gpa, n, &data) != SOFT_OK)
			return SOFT_EXIT;
		soft_store(buf, data, n);
	}
	return SOFT_OK;
}

static int device_write(struct soft_cpu *c, gpa_t gpa, const u8 *buf, u32 len)
{
	for (u32 n; len; gpa += n, buf += n, len -= n) {
		n = device_piece(gpa, len);
		if (soft_device_write(c, false, gpa, n, soft_load(buf, n)) != SOFT_OK)
			return SOFT_EXIT;
	}
	return SOFT_OK;
}

/* ---- reads and writes ---- */

static int read_in_page(struct soft_cpu *c, gva_t gva, u8 *buf, u32 len, u32 access)
{
	struct soft_xlat x;
	bool cached;
	const u8 *host = tlb_probe(c, gva, len, access);
	int status;

	if (!host) {
		status = lookup(c, gva, access, &x, &cached);
		if (status != SOFT_OK)
			return status;
		if (!x.host)
			return device_read(c, x.gpa, buf, len);
		host = x.host;
	}
	soft_copy(buf, host, len);
	return SOFT_OK;
}

int soft_read(struct soft_cpu *c, gva_t gva, void *buf, u32 len, u32 access)
{
	u32 first = (u32)(PAGE_SIZE - (gva & ~PAGE_MASK));
	int status;

	access &= ~(u32)ACC_WRITE;
	if (len <= first)
		return read_in_page(c, gva, buf, len, access);
	status = read_in_page(c, gva, buf, first, access);
	if (status != SOFT_OK)
		return status;
	return read_in_page(c, next_page(c, gva), (u8 *)buf + first, len - first, access);
}

/* Where the part of a write within one page goes. */
struct write_part {
	struct soft_xlat x;
	const u8 *from;
	u32 len;
	bool direct; /* the TLB holds the page for writing: nobody watches it */
};

static int write_prepare(struct soft_cpu *c, gva_t gva, const u8 *from, u32 len, u32 access,
			 struct write_part *w)
{
	u8 *host = tlb_probe(c, gva, len, access);

	w->from = from;
	w->len = len;
	w->direct = host;
	if (host) {
		w->x.host = host;
		w->x.rom = false;
		return SOFT_OK;
	}
	return lookup(c, gva, access, &w->x, &w->direct);
}

static void stored_to_watched(struct soft_cpu *c, u64 page, u32 offset, u32 len)
{
	u8 flags;

	/* The bytes are visible before the flags are looked at; see the top of the file. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	flags = atomic_load_explicit(&c->vm->page_flags[page], memory_order_relaxed);
	if (flags & PAGE_LOG_DIRTY)
		atomic_fetch_and(&c->vm->page_flags[page], (u8)~PAGE_LOG_DIRTY);
	if (flags & PAGE_IS_ROOT) {
		soft_fpu_park(c);
		windows_root_stored(c->vm, page);
	}
	if (flags & PAGE_IS_DIRECT) {
		soft_fpu_park(c);
		windows_code_stored(c->vm, page);
	}
	if (!(flags & PAGE_HAS_CODE))
		return;
	c->counters[COUNT_CODE_STORES]++;
	if (soft_code_is_far(c->vm, page, offset, len))
		return;
	soft_fpu_park(c);
	if (soft_code_stored(c->vm, page, offset, len))
		c->code_changed = true;
}

void soft_stored(struct soft_cpu *c, const struct soft_xlat *x, u32 len)
{
	stored_to_watched(c, x->page, (u32)(x->gpa & ~PAGE_MASK), len);
}

static void write_ram(struct soft_cpu *c, const struct write_part *w)
{
	if (!w->x.host || w->x.rom)
		return;
	soft_copy(w->x.host, w->from, w->len);
	if (!w->direct)
		stored_to_watched(c, w->x.page, (u32)(w->x.gpa & ~PAGE_MASK), w->len);
}

static int write_device(struct soft_cpu *c, const struct write_part *w)
{
	return w->x.host ? SOFT_OK : device_write(c, w->x.gpa, w->from, w->len);
}

static int write_crossing(struct soft_cpu *c, gva_t gva, const u8 *buf, u32 len, u32 access)
{
	u32 first = (u32)(PAGE_SIZE - (gva & ~PAGE_MASK));
	struct write_part low, high;
	int status = write_prepare(c, gva, buf, first, access, &low);

	if (status == SOFT_OK)
		status = write_prepare(c, next_page(c, gva), buf + first, len - first, access,
				       &high);
	if (status == SOFT_OK)
		status = write_device(c, &low);
	if (status == SOFT_OK)
		status = write_device(c, &high);
	if (status != SOFT_OK)
		return status;
	write_ram(c, &low);
	write_ram(c, &high);
	return SOFT_OK;
}

int soft_write(struct soft_cpu *c, gva_t gva, const void *buf, u32 len, u32 access)
{
	struct write_part w;
	u8 *host;
	int status;

	access = (access & ~(u32)ACC_KIND) | ACC_WRITE;
	host = tlb_probe(c, gva, len, access);
	if (host) {
		soft_copy(host, buf, len);
		return SOFT_OK;
	}
	if ((gva & ~PAGE_MASK) + len > PAGE_SIZE)
		return write_crossing(c, gva, buf, len, access);
	status = write_prepare(c, gva, buf, len, access, &w);
	if (status == SOFT_OK)
		status = write_device(c, &w);
	if (status == SOFT_OK)
		write_ram(c, &w);
	return status;
}

int soft_pin_write(struct soft_cpu *c, gva_t gva, u32 len, u32 access, void **host)
{
	struct soft_xlat x;
	bool cached;
	int status;

	access = (access & ~(u32)ACC_KIND) | ACC_WRITE;
	*host = tlb_probe(c, gva, len, access);
	if (*host || (gva & ~PAGE_MASK) + len > PAGE_SIZE)
		return SOFT_OK;
	status = lookup(c, gva, access, &x, &cached);
	if (status == SOFT_OK && cached)
		*host = x.host;
	return status;
}
