/*
 * Differential testing: the same short instruction sequence on the host CPU, in the interpreter and
 * in translated code.
 *
 * A case is a sequence of instructions with the whole register state before it. Three runners turn
 * it into an outcome: native.c (a signal frame loads the state, the exception that ends the
 * sequence yields the state after it), and guest.c twice (a virtual machine of the soft engine
 * whose page tables show the same memory at the same addresses; interpreted and translated). Every
 * sequence ends with INT3, so that an outcome always is an exception with its registers; then all
 * outcomes must be equal.
 */
#pragma once

#include "cpu/state.h"
#include "engine/soft/decode.h"

#include <stdio.h>

enum {
	DIFF_MAX_ITEMS = 8,
	DIFF_MAX_CODE = 224,

	/* Memory that all runners see at the same addresses. */
	DATA_BASE = 0x10000000,
	DATA_PAGES = 8,
	CODE_BASE = 0x20000000,
	CODE_PAGES = 4,
	MEMORY_BYTES = (DATA_PAGES + CODE_PAGES) * 4096,

	/* Pages of the data region that are special. */
	PAGE_HOLE = 3,
	PAGE_READ_ONLY = 5,
};

/* What one element of a sequence is. Branches lead to the start of another element. */
enum item_kind {
	ITEM_INSN,
	ITEM_JCC,      /* jcc rel8 */
	ITEM_JMP,      /* jmp rel8 */
	ITEM_CALL,     /* call rel32 */
	ITEM_RET,      /* push imm32; ret */
	ITEM_JMP_REG,  /* mov eax, imm32; jmp rax */
	ITEM_CALL_REG, /* mov ecx, imm32; call rcx */
	ITEM_JRCXZ,
	ITEM_LOOP, /* the only one that may lead back */
	ITEM_KINDS,
};

struct item {
	u8 kind;
	u8 cond;   /* ITEM_JCC */
	u8 target; /* branches: index of the item to go to; at or past the end: the final INT3 */
	u8 len;    /* ITEM_INSN */
	u8 bytes[15];
};

struct test_case {
	u64 number;
	u32 bits;        /* 64, or 32: compatibility mode */
	bool user;       /* CPL of the guest: 3 or 0 */
	u32 code_offset; /* of the first byte, within the code region */
	u32 items;
	struct item item[DIFF_MAX_ITEMS];
	u64 r[GPR_COUNT];
	u64 flags; /* arithmetic flags and DF */
	u64 fs_base, gs_base;
	_Alignas(64) u8 xsave[CPU_XSAVE_MAX];
};

/* What is compared. */
struct outcome {
	u8 vector; /* OUTCOME_NONE: the engine returned something else than an exception */
	u32 error;
	u64 cr2; /* #PF only */
	u64 rip;
	u64 r[GPR_COUNT];
	u64 flags;
	u64 fs_base, gs_base;
	char note[80]; /* OUTCOME_NONE: what happened instead */
	_Alignas(64) u8 xsave[CPU_XSAVE_MAX];
	u8 memory[MEMORY_BYTES];
};

enum { OUTCOME_NONE = 0xff };

/* The state components in use, and the size of their standard-format image. */
struct layout {
	u64 xcr0;
	u32 xsave_size;
	u32 offset[64], size[64]; /* by component */
};

/* Find the host's XSAVE layout for @xcr0. */
void layout_init(struct layout *l, u64 xcr0, u32 size);

/* ---- assemble.c ---- */

/* The sequence's bytes at CODE_BASE + code_offset, with the final INT3; returns their number. */
u32 case_assemble(const struct test_case *t, u8 code[DIFF_MAX_CODE]);
/* The memory before a run: data pattern, INT3 everywhere in the code region, the code. */
void case_memory(const struct test_case *t, const u8 *pattern, u8 memory[MEMORY_BYTES]);
void case_print(const struct test_case *t, FILE *f);
/*
 * Arithmetic flags that the instruction at @rip or one behind it reads before they are overwritten.
 * The translator's memory checks may clobber the others, so a fault there may show any value of
 * them.
 */
u64 case_flags_live(const struct test_case *t, u64 rip);

/* ---- generate.c ---- */

struct generator {
	u64 rng;
	u64 walk[16];     /* position in each opcode map, see generate.c */
	const void *only; /* compiled regex_t that mnemonics must match, or NULL */
	u32 bits_only;    /* 32 or 64: no other mode; 0: both */
	bool singles;     /* one instruction per case */
	bool undecodable; /* also bytes that the decoder does not know */
	const struct layout *layout;
	u8 pattern[DATA_PAGES * 4096]; /* initial contents of the data region */
};

void generator_init(struct generator *g, u64 seed, const struct layout *layout);
/* The next case. False when no instruction that matches was found. */
bool generator_next(struct generator *g, struct test_case *t);

/* ---- native.c ---- */

/* Map the regions; before the engine reserves addresses. 0 or -errno. */
int native_map(void);
/* Take over the signals; after the engine has done so. 0 or -errno. */
int native_init(const struct layout *layout);
void native_run(const struct test_case *t, const u8 memory[MEMORY_BYTES], struct outcome *o);
/* End the run that a signal handler with this @context has interrupted, if any. */
void native_stop(void *context);
/* Called when the process takes a fault outside of the sequence under test. */
void native_on_crash(void (*hook)(void));

/* ---- guest.c ---- */

struct guest;

enum guest_how {
	GUEST_INTERPRETED,
	GUEST_TRANSLATED,
	GUEST_AGAIN, /* translated code as the previous run left it */
};

/* A machine for one layout of the XSAVE area, which is filled in; @options are the engine's. NULL
 * after a message on stderr. */
struct guest *guest_create(struct layout *layout, const char *options);
void guest_destroy(struct guest *g);
void guest_run(struct guest *g, const struct test_case *t, const u8 memory[MEMORY_BYTES],
	       enum guest_how how, struct outcome *o);
/* Make guest_run() return; from a signal handler. */
void guest_kick(struct guest *g);

/* ---- compare.c ---- */

/* Bring the vector state into a canonical form, in which equal states are equal bytes. */
void outcome_normalise(const struct layout *l, struct outcome *o);
/*
 * Equal in all that counts? Differences are printed to @f unless that is NULL. @translated: flags
 * that are dead at a fault may differ.
 */
bool outcome_compare(const struct layout *l, const struct test_case *t,
		     const struct outcome *native, const struct outcome *other, bool translated,
		     const char *name, FILE *f);
