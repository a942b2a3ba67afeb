/*
 * Code whose memory the host's MMU maps, under page tables that change: user code in a box or a
 * window, and kernel code in the kernel's window, where the tables have each page once more,
 * global. The input is a list of rounds. In each the guest's kernel changes some entries and drops
 * translations, as it must; somebody (a device, say) stores code; and that code runs until an
 * exception ends it, or a kick.
 *
 * Invariant: however it is executed, code changes nothing but pages that it may write now, and gets
 * to know nothing of those that it may not read. This is what keeps programs of a guest apart, and
 * a guest from the rest of the host: what is mapped for it is what page tables said. The kernel's
 * code could change the tables, so it finds no address of theirs, and no instruction that does.
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
	GLOBAL = 0x100,
	UPPER_PDPT = 0x8000, /* tables of the kernel's addresses */
	UPPER_PD = 0x9000,
	UPPER_PT = 0xa000,
	LSTAR = AT_HANDLER + 0xff0, /* filled with HLT */
};
#define SECRET 0x5ec7e75ec7e75ec7ul
#define UPPER  0xffff800000000000ul

enum who { USER_WINDOW, USER_BOX, KERNEL, WHOS };

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

static gpa_t table_of(enum who who)
{
	return who == KERNEL ? UPPER_PT : AT_PT;
}

static u64 entry_of(struct soft_machine *m, enum who who, u32 n)
{
	return machine_get(m, table_of(who) + n * 8ul, 8);
}

static void set_entry(struct soft_machine *m, enum who who, u32 n, u64 entry)
{
	machine_put(m, table_of(who) + n * 8ul, 8, entry);
}

/* What the processor itself reaches by address, and the kernel's stack for exceptions. */
static bool is_needed(u32 n)
{
	return n == AT_GDT >> PAGE_SHIFT || n == AT_IDT >> PAGE_SHIFT ||
	       n == AT_TSS >> PAGE_SHIFT || n == AT_HANDLER >> PAGE_SHIFT ||
	       n == (AT_IST_STACK >> PAGE_SHIFT) - 1;
}

/* The kernel's own addresses: user pages, global. All that lies below is what it cannot be without.
 */
static void build_kernel(struct soft_machine *m)
{
	machine_put(m, AT_PML4 + 256 * 8, 8, UPPER_PDPT | PTE_P | PTE_RW);
	machine_put(m, UPPER_PDPT, 8, UPPER_PD | PTE_P | PTE_RW);
	machine_put(m, UPPER_PD, 8, UPPER_PT | PTE_P | PTE_RW);
	for (u32 n = 0; n < PAGES; n++) {
		u64 entry = (u64)n << PAGE_SHIFT | PTE_P | PTE_RW;

		set_entry(m, KERNEL, n, is_kernel_page(n) ? 0 : entry | GLOBAL);
		machine_put(m, AT_PT + n * 8ul, 8,
			    is_needed(n) ? entry & ~(u64)(n >= 0x20 ? 0 : PTE_RW) : 0);
	}
	for (u32 vector = 0; vector < 256; vector++)
		machine_set_gate(m, (u8)vector, DESC_INTERRUPT_GATE, 0, 1, SEL_CODE64, 0);
	m->c->cr4 |= CR4_PGE;
}

static void build(struct soft_machine *m, enum who who)
{
	machine_long_mode(m);
	memset(m->ram + AT_HANDLER, 0xf4, PAGE_SIZE);
	m->c->msr.lstar = LSTAR;
	for (u32 n = 0; n < PAGES; n++) {
		u64 entry = (u64)n << PAGE_SHIFT | PTE_P | PTE_RW;

		if (!is_kernel_page(n))
			entry |= PTE_US;
		set_entry(m, USER_BOX, n, entry);
	}
	for (gpa_t gpa = AT_IST_STACK + PAGE_SIZE; gpa < AT_IST_STACK + 2 * PAGE_SIZE; gpa += 8)
		machine_put(m, gpa, 8, SECRET);
	machine_put(m, AT_PT + ((AT_IST_STACK >> PAGE_SHIFT) + 1) * 8ul, 8,
		    (AT_IST_STACK + PAGE_SIZE) | PTE_P | PTE_RW);
	if (who == KERNEL)
		build_kernel(m);
	soft_tlb_flush_all(m->c);
}

/* A user page, at or around where the code is, or anywhere. */
static u32 some_page(u8 choice)
{
	u32 n = choice & 0x80 ? (AT_CODE >> PAGE_SHIFT) + (choice & 7)
			      : (AT_DATA >> PAGE_SHIFT) + (choice & 0x1f);

	return is_kernel_page(n) ? AT_DATA >> PAGE_SHIFT : n;
}

static gva_t address_of(enum who who, gva_t at)
{
	return who == KERNEL ? UPPER + at : at;
}

/* The kernel at work: entries change, to other user pages and other rights. */
static void edit_tables(struct soft_machine *m, enum who who, struct input *in)
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
		if (who == KERNEL && !(how & 0x20))
			entry |= GLOBAL;
		set_entry(m, who, n, entry);
		if (singly)
			soft_tlb_flush_page(m->c, address_of(who, (gva_t)n << PAGE_SHIFT));
	}
	if (!singly && who == KERNEL)
		soft_tlb_flush_all(m->c);
	else if (!singly)
		soft_tlb_flush_context(m->c);
}

/* Behind 0F: LLDT, LTR, LGDT, LIDT, INVLPG ..., MOV to and from CR and DR, WRMSR. */
static bool reaches_tables(u8 opcode)
{
	return opcode < 2 || (opcode >= 0x20 && opcode < 0x24) || opcode == 0x30;
}

/* Code may be made while it runs. */
static bool may_reach_tables(struct soft_machine *m)
{
	for (gpa_t gpa = AT_CODE; gpa < PAGES << PAGE_SHIFT; gpa++)
		if (m->ram[gpa] == 0x0f && reaches_tables(m->ram[gpa + 1]))
			return true;
	return false;
}

/* As a device does, so that everything that knows the old bytes has to hear of it. */
static void store_code(struct soft_machine *m, enum who who, struct input *in)
{
	gpa_t at = ((gpa_t)some_page(next(in)) << PAGE_SHIFT) + next(in) * 16ul;
	u8 code[CODE_MAX];
	u32 n = next(in) % CODE_MAX;

	for (u32 i = 0; i < n; i++) {
		code[i] = next(in);
		if (who == KERNEL && i && code[i - 1] == 0x0f && reaches_tables(code[i]))
			code[i] = 0x1f;
	}
	check(!mem_write(&m->physmap, at, code, MIN(n, PAGE_SIZE - (at & ~PAGE_MASK))));
	m->c->rip = address_of(who, at);
}

static void set_registers(struct soft_machine *m, enum who who, struct input *in)
{
	for (u32 n = 0; n < GPR_COUNT; n++) {
		u64 v = next(in);

		m->c->r[n] =
			v < 0x40 ? v
				 : address_of(who, ((u64)some_page((u8)v) << PAGE_SHIFT) + v * 8);
	}
	m->c->r[RSP] = address_of(who, AT_DATA + 8 * PAGE_SIZE);
}

static void enter(struct soft_machine *m, enum who who, struct input *in)
{
	static const u8 null[] = {SEG_DS, SEG_ES, SEG_FS, SEG_GS};
	struct soft_cpu *c = m->c;
	u64 rip = c->rip;

	if (who != KERNEL)
		machine_user(m, SEL_USER_CODE64);
	for (u32 n = 0; n < ARRAY_SIZE(null); n++)
		seg_make_null(0, &c->seg[null[n]]);
	c->cr4 |= CR4_FSGSBASE;
	c->iflag = who != KERNEL;
	c->rip = rip;
	set_registers(m, who, in);
	soft_update_mode(c);
}

/* ---- what must hold ---- */

static u8 before[PAGES << PAGE_SHIFT];

/* May code write to RAM page @page by one of the entries? */
static bool is_writable(struct soft_machine *m, enum who who, u32 page)
{
	const u64 needed = PTE_P | PTE_RW | (who == KERNEL ? 0 : PTE_US);

	for (u32 n = 0; n < PAGES; n++)
		if ((entry_of(m, who, n) & needed) == needed &&
		    (entry_of(m, who, n) & ~(u64)PTE_NX) >> PAGE_SHIFT == page)
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

static void check_isolation(struct soft_machine *m, enum who who)
{
	/* Frames of exceptions. */
	const u32 stack = ((who == KERNEL ? AT_IST_STACK : AT_KERNEL_STACK) >> PAGE_SHIFT) - 1;

	for (u32 page = 0; page < PAGES; page++) {
		u64 at = (u64)page << PAGE_SHIFT;

		if (page >= AT_PML4 >> PAGE_SHIFT && page <= UPPER_PT >> PAGE_SHIFT)
			check_tables(m, page);
		else if (memcmp(before + at, m->ram + at, PAGE_SIZE) && page != stack)
			check(is_writable(m, who, page));
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
	enum who who;

	pthread_once(&started, start);
	if (len < 8)
		return 0;
	who = next(&in) % WHOS;
	m = machine_new_with(who == USER_BOX ? "direct-heat=0" : "direct=off,window-heat=0");
	build(m, who);
	for (u32 n = 0; n < ROUNDS && lives && in.len; n++) {
		edit_tables(m, who, &in);
		store_code(m, who, &in);
		enter(m, who, &in);
		memcpy(before, m->ram, sizeof(before));
		lives = run(m) && m->c->cr3 == AT_PML4;
		if (who == KERNEL && may_reach_tables(m))
			break;
		check_isolation(m, who);
	}
	machine_free(m);
	return 0;
}
