/*
 * A file that is kept from run to run, shared by the machines of one user.
 *
 * Theory of operation. The file lies in a directory that belongs to the user and that nobody else
 * may enter; file and directory are checked before a byte is read. A process reads the file as it
 * was when it opened it, and writes a new one beside it, under a name of its own and locked
 * (flock). It cannot put the new file in the old one's place itself, because the sandbox lets a
 * running machine neither create nor rename; so the next process that opens the directory does:
 * of the files that nobody holds any more the latest whole one takes the place, the others go.
 * Whether a file is whole its head tells, which its owner writes last. So the file is never half
 * written, whoever is killed when, and the last writer wins.
 *
 * What is open stays readable when another process replaces it.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum { KEEP_HEAD = 256, KEEP_NAME = 64 };

/* Does a file of @size bytes that begins with @head look whole? */
typedef bool keep_is_whole(const u8 head[KEEP_HEAD], u64 size);

struct keep {
	int dir;
	int old; /* the file as it was; -1: there is none */
	u64 old_size;
	int new; /* to be filled in; -1: cannot be written */
	char new_name[KEEP_NAME];
};

/*
 * Open file @name in directory @dir. @create: make the directory, and the one that it is in, if
 * they are missing. Returns 0; -ENOENT when the directory is missing; -EBUSY when another process
 * is at it just now; -EPERM, with what is wrong, when directory or file are somebody else's or open
 * to others; or another -errno. To be called before the sandbox is installed.
 */
int keep_open(struct keep *k, const char *dir, const char *name, bool create, keep_is_whole *whole,
	      struct err *e);

/* @done: the new file is to take the old one's place; else it is dropped. Calls unlinkat(). */
void keep_close(struct keep *k, bool done);

/* Exactly @len bytes; false when there are not so many, or on any error. */
bool keep_read(int fd, u64 off, void *buf, u64 len);
bool keep_write(int fd, u64 off, const void *buf, u64 len);
