/*
 * A vCPU of the soft engine with a little memory, to be run one interpreted instruction at a time.
 *
 * Memory is 32 MiB of RAM at 0. Fixed places hold code, a stack, descriptor tables and page tables;
 * see enum place. Long mode maps the first 2 MiB by 4 KiB pages at their own addresses, so that
 * tests may take single pages away, user-accessible.
 */
#pragma once

#include "engine/soft/system.h"

struct soft_machine {
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	struct soft_cpu *c;
	u8 *ram;
};

enum place {
	AT_GDT = 0x1000,
	AT_IDT = 0x2000,
	AT_TSS = 0x3000,
	AT_TSS2 = 0x3800,
	AT_LDT = 0x3c00,
	AT_PML4 = 0x4000,
	AT_PDPT = 0x5000,
	AT_PD = 0x6000,
	AT_PT = 0x7000,
	AT_CODE = 0x10000,
	AT_HANDLER = 0x18000, /* of vector n: 16 bytes each, a HLT first */
	AT_KERNEL_STACK = 0x20000,
	AT_USER_STACK = 0x28000,
	AT_IST_STACK = 0x2c000,
	AT_DATA = 0x40000,
};

enum selector {
	SEL_CODE64 = 0x08,
	SEL_DATA = 0x10,
	SEL_CODE32 = 0x18,
	SEL_USER_CODE32 = 0x20 | 3, /* in the order SYSRET wants */
	SEL_USER_DATA = 0x28 | 3,
	SEL_USER_CODE64 = 0x30 | 3,
	SEL_TSS = 0x38, /* two entries in long mode */
	SEL_CODE16 = 0x48,
	SEL_DATA16 = 0x50,
	SEL_FREE = 0x58, /* for the test; two entries */
	SEL_TSS2 = 0x68,
	SEL_GDT_END = 0x80,
};

/* Code assembled for @bits mode; CODE_OF(name) gives its bytes. */
#define CODE(name, bits, text)                                                             \
	extern const u8 name##_start[], name##_end[];                                      \
	__asm__(".pushsection .rodata\n.code" #bits "\n" #name "_start:\n" text "\n" #name \
		"_end:\n.code64\n.popsection\n")
#define CODE_OF(name) name##_start, (u32)(name##_end - name##_start)

/* A new machine in the reset state; aborts when that fails. */
struct soft_machine *machine_new(void);
/* The same with options of the engine, which may open files. */
struct soft_machine *machine_new_with(const char *options);
void machine_free(struct soft_machine *m);

/* cmocka takes the fault signals before each test function: give them back to the engine. */
void machine_own_signals(void);

/* Put the CPU into a mode, at CPL 0 with flat segments (real mode: bases 0 but for CS). */
void machine_long_mode(struct soft_machine *m);
void machine_protected_mode(struct soft_machine *m);
void machine_real_mode(struct soft_machine *m);
/* From long or protected mode: CPL 3, stack at AT_USER_STACK. */
void machine_user(struct soft_machine *m, u16 code_selector);

/* Copy code to AT_CODE and set rip there. */
void machine_load(struct soft_machine *m, const u8 *code, u32 len);

/* One instruction: an enum soft_status. Faults are left in c->exc. */
int machine_step(struct soft_machine *m);
/* Until HLT (SOFT_EXIT), an exit, or a fault; with @deliver faults go to the guest's handlers. */
int machine_run(struct soft_machine *m, bool deliver);
/* Load and run to a HLT without faults. */
void machine_exec(struct soft_machine *m, const u8 *code, u32 len);

/* Complete the exit in c->exit with @data, as run() would, so that the instruction can go on. */
void machine_complete(struct soft_machine *m, u64 data);

u64 machine_get(struct soft_machine *m, gpa_t gpa, u32 size);
void machine_put(struct soft_machine *m, gpa_t gpa, u32 size, u64 value);
void machine_set_descriptor(struct soft_machine *m, u16 sel, u64 low);
/* IDT gate of @vector to its place in AT_HANDLER (or @offset), for the current mode. */
void machine_set_gate(struct soft_machine *m, u8 vector, u32 type, u32 dpl, u32 ist, u16 sel,
		      u64 offset);
/* Page-table entry of the 4 KiB page at @gva < 2 MiB; the TLB is flushed. */
void machine_set_page(struct soft_machine *m, gva_t gva, u64 entry);
/* Code or data descriptor: access byte and flags nibble, flat. */
u64 machine_descriptor(u64 base, u32 limit, u8 access, u8 flags);
