/*
 * The simplest guest in 64-bit mode: flat segments, no interrupt table, the first GiB mapped one to
 * one by 2 MiB pages that every privilege level may use. For probes and tests that run a few
 * instructions without a machine around them.
 */
#pragma once

#include "cpu/state.h"

enum { FLAT_TABLES_SIZE = 3 * 4096 };

/* Page tables, FLAT_TABLES_SIZE bytes at @ram, which is guest memory at @gpa. */
void flat_tables(u8 *ram, gpa_t gpa);

/* All of a CPU about to run code at @rip with privilege level @cpl; ports are open, interrupts off.
 */
void flat_state(struct cpu_state *s, gpa_t tables, gva_t rip, gva_t rsp, u32 cpl);
