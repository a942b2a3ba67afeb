/* Turns --net into an open back end, or into one line that says what is wrong. */
#include "net/backend.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PART_MAX = 128 };

/* Copy up to the next @stop; returns what follows it, or NULL when there is no @stop or no space.
 */
static const char *take_until(const char *text, char stop, char *out, size_t size)
{
	const char *end = strchr(text, stop);
	size_t n = end ? (size_t)(end - text) : 0;

	if (!end || n >= size)
		return NULL;
	memcpy(out, text, n);
	out[n] = '\0';
	return end + 1;
}

static bool parse_address(const char *text, struct in_addr *a)
{
	a->s_addr = 0;
	return !*text || inet_pton(AF_INET, text, a) == 1;
}

static bool parse_port(const char *text, u16 *port)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	*port = (u16)v;
	return *text >= '0' && *text <= '9' && !*end && v && v <= 65535;
}

/* tcp:[ADDR]:PORT-[ADDR]:PORT */
static int parse_forward(const char *text, struct net_spec *spec, struct err *e)
{
	struct net_forward f = {0};
	char proto[8], haddr[32], hport[8], gaddr[32];
	const char *p = take_until(text, ':', proto, sizeof(proto));

	p = p ? take_until(p, ':', haddr, sizeof(haddr)) : NULL;
	p = p ? take_until(p, '-', hport, sizeof(hport)) : NULL;
	p = p ? take_until(p, ':', gaddr, sizeof(gaddr)) : NULL;
	if (!p)
		return err_set(e, -EINVAL,
			       "hostfwd=%s is not of the form tcp:[ADDRESS]:PORT-[ADDRESS]:PORT",
			       text);
	f.udp = !strcmp(proto, "udp");
	if (!f.udp && strcmp(proto, "tcp"))
		return err_set(e, -EINVAL, "hostfwd=%s: \"%s\" is neither tcp nor udp", text,
			       proto);
	if (!parse_address(haddr, &f.host) || !parse_address(gaddr, &f.guest))
		return err_set(e, -EINVAL, "hostfwd=%s: not an IPv4 address", text);
	if (!parse_port(hport, &f.host_port) || !parse_port(p, &f.guest_port))
		return err_set(e, -EINVAL, "hostfwd=%s: a port is a number from 1 to 65535", text);
	if (spec->forwards == NET_FORWARDS_MAX)
		return err_set(e, -EINVAL, "more than %d hostfwd", NET_FORWARDS_MAX);
	spec->forward[spec->forwards++] = f;
	return 0;
}

static int parse_restrict(const char *value, struct net_spec *spec, struct err *e)
{
	spec->isolated = !strcmp(value, "on");
	if (spec->isolated || !strcmp(value, "off"))
		return 0;
	return err_set(e, -EINVAL, "restrict takes on or off, not \"%s\"", value);
}

static int parse_ifname(const char *value, struct net_spec *spec, struct err *e)
{
	size_t n = strlen(value);

	if (!n || n >= sizeof(spec->ifname) || strchr(value, '/'))
		return err_set(e, -EINVAL, "ifname=%s is not an interface name", value);
	memcpy(spec->ifname, value, n + 1);
	return 0;
}

static int parse_kind(const char *part, struct net_spec *spec, struct err *e)
{
	if (!strcmp(part, "user"))
		spec->kind = NET_USER;
	else if (!strcmp(part, "tap"))
		spec->kind = NET_TAP;
	else if (!strcmp(part, "none"))
		spec->kind = NET_NONE;
	else
		return err_set(e, -EINVAL, "\"%s\" is none of user, tap, none", part);
	return 0;
}

static int parse_option(char *part, struct net_spec *spec, struct err *e)
{
	char *value = strchr(part, '=');

	if (value)
		*value++ = '\0';
	if (value && spec->kind == NET_USER && !strcmp(part, "hostfwd"))
		return parse_forward(value, spec, e);
	if (value && spec->kind == NET_USER && !strcmp(part, "restrict"))
		return parse_restrict(value, spec, e);
	if (value && spec->kind == NET_TAP && !strcmp(part, "ifname"))
		return parse_ifname(value, spec, e);
	return err_set(e, -EINVAL, "unknown option \"%s\"", part);
}

int net_spec_parse(const char *text, struct net_spec *spec, struct err *e)
{
	char part[PART_MAX];
	int ret = 0;

	memset(spec, 0, sizeof(*spec));
	for (bool first = true; !ret && text; first = false) {
		size_t n = strcspn(text, ",");

		if (n >= sizeof(part)) {
			ret = err_set(e, -EINVAL, "an option is too long");
			break;
		}
		memcpy(part, text, n);
		part[n] = '\0';
		text = text[n] ? text + n + 1 : NULL;
		ret = first ? parse_kind(part, spec, e) : parse_option(part, spec, e);
	}
	if (ret)
		err_prefix(e, "net");
	return ret;
}

int net_open(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	     struct net_backend **n, struct err *e)
{
	int ret = 0;

	*n = NULL;
	switch (spec->kind) {
	case NET_NONE: break;
	case NET_USER: ret = user_create(spec, loop, lock, n, e); break;
	case NET_TAP: ret = tap_create(spec, loop, lock, n, e); break;
	}
	if (ret)
		err_prefix(e, "net");
	return ret;
}
