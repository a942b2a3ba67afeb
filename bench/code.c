/*
 * Host instructions per guest instruction: code [--json | --check FILE].
 *
 * Each of a fixed list of short guest sequences is run once by the soft engine, so that its blocks
 * exist, and the code made of them is counted, not timed: the hot code of each block from its
 * direct entry to its end, slow paths excluded, and for sequences with indirect branches also the
 * entries these arrive at. The figures depend on the translator alone, not on the host. --check
 * compares with a table printed before.
 */
#include "engine/flat.h"
#include "engine/soft/cache.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	RAM_SIZE = 4 << 20,
	TABLES_AT = 0x4000,
	CODE_AT = 0x10000,
	END_AT = CODE_AT + 0x800, /* the flags are dead there */
	RET_AT = CODE_AT + 0x840, /* ret */
	STACK_AT = 0x30800,
	DATA_AT = 0x100000,  /* words that point to DATA_AT */
	TABLE_AT = 0x110000, /* words that point to END_AT */
	BYTES_AT = 0x120000, /* zeroes */
	LINE = 96,
};

/*
 * What the registers hold: rbx DATA_AT, r12 TABLE_AT, rsi and rdi BYTES_AT, r9 and r10 DATA_AT, rcx
 * 4, rdx END_AT, r13 RET_AT, rbp STACK_AT. A sequence ends by a jump to END_AT, which counts as its
 * last instruction.
 */
#define TO_END "jmp 77b + 0x800\n"
#define SEQUENCES(X)                                                                            \
	X(alu, "mov %rdx, %rax; add %rcx, %rax; imul %rdx, %rax; shl $3, %rax; xor %ecx, "      \
	       "%eax\n" TO_END)                                                                 \
	X(load, "mov (%rbx), %rax\n" TO_END)                                                    \
	X(load_fields, "mov 8(%rbx), %rax; mov 16(%rbx), %rdx; mov 24(%rbx), %ebp\n" TO_END)    \
	X(load_index, "mov (%rbx,%rcx,8), %rax\n" TO_END)                                       \
	X(load_byte, "movzbl 3(%rbx), %eax\n" TO_END)                                           \
	X(load_flags_live, "cmp %rax, %rdx; mov (%rbx), %rax; adc %rax, %rcx\n" TO_END)         \
	X(load_absolute, "mov 0x100008, %rax\n" TO_END)                                         \
	X(load_rip, "mov 77b + 0x400(%rip), %rax\n" TO_END)                                     \
	X(chase, "mov (%rbx), %rbx; mov (%rbx), %rbx; mov (%rbx), %rbx\n" TO_END)               \
	X(store, "mov %rax, (%rbx)\n" TO_END)                                                   \
	X(store_fields, "mov %rax, 8(%rbx); mov %edx, 16(%rbx); movb $1, 20(%rbx)\n" TO_END)    \
	X(store_index, "mov %rax, (%rbx,%rcx,8)\n" TO_END)                                      \
	X(load_then_store, "mov 8(%rbx), %rax; add %rcx, %rax; mov %rax, 8(%rbx)\n" TO_END)     \
	X(copy_word, "mov (%rsi), %rax; mov %rax, (%rbx)\n" TO_END)                             \
	X(rmw, "add %rax, (%rsi)\n" TO_END)                                                     \
	X(rmw_lock, "lock incq (%rsi)\n" TO_END)                                                \
	X(xchg, "xchg %rax, (%rsi)\n" TO_END)                                                   \
	X(compare_load, "cmp %rax, (%rsi); jne 1f; nop\n1:" TO_END)                             \
	X(flags_live_load, "cmp %rax, %rdx; mov (%rcx,%rsi), %rax; jne 1f; nop\n1:" TO_END)     \
	X(push_pop, "push %rbx; push %rbp; push %r12; push %r13\n"                              \
		    "pop %r13; pop %r12; pop %rbp; pop %rbx\n" TO_END)                          \
	X(frame, "push %rbp; mov %rsp, %rbp; sub $32, %rsp; mov %rdi, -8(%rbp)\n"               \
		 "mov -8(%rbp), %rax; leave\n" TO_END)                                          \
	X(call_ret, "call 1f\n" TO_END "1: ret\n")                                              \
	X(call_frame_ret,                                                                       \
	  "call 1f\n" TO_END "1: push %rbx; sub $16, %rsp; mov %rdi, 8(%rsp); add $16, %rsp\n"  \
	  "pop %rbx; ret\n")                                                                    \
	X(call_register, "call *%r13\n" TO_END)                                                 \
	X(call_memory, "push %r13; call *(%rsp)\n" TO_END)                                      \
	X(jump_register, "jmp *%rdx\n")                                                         \
	X(jump_table, "jmp *(%r12,%rcx,8)\n")                                                   \
	X(bytecode, "movzbl (%rsi), %eax; inc %rsi; jmp *(%r12,%rax,8)\n")                      \
	X(branch_forward, "test %rcx, %rcx; je 1f; inc %eax\n1: inc %edx\n" TO_END)             \
	X(loop, "1: add %rcx, %rax; dec %ecx; jnz 1b\n" TO_END)                                 \
	X(loop_sum, "1: add -8(%rsi,%rcx,8), %rax; dec %rcx; jnz 1b\n" TO_END)                  \
	X(loop_copy, "1: mov (%rsi), %rax; mov %rax, (%rbx); add $8, %rsi; add $8, %rbx\n"      \
		     "dec %ecx; jnz 1b\n" TO_END)                                               \
	X(rep_movs, "rep movsb\n" TO_END)                                                       \
	X(rep_stos, "rep stosq\n" TO_END)                                                       \
	X(rep_stos_six, "mov $6, %ecx\n rep stosq\n" TO_END)                                    \
	X(lods, "lodsb\n" TO_END)                                                               \
	X(sse_load,                                                                             \
	  "movaps (%rsi), %xmm0; addps 16(%rsi), %xmm0; movaps %xmm0, 32(%rsi)\n" TO_END)       \
	X(sse_index, "movups (%rsi,%rcx), %xmm0; paddd %xmm0, %xmm1\n" TO_END)                  \
	X(sse_double, "movsd (%rsi), %xmm0; mulsd 8(%rsi), %xmm0; addsd %xmm0, %xmm1\n" TO_END) \
	X(x87, "fninit; fldl (%rsi); fldl 8(%rsi); faddp; fstpl 16(%rsi)\n" TO_END)             \
	X(high_registers, "mov %r9, %r11; add %r10, %r11; lea (%r9,%rcx,4), %r10\n" TO_END)     \
	X(high_base, "mov (%r9), %rax; mov %rax, 8(%r10)\n" TO_END)                             \
	X(high_index, "mov (%rbx,%r9), %al\n" TO_END)                                           \
	X(segment_base, "mov %fs:0x100000, %rax\n" TO_END)                                      \
	X(per_cpu, "incl %gs:0x120000\n" TO_END)                                                \
	X(bit_test, "bt %rcx, (%rsi)\n" TO_END)                                                 \
	X(bit_set, "bts %ecx, %eax; adc %edx, %edx\n" TO_END)                                   \
	X(conditional, "cmp %rax, %rdx; cmova %rcx, %rax; seta %dl\n" TO_END)                   \
	X(flags_saved, "pushfq; pop %rax\n" TO_END)                                             \
	X(irq_off, "cli\n" TO_END)                                                              \
	X(time, "rdtsc\n" TO_END)                                                               \
	X(swapgs, "swapgs; swapgs\n" TO_END)

extern const struct engine_ops soft_engine;

#define ASSEMBLE(name, text)                                                                     \
	__asm__(".pushsection .rodata\nsequence_" #name "_start: 77:\n" text "\nsequence_" #name \
		"_end:\n.popsection\n");                                                         \
	extern const u8 sequence_##name##_start[], sequence_##name##_end[];
SEQUENCES(ASSEMBLE)

struct sequence {
	const char *name;
	const u8 *start, *end;
	/* filled in */
	u32 guest, host, bytes, steps;
};

struct bench {
	struct physmap physmap;
	struct cpuid_model cpuid;
	struct engine_vm *vm;
	struct engine_vcpu *cpu;
	struct cpu_state state;
	ZydisDecoder decoder;
	u8 *ram;
};

static void fill(u8 *at, u64 value)
{
	for (u32 n = 0; n < PAGE_SIZE; n += 8)
		memcpy(at + n, &value, 8);
}

static int build(struct bench *b, struct err *e)
{
	const struct cpuid_request request = {.vcpus = 1, .hide_hypervisor = true};
	const struct engine_config config = {.physmap = &b->physmap, .cpuid = &b->cpuid};
	int r = cpuid_model_init(&b->cpuid, &request, e);

	physmap_init(&b->physmap);
	ZydisDecoderInit(&b->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	if (!r)
		r = physmap_add(&b->physmap, 0, RAM_SIZE, 0, e);
	if (r)
		return r;
	b->ram = b->physmap.region[0].hva;
	flat_tables(b->ram + TABLES_AT, TABLES_AT);
	fill(b->ram + DATA_AT, DATA_AT);
	fill(b->ram + TABLE_AT, END_AT);
	r = soft_engine.vm_create(&config, &b->vm, e);
	return r ? r : soft_engine.vcpu_create(b->vm, 0, &b->cpu, e);
}

static int run(struct bench *b, const struct sequence *q, struct err *e)
{
	/* test %eax, %eax; out %al, $0x80; jmp -2 */
	static const u8 end[] = {0x85, 0xc0, 0xe6, 0x80, 0xeb, 0xfe}, ret[] = {0xc3};
	struct vm_exit x = {0};
	u64 *r = b->state.gpr.r;

	memcpy(b->ram + CODE_AT, q->start, (u64)(q->end - q->start));
	memcpy(b->ram + END_AT, end, sizeof(end));
	memcpy(b->ram + RET_AT, ret, sizeof(ret));
	flat_state(&b->state, TABLES_AT, CODE_AT, STACK_AT, 0);
	r[RBX] = r[R9] = r[R10] = DATA_AT;
	r[R12] = TABLE_AT;
	r[RSI] = r[RDI] = BYTES_AT;
	r[RCX] = 4;
	r[RDX] = END_AT;
	r[R13] = RET_AT;
	r[RBP] = STACK_AT;
	if (soft_engine.state_set(b->cpu, CPU_PART_ALL, &b->state) || soft_engine.run(b->cpu, &x))
		return err_set(e, -EIO, "%s: cannot be run", q->name);
	if (x.type != EXIT_PIO || x.pio.port != 0x80)
		return err_set(e, -EIO, "%s: ends with exit %d", q->name, (int)x.type);
	return 0;
}

/* Host instructions in [at, end); @steps: those that call the interpreter. */
static u32 count(const struct bench *b, u64 at, u64 end, u32 *steps)
{
	const struct cache *cache = ((struct soft_vm *)b->vm)->cache;
	ZydisDecodedInstruction i;
	u32 n = 0;

	for (; at < end; at += i.length, n++) {
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&b->decoder, NULL, (void *)at,
								end - at, &i)))
			return 0;
		if (i.mnemonic == ZYDIS_MNEMONIC_CALL &&
		    at + i.length + (u64)i.raw.imm[0].value.s == cache->entry.step)
			++*steps;
	}
	return n;
}

static bool ends_indirectly(const struct sequence *q)
{
	return !strncmp(q->name, "jump_", 5) || !strcmp(q->name, "bytecode") ||
	       !strcmp(q->name, "call_register") || !strcmp(q->name, "call_memory");
}

static void add_block(const struct bench *b, struct sequence *q, const struct block *block)
{
	bool counts = block->pa < CODE_AT + (u64)(q->end - q->start);

	if (counts || block->pa == RET_AT) {
		q->guest += block->insns;
		q->bytes += block->code_size - block->direct;
		q->host += count(b, block->code + block->direct, block->code + block->code_size,
				 &q->steps);
	}
	/* Where an indirect branch arrived: not at the first block. */
	if (ends_indirectly(q) && block->pa >= END_AT && block->entry == block->code) {
		q->bytes += (u32)(block->poll - block->entry);
		q->host += count(b, block->code, block->code + block->direct, &q->steps);
	}
}

/* Translated code is dropped between sequences, so that all blocks are this one's. */
static int measure(struct bench *b, struct sequence *q, struct err *e)
{
	struct soft_vm *vm = (struct soft_vm *)b->vm;
	int r = 0;

	if (!soft_flush_code((struct soft_cpu *)b->cpu))
		r = err_set(e, -EIO, "code cannot be dropped");
	if (!r)
		r = run(b, q, e);
	if (r)
		return r;
	for (u32 n = 0; n < vm->cache->blocks; n++)
		if (!vm->cache->index[n]->dead)
			add_block(b, q, vm->cache->index[n]);
	return q->guest && q->host ? 0 : err_set(e, -EIO, "%s: no code was found", q->name);
}

static void line(const struct sequence *q, char text[LINE])
{
	snprintf(text, LINE, "%-18s %5u %5u %6.2f %6u %5u\n", q->name, q->guest, q->host,
		 (double)q->host / q->guest, q->bytes, q->steps);
}

static const char heading[] = "# sequence         guest  host  ratio  bytes steps\n";

static void print_table(const struct sequence *q, u32 n)
{
	char text[LINE];

	fputs(heading, stdout);
	for (u32 i = 0; i < n; i++) {
		line(&q[i], text);
		fputs(text, stdout);
	}
}

static void print_json(const struct sequence *q, u32 n)
{
	json_t *all = json_object();

	for (u32 i = 0; i < n; i++)
		json_object_set_new(all, q[i].name,
				    json_pack("{s:i, s:i, s:i, s:i}", "guest", (int)q[i].guest,
					      "host", (int)q[i].host, "bytes", (int)q[i].bytes,
					      "steps", (int)q[i].steps));
	json_dumpf(all, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(all);
}

/* Report each line that is not the same in the file. */
static int check(const struct sequence *q, u32 n, const char *path)
{
	char text[LINE], was[LINE];
	FILE *f = fopen(path, "r");
	bool same;

	if (!f || !fgets(was, sizeof(was), f)) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 1;
	}
	same = !strcmp(was, heading);
	for (u32 i = 0; i < n; i++) {
		line(&q[i], text);
		if (!fgets(was, sizeof(was), f))
			snprintf(was, sizeof(was), "(nothing)\n");
		if (!strcmp(was, text))
			continue;
		same = false;
		printf("-%s+%s", was, text);
	}
	same &= !fgets(was, sizeof(was), f);
	fclose(f);
	if (same)
		return 0;
	printf("Translated code has changed. If that is meant, make bench-code REFRESH=1 and "
	       "commit "
	       "the table.\n");
	return 1;
}

#define ROW(row, text) {.name = #row, .start = sequence_##row##_start, .end = sequence_##row##_end},

int main(int argc, char **argv)
{
	static struct sequence q[] = {SEQUENCES(ROW)};
	static struct bench b;
	struct err e = {0};
	int r = build(&b, &e);

	for (u32 i = 0; i < ARRAY_SIZE(q) && !r; i++)
		r = measure(&b, &q[i], &e);
	if (r) {
		fprintf(stderr, "%s\n", e.text);
		return 1;
	}
	if (argc == 3 && !strcmp(argv[1], "--check"))
		r = check(q, ARRAY_SIZE(q), argv[2]);
	else if (argc == 2 && !strcmp(argv[1], "--json"))
		print_json(q, ARRAY_SIZE(q));
	else
		print_table(q, ARRAY_SIZE(q));
	soft_engine.vcpu_destroy(b.cpu);
	soft_engine.vm_destroy(b.vm);
	physmap_destroy(&b.physmap);
	return r;
}
