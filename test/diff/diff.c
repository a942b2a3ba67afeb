/*
 * The differential test's main program: generate, run, compare, minimise, report.
 *
 * Exit status: 0 all equal, 1 a difference (printed), 2 it could not run.
 */
#include "diff.h"

#include <getopt.h>
#include <regex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

struct options {
	u64 seed, count, skip;
	u32 seconds;
	const char *only;
	const char *engine_options;
	bool keep_going, singles, undecodable;
	u32 bits;
};

struct diff {
	struct options opt;
	struct layout layout;
	struct guest *guest;
	struct generator *gen;
	struct test_case *t;
	struct outcome *native, *other;
	u8 *memory;
	u64 failures;
};

/* For the signal handlers, which have no argument. */
static struct diff *current;
static volatile u64 ticks_case; /* case seen at the previous tick */

/* Nothing takes a second: whatever still runs the same case by then is stuck. */
static void on_tick(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	if (current->t->number == ticks_case) {
		native_stop(context);
		guest_kick(current->guest);
	}
	ticks_case = current->t->number;
}

static void on_crash(void)
{
	fprintf(stderr, "diff: crash of the engine with seed %lu:\n", current->opt.seed);
	case_print(current->t, stderr);
}

/* Run case @t everywhere; true when all agree. Differences go to @f unless it is NULL. */
static bool run_case(struct diff *d, const struct test_case *t, FILE *f)
{
	static const char *const name[] = {"interpreted", "translated", "again"};
	bool same = true;

	case_memory(t, d->gen->pattern, d->memory);
	native_run(t, d->memory, d->native);
	for (u32 how = GUEST_INTERPRETED; how <= GUEST_AGAIN; how++) {
		bool ok;

		/* Code that changed itself is not what the previous run left. */
		if (how == GUEST_AGAIN &&
		    memcmp(d->native->memory + DATA_PAGES * PAGE_SIZE,
			   d->memory + DATA_PAGES * PAGE_SIZE, CODE_PAGES * PAGE_SIZE))
			break;
		guest_run(d->guest, t, d->memory, how, d->other);
		ok = outcome_compare(&d->layout, t, d->native, d->other, how != GUEST_INTERPRETED,
				     name[how], NULL);
		if (!ok && f) {
			fprintf(f, " %s (native: exception %u at %lx, error %x)\n", name[how],
				d->native->vector, d->native->rip, d->native->error);
			outcome_compare(&d->layout, t, d->native, d->other,
					how != GUEST_INTERPRETED, name[how], f);
		}
		same &= ok;
	}
	return same;
}

static bool still_fails(struct diff *d, const struct test_case *t)
{
	return !run_case(d, t, NULL);
}

static bool drop_item(struct test_case *t, u32 n)
{
	if (t->items == 1)
		return false;
	t->items--;
	memmove(&t->item[n], &t->item[n + 1], (t->items - n) * sizeof(t->item[0]));
	for (u32 k = 0; k < t->items; k++)
		if (t->item[k].target > n)
			t->item[k].target--;
	return true;
}

static void minimise_items(struct diff *d, struct test_case *t)
{
	struct test_case *try = d->t;

	for (u32 n = t->items; n-- > 0;) {
		*try = *t;
		if (drop_item(try, n) && still_fails(d, try))
			*t = *try;
	}
}

static void minimise_registers(struct diff *d, struct test_case *t)
{
	struct test_case *try = d->t;

	for (u32 n = 0; n <= GPR_COUNT; n++) {
		*try = *t;
		if (n == RCX) /* may count a loop */
			continue;
		if (n < GPR_COUNT)
			try->r[n] = 0;
		else
			try->flags = 0;
		if (still_fails(d, try))
			*t = *try;
	}
}

/* The initial vector state as a whole, or only its 64-bit words one by one as zero. */
static void minimise_vectors(struct diff *d, struct test_case *t)
{
	struct test_case *try = d->t;
	const u32 mxcsr = 0x1f80;

	*try = *t;
	memset(try->xsave, 0, sizeof(try->xsave));
	memcpy(try->xsave + 24, &mxcsr, 4);
	if (still_fails(d, try))
		*t = *try;
}

static void report(struct diff *d)
{
	struct test_case *t = aligned_alloc(64, align_up(sizeof(*t), 64));

	d->failures++;
	if (!t)
		abort();
	*t = *d->t;
	fprintf(stderr, "seed %lu: ", d->opt.seed);
	case_print(t, stderr);
	if (!still_fails(d, t)) {
		fprintf(stderr, " not reproducible on its own\n");
		free(t);
		return;
	}
	minimise_items(d, t);
	minimise_registers(d, t);
	minimise_vectors(d, t);
	fprintf(stderr, "reduced: ");
	case_print(t, stderr);
	run_case(d, t, stderr);
	fputc('\n', stderr);
	free(t);
}

static bool goes_on(const struct diff *d, u64 done, time_t end)
{
	if (d->failures && !d->opt.keep_going)
		return false;
	if (d->failures >= 50)
		return false;
	if (d->opt.count && done >= d->opt.count)
		return false;
	return !d->opt.seconds || time(NULL) < end;
}

static int loop(struct diff *d)
{
	struct test_case *kept = aligned_alloc(64, align_up(sizeof(*kept), 64));
	time_t end = time(NULL) + d->opt.seconds;
	u64 done = 0;

	if (!kept)
		return 2;
	for (; goes_on(d, done, end); done++) {
		if (!generator_next(d->gen, d->t)) {
			fprintf(stderr, "diff: no such instruction\n");
			free(kept);
			return 2;
		}
		if (done < d->opt.skip || run_case(d, d->t, NULL))
			continue;
		*kept = *d->t;
		report(d);
		*d->t = *kept;
	}
	free(kept);
	printf("%lu cases, seed %lu, %lu differences\n", done, d->opt.seed, d->failures);
	return d->failures ? 1 : 0;
}

static int usage(void)
{
	fputs("usage: diff [--seed N] [--count N] [--time SECONDS] [--only REGEX] [--bits 32|64]\n"
	      "            [--singles] [--undecodable] [--keep-going] [--skip N] [--engine "
	      "OPTIONS]\n"
	      "Compares the host CPU, the interpreter and translated code on random instructions.\n"
	      "--only selects mnemonics (lower case); --skip N generates N cases without "
	      "running.\n",
	      stderr);
	return 2;
}

static bool parse(struct options *o, int argc, char **argv)
{
	static const struct option table[] = {
		{"seed", 1, NULL, 's'},
		{"count", 1, NULL, 'c'},
		{"time", 1, NULL, 't'},
		{"only", 1, NULL, 'o'},
		{"bits", 1, NULL, 'b'},
		{"singles", 0, NULL, '1'},
		{"keep-going", 0, NULL, 'k'},
		{"skip", 1, NULL, 'n'},
		{"undecodable", 0, NULL, 'u'},
		{"engine", 1, NULL, 'e'},
		{NULL, 0, NULL, 0},
	};
	int c;

	*o = (struct options){.seed = (u64)time(NULL)};
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'c': o->count = strtoull(optarg, NULL, 0); break;
		case 't': o->seconds = (u32)strtoul(optarg, NULL, 0); break;
		case 'o': o->only = optarg; break;
		case 'e': o->engine_options = optarg; break;
		case 'b': o->bits = (u32)strtoul(optarg, NULL, 0); break;
		case 'n': o->skip = strtoull(optarg, NULL, 0); break;
		case '1': o->singles = true; break;
		case 'u': o->undecodable = true; break;
		case 'k': o->keep_going = true; break;
		default: return false;
		}
	}
	return optind == argc && (!o->bits || o->bits == 32 || o->bits == 64);
}

static void *allocate(size_t size)
{
	void *p = aligned_alloc(64, align_up(size, 64));

	if (!p)
		exit(2);
	memset(p, 0, size);
	return p;
}

static int prepare(struct diff *d, regex_t *only)
{
	struct itimerval tick = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	struct sigaction sa = {.sa_sigaction = on_tick,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	int r;

	d->gen = allocate(sizeof(*d->gen));
	d->t = allocate(sizeof(*d->t));
	d->native = allocate(sizeof(*d->native));
	d->other = allocate(sizeof(*d->other));
	d->memory = allocate(MEMORY_BYTES);
	r = native_map();
	d->guest = guest_create(&d->layout, d->opt.engine_options);
	if (!d->guest)
		return 2;
	if (r == 0)
		r = native_init(&d->layout);
	if (r < 0) {
		fprintf(stderr, "diff: cannot run code natively: %s\n", strerror(-r));
		return 2;
	}
	current = d;
	native_on_crash(on_crash);
	generator_init(d->gen, d->opt.seed, &d->layout);
	d->gen->only = d->opt.only ? only : NULL;
	d->gen->bits_only = d->opt.bits;
	d->gen->singles = d->opt.singles;
	d->gen->undecodable = d->opt.undecodable;
	sigaction(SIGALRM, &sa, NULL);
	return setitimer(ITIMER_REAL, &tick, NULL) < 0 ? 2 : 0;
}

static void finish(struct diff *d)
{
	const struct itimerval never = {0};

	setitimer(ITIMER_REAL, &never, NULL);
	if (d->guest)
		guest_destroy(d->guest);
	free(d->gen);
	free(d->t);
	free(d->native);
	free(d->other);
	free(d->memory);
}

int main(int argc, char **argv)
{
	struct diff d = {0};
	regex_t only;
	int r;

	if (!parse(&d.opt, argc, argv))
		return usage();
	if (d.opt.only && regcomp(&only, d.opt.only, REG_EXTENDED | REG_NOSUB))
		return usage();
	r = prepare(&d, &only);
	if (r == 0)
		r = loop(&d);
	finish(&d);
	if (d.opt.only)
		regfree(&only);
	return r;
}
