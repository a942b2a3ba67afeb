/* The options of `doppel run`, and sizes. */
#include "base/size.h"
#include "cli/cli.h"
#include "cli/options.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

enum { ARGS_MAX = 32 };

struct parsed {
	int result;
	struct run_options o;
	struct err e;
	char text[512];
};

/* Parse the words of @line, separated by single spaces. */
static struct parsed parse(const char *line)
{
	static struct parsed p;
	static char buffer[512];
	char *argv[ARGS_MAX + 1] = {NULL};
	int argc = 0;

	memset(&p, 0, sizeof(p));
	snprintf(buffer, sizeof(buffer), "run %s", line);
	for (char *word = strtok(buffer, " "); word && argc < ARGS_MAX; word = strtok(NULL, " "))
		argv[argc++] = word;
	p.result = run_options_parse(&p.o, argc, argv, &p.e);
	return p;
}

static void sizes(void **state)
{
	static const struct {
		const char *text;
		bool ok;
		u64 bytes;
	} cases[] = {
		{"512M", true, 512 * MIB},
		{"2G", true, 2 * GIB},
		{"64", true, 64 * MIB},
		{"128k", true, 128 * KIB},
		{"", false, 0},
		{"-1", false, 0},
		{" 1", false, 0},
		{"1Q", false, 0},
		{"1MB", false, 0},
		{"G", false, 0},
		{"0x10", false, 0},
		{"99999999999999999999", false, 0},
		{"18014398509481984K", false, 0},
	};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		u64 bytes = 0;

		assert_int_equal(parse_size(cases[i].text, &bytes), cases[i].ok);
		if (cases[i].ok)
			assert_int_equal(bytes, cases[i].bytes);
	}
}

static void defaults(void **state)
{
	struct parsed p = parse("--kernel k");

	(void)state;
	assert_int_equal(p.result, 0);
	assert_int_equal(p.o.ram_bytes, 512 * MIB);
	assert_int_equal(p.o.vcpus, 1);
	assert_string_equal(p.o.console, "stdio");
	assert_int_equal(p.o.nets, 1);
	assert_int_equal(p.o.net[0].kind, NET_USER);
	run_options_free(&p.o);
}

static void everything(void **state)
{
	struct parsed p = parse("--kernel k --initrd i --append a=b -m 1G -c 2 --disk path=d1 "
				"--disk path=d2,readonly=on --net none "
				"--engine soft,code-cache=8M,groups=off");

	(void)state;
	assert_int_equal(p.result, 0);
	assert_string_equal(p.o.initrd, "i");
	assert_string_equal(p.o.append, "a=b");
	assert_int_equal(p.o.ram_bytes, GIB);
	assert_int_equal(p.o.vcpus, 2);
	assert_int_equal(p.o.disks, 2);
	assert_string_equal(p.o.disk[1]->path, "d2");
	assert_true(p.o.disk[1]->readonly);
	assert_int_equal(p.o.nets, 0);
	assert_string_equal(p.o.engine, "soft");
	assert_string_equal(p.o.engine_options, "code-cache=8M,groups=off");
	run_options_free(&p.o);
}

static void bad_command_lines(void **state)
{
	static const struct {
		const char *line, *says;
	} cases[] = {
		{"", "--kernel"},
		{"--kernel", "needs a value"},
		{"--frobnicate", "--frobnicate"},
		{"-x", "-x"},
		{"--kernel k --stats=yes", "takes no value"},
		{"--kernel k --json", "--stats"},
		{"--kernel k stray", "stray"},
		{"--kernel k -m lots", "lots"},
		{"--kernel k -m 1M", "between"},
		{"--kernel k -m 999999G", "between"},
		{"--kernel k -c 0", "-c '0'"},
		{"--kernel k -c 65", "-c '65'"},
		{"--kernel k --engine warp", "warp"},
		{"--kernel k --engine soft,", "lacks a name"},
		{"--kernel k --engine soft,code-cache=1M", "8M"},
		{"--kernel k --engine soft,code-cache=99G", "1024M"},
		{"--kernel k --engine soft,code-cache", "code-cache"},
		{"--kernel k --engine soft,groups=off,links", "lacks a value"},
		{"--kernel k --engine soft,groups=maybe", "maybe"},
		{"--kernel k --engine soft,warp=on", "warp"},
		{"--kernel k --engine soft,translations=maybe", "maybe"},
		{"--kernel k --engine soft,translations-check=maybe", "maybe"},
		{"--kernel k --engine soft,groups=off,,links=off", "lacks"},
		{"--kernel k --engine kvm,groups=off", "groups"},
		{"--kernel k --engine kvm,chips=maybe", "user nor kernel"},
		{"--kernel k --engine kvm,chips", "chips"},
		{"--kernel k --engine auto,groups=off", "name"},
		{"--kernel k --sandbox maybe", "maybe"},
		{"--kernel k --virtio-console stdio", "only one console"},
		{"--kernel k --net bridge", "bridge"},
		{"--kernel k --disk file=x", "file"},
	};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct parsed p = parse(cases[i].line);

		if (!p.result || !strstr(p.e.text, cases[i].says))
			fail_msg("'%s': %d '%s'", cases[i].line, p.result, p.e.text);
		assert_null(strchr(p.e.text, '\n'));
		run_options_free(&p.o);
	}
}

static void help_needs_nothing_else(void **state)
{
	struct parsed p = parse("--help");

	(void)state;
	assert_int_equal(p.result, 0);
	assert_true(p.o.help);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(defaults),
		cmocka_unit_test(everything),
		cmocka_unit_test(bad_command_lines),
		cmocka_unit_test(help_needs_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
