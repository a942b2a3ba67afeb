/*
 * doppel run: build a machine, run it until it ends, say how it ended.
 *
 * Signals that ask the process to end are read from a signalfd by the machine's loop, so they end
 * the machine in order: disks are flushed, the terminal is put back.
 */
#include "base/log.h"
#include "cli/choose.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/stats.h"
#include "host/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct run {
	struct pc *pc;
	struct loop_fd signals;
	u32 signal; /* that ended the machine; 0: none */
};

static void on_signal(void *opaque, u32 events)
{
	struct run *run = opaque;
	struct signalfd_siginfo info;

	(void)events;
	if (read(run->signals.fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGCONT) {
		/* A shell that stopped us has set the terminal to its liking. */
		terminal_resume();
		return;
	}
	if (info.ssi_signo == SIGUSR1) {
		pc_change_engine(run->pc);
		return;
	}
	run->signal = info.ssi_signo;
	pc_quit(run->pc);
}

/* Before any thread starts, so that all of them inherit the mask. */
static int open_signals(struct run *run, struct err *e)
{
	static const int sigs[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCONT, SIGUSR1};
	sigset_t set;

	sigemptyset(&set);
	for (u32 i = 0; i < ARRAY_SIZE(sigs); i++)
		sigaddset(&set, sigs[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* Both come as errors of the call, too. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	crash_install();
	run->signals = (struct loop_fd){
		.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK),
		.events = LOOP_READ,
		.ready = on_signal,
		.opaque = run,
	};
	if (run->signals.fd < 0)
		return err_set(e, -errno, "signalfd: %s", strerror(errno));
	return 0;
}

static int end_status(const struct run *run, enum pc_end end, u32 value)
{
	switch (end) {
	case PC_POWER_OFF:
	case PC_REBOOT: return STATUS_OK;
	case PC_DEBUG_EXIT: return (int)((value << 1 | 1) & 0xff);
	case PC_PANIC:
	case PC_TRIPLE_FAULT: return STATUS_FAILURE;
	case PC_QUIT:
		if (!run->signal)
			return STATUS_OK;
		log_warn("stopped by signal %u (%s)", run->signal, strsignal((int)run->signal));
		return STATUS_SIGNAL + (int)run->signal;
	case PC_FAILED: break;
	}
	return STATUS_FAILURE;
}

/*
 * Where the user may have translations kept, which he can do without (XDG base directories); "":
 * nowhere. Kernels that were fetched lie beside it, for anybody to read.
 */
static void find_cache_dir(char *dir, size_t size)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	int n = 0;

	if (cache && *cache == '/')
		n = snprintf(dir, size, "%s/doppel/translations", cache);
	else if (home && *home == '/')
		n = snprintf(dir, size, "%s/.cache/doppel/translations", home);
	if (n <= 0 || (size_t)n >= size)
		*dir = 0;
}

static int run_machine(struct run *run, const struct run_options *o, struct boot *boot,
		       struct err *e)
{
	struct pc_config config = {
		.ram_bytes = o->ram_bytes,
		.vcpus = o->vcpus,
		.boot = boot,
		.disks = o->disks,
		.nets = o->nets,
		.console = o->console,
		.virtio_console = o->virtio_console,
		.loop_doorbells = o->loop_doorbells,
		.no_reboot = o->no_reboot,
		.sandbox = o->sandbox,
		.stats = o->stats,
		.engine_options = o->engine_options,
	};
	char cache_dir[4096];
	struct err note = {0};
	enum pc_end end;
	u32 value = 0;
	int r, status;

	find_cache_dir(cache_dir, sizeof(cache_dir));
	config.cache_dir = cache_dir;
	for (u32 i = 0; i < o->disks; i++)
		config.disk[i] = o->disk[i];
	for (u32 i = 0; i < o->nets; i++)
		config.net[i] = &o->net[i];
	config.engines = engine_choose_all(o->engine, config.engine, PC_ENGINES_MAX, &note, e);
	if (!config.engines)
		return e->code;
	r = pc_create(&config, &run->pc, e);
	if (r)
		return r;
	if (note.text[0])
		log_warn("%s", note.text);
	r = loop_add(pc_loop(run->pc), &run->signals);
	if (r) {
		pc_destroy(run->pc);
		return err_set(e, r, "signalfd: %s", strerror(-r));
	}
	end = pc_run(run->pc, &value);
	loop_remove(pc_loop(run->pc), &run->signals);
	terminal_restore();
	status = end_status(run, end, value);
	if (o->stats)
		cli_print_stats(run->pc, o->json);
	pc_destroy(run->pc);
	return status;
}

static int open_and_run(const struct run_options *o, struct err *e)
{
	struct run run = {0};
	struct boot boot;
	int r = boot_open(&boot, o->kernel, o->initrd, o->append, e);

	if (r)
		return r;
	r = open_signals(&run, e);
	if (!r) {
		r = run_machine(&run, o, &boot, e);
		close(run.signals.fd);
	}
	boot_close(&boot);
	return r;
}

int cli_run(int argc, char **argv)
{
	struct run_options o;
	struct err e = {0};
	int r = run_options_parse(&o, argc, argv, &e);

	if (r) {
		r = cli_usage_error("run: %s", e.text);
	} else if (o.help) {
		fputs(cli_run_help, stdout);
	} else {
		log_set_level(o.verbose > 1 ? LOG_DEBUG : o.verbose ? LOG_INFO : LOG_WARN);
		if (cli_stdout_was_closed() && !strcmp(o.console, "stdio"))
			log_warn("standard output is closed; the guest's console text is dropped");
		r = open_and_run(&o, &e);
		if (r < 0) {
			log_error("%s", e.text);
			r = STATUS_FAILURE;
		}
	}
	run_options_free(&o);
	return r;
}
