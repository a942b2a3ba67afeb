#include "engine/soft/options.h"

#include "base/keyvalue.h"
#include "base/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const mechanisms[SOFT_MECHANISMS] = {
	[SOFT_GROUPS] = "groups",
	[SOFT_HOISTING] = "hoisting",
	[SOFT_DELTAS] = "deltas",
	[SOFT_STACK_PAGE] = "stack-page",
	[SOFT_LAZY_RSP] = "lazy-rsp",
	[SOFT_SIDE_EXITS] = "side-exits",
	[SOFT_LOOK_AHEAD] = "look-ahead",
	[SOFT_HOST_CALLS] = "host-calls",
	[SOFT_SECOND_LEVEL] = "second-level",
	[SOFT_PLACES] = "places",
	[SOFT_FAR_LINKS] = "far-links",
	[SOFT_LINKS] = "links",
	[SOFT_CROSS_LINKS] = "cross-links",
	[SOFT_IN_PLACE] = "in-place",
	[SOFT_GO_ON] = "go-on",
	[SOFT_FORMS] = "forms",
	[SOFT_WINDOWS] = "windows",
	[SOFT_KERNEL_WINDOW] = "kernel-window",
	[SOFT_DIRECT] = "direct",
};

static int set_code_cache(const char *value, struct soft_options *o, struct err *e)
{
	if (!parse_size(value, &o->code_cache) || o->code_cache < SOFT_CODE_CACHE_MIN ||
	    o->code_cache > SOFT_CODE_CACHE_MAX)
		return err_set(e, -EINVAL, "code-cache=%s is not a size from %luM to %luM", value,
			       SOFT_CODE_CACHE_MIN / MIB, SOFT_CODE_CACHE_MAX / MIB);
	return 0;
}

static int set_heat(const char *key, const char *value, u32 *heat, struct err *e)
{
	char *end;
	u64 n = strtoul(value, &end, 10);

	if (!*value || *end || *value == '-' || n > SOFT_HEAT_MAX)
		return err_set(e, -EINVAL, "%s=%s is not a number from 0 to %u", key, value,
			       SOFT_HEAT_MAX);
	*heat = (u32)n;
	return 0;
}

static int set_translations(const char *value, struct soft_options *o, struct err *e)
{
	u64 len = strlen(value);

	if (!strcmp(value, "off"))
		o->translations = TRANSLATIONS_OFF;
	else if (!strcmp(value, "on"))
		o->translations = TRANSLATIONS_ON;
	else if (!strcmp(value, "auto"))
		o->translations = TRANSLATIONS_AUTO;
	else if (!strchr(value, '/') || len >= sizeof(o->translations_dir))
		return err_set(e, -EINVAL,
			       "translations=%s is neither on, off, auto nor a directory (with a "
			       "'/' in it)",
			       value);
	else
		o->translations = TRANSLATIONS_IN;
	if (o->translations == TRANSLATIONS_IN)
		memcpy(o->translations_dir, value, len + 1);
	return 0;
}

static int set_switch(const char *key, const char *value, bool *on, struct err *e)
{
	if (strcmp(value, "off") && strcmp(value, "on"))
		return err_set(e, -EINVAL, "%s=%s is neither on nor off", key, value);
	*on = !strcmp(value, "on");
	return 0;
}

static int set_mechanism(u32 m, const char *value, struct soft_options *o, struct err *e)
{
	bool on = true;
	int r = set_switch(mechanisms[m], value, &on, e);

	if (on)
		o->off &= (u32)~BIT(m);
	else
		o->off |= (u32)BIT(m);
	return r;
}

static int unknown_option(const char *key, struct err *e)
{
	char known[400] = "code-cache direct-heat window-heat translations translations-check";
	u64 n = strlen(known);

	for (u32 m = 0; m < SOFT_MECHANISMS && n < sizeof(known); m++)
		n += (u64)snprintf(known + n, sizeof(known) - n, " %s", mechanisms[m]);
	return err_set(e, -EINVAL, "'%s' is not an option of the soft engine, which has: %s", key,
		       known);
}

static int set_option(void *opaque, const char *key, const char *value, struct err *e)
{
	struct soft_options *o = opaque;

	if (!strcmp(key, "code-cache"))
		return set_code_cache(value, o, e);
	if (!strcmp(key, "window-heat"))
		return set_heat(key, value, &o->window_heat, e);
	if (!strcmp(key, "direct-heat"))
		return set_heat(key, value, &o->direct_heat, e);
	if (!strcmp(key, "translations"))
		return set_translations(value, o, e);
	if (!strcmp(key, "translations-check"))
		return set_switch(key, value, &o->check_translations, e);
	for (u32 m = 0; m < SOFT_MECHANISMS; m++)
		if (!strcmp(key, mechanisms[m]))
			return set_mechanism(m, value, o, e);
	return unknown_option(key, e);
}

int soft_options_parse(const char *text, struct soft_options *o, struct err *e)
{
	*o = (struct soft_options){.code_cache = SOFT_CODE_CACHE,
				   .direct_heat = SOFT_DIRECT_HEAT,
				   .window_heat = SOFT_WINDOW_HEAT};
	return key_values(text, set_option, o, e);
}
