/* See store.h. */
#include "engine/soft/store.h"

#include "base/log.h"
#include "host/keep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	SLOTS = 64, /* windows in memory */
	WORTH = 32, /* the file is written anew when one record in so many is new */
	ID_BUCKETS = 1 << 18,
};

_Static_assert(sizeof(struct store_header) <= KEEP_HEAD, "keep.h");
_Static_assert(sizeof(struct store_head) == 48 && sizeof(struct store_exit) == 16, "no padding");

struct entry {
	struct store_index at;
	u32 next; /* of the same bucket: index + 1 */
	bool used;
};

struct slot {
	u32 window; /* + 1 */
	u8 *bytes;
};

/* The new file. */
struct writer {
	u8 *window;
	u32 fill;
	u32 windows, records;
	u32 sums_room, index_room;
	u64 *sum;
	struct store_index *index;
	u64 *ids; /* a set, by open addressing */
	u32 made; /* records of this run */
	bool failed;
};

struct store {
	struct keep keep;
	u8 key[STORE_KEY];
	u32 records, windows;
	struct entry *entry;
	u32 *bucket;
	u32 buckets; /* a power of two */
	u32 latest;  /* record of use, counted from 1 */
	u64 *sum;
	struct slot slot[SLOTS];
	bool *bad; /* of each window: not to be read again */
	bool damaged;
	struct writer w;
};

u64 store_sum(const void *p, u64 n)
{
	const u64 odd = 0x9e3779b97f4a7c15ul;
	u64 lane[4] = {n, 1, 2, 3}, word;
	const u8 *b = p;
	u32 k = 0;

	/* Each step is one-to-one, for the word as for what was there: no change of one word is
	 * lost. */
	for (; n >= 32; n -= 32)
		for (k = 0; k < 4; k++, b += 8) {
			memcpy(&word, b, 8);
			lane[k] = (lane[k] ^ word) * odd;
			lane[k] ^= lane[k] >> 32;
		}
	for (k = 0; n; k++) {
		u64 part = MIN(n, 8ul);

		word = 0;
		memcpy(&word, b, part);
		lane[k & 3] = (lane[k & 3] ^ word) * odd;
		lane[k & 3] ^= lane[k & 3] >> 32;
		b += part;
		n -= part;
	}
	word = lane[0];
	for (k = 1; k < 4; k++) {
		word = (word ^ word >> 29) * odd;
		word += lane[k] * 0xbf58476d1ce4e5b9ul;
	}
	return word ^ word >> 32;
}

u32 store_hash(const u8 *p, u32 n, u32 offset, u32 mode)
{
	u64 word = 0;

	memcpy(&word, p, MIN(n, 8u));
	word = (word ^ (u64)mode << 48 ^ (u64)offset << 20) * 0x9e3779b97f4a7c15ul;
	word ^= word >> 29;
	return (u32)(word * 0xbf58476d1ce4e5b9ul >> 32);
}

/* ---- records ---- */

u32 store_layout(const struct store_head *head, u32 peeked, u8 *base, struct store_record *r)
{
	u8 *p = base + sizeof(*head);

	r->head = (struct store_head *)(void *)base;
	r->exit = (struct store_exit *)(void *)p;
	p += head->exits * sizeof(*r->exit);
	r->peek = (struct store_peek *)(void *)p;
	p += head->peeks * sizeof(*r->peek);
	r->reloc = (u16 *)(void *)p;
	p += head->relocs * sizeof(*r->reloc);
	r->host_off = (u16 *)(void *)p;
	p += head->insns * sizeof(u16);
	r->guest_off = (u16 *)(void *)p;
	p += head->insns * sizeof(u16);
	r->sp_lag = (s16 *)(void *)p;
	p += head->insns * sizeof(s16);
	r->guest = p;
	p += head->guest;
	r->peeked = p;
	p += peeked;
	r->hot = p;
	p += head->hot;
	r->cold = p;
	p += head->cold;
	return (u32)align_up((u64)(p - base), 8);
}

static bool counts_are_good(const struct store_head *h)
{
	return h->insns && h->insns <= STORE_INSNS && h->exits <= STORE_EXITS &&
	       h->peeks <= STORE_PEEKS && h->hot && h->hot <= STORE_PART && h->cold &&
	       h->cold <= STORE_PART && h->direct < h->hot &&
	       h->poll < (h->parts & STORE_COLD_POLL ? h->cold : h->hot) && h->guest &&
	       !range_exceeds(h->offset, h->guest, PAGE_SIZE) && h->relocs <= STORE_PART &&
	       (h->hot >= 8 || h->parts & STORE_NO_ENTRY) &&
	       (!h->place || h->poll >= STORE_FAR_ENTRY);
}

/* Bytes of all peeks; 0 when one of them is wrong. */
static bool count_peeked(const struct store_head *h, const struct store_peek *peek, u32 *peeked)
{
	*peeked = 0;
	for (u32 k = 0; k < h->peeks; k++) {
		if (peek[k].from >= peek[k].to || peek[k].to > PAGE_SIZE ||
		    peek[k].to - peek[k].from > STORE_PEEK_BYTES)
			return false;
		*peeked += (u32)(peek[k].to - peek[k].from);
	}
	return true;
}

/* mov r11, imm64: what an exit's stub begins with (exits.c). */
static bool is_stub(const u8 *code)
{
	return code[0] == 0x49 && code[1] == 0xbb;
}

static bool exits_are_good(const struct store_record *r)
{
	const struct store_head *h = r->head;

	for (u32 k = 0; k < h->exits; k++) {
		const struct store_exit *x = &r->exit[k];

		if (range_exceeds(x->site, 4, x->flags & STORE_IN_COLD ? h->cold : h->hot) ||
		    range_exceeds(x->stub, 10, h->cold) || !is_stub(r->cold + x->stub) ||
		    (x->flags & STORE_FAR ? !h->place : (u32)x->target >= PAGE_SIZE))
			return false;
		if (x->flags & STORE_CROSSES &&
		    (x->site < STORE_CROSSING ||
		     range_exceeds(x->stub, STORE_OTHERWISE + 10, h->cold) ||
		     !is_stub(r->cold + x->stub + STORE_OTHERWISE)))
			return false;
	}
	return true;
}

static bool places_are_good(const struct store_record *r)
{
	const struct store_head *h = r->head;

	for (u32 k = 0; k < h->relocs; k++) {
		u32 size = r->reloc[k] >> 15 ? h->cold : h->hot;

		if (range_exceeds(r->reloc[k] & STORE_RELOC_OFFSET, 4, size))
			return false;
	}
	for (u32 k = 0; k < h->insns; k++)
		if (r->host_off[k] >= h->hot || r->guest_off[k] >= h->guest)
			return false;
	return true;
}

bool store_parse(u8 *base, u64 size, struct store_record *r)
{
	struct store_head *h = (struct store_head *)(void *)base;
	u32 peeked;

	if (size < sizeof(*h) || h->size > size || !counts_are_good(h))
		return false;
	if (store_layout(h, 0, base, r) > h->size || !count_peeked(h, r->peek, &peeked) ||
	    store_layout(h, peeked, base, r) != h->size)
		return false;
	return exits_are_good(r) && places_are_good(r);
}

/* ---- the old file ---- */

static u64 tables_size(u32 windows, u32 records)
{
	return (u64)windows * sizeof(u64) + (u64)records * sizeof(struct store_index);
}

static const char *check_header(const struct store_header *h, u64 size)
{
	if (h->magic != STORE_MAGIC)
		return "is not a file of translations";
	if (h->sum != store_sum(h, offsetof(struct store_header, sum)))
		return "is damaged: its header has another sum than it says";
	if (h->version != STORE_VERSION)
		return ""; /* another build's: as with another key */
	if (h->windows > STORE_MAX_WINDOWS || h->records > STORE_MAX_RECORDS ||
	    h->file_size != STORE_DATA + (u64)h->windows * STORE_WINDOW +
				    tables_size(h->windows, h->records))
		return "is damaged: its header makes no sense";
	if (h->file_size != size)
		return "is damaged: it is not as long as it says";
	return NULL;
}

static bool looks_whole(const u8 head[KEEP_HEAD], u64 size)
{
	struct store_header h;

	memcpy(&h, head, sizeof(h));
	return !check_header(&h, size);
}

static bool alloc_tables(struct store *s, const struct store_header *h)
{
	for (s->buckets = 64; s->buckets < h->records;)
		s->buckets *= 2;
	s->entry = calloc(MAX(h->records, 1u), sizeof(*s->entry));
	s->bucket = calloc(s->buckets, sizeof(*s->bucket));
	s->sum = calloc(MAX(h->windows, 1u), sizeof(*s->sum));
	s->bad = calloc(MAX(h->windows, 1u), sizeof(*s->bad));
	return s->entry && s->bucket && s->sum && s->bad;
}

static void enter_index(struct store *s, const struct store_index *index, u32 count)
{
	/* Backwards, so that a bucket's first is the file's first. */
	for (u32 n = count; n-- > 0;) {
		u32 *head = &s->bucket[index[n].hash & (s->buckets - 1)];

		s->entry[n] = (struct entry){.at = index[n], .next = *head};
		*head = n + 1;
	}
	s->records = count;
}

static const char *read_tables(struct store *s, const struct store_header *h)
{
	u64 size = tables_size(h->windows, h->records), sums = h->windows * sizeof(u64);
	u8 *tables = malloc(MAX(size, 1ul));
	const char *why = NULL;

	if (!tables || !alloc_tables(s, h))
		why = "does not fit into memory";
	else if (!keep_read(s->keep.old, STORE_DATA + (u64)h->windows * STORE_WINDOW, tables, size))
		why = "cannot be read";
	else if (store_sum(tables, size) != h->tables_sum)
		why = "is damaged: its tables have another sum than it says";
	if (!why) {
		memcpy(s->sum, tables, sums);
		s->windows = h->windows;
		enter_index(s, (const struct store_index *)(void *)(tables + sums), h->records);
	}
	free(tables);
	return why;
}

/* NULL, or why the file is of no use; "" when that is as it should be. */
static const char *load(struct store *s)
{
	struct store_header h;
	const char *why;

	if (s->keep.old_size < sizeof(h) || !keep_read(s->keep.old, 0, &h, sizeof(h)))
		return "is not a file of translations";
	why = check_header(&h, s->keep.old_size);
	if (why)
		return why;
	if (memcmp(h.key, s->key, STORE_KEY))
		return "";
	return read_tables(s, &h);
}

static struct store *new_store(const u8 key[STORE_KEY])
{
	struct store *s = calloc(1, sizeof(*s));

	if (s) {
		memcpy(s->key, key, STORE_KEY);
		s->keep = (struct keep){.dir = -1, .old = -1, .new = -1};
	}
	return s;
}

static int open_loaded(struct store *s, struct store **out, struct err *e)
{
	const char *why = s->keep.old < 0 ? "" : load(s);

	if (why && *why)
		err_set(e, -EINVAL, "%s %s", STORE_NAME, why);
	*out = s;
	return 0;
}

int store_open(struct store **out, const char *dir, bool create, const u8 key[STORE_KEY],
	       struct err *e)
{
	struct store *s = new_store(key);
	int r;

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	r = keep_open(&s->keep, dir, STORE_NAME, create, looks_whole, e);
	if (r) {
		free(s);
		return r;
	}
	r = open_loaded(s, out, e);
	if (e->text[0])
		err_prefix(e, "%s", dir);
	return r;
}

int store_open_file(struct store **out, int fd, u64 size, const u8 key[STORE_KEY], struct err *e)
{
	struct store *s = new_store(key);

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	s->keep.old = fd;
	s->keep.old_size = size;
	return open_loaded(s, out, e);
}

u32 store_records(const struct store *s)
{
	return s->records;
}

/* ---- finding ---- */

static u32 skip_others(const struct store *s, u32 n, u32 hash)
{
	while (n && s->entry[n - 1].at.hash != hash)
		n = s->entry[n - 1].next;
	return n;
}

u32 store_guess(const struct store *s, u32 hash)
{
	bool good = s->latest < s->records && s->entry[s->latest].at.hash == hash;

	return good ? s->latest + 1 : 0;
}

u32 store_first(const struct store *s, u32 hash)
{
	if (!s->records)
		return 0;
	return skip_others(s, s->bucket[hash & (s->buckets - 1)], hash);
}

u32 store_next(const struct store *s, u32 n)
{
	return skip_others(s, s->entry[n - 1].next, s->entry[n - 1].at.hash);
}

void store_use(struct store *s, u32 n)
{
	s->entry[n - 1].used = true;
	s->latest = n;
}

/* Window @n cannot be used. One warning is enough. */
static u8 *refuse_window(struct store *s, u32 n, const char *why)
{
	if (!s->damaged)
		log_warn("%s %s; going on without what is there", STORE_NAME, why);
	s->damaged = s->bad[n] = true;
	return NULL;
}

/* Window @n in memory; NULL when it cannot be had. */
static u8 *get_window(struct store *s, u32 n)
{
	struct slot *slot = &s->slot[n % SLOTS];

	if (s->bad[n])
		return NULL;
	if (slot->window == n + 1)
		return slot->bytes;
	slot->window = 0;
	if (!slot->bytes)
		slot->bytes = malloc(STORE_WINDOW);
	if (!slot->bytes ||
	    !keep_read(s->keep.old, STORE_DATA + (u64)n * STORE_WINDOW, slot->bytes, STORE_WINDOW))
		return refuse_window(s, n, "cannot be read");
	if (store_sum(slot->bytes, STORE_WINDOW) != s->sum[n])
		return refuse_window(s, n, "is damaged: a part has another sum than it says");
	slot->window = n + 1;
	return slot->bytes;
}

bool store_get(struct store *s, u32 n, struct store_record *r)
{
	u64 where = (u64)s->entry[n - 1].at.where * 8;
	u32 window = (u32)(where / STORE_WINDOW), at = where % STORE_WINDOW;
	u8 *bytes;

	if (window >= s->windows)
		return false;
	bytes = get_window(s, window);
	if (!bytes)
		return false;
	if (store_parse(bytes + at, STORE_WINDOW - at, r))
		return true;
	refuse_window(s, window, "is damaged: a record makes no sense");
	return false;
}

/* ---- the new file ---- */

static bool grow(void **table, u32 *room, u32 used, u64 size)
{
	u32 more = MAX(*room * 2, 1024u);
	void *p;

	if (used < *room)
		return true;
	p = realloc(*table, more * size);
	if (!p)
		return false;
	*table = p;
	*room = more;
	return true;
}

/* The window at hand is full, or the last. */
static bool flush_window(struct store *s)
{
	struct writer *w = &s->w;

	if (!w->fill)
		return true;
	memset(w->window + w->fill, 0, STORE_WINDOW - w->fill);
	if (!grow((void **)&w->sum, &w->sums_room, w->windows, sizeof(*w->sum)) ||
	    !keep_write(s->keep.new, STORE_DATA + (u64)w->windows * STORE_WINDOW, w->window,
			STORE_WINDOW))
		return false;
	w->sum[w->windows++] = store_sum(w->window, STORE_WINDOW);
	w->fill = 0;
	return true;
}

/* Room for @size bytes in the window at hand. */
static u8 *make_room(struct store *s, u32 size)
{
	struct writer *w = &s->w;

	if (w->failed || s->keep.new < 0 || size > STORE_WINDOW)
		return NULL;
	if (!w->window)
		w->window = malloc(STORE_WINDOW);
	if (!w->window || (w->fill + size > STORE_WINDOW && !flush_window(s)) ||
	    !grow((void **)&w->index, &w->index_room, w->records, sizeof(*w->index))) {
		w->failed = true;
		return NULL;
	}
	/* One window more when this one is flushed. */
	if (w->windows >= STORE_MAX_WINDOWS - 1 || w->records >= STORE_MAX_RECORDS)
		return NULL;
	return w->window + w->fill;
}

static void add(struct store *s, u32 size, u32 hash)
{
	struct writer *w = &s->w;

	w->index[w->records++] = (struct store_index){
		.hash = hash, .where = (w->windows * (u32)STORE_WINDOW + w->fill) / 8};
	w->fill += size;
}

/* Put @id into the set; false when it is there, or the set is full. */
static bool is_new_id(struct writer *w, u64 id)
{
	u32 n = (u32)(id >> 20) & (ID_BUCKETS - 1);

	id += !id; /* 0 is an empty place */
	if (!w->ids)
		w->ids = calloc(ID_BUCKETS, sizeof(*w->ids));
	if (!w->ids || w->made >= ID_BUCKETS / 4 * 3)
		return false;
	for (; w->ids[n]; n = (n + 1) & (ID_BUCKETS - 1))
		if (w->ids[n] == id)
			return false;
	w->ids[n] = id;
	return true;
}

bool store_reserve(struct store *s, struct store_head *head, u32 peeked, struct store_record *r)
{
	u8 *p;

	head->size = store_layout(head, peeked, NULL, r);
	p = make_room(s, head->size);
	if (!p || !is_new_id(&s->w, head->id))
		return false;
	memset(p, 0, head->size);
	store_layout(head, peeked, p, r);
	*r->head = *head;
	return true;
}

void store_commit(struct store *s, const struct store_record *r)
{
	s->w.made++;
	add(s, r->head->size, r->head->hash);
}

/* Old records that were used in this run, or those that were not. */
static void add_old(struct store *s, bool used)
{
	struct store_record r;
	u8 *to;

	for (u32 n = 1; n <= s->records; n++) {
		if (s->entry[n - 1].used != used || !store_get(s, n, &r))
			continue;
		to = make_room(s, r.head->size);
		if (!to)
			return;
		memcpy(to, r.head, r.head->size);
		add(s, r.head->size, r.head->hash);
	}
}

static bool write_tables(struct store *s)
{
	const struct writer *w = &s->w;
	u64 sums = w->windows * sizeof(u64), size = tables_size(w->windows, w->records);
	u64 at = STORE_DATA + (u64)w->windows * STORE_WINDOW;
	struct store_header h = {.magic = STORE_MAGIC,
				 .version = STORE_VERSION,
				 .windows = w->windows,
				 .records = w->records,
				 .file_size = at + size};
	u8 *tables = malloc(size);
	bool ok;

	if (!tables)
		return false;
	memcpy(tables, w->sum, sums);
	memcpy(tables + sums, w->index, size - sums);
	memcpy(h.key, s->key, STORE_KEY);
	h.tables_sum = store_sum(tables, size);
	h.sum = store_sum(&h, offsetof(struct store_header, sum));
	ok = keep_write(s->keep.new, at, tables, size) &&
	     keep_write(s->keep.new, 0, &h, sizeof(h)); /* last: it makes the file whole */
	free(tables);
	return ok;
}

static bool finish(struct store *s)
{
	if (s->keep.new < 0 || !s->w.made || (!s->damaged && s->w.made * WORTH < s->records))
		return false;
	add_old(s, true);
	add_old(s, false);
	if (!s->w.failed && flush_window(s) && write_tables(s))
		return true;
	log_warn("%s could not be written", STORE_NAME);
	return false;
}

void store_close(struct store *s)
{
	keep_close(&s->keep, finish(s));
	for (u32 n = 0; n < SLOTS; n++)
		free(s->slot[n].bytes);
	free(s->entry);
	free(s->bucket);
	free(s->sum);
	free(s->bad);
	free(s->w.window);
	free(s->w.sum);
	free(s->w.index);
	free(s->w.ids);
	free(s);
}
