/* Constructors of the back ends; block_open() chooses. On success the back end owns @fd. */
#pragma once

#include "block/block.h"

int raw_create(int fd, u64 size, bool readonly, struct loop *loop, pthread_mutex_t *lock,
	       struct block **b, struct err *e);

/* Reads come from @fd until written here; writes go to an unlinked temporary file. */
int overlay_create(int fd, u64 size, struct loop *loop, pthread_mutex_t *lock, struct block **b,
		   struct err *e);

/* For front ends that do not set batch_done. */
void block_no_batch(void *opaque);
