/*
 * String instructions: counts, directions, overlaps, faults in the middle, page ends, address
 * sizes.
 */
#include "guest.h"

#define PRESENT (PTE_P | PTE_W | PTE_U)

CODE_AT(movsb, "cld", "rep movsb", "");
CODE_AT(movsw, "cld", "rep movsw", "");
CODE_AT(movsl, "cld", "rep movsl", "");
CODE_AT(movsq, "cld", "rep movsq", "");
CODE_AT(stosb, "cld", "rep stosb", "");
CODE_AT(stosw, "cld", "rep stosw", "");
CODE_AT(stosl, "cld", "rep stosl", "");
CODE_AT(stosq, "cld", "rep stosq", "");
CODE_AT(movsb_down, "std", "rep movsb", "cld");
CODE_AT(movsq_down, "std", "rep movsq", "cld");
CODE_AT(stosl_down, "std", "rep stosl", "cld");
CODE_AT(lodsb, "cld", "rep lodsb", "");
CODE_AT(cmpsb, "cld", "repe cmpsb", "");
CODE_AT(scasb, "cld", "repne scasb", "");

/* Source and destination, 4 pages each, with a fifth page missing behind them. */
static u8 *source, *target;
static const u64 from = TEST_AREA, to = TEST_AREA + 0x100000;

static void make_areas(void)
{
	source = pages_alloc(4, PAGE_SIZE);
	target = pages_alloc(4, PAGE_SIZE);
	for (u32 i = 0; i < 4 * PAGE_SIZE; i++)
		source[i] = (u8)(i * 7 + i / 256);
	for (u64 i = 0; i < 4; i++) {
		page_map(from + i * PAGE_SIZE, (u64)source + i * PAGE_SIZE, PRESENT);
		page_map(to + i * PAGE_SIZE, (u64)target + i * PAGE_SIZE, PRESENT);
	}
}

static struct state string(const u8 *code, u64 rsi, u64 rdi, u64 rcx)
{
	struct state s = state_for(USER64, code);

	s.rsi = rsi;
	s.rdi = rdi;
	s.rcx = rcx;
	exec(&s);
	return s;
}

static void moves(void)
{
	static const struct {
		const u8 *code, *end;
		u32 size;
	} list[] = {
		{movsb, movsb_end, 1},
		{movsw, movsw_end, 2},
		{movsl, movsl_end, 4},
		{movsq, movsq_end, 8},
	};

	make_areas();
	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		for (u32 shift = 0; shift < 9; shift += 3) {
			u32 size = list[i].size, n = 9000 / size;
			struct state s;

			memset(target, 0xee, 4 * PAGE_SIZE);
			s = string(list[i].code, from + shift, to + 5, n);
			check_done(&s, list[i].end, __LINE__);
			expect_eq(s.rcx, 0);
			expect_eq(s.rsi, from + shift + n * size);
			expect_eq(s.rdi, to + 5 + n * size);
			expect_eq(memcmp(target + 5, source + shift, n * size), 0);
			expect_eq(target[4], 0xee);
			expect_eq(target[5 + n * size], 0xee);
		}
	}
}

static void stores(void)
{
	static const struct {
		const u8 *code, *end;
		u32 size;
	} list[] = {
		{stosb, stosb_end, 1},
		{stosw, stosw_end, 2},
		{stosl, stosl_end, 4},
		{stosq, stosq_end, 8},
	};

	make_areas();
	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		u32 size = list[i].size, n = 8200 / size;
		struct state s = state_for(USER64, list[i].code);
		u64 value = 0x1122334455667788;

		memset(target, 0, 4 * PAGE_SIZE);
		s.rdi = to + 3;
		s.rcx = n;
		s.rax = value;
		exec(&s);
		check_done(&s, list[i].end, __LINE__);
		expect_eq(s.rdi, to + 3 + n * size);
		for (u32 k = 0; k < n * size; k++)
			if (target[3 + k] != (u8)(value >> 8 * (k % size))) {
				check(false, "size %d: byte %d", (int)size, (int)k);
				break;
			}
		expect_eq(target[2], 0);
		expect_eq(target[3 + n * size], 0);
	}
}

static void count_zero(void)
{
	/* Bad pointers do not matter then, and the registers stay, their upper halves included. */
	struct state s = string(movsb, 1ull << 63, 0, 0);

	expect_done(&s, movsb);
	expect_eq(s.rsi, 1ull << 63);
	s = string(stosq, 0, 1ull << 63, 0);
	expect_done(&s, stosq);
	s = string(lodsb, 0, 0, 0);
	expect_done(&s, lodsb);
	s = state_for(USER64, cmpsb);
	s.rflags |= RFLAGS_CF | RFLAGS_SF;
	exec(&s);
	expect_done(&s, cmpsb);
	expect_eq(s.rflags & (RFLAGS_CF | RFLAGS_SF | RFLAGS_ZF), RFLAGS_CF | RFLAGS_SF);
}

/* The classical propagation: source a few bytes before the destination. */
static void overlap(void)
{
	static const u32 distances[] = {1, 2, 3, 4, 7, 8, 9, 16, 31};

	for (u32 i = 0; i < ARRAY_SIZE(distances); i++) {
		u32 d = distances[i];
		struct state s;

		make_areas();
		s = string(movsb, from, from + d, 6000);
		expect_done(&s, movsb);
		for (u32 k = 0; k < 6000; k++)
			if (source[d + k] != source[k % d]) {
				check(false, "distance %d: byte %d", (int)d, (int)k);
				break;
			}
	}
	make_areas();
	/* By quadwords, with a distance that is less than one. */
	memcpy(target, source, 4 * PAGE_SIZE);
	string(movsq, from, from + 4, 700);
	for (u32 k = 0; k < 700; k++) {
		u64 value;

		memcpy(&value, target + 8 * k, 8);
		memcpy(target + 8 * k + 4, &value, 8);
	}
	expect_eq(memcmp(source, target, 2 * PAGE_SIZE), 0);
	/* Downwards to a lower address, upwards from a higher one: plain copies. */
	make_areas();
	memcpy(target, source, 4 * PAGE_SIZE);
	string(movsb, from + 100, from + 1, 6000);
	expect_eq(memcmp(source + 1, target + 100, 6000), 0);
}

static void overlap_alias(void)
{
	struct state s;

	/* The same page at two addresses: still one memory. */
	make_areas();
	page_map(to, (u64)source, PRESENT);
	s = string(movsb, from, to + 1, 4000);
	expect_done(&s, movsb);
	for (u32 k = 0; k < 4000; k++)
		if (source[1 + k] != source[0]) {
			check(false, "byte %d", (int)k);
			break;
		}
}

static void downwards(void)
{
	struct state s;

	make_areas();
	s = string(movsb_down, from + 8999, to + 8999 + 3, 9000);
	expect_done(&s, movsb_down);
	expect_eq(s.rsi, from - 1);
	expect_eq(s.rdi, to + 3 - 1);
	expect_eq(memcmp(target + 3, source, 9000), 0);
	memset(target, 0, 4 * PAGE_SIZE);
	s = string(movsq_down, from + 8 * 999 + 5, to + 8 * 999 + 2, 1000);
	expect_done(&s, movsq_down);
	expect_eq(s.rdi, to + 2 - 8);
	expect_eq(memcmp(target + 2, source + 5, 8000), 0);
	s = state_for(USER64, stosl_down);
	s.rdi = to + 4 * 1999 + 1;
	s.rcx = 2000;
	s.rax = 0x01020304;
	exec(&s);
	expect_done(&s, stosl_down);
	for (u32 k = 0; k < 8000; k++)
		if (target[1 + k] != 4 - k % 4) {
			check(false, "stosl: byte %d", (int)k);
			break;
		}
	/* Overlap the other way round. */
	make_areas();
	s = string(movsb_down, from + 5000, from + 4997, 4990);
	expect_done(&s, movsb_down);
	for (u32 k = 0; k < 4990; k++)
		if (source[4997 - k] != source[5000 - k % 3]) {
			check(false, "overlap: byte %d", (int)k);
			break;
		}
}

/* A fault leaves the registers at the element that faulted; what was done before stays done. */
static void fault_in_the_middle(void)
{
	struct state s;

	make_areas();
	page_map(to + 2 * PAGE_SIZE, 0, 0);
	s = string(movsb, from, to + 100, 4 * PAGE_SIZE);
	expect_trap(&s, VEC_PF, PF_W | PF_U, movsb_at);
	expect_eq(s.cr2, to + 2 * PAGE_SIZE);
	expect_eq(s.rdi, to + 2 * PAGE_SIZE);
	expect_eq(s.rsi, from + 2 * PAGE_SIZE - 100);
	expect_eq(s.rcx, 2 * PAGE_SIZE + 100);
	expect_eq(memcmp(target + 100, source, 2 * PAGE_SIZE - 100), 0);
	/* It goes on from there. */
	page_map(to + 2 * PAGE_SIZE, (u64)target + 2 * PAGE_SIZE, PRESENT);
	s.rcx = 1000;
	s.vector = 0;
	exec(&s);
	expect_eq(s.vector, VEC_DONE);
	expect_eq(memcmp(target + 100, source, 2 * PAGE_SIZE + 1000 - 100), 0);

	/* The source may be what is missing. */
	make_areas();
	page_map(from + PAGE_SIZE, 0, 0);
	s = string(movsl, from + 4, to, PAGE_SIZE);
	expect_trap(&s, VEC_PF, PF_U, movsl_at);
	expect_eq(s.cr2, from + PAGE_SIZE);
	expect_eq(s.rcx, PAGE_SIZE - (PAGE_SIZE - 4) / 4);
	/* Downwards: the page below. */
	make_areas();
	page_map(to, 0, 0);
	s = string(movsb_down, from + 8000, to + 5000, 6000);
	expect_trap(&s, VEC_PF, PF_W | PF_U, movsb_down_at);
	expect_eq(s.cr2, to + PAGE_SIZE - 1);
	expect_eq(s.rdi, to + PAGE_SIZE - 1);
	expect_eq(s.rflags & RFLAGS_DF, RFLAGS_DF);
}

/* An element across the end of the last page: nothing of it is stored. */
static void fault_across_pages(void)
{
	struct state s;

	make_areas();
	memset(target, 0x33, 4 * PAGE_SIZE);
	s = string(movsq, from, to + 4 * PAGE_SIZE - 20, 10);
	expect_trap(&s, VEC_PF, PF_W | PF_U, movsq_at);
	expect_eq(s.cr2, to + 4 * PAGE_SIZE);
	expect_eq(s.rcx, 8);
	expect_eq(s.rdi, to + 4 * PAGE_SIZE - 4);
	for (u32 i = 1; i <= 4; i++)
		expect_eq(target[4 * PAGE_SIZE - i], 0x33);
	s = string(movsq, from + 4 * PAGE_SIZE - 12, to, 4);
	expect_trap(&s, VEC_PF, PF_U, movsq_at);
	expect_eq(s.cr2, from + 4 * PAGE_SIZE);
	expect_eq(s.rcx, 3);
	expect_eq(s.rdi, to + 8);
	s = state_for(USER64, stosq);
	s.rdi = to + 4 * PAGE_SIZE - 9;
	s.rcx = 3;
	exec(&s);
	expect_trap(&s, VEC_PF, PF_W | PF_U, stosq_at);
	expect_eq(s.rcx, 2);
}

/* Is the page of the destination at @at dirty? Then it is clean from now on. */
static bool was_dirty(u64 at)
{
	u64 *pte = page_entry(at, 1);
	bool dirty = *pte & PTE_D;

	*pte &= ~PTE_D;
	invlpg((void *)at);
	return dirty;
}

/* What faults at the source has stored nothing. */
static void clean_pages(void)
{
	struct state s;

	make_areas();
	page_map(from + PAGE_SIZE, 0, 0);
	for (u64 i = 0; i < 4; i++)
		was_dirty(to + i * PAGE_SIZE);
	s = string(movsb, from + PAGE_SIZE, to, 10);
	expect_trap(&s, VEC_PF, PF_U, movsb_at);
	expect_eq(was_dirty(to), false);
	s = string(movsb, from + 10, to + 2 * PAGE_SIZE, PAGE_SIZE);
	expect_trap(&s, VEC_PF, PF_U, movsb_at);
	expect_eq(s.rcx, 10);
	expect_eq(was_dirty(to + 2 * PAGE_SIZE), true);
	expect_eq(was_dirty(to + 3 * PAGE_SIZE), false);
}

/* At the very end of a page that is followed by nothing. */
static void to_the_last_byte(void)
{
	struct state s;

	make_areas();
	s = string(movsb, from + 3 * PAGE_SIZE, to + 3 * PAGE_SIZE, PAGE_SIZE);
	expect_done(&s, movsb);
	s = string(movsq, from + 3 * PAGE_SIZE, to + 3 * PAGE_SIZE, PAGE_SIZE / 8);
	expect_done(&s, movsq);
	expect_eq(memcmp(source + 3 * PAGE_SIZE, target + 3 * PAGE_SIZE, PAGE_SIZE), 0);
	s = string(lodsb, from + 4 * PAGE_SIZE - 1, 0, 1);
	expect_done(&s, lodsb);
	expect_eq(s.rax & 0xff, source[4 * PAGE_SIZE - 1]);
}

CODE_AT(repe_cmpsb, "cld", "repe cmpsb", "setz %dl; setb %dh");
CODE_AT(repne_cmpsw, "cld", "repne cmpsw", "setz %dl");
CODE_AT(repe_cmpsq, "cld", "repe cmpsq", "setz %dl");
CODE_AT(repne_scasb, "cld", "repne scasb", "setz %dl");
CODE_AT(repe_scasl, "cld", "repe scasl", "setz %dl");
CODE_AT(repne_scasb_down, "std", "repne scasb", "setz %dl; cld");

static void compares(void)
{
	struct state s;

	make_areas();
	memcpy(target, source, 4 * PAGE_SIZE);
	target[5000] = (u8)(source[5000] + 1);
	s = string(repe_cmpsb, from, to, 4 * PAGE_SIZE);
	expect_done(&s, repe_cmpsb);
	expect_eq(s.rsi, from + 5001);
	expect_eq(s.rdi, to + 5001);
	expect_eq(s.rcx, 4 * PAGE_SIZE - 5001);
	expect_eq(s.rdx & 0xff, 0);
	s = string(repe_cmpsb, from, to, 5000);
	expect_eq(s.rcx, 0);
	expect_eq(s.rdx & 0xffff, 1);
	s = string(repe_cmpsq, from, to, 2048);
	expect_eq(s.rsi, from + 5008);
	expect_eq(s.rdx & 0xff, 0);
	/* REPNE stops at the first equal pair. */
	memset(target, 0, PAGE_SIZE);
	memset(source, 1, PAGE_SIZE);
	target[2000] = target[2001] = 1;
	s = string(repne_cmpsw, from, to, 2048);
	expect_eq(s.rsi, from + 2002);
	expect_eq(s.rdx & 0xff, 1);
	/* Equal to the end of the mapped pages: a fault with the registers at that place. */
	memcpy(target, source, 4 * PAGE_SIZE);
	s = string(repe_cmpsb, from, to, 5 * PAGE_SIZE);
	expect_trap(&s, VEC_PF, PF_U, repe_cmpsb_at);
	expect_eq(s.rcx, PAGE_SIZE);
	expect_eq(s.rsi, from + 4 * PAGE_SIZE);
}

static void scans(void)
{
	struct state s;

	make_areas();
	memset(target, 0x11, 4 * PAGE_SIZE);
	target[9000] = 0x22;
	s = state_for(USER64, repne_scasb);
	s.rdi = to;
	s.rcx = -1ull;
	s.rax = 0xabcd22;
	exec(&s);
	expect_done(&s, repne_scasb);
	expect_eq(s.rdi, to + 9001);
	expect_eq(s.rcx, -1ull - 9001);
	expect_eq(s.rdx & 0xff, 1);
	s = state_for(USER64, repe_scasl);
	s.rdi = to;
	s.rcx = 4096;
	s.rax = 0x11111111;
	exec(&s);
	expect_eq(s.rdi, to + 9004);
	expect_eq(s.rdx & 0xff, 0);
	s = state_for(USER64, repne_scasb_down);
	s.rdi = to + 4 * PAGE_SIZE - 1;
	s.rcx = 4 * PAGE_SIZE;
	s.rax = 0x22;
	exec(&s);
	expect_done(&s, repne_scasb_down);
	expect_eq(s.rdi, to + 8999);
}

CODE(single, "cld; movsb; movsw; movsl; movsq; std; movsb; cld; lodsb; stosw; scasb; cmpsb");

static void without_prefix(void)
{
	struct state s;

	make_areas();
	s = string(single, from, to, 77);
	expect_done(&s, single);
	expect_eq(s.rcx, 77);
	/* movs: +15, -1; lodsb and stosw: +1, +2; scasb: destination +1; cmpsb: both +1 */
	expect_eq(s.rsi, from + 15 - 1 + 1 + 1);
	expect_eq(s.rdi, to + 15 - 1 + 2 + 1 + 1);
	expect_eq(memcmp(target, source, 14), 0);
}

static void address_size(void)
{
	struct state s = state_for(USER64, NULL);
	static u8 code[16] = {0xfc, 0x67, 0xf3, 0xaa, 0xcd, VEC_DONE}; /* cld; addr32 rep stosb */
	u64 at = user(user_stack);

	s.rip = user(code);
	s.rdi = at | 0xabcd00000000;
	s.rcx = 0xffffffff00000000 | 100;
	s.rax = 0x5a;
	exec(&s);
	check(s.vector == VEC_DONE, "vector %d error 0x%lx cr2 0x%lx", (int)s.vector, s.error,
	      s.cr2);
	expect_eq(s.rcx, 0);
	expect_eq(s.rdi, at + 100); /* 32-bit results are zero-extended */
	expect_eq(user_stack[99], 0x5a);
	expect_eq(user_stack[100] == 0x5a, 0);
	memset(user_stack, 0, 128);
}

/* The segment override of string instructions is for the source only. */
CODE(override_fs, "cld; mov %ebx, %ebx; wrfsbase %rbx; mov $1, %ecx; .byte 0xf3, 0x64, 0xa4");

static void segment_override(void)
{
	struct state s;

	if (!(cpuid(7, 0).ebx & 1)) {
		skip("no FSGSBASE");
		return;
	}
	write_cr4(read_cr4() | CR4_FSGSBASE);
	make_areas();
	for (u32 k = 0; k < 3; k++) {
		target[0] = 0;
		s = state_for(USER64, override_fs);
		s.rbx = 0x10;
		s.rsi = from;
		s.rdi = to;
		exec(&s);
		expect_done(&s, override_fs);
		expect_eq(target[0], source[0x10]);
	}
}

/* Wrap-around in 32-bit code: the addresses pass 4 GiB, or DI passes 64 KiB. */
CODE(string_16, ".code16\n cld; mov $4, %cx; rep stosb");

static void wrap_16(void)
{
	u8 *low = (u8 *)(u64)0x700000;
	struct state s;

	gdt_set(TEST_SELECTOR, descriptor((u32)(u64)low, 0xffff, 0x93, 0));
	memset(low, 0, 16);
	low[0xfffe] = low[0xffff] = low[0x10000] = 0;
	s = state_for(KERNEL16, string_16);
	s.es = TEST_SELECTOR;
	s.rdi = 0x1234fffe;
	s.rax = 0x77;
	exec(&s);
	expect_done(&s, string_16);
	expect_eq(low[0xfffe], 0x77);
	expect_eq(low[0xffff], 0x77);
	expect_eq(low[0], 0x77);
	expect_eq(low[1], 0x77);
	expect_eq(low[2], 0);
	expect_eq(low[0x10000], 0);
	expect_eq(s.rdi, 0x12340002);
	expect_eq(s.rcx & 0xffff, 0);
}

/* Port strings, on a port that says something stable. */
CODE(port_in, "cld; mov $0x3fd, %edx; mov $16, %ecx; rep insb");
CODE(port_out, "cld; mov $0x80, %edx; mov $16, %ecx; rep outsb");
CODE_AT(port_in_fault, "cld; mov $0x80, %edx; mov $16, %ecx", "rep insb", "");

static void ports(void)
{
	struct state s;

	make_areas();
	s = state_for(KERNEL64, port_in);
	s.rdi = to + PAGE_SIZE - 8;
	exec(&s);
	expect_done(&s, port_in);
	expect_eq(s.rdi, to + PAGE_SIZE + 8);
	expect_eq(s.rcx, 0);
	expect_eq(target[PAGE_SIZE] & 0x20, 0x20); /* the transmitter is empty */
	s = state_for(KERNEL64, port_out);
	s.rsi = from + PAGE_SIZE - 8;
	exec(&s);
	expect_done(&s, port_out);
	expect_eq(s.rsi, from + PAGE_SIZE + 8);
	s = state_for(KERNEL64, port_in_fault);
	s.rdi = to + 4 * PAGE_SIZE - 5;
	exec(&s);
	expect_trap(&s, VEC_PF, PF_W, port_in_fault_at);
	expect_eq(s.rcx, 11);
	expect_eq(s.rdi, to + 4 * PAGE_SIZE);
}

/* A page of code as the destination while it runs. */
CODE(overwrite_self, "lea 1f(%rip), %rdi; lea 2f(%rip), %rsi; mov $5, %ecx; cld; rep movsb;"
		     "1: mov $1, %eax; jmp 3f; 2: mov $2, %eax; 3: nop");

static void over_code(void)
{
	for (int i = 0; i < 3; i++) {
		struct state s = run(USER64, overwrite_self);

		expect_done(&s, overwrite_self);
		expect_eq(s.rax, 2);
	}
}

/* As compilers clear structures: the number of words is known. */
CODE_AT(six_words, "mov $6, %ecx; cmp $1, %esi", "rep stosq", "sete %dl");
CODE_AT(nine_halves, "mov $9, %ecx; cmp $1, %esi", "rep stosl", "sete %dl");
CODE_AT(too_many, "mov $40, %ecx; cmp $1, %esi", "rep stosq", "sete %dl");
CODE_AT(other_count, "mov $6, %ecx; sub $2, %ecx; cmp $1, %esi", "rep stosq", "sete %dl");

static const struct {
	const u8 *code, *end, *at;
	u32 count, size;
} known[] = {
	{six_words, six_words_end, six_words_at, 6, 8},
	{nine_halves, nine_halves_end, nine_halves_at, 9, 4},
	{too_many, too_many_end, too_many_at, 40, 8},
	{other_count, other_count_end, other_count_at, 4, 8},
};

/* From @offset of the target on, @down: downwards; of its elements @done get through. */
static void clear(u32 n, enum exec_mode mode, u64 offset, bool down, u64 done)
{
	const u64 value = 0x1122334455667788, start = to + offset, size = known[n].size;
	const s64 step = down ? -(s64)size : (s64)size;
	struct state s = state_for(mode, known[n].code);

	memset(target, 0xee, 4 * PAGE_SIZE);
	s.rdi = start;
	s.rax = value;
	s.rsi = n & 1;
	s.rflags |= down ? RFLAGS_DF : 0;
	exec(&s);
	if (done == known[n].count)
		check_done(&s, known[n].end, __LINE__);
	else
		check_trap(&s, VEC_PF, PF_W | (mode == USER64 ? PF_U : 0), known[n].at, __LINE__);
	expect_eq(s.rcx, known[n].count - done);
	expect_eq(s.rdi, start + (u64)(step * (s64)done));
	if (done == known[n].count)
		expect_eq(s.rdx & 1, n & 1);
	for (u64 k = 0; k < 4 * PAGE_SIZE; k++) {
		u64 from_first = down ? offset + size - 1 - k : k - offset;
		bool stored = from_first < done * size;
		u64 byte = down ? size - 1 - from_first % size : from_first % size;

		if (target[k] != (stored ? (u8)(value >> 8 * byte) : 0xee)) {
			check(false, "%d: byte %d is 0x%x", (int)n, (int)k, target[k]);
			break;
		}
	}
}

static void known_counts(void)
{
	make_areas();
	for (u32 round = 0; round < 3; round++)
		for (u32 n = 0; n < ARRAY_SIZE(known); n++)
			for (u32 m = 0; m < 2; m++) {
				const enum exec_mode mode = m ? KERNEL64 : USER64;
				const u64 all = known[n].count, size = known[n].size;
				const u64 end = 4 * PAGE_SIZE;

				clear(n, mode, 40, false, all);
				clear(n, mode, PAGE_SIZE - 16, false, all);
				clear(n, mode, PAGE_SIZE - 3, false, all);
				clear(n, mode, end - all * size, false, all);
				clear(n, mode, end - size, false, 1);
				clear(n, mode, end - 2 * size - 1, false, 2);
				clear(n, mode, end - all * size + 1, false, all - 1);
				clear(n, mode, end + 64, false, 0);
				clear(n, mode, 2 * PAGE_SIZE + 5, true, all);
			}
}

const struct test tests[] = {
	{"REP MOVS of all sizes", "SDM vol. 2, MOVS", moves, NULL},
	{"REP STOS of all sizes", "SDM vol. 2, STOS", stores, NULL},
	{"REP STOS of a known count", "SDM vol. 2, STOS", known_counts, NULL},
	{"A count of zero", "SDM vol. 2, REP", count_zero, NULL},
	{"Overlapping moves", "SDM vol. 2, MOVS", overlap, NULL},
	{"Overlap through another address", "SDM vol. 2, MOVS", overlap_alias, NULL},
	{"DF = 1", "SDM vol. 2, MOVS", downwards, NULL},
	{"#PF in the middle", "SDM vol. 2, REP", fault_in_the_middle, NULL},
	{"#PF in the middle of an element", "SDM vol. 2, REP", fault_across_pages, NULL},
	{"Dirty flags of what is not stored", "SDM vol. 3, 4.8", clean_pages, NULL},
	{"To the last byte of a page", "SDM vol. 2, REP", to_the_last_byte, NULL},
	{"CMPS", "SDM vol. 2, CMPS", compares, NULL},
	{"SCAS", "SDM vol. 2, SCAS", scans, NULL},
	{"Without a prefix", "SDM vol. 2, MOVS", without_prefix, NULL},
	{"32-bit addresses in 64-bit mode", "SDM vol. 2, STOS", address_size, NULL},
	{"Segment override", "SDM vol. 2, MOVS", segment_override, NULL},
	{"16-bit wrap-around", "SDM vol. 2, STOS", wrap_16, NULL},
	{"INS and OUTS", "SDM vol. 2, INS", ports, NULL},
	{"Over the code that follows", "SDM vol. 3, 11.6", over_code, NULL},
	{NULL},
};
