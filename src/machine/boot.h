/*
 * Starting a kernel without firmware: what a boot loader would do, done from outside.
 *
 * boot_open() looks at the files once, before anything else is built, and keeps them open;
 * boot_expect() may be called as soon as there is memory, boot_load() puts kernel, initrd and boot
 * data into guest memory and says in which state the boot processor starts. It runs again for each
 * reset of the machine.
 */
#pragma once

#include "cpu/state.h"
#include "host/file.h"
#include "host/populate.h"
#include "machine/e820.h"
#include "memory/physmap.h"

struct boot {
	struct host_file kernel;
	struct host_file initrd; /* fd -1: none */
	const char *cmdline;     /* borrowed; never NULL */
};

/* What the machine tells the loaders. */
struct boot_env {
	const struct physmap *pm;
	u64 ram_below; /* end of RAM under the PCI hole */
	struct e820_map e820;
	gpa_t rsdp;       /* ACPI root pointer */
	const u8 *kernel; /* from boot_read() */
};

/* @initrd and @cmdline may be NULL. 0, or -errno with one clear line in @e. */
int boot_open(struct boot *b, const char *kernel, const char *initrd, const char *cmdline,
	      struct err *e);
void boot_close(struct boot *b);

/* The memory that the kernel of @b will take is asked for (host/populate.h). */
void boot_expect(const struct boot *b, const struct physmap *pm, struct populate *p);

/* The kernel's file in memory, for boot_load(). boot_forget() may be given NULL. */
int boot_read(const struct boot *b, u8 **kernel, struct err *e);
void boot_forget(const struct boot *b, u8 *kernel);

int boot_load(const struct boot *b, const struct boot_env *env, struct cpu_state *s, struct err *e);
