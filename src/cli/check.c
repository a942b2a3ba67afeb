/*
 * doppel check [--json]: what this host offers: engines with the speed measured, why one is not
 * usable, what else decides how fast a machine can be, and what to do to get more.
 */
#include "cli/choose.h"
#include "cli/cli.h"
#include "cli/offer.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { ENGINES_MAX = 8, ADVICE_MAX = 8 };

const char cli_check_help[] =
	"Usage: doppel check [--json]\n"
	"\n"
	"Shows what this host offers: for each engine whether it can be used, why not,\n"
	"and how long a guest's instruction takes in ring 0 and ring 3, measured; which\n"
	"engine 'doppel run --engine auto' takes; what else decides how fast a machine\n"
	"can be; and what to do to get more.\n"
	"\n"
	"  --json      the same for programs (docs/engines.md lists the fields)\n"
	"  -h, --help  this text\n"
	"\n"
	"The exit status is 0 if at least one engine can be used, else 1.\n";

struct check {
	struct engine_report engine[ENGINES_MAX];
	u32 engines;
	struct host_offer host;
	const char *advice[ADVICE_MAX];
	u32 advices;
};

static void advise(struct check *c, bool applies, const char *text)
{
	if (applies && c->advices < ADVICE_MAX)
		c->advice[c->advices++] = text;
}

static void find_advice(struct check *c)
{
	const struct host_offer *h = &c->host;
	const struct engine_report *first = &c->engine[0];
	const int code = first->why.code;
	const bool slow = first->usable && !first->native;

	advise(c, code == -EACCES,
	       "get permission for /dev/kvm: adduser USER kvm, then log in again");
	advise(c, code == -ENOENT && (h->vmx || h->svm),
	       "load the host's module: modprobe kvm_intel (or kvm_amd)");
	advise(c, (code == -ENOENT || slow) && !h->vmx && !h->svm && h->hypervisor,
	       "this system is a virtual machine itself: ask for nested virtualization to be "
	       "switched "
	       "on, or use a bare machine");
	advise(c, code == -ENOENT && !h->vmx && !h->svm && !h->hypervisor,
	       "switch on VT-x or SVM in the firmware's setup");
	advise(c, h->nested_paging == 0, "reload kvm_intel with ept=1 (or kvm_amd with npt=1)");
	advise(c, !strcmp(h->huge_pages, "never"),
	       "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled");
	advise(c, !h->io_uring,
	       "allow io_uring (sysctl kernel.io_uring_disabled=0, or the container's "
	       "system call filter): disks use threads without it");
}

static const char *yes(bool b)
{
	return b ? "yes" : "no";
}

static const char *nested_paging(const struct host_offer *h)
{
	return h->nested_paging < 0 ? "unknown" : yes(h->nested_paging);
}

static const char *automatic(const struct check *c)
{
	const struct engine_ops *engine = engine_auto(c->engine, c->engines);

	return engine ? engine->name : "none";
}

static void print_engine(const struct engine_report *r)
{
	printf("engine %-6s %s", r->engine->name, !r->usable ? "no" : r->native ? "yes" : "slow");
	for (u32 i = 0; i < 2 && r->usable; i++)
		if (r->ring_ns[i] > 0)
			printf(", ring %u %.2f ns per instruction", i ? 3 : 0, r->ring_ns[i]);
	printf("%s%s\n", r->why.text[0] ? ": " : "", r->why.text);
}

static void print_text(const struct check *c)
{
	const struct host_offer *h = &c->host;

	for (u32 i = 0; i < c->engines; i++)
		print_engine(&c->engine[i]);
	printf("engine auto   %s\n", automatic(c));
	printf("processor     %s, %s, %u online\n", h->vendor, h->model, h->processors);
	printf("features      %s%s%s%s%s%s%s\n", h->vmx ? "vmx " : "", h->svm ? "svm " : "",
	       h->bmi2 ? "bmi2 " : "", h->avx2 ? "avx2 " : "", h->avx512 ? "avx512 " : "",
	       h->invariant_tsc ? "invariant-tsc " : "", h->hypervisor ? "hypervisor" : "");
	printf("nested paging %s\n", nested_paging(h));
	printf("huge pages    %s\n", h->huge_pages);
	printf("io_uring      %s%s%s\n", yes(h->io_uring), h->io_uring ? "" : ": ",
	       h->io_uring_why);
	printf("memory        %lu MiB for guests\n", h->memory / MIB);
	for (u32 i = 0; i < c->advices; i++)
		printf("to get more   %s\n", c->advice[i]);
}

static json_t *speed(double ns)
{
	return ns > 0 ? json_real(ns) : json_null();
}

static json_t *engine_json(const struct engine_report *r)
{
	return json_pack("{s:s, s:b, s:b, s:s, s:o, s:o}", "name", r->engine->name, "usable",
			 r->usable, "native", r->native, "reason", r->why.text, "ring0_ns",
			 speed(r->ring_ns[0]), "ring3_ns", speed(r->ring_ns[1]));
}

static json_t *features_json(const struct host_offer *h)
{
	return json_pack("{s:b, s:b, s:b, s:b, s:b, s:b, s:b}", "vmx", h->vmx, "svm", h->svm,
			 "bmi2", h->bmi2, "avx2", h->avx2, "avx512", h->avx512, "invariant_tsc",
			 h->invariant_tsc, "hypervisor", h->hypervisor);
}

static int print_json(const struct check *c)
{
	const struct host_offer *h = &c->host;
	json_t *list = json_array(), *advice = json_array(), *all;
	int r;

	for (u32 i = 0; i < c->engines; i++)
		json_array_append_new(list, engine_json(&c->engine[i]));
	for (u32 i = 0; i < c->advices; i++)
		json_array_append_new(advice, json_string(c->advice[i]));
	all = json_pack("{s:o, s:s, s:{s:s, s:s, s:i, s:o}, s:s, s:s, s:b, s:I, s:o}", "engines",
			list, "auto", automatic(c), "processor", "vendor", h->vendor, "model",
			h->model, "online", (int)h->processors, "features", features_json(h),
			"nested_paging", nested_paging(h), "huge_pages", h->huge_pages, "io_uring",
			h->io_uring, "memory_bytes", (json_int_t)h->memory, "advice", advice);
	r = all ? json_dumpf(all, stdout, JSON_INDENT(2)) : -1;
	putchar('\n');
	json_decref(all);
	return r;
}

int cli_check(int argc, char **argv)
{
	static struct check c;
	bool json = argc > 1 && !strcmp(argv[1], "--json");

	if (argc > 1 + json)
		return cli_usage_error("check: '%s' is not an option; try 'doppel check --help'",
				       argv[1 + json]);
	for (u32 i = 0; engines[i] && i < ENGINES_MAX; i++, c.engines++)
		engine_examine(engines[i], &c.engine[i]);
	host_offer_find(&c.host);
	find_advice(&c);
	if (!json)
		print_text(&c);
	else if (print_json(&c))
		return STATUS_FAILURE;
	for (u32 i = 0; i < c.engines; i++)
		if (c.engine[i].usable)
			return STATUS_OK;
	return STATUS_FAILURE;
}
