/* See pvclock.h. */
#include "cpu/pvclock.h"

#define NSEC_PER_SEC 1000000000ul

enum { PVCLOCK_TSC_STABLE_BIT = 1 << 0 };

/* struct pvclock_vcpu_time_info and pvclock_wall_clock of the interface. Version is odd during
 * updates. */
struct pvclock_time {
	u32 version;
	u32 pad0;
	u64 tsc_timestamp;
	u64 system_time;
	u32 tsc_to_system_mul;
	s8 tsc_shift;
	u8 flags;
	u8 pad[2];
} __attribute__((packed));

struct pvclock_wall {
	u32 version;
	u32 sec;
	u32 nsec;
} __attribute__((packed));

/* (n << 32) / d for n < d. Not by __int128 division, which is a call into the compiler's library.
 */
static u32 divide_fraction(u64 n, u64 d)
{
	u64 high = n >> 32, low = n << 32;

	__asm__("divq %2" : "+a"(low), "+d"(high) : "r"(d) : "cc");
	return (u32)low;
}

struct pvclock_scale pvclock_scale(u64 tsc_hz)
{
	struct pvclock_scale scale = {0};
	u64 hz = tsc_hz, ns = NSEC_PER_SEC;

	if (!hz)
		return scale;
	/* Bring ns / hz into [1/2, 1), where it has 32 significant bits. */
	for (; ns >= hz; hz <<= 1)
		scale.shift++;
	for (; ns * 2 < hz; ns <<= 1)
		scale.shift--;
	scale.mul = divide_fraction(ns, hz);
	return scale;
}

u64 pvclock_ns(struct pvclock_scale scale, u64 ticks)
{
	ticks = scale.shift < 0 ? ticks >> -scale.shift : ticks << scale.shift;
	return (u64)(((unsigned __int128)ticks * scale.mul) >> 32);
}

/* Version first and last, around the rest: readers on other vCPUs retry. */
static void store_versioned(const struct msr_env *env, gpa_t gpa, void *p, u64 size)
{
	u32 *version = p;

	*version = 1;
	if (env->store(env->opaque, gpa, version, sizeof(*version)) < 0)
		return;
	env->store(env->opaque, gpa + 4, (u8 *)p + 4, size - 4);
	*version = 2;
	env->store(env->opaque, gpa, version, sizeof(*version));
}

void pvclock_write_wall(const struct msr_env *env)
{
	u64 since =
		pvclock_ns(pvclock_scale(env->cpuid->tsc_hz), env->tsc - env->msr->kvm_clock_base);
	u64 start = env->realtime_ns(env->opaque) - since;
	struct pvclock_wall wall = {.sec = (u32)(start / NSEC_PER_SEC),
				    .nsec = (u32)(start % NSEC_PER_SEC)};

	store_versioned(env, env->msr->kvm_wall_clock, &wall, sizeof(wall));
}

void pvclock_write_time(const struct msr_env *env)
{
	struct pvclock_scale scale = pvclock_scale(env->cpuid->tsc_hz);
	struct pvclock_time time = {.tsc_timestamp = env->msr->kvm_clock_base,
				    .tsc_to_system_mul = scale.mul,
				    .tsc_shift = scale.shift,
				    .flags = PVCLOCK_TSC_STABLE_BIT};
	u64 reg = env->msr->kvm_system_time;

	if (reg & PVCLOCK_ENABLE)
		store_versioned(env, reg & ~PVCLOCK_ENABLE, &time, sizeof(time));
}
