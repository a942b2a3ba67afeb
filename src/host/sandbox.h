/*
 * System-call filter. Code that makes system calls while the guest runs says which in a list beside
 * it; whoever starts a thread role joins the lists of what that role runs and installs the filter.
 * Anything else raises SIGSYS, which crash_install() turns into one line and the end of the
 * process.
 *
 * Filters stack: a thread may narrow what the process-wide filter left.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

struct sandbox_list {
	const char *who;
	const int *nr; /* SYS_* */
	u32 count;
};

enum sandbox_mode {
	SANDBOX_OFF,
	SANDBOX_ENFORCE,
	SANDBOX_LOG, /* allow everything, let the kernel's audit log name what would be refused */
};

enum sandbox_scope { SANDBOX_THREAD, SANDBOX_PROCESS };

/* What the C library itself needs in any thread: memory, locks, signals, thread exit. */
extern const struct sandbox_list base_sandbox;

/* Lists of the modules in this folder. */
extern const struct sandbox_list loop_sandbox;
extern const struct sandbox_list chardev_sandbox;

/*
 * Give up new privileges and allow only the calls in @list (NULL-terminated array). Returns 0 or
 * -errno with @e; -ENOSYS when the host kernel has no seccomp filters.
 */
int sandbox_install(enum sandbox_mode mode, enum sandbox_scope scope,
		    const struct sandbox_list *const *list, struct err *e);

/*
 * From here on, this thread and those it starts can open nothing but the files in @readable (paths,
 * NULL-terminated; missing ones are skipped), for reading; what is open stays usable. Does nothing
 * on a host kernel without Landlock. 0 or -errno with @e.
 */
int sandbox_confine_files(enum sandbox_mode mode, const char *const *readable, struct err *e);
