/*
 * Decoding: class, operands, flags and byte layout of chosen instructions in all modes, and what
 * must hold for any bytes.
 */
#include "engine/soft/forms.h"

#include <Zydis/Zydis.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BYTES(...) {__VA_ARGS__}, sizeof((u8[]){__VA_ARGS__})

static struct insn decode(u32 bits, const u8 *bytes, u32 len)
{
	struct insn i;

	insn_decode(&i, bytes, len, bits);
	return i;
}

/* ---- classes ---- */

static const struct {
	const char *what;
	u32 bits;
	u8 cls;
	u8 bytes[15];
	u32 len;
} classes[] = {
	{"add rax, rbx", 64, INSN_DATA, BYTES(0x48, 0x01, 0xd8)},
	{"nop", 64, INSN_NOP, BYTES(0x90)},
	{"xchg r8, rax", 64, INSN_DATA, BYTES(0x49, 0x90)},
	{"f3 with rex.b 90 is xchg", 64, INSN_DATA, BYTES(0xf3, 0x41, 0x90)},
	{"pause", 64, INSN_NOP, BYTES(0xf3, 0x90)},
	{"endbr64", 64, INSN_NOP, BYTES(0xf3, 0x0f, 0x1e, 0xfa)},
	{"bndstx is a nop", 64, INSN_NOP, BYTES(0x0f, 0x1b, 0x26)},
	{"bndmov of a register that is none", 64, INSN_NOP, BYTES(0x66, 0x0f, 0x1a, 0xff)},
	{"prefetch in a VEX encoding", 64, INSN_INVALID, BYTES(0xc4, 0x81, 0xf8, 0x18, 0x3b)},
	{"lea", 64, INSN_LEA, BYTES(0x48, 0x8d, 0x04, 0x5b)},
	{"push rbx", 64, INSN_PUSH, BYTES(0x53)},
	{"push fs", 64, INSN_SYSTEM, BYTES(0x0f, 0xa0)},
	{"push ds", 32, INSN_SYSTEM, BYTES(0x1e)},
	{"pop gs", 64, INSN_SYSTEM, BYTES(0x0f, 0xa9)},
	{"mov ds, eax", 64, INSN_SYSTEM, BYTES(0x8e, 0xd8)},
	{"mov rax, cr0", 64, INSN_SYSTEM, BYTES(0x0f, 0x20, 0xc0)},
	{"pop [rsp]", 64, INSN_POP, BYTES(0x8f, 0x04, 0x24)},
	{"call rel32", 64, INSN_CALL, BYTES(0xe8, 0, 0, 0, 0)},
	{"call [rax]", 64, INSN_CALL_INDIRECT, BYTES(0xff, 0x10)},
	{"call far [rax]", 64, INSN_SYSTEM, BYTES(0xff, 0x18)},
	{"ret", 64, INSN_RET, BYTES(0xc3)},
	{"iretq", 64, INSN_SYSTEM, BYTES(0x48, 0xcf)},
	{"jmp rel8", 64, INSN_JMP, BYTES(0xeb, 0xfe)},
	{"jmp rax", 64, INSN_JMP_INDIRECT, BYTES(0xff, 0xe0)},
	{"jz", 64, INSN_JCC, BYTES(0x74, 0)},
	{"loop", 64, INSN_LOOP, BYTES(0xe2, 0)},
	{"jrcxz", 64, INSN_LOOP, BYTES(0xe3, 0)},
	{"rep movsb", 64, INSN_STRING, BYTES(0xf3, 0xa4)},
	{"movsd xmm", 64, INSN_DATA, BYTES(0xf2, 0x0f, 0x10, 0x03)},
	{"bt [rax], ebx", 64, INSN_SYSTEM, BYTES(0x0f, 0xa3, 0x18)},
	{"bt eax, ebx", 64, INSN_DATA, BYTES(0x0f, 0xa3, 0xd8)},
	{"bt [rax], 3", 64, INSN_DATA, BYTES(0x0f, 0xba, 0x20, 0x03)},
	{"lock cmpxchg16b", 64, INSN_DATA, BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0b)},
	{"vpgatherdd", 64, INSN_SYSTEM, BYTES(0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b)},
	{"cpuid", 64, INSN_SYSTEM, BYTES(0x0f, 0xa2)},
	{"ud2", 64, INSN_SYSTEM, BYTES(0x0f, 0x0b)},
	{"hlt", 64, INSN_SYSTEM, BYTES(0xf4)},
	{"aaa", 32, INSN_SYSTEM, BYTES(0x37)},
	{"aaa in 64-bit mode", 64, INSN_INVALID, BYTES(0x37)},
	{"82 in 64-bit mode", 64, INSN_INVALID, BYTES(0x82, 0xc0, 0x00)},
	{"fadd st, [rax]", 64, INSN_DATA, BYTES(0xd8, 0x00)},
	{"fxsave", 64, INSN_SYSTEM, BYTES(0x0f, 0xae, 0x00)},
};

static void gives_classes(void **state)
{
	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(classes); n++) {
		struct insn i = decode(classes[n].bits, classes[n].bytes, classes[n].len);

		if (i.cls != classes[n].cls)
			print_message("%s\n", classes[n].what);
		assert_int_equal(i.cls, classes[n].cls);
		if (i.cls != INSN_INVALID)
			assert_int_equal(i.len, classes[n].len);
	}
}

/* ---- operands ---- */

static void finds_memory_operand(void **state)
{
	/* add dword ptr gs:[r12 + rcx * 4 - 0x80], r9d */
	static const u8 bytes[] = {0x65, 0x45, 0x01, 0x4c, 0x8c, 0x80};
	struct insn i = decode(64, bytes, sizeof(bytes));

	(void)state;
	assert_true(i.has_mem && i.mem_read && i.mem_write);
	assert_int_equal(i.seg, SEG_GS);
	assert_int_equal(i.base, R12);
	assert_int_equal(i.index, RCX);
	assert_int_equal(i.scale, 4);
	assert_int_equal(i.disp, -0x80);
	assert_int_equal(i.mem_size, 4);
	assert_int_equal(i.reg.reg, R9);
	assert_int_equal(i.reg.size, 4);
	assert_int_equal(i.rm.reg, NO_REG);
	assert_int_equal(i.gpr_read, 1u << R12 | 1u << RCX | 1u << R9);
	assert_int_equal(i.gpr_write, 0);
}

static void scales_evex_displacement(void **state)
{
	/* vaddps zmm0, zmm0, [rax + 0x40] and the same broadcasting one float at [rax + 4] */
	static const u8 full[] = {0x62, 0xf1, 0x7c, 0x48, 0x58, 0x40, 0x01};
	static const u8 broadcast[] = {0x62, 0xf1, 0x7c, 0x58, 0x58, 0x40, 0x01};
	struct insn i = decode(64, full, sizeof(full));

	(void)state;
	assert_int_equal(i.disp, 64);
	assert_int_equal(i.mem_size, 64);
	i = decode(64, broadcast, sizeof(broadcast));
	assert_int_equal(i.disp, 4);
	assert_int_equal(i.mem_size, 4);
}

/* SDM vol. 2, table 2-5: mod 0 and base 5 mean no base, whatever REX.B says. */
static void sib_without_base(void **state)
{
	static const u8 wide[] = {0x41, 0x8b, 0x04, 0x75, 0xff, 0xdd, 0x30, 0x66};
	static const u8 narrow[] = {0x67, 0x41, 0x8b, 0x04, 0x75, 0xff, 0xdd, 0x30, 0x66};
	struct insn i = decode(64, wide, sizeof(wide));

	(void)state;
	assert_int_equal(i.base, NO_REG);
	assert_int_equal(i.index, RSI);
	assert_int_equal(i.disp, 0x6630ddff);
	i = decode(64, narrow, sizeof(narrow));
	assert_int_equal(i.len, 9);
	assert_int_equal(i.addrsize, 4);
	assert_int_equal(i.base, NO_REG);
	assert_int_equal(i.index, RSI);
	assert_int_equal(i.disp, 0x6630ddff);
}

static void finds_rip_relative_operand(void **state)
{
	static const u8 bytes[] = {0x48, 0x8b, 0x05, 0x10, 0x00, 0x00, 0x00};
	struct insn i = decode(64, bytes, sizeof(bytes));

	(void)state;
	assert_true(i.is_rip_relative);
	assert_int_equal(i.base, NO_REG);
	assert_int_equal(i.disp, 0x10);
}

static void knows_high_bytes(void **state)
{
	static const u8 high[] = {0x88, 0xe3};      /* mov bl, ah */
	static const u8 low[] = {0x40, 0x88, 0xe3}; /* mov bl, spl */
	struct insn i = decode(64, high, sizeof(high));

	(void)state;
	assert_true(i.reg.high);
	assert_int_equal(i.reg.reg, RAX);
	assert_false(i.rm.high);
	i = decode(64, low, sizeof(low));
	assert_false(i.reg.high);
	assert_int_equal(i.reg.reg, RSP);
}

static void knows_masked_operands(void **state)
{
	static const u8 masked[] = {0x62, 0xf1, 0x7c, 0x49, 0x58, 0x00}; /* vaddps zmm0{k1} */
	static const u8 plain[] = {0x62, 0xf1, 0x7c, 0x48, 0x58, 0x00};
	/* vdbpsadbw xmm0{k1}, xmm0, [rax], 0: exception class E4NF, faults are not suppressed */
	static const u8 not_suppressed[] = {0x62, 0xf3, 0x7d, 0x09, 0x42, 0x00, 0x00};
	struct insn i = decode(64, masked, sizeof(masked));

	(void)state;
	assert_true(i.masked);
	i = decode(64, plain, sizeof(plain));
	assert_false(i.masked);
	i = decode(64, not_suppressed, sizeof(not_suppressed));
	assert_int_equal(i.cls, INSN_DATA);
	assert_false(i.masked);
}

/* ---- flags ---- */

static const struct {
	const char *what;
	u8 bytes[15];
	u32 len;
	u64 read, kill, write;
} flags[] = {
	{"add", BYTES(0x01, 0xd8), 0, RFLAGS_ARITH, RFLAGS_ARITH},
	{"adc", BYTES(0x11, 0xd8), RFLAGS_CF, RFLAGS_ARITH, RFLAGS_ARITH},
	{"inc", BYTES(0xff, 0xc0), 0, RFLAGS_ARITH & ~RFLAGS_CF, RFLAGS_ARITH & ~RFLAGS_CF},
	{"and", BYTES(0x21, 0xd8), 0, RFLAGS_ARITH, RFLAGS_ARITH},
	{"mov", BYTES(0x89, 0xd8), 0, 0, 0},
	{"shl by 3", BYTES(0xc1, 0xe0, 0x03), 0, RFLAGS_ARITH, RFLAGS_ARITH},
	{"rol by 1", BYTES(0xd1, 0xc0), 0, RFLAGS_CF | RFLAGS_OF, RFLAGS_CF | RFLAGS_OF},
	{"rol by 3", BYTES(0xc1, 0xc0, 0x03), 0, RFLAGS_CF, RFLAGS_CF | RFLAGS_OF},
	{"shl by 32", BYTES(0xc1, 0xe0, 0x20), 0, 0, RFLAGS_ARITH},
	{"shl by cl", BYTES(0xd3, 0xe0), 0, 0, RFLAGS_ARITH},
	{"imul leaves the undefined ones alone", BYTES(0x0f, 0xaf, 0xc3), 0, RFLAGS_CF | RFLAGS_OF,
	 RFLAGS_ARITH},
	{"bt", BYTES(0x0f, 0xa3, 0xd8), 0, RFLAGS_CF, RFLAGS_ARITH & ~RFLAGS_ZF},
	{"sete", BYTES(0x0f, 0x94, 0xc0), RFLAGS_ZF, 0, 0},
	{"cmovbe", BYTES(0x0f, 0x46, 0xc3), RFLAGS_CF | RFLAGS_ZF, 0, 0},
	{"jle", BYTES(0x7e, 0x00), RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF, 0, 0},
	{"what is interpreted may look at all of them", BYTES(0x0f, 0xa2), RFLAGS_ARITH, 0, 0},
};

static void tells_flags(void **state)
{
	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(flags); n++) {
		struct insn i = decode(64, flags[n].bytes, flags[n].len);

		if (i.flags_read != flags[n].read || i.flags_kill != flags[n].kill)
			print_message("%s: reads %x kills %x writes %x\n", flags[n].what,
				      i.flags_read, i.flags_kill, i.flags_write);
		assert_int_equal(i.flags_read, flags[n].read);
		assert_int_equal(i.flags_kill, flags[n].kill);
		if (i.cls != INSN_SYSTEM)
			assert_int_equal(i.flags_write & ~flags[n].write, 0);
	}
}

/* ---- layout ---- */

/* SDM vol. 2, FISTTP: #NM like any other x87 instruction, though it came with SSE3 */
static void fisttp_needs_x87(void **state)
{
	const u8 fisttp[] = {0xdb, 0x08}, addsubps[] = {0xf2, 0x0f, 0xd0, 0xc1};

	(void)state;
	assert_true(decode(64, fisttp, sizeof(fisttp)).needs_x87);
	assert_false(decode(64, addsubps, sizeof(addsubps)).needs_x87);
}

static void finds_layout(void **state)
{
	/* es lock 66 rex.w add [rbx + 0x12345678], imm32 */
	static const u8 bytes[] = {0x26, 0xf0, 0x66, 0x48, 0x81, 0x83, 0x78,
				   0x56, 0x34, 0x12, 1,    2,    3,    4};
	static const u8 vex[] = {0xc4, 0xe3, 0x75, 0x0f, 0xc2, 0x05}; /* vpalignr */
	struct insn i = decode(64, bytes, sizeof(bytes));

	(void)state;
	assert_int_equal(i.prefixes, 3);
	assert_int_equal(i.rex, 0x48);
	assert_int_equal(i.opcode_off, 4);
	assert_int_equal(i.opcode_len, 1);
	assert_int_equal(i.modrm_off, 5);
	assert_int_equal(i.imm_off, 10);
	assert_int_equal(i.imm_len, 4);
	assert_true(i.lock);
	i = decode(64, vex, sizeof(vex));
	assert_int_equal(i.encoding, ENC_VEX);
	assert_int_equal(i.vex_len, 3);
	assert_int_equal(i.opcode_off, 3);
	assert_int_equal(i.modrm_off, 4);
	assert_int_equal(i.imm_len, 1);
}

static void asks_for_more_bytes(void **state)
{
	static const u8 bytes[] = {0x48, 0x81, 0x83, 0x78, 0x56, 0x34, 0x12, 1, 2, 3, 4};

	(void)state;
	for (u32 len = 1; len < sizeof(bytes); len++) {
		struct insn i = decode(64, bytes, len);

		assert_int_equal(i.len, 0);
		assert_int_equal(i.cls, INSN_INVALID);
	}
}

/* Fifteen bytes are the limit: more prefixes make it invalid, not incomplete. */
static void limits_length(void **state)
{
	u8 bytes[15];
	struct insn i;

	(void)state;
	memset(bytes, 0x66, sizeof(bytes));
	i = decode(64, bytes, sizeof(bytes));
	assert_int_equal(i.cls, INSN_INVALID);
	assert_int_not_equal(i.len, 0);
}

/* ---- any bytes ---- */

static void check_sanity(const struct insn *i, u32 len)
{
	assert_true(i->len <= len);
	if (i->cls == INSN_INVALID)
		return;
	assert_true(i->len > 0);
	assert_true(i->prefixes <= i->opcode_off);
	assert_true(i->opcode_off + i->opcode_len <= i->len);
	assert_true(i->imm_off + i->imm_len == i->len);
	if (i->has_modrm)
		assert_true(i->modrm_off == i->opcode_off + i->opcode_len && i->modrm_off < i->len);
	assert_true(i->base == NO_REG || i->base < GPR_COUNT);
	assert_true(i->index == NO_REG || i->index < GPR_COUNT);
	assert_true(i->seg <= SEG_GS);
	assert_int_equal(i->flags_kill & ~RFLAGS_ARITH, 0);
	assert_int_equal(i->flags_kill & ~i->flags_write, 0);
	if (i->cls == INSN_DATA && i->has_mem)
		assert_true(i->mem_read || i->mem_write);
}

static void survives_any_bytes(void **state)
{
	u64 seed = 1;

	(void)state;
	for (u32 n = 0; n < 300000; n++) {
		u32 len = 1 + n % 15;
		u8 bytes[15];
		struct insn i;

		for (u32 k = 0; k < len; k++) {
			seed = seed * 6364136223846793005ul + 1442695040888963407ul;
			bytes[k] = (u8)(seed >> 56);
		}
		i = decode(n % 3 == 0 ? 16 : n % 3 == 1 ? 32 : 64, bytes, len);
		check_sanity(&i, len);
	}
}

/* ---- remembered forms ---- */

/* Both ways, twice, so that the second time finds what the first remembered. */
static void expect_same(struct forms *f, const u8 *bytes, u32 len, u32 bits)
{
	struct insn plain, by_form;

	for (u32 n = 0; n < 2; n++) {
		memset(&plain, 0, sizeof(plain));
		memset(&by_form, 0, sizeof(by_form));
		insn_decode(&plain, bytes, len, bits);
		forms_decode(f, &by_form, bytes, len, bits);
		/* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): both began as zeroes */
		if (!memcmp(&plain, &by_form, sizeof(plain)))
			continue;
		for (u32 k = 0; k < len; k++)
			print_message("%02x ", bytes[k]);
		fail_msg("(%u bits, %s) is decoded otherwise by its form", bits,
			 n ? "again" : "first");
	}
}

/* Each opcode of the legacy and VEX maps with random prefixes, ModRM and values. */
static void make_instruction(u64 *seed, u8 bytes[15])
{
	static const u8 prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x2e, 0x67};
	u32 n = 0, map;

	for (u32 k = 0; k < 15; k++) {
		*seed = *seed * 6364136223846793005ul + 1442695040888963407ul;
		bytes[k] = (u8)(*seed >> 56);
	}
	map = *seed >> 40 & 7;
	if ((*seed >> 32 & 3) == 0)
		bytes[n++] = prefixes[*seed >> 24 & 7];
	if ((*seed >> 34 & 1) == 0)
		bytes[n++] = 0x40 | (bytes[14] & 15);
	if (map > 2 && map < 6)
		bytes[n++] = 0x0f;
	if (map == 4)
		bytes[n] = 0x38;
	else if (map == 5)
		bytes[n] = 0x3a;
	else if (map >= 6)
		bytes[n] = map == 6 ? 0xc5 : 0xc4;
}

static void forms_change_nothing(void **state)
{
	struct forms *f = calloc(1, sizeof(*f));
	u64 seed = 7;
	u8 bytes[15];

	(void)state;
	assert_non_null(f);
	for (u32 n = 0; n < 400000; n++) {
		make_instruction(&seed, bytes);
		expect_same(f, bytes, n % 7 ? 15 : 1 + n % 14, n % 9 ? 64 : 32);
	}
	free(f);
}

/* Opcodes whose forms have no registers: all of these, with all kinds of addresses. */
static void forms_take_registers(void **state)
{
	static const u8 one[] = {0x01, 0x03, 0x09, 0x0b, 0x11, 0x19, 0x21, 0x23, 0x29,
				 0x2b, 0x31, 0x33, 0x39, 0x3b, 0x3d, 0x63, 0x69, 0x6b,
				 0x81, 0x83, 0x85, 0x87, 0x89, 0x8b, 0x8d, 0xc1, 0xc7,
				 0xd1, 0xd3, 0xf7, 0xff, 0x88, 0x8a, 0x80, 0xc6, 0xf6};
	static const u8 two[] = {0x40, 0x4f, 0xaf, 0xb6, 0xb7, 0xbe, 0xbf, 0xa5, 0xb1, 0xc1, 0x10};
	static const u8 prefixes[] = {0, 0x66, 0xf3, 0x64, 0x2e, 0xf0};
	struct forms *f = calloc(1, sizeof(*f));
	u64 seed = 11;

	(void)state;
	assert_non_null(f);
	for (u32 n = 0; n < 3000000; n++) {
		u8 bytes[15] = {0};
		u32 k = 0;

		seed = seed * 6364136223846793005ul + 1442695040888963407ul;
		if (seed >> 61 == 0)
			bytes[k++] = prefixes[(seed >> 56 & 31) % ARRAY_SIZE(prefixes)];
		if (seed >> 55 & 1)
			bytes[k++] = 0x40 | (seed >> 51 & 15);
		if (seed >> 50 & 1) {
			bytes[k++] = 0x0f;
			bytes[k++] = two[(seed >> 42 & 0xff) % ARRAY_SIZE(two)];
		} else {
			bytes[k++] = one[(seed >> 42 & 0xff) % ARRAY_SIZE(one)];
		}
		bytes[k++] = (u8)(seed >> 34); /* ModRM, SIB, the rest */
		bytes[k++] = (u8)(seed >> 26);
		for (; k < 15; k++)
			bytes[k] = (u8)(seed >> (k + 4));
		expect_same(f, bytes, 15, 64);
	}
	free(f);
}

/* The same form with all values that its displacement and immediate may have. */
static void forms_take_values(void **state)
{
	static const struct {
		u8 bytes[15];
		u32 len, open; /* bytes from here on vary */
	} cases[] = {
		{BYTES(0x48, 0x8b, 0x43, 0), 3},          /* mov rax, [rbx + disp8] */
		{BYTES(0x48, 0x8b, 0x05, 0, 0, 0, 0), 3}, /* mov rax, [rip + disp32] */
		{BYTES(0x48, 0x81, 0x84, 0x8b, 0, 0, 0, 0, 0, 0, 0, 0), 4}, /* add, both */
		{BYTES(0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0), 2},             /* mov rax, imm64 */
		{BYTES(0xb8, 0, 0, 0, 0), 1},                               /* mov eax, imm32 */
		{BYTES(0x6a, 0), 1},                                        /* push imm8 */
		{BYTES(0x0f, 0x85, 0, 0, 0, 0), 2},                         /* jnz rel32 */
		{BYTES(0xc1, 0xe0, 0), 2},                                  /* shl eax, imm8 */
		{BYTES(0x48, 0xc1, 0xc0, 0), 3},                            /* rol rax, imm8 */
		{BYTES(0xc1, 0x43, 0, 0), 2},                   /* rol [rbx + disp8], imm8 */
		{BYTES(0x0f, 0xa4, 0xd8, 0), 3},                /* shld eax, ebx, imm8 */
		{BYTES(0xc2, 0, 0), 1},                         /* ret imm16 */
		{BYTES(0x42, 0x8b, 0x04, 0x25, 0, 0, 0, 0), 4}, /* SIB without base */
		{BYTES(0xc8, 0, 0, 0), 1},                      /* enter */
		{BYTES(0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0), 2}, /* mov rax, [moffs] */
		{BYTES(0xc5, 0xf9, 0x70, 0x43, 0, 0), 4},       /* vpshufd */
	};
	struct forms *f = calloc(1, sizeof(*f));
	u64 seed = 3;

	(void)state;
	assert_non_null(f);
	for (u32 n = 0; n < 1000 * ARRAY_SIZE(cases); n++) {
		const u32 c = n % ARRAY_SIZE(cases);
		u8 bytes[15] = {0};

		memcpy(bytes, cases[c].bytes, cases[c].len);
		for (u32 k = cases[c].open; k < cases[c].len; k++) {
			seed = seed * 6364136223846793005ul + 1442695040888963407ul;
			bytes[k] = (u8)(seed >> 56);
		}
		expect_same(f, bytes, cases[c].len, 64);
	}
	free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gives_classes),
		cmocka_unit_test(finds_memory_operand),
		cmocka_unit_test(scales_evex_displacement),
		cmocka_unit_test(sib_without_base),
		cmocka_unit_test(finds_rip_relative_operand),
		cmocka_unit_test(knows_high_bytes),
		cmocka_unit_test(knows_masked_operands),
		cmocka_unit_test(tells_flags),
		cmocka_unit_test(fisttp_needs_x87),
		cmocka_unit_test(finds_layout),
		cmocka_unit_test(asks_for_more_bytes),
		cmocka_unit_test(limits_length),
		cmocka_unit_test(survives_any_bytes),
		cmocka_unit_test(forms_change_nothing),
		cmocka_unit_test(forms_take_registers),
		cmocka_unit_test(forms_take_values),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
