/*
 * The fw_cfg interface by which firmware asks the monitor for configuration, tables and kernels.
 *
 * Ports 0x510 (selector), 0x511 (data) and 0x514 (DMA address). Items are read-only for the guest;
 * a DMA write fails as the specification wants for such items.
 *
 * Reference: QEMU, docs/specs/fw_cfg.
 *
 * Threads: everything under the machine lock.
 */
#pragma once

#include "bus/bus.h"
#include "device/device.h"
#include "memory/physmap.h"

enum {
	FWCFG_FILES = 32,    /* greatest number of files */
	FWCFG_NAME = 56,     /* bytes of a file name with its final zero */
	FWCFG_LEGACY = 0x20, /* selectors below the files */
	FWCFG_ARCH = 0x8000, /* architecture-specific selectors, FWCFG_ARCH_ITEMS of them */
	FWCFG_ARCH_ITEMS = 8,
	FWCFG_ITEMS = FWCFG_LEGACY + FWCFG_FILES + FWCFG_ARCH_ITEMS,
};

/* Well-known selectors. */
enum fwcfg_key {
	FWCFG_SIGNATURE = 0x00,
	FWCFG_ID = 0x01,
	FWCFG_UUID = 0x02,
	FWCFG_RAM_SIZE = 0x03,
	FWCFG_NOGRAPHIC = 0x04,
	FWCFG_NB_CPUS = 0x05,
	FWCFG_KERNEL_ADDR = 0x07,
	FWCFG_KERNEL_SIZE = 0x08,
	FWCFG_INITRD_ADDR = 0x0a,
	FWCFG_INITRD_SIZE = 0x0b,
	FWCFG_BOOT_MENU = 0x0e,
	FWCFG_MAX_CPUS = 0x0f,
	FWCFG_KERNEL_ENTRY = 0x10,
	FWCFG_KERNEL_DATA = 0x11,
	FWCFG_INITRD_DATA = 0x12,
	FWCFG_CMDLINE_ADDR = 0x13,
	FWCFG_CMDLINE_SIZE = 0x14,
	FWCFG_CMDLINE_DATA = 0x15,
	FWCFG_SETUP_ADDR = 0x16,
	FWCFG_SETUP_SIZE = 0x17,
	FWCFG_SETUP_DATA = 0x18,
	FWCFG_FILE_DIR = 0x19,
};

struct fwcfg_item {
	u8 *data; /* owned */
	u32 len;
	char name[FWCFG_NAME]; /* files only */
};

struct fwcfg {
	struct fwcfg_item item[FWCFG_ITEMS];
	u32 files;
	u32 selector; /* as written; may select nothing */
	u32 offset;   /* next byte of the item */
	u32 dma_high; /* upper half of the DMA address */
	const struct physmap *pm;
};

extern const struct device_ops fwcfg_ops;

int fwcfg_init(struct fwcfg *f, struct bus *bus, const struct physmap *pm, struct err *e);
void fwcfg_destroy(struct fwcfg *f);

/* Set an item (a copy of @data): a well-known key or FWCFG_ARCH + n. -EINVAL for another key,
 * -ENOMEM. */
int fwcfg_set(struct fwcfg *f, u16 key, const void *data, u32 len);
int fwcfg_set_u16(struct fwcfg *f, u16 key, u16 value);
int fwcfg_set_u32(struct fwcfg *f, u16 key, u32 value);
int fwcfg_set_u64(struct fwcfg *f, u16 key, u64 value);

/* Add file @name, for example "etc/e820". -ENOSPC, -EEXIST, -ENAMETOOLONG, -ENOMEM. */
int fwcfg_add_file(struct fwcfg *f, const char *name, const void *data, u32 len);
