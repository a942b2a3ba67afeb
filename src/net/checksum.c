#include "net/net.h"

#include <string.h>

/* RFC 1071: the sum may be formed over wider words and folded, in host byte order. */
static u64 sum_words(const u8 *p, u32 len)
{
	u64 sum = 0;
	u32 word;

	for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		sum += word;
	}
	if (len) {
		word = 0;
		memcpy(&word, p, len);
		sum += word;
	}
	return sum;
}

static u16 fold(u64 sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (u16)sum;
}

bool net_checksum(u8 *frame, u32 len, const struct net_offload *o)
{
	u32 field = (u32)o->csum_start + o->csum_offset;
	u16 sum;

	if (o->csum_start >= len || range_exceeds(field, sizeof(sum), len))
		return false;
	sum = (u16)~fold(sum_words(frame + o->csum_start, len - o->csum_start));
	if (!sum)
		sum = 0xffff; /* zero would mean "no checksum" to UDP; both are the same number */
	memcpy(frame + field, &sum, sizeof(sum));
	return true;
}
