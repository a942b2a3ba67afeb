/*
 * Theory of operation
 *
 * All three timer modes come down to timer_ns, the moment of the next expiry. The event loop's
 * timer is armed lazily: it may be set for an earlier moment than timer_ns, and then just finds
 * nothing due and arms itself again. A guest moves its deadline to a later time thousands of times
 * per second, and this way most of those writes cost no system call.
 *
 * Periodic expiries that were missed are not made up for, and none come faster than MIN_PERIOD_NS.
 */
#include "device/chip/lapic_internal.h"

enum { MIN_PERIOD_NS = 50000 };

static u32 divide_shift(const struct lapic *l)
{
	u32 d = l->timer_divide;

	/* SDM vol. 3, figure 11-10: bits 3, 1 and 0 count 2, 4, ... 128, 1. */
	return (((d & 3) | (d >> 1 & 4)) + 1) & 7;
}

static u64 period_ns(const struct lapic *l)
{
	return (u64)l->timer_initial << divide_shift(l);
}

static void arm(struct lapic *l)
{
	if (!l->timer_ns || (l->armed_ns && l->armed_ns <= l->timer_ns))
		return;
	l->armed_ns = l->timer_ns;
	loop_timer_arm(l->set->loop, &l->timer, l->timer_ns);
}

static void expire(struct lapic *l, u64 now)
{
	u64 period = MAX(period_ns(l), MIN_PERIOD_NS);

	switch (lapic_timer_mode(l)) {
	case TIMER_PERIODIC: l->timer_ns += ((now - l->timer_ns) / period + 1) * period; break;
	case TIMER_TSC_DEADLINE:
		l->tsc_deadline = 0;
		l->timer_ns = 0;
		break;
	default: l->timer_ns = 0; break;
	}
	lapic_local_interrupt(l, LVT_TIMER);
}

void lapic_timer_poll(struct lapic *l)
{
	u64 now;

	if (!l->timer_ns)
		return;
	now = host_clock_ns();
	if (now >= l->timer_ns)
		expire(l, now);
}

static void timer_fire(void *opaque)
{
	struct lapic *l = opaque;

	pthread_mutex_lock(l->set->machine_lock);
	l->armed_ns = 0;
	lapic_timer_poll(l);
	arm(l);
	pthread_mutex_unlock(l->set->machine_lock);
}

void lapic_timer_init(struct lapic *l)
{
	l->timer = (struct loop_timer){.fire = timer_fire, .opaque = l};
}

void lapic_timer_stop(struct lapic *l)
{
	loop_timer_cancel(l->set->loop, &l->timer);
	l->armed_ns = 0;
	l->timer_ns = 0;
}

void lapic_timer_set_mode(struct lapic *l, u32 lvt)
{
	bool was = lapic_timer_mode(l) == TIMER_TSC_DEADLINE;

	l->lvt[LVT_TIMER] = lvt;
	/* SDM vol. 3, 11.5.4.1: a change to or from TSC-deadline mode disarms the timer. */
	if (was == (lapic_timer_mode(l) == TIMER_TSC_DEADLINE))
		return;
	l->timer_ns = 0;
	l->tsc_deadline = 0;
	l->timer_initial = 0;
}

void lapic_timer_set_initial(struct lapic *l, u32 count)
{
	if (lapic_timer_mode(l) == TIMER_TSC_DEADLINE)
		return;
	l->timer_initial = count;
	l->timer_ns = count ? host_clock_ns() + period_ns(l) : 0;
	arm(l);
}

u32 lapic_timer_current(const struct lapic *l)
{
	u64 now = host_clock_ns(), period = MAX(period_ns(l), 1ul), left = 0;

	if (!l->timer_ns || lapic_timer_mode(l) == TIMER_TSC_DEADLINE)
		return 0;
	if (l->timer_ns > now)
		left = l->timer_ns - now;
	else if (lapic_timer_mode(l) == TIMER_PERIODIC)
		left = period - (now - l->timer_ns) % period;
	return (u32)(MIN(left, period) >> divide_shift(l));
}

void lapic_timer_set_divide(struct lapic *l, u32 divide)
{
	u32 current = lapic_timer_current(l);

	l->timer_divide = divide;
	if (!l->timer_ns || lapic_timer_mode(l) == TIMER_TSC_DEADLINE)
		return;
	l->timer_ns = host_clock_ns() + ((u64)current << divide_shift(l));
	arm(l);
}

void lapic_timer_set_deadline(struct lapic *l, u64 tsc)
{
	unsigned __int128 delta, ns;
	u64 now;

	if (lapic_timer_mode(l) != TIMER_TSC_DEADLINE)
		return;
	l->tsc_deadline = tsc;
	l->timer_ns = 0;
	if (!tsc)
		return;
	now = l->set->ops.tsc(l->set->ops.opaque, l->id);
	if (tsc <= now) {
		expire(l, 0);
		return;
	}
	delta = tsc - now;
	ns = (delta * 1000000000u + l->set->tsc_hz - 1) / l->set->tsc_hz;
	/* A moment centuries away may as well be the end of time. */
	l->timer_ns = host_clock_ns() + (u64)MIN(ns, (unsigned __int128)1 << 62);
	arm(l);
}

void lapic_tsc_changed(struct lapic *l)
{
	if (l->tsc_deadline)
		lapic_timer_set_deadline(l, l->tsc_deadline);
}

u64 lapic_timer_deadline(const struct lapic *l)
{
	return l->timer_ns ? l->timer_ns : ~0ul;
}

void lapic_timer_save(struct lapic *l)
{
	u64 now = host_clock_ns();

	l->timer_left_ns = 0;
	if (l->timer_ns)
		l->timer_left_ns = l->timer_ns > now ? l->timer_ns - now : 1;
}

void lapic_timer_load(struct lapic *l)
{
	u64 left = MIN(l->timer_left_ns, BIT(62));

	lapic_timer_stop(l);
	if (left)
		l->timer_ns = host_clock_ns() + left;
	arm(l);
}
