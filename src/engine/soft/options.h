/*
 * Options of the soft engine: --engine soft,code-cache=SIZE,MECHANISM=on|off,...
 *
 * Each mechanism that only makes guests faster can be switched off, so that tests can run without
 * it and a measurement can tell what it brings.
 */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum soft_mechanism {
	SOFT_GROUPS,        /* accesses that share one check */
	SOFT_HOISTING,      /* checks made further up, where flags are dead */
	SOFT_DELTAS,        /* base registers kept in addresses, with the page's delta as index */
	SOFT_STACK_PAGE,    /* the page the stack was last written in, before the TLB */
	SOFT_LAZY_RSP,      /* rsp moved once per run of pushes and pops */
	SOFT_SIDE_EXITS,    /* blocks that go on behind forward branches */
	SOFT_LOOK_AHEAD,    /* liveness of flags beyond the block */
	SOFT_HOST_CALLS,    /* guest calls and returns by host calls and returns */
	SOFT_SECOND_LEVEL,  /* of the indirect-branch table */
	SOFT_PLACES,        /* kernel code made for the address it runs at */
	SOFT_FAR_LINKS,     /* between its pages */
	SOFT_LINKS,         /* branches patched to lead to blocks, instead of to the table */
	SOFT_CROSS_LINKS,   /* those to other pages too, with a look at where the page is */
	SOFT_IN_PLACE,      /* system instructions in translated code */
	SOFT_GO_ON,         /* from system instructions and exceptions on without the run loop */
	SOFT_FORMS,         /* decoding by memory */
	SOFT_WINDOWS,       /* memory of hot address spaces mapped for the host's MMU */
	SOFT_KERNEL_WINDOW, /* and that of the kernel */
	SOFT_DIRECT,        /* their code run in a process of its own */
	SOFT_MECHANISMS,
};

/* Whether translations are kept from run to run. */
enum soft_translations {
	TRANSLATIONS_AUTO, /* if the user's directory for that is there */
	TRANSLATIONS_OFF,
	TRANSLATIONS_ON, /* the directory is made */
	TRANSLATIONS_IN, /* one that the option names, made likewise */
};

struct soft_options {
	u64 code_cache;  /* bytes */
	u32 direct_heat; /* ticks in user code before an address space gets a box; 0: none are
			    waited for */
	u32 window_heat; /* ticks in user code before it gets a window instead; 0: none are
			    waited for */
	u32 off;         /* BIT(enum soft_mechanism) of those switched off */
	enum soft_translations translations;
	bool check_translations;    /* translate as well, and compare */
	char translations_dir[256]; /* TRANSLATIONS_IN */
};

enum {
	SOFT_CODE_CACHE_MIN = 8 << 20,
	SOFT_CODE_CACHE_MAX = 1 << 30,
	SOFT_CODE_CACHE = 256 << 20,
	SOFT_WINDOW_HEAT = 8,
	SOFT_DIRECT_HEAT = 2,
	SOFT_HEAT_MAX = 10000,
	SOFT_DIRECT_CPUS = 16 /* vCPUs that may have boxes */
};

/* @text may be NULL. 0, or -EINVAL with what is wrong in @e. */
int soft_options_parse(const char *text, struct soft_options *o, struct err *e);

static inline bool soft_uses(const struct soft_options *o, enum soft_mechanism m)
{
	return !(o->off & BIT(m));
}
