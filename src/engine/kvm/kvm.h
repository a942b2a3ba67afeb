/*
 * Inside the kvm engine: what its files share. Nothing outside this folder includes this.
 *
 * The engine drives Linux' KVM through its device file. It uses the kernel for what the processor
 * does (execution, paging, exceptions) and for nothing else: interrupt controllers and timers are
 * the machine's, the registers that belong to the model are those of cpu/msr.c. So the kernel holds
 * only architectural state, which state_get and state_set move completely. With chips=kernel it has
 * the interrupt controllers and the 8254 as well (chips.c).
 *
 * What is needed of the host's kernel: Linux 5.10 (KVM_CAP_X86_USER_SPACE_MSR,
 * KVM_CAP_X86_MSR_FILTER).
 */
#pragma once

#include "cpu/msr.h"
#include "engine/engine.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

enum kvm_count {
	KVM_COUNT_ENTRIES,    /* KVM_RUN */
	KVM_COUNT_CALLS,      /* other system calls for a vCPU's state */
	KVM_COUNT_KICKS,      /* signals sent to bring a vCPU out of the guest */
	KVM_COUNT_INTERRUPTS, /* injected */
	KVM_COUNT_MSRS,       /* MSR accesses answered from the table */
	KVM_COUNT_LINES,      /* changes of interrupt lines told to the kernel's chips */
	KVM_COUNT_MESSAGES,   /* message-signalled interrupts, but for those by event */
	KVM_COUNTS,
};

/* A region of the physmap as the kernel knows it; @size 0: none. The index is the slot's number. */
struct kvm_slot {
	gpa_t gpa;
	u64 size;
	u8 *hva;
	u32 flags; /* PHYSMAP_* */
};

struct kvm_options {
	bool kernel_chips;
};

/* A message that an event descriptor stands for. */
struct kvm_event {
	bool used;
	int fd;
	u32 data;
	u64 address;
};

enum { KVM_CHIPS = 3 }; /* two 8259s and the I/O APIC */

/* The interrupt controllers in the kernel. */
struct kvm_chips {
	bool used;
	struct kvm_irqchip fresh[KVM_CHIPS]; /* as after power-on */
	struct kvm_pit_state2 fresh_pit;

	pthread_mutex_t lock; /* of what follows; a leaf */
	struct kvm_event *event;
	u32 events;
};

/* The device file, and what the kernel said there. */
struct kvm_host {
	int device;
	u32 paravirt; /* features of leaf 0x40000001 that it has; set by kvm_cpuid_limit() */
};

struct kvm_vm {
	struct engine_host *own_host; /* NULL: the caller's */
	int device, fd;
	struct physmap *physmap;
	struct cpuid_model *cpuid;
	u32 run_size; /* bytes of a vCPU's shared page */
	struct kvm_slot slot[PHYSMAP_MAX_REGIONS];
	u32 slots;
	struct kvm_options options;
	u32 paravirt; /* features of leaf 0x40000001 besides the model's */
	struct kvm_chips chips;

	/* Dirty log of the monitor's own stores; the kernel keeps that of the guest's. */
	atomic_bool dirty_log;
	_Atomic u64 *dirty; /* one bit per page, by physmap page index */
	u64 dirty_words;

	_Atomic u64 counter[KVM_COUNTS];
};

/* What the next call of run() has to finish first. */
enum kvm_pending {
	KVM_PENDING_NONE,
	KVM_PENDING_PIO,  /* done of run->io.count elements */
	KVM_PENDING_MMIO, /* done of run->mmio.len bytes */
	KVM_PENDING_MSR,
};

enum { KVM_MSRS_MAX = 16 };

struct kvm_vcpu {
	struct kvm_vm *vm;
	struct kvm_run *run; /* shared with the kernel */
	u32 id;
	int fd;
	pthread_t thread;
	atomic_bool inside; /* in KVM_RUN, or about to be */

	enum kvm_pending pending;
	u32 done;
	u8 piece;      /* bytes of the MMIO exit at hand */
	bool window;   /* return once interrupts are open */
	bool irq_open; /* they were, when the vCPU was last looked at */

	struct cpu_msrs msr;    /* those of the table; the kernel's are stale here */
	u64 tsc_offset;         /* guest TSC = host TSC + this */
	bool has_tsc_offset;    /* the kernel takes the offset itself, exactly */
	u32 held[KVM_MSRS_MAX]; /* the registers of kvm_held_msrs that this kernel has */
	u32 helds;
	unsigned long refused; /* the call that failed last; 0 once it was said */
	char error[128];       /* text of EXIT_ERROR */
};

/* ioctl() that returns -errno. */
int kvm_ioctl(int fd, unsigned long request, const void *arg);
int kvm_ioctl_value(int fd, unsigned long request, unsigned long value);
/* The same on a vCPU, counted. Not for KVM_RUN. */
int kvm_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, const void *arg);

/* calls.c: a vCPU's call, for messages. */
const char *kvm_call_name(unsigned long request);

static inline void kvm_count(struct kvm_vm *vm, enum kvm_count what)
{
	atomic_fetch_add_explicit(&vm->counter[what], 1, memory_order_relaxed);
}

/* memory.c */
int kvm_memory_update(struct engine_vm *vm, struct err *e);
int kvm_dirty_log(struct engine_vm *vm, bool on);
int kvm_dirty_fetch(struct engine_vm *vm, u32 region, u64 *bitmap);
int kvm_doorbell(struct engine_vm *vm, gpa_t gpa, int fd, bool on);
void kvm_memory_written(void *vm, gpa_t gpa, u64 len);

/* options.c: @text may be NULL. 0, or -EINVAL with what is wrong in @e. */
int kvm_options_parse(const char *text, struct kvm_options *o, struct err *e);

/* chips.c: for a new VM without vCPUs. What is there when this fails, destroying gives back. */
int kvm_chips_create(struct kvm_vm *vm, struct err *e);
void kvm_chips_destroy(struct kvm_vm *vm);
const struct engine_chips *kvm_chips(struct engine_vm *vm);

/* cpuid.c: take from @m what the kernel cannot do, and add what mitigates for real. */
int kvm_cpuid_limit(struct kvm_host *host, struct cpuid_model *m, struct err *e);
int kvm_cpuid_set(struct kvm_vcpu *v, struct err *e);
/* Which features of leaf 0x40000001 @vm offers of those that the kernel has. */
u32 kvm_cpuid_paravirt(const struct kvm_vm *vm, const struct kvm_host *host);
/* Are guests offered what the kernel does for those that know about it? No other engine could go on
 * with them. */
bool kvm_has_paravirt(const struct kvm_vm *vm);

/* msr.c */
int kvm_msr_filter(struct kvm_vm *vm, struct err *e);
void kvm_msr_find_held(struct kvm_vcpu *v);
/* Answer the MSR exit at hand. False: it belongs to the machine, @exit is filled in. */
bool kvm_msr_exit(struct kvm_vcpu *v, struct vm_exit *exit);
int kvm_msr_get(struct kvm_vcpu *v, struct cpu_msrs *m);
int kvm_msr_put(struct kvm_vcpu *v, const struct cpu_msrs *m);
void kvm_tsc_get(const struct kvm_vcpu *v, struct cpu_msrs *m);
int kvm_tsc_put(struct kvm_vcpu *v, const struct cpu_msrs *m);

/* apic.c: the kernel's local APIC, CPU_PART_APIC. */
int kvm_apic_get(struct kvm_vcpu *v, struct cpu_apic *a);
int kvm_apic_set(struct kvm_vcpu *v, const struct cpu_apic *a);

/* state.c: with kvm_state_apply() the caller says what failed (kvm_vcpu.refused). */
int kvm_state_apply(struct kvm_vcpu *v, u32 parts, const struct cpu_state *s);
int kvm_state_get(struct engine_vcpu *vcpu, u32 parts, struct cpu_state *s);
int kvm_state_set(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s);

/* vcpu.c */
int kvm_vcpu_create(struct engine_vm *vm, u32 id, struct engine_vcpu **out, struct err *e);
void kvm_vcpu_destroy(struct engine_vcpu *vcpu);
int kvm_vcpu_run(struct engine_vcpu *vcpu, struct vm_exit *exit);
void kvm_vcpu_kick(struct engine_vcpu *vcpu);
u32 kvm_vcpu_activity(struct engine_vcpu *vcpu);
bool kvm_vcpu_irq_ready(struct engine_vcpu *vcpu);
int kvm_vcpu_inject_irq(struct engine_vcpu *vcpu, u8 vector);
int kvm_vcpu_inject_nmi(struct engine_vcpu *vcpu);
void kvm_vcpu_request_irq_window(struct engine_vcpu *vcpu);
/* The signal that brings a vCPU out of the guest does nothing else. Once per process is enough. */
int kvm_kick_init(struct err *e);
