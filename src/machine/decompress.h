/* The compressed payload of a Linux bzImage, decompressed on the host. */
#pragma once

#include "base/err.h"
#include "base/types.h"

enum payload_format {
	PAYLOAD_UNKNOWN,
	PAYLOAD_GZIP,
	PAYLOAD_XZ,
	PAYLOAD_LZMA,
	PAYLOAD_ZSTD,
	PAYLOAD_LZ4,
	PAYLOAD_ELF, /* not compressed */
};

enum payload_format payload_detect(const u8 *data, u64 len);

/* Takes the next @len bytes; an error ends the decompression. */
typedef int payload_sink(void *opaque, const u8 *bytes, u64 len);

/* At least so many bytes at a time, but for the last. */
enum { PAYLOAD_PIECE = 8 << 20 };

/*
 * Decompress @data, which may be followed by bytes that do not belong to the stream, to @out_len
 * bytes, and give them to @sink in order. 0, what @sink returned if that is not 0, -ENOMEM, or
 * -EINVAL when @data is damaged or does not yield @out_len bytes.
 */
int payload_decompress(enum payload_format format, const u8 *data, u64 len, u64 out_len,
		       payload_sink *sink, void *opaque);
