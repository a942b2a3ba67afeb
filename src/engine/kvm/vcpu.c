/*
 * vCPUs: entering the guest and telling why it was left.
 *
 * An exit that needs an answer (port, memory, MSR) is finished by the *next* KVM_RUN, which the
 * kernel begins by storing the answer in the guest. The kernel reports all elements of a string
 * instruction, or up to eight bytes at any alignment, at once; the contract wants single, aligned
 * accesses, so one of the kernel's exits becomes several of ours and only the last enters the
 * kernel again.
 *
 * Kicking. run->immediate_exit is set first: a vCPU that has not entered yet returns at once. Then,
 * if the vCPU says that it is inside, a signal gets it out. The vCPU says so before it enters; with
 * a full barrier on both sides one of the two always sees the other. A signal that comes too late
 * interrupts an entry that nobody asked to end, which is then simply repeated.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct kvm_vcpu *vcpu_of(struct engine_vcpu *vcpu)
{
	return (struct kvm_vcpu *)vcpu;
}

int kvm_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, const void *arg)
{
	int r = kvm_ioctl(v->fd, request, arg);

	kvm_count(v->vm, KVM_COUNT_CALLS);
	if (r < 0)
		v->refused = request;
	return r;
}

/* ---- kicking ---- */

static int kick_signal(void)
{
	return SIGRTMIN;
}

static void on_kick(int sig)
{
	(void)sig;
}

int kvm_kick_init(struct err *e)
{
	struct sigaction action = {.sa_handler = on_kick};

	sigemptyset(&action.sa_mask);
	if (sigaction(kick_signal(), &action, NULL))
		return err_set(e, -errno, "sigaction: %s", strerror(errno));
	return 0;
}

void kvm_vcpu_kick(struct engine_vcpu *vcpu)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);

	/* An exchange is a full barrier, for the kernel, too: see enter(). */
	__atomic_exchange_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (!atomic_load(&v->inside) || pthread_equal(v->thread, pthread_self()))
		return;
	kvm_count(v->vm, KVM_COUNT_KICKS);
	pthread_kill(v->thread, kick_signal());
}

u32 kvm_vcpu_activity(struct engine_vcpu *vcpu)
{
	return atomic_load(&vcpu_of(vcpu)->inside);
}

static bool take_kick(struct kvm_vcpu *v)
{
	return __atomic_exchange_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
}

/* ---- life ---- */

static void unblock_kicks(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, kick_signal());
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static int map_run(struct kvm_vcpu *v, struct err *e)
{
	void *p = mmap(NULL, v->vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);

	if (p == MAP_FAILED)
		return err_set(e, -errno, "mmap() of a vCPU's shared page: %s", strerror(errno));
	v->run = p;
	return 0;
}

static int start_state(struct kvm_vcpu *v, struct err *e)
{
	struct cpu_state *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	cpu_state_reset(s);
	r = kvm_state_apply(v, CPU_PART_ALL, s);
	free(s);
	return r ? err_set(e, r, "%s: a processor's reset state is refused: %s",
			   kvm_call_name(v->refused), strerror(-r))
		 : 0;
}

int kvm_vcpu_create(struct engine_vm *vm, u32 id, struct engine_vcpu **out, struct err *e)
{
	struct kvm_vcpu *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_set(e, -ENOMEM, "out of memory");
	v->vm = (struct kvm_vm *)vm;
	v->id = id;
	v->thread = pthread_self();
	unblock_kicks();
	r = v->fd = kvm_ioctl_value(v->vm->fd, KVM_CREATE_VCPU, id);
	if (r < 0)
		err_set(e, r, "KVM_CREATE_VCPU %u: %s", id, strerror(-r));
	if (r >= 0)
		r = map_run(v, e);
	if (r >= 0)
		r = kvm_cpuid_set(v, e);
	if (r >= 0) {
		kvm_msr_find_held(v);
		v->refused = 0;
		r = start_state(v, e);
	}
	if (r < 0) {
		kvm_vcpu_destroy((struct engine_vcpu *)v);
		return r;
	}
	*out = (struct engine_vcpu *)v;
	return 0;
}

void kvm_vcpu_destroy(struct engine_vcpu *vcpu)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);

	if (v->run)
		munmap(v->run, v->vm->run_size);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

/* ---- ports and memory ---- */

static u8 *pio_data(struct kvm_vcpu *v)
{
	return (u8 *)v->run + v->run->io.data_offset + (u64)v->done * v->run->io.size;
}

static void offer_pio(struct kvm_vcpu *v, struct vm_exit *x)
{
	const bool in = v->run->io.direction == KVM_EXIT_IO_IN;

	x->type = EXIT_PIO;
	x->pio.port = v->run->io.port;
	x->pio.size = v->run->io.size;
	x->pio.in = in;
	x->pio.data = 0;
	if (!in)
		memcpy(&x->pio.data, pio_data(v), x->pio.size);
}

/* The largest power of two that fits into what is left of the access and of the aligned 8 bytes. */
static u8 mmio_piece(gpa_t gpa, u32 left)
{
	u32 size = MIN(left, 8 - (u32)(gpa & 7));

	return size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
}

static void offer_mmio(struct kvm_vcpu *v, struct vm_exit *x)
{
	gpa_t gpa = v->run->mmio.phys_addr + v->done;

	v->piece = mmio_piece(gpa, v->run->mmio.len - v->done);
	x->type = EXIT_MMIO;
	x->mmio.gpa = gpa;
	x->mmio.size = v->piece;
	x->mmio.write = v->run->mmio.is_write;
	x->mmio.data = 0;
	if (x->mmio.write)
		memcpy(&x->mmio.data, v->run->mmio.data + v->done, v->piece);
}

/* Take the caller's answer to the last exit; true when the access goes on with another, in @x. */
static bool go_on(struct kvm_vcpu *v, struct vm_exit *x)
{
	struct kvm_run *run = v->run;

	switch (v->pending) {
	case KVM_PENDING_PIO:
		if (x->pio.in)
			memcpy(pio_data(v), &x->pio.data, run->io.size);
		if (++v->done < run->io.count) {
			offer_pio(v, x);
			return true;
		}
		break;
	case KVM_PENDING_MMIO:
		if (!run->mmio.is_write)
			memcpy(run->mmio.data + v->done, &x->mmio.data, v->piece);
		v->done += v->piece;
		if (v->done < run->mmio.len) {
			offer_mmio(v, x);
			return true;
		}
		break;
	case KVM_PENDING_MSR:
		run->msr.data = x->msr.value;
		run->msr.error = x->msr.fault;
		break;
	case KVM_PENDING_NONE: break;
	}
	v->pending = KVM_PENDING_NONE;
	return false;
}

static bool begin_pio(struct kvm_vcpu *v, struct vm_exit *x)
{
	v->pending = KVM_PENDING_PIO;
	v->done = 0;
	offer_pio(v, x);
	return true;
}

/* Stores to read-only memory come here and end here. */
static bool begin_mmio(struct kvm_vcpu *v, struct vm_exit *x)
{
	if (v->run->mmio.is_write && physmap_find(v->vm->physmap, v->run->mmio.phys_addr))
		return false;
	v->pending = KVM_PENDING_MMIO;
	v->done = 0;
	offer_mmio(v, x);
	return true;
}

/* ---- exits ---- */

static bool error(struct kvm_vcpu *v, struct vm_exit *x, const char *what, u64 detail)
{
	struct kvm_regs regs = {0};

	kvm_vcpu_ioctl(v, KVM_GET_REGS, &regs);
	snprintf(v->error, sizeof(v->error), "%s (%#lx) at rip %#lx", what, detail, (u64)regs.rip);
	x->type = EXIT_ERROR;
	x->error = v->error;
	return true;
}

static bool refused(struct kvm_vcpu *v, struct vm_exit *x, const char *call, int r)
{
	snprintf(v->error, sizeof(v->error), "%s: %s", call, strerror(-r));
	x->type = EXIT_ERROR;
	x->error = v->error;
	return true;
}

static bool internal_error(struct kvm_vcpu *v, struct vm_exit *x)
{
	if (v->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		return error(
			v, x,
			"KVM_EXIT_INTERNAL_ERROR: the host's KVM cannot emulate an instruction",
			v->run->internal.suberror);
	return error(v, x, "KVM_EXIT_INTERNAL_ERROR", v->run->internal.suberror);
}

static bool simple(struct vm_exit *x, enum exit_type type)
{
	x->type = type;
	return true;
}

/* Translate the kernel's exit; false when the guest can go on without the caller. */
static bool describe(struct kvm_vcpu *v, struct vm_exit *x)
{
	struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO: return begin_pio(v, x);
	case KVM_EXIT_MMIO: return begin_mmio(v, x);
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR: return !kvm_msr_exit(v, x);
	case KVM_EXIT_HLT: return simple(x, EXIT_HLT);
	case KVM_EXIT_SHUTDOWN: return simple(x, EXIT_SHUTDOWN);
	case KVM_EXIT_DEBUG: return simple(x, EXIT_DEBUG);
	case KVM_EXIT_IRQ_WINDOW_OPEN: v->window = false; return simple(x, EXIT_IRQ_WINDOW);
	/* The guest lowered CR8: an interrupt may be deliverable now. */
	case KVM_EXIT_SET_TPR: return simple(x, EXIT_KICKED);
	case KVM_EXIT_FAIL_ENTRY:
		return error(v, x, "KVM_EXIT_FAIL_ENTRY: the processor refuses the guest's state",
			     run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR: return internal_error(v, x);
	default: return error(v, x, "unexpected exit from KVM_RUN", run->exit_reason);
	}
}

static int enter(struct kvm_vcpu *v)
{
	int r;

	v->run->request_interrupt_window = v->window;
	kvm_count(v->vm, KVM_COUNT_ENTRIES);
	/* Before the kernel looks at immediate_exit: one of it and kvm_vcpu_kick() sees what the
	 * other did. */
	atomic_exchange(&v->inside, true);
	r = kvm_ioctl_value(v->fd, KVM_RUN, 0);
	atomic_store(&v->inside, false);
	v->irq_open = v->run->ready_for_interrupt_injection;
	return r;
}

int kvm_vcpu_run(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);
	int r;

	if (go_on(v, exit))
		return 0;
	for (;;) {
		r = enter(v);
		if (r == -EINTR || r == -EAGAIN) {
			if (!take_kick(v))
				continue;
			exit->type = EXIT_KICKED;
			return 0;
		}
		if (r < 0) {
			refused(v, exit, "KVM_RUN", r);
			return 0;
		}
		if (describe(v, exit))
			return 0;
	}
}

/* ---- interrupts ---- */

/* Not in the middle of an instruction: it may yet fault. */
bool kvm_vcpu_irq_ready(struct engine_vcpu *vcpu)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);

	return v->irq_open && v->pending == KVM_PENDING_NONE;
}

int kvm_vcpu_inject_irq(struct engine_vcpu *vcpu, u8 vector)
{
	struct kvm_vcpu *v = vcpu_of(vcpu);
	const struct kvm_interrupt irq = {.irq = vector};
	int r;

	if (!kvm_vcpu_irq_ready(vcpu))
		return -EBUSY;
	r = kvm_vcpu_ioctl(v, KVM_INTERRUPT, &irq);
	if (r)
		return r;
	v->irq_open = false;
	kvm_count(v->vm, KVM_COUNT_INTERRUPTS);
	return 0;
}

int kvm_vcpu_inject_nmi(struct engine_vcpu *vcpu)
{
	return kvm_vcpu_ioctl(vcpu_of(vcpu), KVM_NMI, NULL);
}

void kvm_vcpu_request_irq_window(struct engine_vcpu *vcpu)
{
	vcpu_of(vcpu)->window = true;
}
