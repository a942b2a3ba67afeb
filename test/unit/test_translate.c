/*
 * Translated code: whole programs give what the interpreter gives; what was found wrong once stays
 * right; and a table limits how many host instructions a guest instruction may become.
 */
#include "engine/soft/cache.h"
#include "soft_machine.h"

#include <Zydis/Zydis.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

extern const struct engine_ops soft_engine;

static struct soft_machine *long_machine(void)
{
	struct soft_machine *m = machine_new();

	machine_long_mode(m);
	return m;
}

/* Run translated code from @gpa until an exit, which must be a HLT. */
static void run_at(struct soft_machine *m, gpa_t gpa)
{
	struct vm_exit exit = {0};

	m->c->rip = gpa;
	assert_int_equal(soft_engine.run(m->vcpu, &exit), 0);
	assert_int_equal(exit.type, EXIT_HLT);
}

static void run(struct soft_machine *m, const u8 *code, u32 len)
{
	machine_load(m, code, len);
	soft_engine.code_written(m->vm, AT_CODE, len);
	run_at(m, AT_CODE);
}

/* ---- programs ---- */

CODE(fibonacci, 64,
     "mov $15,%edi; call 1f; hlt;"
     "1: cmp $2,%edi; jb 2f; push %rdi; dec %edi; call 1b; pop %rdi; push %rax; sub $2,%edi;"
     "call 1b; pop %rcx; add %rcx,%rax; ret; 2: mov %edi,%eax; ret");
CODE(sieve, 64,
     "mov $0x40000,%ebx; mov $2,%ecx; xor %eax,%eax;"
     "1: cmpb $0,(%rbx,%rcx); jne 3f; inc %eax; lea (%rcx,%rcx),%rdx;"
     "2: cmp $1000,%edx; jae 3f; movb $1,(%rbx,%rdx); add %ecx,%edx; jmp 2b;"
     "3: inc %ecx; cmp $1000,%ecx; jb 1b; hlt");
CODE(dispatch, 64,
     "xor %eax,%eax; mov $300,%r10d; lea 9f(%rip),%r11;"
     "1: mov %r10d,%edx; and $3,%edx; movslq (%r11,%rdx,4),%rdx; add %r11,%rdx; jmp *%rdx;"
     "2: add $1,%rax; jmp 6f; 3: lea 3(%rax,%rax,2),%rax; jmp 6f; 4: xor %r10,%rax; jmp 6f;"
     "5: rol $5,%rax; 6: dec %r10; jnz 1b; hlt; .balign 4;"
     "9: .long 2b-9b, 3b-9b, 4b-9b, 5b-9b");
CODE(long_sum, 64,
     "mov $1000,%ecx; xor %eax,%eax; mov $-1,%rdx; 1: add %rcx,%rax; adc $0,%rdx; push %rax;"
     "pop %r9; movq %r9,%xmm0; paddq %xmm0,%xmm1; loop 1b; movq %xmm1,%r10; hlt");
CODE(strings, 64,
     "cld; mov $0x40000,%edi; mov $0x5a,%eax; mov $5000,%ecx; rep stosb; mov $0x40000,%esi;"
     "mov $0x42001,%edi; mov $3000,%ecx; rep movsb; mov $0x40000,%esi; mov $0x42001,%edi;"
     "mov $4000,%ecx; repe cmpsb; hlt");
CODE(selectors, 64,
     "mov %cr4,%rax; or $0x10000,%eax; mov %rax,%cr4; mov $0x12345678,%edi; mov $-4096,%r9;"
     "xor %edx,%edx; wrfsbase %rdi; rdgsbase %r8; wrgsbase %r9; rdfsbase %rsi; rdgsbase %r10;"
     "mov %cs,%eax; mov $-1,%rbx; mov %ss,%ebx; mov %ds,%r11; mov %gs,%ecx; xor %edi,%edi;"
     "wrgsbase %r8; hlt");
/* Pushes and pops whose rsp is seen in between, and side exits taken and not. */
CODE(stack, 64,
     "mov $0x49000,%esp; mov $200,%r12d; xor %eax,%eax;"
     "1: push %r12; push %rsp; mov %r12d,%ebx; push $7; lea 8(%rsp),%rcx; test $1,%r12b; jz 2f;"
     "add %rcx,%rax; push %rcx; pop %rdx; test $2,%r12b; jnz 3f; pop %rsi; add %rsi,%rax; push "
     "%rax;"
     "2: pop %rdx; xor %rdx,%rax; pop %r9; add %r9,%rax; pop %r10; sub $8,%rsp; add $8,%rsp;"
     "4: dec %r12d; jnz 1b; mov %rsp,%rbp; hlt; 3: lea 24(%rsp),%rsp; add $3,%rax; jmp 4b");
CODE(sum_32, 32,
     "mov $10,%ecx; xor %eax,%eax; 1: call 2f; loop 1b; jmp 3f; 2: lea (%eax,%ecx,2),%eax;"
     "push %eax; inc %ebx; pop %edx; ret; 3: hlt");

struct program {
	const u8 *code;
	u32 len;
	bool in_32;
};

static void run_program(const struct program *p, bool translated, u64 r[GPR_COUNT], u64 *flags)
{
	struct soft_machine *m = machine_new();

	(p->in_32 ? machine_protected_mode : machine_long_mode)(m);
	if (translated)
		run(m, p->code, p->len);
	else
		machine_exec(m, p->code, p->len);
	memcpy(r, m->c->r, sizeof(m->c->r));
	*flags = soft_rflags(m->c);
	machine_free(m);
}

static void programs_agree_with_the_interpreter(void **state)
{
	const struct program list[] = {
		{CODE_OF(fibonacci), false}, {CODE_OF(sieve), false},   {CODE_OF(dispatch), false},
		{CODE_OF(long_sum), false},  {CODE_OF(strings), false}, {CODE_OF(sum_32), true},
		{CODE_OF(selectors), false}, {CODE_OF(stack), false},
	};

	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(list); n++) {
		u64 a[GPR_COUNT], b[GPR_COUNT], a_flags, b_flags;

		run_program(&list[n], false, a, &a_flags);
		run_program(&list[n], true, b, &b_flags);
		assert_memory_equal(a, b, sizeof(a));
		assert_int_equal(a_flags, b_flags);
	}
}

static void results_are_known(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	run(m, CODE_OF(fibonacci));
	assert_int_equal(m->c->r[RAX], 610);
	run(m, CODE_OF(sieve));
	assert_int_equal(m->c->r[RAX], 168);
	machine_free(m);
}

/* ---- code that changes ---- */

CODE(patch_self, 64, "mov $3,%ecx; xor %eax,%eax; 1: add $1,%eax; incb 1b+2(%rip); loop 1b; hlt");
CODE(patch_next, 64, "movb $7,1f+1(%rip); 1: mov $1,%eax; hlt");

static void sees_its_own_stores(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	run(m, CODE_OF(patch_self));
	assert_int_equal(m->c->r[RAX], 1 + 2 + 3);
	run(m, CODE_OF(patch_next));
	assert_int_equal(m->c->r[RAX], 7);
	machine_free(m);
}

static u64 counter(const struct soft_machine *m, const char *name)
{
	struct engine_counter list[64];
	u32 count = soft_engine.counters(m->vm, list, ARRAY_SIZE(list));

	for (u32 n = 0; n < count; n++)
		if (!strcmp(list[n].name, name))
			return list[n].value;
	fail_msg("no counter %s", name);
	return 0;
}

static void counts_invalidated_blocks(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	run(m, CODE_OF(fibonacci));
	assert_int_equal(counter(m, "block_invalidations"), 0);
	assert_true(counter(m, "blocks_translated") > 0);
	run(m, CODE_OF(patch_self));
	assert_true(counter(m, "block_invalidations") > 0);
	machine_free(m);
}

/* A block that continues on a page which is then mapped elsewhere. */
static void sees_remapped_second_page(void **state)
{
	static const u8 mov_eax[] = {0xb8, 1, 0, 0, 0, 0xf4};
	static const u8 rest[] = {2, 0, 0, 0xf4};
	struct soft_machine *m = long_machine();

	(void)state;
	memcpy(m->ram + AT_CODE + 0xffe, mov_eax, sizeof(mov_eax));
	memcpy(m->ram + 0x80000, rest, sizeof(rest));
	run_at(m, AT_CODE + 0xffe);
	assert_int_equal(m->c->r[RAX], 1);
	machine_set_page(m, AT_CODE + 0x1000, 0x80000 | PTE_P | PTE_RW | PTE_US);
	run_at(m, AT_CODE + 0xffe);
	assert_int_equal(m->c->r[RAX], 0x201);
	machine_free(m);
}

/* ---- regressions ---- */

/*
 * Flags across a page boundary: the indirect-branch table holds, at the same index, a block that
 * does not need flags. Jumping to it by mistake must not lose those of the block that is meant.
 */
CODE(flags_across, 64, "or %edi,%ebp; mov $0x12345678,%eax; sete %dl; hlt");

static void keeps_flags_on_a_table_miss(void **state)
{
	struct soft_machine *m = long_machine();
	u64 at = AT_CODE + 0xffd;

	(void)state;
	memcpy(m->ram + at, flags_across_start, (u32)(flags_across_end - flags_across_start));
	for (u32 n = 0; n < 3; n++) {
		m->c->r[RDI] = m->c->r[RBP] = m->c->r[RDX] = 0;
		run_at(m, at);
		assert_int_equal(m->c->r[RDX], 1);
		m->c->r[RDI] = 5;
		run_at(m, at);
		assert_int_equal(m->c->r[RDX], 0);
	}
	machine_free(m);
}

/* The first operand crosses pages and is left to the interpreter; both pushes share one check. */
CODE(push_crossing, 64, "push 0x47(%rbp); push $0x1234; hlt");

static void reloads_group_address_behind_slow_path(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	m->c->r[RBP] = AT_DATA + 0xffa - 0x47;
	machine_put(m, AT_DATA + 0xffa, 8, 0x1122334455667788);
	run(m, CODE_OF(push_crossing));
	assert_int_equal(machine_get(m, AT_KERNEL_STACK - 8, 8), 0x1122334455667788);
	assert_int_equal(machine_get(m, AT_KERNEL_STACK - 16, 8), 0x1234);
	machine_free(m);
}

CODE(high_byte_sp, 64,
     "mov %rsp,%rbx; mov $0x1234,%eax; movzx %ah,%esp; mov %esp,%ecx; mov %rbx,%rsp;"
     "hlt");

static void high_byte_to_stack_pointer(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	run(m, CODE_OF(high_byte_sp));
	assert_int_equal(m->c->r[RCX], 0x12);
	assert_int_equal(m->c->r[RSP], AT_KERNEL_STACK);
	machine_free(m);
}

/* VZEROUPPER of compatibility mode reaches eight registers only. */
CODE(vzero_32, 32, "vzeroupper; hlt");

static void vzeroupper_outside_64_bit_mode(void **state)
{
	static const u8 ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, zeros[16];
	struct soft_machine *m = long_machine();
	struct cpu_state *s = aligned_alloc(64, align_up(sizeof(*s), 64));
	const u64 present = XCR0_X87 | XCR0_SSE | XCR0_AVX;

	(void)state;
	assert_non_null(s);
	soft_engine.state_get(m->vcpu, CPU_PART_ALL, s);
	for (u32 n = 0; n < 16; n++)
		memcpy(s->fpu.area + 576 + 16 * n, ones, 16);
	memcpy(s->fpu.area + 512, &present, 8);
	assert_int_equal(soft_engine.state_set(m->vcpu, CPU_PART_FPU, s), 0);
	m->c->seg[SEG_CS].l = 0;
	m->c->seg[SEG_CS].db = 1;
	soft_update_mode(m->c);
	run(m, CODE_OF(vzero_32));
	soft_engine.state_get(m->vcpu, CPU_PART_FPU, s);
	for (u32 n = 0; n < 16; n++)
		assert_memory_equal(s->fpu.area + 576 + 16 * n, n < 8 ? zeros : ones, 16);
	free(s);
	machine_free(m);
}

/* ---- size of the code ---- */

/* In each program the instruction in question is number @index; flags are dead behind it. */
CODE(size_add, 64, "add %rbx,%rax; hlt");
CODE(size_slot, 64, "mov %r9,%rax; hlt");
CODE(size_load, 64, "mov (%rbx),%rax; xor %ecx,%ecx; hlt");
CODE(size_store, 64, "mov %rax,8(%rbx,%rcx,4); xor %ecx,%ecx; hlt");
CODE(size_live, 64, "mov (%rbx),%rax; hlt");
CODE(size_group, 64, "mov (%rbx),%rax; mov 8(%rbx),%rdx; xor %ecx,%ecx; hlt");
CODE(size_push, 64, "push %rax; push %rbx; xor %ecx,%ecx; hlt");
CODE(size_lea, 64, "lea 8(%rax,%rbx,4),%rdx; hlt");
CODE(size_vector, 64, "vaddps %zmm1,%zmm2,%zmm3; hlt");
CODE(size_vector_load, 64, "vaddps (%rbx),%zmm2,%zmm3; xor %ecx,%ecx; hlt");
CODE(size_jcc, 64, "cmp %eax,%ebx; je 1f; nop; 1: hlt");

struct size_case {
	const char *what;
	const u8 *code;
	u32 len, index, limit;
};

static u32 host_instructions(const struct block *b, u32 k)
{
	u64 at = b->code + b->host_off[k];
	u64 end = b->code + (k + 1 < b->insns ? b->host_off[k + 1] : b->code_size);
	ZydisDisassembledInstruction d;
	u32 n = 0;

	for (; at < end; n++, at += d.info.length)
		if (!ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at, (void *)at,
							end - at, &d)))
			return ~0u;
	return n;
}

static void code_stays_small(void **state)
{
	const struct size_case list[] = {
		{"add", CODE_OF(size_add), 0, 1},
		{"register in a slot", CODE_OF(size_slot), 0, 2},
		{"load, flags dead", CODE_OF(size_load), 0, 8},
		{"store, flags dead", CODE_OF(size_store), 0, 8},
		{"load, flags live", CODE_OF(size_live), 0, 14},
		{"second load of a group", CODE_OF(size_group), 1, 1},
		{"second push", CODE_OF(size_push), 1, 2},
		{"lea", CODE_OF(size_lea), 0, 1},
		{"vector operation", CODE_OF(size_vector), 0, 1},
		{"vector load", CODE_OF(size_vector_load), 0, 8},
		{"conditional branch", CODE_OF(size_jcc), 1, 4},
	};
	struct soft_machine *m = long_machine();

	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(list); n++) {
		struct block *b;
		u32 count;

		m->c->r[RBX] = AT_DATA;
		m->c->r[RCX] = 0;
		run(m, list[n].code, list[n].len);
		b = cache_find(m->c->vm->cache, AT_CODE, m->c->mode, 0);
		assert_non_null(b);
		count = host_instructions(b, list[n].index);
		if (count > list[n].limit)
			print_message("%s: %u host instructions\n", list[n].what, count);
		assert_true(count <= list[n].limit);
	}
	machine_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(programs_agree_with_the_interpreter),
		cmocka_unit_test(results_are_known),
		cmocka_unit_test(sees_its_own_stores),
		cmocka_unit_test(counts_invalidated_blocks),
		cmocka_unit_test(sees_remapped_second_page),
		cmocka_unit_test(keeps_flags_on_a_table_miss),
		cmocka_unit_test(reloads_group_address_behind_slow_path),
		cmocka_unit_test(high_byte_to_stack_pointer),
		cmocka_unit_test(vzeroupper_outside_64_bit_mode),
		cmocka_unit_test(code_stays_small),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
