/*
 * The soft engine's MMU without the rest of the engine: guest memory by linear address, TLB
 * contents, flushes, contexts, devices.
 */
#include "engine/soft/direct.h"
#include "engine/soft/kernel_window.h"
#include "engine/soft/places.h"
#include "engine/soft/tlb.h"
#include "engine/soft/window.h"
#include "memory/physmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/*
 * 2 MiB of RAM at 0, ROM at 0xfff00000. Tables: the page at PAGE maps to gpa 0x20000, the next ones
 * to 0x21000 ... (linear map of 16 pages), and LARGE to the 2 MiB page at 0.
 */
enum { FAR_OFFSET = 0x800 }; /* where soft_code_is_far() says yes */
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, PT = 0x4000, OTHER_PML4 = 0x5000 };
#define PAGE   0x40000000ul
#define LARGE  0x40200000ul
#define ALIAS  0x40400000ul /* hashes to the entries of PAGE */
#define DATA   0x20000ul
#define DEVICE 0xfec00000ul
#define ROM    0xfff00000ul
#define ALL    (PTE_P | PTE_RW | PTE_US)

struct fixture {
	struct physmap pm;
	struct cpuid_model cpuid;
	struct soft_vm vm;
	struct soft_cpu c;
	u32 access; /* ACC_USER: read8() and its like act in user mode */
	u32 stores; /* calls of soft_code_stored() */
	u64 stored_page;
	u32 stored_offset, stored_len;
};

static struct fixture *current;

/* The parts of the engine that the MMU calls. */
bool soft_code_stored(struct soft_vm *vm, u64 page, u32 offset, u32 len)
{
	(void)vm;
	current->stores++;
	current->stored_page = page;
	current->stored_offset = offset;
	current->stored_len = len;
	return true;
}

bool soft_code_is_far(const struct soft_vm *vm, u64 page, u32 offset, u32 len)
{
	(void)vm, (void)page, (void)len;
	return offset == FAR_OFFSET;
}

void soft_fpu_park(struct soft_cpu *c)
{
	(void)c;
}

/* There are no windows here. */
struct soft_window *window_find(struct soft_cpu *c, u64 root)
{
	(void)c, (void)root;
	return NULL;
}

void window_flush(struct soft_ctx *ctx)
{
	(void)ctx;
}

void window_flush_page(struct soft_cpu *c, struct soft_ctx *ctx, gva_t gva)
{
	(void)c, (void)ctx, (void)gva;
}

void windows_protect(struct soft_vm *vm, u64 page, u64 host)
{
	(void)vm, (void)page, (void)host;
}

void windows_root_stored(struct soft_vm *vm, u64 page)
{
	(void)vm, (void)page;
}

void windows_code_stored(struct soft_vm *vm, u64 page)
{
	(void)vm, (void)page;
}

void kernel_window_look(struct soft_cpu *c)
{
	(void)c;
}

bool kernel_window_knows(struct soft_cpu *c, gva_t gva, bool write, struct soft_xlat *x)
{
	(void)c, (void)gva, (void)write, (void)x;
	return false;
}

void kernel_window_drop_local(struct soft_cpu *c, bool flush)
{
	(void)c, (void)flush;
}

void kernel_window_flush(struct soft_cpu *c)
{
	(void)c;
}

void kernel_window_flush_page(struct soft_cpu *c, gva_t gva)
{
	(void)c;
	(void)gva;
}

void places_forget(struct soft_cpu *c)
{
	c->places_known = 0;
}

void windows_destroy(struct soft_cpu *c)
{
	(void)c;
}

void direct_destroy(struct soft_cpu *c)
{
	(void)c;
}

static u8 *ram(struct fixture *f, gpa_t gpa)
{
	return f->pm.region[0].hva + gpa;
}

static void put(struct fixture *f, gpa_t gpa, u64 value)
{
	memcpy(ram(f, gpa), &value, 8);
}

static u64 get(struct fixture *f, gpa_t gpa)
{
	u64 value;

	memcpy(&value, ram(f, gpa), 8);
	return value;
}

static void map_page(struct fixture *f, u32 n, u64 entry)
{
	put(f, PT + n * 8, entry);
}

static int setup(void **state)
{
	struct fixture *f = aligned_alloc(64, align_up(sizeof(*f), 64));
	struct soft_cpu *c = &f->c;

	memset(f, 0, sizeof(*f));
	current = f;
	physmap_init(&f->pm);
	assert_int_equal(physmap_add(&f->pm, 0, 2 * MIB, 0, NULL), 0);
	assert_int_equal(physmap_add(&f->pm, ROM, 0x10000, PHYSMAP_ROM, NULL), 0);
	f->cpuid.phys_bits = 40;
	f->vm.physmap = &f->pm;
	f->vm.cpuid = &f->cpuid;
	f->vm.page_flags = calloc(f->pm.pages, 1);
	f->vm.cpu[0] = c;
	f->vm.cpus = 1;
	c->vm = &f->vm;
	c->ibt_miss[HALF_SUPER] = 0x1234;
	c->ibt_miss[HALF_USER] = 0x2345;
	c->ibt_leave = 0x3456;
	c->cr0 = CR0_PE | CR0_PG | CR0_WP;
	c->cr4 = CR4_PAE | CR4_PGE;
	c->efer = EFER_LME | EFER_LMA | EFER_NXE;
	c->cr3 = PML4;
	c->seg[SEG_CS].l = 1;
	put(f, PML4, PDPT | ALL);
	put(f, OTHER_PML4, PDPT | ALL);
	put(f, PDPT + 8, PD | ALL);
	put(f, PD, PT | ALL);
	put(f, PD + 8, 0 | ALL | PTE_PS);
	put(f, PD + 16, PT | ALL);
	for (u32 n = 0; n < 16; n++)
		map_page(f, n, (DATA + n * PAGE_SIZE) | ALL);
	assert_int_equal(soft_contexts_init(c), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	soft_contexts_destroy(&f->c);
	free((void *)f->vm.page_flags);
	physmap_destroy(&f->pm);
	free(f);
	return 0;
}

static struct tlb_entry *entry(struct fixture *f, gva_t gva)
{
	return &soft_half(&f->c, tlb_half(f->access))->tlb[tlb_index(gva)];
}

static bool can_read(struct fixture *f, gva_t gva)
{
	return entry(f, gva)->tag_read == (gva & PAGE_MASK);
}

static bool can_write(struct fixture *f, gva_t gva)
{
	return entry(f, gva)->tag_write == (gva & PAGE_MASK);
}

static u64 read8(struct fixture *f, gva_t gva)
{
	u64 value;

	assert_int_equal(soft_read(&f->c, gva, &value, 8, ACC_READ | f->access), SOFT_OK);
	return value;
}

static void write8(struct fixture *f, gva_t gva, u64 value)
{
	assert_int_equal(soft_write(&f->c, gva, &value, 8, ACC_WRITE | f->access), SOFT_OK);
}

static void assert_fault(struct fixture *f, int status, u64 cr2, u32 error)
{
	assert_int_equal(status, SOFT_FAULT);
	assert_int_equal(f->c.exc.vector, VEC_PF);
	assert_int_equal(f->c.exc.cr2, cr2);
	assert_true(f->c.exc.has_error);
	assert_int_equal(f->c.exc.error, error);
}

static void reads_and_writes_by_any_length(void **state)
{
	struct fixture *f = *state;
	u8 out[4096], in[4096];

	for (u32 i = 0; i < sizeof(out); i++)
		out[i] = (u8)(i * 7 + 1);
	for (u32 len = 1; len <= 4096; len = len * 2 + (len & 1)) {
		gva_t gva = PAGE + PAGE_SIZE - len / 2;

		soft_tlb_flush_all(&f->c);
		memset(in, 0, sizeof(in));
		assert_int_equal(soft_write(&f->c, gva, out, len, ACC_WRITE), SOFT_OK);
		assert_memory_equal(ram(f, DATA + PAGE_SIZE - len / 2), out, len);
		for (u32 pass = 0; pass < 2; pass++)
			assert_int_equal(soft_read(&f->c, gva, in, len, ACC_READ), SOFT_OK);
		assert_memory_equal(in, out, len);
	}
}

static void write_tag_waits_for_the_dirty_flag(void **state)
{
	struct fixture *f = *state;

	read8(f, PAGE);
	assert_true(can_read(f, PAGE));
	assert_false(can_write(f, PAGE));
	assert_int_equal(get(f, PT) & (PTE_A | PTE_D), PTE_A);
	write8(f, PAGE, 5);
	assert_true(can_write(f, PAGE));
	assert_int_equal(get(f, PT) & (PTE_A | PTE_D), PTE_A | PTE_D);
	soft_tlb_flush_page(&f->c, PAGE);
	assert_false(can_read(f, PAGE) || can_write(f, PAGE));
	assert_int_equal(read8(f, PAGE), 5);
	assert_true(can_write(f, PAGE));
}

static void empty_entries_match_nothing(void **state)
{
	struct fixture *f = *state;

	for (u64 i = 0; i < TLB_SIZE; i++)
		for (u32 size = 1; size <= 64; size *= 2) {
			u64 gva = i << PAGE_SHIFT | (PAGE_SIZE - 1);
			const struct tlb_entry *e = &soft_half(&f->c, HALF_USER)->tlb[i];

			assert_true((gva ^ e->tag_read) > PAGE_SIZE - size);
			assert_true((gva ^ e->tag_write) > PAGE_SIZE - size);
		}
}

static void faults_name_the_page_and_change_nothing(void **state)
{
	struct fixture *f = *state;
	u64 before = 0x1111111111111111, value = ~0ul;

	map_page(f, 1, 0);
	write8(f, PAGE + 4088, before);
	assert_fault(f, soft_write(&f->c, PAGE + 4092, &value, 8, ACC_WRITE), PAGE + 4096, PF_W);
	assert_int_equal(read8(f, PAGE + 4088), before);
	assert_fault(f, soft_read(&f->c, PAGE + 4092, &value, 8, ACC_READ | ACC_USER), PAGE + 4096,
		     PF_U);
	map_page(f, 1, (DATA + 4096) | PTE_P);
	assert_fault(f, soft_write(&f->c, PAGE + 4100, &value, 8, ACC_WRITE | ACC_USER),
		     PAGE + 4100, PF_P | PF_W | PF_U);
	assert_int_equal(soft_read(&f->c, BIT(47), &value, 8, ACC_READ), SOFT_FAULT);
	assert_int_equal(f->c.exc.vector, VEC_GP);
}

static void halves_do_not_share_entries(void **state)
{
	struct fixture *f = *state;
	u64 value;

	map_page(f, 0, DATA | PTE_P | PTE_RW);
	write8(f, PAGE, 1);
	assert_fault(f, soft_read(&f->c, PAGE, &value, 8, ACC_READ | ACC_USER), PAGE, PF_P | PF_U);
}

static void stores_to_code_are_told(void **state)
{
	struct fixture *f = *state;
	bool filled;
	void *host;

	f->vm.page_flags[DATA / PAGE_SIZE] = PAGE_HAS_CODE;
	assert_int_equal(soft_tlb_fill(&f->c, PAGE, ACC_WRITE, &filled), SOFT_OK);
	assert_false(filled);
	assert_true(can_read(f, PAGE));
	write8(f, PAGE + 16, 3);
	assert_false(can_write(f, PAGE));
	assert_int_equal(f->stores, 1);
	assert_int_equal(f->stored_page, DATA / PAGE_SIZE);
	assert_int_equal(f->stored_offset, 16);
	assert_int_equal(f->stored_len, 8);
	assert_true(f->c.code_changed);
	assert_int_equal(get(f, DATA + 16), 3);
	assert_int_equal(soft_pin_write(&f->c, PAGE, 8, ACC_WRITE, &host), SOFT_OK);
	assert_null(host);
	write8(f, PAGE + 4096 + 4092 - 4096, 7); /* crosses out of the code page */
	assert_int_equal(f->stores, 2);
	assert_int_equal(f->stored_len, 4);
	f->c.code_changed = false;
	write8(f, PAGE + FAR_OFFSET, 8);
	assert_int_equal(f->stores, 2);
	assert_false(f->c.code_changed);
	assert_int_equal(get(f, DATA + FAR_OFFSET), 8);
}

static void watched_pages_are_looked_for_once(void **state)
{
	struct fixture *f = *state;
	_Atomic u8 *flags = f->vm.page_flags;
	u64 value = 9;

	flags[DATA / PAGE_SIZE] = flags[DATA / PAGE_SIZE + 1] = PAGE_HAS_CODE;
	write8(f, PAGE, 1);
	map_page(f, 0, (DATA + PAGE_SIZE) | ALL); /* not flushed: need not be seen */
	write8(f, PAGE + 24, 2);
	assert_int_equal(get(f, DATA + 24), 2);
	assert_int_equal(f->stored_page, DATA / PAGE_SIZE);
	assert_int_equal(f->stored_offset, 24);
	soft_tlb_flush_page(&f->c, PAGE);
	write8(f, PAGE + 24, 3);
	assert_int_equal(get(f, DATA + PAGE_SIZE + 24), 3);
	assert_int_equal(f->stored_page, DATA / PAGE_SIZE + 1);
	assert_int_equal(f->stores, 3);
	/* The same page, but no longer writable. */
	map_page(f, 0, (DATA + PAGE_SIZE) | PTE_P);
	soft_tlb_flush_page(&f->c, PAGE);
	read8(f, PAGE);
	assert_fault(f, soft_write(&f->c, PAGE, &value, 8, ACC_WRITE), PAGE, PF_P | PF_W);
	map_page(f, 0, (DATA + PAGE_SIZE) | ALL);
	soft_tlb_flush_page(&f->c, PAGE);
	write8(f, PAGE, 4);
	/* Nobody watches it any more. */
	flags[DATA / PAGE_SIZE + 1] = 0;
	write8(f, PAGE, 5);
	assert_true(can_write(f, PAGE));
	assert_int_equal(f->stores, 4);
}

static void watched_pages_are_those_of_their_address_space(void **state)
{
	enum { OTHER_PDPT = 0x6000, OTHER_PD = 0x7000, OTHER_PT = 0x8000 };
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	_Atomic u8 *flags = f->vm.page_flags;

	put(f, OTHER_PML4, OTHER_PDPT | ALL);
	put(f, OTHER_PDPT + 8, OTHER_PD | ALL);
	put(f, OTHER_PD, OTHER_PT | ALL);
	put(f, OTHER_PT, (DATA + PAGE_SIZE) | ALL);
	flags[DATA / PAGE_SIZE] = flags[DATA / PAGE_SIZE + 1] = PAGE_HAS_CODE;
	f->access = ACC_USER;
	c->cr4 |= CR4_PCIDE;
	for (u64 n = 0; n < 6; n += 2) {
		soft_load_cr3(c, PML4 | 1 | (n ? CR3_NOFLUSH : 0), false);
		write8(f, PAGE, n);
		soft_load_cr3(c, OTHER_PML4 | 2 | (n ? CR3_NOFLUSH : 0), false);
		write8(f, PAGE, n + 1);
		assert_int_equal(get(f, DATA), n);
		assert_int_equal(get(f, DATA + PAGE_SIZE), n + 1);
	}
	/* The other half has a mapping of its own. */
	f->access = 0;
	write8(f, PAGE, 7);
	assert_int_equal(get(f, DATA + PAGE_SIZE), 7);
}

static void write_tags_are_dropped_for_code(void **state)
{
	struct fixture *f = *state;

	write8(f, PAGE, 1);
	write8(f, LARGE + DATA, 1); /* an alias */
	write8(f, PAGE + 4096, 1);
	soft_drop_write_tags(&f->vm, DATA / PAGE_SIZE, ram(f, DATA));
	assert_true(can_read(f, PAGE) && !can_write(f, PAGE));
	assert_false(can_write(f, LARGE + DATA));
	assert_true(can_write(f, PAGE + 4096));
}

static void first_store_clears_the_dirty_log(void **state)
{
	struct fixture *f = *state;
	_Atomic u8 *flags = f->vm.page_flags;

	flags[DATA / PAGE_SIZE] = flags[PT / PAGE_SIZE] = PAGE_LOG_DIRTY;
	read8(f, PAGE);
	assert_int_equal(flags[DATA / PAGE_SIZE], PAGE_LOG_DIRTY);
	assert_int_equal(flags[PT / PAGE_SIZE], 0); /* the accessed flag was stored there */
	write8(f, PAGE, 1);
	assert_int_equal(flags[DATA / PAGE_SIZE], 0);
	write8(f, PAGE, 1);
	assert_true(can_write(f, PAGE));
}

static void rom_keeps_its_bytes(void **state)
{
	struct fixture *f = *state;
	struct soft_xlat x;
	void *host;

	f->pm.region[1].hva[8] = 0x77;
	map_page(f, 2, ROM | ALL | PTE_D | PTE_A);
	assert_int_equal(read8(f, PAGE + 0x2008), 0x77);
	write8(f, PAGE + 0x2008, ~0ul);
	assert_int_equal(read8(f, PAGE + 0x2008), 0x77);
	assert_false(can_write(f, PAGE + 0x2000));
	assert_int_equal(soft_translate(&f->c, PAGE + 0x2008, ACC_WRITE, &x), SOFT_OK);
	assert_true(x.rom && !x.writable);
	assert_int_equal(soft_pin_write(&f->c, PAGE + 0x2008, 4, ACC_WRITE, &host), SOFT_OK);
	assert_null(host);
}

/* Complete the exit as the run loop does. */
static void complete(struct soft_cpu *c, u64 data)
{
	c->frag[c->frag_count++] = (struct soft_fragment){.addr = c->exit.mmio.gpa,
							  .size = c->exit.mmio.size,
							  .write = c->exit.mmio.write,
							  .data = data};
	c->frag_next = 0;
}

static void device_reads_come_in_aligned_pieces(void **state)
{
	static const struct {
		u32 off, size;
	} pieces[] = {{3, 1}, {4, 4}, {8, 2}, {10, 1}};
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	u8 buf[8];

	map_page(f, 3, DEVICE | ALL);
	for (u32 i = 0; i < ARRAY_SIZE(pieces); i++) {
		assert_int_equal(soft_read(c, PAGE + 0x3003, buf, 8, ACC_READ), SOFT_EXIT);
		assert_int_equal(c->exit.type, EXIT_MMIO);
		assert_int_equal(c->exit.mmio.gpa, DEVICE + pieces[i].off);
		assert_int_equal(c->exit.mmio.size, pieces[i].size);
		assert_false(c->exit.mmio.write);
		complete(c, 0x0807060504030201ul + i);
	}
	assert_int_equal(soft_read(c, PAGE + 0x3003, buf, 8, ACC_READ), SOFT_OK);
	assert_memory_equal(buf, "\x01\x02\x02\x03\x04\x03\x02\x04", 8);
	assert_false(can_read(f, PAGE + 0x3000));
}

static void device_part_of_a_write_goes_first(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	u64 value = 0x8877665544332211, before;

	map_page(f, 3, DEVICE | ALL);
	before = get(f, DATA + 0x2ff8);
	assert_int_equal(soft_write(c, PAGE + 0x2ffc, &value, 8, ACC_WRITE), SOFT_EXIT);
	assert_true(c->exit.mmio.write);
	assert_int_equal(c->exit.mmio.gpa, DEVICE);
	assert_int_equal(c->exit.mmio.size, 4);
	assert_int_equal(c->exit.mmio.data, 0x88776655);
	assert_int_equal(get(f, DATA + 0x2ff8), before);
	complete(c, 0);
	assert_int_equal(soft_write(c, PAGE + 0x2ffc, &value, 8, ACC_WRITE), SOFT_OK);
	assert_int_equal(get(f, DATA + 0x2ff8) >> 32, 0x44332211);
}

static void fragments_of_another_access_are_void(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	u64 data;

	assert_int_equal(soft_device_read(c, false, DEVICE, 4, &data), SOFT_EXIT);
	complete(c, 42);
	assert_int_equal(soft_device_read(c, false, DEVICE + 4, 4, &data), SOFT_EXIT);
	assert_int_equal(c->frag_count, 0);
	assert_int_equal(soft_device_write(c, true, 0x80, 1, 0x55), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_PIO);
	assert_int_equal(c->exit.pio.port, 0x80);
	assert_false(c->exit.pio.in);
	assert_int_equal(c->exit.pio.data, 0x55);
}

static void huge_device_accesses_end(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	u8 buf[512];
	u32 exits = 0;

	map_page(f, 3, DEVICE | ALL);
	while (soft_read(c, PAGE + 0x3000, buf, sizeof(buf), ACC_READ) == SOFT_EXIT) {
		complete(c, 0);
		assert_true(++exits < SOFT_FRAGMENTS);
	}
	assert_int_equal(buf[0], 0);
	assert_int_equal(buf[511], 0xff);
}

static void pins_only_what_may_be_written_directly(void **state)
{
	struct fixture *f = *state;
	void *host;

	assert_int_equal(soft_pin_write(&f->c, PAGE + 8, 8, ACC_WRITE, &host), SOFT_OK);
	assert_ptr_equal(host, ram(f, DATA + 8));
	assert_int_equal(soft_pin_write(&f->c, PAGE + 8, 8, ACC_WRITE, &host), SOFT_OK);
	assert_ptr_equal(host, ram(f, DATA + 8));
	assert_int_equal(soft_pin_write(&f->c, PAGE + 4092, 8, ACC_WRITE, &host), SOFT_OK);
	assert_null(host);
	map_page(f, 5, 0);
	assert_fault(f, soft_pin_write(&f->c, PAGE + 0x5000, 8, ACC_WRITE, &host), PAGE + 0x5000,
		     PF_W);
}

static void fetches_up_to_what_is_mapped(void **state)
{
	struct fixture *f = *state;
	struct soft_xlat x;
	u8 buf[15];
	u32 len;

	memset(ram(f, DATA), 0x90, 3 * PAGE_SIZE);
	ram(f, DATA + PAGE_SIZE)[0] = 0xcc;
	map_page(f, 2, (DATA + 2 * PAGE_SIZE) | ALL | PTE_NX);
	assert_int_equal(soft_fetch(&f->c, PAGE + 4090, buf, &len), SOFT_OK);
	assert_int_equal(len, 15);
	assert_int_equal(buf[5], 0x90);
	assert_int_equal(buf[6], 0xcc);
	assert_int_equal(soft_fetch(&f->c, PAGE + 0x1ffc, buf, &len), SOFT_OK);
	assert_int_equal(len, 4);
	assert_fault(f, soft_fetch(&f->c, PAGE + 0x2000, buf, &len), PAGE + 0x2000, PF_P | PF_I);
	map_page(f, 3, DEVICE | ALL);
	assert_int_equal(soft_fetch(&f->c, PAGE + 0x3000, buf, &len), SOFT_OK);
	assert_int_equal(buf[0], 0xff);
	/* Found again without a walk, until flushed. */
	map_page(f, 0, 0);
	assert_int_equal(soft_translate(&f->c, PAGE + 5, ACC_FETCH, &x), SOFT_OK);
	assert_ptr_equal(x.host, ram(f, DATA + 5));
	assert_int_equal(x.gpa, DATA + 5);
	soft_tlb_flush_page(&f->c, PAGE);
	assert_fault(f, soft_translate(&f->c, PAGE + 5, ACC_FETCH, &x), PAGE + 5, PF_I);
}

static void sdm_4_10_4_1_invlpg_of_large_pages(void **state)
{
	struct fixture *f = *state;
	struct soft_xlat x;

	read8(f, LARGE + 0x3000);
	read8(f, LARGE + 0x103000);
	read8(f, PAGE);
	soft_translate(&f->c, LARGE + 0x7000, ACC_FETCH, &x);
	soft_tlb_flush_page(&f->c, LARGE + 0x50000);
	assert_false(can_read(f, LARGE + 0x3000));
	assert_false(can_read(f, LARGE + 0x103000));
	assert_true(can_read(f, PAGE));
	put(f, PD + 8, 0);
	assert_int_equal(soft_translate(&f->c, LARGE + 0x7000, ACC_FETCH, &x), SOFT_FAULT);
}

/* Enter and flush the same page until no log can hold that. */
static void overflow_the_log(struct fixture *f)
{
	for (u32 n = 0; n <= CTX_LOG; n++) {
		read8(f, PAGE);
		soft_tlb_flush_page(&f->c, PAGE);
	}
}

static void many_entries_overflow_the_log(void **state)
{
	struct fixture *f = *state;

	for (u32 half = 0; half < HALVES; half++) {
		f->access = half == HALF_USER ? ACC_USER : 0;
		overflow_the_log(f);
		assert_true(soft_half(&f->c, half)->tlb_logged > CTX_LOG);
		for (u32 n = 0; n < 512; n++)
			read8(f, LARGE + n * PAGE_SIZE);
		soft_tlb_flush_context(&f->c);
		for (u32 n = 0; n < 512; n++)
			assert_false(can_read(f, LARGE + n * PAGE_SIZE));
		soft_tlb_flush_all(&f->c);
		assert_int_equal(soft_half(&f->c, half)->tlb_logged, 0);
		read8(f, LARGE);
		assert_int_equal(soft_half(&f->c, half)->tlb_logged, 1);
	}
}

static void mov_cr3_without_pcids_flushes(void **state)
{
	struct fixture *f = *state;

	for (u32 half = 0; half < HALVES; half++) {
		f->access = half == HALF_USER ? ACC_USER : 0;
		read8(f, PAGE);
		soft_load_cr3(&f->c, PML4, true);
		assert_false(can_read(f, PAGE));
	}
}

static void pcids_keep_their_entries(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	f->access = ACC_USER;
	c->cr4 |= CR4_PCIDE;
	soft_load_cr3(c, PML4 | 1, true);
	read8(f, PAGE);
	soft_load_cr3(c, OTHER_PML4 | 2 | CR3_NOFLUSH, false);
	assert_int_equal(c->cr3, OTHER_PML4 | 2);
	assert_false(can_read(f, PAGE));
	soft_load_cr3(c, PML4 | 1 | CR3_NOFLUSH, false);
	assert_true(can_read(f, PAGE));
	soft_invpcid(c, 1, 1, 0);
	assert_false(can_read(f, PAGE));
	read8(f, PAGE);
	soft_load_cr3(c, OTHER_PML4 | 2 | CR3_NOFLUSH, false);
	soft_invpcid(c, 0, 1, PAGE + 5);
	soft_load_cr3(c, PML4 | 1 | CR3_NOFLUSH, false);
	assert_false(can_read(f, PAGE));
	read8(f, PAGE);
	soft_load_cr3(c, PML4 | 1, true);
	assert_false(can_read(f, PAGE));
}

static void more_pcids_than_contexts(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	f->access = ACC_USER;
	c->cr4 |= CR4_PCIDE;
	for (u32 pcid = 1; pcid <= 2 * SOFT_CONTEXTS; pcid++) {
		soft_load_cr3(c, PML4 | pcid, false);
		assert_false(can_read(f, PAGE));
		read8(f, PAGE);
	}
	soft_load_cr3(c, PML4 | 1, false); /* forgotten */
	assert_false(can_read(f, PAGE));
	soft_load_cr3(c, PML4 | (2 * SOFT_CONTEXTS), false);
	assert_true(can_read(f, PAGE));
	soft_load_cr3(c, PML4 | 0xfff, false); /* looks like a free context's mark */
	assert_false(can_read(f, PAGE));
	soft_tlb_flush_all(c);
	soft_load_cr3(c, PML4 | (2 * SOFT_CONTEXTS), false);
	assert_false(can_read(f, PAGE));
}

static void invlpg_drops_global_entries_everywhere(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	f->access = ACC_USER;
	c->cr4 |= CR4_PCIDE;
	map_page(f, 0, DATA | ALL | PTE_G);
	soft_load_cr3(c, PML4 | 1, true);
	read8(f, PAGE);
	soft_load_cr3(c, PML4 | 2, true);
	soft_tlb_flush_page(c, PAGE);
	soft_load_cr3(c, PML4 | 1, false);
	assert_false(can_read(f, PAGE));
}

static void drops_reach_other_contexts(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	f->access = ACC_USER;
	c->cr4 |= CR4_PCIDE;
	soft_load_cr3(c, PML4 | 1, true);
	write8(f, PAGE, 1);
	soft_load_cr3(c, PML4 | 2, true);
	soft_drop_write_tags(&f->vm, DATA / PAGE_SIZE, ram(f, DATA));
	soft_load_cr3(c, PML4 | 1, false);
	assert_true(can_read(f, PAGE) && !can_write(f, PAGE));
}

static void supervisor_half_keeps_global_pages(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	c->cr4 |= CR4_PCIDE;
	map_page(f, 1, (DATA + PAGE_SIZE) | ALL | PTE_G);
	soft_load_cr3(c, PML4 | 1, true);
	read8(f, PAGE);
	read8(f, PAGE + PAGE_SIZE);
	soft_load_cr3(c, OTHER_PML4 | 2 | CR3_NOFLUSH, false);
	assert_false(can_read(f, PAGE));
	assert_true(can_read(f, PAGE + PAGE_SIZE));
	soft_tlb_flush_page(c, PAGE + PAGE_SIZE);
	assert_false(can_read(f, PAGE + PAGE_SIZE));
	/* The other context's pages are not those of the current one. */
	read8(f, PAGE);
	soft_invpcid(c, 1, 1, 0);
	assert_true(can_read(f, PAGE));
	soft_invpcid(c, 0, 2, PAGE);
	assert_false(can_read(f, PAGE));
	/* An entry that was local and became global stays. */
	map_page(f, 1, (DATA + PAGE_SIZE) | ALL);
	read8(f, ALIAS + PAGE_SIZE);
	map_page(f, 1, (DATA + PAGE_SIZE) | ALL | PTE_G);
	read8(f, PAGE + PAGE_SIZE);
	soft_load_cr3(c, PML4 | 1 | CR3_NOFLUSH, false);
	assert_true(can_read(f, PAGE + PAGE_SIZE));
	soft_load_cr3(c, PML4 | 1, true);
	assert_true(can_read(f, PAGE + PAGE_SIZE));
	soft_tlb_flush_all(c);
	assert_false(can_read(f, PAGE + PAGE_SIZE));
}

static void many_local_pages_are_dropped(void **state)
{
	struct fixture *f = *state;

	map_page(f, 1, (DATA + PAGE_SIZE) | ALL | PTE_G);
	read8(f, PAGE + PAGE_SIZE);
	overflow_the_log(f);
	assert_true(soft_half(&f->c, HALF_SUPER)->local_logged > CTX_LOG);
	for (u32 n = 0; n < 512; n++)
		read8(f, LARGE + n * PAGE_SIZE);
	soft_load_cr3(&f->c, PML4, true);
	for (u32 n = 0; n < 512; n++)
		assert_false(can_read(f, LARGE + n * PAGE_SIZE));
	assert_true(can_read(f, PAGE + PAGE_SIZE));
}

static u64 half_code(struct fixture *f, u32 half, gva_t gva)
{
	const struct ibt_entry *e = &soft_half(&f->c, half)->ibt[IBT_INDEX(gva)];
	const struct ibt_entry *second = &soft_half(&f->c, half)->ibt[IBT2_INDEX(gva)];

	if (e->code == f->c.ibt_miss[half] || e->minus_gva != -gva)
		e = second;
	return e->code == f->c.ibt_leave || e->minus_gva != -gva ? 0 : e->code;
}

static u64 ibt_code(struct fixture *f, gva_t gva)
{
	return half_code(f, HALF_SUPER, gva);
}

static void indirect_branches_follow_flushes(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	soft_ibt_insert(c, HALF_SUPER, 2, PAGE + 0x10, 0, 100);
	soft_ibt_insert(c, HALF_SUPER, 2, PAGE + 0x1ffc, 0, 200);
	soft_ibt_note_page(c, HALF_SUPER, PAGE + 0x2000, 0); /* that one straddles */
	soft_ibt_insert(c, HALF_SUPER, 2, PAGE + 0x3000, 0, 300);
	soft_tlb_flush_page(c, PAGE + 0x5000);
	assert_int_equal(ibt_code(f, PAGE + 0x10), 100);
	soft_tlb_flush_page(c, PAGE + 0x20);
	assert_int_equal(ibt_code(f, PAGE + 0x10), 0);
	assert_int_equal(ibt_code(f, PAGE + 0x1ffc), 200);
	soft_tlb_flush_page(c, PAGE + 0x2000);
	assert_int_equal(ibt_code(f, PAGE + 0x1ffc), 0);
	assert_int_equal(ibt_code(f, PAGE + 0x3000), 300);
	soft_ibt_insert(c, HALF_SUPER, 6, PAGE + 0x4000, 0, 400); /* another mode */
	assert_int_equal(ibt_code(f, PAGE + 0x3000), 0);
	assert_int_equal(ibt_code(f, PAGE + 0x4000), 400);
	/* the same entry of the first level */
	soft_ibt_insert(c, HALF_SUPER, 6, PAGE + 0x44000, 0, 500);
	assert_int_equal(ibt_code(f, PAGE + 0x4000), 400);
	assert_int_equal(ibt_code(f, PAGE + 0x44000), 500);
	soft_tlb_flush_page(c, PAGE + 0x4000);
	assert_int_equal(ibt_code(f, PAGE + 0x4000), 0);
	assert_int_equal(ibt_code(f, PAGE + 0x44000), 500);
	soft_ibt_flush_all(&f->vm);
	assert_int_equal(ibt_code(f, PAGE + 0x4000), 0);
	for (u32 n = 0; n < IBT_SIZE; n++)
		soft_ibt_insert(c, HALF_SUPER, 6, PAGE + n * 4, 0, n + 1);
	assert_int_equal(ibt_code(f, PAGE + (IBT_SIZE - 1) * 4), IBT_SIZE);
	soft_tlb_flush_all(c);
	for (u32 n = 0; n < IBT_SIZE; n++)
		assert_int_equal(ibt_code(f, PAGE + n * 4), 0);
}

/* A flush of the whole context leaves code that is found where it was. */
static void user_code_is_looked_for_after_a_flush(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;

	soft_ibt_insert(c, HALF_USER, 6, PAGE + 0x10, DATA, 100);
	soft_ibt_insert(c, HALF_USER, 6, PAGE + 0x1020, DATA + PAGE_SIZE, 200);
	soft_tlb_flush_context(c);
	assert_true(c->ctx->user.code_stale);
	soft_ibt_validate(c);
	assert_false(c->ctx->user.code_stale);
	assert_int_equal(half_code(f, HALF_USER, PAGE + 0x10), 100);
	map_page(f, 1, (DATA + 5 * PAGE_SIZE) | ALL);
	soft_load_cr3(c, PML4, true);
	assert_true(c->ctx->user.code_stale);
	soft_ibt_validate(c);
	assert_int_equal(half_code(f, HALF_USER, PAGE + 0x1020), 0);
	soft_ibt_insert(c, HALF_USER, 6, PAGE + 0x10, DATA, 100);
	map_page(f, 0, 0);
	soft_tlb_flush_context(c);
	soft_ibt_validate(c);
	assert_int_equal(half_code(f, HALF_USER, PAGE + 0x10), 0);
	soft_ibt_insert(c, HALF_USER, 6, PAGE + 0x2010, DATA + 2 * PAGE_SIZE, 300);
	soft_load_cr3(c, OTHER_PML4, true); /* another address space */
	assert_int_equal(half_code(f, HALF_USER, PAGE + 0x2010), 0);
}

static void local_code_goes_with_its_address_space(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	struct soft_xlat x;

	map_page(f, 1, (DATA + PAGE_SIZE) | ALL | PTE_G);
	soft_translate(c, PAGE + PAGE_SIZE, ACC_FETCH, &x);
	soft_ibt_insert(c, HALF_SUPER, 2, PAGE + PAGE_SIZE, 0, 100);
	soft_load_cr3(c, PML4, true);
	assert_int_equal(ibt_code(f, PAGE + PAGE_SIZE), 100);
	soft_translate(c, PAGE, ACC_FETCH, &x);
	soft_ibt_insert(c, HALF_SUPER, 2, PAGE, 0, 200);
	soft_load_cr3(c, PML4, true);
	assert_int_equal(ibt_code(f, PAGE), 0);
}

static void without_paging(void **state)
{
	struct fixture *f = *state;
	struct soft_cpu *c = &f->c;
	u64 value = 0x1122334455667788;

	c->cr0 = CR0_PE;
	c->cr4 = c->efer = 0;
	c->seg[SEG_CS].l = 0;
	soft_tlb_flush_all(c);
	write8(f, 0x8000, value);
	assert_int_equal(get(f, 0x8000), value);
	/* Linear addresses wrap at 4 GiB; there is ROM at one end and RAM at the other. */
	assert_int_equal(physmap_add(&f->pm, 0xfffff000, PAGE_SIZE, PHYSMAP_ROM, NULL), 0);
	free((void *)f->vm.page_flags);
	f->vm.page_flags = calloc(f->pm.pages, 1);
	put(f, 0, 0x0102030405060708);
	assert_int_equal(read8(f, 0xfffffffc), 0x0506070800000000);
}

static void page_tables_outside_ram(void **state)
{
	struct fixture *f = *state;
	u64 value;

	soft_load_cr3(&f->c, 0x7000000000, true);
	assert_fault(f, soft_read(&f->c, PAGE, &value, 8, ACC_READ), PAGE, PF_P | PF_RSVD);
	put(f, PML4, ROM | ALL); /* flags are not set there, and that is no error */
	memset(f->pm.region[1].hva, 0, 16);
	f->pm.region[1].hva[9] = PD >> 8;
	f->pm.region[1].hva[8] = ALL;
	soft_load_cr3(&f->c, PML4, true);
	read8(f, PAGE);
	assert_int_equal(f->pm.region[1].hva[8], ALL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(reads_and_writes_by_any_length),
		TEST(write_tag_waits_for_the_dirty_flag),
		TEST(empty_entries_match_nothing),
		TEST(faults_name_the_page_and_change_nothing),
		TEST(halves_do_not_share_entries),
		TEST(stores_to_code_are_told),
		TEST(watched_pages_are_looked_for_once),
		TEST(watched_pages_are_those_of_their_address_space),
		TEST(write_tags_are_dropped_for_code),
		TEST(first_store_clears_the_dirty_log),
		TEST(rom_keeps_its_bytes),
		TEST(device_reads_come_in_aligned_pieces),
		TEST(device_part_of_a_write_goes_first),
		TEST(fragments_of_another_access_are_void),
		TEST(huge_device_accesses_end),
		TEST(pins_only_what_may_be_written_directly),
		TEST(fetches_up_to_what_is_mapped),
		TEST(sdm_4_10_4_1_invlpg_of_large_pages),
		TEST(many_entries_overflow_the_log),
		TEST(mov_cr3_without_pcids_flushes),
		TEST(pcids_keep_their_entries),
		TEST(more_pcids_than_contexts),
		TEST(invlpg_drops_global_entries_everywhere),
		TEST(drops_reach_other_contexts),
		TEST(supervisor_half_keeps_global_pages),
		TEST(many_local_pages_are_dropped),
		TEST(indirect_branches_follow_flushes),
		TEST(user_code_is_looked_for_after_a_flush),
		TEST(local_code_goes_with_its_address_space),
		TEST(without_paging),
		TEST(page_tables_outside_ram),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
