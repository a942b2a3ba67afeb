#include "bus/msi_event.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int msi_event_open(struct msi_event *ev, const struct msi_sink *sink, struct err *e)
{
	if (!sink->on_event)
		return 0;
	ev->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ev->fd < 0)
		return err_set(e, -errno, "eventfd: %s", strerror(errno));
	ev->open = true;
	return 0;
}

void msi_event_close(struct msi_event *ev, const struct msi_sink *sink)
{
	msi_event_unwire(ev, sink);
	if (ev->open)
		close(ev->fd);
	ev->open = false;
}

void msi_event_wire(struct msi_event *ev, const struct msi_sink *sink, u64 address, u32 data)
{
	if (!ev->open || (ev->wired && ev->address == address && ev->data == data))
		return;
	ev->address = address;
	ev->data = data;
	ev->wired = !sink->on_event(sink->opaque, ev->fd, address, data, true);
}

void msi_event_unwire(struct msi_event *ev, const struct msi_sink *sink)
{
	if (ev->wired)
		sink->on_event(sink->opaque, ev->fd, ev->address, ev->data, false);
	ev->wired = false;
}

bool msi_event_raise(const struct msi_event *ev)
{
	const u64 one = 1;

	return ev->wired && write(ev->fd, &one, sizeof(one)) == sizeof(one);
}
