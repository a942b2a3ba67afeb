/*
 * Virtual CPUs: one thread each, which runs the engine and completes its exits.
 *
 * All vCPUs of a machine form a set, and one mechanism stops and starts them for everybody who
 * needs them to stand still: pause, reset, the end of the machine. A set starts out stopped.
 */
#pragma once

#include "bus/bus.h"
#include "device/chip/lapic.h"
#include "engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>

struct vcpu_set;

enum { VCPU_EXIT_TYPES = EXIT_ERROR + 1 };

/* Things a vCPU's own thread has to do, set by others (struct vcpu.events). */
enum { VCPU_NMI = 1 << 0, VCPU_INIT = 1 << 1, VCPU_SIPI = 1 << 2, VCPU_UNHALT = 1 << 3 };

/* What the thread of a vCPU that stands still does for vcpus_move(). */
enum vcpu_task { VCPU_STAY, VCPU_PREPARE, VCPU_COMMIT, VCPU_CANCEL };

struct vcpu {
	struct vcpu_set *set;
	struct lapic *lapic; /* NULL: the engine's */
	struct engine_vcpu *engine;
	pthread_t thread;
	u32 id;
	bool started; /* the thread exists */

	/* Shared with other threads. */
	atomic_uint halted; /* not inside the engine: wake by condition variable, not by kick */
	atomic_uint events; /* VCPU_* */
	atomic_uchar sipi_vector;
	pthread_mutex_t mutex; /* leaf; with @wake for sleeping in HLT */
	pthread_cond_t wake;
	_Atomic u64 tsc_offset; /* guest TSC = host TSC + this, as last seen */
	bool reset_wanted; /* take set->entry (BSP) or wait for SIPI (others) before going on; under
			      set->lock */

	enum vcpu_task task; /* under set->lock */

	/* The vCPU's thread only. */
	struct engine_vcpu *next; /* on set->next, prepared */
	bool owes; /* the exit just completed waits for the engine to take its answer */
	bool waits_for_sipi;
	bool hlt;       /* the guest executed HLT */
	u64 cr8;        /* as last agreed between engine and local APIC */
	bool unhalted;  /* the next HLT ends at once: another processor said so before it came */
	bool preempted; /* paravirt.c: the guest's record says that this vCPU sleeps */
	u64 account_ns, account_used_ns; /* ... clock and thread's time at the last accounting */
	bool tpr_changed; /* the local APIC's task priority is newer than the engine's CR8 */
	u64 exits[VCPU_EXIT_TYPES];
	u64 halt_sleeps;        /* halts that outlasted the polling */
	struct cpu_state state; /* scratch */
};

/* What vCPUs need from the machine; everything is borrowed. */
struct vcpu_env {
	const struct engine_ops *engine;
	struct engine_vm *vm;
	struct bus *bus;
	struct physmap *physmap;
	struct lapic_set *lapics; /* NULL: the engine has local APICs (struct engine_chips) */
	pthread_mutex_t *machine_lock;

	/* Called on the vCPU's thread, without locks. */
	void (*triple_fault)(void *opaque, u32 cpu);
	void (*failed)(void *opaque, u32 cpu, const char *why);
	void *opaque;
};

struct vcpu_set {
	struct vcpu_env env;
	struct vcpu_env next; /* vcpus_move(): where to */
	struct vcpu *cpu;
	u32 count;
	const struct cpu_state
		*entry; /* how the BSP starts after a reset; set while all are stopped */
	u64 tsc_start;  /* host TSC at that reset: the guest's counters start from zero there */

	pthread_mutex_t lock; /* guards what follows and vcpu.reset_wanted; leaf */
	pthread_cond_t changed;
	atomic_bool stop;  /* everybody shall park */
	atomic_uint awake; /* vCPUs that do not halt */
	u32 host_cpus;     /* that this process may use */
	bool quit;
	u32 parked;       /* threads that stand still */
	u32 failed;       /* threads that could not be set up */
	struct err error; /* of the first of them */
};

/* Create @count threads with their engine vCPUs. They are stopped. 0 or -errno with @e. */
int vcpus_create(struct vcpu_set *set, u32 count, const struct vcpu_env *env, struct err *e);

/* End the threads and free everything. The engine VM is still there. */
void vcpus_destroy(struct vcpu_set *set);

/* Ask all vCPUs to stop; does not wait. Any thread, locks may be held. */
void vcpus_request_stop(struct vcpu_set *set);

/* Wait until all vCPUs stand still, each between two instructions. Not on a vCPU's thread, no locks
 * held. */
void vcpus_stop(struct vcpu_set *set);
void vcpus_resume(struct vcpu_set *set);

/*
 * While stopped: go on with another engine, in its VM @vm on the same memory. All vCPUs' state
 * moves there, or none's: then -errno with @e, and everything is as before. Under the machine lock.
 */
int vcpus_move(struct vcpu_set *set, const struct engine_ops *engine, struct engine_vm *vm,
	       struct err *e);

/* While stopped: every vCPU starts over when resumed, the first one in state @entry (borrowed). */
void vcpus_reset(struct vcpu_set *set, const struct cpu_state *entry);

/* Local APIC hooks: @set is a struct vcpu_set. Under the machine lock. */
void vcpus_notify(void *set, u32 cpu);
void vcpus_nmi(void *set, u32 cpu);
void vcpus_init(void *set, u32 cpu);
void vcpus_sipi(void *set, u32 cpu, u8 vector);
u64 vcpus_tsc(void *set, u32 cpu);

/* End the vCPU's HLT, now or the next one, whether or not it takes interrupts. Any thread. */
void vcpus_unhalt(struct vcpu_set *set, u32 cpu);

/* Exits of all vCPUs by type, and the name of a type. */
u64 vcpus_exits(const struct vcpu_set *set, enum exit_type type);
const char *vcpu_exit_name(enum exit_type type);
