#include "cli/options.h"

#include "base/size.h"
#include "cli/choose.h"
#include "cli/cli.h"
#include "device/chip/lapic.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Less than a kernel needs, but enough for a test program. */
#define RAM_MIN     (4 * MIB)
#define RAM_MAX     (1024 * GIB)
#define RAM_DEFAULT (512 * MIB)

const char cli_run_help[] =
	"Usage: doppel run --kernel FILE [options]\n"
	"\n"
	"What to boot:\n"
	"  --kernel FILE         Linux bzImage, ELF with a PVH note, or Multiboot kernel\n"
	"  --initrd FILE         initial RAM disk\n"
	"  --append TEXT         kernel command line; \"console=ttyS0\" shows a Linux guest\n"
	"                        on the serial port\n"
	"\n"
	"The machine (SIZE in K, M, G; a mere number is MiB):\n"
	"  -m, --memory SIZE     guest memory (default 512M)\n"
	"  -c, --cpus N          virtual processors, 1 to 64 (default 1)\n"
	"  --disk path=FILE[,format=raw][,readonly=on][,snapshot=on]\n"
	"                        a virtio disk; snapshot=on throws away what the guest\n"
	"                        writes; may be given several times\n"
	"  --net user[,hostfwd=tcp|udp:[HOST]:PORT-[GUEST]:PORT]...[,restrict=on]\n"
	"        | tap[,ifname=NAME] | none\n"
	"                        a virtio network interface (default user: the guest can\n"
	"                        reach what this host can; restrict=on: forwards only);\n"
	"                        may be given several times\n"
	"  --console WHERE       the serial port: stdio, pty, unix:PATH, file:PATH, none\n"
	"                        (default stdio)\n"
	"  --virtio-console WHERE\n"
	"                        a virtio console besides, with the same choices\n"
	"  --no-reboot           end when the guest reboots\n"
	"\n"
	"How it is run:\n"
	"  --engine NAME[,NAME][,OPTION=VALUE]...\n"
	"                        auto, or an engine that 'doppel check' lists (default\n"
	"                        auto); with two, Ctrl-a e or SIGUSR1 lets the other one\n"
	"                        go on with the guest; options (docs/engines.md) are the\n"
	"                        first one's\n"
	"  --doorbells vcpu|loop who does the work when a driver rings a virtio device:\n"
	"                        its processor, or the event loop while that goes on, if\n"
	"                        the engine can (kvm; default vcpu)\n"
	"  --sandbox on|off|log  system call filter (default on)\n"
	"  --stats               tell at the end, on standard error, where time went and\n"
	"                        what was counted (docs/statistics.md)\n"
	"  --json                with --stats: in one line of JSON\n"
	"  -v, --verbose         more messages; twice: still more\n"
	"  -h, --help            this text\n"
	"\n"
	"On a terminal, Ctrl-a x stops the machine; Ctrl-a h shows what else there is.\n"
	"SIGTERM, SIGINT, SIGHUP and SIGQUIT stop it, too: disks are flushed and the\n"
	"terminal is put back.\n"
	"\n"
	"Exit status:\n"
	"  0        the guest powered off, rebooted with --no-reboot, or Ctrl-a x\n"
	"  1        the machine could not start or go on; with --no-reboot also after a\n"
	"           panic that the guest's kernel tells of, or a triple fault\n"
	"  2        wrong command line\n"
	"  128 + N  stopped by signal N\n"
	"  else     2 N + 1: the guest wrote N to the debug exit port\n";

enum option_id {
	OPT_KERNEL = 256,
	OPT_INITRD,
	OPT_APPEND,
	OPT_DISK,
	OPT_NET,
	OPT_CONSOLE,
	OPT_VIRTIO_CONSOLE,
	OPT_NO_REBOOT,
	OPT_ENGINE,
	OPT_DOORBELLS,
	OPT_SANDBOX,
	OPT_STATS,
	OPT_JSON,
};

static const struct option options[] = {
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"append", required_argument, NULL, OPT_APPEND},
	{"memory", required_argument, NULL, 'm'},
	{"cpus", required_argument, NULL, 'c'},
	{"disk", required_argument, NULL, OPT_DISK},
	{"net", required_argument, NULL, OPT_NET},
	{"console", required_argument, NULL, OPT_CONSOLE},
	{"virtio-console", required_argument, NULL, OPT_VIRTIO_CONSOLE},
	{"no-reboot", no_argument, NULL, OPT_NO_REBOOT},
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"doorbells", required_argument, NULL, OPT_DOORBELLS},
	{"sandbox", required_argument, NULL, OPT_SANDBOX},
	{"stats", no_argument, NULL, OPT_STATS},
	{"json", no_argument, NULL, OPT_JSON},
	{"verbose", no_argument, NULL, 'v'},
	{"help", no_argument, NULL, 'h'},
	{0},
};

static int set_memory(struct run_options *o, const char *arg, struct err *e)
{
	if (!parse_size(arg, &o->ram_bytes))
		return err_set(e, -EINVAL, "-m '%s' is not a size such as 512M or 2G", arg);
	if (o->ram_bytes < RAM_MIN || o->ram_bytes > RAM_MAX)
		return err_set(e, -EINVAL, "-m %s: guest memory must be between %luM and %luG", arg,
			       RAM_MIN / MIB, RAM_MAX / GIB);
	o->ram_bytes = align_up(o->ram_bytes, PAGE_SIZE);
	return 0;
}

static int set_cpus(struct run_options *o, const char *arg, struct err *e)
{
	char *end;
	long n = strtol(arg, &end, 10);

	if (end == arg || *end || n < 1 || n > LAPIC_MAX)
		return err_set(e, -EINVAL, "-c '%s' is not a number from 1 to %d", arg, LAPIC_MAX);
	o->vcpus = (u32)n;
	return 0;
}

static int add_disk(struct run_options *o, const char *arg, struct err *e)
{
	if (o->disks == PC_DISKS_MAX)
		return err_set(e, -E2BIG, "more than %d disks", PC_DISKS_MAX);
	o->disk[o->disks] = calloc(1, sizeof(*o->disk[0]));
	if (!o->disk[o->disks])
		return err_set(e, -ENOMEM, "out of memory");
	return block_spec_parse(arg, o->disk[o->disks++], e);
}

static int add_net(struct run_options *o, const char *arg, struct err *e)
{
	int r;

	if (o->nets == PC_NETS_MAX)
		return err_set(e, -E2BIG, "more than %d network interfaces", PC_NETS_MAX);
	r = net_spec_parse(arg, &o->net[o->nets], e);
	if (!r && o->net[o->nets].kind != NET_NONE)
		o->nets++;
	o->net_given = true;
	return r;
}

static int set_sandbox(struct run_options *o, const char *arg, struct err *e)
{
	static const char *const names[] = {
		[SANDBOX_OFF] = "off", [SANDBOX_ENFORCE] = "on", [SANDBOX_LOG] = "log"};

	for (u32 i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(arg, names[i])) {
			o->sandbox = (enum sandbox_mode)i;
			return 0;
		}
	return err_set(e, -EINVAL, "--sandbox '%s' is none of on, off, log", arg);
}

/* How much of --engine's argument are names: options follow, each with a value. */
static u64 names_length(const char *arg)
{
	u64 n = 0;

	for (;;) {
		u64 end = n + strcspn(arg + n, ",");

		if (memchr(arg + n, '=', end - n))
			return n ? n - 1 : 0;
		if (!arg[end])
			return end;
		n = end + 1;
	}
}

static int set_doorbells(struct run_options *o, const char *arg, struct err *e)
{
	o->loop_doorbells = !strcmp(arg, "loop");
	if (o->loop_doorbells || !strcmp(arg, "vcpu"))
		return 0;
	return err_set(e, -EINVAL, "--doorbells '%s' is neither vcpu nor loop", arg);
}

static int set_engine(struct run_options *o, const char *arg, struct err *e)
{
	u64 n = names_length(arg);
	char first[sizeof(o->engine)];

	if (n >= sizeof(o->engine))
		return err_set(e, -EINVAL,
			       "--engine '%s': there is no such engine, see 'doppel check'", arg);
	snprintf(o->engine, sizeof(o->engine), "%.*s", (int)n, arg);
	o->engine_options = arg[n] ? arg + n + 1 : NULL;
	if (engine_check_names(o->engine, PC_ENGINES_MAX, e))
		return -EINVAL;
	if (!o->engine_options)
		return 0;
	snprintf(first, sizeof(first), "%.*s", (int)strcspn(o->engine, ","), o->engine);
	if (!engine_by_name(first))
		return err_set(e, -EINVAL, "--engine '%s': options need an engine's name", arg);
	if (engine_by_name(first)->check_options(o->engine_options, e))
		return err_prefix(e, "--engine");
	return 0;
}

static int apply(struct run_options *o, int id, const char *arg, struct err *e)
{
	switch (id) {
	case OPT_KERNEL: o->kernel = arg; return 0;
	case OPT_INITRD: o->initrd = arg; return 0;
	case OPT_APPEND: o->append = arg; return 0;
	case 'm': return set_memory(o, arg, e);
	case 'c': return set_cpus(o, arg, e);
	case OPT_DISK: return add_disk(o, arg, e);
	case OPT_NET: return add_net(o, arg, e);
	case OPT_CONSOLE: o->console = arg; return 0;
	case OPT_VIRTIO_CONSOLE: o->virtio_console = arg; return 0;
	case OPT_NO_REBOOT: o->no_reboot = true; return 0;
	case OPT_ENGINE: return set_engine(o, arg, e);
	case OPT_DOORBELLS: return set_doorbells(o, arg, e);
	case OPT_SANDBOX: return set_sandbox(o, arg, e);
	case OPT_STATS: o->stats = true; return 0;
	case OPT_JSON: o->json = true; return 0;
	case 'v': o->verbose++; return 0;
	case 'h': o->help = true; return 0;
	default: return err_set(e, -EINVAL, "unknown option");
	}
}

/* QEMU's users write long options with one dash. @arg is not passed yet if it has more letters. */
static int unknown_letter(const char *arg, struct err *e)
{
	for (u32 i = 0; arg && arg[0] == '-' && options[i].name; i++)
		if (!strcmp(arg + 1, options[i].name))
			return err_set(e, -EINVAL, "unknown option '%s'; did you mean '-%s'?", arg,
				       arg);
	return err_set(e, -EINVAL, "unknown option '-%c'", optopt);
}

/* What getopt_long() stumbled over. */
static int bad_option(int id, char **argv, struct err *e)
{
	/* With a long option optind is past it; a short one may be in the middle of a group. */
	if (id == ':')
		return err_set(e, -EINVAL, "option '%s' needs a value", argv[optind - 1]);
	if (optopt && optopt < 256)
		return unknown_letter(argv[optind], e);
	if (optopt)
		return err_set(e, -EINVAL, "option '%s' takes no value", argv[optind - 1]);
	return err_set(e, -EINVAL, "unknown option '%s'", argv[optind - 1]);
}

static int check_whole(struct run_options *o, struct err *e)
{
	if (!o->kernel)
		return err_set(e, -EINVAL, "nothing to boot: give --kernel FILE");
	if (o->json && !o->stats)
		return err_set(e, -EINVAL, "--json is the form of --stats, which is not given");
	if (o->virtio_console && !strcmp(o->console, "stdio") &&
	    !strcmp(o->virtio_console, "stdio"))
		return err_set(e, -EINVAL,
			       "only one console can be on stdio; give the serial port "
			       "another one with --console");
	if (o->net_given)
		return 0;
	return add_net(o, "user", e);
}

int run_options_parse(struct run_options *o, int argc, char **argv, struct err *e)
{
	int id, r = 0;

	*o = (struct run_options){
		.engine = "auto",
		.ram_bytes = RAM_DEFAULT,
		.vcpus = 1,
		.console = "stdio",
		.sandbox = SANDBOX_DEFAULT,
	};
	optind = 0;
	opterr = 0;
	while (!r && (id = getopt_long(argc, argv, "+:m:c:vh", options, NULL)) != -1)
		r = id == ':' || id == '?' ? bad_option(id, argv, e) : apply(o, id, optarg, e);
	if (!r && o->help)
		return 0;
	if (!r && optind < argc)
		r = err_set(e, -EINVAL, "'%s' is not an option%s", argv[optind],
			    o->kernel ? "" : "; a kernel is given by --kernel FILE");
	return r ? r : check_whole(o, e);
}

void run_options_free(struct run_options *o)
{
	while (o->disks)
		free(o->disk[--o->disks]);
}
