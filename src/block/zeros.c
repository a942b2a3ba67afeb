#include "block/zeros.h"

/* Not const, so that it costs no space in the program file; nothing ever stores to it. */
static unsigned char zero_bytes[ZEROS_LEN] __attribute__((aligned(4096)));

const void *zeros(void)
{
	return zero_bytes;
}
