/*
 * seccomp filters built with libseccomp.
 *
 * The action is TRAP rather than KILL_PROCESS: the call is refused just the same, but the handler
 * gets to put the terminal back and say which call it was. An attacker who runs code in the process
 * gains nothing from the handler: every further forbidden call is refused as well.
 *
 * mmap, mprotect, clone, prctl, openat, ptrace and arch_prctl need an argument check to be worth
 * allowing: memory that is both writable and executable is never needed (translated code is mapped
 * twice), nor a new process, nor a file opened for writing, nor somebody else's process traced.
 */
#include "host/sandbox.h"

#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int base_calls[] = {
	SYS_futex,
	SYS_brk,
	SYS_munmap,
	SYS_mremap,
	SYS_madvise,
	SYS_rt_sigreturn,
	SYS_rt_sigprocmask,
	SYS_rt_sigaction,
	SYS_sigaltstack,
	SYS_restart_syscall,
	SYS_exit,
	SYS_exit_group,
	SYS_getpid,
	SYS_gettid,
	SYS_tgkill,
	SYS_clock_gettime,
	SYS_clock_nanosleep,
	SYS_nanosleep,
	SYS_sched_yield,
	SYS_set_robust_list,
	SYS_rseq,
	SYS_sched_getaffinity,
	SYS_write,
	SYS_gettimeofday,
	SYS_time,
	SYS_membarrier,
	SYS_getrandom,
	SYS_close,
};
const struct sandbox_list base_sandbox = {"base", base_calls, ARRAY_SIZE(base_calls)};

/* What a tracer does with processes that it has: it can get no others. */
static int add_tracing(scmp_filter_ctx ctx)
{
	static const int requests[] = {PTRACE_CONT,       PTRACE_SYSEMU,      PTRACE_GETREGS,
				       PTRACE_SETREGS,    PTRACE_GETREGSET,   PTRACE_SETREGSET,
				       PTRACE_GETSIGINFO, PTRACE_GETEVENTMSG, PTRACE_POKEUSER};
	static const int guards[] = {ARCH_GET_CPUID, ARCH_SET_CPUID};
	int r = 0;

	for (u32 i = 0; !r && i < ARRAY_SIZE(requests); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ptrace), 1,
				     SCMP_A0(SCMP_CMP_EQ, (u64)requests[i], 0));
	for (u32 i = 0; !r && i < ARRAY_SIZE(guards); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(arch_prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, (u64)guards[i], 0));
	return r;
}

/* Calls allowed with conditions. */
static int add_conditional(scmp_filter_ctx ctx)
{
	const u64 wx = PROT_WRITE | PROT_EXEC;
	const u64 write_flags = O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE;
	const u64 prot[] = {0, PROT_WRITE, PROT_EXEC};
	int r = 0;

	for (u32 i = 0; !r && i < ARRAY_SIZE(prot); i++) {
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, wx, prot[i]));
		if (!r)
			r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
					     SCMP_A2(SCMP_CMP_MASKED_EQ, wx, prot[i]));
	}
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				     SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME, 0));
	/* Reading files only. */
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, write_flags, O_RDONLY));
	/* clone3 keeps its flags in memory where a filter cannot look: the C library falls back. */
	if (!r)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return r ? r : add_tracing(ctx);
}

static int add_lists(scmp_filter_ctx ctx, const struct sandbox_list *const *list)
{
	for (; *list; list++)
		for (u32 i = 0; i < (*list)->count; i++) {
			int r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, (*list)->nr[i], 0);

			if (r && r != -EEXIST)
				return r;
		}
	return 0;
}

static int build_and_load(scmp_filter_ctx ctx, enum sandbox_scope scope,
			  const struct sandbox_list *const *list)
{
	int r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 1);

	if (!r && scope == SANDBOX_PROCESS)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	if (!r)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!r)
		r = add_lists(ctx, list);
	if (!r)
		r = add_conditional(ctx);
	return r ? r : seccomp_load(ctx);
}

int sandbox_install(enum sandbox_mode mode, enum sandbox_scope scope,
		    const struct sandbox_list *const *list, struct err *e)
{
	scmp_filter_ctx ctx;
	int r;

	if (mode == SANDBOX_OFF)
		return 0;
	ctx = seccomp_init(mode == SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP);
	if (!ctx)
		return err_set(e, -ENOMEM, "sandbox: cannot build a filter");
	r = build_and_load(ctx, scope, list);
	seccomp_release(ctx);
	if (r)
		return err_set(e, r, "sandbox: cannot install the system call filter: %s",
			       strerror(-r));
	return 0;
}

/* ---- files ---- */

/* Everything but removing: a console's socket goes when the machine does. */
static const u64 file_rights =
	LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE |
	LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |
	LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
	LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;

static int allow_reading(int ruleset, const char *path)
{
	struct landlock_path_beneath_attr rule = {
		.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE,
		.parent_fd = open(path, O_PATH | O_CLOEXEC),
	};
	long r;

	if (rule.parent_fd < 0)
		return 0;
	r = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
	if (r)
		r = -errno;
	close(rule.parent_fd);
	return (int)r;
}

int sandbox_confine_files(enum sandbox_mode mode, const char *const *readable, struct err *e)
{
	const struct landlock_ruleset_attr attr = {.handled_access_fs = file_rights};
	int ruleset, r = 0;

	if (mode != SANDBOX_ENFORCE)
		return 0;
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
	if (ruleset < 0)
		return 0; /* not built in, or not enabled */
	for (; *readable && !r; readable++)
		r = allow_reading(ruleset, *readable);
	if (!r && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		r = -errno;
	if (!r && syscall(SYS_landlock_restrict_self, ruleset, 0))
		r = -errno;
	close(ruleset);
	return r ? err_set(e, r, "sandbox: cannot restrict access to files: %s", strerror(-r)) : 0;
}
