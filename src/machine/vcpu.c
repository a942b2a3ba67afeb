/*
 * The life of a vCPU thread: create the engine's vCPU, park until the machine is started, then go
 * round: stand still when asked, take INIT, SIPI and NMI, deliver an interrupt when the local APIC
 * has one and the CPU is open for it, run, complete the exit.
 *
 * Waking. Whoever makes something happen for a vCPU (an interrupt in its local APIC, an event bit,
 * a stop request) stores that first and then looks whether the vCPU is halted; the vCPU says that
 * it is halted first and then looks whether something happened. With a full barrier on both sides
 * one of the two always sees the other. A vCPU in the engine is kicked; a halted one first polls
 * for POLL_NS, because a wake-up across cores costs as much (unless the host has no processor to
 * spare for that), then sleeps on its condition variable until its local APIC's timer.
 *
 * Locks: the machine lock is taken for each access to a device or the local APIC and never held
 * while the engine runs. set->lock and vcpu->mutex are leaves.
 */
#include "machine/vcpu.h"

#include "machine/paravirt.h"

#include "base/log.h"
#include "host/loop.h"
#include "host/thread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const u64 POLL_NS = 50000;

static const char *const exit_names[VCPU_EXIT_TYPES] = {
	[EXIT_NONE] = "none",   [EXIT_PIO] = "pio",
	[EXIT_MMIO] = "mmio",   [EXIT_RDMSR] = "rdmsr",
	[EXIT_WRMSR] = "wrmsr", [EXIT_HYPERCALL] = "hypercall",
	[EXIT_HLT] = "hlt",     [EXIT_SHUTDOWN] = "shutdown",
	[EXIT_DEBUG] = "debug", [EXIT_IRQ_WINDOW] = "irq_window",
	[EXIT_ERROR] = "error", [EXIT_KICKED] = "kicked",
};

const char *vcpu_exit_name(enum exit_type type)
{
	return exit_names[type];
}

u64 vcpus_exits(const struct vcpu_set *set, enum exit_type type)
{
	u64 n = 0;

	for (u32 i = 0; i < set->count; i++)
		n += set->cpu[i].exits[type];
	return n;
}

static const struct engine_ops *engine_of(const struct vcpu *v)
{
	return v->set->env.engine;
}

static void machine_lock(struct vcpu *v)
{
	pthread_mutex_lock(v->set->env.machine_lock);
}

static void machine_unlock(struct vcpu *v)
{
	pthread_mutex_unlock(v->set->env.machine_lock);
}

/* Without the machine lock. With the engine's local APICs interrupts are its own business. */
static bool has_interrupt(const struct vcpu *v)
{
	return v->lapic && lapic_attention(v->lapic);
}

/* ---- waking ---- */

static void wake(struct vcpu *v)
{
	if (!v->engine)
		return;                        /* it could not be created */
	if (!atomic_fetch_or(&v->halted, 0)) { /* a full barrier, which a load is not */
		engine_of(v)->kick(v->engine);
		return;
	}
	pthread_mutex_lock(&v->mutex);
	pthread_cond_signal(&v->wake);
	pthread_mutex_unlock(&v->mutex);
}

/* A thread that interrupts itself looks again before it enters the engine. */
static void wake_other(struct vcpu *v)
{
	if (v->started && !pthread_equal(pthread_self(), v->thread))
		wake(v);
}

void vcpus_notify(void *set, u32 cpu)
{
	wake_other(&((struct vcpu_set *)set)->cpu[cpu]);
}

static void post(struct vcpu *v, u32 event)
{
	atomic_fetch_or(&v->events, event);
	wake_other(v);
}

void vcpus_nmi(void *set, u32 cpu)
{
	post(&((struct vcpu_set *)set)->cpu[cpu], VCPU_NMI);
}

void vcpus_unhalt(struct vcpu_set *set, u32 cpu)
{
	post(&set->cpu[cpu], VCPU_UNHALT);
}

void vcpus_init(void *set, u32 cpu)
{
	struct vcpu *v = &((struct vcpu_set *)set)->cpu[cpu];

	/* A SIPI sent before this INIT is void. */
	atomic_fetch_and(&v->events, ~(u32)VCPU_SIPI);
	post(v, VCPU_INIT);
}

void vcpus_sipi(void *set, u32 cpu, u8 vector)
{
	struct vcpu *v = &((struct vcpu_set *)set)->cpu[cpu];

	atomic_store(&v->sipi_vector, vector);
	post(v, VCPU_SIPI);
}

/* ---- time ---- */

u64 vcpus_tsc(void *set, u32 cpu)
{
	return __builtin_ia32_rdtsc() + atomic_load(&((struct vcpu_set *)set)->cpu[cpu].tsc_offset);
}

/* The guest may have written its TSC since the last look. On the vCPU's thread. */
static void refresh_tsc_offset(struct vcpu *v)
{
	engine_of(v)->state_get(v->engine, CPU_PART_TSC, &v->state);
	atomic_store(&v->tsc_offset, cpu_tsc_offset(&v->state.msr));
}

/* ---- reset, INIT, SIPI, NMI ---- */

/* SDM vol. 3, table 9-1: INIT leaves MSRs, XCR0 and the vector state alone. */
static void take_init(struct vcpu *v)
{
	struct cpu_state *s = &v->state;
	u64 xcr0;

	engine_of(v)->state_get(v->engine, CPU_PART_CR, s);
	xcr0 = s->cr.xcr0;
	cpu_state_reset(s);
	s->cr.xcr0 = xcr0;
	engine_of(v)->state_set(
		v->engine, CPU_PART_GPR | CPU_PART_SEG | CPU_PART_CR | CPU_PART_DR | CPU_PART_INTR,
		s);
	v->hlt = v->unhalted = v->owes = false;
	v->cr8 = 0;
	v->tpr_changed = false;
	v->waits_for_sipi = v->id != 0;
}

/* SDM vol. 3, 9.4.3: real mode at vector << 12. */
static void take_sipi(struct vcpu *v)
{
	struct cpu_segment *cs = &v->state.segs.seg[SEG_CS];
	u8 vector = atomic_load(&v->sipi_vector);

	if (!v->waits_for_sipi)
		return;
	engine_of(v)->state_get(v->engine, CPU_PART_GPR | CPU_PART_SEG, &v->state);
	cs->selector = (u16)(vector << 8);
	cs->base = (u64)vector << 12;
	v->state.gpr.rip = 0;
	engine_of(v)->state_set(v->engine, CPU_PART_GPR | CPU_PART_SEG, &v->state);
	v->waits_for_sipi = false;
}

static void take_events(struct vcpu *v)
{
	u32 events = atomic_exchange(&v->events, 0);

	if (events & VCPU_INIT)
		take_init(v);
	if (events & VCPU_SIPI)
		take_sipi(v);
	if (events & VCPU_UNHALT) {
		v->unhalted = !v->hlt;
		v->hlt = false;
	}
	if (events & VCPU_NMI && !v->waits_for_sipi) {
		engine_of(v)->inject_nmi(v->engine);
		v->hlt = false;
	}
}

/* For an engine with local APICs of its own; the others do not look at it. */
static void reset_apic(struct vcpu *v)
{
	struct cpu_apic *a = &v->state.apic;

	a->waits_for_sipi = v->id != 0;
	if (v->id)
		return;
	a->base |= APIC_BASE_BSP;
	/* As firmware leaves it: see lapic_reset(). */
	a->reg[APIC_LVT_LINT0] = LAPIC_LINT0_BY_FIRMWARE;
}

/* The whole machine was reset. Called under set->lock, while it stands still. */
static void take_reset(struct vcpu *v)
{
	const struct cpu_state *entry = v->set->entry;

	v->reset_wanted = false;
	v->state = *entry;
	if (v->id) {
		cpu_state_reset(&v->state);
		/* Firmware would have set up memory types alike on all processors. */
		v->state.msr = entry->msr;
	}
	v->state.msr.tsc = 0;
	v->state.msr.tsc_host = v->set->tsc_start; /* all time-stamp counters agree */
	reset_apic(v);
	if (engine_of(v)->state_set(v->engine, CPU_PART_ALL, &v->state))
		log_error("cpu %u: the engine refuses its start state", v->id);
	refresh_tsc_offset(v);
	v->hlt = v->unhalted = v->owes = false;
	v->cr8 = 0;
	v->tpr_changed = false;
	v->waits_for_sipi = v->lapic && v->id != 0;
}

/* ---- moving to another engine ---- */

static int prepare(struct vcpu *v, struct err *e)
{
	const struct vcpu_env *next = &v->set->next;
	int r = engine_of(v)->state_get(v->engine, CPU_PART_ALL, &v->state);

	if (r)
		return err_set(e, r, "cpu %u: the %s engine does not give its state away: %s",
			       v->id, engine_of(v)->name, strerror(-r));
	r = next->engine->vcpu_create(next->vm, v->id, &v->next, e);
	if (r)
		return r;
	r = next->engine->state_set(v->next, CPU_PART_ALL, &v->state);
	return r ? err_set(e, r, "cpu %u: its state is refused: %s", v->id, strerror(-r)) : 0;
}

/* Under set->lock, on the vCPU's thread. */
static void do_task(struct vcpu *v)
{
	struct vcpu_set *set = v->set;
	struct err e = {0};

	switch (v->task) {
	case VCPU_PREPARE:
		if (prepare(v, &e) && !set->failed++)
			set->error = e;
		break;
	case VCPU_COMMIT:
		engine_of(v)->vcpu_destroy(v->engine);
		v->engine = v->next;
		v->next = NULL;
		break;
	case VCPU_CANCEL:
		if (v->next)
			set->next.engine->vcpu_destroy(v->next);
		v->next = NULL;
		break;
	case VCPU_STAY: break;
	}
	v->task = VCPU_STAY;
	pthread_cond_broadcast(&set->changed);
}

/* All threads do @task. Under set->lock. */
static void have_done(struct vcpu_set *set, enum vcpu_task task)
{
	for (u32 i = 0; i < set->count; i++)
		set->cpu[i].task = task;
	pthread_cond_broadcast(&set->changed);
	for (u32 i = 0; i < set->count; i++)
		while (set->cpu[i].task != VCPU_STAY)
			pthread_cond_wait(&set->changed, &set->lock);
}

int vcpus_move(struct vcpu_set *set, const struct engine_ops *engine, struct engine_vm *vm,
	       struct err *e)
{
	int r = 0;

	pthread_mutex_lock(&set->lock);
	set->next = set->env;
	set->next.engine = engine;
	set->next.vm = vm;
	set->failed = 0;
	have_done(set, VCPU_PREPARE);
	if (set->failed) {
		have_done(set, VCPU_CANCEL);
		*e = set->error;
		r = e->code ? e->code : -EIO;
	} else {
		have_done(set, VCPU_COMMIT);
		set->env = set->next;
	}
	pthread_mutex_unlock(&set->lock);
	return r;
}

/* ---- standing still ---- */

/* False when the thread shall end. */
static bool park(struct vcpu *v)
{
	struct vcpu_set *set = v->set;
	bool quit;

	pthread_mutex_lock(&set->lock);
	set->parked++;
	pthread_cond_broadcast(&set->changed);
	while (atomic_load(&set->stop) && !set->quit) {
		if (v->task != VCPU_STAY)
			do_task(v);
		else
			pthread_cond_wait(&set->changed, &set->lock);
	}
	set->parked--;
	quit = set->quit;
	if (!quit && v->reset_wanted)
		take_reset(v);
	pthread_mutex_unlock(&set->lock);
	return !quit;
}

void vcpus_request_stop(struct vcpu_set *set)
{
	atomic_store(&set->stop, true);
	for (u32 i = 0; i < set->count; i++)
		wake_other(&set->cpu[i]);
}

void vcpus_stop(struct vcpu_set *set)
{
	vcpus_request_stop(set);
	pthread_mutex_lock(&set->lock);
	while (set->parked < set->count)
		pthread_cond_wait(&set->changed, &set->lock);
	pthread_mutex_unlock(&set->lock);
}

void vcpus_resume(struct vcpu_set *set)
{
	pthread_mutex_lock(&set->lock);
	atomic_store(&set->stop, false);
	pthread_cond_broadcast(&set->changed);
	pthread_mutex_unlock(&set->lock);
}

void vcpus_reset(struct vcpu_set *set, const struct cpu_state *entry)
{
	pthread_mutex_lock(&set->lock);
	set->entry = entry;
	set->tsc_start = __builtin_ia32_rdtsc();
	for (u32 i = 0; i < set->count; i++) {
		set->cpu[i].reset_wanted = true;
		/* Here and not in take_reset(): another vCPU may be on its way, and start this one.
		 */
		atomic_store(&set->cpu[i].events, 0);
	}
	pthread_mutex_unlock(&set->lock);
}

/* ---- interrupts ---- */

/* MOV CR8 goes to the engine, TPR accesses to the local APIC; they are one (SDM vol. 3, 11.8.6). */
static void read_cr8(struct vcpu *v)
{
	if (v->tpr_changed || !v->lapic)
		return;
	engine_of(v)->state_get(v->engine, CPU_PART_CR8, &v->state);
	if (v->state.cr.cr8 == v->cr8)
		return;
	v->cr8 = v->state.cr.cr8;
	machine_lock(v);
	lapic_set_cr8(v->lapic, v->cr8);
	machine_unlock(v);
}

/* Only between instructions: setting state abandons an access that waits for completion. */
static void write_cr8(struct vcpu *v)
{
	if (!v->tpr_changed)
		return;
	v->tpr_changed = false;
	machine_lock(v);
	v->cr8 = lapic_get_cr8(v->lapic);
	machine_unlock(v);
	engine_of(v)->state_get(v->engine, CPU_PART_CR8, &v->state);
	if (v->state.cr.cr8 == v->cr8)
		return;
	v->state.cr.cr8 = v->cr8;
	engine_of(v)->state_set(v->engine, CPU_PART_CR8, &v->state);
}

static void deliver_interrupt(struct vcpu *v)
{
	int vector;

	read_cr8(v);
	if (!has_interrupt(v))
		return;
	if (!engine_of(v)->irq_ready(v->engine)) {
		engine_of(v)->request_irq_window(v->engine);
		return;
	}
	machine_lock(v);
	paravirt_settle_eoi(v);
	vector = lapic_accept(v->lapic);
	paravirt_offer_eoi(v);
	machine_unlock(v);
	if (vector < 0)
		return;
	engine_of(v)->inject_irq(v->engine, (u8)vector);
	v->hlt = false;
	if (lapic_attention(v->lapic))
		engine_of(v)->request_irq_window(v->engine);
}

/* ---- halting ---- */

static bool must_wake(struct vcpu *v)
{
	if (atomic_load(&v->set->stop) || atomic_load(&v->events))
		return true;
	return !v->waits_for_sipi && has_interrupt(v) && engine_of(v)->irq_ready(v->engine);
}

static struct timespec to_timespec(u64 ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000ul),
				 .tv_nsec = (long)(ns % 1000000000ul)};
}

/* True when something happened before @until. */
static bool poll_until(struct vcpu *v, u64 until)
{
	do {
		if (must_wake(v))
			return true;
		__builtin_ia32_pause();
	} while (host_clock_ns() < until);
	return false;
}

static void sleep_until(struct vcpu *v, u64 deadline)
{
	struct timespec ts = to_timespec(MIN(deadline, (u64)INT64_MAX));
	int r = 0;

	v->halt_sleeps++;
	paravirt_sleeps(v);
	pthread_mutex_lock(&v->mutex);
	while (!r && !must_wake(v))
		r = pthread_cond_timedwait(&v->wake, &v->mutex, &ts);
	pthread_mutex_unlock(&v->mutex);
	paravirt_wakes(v);
}

/* Polling takes a host processor: only while no other vCPU could use it. */
static bool may_poll(const struct vcpu *v)
{
	return atomic_load(&v->set->awake) < v->set->host_cpus;
}

/* HLT, or waiting for SIPI: until there is something to do. */
static void halt(struct vcpu *v)
{
	u64 deadline;

	atomic_fetch_sub(&v->set->awake, 1);
	atomic_exchange(&v->halted, 1);
	while (!must_wake(v)) {
		machine_lock(v);
		lapic_timer_poll(v->lapic);
		deadline = lapic_timer_deadline(v->lapic);
		machine_unlock(v);
		if (may_poll(v) && poll_until(v, MIN(deadline, host_clock_ns() + POLL_NS)))
			continue;
		if (host_clock_ns() < deadline)
			sleep_until(v, deadline);
	}
	atomic_exchange(&v->halted, 0);
	atomic_fetch_add(&v->set->awake, 1);
}

/* ---- exits ---- */

static void complete_pio(struct vcpu *v, struct vm_exit *x)
{
	struct bus *bus = v->set->env.bus;

	machine_lock(v);
	if (x->pio.in)
		x->pio.data = (u32)bus_read(bus, BUS_PORT, x->pio.port, x->pio.size);
	else
		bus_write(bus, BUS_PORT, x->pio.port, x->pio.size, x->pio.data);
	machine_unlock(v);
}

/*
 * The guest has set the task priority at the local APIC. The engine learns of it right after the
 * instruction at hand: a kick ends run() there.
 */
static void note_task_priority(struct vcpu *v)
{
	if (lapic_get_cr8(v->lapic) == v->cr8)
		return;
	v->tpr_changed = true;
	engine_of(v)->kick(v->engine);
}

/* Registers whose value depends on the task priority, by their number in x2APIC mode. */
static bool shows_priority(u32 number)
{
	enum { TPR = 0x08, PPR = 0x0a };

	return number == TPR || number == PPR;
}

static void complete_lapic(struct vcpu *v, struct vm_exit *x)
{
	u32 off = x->mmio.gpa % LAPIC_SIZE;

	paravirt_settle_eoi(v);
	if (x->mmio.write)
		lapic_mmio_write(v->lapic, off, x->mmio.size, x->mmio.data);
	else
		x->mmio.data = lapic_mmio_read(v->lapic, off, x->mmio.size);
	note_task_priority(v);
}

static void complete_mmio(struct vcpu *v, struct vm_exit *x)
{
	struct bus *bus = v->set->env.bus;
	bool own = v->lapic && lapic_claims(v->lapic, x->mmio.gpa);

	if (own && shows_priority(x->mmio.gpa % LAPIC_SIZE >> 4))
		read_cr8(v);
	machine_lock(v);
	if (own)
		complete_lapic(v, x);
	else if (x->mmio.write)
		bus_write(bus, BUS_MEMORY, x->mmio.gpa, x->mmio.size, x->mmio.data);
	else
		x->mmio.data = bus_read(bus, BUS_MEMORY, x->mmio.gpa, x->mmio.size);
	machine_unlock(v);
}

static void complete_msr(struct vcpu *v, struct vm_exit *x)
{
	bool ok;

	if (!v->lapic) {
		x->msr.fault = true; /* the engine answers those that exist */
		return;
	}
	if (x->msr.index == MSR_TSC_DEADLINE)
		refresh_tsc_offset(v);
	if (shows_priority(x->msr.index - MSR_X2APIC_FIRST))
		read_cr8(v);
	machine_lock(v);
	paravirt_settle_eoi(v);
	if (x->type == EXIT_RDMSR)
		ok = lapic_msr_read(v->lapic, x->msr.index, &x->msr.value);
	else
		ok = lapic_msr_write(v->lapic, x->msr.index, x->msr.value);
	note_task_priority(v);
	machine_unlock(v);
	x->msr.fault = !ok;
}

static bool wants_answer(enum exit_type type)
{
	return type == EXIT_PIO || type == EXIT_MMIO || type == EXIT_RDMSR || type == EXIT_WRMSR ||
	       type == EXIT_HYPERCALL;
}

static void complete(struct vcpu *v, struct vm_exit *x)
{
	const struct vcpu_env *env = &v->set->env;

	v->exits[x->type]++;
	v->owes = wants_answer(x->type);
	switch (x->type) {
	case EXIT_PIO: complete_pio(v, x); break;
	case EXIT_MMIO: complete_mmio(v, x); break;
	case EXIT_RDMSR:
	case EXIT_WRMSR: complete_msr(v, x); break;
	case EXIT_HYPERCALL: paravirt_call(v, x); break;
	case EXIT_HLT:
		v->hlt = !v->unhalted;
		v->unhalted = false;
		break;
	case EXIT_SHUTDOWN: env->triple_fault(env->opaque, v->id); break;
	case EXIT_ERROR: env->failed(env->opaque, v->id, x->error); break;
	case EXIT_NONE:
	case EXIT_IRQ_WINDOW:
	case EXIT_DEBUG:
	case EXIT_KICKED: break;
	}
	if (x->type == EXIT_HLT || x->type == EXIT_KICKED || x->type == EXIT_IRQ_WINDOW)
		write_cr8(v);
	/* An engine kicks itself when the guest lowers CR8, which may unblock an interrupt. */
	if (x->type == EXIT_KICKED)
		read_cr8(v);
}

/* ---- the thread ---- */

/* Stand still between two instructions, all state in its place. False when the thread shall end. */
static bool stop(struct vcpu *v)
{
	machine_lock(v);
	paravirt_settle_eoi(v);
	machine_unlock(v);
	return park(v);
}

static void run(struct vcpu *v)
{
	const struct vcpu_env *env = &v->set->env;
	struct vm_exit x = {0};

	for (;;) {
		if (atomic_load(&v->set->stop)) {
			if (!v->owes && !stop(v))
				return;
			/* The device has done its part: the instruction must not start over. */
			if (v->owes)
				engine_of(v)->kick(v->engine);
		}
		if (atomic_load(&v->events))
			take_events(v);
		if (v->waits_for_sipi || (v->hlt && !must_wake(v))) {
			halt(v);
			/* An interrupt, or just a request to stop or look at events. */
			if (v->waits_for_sipi || atomic_load(&v->set->stop) ||
			    atomic_load(&v->events))
				continue;
		}
		if (has_interrupt(v))
			deliver_interrupt(v);
		if (v->hlt)
			continue;
		if (env->engine->run(v->engine, &x)) {
			v->owes = false;
			env->failed(env->opaque, v->id, "the engine failed");
			continue;
		}
		complete(v, &x);
		if (x.type == EXIT_KICKED)
			paravirt_account(v);
	}
}

static void report(struct vcpu_set *set, const struct err *e)
{
	pthread_mutex_lock(&set->lock);
	if (!set->failed++)
		set->error = *e;
	pthread_cond_broadcast(&set->changed);
	pthread_mutex_unlock(&set->lock);
}

static void *vcpu_thread(void *opaque)
{
	struct vcpu *v = opaque;
	const struct vcpu_env *env = &v->set->env;
	struct err e = {0};

	engines_trim_thread(env->engine);
	if (env->engine->vcpu_create(env->vm, v->id, &v->engine, &e)) {
		report(v->set, &e);
		return NULL;
	}
	if (park(v))
		run(v);
	env->engine->vcpu_destroy(v->engine);
	return NULL;
}

static void init_vcpu(struct vcpu_set *set, u32 id)
{
	struct vcpu *v = &set->cpu[id];
	pthread_condattr_t attr;

	v->set = set;
	v->id = id;
	v->lapic = set->env.lapics ? &set->env.lapics->cpu[id] : NULL;
	pthread_mutex_init(&v->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&v->wake, &attr);
	pthread_condattr_destroy(&attr);
}

static int start_thread(struct vcpu *v, struct err *e)
{
	char name[16];
	int r;

	snprintf(name, sizeof(name), "vcpu%u", v->id);
	r = host_thread_start(&v->thread, name, vcpu_thread, v, e);
	v->started = !r;
	return r;
}

int vcpus_create(struct vcpu_set *set, u32 count, const struct vcpu_env *env, struct err *e)
{
	u32 started = 0;
	int r = 0;

	memset(set, 0, sizeof(*set));
	set->env = *env;
	set->cpu = calloc(count, sizeof(*set->cpu));
	if (!set->cpu)
		return err_set(e, -ENOMEM, "out of memory");
	set->count = count;
	pthread_mutex_init(&set->lock, NULL);
	pthread_cond_init(&set->changed, NULL);
	atomic_store(&set->stop, true);
	atomic_store(&set->awake, count);
	set->host_cpus = host_thread_cpus();
	for (u32 i = 0; i < count; i++)
		init_vcpu(set, i);
	while (!r && started < count)
		r = start_thread(&set->cpu[started], e) ? -EAGAIN : (started++, 0);
	pthread_mutex_lock(&set->lock);
	while (set->parked + set->failed < started)
		pthread_cond_wait(&set->changed, &set->lock);
	if (!r && set->failed) {
		r = set->error.code ? set->error.code : -EIO;
		if (e)
			*e = set->error;
	}
	pthread_mutex_unlock(&set->lock);
	if (r)
		vcpus_destroy(set);
	return r;
}

void vcpus_destroy(struct vcpu_set *set)
{
	if (!set->cpu)
		return;
	vcpus_request_stop(set);
	pthread_mutex_lock(&set->lock);
	set->quit = true;
	pthread_cond_broadcast(&set->changed);
	pthread_mutex_unlock(&set->lock);
	for (u32 i = 0; i < set->count; i++) {
		if (set->cpu[i].started)
			pthread_join(set->cpu[i].thread, NULL);
		pthread_mutex_destroy(&set->cpu[i].mutex);
		pthread_cond_destroy(&set->cpu[i].wake);
	}
	pthread_cond_destroy(&set->changed);
	pthread_mutex_destroy(&set->lock);
	free(set->cpu);
	set->cpu = NULL;
	set->count = 0;
}
