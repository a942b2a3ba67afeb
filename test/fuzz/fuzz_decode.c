/*
 * Guest code. The input's first bytes choose mode, privilege and registers; the rest is code. It is
 * decoded at every offset and re-encoded as host code, then run by the soft engine: translated, and
 * once more with everything interpreted.
 *
 * Invariants: decoding stays within its bytes; emission stays within its buffer and leaves nothing
 * behind when it gives up; whatever the code does, the engine returns a typed exit, at the latest
 * when it is kicked, and does not crash.
 *
 * Instructions reached are reported to libFuzzer as extra counters, because the engine itself is
 * compiled without instrumentation: its code runs while vector registers belong to the guest.
 */
#include "../unit/soft_machine.h"
#include "engine/soft/emit.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern const struct engine_ops soft_engine;

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

enum {
	HEADER = 4 + GPR_COUNT,
	CODE_MAX = 2048,
	EXITS_MAX = 64,
	TICK_NS = 2000000,
	COUNTERS = 1 << 14,
	BUFFER = 64,
	CANARY = 0xa5,
};

__attribute__((section("__libfuzzer_extra_counters"))) static u8 counters[COUNTERS];

/* ---- decoding and re-encoding ---- */

static void note(const struct insn *i)
{
	u32 key = i->mnemonic * 8u + i->cls * 2654435761u % 8 + i->has_mem * 4096u;

	counters[key % COUNTERS] = 1;
}

static void check(bool ok)
{
	if (!ok)
		abort();
}

static void emit_into(const struct insn *i, struct host_mem m, u32 size)
{
	u8 buffer[BUFFER + 16];
	struct emit e = {.p = buffer, .end = buffer + size};

	memset(buffer, CANARY, sizeof(buffer));
	if (!emit_data(&e, i, m))
		check(e.p == buffer);
	check(e.p <= buffer + size);
	for (u32 n = size; n < sizeof(buffer); n++)
		check(buffer[n] == CANARY);
}

static void decode_one(const u8 *p, u32 len, u32 bits)
{
	struct host_mem m = {.base = NO_REG, .index = NO_REG};
	struct insn i;

	insn_decode(&i, p, len, bits);
	check(i.len <= len && i.len <= 15);
	if (i.cls == INSN_INVALID)
		return;
	check(i.len && i.opcode_off + i.opcode_len <= i.len && i.imm_off + i.imm_len == i.len);
	note(&i);
	if (i.cls != INSN_DATA)
		return;
	if (i.has_mem)
		m = (struct host_mem){.base = HOST_S2, .index = HOST_S1};
	for (u32 size = 0; size <= BUFFER; size += 8)
		emit_into(&i, m, size);
	m.index = NO_REG;
	emit_into(&i, m, BUFFER);
}

static void decode_all(const u8 *code, u32 len)
{
	for (u32 n = 0; n < len; n++)
		for (u32 bits = 16; bits <= 64; bits *= 2)
			decode_one(code + n, MIN(len - n, 15u), bits);
}

/* ---- the budget: a thread that kicks what runs for too long ---- */

struct budget {
	pthread_mutex_t lock;
	struct engine_vcpu *vcpu; /* NULL: nothing runs */
	u32 ticks;
};

static struct budget budget = {.lock = PTHREAD_MUTEX_INITIALIZER};
static pthread_once_t started = PTHREAD_ONCE_INIT;

static void *watch(void *unused)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};

	(void)unused;
	for (;;) {
		nanosleep(&tick, NULL);
		pthread_mutex_lock(&budget.lock);
		if (budget.vcpu && ++budget.ticks > 1)
			soft_engine.kick(budget.vcpu);
		pthread_mutex_unlock(&budget.lock);
	}
	return NULL;
}

static void start(void)
{
	pthread_t thread;

	check(pthread_create(&thread, NULL, watch, NULL) == 0);
	pthread_detach(thread);
}

static void set_budget(struct engine_vcpu *vcpu)
{
	pthread_mutex_lock(&budget.lock);
	budget.vcpu = vcpu;
	budget.ticks = 0;
	pthread_mutex_unlock(&budget.lock);
}

/* ---- running ---- */

static void enter_mode(struct soft_machine *m, u8 how)
{
	switch (how % 5) {
	case 0: machine_long_mode(m); break;
	case 1:
		machine_long_mode(m);
		machine_user(m, SEL_USER_CODE64);
		break;
	case 2:
		machine_long_mode(m);
		machine_user(m, SEL_USER_CODE32);
		break;
	case 3: machine_protected_mode(m); break;
	default: machine_real_mode(m); break;
	}
}

/* Small numbers and addresses of places: what code does something with. */
static void set_registers(struct soft_machine *m, const u8 *seed)
{
	for (u32 n = 0; n < GPR_COUNT; n++) {
		u64 v = seed[n];

		if (n != RSP)
			m->c->r[n] = v < 0x40   ? v
				     : v < 0x80 ? AT_DATA + (v << 4)
						: v * 0x0101010101010101;
	}
}

/* Answer an exit; false when the guest has ended. */
static bool answer(struct vm_exit *exit)
{
	switch (exit->type) {
	case EXIT_PIO: exit->pio.data = 0xff; return true;
	case EXIT_MMIO: exit->mmio.data = exit->mmio.gpa; return true;
	case EXIT_RDMSR: exit->msr.value = 0; return true;
	case EXIT_WRMSR: return true;
	case EXIT_HYPERCALL: exit->hypercall.result = 0; return true;
	case EXIT_IRQ_WINDOW:
	case EXIT_NONE:
	case EXIT_DEBUG: return true;
	case EXIT_ERROR: abort();
	default: return false;
	}
}

static void run(const u8 *header, const u8 *code, u32 len, bool interpret)
{
	struct soft_machine *m = machine_new();
	struct vm_exit exit = {0};

	enter_mode(m, header[0]);
	set_registers(m, header + 4);
	machine_load(m, code, len);
	if (interpret) {
		m->c->dr[0] = 0x7fff0000;
		m->c->dr7 = 0x401; /* an armed breakpoint keeps the engine from translating */
		soft_update_mode(m->c);
	}
	set_budget(m->vcpu);
	for (u32 n = 0; n < EXITS_MAX; n++) {
		check(soft_engine.run(m->vcpu, &exit) == 0);
		if (!answer(&exit))
			break;
	}
	set_budget(NULL);
	machine_free(m);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	u32 n;

	pthread_once(&started, start);
	if (len <= HEADER)
		return 0;
	n = MIN((u32)(len - HEADER), (u32)CODE_MAX);
	decode_all(data + HEADER, MIN(n, 256u));
	run(data, data + HEADER, n, false);
	run(data, data + HEADER, n, true);
	return 0;
}
