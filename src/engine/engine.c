#include "engine/engine.h"

#include <string.h>

extern const struct engine_ops kvm_engine;
extern const struct engine_ops soft_engine;

const struct engine_ops *const engines[] = {
	&kvm_engine,
	&soft_engine,
	NULL,
};

const struct engine_ops *engine_by_name(const char *name)
{
	for (u32 i = 0; engines[i]; i++)
		if (!strcmp(engines[i]->name, name))
			return engines[i];
	return NULL;
}

void engines_trim_thread(const struct engine_ops *used)
{
	for (u32 i = 0; engines[i]; i++)
		if (engines[i] != used)
			engines[i]->trim_thread();
}
