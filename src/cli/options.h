/* The options of `doppel run`. */
#pragma once

#include "machine/pc.h"

struct run_options {
	char engine[32];            /* names separated by commas, or "auto" */
	const char *engine_options; /* behind the name; NULL: none */
	u64 ram_bytes;
	u32 vcpus;
	const char *kernel, *initrd, *append;
	struct block_spec *disk[PC_DISKS_MAX];
	u32 disks;
	struct net_spec net[PC_NETS_MAX];
	u32 nets;
	bool net_given;
	const char *console, *virtio_console;
	enum sandbox_mode sandbox;
	bool loop_doorbells;
	bool no_reboot, stats, json, help;
	u32 verbose;
};

/* Parse @argv (with the verb as argv[0]). 0, or a negative errno with the reason in @e. */
int run_options_parse(struct run_options *o, int argc, char **argv, struct err *e);
void run_options_free(struct run_options *o);
