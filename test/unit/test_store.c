/*
 * The file of translations kept from run to run: what was written is found again; what is not as it
 * was written, or lies where others may write, is not used.
 */
#include "engine/soft/store.h"
#include "host/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { MANY = 900, GUEST = 24, HOT = 120, COLD = 64, MODE = 2 };

static const u8 key[STORE_KEY] = "this build";

struct place {
	char dir[96], file[128];
};

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	strcpy(p->dir, "/tmp/doppel-store-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->file, sizeof(p->file), "%s/%s", p->dir, STORE_NAME);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;
	char command[128];

	snprintf(command, sizeof(command), "rm -rf %s", p->dir);
	assert_int_equal(system(command), 0);
	free(p);
	return 0;
}

static void guest_bytes(u32 n, u8 bytes[GUEST])
{
	for (u32 k = 0; k < GUEST; k++)
		bytes[k] = (u8)(n >> (k % 4) * 8);
}

static u32 hash_of(u32 n)
{
	u8 bytes[GUEST];

	guest_bytes(n, bytes);
	return store_hash(bytes, 8, n % 4000, MODE);
}

static struct store_head head_of(u32 n)
{
	return (struct store_head){.hash = hash_of(n),
				   .id = n + 1ul,
				   .mode = MODE,
				   .offset = (u16)(n % 4000),
				   .guest = GUEST,
				   .insns = 2,
				   .hot = HOT,
				   .cold = COLD,
				   .poll = 40,
				   .direct = 60,
				   .relocs = 2,
				   .exits = 1,
				   .peeks = 1};
}

static bool add(struct store *s, u32 n)
{
	struct store_head head = head_of(n);
	struct store_record r;

	if (!store_reserve(s, &head, 10, &r))
		return false;
	r.exit[0] = (struct store_exit){.site = 100, .stub = 20, .target = 8};
	r.peek[0] = (struct store_peek){4000, 4010};
	r.reloc[0] = 100;
	r.reloc[1] = 2 << STORE_RELOC_SHIFT | 12;
	r.host_off[1] = 60;
	r.guest_off[1] = 4;
	guest_bytes(n, r.guest);
	memset(r.hot, (int)n, HOT);
	memset(r.cold, 0x90, COLD);
	memcpy(r.cold + 20, "\x49\xbb", 2);
	store_commit(s, &r);
	return true;
}

static struct store *open_store(const struct place *p)
{
	struct err e = {0};
	struct store *s = NULL;

	assert_int_equal(store_open(&s, p->dir, false, key, &e), 0);
	assert_string_equal(e.text, "");
	return s;
}

/* Records @from to @to, and what was there. */
static void write_records(const struct place *p, u32 from, u32 to)
{
	struct store *s = open_store(p);

	for (u32 n = from; n < to; n++)
		assert_true(add(s, n));
	store_close(s);
}

static bool has(struct store *s, u32 n)
{
	u8 bytes[GUEST];
	struct store_record r;

	guest_bytes(n, bytes);
	for (u32 k = store_first(s, hash_of(n)); k; k = store_next(s, k))
		if (store_get(s, k, &r) && !memcmp(r.guest, bytes, GUEST)) {
			assert_int_equal(r.head->offset, n % 4000);
			assert_int_equal(r.hot[HOT - 1], (u8)n);
			assert_int_equal(r.guest_off[1], 4);
			store_use(s, k);
			return true;
		}
	return false;
}

static u64 size_of(const char *file)
{
	struct stat st;

	assert_int_equal(stat(file, &st), 0);
	return (u64)st.st_size;
}

/* The newest file takes its place when the directory is opened next. */
static void settle(const struct place *p)
{
	store_close(open_store(p));
}

static u32 count_files(const struct place *p)
{
	char command[128];
	FILE *out;
	u32 n = 0;

	snprintf(command, sizeof(command), "ls %s | wc -l", p->dir);
	out = popen(command, "r");
	assert_int_equal(fscanf(out, "%u", &n), 1);
	pclose(out);
	return n;
}

/* ---- what is written is found ---- */

static void records_are_found_again(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, MANY);
	s = open_store(p);
	assert_int_equal(store_records(s), MANY);
	for (u32 n = 0; n < MANY; n++)
		assert_true(has(s, n * 7 % MANY));
	assert_false(has(s, MANY));
	store_close(s);
	assert_int_equal(count_files(p), 1);
}

static void the_record_behind_the_latest_is_guessed(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, 10);
	s = open_store(p);
	assert_true(has(s, 4));
	assert_int_equal(store_guess(s, hash_of(5)), store_first(s, hash_of(5)));
	assert_int_equal(store_guess(s, hash_of(6)), 0);
	assert_true(has(s, 9));
	assert_int_equal(store_guess(s, hash_of(0)), 0);
	store_close(s);
}

static void same_record_is_kept_once(void **state)
{
	const struct place *p = *state;
	struct store *s = open_store(p);

	assert_true(add(s, 1));
	assert_false(add(s, 1));
	store_close(s);
	s = open_store(p);
	assert_int_equal(store_records(s), 1);
	store_close(s);
}

static void new_records_join_the_old(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, MANY);
	write_records(p, MANY, 2 * MANY);
	s = open_store(p);
	assert_int_equal(store_records(s), 2 * MANY);
	assert_true(has(s, 0));
	assert_true(has(s, 2 * MANY - 1));
	store_close(s);
}

static void few_new_records_are_not_worth_it(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, MANY);
	write_records(p, MANY, MANY + 3);
	s = open_store(p);
	assert_int_equal(store_records(s), MANY);
	store_close(s);
	assert_int_equal(count_files(p), 1);
}

static void used_records_come_before_unused_ones(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, MANY);
	s = open_store(p);
	assert_true(has(s, MANY - 1));
	for (u32 n = MANY; n < MANY + 100; n++)
		assert_true(add(s, n));
	store_close(s);
	s = open_store(p);
	assert_true(has(s, MANY + 99));
	assert_int_equal(store_guess(s, hash_of(MANY - 1)), 101);
	store_close(s);
}

/* STORE_MAX_WINDOWS of them are 128 MiB. */
static void file_is_bounded(void **state)
{
	enum { EACH = STORE_WINDOW / 2 + 1024 };
	const struct place *p = *state;
	struct store *s = open_store(p);
	u32 n = 0;

	for (;; n++) {
		struct store_head head = head_of(n);
		struct store_record r;

		head.hot = EACH;
		if (!store_reserve(s, &head, 0, &r))
			break;
		store_commit(s, &r);
	}
	assert_true(n > STORE_MAX_WINDOWS / 2 && n <= STORE_MAX_WINDOWS);
	store_close(s);
	settle(p);
	assert_true(size_of(p->file) <= STORE_DATA + (u64)STORE_MAX_WINDOWS * (STORE_WINDOW + 64));
}

/* ---- what is not as it was written ---- */

static void expect_refused(const struct place *p, const char *why)
{
	struct err e = {0};
	struct store *s = NULL;

	assert_int_equal(store_open(&s, p->dir, false, key, &e), 0);
	if (!strstr(e.text, why))
		fail_msg("'%s' does not say '%s'", e.text, why);
	assert_int_equal(store_records(s), 0);
	assert_false(has(s, 1));
	store_close(s);
}

static void flip(const char *file, u64 at)
{
	int fd = open(file, O_RDWR);
	u8 byte;

	assert_true(keep_read(fd, at, &byte, 1));
	byte ^= 0x10;
	assert_true(keep_write(fd, at, &byte, 1));
	close(fd);
}

static void flipped_bits_are_found(void **state)
{
	const struct place *p = *state;
	u64 size, tables;

	write_records(p, 0, MANY);
	settle(p);
	size = size_of(p->file);
	tables = align_down(size - STORE_DATA, STORE_WINDOW) + STORE_DATA;
	for (u64 at = 0; at < sizeof(struct store_header); at++) {
		flip(p->file, at);
		expect_refused(p, at < 8 ? "not a file of translations" : "header");
		flip(p->file, at);
	}
	for (u64 at = tables; at < size; at += 97) {
		flip(p->file, at);
		expect_refused(p, "tables");
		flip(p->file, at);
	}
	for (u64 at = STORE_DATA; at < tables; at += 15013) {
		struct store *s;
		u32 found = 0;

		flip(p->file, at);
		s = open_store(p);
		for (u32 n = 0; n < MANY; n++)
			found += has(s, n);
		assert_in_range(found, MANY / 2, MANY - 1); /* the others are good */
		store_close(s);
		flip(p->file, at);
	}
	assert_int_equal(size_of(p->file), size);
}

static void shorter_file_is_refused(void **state)
{
	const struct place *p = *state;
	const u64 by[] = {1, 8, 4096, STORE_WINDOW};
	u64 size;

	write_records(p, 0, MANY);
	settle(p);
	size = size_of(p->file);
	for (u32 n = 0; n < ARRAY_SIZE(by); n++) {
		assert_int_equal(truncate(p->file, (off_t)(size - by[n])), 0);
		expect_refused(p, "not as long as it says");
	}
	assert_int_equal(truncate(p->file, 100), 0);
	expect_refused(p, "not a file of translations");
	assert_int_equal(truncate(p->file, 0), 0);
	expect_refused(p, "not a file of translations");
}

/* Cut while it is in use: what is not in memory is not had, and that is all. */
static void file_may_shrink_while_it_is_open(void **state)
{
	const struct place *p = *state;
	struct store *s;

	write_records(p, 0, MANY);
	s = open_store(p);
	assert_true(has(s, 0));
	assert_int_equal(truncate(p->file, STORE_DATA + STORE_WINDOW), 0);
	assert_false(has(s, MANY - 1));
	assert_false(has(s, MANY - 2));
	assert_true(has(s, 0));
	store_close(s);
}

/* As store.c would write it, but for what @change does to the header. */
static void rewrite_header(const struct place *p, void (*change)(struct store_header *h))
{
	int fd = open(p->file, O_RDWR);
	struct store_header h;

	assert_true(keep_read(fd, 0, &h, sizeof(h)));
	change(&h);
	h.sum = store_sum(&h, offsetof(struct store_header, sum));
	assert_true(keep_write(fd, 0, &h, sizeof(h)));
	close(fd);
}

static void next_version(struct store_header *h)
{
	h->version++;
}

static void other_key(struct store_header *h)
{
	h->key[STORE_KEY - 1] ^= 1;
}

static void many_records(struct store_header *h)
{
	h->records = 0xffffffff;
}

static void many_windows(struct store_header *h)
{
	h->windows = STORE_MAX_WINDOWS + 1;
	h->file_size += STORE_WINDOW;
}

/* Another build's file is not damaged: nothing is said, and it is replaced. */
static void other_versions_and_keys_are_passed_over(void **state)
{
	void (*const change[])(struct store_header * h) = {next_version, other_key};
	const struct place *p = *state;

	for (u32 n = 0; n < ARRAY_SIZE(change); n++) {
		write_records(p, 0, MANY);
		settle(p);
		rewrite_header(p, change[n]);
		expect_refused(p, "");
		write_records(p, 0, 5);
		settle(p);
		assert_true(size_of(p->file) < STORE_DATA + 2 * STORE_WINDOW);
		assert_int_equal(unlink(p->file), 0);
	}
}

static void senseless_headers_are_refused(void **state)
{
	const struct place *p = *state;

	write_records(p, 0, MANY);
	settle(p);
	rewrite_header(p, many_records);
	expect_refused(p, "makes no sense");
	assert_int_equal(unlink(p->file), 0);
	write_records(p, 0, MANY);
	settle(p);
	rewrite_header(p, many_windows);
	expect_refused(p, "makes no sense");
}

/* ---- whose it is ---- */

static void expect_error(const struct place *p, int code, const char *why)
{
	struct err e = {0};
	struct store *s = NULL;

	assert_int_equal(store_open(&s, p->dir, false, key, &e), code);
	if (!strstr(e.text, why))
		fail_msg("'%s' does not say '%s'", e.text, why);
}

static void files_open_to_others_are_refused(void **state)
{
	const mode_t modes[] = {0604, 0620, 0666, 0640};
	const struct place *p = *state;

	write_records(p, 0, 5);
	settle(p);
	assert_int_equal(size_of(p->file) > 0, 1);
	for (u32 n = 0; n < ARRAY_SIZE(modes); n++) {
		assert_int_equal(chmod(p->file, modes[n]), 0);
		expect_error(p, -EPERM, "open to others");
	}
	assert_int_equal(chmod(p->file, 0600), 0);
	assert_int_equal(chmod(p->dir, 0750), 0);
	expect_error(p, -EPERM, "open to others");
	assert_int_equal(chmod(p->dir, 0700), 0);
	settle(p);
}

static void files_of_others_are_refused(void **state)
{
	const struct place *p = *state;

	if (geteuid())
		skip(); /* only root can give files away */
	write_records(p, 0, 5);
	settle(p);
	assert_int_equal(chown(p->file, 12345, (gid_t)-1), 0);
	expect_error(p, -EPERM, "belongs to user 12345");
	assert_int_equal(chown(p->file, 0, (gid_t)-1), 0);
	assert_int_equal(chown(p->dir, 12345, (gid_t)-1), 0);
	expect_error(p, -EPERM, "belongs to user 12345");
}

static void links_and_other_things_are_refused(void **state)
{
	const struct place *p = *state;
	struct place link = *p;
	char elsewhere[128];

	write_records(p, 0, 5);
	settle(p);
	snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", p->dir);
	assert_int_equal(rename(p->file, elsewhere), 0);
	assert_int_equal(symlink("elsewhere", p->file), 0);
	expect_error(p, -EPERM, "symbolic link");
	assert_int_equal(unlink(p->file), 0);
	assert_int_equal(mkfifo(p->file, 0600), 0);
	expect_error(p, -EPERM, "is not a file");
	assert_int_equal(unlink(p->file), 0);
	assert_true(snprintf(link.dir, sizeof(link.dir), "%.60s/dir", p->dir) > 0);
	assert_int_equal(symlink(p->dir, link.dir), 0);
	expect_error(&link, -ENOTDIR, link.dir);
}

static void directory_is_made_only_when_asked_for(void **state)
{
	struct place *p = *state, inner = *p;
	struct err e = {0};
	struct store *s = NULL;
	struct stat st;

	assert_true(snprintf(inner.dir, sizeof(inner.dir), "%.60s/a/b", p->dir) > 0);
	expect_error(&inner, -ENOENT, inner.dir);
	assert_int_equal(store_open(&s, inner.dir, true, key, &e), 0);
	store_close(s);
	assert_int_equal(stat(inner.dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
}

/* ---- several at a time, and those that did not end well ---- */

static void last_of_several_writers_wins(void **state)
{
	const struct place *p = *state;
	struct store *a = open_store(p), *b = open_store(p), *c;

	assert_int_equal(count_files(p), 2);
	for (u32 n = 0; n < 10; n++) {
		assert_true(add(a, n));
		assert_true(add(b, n + 10));
	}
	store_close(b);
	c = open_store(p); /* takes b's file, leaves that which a holds */
	assert_true(has(c, 10));
	store_close(a);
	usleep(20000); /* the host's file times are that coarse */
	assert_true(has(c, 19));
	assert_true(add(c, 20)); /* and what it read goes on to its own file */
	store_close(c);
	c = open_store(p);
	assert_true(has(c, 20) && has(c, 10) && !has(c, 0));
	store_close(c);
	assert_int_equal(count_files(p), 1);
}

static void files_of_the_killed_are_cleared_away(void **state)
{
	const struct place *p = *state;
	char half[128];
	int fd;

	write_records(p, 0, 5);
	settle(p);
	snprintf(half, sizeof(half), "%s/%s.new.0123", p->dir, STORE_NAME);
	fd = open(half, O_CREAT | O_WRONLY, 0600);
	assert_int_equal(ftruncate(fd, 100000), 0);
	close(fd);
	assert_int_equal(count_files(p), 2);
	settle(p);
	assert_int_equal(count_files(p), 1);
	write_records(p, 5, 6);
}

/* ---- records ---- */

static u8 *make_record(u8 *at, struct store_record *r)
{
	struct store_head head = head_of(1);

	memset(at, 0, STORE_WINDOW);
	head.size = store_layout(&head, 10, at, r);
	*r->head = head;
	r->exit[0] = (struct store_exit){.site = 100, .stub = 20};
	r->peek[0] = (struct store_peek){4000, 4010};
	memcpy(r->cold + 20, "\x49\xbb", 2);
	return at;
}

static void wrong_records_are_refused(void **state)
{
	static _Alignas(8) u8 at[STORE_WINDOW];
	struct store_record r;

	(void)state;
	assert_true(store_parse(make_record(at, &r), STORE_WINDOW, &r));
	assert_true(store_parse(at, r.head->size, &r));
	assert_false(store_parse(at, r.head->size - 8u, &r));
	assert_false(store_parse(at, 16, &r));
#define EXPECT_REFUSED(change)                                   \
	do {                                                     \
		make_record(at, &r);                             \
		change;                                          \
		assert_false(store_parse(at, STORE_WINDOW, &r)); \
	} while (0)
	EXPECT_REFUSED(r.head->size += 8);
	EXPECT_REFUSED(r.head->insns = 0);
	EXPECT_REFUSED(r.head->insns = STORE_INSNS + 1);
	EXPECT_REFUSED(r.head->exits = STORE_EXITS + 1);
	EXPECT_REFUSED(r.head->peeks = STORE_PEEKS + 1);
	EXPECT_REFUSED(r.head->hot = 0);
	EXPECT_REFUSED(r.head->hot = 7);
	EXPECT_REFUSED(r.head->cold = STORE_PART + 1);
	EXPECT_REFUSED(r.head->guest = 0);
	EXPECT_REFUSED(r.head->offset = PAGE_SIZE - GUEST + 1);
	EXPECT_REFUSED(r.head->poll = HOT);
	EXPECT_REFUSED(r.head->direct = HOT);
	EXPECT_REFUSED((r.head->parts = STORE_COLD_POLL, r.head->poll = COLD));
	EXPECT_REFUSED((r.head->place = 0x81000000, r.head->poll = STORE_FAR_ENTRY - 1));
	EXPECT_REFUSED(r.head->relocs = 0xffff);
	EXPECT_REFUSED(r.exit[0].site = HOT - 3);
	EXPECT_REFUSED((r.exit[0].flags = STORE_IN_COLD, r.exit[0].site = COLD - 3));
	EXPECT_REFUSED(r.exit[0].stub = COLD - 9);
	EXPECT_REFUSED(r.exit[0].stub = 21);
	EXPECT_REFUSED(r.exit[0].target = PAGE_SIZE);
	EXPECT_REFUSED(r.exit[0].flags = STORE_CROSSES); /* without a second stub */
	EXPECT_REFUSED((r.exit[0].flags = STORE_CROSSES, r.exit[0].site = STORE_CROSSING - 1));
	EXPECT_REFUSED(r.peek[0].to = r.peek[0].from);
	EXPECT_REFUSED(r.peek[0].to = PAGE_SIZE + 1);
	EXPECT_REFUSED(r.peek[0].from = 0);
	EXPECT_REFUSED(r.reloc[0] = HOT - 3);
	EXPECT_REFUSED(r.reloc[1] = 1 << 15 | (COLD - 3));
	EXPECT_REFUSED(r.host_off[1] = HOT);
	EXPECT_REFUSED(r.guest_off[1] = GUEST);
#undef EXPECT_REFUSED
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(records_are_found_again),
		TEST(the_record_behind_the_latest_is_guessed),
		TEST(same_record_is_kept_once),
		TEST(new_records_join_the_old),
		TEST(few_new_records_are_not_worth_it),
		TEST(used_records_come_before_unused_ones),
		TEST(file_is_bounded),
		TEST(flipped_bits_are_found),
		TEST(shorter_file_is_refused),
		TEST(file_may_shrink_while_it_is_open),
		TEST(other_versions_and_keys_are_passed_over),
		TEST(senseless_headers_are_refused),
		TEST(files_open_to_others_are_refused),
		TEST(files_of_others_are_refused),
		TEST(links_and_other_things_are_refused),
		TEST(directory_is_made_only_when_asked_for),
		TEST(last_of_several_writers_wins),
		TEST(files_of_the_killed_are_cleared_away),
		cmocka_unit_test(wrong_records_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
