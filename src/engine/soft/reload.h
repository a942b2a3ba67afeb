/*
 * Translated blocks from the run before: --engine soft,translations=... (store.h has the file).
 *
 * Theory of operation. A block's code depends on where it lies in three ways. Its rel32s to the
 * other of its two parts (hot and cold) and to the trampolines at the start of code memory: whoever
 * emits a rel32 notes where (struct emit_sites), and reload_note() finds out where each leads when
 * the block is complete. The addresses of its exits' descriptors, in the exits' stubs. And the
 * links to other blocks, which are made anew as in a block just translated. Everything else
 * addresses by fs, gs and code_va.
 *
 * A record may be used wherever the bytes are that it was made from, so these must be exactly what
 * the translator saw. It decodes a block from a copy, and notes the bytes of each instruction
 * beyond it that it looked at; the page itself, which other processors may be storing to, is not
 * read again. When a record is looked for, the page was claimed before, as for translating: a store
 * that comes while bytes are compared waits for the VM's lock and then drops the block.
 *
 * Blocks whose first instruction straddles two pages (one instruction each) are not kept, nor modes
 * that are not known here.
 */
#pragma once

#include "engine/soft/cache.h"

struct translation;
struct sandbox_list;

/* What the functions below ask of the host's kernel once a machine runs. */
extern const struct sandbox_list reload_sandbox;

/* Open the file that the VM's options ask for; @dir is where it lies unless they say. What is wrong
 * with it costs a warning. */
void reload_open(struct soft_vm *vm, const char *dir);
void reload_close(struct soft_vm *vm);

/* As soft_translate_block(), but the block is taken from the file if it is there. */
struct block *reload_or_translate(struct soft_cpu *c, const struct soft_xlat *x, u32 mode,
				  int *status);

/* Block @t->b is complete: keep what a record of it needs. */
void reload_note(struct translation *t);

/* The guest bytes that @b was made from, if they are known. */
const u8 *reload_bytes(const struct block *b);

/* All code is about to be dropped: what was translated goes to the new file. */
void reload_keep_all(struct soft_vm *vm);

/* translations-check=on: @b, just translated, is compared with its record, if there is one. */
void reload_check(struct soft_cpu *c, const struct soft_xlat *x, struct block *b);
