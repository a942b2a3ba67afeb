/*
 * The interpreter's instructions in 64-bit, 32-bit and real mode: results, faults with untouched
 * state, and resumption after device accesses.
 */
#include "soft_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PRESENT (PTE_P | PTE_RW | PTE_US)

static struct soft_machine *long_machine(void)
{
	struct soft_machine *m = machine_new();

	machine_long_mode(m);
	return m;
}

/* Run expecting a fault; the vector. */
static u8 fault_of(struct soft_machine *m, const u8 *code, u32 len)
{
	machine_load(m, code, len);
	assert_int_equal(machine_run(m, false), SOFT_FAULT);
	return m->c->exc.vector;
}

/* ---- data and control flow ---- */

CODE(sum, 64, "xor %eax,%eax; mov $100,%ecx; 1: add %rcx,%rax; loop 1b; hlt");
CODE(calls, 64,
     "lea 1f(%rip),%rbx; call *%rbx; add $1,%eax; hlt; 1: mov $41,%eax; push $7; ret $8");
CODE(calls_ok, 64, "call 1f; add $1,%eax; hlt; 1: mov $41,%eax; ret");
CODE(pushes, 64,
     "push %rsp; pop %rax; sub %rsp,%rax; pushw $0x1234; popw %bx; push $-2; pop %rcx;"
     "push %rcx; pop (%rsp); mov (%rsp),%rdx; enter $16,$0; leave; hlt");
CODE(conditions, 64,
     "xor %edi,%edi; mov $5,%eax; cmp $6,%eax; setl %dil; jge 1f; add $2,%edi; 1: cmp $-1,%eax;"
     "jb 2f; ud2; 2: jrcxz 3f; ud2; 3: hlt");

static void data_and_branches(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	machine_exec(m, CODE_OF(sum));
	assert_int_equal(m->c->r[RAX], 5050);
	machine_exec(m, CODE_OF(calls_ok));
	assert_int_equal(m->c->r[RAX], 42);
	assert_int_equal(m->c->r[RSP], AT_KERNEL_STACK);
	m->c->r[RCX] = 0;
	machine_exec(m, CODE_OF(conditions));
	assert_int_equal(m->c->r[RDI], 3);
	assert_int_equal(m->c->rip, AT_CODE + (u64)(conditions_end - conditions_start));
	machine_exec(m, CODE_OF(pushes));
	assert_int_equal(m->c->r[RAX], 0);
	assert_int_equal(m->c->r[RBX] & 0xffff, 0x1234);
	assert_int_equal(m->c->r[RCX], -2);
	assert_int_equal(m->c->r[RSP], AT_KERNEL_STACK);
	machine_free(m);
}

CODE(bits_far, 64,
     "lock bts %rax,(%rbx); setc %cl; bt %eax,(%rbx); setc %dl; btc %rax,(%rbx); hlt");

static void sdm_bt_register_offset_reaches_beyond(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	m->c->r[RBX] = AT_DATA + 0x100;
	m->c->r[RAX] = (u64)-1000; /* bit 24 of the quadword 16 quadwords below */
	machine_put(m, AT_DATA + 0x100 - 128, 8, 0);
	machine_exec(m, CODE_OF(bits_far));
	assert_int_equal(m->c->r[RCX] & 0xff, 0);
	assert_int_equal(m->c->r[RDX] & 0xff, 1);
	assert_int_equal(machine_get(m, AT_DATA + 0x100 - 128, 8), 0);
	machine_free(m);
}

CODE(crossing, 64,
     "mov $0x1122334455667788,%rax; mov %rax,(%rbx); lock addq $1,(%rbx); mov (%rbx),%rcx;"
     "cmpxchg %rdx,(%rbx); movups (%rbx),%xmm0; movups %xmm0,16(%rbx); hlt");

static void operands_across_pages(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	m->c->r[RBX] = AT_DATA + PAGE_SIZE - 3;
	m->c->r[RDX] = 5;
	machine_exec(m, CODE_OF(crossing));
	assert_int_equal(m->c->r[RCX], 0x1122334455667789);
	assert_int_equal(m->c->r[RAX], 0x1122334455667789);
	assert_int_equal(machine_get(m, AT_DATA + PAGE_SIZE + 13, 8), 0x1122334455667789);
	machine_free(m);
}

CODE(locked, 64,
     "lock xaddl %eax,(%rbx); xchg %cl,1(%rbx); lock incw (%rbx); lock cmpxchg %rsi,8(%rbx);"
     "mov 8(%rbx),%rax; lock cmpxchg %rsi,8(%rbx); hlt");
CODE(locked_pair, 64, "lock cmpxchg16b (%rbx); setz %sil; lock cmpxchg16b (%rbx); hlt");

/* Pages with translated code are not written directly; locked instructions stay atomic there. */
static void locked_operands_on_code_pages(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	atomic_store(&c->vm->page_flags[AT_DATA >> PAGE_SHIFT], PAGE_HAS_CODE);
	soft_tlb_flush_all(c);
	machine_put(m, AT_DATA, 8, 0x11ffffffff);
	machine_put(m, AT_DATA + 8, 8, 77);
	c->r[RAX] = 2;
	c->r[RBX] = AT_DATA;
	c->r[RCX] = 0x55;
	c->r[RSI] = 99;
	machine_exec(m, CODE_OF(locked));
	assert_int_equal(machine_get(m, AT_DATA, 8), 0x1100005502);
	assert_int_equal(c->r[RCX], 0);
	assert_int_equal(c->r[RAX], 77);
	assert_int_equal(machine_get(m, AT_DATA + 8, 8), 99);
	assert_true(c->flags & RFLAGS_ZF);
	c->r[RAX] = c->r[RDX] = 0;
	c->r[RCX] = 5;
	machine_exec(m, CODE_OF(locked_pair));
	assert_int_equal(c->r[RSI] & 0xff, 0);
	assert_int_equal(machine_get(m, AT_DATA, 8), AT_DATA);
	assert_int_equal(machine_get(m, AT_DATA + 8, 8), 5);
	machine_free(m);
}

CODE(store_crossing, 64, "mov %rax,(%rbx); hlt");
CODE(rmw_crossing, 64, "xadd %rax,(%rbx); hlt");
CODE(pop_mem, 64, "pop (%rbx); hlt");

static void faulting_stores_change_nothing(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_set_page(m, AT_DATA + PAGE_SIZE, 0);
	c->r[RBX] = AT_DATA + PAGE_SIZE - 4;
	c->r[RAX] = ~0ul;
	assert_int_equal(fault_of(m, CODE_OF(store_crossing)), VEC_PF);
	assert_int_equal(c->exc.cr2, AT_DATA + PAGE_SIZE);
	assert_int_equal(c->exc.error, PF_W);
	assert_int_equal(machine_get(m, AT_DATA + PAGE_SIZE - 4, 4), 0);
	assert_int_equal(fault_of(m, CODE_OF(rmw_crossing)), VEC_PF);
	assert_int_equal(c->r[RAX], ~0ul);
	assert_int_equal(fault_of(m, CODE_OF(pop_mem)), VEC_PF);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK);
	assert_int_equal(c->rip, AT_CODE);
	machine_free(m);
}

CODE(noncanonical, 64, "mov (%rax),%rbx; hlt");
CODE(noncanonical_stack, 64, "mov (%rbp),%rbx; hlt");
CODE(noncanonical_jump, 64, "jmp *%rax");
CODE(divide, 64, "xor %edx,%edx; div %ebx; hlt");
CODE(undefined, 64, "ud2");
CODE(too_long, 64, ".fill 15,1,0x66; nop");
CODE(longest, 64, ".fill 14,1,0x66; nop; hlt");
CODE(misaligned16, 64, "cmpxchg16b (%rbx); hlt");

static void exceptions_of_data(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RAX] = c->r[RBP] = 0x800000000000;
	assert_int_equal(fault_of(m, CODE_OF(noncanonical)), VEC_GP);
	assert_true(c->exc.has_error && !c->exc.error);
	assert_int_equal(fault_of(m, CODE_OF(noncanonical_stack)), VEC_SS);
	assert_int_equal(fault_of(m, CODE_OF(noncanonical_jump)), VEC_GP);
	assert_int_equal(c->rip, AT_CODE);
	c->r[RBX] = 0;
	assert_int_equal(fault_of(m, CODE_OF(divide)), VEC_DE);
	assert_int_equal(fault_of(m, CODE_OF(undefined)), VEC_UD);
	assert_int_equal(fault_of(m, CODE_OF(too_long)), VEC_GP);
	machine_exec(m, CODE_OF(longest));
	c->r[RBX] = AT_DATA + 8;
	assert_int_equal(fault_of(m, CODE_OF(misaligned16)), VEC_GP);
	machine_free(m);
}

/* ---- string instructions ---- */

CODE(movs, 64, "rep movsb; hlt");
CODE(movs_down, 64, "std; rep movsw; cld; hlt");
CODE(stos, 64, "rep stosq; hlt");
CODE(scas, 64, "repne scasb; hlt");
CODE(cmps, 64, "repe cmpsl; hlt");
CODE(lods, 64, "rep lodsw; hlt");
CODE(stos32, 64, "addr32 rep stosl; hlt");

static void string_results(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	for (u32 n = 0; n < 9000; n++)
		m->ram[AT_DATA + n] = (u8)(n * 7 + (n >> 8));
	c->r[RSI] = AT_DATA + 5;
	c->r[RDI] = AT_DATA + 0x4003;
	c->r[RCX] = 8191;
	machine_exec(m, CODE_OF(movs));
	assert_memory_equal(m->ram + AT_DATA + 5, m->ram + AT_DATA + 0x4003, 8191);
	assert_int_equal(c->r[RCX], 0);
	assert_int_equal(c->r[RSI], AT_DATA + 5 + 8191);
	/* Overlap of one byte spreads that byte. */
	c->r[RSI] = AT_DATA;
	c->r[RDI] = AT_DATA + 1;
	c->r[RCX] = 6000;
	machine_exec(m, CODE_OF(movs));
	for (u32 n = 0; n <= 6000; n++)
		assert_int_equal(m->ram[AT_DATA + n], m->ram[AT_DATA]);
	/* Downwards over a page boundary, elements crossing it. */
	for (u32 n = 0; n < 0x2000; n++)
		m->ram[AT_DATA + n] = (u8)(n ^ n >> 5);
	c->r[RSI] = AT_DATA + 0x1801;
	c->r[RDI] = AT_DATA + 0x3802;
	c->r[RCX] = 0x900;
	machine_exec(m, CODE_OF(movs_down));
	assert_memory_equal(m->ram + AT_DATA + 0x1803 - 0x1200, m->ram + AT_DATA + 0x3804 - 0x1200,
			    0x1200);
	c->r[RDI] = AT_DATA + 0xff9;
	c->r[RAX] = 0x0102030405060708;
	c->r[RCX] = 1000;
	machine_exec(m, CODE_OF(stos));
	assert_int_equal(machine_get(m, AT_DATA + 0xff9 + 999 * 8, 8), 0x0102030405060708);
	machine_free(m);
}

static void string_compares(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	memset(m->ram + AT_DATA, 'x', 0x3000);
	m->ram[AT_DATA + 0x2345] = 0;
	c->r[RDI] = AT_DATA;
	c->r[RCX] = ~0ul;
	c->r[RAX] = 0;
	machine_exec(m, CODE_OF(scas));
	assert_int_equal(~c->r[RCX], 0x2346);
	assert_true(c->flags & RFLAGS_ZF);
	c->r[RSI] = AT_DATA;
	c->r[RDI] = AT_DATA + 0x1001;
	c->r[RCX] = 0x800;
	machine_exec(m, CODE_OF(cmps));
	assert_int_equal(c->r[RSI], AT_DATA + (0x1344 / 4 + 1) * 4);
	assert_false(c->flags & RFLAGS_CF);
	c->r[RSI] = AT_DATA + 0xffd;
	c->r[RCX] = 10;
	c->r[RAX] = ~0ul;
	machine_exec(m, CODE_OF(lods));
	assert_int_equal(c->r[RAX], 0xffffffffffff7878);
	assert_int_equal(c->r[RSI], AT_DATA + 0xffd + 20);
	c->r[RCX] = 0xabcd00000000; /* ECX is zero: nothing happens, to AMD's upper half neither */
	machine_exec(m, CODE_OF(stos32));
	assert_int_equal(c->r[RCX], m->cpuid.is_amd ? 0xabcd00000000 : 0);
	machine_free(m);
}

static void string_fault_midway(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_set_page(m, AT_DATA + 2 * PAGE_SIZE, 0);
	c->r[RSI] = AT_CODE;
	c->r[RDI] = AT_DATA + 100;
	c->r[RCX] = 10000;
	assert_int_equal(fault_of(m, CODE_OF(movs)), VEC_PF);
	assert_int_equal(c->r[RCX], 10000 - (2 * PAGE_SIZE - 100));
	assert_int_equal(c->r[RDI], AT_DATA + 2 * PAGE_SIZE);
	assert_int_equal(c->exc.cr2, AT_DATA + 2 * PAGE_SIZE);
	assert_int_equal(c->rip, AT_CODE);
	/* The element across the boundary is not begun. */
	c->r[RDI] = AT_DATA + 2 * PAGE_SIZE - 12;
	c->r[RCX] = 5;
	c->r[RAX] = ~0ul;
	assert_int_equal(fault_of(m, CODE_OF(stos)), VEC_PF);
	assert_int_equal(c->r[RCX], 4);
	assert_int_equal(machine_get(m, AT_DATA + 2 * PAGE_SIZE - 4, 4), 0);
	machine_free(m);
}

static void string_stops_for_a_request(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(stos));
	c->r[RDI] = AT_DATA;
	c->r[RCX] = 4096;
	atomic_store(&c->exit_req, 1);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_CODE);
	assert_int_equal(c->r[RCX], 4096 - 512);
	machine_free(m);
}

/* ---- devices ---- */

CODE(ins, 64, "rep insw; hlt");
CODE(outb, 64, "out %al,$0x80; in (%dx),%eax; hlt");
CODE(mmio_rmw, 64, "xadd %rax,(%rbx); hlt");
CODE(mmio_x87, 64, "fninit; fld1; fldpi; fistpl (%rbx); fistpl (%rcx); hlt");

enum { DEVICE = 0xfeb00000u };

static void ports_exit_and_resume(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RAX] = 0x1234;
	c->r[RDX] = 0xcf8;
	machine_load(m, CODE_OF(outb));
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_PIO);
	assert_int_equal(c->exit.pio.port, 0x80);
	assert_int_equal(c->exit.pio.data, 0x34);
	assert_int_equal(c->rip, AT_CODE);
	machine_complete(m, 0);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_true(c->exit.pio.in && c->exit.pio.port == 0xcf8 && c->exit.pio.size == 4);
	machine_complete(m, 0xdeadbeef);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_HLT);
	assert_int_equal(c->r[RAX], 0xdeadbeef);
	c->r[RDI] = AT_DATA + PAGE_SIZE - 3;
	c->r[RCX] = 3;
	machine_load(m, CODE_OF(ins));
	for (u32 n = 0; n < 3; n++) {
		assert_int_equal(machine_run(m, false), SOFT_EXIT);
		assert_int_equal(c->r[RCX], 3 - n);
		machine_complete(m, 0x1111 * (n + 1));
	}
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_HLT);
	assert_int_equal(machine_get(m, AT_DATA + PAGE_SIZE - 3, 4), 0x22221111);
	machine_free(m);
}

static void map_device(struct soft_machine *m)
{
	machine_set_page(m, AT_DATA + 16 * PAGE_SIZE, DEVICE | PRESENT);
	m->c->r[RBX] = AT_DATA + 16 * PAGE_SIZE + 0x10;
	m->c->r[RCX] = AT_DATA;
}

static void device_memory_exits_and_resumes(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	map_device(m);
	c->r[RAX] = 5;
	machine_load(m, CODE_OF(mmio_rmw));
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.mmio.gpa, DEVICE + 0x10);
	assert_int_equal(c->exit.mmio.size, 8);
	assert_false(c->exit.mmio.write);
	machine_complete(m, 100);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_true(c->exit.mmio.write);
	assert_int_equal(c->exit.mmio.data, 105);
	assert_int_equal(c->r[RAX], 5);
	machine_complete(m, 105);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_HLT);
	assert_int_equal(c->r[RAX], 100);
	/* A store of the x87 stack to a device is taken back and popped once. */
	machine_load(m, CODE_OF(mmio_x87));
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.mmio.data, 3);
	machine_complete(m, 3);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_HLT);
	assert_int_equal(machine_get(m, AT_DATA, 4), 1);
	machine_free(m);
}

/* ---- vector state ---- */

CODE(fxsaves, 64,
     "fninit; fld1; mov $0x1f80,%eax; mov %eax,(%rbx); ldmxcsr (%rbx); pcmpeqd %xmm9,%xmm9;"
     "fxsave64 (%rbx); fninit; pxor %xmm9,%xmm9; fxrstor64 (%rbx); movq %xmm9,%rax; fstpl (%rbx); "
     "hlt");
CODE(bad_fxrstor, 64, "fxsave (%rbx); movl $-1,24(%rbx); fxrstor (%rbx); hlt");
CODE(xsaves, 64,
     "vpcmpeqd %ymm3,%ymm3,%ymm3; mov $7,%eax; xor %edx,%edx; xsave64 (%rbx); vzeroall;"
     "mov $7,%eax; xrstor64 (%rbx); vextracti128 $1,%ymm3,%xmm0; vmovq %xmm0,%rcx; hlt");
CODE(restores, 64, "vzeroall; mov $7,%eax; xor %edx,%edx; xrstor64 (%rbx); vmovq %xmm3,%rcx; hlt");
CODE(bad_xrstor, 64, "mov $7,%eax; xor %edx,%edx; xrstor (%rbx); hlt");
CODE(sse_disabled, 64, "movaps %xmm0,%xmm1; hlt");

static void xsave_and_fxsave(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RBX] = AT_DATA;
	machine_exec(m, CODE_OF(fxsaves));
	assert_int_equal(c->r[RAX], ~0ul);
	assert_int_equal(machine_get(m, AT_DATA, 8), 0x3ff0000000000000);
	assert_int_equal(fault_of(m, CODE_OF(bad_fxrstor)), VEC_GP);
	for (u32 at = 0; at < 2; at++) { /* in one page, and across two */
		c->r[RBX] = AT_DATA + PAGE_SIZE - (at ? 256 : 0);
		c->r[RCX] = 0;
		machine_exec(m, CODE_OF(xsaves));
		assert_int_equal(c->r[RCX], ~0ul);
	}
	machine_put(m, c->r[RBX] + 512 + 8, 1, 1); /* XCOMP_BV */
	assert_int_equal(fault_of(m, CODE_OF(bad_xrstor)), VEC_GP);
	machine_put(m, c->r[RBX] + 512 + 8, 1, 0);
	machine_put(m, c->r[RBX] + 512 + 7, 1, 0x40); /* a component XCR0 has not */
	assert_int_equal(fault_of(m, CODE_OF(bad_xrstor)), VEC_GP);
	machine_put(m, c->r[RBX] + 512 + 7, 1, 0);
	machine_put(m, c->r[RBX] + 26, 1, 0xff); /* MXCSR */
	assert_int_equal(fault_of(m, CODE_OF(bad_xrstor)), VEC_GP);
	machine_put(m, c->r[RBX] + 26, 1, 0);
	machine_put(m, c->r[RBX] + 512 + 63, 1, 0xff); /* no matter */
	c->r[RCX] = 0;
	machine_exec(m, CODE_OF(restores));
	assert_int_equal(c->exit.type, EXIT_HLT);
	assert_int_equal(c->r[RCX], ~0ul);
	c->cr0 |= CR0_TS;
	soft_update_mode(c);
	assert_int_equal(fault_of(m, CODE_OF(sse_disabled)), VEC_NM);
	c->cr0 ^= CR0_TS | CR0_EM;
	soft_update_mode(c);
	assert_int_equal(fault_of(m, CODE_OF(sse_disabled)), VEC_UD);
	machine_free(m);
}

CODE(vmaskmov, 64,
     "vmovdqu (%rcx),%ymm1; vmaskmovps (%rbx),%ymm1,%ymm2; vmaskmovps %ymm2,%ymm1,(%rbx);"
     "vmovdqu %ymm2,(%rdx); hlt");
CODE(gather, 64,
     "vpcmpeqd %ymm1,%ymm1,%ymm1; vmovdqu (%rcx),%ymm2; vpxor %ymm0,%ymm0,%ymm0;"
     "vpgatherdd %ymm1,(%rbx,%ymm2,4),%ymm0; vmovdqu %ymm0,(%rdx); vmovdqu %ymm1,32(%rdx); hlt");
CODE(maskmovdqu, 64, "movdqu (%rcx),%xmm1; pcmpeqd %xmm0,%xmm0; maskmovdqu %xmm1,%xmm0; hlt");

static void masked_elements_do_not_fault(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;
	gpa_t end = AT_DATA + PAGE_SIZE;

	(void)state;
	machine_set_page(m, end, 0);
	for (u32 n = 0; n < 4; n++) {
		machine_put(m, end - 16 + 4 * n, 4, 100 + n);
		machine_put(m, AT_DATA + 4 * n, 4, n == 2 ? 0 : 0x80000000);
	}
	c->r[RBX] = end - 16;
	c->r[RCX] = AT_DATA;
	c->r[RDX] = AT_DATA + 64;
	machine_exec(m, CODE_OF(vmaskmov));
	assert_int_equal(machine_get(m, AT_DATA + 64, 8), 100 | 101ul << 32);
	assert_int_equal(machine_get(m, AT_DATA + 72, 8), 103ul << 32);
	assert_int_equal(machine_get(m, AT_DATA + 80, 8), 0);
	/* A fifth element would fault. */
	machine_put(m, AT_DATA + 16, 4, 0x80000000);
	assert_int_equal(fault_of(m, CODE_OF(vmaskmov)), VEC_PF);
	assert_int_equal(c->exc.cr2, end);
	machine_put(m, AT_DATA + 16, 4, 0);
	c->r[RDI] = end - 2;
	machine_put(m, AT_DATA, 8, 0x8080);
	machine_put(m, AT_DATA + 8, 8, 0);
	machine_exec(m, CODE_OF(maskmovdqu));
	assert_int_equal(machine_get(m, end - 2, 2), 0xffff);
	machine_free(m);
}

static void gather_keeps_partial_results(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;
	gpa_t end = AT_DATA + PAGE_SIZE;

	(void)state;
	machine_set_page(m, end, 0);
	c->r[RBX] = end - 32;
	c->r[RCX] = AT_DATA;
	c->r[RDX] = AT_DATA + 64;
	for (u32 n = 0; n < 8; n++) {
		machine_put(m, end - 32 + 4 * n, 4, 100 + n);
		machine_put(m, AT_DATA + 4 * n, 4, 7 - n);
	}
	machine_exec(m, CODE_OF(gather));
	for (u32 n = 0; n < 8; n++) {
		assert_int_equal(machine_get(m, AT_DATA + 64 + 4 * n, 4), 107 - n);
		assert_int_equal(machine_get(m, AT_DATA + 96 + 4 * n, 4), 0);
	}
	machine_put(m, AT_DATA + 4 * 3, 4, 8); /* element 3 faults */
	assert_int_equal(fault_of(m, CODE_OF(gather)), VEC_PF);
	assert_int_equal(c->exc.cr2, end);
	machine_set_page(m, end, end | PRESENT);
	machine_put(m, end, 4, 999);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(machine_get(m, AT_DATA + 64 + 12, 4), 999);
	assert_int_equal(machine_get(m, AT_DATA + 64 + 8, 4), 105);
	machine_free(m);
}

CODE(evex_load, 64,
     "mov $5,%eax; kmovw %eax,%k1; vmovdqu32 (%rbx),%zmm0{%k1}{z}; vmovdqu32 %zmm0,(%rdx);"
     "vmovdqu32 %zmm0,(%rbx){%k1}; vpcompressd %zmm0,-4(%rbx){%k1}; vpaddd "
     "(%rcx){1to16},%zmm0,%zmm1{%k2}; hlt");

static void evex_masks_suppress_faults(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;
	gpa_t end = AT_DATA + PAGE_SIZE;

	(void)state;
	if ((m->cpuid.xcr0 & XCR0_AVX512) != XCR0_AVX512) {
		machine_free(m);
		skip();
	}
	machine_set_page(m, end, 0);
	for (u32 n = 0; n < 3; n++)
		machine_put(m, end - 12 + 4 * n, 4, 100 + n);
	c->r[RBX] = end - 12;
	c->r[RCX] = end; /* with an empty mask nothing is read */
	c->r[RDX] = AT_DATA;
	machine_exec(m, CODE_OF(evex_load));
	assert_int_equal(machine_get(m, AT_DATA, 8), 100);
	assert_int_equal(machine_get(m, AT_DATA + 8, 8), 102);
	assert_int_equal(machine_get(m, end - 16, 8), 100 | 102ul << 32);
	assert_int_equal(machine_get(m, end - 8, 4), 101);
	machine_free(m);
}

/* ---- 32- and 16-bit code ---- */

CODE(pushad, 32, "mov $1,%eax; mov $7,%edi; pushal; xor %eax,%eax; xor %edi,%edi; popal; hlt");
CODE(decimal, 32, "mov $0x79,%al; add $0x35,%al; daa; mov %al,%bl; mov $0x0b,%ax; aaa; hlt");
CODE(bound, 32, "bound %eax,(%ebx); hlt");
CODE(limits, 32, "mov %fs:(%ebx),%eax; hlt");
CODE(wrap16, 16, "mov $0xfffe,%si; mov (%si),%ax; mov %ax,0x10; hlt");
CODE(limit16, 16, "mov $0xffff,%si; mov (%si),%ax; hlt");
CODE(real_int, 16, "int $0x40; hlt");
CODE(real_movs, 16,
     "mov $0x100,%si; mov $0x200,%di; mov $16,%cx; rep movsb; lcall $0x2000,$4; hlt");

static void instructions_of_32bit_mode(void **state)
{
	struct soft_machine *m = machine_new();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_protected_mode(m);
	machine_exec(m, CODE_OF(pushad));
	assert_int_equal(c->r[RAX], 1);
	assert_int_equal(c->r[RDI], 7);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK);
	machine_exec(m, CODE_OF(decimal));
	assert_int_equal(c->r[RBX] & 0xff, 0x14);
	assert_int_equal(c->r[RAX] & 0xffff, 0x101);
	c->r[RBX] = AT_DATA;
	machine_put(m, AT_DATA, 8, 10ul | 20ul << 32);
	c->r[RAX] = 20;
	machine_exec(m, CODE_OF(bound));
	c->r[RAX] = 21;
	assert_int_equal(fault_of(m, CODE_OF(bound)), VEC_BR);
	c->seg[SEG_FS].limit = AT_DATA + 2;
	assert_int_equal(fault_of(m, CODE_OF(limits)), VEC_GP);
	c->seg[SEG_FS].limit = AT_DATA + 3;
	machine_exec(m, CODE_OF(limits));
	assert_int_equal(c->r[RAX], 10);
	machine_free(m);
}

static void instructions_of_real_mode(void **state)
{
	struct soft_machine *m = machine_new();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_real_mode(m);
	machine_put(m, 0xfffe, 2, 0x4711);
	machine_exec(m, CODE_OF(wrap16));
	assert_int_equal(machine_get(m, 0x10, 2), 0x4711);
	assert_int_equal(fault_of(m, CODE_OF(limit16)), VEC_GP);
	machine_put(m, 0x40 * 4, 4, 0x20000000); /* 2000:0000 */
	machine_put(m, 0x20000, 1, 0xcf);        /* iret */
	machine_exec(m, CODE_OF(real_int));
	assert_int_equal(c->rip, 3);
	assert_int_equal(c->r[RSP], 0x8000);
	machine_put(m, 0x100, 8, 0x1122334455667788);
	machine_put(m, 0x20004, 1, 0xcb); /* lret */
	machine_exec(m, CODE_OF(real_movs));
	assert_int_equal(machine_get(m, 0x200, 8), 0x1122334455667788);
	assert_int_equal(c->seg[SEG_CS].base, AT_CODE);
	machine_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(data_and_branches),
		cmocka_unit_test(sdm_bt_register_offset_reaches_beyond),
		cmocka_unit_test(operands_across_pages),
		cmocka_unit_test(locked_operands_on_code_pages),
		cmocka_unit_test(faulting_stores_change_nothing),
		cmocka_unit_test(exceptions_of_data),
		cmocka_unit_test(string_results),
		cmocka_unit_test(string_compares),
		cmocka_unit_test(string_fault_midway),
		cmocka_unit_test(string_stops_for_a_request),
		cmocka_unit_test(ports_exit_and_resume),
		cmocka_unit_test(device_memory_exits_and_resumes),
		cmocka_unit_test(xsave_and_fxsave),
		cmocka_unit_test(masked_elements_do_not_fault),
		cmocka_unit_test(gather_keeps_partial_results),
		cmocka_unit_test(evex_masks_suppress_faults),
		cmocka_unit_test(instructions_of_32bit_mode),
		cmocka_unit_test(instructions_of_real_mode),
	};

	return cmocka_run_group_tests_name("interp", tests, NULL, NULL);
}
