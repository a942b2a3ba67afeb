/* Arithmetic on iovec arrays. */
#pragma once

#include "base/types.h"

#include <sys/uio.h>

/* Drop the first @n bytes from the list; *@iov and *@count move past finished entries. */
static inline void iov_advance(struct iovec **iov, u32 *count, u64 n)
{
	while (*count && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (*count) {
		(*iov)->iov_base = (u8 *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

/* Fill @out (at least @max entries) with the first @len bytes of @iov; returns the entries used. */
static inline u32 iov_head(const struct iovec *iov, u32 count, u64 len, struct iovec *out, u32 max)
{
	u32 n = 0;

	for (; n < count && n < max && len; n++) {
		out[n].iov_base = iov[n].iov_base;
		out[n].iov_len = MIN(len, iov[n].iov_len);
		len -= out[n].iov_len;
	}
	return n;
}
