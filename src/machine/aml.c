#include "machine/aml.h"

#include <assert.h>
#include <string.h>

/* ACPI 6.4, table 20.2 */
enum {
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_IF = 0xa0,
	OP_ELSE = 0xa1,
	PKG_LENGTH_BYTES = 3,
};

void aml_init(struct aml *a, u8 *data, u32 size)
{
	*a = (struct aml){.data = data, .size = size};
}

void aml_bytes(struct aml *a, const void *data, u32 len)
{
	if (range_exceeds(a->len, len, a->size)) {
		a->overflow = true;
		return;
	}
	memcpy(a->data + a->len, data, len);
	a->len += len;
}

void aml_byte(struct aml *a, u8 byte)
{
	aml_bytes(a, &byte, 1);
}

void aml_name(struct aml *a, const char *name)
{
	if (*name == '\\') {
		aml_byte(a, '\\');
		name++;
	}
	assert(strlen(name) == 4 || strlen(name) == 8);
	if (strlen(name) == 8)
		aml_byte(a, OP_DUAL_NAME);
	aml_bytes(a, name, (u32)strlen(name));
}

void aml_int(struct aml *a, u64 value)
{
	u8 width = value <= 1            ? 0
		   : value <= UINT8_MAX  ? 1
		   : value <= UINT16_MAX ? 2
		   : value <= UINT32_MAX ? 4
					 : 8;
	static const u8 op[] = {[1] = OP_BYTE, [2] = OP_WORD, [4] = OP_DWORD, [8] = OP_QWORD};

	/* ZeroOp and OneOp are their own values. */
	if (!width) {
		aml_byte(a, (u8)value);
		return;
	}
	aml_byte(a, op[width]);
	aml_bytes(a, &value, width);
}

void aml_string(struct aml *a, const char *text)
{
	aml_byte(a, OP_STRING);
	aml_bytes(a, text, (u32)strlen(text) + 1);
}

static u32 hex_digit(char c)
{
	return (u32)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* ACPI 6.4, 19.3.4: three letters of five bits, four hexadecimal digits, in big-endian order. */
void aml_eisaid(struct aml *a, const char *id)
{
	u32 v = 0;

	for (u32 i = 0; i < 3; i++)
		v = v << 5 | (u32)(id[i] - '@');
	for (u32 i = 3; i < 7; i++)
		v = v << 4 | hex_digit(id[i]);
	aml_int(a, __builtin_bswap32(v));
}

void aml_def(struct aml *a, const char *name)
{
	aml_byte(a, OP_NAME);
	aml_name(a, name);
}

void aml_def_int(struct aml *a, const char *name, u64 value)
{
	aml_def(a, name);
	aml_int(a, value);
}

static void open_package_length(struct aml *a)
{
	static const u8 room[PKG_LENGTH_BYTES];

	assert(a->depth < AML_DEPTH);
	a->open[a->depth++] = a->len;
	aml_bytes(a, room, sizeof(room));
}

/* ACPI 6.4, 20.2.4: the length counts its own bytes. */
void aml_close(struct aml *a)
{
	u32 at = a->open[--a->depth], len = a->len - at;

	if (a->overflow)
		return;
	assert(len < 1 << 20);
	a->data[at] = (u8)(0x80 | (len & 0xf));
	a->data[at + 1] = (u8)(len >> 4);
	a->data[at + 2] = (u8)(len >> 12);
}

void aml_open_scope(struct aml *a, const char *name)
{
	aml_byte(a, OP_SCOPE);
	open_package_length(a);
	aml_name(a, name);
}

void aml_open_device(struct aml *a, const char *name)
{
	aml_byte(a, OP_EXT);
	aml_byte(a, OP_EXT_DEVICE);
	open_package_length(a);
	aml_name(a, name);
}

void aml_open_method(struct aml *a, const char *name, u8 args)
{
	aml_byte(a, OP_METHOD);
	open_package_length(a);
	aml_name(a, name);
	aml_byte(a, args);
}

void aml_open_package(struct aml *a, u8 elements)
{
	aml_byte(a, OP_PACKAGE);
	open_package_length(a);
	aml_byte(a, elements);
}

void aml_open_if(struct aml *a)
{
	aml_byte(a, OP_IF);
	open_package_length(a);
}

void aml_open_else(struct aml *a)
{
	aml_byte(a, OP_ELSE);
	open_package_length(a);
}

/* ---- resource descriptors, ACPI 6.4, 6.4.2 and 6.4.3 ---- */

void aml_open_crs(struct aml *a)
{
	u16 room = 0;

	aml_def(a, "_CRS");
	aml_byte(a, OP_BUFFER);
	open_package_length(a);
	aml_byte(a, OP_WORD);
	a->resources = a->len;
	aml_bytes(a, &room, sizeof(room));
}

void aml_close_crs(struct aml *a)
{
	/* End tag; checksum 0 means that it is right. */
	static const u8 end[] = {0x79, 0};
	u16 len;

	aml_bytes(a, end, sizeof(end));
	len = (u16)(a->len - a->resources - sizeof(len));
	if (!a->overflow)
		memcpy(a->data + a->resources, &len, sizeof(len));
	aml_close(a);
}

void aml_io(struct aml *a, u16 base, u8 len)
{
	const u8 d[] = {0x47,     1 /* 16-bit decode */, (u8)base,          (u8)(base >> 8),
			(u8)base, (u8)(base >> 8),       1 /* alignment */, len};

	aml_bytes(a, d, sizeof(d));
}

void aml_irq(struct aml *a, u8 irq)
{
	const u16 mask = (u16)(1u << irq);
	const u8 d[] = {0x22, (u8)mask, (u8)(mask >> 8)};

	aml_bytes(a, d, sizeof(d));
}

void aml_memory32(struct aml *a, u32 base, u32 len)
{
	const u8 d[] = {0x86, 9, 0, 1 /* writable */};

	aml_bytes(a, d, sizeof(d));
	aml_bytes(a, &base, sizeof(base));
	aml_bytes(a, &len, sizeof(len));
}

enum range_type { RANGE_MEMORY = 0, RANGE_IO = 1, RANGE_BUS = 2 };

/* An address space descriptor of the producer's kind: fixed ends, granularity 0, no translation. */
static void range(struct aml *a, enum range_type type, u8 type_flags, u64 first, u64 last,
		  u32 width)
{
	static const u8 tag[] = {[2] = 0x88, [4] = 0x87, [8] = 0x8a};
	const u16 len = (u16)(3 + 5 * width);
	const u64 field[] = {0, first, last, 0, last - first + 1};

	aml_byte(a, tag[width]);
	aml_bytes(a, &len, sizeof(len));
	aml_byte(a, (u8)type);
	aml_byte(a, 0x0c); /* minimum and maximum are fixed */
	aml_byte(a, type_flags);
	for (u32 i = 0; i < ARRAY_SIZE(field); i++)
		aml_bytes(a, &field[i], width);
}

void aml_bus_range(struct aml *a, u16 first, u16 last)
{
	range(a, RANGE_BUS, 0, first, last, 2);
}

void aml_io_range(struct aml *a, u16 first, u16 last)
{
	range(a, RANGE_IO, 3 /* ISA and non-ISA */, first, last, 2);
}

void aml_memory32_range(struct aml *a, u32 first, u32 last)
{
	range(a, RANGE_MEMORY, 1 /* writable, not cacheable */, first, last, 4);
}

void aml_memory64_range(struct aml *a, u64 first, u64 last)
{
	range(a, RANGE_MEMORY, 1, first, last, 8);
}
