/*
 * Theory of operation
 *
 * A guest gives each processor a record in its memory (MSR_KVM_STEAL_TIME). While the vCPU's thread
 * sleeps in HLT the record says so. A processor that drops translations everywhere sends sleepers
 * no interrupt: it adds a request to the record, by compare-exchange, and the sleeper drops all its
 * translations when it wakes, having taken the record back by exchange, before it runs anything.
 *
 * An interrupt ends by a write to the local APIC's EOI register, which costs an exit. When nothing
 * waits for that end, a bit in a word of the guest's (MSR_KVM_PV_EOI_EN) says so before the guest
 * runs; it clears the bit, and the monitor finds that out when it has to know: when another
 * interrupt arrives, when the guest reaches for its local APIC, or when it stands still. The word
 * belongs to one processor and is changed here only while that is outside the engine.
 *
 * Stolen time is what a vCPU wanted to run and did not: the time since it woke less what its thread
 * has used of a processor. It is brought up to date before sleeping, and every ACCOUNT_NS while
 * running.
 */
#include "machine/paravirt.h"

#include "machine/vcpu.h"

enum {
	CALL_KICK_CPU = 5,
	CALL_SEND_IPI = 10,
	IPI_MODE = 7 << 8,
	RECORD_ENABLED = 1,
	RECORD_RESERVED = 0x3f,
	PREEMPTED = 1 << 0,
	FLUSH_TLB = 1 << 1,
	EOI_BIT = 1 << 0, /* of the guest's word: no EOI needed */
};

#define CALL_UNKNOWN (-1000ul) /* KVM_ENOSYS */
#define MSI_ADDRESS  0xfee00000ul
static const u64 ACCOUNT_NS = 10000000;

/* struct kvm_steal_time */
struct record {
	u64 steal;
	u32 version; /* odd while the rest changes */
	u32 flags;
	u8 preempted;
	u8 pad[47];
};

_Static_assert(sizeof(struct record) == 64, "struct kvm_steal_time");

/* ---- calls ---- */

static u64 kick(struct vcpu *v, u64 id)
{
	if (id < v->set->count)
		vcpus_unhalt(v->set, (u32)id);
	return 0;
}

/* Bits of @low and @high are processors @first, @first + 1, ... Returns how many were reached. */
static u64 send_ipi(struct vcpu *v, u64 low, u64 high, u64 first, u64 icr)
{
	struct vcpu_set *set = v->set;
	u64 sent = 0;

	if (!set->env.lapics)
		return CALL_UNKNOWN; /* they are the engine's */
	pthread_mutex_lock(set->env.machine_lock);
	for (u32 n = 0; n < 128; n++) {
		if (!((n < 64 ? low >> n : high >> (n - 64)) & 1) || first + n >= set->count)
			continue;
		lapic_deliver_msi(set->env.lapics, MSI_ADDRESS | (first + n) << 12,
				  (u32)icr & (IPI_MODE | 0xff));
		sent++;
	}
	pthread_mutex_unlock(set->env.machine_lock);
	return sent;
}

void paravirt_call(struct vcpu *v, struct vm_exit *x)
{
	const u64 *arg = x->hypercall.arg;

	switch (x->hypercall.nr) {
	case CALL_KICK_CPU: x->hypercall.result = kick(v, arg[1]); break;
	case CALL_SEND_IPI:
		x->hypercall.result = send_ipi(v, arg[0], arg[1], (u32)arg[2], arg[3]);
		break;
	default: x->hypercall.result = CALL_UNKNOWN; break;
	}
}

/* ---- the end of an interrupt ---- */

/* Set the guest's bit to @on. False: there is no memory. @was: how it was. */
static bool change_eoi_bit(struct vcpu *v, bool on, bool *was)
{
	struct physmap *pm = v->set->env.physmap;
	gpa_t gpa = lapic_eoi_word(v->lapic);
	u32 *word = mem_map(pm, gpa, sizeof(*word), MEM_WRITE);
	u32 old;

	if (!word)
		return false;
	old = on ? __atomic_fetch_or(word, EOI_BIT, __ATOMIC_SEQ_CST)
		 : __atomic_fetch_and(word, ~(u32)EOI_BIT, __ATOMIC_SEQ_CST);
	*was = old & EOI_BIT;
	mem_unmap(pm, gpa, sizeof(*word));
	return true;
}

void paravirt_settle_eoi(struct vcpu *v)
{
	bool waits = true;

	if (!v->lapic || !v->lapic->pv_eoi_offered) /* NULL: the engine has it */
		return;
	change_eoi_bit(v, false, &waits);
	lapic_settle_eoi(v->lapic, !waits);
}

void paravirt_offer_eoi(struct vcpu *v)
{
	bool was;

	if (lapic_offer_eoi(v->lapic) && !change_eoi_bit(v, true, &was))
		lapic_settle_eoi(v->lapic, false);
}

/* ---- the record ---- */

/* The guest's record, *gpa where it is; NULL when it has none. */
static struct record *map_record(struct vcpu *v, gpa_t *gpa)
{
	const struct engine_ops *engine = v->set->env.engine;
	u64 reg;

	if (!engine->paravirt)
		return NULL;
	engine->state_get(v->engine, CPU_PART_MSR, &v->state);
	reg = v->state.msr.kvm_steal_time;
	*gpa = reg & ~(u64)RECORD_RESERVED;
	if (!(reg & RECORD_ENABLED))
		return NULL;
	return mem_map(v->set->env.physmap, *gpa, sizeof(struct record), MEM_WRITE);
}

static void unmap_record(struct vcpu *v, gpa_t gpa)
{
	mem_unmap(v->set->env.physmap, gpa, sizeof(struct record));
}

static void add_stolen(struct vcpu *v, struct record *r)
{
	u64 now = host_clock_ns(), used = host_thread_ns();
	u64 passed = now - v->account_ns, ran = used - v->account_used_ns;
	u32 version = __atomic_load_n(&r->version, __ATOMIC_RELAXED);

	if (!v->account_ns) /* it has not slept yet */
		passed = ran = 0;
	v->account_ns = now;
	v->account_used_ns = used;
	if (passed <= ran)
		return;
	__atomic_store_n(&r->version, version | 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&r->steal, r->steal + (passed - ran), __ATOMIC_SEQ_CST);
	__atomic_store_n(&r->version, (version | 1) + 1, __ATOMIC_SEQ_CST);
}

void paravirt_account(struct vcpu *v)
{
	struct record *r;
	gpa_t gpa;

	if (!v->set->env.engine->paravirt || host_clock_ns() - v->account_ns < ACCOUNT_NS)
		return;
	r = map_record(v, &gpa);
	if (!r) { /* count from when there is one */
		v->account_ns = host_clock_ns();
		v->account_used_ns = host_thread_ns();
		return;
	}
	add_stolen(v, r);
	unmap_record(v, gpa);
}

void paravirt_sleeps(struct vcpu *v)
{
	gpa_t gpa;
	struct record *r = map_record(v, &gpa);

	v->preempted = r;
	if (!r)
		return;
	add_stolen(v, r);
	__atomic_store_n(&r->preempted, PREEMPTED, __ATOMIC_SEQ_CST);
	unmap_record(v, gpa);
}

void paravirt_wakes(struct vcpu *v)
{
	const struct engine_ops *engine = v->set->env.engine;
	struct record *r;
	gpa_t gpa;

	if (!engine->paravirt)
		return;
	v->account_ns = host_clock_ns();
	v->account_used_ns = host_thread_ns();
	if (!v->preempted)
		return;
	v->preempted = false;
	r = map_record(v, &gpa);
	if (!r)
		return;
	if (__atomic_exchange_n(&r->preempted, 0, __ATOMIC_SEQ_CST) & FLUSH_TLB) {
		/* Setting control registers drops all translations. */
		engine->state_get(v->engine, CPU_PART_CR, &v->state);
		engine->state_set(v->engine, CPU_PART_CR, &v->state);
	}
	unmap_record(v, gpa);
}
