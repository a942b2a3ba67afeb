/*
 * Translations kept from run to run: the file.
 *
 * Theory of operation. A record is one block in a form that does not depend on where it lay: its
 * code as if its hot part, its cold part and the code cache each began at 0, and the places to be
 * moved (reload.c). A record is found by the guest bytes that the block begins with and is good for
 * a page only if all guest bytes that its translation relied on are there, byte by byte, at the
 * same offset of the page: what a record holds depends on them, on the mode, and on what the file's
 * key names, and on nothing else. So it does not matter which guest a record comes from, and
 * nothing rests on a hash.
 *
 * The file: a header, windows of STORE_WINDOW bytes with records (none crosses its window), a sum
 * for each window, an index entry for each record. Header and tables are read and checked when the
 * file is opened, a window when something in it is wanted; some windows are kept in memory. A
 * guest asks in much the same order each time, and that is the order of the records: 19 of 20
 * blocks of a kernel's boot are found right behind the one before. The others lie anywhere, which
 * is why windows are small.
 *
 * What the sums protect against is accidents. Whoever can write the file can have any code executed
 * (SECURITY.md); what is read is nevertheless checked so far that a wrong record cannot make the
 * monitor itself read or write beside its place.
 *
 * Writing: records made in this run are appended to the new file as they come, store_close() adds
 * the old ones, those used in this run first, until the file is STORE_MAX long.
 *
 * Locking: none; the soft engine calls with the VM's lock held.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum {
	STORE_KEY = 64,
	STORE_VERSION = 4,
	STORE_DATA = 4096, /* where windows begin */
	STORE_WINDOW = 16 * 1024,
	STORE_MAX_WINDOWS = 8192,
	STORE_MAX_RECORDS = 1 << 20,
	STORE_PART = 16 * 1024, /* bytes of hot or cold code, at most */
	STORE_INSNS = 64,
	STORE_PEEKS = 8,
	STORE_EXITS = 32,
	STORE_PEEK_BYTES = 256,
};

#define STORE_MAGIC 0x73626f6c67707864ul
#define STORE_NAME  "soft.translations"

struct store_header {
	u64 magic;
	u32 version, windows, records, zero;
	u64 file_size;
	u64 tables_sum;
	u8 key[STORE_KEY];
	u64 sum; /* of what is before it */
};

struct store_index {
	u32 hash;
	u32 where; /* from STORE_DATA on, in units of 8 bytes */
};

/* A record's beginning; see struct store_record for what follows. */
struct store_head {
	u32 size, hash;
	u64 id; /* differs when anything that the record depends on does */
	u16 mode, offset, guest, insns;
	u16 hot, cold, poll, direct;
	u16 relocs, zero;
	u8 exits, peeks, flags_live, parts;
	u32 place; /* lower half of the block's, or 0 */
	u32 zero2;
};

/* store_head.poll: with a place there is another entry that far before it. */
enum { STORE_FAR_ENTRY = 13 };

/* store_head.parts: without an entry, which else is where hot code begins; poll in cold code. */
enum { STORE_NO_ENTRY = 1, STORE_COLD_POLL = 2 };

enum { STORE_BACKWARD = 1, STORE_SINGLE = 2, STORE_IN_COLD = 4, STORE_FAR = 8, STORE_CROSSES = 16 };

struct store_exit {
	u16 site, stub;
	s32 target;
	s32 distance; /* STORE_CROSSES */
	u8 flags, zero[3];
};

/* With STORE_CROSSES the code before a site has places that were patched, this far from it. */
enum {
	STORE_CROSSING = 32,
	STORE_OTHERWISE = 18, /* and behind the stub, that far from it, there is another */
};

/* Host offset, and kind in the two highest bits: see reload.c. */
enum { STORE_RELOC_SHIFT = 14, STORE_RELOC_OFFSET = (1 << STORE_RELOC_SHIFT) - 1 };

struct store_peek {
	u16 from, to;
};

/* A record's parts, in this order. */
struct store_record {
	struct store_head *head;
	struct store_exit *exit;   /* [exits] */
	struct store_peek *peek;   /* [peeks] */
	u16 *reloc;                /* [relocs] */
	u16 *host_off, *guest_off; /* [insns] */
	s16 *sp_lag;               /* [insns] */
	u8 *guest;                 /* [guest] */
	u8 *peeked;                /* bytes of all peeks */
	u8 *hot, *cold;
};

struct store;

/*
 * The file in directory @dir (see keep_open() for @create and what is returned), for records made
 * under @key. A file that cannot be used is as none; @e then says why it is not good (empty when it
 * is just another key's), and 0 is returned.
 */
int store_open(struct store **out, const char *dir, bool create, const u8 key[STORE_KEY],
	       struct err *e);
/* The same for file @fd, which is then the store's, only for reading; for tests. */
int store_open_file(struct store **out, int fd, u64 size, const u8 key[STORE_KEY], struct err *e);

/* Finish the new file if there is enough in it to be worth it. */
void store_close(struct store *s);

/* Where records that begin with the @n guest bytes at @p are found. */
u32 store_hash(const u8 *p, u32 n, u32 offset, u32 mode);

/* The record behind that used latest, if it has that hash; else 0. */
u32 store_guess(const struct store *s, u32 hash);

/* The first record with that hash, and the next; 0: none. */
u32 store_first(const struct store *s, u32 hash);
u32 store_next(const struct store *s, u32 n);

/* Record @n; false when it cannot be had: then nothing of its window is used any more. Good until
 * the next call. */
bool store_get(struct store *s, u32 n, struct store_record *r);

/* Record @n is of use. */
void store_use(struct store *s, u32 n);

/*
 * Room for a new record with the counts in @head, whose size is filled in: @r points into it. False
 * when there is no room, or a record with the same id. Fill it in, and store_commit() it.
 */
bool store_reserve(struct store *s, struct store_head *head, u32 peeked, struct store_record *r);
void store_commit(struct store *s, const struct store_record *r);

/* Lay out a record of @head's counts at @base; returns its size. */
u32 store_layout(const struct store_head *head, u32 peeked, u8 *base, struct store_record *r);

/* Is there a record of at most @size bytes at @base? */
bool store_parse(u8 *base, u64 size, struct store_record *r);

/* 64 bits that change with any of the @n bytes at @p. */
u64 store_sum(const void *p, u64 n);

/* Records that the old file has. */
u32 store_records(const struct store *s);
