/*
 * Assembly, reset and the end of a PC.
 *
 * Threads. The thread that calls pc_run() runs the event loop; each vCPU has its own. Devices, the
 * bus and the local APICs belong to the machine lock: vCPU threads take it for each access,
 * callbacks of the loop take it themselves. What a device wants from the machine as a whole
 * (power-off, reset, the end) may be asked for anywhere: request() notes it, tells the vCPUs to
 * stop and stops the loop; pc_run() then acts on it, when nothing else runs.
 *
 * Reset. All devices go to their power-up state and the kernel is loaded again from its files,
 * which stay open for that, as a fresh boot.
 */
#include "machine/pc.h"

#include "base/log.h"
#include "device/chip/debugexit.h"
#include "device/chip/fwcfg.h"
#include "device/chip/i8042.h"
#include "device/chip/pm.h"
#include "device/chip/pvpanic.h"
#include "device/chip/rtc.h"
#include "device/chip/uart.h"
#include "device/virtio/blk.h"
#include "device/virtio/console.h"
#include "device/virtio/net.h"
#include "device/virtio/rng.h"
#include "host/chardev.h"
#include "host/memory.h"
#include "machine/acpi.h"
#include "machine/chips.h"
#include "machine/gsi.h"
#include "machine/layout.h"
#include "machine/lockdown.h"
#include "machine/pci_setup.h"
#include "machine/smbios.h"
#include "machine/vcpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COM1_PORT = 0x3f8 };

/* Requests to pc_run(), in order of precedence. */
enum {
	ASK_FAILED = 1 << 0,
	ASK_QUIT = 1 << 1,
	ASK_DEBUG_EXIT = 1 << 2,
	ASK_POWER_OFF = 1 << 3,
	ASK_TRIPLE_FAULT = 1 << 4,
	ASK_RESET = 1 << 5,
	ASK_ENGINE = 1 << 6, /* the next engine shall take over */
};

struct pc_disk {
	struct block *block;
	struct virtio_blk blk;
};

struct pc_nic {
	struct net_backend *backend;
	struct virtio_net net;
};

struct pc {
	struct pc_config config;
	pthread_mutex_t lock; /* the machine lock */
	struct loop *loop;
	atomic_uint asked; /* ASK_* */
	u32 exit_value;    /* with ASK_DEBUG_EXIT; under lock */
	bool panicked;     /* the guest's kernel, since the last reset; under lock */

	struct physmap pm;
	struct populate *populate;
	u64 ram_below, ram_above;
	struct bus bus;
	struct doorbells doorbells;
	struct cpuid_model cpuid;
	struct chips chips;
	struct rtc rtc;
	struct pm acpi_pm;
	struct i8042 i8042;
	struct uart com1;
	struct chardev *console;
	struct fwcfg fwcfg;
	struct debugexit debugexit;
	struct pvpanic pvpanic;
	struct pci_host pci;
	struct pci_windows pci_windows;
	struct pc_disk disk[PC_DISKS_MAX];
	u32 disks;
	struct pc_nic nic[PC_NETS_MAX];
	u32 nics;
	struct chardev *hvc_chardev;
	struct virtio_console hvc;
	struct virtio_rng rng;

	struct acpi_tables acpi;
	struct cpu_state entry; /* how the boot processor starts */
	u8 *kernel;             /* read ahead of the first start; else NULL */
	struct cpuid_moment start;
	struct engine_host *host[PC_ENGINES_MAX];
	u32 hosts;   /* of them are open */
	u32 current; /* config.engine[] that runs the guest */
	struct engine_vm *vm;
	struct vcpu_set vcpus;
	struct stats stats;
	u32 built; /* steps of assembly done */
};

static const struct engine_ops *engine_of(const struct pc *pc)
{
	return pc->config.engine[pc->current];
}

/* ---- requests ---- */

static void request(struct pc *pc, u32 what)
{
	atomic_fetch_or(&pc->asked, what);
	vcpus_request_stop(&pc->vcpus);
	loop_stop(pc->loop);
}

void pc_quit(struct pc *pc)
{
	request(pc, ASK_QUIT);
}

static void on_power_off(void *opaque)
{
	request(opaque, ASK_POWER_OFF);
}

static void on_reset(void *opaque)
{
	request(opaque, ASK_RESET);
}

static void on_a20(void *opaque, bool on)
{
	/* Address line 20 is always on, as on every machine since 2008. */
	(void)opaque;
	(void)on;
}

static void on_debug_exit(void *opaque, u32 value)
{
	struct pc *pc = opaque;

	pc->exit_value = value;
	request(pc, ASK_DEBUG_EXIT);
}

static void on_panic(void *opaque, u32 events)
{
	struct pc *pc = opaque;

	pc->panicked |= events & PVPANIC_PANICKED;
	if (events & PVPANIC_PANICKED)
		log_guest("the guest's kernel panicked");
	else if (events & PVPANIC_CRASH_LOADED)
		log_guest("the guest's kernel panicked and starts its crash kernel");
}

static void on_triple_fault(void *opaque, u32 cpu)
{
	log_guest("the guest's cpu %u shut down (triple fault)", cpu);
	request(opaque, ASK_TRIPLE_FAULT);
}

static void on_engine_failure(void *opaque, u32 cpu, const char *why)
{
	struct pc *pc = opaque;

	log_error("%s engine: cpu %u: %s", engine_of(pc)->name, cpu, why);
	request(pc, ASK_FAILED);
}

static void on_escape(void *opaque, enum chardev_escape what)
{
	switch (what) {
	case CHARDEV_ESCAPE_QUIT: pc_quit(opaque); break;
	case CHARDEV_ESCAPE_POWER: pc_power_button(opaque); break;
	case CHARDEV_ESCAPE_ENGINE: pc_change_engine(opaque); break;
	}
}

/* ---- interrupts ---- */

static struct irq_line gsi(struct pc *pc, u32 pin)
{
	return chips_line(&pc->chips, pin);
}

static int listen_to_doorbell(void *opaque, u64 gpa, int fd, bool on)
{
	struct pc *pc = opaque;

	return engine_of(pc)->doorbell(pc->vm, gpa, fd, on);
}

/*
 * ---- assembly: each step has its counterpart ----
 *
 * A step that fails leaves nothing open behind.
 */

static int refuse_memory(u64 ram, struct err *e)
{
	return err_set(e, -ENOMEM,
		       "the host has %lu MiB of memory left, the guest is to have %lu MiB; "
		       "use a smaller -m",
		       host_memory_available() / MIB, ram / MIB);
}

static int add_ram(struct pc *pc, struct err *e)
{
	u64 ram = pc->config.ram_bytes;
	int r = 0;

	pc->ram_below = MIN(ram, LAYOUT_HOLE);
	pc->ram_above = ram - pc->ram_below;
	if (pc->config.engine[0]->maps_ram)
		physmap_share(&pc->pm);
	/* Each region is compared with what the host has left, which takes a while to find out: the
	 * sum of two only where there are two. */
	if (pc->ram_above && ram > host_memory_available())
		return refuse_memory(ram, e);
	/* The largest regions first: they are looked up most. */
	r = physmap_add(&pc->pm, LAYOUT_HIGH, pc->ram_below - LAYOUT_HIGH, 0, e);
	if (!r && pc->ram_above)
		r = physmap_add(&pc->pm, LAYOUT_ABOVE, pc->ram_above, 0, e);
	if (!r)
		r = physmap_add(&pc->pm, 0, LAYOUT_CONVENTIONAL_END, 0, e);
	if (!r)
		r = physmap_add(&pc->pm, LAYOUT_SHADOW, LAYOUT_HIGH - LAYOUT_SHADOW, 0, e);
	return r == -ENOMEM ? refuse_memory(ram, e) : r;
}

static void unbuild_memory(struct pc *pc)
{
	boot_forget(pc->config.boot, pc->kernel);
	populate_destroy(pc->populate);
	physmap_destroy(&pc->pm);
}

/* What takes long and needs nothing else comes early: the next step waits for a clock. */
static int build_memory(struct pc *pc, struct err *e)
{
	int r = add_ram(pc, e);

	if (!r && pc->config.engine[0]->maps_ram)
		r = populate_create(&pc->populate, e);
	if (!r) {
		boot_expect(pc->config.boot, &pc->pm, pc->populate);
		r = boot_read(pc->config.boot, &pc->kernel, e);
	}
	if (r)
		unbuild_memory(pc);
	return r;
}

static int build_bus(struct pc *pc, struct err *e)
{
	int r;

	bus_init(&pc->bus);
	r = loop_create(&pc->loop, e);
	pc->doorbells = (struct doorbells){
		.loop = pc->loop, .lock = &pc->lock, .listen = listen_to_doorbell, .opaque = pc};
	return r;
}

static void unbuild_bus(struct pc *pc)
{
	loop_destroy(pc->loop);
	bus_destroy(&pc->bus);
}

static void unbuild_cpu_model(struct pc *pc)
{
	while (pc->hosts) {
		pc->hosts--;
		pc->config.engine[pc->hosts]->host_close(pc->host[pc->hosts]);
	}
}

/* What all engines can do: any of them may have to go on with the guest. */
static int build_cpu_model(struct pc *pc, struct err *e)
{
	struct cpuid_request request = {.since = &pc->start,
					.vcpus = pc->config.vcpus,
					.paravirt = true,
					.one_engine = pc->config.engines == 1};
	int r;

	for (u32 i = 0; i < pc->config.engines; i++)
		request.paravirt &= pc->config.engine[i]->paravirt;
	r = cpuid_model_init(&pc->cpuid, &request, e);
	for (u32 i = 0; i < pc->config.engines && !r; i++) {
		const struct engine_ops *engine = pc->config.engine[i];

		r = engine->host_open(&pc->host[i], e);
		if (!r) {
			pc->hosts++;
			r = engine->cpuid_limit(pc->host[i], &pc->cpuid, e);
		}
		if (r)
			err_prefix(e, "%s engine", engine->name);
	}
	if (r)
		unbuild_cpu_model(pc);
	return r;
}

static void unbuild_nothing(struct pc *pc)
{
	(void)pc;
}

static int build_interrupts(struct pc *pc, struct err *e)
{
	const struct chips_env env = {
		.engine = engine_of(pc),
		.vm = pc->vm,
		.bus = &pc->bus,
		.loop = pc->loop,
		.machine_lock = &pc->lock,
		.cpus = &pc->vcpus,
		.count = pc->config.vcpus,
		.tsc_hz = pc->cpuid.tsc_hz,
	};
	int r = chips_init(&pc->chips, &env, e);

	if (r || !pc->chips.engine || pc->config.engines == 1)
		return r;
	return err_set(
		e, -EINVAL,
		"with '%s' the %s engine has interrupt controllers of its own, which no other "
		"engine can go on with: name one engine, or leave that option out",
		pc->config.engine_options, engine_of(pc)->name);
}

static void unbuild_interrupts(struct pc *pc)
{
	chips_destroy(&pc->chips);
}

static u64 utc_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (u64)ts.tv_sec * 1000000000ul + (u64)ts.tv_nsec;
}

static int build_timers(struct pc *pc, struct err *e)
{
	const struct pm_config pm = {.sci = gsi(pc, GSI_SCI),
				     .power_off = on_power_off,
				     .reset = on_reset,
				     .opaque = pc};
	int r = rtc_init(&pc->rtc, &pc->bus, gsi(pc, GSI_RTC), utc_ns(), pc->loop, &pc->lock, e);

	if (!r)
		r = pm_init(&pc->acpi_pm, &pc->bus, &pm, pc->loop, &pc->lock, e);
	if (!r)
		rtc_set_memory(&pc->rtc, pc->ram_below, pc->ram_above);
	return r;
}

static void unbuild_timers(struct pc *pc)
{
	pm_destroy(&pc->acpi_pm);
	rtc_destroy(&pc->rtc);
}

static int build_console(struct pc *pc, struct err *e)
{
	int r = chardev_open(pc->config.console, pc->loop, on_escape, pc, &pc->console, e);

	if (r)
		return r;
	r = uart_init(&pc->com1, &pc->bus, COM1_PORT, gsi(pc, GSI_COM1), pc->console, &pc->lock, e);
	if (r)
		pc->console->ops->close(pc->console);
	return r;
}

static void unbuild_console(struct pc *pc)
{
	pc->console->ops->close(pc->console);
}

static int build_board(struct pc *pc, struct err *e)
{
	const struct i8042_config i8042 = {
		.keyboard = gsi(pc, GSI_KEYBOARD),
		.mouse = gsi(pc, GSI_MOUSE),
		.reset = on_reset,
		.a20 = on_a20,
		.opaque = pc,
	};
	int r = i8042_init(&pc->i8042, &pc->bus, &i8042, e);

	if (!r)
		r = fwcfg_init(&pc->fwcfg, &pc->bus, &pc->pm, e);
	if (!r)
		r = debugexit_init(&pc->debugexit, &pc->bus, on_debug_exit, pc, e);
	if (!r)
		r = pvpanic_init(&pc->pvpanic, &pc->bus, on_panic, pc, e);
	return r;
}

static void unbuild_board(struct pc *pc)
{
	fwcfg_destroy(&pc->fwcfg);
}

/* The 64-bit window lies above all RAM, within what the CPU can address. */
static void place_pci_windows(struct pc *pc)
{
	u64 base = align_up(LAYOUT_ABOVE + pc->ram_above, LAYOUT_PCI64_SIZE);
	u32 leaf[4];

	cpuid_query(&pc->cpuid, 0, 0, 0, 0x80000008, 0, leaf);
	pc->pci_windows = (struct pci_windows){
		.memory32 = LAYOUT_PCI32,
		.memory32_end = LAYOUT_PCI32_END,
		.memory64 = base,
		.memory64_end = base,
		.port = LAYOUT_PCI_PORTS,
		.port_end = LAYOUT_PCI_PORTS_END,
	};
	if (!((base + LAYOUT_PCI64_SIZE - 1) >> (leaf[0] & 0xff)))
		pc->pci_windows.memory64_end = base + LAYOUT_PCI64_SIZE;
}

static int build_pci(struct pc *pc, struct err *e)
{
	const struct irq_line intx[4] = {gsi(pc, GSI_PCI), gsi(pc, GSI_PCI + 1),
					 gsi(pc, GSI_PCI + 2), gsi(pc, GSI_PCI + 3)};
	int r = pci_host_init(&pc->pci, &pc->bus, chips_msi(&pc->chips), intx, LAYOUT_ECAM, e);

	if (!r)
		pci_host_claim_reset_port(&pc->pci, &pm_reset_control_ops, &pc->acpi_pm);
	place_pci_windows(pc);
	return r;
}

static void unbuild_pci(struct pc *pc)
{
	pci_host_destroy(&pc->pci);
}

static struct virtio_env virtio_env(struct pc *pc)
{
	return (struct virtio_env){
		.pm = &pc->pm,
		.loop = pc->loop,
		.lock = &pc->lock,
		.doorbells = pc->config.loop_doorbells ? &pc->doorbells : NULL,
	};
}

static int add_disk(struct pc *pc, const struct block_spec *spec, struct err *e)
{
	const struct virtio_env env = virtio_env(pc);
	struct pc_disk *d = &pc->disk[pc->disks];
	char id[VIRTIO_BLK_ID_LEN];
	int r = block_open(spec, pc->loop, &pc->lock, &d->block, e);

	if (r)
		return r;
	snprintf(id, sizeof(id), "disk%u", pc->disks);
	r = virtio_blk_init(&d->blk, &env, &pc->pci, d->block, id, e);
	if (r)
		d->block->ops->close(d->block);
	else
		pc->disks++;
	return r;
}

static void unbuild_disks(struct pc *pc)
{
	while (pc->disks) {
		struct pc_disk *d = &pc->disk[--pc->disks];

		pthread_mutex_lock(&pc->lock);
		virtio_blk_destroy(&d->blk);
		pthread_mutex_unlock(&pc->lock);
		d->block->ops->close(d->block);
	}
}

static int build_disks(struct pc *pc, struct err *e)
{
	int r = 0;

	for (u32 i = 0; i < pc->config.disks && !r; i++)
		r = add_disk(pc, pc->config.disk[i], e);
	if (r)
		unbuild_disks(pc);
	return r;
}

static int add_nic(struct pc *pc, const struct net_spec *spec, struct err *e)
{
	const struct virtio_env env = virtio_env(pc);
	/* Locally administered; the same in each run, so that guests keep their names for it. */
	const u8 mac[NET_MAC] = {0x52, 0x54, 0x00, 0xd0, 0x99, (u8)(0xe1 + pc->nics)};
	struct pc_nic *n = &pc->nic[pc->nics];
	int r = net_open(spec, pc->loop, &pc->lock, &n->backend, e);

	if (r || !n->backend)
		return r;
	r = virtio_net_init(&n->net, &env, &pc->pci, n->backend, mac, e);
	if (r)
		n->backend->ops->close(n->backend);
	else
		pc->nics++;
	return r;
}

static void unbuild_nics(struct pc *pc)
{
	pthread_mutex_lock(&pc->lock);
	while (pc->nics) {
		struct pc_nic *n = &pc->nic[--pc->nics];

		virtio_net_destroy(&n->net);
		n->backend->ops->close(n->backend);
	}
	pthread_mutex_unlock(&pc->lock);
}

static int build_nics(struct pc *pc, struct err *e)
{
	int r = 0;

	for (u32 i = 0; i < pc->config.nets && !r; i++)
		r = add_nic(pc, pc->config.net[i], e);
	if (r)
		unbuild_nics(pc);
	return r;
}

static int build_hvc(struct pc *pc, struct err *e)
{
	const struct virtio_env env = virtio_env(pc);
	int r;

	if (!pc->config.virtio_console)
		return 0;
	r = chardev_open(pc->config.virtio_console, pc->loop, on_escape, pc, &pc->hvc_chardev, e);
	if (r)
		return r;
	r = virtio_console_init(&pc->hvc, &env, &pc->pci, pc->hvc_chardev, e);
	if (r) {
		pc->hvc_chardev->ops->close(pc->hvc_chardev);
		pc->hvc_chardev = NULL;
	}
	return r;
}

static void unbuild_hvc(struct pc *pc)
{
	if (!pc->hvc_chardev)
		return;
	virtio_console_destroy(&pc->hvc);
	pc->hvc_chardev->ops->close(pc->hvc_chardev);
}

static int build_rng(struct pc *pc, struct err *e)
{
	const struct virtio_env env = virtio_env(pc);

	return virtio_rng_init(&pc->rng, &env, &pc->pci, e);
}

static void unbuild_rng(struct pc *pc)
{
	virtio_rng_destroy(&pc->rng);
}

/* ---- what boots ---- */

/*
 * Memory types as firmware leaves them (SDM vol. 3, 12.11): write-back, uncacheable between the end
 * of low RAM and 4 GiB and in the VGA range. Kernels take disabled MTRRs for a broken machine.
 */
static void set_memory_types(const struct pc *pc, struct cpu_msrs *m)
{
	enum { TYPE_UC = 0, TYPE_WP = 5, TYPE_WB = 6, FIXED_ENABLE = 1 << 10, ENABLE = 1 << 11 };
	const u64 all_bytes = 0x0101010101010101ul;
	u32 leaf[4];

	cpuid_query(&pc->cpuid, 0, 0, 0, 0x80000008, 0, leaf);
	m->mtrr_def_type = ENABLE | FIXED_ENABLE | TYPE_WB;
	/* 64K at 0, 16K at 80000 and A0000, then 4K from C0000 on: table 12-9. */
	for (u32 i = 0; i < ARRAY_SIZE(m->mtrr_fixed); i++)
		m->mtrr_fixed[i] = all_bytes * (i < 2 ? TYPE_WB : i == 2 ? TYPE_UC : TYPE_WP);
	m->mtrr_base[0] = LAYOUT_HOLE | TYPE_UC;
	m->mtrr_mask[0] = ((1ul << (leaf[0] & 0xff)) - 1) & ~(LAYOUT_ABOVE - LAYOUT_HOLE - 1);
	m->mtrr_mask[0] |= ENABLE; /* the valid bit is bit 11 as well */
}

static int store_tables(struct pc *pc, struct err *e)
{
	const struct pci_windows *w = &pc->pci_windows;
	const struct acpi_config config = {
		.vcpus = pc->config.vcpus,
		.pci64_base = w->memory64,
		.pci64_size = w->memory64_end - w->memory64,
	};
	int r = acpi_build(&pc->acpi, LAYOUT_ACPI, &config, e);

	if (r)
		return r;
	if (mem_write(&pc->pm, LAYOUT_ACPI, pc->acpi.data, pc->acpi.len) ||
	    smbios_store(&pc->pm, LAYOUT_SMBIOS, pc->config.ram_bytes))
		return err_set(e, -EFAULT, "cannot store the firmware tables");
	return 0;
}

/* Everything firmware and boot loader would do. Under the machine lock, vCPUs stopped. */
static int boot(struct pc *pc, struct err *e)
{
	struct boot_env env = {.pm = &pc->pm, .ram_below = pc->ram_below};
	int r = pci_setup(&pc->pci, &pc->pci_windows, e);

	if (!r)
		r = store_tables(pc, e);
	if (r)
		return r;
	e820_build(&env.e820, pc->ram_below, pc->ram_above);
	env.rsdp = pc->acpi.rsdp;
	if (!pc->kernel)
		r = boot_read(pc->config.boot, &pc->kernel, e);
	if (r)
		return r;
	env.kernel = pc->kernel;
	r = boot_load(pc->config.boot, &env, &pc->entry, e);
	boot_forget(pc->config.boot, pc->kernel);
	pc->kernel = NULL;
	if (r)
		return r;
	set_memory_types(pc, &pc->entry.msr);
	vcpus_reset(&pc->vcpus, &pc->entry);
	return 0;
}

static int build_confinement(struct pc *pc, struct err *e)
{
	return lockdown_files(pc->config.sandbox, e);
}

static int create_vm(struct pc *pc, u32 n, const char *cache_dir, struct engine_vm **vm,
		     struct err *e)
{
	const struct engine_config config = {.host = pc->host[n],
					     .physmap = &pc->pm,
					     .cpuid = &pc->cpuid,
					     .options = n ? NULL : pc->config.engine_options,
					     .cache_dir = cache_dir,
					     .populate = pc->populate};
	int r = pc->config.engine[n]->vm_create(&config, vm, e);

	return r ? err_prefix(e, "%s engine", pc->config.engine[n]->name) : 0;
}

/* Before the devices, which ask what the processors are like, and while files can still be opened.
 */
static int build_vm(struct pc *pc, struct err *e)
{
	const char *dir = pc->config.cache_dir;

	return create_vm(pc, pc->current, dir ? dir : "", &pc->vm, e);
}

static void unbuild_vm(struct pc *pc)
{
	engine_of(pc)->vm_destroy(pc->vm);
}

static int build_cpus(struct pc *pc, struct err *e)
{
	const struct engine_ops *engine = engine_of(pc);
	const struct vcpu_env env = {
		.engine = engine,
		.vm = pc->vm,
		.bus = &pc->bus,
		.physmap = &pc->pm,
		.lapics = chips_lapics(&pc->chips),
		.machine_lock = &pc->lock,
		.triple_fault = on_triple_fault,
		.failed = on_engine_failure,
		.opaque = pc,
	};
	int r = vcpus_create(&pc->vcpus, pc->config.vcpus, &env, e);

	return r ? err_prefix(e, "%s engine", engine->name) : 0;
}

static void unbuild_cpus(struct pc *pc)
{
	vcpus_destroy(&pc->vcpus);
}

static int build_boot(struct pc *pc, struct err *e)
{
	int r;

	pthread_mutex_lock(&pc->lock);
	r = boot(pc, e);
	pthread_mutex_unlock(&pc->lock);
	return r;
}

/* The machine, in the order in which its parts depend on each other. */
static const struct {
	int (*build)(struct pc *pc, struct err *e);
	void (*unbuild)(struct pc *pc);
} steps[] = {
	{.build = build_memory, .unbuild = unbuild_memory},
	{.build = build_bus, .unbuild = unbuild_bus},
	{.build = build_cpu_model, .unbuild = unbuild_cpu_model},
	{.build = build_vm, .unbuild = unbuild_vm},
	{.build = build_interrupts, .unbuild = unbuild_interrupts},
	{.build = build_timers, .unbuild = unbuild_timers},
	{.build = build_board, .unbuild = unbuild_board},
	{.build = build_pci, .unbuild = unbuild_pci},
	{.build = build_disks, .unbuild = unbuild_disks},
	{.build = build_nics, .unbuild = unbuild_nics},
	{.build = build_console, .unbuild = unbuild_console},
	{.build = build_hvc, .unbuild = unbuild_hvc},
	{.build = build_rng, .unbuild = unbuild_rng},
	{.build = build_confinement, .unbuild = unbuild_nothing},
	{.build = build_cpus, .unbuild = unbuild_cpus},
	{.build = build_boot, .unbuild = unbuild_nothing},
};

/* A machine that may change its engine needs what all of them need, to create VMs as well. */
static int lock_down(struct pc *pc, struct err *e)
{
	const struct sandbox_list *list[2 * PC_ENGINES_MAX];
	u32 n = 0;

	for (u32 i = 0; i < pc->config.engines; i++) {
		list[n++] = pc->config.engine[i]->sandbox;
		list[n++] = pc->config.engines > 1 ? pc->config.engine[i]->sandbox_create : NULL;
	}
	return lockdown(pc->config.sandbox, list, n, e);
}

int pc_create(const struct pc_config *config, struct pc **out, struct err *e)
{
	struct pc *pc = calloc(1, sizeof(*pc));
	int r = 0;

	if (!pc)
		return err_set(e, -ENOMEM, "out of memory");
	pc->config = *config;
	pc->start = cpuid_moment();
	pthread_mutex_init(&pc->lock, NULL);
	physmap_init(&pc->pm);
	while (!r && pc->built < ARRAY_SIZE(steps)) {
		r = steps[pc->built].build(pc, e);
		if (!r)
			pc->built++;
	}
	if (!r)
		r = lock_down(pc, e);
	if (r)
		pc_destroy(pc);
	else
		*out = pc;
	return r;
}

void pc_destroy(struct pc *pc)
{
	while (pc->built)
		steps[--pc->built].unbuild(pc);
	pthread_mutex_destroy(&pc->lock);
	free(pc);
}

/* ---- running ---- */

/* All devices to their power-up state. Under the machine lock, vCPUs stopped. */
static void reset_devices(struct pc *pc)
{
	for (u32 i = 0; i < pc->disks; i++)
		device_reset(&virtio_blk_ops, &pc->disk[i].blk);
	for (u32 i = 0; i < pc->nics; i++)
		device_reset(&virtio_net_ops, &pc->nic[i].net);
	if (pc->hvc_chardev)
		device_reset(&virtio_console_ops, &pc->hvc);
	device_reset(&virtio_rng_ops, &pc->rng);
	pci_host_reset(&pc->pci);
	device_reset(&uart_ops, &pc->com1);
	device_reset(&pvpanic_ops, &pc->pvpanic);
	device_reset(&debugexit_ops, &pc->debugexit);
	device_reset(&fwcfg_ops, &pc->fwcfg);
	device_reset(&i8042_ops, &pc->i8042);
	device_reset(&pm_ops, &pc->acpi_pm);
	device_reset(&rtc_ops, &pc->rtc);
	pc->panicked = false;
}

static int reset(struct pc *pc)
{
	struct err e = {0};
	int r;

	pthread_mutex_lock(&pc->lock);
	reset_devices(pc);
	r = chips_reset(&pc->chips, &e);
	if (!r)
		r = boot(pc, &e);
	pthread_mutex_unlock(&pc->lock);
	if (r)
		log_error("reset: %s", e.text);
	return r;
}

/* What the highest-ranking request means; false when the machine goes on. */
static bool is_over(struct pc *pc, u32 asked, enum pc_end *end)
{
	static const struct {
		u32 asked;
		enum pc_end end;
	} ends[] = {
		{ASK_FAILED, PC_FAILED},
		{ASK_QUIT, PC_QUIT},
		{ASK_DEBUG_EXIT, PC_DEBUG_EXIT},
		{ASK_POWER_OFF, PC_POWER_OFF},
		{ASK_TRIPLE_FAULT, PC_TRIPLE_FAULT},
		{ASK_RESET, PC_REBOOT},
	};

	for (u32 i = 0; i < ARRAY_SIZE(ends); i++) {
		if (!(asked & ends[i].asked))
			continue;
		*end = ends[i].end;
		if (*end != PC_TRIPLE_FAULT && *end != PC_REBOOT)
			return true;
		if (*end == PC_REBOOT && pc->panicked)
			*end = PC_PANIC;
		if (pc->config.no_reboot)
			return true;
		*end = PC_FAILED;
		return reset(pc) != 0;
	}
	return false;
}

/* While nothing runs: the guest goes on with the next engine, or with its own if that fails. */
static void take_next_engine(struct pc *pc)
{
	const struct engine_ops *from = engine_of(pc);
	u32 n = (pc->current + 1) % pc->config.engines;
	const struct engine_ops *to = pc->config.engine[n];
	u64 start = host_clock_ns();
	struct engine_vm *vm = NULL, *old = pc->vm;
	struct err e = {0};
	int r;

	pthread_mutex_lock(&pc->lock);
	r = create_vm(pc, n, NULL, &vm, &e);
	if (!r) {
		r = vcpus_move(&pc->vcpus, to, vm, &e);
		if (r) {
			to->vm_destroy(vm);
		} else {
			doorbells_listen(&pc->doorbells, false);
			from->vm_destroy(old);
			pc->vm = vm;
			pc->current = n;
			doorbells_listen(&pc->doorbells, true);
		}
	}
	pthread_mutex_unlock(&pc->lock);
	if (r)
		log_error("%s; the guest goes on with the %s engine", e.text, from->name);
	else
		log_warn("the %s engine has taken over from %s, in %.1f ms", to->name, from->name,
			 (double)(host_clock_ns() - start) / 1e6);
}

void pc_change_engine(struct pc *pc)
{
	if (pc->config.engines > 1)
		request(pc, ASK_ENGINE);
	else
		log_warn("no other engine to go on with: name two, as in --engine %s,%s",
			 engines[0]->name, engines[1]->name);
}

enum pc_end pc_run(struct pc *pc, u32 *value)
{
	enum pc_end end;
	u32 asked = 0;

	pc->stats.vcpus = &pc->vcpus;
	if (pc->config.stats)
		stats_start(&pc->stats, &pc->vcpus, pc->loop);
	do {
		if (asked & ASK_ENGINE)
			take_next_engine(pc);
		vcpus_resume(&pc->vcpus);
		loop_run(pc->loop);
		vcpus_stop(&pc->vcpus);
		asked = atomic_exchange(&pc->asked, 0);
	} while (!is_over(pc, asked, &end));
	stats_stop(&pc->stats);
	pthread_mutex_lock(&pc->lock);
	*value = pc->exit_value;
	pthread_mutex_unlock(&pc->lock);
	return end;
}

void pc_power_button(struct pc *pc)
{
	pthread_mutex_lock(&pc->lock);
	pm_power_button(&pc->acpi_pm);
	pthread_mutex_unlock(&pc->lock);
}

struct loop *pc_loop(struct pc *pc)
{
	return pc->loop;
}

u32 pc_stats(struct pc *pc, struct stat *row, u32 max)
{
	u32 n = stats_rows(&pc->stats, row, max);

	if (n < max)
		row[n++] = (struct stat){.name = "doorbells.events", .value = pc->doorbells.rung};
	return n;
}
