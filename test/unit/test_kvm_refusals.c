/*
 * What is said when the kernel refuses a call: each failure names it, and the capability that it
 * needs. 77: no KVM here.
 *
 * A filter of system calls makes one ioctl fail, in a process of its own, which sets up a VM, a
 * vCPU and runs it.
 */
#include "engine_guest.h"

#include <errno.h>
#include <linux/kvm.h>
#include <seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct refusal {
	unsigned long request;
	const char *says;
	const char *options;
};

static const char chips[] = "chips=kernel";

static const struct refusal refusals[] = {
	{KVM_GET_API_VERSION, "KVM_GET_API_VERSION", NULL},
	{KVM_CHECK_EXTENSION, "KVM_CAP_USER_MEMORY", NULL},
	{KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID", NULL},
	{KVM_CREATE_VM, "KVM_CREATE_VM", NULL},
	{KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", NULL},
	{KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", NULL},
	{KVM_ENABLE_CAP, "KVM_CAP_X86_USER_SPACE_MSR", NULL},
	{KVM_X86_SET_MSR_FILTER, "KVM_X86_SET_MSR_FILTER", NULL},
	{KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", NULL},
	{KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", NULL},
	{KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP (KVM_CAP_IRQCHIP)", chips},
	{KVM_SET_GSI_ROUTING, "KVM_SET_GSI_ROUTING (KVM_CAP_IRQ_ROUTING)", chips},
	{KVM_CREATE_PIT2, "KVM_CREATE_PIT2 (KVM_CAP_PIT2)", chips},
	{KVM_REINJECT_CONTROL, "KVM_REINJECT_CONTROL (KVM_CAP_REINJECT_CONTROL)", chips},
	{KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP (KVM_CAP_IRQCHIP)", chips},
	{KVM_GET_PIT2, "KVM_GET_PIT2 (KVM_CAP_PIT_STATE2)", chips},
	{KVM_CREATE_VCPU, "KVM_CREATE_VCPU", NULL},
	{KVM_SET_CPUID2, "KVM_SET_CPUID2", NULL},
	{KVM_GET_SREGS, "KVM_GET_SREGS", NULL},
	{KVM_SET_SREGS, "KVM_SET_SREGS", NULL},
	{KVM_SET_XCRS, "KVM_SET_XCRS (KVM_CAP_XCRS)", NULL},
	{KVM_SET_REGS, "KVM_SET_REGS", NULL},
	{KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS (KVM_CAP_DEBUGREGS)", NULL},
	{KVM_SET_MSRS, "KVM_SET_MSRS", NULL},
	{KVM_SET_XSAVE, "KVM_SET_XSAVE (KVM_CAP_XSAVE)", NULL},
	{KVM_SET_LAPIC, "KVM_SET_LAPIC (KVM_CAP_IRQCHIP)", chips},
	{KVM_SET_MP_STATE, "KVM_SET_MP_STATE (KVM_CAP_MP_STATE)", chips},
	{KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS (KVM_CAP_VCPU_EVENTS)", NULL},
	{KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS (KVM_CAP_VCPU_EVENTS)", NULL},
	{KVM_RUN, "KVM_RUN", NULL},
};

static void refuse(unsigned long request)
{
	const struct scmp_arg_cmp call = {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = request};
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);

	if (!filter ||
	    seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, &call) ||
	    seccomp_load(filter))
		abort();
	seccomp_release(filter);
}

/* All that a VM's start takes; what is said at the first failure, or nothing. */
static void start(const char *options, struct err *e)
{
	const struct engine_ops *kvm = engine_by_name("kvm");
	const struct cpuid_request request = {.vcpus = 1, .any_tsc_hz = true};
	static struct cpuid_model cpuid;
	static struct physmap physmap;
	const struct engine_config config = {
		.physmap = &physmap, .cpuid = &cpuid, .options = options};
	struct engine_vm *vm;
	struct engine_vcpu *cpu;
	struct vm_exit x = {0};

	physmap_init(&physmap);
	if (cpuid_model_init(&cpuid, &request, e) || physmap_add(&physmap, 0, RAM_SIZE, 0, e))
		abort();
	if (kvm->vm_create(&config, &vm, e) || kvm->vcpu_create(vm, 0, &cpu, e))
		return;
	if (!kvm->run(cpu, &x) && x.type == EXIT_ERROR)
		err_set(e, -EIO, "%s", x.error);
}

/* In a process of its own, since no filter can be taken away. */
static void said_by_child(const struct refusal *r, char *text, size_t size)
{
	int ends[2], status;
	ssize_t got;
	pid_t pid;

	assert_int_equal(pipe(ends), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct err e = {0};

		refuse(r->request);
		start(r->options, &e);
		_exit(write(ends[1], e.text, strlen(e.text)) < 0);
	}
	close(ends[1]);
	got = read(ends[0], text, size - 1);
	text[got > 0 ? got : 0] = '\0';
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void refusals_are_named(void **state)
{
	char text[512];
	u32 unnamed = 0;

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(refusals); i++) {
		said_by_child(&refusals[i], text, sizeof(text));
		if (!strstr(text, refusals[i].says) || strchr(text, '\n')) {
			print_error("%s: \"%s\"\n", refusals[i].says, text);
			unnamed++;
		}
	}
	assert_int_equal(unnamed, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refusals_are_named),
	};
	struct err e = {0};

	if (engine_by_name("kvm")->probe(&e)) {
		printf("kvm cannot run here: %s\n", e.text);
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
