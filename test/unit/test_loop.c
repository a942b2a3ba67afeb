/* The event loop, and the character back ends that live on it. */
#include "host/chardev.h"
#include "host/loop.h"
#include "host/memory.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { TIMERS = 200 };

struct fixture {
	struct loop *loop;
	struct err e;
	u32 fired;
	u64 last_deadline;
	struct loop_timer timer[TIMERS];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	return loop_create(&f->loop, &f->e);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_destroy(f->loop);
	free(f);
	return 0;
}

static void stop_loop(void *opaque)
{
	loop_stop(((struct fixture *)opaque)->loop);
}

/* ---- timers ---- */

struct ordered {
	struct fixture *f;
	struct loop_timer *t;
};

static void count_in_order(void *opaque)
{
	struct ordered *o = opaque;

	assert_true(o->t->deadline_ns >= o->f->last_deadline);
	assert_true(host_clock_ns() >= o->t->deadline_ns);
	o->f->last_deadline = o->t->deadline_ns;
	o->f->fired++;
}

static void timers_fire_in_order_of_deadline(void **state)
{
	struct fixture *f = *state;
	struct ordered order[TIMERS];
	struct loop_timer end = {.fire = stop_loop, .opaque = f};
	u64 now = host_clock_ns();

	srand(1);
	for (u32 i = 0; i < TIMERS; i++) {
		order[i] = (struct ordered){f, &f->timer[i]};
		f->timer[i] = (struct loop_timer){.fire = count_in_order, .opaque = &order[i]};
		loop_timer_arm(f->loop, &f->timer[i], now + (u64)(rand() % 20) * 1000000);
	}
	/* Half of them move, a quarter goes away. */
	for (u32 i = 0; i < TIMERS; i += 2)
		loop_timer_arm(f->loop, &f->timer[i], now + (u64)(rand() % 20) * 1000000);
	for (u32 i = 0; i < TIMERS; i += 4)
		loop_timer_cancel(f->loop, &f->timer[i]);
	loop_timer_arm(f->loop, &end, now + 25000000);
	loop_run(f->loop);
	assert_int_equal(f->fired, TIMERS - TIMERS / 4);
	for (u32 i = 0; i < TIMERS; i++)
		assert_int_equal(f->timer[i].slot, 0);
}

static void rearm_in_the_past(void *opaque)
{
	struct fixture *f = opaque;

	if (++f->fired == 1000)
		loop_stop(f->loop);
	loop_timer_arm(f->loop, &f->timer[0], 0);
}

static void set_flag(void *opaque, u32 events)
{
	assert_int_equal(events, LOOP_WRITE);
	*(bool *)opaque = true;
}

static void a_timer_that_is_always_due_does_not_starve_descriptors(void **state)
{
	struct fixture *f = *state;
	bool flag = false;
	int fd[2];
	struct loop_fd w = {.events = LOOP_WRITE, .ready = set_flag, .opaque = &flag};

	assert_int_equal(pipe(fd), 0);
	w.fd = fd[1];
	assert_int_equal(loop_add(f->loop, &w), 0);
	f->timer[0] = (struct loop_timer){.fire = rearm_in_the_past, .opaque = f};
	loop_timer_arm(f->loop, &f->timer[0], 0);
	loop_run(f->loop);
	assert_true(flag);
	loop_remove(f->loop, &w);
	loop_timer_cancel(f->loop, &f->timer[0]);
	close(fd[0]);
	close(fd[1]);
}

static void *arm_soon(void *opaque)
{
	struct fixture *f = opaque;

	usleep(10000);
	loop_timer_arm(f->loop, &f->timer[0], host_clock_ns() + 1000000);
	return NULL;
}

static void a_timer_armed_by_another_thread_wakes_the_loop(void **state)
{
	struct fixture *f = *state;
	struct loop_timer far = {.fire = stop_loop, .opaque = f};
	u64 start = host_clock_ns();
	pthread_t t;

	f->timer[0] = (struct loop_timer){.fire = stop_loop, .opaque = f};
	loop_timer_arm(f->loop, &far, start + 5000000000ul);
	pthread_create(&t, NULL, arm_soon, f);
	loop_run(f->loop);
	assert_true(host_clock_ns() - start < 2000000000ul);
	pthread_join(t, NULL);
	loop_timer_cancel(f->loop, &far);
}

static void a_stop_before_run_is_not_lost(void **state)
{
	struct fixture *f = *state;

	loop_stop(f->loop);
	loop_run(f->loop);
}

/* ---- descriptors ---- */

struct pair {
	struct fixture *f;
	struct loop_fd *other;
	u32 *calls;
};

static void remove_other(void *opaque, u32 events)
{
	struct pair *p = opaque;

	(void)events;
	++*p->calls;
	loop_remove(p->f->loop, p->other);
	/* What the loop must not touch again. */
	memset(p->other, 0xa5, sizeof(*p->other));
	loop_stop(p->f->loop);
}

static void a_descriptor_removed_by_an_earlier_callback_stays_silent(void **state)
{
	struct fixture *f = *state;
	u32 calls = 0;
	int fd[2][2];
	struct loop_fd *w[2] = {calloc(1, sizeof(*w[0])), calloc(1, sizeof(*w[0]))};
	struct pair pair[2] = {{f, w[1], &calls}, {f, w[0], &calls}};

	for (u32 i = 0; i < 2; i++) {
		assert_int_equal(pipe(fd[i]), 0);
		assert_int_equal(write(fd[i][1], "x", 1), 1);
		*w[i] = (struct loop_fd){.fd = fd[i][0],
					 .events = LOOP_READ,
					 .ready = remove_other,
					 .opaque = &pair[i]};
		assert_int_equal(loop_add(f->loop, w[i]), 0);
	}
	loop_run(f->loop);
	assert_int_equal(calls, 1);
	for (u32 i = 0; i < 2; i++) {
		close(fd[i][0]);
		close(fd[i][1]);
		free(w[i]);
	}
}

static void fail_if_ready(void *opaque, u32 events)
{
	(void)opaque;
	(void)events;
	fail();
}

static void a_hang_up_nobody_waits_for_is_not_reported(void **state)
{
	struct fixture *f = *state;
	struct loop_timer end = {.fire = stop_loop, .opaque = f};
	struct loop_fd w = {.ready = fail_if_ready};
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	w.fd = fd[0];
	assert_int_equal(loop_add(f->loop, &w), 0);
	assert_int_equal(loop_modify(f->loop, &w, LOOP_READ), 0);
	assert_int_equal(loop_modify(f->loop, &w, 0), 0);
	close(fd[1]);
	loop_timer_arm(f->loop, &end, host_clock_ns() + 5000000);
	loop_run(f->loop);
	loop_remove(f->loop, &w);
	close(fd[0]);
}

/* ---- character back ends ---- */

struct front {
	struct fixture *f;
	u32 room, len;
	char text[256];
};

static u32 front_room(void *opaque)
{
	return ((struct front *)opaque)->room;
}

static void front_receive(void *opaque, const u8 *data, u32 len)
{
	struct front *front = opaque;

	assert_true(len <= front->room && front->len + len < sizeof(front->text));
	memcpy(front->text + front->len, data, len);
	front->len += len;
	front->room -= len;
	if (memchr(data, '.', len))
		loop_stop(front->f->loop);
}

static void no_escape(void *opaque, enum chardev_escape what)
{
	(void)opaque;
	(void)what;
	fail();
}

static struct chardev *open_chardev(struct fixture *f, const char *spec)
{
	struct chardev *c;

	assert_int_equal(chardev_open(spec, f->loop, no_escape, NULL, &c, &f->e), 0);
	return c;
}

static void file_console_keeps_every_byte(void **state)
{
	struct fixture *f = *state;
	char path[] = "/tmp/doppel-test-XXXXXX", spec[64], line[32], back[32];
	int fd = mkstemp(path);
	struct chardev *c;
	FILE *in;

	assert_true(fd >= 0);
	snprintf(spec, sizeof(spec), "file:%s", path);
	c = open_chardev(f, spec);
	for (u32 i = 0; i < 100000; i++) {
		int n = snprintf(line, sizeof(line), "line %u\n", i);

		for (int k = 0; k < n; k++)
			c->ops->write(c, (const u8 *)line + k, 1);
	}
	c->ops->close(c);
	in = fdopen(fd, "r");
	for (u32 i = 0; i < 100000; i++) {
		snprintf(line, sizeof(line), "line %u\n", i);
		assert_non_null(fgets(back, sizeof(back), in));
		assert_string_equal(line, back);
	}
	fclose(in);
	unlink(path);
}

static void *type_slowly(void *opaque)
{
	int fd = *(int *)opaque;

	for (const char *p = "hello, world."; *p; p++) {
		assert_int_equal(write(fd, p, 1), 1);
		usleep(500);
	}
	return NULL;
}

static void unix_console_honours_room_and_replaces_a_stale_socket(void **state)
{
	struct fixture *f = *state;
	struct front front = {.f = f, .room = 5};
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct loop_timer pause = {.fire = stop_loop, .opaque = f};
	char spec[128], echo[3] = "";
	struct chardev *c;
	pthread_t t;
	int fd;

	snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/doppel-test-%d", getpid());
	snprintf(spec, sizeof(spec), "unix:%s", a.sun_path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	close(fd); /* leaves the file */
	c = open_chardev(f, spec);
	c->front = (struct chardev_front){front_room, front_receive, &front};
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	pthread_create(&t, NULL, type_slowly, &fd);
	/* Once more than it takes to get there, in case it takes too much. */
	for (u32 i = 0, full = 0; i < 100 && full < 2; i++, full += front.len >= 5) {
		loop_timer_arm(f->loop, &pause, host_clock_ns() + 50000000);
		loop_run(f->loop);
	}
	assert_int_equal(front.len, 5);
	front.room = 100;
	c->ops->kick(c);
	loop_run(f->loop);
	pthread_join(t, NULL);
	assert_string_equal(front.text, "hello, world.");
	c->ops->write(c, (const u8 *)"ok", 2);
	assert_int_equal(read(fd, echo, 2), 2);
	assert_string_equal(echo, "ok");
	c->ops->close(c);
	assert_int_equal(access(a.sun_path, F_OK), -1);
	close(fd);
}

static void unix_console_leaves_other_files_alone(void **state)
{
	struct fixture *f = *state;
	char path[] = "/tmp/doppel-test-XXXXXX", spec[64];
	struct chardev *c;
	struct stat st;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "precious", 8), 8);
	close(fd);
	snprintf(spec, sizeof(spec), "unix:%s", path);
	assert_int_equal(chardev_open(spec, f->loop, no_escape, NULL, &c, &f->e), -EEXIST);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 8);
	unlink(path);
}

static void bad_console_specifications_are_refused(void **state)
{
	static const char *const specs[] = {"", "stdoi", "unix:", "file:/nonexistent/x", "tcp:1"};
	struct fixture *f = *state;
	struct chardev *c;

	for (u32 i = 0; i < ARRAY_SIZE(specs); i++) {
		f->e.text[0] = 0;
		assert_true(chardev_open(specs[i], f->loop, no_escape, NULL, &c, &f->e) < 0);
		assert_true(f->e.text[0] && !strchr(f->e.text, '\n'));
	}
}

/* ---- memory ---- */

static void memory_beyond_the_host_is_refused(void **state)
{
	u8 *p;

	(void)state;
	assert_null(host_memory_alloc(host_memory_available() + GIB));
	p = host_memory_alloc(4 * MIB);
	assert_non_null(p);
	assert_int_equal(p[4 * MIB - 1], 0);
	host_memory_free(p, 4 * MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(timers_fire_in_order_of_deadline, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_timer_that_is_always_due_does_not_starve_descriptors, setup, teardown),
		cmocka_unit_test_setup_teardown(a_timer_armed_by_another_thread_wakes_the_loop,
						setup, teardown),
		cmocka_unit_test_setup_teardown(a_stop_before_run_is_not_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_descriptor_removed_by_an_earlier_callback_stays_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(a_hang_up_nobody_waits_for_is_not_reported, setup,
						teardown),
		cmocka_unit_test_setup_teardown(file_console_keeps_every_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(
			unix_console_honours_room_and_replaces_a_stale_socket, setup, teardown),
		cmocka_unit_test_setup_teardown(unix_console_leaves_other_files_alone, setup,
						teardown),
		cmocka_unit_test_setup_teardown(bad_console_specifications_are_refused, setup,
						teardown),
		cmocka_unit_test(memory_beyond_the_host_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
