/*
 * A guest of a few instructions on any engine, through the contract alone: 4 MiB of RAM at 0,
 * 64-bit mode (engine/flat.h), nothing at MMIO_AT. Interrupts and exceptions go to one handler,
 * which counts them by vector in a table in memory.
 */
#pragma once

#include "engine/engine.h"
#include "engine/flat.h"

enum {
	RAM_SIZE = 4 << 20,
	CODE_AT = 0x10000,
	HANDLERS_AT = 0x18000, /* 64 bytes for each vector */
	STACK_AT = 0x30000,
	GDT_AT = 0x1000,
	IDT_AT = 0x2000,
	TABLES_AT = 0x4000,
	COUNTS_AT = 0x40000, /* u64 for each vector: how often it was delivered */
	LOST_AT =
		0x40800, /* u64: shadows of STI that were lost, see guest_forgive_lost_shadows() */
	DATA_AT = 0x100000,
	MMIO_AT = 0x20000000,
};

/* Code in 64-bit mode. CODE_OF(name) gives its bytes. */
#define CODE(name, text)                              \
	extern const u8 name##_start[], name##_end[]; \
	__asm__(".pushsection .rodata\n" #name "_start:\n" text "\n" #name "_end:\n.popsection\n")
#define CODE_OF(name) name##_start, (u32)(name##_end - name##_start)

struct guest {
	const struct engine_ops *engine;
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct engine_vm *vm;
	struct engine_vcpu *cpu;
	u8 *ram;
};

/* Memory, tables and a VM; aborts when that fails. Frees what a failed test left. */
struct guest *guest_new(const struct engine_ops *engine);
struct guest *guest_new_options(const struct engine_ops *engine, const char *options);
/* The same with a CPU model given, besides guests that are there. */
struct guest *guest_new_with(const struct engine_ops *engine, const struct cpuid_model *cpuid);
void guest_free(struct guest *g);

/*
 * From now on guests get over an interrupt that comes between STI and HLT, as the shadow that
 * QEMU's VMRUN loses lets it (test/guest/lib/shadow.c): they go on behind HLT, and guest_free()
 * says so.
 */
void guest_forgive_lost_shadows(void);

/* Both engines. False when one cannot run on this host, and why on standard output. */
bool guest_both_engines(const struct engine_ops **soft, const struct engine_ops **kvm);

/* Does @engine stand on a KVM that does not run ring 0 on the processor? Its emulator lacks much.
 */
bool guest_ring0_is_emulated(const struct engine_ops *engine);

/* Code to CODE_AT, and the CPU to its start at CPL 0. */
void guest_load(struct guest *g, const u8 *code, u32 len);

/* One exit; the type. */
enum exit_type guest_run(struct guest *g, struct vm_exit *x);

struct cpu_state *guest_state(struct guest *g, u32 parts);
u64 guest_get(const struct guest *g, gpa_t gpa);
u64 guest_count(const struct guest *g, u32 vector);
