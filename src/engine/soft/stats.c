/* What the engine counts, and what its vCPUs are at, for --stats. */
#include "engine/soft/cache.h"
#include "engine/soft/soft.h"
#include "engine/soft/system.h"

#include <Zydis/Zydis.h>
#include <time.h>

enum { CACHE_ROWS = 6, MNEMONIC_ROWS = 12 };

_Static_assert((u32)INSN_MNEMONICS > (u32)ZYDIS_MNEMONIC_MAX_VALUE, "decode.h");

static const char *const names[SOFT_COUNTERS] = {
	[COUNT_BLOCKS_TRANSLATED] = "blocks_translated",
	[COUNT_INSNS_TRANSLATED] = "instructions_translated",
	[COUNT_GUEST_BYTES] = "guest_bytes_translated",
	[COUNT_HOT_BYTES] = "hot_bytes_emitted",
	[COUNT_COLD_BYTES] = "cold_bytes_emitted",
	[COUNT_TRANSLATION_CYCLES] = "translation_time",
	[COUNT_BLOCKS_LOADED] = "blocks_loaded",
	[COUNT_LOADING_CYCLES] = "loading_time",
	[COUNT_BLOCKS_COMPARED] = "blocks_compared",
	[COUNT_BLOCKS_DIFFERENT] = "blocks_different",
	[COUNT_INSNS_INTERPRETED] = "instructions_interpreted",
	[COUNT_LOOKUPS] = "block_lookups",
	[COUNT_LINKS] = "block_links",
	[COUNT_TLB_MISSES] = "tlb_misses",
	[COUNT_STEPS] = "interpreter_steps",
	[COUNT_TLB_FILLS] = "tlb_fills",
	[COUNT_CONTEXT_SWITCHES] = "context_switches",
	[COUNT_CONTEXT_FLUSHES] = "context_flushes",
	[COUNT_BLOCK_INVALIDATIONS] = "block_invalidations",
	[COUNT_CACHE_FLUSHES] = "code_cache_flushes",
	[COUNT_EXCEPTIONS] = "exceptions",
	[COUNT_SYSCALLS] = "system_calls",
	[COUNT_INTERRUPTS] = "interrupts",
	[COUNT_EXITS] = "exits",
	[COUNT_FPU_PARKS] = "fpu_parks",
	[COUNT_CODE_STORES] = "code_page_stores",
	[COUNT_GROUP_FALLBACKS] = "group_fallbacks",
	[COUNT_WINDOWS] = "windows",
	[COUNT_WINDOW_FAULTS] = "window_faults",
	[COUNT_WINDOW_MAPS] = "window_pages_mapped",
	[COUNT_WINDOW_UNMAPS] = "window_pages_invalidated",
	[COUNT_WINDOW_DROPS] = "windows_dropped",
	[COUNT_WINDOW_CYCLES] = "window_time",
	[COUNT_BOXES] = "boxes",
	[COUNT_BOX_RUNS] = "box_runs",
	[COUNT_BOX_CYCLES] = "box_time",
	[COUNT_BOX_FPU] = "box_vector_states",
	[COUNT_BOX_AWAY] = "box_absences",
	[COUNT_LEAVES + LEAVE_LOOKUP] = "leaves_lookup",
	[COUNT_LEAVES + LEAVE_LINK] = "leaves_link",
	[COUNT_LEAVES + LEAVE_POLL] = "leaves_poll",
	[COUNT_LEAVES + LEAVE_INTERPRET] = "leaves_interpret",
	[COUNT_LEAVES + LEAVE_FAULT] = "leaves_fault",
	[COUNT_LEAVES + LEAVE_EXIT] = "leaves_exit",
	[COUNT_LEAVES + LEAVE_HOST_FAULT] = "leaves_host_fault",
};

static enum engine_unit unit_of(u32 n)
{
	switch (n) {
	case COUNT_GUEST_BYTES:
	case COUNT_HOT_BYTES:
	case COUNT_COLD_BYTES: return UNIT_BYTES;
	case COUNT_LOADING_CYCLES:
	case COUNT_TRANSLATION_CYCLES:
	case COUNT_BOX_CYCLES:
	case COUNT_WINDOW_CYCLES: return UNIT_NS;
	default: return UNIT_COUNT;
	}
}

const char *const soft_activities[SOFT_ACTIVITIES + 1] = {
	[ACT_OUTSIDE] = "outside",
	[ACT_TRANSLATED] = "translated_code",
	[ACT_BOX] = "box",
	[ACT_TLB_MISS] = "tlb_misses",
	[ACT_INTERPRET] = "interpreter",
	[ACT_EXCEPTION] = "exceptions",
	[ACT_DISPATCH] = "dispatch",
	[ACT_TRANSLATE] = "translation",
	[ACT_WAIT] = "other_vcpus",
};

u32 soft_activity(struct engine_vcpu *vcpu)
{
	return atomic_load_explicit(&((struct soft_cpu *)vcpu)->activity, memory_order_relaxed);
}

static u64 clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * 1000000000 + (u64)ts.tv_nsec;
}

void soft_stats_init(struct soft_vm *vm)
{
	vm->start_tsc = __builtin_ia32_rdtsc();
	vm->start_ns = clock_ns();
}

static u64 cycles_to_ns(const struct soft_vm *vm, u64 cycles)
{
	u64 span = MAX(__builtin_ia32_rdtsc() - vm->start_tsc, 1);

	return (u64)((unsigned __int128)cycles * (clock_ns() - vm->start_ns) / span);
}

static u64 sum(const struct soft_vm *vm, u32 n)
{
	u64 total = 0;

	for (u32 i = 0; i < vm->cpus; i++)
		if (vm->cpu[i])
			total += vm->cpu[i]->counters[n];
	if (n == COUNT_BLOCK_INVALIDATIONS)
		return vm->cache->dropped;
	return unit_of(n) == UNIT_NS ? cycles_to_ns(vm, total) : total;
}

static u32 cache_rows(const struct cache *c, struct engine_counter row[CACHE_ROWS])
{
	const struct engine_counter rows[CACHE_ROWS] = {
		{.name = "code_cache_size", .value = c->size, .unit = UNIT_BYTES},
		{.name = "code_cache_hot", .value = c->hot - c->hot_start, .unit = UNIT_BYTES},
		{.name = "code_cache_cold", .value = c->cold - c->hot_end, .unit = UNIT_BYTES},
		{.name = "block_tables_size", .value = c->arena_size, .unit = UNIT_BYTES},
		{.name = "block_tables", .value = c->arena_used, .unit = UNIT_BYTES},
		{.name = "blocks_in_cache", .value = c->blocks, .unit = UNIT_COUNT},
	};

	for (u32 n = 0; n < CACHE_ROWS; n++)
		row[n] = rows[n];
	return CACHE_ROWS;
}

static u64 interpreted(const struct soft_vm *vm, u32 mnemonic)
{
	u64 total = 0;

	for (u32 i = 0; i < vm->cpus; i++)
		if (vm->cpu[i])
			total += soft_interp(vm->cpu[i])->executed[mnemonic];
	return total;
}

/* The instructions that were interpreted most often, in that order. */
static u32 mnemonic_rows(const struct soft_vm *vm, struct engine_counter row[MNEMONIC_ROWS])
{
	u32 n = 0;

	for (u32 m = 1; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
		u64 value = interpreted(vm, m);
		u32 at;

		if (!value || (n == MNEMONIC_ROWS && row[n - 1].value >= value))
			continue;
		n = MIN(n + 1, MNEMONIC_ROWS);
		for (at = n - 1; at && row[at - 1].value < value; at--)
			row[at] = row[at - 1];
		row[at] = (struct engine_counter){.name = ZydisMnemonicGetString((ZydisMnemonic)m),
						  .value = value,
						  .group = "interpreted"};
	}
	return n;
}

u32 soft_counters(struct engine_vm *engine_vm, struct engine_counter *out, u32 max)
{
	const struct soft_vm *vm = (const struct soft_vm *)engine_vm;
	struct engine_counter more[CACHE_ROWS + MNEMONIC_ROWS];
	u32 rows = cache_rows(vm->cache, more);
	u32 n;

	rows += mnemonic_rows(vm, more + rows);

	for (n = 0; n < SOFT_COUNTERS && n < max; n++)
		out[n] = (struct engine_counter){
			.name = names[n], .value = sum(vm, n), .unit = unit_of(n)};
	for (u32 k = 0; k < rows && n < max; k++)
		out[n++] = more[k];
	return n;
}
