/* Regular files that are read whole or in parts while a machine is built, and again when it is
 * reset. */
#pragma once

#include "base/err.h"
#include "base/types.h"

struct host_file {
	const char *path; /* borrowed, for messages */
	int fd;           /* -1: no file */
	u64 size;
};

extern const struct sandbox_list file_sandbox;

/* Open @path for reading; only regular files will do. 0, or -errno with "PATH: why". */
int host_file_open(struct host_file *f, const char *path, struct err *e);
void host_file_close(struct host_file *f);

/* Read exactly @len bytes at @off. 0, or -errno with @e; -EIO when the file became shorter. */
int host_file_read(const struct host_file *f, u64 off, void *buf, u64 len, struct err *e);
