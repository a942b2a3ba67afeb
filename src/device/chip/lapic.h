/*
 * Local APICs: one per vCPU, as xAPIC at IA32_APIC_BASE and as x2APIC in MSRs 0x800-0x8ff.
 *
 * The vCPU's own thread sends its MMIO and MSR accesses here directly (each CPU sees its own APIC
 * at the same address, so the bus cannot). Interrupts arrive as MSI messages or as IPIs; both go
 * through destination matching and end as a bit in IRR. The vCPU thread asks
 * lapic_highest_pending() before it enters the guest and takes the vector with lapic_accept().
 *
 * References: SDM vol. 3, chapter 11 (APIC) in the numbering of December 2022 and later.
 *
 * Threads: every function under the machine lock, except lapic_attention(), which any thread may
 * call, and the timer callback, which takes the lock itself.
 */
#pragma once

#include "base/err.h"
#include "device/device.h"
#include "host/loop.h"

#include <pthread.h>

enum {
	LAPIC_MAX = 64,
	LAPIC_SIZE = 0x1000,
	LAPIC_VERSION = 0x14,             /* integrated APIC */
	LAPIC_TIMER_HZ = 1000000000,      /* APIC timer input clock, before the divider */
	LAPIC_LINT0_BY_FIRMWARE = 7 << 8, /* ExtINT: what the first one's LINT0 does at first */
	LAPIC_VECTOR_NONE = -1,
	LAPIC_EXTINT =
		256, /* lapic_highest_pending(): the 8259's interrupt; its vector comes with INTA */
};

#define LAPIC_DEFAULT_BASE 0xfee00000ul

/* IA32_APIC_BASE, SDM vol. 3, 11.4.4 */
#define APIC_BASE_BSP  BIT(8)
#define APIC_BASE_EXTD BIT(10)
#define APIC_BASE_EN   BIT(11)

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct lapic_set;

struct lapic {
	/* Guest-visible. */
	u32 id;   /* APIC id, equal to the vCPU's index */
	u64 base; /* IA32_APIC_BASE */
	u32 tpr, svr, ldr, dfr;
	u32 esr;         /* as last latched by a write */
	u32 esr_pending; /* errors since */
	u32 icr_low, icr_high;
	u32 lvt[LVT_COUNT];
	u32 isr[8], irr[8], tmr[8];
	u32 timer_initial, timer_divide;
	u64 tsc_deadline;   /* IA32_TSC_DEADLINE; 0: disarmed */
	bool wait_for_sipi; /* after INIT, until SIPI */
	bool extint;        /* ExtINT message (not the LINT0 pin) waiting */
	u64 timer_left_ns;  /* saved form of timer_ns: time to the next expiry, 0: not armed */
	u64 pv_eoi;         /* MSR_KVM_PV_EOI_EN */

	/* Derived. */
	bool pv_eoi_offered; /* the guest may have ended the interrupt in service; never saved */
	u64 eoi_writes, eoi_quiet; /* interrupts ended by the register, and through memory */
	u32 ppr;
	/* Atomic: lapic_highest_pending() may be other than -1, or will be when the offered end of
	 * an interrupt is settled. */
	u32 attention;
	u64 timer_ns; /* host_clock_ns() of the next expiry; 0: none */
	u64 armed_ns; /* deadline the loop's timer is armed for, never later than timer_ns; 0: not
			 armed */
	struct loop_timer timer;
	struct lapic_set *set;
};

struct lapic_ops {
	/* Something may have become deliverable on @cpu: interrupt its run() or wake it from HLT.
	 * Also called on @cpu's own thread for a self IPI; it may then do nothing, since that
	 * thread looks again before it enters the guest. */
	void (*notify)(void *opaque, u32 cpu);
	void (*nmi)(void *opaque, u32 cpu);
	void (*init)(void *opaque,
		     u32 cpu); /* INIT: the CPU resets, then waits for SIPI unless it is the BSP */
	void (*sipi)(void *opaque, u32 cpu, u8 vector); /* start at vector << 12 in real mode */
	u64 (*tsc)(void *opaque, u32 cpu);              /* guest TSC now */
	void (*eoi)(void *opaque,
		    u8 vector);     /* level-triggered interrupt completed: tell the I/O APIC */
	u8 (*intack)(void *opaque); /* INTA cycle at the 8259 */
	void *opaque;
};

struct lapic_set {
	struct lapic cpu[LAPIC_MAX];
	u32 count;
	struct lapic_ops ops;
	u64 tsc_hz;
	bool lint0;  /* level of the 8259's INTR output, wired to LINT0 of all */
	u32 arbiter; /* where the search for a lowest-priority target starts */
	struct loop *loop;
	pthread_mutex_t *machine_lock;
};

/* State of one struct lapic, and of what the set shares. */
extern const struct device_ops lapic_device_ops;
extern const struct device_ops lapic_set_device_ops;

/* @count local APICs, in reset state. All of @ops must be set. */
int lapic_set_init(struct lapic_set *set, u32 count, const struct lapic_ops *ops, u64 tsc_hz,
		   struct loop *loop, pthread_mutex_t *machine_lock, struct err *e);
void lapic_set_destroy(struct lapic_set *set);
void lapic_set_reset(struct lapic_set *set);

/* Deliver a message-signalled interrupt (SDM vol. 3, 11.11). Fits msi_sink.send. */
void lapic_deliver_msi(void *set, u64 address, u32 data);

/* LINT0 pin of all local APICs: the 8259's INTR. Fits struct irq_line. */
void lapic_set_lint0(void *set, u32 pin, bool level);

/* LINT1 pin of all local APICs: the board's NMI button. A rising edge each call. */
void lapic_pulse_lint1(struct lapic_set *set);

/* For the vCPU's thread. -------------------------------------------------- */

/* True when @gpa lies in this CPU's xAPIC page. */
bool lapic_claims(const struct lapic *l, gpa_t gpa);

/* MMIO at offset @off (0..0xfff) of the page; @size 1, 2, 4 or 8. */
u64 lapic_mmio_read(struct lapic *l, u32 off, u32 size);
void lapic_mmio_write(struct lapic *l, u32 off, u32 size, u64 value);

/* MSRs IA32_APIC_BASE, IA32_TSC_DEADLINE, MSR_KVM_PV_EOI_EN and 0x800-0x8ff. False means #GP(0). */
bool lapic_msr_read(struct lapic *l, u32 index, u64 *value);
bool lapic_msr_write(struct lapic *l, u32 index, u64 value);

/* CR8 and the task priority are one register (SDM vol. 3, 11.8.6). */
void lapic_set_cr8(struct lapic *l, u64 cr8);
u64 lapic_get_cr8(const struct lapic *l);

/* The vector that would be delivered now, LAPIC_EXTINT, or LAPIC_VECTOR_NONE. Honours PPR. */
int lapic_highest_pending(struct lapic *l);

/* Take it: INTA at the 8259, or IRR to ISR. Returns the vector, or LAPIC_VECTOR_NONE. */
int lapic_accept(struct lapic *l);

/*
 * The end of an interrupt through guest memory (MSR_KVM_PV_EOI_EN; Linux,
 * Documentation/virt/kvm/x86/msr.rst), the half that needs no memory: machine/paravirt.c has the
 * other. A set bit in the guest's word says that the EOI register need not be written; the guest
 * clears it instead, and what it then ends is the interrupt highest in service.
 *
 * lapic_offer_eoi() says whether that may be so now. Nothing may hang on the end of the interrupt:
 * no other one waits, and no I/O APIC has to be told. From then on any arrival draws the attention
 * of the vCPU, whose thread has to call lapic_settle_eoi() before it does anything else with this
 * local APIC, with what the guest's word said.
 */
bool lapic_offer_eoi(struct lapic *l);
void lapic_settle_eoi(struct lapic *l, bool ended);

/* Where the guest's word is; valid while pv_eoi enables it. */
gpa_t lapic_eoi_word(const struct lapic *l);

/* Without the lock: false means that there is nothing to accept. */
static inline bool lapic_attention(const struct lapic *l)
{
	return __atomic_load_n(&l->attention, __ATOMIC_ACQUIRE);
}

/* host_clock_ns() of the timer's next expiry, or ~0. A halted vCPU may sleep until then. */
u64 lapic_timer_deadline(const struct lapic *l);

/* Expire the timer now if it is due, so that a waking vCPU need not wait for the event loop. */
void lapic_timer_poll(struct lapic *l);

/* The guest's TSC was written or adjusted: the deadline maps to another moment. */
void lapic_tsc_changed(struct lapic *l);
