/*
 * Theory of operation
 *
 * Waking another thread costs about 50 us on a small virtual host, a read from the page cache 1 us.
 * So reads are first tried with RWF_NOWAIT, and writes, which only copy into the page cache, are
 * done on the spot while the host takes them quickly (4 KiB in 2 to 5 us). When one takes longer
 * than WRITE_SLOW_NS, because the host throttles writers or just ran something else, writes go
 * through the queue for a while and the guest keeps running. That while doubles with each further
 * slow write and halves with each quick one.
 */
#include "block/image.h"

#include "base/iov.h"
#include "block/zeros.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	WRITE_QUICK_MAX = 256 * 1024,
	WRITE_SLOW_NS = 2 * 1000 * 1000,
	PAUSE_MIN_NS = 5 * 1000 * 1000,
	PAUSE_MAX_NS = 1000 * 1000 * 1000,
};

int image_transfer(int fd, bool write, struct iovec *iov, u32 count, u64 offset, u64 len)
{
	while (len) {
		ssize_t n = write ? pwritev(fd, iov, (int)count, (off_t)offset)
				  : preadv(fd, iov, (int)count, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		iov_advance(&iov, &count, (u64)n);
		offset += (u64)n;
		len -= (u64)n;
	}
	return 0;
}

int image_read_cached(int fd, struct image_pace *pace, struct block_request *r)
{
	ssize_t n;

	if (pace->no_nowait)
		return -EAGAIN;
	n = preadv2(fd, r->iov, (int)r->iov_count, (off_t)r->offset, RWF_NOWAIT);
	if (n < 0) {
		pace->no_nowait = errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL;
		return -EAGAIN;
	}
	if (!n)
		return -EAGAIN; /* end of file: for the queue to find out */
	r->offset += (u64)n;
	r->len -= (u64)n;
	iov_advance(&r->iov, &r->iov_count, (u64)n);
	return r->len ? -EAGAIN : 0;
}

bool image_write_is_quick(const struct image_pace *pace, const struct block_request *r)
{
	return r->len <= WRITE_QUICK_MAX &&
	       (!pace->slow_until_ns || host_clock_ns() >= pace->slow_until_ns);
}

void image_write_timed(struct image_pace *pace, u64 start_ns)
{
	u64 now = host_clock_ns();

	if (now - start_ns <= WRITE_SLOW_NS) {
		pace->slow_until_ns = 0;
		pace->pause_ns /= 2;
		return;
	}
	pace->pause_ns = MIN(MAX(pace->pause_ns * 2, PAUSE_MIN_NS), PAUSE_MAX_NS);
	pace->slow_until_ns = now + pace->pause_ns;
}

bool image_can_punch(int fd, u64 size)
{
	/* Beyond the end there is nothing to lose, and KEEP_SIZE leaves the length alone. */
	return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)align_up(size, PAGE_SIZE), PAGE_SIZE);
}

static int write_zeros(int fd, u64 offset, u64 len)
{
	while (len) {
		ssize_t n = pwrite(fd, zeros(), MIN(len, ZEROS_LEN), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		offset += (u64)n;
		len -= (u64)n;
	}
	return 0;
}

int image_zero(int fd, bool punch, u64 offset, u64 len)
{
	int ret;

	if (!punch)
		return write_zeros(fd, offset, len);
	do
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
				(off_t)len);
	while (ret && errno == EINTR);
	return ret ? -errno : 0;
}
