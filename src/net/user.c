/*
 * Theory of operation
 *
 * --net user: libslirp plays a router with DHCP, DNS and NAT on top of ordinary sockets of the
 * host, so the guest has a network without privileges. The guest is 10.0.2.15, the router 10.0.2.2,
 * the name server 10.0.2.3.
 *
 * libslirp wants to be asked before each sleep which descriptors and timeout it needs, and told
 * after it which are ready. The sockets sit in an epoll instance of our own, itself one descriptor
 * of the VM's loop. settle() asks libslirp and changes only what differs from last time; it ends
 * every entry into libslirp, so that the picture is right whenever the loop sleeps. The entries
 * are: frames from the guest (send), ready sockets, the timeout, and libslirp's own timers.
 *
 * After a batch from the guest the sockets are polled at once: an acknowledgement usually makes
 * room for data that waits in a socket, and waking the loop's thread to fetch it costs 50 us.
 *
 * MTU: large packets are the cheapest speed-up, one frame instead of a dozen. libslirp has no
 * window scaling, so 64 KiB are in flight at most; with packets of a quarter of that, the
 * receiver's rule of acknowledging every second one keeps the pipe full. A download measured 190
 * MB/s with an MTU of 1500, 580 with this one, 230 with 65520.
 *
 * libslirp is not thread safe; everything here is under the machine lock.
 */
#include "net/backend.h"
#include "net/backlog.h"

#include "base/iov.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	USER_MTU = 16384 - 40,
	READY_BATCH = 64,
	IDLE_TIMEOUT_MS = 1000, /* what libslirp asks for when nothing is going on */
	FD_LIMIT = 1 << 16,
};

/* A socket libslirp is interested in, indexed by descriptor. */
struct watch {
	u8 wanted;   /* SLIRP_POLL_*, from the last settle() */
	u8 armed;    /* what our epoll instance holds; 0: nothing */
	u8 ready;    /* SLIRP_POLL_*, for slirp_pollfds_poll() */
	bool listed; /* in user.active[] */
};

struct user {
	struct net_backend backend;
	Slirp *slirp;
	struct loop *loop;
	pthread_mutex_t *lock;
	struct loop_fd sockets; /* the epoll instance */
	struct loop_timer timeout;
	struct watch *watch;
	int *active; /* descriptors wanted or armed */
	u32 watches, actives;
	struct backlog backlog;
	u8 frame[NET_FRAME_MAX];
};

struct user_timer {
	struct loop_timer timer;
	struct user *user;
	SlirpTimerCb callback;
	void *opaque;
};

static struct user *to_user(struct net_backend *n)
{
	return container_of(n, struct user, backend);
}

/* Sockets
 * ------------------------------------------------------------------------------------------ */

static bool watch_reserve(struct user *u, int fd)
{
	u32 count = u->watches ? u->watches : 64;
	struct watch *watch;
	int *active;

	if (fd < 0 || fd >= FD_LIMIT)
		return false;
	if ((u32)fd < u->watches)
		return true;
	while (count <= (u32)fd)
		count *= 2;
	active = realloc(u->active, count * sizeof(*active));
	if (!active)
		return false;
	u->active = active;
	watch = realloc(u->watch, count * sizeof(*watch));
	if (!watch)
		return false;
	memset(watch + u->watches, 0, (count - u->watches) * sizeof(*watch));
	u->watch = watch;
	u->watches = count;
	return true;
}

static u32 to_epoll(u8 events)
{
	return (events & SLIRP_POLL_IN ? EPOLLIN : 0) | (events & SLIRP_POLL_OUT ? EPOLLOUT : 0) |
	       (events & SLIRP_POLL_PRI ? EPOLLPRI : 0);
}

static u8 from_epoll(u32 events)
{
	return (events & EPOLLIN ? SLIRP_POLL_IN : 0) | (events & EPOLLOUT ? SLIRP_POLL_OUT : 0) |
	       (events & EPOLLPRI ? SLIRP_POLL_PRI : 0) | (events & EPOLLERR ? SLIRP_POLL_ERR : 0) |
	       (events & EPOLLHUP ? SLIRP_POLL_HUP : 0);
}

/* The descriptor may have been closed, or closed and opened again, behind our back. */
static void watch_arm(struct user *u, int fd)
{
	struct watch *w = &u->watch[fd];
	struct epoll_event ev = {.events = to_epoll(w->wanted), .data.fd = fd};

	if (!w->wanted)
		epoll_ctl(u->sockets.fd, EPOLL_CTL_DEL, fd, &ev);
	else if (epoll_ctl(u->sockets.fd, EPOLL_CTL_MOD, fd, &ev) && errno == ENOENT)
		epoll_ctl(u->sockets.fd, EPOLL_CTL_ADD, fd, &ev);
	w->armed = w->wanted;
}

/* libslirp opened or is about to close @fd: nothing known of that number holds any more. */
static void forget_fd(int fd, void *opaque)
{
	struct user *u = opaque;

	if (fd < 0 || (u32)fd >= u->watches)
		return;
	u->watch[fd].wanted = 0;
	if (u->watch[fd].armed)
		watch_arm(u, fd);
}

static int want_fd(int fd, int events, void *opaque)
{
	struct user *u = opaque;

	if (!watch_reserve(u, fd))
		return -1;
	if (!u->watch[fd].listed)
		u->active[u->actives++] = fd;
	u->watch[fd].listed = true;
	u->watch[fd].wanted = (u8)events;
	u->watch[fd].ready = 0;
	return fd;
}

static int ready_events(int index, void *opaque)
{
	struct user *u = opaque;
	int ready;

	if (index < 0 || (u32)index >= u->watches)
		return 0;
	ready = u->watch[index].ready;
	u->watch[index].ready = 0;
	return ready;
}

static void update_watches(struct user *u)
{
	u32 kept = 0;

	for (u32 i = 0; i < u->actives; i++) {
		int fd = u->active[i];
		struct watch *w = &u->watch[fd];

		if (w->wanted != w->armed)
			watch_arm(u, fd);
		w->listed = w->wanted;
		if (w->listed)
			u->active[kept++] = fd;
	}
	u->actives = kept;
}

/* Ask libslirp what to wait for, and tell the front end that this batch is over. */
static void settle(struct user *u)
{
	u32 timeout = IDLE_TIMEOUT_MS;

	u->backend.front.flush(u->backend.front.opaque);
	for (u32 i = 0; i < u->actives; i++)
		u->watch[u->active[i]].wanted = 0;
	slirp_pollfds_fill(u->slirp, &timeout, want_fd, u);
	update_watches(u);
	if (u->actives || timeout < IDLE_TIMEOUT_MS)
		loop_timer_arm(u->loop, &u->timeout, host_clock_ns() + timeout * 1000000ul);
	else
		loop_timer_cancel(u->loop, &u->timeout);
}

/* True when some socket is ready. */
static bool collect_ready(struct user *u)
{
	struct epoll_event ev[READY_BATCH];
	int n = epoll_wait(u->sockets.fd, ev, READY_BATCH, 0);

	for (int i = 0; i < n; i++)
		u->watch[ev[i].data.fd].ready = from_epoll(ev[i].events);
	return n > 0;
}

static void sockets_ready(void *opaque, u32 events)
{
	struct user *u = opaque;

	(void)events;
	pthread_mutex_lock(u->lock);
	if (collect_ready(u)) {
		slirp_pollfds_poll(u->slirp, 0, ready_events, u);
		settle(u);
	}
	pthread_mutex_unlock(u->lock);
}

static void timeout_fired(void *opaque)
{
	struct user *u = opaque;

	pthread_mutex_lock(u->lock);
	/* In case a descriptor was replaced without a word: see watch_arm(). */
	for (u32 i = 0; i < u->actives; i++)
		watch_arm(u, u->active[i]);
	collect_ready(u);
	slirp_pollfds_poll(u->slirp, 0, ready_events, u);
	settle(u);
	pthread_mutex_unlock(u->lock);
}

/* What libslirp calls
 * ------------------------------------------------------------------------------ */

static ssize_t frame_for_guest(const void *buf, size_t len, void *opaque)
{
	struct user *u = opaque;
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
	/* libslirp makes the checksums itself or has checked what it passes on. */
	static const struct net_offload valid = {.flags = NET_DATA_VALID};

	if (len > NET_FRAME_MAX)
		return -1;
	if (!backlog_is_empty(&u->backlog) ||
	    !u->backend.front.receive(u->backend.front.opaque, &iov, 1, &valid))
		backlog_add(&u->backlog, buf, (u32)len, &valid);
	return (ssize_t)len;
}

static void guest_error(const char *msg, void *opaque)
{
	(void)opaque;
	log_guest("net: %s", msg);
}

static int64_t clock_ns(void *opaque)
{
	(void)opaque;
	return (int64_t)host_clock_ns();
}

static void timer_fired(void *opaque)
{
	struct user_timer *t = opaque;

	pthread_mutex_lock(t->user->lock);
	t->callback(t->opaque);
	settle(t->user);
	pthread_mutex_unlock(t->user->lock);
}

static void *timer_create_for_slirp(SlirpTimerCb callback, void *cb_opaque, void *opaque)
{
	struct user_timer *t = calloc(1, sizeof(*t));

	if (!t)
		abort(); /* libslirp cannot be told, and does the same when out of memory */
	t->timer.fire = timer_fired;
	t->timer.opaque = t;
	t->user = opaque;
	t->callback = callback;
	t->opaque = cb_opaque;
	return t;
}

static void timer_destroy_for_slirp(void *timer, void *opaque)
{
	struct user_timer *t = timer;
	struct user *u = opaque;

	loop_timer_cancel(u->loop, &t->timer);
	free(t);
}

static void timer_set_for_slirp(void *timer, int64_t expire_ms, void *opaque)
{
	struct user_timer *t = timer;
	struct user *u = opaque;

	loop_timer_arm(u->loop, &t->timer, (u64)expire_ms * 1000000ul);
}

static void notify(void *opaque)
{
	/* Whoever is inside libslirp now ends with settle(). */
	(void)opaque;
}

static const SlirpCb slirp_callbacks = {
	.send_packet = frame_for_guest,
	.guest_error = guest_error,
	.clock_get_ns = clock_ns,
	.timer_new = timer_create_for_slirp,
	.timer_free = timer_destroy_for_slirp,
	.timer_mod = timer_set_for_slirp,
	.register_poll_fd = forget_fd,
	.unregister_poll_fd = forget_fd,
	.notify = notify,
};

/* The back end
 * ------------------------------------------------------------------------------------- */

static void user_send(struct net_backend *n, struct iovec *iov, u32 count, u32 len,
		      const struct net_offload *o)
{
	struct user *u = to_user(n);
	u32 at = 0;

	/* One copy of the frame, which the guest cannot change any more. */
	for (u32 i = 0; i < count && at < len; i++) {
		u32 part = (u32)MIN(iov[i].iov_len, len - at);

		memcpy(u->frame + at, iov[i].iov_base, part);
		at += part;
	}
	if (o->flags & NET_NEEDS_CSUM && !net_checksum(u->frame, at, o))
		return;
	slirp_input(u->slirp, u->frame, (int)at);
}

static void user_send_done(struct net_backend *n)
{
	struct user *u = to_user(n);

	settle(u);
	if (!collect_ready(u))
		return;
	slirp_pollfds_poll(u->slirp, 0, ready_events, u);
	settle(u);
}

static void user_kick(struct net_backend *n)
{
	struct user *u = to_user(n);

	backlog_deliver(&u->backlog, &n->front);
	n->front.flush(n->front.opaque);
}

static void user_set_offload(struct net_backend *n, u32 can)
{
	(void)n;
	(void)can;
}

static void user_free(struct user *u)
{
	backlog_clear(&u->backlog);
	if (u->sockets.fd >= 0)
		close(u->sockets.fd);
	free(u->active);
	free(u->watch);
	free(u);
}

static void user_close(struct net_backend *n)
{
	struct user *u = to_user(n);

	loop_timer_cancel(u->loop, &u->timeout);
	loop_remove(u->loop, &u->sockets);
	slirp_cleanup(u->slirp);
	user_free(u);
}

static const struct net_backend_ops user_ops = {
	.name = "user",
	.send = user_send,
	.send_done = user_send_done,
	.kick = user_kick,
	.set_offload = user_set_offload,
	.close = user_close,
};

/* Announcing IPv6 to a guest whose host has no route makes every connection try it in vain first.
 */
static bool host_has_ipv6(void)
{
	struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool ok;

	if (fd < 0)
		return false;
	/* Connecting a datagram socket only looks up the route; nothing is sent. */
	ok = inet_pton(AF_INET6, "2001:db8::1", &to.sin6_addr) == 1 &&
	     !connect(fd, (struct sockaddr *)&to, sizeof(to));
	close(fd);
	return ok;
}

static struct in_addr ipv4(const char *text)
{
	return (struct in_addr){.s_addr = inet_addr(text)};
}

static Slirp *start_slirp(struct user *u, const struct net_spec *spec)
{
	SlirpConfig config = {
		.version = 1,
		.restricted = spec->isolated,
		.in_enabled = true,
		.vnetwork = ipv4("10.0.2.0"),
		.vnetmask = ipv4("255.255.255.0"),
		.vhost = ipv4("10.0.2.2"),
		.vdhcp_start = ipv4("10.0.2.15"),
		.vnameserver = ipv4("10.0.2.3"),
		.in6_enabled = host_has_ipv6(),
		.vprefix_len = 64,
		.vhostname = "doppel",
		.if_mtu = USER_MTU,
		.if_mru = USER_MTU,
	};

	inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &config.vhost6);
	inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
	return slirp_new(&config, &slirp_callbacks, u);
}

static int add_forwards(struct user *u, const struct net_spec *spec, struct err *e)
{
	for (u32 i = 0; i < spec->forwards; i++) {
		const struct net_forward *f = &spec->forward[i];
		struct in_addr guest = f->guest.s_addr ? f->guest : ipv4("10.0.2.15");
		char host[INET_ADDRSTRLEN];

		if (!slirp_add_hostfwd(u->slirp, f->udp, f->host, f->host_port, guest,
				       f->guest_port))
			continue;
		inet_ntop(AF_INET, &f->host, host, sizeof(host));
		return err_set(e, -errno, "cannot listen on %s port %u of %s: %s",
			       f->udp ? "UDP" : "TCP", f->host_port, host, strerror(errno));
	}
	return 0;
}

static int user_watch_sockets(struct user *u, struct err *e)
{
	int ret;

	u->sockets.fd = epoll_create1(EPOLL_CLOEXEC);
	if (u->sockets.fd < 0)
		return err_set(e, -errno, "epoll: %s", strerror(errno));
	ret = loop_add(u->loop, &u->sockets);
	return ret ? err_set(e, ret, "event loop: %s", strerror(-ret)) : 0;
}

static int user_start(struct user *u, const struct net_spec *spec, struct err *e)
{
	int ret = user_watch_sockets(u, e);

	if (ret) {
		user_free(u);
		return ret;
	}
	u->slirp = start_slirp(u, spec);
	if (!u->slirp) {
		loop_remove(u->loop, &u->sockets);
		user_free(u);
		return err_set(e, -EINVAL, "libslirp refuses its configuration");
	}
	ret = add_forwards(u, spec, e);
	if (ret) {
		user_close(&u->backend);
		return ret;
	}
	settle(u);
	return 0;
}

int user_create(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
		struct net_backend **n, struct err *e)
{
	struct user *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return err_set(e, -ENOMEM, "out of memory");
	u->backend = (struct net_backend){
		.ops = &user_ops,
		.front = net_front_none,
		.can = NET_CAN_CSUM,
		.mtu = USER_MTU,
	};
	u->loop = loop;
	u->lock = lock;
	u->sockets = (struct loop_fd){
		.fd = -1, .events = LOOP_READ, .ready = sockets_ready, .opaque = u};
	u->timeout = (struct loop_timer){.fire = timeout_fired, .opaque = u};
	backlog_init(&u->backlog);
	ret = user_start(u, spec, e);
	if (!ret)
		*n = &u->backend;
	return ret;
}
