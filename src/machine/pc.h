/*
 * The PC: what a virtual machine consists of, put together in one place and taken apart in reverse.
 */
#pragma once

#include "block/block.h"
#include "engine/engine.h"
#include "host/sandbox.h"
#include "machine/boot.h"
#include "machine/stats.h"
#include "net/net.h"

enum { PC_DISKS_MAX = 16, PC_NETS_MAX = 4, PC_ENGINES_MAX = 2 };

/* Everything is borrowed and outlives the machine. */
struct pc_config {
	/* The first runs the guest, the others can take over from it; all different. */
	const struct engine_ops *engine[PC_ENGINES_MAX];
	u32 engines;
	const char *engine_options; /* the first one's; NULL: none */
	const char *cache_dir; /* where engines may keep files from run to run; NULL: nowhere */
	u64 ram_bytes;
	u32 vcpus;
	struct boot *boot; /* opened; what starts */
	const struct block_spec *disk[PC_DISKS_MAX];
	u32 disks;
	const struct net_spec *net[PC_NETS_MAX];
	u32 nets;
	const char *console;        /* chardev_open() specification of the serial port */
	const char *virtio_console; /* of a virtio console, or NULL for none */
	bool loop_doorbells; /* the event loop does what doorbells ask for, if the engine can */
	bool no_reboot;      /* a guest that reboots ends the machine */
	enum sandbox_mode sandbox;
	bool stats; /* sample where time goes */
};

/* Why pc_run() came back. */
enum pc_end {
	PC_POWER_OFF,    /* ACPI S5 */
	PC_REBOOT,       /* with no_reboot */
	PC_PANIC,        /* the same after the guest's kernel said that it panicked */
	PC_TRIPLE_FAULT, /* with no_reboot */
	PC_DEBUG_EXIT,   /* the guest wrote the debug exit port: see *value */
	PC_QUIT,         /* pc_quit() */
	PC_FAILED,       /* the engine or a reset failed: already reported */
};

struct pc;

/* Assemble the machine, load what boots; nothing runs yet. 0 or -errno with one line in @e. */
int pc_create(const struct pc_config *config, struct pc **pc, struct err *e);
void pc_destroy(struct pc *pc);

/* Run on the calling thread, which becomes the event loop's, until the machine ends. */
enum pc_end pc_run(struct pc *pc, u32 *value);

/* End the machine; pc_run() returns PC_QUIT. Any thread. */
void pc_quit(struct pc *pc);

/* Go on with the next engine of the configuration, after the last one the first. The loop's thread.
 */
void pc_change_engine(struct pc *pc);

/* Press the power button. The loop's thread. */
void pc_power_button(struct pc *pc);

/* The loop that pc_run() runs, for the caller's own descriptors. */
struct loop *pc_loop(struct pc *pc);

/* Where time went (with pc_config.stats) and what was counted: see stats.h. After pc_run(). */
u32 pc_stats(struct pc *pc, struct stat *row, u32 max);
