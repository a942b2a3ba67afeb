#include "base/size.h"

#include <errno.h>
#include <stdlib.h>

bool parse_size(const char *text, u64 *bytes)
{
	u64 n, unit = MIB;
	char *end;

	/* strtoull() takes signs and white space. */
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoull(text, &end, 10);
	switch (*end) {
	case 'k':
	case 'K':
		unit = KIB;
		end++;
		break;
	case 'm':
	case 'M':
		unit = MIB;
		end++;
		break;
	case 'g':
	case 'G':
		unit = GIB;
		end++;
		break;
	default: break;
	}
	if (errno || *end || n > UINT64_MAX / unit)
		return false;
	*bytes = n * unit;
	return true;
}
