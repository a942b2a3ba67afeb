/*
 * Theory of operation
 *
 * Items are byte arrays; the guest selects one and reads it front to back, byte by byte at the data
 * port or in bulk by DMA. What lies beyond the end of an item reads as zero, as does an item that
 * does not exist. The file directory is itself an item and is rebuilt when a file is added.
 *
 * The DMA descriptor is copied in once and then used. A transfer may exceed its item by PADDING_MAX
 * bytes at most, so a guest cannot keep the machine lock by asking for gigabytes of zeros.
 */
#include "device/chip/fwcfg.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	PORT_SELECT = 0x510,
	PORT_DMA = 0x514,
	DATA_OFFSET = 1,

	ID_TRADITIONAL = 1 << 0,
	ID_DMA = 1 << 1,

	DMA_ERROR = 1 << 0,
	DMA_READ = 1 << 1,
	DMA_SKIP = 1 << 2,
	DMA_SELECT = 1 << 3,
	DMA_WRITE = 1 << 4,

	PADDING_MAX = 1 << 20,
	NO_ITEM = FWCFG_ITEMS,
};

/* "QEMU CFG", the DMA address register as it reads. */
static const u8 dma_signature[8] = {'Q', 'E', 'M', 'U', ' ', 'C', 'F', 'G'};

struct dma_access { /* big endian */
	u32 control, length;
	u64 address;
};

struct directory_entry { /* big endian */
	u32 size;
	u16 select, reserved;
	char name[FWCFG_NAME];
};

static u32 item_index(u32 key)
{
	if (key < FWCFG_LEGACY + FWCFG_FILES)
		return key;
	if (key >= FWCFG_ARCH && key < FWCFG_ARCH + FWCFG_ARCH_ITEMS)
		return key - FWCFG_ARCH + FWCFG_LEGACY + FWCFG_FILES;
	return NO_ITEM;
}

/* Bytes of the selected item from the present offset on; their number is in @left. */
static const u8 *rest(const struct fwcfg *f, u32 *left)
{
	u32 i = item_index(f->selector);

	*left = 0;
	if (i == NO_ITEM || f->offset >= f->item[i].len)
		return NULL;
	*left = f->item[i].len - f->offset;
	return f->item[i].data + f->offset;
}

static void skip(struct fwcfg *f, u32 len)
{
	f->offset = len > UINT32_MAX - f->offset ? UINT32_MAX : f->offset + len;
}

static void select_item(struct fwcfg *f, u16 key)
{
	f->selector = key;
	f->offset = 0;
}

static u8 read_byte(struct fwcfg *f)
{
	u32 left;
	const u8 *data = rest(f, &left);
	u8 byte = left ? *data : 0;

	skip(f, 1);
	return byte;
}

static bool write_zeros(const struct physmap *pm, gpa_t gpa, u64 len)
{
	static const u8 zero[PAGE_SIZE];

	for (u64 n; len; gpa += n, len -= n) {
		n = MIN(len, sizeof(zero));
		if (mem_write(pm, gpa, zero, n))
			return false;
	}
	return true;
}

static bool dma_read(struct fwcfg *f, gpa_t gpa, u32 len)
{
	u32 left, n;
	const u8 *data = rest(f, &left);

	n = MIN(left, len);
	if (len - n > PADDING_MAX)
		return false;
	skip(f, len);
	return !mem_write(f->pm, gpa, data, n) && write_zeros(f->pm, gpa + n, len - n);
}

static void dma_run(struct fwcfg *f, gpa_t gpa)
{
	struct dma_access access;
	u32 control, len, result = 0;

	if (mem_read(f->pm, gpa, &access, sizeof(access)))
		return; /* there is nowhere to report it */
	control = be32toh(access.control);
	len = be32toh(access.length);
	if (control & DMA_SELECT)
		select_item(f, (u16)(control >> 16));
	if (control & DMA_READ) {
		if (!dma_read(f, be64toh(access.address), len))
			result = htobe32(DMA_ERROR);
	} else if (control & DMA_WRITE) {
		result = htobe32(DMA_ERROR); /* no item can be written */
	} else if (control & DMA_SKIP) {
		skip(f, len);
	}
	mem_write(f->pm, gpa + offsetof(struct dma_access, control), &result, sizeof(result));
}

static u64 port_read(void *dev, u64 off, u32 size)
{
	struct fwcfg *f = dev;

	if (off == DATA_OFFSET && size == 1)
		return read_byte(f);
	return f->selector;
}

static void port_write(void *dev, u64 off, u32 size, u64 value)
{
	if (!off && size == 2)
		select_item(dev, (u16)value);
}

static u64 dma_port_read(void *dev, u64 off, u32 size)
{
	u32 value;

	(void)dev;
	memcpy(&value, dma_signature + off, size);
	return value;
}

static void dma_port_write(void *dev, u64 off, u32 size, u64 value)
{
	struct fwcfg *f = dev;
	u32 half = be32toh((u32)value);
	u64 high = f->dma_high;

	(void)size;
	if (!off) {
		f->dma_high = half;
		return;
	}
	f->dma_high = 0;
	dma_run(f, high << 32 | half);
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write, .min = 1, .max = 2};
static const struct bus_ops dma_ops = {
	.read = dma_port_read, .write = dma_port_write, .min = 4, .max = 4};

/* Items ------------------------------------------------------------------- */

static int replace(struct fwcfg_item *item, const void *data, u32 len)
{
	u8 *copy = malloc(len ? len : 1);

	if (!copy)
		return -ENOMEM;
	if (len)
		memcpy(copy, data, len);
	free(item->data);
	item->data = copy;
	item->len = len;
	return 0;
}

int fwcfg_set(struct fwcfg *f, u16 key, const void *data, u32 len)
{
	u32 i = item_index(key);

	if (i == NO_ITEM || (key >= FWCFG_LEGACY && key < FWCFG_ARCH))
		return -EINVAL;
	return replace(&f->item[i], data, len);
}

int fwcfg_set_u16(struct fwcfg *f, u16 key, u16 value)
{
	value = htole16(value);
	return fwcfg_set(f, key, &value, sizeof(value));
}

int fwcfg_set_u32(struct fwcfg *f, u16 key, u32 value)
{
	value = htole32(value);
	return fwcfg_set(f, key, &value, sizeof(value));
}

int fwcfg_set_u64(struct fwcfg *f, u16 key, u64 value)
{
	value = htole64(value);
	return fwcfg_set(f, key, &value, sizeof(value));
}

static int build_directory(struct fwcfg *f)
{
	struct {
		u32 count;
		struct directory_entry entry[FWCFG_FILES];
	} dir = {.count = htobe32(f->files)};

	for (u32 i = 0; i < f->files; i++) {
		const struct fwcfg_item *item = &f->item[FWCFG_LEGACY + i];

		dir.entry[i].size = htobe32(item->len);
		dir.entry[i].select = htobe16((u16)(FWCFG_LEGACY + i));
		memcpy(dir.entry[i].name, item->name, FWCFG_NAME);
	}
	return fwcfg_set(f, FWCFG_FILE_DIR, &dir,
			 (u32)(sizeof(dir.count) + f->files * sizeof(dir.entry[0])));
}

int fwcfg_add_file(struct fwcfg *f, const char *name, const void *data, u32 len)
{
	struct fwcfg_item *item;
	int rc;

	if (strlen(name) >= FWCFG_NAME)
		return -ENAMETOOLONG;
	for (u32 i = 0; i < f->files; i++)
		if (!strcmp(f->item[FWCFG_LEGACY + i].name, name))
			return -EEXIST;
	if (f->files == FWCFG_FILES)
		return -ENOSPC;
	item = &f->item[FWCFG_LEGACY + f->files];
	rc = replace(item, data, len);
	if (rc)
		return rc;
	memcpy(item->name, name, strlen(name) + 1);
	f->files++;
	return build_directory(f);
}

/* State ------------------------------------------------------------------- */

static void fwcfg_reset(void *dev)
{
	struct fwcfg *f = dev;

	f->selector = f->offset = f->dma_high = 0;
}

static const struct field fwcfg_fields[] = {
	FIELD_MAX(FIELD_U32, struct fwcfg, selector, 0xffff),
	FIELD(FIELD_U32, struct fwcfg, offset),
	FIELD(FIELD_U32, struct fwcfg, dma_high),
};

const struct device_ops fwcfg_ops = {
	.name = "fw_cfg",
	.reset = fwcfg_reset,
	.state = {.field = fwcfg_fields, .count = ARRAY_SIZE(fwcfg_fields), .version = 1},
};

int fwcfg_init(struct fwcfg *f, struct bus *bus, const struct physmap *pm, struct err *e)
{
	const struct bus_region port = {"fw_cfg", PORT_SELECT, 2, &port_ops, f};
	const struct bus_region dma = {"fw_cfg dma", PORT_DMA, 8, &dma_ops, f};
	int rc;

	memset(f, 0, sizeof(*f));
	f->pm = pm;
	rc = fwcfg_set(f, FWCFG_SIGNATURE, dma_signature, 4);
	if (!rc)
		rc = fwcfg_set_u32(f, FWCFG_ID, ID_TRADITIONAL | ID_DMA);
	if (!rc)
		rc = build_directory(f);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &port);
	if (!rc)
		rc = bus_add(bus, BUS_PORT, &dma);
	if (rc)
		fwcfg_destroy(f);
	return rc ? err_set(e, rc, "fw_cfg: cannot be set up") : 0;
}

void fwcfg_destroy(struct fwcfg *f)
{
	for (u32 i = 0; i < FWCFG_ITEMS; i++)
		free(f->item[i].data);
	memset(f->item, 0, sizeof(f->item));
	f->files = 0;
}
