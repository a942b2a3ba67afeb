/*
 * The kernel's interrupt controllers and timer: chips=kernel. See struct engine_chips.
 *
 * The kernel has a table that says where each of its interrupt numbers goes. The first 24 are the
 * inputs of the I/O APIC, wired as in a PC. Each message that an event descriptor stands for has a
 * number of its own behind them, which the descriptor raises (irqfd). The table is replaced as a
 * whole whenever one of them changes, which happens when a driver sets up its vectors.
 *
 * What the chips are like after power-on is read from the kernel when they are new.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	INPUTS = 24, /* of the I/O APIC */
	ISA_INPUTS = 16,
	PIC_INPUTS = 8,
	TIMER_GSI = 0,
	TIMER_INPUT = 2, /* of the I/O APIC */
	WIRES_MAX = INPUTS + ISA_INPUTS,
};

static const u32 controllers[KVM_CHIPS] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
					   KVM_IRQCHIP_IOAPIC};

static struct kvm_vm *vm_of(struct engine_vm *vm)
{
	return (struct kvm_vm *)vm;
}

static int failed(struct err *e, int r, const char *what)
{
	return err_set(e, r, "%s: %s", what, strerror(-r));
}

/* ---- where interrupts go ---- */

static struct kvm_irq_routing_entry wire(u32 gsi, u32 controller, u32 input)
{
	return (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = {.irqchip = controller, .pin = input},
	};
}

static u32 add_wires(struct kvm_irq_routing_entry *entry)
{
	u32 n = 0;

	for (u32 gsi = 0; gsi < INPUTS; gsi++) {
		/* The 8254's other input, and where one 8259 hangs on the other. */
		if (gsi == TIMER_INPUT)
			continue;
		if (gsi < ISA_INPUTS)
			entry[n++] = wire(gsi, controllers[gsi / PIC_INPUTS], gsi % PIC_INPUTS);
		entry[n++] = wire(gsi, KVM_IRQCHIP_IOAPIC, gsi == TIMER_GSI ? TIMER_INPUT : gsi);
	}
	return n;
}

static struct kvm_irq_routing_entry message(u32 gsi, const struct kvm_event *event)
{
	return (struct kvm_irq_routing_entry){
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_MSI,
		.u.msi = {.address_lo = (u32)event->address,
			  .address_hi = (u32)(event->address >> 32),
			  .data = event->data},
	};
}

static u32 event_gsi(const struct kvm_chips *chips, const struct kvm_event *event)
{
	return INPUTS + (u32)(event - chips->event);
}

/* Tell the kernel. Under chips->lock, but for a VM that nobody knows yet. */
static int set_routes(struct kvm_vm *vm)
{
	const struct kvm_chips *chips = &vm->chips;
	struct kvm_irq_routing *table =
		calloc(1, sizeof(*table) + (WIRES_MAX + chips->events) * sizeof(table->entries[0]));
	int r;

	if (!table)
		return -ENOMEM;
	table->nr = add_wires(table->entries);
	for (u32 i = 0; i < chips->events; i++)
		if (chips->event[i].used)
			table->entries[table->nr++] = message(INPUTS + i, &chips->event[i]);
	r = kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, table);
	free(table);
	return r;
}

/* ---- messages by event ---- */

static struct kvm_event *find_event(struct kvm_chips *chips, int fd)
{
	for (u32 i = 0; i < chips->events; i++)
		if (chips->event[i].used && chips->event[i].fd == fd)
			return &chips->event[i];
	return NULL;
}

static struct kvm_event *unused_event(struct kvm_chips *chips)
{
	struct kvm_event *more;

	for (u32 i = 0; i < chips->events; i++)
		if (!chips->event[i].used)
			return &chips->event[i];
	more = realloc(chips->event, (chips->events + 1) * sizeof(*more));
	if (!more)
		return NULL;
	chips->event = more;
	chips->event[chips->events] = (struct kvm_event){.used = false};
	return &chips->event[chips->events++];
}

static int attach(struct kvm_vm *vm, const struct kvm_event *event, bool on)
{
	const struct kvm_irqfd irqfd = {
		.fd = (u32)event->fd,
		.gsi = event_gsi(&vm->chips, event),
		.flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};

	return kvm_ioctl(vm->fd, KVM_IRQFD, &irqfd);
}

static int end_event(struct kvm_vm *vm, struct kvm_event *event)
{
	int r = attach(vm, event, false);

	event->used = false;
	return r < 0 ? r : set_routes(vm);
}

static int begin_event(struct kvm_vm *vm, int fd, u64 address, u32 data)
{
	struct kvm_event *event = find_event(&vm->chips, fd);
	bool is_new = !event;
	int r;

	if (is_new)
		event = unused_event(&vm->chips);
	if (!event)
		return -ENOMEM;
	*event = (struct kvm_event){.used = true, .fd = fd, .address = address, .data = data};
	r = set_routes(vm);
	if (r >= 0 && is_new)
		r = attach(vm, event, true);
	if (r >= 0)
		return 0;
	if (!is_new)
		attach(vm, event, false);
	event->used = false;
	return r;
}

static int chips_msi_event(struct engine_vm *engine_vm, int fd, u64 address, u32 data, bool on)
{
	struct kvm_vm *vm = vm_of(engine_vm);
	struct kvm_event *event;
	int r;

	pthread_mutex_lock(&vm->chips.lock);
	event = find_event(&vm->chips, fd);
	if (on)
		r = begin_event(vm, fd, address, data);
	else
		r = event ? end_event(vm, event) : -ENOENT;
	pthread_mutex_unlock(&vm->chips.lock);
	return r;
}

/* ---- interrupts from the machine ---- */

/* The kernel refuses nothing here once the chips exist. */
static void chips_set_line(struct engine_vm *vm, u32 gsi, bool level)
{
	const struct kvm_irq_level line = {.irq = gsi, .level = level};

	kvm_count(vm_of(vm), KVM_COUNT_LINES);
	kvm_ioctl(vm_of(vm)->fd, KVM_IRQ_LINE, &line);
}

/* -EPERM is no failure: no processor took it, as on the bus. */
static void chips_send_msi(struct engine_vm *vm, u64 address, u32 data)
{
	const struct kvm_msi msi = {
		.address_lo = (u32)address, .address_hi = (u32)(address >> 32), .data = data};

	kvm_count(vm_of(vm), KVM_COUNT_MESSAGES);
	kvm_ioctl(vm_of(vm)->fd, KVM_SIGNAL_MSI, &msi);
}

/* ---- life ---- */

static int chips_reset(struct engine_vm *engine_vm, struct err *e)
{
	struct kvm_vm *vm = vm_of(engine_vm);
	int r = 0;

	for (u32 i = 0; i < KVM_CHIPS && r >= 0; i++)
		r = kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &vm->chips.fresh[i]);
	if (r < 0)
		return failed(e, r, "KVM_SET_IRQCHIP (KVM_CAP_IRQCHIP)");
	r = kvm_ioctl(vm->fd, KVM_SET_PIT2, &vm->chips.fresh_pit);
	return r < 0 ? failed(e, r, "KVM_SET_PIT2 (KVM_CAP_PIT_STATE2)") : 0;
}

static const struct engine_chips kernel_chips = {
	.set_line = chips_set_line,
	.send_msi = chips_send_msi,
	.msi_event = chips_msi_event,
	.reset = chips_reset,
};

const struct engine_chips *kvm_chips(struct engine_vm *vm)
{
	return vm_of(vm)->chips.used ? &kernel_chips : NULL;
}

static int check_capabilities(const struct kvm_vm *vm, struct err *e)
{
	static const struct {
		int number;
		const char *name;
	} needed[] = {
		{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
		{KVM_CAP_PIT2, "KVM_CAP_PIT2"},
		{KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
		{KVM_CAP_REINJECT_CONTROL, "KVM_CAP_REINJECT_CONTROL"},
		{KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
		{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
		{KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
		{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
		{KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER"},
	};

	for (u32 i = 0; i < ARRAY_SIZE(needed); i++)
		if (kvm_ioctl_value(vm->device, KVM_CHECK_EXTENSION,
				    (unsigned long)needed[i].number) <= 0)
			return err_set(
				e, -ENOTSUP,
				"chips=kernel needs %s, which the host's KVM lacks: leave it "
				"out, or say chips=user",
				needed[i].name);
	return 0;
}

static int create_pit(struct kvm_vm *vm, struct err *e)
{
	const struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY}; /* port 61H */
	/* Ticks that nobody took are lost, as in device/chip/pit.c. */
	const struct kvm_reinject_control reinject = {.pit_reinject = 0};
	int r = kvm_ioctl(vm->fd, KVM_CREATE_PIT2, &pit);

	if (r < 0)
		return failed(e, r, "KVM_CREATE_PIT2 (KVM_CAP_PIT2)");
	r = kvm_ioctl(vm->fd, KVM_REINJECT_CONTROL, &reinject);
	return r < 0 ? failed(e, r, "KVM_REINJECT_CONTROL (KVM_CAP_REINJECT_CONTROL)") : 0;
}

static int remember_fresh(struct kvm_vm *vm, struct err *e)
{
	int r = 0;

	for (u32 i = 0; i < KVM_CHIPS && r >= 0; i++) {
		vm->chips.fresh[i].chip_id = controllers[i];
		r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, &vm->chips.fresh[i]);
	}
	if (r < 0)
		return failed(e, r, "KVM_GET_IRQCHIP (KVM_CAP_IRQCHIP)");
	r = kvm_ioctl(vm->fd, KVM_GET_PIT2, &vm->chips.fresh_pit);
	return r < 0 ? failed(e, r, "KVM_GET_PIT2 (KVM_CAP_PIT_STATE2)") : 0;
}

int kvm_chips_create(struct kvm_vm *vm, struct err *e)
{
	int r = check_capabilities(vm, e);

	if (r)
		return r;
	r = kvm_ioctl_value(vm->fd, KVM_CREATE_IRQCHIP, 0);
	if (r < 0)
		return failed(e, r, "KVM_CREATE_IRQCHIP (KVM_CAP_IRQCHIP)");
	pthread_mutex_init(&vm->chips.lock, NULL);
	vm->chips.used = true;
	r = set_routes(vm);
	if (r < 0)
		return failed(e, r, "KVM_SET_GSI_ROUTING (KVM_CAP_IRQ_ROUTING)");
	r = create_pit(vm, e);
	return r ? r : remember_fresh(vm, e);
}

void kvm_chips_destroy(struct kvm_vm *vm)
{
	if (!vm->chips.used)
		return;
	free(vm->chips.event);
	pthread_mutex_destroy(&vm->chips.lock);
}
