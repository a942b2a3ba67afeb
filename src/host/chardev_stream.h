/*
 * What the character back ends over file descriptors share: flow-controlled input and buffered
 * output that never blocks. A back end embeds a struct chardev_stream first and opens the
 * descriptors.
 *
 * Locks: stream->lock guards the output buffer and the watch on the input; the front end is always
 * called without it.
 */
#pragma once

#include "host/chardev.h"

#include <pthread.h>

enum {
	STREAM_BUFFER = 256 * 1024, /* output the host has not taken yet */
	STREAM_CHUNK = 4096,
};

struct chardev_stream {
	struct chardev chardev;
	struct loop *loop;
	const char *what; /* for messages: "stdio", "pty" */

	int in_fd;      /* -1: no input */
	bool in_polled; /* the descriptor can be waited for; else it is read when there is room */
	struct loop_fd in;
	struct loop_timer in_retry; /* input that cannot be polled goes on from here */

	/* Looks at fresh input and may remove bytes from it; returns what is left. */
	u32 (*filter)(struct chardev_stream *s, u8 *data, u32 len);
	/* The input ended or failed; in_fd is still open and no longer watched. */
	void (*in_ended)(struct chardev_stream *s);

	pthread_mutex_t lock;
	int out_fd;        /* -1: output is dropped */
	bool out_socket;   /* write with send() */
	bool out_blocking; /* the description is shared: poll first, write little */
	bool stalled;      /* the host took nothing for a while: drop without waiting */
	bool quiet;        /* dropping output is nothing to tell the user about */
	bool drop_told;    /* the user knows that output was dropped */
	struct loop_fd out;
	struct loop_timer flush_timer;
	bool flush_armed; /* under lock, which the timer's own state is not */
	u64 last_write_ns;
	u32 head, used; /* ring of pending output */
	u8 buffer[STREAM_BUFFER];
};

/* Zeroed @s becomes a stream without descriptors. */
void stream_init(struct chardev_stream *s, const struct chardev_ops *ops, struct loop *loop,
		 const char *what);

/* Start with @fd (owned by the caller) as input; regular files and /dev/null work as well. */
int stream_set_input(struct chardev_stream *s, int fd);
void stream_clear_input(struct chardev_stream *s);

/* Use @fd for output. @shared: others hold the same file description, so O_NONBLOCK stays off. */
void stream_set_output(struct chardev_stream *s, int fd, bool shared);
void stream_clear_output(struct chardev_stream *s);

/* Write out what is pending, for at most about a second. */
void stream_drain(struct chardev_stream *s);

/* Stop everything, leave the descriptors open. */
void stream_destroy(struct chardev_stream *s);

/* struct chardev_ops hooks. */
void stream_write(struct chardev *c, const u8 *data, u32 len);
void stream_kick(struct chardev *c);

/* The back ends; each fills *c or returns -errno with @e. */
int chardev_open_stdio(struct loop *loop, void (*escape)(void *, enum chardev_escape), void *opaque,
		       struct chardev **c, struct err *e);
int chardev_open_pty(struct loop *loop, struct chardev **c, struct err *e);
int chardev_open_unix(const char *path, struct loop *loop, struct chardev **c, struct err *e);
int chardev_open_file(const char *path, struct loop *loop, struct chardev **c, struct err *e);
