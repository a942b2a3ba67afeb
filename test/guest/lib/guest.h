/*
 * The 64-bit environment of the conformance guests.
 *
 * A case describes the state of the processor (struct state), starts a piece of code with it
 * through exec(), and looks at the state that the next exception or interrupt found: the same way
 * for ring 0 and ring 3, 64-, 32- and 16-bit code. Code that ends well ends with INT VEC_DONE.
 *
 * Virtual memory, made anew for each case:
 *
 *   0x00000000  RAM, one to one, supervisor, 2 MiB pages
 *   USER_ALIAS  the same RAM again, open to ring 3
 *   TEST_AREA   nothing; pages come by page_map()
 *   0xc0000000  device memory, one to one
 *
 * Everything else is unmapped. All vectors use a stack of their own (IST 1) so that a case may ruin
 * RSP.
 */
#pragma once

#include "tap.h"
#include "x86.h"

#define USER_ALIAS 0x40000000ul
#define TEST_AREA  0x80000000ul
/* Unmapped, and far away from the others: in the upper half. */
#define TEST_HIGH 0xffffa00000000000ul

enum selector {
	KCODE64 = 0x08,
	KDATA = 0x10,
	UCODE32 = 0x18 | 3,
	UDATA = 0x20 | 3,
	UCODE64 = 0x28 | 3,
	KCODE32 = 0x30,
	KCODE16 = 0x38,
	UCODE16 = 0x40 | 3,
	TSS_SELECTOR = 0x48,
	TEST_SELECTOR = 0x60, /* from here on free for test cases: TEST_SELECTOR + 8 * i */
	GDT_ENTRIES = 64,
};

/* The processor's state as trap64.S keeps it. */
struct state {
	u64 gs, fs, es, ds;
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
	/* Filled in after a trap only. */
	u64 cr2;
	u64 frame; /* where the processor pushed rip */
};

enum exec_mode { KERNEL64, KERNEL32, KERNEL16, USER64, USER32, USER16 };

/*
 * A piece of code with the labels NAME, NAME_end (its final INT VEC_DONE). It is assembled in place
 * and must be position independent: ring 3 runs it through USER_ALIAS.
 */
#define CODE(name, text)                                                                    \
	extern const u8 name[], name##_end[];                                               \
	__asm__(".pushsection .text.code, \"ax\"\n.balign 16\n" #name ":\n" text "\n" #name \
		"_end: int $" STRINGIFY(0x30) "\n.code64\n.popsection")

/* The same around one instruction of interest: NAME_at is its address, NAME_next the following one.
 */
#define CODE_AT(name, before, instruction, after)   \
	extern const u8 name##_at[], name##_next[]; \
	CODE(name, before "\n" #name "_at: " instruction "\n" #name "_next: " after)

struct tss {
	u32 reserved0;
	u64 rsp[3];
	u64 reserved1;
	u64 ist[7];
	u64 reserved2;
	u16 reserved3;
	u16 io_bitmap;
	u8 bitmap[8193];
} __packed;

extern u64 gdt[GDT_ENTRIES];
extern struct tss tss;
extern u8 kernel_stack[8192], user_stack[8192], trap_stack[8192];
extern const u8 trap_stubs[], exec_iret[];

/*
 * Called for each trap while test code runs. True: go on with the (changed) state; false: the test
 * code ends here. Reset to NULL before each case.
 */
extern bool (*trap_hook)(struct state *s);
/* The same for every trap on every processor, also in the case's own code (see smp.h). */
extern bool (*any_cpu_hook)(struct state *s);

/*
 * Is @word on the kernel's command line? What a guest can be told:
 *
 *   lazy-offers    of the end of an interrupt in memory (paravirt.c)
 *   no-sti-shadow  the processor loses STI's shadow at times (shadow.c)
 */
bool told(const char *word);
/* The trap in @s may be an interrupt that the processor let into STI's shadow. Puts that right
 * where it was told to forgive it; true: go back to the interrupted code as if nothing had come.
 * Without @of_case only where a wake-up would be lost. */
bool shadow_repair(struct state *s, bool of_case);

/* A state for @code in @mode: flat segments, a stack, RFLAGS 2, everything else zero. */
struct state state_for(enum exec_mode mode, const void *code);
void exec(struct state *s);
/* state_for() and exec() in one. */
struct state run(enum exec_mode mode, const void *code);

static inline u64 user(const volatile void *p)
{
	return (u64)p + USER_ALIAS;
}

/* The trap in @s is @vector with @error (0 where there is none) at @at, a label of CODE_AT. */
void check_trap(const struct state *s, u64 vector, u64 error, const void *at, int line);
#define expect_trap(s, vector, error, at) check_trap(s, vector, error, at, __LINE__)
/* The code of @s reached its end. */
void check_done(const struct state *s, const void *end, int line);
#define expect_done(s, name) check_done(s, name##_end, __LINE__)

/* Descriptors. Access byte and flags (G, D/B, L, AVL in bits 3:0) as in the manual. */
u64 descriptor(u32 base, u32 limit, u8 access, u8 flags);
void gdt_set(u32 selector, u64 value);
/* A 16-byte system descriptor, or call gate when built by call_gate(). */
void gdt_set_system(u32 selector, u64 base, u32 limit, u8 access);
void gdt_set_call_gate(u32 selector, u16 target_selector, u64 target, u8 access);
void gdt_load_limit(u16 limit);
/* Gates of the IDT. @access: P, DPL and type; @ist 0 to 7. */
void idt_set(u8 vector, u64 target, u16 selector, u8 access, u8 ist);
void idt_load_limit(u16 limit);

/* Pages. Tables in between are made present, writable, user. */
u64 *page_entry(u64 va, int level);
/* Map the 4 KiB page at @va to @pa with the given PTE bits, and drop its old translation. */
u64 *page_map(u64 va, u64 pa, u64 bits);
/* A zeroed page that is given back at the end of the case. */
void *page_alloc(void);
/* The same, @count pages in a row, aligned to @align bytes. */
void *pages_alloc(u32 count, u64 align);
void tlb_flush(void);
/* Make the tables of the map above and drop what page_alloc() gave; environment_reset() calls it.
 */
void page_reset(void);

/* CPUID by feature, true when present. */
bool cpu_is_amd(void);
u32 physical_bits(void);

/* The local APIC, as memory. */
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
#define APIC_BASE 0xfee00000ul
enum apic_register {
	APIC_ID = 0x20,
	APIC_TPR = 0x80,
	APIC_EOI = 0xb0,
	APIC_SVR = 0xf0,
	APIC_ISR = 0x100,
	APIC_IRR = 0x200,
	APIC_ICR = 0x300,
	APIC_ICR_HIGH = 0x310,
	APIC_LVT_TIMER = 0x320,
	APIC_LVT_LINT0 = 0x350,
	APIC_TIMER_COUNT = 0x380,
	APIC_TIMER_DIVIDE = 0x3e0,
	APIC_SELF = 0x40000, /* destination shorthand in the ICR */
	APIC_NMI = 0x400,
	APIC_MASKED = 0x10000,
	APIC_PERIODIC = 0x20000,
	APIC_TSC_DEADLINE = 0x40000,
};
/* Make @vector pending on this processor; interrupts are off, so it stays so. */
void send_self(u8 vector);
void send_nmi(void);
