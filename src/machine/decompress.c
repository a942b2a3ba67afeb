/*
 * The formats Linux's scripts/Makefile.lib produces. Each stream is followed by its uncompressed
 * size, which the caller has used to size @out, so no decoder has to grow anything: one that wants
 * to write more than out_len bytes fails.
 */
#include "machine/decompress.h"

#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static const struct {
	enum payload_format format;
	u8 magic[6];
	u32 len;
} magics[] = {
	{PAYLOAD_GZIP, {0x1f, 0x8b}, 2},
	{PAYLOAD_XZ, {0xfd, '7', 'z', 'X', 'Z', 0}, 6},
	/* lzma_alone has no magic; these properties and dictionary sizes are what `lzma -9` writes.
	 */
	{PAYLOAD_LZMA, {0x5d, 0, 0}, 3},
	{PAYLOAD_ZSTD, {0x28, 0xb5, 0x2f, 0xfd}, 4},
	{PAYLOAD_LZ4, {0x02, 0x21, 0x4c, 0x18}, 4},
	{PAYLOAD_ELF, {0x7f, 'E', 'L', 'F'}, 4},
};

enum payload_format payload_detect(const u8 *data, u64 len)
{
	for (u32 i = 0; i < ARRAY_SIZE(magics); i++)
		if (len >= magics[i].len && !memcmp(data, magics[i].magic, magics[i].len))
			return magics[i].format;
	return PAYLOAD_UNKNOWN;
}

static int gunzip(const u8 *data, u64 len, u8 *out, u64 out_len)
{
	z_stream z = {0};
	bool done;

	if (len > UINT32_MAX || out_len > UINT32_MAX || inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
		return -EINVAL;
	z.next_in = (u8 *)(uintptr_t)data;
	z.avail_in = (uInt)len;
	z.next_out = out;
	z.avail_out = (uInt)out_len;
	done = inflate(&z, Z_FINISH) == Z_STREAM_END && !z.avail_out;
	inflateEnd(&z);
	return done ? 0 : -EINVAL;
}

/*
 * Room for the dictionary of a hostile header is bounded; Linux itself uses 32 MiB at most for xz
 * and 64 MiB for lzma.
 */
#define LZMA_MEMORY (256 * MIB)

static int unlzma(enum payload_format format, const u8 *data, u64 len, u8 *out, u64 out_len)
{
	lzma_stream s = LZMA_STREAM_INIT;
	lzma_ret r;

	r = format == PAYLOAD_XZ ? lzma_stream_decoder(&s, LZMA_MEMORY, 0)
				 : lzma_alone_decoder(&s, LZMA_MEMORY);
	if (r != LZMA_OK)
		return -EINVAL;
	s.next_in = data;
	s.avail_in = len;
	s.next_out = out;
	s.avail_out = out_len;
	do
		r = lzma_code(&s, LZMA_RUN);
	while (r == LZMA_OK && s.avail_out && s.avail_in);
	/* With the output full the decoder may still have to check the end of the stream. */
	if (r == LZMA_OK && !s.avail_out)
		r = lzma_code(&s, LZMA_RUN);
	lzma_end(&s);
	return !s.avail_out && (r == LZMA_STREAM_END || r == LZMA_OK) ? 0 : -EINVAL;
}

static int unzstd(const u8 *data, u64 len, u8 *out, u64 out_len)
{
	size_t frame = ZSTD_findFrameCompressedSize(data, len), n;

	if (ZSTD_isError(frame))
		return -EINVAL;
	n = ZSTD_decompress(out, out_len, data, frame);
	return !ZSTD_isError(n) && n == out_len ? 0 : -EINVAL;
}

/* The legacy frame: a magic number, then blocks of at most 8 MiB, each behind its compressed size.
 */
static int unlz4(const u8 *data, u64 len, u8 *out, u64 out_len)
{
	enum { BLOCK = 8 << 20 };
	u64 in = 4, done = 0;

	while (done < out_len) {
		u32 size;
		int n;

		if (range_exceeds(in, 4, len))
			return -EINVAL;
		memcpy(&size, data + in, 4);
		in += 4;
		if (size > INT32_MAX || range_exceeds(in, size, len))
			return -EINVAL;
		n = LZ4_decompress_safe((const char *)data + in, (char *)out + done, (int)size,
					(int)MIN(out_len - done, (u64)BLOCK));
		if (n <= 0)
			return -EINVAL;
		in += size;
		done += (u64)n;
	}
	return 0;
}

int payload_decompress(enum payload_format format, const u8 *data, u64 len, u8 *out, u64 out_len)
{
	switch (format) {
	case PAYLOAD_GZIP: return gunzip(data, len, out, out_len);
	case PAYLOAD_XZ:
	case PAYLOAD_LZMA: return unlzma(format, data, len, out, out_len);
	case PAYLOAD_ZSTD: return unzstd(data, len, out, out_len);
	case PAYLOAD_LZ4: return unlz4(data, len, out, out_len);
	case PAYLOAD_ELF:
		if (len < out_len)
			return -EINVAL;
		memcpy(out, data, out_len);
		return 0;
	case PAYLOAD_UNKNOWN: break;
	}
	return -EINVAL;
}
