/*
 * Block back ends: where a disk's sectors live.
 *
 * A front end fills in a struct block_request and submits it. What can be done at once, from the
 * page cache, completes inside submit(); the rest completes later on the loop's thread. A batch of
 * submissions ends with commit(), which hands them to the host in one go.
 *
 * Threads: submit, commit and drain are called under the machine lock. The done() and batch_done()
 * hooks run with the machine lock held: on the loop's thread, or inside drain().
 */
#pragma once

#include "base/err.h"
#include "base/types.h"
#include "host/loop.h"

#include <pthread.h>
#include <sys/uio.h>

enum { BLOCK_SECTOR = 512 };

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,   /* all writes completed before are on stable storage */
	BLOCK_DISCARD, /* contents no longer matter; may do nothing */
	BLOCK_ZERO,    /* contents read as zeros afterwards */
};

struct block_request {
	enum block_op op;
	u64 offset;        /* multiple of BLOCK_SECTOR */
	u64 len;           /* multiple of BLOCK_SECTOR; offset + len <= size */
	struct iovec *iov; /* READ, WRITE: @len bytes in total; consumed by the back end */
	u32 iov_count;
	/* Called once for each request whose submission returned -EINPROGRESS. */
	void (*done)(struct block_request *r, int error);

	/* Private to the back end while the request is in flight. */
	struct block_request *next;
	int result;
};

struct block;

struct block_ops {
	const char *name;

	/* Start @r. -EINPROGRESS: done() will follow. Anything else is the result; done() is not
	 * called. */
	int (*submit)(struct block *b, struct block_request *r);

	/* All requests submitted so far may start. */
	void (*commit)(struct block *b);

	/* Wait until no request is in flight; their done() hooks have run. */
	void (*drain)(struct block *b);

	/* Nothing in flight. Frees @b and releases the image. */
	void (*close)(struct block *b);
};

/* Embedded first in every back end. */
struct block {
	const struct block_ops *ops;
	u64 size;      /* bytes, multiple of BLOCK_SECTOR */
	bool readonly; /* writes are refused with -EROFS */
	bool discards; /* BLOCK_DISCARD gives space back */

	/* Set by the front end: a batch of done() calls is over. */
	void (*batch_done)(void *opaque);
	void *opaque;
};

/* What --disk says. */
enum block_format { BLOCK_FORMAT_AUTO, BLOCK_FORMAT_RAW, BLOCK_FORMAT_QCOW2 };

struct block_spec {
	char path[4096];
	enum block_format format;
	bool readonly;
	bool snapshot; /* writes go to a temporary file and vanish with the VM */
};

/*
 * Parse "path=FILE[,format=raw|qcow2][,readonly=on|off][,snapshot=on|off]". A comma in a file name
 * is written twice. Returns 0, or -EINVAL with @e saying which part is wrong.
 */
int block_spec_parse(const char *text, struct block_spec *spec, struct err *e);

/*
 * Open the image and lock it against other users: shared when it is only read, exclusive otherwise.
 * Completions run on @loop's thread and take @lock. Returns 0 or -errno with one clear line in @e.
 */
int block_open(const struct block_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	       struct block **b, struct err *e);
