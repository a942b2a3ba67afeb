/* Options of the kvm engine: --engine kvm,chips=user|kernel. */
#include "engine/kvm/kvm.h"

#include "base/keyvalue.h"

#include <errno.h>
#include <string.h>

static int set_option(void *opaque, const char *key, const char *value, struct err *e)
{
	struct kvm_options *o = opaque;

	if (strcmp(key, "chips"))
		return err_set(e, -EINVAL,
			       "'%s' is not an option of the kvm engine, which has: chips", key);
	o->kernel_chips = !strcmp(value, "kernel");
	if (o->kernel_chips || !strcmp(value, "user"))
		return 0;
	return err_set(e, -EINVAL, "chips=%s is neither user nor kernel", value);
}

int kvm_options_parse(const char *text, struct kvm_options *o, struct err *e)
{
	*o = (struct kvm_options){0};
	return key_values(text, set_option, o, e);
}
