/* The page walk, clause by clause of SDM vol. 3, chapter 4. */
#include "cpu/paging.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { RAM = 64 * 4096 };

struct memory {
	u8 ram[RAM];
	u32 swaps;
	u32 refuse; /* this many swaps find the entry changed */
};

static struct memory memory;

static u64 load(void *opaque, gpa_t gpa, u32 size)
{
	struct memory *m = opaque;
	u64 value = 0;

	assert_int_equal(gpa % size, 0);
	if (range_exceeds(gpa, size, RAM))
		return size == 8 ? ~0ul : 0xffffffff;
	memcpy(&value, m->ram + gpa, size);
	return value;
}

static bool swap(void *opaque, gpa_t gpa, u32 size, u64 old, u64 new)
{
	struct memory *m = opaque;

	assert_int_equal(load(m, gpa, size), old);
	m->swaps++;
	if (m->refuse) {
		m->refuse--;
		return false;
	}
	memcpy(m->ram + gpa, &new, size);
	return true;
}

static const struct paging_memory ops = {.load = load, .swap = swap};

/* Tables at fixed places. */
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, PT = 0x4000 };
#define GVA        0x00007f1234567abcul
#define IDX(level) (GVA >> (12 + 9 * (level)) & 0x1ff)

static void put(gpa_t gpa, u64 value, u32 size)
{
	memcpy(memory.ram + gpa, &value, size);
}

static u64 get(gpa_t gpa, u32 size)
{
	return load(&memory, gpa, size);
}

static struct paging_state long_mode(void)
{
	return (struct paging_state){.cr0 = CR0_PE | CR0_PG | CR0_WP,
				     .cr3 = PML4,
				     .cr4 = CR4_PAE | CR4_PGE,
				     .efer = EFER_LME | EFER_LMA | EFER_NXE,
				     .phys_mask = BIT(46) - 1};
}

/* Four levels down to a 4 KiB page at 0x123000, everything permitted. */
static struct paging_state setup_long(u64 leaf_bits)
{
	const u64 all = PTE_P | PTE_RW | PTE_US;

	memset(&memory, 0, sizeof(memory));
	put(PML4 + IDX(3) * 8, PDPT | all, 8);
	put(PDPT + IDX(2) * 8, PD | all, 8);
	put(PD + IDX(1) * 8, PT | all, 8);
	put(PT + IDX(0) * 8, 0x123000 | leaf_bits, 8);
	return long_mode();
}

static u32 walk_error(const struct paging_state *s, gva_t gva, u32 access)
{
	struct paging_result r;

	assert_false(paging_walk(s, gva, access, &ops, &memory, &r));
	return r.error;
}

static struct paging_result walk(const struct paging_state *s, gva_t gva, u32 access)
{
	struct paging_result r;

	assert_true(paging_walk(s, gva, access, &ops, &memory, &r));
	return r;
}

static void sdm_4_5_four_levels(void **state)
{
	struct paging_state s = setup_long(PTE_P | PTE_RW | PTE_US | PTE_G);
	struct paging_result r = walk(&s, GVA, 0);

	(void)state;
	assert_int_equal(r.gpa, 0x123abc);
	assert_int_equal(r.shift, 12);
	assert_true(r.global && r.user && !r.writable);
	put(PD + IDX(1) * 8, 0x40000000 | PTE_PS | PTE_P | BIT(12), 8);
	r = walk(&s, GVA, 0);
	assert_int_equal(r.gpa, 0x40000000 | (GVA & 0x1fffff));
	assert_int_equal(r.shift, 21);
	assert_false(r.user);
	put(PDPT + IDX(2) * 8, 0x100000000 | PTE_PS | PTE_P | BIT(12), 8);
	r = walk(&s, GVA, 0);
	assert_int_equal(r.gpa, 0x100000000 | (GVA & 0x3fffffff));
	assert_int_equal(r.shift, 30);
}

static void sdm_4_7_not_present(void **state)
{
	struct paging_state s = setup_long(0);

	(void)state;
	assert_int_equal(walk_error(&s, GVA, 0), 0);
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE), PF_W);
	assert_int_equal(walk_error(&s, GVA, PAGING_USER | PAGING_WRITE), PF_W | PF_U);
	assert_int_equal(walk_error(&s, GVA, PAGING_USER | PAGING_FETCH), PF_U | PF_I);
	s.efer &= ~EFER_NXE;
	assert_int_equal(walk_error(&s, GVA, PAGING_FETCH), 0);
	s.cr4 |= CR4_SMEP;
	assert_int_equal(walk_error(&s, GVA, PAGING_FETCH), PF_I);
	assert_int_equal(memory.swaps, 0);
}

static void sdm_4_6_rights(void **state)
{
	struct paging_state s = setup_long(PTE_P);

	(void)state;
	assert_int_equal(walk_error(&s, GVA, PAGING_USER), PF_P | PF_U);
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE), PF_P | PF_W);
	s.cr0 &= ~CR0_WP;
	assert_true(walk(&s, GVA, PAGING_WRITE).writable);
	s = setup_long(PTE_P | PTE_US);
	s.cr0 &= ~CR0_WP;
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE | PAGING_USER), PF_P | PF_W | PF_U);
	s = setup_long(PTE_P | PTE_RW | PTE_US);
	put(PD + IDX(1) * 8, PT | PTE_P | PTE_US, 8); /* RW missing half-way */
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE | PAGING_USER), PF_P | PF_W | PF_U);
	walk(&s, GVA, PAGING_USER);
}

static void sdm_4_6_execute_disable(void **state)
{
	struct paging_state s = setup_long(PTE_P | PTE_US | PTE_NX);

	(void)state;
	assert_int_equal(walk_error(&s, GVA, PAGING_FETCH), PF_P | PF_I);
	assert_int_equal(walk_error(&s, GVA, PAGING_FETCH | PAGING_USER), PF_P | PF_I | PF_U);
	walk(&s, GVA, PAGING_USER);
	s.efer &= ~EFER_NXE; /* bit 63 is reserved then */
	assert_int_equal(walk_error(&s, GVA, 0), PF_P | PF_RSVD);
}

static void sdm_4_6_smep_smap(void **state)
{
	struct paging_state s = setup_long(PTE_P | PTE_US | PTE_RW);

	(void)state;
	s.cr4 |= CR4_SMEP | CR4_SMAP;
	assert_int_equal(walk_error(&s, GVA, PAGING_FETCH), PF_P | PF_I);
	assert_int_equal(walk_error(&s, GVA, 0), PF_P);
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE), PF_P | PF_W);
	walk(&s, GVA, PAGING_AC);
	walk(&s, GVA, PAGING_USER);
	walk(&s, GVA, PAGING_USER | PAGING_FETCH);
	put(PML4 + IDX(3) * 8, PDPT | PTE_P | PTE_RW, 8); /* a supervisor page now */
	walk(&s, GVA, PAGING_FETCH);
	walk(&s, GVA, 0);
}

static void sdm_4_5_reserved_bits(void **state)
{
	static const struct {
		gpa_t table;
		u32 level;
		u64 bits;
	} bad[] = {
		{PML4, 3, PTE_PS},           {PML4, 3, BIT(46)},
		{PDPT, 2, BIT(51)},          {PDPT, 2, PTE_PS | BIT(13)},
		{PDPT, 2, PTE_PS | BIT(29)}, {PD, 1, PTE_PS | BIT(13)},
		{PD, 1, PTE_PS | BIT(20)},   {PT, 0, BIT(46)},
	};

	(void)state;
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		struct paging_state s = setup_long(PTE_P | PTE_US);
		gpa_t at = bad[i].table + IDX(bad[i].level) * 8;

		put(at, get(at, 8) | bad[i].bits, 8);
		assert_int_equal(walk_error(&s, GVA, PAGING_USER), PF_P | PF_RSVD | PF_U);
	}
	/* 62:52 are ignored. */
	struct paging_state s = setup_long(PTE_P | PTE_US | 0x7ff0000000000000);

	assert_int_equal(walk(&s, GVA, 0).gpa, 0x123abc);
}

static void sdm_4_8_accessed_and_dirty(void **state)
{
	struct paging_state s = setup_long(PTE_P | PTE_RW | PTE_US);

	(void)state;
	walk_error(&s, GVA + 4096, PAGING_WRITE);
	assert_int_equal(memory.swaps, 0);
	walk(&s, GVA, 0);
	assert_int_equal(memory.swaps, 4);
	assert_true(get(PML4 + IDX(3) * 8, 8) & PTE_A);
	assert_int_equal(get(PT + IDX(0) * 8, 8) & (PTE_A | PTE_D), PTE_A);
	assert_true(walk(&s, GVA, PAGING_WRITE).writable);
	assert_int_equal(memory.swaps, 5);
	assert_int_equal(get(PT + IDX(0) * 8, 8) & (PTE_A | PTE_D), PTE_A | PTE_D);
	assert_int_equal(get(PD + IDX(1) * 8, 8) & (PTE_A | PTE_D), PTE_A);
	assert_true(walk(&s, GVA, 0).writable);
	assert_true(walk(&s, GVA, PAGING_FETCH).writable);
	assert_int_equal(memory.swaps, 5);
}

static void entries_that_change_meanwhile(void **state)
{
	struct paging_state s = setup_long(PTE_P | PTE_RW | PTE_US);

	(void)state;
	memory.refuse = 10;
	walk(&s, GVA, PAGING_WRITE);
	assert_int_equal(memory.refuse, 0);
	s = setup_long(PTE_P | PTE_RW | PTE_US);
	memory.refuse = ~0u;
	assert_int_equal(walk_error(&s, GVA, PAGING_WRITE), PF_W);
	assert_int_equal(memory.swaps, PAGING_ATTEMPTS);
}

static void tables_outside_ram_read_as_ones(void **state)
{
	struct paging_state s = setup_long(PTE_P);

	(void)state;
	s.cr3 = 0x3fffff000;
	assert_int_equal(walk_error(&s, GVA, PAGING_USER), PF_P | PF_RSVD | PF_U);
	s = setup_long(PTE_P);
	s.efer = 0;
	s.cr4 = CR4_PAE;
	assert_int_equal(walk_error(&s, GVA, 0), 0);
	s.cr3 = 0xfffffff0;
	assert_int_equal(walk_error(&s, GVA, 0), PF_P | PF_RSVD);
	s.cr4 = CR4_PSE;
	assert_int_equal(walk_error(&s, GVA, 0), PF_P | PF_RSVD);
}

static void sdm_4_4_pae(void **state)
{
	const u32 gva = 0xc0345678;
	struct paging_state s = long_mode();
	struct paging_result r;

	(void)state;
	memset(&memory, 0, sizeof(memory));
	s.efer = EFER_NXE;
	s.cr3 = PDPT + 0x20;
	put(PDPT + 0x20 + 3 * 8, PD | PTE_P, 8);
	put(PD + (gva >> 21 & 0x1ff) * 8, PT | PTE_P | PTE_RW | PTE_US, 8);
	put(PT + (gva >> 12 & 0x1ff) * 8, 0x3123000 | PTE_P | PTE_RW | PTE_US | PTE_NX, 8);
	r = walk(&s, gva, PAGING_USER | PAGING_WRITE);
	assert_int_equal(r.gpa, 0x3123678);
	/* Page-directory-pointer entries have no accessed flag. */
	assert_int_equal(get(PDPT + 0x20 + 3 * 8, 8), PD | PTE_P);
	assert_int_equal(walk_error(&s, gva, PAGING_FETCH), PF_P | PF_I);
	put(PD + (gva >> 21 & 0x1ff) * 8, 0x200000 | PTE_P | PTE_PS, 8);
	r = walk(&s, gva, 0);
	assert_int_equal(r.gpa, 0x200000 | (gva & 0x1fffff));
	assert_int_equal(r.shift, 21);
	put(PD + (gva >> 21 & 0x1ff) * 8, 0x200000 | PTE_P | PTE_PS | BIT(52), 8);
	assert_int_equal(walk_error(&s, gva, 0), PF_P | PF_RSVD);
	put(PDPT + 0x20 + 3 * 8, PD | PTE_P | PTE_RW, 8);
	assert_int_equal(walk_error(&s, gva, 0), PF_P | PF_RSVD);
}

static void sdm_4_3_32_bit(void **state)
{
	const u32 gva = 0xc0745678;
	struct paging_state s = {.cr0 = CR0_PG | CR0_WP,
				 .cr3 = PML4 | 0xfff,
				 .cr4 = CR4_PSE | CR4_PGE,
				 .phys_mask = BIT(46) - 1};
	struct paging_result r;

	(void)state;
	memset(&memory, 0, sizeof(memory));
	put(PML4 + (gva >> 22) * 4, PT | PTE_P | PTE_RW, 4);
	put(PT + (gva >> 12 & 0x3ff) * 4, 0xfe123000 | PTE_P | PTE_RW | PTE_US | PTE_G, 4);
	r = walk(&s, gva, PAGING_WRITE);
	assert_int_equal(r.gpa, 0xfe123678);
	assert_true(r.global && r.writable && !r.user);
	assert_int_equal(get(PT + (gva >> 12 & 0x3ff) * 4, 4) & 0x60, PTE_A | PTE_D);
	assert_int_equal(walk_error(&s, gva, PAGING_USER | PAGING_FETCH), PF_P | PF_U);
	/* PSE-36: bits 20:13 are address bits 39:32. */
	put(PML4 + (gva >> 22) * 4, 0x40000000 | PTE_P | PTE_PS | 0x5 << 13, 4);
	r = walk(&s, gva, 0);
	assert_int_equal(r.gpa, 0x540000000 | (gva & 0x3fffff));
	assert_int_equal(r.shift, 22);
	put(PML4 + (gva >> 22) * 4, 0x40000000 | PTE_P | PTE_PS | BIT(21), 4);
	assert_int_equal(walk_error(&s, gva, 0), PF_P | PF_RSVD);
	s.phys_mask = BIT(36) - 1;
	put(PML4 + (gva >> 22) * 4, 0x40000000 | PTE_P | PTE_PS | BIT(17), 4);
	assert_int_equal(walk_error(&s, gva, 0), PF_P | PF_RSVD);
	s.cr4 = 0; /* PS is ignored: a table at 0x40020000, outside RAM */
	assert_int_equal(walk(&s, gva, 0).gpa, 0xfffff678);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sdm_4_5_four_levels),
		cmocka_unit_test(sdm_4_7_not_present),
		cmocka_unit_test(sdm_4_6_rights),
		cmocka_unit_test(sdm_4_6_execute_disable),
		cmocka_unit_test(sdm_4_6_smep_smap),
		cmocka_unit_test(sdm_4_5_reserved_bits),
		cmocka_unit_test(sdm_4_8_accessed_and_dirty),
		cmocka_unit_test(entries_that_change_meanwhile),
		cmocka_unit_test(tables_outside_ram_read_as_ones),
		cmocka_unit_test(sdm_4_4_pae),
		cmocka_unit_test(sdm_4_3_32_bit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
