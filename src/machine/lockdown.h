/* The process gives up what it no longer needs once the machine is complete. */
#pragma once

#include "host/sandbox.h"

/* All files are open: this thread and those it starts will open no others. 0 or -errno. */
int lockdown_files(enum sandbox_mode mode, struct err *e);

/* Install the system-call filter for all threads, those to come included; @engine: @count lists of
 * what engines need, NULL among them for nothing. 0 or -errno with @e. */
int lockdown(enum sandbox_mode mode, const struct sandbox_list *const *engine, u32 count,
	     struct err *e);
