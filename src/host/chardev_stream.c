/*
 * Output. A UART hands over one byte at a time, and a write() per byte would cost more than the
 * guest spends on its own driver. So bytes collect until a newline, until 2 ms have passed, or
 * until a chunk is full; after a quiet moment the first byte goes straight out, which keeps echo
 * immediate.
 *
 * What the host does not take at once waits in a ring. When the ring is full the writer waits as
 * long as the reader makes progress, which throttles the guest to the speed of a slow pipe instead
 * of losing text; a reader that takes nothing for STALL_MS loses output until it reads again.
 *
 * Input. The descriptor is watched only while the front end has room; stream_kick() resumes.
 * Regular files cannot be watched with epoll: they are read from a timer with no delay instead.
 */
#include "host/chardev_stream.h"

#include "base/log.h"
#include "host/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	STALL_MS = 200,
	DRAIN_MS = 1000,
	/* A writable terminal or pipe takes at least this much without blocking. */
	SHARED_CHUNK = 256,
};

static const u64 COALESCE_NS = 2000000;

static const int chardev_calls[] = {
	SYS_read,   SYS_write,    SYS_sendto, SYS_poll,     SYS_ppoll, SYS_ioctl,   SYS_accept4,
	SYS_unlink, SYS_unlinkat, SYS_close,  SYS_shutdown, SYS_fcntl, SYS_getpgrp,
};
const struct sandbox_list chardev_sandbox = {"chardev", chardev_calls, ARRAY_SIZE(chardev_calls)};

/* ---- output ---- */

/* One non-blocking write; -EAGAIN when the host takes nothing now. */
static ssize_t write_some(struct chardev_stream *s, const u8 *data, size_t len)
{
	struct pollfd p = {.fd = s->out_fd, .events = POLLOUT};
	ssize_t n;

	if (s->out_blocking) {
		if (poll(&p, 1, 0) <= 0)
			return -EAGAIN;
		len = MIN(len, (size_t)SHARED_CHUNK);
	}
	do
		n = s->out_socket ? send(s->out_fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL)
				  : write(s->out_fd, data, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static void output_failed(struct chardev_stream *s, int error)
{
	if (!s->drop_told && !s->quiet)
		log_warn("%s: output is closed (%s); the guest's console text is dropped from here",
			 s->what, strerror(-error));
	s->drop_told = true;
	loop_remove(s->loop, &s->out);
	s->out_fd = -1;
	s->used = 0;
}

/* Write until the ring is empty or the host takes no more. True when something was taken. */
static bool flush_ring(struct chardev_stream *s)
{
	bool progress = false;

	while (s->used && s->out_fd >= 0) {
		u32 len = MIN(s->used, STREAM_BUFFER - s->head);
		ssize_t n = write_some(s, s->buffer + s->head, len);

		if (n == -EAGAIN)
			break;
		if (n < 0) {
			output_failed(s, (int)n);
			break;
		}
		s->head = (s->head + (u32)n) % STREAM_BUFFER;
		s->used -= (u32)n;
		s->stalled = false;
		progress = true;
	}
	s->last_write_ns = host_clock_ns();
	if (s->out_fd >= 0)
		loop_modify(s->loop, &s->out, s->used ? LOOP_WRITE : 0);
	return progress;
}

static void wait_writable(struct chardev_stream *s, int ms)
{
	struct pollfd p = {.fd = s->out_fd, .events = POLLOUT};

	if (s->out_fd >= 0)
		poll(&p, 1, ms);
}

/* The ring is full: give a live reader the time it needs, a dead one STALL_MS once. */
static void make_room(struct chardev_stream *s)
{
	if (flush_ring(s) || s->stalled || s->out_fd < 0)
		return;
	wait_writable(s, STALL_MS);
	if (flush_ring(s) || s->out_fd < 0)
		return;
	s->stalled = true;
	if (!s->drop_told && !s->quiet)
		log_warn("%s: nobody reads the output; the guest's console text is dropped",
			 s->what);
	s->drop_told = true;
}

static u32 ring_put(struct chardev_stream *s, const u8 *data, u32 len)
{
	u32 tail = (s->head + s->used) % STREAM_BUFFER;
	u32 n = MIN(len, MIN(STREAM_BUFFER - s->used, STREAM_BUFFER - tail));

	memcpy(s->buffer + tail, data, n);
	s->used += n;
	return n;
}

void stream_write(struct chardev *c, const u8 *data, u32 len)
{
	struct chardev_stream *s = container_of(c, struct chardev_stream, chardev);
	bool newline = memchr(data, '\n', len);

	pthread_mutex_lock(&s->lock);
	while (len && s->out_fd >= 0) {
		u32 n = ring_put(s, data, len);

		data += n;
		len -= n;
		if (!len)
			break;
		make_room(s);
		if (s->used == STREAM_BUFFER)
			break;
	}
	if (s->out_fd < 0 || !s->used) {
		/* Nobody there. */
	} else if (newline || s->used >= STREAM_CHUNK ||
		   host_clock_ns() - s->last_write_ns > COALESCE_NS) {
		flush_ring(s);
	} else if (!s->flush_armed) {
		s->flush_armed = true;
		loop_timer_arm(s->loop, &s->flush_timer, host_clock_ns() + COALESCE_NS);
	}
	pthread_mutex_unlock(&s->lock);
}

static void flush_due(void *opaque)
{
	struct chardev_stream *s = opaque;

	pthread_mutex_lock(&s->lock);
	s->flush_armed = false;
	flush_ring(s);
	pthread_mutex_unlock(&s->lock);
}

static void out_ready(void *opaque, u32 events)
{
	(void)events;
	flush_due(opaque);
}

void stream_drain(struct chardev_stream *s)
{
	u64 end = host_clock_ns() + DRAIN_MS * 1000000ul;

	pthread_mutex_lock(&s->lock);
	for (u64 now; flush_ring(s), s->used && s->out_fd >= 0 && !s->stalled;) {
		now = host_clock_ns();
		if (now >= end)
			break;
		wait_writable(s, (int)((end - now) / 1000000) + 1);
	}
	pthread_mutex_unlock(&s->lock);
}

/* ---- input ---- */

static void input_ended(struct chardev_stream *s)
{
	stream_clear_input(s);
	s->in_ended(s);
}

/* Read once, as much as the front end takes. False when there is no room or nothing to read now. */
static bool read_once(struct chardev_stream *s)
{
	u8 data[STREAM_CHUNK];
	u32 room = s->chardev.front.room(s->chardev.front.opaque);
	ssize_t n;

	if (!room || s->in_fd < 0)
		return false;
	do
		n = read(s->in_fd, data, MIN(room, (u32)sizeof(data)));
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		input_ended(s);
		return false;
	}
	n = s->filter(s, data, (u32)n);
	if (n)
		s->chardev.front.receive(s->chardev.front.opaque, data, (u32)n);
	return true;
}

/* Ask for more input; called when there is room, or may be. */
static void resume_input(struct chardev_stream *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->in_fd >= 0 && s->in_polled)
		loop_modify(s->loop, &s->in, LOOP_READ);
	else if (s->in_fd >= 0)
		loop_timer_arm(s->loop, &s->in_retry, 0);
	pthread_mutex_unlock(&s->lock);
}

static void in_ready(void *opaque, u32 events)
{
	struct chardev_stream *s = opaque;

	(void)events;
	if (!read_once(s) && s->in_polled && !s->chardev.front.room(s->chardev.front.opaque)) {
		loop_modify(s->loop, &s->in, 0);
		/* The front end may have made room, and kicked in vain, just before that. */
		if (s->chardev.front.room(s->chardev.front.opaque))
			resume_input(s);
	}
}

static void in_retry(void *opaque)
{
	struct chardev_stream *s = opaque;

	if (read_once(s))
		resume_input(s);
}

void stream_kick(struct chardev *c)
{
	resume_input(container_of(c, struct chardev_stream, chardev));
}

/* ---- set-up ---- */

static u32 keep_all(struct chardev_stream *s, u8 *data, u32 len)
{
	(void)s;
	(void)data;
	return len;
}

static void nothing_to_end(struct chardev_stream *s)
{
	(void)s;
}

static u32 no_room(void *opaque)
{
	(void)opaque;
	return 0;
}

static void drop_input(void *opaque, const u8 *data, u32 len)
{
	(void)opaque;
	(void)data;
	(void)len;
}

void stream_init(struct chardev_stream *s, const struct chardev_ops *ops, struct loop *loop,
		 const char *what)
{
	s->chardev.ops = ops;
	s->chardev.front = (struct chardev_front){.room = no_room, .receive = drop_input};
	s->loop = loop;
	s->what = what;
	s->in_fd = -1;
	s->out_fd = -1;
	s->filter = keep_all;
	s->in_ended = nothing_to_end;
	s->in_retry = (struct loop_timer){.fire = in_retry, .opaque = s};
	s->flush_timer = (struct loop_timer){.fire = flush_due, .opaque = s};
	pthread_mutex_init(&s->lock, NULL);
}

int stream_set_input(struct chardev_stream *s, int fd)
{
	int r;

	s->in_fd = fd;
	s->in = (struct loop_fd){.fd = fd, .events = LOOP_READ, .ready = in_ready, .opaque = s};
	r = loop_add(s->loop, &s->in);
	s->in_polled = !r;
	if (r == -EPERM) {
		resume_input(s);
		return 0;
	}
	if (r)
		s->in_fd = -1;
	return r;
}

void stream_clear_input(struct chardev_stream *s)
{
	/* The lock keeps a concurrent stream_kick() from watching a descriptor about to be closed.
	 */
	pthread_mutex_lock(&s->lock);
	if (s->in_polled)
		loop_remove(s->loop, &s->in);
	loop_timer_cancel(s->loop, &s->in_retry);
	s->in_polled = false;
	s->in_fd = -1;
	pthread_mutex_unlock(&s->lock);
}

void stream_set_output(struct chardev_stream *s, int fd, bool shared)
{
	struct stat st;

	pthread_mutex_lock(&s->lock);
	s->out_fd = fd;
	s->out_socket = !fstat(fd, &st) && S_ISSOCK(st.st_mode);
	/* Regular files never make a writer wait for a reader. */
	s->out_blocking = shared && !s->out_socket && !S_ISREG(st.st_mode);
	s->stalled = false;
	s->drop_told = false;
	s->out = (struct loop_fd){.fd = fd, .ready = out_ready, .opaque = s};
	pthread_mutex_unlock(&s->lock);
}

void stream_clear_output(struct chardev_stream *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->out_fd >= 0)
		loop_remove(s->loop, &s->out);
	s->out_fd = -1;
	s->used = 0;
	pthread_mutex_unlock(&s->lock);
}

void stream_destroy(struct chardev_stream *s)
{
	stream_drain(s);
	if (s->in_fd >= 0)
		stream_clear_input(s);
	stream_clear_output(s);
	loop_timer_cancel(s->loop, &s->flush_timer);
	pthread_mutex_destroy(&s->lock);
}
