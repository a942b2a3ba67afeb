/*
 * Serial output, and the loop over the test cases.
 */
#include "tap.h"
#include "x86.h"

enum {
	COM1 = 0x3f8,
	LINE_STATUS = 5,
	TRANSMITTER_EMPTY = 0x20,
	DEBUG_EXIT = 0x501,
	STATUS_DONE = 0x2a, /* all cases ran, whatever their result */
	STATUS_DIED = 0x2b,
};

static struct {
	bool failed;
	const char *skipped, *excuse;
	u32 excused;
	char reason[160];
} current;

void *memset(void *to, int value, size_t len)
{
	u8 *p = to;

	for (size_t i = 0; i < len; i++) {
		p[i] = (u8)value;
		barrier();
	}
	return to;
}

void *memcpy(void *to, const void *from, size_t len)
{
	u8 *p = to;
	const u8 *s = from;

	for (size_t i = 0; i < len; i++) {
		p[i] = s[i];
		barrier();
	}
	return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
	const u8 *p = a, *q = b;

	for (size_t i = 0; i < len; i++)
		if (p[i] != q[i])
			return p[i] < q[i] ? -1 : 1;
	return 0;
}

/* Where formatted text goes: a buffer, or the serial port if there is none. */
struct sink {
	char *at, *end;
};

static void put(struct sink *s, char c)
{
	if (s->at) {
		if (s->at + 1 < s->end)
			*s->at++ = c;
		return;
	}
	while (!(inb(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY))
		pause();
	outb(COM1, (u8)c);
}

static void put_string(struct sink *s, const char *text)
{
	for (; *text; text++)
		put(s, *text);
}

static void put_hex(struct sink *s, u64 value)
{
	int shift = 60;

	while (shift > 0 && !(value >> shift & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put(s, "0123456789abcdef"[value >> shift & 15]);
}

static void put_decimal(struct sink *s, u32 value)
{
	char digits[10];
	int n = 0;

	do
		digits[n++] = (char)('0' + value % 10);
	while (value /= 10);
	while (n)
		put(s, digits[--n]);
}

/* NOLINTBEGIN(clang-analyzer-valist.Uninitialized): lost across the call; each caller starts it */
/* %s, %d, %u, %x, %c, with an optional l or ll: enough for reports. */
static void format_to(struct sink *s, const char *format, va_list args)
{
	for (; *format; format++) {
		int longs = 0;

		if (*format != '%') {
			put(s, *format);
			continue;
		}
		while (*++format == 'l')
			longs++;
		if (*format == 's') {
			put_string(s, va_arg(args, const char *));
		} else if (*format == 'c') {
			put(s, (char)va_arg(args, int));
		} else if (*format == 'd' || *format == 'u') {
			put_decimal(s, va_arg(args, u32));
		} else if (*format == 'x') {
			put_hex(s, longs == 2   ? va_arg(args, unsigned long long)
				   : longs == 1 ? va_arg(args, unsigned long)
						: va_arg(args, unsigned int));
		} else {
			put(s, '?');
		}
	}
}
/* NOLINTEND(clang-analyzer-valist.Uninitialized) */

void print(const char *format, ...)
{
	struct sink s = {NULL, NULL};
	va_list args;

	va_start(args, format);
	format_to(&s, format, args);
	va_end(args);
}

__noreturn void quit(u32 value)
{
	outl(DEBUG_EXIT, value);
	for (;;)
		__asm__ volatile("cli; hlt");
}

__noreturn void die(const char *format, ...)
{
	struct sink s = {NULL, NULL};
	va_list args;

	put_string(&s, "Bail out! ");
	va_start(args, format);
	format_to(&s, format, args);
	va_end(args);
	put(&s, '\n');
	quit(STATUS_DIED);
}

void check(bool ok, const char *format, ...)
{
	struct sink s = {current.reason, current.reason + sizeof(current.reason)};
	va_list args;

	if (ok || current.failed)
		return;
	current.failed = true;
	va_start(args, format);
	format_to(&s, format, args);
	va_end(args);
	*s.at = '\0'; /* NOLINT(clang-analyzer-core.NullDereference): the sink never loses its place
		       */
}

void check_equal(u64 actual, u64 expected, const char *what, int line)
{
	check(actual == expected, "line %d: %s is 0x%llx, not 0x%llx", line, what,
	      (unsigned long long)actual, (unsigned long long)expected);
}

void skip(const char *reason)
{
	current.skipped = reason;
}

bool excuse(const char *reason, u32 limit)
{
	current.excuse = reason;
	return __atomic_add_fetch(&current.excused, 1, __ATOMIC_RELAXED) <= limit;
}

__noreturn void run_tests(void)
{
	unsigned int count = 0;

	while (tests[count].name)
		count++;
	print("1..%u\n", count);
	for (unsigned int i = 0; i < count; i++) {
		const struct test *t = &tests[i];

		current.failed = false;
		current.skipped = NULL;
		current.excused = 0;
		environment_reset();
		t->run();
		if (current.failed)
			print("not ok %u - %s (%s): %s\n", i + 1, t->name, t->clause,
			      current.reason);
		else if (current.skipped)
			print("ok %u - %s # SKIP %s\n", i + 1, t->name, current.skipped);
		else
			print("ok %u - %s\n", i + 1, t->name);
		if (current.failed && t->qemu)
			print("# qemu: %s\n", t->qemu);
		if (current.excused)
			print("# excused: %s (%u times)\n", current.excuse, current.excused);
	}
	print("# done\n");
	quit(STATUS_DONE);
}
