/*
 * Re-encoding of guest data instructions: random instructions of all three modes are emitted with
 * other registers and another memory operand, decoded again as host code, and must mean the same.
 */
#include "engine/soft/emit.h"
#include "engine/soft/soft.h"

#include <Zydis/Zydis.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct decoded {
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};

static u64 next_random(u64 *s)
{
	u64 z = *s += 0x9e3779b97f4a7c15ul;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ul;
	z = (z ^ z >> 27) * 0x94d049bb133111ebul;
	return z ^ z >> 31;
}

static bool decode(struct decoded *d, const u8 *p, u32 len, u32 bits)
{
	ZydisDecoder decoder;

	ZydisDecoderInit(&decoder,
			 bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
			 : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
				      : ZYDIS_MACHINE_MODE_LEGACY_16,
			 bits == 64   ? ZYDIS_STACK_WIDTH_64
			 : bits == 32 ? ZYDIS_STACK_WIDTH_32
				      : ZYDIS_STACK_WIDTH_16);
	return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, p, len, &d->z, d->ops));
}

/* Random bytes that often are instructions of the maps with many operand forms. */
static void random_insn(u64 *s, u32 bits, u8 p[15])
{
	static const u8 prefix[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x64};
	u64 r = next_random(s);
	u32 n = 0;

	for (u32 k = 0; k < 15; k++)
		p[k] = (u8)next_random(s);
	while (n < 2 && (r >> n & 1))
		p[n++] = prefix[next_random(s) % 6];
	if (bits == 64 && r & 4)
		p[n++] = 0x40 | (u8)(next_random(s) & 15);
	switch (r >> 8 & 7) {
	case 0:
	case 1: p[n++] = 0x0f; break;
	case 2:
		p[n++] = 0x0f;
		p[n++] = r & 0x10000 ? 0x38 : 0x3a;
		break;
	case 3:
		p[0] = 0xc4;
		p[1] = (p[1] & 0xe0) | (u8)(1 + (r >> 16) % 3);
		break;
	case 4: p[0] = 0xc5; break;
	case 5:
		p[0] = 0x62;
		p[1] = (p[1] & 0xf0) | (u8)(1 + (r >> 16) % 3);
		p[2] |= 4;
		break;
	default: break;
	}
	if (bits != 64 && r >> 8 & 4)
		p[1] |= 0xc0;
}

static bool is_gpr(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_R15;
}

static u32 number(ZydisRegister r)
{
	if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
		return 16u + r - ZYDIS_REGISTER_AH;
	return (u32)ZydisRegisterGetId(
		ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r));
}

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b,
			 const u8 map[GPR_COUNT], struct host_mem m)
{
	if (a->type != b->type || a->size != b->size || a->element_size != b->element_size ||
	    a->element_count != b->element_count)
		return false;
	switch (a->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		if (!is_gpr(a->reg.value))
			return a->reg.value == b->reg.value;
		if (a->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT ||
		    a->encoding == ZYDIS_OPERAND_ENCODING_NONE)
			return number(a->reg.value) == number(b->reg.value);
		return number(b->reg.value) == (number(a->reg.value) < 16
							? map[number(a->reg.value)]
							: number(a->reg.value));
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return b->mem.base == (ZydisRegister)(ZYDIS_REGISTER_RAX + m.base) &&
		       (m.index == NO_REG
				? b->mem.index == ZYDIS_REGISTER_NONE
				: b->mem.index == (ZydisRegister)(ZYDIS_REGISTER_RAX + m.index)) &&
		       b->mem.disp.value == m.disp && b->mem.segment == ZYDIS_REGISTER_DS;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return a->imm.value.u == b->imm.value.u ||
		       (u32)a->imm.value.u == (u32)b->imm.value.u;
	default: return true;
	}
}

static bool same_insn(const struct decoded *a, const struct decoded *b, const u8 map[GPR_COUNT],
		      struct host_mem m)
{
	if (a->z.mnemonic != b->z.mnemonic ||
	    a->z.operand_count_visible != b->z.operand_count_visible)
		return false;
	if ((a->z.attributes ^ b->z.attributes) & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP |
						   ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		return false;
	/* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): decoding clears it first */
	if (memcmp(&a->z.avx, &b->z.avx, sizeof(a->z.avx)))
		return false;
	for (u32 n = 0; n < a->z.operand_count_visible; n++)
		if (!same_operand(&a->ops[n], &b->ops[n], map, m))
			return false;
	return true;
}

static void print_failure(const struct insn *i, const u8 *host, u32 len)
{
	ZydisDisassembledInstruction d;
	bool ok = ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, 0, host, len, &d));

	print_message("%u-bit:", i->bits);
	for (u32 n = 0; n < i->len; n++)
		print_message(" %02x", i->bytes[n]);
	print_message(" -> ");
	for (u32 n = 0; n < len; n++)
		print_message(" %02x", host[n]);
	print_message(" (%s)\n", ok ? d.text : "bad");
}

static void choose_map(u64 *s, u8 map[GPR_COUNT])
{
	u64 r = next_random(s);

	for (u32 n = 0; n < GPR_COUNT; n++)
		map[n] = (u8)n;
	map[RSP] = HOST_SP;
	map[R9] = r & 1 ? RDI : HOST_S1;
	map[R10] = r & 2 ? R15 : RSI;
	map[R11] = HOST_S2;
}

/* One random instruction; false when it was not a data instruction. */
static bool check_one(u64 *s, u32 bits, u32 *failures)
{
	struct host_mem m = {.base = NO_REG, .index = NO_REG};
	u8 p[15], host[32], map[GPR_COUNT];
	struct emit e = {.p = host, .end = host + sizeof(host)};
	struct decoded a, b;
	struct insn i;

	random_insn(s, bits, p);
	insn_decode(&i, p, sizeof(p), bits);
	if (i.cls != INSN_DATA)
		return false;
	/* In 64-bit mode the copied bytes differ for F3 REX.B 90 only, which Zydis takes for PAUSE.
	 */
	assert_true(bits == 64 ? decode(&a, i.bytes, i.len, bits) : decode(&a, p, sizeof(p), bits));
	if (bits != 64 &&
	    (a.z.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || a.z.mnemonic == ZYDIS_MNEMONIC_VZEROALL))
		return true; /* becomes several instructions */
	choose_map(s, map);
	if (i.has_mem) {
		m.base = HOST_S2;
		m.index = next_random(s) & 1 ? HOST_S1 : (u8)NO_REG;
		m.disp = (s32)(next_random(s) % 3) * 77 - 77;
	}
	if (!emit_insn(&e, &i, map, m))
		return true;
	assert_false(e.overflow);
	if (!decode(&b, host, (u32)(e.p - host), 64) || b.z.length != e.p - host ||
	    !same_insn(&a, &b, map, m)) {
		if ((*failures)++ < 20)
			print_failure(&i, host, (u32)(e.p - host));
	}
	return true;
}

static void check_mode(u32 bits)
{
	u64 seed = bits;
	u32 done = 0, failures = 0;

	for (u32 n = 0; n < 200000; n++)
		done += check_one(&seed, bits, &failures);
	assert_true(done > 10000);
	assert_int_equal(failures, 0);
}

static void reencodes_64_bit(void **state)
{
	(void)state;
	check_mode(64);
}

static void reencodes_32_bit(void **state)
{
	(void)state;
	check_mode(32);
}

static void reencodes_16_bit(void **state)
{
	(void)state;
	check_mode(16);
}

static void stays_within_its_buffer(void **state)
{
	static const u8 add[] = {0x48, 0x03, 0x43, 0x10};
	u8 map[GPR_COUNT], buffer[8];
	struct insn i;

	(void)state;
	for (u32 n = 0; n < GPR_COUNT; n++)
		map[n] = (u8)n;
	insn_decode(&i, add, sizeof(add), 64);
	for (u32 size = 0; size < 4; size++) {
		struct emit e = {.p = buffer, .end = buffer + size};

		memset(buffer, 0x5a, sizeof(buffer));
		emit_insn(&e, &i, map, (struct host_mem){.base = RBX, .index = NO_REG, .disp = 16});
		assert_true(e.overflow);
		for (u32 n = size; n < sizeof(buffer); n++)
			assert_int_equal(buffer[n], 0x5a);
	}
}

/*
 * A branch that found no room in one part of a block is aimed through the emitter of the other:
 * what lies before the end is somebody else's code.
 */
static void branches_without_room_are_not_patched(void **state)
{
	u8 *(*const branch[])(struct emit * e) = {emit_jmp_forward, emit_call_forward};
	u8 buf[64], before[64];

	(void)state;
	memset(buf, 0x90, sizeof(buf));
	memcpy(before, buf, sizeof(buf));
	for (u32 n = 0; n <= ARRAY_SIZE(branch); n++) {
		struct emit full = {.p = buf + 64, .end = buf + 64}, other = {.p = buf, .end = buf};
		u8 *site = n < ARRAY_SIZE(branch) ? branch[n](&full) : emit_jcc_forward(&full, 2);

		assert_true(full.overflow);
		emit_patch(&other, site, (u64)buf);
		assert_memory_equal(buf, before, sizeof(buf));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reencodes_64_bit),
		cmocka_unit_test(reencodes_32_bit),
		cmocka_unit_test(reencodes_16_bit),
		cmocka_unit_test(stays_within_its_buffer),
		cmocka_unit_test(branches_without_room_are_not_patched),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
