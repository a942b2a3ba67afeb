/* doppel check: which engines this host can run, and what the others lack. */
#include "cli/cli.h"

#include "engine/engine.h"
#include "host/memory.h"

#include <stdio.h>

int cli_check(int argc, char **argv)
{
	bool usable = false;

	if (argc > 1)
		return cli_usage_error("check: '%s' is not an option", argv[1]);
	for (u32 i = 0; engines[i]; i++) {
		struct err e = {0};
		int r = engines[i]->probe(&e);

		printf("engine %-6s %s%s\n", engines[i]->name, r ? "no: " : "yes", r ? e.text : "");
		usable |= !r;
	}
	printf("memory        %lu MiB for guests\n", host_memory_available() / MIB);
	return usable ? STATUS_OK : STATUS_FAILURE;
}
