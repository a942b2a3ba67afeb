/*
 * A machine's vCPUs change their engine while a guest talks to a device: no access is lost, none is
 * made twice, the clock goes on. 77: one of the engines cannot run here.
 *
 * The guest numbers its accesses, and the device knows which one comes next.
 */
#include "engine_guest.h"

#include "machine/vcpu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	PORT_AT = 0x80,
	VCPUS = 2, /* the second waits to be started */
	MOVES = 60,
	PATIENCE_MS = 20000,
};

CODE(talk, "mov $0x20000000, %edi; 1: inc %ebx; mov %ebx, %eax; out %eax, $0x80; mov %ebx, (%rdi);"
	   "in $0x80, %eax; add %rax, %r8; mov (%rdi), %eax; add %rax, %r9; jmp 1b");

static const struct engine_ops *soft, *kvm;

struct fixture {
	pthread_mutex_t lock;
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct loop *loop;
	struct bus bus;
	struct lapic_set lapics;
	struct cpu_state entry;
	struct vcpu_set set;
	struct engine_vm *vm;

	/* The device: @access of the guest's round @round comes next; see talk. */
	u32 round, access;
	u32 wrong;
	char why[100];
};

/* ---- the device ---- */

static void next_access(struct fixture *f, u32 access, u32 value)
{
	if ((access != f->access || value != f->round) && !f->wrong++)
		snprintf(f->why, sizeof(f->why), "access %u of round %u, not %u of round %u",
			 access, value, f->access, f->round);
	f->access = (f->access + 1) % 4;
	f->round += f->access == 0;
}

static void port_write(void *opaque, u64 off, u32 size, u64 value)
{
	(void)off, (void)size;
	next_access(opaque, 0, (u32)value);
}

static void memory_write(void *opaque, u64 off, u32 size, u64 value)
{
	(void)off, (void)size;
	next_access(opaque, 1, (u32)value);
}

/* Reading changes the device, too. */
static u64 port_read(void *opaque, u64 off, u32 size)
{
	struct fixture *f = opaque;
	u32 value = f->round;

	(void)off, (void)size;
	next_access(f, 2, f->round);
	return value;
}

static u64 memory_read(void *opaque, u64 off, u32 size)
{
	struct fixture *f = opaque;
	u32 value = f->round;

	(void)off, (void)size;
	next_access(f, 3, f->round);
	return value;
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write, .min = 4, .max = 4};
static const struct bus_ops memory_ops = {
	.read = memory_read, .write = memory_write, .min = 4, .max = 4};

/* ---- the machine around it ---- */

static void ignore_cpu(void *opaque, u32 cpu)
{
	(void)opaque, (void)cpu;
}

static void ignore_vector(void *opaque, u32 cpu, u8 vector)
{
	(void)opaque, (void)cpu, (void)vector;
}

static void ignore_eoi(void *opaque, u8 vector)
{
	(void)opaque, (void)vector;
}

static u8 no_vector(void *opaque)
{
	(void)opaque;
	return 0;
}

static u64 no_tsc(void *opaque, u32 cpu)
{
	(void)opaque, (void)cpu;
	return 0;
}

static void failed(void *opaque, u32 cpu, const char *why)
{
	struct fixture *f = opaque;

	if (!f->wrong++)
		snprintf(f->why, sizeof(f->why), "cpu %u: %s", cpu, why);
	vcpus_request_stop(&f->set);
}

static void triple_fault(void *opaque, u32 cpu)
{
	failed(opaque, cpu, "triple fault");
}

static void make_machine(struct fixture *f)
{
	const struct lapic_ops ops = {ignore_cpu, ignore_cpu, ignore_cpu, ignore_vector,
				      no_tsc,     ignore_eoi, no_vector,  f};
	const struct bus_region port = {"port", PORT_AT, 4, &port_ops, f};
	const struct bus_region memory = {"memory", MMIO_AT, 4, &memory_ops, f};
	struct err e = {0};

	pthread_mutex_init(&f->lock, NULL);
	physmap_init(&f->physmap);
	bus_init(&f->bus);
	assert_int_equal(physmap_add(&f->physmap, 0, RAM_SIZE, 0, &e), 0);
	assert_int_equal(loop_create(&f->loop, &e), 0);
	assert_int_equal(
		lapic_set_init(&f->lapics, VCPUS, &ops, f->cpuid.tsc_hz, f->loop, &f->lock, &e), 0);
	assert_int_equal(bus_add(&f->bus, BUS_PORT, &port), 0);
	assert_int_equal(bus_add(&f->bus, BUS_MEMORY, &memory), 0);
	flat_tables(f->physmap.region[0].hva + TABLES_AT, TABLES_AT);
	memcpy(f->physmap.region[0].hva + CODE_AT, CODE_OF(talk));
	flat_state(&f->entry, TABLES_AT, CODE_AT, STACK_AT, 0);
	f->round = 1;
}

static struct engine_vm *make_vm(struct fixture *f, const struct engine_ops *engine)
{
	const struct engine_config config = {
		.physmap = &f->physmap, .cpuid = &f->cpuid, .options = NULL};
	struct engine_vm *vm = NULL;
	struct err e = {0};

	if (engine->vm_create(&config, &vm, &e))
		fail_msg("%s", e.text);
	return vm;
}

/* Until all have taken their start state: a stop may come before. */
static void await_start(struct fixture *f)
{
	for (bool started = false; !started; usleep(100)) {
		pthread_mutex_lock(&f->set.lock);
		started = !f->set.cpu[0].reset_wanted && !f->set.cpu[1].reset_wanted;
		pthread_mutex_unlock(&f->set.lock);
	}
}

static struct fixture *start(const struct engine_ops *engine)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct cpuid_request request = {.vcpus = VCPUS};
	struct vcpu_env env = {.engine = engine, .triple_fault = triple_fault, .failed = failed};
	struct engine_host *host;
	struct err e = {0};

	assert_non_null(f);
	assert_int_equal(cpuid_model_init(&f->cpuid, &request, &e), 0);
	assert_int_equal(kvm->host_open(&host, &e), 0);
	assert_int_equal(kvm->cpuid_limit(host, &f->cpuid, &e), 0);
	kvm->host_close(host);
	make_machine(f);
	f->vm = env.vm = make_vm(f, engine);
	env.bus = &f->bus;
	env.physmap = &f->physmap;
	env.lapics = &f->lapics;
	env.machine_lock = &f->lock;
	env.opaque = f;
	if (vcpus_create(&f->set, VCPUS, &env, &e))
		fail_msg("%s", e.text);
	vcpus_reset(&f->set, &f->entry);
	vcpus_resume(&f->set);
	await_start(f);
	return f;
}

static void end(struct fixture *f)
{
	const struct engine_ops *engine = f->set.env.engine;

	vcpus_destroy(&f->set);
	engine->vm_destroy(f->vm);
	lapic_set_destroy(&f->lapics);
	loop_destroy(f->loop);
	bus_destroy(&f->bus);
	physmap_destroy(&f->physmap);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static u64 tsc_offset(struct fixture *f, u32 cpu)
{
	static struct cpu_state s;

	assert_int_equal(f->set.env.engine->state_get(f->set.cpu[cpu].engine, CPU_PART_MSR, &s), 0);
	return cpu_tsc_offset(&s.msr);
}

static void move_to(struct fixture *f, const struct engine_ops *to)
{
	const struct engine_ops *from = f->set.env.engine;
	struct engine_vm *vm = make_vm(f, to);
	struct err e = {0};

	pthread_mutex_lock(&f->lock);
	if (vcpus_move(&f->set, to, vm, &e))
		fail_msg("%s", e.text);
	from->vm_destroy(f->vm);
	f->vm = vm;
	pthread_mutex_unlock(&f->lock);
}

/* Also while the guest runs: its accesses happen under the machine lock. */
static u32 rounds(struct fixture *f)
{
	u32 n;

	pthread_mutex_lock(&f->lock);
	n = f->round;
	pthread_mutex_unlock(&f->lock);
	return n;
}

/* ---- tests ---- */

static u64 sum_to(u64 n)
{
	return n * (n + 1) / 2;
}

/* What the guest read is in its sums, each round once; the last ADD may be still to come. */
static void check_guest(struct fixture *f)
{
	static struct cpu_state s;
	u64 last;

	vcpus_stop(&f->set);
	last = f->round - 1;
	assert_string_equal(f->why, "");
	assert_in_range(f->round, MOVES, ~0u);
	assert_int_equal(f->set.env.engine->state_get(f->set.cpu[0].engine, CPU_PART_GPR, &s), 0);
	assert_in_range(s.gpr.r[R8], sum_to(last), sum_to(last + (f->access == 3)));
	assert_in_range(s.gpr.r[R9], sum_to(last - (f->access == 0)), sum_to(last));
}

static void engine_changes_in_mid_work(void **state)
{
	struct fixture *f = start(soft);
	u64 offset[VCPUS];

	(void)state;
	srand(1);
	for (u32 n = 0; n < MOVES; n++) {
		usleep((u32)rand() % 3000);
		vcpus_stop(&f->set);
		for (u32 i = 0; i < VCPUS; i++)
			offset[i] = tsc_offset(f, i);
		assert_int_equal(offset[0], offset[1]);
		move_to(f, n % 2 ? soft : kvm);
		for (u32 i = 0; i < VCPUS; i++)
			if (tsc_offset(f, i) != offset[i])
				fail_msg("move %u to %s, cpu %u: the TSC's offset went from %#lx "
					 "to %#lx",
					 n, f->set.env.engine->name, i, offset[i],
					 tsc_offset(f, i));
		vcpus_resume(&f->set);
	}
	/* An emulated processor may not get on between all of them. */
	for (u32 n = 0; rounds(f) < MOVES && n < PATIENCE_MS; n++)
		usleep(1000);
	check_guest(f);
	end(f);
}

static int refuse(struct engine_vcpu *vcpu, u32 parts, const struct cpu_state *s)
{
	(void)vcpu, (void)parts, (void)s;
	return -EINVAL;
}

static void refused_move_leaves_all_as_it_was(void **state)
{
	struct engine_ops stubborn = *kvm;
	struct fixture *f = start(soft);
	struct engine_vm *vm = make_vm(f, kvm);
	struct err e = {0};
	u32 before;

	(void)state;
	stubborn.state_set = refuse;
	for (u32 n = 0; n < 5; n++) {
		usleep(2000);
		vcpus_stop(&f->set);
		before = rounds(f);
		pthread_mutex_lock(&f->lock);
		assert_int_equal(vcpus_move(&f->set, &stubborn, vm, &e), -EINVAL);
		pthread_mutex_unlock(&f->lock);
		assert_non_null(strstr(e.text, "refused"));
		assert_ptr_equal(f->set.env.engine, soft);
		/* The next attempt is with a VM of its own: a kernel's vCPUs live as long as that.
		 */
		kvm->vm_destroy(vm);
		vm = make_vm(f, kvm);
		vcpus_resume(&f->set);
		/* On a crowded host the guest's thread may have to wait for its turn. */
		for (u32 ms = 0; ms < 10000 && rounds(f) == before; ms++)
			usleep(1000);
		assert_int_not_equal(rounds(f), before);
	}
	kvm->vm_destroy(vm);
	vcpus_stop(&f->set);
	assert_string_equal(f->why, "");
	end(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(engine_changes_in_mid_work),
		cmocka_unit_test(refused_move_leaves_all_as_it_was),
	};

	if (!guest_both_engines(&soft, &kvm))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
