#include "legacy.h"

enum {
	REAL_CODE = 0x68,
	REAL_DATA = 0x70,
	REAL_AT = 0x8000,
	REAL_VECTORS = 0x7000,
	VECTORS = 64,
	GATE_INTERRUPT32 = 0x8e
};

extern const u8 legacy_stubs[];
extern const u8 real_mode[], real_start[], real_stubs[], real_mode_end[];

struct legacy legacy __attribute__((aligned(16)));
struct tss32 legacy_tss __attribute__((aligned(128)));
static u64 legacy_idt[VECTORS] __attribute__((aligned(16)));
extern struct table_register legacy_idtr;
struct table_register legacy_idtr = {sizeof(legacy_idt) - 1, (u64)legacy_idt};

void legacy_excursion(void); /* legacy.S */

_Static_assert(offsetof(struct legacy, trap.edi) == 52, "legacy.S");
_Static_assert(offsetof(struct legacy, stack) == 128, "legacy.S");

void legacy_gate(u8 vector, u32 offset, u16 selector, u8 access)
{
	*(volatile u64 *)&legacy_idt[vector] = (offset & 0xffff) | (u64)selector << 16 |
					       (u64)access << 40 | (u64)(offset >> 16) << 48;
}

/* Real mode begins at a place of its own, below 1 MiB, with its own vectors. */
static void place_real_mode(void)
{
	u16 *start = (u16 *)(REAL_AT + (u64)(real_start - real_mode));
	const u16 words[] = {(u16)legacy.start.ds, (u16)legacy.start.es,     (u16)legacy.start.eip,
			     (u16)legacy.start.cs, (u16)legacy.start.eflags, (u16)legacy.start.esp,
			     (u16)legacy.start.ss};

	gdt_set(REAL_CODE, descriptor(0, 0xffff, 0x9b, 0));
	gdt_set(REAL_DATA, descriptor(0, 0xffff, 0x93, 0));
	memcpy((void *)(u64)REAL_AT, real_mode, (u64)(real_mode_end - real_mode));
	memcpy(start, words, sizeof(words));
	for (u32 v = 0; v < VECTORS; v++)
		*(volatile u32 *)(REAL_VECTORS + 4ul * v) =
			REAL_AT + (u32)(real_stubs - real_mode) + 8 * v;
}

void legacy_run(void)
{
	if (!(legacy.cr0 & CR0_PE))
		place_real_mode();
	legacy_excursion();
}

void legacy_prepare(u32 ring, const void *code)
{
	const u32 top = (u32)(u64)(legacy.stack + ARRAY_SIZE(legacy.stack));

	memset(&legacy, 0, sizeof(legacy));
	legacy.cr0 = CR0_PE | BIT(4) | CR0_NE;
	legacy.efer = (u32)rdmsr(MSR_EFER) & ~(u32)(EFER_LME | EFER_LMA);
	legacy.start.eip = (u32)(u64)code;
	legacy.start.cs = ring ? UCODE32 : KCODE32;
	legacy.start.eflags = RFLAGS_1;
	legacy.start.esp = (u32)(u64)(user_stack + sizeof(user_stack) - 128);
	legacy.start.ss = UDATA;
	memset(&legacy_tss, 0, sizeof(legacy_tss));
	legacy_tss.esp0 = top;
	legacy_tss.ss0 = KDATA;
	legacy_tss.io_bitmap = sizeof(legacy_tss);
	gdt_set(LEGACY_TSS, descriptor((u32)(u64)&legacy_tss, sizeof(legacy_tss) - 1, 0x89, 0));
	for (u32 v = 0; v < VECTORS; v++)
		legacy_gate((u8)v, (u32)(u64)(legacy_stubs + 16 * v), KCODE32,
			    v == VEC_DONE ? GATE_INTERRUPT32 | 0x60 : GATE_INTERRUPT32);
}
