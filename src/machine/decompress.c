/*
 * The formats Linux's scripts/Makefile.lib produces. Each stream is followed by its uncompressed
 * size, which the caller knows. A kernel is several times as large as its payload, and memory that
 * is touched for the first time is dear, so it is handed on piece by piece from the same room.
 */
#include "machine/decompress.h"

#include "host/memory.h"

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

/* LZ4's blocks are whole or not there, and one may begin shortly before a piece is full. */
enum { LZ4_BLOCK = 8 << 20, ROOM = PAYLOAD_PIECE + LZ4_BLOCK };

struct output {
	u8 *room;
	u64 filled; /* bytes of it */
	u64 left;   /* bytes that are still to come */
	payload_sink *sink;
	void *opaque;
};

/* Where the next bytes go. */
static u8 *output_at(const struct output *o)
{
	return o->room + o->filled;
}

/* How many are still wanted for a piece. */
static u64 output_space(const struct output *o)
{
	return MIN(o->left, PAYLOAD_PIECE - o->filled);
}

/* @n bytes were written there. */
static int output_advance(struct output *o, u64 n)
{
	int r = 0;

	o->filled += n;
	o->left -= n;
	if (o->filled && (o->filled >= PAYLOAD_PIECE || !o->left)) {
		r = o->sink(o->opaque, o->room, o->filled);
		o->filled = 0;
	}
	return r;
}

static int gunzip(const u8 *data, u64 len, struct output *o)
{
	z_stream z = {0};
	int r = 0, status = Z_OK;

	if (len > UINT32_MAX || inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
		return -EINVAL;
	z.next_in = (u8 *)(uintptr_t)data;
	z.avail_in = (uInt)len;
	while (!r && status == Z_OK) { /* without space no more than the end of the stream */
		u64 space = output_space(o);

		z.next_out = output_at(o);
		z.avail_out = (uInt)space;
		status = inflate(&z, Z_NO_FLUSH);
		r = output_advance(o, space - z.avail_out);
	}
	inflateEnd(&z);
	return r ? r : status == Z_STREAM_END && !o->left ? 0 : -EINVAL;
}

/*
 * Room for the dictionary of a hostile header is bounded; Linux itself uses 32 MiB at most for xz
 * and 64 MiB for lzma.
 */
#define LZMA_MEMORY (256 * MIB)

static int unlzma(enum payload_format format, const u8 *data, u64 len, struct output *o)
{
	lzma_stream s = LZMA_STREAM_INIT;
	lzma_ret status;
	int r = 0;

	status = format == PAYLOAD_XZ ? lzma_stream_decoder(&s, LZMA_MEMORY, 0)
				      : lzma_alone_decoder(&s, LZMA_MEMORY);
	if (status != LZMA_OK)
		return -EINVAL;
	s.next_in = data;
	s.avail_in = len;
	while (!r && status == LZMA_OK && o->left && s.avail_in) {
		u64 space = output_space(o);

		s.next_out = output_at(o);
		s.avail_out = space;
		status = lzma_code(&s, LZMA_RUN);
		r = output_advance(o, space - s.avail_out);
	}
	/* With all of it there the decoder may still have to check the end of the stream. */
	if (!r && status == LZMA_OK && !o->left) {
		s.avail_out = 0;
		status = lzma_code(&s, LZMA_RUN);
	}
	lzma_end(&s);
	if (r)
		return r;
	return !o->left && (status == LZMA_STREAM_END || status == LZMA_OK) ? 0 : -EINVAL;
}

static int unzstd(const u8 *data, u64 len, struct output *o)
{
	size_t frame = ZSTD_findFrameCompressedSize(data, len), status = 1;
	ZSTD_inBuffer in = {.src = data, .size = frame};
	ZSTD_DCtx *z;
	int r = 0;

	if (ZSTD_isError(frame))
		return -EINVAL;
	z = ZSTD_createDCtx();
	if (!z)
		return -ENOMEM;
	while (!r && status) { /* until the frame is complete */
		ZSTD_outBuffer out = {.dst = output_at(o), .size = output_space(o)};
		size_t before = in.pos;

		status = ZSTD_decompressStream(z, &out, &in);
		if (ZSTD_isError(status) || (status && !out.pos && in.pos == before))
			r = -EINVAL;
		else
			r = output_advance(o, out.pos);
	}
	ZSTD_freeDCtx(z);
	return r ? r : o->left ? -EINVAL : 0;
}

/* The legacy frame: a magic number, then blocks of at most 8 MiB, each behind its compressed size.
 */
static int unlz4(const u8 *data, u64 len, struct output *o)
{
	u64 in = 4;

	while (o->left) {
		u32 size;
		int n, r;

		if (range_exceeds(in, 4, len))
			return -EINVAL;
		memcpy(&size, data + in, 4);
		in += 4;
		if (size > INT32_MAX || range_exceeds(in, size, len))
			return -EINVAL;
		n = LZ4_decompress_safe((const char *)data + in, (char *)output_at(o), (int)size,
					(int)MIN(o->left, (u64)LZ4_BLOCK));
		if (n <= 0)
			return -EINVAL;
		in += size;
		r = output_advance(o, (u64)n);
		if (r)
			return r;
	}
	return 0;
}

static int decompress(enum payload_format format, const u8 *data, u64 len, struct output *o)
{
	switch (format) {
	case PAYLOAD_GZIP: return gunzip(data, len, o);
	case PAYLOAD_XZ:
	case PAYLOAD_LZMA: return unlzma(format, data, len, o);
	case PAYLOAD_ZSTD: return unzstd(data, len, o);
	case PAYLOAD_LZ4: return unlz4(data, len, o);
	case PAYLOAD_ELF: return len < o->left ? -EINVAL : o->sink(o->opaque, data, o->left);
	case PAYLOAD_UNKNOWN: break;
	}
	return -EINVAL;
}

int payload_decompress(enum payload_format format, const u8 *data, u64 len, u64 out_len,
		       payload_sink *sink, void *opaque)
{
	struct output o = {.left = out_len, .sink = sink, .opaque = opaque};
	int r;

	o.room = host_memory_alloc(ROOM);
	if (!o.room)
		return -ENOMEM;
	r = decompress(format, data, len, &o);
	host_memory_free(o.room, ROOM);
	return r;
}
