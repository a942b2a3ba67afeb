/*
 * Small kernels of work, each timing itself: what bench/run.py compares between a plain process,
 * QEMU and doppel.
 *
 * One static program serves all three, as a process or as a command in the guest. Every row repeats
 * its work in passes of at least PASS_NS and reports the best pass, since whatever disturbs a pass
 * only makes it longer. A row prints "row NAME VALUE UNIT" with the time for one unit of work; a
 * result that the compiler could drop is fed to keep(). The checks abort: a wrong answer is no
 * benchmark.
 *
 * With --jobs N every row is done by N processes at once, each on a processor of its own, and the
 * time is that of the last to end, for one unit of all their work.
 *
 * usage: micro [--list] [--pass-ms N] [--passes N] [--jobs N] [ROW]...
 */
#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define keep(value)   __asm__ volatile("" : : "g"(value) : "memory")

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "micro: %s gave a wrong result\n", what);
	exit(1);
}

static void *map_pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(p != MAP_FAILED, "mmap");
	return p;
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* Integer arithmetic in registers, with a dependent chain of mixed operations. */
static uint64_t row_alu(uint64_t n)
{
	uint64_t a = 1, b = 2, c = 3;

	for (uint64_t i = 0; i < n * 1000; i++) {
		a = a * 3 + (b ^ i);
		b = (b << 7 | b >> 57) + c;
		c = (c + (a >> 5)) ^ (i & 0xff);
	}
	keep(a + b + c);
	return n * 1000;
}

/* NOLINTNEXTLINE(misc-no-recursion): what the row measures */
__attribute__((noinline)) static uint64_t fib(unsigned int n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* Recursion: calls, returns, and the stack. 21,891 calls for fib(20). */
static uint64_t row_calls(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		check(fib(20) == 6765, "fib");
	return n * 21891;
}

typedef uint64_t (*operation)(uint64_t x);

#define OPERATION(name, expression)                                \
	__attribute__((noinline)) static uint64_t name(uint64_t x) \
	{                                                          \
		return expression;                                 \
	}

OPERATION(op_add, x + 0x9e37)
OPERATION(op_xor, x ^ 0x55aa)
OPERATION(op_rotate, x << 3 | x >> 61)
OPERATION(op_multiply, x * 5)
OPERATION(op_subtract, x - 77)
OPERATION(op_not, ~x)
OPERATION(op_shift, x ^ x >> 9)
OPERATION(op_swap, __builtin_bswap64(x))

/* Calls through pointers picked at random: indirect branches that no predictor knows. */
static uint64_t row_indirect(uint64_t n)
{
	static const operation ops[] = {op_add,      op_xor, op_rotate, op_multiply,
					op_subtract, op_not, op_shift,  op_swap};
	static uint8_t order[4096];
	uint64_t x = 1, seed = 88172645463325252u;

	for (size_t i = 0; i < sizeof(order); i++)
		order[i] = next_random(&seed) % ARRAY_SIZE(ops);
	for (uint64_t i = 0; i < n; i++)
		for (size_t k = 0; k < sizeof(order); k++)
			x = ops[order[k]](x);
	keep(x);
	return n * sizeof(order);
}

enum bytecode { BC_PUSH, BC_ADD, BC_SUB, BC_DUP, BC_STORE, BC_LOAD, BC_JNZ, BC_HALT };

/* A bytecode interpreter with a switch, running a counting loop. */
static uint64_t row_interpreter(uint64_t n)
{
	static const uint8_t program[] = {
		BC_PUSH, 200, BC_STORE, 0,                      /* i = 200 */
		BC_PUSH, 0,   BC_STORE, 1,                      /* s = 0 */
		BC_LOAD, 1,   BC_LOAD,  0, BC_ADD, BC_STORE, 1, /* s += i */
		BC_LOAD, 0,   BC_PUSH,  1, BC_SUB, BC_DUP,   BC_STORE, 0, BC_JNZ, 8, BC_HALT,
	};
	uint64_t steps = 0;

	for (uint64_t i = 0; i < n; i++) {
		int64_t stack[16], var[2] = {0, 0};
		unsigned int sp = 0, pc = 0;
		bool running = true;

		while (running) {
			steps++;
			switch ((enum bytecode)program[pc++]) {
			case BC_PUSH: stack[sp++ & 15] = program[pc++]; break;
			case BC_ADD:
				sp--;
				stack[(sp - 1) & 15] += stack[sp & 15];
				break;
			case BC_SUB:
				sp--;
				stack[(sp - 1) & 15] -= stack[sp & 15];
				break;
			case BC_DUP:
				stack[sp & 15] = stack[(sp - 1) & 15];
				sp++;
				break;
			case BC_STORE: var[program[pc++] & 1] = stack[--sp & 15]; break;
			case BC_LOAD: stack[sp++ & 15] = var[program[pc++] & 1]; break;
			case BC_JNZ: pc = stack[--sp & 15] ? program[pc] : pc + 1; break;
			case BC_HALT: running = false; break;
			}
		}
		check(var[1] == 20100, "interpreter");
	}
	return steps;
}

/* Follow pointers through 16 KiB in random order: the latency of a load. */
static uint64_t row_chase(uint64_t n)
{
	enum { NODES = 256 };
	static struct node {
		struct node *next;
		char fill[56];
	} nodes[NODES];
	uint16_t order[NODES];
	uint64_t seed = 12345;
	struct node *p;

	for (unsigned int i = 0; i < NODES; i++)
		order[i] = i;
	for (unsigned int i = NODES - 1; i > 0; i--) {
		unsigned int k = next_random(&seed) % (i + 1);
		uint16_t t = order[i];

		order[i] = order[k];
		order[k] = t;
	}
	for (unsigned int i = 0; i < NODES; i++)
		nodes[order[i]].next = &nodes[order[(i + 1) % NODES]];
	p = nodes;
	for (uint64_t i = 0; i < n * 1000; i++)
		p = p->next;
	keep(p);
	return n * 1000;
}

/* Sum and rewrite 8 MiB in order, word by word. */
static uint64_t row_stream(uint64_t n)
{
	enum { WORDS = 1 << 20 };
	static uint64_t *data;
	uint64_t sum = 0;

	if (!data)
		data = map_pages(WORDS * sizeof(*data));
	for (uint64_t i = 0; i < n; i++) {
		for (size_t k = 0; k < WORDS; k++) {
			__asm__ volatile("" : "+r"(sum));
			sum += data[k];
			data[k] = sum;
		}
	}
	keep(sum);
	return n * WORDS;
}

static int compare_ints(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* qsort of 20,000 random integers. */
static uint64_t row_sort(uint64_t n)
{
	enum { COUNT = 20000 };
	static uint32_t v[COUNT];
	uint64_t seed = 987654321;

	for (uint64_t i = 0; i < n; i++) {
		for (size_t k = 0; k < COUNT; k++)
			v[k] = next_random(&seed);
		qsort(v, COUNT, sizeof(v[0]), compare_ints);
		for (size_t k = 1; k < COUNT; k++)
			check(v[k - 1] <= v[k], "sort");
	}
	return n * COUNT;
}

/* Insert into and look up in an open hash table of 1 MiB. */
static uint64_t row_hash(uint64_t n)
{
	enum { SLOTS = 1 << 16, KEYS = SLOTS / 2 };
	static struct {
		uint64_t key, value;
	} table[SLOTS];
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		memset(table, 0, sizeof(table));
		for (uint64_t k = 1; k <= KEYS; k++) {
			uint64_t slot = k * 0x9e3779b97f4a7c15u >> 48;

			while (table[slot % SLOTS].key)
				slot++;
			table[slot % SLOTS].key = k;
			table[slot % SLOTS].value = k * k;
		}
		for (uint64_t k = 1; k <= KEYS; k++) {
			uint64_t slot = k * 0x9e3779b97f4a7c15u >> 48;

			while (table[slot % SLOTS].key != k)
				slot++;
			sum += table[slot % SLOTS].value;
		}
	}
	keep(sum);
	return n * 2 * KEYS;
}

/* Grow and drop linked structures through malloc and free. */
static uint64_t row_malloc(uint64_t n)
{
	void *slot[256] = {NULL};
	uint64_t seed = 424242;

	for (uint64_t i = 0; i < n * 1000; i++) {
		uint64_t r = next_random(&seed);
		unsigned int k = r & 255;

		free(slot[k]);
		slot[k] = malloc(16 + (r >> 8 & 511));
		check(slot[k] != NULL, "malloc");
		*(uint64_t *)slot[k] = r;
	}
	for (unsigned int k = 0; k < ARRAY_SIZE(slot); k++)
		free(slot[k]);
	return n * 1000;
}

/* Multiply 96x96 matrices of doubles: scalar SSE2, whose order of additions is fixed. */
static uint64_t row_matmul(uint64_t n)
{
	enum { N = 96 };
	static double a[N][N], b[N][N], c[N][N];

	for (int i = 0; i < N; i++)
		for (int k = 0; k < N; k++) {
			a[i][k] = i + k;
			b[i][k] = i == k;
		}
	for (uint64_t r = 0; r < n; r++) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double s = 0;

				for (int k = 0; k < N; k++)
					s += a[i][k] * b[k][j];
				c[i][j] = s;
			}
		check(c[3][5] == 8 && c[95][95] == 190, "matmul");
	}
	return n * N * N * N;
}

/* x87: a dependent chain of long double operations. */
static uint64_t row_x87(uint64_t n)
{
	volatile long double start = 1.0L;
	long double x = start;

	for (uint64_t i = 0; i < n * 1000; i++)
		x = x * 0.999999L + 0.5L / (x + 1.0L);
	check(x > 0.0L && x < 1e6L, "x87");
	return n * 1000;
}

/* Packed 16-bit and 32-bit integer arithmetic on 16-byte vectors. */
static uint64_t row_sse_int(uint64_t n)
{
	__m128i a = _mm_set1_epi32(3), b = _mm_set1_epi16(7), c = _mm_setzero_si128();

	for (uint64_t i = 0; i < n * 1000; i++) {
		a = _mm_add_epi32(a, _mm_mullo_epi16(b, a));
		b = _mm_xor_si128(_mm_slli_epi32(b, 1), _mm_unpacklo_epi8(a, c));
		c = _mm_sub_epi16(c, _mm_min_epi16(a, b));
	}
	keep(_mm_cvtsi128_si32(c));
	return n * 1000;
}

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2");
}

static bool has_aes(void)
{
	return __builtin_cpu_supports("aes");
}

/* Packed integer arithmetic on 32-byte vectors, with loads. */
__attribute__((target("avx2"))) static uint64_t row_avx_int(uint64_t n)
{
	static uint32_t data[2048];
	__m256i sum = _mm256_setzero_si256();

	for (size_t k = 0; k < ARRAY_SIZE(data); k++)
		data[k] = k;
	for (uint64_t i = 0; i < n; i++)
		for (size_t k = 0; k < ARRAY_SIZE(data); k += 8) {
			__m256i v = _mm256_loadu_si256((const __m256i *)&data[k]);

			sum = _mm256_add_epi32(_mm256_mullo_epi32(v, v), _mm256_xor_si256(sum, v));
		}
	keep(_mm256_extract_epi32(sum, 0));
	return n * ARRAY_SIZE(data) / 8;
}

/* AES rounds, four blocks at a time. */
__attribute__((target("aes"))) static uint64_t row_aes(uint64_t n)
{
	__m128i block[4], key = _mm_set1_epi32(0x01234567);

	for (unsigned int k = 0; k < ARRAY_SIZE(block); k++)
		block[k] = _mm_set1_epi32((int)k);
	for (uint64_t i = 0; i < n * 100; i++)
		for (int round = 0; round < 10; round++)
			for (unsigned int k = 0; k < ARRAY_SIZE(block); k++)
				block[k] = _mm_aesenc_si128(block[k], key);
	for (unsigned int k = 1; k < ARRAY_SIZE(block); k++)
		block[0] = _mm_xor_si128(block[0], block[k]);
	keep(_mm_cvtsi128_si32(block[0]));
	return n * 100 * ARRAY_SIZE(block) * 16;
}

/* SHA-256's compression function in plain C: rotates, adds, many live values. */
static uint64_t row_sha256(uint64_t n)
{
	uint32_t s[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
			 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	uint32_t w[16];

#define ROR(x, k) ((x) >> (k) | (x) << (32 - (k)))
	for (uint64_t i = 0; i < n * 16; i++) {
		uint32_t a = s[0], b = s[1], c = s[2], d = s[3];
		uint32_t e = s[4], f = s[5], g = s[6], h = s[7];

		for (unsigned int k = 0; k < 16; k++)
			w[k] = (uint32_t)i * 0x01000193 + k;
		for (unsigned int k = 0; k < 64; k++) {
			uint32_t t1, t2;

			if (k >= 16) {
				uint32_t x = w[(k + 1) & 15], y = w[(k + 14) & 15];

				w[k & 15] += (ROR(x, 7) ^ ROR(x, 18) ^ x >> 3) + w[(k + 9) & 15] +
					     (ROR(y, 17) ^ ROR(y, 19) ^ y >> 10);
			}
			t1 = h + (ROR(e, 6) ^ ROR(e, 11) ^ ROR(e, 25)) + ((e & f) ^ (~e & g)) +
			     w[k & 15] + k * 0x9e3779b9;
			t2 = (ROR(a, 2) ^ ROR(a, 13) ^ ROR(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
			h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
		}
		s[0] += a, s[1] += b, s[2] += c, s[3] += d, s[4] += e, s[5] += f, s[6] += g,
			s[7] += h;
	}
#undef ROR
	keep(s[0]);
	return n * 16 * 64;
}

/* memcpy of 64 KiB. */
static uint64_t row_memcpy(uint64_t n)
{
	enum { BYTES = 65536 };
	static char from[BYTES], to[BYTES];

	for (uint64_t i = 0; i < n; i++) {
		memcpy(to, from, BYTES);
		keep(to);
	}
	return n * BYTES / 1024;
}

/* The string instruction itself, as kernels use it. */
static uint64_t row_rep_movs(uint64_t n)
{
	enum { BYTES = 4096 };
	static char from[BYTES], to[BYTES];

	for (uint64_t i = 0; i < n; i++) {
		const void *s = from;
		void *d = to;
		size_t count = BYTES;

		__asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(count) : : "memory");
	}
	return n * BYTES / 1024;
}

static uint64_t row_syscall(uint64_t n)
{
	for (uint64_t i = 0; i < n * 10; i++)
		syscall(SYS_getppid);
	return n * 10;
}

static uint64_t row_clock(uint64_t n)
{
	struct timespec t;

	for (uint64_t i = 0; i < n * 10; i++)
		clock_gettime(CLOCK_MONOTONIC, &t);
	return n * 10;
}

/* First touch of fresh anonymous pages. */
static uint64_t row_page_fault(uint64_t n)
{
	enum { PAGES = 256 };
	const size_t bytes = PAGES * 4096ul;

	for (uint64_t i = 0; i < n; i++) {
		char *p = map_pages(bytes);

		madvise(p, bytes, MADV_NOHUGEPAGE);
		for (size_t k = 0; k < PAGES; k++)
			p[k * 4096] = 1;
		munmap(p, bytes);
	}
	return n * PAGES;
}

static void reap(pid_t pid)
{
	int status;

	check(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
		      WEXITSTATUS(status) == 0,
	      "child");
}

static uint64_t row_fork(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		reap(pid);
	}
	return n;
}

static uint64_t row_exec(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		pid_t pid = fork();

		if (!pid) {
			execl("/proc/self/exe", "micro", "--exit", (char *)NULL);
			_exit(1);
		}
		reap(pid);
	}
	return n;
}

/* One byte there and back between two processes on one processor. */
static uint64_t row_pipe(uint64_t n)
{
	int there[2], back[2];
	char byte = 1;
	pid_t pid;

	check(!pipe(there) && !pipe(back), "pipe");
	pid = fork();
	if (!pid) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1)
			check(write(back[1], &byte, 1) == 1, "pipe");
		_exit(0);
	}
	close(there[0]);
	for (uint64_t i = 0; i < n; i++)
		check(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "pipe");
	close(there[1]);
	reap(pid);
	close(back[0]);
	close(back[1]);
	return n;
}

/* 4 KiB reads and writes of a file in memory: the kernel's copy loops. */
static uint64_t row_file(uint64_t n)
{
	static char block[4096];
	int fd = memfd_create("micro", 0);

	check(fd >= 0, "memfd");
	for (uint64_t i = 0; i < n; i++) {
		off_t at = (off_t)(i % 64) * 4096;

		check(pwrite(fd, block, 4096, at) == 4096 && pread(fd, block, 4096, at) == 4096,
		      "file");
	}
	close(fd);
	return 2 * n;
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals = signals + 1;
}

static uint64_t row_signal(uint64_t n)
{
	struct sigaction action = {.sa_handler = count_signal};

	sigaction(SIGUSR1, &action, NULL);
	for (uint64_t i = 0; i < n; i++)
		raise(SIGUSR1);
	return n;
}

struct row {
	const char *name;
	const char *unit;            /* of what run() returns */
	uint64_t (*run)(uint64_t n); /* does n portions, returns how many units that was */
	bool (*available)(void);     /* NULL: everywhere */
};

static const struct row rows[] = {
	{"alu", "iteration", row_alu, NULL},
	{"calls", "call", row_calls, NULL},
	{"indirect", "call", row_indirect, NULL},
	{"interpreter", "bytecode", row_interpreter, NULL},
	{"chase", "load", row_chase, NULL},
	{"stream", "word", row_stream, NULL},
	{"sort", "element", row_sort, NULL},
	{"hash", "operation", row_hash, NULL},
	{"malloc", "pair", row_malloc, NULL},
	{"sha256", "round", row_sha256, NULL},
	{"matmul", "multiply-add", row_matmul, NULL},
	{"x87", "iteration", row_x87, NULL},
	{"sse-int", "iteration", row_sse_int, NULL},
	{"avx-int", "iteration", row_avx_int, has_avx2},
	{"aes", "byte", row_aes, has_aes},
	{"memcpy", "KiB", row_memcpy, NULL},
	{"rep-movs", "KiB", row_rep_movs, NULL},
	{"syscall", "call", row_syscall, NULL},
	{"clock", "call", row_clock, NULL},
	{"page-fault", "page", row_page_fault, NULL},
	{"file-4k", "transfer", row_file, NULL},
	{"signal", "signal", row_signal, NULL},
	{"fork", "process", row_fork, NULL},
	{"exec", "process", row_exec, NULL},
	{"pipe", "round trip", row_pipe, NULL},
};

struct options {
	uint64_t pass_ns;
	unsigned int passes;
	unsigned int jobs; /* 0: in this process */
};

enum { MAX_JOBS = 64 };

/* Shared by the processes of one pass. */
struct together {
	atomic_uint ready;
	atomic_bool go;
	uint64_t units[MAX_JOBS], end[MAX_JOBS];
};

/* To the @n-th processor, counted from 0, that this process may use. */
static bool move_to_processor(unsigned int n, const cpu_set_t *allowed)
{
	cpu_set_t one;

	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, allowed) || n--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		return sched_setaffinity(0, sizeof(one), &one) == 0;
	}
	return false;
}

/* What one of the processes does: warm up, wait for the others, work. */
static void work_together(struct together *t, const struct row *row, unsigned int job, uint64_t n)
{
	row->run(1);
	atomic_fetch_add(&t->ready, 1);
	while (!atomic_load(&t->go))
		sched_yield();
	t->units[job] = row->run(n);
	t->end[job] = now_ns();
}

/* One pass of all the processes; returns its time. */
static uint64_t pass_together(const struct row *row, unsigned int jobs, const cpu_set_t *allowed,
			      uint64_t n, uint64_t *units)
{
	struct together *t =
		mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t start, end = 0;
	pid_t child[MAX_JOBS];
	int status;

	check(t != MAP_FAILED, "mmap");
	for (unsigned int job = 0; job < jobs; job++) {
		child[job] = fork();
		check(child[job] >= 0, "fork");
		if (child[job])
			continue;
		check(move_to_processor(job, allowed), "--jobs without so many processors");
		work_together(t, row, job, n);
		_exit(0);
	}
	while (atomic_load(&t->ready) < jobs)
		sched_yield();
	start = now_ns();
	atomic_store(&t->go, true);
	*units = 0;
	for (unsigned int job = 0; job < jobs; job++) {
		check(waitpid(child[job], &status, 0) == child[job] && !status, row->name);
		*units += t->units[job];
		end = t->end[job] > end ? t->end[job] : end;
	}
	munmap(t, sizeof(*t));
	return end - start;
}

static uint64_t pass_alone(const struct row *row, uint64_t n, uint64_t *units)
{
	uint64_t start = now_ns();

	*units = row->run(n);
	return now_ns() - start;
}

/* Time one row: first find how many portions fill a pass, then keep the best of the passes. */
static void run_row(const struct row *row, const struct options *o, const cpu_set_t *allowed)
{
	uint64_t n = 1, best_ns = UINT64_MAX, best_units = 0, units = 0, spent;

	if (row->available && !row->available()) {
		printf("row %s - ns/%s\n", row->name, row->unit);
		return;
	}
	for (;;) {
		spent = pass_alone(row, n, &units);
		if (spent >= o->pass_ns || n >= UINT64_C(1) << 40)
			break;
		if (spent < o->pass_ns / 16)
			n *= 8;
		else
			n = n * o->pass_ns / spent + 1;
	}
	if (!o->jobs) {
		best_ns = spent;
		best_units = units;
	}
	for (unsigned int i = 0; i < o->passes; i++) {
		spent = o->jobs ? pass_together(row, o->jobs, allowed, n, &units)
				: pass_alone(row, n, &units);
		if (spent < best_ns) {
			best_ns = spent;
			best_units = units;
		}
	}
	printf("row %s %.4f ns/%s\n", row->name, (double)best_ns / (double)best_units, row->unit);
	fflush(stdout);
}

static bool is_chosen(const struct row *row, char **names, int count)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(row->name, names[i]))
			return true;
	return count == 0;
}

static bool take_number(const char *name, int argc, char **argv, int *i, uint64_t *value)
{
	if (strcmp(argv[*i], name) || *i + 1 >= argc)
		return false;
	*value = strtoull(argv[++*i], NULL, 10);
	return true;
}

static int usage(void)
{
	fprintf(stderr, "usage: micro [--list] [--pass-ms N] [--passes N] [--jobs N] [ROW]...\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct options o;
	uint64_t pass_ms = 50, passes = 4, jobs = 0;
	cpu_set_t allowed;
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--exit"))
			return 0;
		if (!strcmp(argv[i], "--list")) {
			for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
				printf("%s\n", rows[k].name);
			return 0;
		}
		if (!take_number("--pass-ms", argc, argv, &i, &pass_ms) &&
		    !take_number("--passes", argc, argv, &i, &passes) &&
		    !take_number("--jobs", argc, argv, &i, &jobs))
			return usage();
	}
	if (jobs > MAX_JOBS || !passes)
		return usage();
	o = (struct options){.pass_ns = pass_ms * 1000000,
			     .passes = (unsigned int)passes,
			     .jobs = (unsigned int)jobs};
	/* A guest with one processor is compared with a process on one. */
	check(sched_getaffinity(0, sizeof(allowed), &allowed) == 0, "sched_getaffinity");
	move_to_processor(0, &allowed);

	printf("micro: started\n");
	for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
		if (is_chosen(&rows[k], argv + i, argc - i))
			run_row(&rows[k], &o, &allowed);
	printf("micro: done\n");
	return 0;
}
