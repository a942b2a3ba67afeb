/*
 * The soft engine behind the engine contract: VMs, vCPUs and the run loop.
 *
 * The run loop alternates between taking requests (kick, interrupt window, NMI, latched interrupt),
 * finding the block at rip, and translated code. What translation does not cover goes to
 * soft_interpret(). An instruction that needs a device ends run() with an exit; on the next call
 * its result is appended to cpu->frag[] and the instruction starts over, finding it there.
 */
#include "engine/soft/direct.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/layout.h"
#include "engine/soft/places.h"
#include "engine/soft/reload.h"
#include "engine/soft/run.h"
#include "engine/soft/ticker.h"
#include "engine/soft/tlb.h"
#include "engine/soft/translate.h"
#include "engine/soft/util.h"
#include "engine/soft/window.h"
#include "host/memory_file.h"
#include "host/sandbox.h"

#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RAS_SIZE = 64 * 1024 };

_Thread_local struct soft_cpu soft_tls_cpu __attribute__((aligned(64)));

_Static_assert(offsetof(struct soft_cpu, r) == OFF_R, "layout.h");
_Static_assert(offsetof(struct soft_cpu, rip) == OFF_RIP, "layout.h");
_Static_assert(offsetof(struct soft_cpu, flags) == OFF_FLAGS, "layout.h");
_Static_assert(offsetof(struct soft_cpu, link) == OFF_LINK, "layout.h");
_Static_assert(offsetof(struct soft_cpu, host_rsp) == OFF_HOST_RSP, "layout.h");
_Static_assert(offsetof(struct soft_cpu, ras_base) == OFF_RAS_BASE, "layout.h");
_Static_assert(offsetof(struct soft_cpu, ras_rsp) == OFF_RAS_RSP, "layout.h");
_Static_assert(offsetof(struct soft_cpu, code_va) == OFF_CODE_VA, "layout.h");
_Static_assert(offsetof(struct soft_cpu, iflag) == OFF_IFLAG, "layout.h");
_Static_assert(offsetof(struct soft_cpu, dflag) == OFF_DFLAG, "layout.h");
_Static_assert(offsetof(struct soft_cpu, irq_window) == OFF_IRQ_WINDOW, "layout.h");
_Static_assert(offsetof(struct soft_cpu, sysflags) == OFF_SYSFLAGS, "layout.h");
_Static_assert(offsetof(struct soft_cpu, spill) == OFF_SPILL, "layout.h");
_Static_assert(offsetof(struct soft_cpu, branch_site) == OFF_BRANCH_SITE, "layout.h");
_Static_assert(offsetof(struct soft_cpu, kernel_mode) == OFF_KERNEL_MODE, "layout.h");
_Static_assert(offsetof(struct soft_cpu, user_mode) == OFF_USER_MODE, "layout.h");
_Static_assert(offsetof(struct soft_cpu, call_star) == OFF_CALL_STAR, "layout.h");
_Static_assert(offsetof(struct soft_cpu, call_seg) == OFF_CALL_SEG, "layout.h");
_Static_assert(offsetof(struct soft_cpu, ras_bottom) == OFF_RAS_BOTTOM, "layout.h");
_Static_assert(offsetof(struct soft_cpu, seg[SEG_CS]) == OFF_SEG_CS, "layout.h");
_Static_assert(offsetof(struct soft_cpu, msr.star) == OFF_STAR, "layout.h");
_Static_assert(offsetof(struct soft_cpu, msr.lstar) == OFF_LSTAR, "layout.h");
_Static_assert(offsetof(struct soft_cpu, msr.sfmask) == OFF_SFMASK, "layout.h");
_Static_assert(offsetof(struct soft_cpu, cpl) == OFF_CPL, "layout.h");
_Static_assert(offsetof(struct soft_cpu, mode) == OFF_MODE, "layout.h");
_Static_assert(offsetof(struct soft_cpu, counters[COUNT_SYSCALLS]) == OFF_SYSCALLS, "layout.h");
_Static_assert(sizeof(struct cpu_segment) == 32 && SEG_SS == SEG_CS + 1, "load_segments");
_Static_assert(MODE_USER_ == MODE_USER && MODE_WINDOW_ == MODE_WINDOW, "layout.h");
_Static_assert(BRANCH_SITE_NONE_ == BRANCH_SITE_NONE, "layout.h");
_Static_assert(SITE_OFFSET == 0xfff && SITE_LEN_SHIFT == 12, "soft_stub_syscall");
_Static_assert(LEAVE_HOST_FAULT == LEAVE_HOST_FAULT_ && LEAVE_THUNK == LEAVE_THUNK_ &&
		       LEAVE_GO_ON == LEAVE_GO_ON_,
	       "layout.h");
_Static_assert(sizeof(struct tlb_entry) == 32 && sizeof(struct ibt_entry) == 16, "translate.c");

static struct soft_vm *vm_of(struct engine_vm *vm)
{
	return (struct soft_vm *)vm;
}

static struct soft_cpu *cpu_of(struct engine_vcpu *vcpu)
{
	return (struct soft_cpu *)vcpu;
}

/* ---- virtual machines ---- */

/* Code memory, mapped twice. */
static const int create_calls[] = {SYS_ftruncate};
static const struct sandbox_list create_sandbox = {"soft", create_calls, ARRAY_SIZE(create_calls)};

static int soft_probe(struct err *e)
{
	u32 a, b, c, d;

	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & BIT(8)))
		return err_set(e, -ENOTSUP, "the soft engine needs a CPU with BMI2 (x86-64-v3)");
	return 0;
}

static int soft_check_options(const char *options, struct err *e)
{
	struct soft_options o;

	return soft_options_parse(options, &o, e);
}

/* A file for code memory: one of huge pages cannot be opened any more once a guest runs. */
struct engine_host {
	int code;
};

static int soft_host_open(struct engine_host **host, struct err *e)
{
	struct engine_host *h = calloc(1, sizeof(*h));

	if (!h)
		return err_set(e, -ENOMEM, "out of memory");
	h->code = host_memory_file();
	if (h->code < 0) {
		int r = h->code;

		free(h);
		return err_set(e, r, "cannot create code memory: %s", strerror(-r));
	}
	*host = h;
	return 0;
}

static void soft_host_close(struct engine_host *host)
{
	close(host->code);
	free(host);
}

/* The model is made for this engine. */
static int soft_cpuid_limit(struct engine_host *host, struct cpuid_model *m, struct err *e)
{
	(void)host, (void)m, (void)e;
	return 0;
}

static void written(void *opaque, gpa_t gpa, u64 len);

static void vm_free(struct soft_vm *vm)
{
	reload_close(vm);
	soft_cache_destroy(vm);
	ticker_destroy(vm);
	kernel_window_destroy(vm);
	free((void *)vm->page_flags);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->world);
	pthread_cond_destroy(&vm->world_changed);
	free(vm);
}

static int soft_vm_create(const struct engine_config *config, struct engine_vm **out, struct err *e)
{
	struct soft_vm *vm = calloc(1, sizeof(*vm));
	int r;

	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->world, NULL);
	pthread_cond_init(&vm->world_changed, NULL);
	vm->physmap = config->physmap;
	vm->cpuid = config->cpuid;
	vm->xsave_mask = config->cpuid->xcr0;
	vm->is_confined = !config->cache_dir;
	soft_stats_init(vm);
	r = soft_options_parse(config->options, &vm->options, e);
	vm->page_flags = calloc(MAX(vm->physmap->pages, 1), 1);
	if (r == 0)
		r = vm->page_flags ? soft_faults_init(e) : err_set(e, -ENOMEM, "out of memory");
	if (r == 0)
		r = soft_cache_create(vm, config->host ? config->host->code : -1, config->populate,
				      e);
	if (r < 0) {
		vm_free(vm);
		return r;
	}
	kernel_window_create(vm);
	reload_open(vm, config->cache_dir);
	physmap_listen(vm->physmap, (struct physmap_listener){.written = written, .opaque = vm});
	*out = (struct engine_vm *)vm;
	return 0;
}

static void soft_vm_destroy(struct engine_vm *vm)
{
	physmap_unlisten(vm_of(vm)->physmap, vm);
	vm_free(vm_of(vm));
}

static int soft_memory_update(struct engine_vm *vm, struct err *e)
{
	struct soft_vm *v = vm_of(vm);
	const u64 pages = v->physmap->pages, known = v->cache->pages_count;
	_Atomic u8 *flags = calloc(MAX(pages, 1), 1);
	int r;

	if (!flags)
		return err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_lock(&v->lock);
	r = soft_cache_resize(v, e);
	if (r < 0) {
		pthread_mutex_unlock(&v->lock);
		free((void *)flags);
		return r;
	}
	for (u64 p = 0; p < pages; p++)
		flags[p] = p < known ? v->page_flags[p] : v->dirty_log ? PAGE_LOG_DIRTY : 0;
	free((void *)v->page_flags);
	v->page_flags = flags;
	for (u32 i = 0; i < v->cpus; i++)
		if (v->cpu[i])
			soft_tlb_flush_all(v->cpu[i]);
	pthread_mutex_unlock(&v->lock);
	return 0;
}

static int soft_dirty_log(struct engine_vm *vm, bool on)
{
	struct soft_vm *v = vm_of(vm);
	const struct physmap *pm = v->physmap;

	pthread_mutex_lock(&v->lock);
	v->dirty_log = on;
	if (on)
		kernel_window_leave(v);
	for (u32 i = 0; i < pm->count; i++) {
		const struct physmap_region *r = &pm->region[i];

		for (u64 p = 0; p < r->size / PAGE_SIZE; p++) {
			if (!on) {
				atomic_fetch_and(&v->page_flags[r->page0 + p], (u8)~PAGE_LOG_DIRTY);
				continue;
			}
			atomic_fetch_or(&v->page_flags[r->page0 + p], PAGE_LOG_DIRTY);
			soft_drop_write_tags(v, r->page0 + p, r->hva + p * PAGE_SIZE);
		}
	}
	pthread_mutex_unlock(&v->lock);
	soft_settle(v, NULL, ~0ul, atomic_load(&v->epoch));
	return 0;
}

static int soft_dirty_fetch(struct engine_vm *vm, u32 region, u64 *bitmap)
{
	struct soft_vm *v = vm_of(vm);
	const struct physmap_region *r = &v->physmap->region[region];

	if (region >= v->physmap->count || !v->dirty_log)
		return -EINVAL;
	pthread_mutex_lock(&v->lock);
	for (u64 p = 0; p < r->size / PAGE_SIZE; p++) {
		u8 old = atomic_fetch_or(&v->page_flags[r->page0 + p], PAGE_LOG_DIRTY);

		if (p % 64 == 0)
			bitmap[p / 64] = 0;
		if (old & PAGE_LOG_DIRTY)
			continue;
		bitmap[p / 64] |= 1ul << (p % 64);
		soft_drop_write_tags(v, r->page0 + p, r->hva + p * PAGE_SIZE);
	}
	pthread_mutex_unlock(&v->lock);
	/* A store that was under way is on a page reported here, and done before the caller reads
	 * it. */
	soft_settle(v, NULL, ~0ul, atomic_load(&v->epoch));
	return 0;
}

static void written(void *opaque, gpa_t gpa, u64 len)
{
	struct soft_vm *vm = opaque;
	const struct physmap_region *r = physmap_find(vm->physmap, gpa);
	u64 off, n;

	if (!r)
		return;
	/* The bytes are visible before the flags are looked at; see mmu.c. */
	atomic_thread_fence(memory_order_seq_cst);
	for (off = gpa - r->gpa; len; off += n, len -= n) {
		u64 page = r->page0 + off / PAGE_SIZE;
		u8 flags = atomic_load(&vm->page_flags[page]);

		n = MIN(len, PAGE_SIZE - off % PAGE_SIZE);
		if (flags & PAGE_LOG_DIRTY)
			atomic_fetch_and(&vm->page_flags[page], (u8)~PAGE_LOG_DIRTY);
		if (flags & PAGE_IS_ROOT)
			windows_root_stored(vm, page);
		if (flags & PAGE_IS_DIRECT)
			windows_code_stored(vm, page);
		if (flags & PAGE_HAS_CODE)
			soft_code_stored(vm, page, (u32)(off % PAGE_SIZE), (u32)n);
	}
}

static void soft_code_written(struct engine_vm *vm, gpa_t gpa, u64 len)
{
	written(vm_of(vm), gpa, len);
}

/* ---- vCPUs ---- */

static int ras_create(struct soft_cpu *c, struct err *e)
{
	u8 *p = mmap(NULL, RAS_SIZE + PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + PAGE_SIZE, RAS_SIZE, PROT_READ | PROT_WRITE) < 0)
		return err_set(e, -errno, "cannot map a stack for translated code: %s",
			       strerror(errno));
	c->ras_map = p;
	c->ras_base = (u64)p + PAGE_SIZE + RAS_SIZE - 64;
	for (u64 *bottom = (u64 *)c->ras_base; bottom < (u64 *)(p + PAGE_SIZE + RAS_SIZE); bottom++)
		*bottom = c->vm->cache->entry.ras_bottom[HALF_SUPER];
	return 0;
}

static void cpu_constants(struct soft_cpu *c)
{
	c->stub[STUB_LEAVE] = (u64)soft_stub_leave;
	c->stub[STUB_MISS] = (u64)soft_stub_miss;
	c->stub[STUB_STEP] = (u64)soft_stub_step;
	c->stub[STUB_THUNK_DONE] = (u64)soft_stub_thunk_done;
	c->stub[STUB_LOOKUP] = (u64)soft_stub_lookup;
	c->stub[STUB_SYSCALL] = (u64)soft_stub_syscall;
	c->stub[STUB_SYSRET] = (u64)soft_stub_sysret;
	c->tlb_index_mask = (u64)(TLB_SIZE - 1) << PAGE_SHIFT;
	c->page_mask = PAGE_MASK;
	c->window_mask = WINDOW_FOLD;
	c->kernel_mask = KERNEL_WINDOW_MASK;
	c->ibt_mask = IBT_MASK;
	c->bit_mask64 = 63;
	c->bit_mask32 = 31;
	c->ibt2_mask = IBT2_MASK;
	for (u32 half = 0; half < HALVES; half++) {
		c->ibt_miss[half] = c->vm->cache->entry.ibt_miss[half];
		c->ras_bottom[half] = c->vm->cache->entry.ras_bottom[half];
	}
	c->ibt_leave = c->vm->cache->entry.ibt_leave;
}

static void soft_vcpu_destroy(struct engine_vcpu *vcpu)
{
	struct soft_cpu *c = cpu_of(vcpu);

	soft_fpu_park(c);
	soft_world_resume(c);
	pthread_mutex_lock(&c->vm->lock);
	pthread_mutex_lock(&c->vm->world);
	c->vm->cpu[c->id] = NULL;
	pthread_mutex_unlock(&c->vm->world);
	pthread_mutex_unlock(&c->vm->lock);
	soft_interp_destroy(c);
	soft_contexts_destroy(c);
	soft_fault_stack_destroy(c);
	free(c->thunks);
	if (c->ras_map)
		munmap(c->ras_map, RAS_SIZE + PAGE_SIZE);
	memset(c, 0, sizeof(*c));
}

static int soft_vcpu_create(struct engine_vm *vm, u32 id, struct engine_vcpu **out, struct err *e)
{
	struct soft_cpu *c = &soft_tls_cpu;
	struct soft_vm *v = vm_of(vm);
	struct cpu_state *s;
	int r;

	if (c->vm || id >= ARRAY_SIZE(v->cpu) || v->cpu[id])
		return err_set(e, -EBUSY, "vCPU %u cannot be created on this thread", id);
	s = calloc(1, sizeof(*s));
	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	memset(c, 0, sizeof(*c));
	c->vm = v;
	c->id = id;
	cpu_constants(c);
	direct_create(c);
	r = ras_create(c, e);
	if (r == 0)
		r = soft_fault_stack_init(c, e);
	if (r == 0)
		r = soft_thunk_init(c, e);
	if (r == 0 && (soft_contexts_init(c) < 0 || soft_interp_init(c) < 0))
		r = err_set(e, -ENOMEM, "out of memory");
	if (r == 0) {
		pthread_mutex_lock(&v->lock);
		pthread_mutex_lock(&v->world);
		v->cpu[id] = c;
		v->cpus = MAX(v->cpus, id + 1);
		pthread_mutex_unlock(&v->world);
		pthread_mutex_unlock(&v->lock);
		cpu_state_reset(s);
		soft_state_set((struct engine_vcpu *)c, CPU_PART_ALL, s);
		*out = (struct engine_vcpu *)c;
	} else {
		soft_vcpu_destroy((struct engine_vcpu *)c);
	}
	free(s);
	return r;
}

static bool needs_completion(enum exit_type type)
{
	return type == EXIT_PIO || type == EXIT_MMIO || type == EXIT_RDMSR || type == EXIT_WRMSR ||
	       type == EXIT_HYPERCALL;
}

static int interpret(struct soft_cpu *c)
{
	u8 was = soft_doing(c, ACT_INTERPRET);
	int status;

	c->frag_next = 0;
	status = soft_interpret(c);
	soft_doing(c, was);
	if (status != SOFT_EXIT)
		c->frag_count = 0;
	/* A locked instruction on a device keeps the world until its last access is done. */
	if (c->alone && (status != SOFT_EXIT || !needs_completion(c->exit.type)))
		soft_world_resume(c);
	return status;
}

/* run() returns because of a kick. */
static int exit_kicked(struct soft_cpu *c)
{
	atomic_fetch_and(&c->exit_req, ~(u32)REQ_KICK);
	c->exit.type = EXIT_KICKED;
	return SOFT_EXIT;
}

/* The instruction at rip asked for the world to stand still. */
static int interpret_alone(struct soft_cpu *c)
{
	if (!soft_world_stop(c))
		return exit_kicked(c);
	c->wants_alone = false;
	return interpret(c);
}

/* ---- finding and linking blocks ---- */

bool soft_flush_code(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;
	u32 generation = __atomic_load_n(&vm->cache->generation, __ATOMIC_RELAXED);

	if (!soft_world_stop(c))
		return false;
	pthread_mutex_lock(&vm->lock);
	if (vm->cache->generation == generation) { /* else somebody did it meanwhile */
		cache_flush(vm);
		soft_ibt_flush_all(vm);
		c->counters[COUNT_CACHE_FLUSHES]++;
	}
	pthread_mutex_unlock(&vm->lock);
	soft_world_resume(c);
	return true;
}

/* Does the straddling block's second page still lie where it was translated from? */
static int check_second_page(struct soft_cpu *c, const struct block *b, bool *same)
{
	struct soft_xlat x;
	int status =
		soft_translate(c, (c->rip & PAGE_MASK) + PAGE_SIZE, soft_acc(c, ACC_FETCH), &x);

	*same = status == SOFT_OK && x.host && (x.gpa & PAGE_MASK) == (b->second & PAGE_MASK);
	return status;
}

/* The live block for @x in @mode, or NULL. vm->lock held. */
static int find_existing(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
			 struct block **out)
{
	struct block *b = NULL;
	int status = SOFT_OK;
	bool same;

	if (cache_may_have(c->vm->cache, (s64)x->page, (u32)(x->gpa & ~PAGE_MASK)))
		b = cache_find(c->vm->cache, x->gpa, mode,
			       block_place(&c->vm->options, mode, c->rip));

	if (b && b->page[1] != BLOCK_NO_PAGE) {
		status = check_second_page(c, b, &same);
		if (status != SOFT_OK)
			return status;
		if (!same) {
			cache_drop(c->vm, b);
			b = NULL;
		}
	}
	*out = b;
	return status;
}

/* Make what a translation lacked; vm->lock is given up meanwhile. SOFT_EXIT when kicked. */
static int make_room(struct soft_cpu *c)
{
	bool ok;

	pthread_mutex_unlock(&c->vm->lock);
	ok = c->unsettled ? soft_settle(c->vm, c, c->unsettled, c->unsettled_epoch)
			  : soft_flush_code(c);
	pthread_mutex_lock(&c->vm->lock);
	return ok ? SOFT_OK : exit_kicked(c);
}

/* With the lock held and vector state parked. */
static int find_or_translate(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
			     struct block **out)
{
	struct block *b = NULL;
	int status;

	for (;;) {
		status = find_existing(c, x, mode, &b);
		if (status != SOFT_OK || b)
			break;
		soft_fpu_park(c);
		b = reload_or_translate(c, x, mode, &status);
		if (status != SOFT_OK || b)
			break;
		status = make_room(c);
		if (status != SOFT_OK)
			break;
	}
	*out = b;
	return status;
}

/*
 * c->rip is not canonical. When an indirect branch led there, it is taken back, and the interpreter
 * raises the fault at the branch.
 */
static int fault_at_branch(struct soft_cpu *c)
{
	u32 kind = c->branch_site & BRANCH_SITE_KIND;

	if (kind == BRANCH_SITE_NONE || !soft_is_64bit(c))
		return soft_fault_code(c, VEC_GP, 0);
	if (kind == BRANCH_SITE_CALL)
		c->r[RSP] += 8;
	else if (kind == BRANCH_SITE_RET)
		c->r[RSP] -= 8;
	c->rip = c->code_va + (c->branch_site & SITE_OFFSET);
	c->branch_site = BRANCH_SITE_NONE;
	return interpret(c);
}

/* Indirect branches to rip, whose first byte is at @x, may go to @b from now on; or others rely on
 * it that are linked. */
static void note_found(struct soft_cpu *c, const struct soft_xlat *x, const struct block *b,
		       u64 entry)
{
	u32 half = c->mode & MODE_USER ? HALF_USER : HALF_SUPER;

	if (entry)
		soft_ibt_insert(c, half, c->mode, c->rip, x->gpa, entry);
	else
		soft_ibt_note_page(c, half, c->rip, x->gpa);
	if (b->page[1] != BLOCK_NO_PAGE)
		soft_ibt_note_page(c, half, c->rip + PAGE_SIZE, b->second);
}

/*
 * Most that is looked for is there: a process runs what another one has run. Neither vm->lock nor
 * the host's vector state is wanted then. NULL when there is more to do.
 */
static struct block *find_ready(struct soft_cpu *c, const struct soft_xlat *x, u32 variant)
{
	u32 mode = c->mode | variant;
	struct block *b;
	u64 entry = 0;

	if (!cache_may_have(c->vm->cache, (s64)x->page, (u32)(x->gpa & ~PAGE_MASK)))
		return NULL;
	b = cache_find(c->vm->cache, x->gpa, mode, block_place(&c->vm->options, mode, c->rip));
	if (!b || b->page[1] != BLOCK_NO_PAGE)
		return NULL;
	if (c->arrival == ARRIVAL_ANY && !variant) {
		entry = __atomic_load_n(&b->entry, __ATOMIC_ACQUIRE);
		if (!entry)
			return NULL;
	}
	if (!variant)
		note_found(c, x, b, entry);
	return b;
}

int run_find_block(struct soft_cpu *c, u32 variant, struct block **out)
{
	struct soft_xlat x;
	int status;

	*out = NULL;
	c->counters[COUNT_LOOKUPS]++;
	if (!soft_canonical(c->rip))
		return fault_at_branch(c);
	status = soft_translate(c, c->rip, soft_acc(c, ACC_FETCH), &x);
	if (status != SOFT_OK || !x.host)
		return status;
	c->code_va = c->rip & PAGE_MASK;
	*out = find_ready(c, &x, variant);
	if (*out)
		return SOFT_OK;
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	status = find_or_translate(c, &x, c->mode | variant, out);
	if (status == SOFT_OK && !variant)
		note_found(c, &x, *out,
			   c->arrival == ARRIVAL_ANY && soft_make_entry(c, *out) ? (*out)->entry
										 : 0);
	pthread_mutex_unlock(&c->vm->lock);
	return status;
}

/* A branch to a variant with single checks has no other way than to be patched. */
static bool may_link(const struct soft_cpu *c, const struct block_exit *x)
{
	return x->single || soft_uses(&c->vm->options, SOFT_LINKS);
}

/* Translated code left through an unlinked direct exit: find its target and patch the branch. */
static int link_exit(struct soft_cpu *c, struct block **to)
{
	struct block_exit *x = (struct block_exit *)c->link;
	u32 generation = c->vm->cache->generation;
	int status;

	c->arrival = x->backward || x->far ? ARRIVAL_BACKWARD : ARRIVAL_FORWARD;
	status = run_find_block(c, x->single ? MODE_SINGLE : 0, to);
	c->arrival = ARRIVAL_ANY;
	if (status != SOFT_OK || !*to)
		return status;
	places_check(c);
	soft_fpu_park(c);
	pthread_mutex_lock(&c->vm->lock);
	if (generation == c->vm->cache->generation && !x->from->dead && !(*to)->dead &&
	    !((x->from->mode ^ (*to)->mode) & ~(u32)MODE_SINGLE)) {
		if ((*to)->page[1] == BLOCK_NO_PAGE && may_link(c, x) &&
		    (!x->far || places_add(c, *to)))
			cache_link(c->vm->cache, x, *to);
		else if (!x->single)
			soft_exit_indirectly(c, x);
		c->counters[COUNT_LINKS]++;
	}
	pthread_mutex_unlock(&c->vm->lock);
	return SOFT_OK;
}

/* ---- the run loop ---- */

int run_deliver_exception(struct soft_cpu *c)
{
	u8 was = soft_doing(c, ACT_EXCEPTION);
	int status;

	do {
		c->counters[COUNT_EXCEPTIONS]++;
		status = soft_deliver_exception(c);
	} while (status == SOFT_FAULT);
	soft_doing(c, was);
	return status;
}

/* Into translated code at @code. */
static int enter(struct soft_cpu *c, u64 code, u64 index2)
{
	u32 half = c->mode & MODE_USER ? HALF_USER : HALF_SUPER;
	int why;

	soft_fpu_live(c);
	*(u64 *)c->ras_base = c->vm->cache->entry.ras_bottom[half];
	stack_page_clear(&c->super);
	stack_page_clear(&c->ctx->user);
	soft_doing(c, ACT_TRANSLATED);
	why = soft_enter(c, code, index2);
	soft_doing(c, ACT_DISPATCH);
	c->counters[COUNT_LEAVES + why]++;
	return why;
}

/* The entry of the indirect-branch table that has the translated code for rip, or NULL. */
static const struct ibt_entry *probe_table(struct soft_cpu *c)
{
	const struct soft_half *h = soft_half(c, c->mode & MODE_USER ? HALF_USER : HALF_SUPER);
	const struct ibt_entry *first = &h->ibt[IBT_INDEX(c->rip)];
	const struct ibt_entry *second = &h->ibt[IBT2_INDEX(c->rip)];

	if (h->ibt_mode != c->mode)
		return NULL;
	if (first->minus_gva == -c->rip && first->code != c->ibt_miss[HALF_USER] &&
	    first->code != c->ibt_miss[HALF_SUPER])
		return first;
	return second->minus_gva == -c->rip && second->code != c->ibt_leave ? second : NULL;
}

/* Translated code checks that entry @e is the right one: it wants the entry's position, doubled. */
static int enter_by_table(struct soft_cpu *c, const struct ibt_entry *e)
{
	const struct soft_half *h = soft_half(c, c->mode & MODE_USER ? HALF_USER : HALF_SUPER);

	return enter(c, e->code, (u64)(e - h->ibt) * 2);
}

/* The instruction at rip accessed what cannot be mapped in the window, or not yet. */
static int interpret_faulted(struct soft_cpu *c)
{
	int status = interpret(c);

	if (status == SOFT_FAULT && c->exc.vector == VEC_PF)
		window_expect(c, c->exc.cr2);
	return status;
}

/* Run user code in its box. */
static int run_direct(struct soft_cpu *c)
{
	int status = direct_run(c);

	return status == DIRECT_INTERPRET ? interpret_faulted(c) : status;
}

/* Run translated code from rip on; SOFT_OK when it came back for the next block. */
static int run_translated(struct soft_cpu *c)
{
	const struct ibt_entry *entry = probe_table(c);
	u64 rip = c->rip;
	struct block *b;
	int status, why = LEAVE_LOOKUP;

	if (entry)
		why = enter_by_table(c, entry);
	/* A dropped block's entry leads straight back here. So may code that came round to where it
	 * began, the processor being in another state now. */
	if (why == LEAVE_LOOKUP && c->rip == rip && run_may_translate(c)) {
		status = run_find_block(c, 0, &b);
		if (status != SOFT_OK)
			return status;
		if (!b)
			return interpret(c);
		why = enter(c, b->poll, 0);
	}
	while (why == LEAVE_LINK) {
		status = link_exit(c, &b);
		if (status != SOFT_OK || !b)
			return status;
		why = enter(c, b->poll, 0);
	}
	switch (why) {
	case LEAVE_INTERPRET: return interpret(c);
	case LEAVE_FAULT: return SOFT_FAULT;
	case LEAVE_EXIT: return SOFT_EXIT;
	case LEAVE_HOST_FAULT:
		status = soft_host_fault(c);
		return status == SOFT_OK ? interpret_faulted(c) : status;
	default: return SOFT_OK;
	}
}

static bool irq_is_ready(const struct soft_cpu *c)
{
	return c->iflag && !c->shadow && !c->shadow_mov_ss && !c->completing && !c->irq_latched &&
	       !c->exc_latched;
}

/* Requests from outside and pending events. SOFT_EXIT when run() must return. */
static int take_requests(struct soft_cpu *c)
{
	u32 req = atomic_fetch_and(&c->exit_req,
				   REQ_KICK); /* which stays until run() returns for it */

	if (!soft_pass(c))
		return exit_kicked(c);
	places_check(c);
	if (c->exc_latched) {
		c->exc_latched = false;
		return c->exc.vector == VEC_DB ? soft_deliver_trap(c) : SOFT_FAULT;
	}
	if (c->irq_latched) {
		c->irq_latched = false;
		c->counters[COUNT_INTERRUPTS]++;
		window_tick(c);
		return soft_deliver_interrupt(c, c->irq_vector);
	}
	if (req & REQ_TICK)
		window_tick(c);
	if (req & REQ_KICK)
		return exit_kicked(c);
	if (c->nmi_pending && !c->nmi_blocked && !c->shadow && !c->shadow_mov_ss) {
		c->nmi_pending = false;
		return soft_deliver_nmi(c);
	}
	if (c->irq_window && irq_is_ready(c)) {
		c->irq_window = 0;
		c->exit.type = EXIT_IRQ_WINDOW;
		return SOFT_EXIT;
	}
	return SOFT_OK;
}

static int run_once(struct soft_cpu *c)
{
	int status;

	if (!c->completing) {
		status = take_requests(c);
		if (status != SOFT_OK)
			return status;
		if (c->wants_alone)
			return interpret_alone(c);
	}
	if (c->completing || c->mode & MODE_INTERPRET || c->shadow || c->shadow_mov_ss ||
	    c->sysflags & RFLAGS_RF) {
		c->completing = false;
		return interpret(c);
	}
	if (kernel_window_is_due(c))
		kernel_window_settle(c);
	if (window_is_due(c))
		window_give(c);
	if (c->ctx->window)
		direct_look(c);
	return c->mode & MODE_DIRECT ? run_direct(c) : run_translated(c);
}

/* What the caller stored in the exit becomes a fragment of the instruction to be run again. */
static void complete_exit(struct soft_cpu *c, const struct vm_exit *exit)
{
	struct soft_fragment *f = &c->frag[c->frag_count];

	c->exit = *exit;
	if (exit->type == EXIT_PIO)
		*f = (struct soft_fragment){.addr = exit->pio.port,
					    .data = exit->pio.data,
					    .size = exit->pio.size,
					    .write = !exit->pio.in,
					    .is_port = true};
	else if (exit->type == EXIT_MMIO)
		*f = (struct soft_fragment){.addr = exit->mmio.gpa,
					    .data = exit->mmio.data,
					    .size = exit->mmio.size,
					    .write = exit->mmio.write};
	else
		return;
	if (c->frag_count < SOFT_FRAGMENTS - 1)
		c->frag_count++;
}

static int soft_run(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
	struct soft_cpu *c = cpu_of(vcpu);
	int status;

	if (c->completing && !c->refused)
		complete_exit(c, exit);
	c->refused = !soft_world_enter(c);
	if (c->refused) { /* what was completed stays so */
		atomic_fetch_and(&c->exit_req, ~(u32)REQ_KICK);
		exit->type = EXIT_KICKED;
		return 0;
	}
	soft_ctx_use(c, c->ctx);
	soft_doing(c, ACT_DISPATCH);
	do {
		status = run_once(c);
		if (status == SOFT_FAULT)
			status = run_deliver_exception(c);
	} while (status != SOFT_EXIT);
	c->counters[COUNT_EXITS]++;
	c->completing = needs_completion(c->exit.type);
	soft_fpu_park(c);
	soft_world_leave(c);
	soft_doing(c, ACT_OUTSIDE);
	*exit = c->exit;
	return 0;
}

static void soft_kick(struct engine_vcpu *vcpu)
{
	soft_request(cpu_of(vcpu), REQ_KICK);
}

static bool soft_irq_ready(struct engine_vcpu *vcpu)
{
	return irq_is_ready(cpu_of(vcpu));
}

static int soft_inject_irq(struct engine_vcpu *vcpu, u8 vector)
{
	struct soft_cpu *c = cpu_of(vcpu);

	if (!irq_is_ready(c))
		return -EBUSY;
	c->irq_latched = true;
	c->irq_vector = vector;
	return 0;
}

static int soft_inject_nmi(struct engine_vcpu *vcpu)
{
	cpu_of(vcpu)->nmi_pending = true;
	return 0;
}

static void soft_request_irq_window(struct engine_vcpu *vcpu)
{
	cpu_of(vcpu)->irq_window = 1;
}

const struct engine_ops soft_engine = {
	.name = "soft",
	.sandbox = &reload_sandbox,
	.sandbox_create = &create_sandbox,
	.paravirt = true,
	.maps_ram = true,
	.trim_thread = soft_trim_thread,
	.check_options = soft_check_options,
	.probe = soft_probe,
	.host_open = soft_host_open,
	.host_close = soft_host_close,
	.cpuid_limit = soft_cpuid_limit,
	.vm_create = soft_vm_create,
	.vm_destroy = soft_vm_destroy,
	.memory_update = soft_memory_update,
	.dirty_log = soft_dirty_log,
	.dirty_fetch = soft_dirty_fetch,
	.doorbell = soft_doorbell,
	.chips = soft_chips,
	.code_written = soft_code_written,
	.vcpu_create = soft_vcpu_create,
	.vcpu_destroy = soft_vcpu_destroy,
	.run = soft_run,
	.kick = soft_kick,
	.state_get = soft_state_get,
	.state_set = soft_state_set,
	.irq_ready = soft_irq_ready,
	.inject_irq = soft_inject_irq,
	.inject_nmi = soft_inject_nmi,
	.request_irq_window = soft_request_irq_window,
	.counters = soft_counters,
	.activities = soft_activities,
	.activity = soft_activity,
};
