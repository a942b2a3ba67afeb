/*
 * String instructions: MOVS CMPS STOS LODS SCAS with and without REP.
 *
 * Work goes in chunks of elements that lie within one page on each side, in RAM: there the host's
 * own REP MOVS and REP STOS do the job with the same element size and direction, which makes
 * overlapping operands exact without looking at them. Everything else (an element across a page
 * boundary, device memory, breakpoints) goes one element at a time through the checked accessors.
 * Registers are advanced after each chunk, so that a fault or a device exit finds the instruction
 * part-way, as architected.
 *
 * Between chunks the exit request is polled; a long copy then stops with rip still on the
 * instruction. A page with translated code takes its bytes through soft_write() in one piece per
 * chunk.
 */
#include "engine/soft/system.h"
#include "engine/soft/translate.h"
#include "engine/soft/translation.h"
#include "engine/soft/util.h"

enum {
	RUN_BYTES = 64 * 1024, /* of a string instruction between two looks for requests */
	FEW = 8,               /* bytes */
};

enum string_kind { STRING_MOVS, STRING_CMPS, STRING_STOS, STRING_LODS, STRING_SCAS };

struct string {
	const struct insn *i;
	enum string_kind kind;
	u32 size;  /* bytes per element */
	u32 asize; /* bytes of the address registers */
	u32 seg;   /* of the source */
	u8 rep;    /* 0xf3, 0xf2 or 0 */
	bool down; /* RFLAGS.DF */
	bool uses_source, uses_dest, writes_dest;
	bool done; /* CMPS, SCAS: the repetition's condition has failed */
};

u8 insn_rep_prefix(const struct insn *i)
{
	u8 found = 0;

	for (u32 n = 0; n < i->opcode_off; n++)
		if (i->bytes[n] == 0xf2 || i->bytes[n] == 0xf3)
			found = i->bytes[n];
	return found;
}

u32 insn_override(const struct insn *i, u32 seg)
{
	for (u32 n = 0; n < i->opcode_off; n++) {
		u8 b = i->bytes[n];

		if (b == 0x64 || b == 0x65)
			seg = b == 0x64 ? SEG_FS : SEG_GS;
		else if (i->bits != 64 && (b & 0xe7) == 0x26)
			seg = (b >> 3) & 3;
	}
	return seg;
}

static struct string string_of(const struct soft_cpu *c, const struct insn *i)
{
	struct string s = {
		.i = i,
		.size = insn_opcode(i) & 1 ? i->opsize : 1,
		.asize = i->addrsize,
		.seg = insn_override(i, SEG_DS),
		.rep = insn_rep_prefix(i),
		.down = c->dflag,
	};

	switch (insn_opcode(i) & 0xfe) {
	case 0xa4: s.kind = STRING_MOVS; break;
	case 0xa6: s.kind = STRING_CMPS; break;
	case 0xaa: s.kind = STRING_STOS; break;
	case 0xac: s.kind = STRING_LODS; break;
	default: s.kind = STRING_SCAS; break;
	}
	s.uses_source = s.kind == STRING_MOVS || s.kind == STRING_CMPS || s.kind == STRING_LODS;
	s.uses_dest = s.kind != STRING_LODS;
	s.writes_dest = s.kind == STRING_MOVS || s.kind == STRING_STOS;
	return s;
}

/* ---- registers ---- */

static void move_pointer(struct soft_cpu *c, const struct string *s, u32 reg, u64 elements)
{
	u64 bytes = elements * s->size;

	gpr_set(c, reg, s->asize, s->down ? c->r[reg] - bytes : c->r[reg] + bytes);
}

/* @elements are done: advance, and forget the device accesses that belonged to them. */
static void commit(struct soft_cpu *c, const struct string *s, u64 elements)
{
	if (s->uses_source)
		move_pointer(c, s, RSI, elements);
	if (s->uses_dest)
		move_pointer(c, s, RDI, elements);
	if (s->rep)
		gpr_set(c, RCX, s->asize, c->r[RCX] - elements);
	c->frag_count = c->frag_next = 0;
}

void string_step(struct soft_cpu *c, const struct insn *i, bool more)
{
	if (!insn_rep_prefix(i))
		return;
	gpr_set(c, RCX, i->addrsize, c->r[RCX] - 1);
	if (more && gpr_get(c, RCX, i->addrsize))
		soft_interp(c)->next_rip = c->rip;
}

/* ---- values ---- */

/* Arithmetic flags of a - b; the host computes them. */
static u64 compare_flags(u64 a, u64 b, u32 size)
{
	u64 flags;

	switch (size) {
	case 1:
		__asm__("cmpb %b2, %b1; pushfq; popq %0" : "=r"(flags) : "q"(a), "q"(b) : "cc");
		break;
	case 2:
		__asm__("cmpw %w2, %w1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
		break;
	case 4:
		__asm__("cmpl %k2, %k1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
		break;
	default:
		__asm__("cmpq %2, %1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
		break;
	}
	return flags & RFLAGS_ARITH;
}

/* REPE goes on while equal, REPNE while different. */
static bool compare_stops(const struct string *s, u64 a, u64 b)
{
	return s->rep && (a == b) != (s->rep == 0xf3);
}

static void compare_result(struct soft_cpu *c, struct string *s, u64 a, u64 b)
{
	c->flags = compare_flags(a, b, s->size);
	s->done = compare_stops(s, a, b);
}

/* ---- one element, every case ---- */

/* A source that may be a device is read only once the destination is known to take the value. */
static int read_source(struct soft_cpu *c, const struct string *s, gva_t source, gva_t dest,
		       u64 *value)
{
	struct soft_xlat x;
	bool device;
	int r;

	if (s->writes_dest && !guest_read_pointer(c, source, s->size)) {
		r = soft_translate(c, source, soft_acc(c, ACC_READ), &x);
		if (r == SOFT_OK)
			r = guest_probe_write(c, dest, s->size, &device);
		if (r != SOFT_OK)
			return r;
	}
	return guest_read_value(c, source, s->size, value);
}

static int element(struct soft_cpu *c, struct string *s)
{
	u64 value = gpr_get(c, RAX, s->size), other = 0;
	gva_t source = 0, dest = 0;
	int r = SOFT_OK;

	if (s->uses_source)
		r = seg_linear(c, s->seg, gpr_get(c, RSI, s->asize), s->size, false, &source);
	if (r == SOFT_OK && s->uses_dest)
		r = seg_linear(c, SEG_ES, gpr_get(c, RDI, s->asize), s->size, s->writes_dest,
			       &dest);
	if (r == SOFT_OK && s->uses_source)
		r = read_source(c, s, source, dest, &value);
	if (r == SOFT_OK && s->writes_dest)
		r = guest_write(c, dest, &value, s->size);
	else if (r == SOFT_OK && s->uses_dest)
		r = guest_read_value(c, dest, s->size, &other);
	if (r != SOFT_OK)
		return r;
	if (s->kind == STRING_LODS)
		gpr_set(c, RAX, s->size, value);
	else if (!s->writes_dest)
		compare_result(c, s, value, other);
	return SOFT_OK;
}

/* ---- chunks ---- */

/* Elements from register @reg on that stay within one page, the segment and the address size. */
static u64 chunk_limit(const struct soft_cpu *c, const struct string *s, u32 reg, u32 seg,
		       bool write, gva_t *lin)
{
	u64 off = gpr_get(c, reg, s->asize), in_page, room, span;

	*lin = seg_linear_unchecked(c, seg, off);
	in_page = *lin & ~PAGE_MASK;
	if (in_page + s->size > PAGE_SIZE)
		return 0;
	room = s->down ? in_page / s->size + 1 : (PAGE_SIZE - in_page) / s->size;
	if (s->asize < 8) {
		span = s->down ? off + s->size : size_mask(s->asize) - off + 1;
		room = MIN(room, span / s->size);
	}
	if (soft_is_64bit(c))
		return soft_canonical(*lin) ? room : 0;
	span = seg_span(c, seg, (u32)off, write);
	if (s->down) /* lower offsets are inside as well, except in an expand-down segment */
		return span >= s->size && seg_span(c, seg, 0, write) ? room : 0;
	return MIN(room, span / s->size);
}

/* Host address of the page of @lin through the TLB; NULL when the page cannot be entered there. */
static int page_pointer(struct soft_cpu *c, gva_t lin, u32 kind, u8 **page)
{
	u32 half = c->cpl == 3 ? HALF_USER : HALF_SUPER;
	u64 n = (lin >> PAGE_SHIFT) % TLB_SIZE;
	const struct tlb_entry *e = &soft_half(c, half)->tlb[n];
	bool filled = true;
	int r = SOFT_OK;

	if ((kind == ACC_WRITE ? e->tag_write : e->tag_read) != (lin & PAGE_MASK))
		r = soft_tlb_fill(c, lin, soft_acc(c, kind), &filled);
	e = &soft_half(c, half)->tlb[n];
	*page = r == SOFT_OK && filled ? (u8 *)e->host : NULL;
	return r;
}

/* With the guest's direction and element size the host's instruction also gets overlaps right. */
static void host_movs(u8 *to, const u8 *from, u64 count, u32 size, bool down)
{
	switch (size) {
	case 1:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep movsb; cld"
				 : "+D"(to), "+S"(from), "+c"(count)
				 : "q"(down)
				 : "memory", "cc");
		break;
	case 2:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep movsw; cld"
				 : "+D"(to), "+S"(from), "+c"(count)
				 : "q"(down)
				 : "memory", "cc");
		break;
	case 4:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep movsl; cld"
				 : "+D"(to), "+S"(from), "+c"(count)
				 : "q"(down)
				 : "memory", "cc");
		break;
	default:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep movsq; cld"
				 : "+D"(to), "+S"(from), "+c"(count)
				 : "q"(down)
				 : "memory", "cc");
		break;
	}
}

static void host_stos(u8 *to, u64 value, u64 count, u32 size, bool down)
{
	switch (size) {
	case 1:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep stosb; cld"
				 : "+D"(to), "+c"(count)
				 : "a"(value), "q"(down)
				 : "memory", "cc");
		break;
	case 2:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep stosw; cld"
				 : "+D"(to), "+c"(count)
				 : "a"(value), "q"(down)
				 : "memory", "cc");
		break;
	case 4:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep stosl; cld"
				 : "+D"(to), "+c"(count)
				 : "a"(value), "q"(down)
				 : "memory", "cc");
		break;
	default:
		__asm__ volatile("testb %3, %3; je 1f; std; 1: rep stosq; cld"
				 : "+D"(to), "+c"(count)
				 : "a"(value), "q"(down)
				 : "memory", "cc");
		break;
	}
}

/*
 * The destination page holds translated code or is being logged: one soft_write() for the chunk.
 * *elements becomes 0 when it is not RAM, runs downwards, or overlaps the source.
 */
static int chunk_to_watched(struct soft_cpu *c, const struct string *s, const u8 *from, gva_t dest,
			    u64 *elements)
{
	u64 bytes = *elements * s->size;
	u8 *page = soft_interp(c)->page;
	struct soft_xlat x;
	int r = soft_translate(c, dest, soft_acc(c, ACC_WRITE), &x);

	if (r != SOFT_OK)
		return r;
	if (!x.host || s->down || (from && (u64)(x.host - from) + bytes < 2 * bytes)) {
		*elements = 0;
		return SOFT_OK;
	}
	if (!from) {
		host_stos(page, c->r[RAX], *elements, s->size, false);
		from = page;
	}
	return soft_write(c, dest, from, (u32)bytes, soft_acc(c, ACC_WRITE));
}

/* MOVS or STOS of *elements; becomes what was done, 0 when the element-wise way is needed. */
static int chunk_store(struct soft_cpu *c, const struct string *s, const u8 *from, gva_t dest,
		       u64 *elements)
{
	u8 *page;
	int r = page_pointer(c, dest, ACC_WRITE, &page);

	if (r != SOFT_OK)
		return r;
	if (!page)
		return chunk_to_watched(c, s, from, dest, elements);
	if (from)
		host_movs(page + (dest & ~PAGE_MASK), from, *elements, s->size, s->down);
	else
		host_stos(page + (dest & ~PAGE_MASK), c->r[RAX], *elements, s->size, s->down);
	return SOFT_OK;
}

/* CMPS or SCAS up to the element that ends the repetition. */
static u64 chunk_compare(struct soft_cpu *c, struct string *s, const u8 *left, const u8 *right,
			 u64 elements)
{
	s64 step = s->down ? -(s64)s->size : (s64)s->size;
	u64 a = gpr_get(c, RAX, s->size), b = 0, n = 0;

	do {
		if (left) {
			a = soft_load(left, s->size);
			left += step;
		}
		b = soft_load(right, s->size);
		right += step;
		n++;
	} while (n < elements && !compare_stops(s, a, b));
	compare_result(c, s, a, b);
	return n;
}

static int chunk_run(struct soft_cpu *c, struct string *s, const u8 *from, gva_t dest,
		     u64 *elements)
{
	u8 *page;
	int r;

	if (s->writes_dest)
		return chunk_store(c, s, from, dest, elements);
	if (s->kind == STRING_LODS) {
		s64 last = (s64)((*elements - 1) * s->size);

		gpr_set(c, RAX, s->size, soft_load(from + (s->down ? -last : last), s->size));
		return SOFT_OK;
	}
	r = page_pointer(c, dest, ACC_READ, &page);
	if (r != SOFT_OK)
		return r;
	*elements = page ? chunk_compare(c, s, from, page + (dest & ~PAGE_MASK), *elements) : 0;
	return SOFT_OK;
}

/* As many elements as one chunk holds. *elements: how many; 0 when it takes element(). */
static int chunk(struct soft_cpu *c, struct string *s, u64 count, u64 *elements)
{
	gva_t source = 0, dest = 0;
	u8 *page, *from = NULL;
	int r;

	if (s->uses_source)
		count = MIN(count, chunk_limit(c, s, RSI, s->seg, false, &source));
	if (s->uses_dest)
		count = MIN(count, chunk_limit(c, s, RDI, SEG_ES, s->writes_dest, &dest));
	*elements = count;
	if (!count)
		return SOFT_OK;
	if (s->uses_source) {
		r = page_pointer(c, source, ACC_READ, &page);
		if (r != SOFT_OK)
			return r;
		if (!page) {
			*elements = 0;
			return SOFT_OK;
		}
		from = page + (source & ~PAGE_MASK);
	}
	return chunk_run(c, s, from, dest, elements);
}

/* Single step, breakpoints and alignment checks look at every element. */
static bool each_is_observed(const struct soft_cpu *c)
{
	return (c->sysflags & (RFLAGS_TF | RFLAGS_AC)) || (c->dr7 & DR7_ANY);
}

static int advance(struct soft_cpu *c, struct string *s, bool observed, u64 count)
{
	u64 elements = 0;
	int r = observed ? SOFT_OK : chunk(c, s, count, &elements);

	if (r == SOFT_OK && !elements) {
		r = element(c, s);
		elements = 1;
	}
	if (r == SOFT_OK)
		commit(c, s, elements);
	return r;
}

/*
 * Intel's processors clear the upper halves of the registers that a repetition with 32-bit
 * addresses counts in before the first element (the pointers with MOVS and STOS only), AMD's with
 * each element.
 */
static void truncate_registers(struct soft_cpu *c, const struct string *s)
{
	gpr_set(c, RCX, s->asize, c->r[RCX]);
	if (!s->writes_dest)
		return;
	if (s->uses_source)
		gpr_set(c, RSI, s->asize, c->r[RSI]);
	gpr_set(c, RDI, s->asize, c->r[RDI]);
}

int exec_string(struct soft_cpu *c, const struct insn *i)
{
	struct string s = string_of(c, i);
	bool observed = each_is_observed(c);
	u64 count = s.rep ? gpr_get(c, RCX, s.asize) : 1;
	u64 flags = c->flags;
	int r;

	if (s.rep && !soft_interp(c)->is_amd)
		truncate_registers(c, &s);
	if (!count)
		return SOFT_OK;
	for (;;) {
		r = advance(c, &s, observed, count);
		/* Intel's processors take the flags of finished elements back (SDM vol. 2, REP). */
		if (r == SOFT_FAULT && !soft_interp(c)->is_amd)
			c->flags = flags;
		if (r != SOFT_OK)
			return r;
		if (!s.rep || s.done)
			return SOFT_OK;
		count = gpr_get(c, RCX, s.asize);
		if (!count)
			return SOFT_OK;
		if (observed || atomic_load_explicit(&c->exit_req, memory_order_relaxed))
			break;
	}
	soft_interp(c)->next_rip = c->rip;
	return SOFT_OK;
}

/* ---- from translated code ---- */

u32 string_site(const struct insn *i)
{
	u32 size;
	u8 kind;

	if (i->cls != INSN_STRING) /* one that is invalid has no opcode */
		return 0;
	kind = insn_opcode(i) & 0xfe;
	size = insn_opcode(i) & 1 ? i->opsize : 1;
	if ((kind != 0xa4 && kind != 0xaa) || i->bits != 64 || i->addrsize != 8 ||
	    !insn_rep_prefix(i) || insn_override(i, SEG_DS) != SEG_DS)
		return 0;
	return SITE_STRING | (kind == 0xaa ? SITE_WRITE : 0) | (size - 1) << SITE_SIZE_SHIFT;
}

/*
 * Bytes from @gva on, up to @want, that the TLB knows for such an access and that lie side by side
 * in the host's memory, which begins at *host.
 */
static u64 run_length(const struct soft_half *h, gva_t gva, bool write, u64 want, u8 **host)
{
	const struct tlb_entry *e = &h->tlb[(gva >> PAGE_SHIFT) % TLB_SIZE];
	gva_t page = gva & PAGE_MASK;
	u64 delta = e->delta, room = PAGE_SIZE - (gva & ~PAGE_MASK);

	if ((write ? e->tag_write : e->tag_read) != page)
		return 0;
	*host = (u8 *)(gva + delta);
	while (room < want) {
		page += PAGE_SIZE;
		e = &h->tlb[(page >> PAGE_SHIFT) % TLB_SIZE];
		if ((write ? e->tag_write : e->tag_read) != page || e->delta != delta)
			return room;
		room += PAGE_SIZE;
	}
	return want;
}

/* The same, the TLB being filled. 0 where that is not all there is to do, a fault for one. */
static u64 find_run(struct soft_cpu *c, gva_t gva, u32 kind, u64 want, u8 **host)
{
	const struct soft_half *h = soft_half(c, c->cpl == 3 ? HALF_USER : HALF_SUPER);
	u64 n = run_length(h, gva, kind == ACC_WRITE, want, host);
	__typeof__(c->exc) exc = c->exc;
	bool filled = false;

	if (n || !soft_canonical(gva))
		return n;
	if (soft_tlb_fill(c, gva, soft_acc(c, kind), &filled) == SOFT_OK && filled)
		return run_length(h, gva, kind == ACC_WRITE, want, host);
	c->exc = exc;
	return 0;
}

/* Kernels copy single values to and from user memory so; REP takes longer to begin. */
static void copy_few(u8 *to, const u8 *from, u64 n)
{
	for (u64 k = 0; k < n; k++)
		__atomic_store_n(&to[k], __atomic_load_n(&from[k], __ATOMIC_RELAXED),
				 __ATOMIC_RELAXED);
}

bool string_run(struct soft_cpu *c, u32 site)
{
	u32 size = (site >> SITE_SIZE_SHIFT & 0x3ff) + 1;
	bool stos = site & SITE_WRITE;
	u8 *to, *from = NULL;
	u64 n;

	while (c->r[RCX]) {
		n = MIN(c->r[RCX], RUN_BYTES / size) * size;
		if (c->dflag || atomic_load_explicit(&c->exit_req, memory_order_relaxed))
			return false;
		/* The source first: the destination is not dirty before there is what to store. */
		if (!stos)
			n = find_run(c, c->r[RSI], ACC_READ, n, &from);
		if (n)
			n = find_run(c, c->r[RDI], ACC_WRITE, n, &to);
		n -= n % size;
		if (!n)
			return false;
		if (stos)
			host_stos(to, c->r[RAX], n / size, size, false);
		else if (n <= FEW && size == 1)
			copy_few(to, from, n);
		else
			host_movs(to, from, n / size, size, false);
		c->r[RDI] += n;
		c->r[RSI] += stos ? 0 : n;
		c->r[RCX] -= n / size;
	}
	return true;
}
