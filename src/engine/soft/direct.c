#include "engine/soft/direct.h"

#include "engine/soft/decode.h"
#include "engine/soft/system.h"
#include "engine/soft/ticker.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"
#include "host/box.h"

#include <Zydis/Zydis.h>
#include <signal.h>
#include <sys/mman.h>

enum {
	USER_CS = 0x33,    /* the selectors of the host's user code, */
	USER_SS = 0x2b,    /* which are those that Linux uses as a guest, too */
	AHEAD = 32,        /* pages around a missing one that are looked at, too: a power of two */
	STEPS = 2000,      /* blocks of a page that cannot be run directly, before that is taken for
			      granted */
	EVICTIONS = 4,     /* in a tick */
	PATIENCE_US = 500, /* that may be lost in a tick, */
	COLD_PATIENCE_US = 2000, /* and while the program's code is new */
	TRAPS_LIKELY = 8,    /* how many there would be in a whole tick for each up to a recess */
	FAILURES = 5,        /* with more, trials come no later */
	CALM_NS = 50000,     /* between calls for the kernel: with more, they are few, */
	DENSE_NS = 25000,    /* with less, what stops take may be more than a box gains, */
	HOPELESS_NS = 10000, /* and here it is, whatever it gains */
	SPARED = 8,          /* ticks without that comparison, once it meant translating new code */
	CPUID = 0xa2,        /* behind 0F */
	SITES = BOX_BREAKS,
	XSTATE_BV = 512,
	SW_RESERVED = 464, /* the host kernel's, up to XSTATE_BV */
};

void direct_create(struct soft_cpu *c)
{
	if (c->vm->is_confined || c->vm->physmap->fd < 0 ||
	    !soft_uses(&c->vm->options, SOFT_DIRECT) || c->id >= SOFT_DIRECT_CPUS)
		return;
	if (box_create(c->vm->physmap->fd, &c->vm->crowd, &c->seed)) {
		c->seed = NULL;
		return;
	}
	ticker_create(c->vm);
}

void direct_destroy(struct soft_cpu *c)
{
	ticker_forget(c);
	if (c->seed)
		box_destroy(c->seed);
	c->seed = NULL;
}

/* ---- which code ---- */

/*
 * Would the host answer with its own state where the guest has another? @b: the byte behind 0F,
 * @modrm: the next.
 */
static bool is_sensitive(u8 b, u8 modrm)
{
	u32 reg = modrm >> 3 & 7;
	bool is_memory = modrm < 0xc0;

	switch (b) {
	case 0x00: /* SLDT, STR, VERR, VERW */
	case 0x02: /* LAR */
	case 0x03: /* LSL */
	case 0x34: /* SYSENTER */
	case CPUID: return true;
	case 0x01: /* SGDT, SIDT, SMSW, XGETBV ... but neither XEND, XTEST nor RDTSCP */
		return modrm != 0xd5 && modrm != 0xd6 && modrm != 0xf9;
	case 0xae: return is_memory && (reg == 4 || reg == 6); /* XSAVE, XSAVEOPT: XCR0 */
	case 0xc7: return is_memory ? reg == 4 : reg == 7;     /* XSAVEC, RDPID */
	default: return false;
	}
}

/* Has @word a byte 0F? */
static bool has_0f(u64 word)
{
	u64 x = word ^ 0x0f0f0f0f0f0f0f0ful;

	return (x - 0x0101010101010101ul) & ~x & 0x8080808080808080ul;
}

static bool is_prefix(u8 b)
{
	return b >> 4 == 4 || (b >= 0x64 && b <= 0x67) || (b & 0xe7) == 0x26 || b == 0xf0 ||
	       b == 0xf2 || b == 0xf3;
}

/* Where the instruction after the one at @from begins. */
static u32 next_instruction(const ZydisDecoder *decoder, const u8 *page, u32 from)
{
	ZydisDecodedInstruction i;

	if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(decoder, NULL, page + from, PAGE_SIZE - from,
						      &i)))
		return from + 1;
	return from + i.length;
}

/*
 * Most bytes 0F that seem to begin such an instruction are in the middle of another. Decoding that
 * starts anywhere falls into step with the code after a few instructions: does it fall into step
 * with this one? It may have prefixes: *begins is where they do.
 */
static bool is_opcode(const ZydisDecoder *decoder, const u8 *page, u32 at, u32 *begins)
{
	enum { STARTS = 4, DISTANCE = 64 };
	u32 first = at > DISTANCE ? at - DISTANCE : 0, begin = at, hits = 0, starts;
	u32 place[STARTS];

	while (begin && is_prefix(page[begin - 1]) && at - begin < 4)
		begin--;
	starts = MIN(begin - MIN(first, begin) + 1, (u32)STARTS);
	for (u32 n = 0; n < starts; n++) {
		place[n] = first + n;
		while (place[n] < begin)
			place[n] = next_instruction(decoder, page, place[n]);
		if (place[n] <= at) {
			hits++;
			*begins = place[n];
		}
	}
	return hits * 2 > starts;
}

/* Where the host must not be let. */
struct sites {
	u32 count;     /* found, */
	u16 at[SITES]; /* the first ones */
};

static void add_site(struct sites *s, u32 at)
{
	if (s->count < SITES)
		s->at[s->count] = (u16)at;
	s->count++;
}

/* Which does the page have? One that its last byte may begin is not looked at. */
static struct sites find_sites(const struct soft_cpu *c, const u8 *page)
{
	const bool cpuid_stops = box_stops_at_cpuid(c->seed);
	ZydisDecoder decoder;
	struct sites s = {0};

	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MINIMAL, ZYAN_TRUE);
	for (u32 at = 0; at < PAGE_SIZE; at += 8) {
		if (!has_0f(soft_load(page + at, 8)))
			continue;
		for (u32 n = at; n < at + 8 && n < PAGE_SIZE - 1; n++) {
			/* Where the second byte is the next page's, assume the worst. */
			u8 worst = page[n + 1] == 0xae ? 0x20 : 0xff;
			u8 modrm = n + 2 < PAGE_SIZE ? page[n + 2] : worst;
			u32 first = n;

			if (page[n] == 0x0f && is_sensitive(page[n + 1], modrm) &&
			    !(page[n + 1] == CPUID && cpuid_stops) &&
			    is_opcode(&decoder, page, n, &first))
				add_site(&s, first);
		}
	}
	return s;
}

/* Does an instruction that begins with the last byte of one page and goes on in another matter? */
static bool seam_is_plain(const u8 *first, const u8 *second)
{
	return first[PAGE_SIZE - 1] != 0x0f || !is_sensitive(second[0], second[1]);
}

/* Have stores to the page seen, and look what is in it. False: not now. */
static bool claim_page(struct soft_cpu *c, const struct soft_xlat *x)
{
	_Atomic u8 *flags = &c->vm->page_flags[x->page];
	u8 *host = (u8 *)((u64)x->host & PAGE_MASK);
	u64 epoch;

	if (atomic_load(flags) & PAGE_IS_DIRECT)
		return true;
	pthread_mutex_lock(&c->vm->lock);
	atomic_fetch_or(flags, PAGE_IS_DIRECT);
	soft_drop_write_tags(c->vm, x->page, host);
	epoch = atomic_load(&c->vm->epoch);
	pthread_mutex_unlock(&c->vm->lock);
	if (!soft_settle(c->vm, c, soft_stale_bit((u64)host), epoch)) {
		atomic_fetch_and(flags, (u8)~PAGE_IS_DIRECT);
		return false;
	}
	if (find_sites(c, host).count)
		atomic_fetch_or(flags, PAGE_HAS_SITES);
	else
		atomic_fetch_and(flags, (u8)~PAGE_HAS_SITES);
	return true;
}

/* Breakpoint @n of the box is at @gva from now on, or none. */
static bool set_break(struct soft_window *w, u32 n, gva_t gva)
{
	if (w->site[n] == gva)
		return true;
	w->site[n] = gva;
	return !box_break_at(w->box, n, gva);
}

/* Those that no executable page needs, but for the page at @gva, in @which. Returns their number.
 */
static u32 free_breaks(struct soft_window *w, gva_t gva, u32 which[BOX_BREAKS])
{
	u32 count = 0;

	for (u32 n = 0; n < BOX_BREAKS; n++)
		if (!w->site[n] || !((w->site[n] ^ gva) & PAGE_MASK) ||
		    !(window_prot(w, w->site[n]) & PROT_EXEC))
			which[count++] = n;
	return count;
}

/* Breakpoints are few: pages that have some give them up. */
static void evict_sites(struct soft_cpu *c, struct soft_window *w)
{
	for (u32 n = 0; n < BOX_BREAKS; n++)
		if (w->site[n])
			window_unmap(c, w, w->site[n] & PAGE_MASK);
}

/* See to it that the box stops at each of the sites of the page at @gva. */
static bool guard_sites(struct soft_cpu *c, struct soft_window *w, gva_t gva, const u8 *page)
{
	struct sites s = find_sites(c, page);
	u32 count = s.count, used[BOX_BREAKS], free = free_breaks(w, gva, used);

	if (count > BOX_BREAKS || (count > free && w->evictions++ >= EVICTIONS))
		return false;
	if (count > free)
		evict_sites(c, w);
	free = free_breaks(w, gva, used);
	for (u32 n = 0; n < count; n++)
		if (n >= free || !set_break(w, used[n], gva + s.at[n]))
			return false;
	return true;
}

static u8 *code_page(struct soft_cpu *c, gva_t gva)
{
	struct soft_xlat x;

	return soft_peek(c, gva, ACC_FETCH | ACC_USER, &x) ? (u8 *)((u64)x.host & PAGE_MASK) : NULL;
}

/* Make the page at @gva, which is at @x, executable, if it may be. */
static bool map_code(struct soft_cpu *c, struct soft_window *w, gva_t gva,
		     const struct soft_xlat *x)
{
	const u8 *page = (const u8 *)((u64)x->host & PAGE_MASK), *next, *before;

	if (x->rom || !claim_page(c, x))
		return false;
	next = page[PAGE_SIZE - 1] == 0x0f ? code_page(c, gva + PAGE_SIZE) : NULL;
	if (next && !seam_is_plain(page, next))
		return false;
	before = window_prot(w, gva - PAGE_SIZE) & PROT_EXEC ? code_page(c, gva - PAGE_SIZE) : NULL;
	if (before && !seam_is_plain(before, page))
		return false;
	if (atomic_load(&c->vm->page_flags[x->page]) & PAGE_HAS_SITES &&
	    !guard_sites(c, w, gva, page))
		return false;
	return window_map(c, w, gva, x, PROT_EXEC);
}

/* ---- pages ---- */

/* What lies around a page that was missing will be wanted, too, if the guest has used it before. */
static void map_ahead(struct soft_cpu *c, struct soft_window *w, gva_t gva, bool code)
{
	gva_t first = gva & ~(AHEAD * PAGE_SIZE - 1);
	struct soft_xlat x;

	for (gva_t at = first; at < first + AHEAD * PAGE_SIZE; at += PAGE_SIZE) {
		if (window_prot(w, at))
			continue;
		if (code && soft_peek(c, at, ACC_FETCH | ACC_USER, &x))
			map_code(c, w, at, &x);
		else if (!code && soft_peek(c, at, ACC_READ | ACC_USER, &x))
			window_map(c, w, at, &x, 0);
	}
}

/* From here on code is translated, until it leaves the page. */
static int go_away(struct soft_cpu *c, struct soft_window *w)
{
	w->away = c->rip & PAGE_MASK;
	w->steps = STEPS;
	c->mode &= ~(u32)MODE_DIRECT;
	c->counters[COUNT_BOX_AWAY]++;
	return SOFT_OK;
}

void direct_look(struct soft_cpu *c)
{
	struct soft_window *w = c->ctx->window;

	if (!w->box || w->away == NO_PAGE || !(c->mode & MODE_USER))
		return;
	if ((c->rip & PAGE_MASK) != w->away) {
		w->away = NO_PAGE;
		soft_update_mode(c);
	} else if (w->steps) {
		w->steps--;
		atomic_fetch_or(&c->exit_req, REQ_LOOK);
	}
}

/* An instruction could not be fetched from @address. */
static int on_fetch_fault(struct soft_cpu *c, struct soft_window *w, u64 address)
{
	gva_t gva = address & PAGE_MASK;
	struct soft_xlat x;
	int status = soft_translate(c, address, ACC_FETCH | ACC_USER, &x);

	if (status != SOFT_OK) {
		window_expect(c, address);
		return status;
	}
	if (!x.host || !map_code(c, w, gva, &x))
		return go_away(c, w);
	map_ahead(c, w, gva, true);
	return SOFT_OK;
}

/* Does the instruction at rip reach into the page at @gva, the next? */
static bool crosses_into(struct soft_cpu *c, gva_t gva)
{
	struct insn i;
	u8 bytes[15];
	u32 len;

	if (gva != (c->rip & PAGE_MASK) + PAGE_SIZE || gva - c->rip >= sizeof(bytes) ||
	    soft_fetch(c, c->rip, bytes, &len) != SOFT_OK)
		return false;
	insn_decode(&i, bytes, len, 64);
	return !i.len || c->rip + i.len > gva;
}

static int on_page_fault(struct soft_cpu *c, struct soft_window *w, u64 address)
{
	gva_t gva = address & PAGE_MASK;
	u8 prot = window_prot(w, gva);
	bool write = prot & PROT_READ;
	struct soft_xlat x;

	if (address >> 47 || address - BOX_AT < BOX_END - BOX_AT)
		return DIRECT_INTERPRET;
	if (address == c->rip || (prot && address == gva && crosses_into(c, gva)))
		return on_fetch_fault(c, w, address);
	if (soft_translate(c, gva, ACC_USER | (write ? ACC_WRITE : ACC_READ), &x) != SOFT_OK ||
	    !x.host || (write && !x.writable) || !window_map(c, w, gva, &x, 0) ||
	    (write && !(window_prot(w, gva) & PROT_WRITE)))
		return DIRECT_INTERPRET;
	map_ahead(c, w, gva, false);
	return SOFT_OK;
}

/* ---- registers ---- */

#define GPR_LIST(X) \
	X(RAX, rax) \
	X(RCX, rcx) \
	X(RDX, rdx) \
	X(RBX, rbx) \
	X(RSP, rsp) \
	X(RBP, rbp) \
	X(RSI, rsi) \
	X(RDI, rdi) \
	X(R8, r8) X(R9, r9) X(R10, r10) X(R11, r11) X(R12, r12) X(R13, r13) X(R14, r14) X(R15, r15)

static void give_registers(const struct soft_cpu *c, struct user_regs_struct *regs)
{
#define GIVE(n, name) regs->name = c->r[n];
	GPR_LIST(GIVE)
	regs->rip = c->rip;
	regs->eflags = soft_rflags(c);
	regs->fs_base = c->seg[SEG_FS].base;
	regs->gs_base = c->seg[SEG_GS].base;
	regs->ds = c->seg[SEG_DS].selector;
	regs->es = c->seg[SEG_ES].selector;
	regs->fs = c->seg[SEG_FS].selector;
	regs->gs = c->seg[SEG_GS].selector;
}

/* A far branch, by the host's descriptors, which are like the guest's, or this says #GP. */
static int take_code_segment(struct soft_cpu *c, u16 selector)
{
	struct descriptor d;
	int status = desc_read(c, selector, VEC_GP, 0, &d);

	if (status != SOFT_OK)
		return status;
	if (!desc_is_code(&d) || !desc_is_present(&d) || desc_dpl(&d) != 3)
		return soft_fault_code(c, VEC_GP, selector & 0xfffc);
	desc_unpack(&d, selector, &c->seg[SEG_CS]);
	soft_update_mode(c);
	return SOFT_OK;
}

static int take_segments(struct soft_cpu *c, const struct user_regs_struct *regs)
{
	const struct {
		u8 seg;
		u16 selector;
	} now[] = {{SEG_DS, (u16)regs->ds},
		   {SEG_ES, (u16)regs->es},
		   {SEG_SS, (u16)regs->ss},
		   {SEG_FS, (u16)regs->fs},
		   {SEG_GS, (u16)regs->gs}};
	int status = SOFT_OK;

	for (u32 n = 0; n < ARRAY_SIZE(now) && status == SOFT_OK; n++)
		if (c->seg[now[n].seg].selector != now[n].selector)
			status = seg_load(c, now[n].seg, now[n].selector);
	if (status == SOFT_OK && c->seg[SEG_CS].selector != (u16)regs->cs)
		status = take_code_segment(c, (u16)regs->cs);
	return status;
}

static int take_registers(struct soft_cpu *c, const struct user_regs_struct *regs)
{
	const u64 ours = RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC;
	int status;

#define TAKE(n, name) c->r[n] = regs->name;
	GPR_LIST(TAKE)
	c->rip = regs->rip;
	status = take_segments(c, regs);
	c->seg[SEG_FS].base = regs->fs_base;
	c->seg[SEG_GS].base = regs->gs_base;
	soft_set_rflags(c, (regs->eflags & ours) | (soft_rflags(c) & ~ours));
	if (c->sysflags & (RFLAGS_TF | RFLAGS_AC))
		soft_update_mode(c);
	return status;
}

/* Can the host's user mode be what the guest's is now? */
static bool is_native_state(const struct soft_cpu *c)
{
	const u64 features = CR4_OSFXSR | CR4_OSXSAVE;

	for (u32 n = 0; n < SEG_COUNT; n++) {
		u16 selector = c->seg[n].selector;

		if (n == SEG_CS   ? selector != USER_CS
		    : n == SEG_SS ? selector != USER_SS
				  : n != SEG_LDTR && n != SEG_TR && selector &&
					    (selector != USER_SS || n == SEG_FS || n == SEG_GS))
			return false;
	}
	return c->iflag && !(c->sysflags & ~(u64)(RFLAGS_ID | RFLAGS_NT)) && c->mode & MODE_X87 &&
	       (c->cr4 & features) == features && c->xcr0 == c->vm->xsave_mask && !c->no_fsgsbase &&
	       c->efer & EFER_SCE && !(c->cr4 & CR4_PKE) && c->rip < BOX_TOP &&
	       c->seg[SEG_FS].base < BOX_TOP && c->seg[SEG_GS].base < BOX_TOP;
}

/* Has the guest nothing where a box has its own, nor anywhere below that root entry? */
static bool is_out_of_the_way(const struct soft_cpu *c)
{
	gpa_t root = c->cr3 & (BIT(c->vm->cpuid->phys_bits) - 1) & PAGE_MASK;
	const struct physmap_region *r = physmap_find(c->vm->physmap, root);
	const u64 *entry;

	if (!r)
		return false;
	entry = (const u64 *)(const void *)(r->hva + (root - r->gpa));
	return !(__atomic_load_n(&entry[BOX_AT >> 39 & 0x1ff], __ATOMIC_RELAXED) & PTE_P);
}

/* ---- vector and x87 state ---- */

/* XSAVE writes components in their initial state, too: what the header says of them is no matter.
 */
static bool fpu_is_there(const struct soft_cpu *c, const struct soft_window *w)
{
	const u64 *a = (const u64 *)(const void *)c->fpu_area;
	const u64 *b = (const u64 *)(const void *)w->image;

	if (!w->image_size)
		return false;
	for (u32 n = 0; n < c->vm->cpuid->xsave_max / 8; n++)
		if (a[n] != b[n] && (n < SW_RESERVED / 8 || n > XSTATE_BV / 8))
			return false;
	return true;
}

/* The host kernel takes MXCSR only with the SSE component, which must not say it is initial. */
static bool give_fpu(struct soft_cpu *c, struct soft_window *w)
{
	if (fpu_is_there(c, w))
		return true;
	/* For the size, and for components that the guest does not have. */
	if (!w->image_size && box_fpu_get(w->box, w->image, &w->image_size))
		return false;
	soft_copy_bytes(w->image, c->fpu_area, c->vm->cpuid->xsave_max);
	soft_store(w->image + XSTATE_BV, soft_load(w->image + XSTATE_BV, 8) | XCR0_SSE, 8);
	c->counters[COUNT_BOX_FPU]++;
	return !box_fpu_set(w->box, w->image, w->image_size);
}

static bool take_fpu(struct soft_cpu *c, struct soft_window *w)
{
	if (box_fpu_get(w->box, w->image, &w->image_size))
		return false;
	soft_store(w->image + XSTATE_BV, soft_load(w->image + XSTATE_BV, 8) & c->vm->xsave_mask, 8);
	soft_copy_bytes(c->fpu_area, w->image, c->vm->cpuid->xsave_max);
	return true;
}

/* ---- running ---- */

/* The process died with the guest's registers. */
static int lost(struct soft_cpu *c)
{
	c->exit.type = EXIT_ERROR;
	c->exit.error = "a process that ran guest code is gone (killed, or the host has no memory)";
	return SOFT_EXIT;
}

static int on_signal(struct soft_cpu *c, struct soft_window *w, const struct box_signal *s)
{
	switch (s->nr) {
	case SIGSEGV:
		if (s->code <= 0)
			return SOFT_OK;
		if (s->code != SI_KERNEL)
			return on_page_fault(c, w, s->address);
		w->traps++;
		return DIRECT_INTERPRET;
	case SIGTRAP:
		if (s->code == TRAP_TRACE) { /* POPF set TF one instruction ago */
			c->dr6 |= DR6_BS;
			soft_fault(c, VEC_DB);
			return soft_deliver_trap(c);
		}
		if (s->code != TRAP_HWBKPT) /* INT3 */
			c->rip--;
		return DIRECT_INTERPRET;
	case SIGSYS: /* a call of the host's vsyscall page, which has returned from itself */
		c->r[RSP] -= 8;
		c->rip = s->address;
		return DIRECT_INTERPRET;
	case SIGILL:
	case SIGFPE:
	case SIGBUS: return DIRECT_INTERPRET;
	default: return SOFT_OK; /* a kick */
	}
}

static int on_stop(struct soft_cpu *c, struct soft_window *w, enum box_stop why,
		   struct user_regs_struct *regs, const struct box_signal *signal)
{
	int status;

	if (why == BOX_CALL) { /* what SYSCALL stored to rcx and r11 the interpreter stores again */
		regs->rip -= 2;
		regs->rax = regs->orig_rax;
	}
	if (!take_fpu(c, w))
		return lost(c);
	status = take_registers(c, regs);
	if (status != SOFT_OK)
		return status;
	return why == BOX_CALL ? DIRECT_INTERPRET : on_signal(c, w, signal);
}

static int run(struct soft_cpu *c, struct soft_window *w)
{
	struct user_regs_struct regs;
	struct box_signal signal;
	enum box_stop why;
	u64 start;
	int r, changes;

	give_registers(c, &regs);
	atomic_store(&c->running, w->box);
	if (atomic_load(&c->exit_req)) {
		atomic_store(&c->running, NULL);
		return SOFT_OK;
	}
	soft_doing(c, ACT_BOX);
	start = __builtin_ia32_rdtsc();
	changes = window_prepare(c, w);
	r = changes < 0 ? changes : box_run(w->box, &regs, &why, &signal);
	atomic_store(&c->running, NULL);
	window_ran(c, w, __builtin_ia32_rdtsc() - start, (u32)MAX(changes, 0));
	soft_doing(c, ACT_DISPATCH);
	if (r) {
		window_close(c, w);
		return SOFT_OK;
	}
	return why == BOX_GONE ? lost(c) : on_stop(c, w, why, &regs, &signal);
}

/*
 * Page faults, system calls and pages to be mapped cost more here than in translated code. Where
 * they come in great numbers the box has a recess, until there are few again. Since what is few
 * depends, and stops that are no calls for the kernel are not seen in translated code, it is tried
 * again, too, after a while, which gets longer with each trial that fails. More is borne with while
 * the alternative is to translate what has not been translated yet.
 *
 * What a box gains is a guess, and what a stop costs is more than usual on a busy host. So where
 * calls are dense their number tells: a recess goes on if there were more of them in it.
 */
static void leave_recess(struct soft_window *w)
{
	w->traps = 0;
	w->recess = false;
}

static void begin_recess(struct soft_window *w)
{
	w->recess = true;
	w->absent = 0;
}

/* After a tick with calls so many ns apart. */
static void tick_in_box(struct soft_window *w, u64 spacing, bool cold)
{
	w->spared -= w->spared > 0;
	if (!cold && !w->spared && spacing < DENSE_NS && (!w->spacing || spacing > w->spacing))
		begin_recess(w);
	else
		w->failures = w->traps = 0;
}

static void tick_in_recess(struct soft_window *w, struct direct_tick t)
{
	u64 spacing = t.ns / MAX(t.entries, 1ul);

	if (t.cold)
		w->spared = SPARED;
	if (w->absent) /* else it began in this tick */
		w->spacing = spacing;
	w->absent += t.ns;
	if (t.cold || (t.entries + (u64)TRAPS_LIKELY * w->traps) * CALM_NS < t.ns) {
		leave_recess(w);
	} else if (w->absent > (u64)DIRECT_TICK_NS << w->failures && spacing >= HOPELESS_NS) {
		w->failures = MIN(w->failures + 1, (u32)FAILURES);
		leave_recess(w);
	}
}

void direct_tick(struct soft_cpu *c, struct soft_window *w, struct direct_tick t)
{
	w->tick_spent = 0;
	w->is_cold = t.cold;
	w->evictions = 0;
	if (w->recess)
		tick_in_recess(w, t);
	else if (c->vm->options.direct_heat)
		tick_in_box(w, t.ns / MAX(t.entries, 1ul), t.cold);
}

void direct_rest(struct soft_cpu *c, struct soft_window *w)
{
	begin_recess(w);
	c->mode &= ~(u32)MODE_DIRECT;
}

void direct_account(struct soft_cpu *c, struct soft_window *w, u64 spent, u64 in_box)
{
	w->spent += spent;
	w->tick_spent += (s64)spent - (s64)in_box * DIRECT_GAIN / 100;
	if (!c->vm->options.direct_heat ||
	    w->tick_spent < (s64)(c->vm->cpuid->tsc_hz / 1000000 *
				  (w->is_cold ? COLD_PATIENCE_US : PATIENCE_US)))
		return;
	direct_rest(c, w);
}

int direct_run(struct soft_cpu *c)
{
	struct soft_window *w = c->ctx->window;
	u64 start = __builtin_ia32_rdtsc(), before = w->in_box, waited = w->waited;
	int status;

	if (!is_native_state(c) || !is_out_of_the_way(c)) {
		c->mode &= ~(u32)MODE_DIRECT;
		return SOFT_OK;
	}
	soft_fpu_park(c);
	if (!give_fpu(c, w)) {
		window_close(c, w);
		return SOFT_OK;
	}
	status = run(c, w);
	if (w->in_box >= before)
		direct_account(c, w,
			       __builtin_ia32_rdtsc() - start - (w->in_box - before) -
				       (w->waited - waited),
			       w->in_box - before);
	return status;
}
