/*
 * The kvm engine: what the host offers, and virtual machines. See kvm.h.
 */
#include "engine/kvm/kvm.h"

#include "host/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* With real mode emulated by a virtual-8086 task (VMX without unrestricted guests), the kernel
 * needs four pages that the guest does not: below the flash, where no machine has RAM. */
enum { IDENTITY_MAP = 0xfffbc000, TSS_PAGES = 0xfffbd000 };

static const char device_path[] = "/dev/kvm";

static const int kvm_calls[] = {SYS_ioctl, SYS_tgkill, SYS_rt_sigreturn, SYS_getpid};
static const struct sandbox_list kvm_sandbox = {"kvm", kvm_calls, ARRAY_SIZE(kvm_calls)};

int kvm_ioctl(int fd, unsigned long request, const void *arg)
{
	int r = ioctl(fd, request, arg);

	return r < 0 ? -errno : r;
}

int kvm_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	int r = ioctl(fd, request, value);

	return r < 0 ? -errno : r;
}

static struct kvm_vm *vm_of(struct engine_vm *vm)
{
	return (struct kvm_vm *)vm;
}

/* ---- what the host offers ---- */

static const struct {
	int number;
	const char *name;
} needed[] = {
	{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
	{KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
	{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
	{KVM_CAP_XCRS, "KVM_CAP_XCRS"},
	{KVM_CAP_USER_NMI, "KVM_CAP_USER_NMI"},
	{KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
	{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
	{KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"},
	{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"},
};

static int open_device(struct err *e)
{
	int fd = open(device_path, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	switch (errno) {
	case EACCES:
	case EPERM:
		return err_set(e, -EACCES,
			       "no permission to open %s: join the group that owns it (usually "
			       "'adduser USER kvm', then log in again)",
			       device_path);
	case ENOENT:
		return err_set(
			e, -ENOENT,
			"there is no %s: virtualization is off in the firmware, not offered by "
			"the outer hypervisor, or the module kvm_intel or kvm_amd is not loaded",
			device_path);
	case ENODEV:
	case ENXIO:
		return err_set(e, -ENODEV, "%s exists, but the kernel has no KVM behind it",
			       device_path);
	default: return err_set(e, -errno, "cannot open %s: %s", device_path, strerror(errno));
	}
}

static int check_device(int device, struct err *e)
{
	int version = kvm_ioctl_value(device, KVM_GET_API_VERSION, 0);

	if (version != KVM_API_VERSION)
		return err_set(e, -ENOTSUP, "%s is not KVM of API version %d (KVM_GET_API_VERSION)",
			       device_path, KVM_API_VERSION);
	for (u32 i = 0; i < ARRAY_SIZE(needed); i++)
		if (kvm_ioctl_value(device, KVM_CHECK_EXTENSION, (unsigned long)needed[i].number) <=
		    0)
			return err_set(e, -ENOTSUP,
				       "the host's kernel lacks %s (Linux 5.10 and later have it)",
				       needed[i].name);
	return 0;
}

static struct kvm_host *host_of(struct engine_host *host)
{
	return (struct kvm_host *)host;
}

static void kvm_host_close(struct engine_host *host)
{
	if (!host)
		return;
	close(host_of(host)->device);
	free(host);
}

static int kvm_host_open(struct engine_host **out, struct err *e)
{
	struct kvm_host *host = calloc(1, sizeof(*host));
	int r;

	if (!host)
		return err_set(e, -ENOMEM, "out of memory");
	r = host->device = open_device(e);
	if (r < 0) {
		free(host);
		return r;
	}
	r = check_device(host->device, e);
	if (r)
		kvm_host_close((struct engine_host *)host);
	else
		*out = (struct engine_host *)host;
	return r;
}

static int kvm_probe(struct err *e)
{
	struct engine_host *host = NULL;
	int r = kvm_host_open(&host, e);

	kvm_host_close(host);
	return r;
}

static int kvm_limit(struct engine_host *host, struct cpuid_model *m, struct err *e)
{
	return kvm_cpuid_limit(host_of(host), m, e);
}

/* ---- virtual machines ---- */

static int failed(struct err *e, int r, const char *what)
{
	return err_set(e, r, "%s: %s", what, strerror(-r));
}

static int enable_user_msrs(int vm, struct err *e)
{
	const struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args = {KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN |
			 KVM_MSR_EXIT_REASON_FILTER},
	};
	int r = kvm_ioctl(vm, KVM_ENABLE_CAP, &cap);

	return r < 0 ? failed(e, r, "KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)") : 0;
}

static int create_fd(int device, struct err *e)
{
	int fd;

	/* A signal may hit while the kernel allocates. */
	do
		fd = kvm_ioctl_value(device, KVM_CREATE_VM, 0);
	while (fd == -EINTR);
	if (fd == -EBUSY)
		return err_set(e, fd, "KVM_CREATE_VM: another hypervisor uses the processor");
	return fd < 0 ? failed(e, fd, "KVM_CREATE_VM") : fd;
}

static int set_up(struct kvm_vm *vm, struct err *e)
{
	const u64 identity_map = IDENTITY_MAP;
	int r = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);

	if (r < 0)
		return failed(e, r, "KVM_SET_IDENTITY_MAP_ADDR");
	r = kvm_ioctl_value(vm->fd, KVM_SET_TSS_ADDR, TSS_PAGES);
	if (r < 0)
		return failed(e, r, "KVM_SET_TSS_ADDR");
	r = enable_user_msrs(vm->fd, e);
	if (!r)
		r = kvm_msr_filter(vm, e);
	if (!r && vm->options.kernel_chips)
		r = kvm_chips_create(vm, e);
	if (r)
		return r;
	r = kvm_ioctl_value(vm->device, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (r < (int)sizeof(struct kvm_run))
		return failed(e, r < 0 ? r : -EINVAL, "KVM_GET_VCPU_MMAP_SIZE");
	vm->run_size = (u32)r;
	return kvm_memory_update((struct engine_vm *)vm, e);
}

static void vm_free(struct kvm_vm *vm)
{
	kvm_chips_destroy(vm);
	if (vm->fd >= 0)
		close(vm->fd);
	kvm_host_close(vm->own_host);
	free((void *)vm->dirty);
	free(vm);
}

/* Its resources; what is there when this fails, vm_free() gives back. */
static int vm_init(struct kvm_vm *vm, struct engine_host *host, struct err *e)
{
	int r = host ? 0 : kvm_host_open(&vm->own_host, e);

	if (r)
		return r;
	if (!host)
		r = kvm_cpuid_limit(host_of(vm->own_host), vm->cpuid, e);
	if (!r)
		r = kvm_kick_init(e);
	if (r)
		return r;
	vm->device = host_of(host ? host : vm->own_host)->device;
	vm->paravirt = kvm_cpuid_paravirt(vm, host_of(host ? host : vm->own_host));
	r = vm->fd = create_fd(vm->device, e);
	return r < 0 ? r : set_up(vm, e);
}

static int kvm_vm_create(const struct engine_config *config, struct engine_vm **out, struct err *e)
{
	struct kvm_vm *vm = calloc(1, sizeof(*vm));
	int r;

	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	vm->physmap = config->physmap;
	vm->cpuid = config->cpuid;
	vm->fd = -1;
	r = kvm_options_parse(config->options, &vm->options, e);
	if (!r)
		r = vm_init(vm, config->host, e);
	if (r) {
		vm_free(vm);
		return r;
	}
	physmap_listen(vm->physmap,
		       (struct physmap_listener){.written = kvm_memory_written, .opaque = vm});
	*out = (struct engine_vm *)vm;
	return 0;
}

static void kvm_vm_destroy(struct engine_vm *vm)
{
	physmap_unlisten(vm_of(vm)->physmap, vm);
	vm_free(vm_of(vm));
}

/* The processor watches its own code. */
static void kvm_code_written(struct engine_vm *vm, gpa_t gpa, u64 len)
{
	kvm_memory_written(vm, gpa, len);
}

static u32 kvm_counters(struct engine_vm *vm, struct engine_counter *out, u32 max)
{
	static const char *const names[KVM_COUNTS] = {
		[KVM_COUNT_ENTRIES] = "entries",
		[KVM_COUNT_CALLS] = "state_calls",
		[KVM_COUNT_KICKS] = "kick_signals",
		[KVM_COUNT_INTERRUPTS] = "interrupts",
		[KVM_COUNT_MSRS] = "msrs_from_table",
		[KVM_COUNT_LINES] = "interrupt_lines",
		[KVM_COUNT_MESSAGES] = "interrupt_messages",
	};
	u32 n;

	for (n = 0; n < KVM_COUNTS && n < max; n++)
		out[n] = (struct engine_counter){.name = names[n],
						 .value = atomic_load(&vm_of(vm)->counter[n])};
	return n;
}

static const char *const activities[] = {"outside", "guest", NULL};

/* Nothing is thread-local. */
static void kvm_trim_thread(void)
{
}

static int kvm_check_options(const char *options, struct err *e)
{
	struct kvm_options o;

	return kvm_options_parse(options, &o, e);
}

extern const struct engine_ops kvm_engine;

const struct engine_ops kvm_engine = {
	.name = "kvm",
	.sandbox = &kvm_sandbox,
	.check_options = kvm_check_options,
	.trim_thread = kvm_trim_thread,
	.probe = kvm_probe,
	.host_open = kvm_host_open,
	.host_close = kvm_host_close,
	.cpuid_limit = kvm_limit,
	.vm_create = kvm_vm_create,
	.vm_destroy = kvm_vm_destroy,
	.memory_update = kvm_memory_update,
	.dirty_log = kvm_dirty_log,
	.dirty_fetch = kvm_dirty_fetch,
	.doorbell = kvm_doorbell,
	.chips = kvm_chips,
	.code_written = kvm_code_written,
	.vcpu_create = kvm_vcpu_create,
	.vcpu_destroy = kvm_vcpu_destroy,
	.run = kvm_vcpu_run,
	.kick = kvm_vcpu_kick,
	.state_get = kvm_state_get,
	.state_set = kvm_state_set,
	.irq_ready = kvm_vcpu_irq_ready,
	.inject_irq = kvm_vcpu_inject_irq,
	.inject_nmi = kvm_vcpu_inject_nmi,
	.request_irq_window = kvm_vcpu_request_irq_window,
	.counters = kvm_counters,
	.activities = activities,
	.activity = kvm_vcpu_activity,
};
