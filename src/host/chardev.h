/*
 * Character back ends: where a serial port's or console's bytes come from and go to.
 *
 * The front end registers for input; the back end calls receive() on the loop's thread only while
 * the front end says it has room. write() never blocks: what the host does not take is buffered up
 * to a bound, then dropped (a UART has no flow control towards a full terminal).
 */
#pragma once

#include "base/err.h"
#include "host/loop.h"

struct chardev;

struct chardev_front {
	u32 (*room)(void *opaque); /* bytes the front end can take now */
	void (*receive)(void *opaque, const u8 *data, u32 len); /* len <= room() */
	void *opaque;
};

struct chardev_ops {
	const char *name;
	void (*write)(struct chardev *c, const u8 *data, u32 len);
	void (*kick)(struct chardev *c);  /* the front end has room again */
	void (*close)(struct chardev *c); /* restore and free */
};

/* Embedded first in every back end. */
struct chardev {
	const struct chardev_ops *ops;
	/* Set by the front end before the loop runs; all hooks non-NULL. */
	struct chardev_front front;
};

/* Where stdin asked for something of the monitor: the escape is Ctrl-a, as in QEMU. */
enum chardev_escape {
	CHARDEV_ESCAPE_QUIT,
	CHARDEV_ESCAPE_POWER,  /* press the power button */
	CHARDEV_ESCAPE_ENGINE, /* the other engine shall go on */
};

/*
 * Open the back end described by @spec: stdio, pty, unix:PATH, file:PATH, none. @escape is called
 * on the loop's thread for Ctrl-a x and Ctrl-a p on stdio.
 */
int chardev_open(const char *spec, struct loop *loop, void (*escape)(void *, enum chardev_escape),
		 void *opaque, struct chardev **c, struct err *e);
