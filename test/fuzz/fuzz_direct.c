/*
 * User code that runs in a box or a window, under page tables that change. The input is a list of
 * rounds. In each the guest's kernel changes some page-table entries and drops translations, as it
 * must; somebody (a device, say) stores code; and user code runs on that until an exception ends
 * it, or a kick.
 *
 * Invariant: however it is executed, user code changes nothing but pages that it may write now, and
 * gets to know nothing of those that it may not read. This is what keeps programs of a guest apart,
 * and a guest from the rest of the host: what a box has mapped is what page tables said.
 */
#include "../unit/soft_machine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern const struct engine_ops soft_engine;

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

enum {
	PAGES = 512, /* of the first 2 MiB, which tables map */
	ROUNDS = 6,
	EDITS = 12,
	CODE_MAX = 96,
	EXITS_MAX = 32,
	TICK_NS = 2000000,
	ACCESSED_DIRTY = 0x60,
	LSTAR = AT_HANDLER + 0xff0, /* filled with HLT */
};
#define SECRET 0x5ec7e75ec7e75ec7ul

/* What is left of the input; zeros follow. */
struct input {
	const u8 *data;
	size_t len;
};

static u8 next(struct input *in)
{
	if (!in->len)
		return 0;
	in->len--;
	return *in->data++;
}

static void check(bool ok)
{
	if (!ok)
		abort();
}

/* ---- the budget: a thread that kicks what runs for too long ---- */

struct budget {
	pthread_mutex_t lock;
	struct engine_vcpu *vcpu; /* NULL: nothing runs */
};

static struct budget budget = {.lock = PTHREAD_MUTEX_INITIALIZER};
static pthread_once_t started = PTHREAD_ONCE_INIT;

static void *watch(void *unused)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};

	(void)unused;
	for (;;) {
		nanosleep(&tick, NULL);
		pthread_mutex_lock(&budget.lock);
		if (budget.vcpu)
			soft_engine.kick(budget.vcpu);
		pthread_mutex_unlock(&budget.lock);
	}
	return NULL;
}

static void start(void)
{
	pthread_t thread;

	check(pthread_create(&thread, NULL, watch, NULL) == 0);
	pthread_detach(thread);
}

static void set_budget(struct engine_vcpu *vcpu)
{
	pthread_mutex_lock(&budget.lock);
	budget.vcpu = vcpu;
	pthread_mutex_unlock(&budget.lock);
}

/* ---- the guest ---- */

/* Tables, handlers and stacks of the kernel's, where user code has no business. */
static bool is_kernel_page(u32 n)
{
	return n < AT_CODE >> PAGE_SHIFT ||
	       (n >= AT_HANDLER >> PAGE_SHIFT && n < (AT_KERNEL_STACK >> PAGE_SHIFT) + 1) ||
	       (n >= AT_USER_STACK >> PAGE_SHIFT && n < (AT_IST_STACK >> PAGE_SHIFT) + 1);
}

static u64 entry_of(struct soft_machine *m, u32 n)
{
	return machine_get(m, AT_PT + n * 8ul, 8);
}

static void set_entry(struct soft_machine *m, u32 n, u64 entry)
{
	machine_put(m, AT_PT + n * 8ul, 8, entry);
}

static void build(struct soft_machine *m)
{
	machine_long_mode(m);
	memset(m->ram + AT_HANDLER, 0xf4, PAGE_SIZE);
	m->c->msr.lstar = LSTAR;
	for (u32 n = 0; n < PAGES; n++) {
		u64 entry = (u64)n << PAGE_SHIFT | PTE_P | PTE_RW;

		if (!is_kernel_page(n))
			entry |= PTE_US;
		set_entry(m, n, entry);
	}
	for (gpa_t gpa = AT_IST_STACK + PAGE_SIZE; gpa < AT_IST_STACK + 2 * PAGE_SIZE; gpa += 8)
		machine_put(m, gpa, 8, SECRET);
	set_entry(m, (AT_IST_STACK >> PAGE_SHIFT) + 1, (AT_IST_STACK + PAGE_SIZE) | PTE_P | PTE_RW);
	soft_tlb_flush_all(m->c);
}

/* A user page, at or around where the code is, or anywhere. */
static u32 some_page(u8 choice)
{
	u32 n = choice & 0x80 ? (AT_CODE >> PAGE_SHIFT) + (choice & 7)
			      : (AT_DATA >> PAGE_SHIFT) + (choice & 0x1f);

	return is_kernel_page(n) ? AT_DATA >> PAGE_SHIFT : n;
}

/* The kernel at work: entries change, to other user pages and other rights. */
static void edit_tables(struct soft_machine *m, struct input *in)
{
	bool singly = next(in) & 1;

	for (u32 count = next(in) % EDITS; count; count--) {
		u32 n = some_page(next(in));
		u64 target = some_page(next(in)), how = next(in);
		u64 entry = target << PAGE_SHIFT | (how & 7);

		if (how & 8)
			entry |= PTE_NX;
		if (how & 0x10)
			entry |= ACCESSED_DIRTY;
		set_entry(m, n, entry);
		if (singly)
			soft_tlb_flush_page(m->c, (gva_t)n << PAGE_SHIFT);
	}
	if (!singly)
		soft_tlb_flush_context(m->c);
}

/* As a device does, so that everything that knows the old bytes has to hear of it. */
static void store_code(struct soft_machine *m, struct input *in)
{
	gpa_t at = ((gpa_t)some_page(next(in)) << PAGE_SHIFT) + next(in) * 16ul;
	u8 code[CODE_MAX];
	u32 n = next(in) % CODE_MAX;

	for (u32 i = 0; i < n; i++)
		code[i] = next(in);
	check(!mem_write(&m->physmap, at, code, MIN(n, PAGE_SIZE - (at & ~PAGE_MASK))));
	m->c->rip = at;
}

static void enter_user(struct soft_machine *m, struct input *in)
{
	static const u8 null[] = {SEG_DS, SEG_ES, SEG_FS, SEG_GS};
	struct soft_cpu *c = m->c;
	u64 rip = c->rip;

	machine_user(m, SEL_USER_CODE64);
	for (u32 n = 0; n < ARRAY_SIZE(null); n++)
		seg_make_null(0, &c->seg[null[n]]);
	c->cr4 |= CR4_FSGSBASE;
	c->iflag = 1;
	c->rip = rip;
	for (u32 n = 0; n < GPR_COUNT; n++) {
		u64 v = next(in);

		if (n != RSP)
			c->r[n] = v < 0x40 ? v : ((u64)some_page((u8)v) << PAGE_SHIFT) + v * 8;
	}
	c->r[RSP] = AT_DATA + 8 * PAGE_SIZE;
	soft_update_mode(c);
}

/* ---- what must hold ---- */

static u8 before[PAGES << PAGE_SHIFT];

/* May user code write to RAM page @page by one of the entries? */
static bool is_writable(struct soft_machine *m, u32 page)
{
	const u64 needed = PTE_P | PTE_RW | PTE_US;

	for (u32 n = 0; n < PAGES; n++)
		if ((entry_of(m, n) & needed) == needed &&
		    (entry_of(m, n) & ~(u64)PTE_NX) >> PAGE_SHIFT == page)
			return true;
	return false;
}

static void check_tables(struct soft_machine *m, u32 page)
{
	for (gpa_t gpa = (gpa_t)page << PAGE_SHIFT; gpa < (page + 1ul) << PAGE_SHIFT; gpa += 8) {
		u64 old;

		memcpy(&old, before + gpa, sizeof(old));
		check(!((old ^ machine_get(m, gpa, 8)) & ~(u64)ACCESSED_DIRTY));
	}
}

static void check_isolation(struct soft_machine *m)
{
	const u32 stack = (AT_KERNEL_STACK >> PAGE_SHIFT) - 1; /* frames of exceptions */

	for (u32 page = 0; page < PAGES; page++) {
		u64 at = (u64)page << PAGE_SHIFT;

		if (page >= AT_PML4 >> PAGE_SHIFT && page <= AT_PT >> PAGE_SHIFT)
			check_tables(m, page);
		else if (memcmp(before + at, m->ram + at, PAGE_SIZE) && page != stack)
			check(is_writable(m, page));
	}
	for (u32 n = 0; n < GPR_COUNT; n++)
		check(m->c->r[n] != SECRET);
}

/* ---- running ---- */

/* Until the handler's HLT, or for long enough. False: the guest is dead. */
static bool run(struct soft_machine *m)
{
	struct vm_exit exit = {0};
	bool goes_on = true;

	set_budget(m->vcpu);
	for (u32 n = 0; n < EXITS_MAX && goes_on; n++) {
		check(soft_engine.run(m->vcpu, &exit) == 0);
		check(exit.type != EXIT_ERROR);
		goes_on = exit.type == EXIT_KICKED && n < 2;
	}
	set_budget(NULL);
	return exit.type == EXIT_HLT;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	struct input in = {.data = data, .len = len};
	struct soft_machine *m;
	bool lives = true;

	pthread_once(&started, start);
	if (len < 8)
		return 0;
	m = machine_new_with(next(&in) & 1 ? "direct=off,window-heat=0" : "direct-heat=0");
	build(m);
	for (u32 n = 0; n < ROUNDS && lives && in.len; n++) {
		edit_tables(m, &in);
		store_code(m, &in);
		enter_user(m, &in);
		memcpy(before, m->ram, sizeof(before));
		lives = run(m);
		check_isolation(m);
	}
	machine_free(m);
	return 0;
}
