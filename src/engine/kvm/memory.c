/*
 * Memory slots, one per region of the physmap, the dirty log, and addresses that are doorbells.
 *
 * The kernel logs what the guest stores, the physmap's listener what the monitor does; a fetch
 * joins the two. A fetch makes the kernel watch the pages again before it returns the bits, so a
 * store is never lost, at worst reported twice.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct kvm_vm *vm_of(struct engine_vm *vm)
{
	return (struct kvm_vm *)vm;
}

static int set_slot(struct kvm_vm *vm, u32 n, const struct kvm_slot *slot)
{
	const struct kvm_userspace_memory_region region = {
		.slot = n,
		.flags = (slot->flags & PHYSMAP_ROM ? KVM_MEM_READONLY : 0u) |
			 (vm->dirty_log ? KVM_MEM_LOG_DIRTY_PAGES : 0u),
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = (u64)slot->hva,
	};

	return kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static bool is_same(const struct kvm_slot *a, const struct kvm_slot *b)
{
	return a->gpa == b->gpa && a->size == b->size && a->hva == b->hva && a->flags == b->flags;
}

static struct kvm_slot wanted_slot(const struct physmap *pm, u32 n)
{
	const struct physmap_region *r = &pm->region[n];

	if (n >= pm->count)
		return (struct kvm_slot){0};
	return (struct kvm_slot){.gpa = r->gpa, .size = r->size, .hva = r->hva, .flags = r->flags};
}

/* A slot's place cannot change: what differs goes first, so that nothing overlaps on the way. */
static int remove_stale(struct kvm_vm *vm)
{
	int r = 0;

	for (u32 i = 0; i < PHYSMAP_MAX_REGIONS && r >= 0; i++) {
		const struct kvm_slot wanted = wanted_slot(vm->physmap, i);
		struct kvm_slot *slot = &vm->slot[i];

		if (!slot->size || is_same(slot, &wanted))
			continue;
		slot->size = 0;
		r = set_slot(vm, i, slot);
		*slot = (struct kvm_slot){0};
	}
	return r;
}

static int add_new(struct kvm_vm *vm)
{
	int r = 0;

	for (u32 i = 0; i < vm->physmap->count && r >= 0; i++) {
		const struct kvm_slot wanted = wanted_slot(vm->physmap, i);

		if (vm->slot[i].size)
			continue;
		r = set_slot(vm, i, &wanted);
		if (r >= 0)
			vm->slot[i] = wanted;
	}
	return r;
}

static u64 dirty_words(const struct kvm_vm *vm)
{
	return vm->physmap->pages / 64 + 1;
}

int kvm_memory_update(struct engine_vm *engine_vm, struct err *e)
{
	struct kvm_vm *vm = vm_of(engine_vm);
	_Atomic u64 *dirty = calloc(dirty_words(vm), sizeof(*dirty));
	int r;

	if (!dirty)
		return err_set(e, -ENOMEM, "out of memory");
	for (u64 w = 0; w < vm->dirty_words; w++)
		dirty[w] = vm->dirty[w];
	free((void *)vm->dirty);
	vm->dirty = dirty;
	vm->dirty_words = dirty_words(vm);
	r = remove_stale(vm);
	if (r >= 0)
		r = add_new(vm);
	return r < 0 ? err_set(e, r, "KVM_SET_USER_MEMORY_REGION: %s", strerror(-r)) : 0;
}

/* ---- dirty log ---- */

int kvm_dirty_log(struct engine_vm *engine_vm, bool on)
{
	struct kvm_vm *vm = vm_of(engine_vm);
	/* Starting anew means turning it off in between: that is what clears the kernel's bits. */
	const u32 steps = on && atomic_load(&vm->dirty_log) ? 2 : 1;
	int r = 0;

	for (u32 step = 0; step < steps && r >= 0; step++) {
		atomic_store(&vm->dirty_log, on && step == steps - 1);
		for (u32 i = 0; i < PHYSMAP_MAX_REGIONS && r >= 0; i++)
			if (vm->slot[i].size)
				r = set_slot(vm, i, &vm->slot[i]);
	}
	for (u64 w = 0; w < vm->dirty_words; w++)
		atomic_store(&vm->dirty[w], 0);
	return r < 0 ? r : 0;
}

/* Take the monitor's bit of page @page. */
static bool take_bit(struct kvm_vm *vm, u64 page)
{
	u64 bit = BIT(page % 64);

	return atomic_load(&vm->dirty[page / 64]) & bit &&
	       atomic_fetch_and(&vm->dirty[page / 64], ~bit) & bit;
}

int kvm_dirty_fetch(struct engine_vm *engine_vm, u32 region, u64 *bitmap)
{
	struct kvm_vm *vm = vm_of(engine_vm);
	const struct physmap_region *r = &vm->physmap->region[region];
	const struct kvm_dirty_log log = {.slot = region, .dirty_bitmap = bitmap};
	int err;

	if (region >= vm->physmap->count || !atomic_load(&vm->dirty_log))
		return -EINVAL;
	err = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
	if (err < 0)
		return err;
	for (u64 p = 0; p < r->size / PAGE_SIZE; p++)
		if (take_bit(vm, r->page0 + p))
			bitmap[p / 64] |= BIT(p % 64);
	return 0;
}

void kvm_memory_written(void *opaque, gpa_t gpa, u64 len)
{
	struct kvm_vm *vm = opaque;
	const struct physmap_region *r;
	u64 first, last;

	if (!atomic_load_explicit(&vm->dirty_log, memory_order_relaxed) || !len)
		return;
	r = physmap_find(vm->physmap, gpa);
	if (!r)
		return;
	first = r->page0 + (gpa - r->gpa) / PAGE_SIZE;
	last = r->page0 + (gpa - r->gpa + len - 1) / PAGE_SIZE;
	for (u64 p = first; p <= last; p++)
		atomic_fetch_or(&vm->dirty[p / 64], BIT(p % 64));
}

/* ---- doorbells ---- */

int kvm_doorbell(struct engine_vm *engine_vm, gpa_t gpa, int fd, bool on)
{
	const struct kvm_ioeventfd bell = {
		.addr = gpa,
		.len = 0, /* of any width: KVM_CAP_IOEVENTFD_ANY_LENGTH */
		.fd = fd,
		.flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};

	return kvm_ioctl(vm_of(engine_vm)->fd, KVM_IOEVENTFD, &bell);
}
