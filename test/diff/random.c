/* See random.h. */
#include "random.h"

#include "cpu/x86.h"

#include <string.h>

u64 random_integer(u64 *s)
{
	static const u64 edge[] = {
		0,
		1,
		~0ul,
		2,
		0x7f,
		0x80,
		0xff,
		0x100,
		0x7fff,
		0x8000,
		0xffff,
		0x10000,
		0x7fffffff,
		0x80000000,
		0xffffffff,
		0x100000000,
		0x7fffffffffffffff,
		0x8000000000000000,
		0xffffffff80000000,
		0x5555555555555555,
		0xaaaaaaaaaaaaaaaa,
	};

	switch (random_below(s, 8)) {
	case 0:
	case 1: return edge[random_below(s, ARRAY_SIZE(edge))];
	case 2: return 1ul << random_below(s, 64);
	case 3: return random_below(s, 256);
	case 4: return -random_below(s, 256);
	case 5: return (u32)random_next(s);
	default: return random_next(s);
	}
}

static u32 random_float(u64 *s)
{
	static const u32 edge[] = {
		0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000,
		0x7f800001, 0xffc12345, 1,          0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff,
		0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x40490fdb,
	};

	if (random_chance(s, 40))
		return edge[random_below(s, ARRAY_SIZE(edge))];
	if (random_chance(s, 50)) /* of moderate size */
		return (u32)(random_next(s) & 0x807fffff) | (u32)(110 + random_below(s, 40)) << 23;
	return (u32)random_next(s);
}

static u64 random_double(u64 *s)
{
	static const u64 edge[] = {
		0,
		0x8000000000000000,
		0x3ff0000000000000,
		0xbff0000000000000,
		0x7ff0000000000000,
		0xfff0000000000000,
		0x7ff8000000000000,
		0x7ff0000000000001,
		0xfff8123456789abc,
		1,
		0x000fffffffffffff,
		0x0010000000000000,
		0x7fefffffffffffff,
		0x41e0000000000000,
		0xc1e0000000000000,
		0x43e0000000000000,
		0xc3e0000000000000,
		0x3fe0000000000000,
	};

	if (random_chance(s, 40))
		return edge[random_below(s, ARRAY_SIZE(edge))];
	if (random_chance(s, 50))
		return (random_next(s) & 0x800ffffffffffffful) | (1000 + random_below(s, 60)) << 52;
	return random_next(s);
}

u64 random_lane(u64 *s)
{
	switch (random_below(s, 4)) {
	case 0: return random_next(s);
	case 1: return random_integer(s);
	case 2: return random_double(s);
	default: {
		u64 high = random_float(s);

		return high << 32 | random_float(s);
	}
	}
}

/* A register of the x87 stack: 64-bit significand, sign and 15-bit exponent. */
static void random_x87(u64 *s, u8 *p)
{
	u64 fraction = random_next(s) | 1ul << 63;
	u16 exponent = (u16)(16383 - 80 + random_below(s, 160));

	switch (random_below(s, 10)) {
	case 0:
		fraction = 0;
		exponent = 0;
		break;
	case 1:
		fraction = 1ul << 63;
		exponent = 16383;
		break;
	case 2:
		fraction = 1ul << 63;
		exponent = 0x7fff;
		break;
	case 3:
		fraction |= 3ul << 62;
		exponent = 0x7fff;
		break;
	case 4:
		fraction = 1ul << 63 | 1;
		exponent = 0x7fff;
		break;
	case 5:
		fraction &= ~(1ul << 63);
		exponent = 0;
		break;
	case 6:
		fraction = random_next(s);
		exponent = (u16)random_next(s) & 0x7fff;
		break;
	case 7: fraction = random_lane(s); break;
	default: break;
	}
	exponent |= (u16)(random_below(s, 2) << 15);
	memcpy(p, &fraction, 8);
	memcpy(p + 8, &exponent, 2);
}

/* Control, status and tag words (FXSAVE format: one tag bit per physical register). */
static void random_x87_words(u64 *s, u8 *image)
{
	u16 fcw = 0x37f, fsw = (u16)(random_below(s, 8) << 11);

	if (random_chance(s, 30))
		fcw = (u16)(0x40 | (random_next(s) & 0x0f00) | 0x3f);
	if (random_chance(s, 10))
		fcw = (u16)(0x40 | (random_next(s) & 0x0f3f));
	fsw |= random_next(s) & 0x4700;
	if (random_chance(s, 20))
		fsw |= random_next(s) & 0x7f;
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080; /* ES and B follow from the rest */
	memcpy(image, &fcw, 2);
	memcpy(image + 2, &fsw, 2);
	image[4] = random_chance(s, 50) ? 0xff : random_chance(s, 30) ? 0 : (u8)random_next(s);
}

static u32 random_mxcsr(u64 *s)
{
	if (random_chance(s, 50))
		return 0x1f80;
	if (random_chance(s, 75))
		return (u32)(0x1f80 | (random_next(s) & 0xe07f));
	return (u32)(random_next(s) & 0xffff);
}

void random_xsave(u64 *s, u8 *image, u64 xcr0, u32 size)
{
	u64 present = xcr0;
	u32 mxcsr = random_mxcsr(s);

	if (random_chance(s, 10))
		present &= random_next(s);
	memset(image, 0, 576);
	random_x87_words(s, image);
	memcpy(image + 24, &mxcsr, 4);
	for (u32 n = 0; n < 8; n++)
		random_x87(s, image + 32 + 16 * n);
	for (u32 n = 160; n < size; n += 8) {
		u64 v = random_lane(s);

		if (n < 416 || n >= 576)
			memcpy(image + n, &v, 8);
	}
	memcpy(image + 512, &present, 8);
}
