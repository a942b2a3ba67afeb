/*
 * What vCPUs owe each other: standing still, and letting go of pages and blocks.
 *
 * Theory of operation. A vCPU is *active* while it is inside run(); it then holds pointers to
 * translated code, to blocks, and to guest pages that it has looked up. Between two turns of the
 * run loop it holds none: there it *passes*, soft_pass(). Two things are built on that.
 *
 * Stopping the world. Whoever drops all code, or runs a locked instruction that the host cannot
 * make atomic, needs the others out of the way: soft_world_stop() returns when every other vCPU is
 * inactive or waits in its pass. One at a time has the world (vm->holder). It may be kept across an
 * exit of run(), because a locked instruction on a device is two of them; so a vCPU that waits for
 * it and is kicked meanwhile leaves run() instead, else the machine could not stop its vCPUs.
 *
 * Settling a page. A page that becomes code loses its write tags (soft_drop_write_tags()). A vCPU
 * that has compared the tag before may still store through the pointer it got: at once, or, for a
 * group of accesses checked together, a whole block later. cpu->stale is the hashed set of such
 * pages. Whoever takes a tag away adds the page, after the tag is gone; the vCPU itself empties the
 * set when it passes. An active vCPU with the page in its set may still store to it, any other
 * cannot: its next look finds no tag. The bytes of a page with code are read only when it is
 * *settled*, that is when the first kind is gone. Since the page was marked before, later stores
 * come the slow way and find the blocks to drop.
 *
 * Other pages share the bit, and a vCPU that fills one TLB entry by turns with two pages adds both
 * to its set each time: to wait for empty sets could take for ever when dozens do that. But none of
 * them can mean the page at hand once it has passed with the tag gone. vm->epoch counts what tags
 * were taken from, each vCPU notes in cpu->seen how far the count was when it last passed, and who
 * has seen the page's epoch is not waited for.
 *
 * Order: tags are emptied before the set is added to, both before exit_req asks for a pass; a pass
 * takes exit_req first, then empties the set, then looks at tags again. All of these are locked
 * instructions.
 *
 * Locks: vm->world guards vm->holder and is a leaf. Nobody waits here with vm->lock held, because a
 * vCPU may need that lock to get to its pass.
 */
#include "engine/soft/soft.h"
#include "host/box.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

enum { WAIT_NS = 500000, SPINS = 2000, YIELDS = 50 };

/* Everybody who waits looks again after WAIT_NS: kicks do not signal. vm->world held. */
static void wait_briefly(struct soft_vm *vm)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += WAIT_NS;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_sec++;
		ts.tv_nsec -= 1000000000;
	}
	pthread_cond_timedwait(&vm->world_changed, &vm->world, &ts);
}

/*
 * A vCPU says that its box runs before it looks at exit_req for the last time, so that either it
 * sees the bits or we see the box.
 */
void soft_request(struct soft_cpu *c, u32 what)
{
	struct box *b;

	atomic_fetch_or(&c->exit_req, what);
	b = atomic_load(&c->running);
	if (b)
		box_kick(b);
}

static bool is_kicked(struct soft_cpu *c)
{
	return atomic_load(&c->exit_req) & REQ_KICK;
}

/* Wait inactively until nobody has the world; false when kicked meanwhile. vm->world held. */
static bool wait_for_turn(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;

	atomic_store(&c->active, false);
	pthread_cond_broadcast(&vm->world_changed);
	while (atomic_load(&vm->holder)) {
		if (is_kicked(c))
			return false;
		wait_briefly(vm);
	}
	return true;
}

bool soft_world_wait(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;
	u8 was = soft_doing(c, ACT_WAIT);
	bool ok;

	soft_fpu_park(c);
	pthread_mutex_lock(&vm->world);
	ok = wait_for_turn(c);
	if (ok)
		atomic_store(&c->active, true);
	pthread_mutex_unlock(&vm->world);
	soft_doing(c, was);
	return ok;
}

bool soft_world_enter(struct soft_cpu *c)
{
	atomic_store(&c->active, true);
	if (!atomic_load(&c->vm->holder) || c->alone)
		return true;
	return soft_world_wait(c);
}

void soft_world_leave(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;

	atomic_store(&c->active, false);
	if (!atomic_load(&vm->holder) || c->alone)
		return;
	pthread_mutex_lock(&vm->world);
	pthread_cond_broadcast(&vm->world_changed);
	pthread_mutex_unlock(&vm->world);
}

/* Ask the others to pass; true when one is still active. vm->world held. */
static bool others_are_active(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;
	bool active = false;

	for (u32 i = 0; i < vm->cpus; i++) {
		struct soft_cpu *other = vm->cpu[i];

		if (!other || other == c || !atomic_load(&other->active))
			continue;
		soft_request(other, REQ_PASS);
		active = true;
	}
	return active;
}

bool soft_world_stop(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;
	u32 spins = 0;

	if (c->alone)
		return true;
	soft_fpu_park(c);
	pthread_mutex_lock(&vm->world);
	if (!wait_for_turn(c)) {
		pthread_mutex_unlock(&vm->world);
		return false;
	}
	atomic_store(&vm->holder, c);
	atomic_store(&c->active, true);
	c->alone = true;
	while (others_are_active(c)) {
		if (spins++ < SPINS) {
			pthread_mutex_unlock(&vm->world);
			__builtin_ia32_pause();
			pthread_mutex_lock(&vm->world);
		} else {
			wait_briefly(vm);
		}
	}
	pthread_mutex_unlock(&vm->world);
	return true;
}

void soft_world_resume(struct soft_cpu *c)
{
	struct soft_vm *vm = c->vm;

	if (!c->alone)
		return;
	soft_fpu_park(c);
	pthread_mutex_lock(&vm->world);
	c->alone = false;
	atomic_store(&vm->holder, NULL);
	pthread_cond_broadcast(&vm->world_changed);
	pthread_mutex_unlock(&vm->world);
}

/* ---- settling ---- */

static bool may_store(struct soft_cpu *c, u64 pages, u64 epoch)
{
	return atomic_load(&c->stale) & pages && atomic_load(&c->active) &&
	       atomic_load(&c->seen) < epoch;
}

bool soft_is_settled(struct soft_vm *vm, const struct soft_cpu *self, u64 pages, u64 epoch)
{
	for (u32 i = 0; i < vm->cpus; i++) {
		struct soft_cpu *c = vm->cpu[i];

		if (c && c != self && may_store(c, pages, epoch))
			return false;
	}
	return true;
}

static void ask_to_settle(struct soft_vm *vm, const struct soft_cpu *self, u64 pages, u64 epoch)
{
	for (u32 i = 0; i < vm->cpus; i++) {
		struct soft_cpu *c = vm->cpu[i];

		if (c && c != self && may_store(c, pages, epoch))
			soft_request(c, REQ_PASS);
	}
}

static bool settle(struct soft_vm *vm, struct soft_cpu *self, u64 pages, u64 epoch)
{
	const struct timespec nap = {.tv_nsec = 50000};

	for (u32 n = 0;; n++) {
		bool settled;

		if (self && !soft_pass(self))
			return false;
		pthread_mutex_lock(&vm->lock); /* keeps the vCPUs there */
		settled = soft_is_settled(vm, self, pages, epoch);
		if (!settled)
			ask_to_settle(vm, self, pages, epoch);
		pthread_mutex_unlock(&vm->lock);
		if (settled)
			return true;
		if (n < SPINS)
			__builtin_ia32_pause();
		else if (n < SPINS + YIELDS)
			sched_yield();
		else
			nanosleep(&nap, NULL);
	}
}

bool soft_settle(struct soft_vm *vm, struct soft_cpu *self, u64 pages, u64 epoch)
{
	u8 was = self ? soft_doing(self, ACT_WAIT) : ACT_OUTSIDE;
	bool settled = settle(vm, self, pages, epoch);

	if (self)
		soft_doing(self, was);
	return settled;
}
