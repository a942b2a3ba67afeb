/*
 * What a running machine may ask of the host kernel. Doorbells are handled on the vCPU's thread, so
 * all threads run all devices and share one list.
 *
 * Files are open by now. libslirp alone reads the name server's address again when a guest asks for
 * a name; so that file can be opened for reading, as long as the host's kernel can tell it apart
 * from others (Landlock), else any file for reading. Nothing can be created, written anew or
 * executed.
 */
#include "machine/lockdown.h"

#include "base/log.h"
#include "host/file.h"

#include <assert.h>
#include <errno.h>
#include <sys/syscall.h>

static const int block_calls[] = {
	SYS_io_uring_enter, SYS_pread64,   SYS_pwrite64, SYS_preadv,    SYS_pwritev,   SYS_preadv2,
	SYS_pwritev2,       SYS_fdatasync, SYS_fsync,    SYS_fallocate, SYS_ftruncate, SYS_lseek,
};
static const struct sandbox_list block_sandbox = {"block", block_calls, ARRAY_SIZE(block_calls)};

static const int net_calls[] = {
	SYS_socket,   SYS_bind,        SYS_listen,      SYS_accept,     SYS_accept4,    SYS_connect,
	SYS_shutdown, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt, SYS_sendto,
	SYS_recvfrom, SYS_sendmsg,     SYS_recvmsg,     SYS_ioctl,      SYS_fcntl,      SYS_readv,
	SYS_writev,   SYS_poll,        SYS_uname,
};
static const struct sandbox_list net_sandbox = {"net", net_calls, ARRAY_SIZE(net_calls)};

static const int stdio_calls[] = {SYS_newfstatat, SYS_fstat};
static const struct sandbox_list stdio_sandbox = {"stdio", stdio_calls, ARRAY_SIZE(stdio_calls)};

int lockdown_files(enum sandbox_mode mode, struct err *e)
{
	static const char *const readable[] = {"/etc/resolv.conf", NULL};

	return sandbox_confine_files(mode, readable, e);
}

int lockdown(enum sandbox_mode mode, const struct sandbox_list *const *engine, u32 count,
	     struct err *e)
{
	enum { OURS = 7, ENGINES_MAX = 8 };
	const struct sandbox_list *lists[OURS + ENGINES_MAX + 1] = {
		&base_sandbox,  &loop_sandbox, &chardev_sandbox, &file_sandbox,
		&block_sandbox, &net_sandbox,  &stdio_sandbox,
	};
	u32 n = OURS;

	assert(count <= ENGINES_MAX);
	for (u32 i = 0; i < count; i++)
		if (engine[i])
			lists[n++] = engine[i];
	return sandbox_install(mode, SANDBOX_PROCESS, lists, e);
}
