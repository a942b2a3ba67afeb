/*
 * The file of translations kept from run to run. The input is laid over a small whole file, and its
 * sums are mended unless its first byte says otherwise, because random bytes would never get past
 * them. Invariant: opening and reading give records that lie within their windows, or an end; what
 * they hold can be reached as the engine does.
 */
#include "engine/soft/store.h"
#include "host/keep.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	WINDOWS = 2,
	RECORDS = 8,
	TABLES = STORE_DATA + WINDOWS * STORE_WINDOW,
	SIZE = TABLES + WINDOWS * 8 + RECORDS * (int)sizeof(struct store_index),
};

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

static const u8 key[STORE_KEY] = "fuzz";

/* Record @n at the start of a quarter of a window. */
static void make_record(u8 *at, u32 n)
{
	struct store_head head = {.hash = n,
				  .mode = 2,
				  .offset = (u16)(n * 16),
				  .guest = 16,
				  .insns = 4,
				  .hot = 100,
				  .cold = 50,
				  .poll = 10,
				  .direct = 20,
				  .relocs = 4,
				  .exits = 2,
				  .peeks = 1};
	struct store_record r;

	head.size = store_layout(&head, 8, at, &r);
	*r.head = head;
	r.peek[0] = (struct store_peek){8, 16};
	for (u32 k = 0; k < head.exits; k++) {
		r.exit[k] = (struct store_exit){.site = 40, .stub = (u16)(10 * k)};
		memcpy(r.cold + 10 * k, "\x49\xbb", 2);
	}
}

static void make_file(u8 *file)
{
	struct store_header h = {.magic = STORE_MAGIC,
				 .version = STORE_VERSION,
				 .windows = WINDOWS,
				 .records = RECORDS,
				 .file_size = SIZE};
	struct store_index *index = (void *)(file + TABLES + WINDOWS * 8);

	memset(file, 0, SIZE);
	memcpy(h.key, key, sizeof(key));
	memcpy(file, &h, sizeof(h));
	for (u32 n = 0; n < RECORDS; n++) {
		u32 where = n * STORE_WINDOW / 4;

		make_record(file + STORE_DATA + where, n);
		index[n] = (struct store_index){.hash = n, .where = where / 8};
	}
}

/* Each change is a place and a byte; in records, or also in header and tables. */
static void lay_over(u8 *file, const u8 *data, size_t len, bool anywhere)
{
	for (size_t i = 0; i + 3 < len; i += 4) {
		u32 at = (u32)data[i + 1] | (u32)data[i + 2] << 8;

		if (anywhere && data[i] & 1)
			at %= sizeof(struct store_header);
		else if (anywhere && data[i] & 2)
			at = TABLES + at % (SIZE - TABLES);
		else
			at = STORE_DATA + (at & 7) * (STORE_WINDOW / 4) + (at >> 3) % 300;
		file[at] ^= data[i + 3];
	}
}

static void mend(u8 *file)
{
	struct store_header *h = (void *)file;
	u64 *sum = (void *)(file + TABLES);

	for (u32 n = 0; n < WINDOWS; n++)
		sum[n] = store_sum(file + STORE_DATA + n * STORE_WINDOW, STORE_WINDOW);
	h->tables_sum = store_sum(file + TABLES, SIZE - TABLES);
	h->sum = store_sum(h, offsetof(struct store_header, sum));
}

static void expect(bool holds)
{
	if (!holds)
		abort();
}

/* All that the engine reads or writes by a record's word. */
static u64 walk(const struct store_record *r)
{
	u8 hot[STORE_PART], cold[STORE_PART];
	const u8 *peeked = r->peeked;
	u64 sum = r->guest[r->head->guest - 1];

	memcpy(hot, r->hot, r->head->hot);
	memcpy(cold, r->cold, r->head->cold);
	for (u32 n = 0; n < r->head->relocs; n++)
		memset((r->reloc[n] >> 15 ? cold : hot) + (r->reloc[n] & STORE_RELOC_OFFSET), 1, 4);
	for (u32 n = 0; n < r->head->exits; n++) {
		memset((r->exit[n].flags & STORE_IN_COLD ? cold : hot) + r->exit[n].site, 2, 4);
		memset(cold + r->exit[n].stub + 2, 3, 8);
	}
	for (u32 n = 0; n < r->head->peeks; n++)
		for (u32 k = r->peek[n].from; k < r->peek[n].to; k++)
			sum += *peeked++;
	expect(peeked == r->hot);
	for (u32 n = 0; n < r->head->insns; n++)
		expect(r->host_off[n] < r->head->hot && r->guest_off[n] < r->head->guest);
	return sum + hot[0] + cold[0];
}

static void read_all(struct store *s)
{
	struct store_record r;
	u32 steps = 0;

	for (u32 hash = 0; hash < RECORDS; hash++)
		for (u32 n = store_first(s, hash); n && steps++ < 1000; n = store_next(s, n)) {
			expect(n <= store_records(s));
			if (!store_get(s, n, &r))
				break;
			walk(&r);
			store_use(s, n);
		}
	expect(steps < 1000);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
	static _Alignas(8) u8 file[SIZE];
	struct err e = {0};
	struct store *s;
	u64 size = SIZE;
	int fd;

	if (len < 2)
		return 0;
	make_file(file);
	lay_over(file, data + 2, MIN(len - 2, data[1] % 16 * 4ul), !(data[0] >> 6));
	if (data[0] & 15)
		mend(file);
	if (data[0] >> 4 == 15)
		size = data[1] * 200ul;
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	expect(fd >= 0 && keep_write(fd, 0, file, MIN(size, (u64)SIZE)));
	expect(!store_open_file(&s, fd, size, key, &e));
	expect(!strchr(e.text, '\n'));
	read_all(s);
	store_close(s);
	return 0;
}
