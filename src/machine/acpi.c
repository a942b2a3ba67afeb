/*
 * RSDP, XSDT, FADT, FACS, MADT, MCFG, WAET and the DSDT.
 *
 * The machine has ACPI fixed hardware (device/chip/pm.h) rather than the hardware-reduced model:
 * power button, S5 and the PM timer then work with the drivers that every kernel has built in. The
 * system is in ACPI mode from the start, hence no SMI command port.
 *
 * Processors are described by the MADT alone. Processor objects in the namespace would only add C1
 * by ACPI, and with it a slower idle path than the kernel's own HLT.
 */
#include "machine/acpi.h"

#include "device/chip/ioapic.h"
#include "device/chip/lapic.h"
#include "device/chip/pm.h"
#include "device/chip/pvpanic.h"
#include "device/chip/rtc.h"
#include "machine/aml.h"
#include "machine/gsi.h"
#include "machine/layout.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define OEM_ID       "DOPPEL"
#define OEM_TABLE_ID "DOPPELPC"

struct acpi_header {
	char signature[4];
	u32 length;
	u8 revision;
	u8 checksum;
	char oem_id[6];
	char oem_table_id[8];
	u32 oem_revision;
	char creator_id[4];
	u32 creator_revision;
} __attribute__((packed));

struct acpi_rsdp {
	char signature[8];
	u8 checksum; /* of the first 20 bytes */
	char oem_id[6];
	u8 revision;
	u32 rsdt;
	u32 length;
	u64 xsdt;
	u8 extended_checksum;
	u8 reserved[3];
} __attribute__((packed));

/* Generic address structure, 5.2.3.2. */
struct acpi_gas {
	u8 space; /* 1: system I/O */
	u8 bit_width;
	u8 bit_offset;
	u8 access_size; /* 1 byte, 2 word, 3 dword */
	u64 address;
} __attribute__((packed));

/* 5.2.9 */
struct acpi_fadt {
	struct acpi_header h;
	u32 firmware_ctrl;
	u32 dsdt;
	u8 reserved0;
	u8 preferred_pm_profile;
	u16 sci_int;
	u32 smi_cmd;
	u8 acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
	u32 pm1a_evt_blk, pm1b_evt_blk;
	u32 pm1a_cnt_blk, pm1b_cnt_blk;
	u32 pm2_cnt_blk, pm_tmr_blk;
	u32 gpe0_blk, gpe1_blk;
	u8 pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len;
	u8 gpe0_blk_len, gpe1_blk_len, gpe1_base;
	u8 cst_cnt;
	u16 p_lvl2_lat, p_lvl3_lat;
	u16 flush_size, flush_stride;
	u8 duty_offset, duty_width;
	u8 day_alrm, mon_alrm, century;
	u16 iapc_boot_arch;
	u8 reserved1;
	u32 flags;
	struct acpi_gas reset_reg;
	u8 reset_value;
	u16 arm_boot_arch;
	u8 minor_revision;
	u64 x_firmware_ctrl;
	u64 x_dsdt;
	struct acpi_gas x_pm1a_evt_blk, x_pm1b_evt_blk;
	struct acpi_gas x_pm1a_cnt_blk, x_pm1b_cnt_blk;
	struct acpi_gas x_pm2_cnt_blk, x_pm_tmr_blk;
	struct acpi_gas x_gpe0_blk, x_gpe1_blk;
	struct acpi_gas sleep_control, sleep_status;
	u64 hypervisor_id;
} __attribute__((packed));

enum {
	FADT_PROFILE_SERVER = 4,
	/* IA-PC boot architecture flags, 5.2.9.3. */
	BOOT_LEGACY_DEVICES = 1 << 0,
	BOOT_8042 = 1 << 1,
	BOOT_NO_VGA = 1 << 2,
	/* Fixed feature flags, table 5.10. The power button is a fixed one (bit clear). */
	FADT_WBINVD = 1 << 0,
	FADT_PROC_C1 = 1 << 2,
	FADT_SLP_BUTTON = 1 << 5, /* no fixed sleep button */
	FADT_RTC_S4 = 1 << 6,     /* RTC wake status is not in fixed registers */
	FADT_TMR_VAL_EXT = 1 << 8,
	FADT_RESET_REG_SUP = 1 << 10,
};

struct acpi_facs {
	char signature[4];
	u32 length;
	u32 hardware_signature;
	u32 waking_vector;
	u32 global_lock;
	u32 flags;
	u64 x_waking_vector;
	u8 version;
	u8 reserved[31];
} __attribute__((packed));

struct madt {
	struct acpi_header h;
	u32 lapic_address;
	u32 flags; /* 1: dual 8259 present */
} __attribute__((packed));

struct madt_lapic {
	u8 type, length; /* 0, 8 */
	u8 uid, apic_id;
	u32 flags; /* 1: enabled */
} __attribute__((packed));

struct madt_ioapic {
	u8 type, length; /* 1, 12 */
	u8 id, reserved;
	u32 address;
	u32 gsi_base;
} __attribute__((packed));

struct madt_override {
	u8 type, length; /* 2, 10 */
	u8 bus, source;
	u32 gsi;
	u16 flags; /* MPS INTI flags, table 5.24 */
} __attribute__((packed));

struct madt_lapic_nmi {
	u8 type, length; /* 4, 6 */
	u8 uid;          /* 0xff: all */
	u16 flags;
	u8 lint;
} __attribute__((packed));

enum { INTI_BUS_DEFAULT = 0, INTI_LEVEL_HIGH = 0xd };

struct mcfg {
	struct acpi_header h;
	u64 reserved;
	u64 base;
	u16 segment;
	u8 bus_first, bus_last;
	u32 reserved1;
} __attribute__((packed));

struct waet {
	struct acpi_header h;
	u32 flags; /* 1: RTC needs no workaround, 2: one read of the PM timer is enough */
} __attribute__((packed));

enum { TABLES_MAX = 4 };

struct builder {
	struct acpi_tables *t;
	const struct acpi_config *config;
	bool overflow;
	u64 table[TABLES_MAX]; /* addresses for the XSDT */
	u32 tables;
};

static u8 checksum(const void *p, u32 len)
{
	const u8 *b = p;
	u8 sum = 0;

	while (len--)
		sum = (u8)(sum + *b++);
	return (u8)-sum;
}

/* Room for @len bytes; returns the address, 0 when there is none. */
static u64 append(struct builder *b, const void *data, u32 len)
{
	struct acpi_tables *t = b->t;
	/* The FACS wants 64; for the others any alignment will do. */
	u32 at = (u32)align_up(t->len, 64);

	if (range_exceeds(at, len, sizeof(t->data))) {
		b->overflow = true;
		return 0;
	}
	memcpy(t->data + at, data, len);
	t->len = at + len;
	return t->base + at;
}

static void header(struct acpi_header *h, const char *signature, u8 revision, u32 length)
{
	memcpy(h->signature, signature, 4);
	h->length = length;
	h->revision = revision;
	memcpy(h->oem_id, OEM_ID, 6);
	memcpy(h->oem_table_id, OEM_TABLE_ID, 8);
	h->oem_revision = 1;
	memcpy(h->creator_id, "DPPL", 4);
	h->creator_revision = 1;
}

/* Finish the table @h, append it and, when @listed, name it in the XSDT. */
static u64 append_table(struct builder *b, struct acpi_header *h, bool listed)
{
	u64 at;

	h->checksum = 0;
	h->checksum = checksum(h, h->length);
	at = append(b, h, h->length);
	if (listed)
		b->table[b->tables++] = at;
	return at;
}

/* ---- DSDT ---- */

static void add_device(struct aml *a, const char *name, const char *id)
{
	aml_open_device(a, name);
	aml_def(a, "_HID");
	aml_eisaid(a, id);
}

static void add_root_bridge_resources(struct aml *a, const struct acpi_config *c)
{
	aml_open_crs(a);
	aml_bus_range(a, 0, 0);
	aml_io(a, 0xcf8, 8);
	aml_io_range(a, 0, 0xcf7);
	aml_io_range(a, 0xd00, 0xffff);
	aml_memory32_range(a, LAYOUT_PCI32, LAYOUT_PCI32_END - 1);
	if (c->pci64_size)
		aml_memory64_range(a, c->pci64_base, c->pci64_base + c->pci64_size - 1);
	aml_close_crs(a);
}

/* Name(_PRT): pin p of slot s is wired to GSI_PCI + (s + p) % 4, see bus/pci.h. */
static void add_interrupt_routing(struct aml *a)
{
	aml_def(a, "_PRT");
	aml_open_package(a, 31 * 4);
	for (u32 slot = 1; slot < 32; slot++)
		for (u32 pin = 0; pin < 4; pin++) {
			aml_open_package(a, 4);
			aml_int(a, slot << 16 | 0xffff);
			aml_int(a, pin);
			aml_int(a, 0);
			aml_int(a, GSI_PCI + (slot + pin) % 4);
			aml_close(a);
		}
	aml_close(a);
}

/*
 * Method(_OSC, 4), 6.2.11.3: the system may control what it asks for among the features of the
 * first five bits. There is no PCI Express hardware behind them, so nobody else wants to.
 */
static void add_osc(struct aml *a)
{
	static const u8 create_cdw1[] = {0x8a, 0x6b, 0x00}; /* CreateDWordField(Arg3, 0, CDW1) */
	static const u8 create_cdw3[] = {0x8a, 0x6b, 0x0a, 0x08};
	static const u8 if_uuid[] = {0x93, 0x68, 0x11, 0x13, 0x0a,
				     0x10, /* LEqual(Arg0, Buffer(16) */
				     /* 33db4d5b-1ff7-401c-9657-7441c03dd766 */
				     0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57,
				     0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};
	static const u8 return_arg3[] = {0xa4, 0x6b};

	aml_open_method(a, "_OSC", 4);
	aml_bytes(a, create_cdw1, sizeof(create_cdw1));
	aml_name(a, "CDW1");
	aml_open_if(a);
	aml_bytes(a, if_uuid, sizeof(if_uuid));
	aml_bytes(a, create_cdw3, sizeof(create_cdw3));
	aml_name(a, "CDW3");
	aml_byte(a, 0x7b); /* And(CDW3, 0x1f, CDW3) */
	aml_name(a, "CDW3");
	aml_int(a, 0x1f);
	aml_name(a, "CDW3");
	aml_close(a);
	aml_open_else(a);
	aml_byte(a, 0x7d); /* Or(CDW1, 4, CDW1): unrecognised UUID */
	aml_name(a, "CDW1");
	aml_int(a, 4);
	aml_name(a, "CDW1");
	aml_close(a);
	aml_bytes(a, return_arg3, sizeof(return_arg3));
	aml_close(a);
}

static void add_root_bridge(struct aml *a, const struct acpi_config *c)
{
	add_device(a, "PCI0", "PNP0A08");
	aml_def(a, "_CID");
	aml_eisaid(a, "PNP0A03");
	aml_def_int(a, "_UID", 0);
	aml_def_int(a, "_SEG", 0);
	aml_def_int(a, "_BBN", 0);
	add_root_bridge_resources(a, c);
	add_interrupt_routing(a);
	add_osc(a);
	aml_close(a);
}

static void add_legacy_devices(struct aml *a)
{
	add_device(a, "COM1", "PNP0501");
	aml_def_int(a, "_UID", 1);
	aml_open_crs(a);
	aml_io(a, 0x3f8, 8);
	aml_irq(a, GSI_COM1);
	aml_close_crs(a);
	aml_close(a);

	add_device(a, "RTC_", "PNP0B00");
	aml_open_crs(a);
	aml_io(a, 0x70, 2);
	aml_irq(a, GSI_RTC);
	aml_close_crs(a);
	aml_close(a);

	add_device(a, "KBD_", "PNP0303");
	aml_open_crs(a);
	aml_io(a, 0x60, 1);
	aml_io(a, 0x64, 1);
	aml_irq(a, GSI_KEYBOARD);
	aml_close_crs(a);
	aml_close(a);

	add_device(a, "MOU_", "PNP0F13");
	aml_open_crs(a);
	aml_irq(a, GSI_MOUSE);
	aml_close_crs(a);
	aml_close(a);
}

/* Resources that belong to the board: nobody else may be given them. */
static void add_board(struct aml *a)
{
	add_device(a, "MBRD", "PNP0C02");
	aml_open_crs(a);
	aml_memory32(a, LAYOUT_ECAM, LAYOUT_ECAM_SIZE);
	aml_io(a, PM_BASE, 0x40);
	aml_io(a, 0x4d0, 2);
	aml_io(a, 0x510, 12);
	aml_close_crs(a);
	aml_close(a);
}

static void add_pvpanic(struct aml *a)
{
	aml_open_device(a, "PEVT");
	aml_def(a, "_HID");
	aml_string(a, "QEMU0001");
	aml_open_crs(a);
	aml_io(a, PVPANIC_PORT, 1);
	aml_close_crs(a);
	/* Present, enabled, working, but not shown to the user. */
	aml_def_int(a, "_STA", 0xb);
	aml_close(a);
}

static u64 add_dsdt(struct builder *b)
{
	static u8 const zero[sizeof(struct acpi_header)];
	u8 data[0x4000];
	struct acpi_header *h = (struct acpi_header *)(void *)data;
	struct aml a;

	aml_init(&a, data, sizeof(data));
	aml_bytes(&a, zero, sizeof(zero));
	aml_open_scope(&a, "\\_SB_");
	add_root_bridge(&a, b->config);
	add_legacy_devices(&a);
	add_board(&a);
	add_pvpanic(&a);
	aml_close(&a);
	aml_def(&a, "_S5_");
	aml_open_package(&a, 4);
	aml_int(&a, PM_SLP_TYP_S5);
	aml_int(&a, PM_SLP_TYP_S5);
	aml_int(&a, 0);
	aml_int(&a, 0);
	aml_close(&a);
	if (a.overflow) {
		b->overflow = true;
		return 0;
	}
	header(h, "DSDT", 2, a.len);
	return append_table(b, h, false);
}

/* ---- the other tables ---- */

static struct acpi_gas io_register(u16 port, u8 bytes, u8 access_size)
{
	return (struct acpi_gas){.space = 1,
				 .bit_width = (u8)(bytes * 8),
				 .access_size = access_size,
				 .address = port};
}

static void add_fadt(struct builder *b, u64 dsdt, u64 facs)
{
	struct acpi_fadt f = {
		.firmware_ctrl = (u32)facs,
		.dsdt = (u32)dsdt,
		.preferred_pm_profile = FADT_PROFILE_SERVER,
		.sci_int = GSI_SCI,
		.pm1a_evt_blk = PM1A_EVT,
		.pm1a_cnt_blk = PM1A_CNT,
		.pm_tmr_blk = PM_TMR,
		.gpe0_blk = PM_GPE0,
		.pm1_evt_len = 4,
		.pm1_cnt_len = 2,
		.pm_tmr_len = 4,
		.gpe0_blk_len = PM_GPE0_LEN,
		/* Latencies above these limits say that C2 and C3 are not there. */
		.p_lvl2_lat = 0xfff,
		.p_lvl3_lat = 0xfff,
		.century = RTC_CENTURY,
		.iapc_boot_arch = BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA,
		.flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_RTC_S4 |
			 FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP,
		.reset_reg = io_register(PM_RESET_PORT, 1, 1),
		.reset_value = PM_RESET_VALUE,
		.minor_revision = 3,
		.x_dsdt = dsdt,
		.x_pm1a_evt_blk = io_register(PM1A_EVT, 4, 2),
		.x_pm1a_cnt_blk = io_register(PM1A_CNT, 2, 2),
		.x_pm_tmr_blk = io_register(PM_TMR, 4, 3),
		.x_gpe0_blk = io_register(PM_GPE0, PM_GPE0_LEN, 1),
	};

	header(&f.h, "FACP", 6, sizeof(f));
	append_table(b, &f.h, true);
}

static u64 add_facs(struct builder *b)
{
	struct acpi_facs f = {.signature = "FACS", .length = sizeof(f), .version = 2};

	return append(b, &f, sizeof(f));
}

static u8 *put(u8 *p, const void *data, u32 len)
{
	memcpy(p, data, len);
	return p + len;
}

static void add_madt(struct builder *b)
{
	u8 data[sizeof(struct madt) + LAPIC_MAX * sizeof(struct madt_lapic) + 64], *p = data;
	struct madt m = {.lapic_address = (u32)LAPIC_DEFAULT_BASE, .flags = 1};
	const struct madt_ioapic ioapic = {
		.type = 1, .length = sizeof(ioapic), .address = (u32)IOAPIC_BASE};
	const struct madt_override timer = {
		.type = 2, .length = sizeof(timer), .gsi = GSI_PIT, .flags = INTI_BUS_DEFAULT};
	const struct madt_override sci = {.type = 2,
					  .length = sizeof(sci),
					  .source = GSI_SCI,
					  .gsi = GSI_SCI,
					  .flags = INTI_LEVEL_HIGH};
	const struct madt_lapic_nmi nmi = {
		.type = 4, .length = sizeof(nmi), .uid = 0xff, .lint = 1};

	p = put(p, &m, sizeof(m));
	for (u32 i = 0; i < b->config->vcpus; i++) {
		const struct madt_lapic lapic = {
			.length = sizeof(lapic), .uid = (u8)i, .apic_id = (u8)i, .flags = 1};

		p = put(p, &lapic, sizeof(lapic));
	}
	p = put(p, &ioapic, sizeof(ioapic));
	p = put(p, &timer, sizeof(timer));
	p = put(p, &sci, sizeof(sci));
	p = put(p, &nmi, sizeof(nmi));
	header((struct acpi_header *)(void *)data, "APIC", 5, (u32)(p - data));
	append_table(b, (struct acpi_header *)(void *)data, true);
}

static void add_mcfg(struct builder *b)
{
	struct mcfg m = {.base = LAYOUT_ECAM};

	header(&m.h, "MCFG", 1, sizeof(m));
	append_table(b, &m.h, true);
}

static void add_waet(struct builder *b)
{
	struct waet w = {.flags = 3};

	header(&w.h, "WAET", 1, sizeof(w));
	append_table(b, &w.h, true);
}

static u64 add_xsdt(struct builder *b)
{
	struct {
		struct acpi_header h;
		u64 table[TABLES_MAX];
	} __attribute__((packed)) x;

	memset(&x, 0, sizeof(x));
	memcpy(x.table, b->table, sizeof(x.table));
	header(&x.h, "XSDT", 1, (u32)(sizeof(x.h) + b->tables * sizeof(x.table[0])));
	return append_table(b, &x.h, false);
}

static void fill_rsdp(struct acpi_rsdp *r, u64 xsdt)
{
	*r = (struct acpi_rsdp){
		.signature = "RSD PTR ", .revision = 2, .length = sizeof(*r), .xsdt = xsdt};
	memcpy(r->oem_id, OEM_ID, 6);
	r->checksum = checksum(r, offsetof(struct acpi_rsdp, length));
	r->extended_checksum = checksum(r, sizeof(*r));
}

int acpi_build(struct acpi_tables *t, u64 base, const struct acpi_config *config, struct err *e)
{
	struct builder b = {.t = t, .config = config};
	struct acpi_rsdp rsdp;
	u64 dsdt, facs;

	memset(t, 0, sizeof(*t));
	t->base = base;
	if (config->vcpus > LAPIC_MAX)
		return err_set(e, -EINVAL, "ACPI tables: %u processors are too many",
			       config->vcpus);
	/* The root pointer comes first, where a search finds it, and is filled in last. */
	t->rsdp = append(&b, &(struct acpi_rsdp){0}, sizeof(rsdp));
	facs = add_facs(&b);
	dsdt = add_dsdt(&b);
	add_fadt(&b, dsdt, facs);
	add_madt(&b);
	add_mcfg(&b);
	add_waet(&b);
	fill_rsdp(&rsdp, add_xsdt(&b));
	if (b.overflow)
		return err_set(e, -ENOSPC, "ACPI tables: no room");
	memcpy(t->data, &rsdp, sizeof(rsdp));
	return 0;
}
