/*
 * A small emitter of ACPI Machine Language (ACPI 6.4, 20.2).
 *
 * Objects with contents are opened and closed; package lengths are patched on closing, always in
 * the three-byte form. Running out of room is remembered, so callers check once at the end.
 */
#pragma once

#include "base/types.h"

enum { AML_DEPTH = 12 };

struct aml {
	u8 *data;
	u32 len, size;
	bool overflow;
	u32 open[AML_DEPTH]; /* offsets of package lengths not yet known */
	u32 depth;
	u32 resources; /* offset of the open resource template's length, 0: none */
};

void aml_init(struct aml *a, u8 *data, u32 size);

/* Raw bytes, for opcodes that appear once. */
void aml_bytes(struct aml *a, const void *data, u32 len);
void aml_byte(struct aml *a, u8 byte);

/* @name: "PCI0", "_SB_" or with a root prefix "\\_SB_"; segments have four characters. */
void aml_name(struct aml *a, const char *name);
void aml_int(struct aml *a, u64 value);
void aml_string(struct aml *a, const char *text);
void aml_eisaid(struct aml *a, const char *id); /* "PNP0A08" */

/* Name(@name, ...): the object follows. */
void aml_def(struct aml *a, const char *name);
void aml_def_int(struct aml *a, const char *name, u64 value);

void aml_open_scope(struct aml *a, const char *name);
void aml_open_device(struct aml *a, const char *name);
void aml_open_method(struct aml *a, const char *name, u8 args);
void aml_open_package(struct aml *a, u8 elements);
void aml_open_if(struct aml *a); /* the predicate follows */
void aml_open_else(struct aml *a);
void aml_close(struct aml *a);

/* Name(_CRS, ResourceTemplate() {...}), ACPI 6.4, 6.4. */
void aml_open_crs(struct aml *a);
void aml_close_crs(struct aml *a);
void aml_io(struct aml *a, u16 base, u8 len);
void aml_irq(struct aml *a, u8 irq);
void aml_memory32(struct aml *a, u32 base, u32 len);
void aml_bus_range(struct aml *a, u16 first, u16 last);
void aml_io_range(struct aml *a, u16 first, u16 last);
void aml_memory32_range(struct aml *a, u32 first, u32 last);
void aml_memory64_range(struct aml *a, u64 first, u64 last);
