/*
 * Runs a fuzz target without libFuzzer: over the files named on the command line, or over COUNT
 * inputs from a fixed seed. So every target builds with any compiler and takes part in the test
 * suite.
 */
#include "base/types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INPUT_MAX = 4096 };

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);

static u64 next_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void run_random(u32 count)
{
	u64 state = 0x9e3779b97f4a7c15;
	u8 data[INPUT_MAX];

	for (u32 i = 0; i < count; i++) {
		size_t len = next_random(&state) % sizeof(data);

		/* Half of the inputs are sparse: zeros and small numbers are what structures are
		 * made of. */
		for (size_t k = 0; k < len; k++) {
			u64 r = next_random(&state);

			data[k] = (u8)(i & 1 && r & 0x300 ? r & 7 : r);
		}
		LLVMFuzzerTestOneInput(data, len);
	}
}

static int run_file(const char *path)
{
	FILE *in = fopen(path, "rb");
	static u8 data[1 << 20];
	size_t len;

	if (!in) {
		perror(path);
		return 1;
	}
	len = fread(data, 1, sizeof(data), in);
	fclose(in);
	LLVMFuzzerTestOneInput(data, len);
	return 0;
}

int main(int argc, char **argv)
{
	int failed = 0;

	if (argc == 3 && !strcmp(argv[1], "--random")) {
		run_random((u32)strtoul(argv[2], NULL, 10));
		return 0;
	}
	for (int i = 1; i < argc; i++)
		failed |= run_file(argv[i]);
	return failed;
}
