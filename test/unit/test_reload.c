/*
 * Translations kept from run to run: a machine takes what one before it translated where the same
 * bytes are, and only there, and computes the same with it.
 */
#include "engine/soft/cache.h"
#include "engine/soft/reload.h"
#include "engine/soft/store.h"
#include "host/keep.h"
#include "soft_machine.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

extern const struct engine_ops soft_engine;

enum { AT_OTHER = AT_CODE + 0x5000 };

struct fixture {
	char dir[64], options[128], file[128];
	struct soft_machine *m;
};

static int setup(void **state)
{
	struct fixture *p = calloc(1, sizeof(*p));

	strcpy(p->dir, "/tmp/doppel-reload-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->file, sizeof(p->file), "%s/%s", p->dir, STORE_NAME);
	snprintf(p->options, sizeof(p->options), "translations=%s", p->dir);
	*state = p;
	return 0;
}

static void close_machine(struct fixture *p)
{
	if (p->m)
		machine_free(p->m);
	p->m = NULL;
}

static int teardown(void **state)
{
	struct fixture *p = *state;
	char command[128];

	close_machine(p);
	snprintf(command, sizeof(command), "rm -rf %s", p->dir);
	assert_int_equal(system(command), 0);
	free(p);
	return 0;
}

/* A machine that finds what those before it left. */
static void next_machine(struct fixture *p, const char *more)
{
	char options[256];

	close_machine(p);
	snprintf(options, sizeof(options), "%s%s", p->options, more);
	p->m = machine_new_with(options);
	machine_long_mode(p->m);
}

static void run_at(struct fixture *p, gpa_t gpa)
{
	struct vm_exit exit = {0};

	p->m->c->rip = gpa;
	assert_int_equal(soft_engine.run(p->m->vcpu, &exit), 0);
	assert_int_equal(exit.type, EXIT_HLT);
}

static void put(struct fixture *p, gpa_t at, const void *code, u32 len)
{
	memcpy(p->m->ram + at, code, len);
	soft_engine.code_written(p->m->vm, at, len);
}

static void run(struct fixture *p, gpa_t at, const u8 *code, u32 len)
{
	put(p, at, code, len);
	run_at(p, at);
}

static u64 counted(const struct fixture *p, u32 n)
{
	return p->m->c->counters[n];
}

#define TRANSLATED(p) counted(p, COUNT_BLOCKS_TRANSLATED)
#define LOADED(p)     counted(p, COUNT_BLOCKS_LOADED)

/* ---- programs: calls, groups, side exits, strings, vector code, 32 bits ---- */

CODE(fibonacci, 64,
     "mov $15,%edi; call 1f; hlt;"
     "1: cmp $2,%edi; jb 2f; push %rdi; dec %edi; call 1b; pop %rdi; push %rax; sub $2,%edi;"
     "call 1b; pop %rcx; add %rcx,%rax; ret; 2: mov %edi,%eax; ret");
CODE(mixed, 64,
     "mov $0x49000,%esp; mov $0x40000,%ebx; mov $100,%r12d; xor %eax,%eax; lea 9f(%rip),%r11;"
     "1: push %r12; push %rsp; mov %r12,(%rbx,%r12,8); add %eax,16(%rbx); adc 24(%rbx),%rax;"
     "test $1,%r12b; jz 2f; pop %rcx; xor %rcx,%rax; push %rcx; cmp $7,%r12b; je 3f;"
     "movq %rax,%xmm1; paddq %xmm1,%xmm0; bts %r12,(%rbx); pushf; pop %rdx; add %rdx,%rax;"
     "2: pop %rdx; pop %r9; mov %r12d,%edx; and $1,%edx; movslq (%r11,%rdx,4),%rdx;"
     "add %r11,%rdx; jmp *%rdx; 3: rol $3,%rax; jmp 2b; 4: add $5,%rax;"
     "5: dec %r12d; jnz 1b; movq %xmm0,%r8; hlt; .balign 4; 9: .long 4b-9b, 5b-9b");
/* A group that crosses a page: its exit leads to the variant with single checks. */
CODE(crossing, 64,
     "mov $0x40ff8,%ebx; mov $50,%ecx; 1: mov %rcx,(%rbx); add %rcx,8(%rbx); mov 8(%rbx),%rax;"
     "add (%rbx),%rax; dec %ecx; jnz 1b; hlt");
CODE(in_32, 32,
     "mov $10,%ecx; xor %eax,%eax; 1: call 2f; loop 1b; jmp 3f; 2: lea (%eax,%ecx,2),%eax;"
     "push %eax; inc %ebx; pop %edx; ret; 3: hlt");

struct program {
	const u8 *code;
	u32 len;
	bool in_32;
};

static void run_program(struct fixture *p, const struct program *what, const char *options,
			u64 r[GPR_COUNT], u64 *flags)
{
	next_machine(p, options);
	if (what->in_32)
		machine_protected_mode(p->m);
	run(p, AT_CODE, what->code, what->len);
	memcpy(r, p->m->c->r, sizeof(p->m->c->r));
	*flags = soft_rflags(p->m->c);
}

static void programs_compute_the_same(void **state)
{
	const struct program list[] = {{CODE_OF(fibonacci), false},
				       {CODE_OF(mixed), false},
				       {CODE_OF(crossing), false},
				       {CODE_OF(in_32), true}};
	struct fixture *p = *state;

	for (u32 n = 0; n < ARRAY_SIZE(list); n++) {
		u64 a[GPR_COUNT], b[GPR_COUNT], a_flags, b_flags;

		run_program(p, &list[n], "", a, &a_flags);
		assert_true(TRANSLATED(p) > 2);
		assert_int_equal(LOADED(p), 0);
		run_program(p, &list[n], "", b, &b_flags);
		assert_int_equal(TRANSLATED(p), 0);
		assert_true(LOADED(p) > 2);
		assert_memory_equal(a, b, sizeof(a));
		assert_int_equal(a_flags, b_flags);
		/* What only loads finds everything the next time, too. */
		run_program(p, &list[n], "", b, &b_flags);
		assert_int_equal(TRANSLATED(p), 0);
		assert_memory_equal(a, b, sizeof(a));
		close_machine(p);
		assert_int_equal(unlink(p->file), 0);
	}
}

/* Kept at one address, loaded at another, then dropped and translated anew. */
static void blocks_may_lie_elsewhere(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(fibonacci));
	next_machine(p, "");
	run(p, AT_OTHER, CODE_OF(mixed)); /* so that code memory is used differently */
	assert_int_equal(LOADED(p), 0);
	run(p, AT_OTHER + PAGE_SIZE, CODE_OF(fibonacci));
	assert_int_equal(p->m->c->r[RAX], 610);
	assert_true(LOADED(p) > 2);
}

/* What lies at another offset of its page is another block: rip-relative code has the offset in it.
 */
static void offset_in_the_page_matters(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(fibonacci));
	next_machine(p, "");
	run(p, AT_CODE + 64, CODE_OF(fibonacci));
	assert_int_equal(p->m->c->r[RAX], 610);
	assert_int_equal(LOADED(p), 0);
}

CODE(three, 64, "mov $3,%eax; nop; nop; nop; nop; add $1,%eax; hlt");
CODE(four, 64, "mov $3,%eax; nop; nop; nop; nop; add $2,%eax; hlt");

/* Same beginning, same place, other bytes further on. */
static void every_byte_matters(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(three));
	assert_int_equal(p->m->c->r[RAX], 4);
	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(four));
	assert_int_equal(p->m->c->r[RAX], 5);
	assert_int_equal(LOADED(p), 0);
	next_machine(p, ""); /* the file has both now */
	run(p, AT_CODE, CODE_OF(four));
	assert_int_equal(p->m->c->r[RAX], 5);
	run(p, AT_CODE, CODE_OF(three));
	assert_int_equal(p->m->c->r[RAX], 4);
	assert_int_equal(TRANSLATED(p), 0);
	assert_int_equal(LOADED(p), 2);
}

/*
 * The first block's flags are dead because of what the second does, so a check in the first may
 * spoil them; behind other code they are live. r8 tells, since its slow path is taken first.
 */
CODE(kills_flags, 64,
     "mov $0x40000,%ebx; stc; mov (%rbx),%rcx; jmp 1f; nop; nop; 1: xor %eax,%eax; xor %r8d,%r8d; "
     "hlt");
CODE(reads_flags, 64,
     "mov $0x40000,%ebx; stc; mov (%rbx),%rcx; jmp 1f; nop; nop; 1: sbb %eax,%eax; xor %r8d,%r8d; "
     "hlt");

static void bytes_that_were_looked_at_matter(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(kills_flags));
	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(reads_flags));
	assert_int_equal(p->m->c->r[RAX], 0xffffffff);
	assert_int_equal(LOADED(p), 0);
	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(kills_flags));
	assert_int_equal(TRANSLATED(p), 0);
	run(p, AT_CODE, CODE_OF(reads_flags));
	assert_int_equal(p->m->c->r[RAX], 0xffffffff);
	assert_int_equal(TRANSLATED(p), 0);
}

CODE(patch_self, 64, "mov $3,%ecx; xor %eax,%eax; 1: add $1,%eax; incb 1b+2(%rip); loop 1b; hlt");

/* Blocks from the file are dropped by stores like others. */
static void loaded_blocks_see_stores(void **state)
{
	struct fixture *p = *state;

	for (u32 n = 0; n < 3; n++) {
		next_machine(p, "");
		run(p, AT_CODE, CODE_OF(patch_self));
		assert_int_equal(p->m->c->r[RAX], 1 + 2 + 3);
		assert_int_equal(LOADED(p) > 0, n > 0);
	}
	/* Also those that were dropped went to the file. */
	assert_int_equal(TRANSLATED(p), 0);
}

CODE(long_and_short, 64, "mov $1,%eax; hlt");

/* An instruction that the page's end cuts; what is on the next page must not be taken on trust. */
static void straddling_blocks_are_not_kept(void **state)
{
	struct fixture *p = *state;

	for (u32 n = 0; n < 2; n++) {
		u8 other[] = {0x01 + (u8)n};

		next_machine(p, "");
		put(p, AT_CODE + PAGE_SIZE - 2, CODE_OF(long_and_short));
		put(p, AT_CODE + PAGE_SIZE - 1, other, 1);
		run_at(p, AT_CODE + PAGE_SIZE - 2);
		assert_int_equal(p->m->c->r[RAX], 1 + n);
	}
}

static void modes_are_told_apart(void **state)
{
	static const u8 code[] = {0x31, 0xc0, 0x48, 0x90, 0xf4}; /* 48: REX.W, or DEC EAX */
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, code, sizeof(code));
	assert_int_equal(p->m->c->r[RAX], 0);
	next_machine(p, "");
	machine_protected_mode(p->m);
	run(p, AT_CODE, code, sizeof(code));
	assert_int_equal(p->m->c->r[RAX], 0xffffffff);
	assert_int_equal(LOADED(p), 0);
}

/* Other mechanisms make other code. */
static void mechanisms_are_told_apart(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(mixed));
	next_machine(p, ",groups=off");
	run(p, AT_CODE, CODE_OF(mixed));
	assert_int_equal(LOADED(p), 0);
}

/* Code memory that fills up again and again: what is dropped goes to the file before. */
static void dropped_code_is_kept(void **state)
{
	struct fixture *p = *state;

	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(fibonacci));
	assert_true(soft_flush_code(p->m->c));
	run(p, AT_CODE, CODE_OF(mixed));
	next_machine(p, "");
	run(p, AT_CODE, CODE_OF(fibonacci));
	assert_true(LOADED(p) > 2);
	run(p, AT_CODE, CODE_OF(mixed));
	assert_int_equal(TRANSLATED(p), 0);
}

/* Where files must not be opened, none is. */
static void nothing_is_opened_unless_allowed(void **state)
{
	struct fixture *p = *state;
	struct engine_config config = {.options = p->options};
	struct cpuid_model cpuid;
	struct physmap physmap;
	struct engine_vm *vm;
	struct err e = {0};

	next_machine(p, "");
	cpuid = p->m->cpuid;
	close_machine(p);
	physmap_init(&physmap);
	config.physmap = &physmap;
	config.cpuid = &cpuid;
	assert_int_equal(soft_engine.vm_create(&config, &vm, &e), 0);
	assert_null(((struct soft_vm *)vm)->store);
	soft_engine.vm_destroy(vm);
	physmap_destroy(&physmap);
}

/* ---- translations-check ---- */

static void check_finds_no_difference(void **state)
{
	const struct program list[] = {{CODE_OF(fibonacci), false},
				       {CODE_OF(mixed), false},
				       {CODE_OF(crossing), false},
				       {CODE_OF(in_32), true}};
	struct fixture *p = *state;
	u64 r[GPR_COUNT], flags;

	for (u32 n = 0; n < ARRAY_SIZE(list); n++) {
		run_program(p, &list[n], ",translations-check=on", r, &flags);
		assert_int_equal(counted(p, COUNT_BLOCKS_COMPARED), 0);
		run_program(p, &list[n], ",translations-check=on", r, &flags);
		assert_int_equal(LOADED(p), 0);
		assert_int_equal(counted(p, COUNT_BLOCKS_COMPARED), TRANSLATED(p));
		assert_int_equal(counted(p, COUNT_BLOCKS_DIFFERENT), 0);
		close_machine(p);
		assert_int_equal(unlink(p->file), 0);
	}
}

/* One bit of the code of each record in the file's only window becomes another; sums are mended. */
static void change_code(const char *file)
{
	static _Alignas(8) u8 window[STORE_WINDOW];
	int fd = open(file, O_RDWR);
	struct store_header h;
	struct store_record r;
	struct stat st;
	u64 tables[4096];
	u64 size;

	assert_true(keep_read(fd, 0, &h, sizeof(h)));
	assert_int_equal(h.windows, 1);
	assert_true(keep_read(fd, STORE_DATA, window, sizeof(window)));
	for (u64 at = 0; at < STORE_WINDOW && store_parse(window + at, STORE_WINDOW - at, &r);
	     at += r.head->size)
		r.hot[r.head->hot - 1] ^= 1;
	assert_int_equal(fstat(fd, &st), 0);
	size = (u64)st.st_size - STORE_DATA - STORE_WINDOW;
	assert_true(size <= sizeof(tables));
	assert_true(keep_read(fd, STORE_DATA + STORE_WINDOW, tables, size));
	tables[0] = store_sum(window, STORE_WINDOW);
	h.tables_sum = store_sum(tables, size);
	h.sum = store_sum(&h, offsetof(struct store_header, sum));
	assert_true(keep_write(fd, STORE_DATA, window, sizeof(window)));
	assert_true(keep_write(fd, STORE_DATA + STORE_WINDOW, tables, size));
	assert_true(keep_write(fd, 0, &h, sizeof(h)));
	close(fd);
}

static void check_finds_differences(void **state)
{
	struct fixture *p = *state;

	next_machine(p, ",translations-check=on");
	run(p, AT_CODE, CODE_OF(mixed));
	next_machine(p, ",translations-check=on"); /* puts the file in its place */
	close_machine(p);
	change_code(p->file);
	next_machine(p, ",translations-check=on");
	run(p, AT_CODE, CODE_OF(mixed));
	assert_true(counted(p, COUNT_BLOCKS_COMPARED) > 2);
	assert_int_equal(counted(p, COUNT_BLOCKS_DIFFERENT), counted(p, COUNT_BLOCKS_COMPARED));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(programs_compute_the_same),        TEST(blocks_may_lie_elsewhere),
		TEST(offset_in_the_page_matters),       TEST(every_byte_matters),
		TEST(bytes_that_were_looked_at_matter), TEST(loaded_blocks_see_stores),
		TEST(straddling_blocks_are_not_kept),   TEST(modes_are_told_apart),
		TEST(mechanisms_are_told_apart),        TEST(dropped_code_is_kept),
		TEST(nothing_is_opened_unless_allowed), TEST(check_finds_no_difference),
		TEST(check_finds_differences),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
