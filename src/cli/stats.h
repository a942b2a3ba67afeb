/* The statistics of a machine on standard error. */
#pragma once

#include "machine/pc.h"

/* A table of names, values and shares of the vCPUs' time; or, with @json, one line of JSON. */
void cli_print_stats(struct pc *pc, bool json);
