#include "damage.h"

#include <stdlib.h>
#include <string.h>

void damage_state(const struct device_ops *ops, void *dev, u32 at, u8 change)
{
	struct device_buf form = {0}, again = {0};
	struct err e = {0};
	u64 used = 0;
	int r;

	if (device_save(ops, dev, &form))
		abort();
	form.data[at % form.len] ^= change;
	device_reset(ops, dev);
	r = device_load(ops, dev, form.data, form.len, &used, &e);
	if (r ? !e.text[0] || strchr(e.text, '\n') : used != form.len)
		abort();
	if (r) /* a machine would not start */
		device_reset(ops, dev);
	if (device_save(ops, dev, &again) || again.len != form.len)
		abort();
	device_buf_free(&form);
	device_buf_free(&again);
}
