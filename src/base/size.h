/* Sizes as people type them. */
#pragma once

#include "base/types.h"

/* "512M", "2G", "64K", or MiB without a suffix; into bytes. False when it is not such a text. */
bool parse_size(const char *text, u64 *bytes);
