#include "engine_guest.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KERNEL_CODE = 0x08, GATE_SIZE = 16, HANDLER_SIZE = 64, MAX_EXITS = 100000 };

static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "%s: %s\n", what, e->text);
	abort();
}

/* Finding the TSC's frequency takes milliseconds: once. */
static const struct cpuid_model *model(void)
{
	static struct cpuid_model m;
	const struct cpuid_request request = {.vcpus = 1};
	struct err e = {0};

	if (!m.count && cpuid_model_init(&m, &request, &e) < 0)
		die("CPU model", &e);
	return &m;
}

/* An interrupt that came between STI and HLT returns behind HLT. The address is LOST_AT. */
CODE(skip_hlt,
     "push %rax; mov 8(%rsp), %rax; cmpw $0xf4fb, -1(%rax); jne 1f; incq 8(%rsp); incq 0x40800;"
     "1: pop %rax");

static bool forgiving;

void guest_forgive_lost_shadows(void)
{
	forgiving = true;
}

/* incq COUNTS_AT + 8 * vector; iretq (behind the error code, where there is one) */
static void make_handler(u8 *p, u32 vector)
{
	static const u8 drop_error[] = {0x48, 0x83, 0xc4, 0x08};
	static const u8 iretq[] = {0x48, 0xcf};
	const u8 count[] = {0x48, 0xff, 0x04, 0x25};
	const u32 at = COUNTS_AT + 8 * vector;
	const bool error = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;

	if (forgiving && vector >= 32) {
		memcpy(p, CODE_OF(skip_hlt));
		p += skip_hlt_end - skip_hlt_start;
	}
	memcpy(p, count, sizeof(count));
	memcpy(p + 4, &at, 4);
	p += 8;
	if (error) {
		memcpy(p, drop_error, sizeof(drop_error));
		p += sizeof(drop_error);
	}
	memcpy(p, iretq, sizeof(iretq));
}

static void make_tables(u8 *ram)
{
	const u64 gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};

	flat_tables(ram + TABLES_AT, TABLES_AT);
	memcpy(ram + GDT_AT, gdt, sizeof(gdt));
	for (u32 v = 0; v < 256; v++) {
		u32 handler = HANDLERS_AT + HANDLER_SIZE * v;
		u64 gate = (handler & 0xffff) | (u64)KERNEL_CODE << 16 | 0x8eul << 40 |
			   (u64)(handler >> 16) << 48;

		memset(ram + IDT_AT + GATE_SIZE * v, 0, GATE_SIZE);
		memcpy(ram + IDT_AT + GATE_SIZE * v, &gate, sizeof(gate));
		make_handler(ram + handler, v);
	}
}

/* cmocka takes the fault signals before each test; the soft engine installs its handlers once. */
static void own_fault_signals(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	static struct sigaction engine[ARRAY_SIZE(signals)];
	static bool known;

	for (u32 n = 0; n < ARRAY_SIZE(signals); n++) {
		if (known)
			sigaction(signals[n], &engine[n], NULL);
		else
			sigaction(signals[n], NULL, &engine[n]);
	}
	known = true;
}

/* What a failed test left behind: a thread has one vCPU of the soft engine. */
static struct guest *leftover;

static struct guest *make_guest(const struct engine_ops *engine, const struct cpuid_model *cpuid,
				const char *options)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct engine_config config = {.options = options};
	struct err e = {0};

	if (!g)
		abort();
	leftover = g;
	g->engine = engine;
	g->cpuid = *cpuid;
	physmap_init(&g->physmap);
	physmap_share(&g->physmap);
	if (physmap_add(&g->physmap, 0, RAM_SIZE, 0, &e))
		die("memory", &e);
	g->ram = g->physmap.region[0].hva;
	make_tables(g->ram);
	config.physmap = &g->physmap;
	config.cpuid = &g->cpuid;
	if (engine->vm_create(&config, &g->vm, &e))
		die("VM", &e);
	if (!strcmp(engine->name, "soft"))
		own_fault_signals();
	if (engine->vcpu_create(g->vm, 0, &g->cpu, &e))
		die("vCPU", &e);
	return g;
}

struct guest *guest_new_with(const struct engine_ops *engine, const struct cpuid_model *cpuid)
{
	return make_guest(engine, cpuid, NULL);
}

struct guest *guest_new_options(const struct engine_ops *engine, const char *options)
{
	if (leftover)
		guest_free(leftover);
	return make_guest(engine, model(), options);
}

struct guest *guest_new(const struct engine_ops *engine)
{
	return guest_new_options(engine, NULL);
}

void guest_free(struct guest *g)
{
	u64 lost = guest_get(g, LOST_AT);

	if (lost)
		printf("# excused: an interrupt came in STI's shadow (%llu times)\n",
		       (unsigned long long)lost);
	g->engine->vcpu_destroy(g->cpu);
	g->engine->vm_destroy(g->vm);
	physmap_destroy(&g->physmap);
	leftover = NULL;
	free(g);
}

bool guest_both_engines(const struct engine_ops **soft, const struct engine_ops **kvm)
{
	struct err e = {0};

	*soft = engine_by_name("soft");
	*kvm = engine_by_name("kvm");
	if (!(*soft)->probe(&e) && !(*kvm)->probe(&e))
		return true;
	printf("needs both engines: %s\n", e.text);
	return false;
}

void guest_load(struct guest *g, const u8 *code, u32 len)
{
	static struct cpu_state s;

	memcpy(g->ram + CODE_AT, code, len);
	mem_unmap(&g->physmap, CODE_AT, len);
	memset(g->ram + COUNTS_AT, 0, 256 * 8);
	memset(g->ram + LOST_AT, 0, 8);
	flat_state(&s, TABLES_AT, CODE_AT, STACK_AT, 0);
	s.segs.gdtr = (struct cpu_table){.base = GDT_AT, .limit = 0x17};
	s.segs.idtr = (struct cpu_table){.base = IDT_AT, .limit = 256 * GATE_SIZE - 1};
	if (g->engine->state_set(g->cpu, CPU_PART_ALL, &s)) {
		fprintf(stderr, "%s: the start state is refused\n", g->engine->name);
		abort();
	}
}

enum exit_type guest_run(struct guest *g, struct vm_exit *x)
{
	for (u32 i = 0; i < MAX_EXITS; i++) {
		if (g->engine->run(g->cpu, x)) {
			fprintf(stderr, "%s: run() failed\n", g->engine->name);
			abort();
		}
		if (x->type == EXIT_ERROR)
			fprintf(stderr, "%s: %s\n", g->engine->name, x->error);
		if (x->type != EXIT_NONE)
			return x->type;
	}
	abort();
}

struct cpu_state *guest_state(struct guest *g, u32 parts)
{
	static struct cpu_state s;

	memset(&s, 0, sizeof(s));
	if (g->engine->state_get(g->cpu, parts, &s)) {
		fprintf(stderr, "%s: state_get() failed\n", g->engine->name);
		abort();
	}
	return &s;
}

u64 guest_get(const struct guest *g, gpa_t gpa)
{
	u64 v;

	memcpy(&v, g->ram + gpa, sizeof(v));
	return v;
}

u64 guest_count(const struct guest *g, u32 vector)
{
	return guest_get(g, COUNTS_AT + 8 * vector);
}

/* Among what such an emulator lacks is STMXCSR. */
CODE(stmxcsr, "stmxcsr 0x100000; hlt");

bool guest_ring0_is_emulated(const struct engine_ops *engine)
{
	struct guest *g = guest_new(engine);
	struct vm_exit x = {0};
	bool r;

	guest_load(g, CODE_OF(stmxcsr));
	r = engine->run(g->cpu, &x) || x.type == EXIT_ERROR;
	guest_free(g);
	return r;
}
