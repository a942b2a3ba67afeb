/*
 * Paging: permissions and error codes, accessed and dirty bits, page sizes, reserved bits,
 * invalidation, accesses across two pages.
 */
#include "guest.h"

#define PRESENT (PTE_P | PTE_W | PTE_U)

/* The access under test: rax is its address, rcx what is stored. */
CODE_AT(load, "", "mov (%rax), %rbx", "");
CODE_AT(store, "", "mov %rcx, (%rax)", "");
CODE_AT(add, "", "add %rcx, (%rax)", "");
CODE_AT(jump, "", "jmp *%rax", "");

enum access { LOAD, STORE, ADD, FETCH };

static struct state access(enum exec_mode mode, enum access kind, u64 address)
{
	static const u8 *const code[] = {load, store, add, jump};
	struct state s = state_for(mode, code[kind]);

	s.rax = address;
	s.rcx = 0x1122334455667788;
	s.rbx = 0xdead;
	exec(&s);
	return s;
}

/* The access must raise #PF with @error and leave its registers alone. */
static void check_fault(enum exec_mode mode, enum access kind, u64 address, u64 error, int line)
{
	struct state s = access(mode, kind, address);

	check(s.vector == VEC_PF && s.error == error && s.cr2 == address,
	      "line %d: vector %d error 0x%lx cr2 0x%lx, not #PF 0x%lx cr2 0x%lx", line,
	      (int)s.vector, s.error, s.cr2, error, address);
	check(s.rbx == 0xdead && s.rax == address, "line %d: registers changed", line);
	if (kind == FETCH)
		check(s.rip == address, "line %d: rip 0x%lx", line, s.rip);
}

static void check_works(enum exec_mode mode, enum access kind, u64 address, int line)
{
	struct state s = access(mode, kind, address);

	check(s.vector == VEC_DONE, "line %d: vector %d error 0x%lx cr2 0x%lx", line, (int)s.vector,
	      s.error, s.cr2);
}

#define faults(mode, kind, address, error) check_fault(mode, kind, address, error, __LINE__)
#define works(mode, kind, address)         check_works(mode, kind, address, __LINE__)

/* A page that begins with INT VEC_DONE, so that it can be fetched from. */
static u64 code_page(void)
{
	u8 *p = page_alloc();

	p[0] = 0xcd;
	p[1] = VEC_DONE;
	return (u64)p;
}

static void not_present(void)
{
	u64 at = TEST_AREA + 0x123000 + 0x678;

	faults(KERNEL64, LOAD, at, 0);
	faults(KERNEL64, STORE, at, PF_W);
	faults(KERNEL64, ADD, at, PF_W);
	faults(KERNEL64, FETCH, at, PF_I);
	faults(USER64, LOAD, at, PF_U);
	faults(USER64, STORE, at, PF_U | PF_W);
	faults(USER64, ADD, at, PF_U | PF_W);
	faults(USER64, FETCH, at, PF_U | PF_I);
	faults(USER64, LOAD, TEST_HIGH + 0x10, PF_U);
	faults(KERNEL64, STORE, TEST_HIGH + 0x10, PF_W);
}

static void permissions(void)
{
	u64 pa = code_page(), at = TEST_AREA;

	page_map(at, pa, PTE_P | PTE_U);
	works(USER64, LOAD, at);
	works(KERNEL64, LOAD, at);
	works(USER64, FETCH, at);
	faults(USER64, STORE, at, PF_P | PF_W | PF_U);
	faults(KERNEL64, STORE, at, PF_P | PF_W);
	faults(USER64, ADD, at, PF_P | PF_W | PF_U);

	page_map(at, pa, PTE_P | PTE_W);
	works(KERNEL64, FETCH, at);
	works(KERNEL64, STORE, at + 64);
	faults(USER64, LOAD, at, PF_P | PF_U);
	faults(USER64, STORE, at, PF_P | PF_U | PF_W);
	faults(USER64, FETCH, at, PF_P | PF_U | PF_I);

	page_map(at, pa, PRESENT | PTE_NX);
	works(USER64, STORE, at + 64);
	faults(USER64, FETCH, at, PF_P | PF_U | PF_I);
	faults(KERNEL64, FETCH, at, PF_P | PF_I);

	page_map(at, pa, PRESENT);
	works(USER64, FETCH, at);
	works(USER32, FETCH, at);
}

CODE_AT(copy, "", "rep movsb", "");

/* The kernel copies a byte of memory that user code has just used, to memory of that kind. */
static struct state copy_byte(u64 from, u64 to)
{
	struct state s = state_for(KERNEL64, copy);

	works(USER64, LOAD, from);
	write_cr3(read_cr3());
	works(USER64, LOAD, from);
	works(USER64, LOAD, to);
	s.rsi = from;
	s.rdi = to;
	s.rcx = 1;
	exec(&s);
	return s;
}

static void after_user_code(void)
{
	const u64 from = TEST_AREA + 0x3000, to = TEST_AREA + 0x4000;
	volatile u8 *page[2] = {page_alloc(), page_alloc()}, *target = page_alloc();
	struct state s;
	u64 *entry;

	page[0][1] = 10;
	page[1][1] = 11;
	for (u32 n = 0; n < 8; n++) {
		entry = page_map(from, (u64)page[n & 1], PRESENT);
		page_map(to, (u64)target, PRESENT);
		s = copy_byte(from + 1, to + n);
		expect_done(&s, copy);
		expect_eq(target[n], 10 + (n & 1));
		*(volatile u64 *)entry = (u64)page[~n & 1] | PRESENT;
		s = copy_byte(from + 1, to + n);
		expect_eq(target[n], 10 + (~n & 1));
		page_map(to, (u64)target, PTE_P | PTE_U);
		s = copy_byte(from + 1, to + n);
		expect_trap(&s, VEC_PF, PF_P | PF_W, copy_at);
		expect_eq(s.cr2, to + n);
		faults(KERNEL64, STORE, to, PF_P | PF_W);
		page_map(to, 0, 0);
		faults(KERNEL64, LOAD, to, 0);
	}
}

/* Every level has its say. */
static void permissions_above(void)
{
	u64 pa = code_page(), at = 0x123456789000;

	page_map(at, pa, PRESENT);
	for (int level = 2; level <= 4; level++) {
		u64 *entry = page_entry(at, level), keep = *entry;

		works(USER64, STORE, at + 64);
		*entry = keep & ~PTE_W;
		invlpg((void *)at);
		works(USER64, LOAD, at);
		faults(USER64, STORE, at, PF_P | PF_U | PF_W);
		*entry = keep & ~PTE_U;
		invlpg((void *)at);
		works(KERNEL64, STORE, at + 64);
		faults(USER64, LOAD, at, PF_P | PF_U);
		*entry = keep | PTE_NX;
		invlpg((void *)at);
		works(USER64, LOAD, at);
		faults(USER64, FETCH, at, PF_P | PF_U | PF_I);
		*entry = keep & ~PTE_P;
		invlpg((void *)at);
		faults(USER64, LOAD, at, PF_U);
		*entry = keep;
		invlpg((void *)at);
	}
}

static void write_protect(void)
{
	u64 at = TEST_AREA;

	page_map(at, code_page(), PTE_P | PTE_U);
	faults(KERNEL64, STORE, at, PF_P | PF_W);
	write_cr0(read_cr0() & ~CR0_WP);
	works(KERNEL64, STORE, at + 64);
	works(KERNEL64, ADD, at + 64);
	faults(USER64, STORE, at + 64, PF_P | PF_W | PF_U);
	write_cr0(read_cr0() | CR0_WP);
	faults(KERNEL64, STORE, at, PF_P | PF_W);
	faults(KERNEL64, ADD, at, PF_P | PF_W);
}

static void accessed_and_dirty(void)
{
	u64 at = 0x234567890000;
	u64 *pte = page_map(at, code_page(), PRESENT);

	works(KERNEL64, LOAD, at);
	expect_eq(*pte & (PTE_A | PTE_D), PTE_A);
	for (int level = 2; level <= 4; level++)
		expect_eq(*page_entry(at, level) & PTE_A, PTE_A);
	/* The translation is cached by now; D must still come. */
	works(KERNEL64, STORE, at + 64);
	expect_eq(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);

	*pte &= ~(PTE_A | PTE_D);
	invlpg((void *)at);
	works(USER64, FETCH, at);
	expect_eq(*pte & (PTE_A | PTE_D), PTE_A);
	*pte &= ~(PTE_A | PTE_D);
	invlpg((void *)at);
	works(USER64, ADD, at + 64);
	expect_eq(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
}

/* What was denied was not written, so it is not dirty. */
static void dirty_after_fault(void)
{
	u64 at = TEST_AREA;
	u64 *pte = page_map(at, (u64)page_alloc(), PTE_P | PTE_U);

	faults(USER64, STORE, at, PF_P | PF_W | PF_U);
	expect_eq(*pte & PTE_D, 0);
	pte = page_map(at, (u64)page_alloc(), PTE_P | PTE_W);
	faults(USER64, STORE, at, PF_P | PF_W | PF_U);
	expect_eq(*pte & PTE_D, 0);
}

static void large_2m(void)
{
	u64 at = TEST_AREA + (4 << 20), pa = (u64)pages_alloc(512, 2 << 20);
	u64 *pde = page_entry(at, 2);

	*(volatile u64 *)(pa + 0x12340) = 0xabcdef;
	*pde = pa | PRESENT | PTE_PS;
	tlb_flush();
	expect_eq(access(USER64, LOAD, at + 0x12340).rbx, 0xabcdef);
	expect_eq(*pde & (PTE_A | PTE_D), PTE_A);
	works(USER64, STORE, at + 0x1ffff8);
	expect_eq(*(volatile u64 *)(pa + 0x1ffff8), 0x1122334455667788);
	expect_eq(*pde & (PTE_A | PTE_D), PTE_A | PTE_D);
	faults(USER64, LOAD, at + (2 << 20), PF_U);
	*pde = pa | PTE_P | PTE_PS | PTE_NX;
	tlb_flush();
	faults(USER64, LOAD, at + 0x3000, PF_U | PF_P);
	faults(KERNEL64, STORE, at + 0x3000, PF_W | PF_P);
	faults(KERNEL64, FETCH, at + 0x3000, PF_I | PF_P);
	/* PAT is bit 12 here, so it is not reserved. */
	*pde = pa | PRESENT | PTE_PS | BIT(12);
	tlb_flush();
	works(USER64, LOAD, at);
}

static void large_1g(void)
{
	u64 at = TEST_HIGH + (1 << 30);
	u64 *pdpte = page_entry(at, 3);

	if (!(cpuid(0x80000001, 0).edx & BIT(26))) {
		skip("no 1 GiB pages");
		return;
	}
	*(volatile u64 *)kernel_stack = 0x5a5a;
	*pdpte = PRESENT | PTE_PS;
	tlb_flush();
	expect_eq(access(USER64, LOAD, at + (u64)kernel_stack).rbx, 0x5a5a);
	expect_eq(*pdpte & (PTE_A | PTE_D), PTE_A);
	works(KERNEL64, STORE, at + (u64)kernel_stack);
	expect_eq(*(volatile u64 *)kernel_stack, 0x1122334455667788);
	expect_eq(*pdpte & (PTE_A | PTE_D), PTE_A | PTE_D);
	*pdpte |= BIT(20);
	tlb_flush();
	faults(KERNEL64, LOAD, at, PF_P | PF_RSVD);
}

static void reserved_bits(void)
{
	u64 at = TEST_AREA, pa = code_page();
	u64 *pte = page_map(at, pa, PRESENT), *pde = page_entry(at, 2), keep;
	u32 bits = physical_bits();

	for (u32 bit = bits; bit < 52; bit++) {
		*pte = pa | PRESENT | BIT(bit);
		tlb_flush();
		faults(USER64, LOAD, at, PF_P | PF_U | PF_RSVD);
	}
	if (bits < 52) {
		faults(KERNEL64, STORE, at, PF_P | PF_W | PF_RSVD);
		faults(KERNEL64, FETCH, at, PF_P | PF_I | PF_RSVD);
	}
	*pte = pa | PRESENT | BIT(9) | BIT(10) | BIT(11) | BIT(52) | BIT(58);
	tlb_flush();
	works(USER64, LOAD, at);
	keep = *pde;
	*pde = PRESENT | PTE_PS | BIT(13);
	tlb_flush();
	faults(USER64, LOAD, at, PF_P | PF_U | PF_RSVD);
	*pde = keep;
	pde = page_entry(TEST_HIGH, 4);
	*pde |= PRESENT | PTE_PS;
	tlb_flush();
	faults(USER64, LOAD, TEST_HIGH, PF_P | PF_U | PF_RSVD);
}

/* Bit 63 is reserved while EFER.NXE is 0. */
static void no_execute_disabled(void)
{
	u64 at = TEST_AREA, pa = code_page();

	page_map(at, pa, PRESENT | PTE_NX);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
	tlb_flush();
	faults(USER64, LOAD, at, PF_P | PF_U | PF_RSVD);
	page_map(at, pa, PRESENT);
	works(USER64, FETCH, at);
	/* Without NX and SMEP, fetches are not told apart. */
	faults(KERNEL64, FETCH, at + 0x1000, 0);
}

static void smep(void)
{
	u64 at = TEST_AREA;

	if (!(cpuid(7, 0).ebx & BIT(7))) {
		skip("no SMEP");
		return;
	}
	page_map(at, code_page(), PRESENT);
	works(KERNEL64, FETCH, at);
	write_cr4(read_cr4() | CR4_SMEP);
	faults(KERNEL64, FETCH, at, PF_P | PF_I);
	works(USER64, FETCH, at);
	works(KERNEL64, STORE, at + 64);
	/* One user bit missing anywhere makes it a supervisor page. */
	*page_entry(at, 2) &= ~PTE_U;
	tlb_flush();
	works(KERNEL64, FETCH, at);
}

CODE_AT(stac_load, "stac", "mov (%rax), %rbx", "clac");

static void smap(void)
{
	u64 at = TEST_AREA;
	struct state s;

	if (!(cpuid(7, 0).ebx & BIT(20))) {
		skip("no SMAP");
		return;
	}
	page_map(at, code_page(), PRESENT);
	write_cr4(read_cr4() | CR4_SMAP);
	faults(KERNEL64, LOAD, at, PF_P);
	faults(KERNEL64, STORE, at, PF_P | PF_W);
	works(USER64, LOAD, at);
	works(KERNEL64, FETCH, at);
	s = state_for(KERNEL64, stac_load);
	s.rax = at;
	exec(&s);
	expect_done(&s, stac_load);
	faults(KERNEL64, LOAD, at, PF_P);
}

/* Not-present entries are never cached, so a new mapping needs no flush. */
static void present_without_flush(void)
{
	u64 at = TEST_AREA + 0x5000;
	u64 *pte = page_map(at, 0, 0);

	for (int i = 0; i < 3; i++) {
		faults(USER64, LOAD, at, PF_U);
		*(volatile u64 *)pte = (u64)page_alloc() | PRESENT;
		works(USER64, STORE, at);
		*(volatile u64 *)pte = 0;
		invlpg((void *)at);
	}
}

static void invalidate(void)
{
	u64 at = TEST_AREA + 0x7000;
	u64 *a = page_alloc(), *b = page_alloc();

	*a = 0xa;
	*b = 0xb;
	page_map(at, (u64)a, PRESENT | PTE_G);
	expect_eq(access(USER64, LOAD, at).rbx, 0xa);
	*page_entry(at, 1) = (u64)b | PRESENT | PTE_G;
	invlpg((void *)(at + 0xfff));
	expect_eq(access(USER64, LOAD, at).rbx, 0xb);

	/* Writing CR3 flushes what is not global. */
	page_map(at, (u64)a, PRESENT);
	expect_eq(access(KERNEL64, LOAD, at).rbx, 0xa);
	*page_entry(at, 1) = (u64)b | PRESENT;
	write_cr3(read_cr3());
	expect_eq(access(KERNEL64, LOAD, at).rbx, 0xb);

	/* Changing CR4.PGE flushes everything. */
	write_cr4(read_cr4() | CR4_PGE);
	page_map(at, (u64)a, PRESENT | PTE_G);
	expect_eq(access(USER64, LOAD, at).rbx, 0xa);
	*page_entry(at, 1) = (u64)b | PRESENT | PTE_G;
	write_cr4(read_cr4() & ~CR4_PGE);
	expect_eq(access(USER64, LOAD, at).rbx, 0xb);

	/* Taking rights away. */
	page_map(at, (u64)a, PRESENT);
	works(USER64, STORE, at);
	*page_entry(at, 1) &= ~PTE_W;
	invlpg((void *)at);
	faults(USER64, STORE, at, PF_P | PF_U | PF_W);
	*page_entry(at, 1) &= ~PTE_U;
	invlpg((void *)at);
	faults(USER64, LOAD, at, PF_P | PF_U);
}

/* INVLPG drops a large page's translation at any address in it. */
static void invalidate_large(void)
{
	u64 at = TEST_AREA + (8 << 20), pa = (u64)pages_alloc(1024, 2 << 20);
	u64 *pde = page_entry(at, 2);

	*(volatile u64 *)(pa + 0x5000) = 1;
	*(volatile u64 *)(pa + (2 << 20) + 0x5000) = 2;
	*pde = pa | PRESENT | PTE_PS;
	tlb_flush();
	expect_eq(access(USER64, LOAD, at + 0x5000).rbx, 1);
	*(volatile u64 *)pde = (pa + (2 << 20)) | PRESENT | PTE_PS;
	invlpg((void *)(at + 0x100000));
	expect_eq(access(USER64, LOAD, at + 0x5000).rbx, 2);
}

/* A second address space: the first one's PML4 with one slot of its own. */
static u64 clone_space(u64 at, u64 pa)
{
	u64 *pml4 = page_alloc(), *table[3];

	memcpy(pml4, (void *)(read_cr3() & ~0xfffull), PAGE_SIZE);
	for (int i = 0; i < 3; i++)
		table[i] = page_alloc();
	pml4[at >> 39 & 511] = (u64)table[0] | PRESENT;
	table[0][at >> 30 & 511] = (u64)table[1] | PRESENT;
	table[1][at >> 21 & 511] = (u64)table[2] | PRESENT;
	table[2][at >> 12 & 511] = pa | PRESENT;
	return (u64)pml4;
}

static void address_spaces(void)
{
	u64 at = TEST_HIGH + 0x9000, first, second;
	u64 *a = page_alloc(), *b = page_alloc();

	*a = 0xa;
	*b = 0xb;
	page_map(at, (u64)a, PRESENT);
	first = read_cr3();
	second = clone_space(at, (u64)b);
	for (int i = 0; i < 3; i++) {
		expect_eq(access(USER64, LOAD, at).rbx, 0xa);
		write_cr3(second);
		expect_eq(access(USER64, LOAD, at).rbx, 0xb);
		write_cr3(first);
	}
}

static void process_context(void)
{
	u64 at = TEST_HIGH + 0x9000, first, second, no_flush = BIT(63);
	u64 *a = page_alloc(), *b = page_alloc();

	if (!(cpuid(1, 0).ecx & BIT(17))) {
		skip("no PCID");
		return;
	}
	*a = 0xa;
	*b = 0xb;
	page_map(at, (u64)a, PRESENT);
	first = read_cr3();
	second = clone_space(at, (u64)b);
	write_cr4(read_cr4() | CR4_PCIDE);
	for (int i = 0; i < 3; i++) {
		write_cr3(first | 1);
		expect_eq(access(USER64, LOAD, at).rbx, 0xa);
		write_cr3(second | 2 | (i ? no_flush : 0));
		expect_eq(access(USER64, LOAD, at).rbx, 0xb);
		expect_eq(read_cr3(), second | 2);
		write_cr3(first | 1 | no_flush);
		expect_eq(access(USER64, LOAD, at).rbx, 0xa);
	}
	/* Changed while another context was current; its flush comes with the switch. */
	write_cr3(second | 2 | no_flush);
	*page_entry(at, 1) = (u64)b | PRESENT;
	write_cr3(first | 1);
	expect_eq(access(USER64, LOAD, at).rbx, 0xb);
	write_cr3(first);
	write_cr4(read_cr4() & ~CR4_PCIDE);
}

static void invpcid(u64 type, u64 pcid, u64 address)
{
	struct {
		u64 pcid, address;
	} descriptor = {pcid, address};

	__asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

CODE_AT(invpcid_bad, "push $0; push $0; mov $4, %eax", "invpcid (%rsp), %rax", "");
CODE_AT(invpcid_user, "push $0; push $0; mov $2, %eax", "invpcid (%rsp), %rax", "");

static void invalidate_context(void)
{
	u64 at = TEST_HIGH + 0x9000, cr3;
	u64 *a = page_alloc(), *b = page_alloc();
	struct state s;

	if (!(cpuid(7, 0).ebx & BIT(10)) || !(cpuid(1, 0).ecx & BIT(17))) {
		skip("no INVPCID");
		return;
	}
	*a = 0xa;
	*b = 0xb;
	cr3 = read_cr3();
	write_cr4(read_cr4() | CR4_PCIDE | CR4_PGE);
	write_cr3(cr3 | 5);
	for (u64 type = 0; type < 4; type++) {
		u64 global = type == 2 ? PTE_G : 0;

		page_map(at, (u64)a, PRESENT | global);
		expect_eq(access(USER64, LOAD, at).rbx, 0xa);
		*page_entry(at, 1) = (u64)b | PRESENT | global;
		invpcid(type, type < 2 ? 5 : 0, type ? 0 : at);
		expect_eq(access(USER64, LOAD, at).rbx, 0xb);
	}
	write_cr3(cr3);
	write_cr4(read_cr4() & ~(CR4_PCIDE | CR4_PGE));
	s = run(KERNEL64, invpcid_bad);
	expect_trap(&s, VEC_GP, 0, invpcid_bad_at);
	s = run(USER64, invpcid_user);
	expect_trap(&s, VEC_GP, 0, invpcid_user_at);
}

/* The same page at two addresses: what is stored at one is read at the other at once. */
static void aliases(void)
{
	u64 pa = (u64)page_alloc(), one = TEST_AREA + 0x10000, two = TEST_HIGH + 0x20000;

	page_map(one, pa, PRESENT);
	page_map(two, pa, PRESENT);
	for (u64 i = 1; i < 5; i++) {
		struct state s = state_for(USER64, store);

		s.rax = one + 8 * i;
		s.rcx = i * 0x1111;
		exec(&s);
		expect_eq(access(KERNEL64, LOAD, two + 8 * i).rbx, i * 0x1111);
	}
}

/* The page tables themselves, seen as pages through an entry that points to its own table. */
static void recursive_table(void)
{
	u64 *pml4 = (u64 *)read_cr3();
	u64 slot = 300, base = 0xffff000000000000 | slot << 39;
	u64 at = TEST_AREA + 0x40000, *pte;

	pml4[slot] = (u64)pml4 | PTE_P | PTE_W;
	page_map(at, (u64)page_alloc(), PRESENT);
	works(USER64, LOAD, at);
	pte = (u64 *)(base + (at >> 12) * 8);
	expect_eq(*pte, *page_entry(at, 1));
	*(volatile u64 *)pte = 0;
	invlpg((void *)at);
	faults(USER64, LOAD, at, PF_U);
}

/* Two pages in a row; the first is there, the second is not (or may not be written). */
static u64 two_pages(u64 second_bits)
{
	u64 at = TEST_AREA + 0x80000;
	u8 *p = pages_alloc(2, PAGE_SIZE);

	memset(p, 0x55, 2 * PAGE_SIZE);
	page_map(at, (u64)p, PRESENT);
	page_map(at + PAGE_SIZE, (u64)p + PAGE_SIZE, second_bits);
	return at + PAGE_SIZE;
}

CODE_AT(load_2, "", "mov -1(%rax), %bx", "");
CODE_AT(load_4, "", "mov -1(%rax), %ebx", "");
CODE_AT(load_8, "", "mov -7(%rax), %rbx", "");
CODE_AT(load_16, "", "movups -1(%rax), %xmm0", "");
CODE_AT(load_x87, "", "fldt -9(%rax)", "");
CODE_AT(sse_operand, "", "movhps -4(%rax), %xmm0", "");

static void cross_load(void)
{
	static const u8 *const code[][2] = {{load_2, load_2_at},     {load_4, load_4_at},
					    {load_8, load_8_at},     {load_16, load_16_at},
					    {load_x87, load_x87_at}, {sse_operand, sse_operand_at}};
	u64 edge = two_pages(0);

	for (u32 i = 0; i < ARRAY_SIZE(code); i++) {
		struct state s = state_for(i & 1 ? USER64 : KERNEL64, code[i][0]);

		s.rax = edge;
		s.rbx = 0xdead;
		exec(&s);
		expect_trap(&s, VEC_PF, i & 1 ? PF_U : 0, code[i][1]);
		expect_eq(s.cr2, edge);
		expect_eq(s.rbx, 0xdead);
	}
	/* With both pages there, the bytes of both. */
	edge = two_pages(PRESENT);
	*(volatile u8 *)edge = 0xaa;
	expect_eq(access(USER64, LOAD, edge - 7).rbx, 0xaa55555555555555);
}

CODE_AT(store_2, "", "mov %cx, -1(%rax)", "");
CODE_AT(store_8, "", "mov %rcx, -1(%rax)", "");
CODE_AT(store_16, "", "movups %xmm0, -15(%rax)", "");
CODE_AT(store_x87, "fld1", "fstpt -3(%rax)", "");
CODE_AT(store_add, "", "add %ecx, -2(%rax)", "");
CODE_AT(store_lock, "", "lock xadd %ecx, -2(%rax)", "");
CODE_AT(store_xchg, "", "xchg %rcx, -4(%rax)", "");
CODE_AT(store_cmpxchg, "", "cmpxchg %ecx, -2(%rax)", "");
CODE_AT(store_bts, "", "btsl $31, -3(%rax)", "");
CODE_AT(store_neg, "", "negq -5(%rax)", "");
CODE_AT(store_push, "lea 4(%rax), %rsp", "push %rcx", "");
CODE_AT(store_call, "lea 1(%rax), %rsp", "call store_call", "");
CODE_AT(store_sgdt, "", "sgdt -3(%rax)", "");

static const struct {
	const u8 *code, *at;
} stores[] = {
	{store_2, store_2_at},       {store_8, store_8_at},
	{store_16, store_16_at},     {store_x87, store_x87_at},
	{store_add, store_add_at},   {store_lock, store_lock_at},
	{store_xchg, store_xchg_at}, {store_cmpxchg, store_cmpxchg_at},
	{store_bts, store_bts_at},   {store_neg, store_neg_at},
	{store_push, store_push_at}, {store_call, store_call_at},
	{store_sgdt, store_sgdt_at},
};

/* A store that reaches into a page it may not write stores nothing and changes no register. */
static void check_cross_stores(u64 second_bits, u64 error)
{
	for (u32 i = 0; i < ARRAY_SIZE(stores); i++) {
		u64 edge = two_pages(second_bits);
		const u8 *page = (u8 *)(*page_entry(edge - PAGE_SIZE, 1) & 0xffffffffff000);
		struct state s = state_for(USER64, stores[i].code);
		u64 rsp;

		s.rax = edge;
		s.rcx = 0x1234567812345678;
		rsp = stores[i].code == store_push   ? edge + 4
		      : stores[i].code == store_call ? edge + 1
						     : s.rsp;
		exec(&s);
		expect_trap(&s, VEC_PF, error, stores[i].at);
		check(s.cr2 == edge, "store %d: cr2 0x%lx", (int)i, s.cr2);
		check(s.rcx == 0x1234567812345678, "store %d changed rcx", (int)i);
		check(s.rsp == rsp, "store %d changed rsp", (int)i);
		for (u32 k = 0; k < 16; k++)
			check(page[PAGE_SIZE - 1 - k] == 0x55, "store %d wrote part", (int)i);
	}
}

static void cross_store(void)
{
	check_cross_stores(0, PF_W | PF_U);
	check_cross_stores(PTE_P | PTE_U, PF_P | PF_W | PF_U);
}

static void cross_store_works(void)
{
	u64 edge = two_pages(PRESENT), pa = *page_entry(edge, 1) & 0xffffffffff000;

	works(USER64, STORE, edge - 3);
	expect_eq(*(volatile u64 *)(pa - 3), 0x1122334455667788);
	expect_eq(*(volatile u8 *)(pa + 5), 0x55);
	works(KERNEL64, ADD, edge - 3);
	expect_eq(*(volatile u64 *)(pa - 3), 2 * 0x1122334455667788);
	/* The pages need not be neighbours in memory. */
	page_map(edge, (u64)page_alloc(), PRESENT);
	works(USER64, STORE, edge - 3);
	expect_eq(access(USER64, LOAD, edge - 3).rbx, 0x1122334455667788);
	expect_eq(*(volatile u8 *)(*page_entry(edge, 1) & 0xffffffffff000), 0x55);
}

/* An instruction whose tail lies on a page that is not there. */
static void cross_fetch(void)
{
	static const u8 code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xcd, VEC_DONE};

	for (u32 before = 1; before < 10; before++) {
		u64 edge = two_pages(0), pa = *page_entry(edge - PAGE_SIZE, 1) & 0xffffffffff000;
		struct state s;

		memcpy((u8 *)pa + PAGE_SIZE - before, code, sizeof(code));
		s = state_for(USER64, NULL);
		s.rip = edge - before;
		exec(&s);
		check(s.vector == VEC_PF && s.error == (PF_U | PF_I) && s.cr2 == edge &&
			      s.rip == edge - before,
		      "%d bytes before: vector %d error 0x%lx cr2 0x%lx rip 0x%lx", (int)before,
		      (int)s.vector, s.error, s.cr2, s.rip);
		page_map(edge, pa + PAGE_SIZE, PRESENT);
		s = state_for(USER64, NULL);
		s.rip = edge - before;
		exec(&s);
		check(s.vector == VEC_DONE && s.rax == 0x0807060504030201,
		      "%d bytes before: vector %d, rax 0x%lx", (int)before, (int)s.vector, s.rax);
		page_map(edge, pa + PAGE_SIZE, PRESENT | PTE_NX);
		s = state_for(USER64, NULL);
		s.rip = edge - before;
		exec(&s);
		check(s.vector == VEC_PF && s.error == (PF_P | PF_U | PF_I) && s.cr2 == edge,
		      "%d bytes before, NX: vector %d error 0x%lx", (int)before, (int)s.vector,
		      s.error);
	}
}

/* Read-modify-write instructions need the right to write even if they end up storing nothing new.
 */
CODE_AT(rmw_cmpxchg, "xor %ecx, %ecx; inc %ecx", "lock cmpxchg %edx, (%rbx)", "");
CODE_AT(rmw_xadd, "xor %ecx, %ecx", "lock xadd %ecx, (%rbx)", "");
CODE_AT(rmw_or, "", "orl $0, (%rbx)", "");
CODE_AT(rmw_shift, "xor %ecx, %ecx", "shll %cl, (%rbx)", "");
CODE_AT(rmw_bts, "mov $3, %ecx", "bts %ecx, (%rbx)", "");
CODE_AT(rmw_pop, "push $1; mov %rsp, %rsi", "popq (%rbx)", "");

static void read_modify_write(void)
{
	static const u8 *const code[][2] = {
		{rmw_cmpxchg, rmw_cmpxchg_at}, {rmw_xadd, rmw_xadd_at}, {rmw_or, rmw_or_at},
		{rmw_bts, rmw_bts_at},         {rmw_pop, rmw_pop_at},
	};
	u64 at = TEST_AREA;

	page_map(at, code_page(), PTE_P | PTE_U);
	for (u32 i = 0; i < ARRAY_SIZE(code); i++) {
		struct state s = state_for(USER64, code[i][0]);

		s.rbx = at;
		s.rax = 0x99;
		exec(&s);
		expect_trap(&s, VEC_PF, PF_P | PF_W | PF_U, code[i][1]);
		if (code[i][0] == rmw_pop)
			expect_eq(s.rsp, s.rsi);
		expect_eq(s.rax, 0x99);
	}
}

/* A string of loads over many pages: more than any TLB holds. */
static void many_pages(void)
{
	enum { COUNT = 3000 };
	u64 *p = pages_alloc(8, PAGE_SIZE), base = TEST_AREA + (64 << 20);

	for (u64 i = 0; i < 8; i++)
		p[i * 512] = i * 0x101;
	for (u64 i = 0; i < COUNT; i++)
		page_map(base + i * PAGE_SIZE, (u64)(p + (i * 5 % 8) * 512), PRESENT);
	for (int round = 0; round < 2; round++)
		for (u64 i = 0; i < COUNT; i++)
			check(*(volatile u64 *)(base + i * PAGE_SIZE) == i * 5 % 8 * 0x101,
			      "page %d", (int)i);
}

const struct test tests[] = {
	{"Memory that user code has used", "SDM vol. 3, 4.10.4", after_user_code, NULL},
	{"#PF: not present", "SDM vol. 3, 4.7", not_present,
	 "reads before it writes, without the W bit"},
	{"#PF: W, U and NX of a page", "SDM vol. 3, 4.6", permissions, NULL},
	{"#PF: rights at every level", "SDM vol. 3, 4.6", permissions_above, NULL},
	{"CR0.WP", "SDM vol. 3, 4.6", write_protect, NULL},
	{"Accessed and dirty bits", "SDM vol. 3, 4.8", accessed_and_dirty, NULL},
	{"A denied write leaves D alone", "SDM vol. 3, 4.8", dirty_after_fault, NULL},
	{"2 MiB pages", "SDM vol. 3, 4.5.4", large_2m, NULL},
	{"1 GiB pages", "SDM vol. 3, 4.5.4", large_1g, "leaves out P beside RSVD"},
	{"#PF: reserved bits", "SDM vol. 3, 4.5.4 and 4.7", reserved_bits,
	 "leaves out P beside RSVD"},
	{"NX is reserved without EFER.NXE", "SDM vol. 3, 4.5.4 and 4.7", no_execute_disabled,
	 "leaves out P beside RSVD"},
	{"SMEP", "SDM vol. 3, 4.6.1", smep, NULL},
	{"SMAP", "SDM vol. 3, 4.6.1", smap, NULL},
	{"Not-present entries are not cached", "SDM vol. 3, 4.10.2.3", present_without_flush, NULL},
	{"INVLPG, MOV CR3, CR4.PGE", "SDM vol. 3, 4.10.4.1", invalidate, NULL},
	{"INVLPG in a large page", "SDM vol. 3, 4.10.4.1", invalidate_large, NULL},
	{"Two address spaces", "SDM vol. 3, 4.10.4.1", address_spaces, NULL},
	{"PCID", "SDM vol. 3, 4.10.1", process_context, NULL},
	{"INVPCID", "SDM vol. 2, INVPCID", invalidate_context, NULL},
	{"Two addresses of one page", "SDM vol. 3, 4.2", aliases, NULL},
	{"Page tables mapped by themselves", "SDM vol. 3, 4.5", recursive_table, NULL},
	{"Loads across two pages", "SDM vol. 3, 6.15 interrupt 14", cross_load, NULL},
	{"Stores across two pages store all or nothing", "SDM vol. 3, 6.15 interrupt 14",
	 cross_store, "stores the first part of what x87 and SGDT write"},
	{"Stores across two pages", "SDM vol. 3, 8.1.1", cross_store_works, NULL},
	{"Instructions across two pages", "SDM vol. 3, 6.15 interrupt 14", cross_fetch, NULL},
	{"Read-modify-write needs W", "SDM vol. 2, CMPXCHG", read_modify_write, NULL},
	{"More pages than a TLB holds", "SDM vol. 3, 4.10", many_pages, NULL},
	{NULL},
};
