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

/*
 * Decompress @data into @out, which has exactly @out_len bytes; @data may be followed by bytes that
 * do not belong to the stream. 0, or -EINVAL when it is damaged or does not yield @out_len bytes.
 */
int payload_decompress(enum payload_format format, const u8 *data, u64 len, u8 *out, u64 out_len);
