/* Pseudo-random numbers and values that are worth trying. */
#pragma once

#include "base/types.h"

/* The next number of the sequence (SplitMix64). */
static inline u64 random_next(u64 *state)
{
	u64 z = *state += 0x9e3779b97f4a7c15ul;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ul;
	z = (z ^ z >> 27) * 0x94d049bb133111ebul;
	return z ^ z >> 31;
}

static inline u64 random_below(u64 *state, u64 n)
{
	return random_next(state) % n;
}

/* True in @of out of 100 cases. */
static inline bool random_chance(u64 *state, u32 of)
{
	return random_below(state, 100) < of;
}

/* Integers: edges, powers of two, small ones, any. */
u64 random_integer(u64 *state);
/* 64 bits of a vector: integers, doubles, pairs of floats with their special values. */
u64 random_lane(u64 *state);

/* A whole XSAVE image for the components in @xcr0; @size bytes. */
void random_xsave(u64 *state, u8 *image, u64 xcr0, u32 size);
