/*
 * Memory asked for ahead of its use, by a thread of its own.
 *
 * Whoever touches memory for the first time waits until the kernel has found and cleared it: a
 * quarter to a millisecond for a huge page, and several where the host is a virtual machine whose
 * own host has to find it, too. So those who know what they will touch next say so. It is for speed
 * only: nothing goes wrong when it comes late or not at all.
 */
#pragma once

#include "base/err.h"

struct populate;

int populate_create(struct populate **out, struct err *e);
/* What is still to be done is left. */
void populate_destroy(struct populate *p);

/* [@at, @at + @size) will be written to. Not for memory whose content anybody might replace
 * meanwhile. From any thread; nothing happens when @p is NULL, or has enough to do already. */
void populate_ask(struct populate *p, void *at, u64 size);
