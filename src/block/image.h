/*
 * Whole requests carried out on the calling thread against a file: what raw images and overlays
 * share.
 */
#pragma once

#include "block/block.h"

/* When to try a request on the spot instead of waking another thread. */
struct image_pace {
	bool no_nowait;    /* the file system knows no RWF_NOWAIT */
	u64 slow_until_ns; /* writes go to the queue until then: one was slow */
	u64 pause_ns;      /* how long for the last time */
};

/* Read or write all of @iov (consumed) at @offset, and again until done. 0 or -errno; end of file
 * is -EIO. */
int image_transfer(int fd, bool write, struct iovec *iov, u32 count, u64 offset, u64 len);

/*
 * Read what the page cache has; the request then describes the rest. 0 when all of it was there,
 * -EAGAIN when some is left, or another -errno.
 */
int image_read_cached(int fd, struct image_pace *pace, struct block_request *r);

/* Should this write be done on the spot? Then call image_write_timed() around it. */
bool image_write_is_quick(const struct image_pace *pace, const struct block_request *r);

/* A write on the spot took from @start_ns until now. */
void image_write_timed(struct image_pace *pace, u64 start_ns);

/* Make [offset, offset+len) read as zeros, by a hole when @punch, by writing otherwise. */
int image_zero(int fd, bool punch, u64 offset, u64 len);

/* True when holes can be punched into @fd. */
bool image_can_punch(int fd, u64 size);
