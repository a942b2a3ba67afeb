/*
 * The engine contract: what executes guest instructions.
 *
 * An engine owns vCPUs and runs them until something outside the CPU is needed; run() then
 * *returns* a typed exit, it does not call devices. The caller completes the exit (fills in read
 * data) and calls run() again. Every hook is present in every engine.
 *
 * Threads: one thread per vCPU. vcpu_create, run, state_get, state_set, inject and vcpu_destroy are
 * called on that thread, in that order; kick may come from any thread and from a signal handler.
 * While a vCPU is not inside run(), another thread may call state_get on it.
 */
#pragma once

#include "base/err.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "memory/physmap.h"

struct engine_host;
struct engine_vm;
struct populate;
struct sandbox_list;
struct engine_vcpu;

enum exit_type {
	EXIT_NONE,  /* kick without a reason worth naming, or an instruction budget ran out */
	EXIT_PIO,   /* IN, OUT, INS, OUTS: see vm_exit.pio */
	EXIT_MMIO,  /* access to a gpa that is not RAM: see vm_exit.mmio */
	EXIT_RDMSR, /* MSR that belongs to the machine (local APIC, TSC deadline) */
	EXIT_WRMSR,
	EXIT_HYPERCALL,  /* VMCALL or VMMCALL with the hypervisor leaf present */
	EXIT_HLT,        /* the guest waits for an interrupt */
	EXIT_SHUTDOWN,   /* triple fault */
	EXIT_IRQ_WINDOW, /* asked for with request_irq_window, and open now */
	EXIT_DEBUG,      /* single step or breakpoint owned by the debugger */
	EXIT_KICKED,     /* kick() was called */
	EXIT_ERROR,      /* the engine cannot go on; vm_exit.error says why */
};

struct vm_exit {
	enum exit_type type;
	union {
		struct {
			u16 port;
			u8 size; /* 1, 2 or 4 bytes */
			bool in; /* IN or INS: the caller stores to data */
			u32 data;
		} pio; /* string forms exit once per element */
		struct {
			gpa_t gpa;
			u8 size; /* 1, 2, 4 or 8 bytes, never across an 8-byte boundary */
			bool write;
			u64 data; /* little endian; read: the caller stores here */
		} mmio;
		struct {
			u32 index;
			u64 value;  /* RDMSR: the caller stores here */
			bool fault; /* the caller sets this to raise #GP(0) */
		} msr;
		struct {
			u64 nr, arg[4];
			u64 result; /* the caller stores here */
		} hypercall;
		const char *error; /* valid until the next run() */
	};
};

/* Called by the engine on the vCPU's thread for a new or changed memory layout. */
struct engine_config {
	/* Borrowed, outlives the VM; @cpuid has been through cpuid_limit() with it, if anybody asks
	 * what is in it. NULL: the VM opens its own, and limits. */
	struct engine_host *host;
	struct physmap *physmap;   /* borrowed; outlives the VM */
	struct cpuid_model *cpuid; /* borrowed; outlives the VM */
	const char *options;       /* see engine_ops.check_options; NULL: none */
	/* Where files may be kept from run to run; "": there is no such place, but files may be
	 * opened; NULL: open no files. */
	const char *cache_dir;
	struct populate *populate; /* borrowed, outlives the VM; NULL: there is none */
};

/*
 * Acceleration: interrupt controllers of the engine's own. A VM that has them has all of a PC's, at
 * their usual places: two 8259s, an I/O APIC, a local APIC for each vCPU (CPU_PART_APIC of its
 * state), and an 8254 with port 61H. It answers accesses to them itself, delivers their interrupts,
 * halts, and takes INIT and SIPI; there is no EXIT_HLT or EXIT_IRQ_WINDOW, and irq_ready,
 * inject_irq and request_irq_window are not for use.
 *
 * The hooks may be called from any thread, also while vCPUs run.
 */
struct engine_chips {
	/*
	 * Drive input @gsi of the I/O APIC and, if it is below 16, of the 8259s. The 8254 has
	 * input 0 of these and input 2 of the I/O APIC for itself.
	 */
	void (*set_line)(struct engine_vm *vm, u32 gsi, bool level);

	/* Deliver the interrupt that a store of @data to @address asks for (SDM vol. 3, 11.11). */
	void (*send_msi)(struct engine_vm *vm, u64 address, u32 data);

	/*
	 * From now on (@on) each event on descriptor @fd delivers such an interrupt; another one,
	 * if @fd had one already. Or no longer, to be said before @fd is closed. 0, or -errno, and
	 * then @fd delivers nothing.
	 */
	int (*msi_event)(struct engine_vm *vm, int fd, u64 address, u32 data, bool on);

	/*
	 * All but the local APICs as after power-on; inputs are low. No vCPU is inside run(). 0, or
	 * -errno with @e.
	 */
	int (*reset)(struct engine_vm *vm, struct err *e);
};

enum engine_unit { UNIT_COUNT, UNIT_BYTES, UNIT_NS };

/* One row of counters an engine reports; names are stable and used in --json output. */
struct engine_counter {
	const char *name;
	u64 value;
	enum engine_unit unit;
	const char *group; /* NULL: the engine's own */
};

struct engine_ops {
	const char *name;
	/* System calls of a running guest beyond those every thread may make; NULL: none. */
	const struct sandbox_list *sandbox;
	/* ... and those of vm_create() and vcpu_create(), for who calls them when a guest has run.
	 */
	const struct sandbox_list *sandbox_create;

	/*
	 * Hypercalls come out as EXIT_HYPERCALL and the paravirtual registers are those of
	 * cpu_msrs, so that the machine can offer guests what machine/paravirt.h does.
	 */
	bool paravirt;

	/* Guest RAM should be in a file, so that it can be mapped again: see physmap_share(). */
	bool maps_ram;

	/*
	 * Are these options, "key=value,...", such that vm_create() takes them? -EINVAL and what is
	 * wrong in @e; each engine has its own, documented in docs/engines.md.
	 */
	int (*check_options)(const char *options, struct err *e);

	/*
	 * The calling thread runs no vCPU of this engine, now or before: what is thread-local here
	 * need not take memory, which the C library populates by clearing it.
	 */
	void (*trim_thread)(void);

	/* Can this host run it? 0, or -errno and what is missing in @e. No lasting side effects. */
	int (*probe)(struct err *e);

	/* What vm_create() needs of the host and cannot be opened any more once a guest runs. */
	int (*host_open)(struct engine_host **host, struct err *e);
	void (*host_close)(struct engine_host *host);

	/* Take from @m what the engine cannot do on this host. Doing it again changes nothing. */
	int (*cpuid_limit)(struct engine_host *host, struct cpuid_model *m, struct err *e);

	/*
	 * The guest's memory may have any content. vm_create() limits config->cpuid, too. Two
	 * engines may have a VM each on one physmap, as long as only one runs.
	 */
	int (*vm_create)(const struct engine_config *config, struct engine_vm **vm, struct err *e);
	void (*vm_destroy)(struct engine_vm *vm);

	/*
	 * Regions were added to the physmap. No vCPU may be inside run(). A dirty log that is on
	 * keeps what it has, and watches the new pages, too.
	 */
	int (*memory_update)(struct engine_vm *vm, struct err *e);

	/*
	 * Dirty log: start or stop it; fetch and clear one bit per page of region @region into
	 * @bitmap, -EINVAL while there is none. No page that was written is missing; a page that
	 * was only read may be there, once.
	 */
	int (*dirty_log)(struct engine_vm *vm, bool on);
	int (*dirty_fetch)(struct engine_vm *vm, u32 region, u64 *bitmap);

	/*
	 * Acceleration: begin (@on) or end to signal event descriptor @fd for each store of the
	 * guest at @gpa, of whatever width, instead of leaving run() with EXIT_MMIO. 0, or
	 * -errno when the engine does not; then such stores remain exits. Any thread.
	 */
	int (*doorbell)(struct engine_vm *vm, gpa_t gpa, int fd, bool on);

	/* The interrupt controllers of this VM, or NULL: it has none, the machine's are used. */
	const struct engine_chips *(*chips)(struct engine_vm *vm);

	/* The monitor stored to guest RAM (DMA): translated code there is stale. Any thread. */
	void (*code_written)(struct engine_vm *vm, gpa_t gpa, u64 len);

	/* On the vCPU's own thread; starts in the reset state of cpu_state_reset(). */
	int (*vcpu_create)(struct engine_vm *vm, u32 id, struct engine_vcpu **vcpu, struct err *e);
	void (*vcpu_destroy)(struct engine_vcpu *vcpu);

	/*
	 * Complete the previous exit, run, describe the next exit. 0, or -errno when the engine
	 * failed. After EXIT_KICKED, EXIT_HLT and EXIT_IRQ_WINDOW the CPU stands between two
	 * instructions; after an exit that wants an answer it does not, and a state taken then
	 * starts the instruction over.
	 */
	int (*run)(struct engine_vcpu *vcpu, struct vm_exit *exit);

	/* Make run() return EXIT_KICKED soon; if it is not running, the next run() returns at once.
	 */
	void (*kick)(struct engine_vcpu *vcpu);

	/* Move the parts in @parts (CPU_PART_*). state_set returns -EINVAL for values no CPU can
	 * hold. CPU_PART_APIC is left alone by a VM without chips(). */
	int (*state_get)(struct engine_vcpu *vcpu, u32 parts, struct cpu_state *s);
	int (*state_set)(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s);

	/* True when an external interrupt could be delivered before the next instruction. */
	bool (*irq_ready)(struct engine_vcpu *vcpu);
	/* Deliver external interrupt @vector before the next instruction; only when irq_ready(). */
	int (*inject_irq)(struct engine_vcpu *vcpu, u8 vector);
	/* Latch an NMI; delivered when not blocked. */
	int (*inject_nmi)(struct engine_vcpu *vcpu);
	/* Return EXIT_IRQ_WINDOW as soon as irq_ready() becomes true. One-shot. */
	void (*request_irq_window)(struct engine_vcpu *vcpu);

	/* Fill up to @max counters, return how many there are. Any thread; values may be slightly
	 * old. */
	u32 (*counters)(struct engine_vm *vm, struct engine_counter *out, u32 max);

	/*
	 * What a vCPU is at, for those who look every now and then: an index of @activities, which
	 * ends with NULL. Index 0 is being outside of run(). Any thread, while the vCPU exists.
	 */
	const char *const *activities;
	u32 (*activity)(struct engine_vcpu *vcpu);
};

/* In order of preference; ends with NULL. */
extern const struct engine_ops *const engines[];

/* trim_thread() of all engines but @used, which may be NULL. */
void engines_trim_thread(const struct engine_ops *used);

/* The engine called @name, or NULL. */
const struct engine_ops *engine_by_name(const char *name);
