/*
 * Privileged state: segments, exceptions, far transfers, tasks, control and debug registers.
 *
 * Test names carry the manual's chapter (SDM vol. 3 unless noted) where there is one.
 */
#include "soft_machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct soft_machine *long_machine(void)
{
	struct soft_machine *m = machine_new();

	machine_long_mode(m);
	return m;
}

static struct soft_machine *protected_machine(void)
{
	struct soft_machine *m = machine_new();

	machine_protected_mode(m);
	return m;
}

/* Run at the current privilege, expecting a fault with an error code (or none: ~0). */
static void expect_fault(struct soft_machine *m, const u8 *code, u32 len, u8 vector, u32 error)
{
	machine_load(m, code, len);
	assert_int_equal(machine_run(m, false), SOFT_FAULT);
	assert_int_equal(m->c->exc.vector, vector);
	assert_int_equal(m->c->exc.has_error, error != ~0u);
	if (error != ~0u)
		assert_int_equal(m->c->exc.error, error);
	assert_int_equal(m->c->rip, AT_CODE);
}

/* Run with faults delivered until the HLT of handler @vector. */
static void expect_handler(struct soft_machine *m, u8 vector)
{
	assert_int_equal(machine_run(m, true), SOFT_EXIT);
	assert_int_equal(m->c->exit.type, EXIT_HLT);
	assert_int_equal(m->c->rip, AT_HANDLER + vector * 16 + 1);
}

static u64 stack_quad(struct soft_machine *m, u32 n)
{
	return machine_get(m, m->c->r[RSP] + 8 * n, 8);
}

static u64 stack_dword(struct soft_machine *m, u32 n)
{
	return machine_get(m, m->c->r[RSP] + 4 * n, 4);
}

/* ---- delivery in 64-bit mode ---- */

CODE(ud, 64, "ud2");
CODE(gp, 64, "mov %eax,%ds");
CODE(touch, 64, "movb $1,(%rbx)");
CODE(int80, 64, "int $0x80");
CODE(int3, 64, "int3; hlt");

static void sdm_6_14_frame_from_user_mode(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(ud));
	machine_user(m, SEL_USER_CODE64);
	soft_set_rflags(c, RFLAGS_CF | RFLAGS_IF);
	expect_handler(m, VEC_UD);
	assert_int_equal(c->cpl, 0);
	assert_int_equal(c->seg[SEG_SS].selector, 0);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK - 40);
	assert_int_equal(stack_quad(m, 0), AT_CODE);
	assert_int_equal(stack_quad(m, 1), SEL_USER_CODE64);
	assert_int_equal(stack_quad(m, 2), RFLAGS_ONE | RFLAGS_CF | RFLAGS_IF | RFLAGS_RF);
	assert_int_equal(stack_quad(m, 3), AT_USER_STACK);
	assert_int_equal(stack_quad(m, 4), SEL_USER_DATA);
	assert_false(c->iflag);
	machine_free(m);
}

static void sdm_6_14_stack_is_aligned_and_ist_used(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(gp));
	c->r[RAX] = 0x1234;
	c->r[RSP] = AT_KERNEL_STACK - 3;
	expect_handler(m, VEC_GP);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK - 16 - 48);
	assert_int_equal(stack_quad(m, 0), 0x1234);
	assert_int_equal(stack_quad(m, 4), AT_KERNEL_STACK - 3);
	machine_set_gate(m, VEC_GP, DESC_TRAP_GATE, 0, 1, SEL_CODE64, 0);
	machine_load(m, CODE_OF(gp));
	c->iflag = 1;
	expect_handler(m, VEC_GP);
	assert_int_equal(c->r[RSP], AT_IST_STACK - 48);
	assert_true(c->iflag);
	machine_free(m);
}

static void sdm_6_12_gate_checks(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_user(m, SEL_USER_CODE64);
	expect_fault(m, CODE_OF(int80), VEC_GP, 0x80 * 8 + 2);
	machine_set_gate(m, 0x80, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, 0);
	machine_load(m, CODE_OF(int80));
	expect_handler(m, 0x80);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 2);
	machine_user(m, SEL_USER_CODE64);
	machine_set_gate(m, 0x80, DESC_INTERRUPT_GATE, 3, 0, 0, 0);
	expect_fault(m, CODE_OF(int80), VEC_GP, 0);
	machine_set_gate(m, 0x80, DESC_INTERRUPT_GATE, 3, 0, SEL_DATA, 0);
	expect_fault(m, CODE_OF(int80), VEC_GP, SEL_DATA);
	machine_set_gate(m, 0x80, DESC_TASK_GATE, 3, 0, SEL_CODE64, 0);
	expect_fault(m, CODE_OF(int80), VEC_GP, 0x80 * 8 + 2);
	machine_set_gate(m, 0x80, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, 0);
	machine_put(m, AT_IDT + 0x80 * 16 + 5, 1, 0x6e);
	expect_fault(m, CODE_OF(int80), VEC_NP, 0x80 * 8 + 2);
	c->idtr.limit = 0x80 * 16;
	expect_fault(m, CODE_OF(int80), VEC_GP, 0x80 * 8 + 2);
	machine_free(m);
}

static void sdm_6_15_page_fault(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_set_page(m, AT_DATA, AT_DATA | PTE_P | PTE_US);
	c->r[RBX] = AT_DATA + 5;
	machine_load(m, CODE_OF(touch));
	machine_user(m, SEL_USER_CODE64);
	expect_handler(m, VEC_PF);
	assert_int_equal(c->cr2, AT_DATA + 5);
	assert_int_equal(stack_quad(m, 0), PF_P | PF_W | PF_U);
	machine_free(m);
}

static void sdm_6_15_double_fault_and_shutdown(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_put(m, AT_IDT + VEC_GP * 16 + 5, 1, 0); /* #GP has no gate: contributory twice */
	c->r[RAX] = 0x1234;
	machine_load(m, CODE_OF(gp));
	expect_handler(m, VEC_DF);
	assert_int_equal(stack_quad(m, 0), 0);
	/* #UD is benign: #NP of its gate is delivered as it is. */
	machine_put(m, AT_IDT + VEC_UD * 16 + 5, 1, 0x0e);
	machine_load(m, CODE_OF(ud));
	expect_handler(m, VEC_NP);
	assert_int_equal(stack_quad(m, 0), VEC_UD * 8 + 3);
	machine_put(m, AT_IDT + VEC_DF * 16 + 5, 1, 0);
	machine_load(m, CODE_OF(gp));
	assert_int_equal(machine_run(m, true), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_SHUTDOWN);
	machine_free(m);
}

static void stack_in_device_memory_does_not_hang(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	machine_set_page(m, AT_DATA, 0xfeb00000 | PTE_P | PTE_RW | PTE_US);
	m->c->r[RSP] = AT_DATA + 0x800;
	machine_load(m, CODE_OF(ud));
	expect_handler(m, VEC_UD);
	machine_free(m);
}

/* ---- returns ---- */

CODE(iretq, 64, "iretq");

static void push(struct soft_machine *m, u64 value)
{
	m->c->r[RSP] -= 8;
	machine_put(m, m->c->r[RSP], 8, value);
}

static void push_iret_frame(struct soft_machine *m, u64 ss, u64 rsp, u64 flags, u64 cs, u64 rip)
{
	m->c->r[RSP] = AT_KERNEL_STACK;
	push(m, ss);
	push(m, rsp);
	push(m, flags);
	push(m, cs);
	push(m, rip);
}

static void iretq_to_every_level(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	push_iret_frame(m, SEL_USER_DATA, 0x1234, RFLAGS_IF | RFLAGS_ZF | RFLAGS_IOPL,
			SEL_USER_CODE64, AT_CODE + 0x100);
	machine_load(m, CODE_OF(iretq));
	c->nmi_blocked = true;
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->cpl, 3);
	assert_int_equal(c->r[RSP], 0x1234);
	assert_int_equal(c->rip, AT_CODE + 0x100);
	assert_int_equal(soft_rflags(c), RFLAGS_ONE | RFLAGS_IF | RFLAGS_ZF | RFLAGS_IOPL);
	assert_true(c->mode & MODE_USER);
	assert_false(c->nmi_blocked);
	assert_true(c->seg[SEG_DS].unusable); /* it was a ring 0 segment */
	machine_long_mode(m);
	push_iret_frame(m, SEL_USER_DATA, 0x1ffff1234, 0, SEL_USER_CODE32, AT_CODE + 0x100);
	machine_load(m, CODE_OF(iretq));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(code_bits(c), 32);
	assert_int_equal(c->r[RSP], 0xffff1234);
	machine_long_mode(m);
	push_iret_frame(m, 0, 0x9000, 0, SEL_CODE64, AT_CODE + 0x200);
	machine_load(m, CODE_OF(iretq));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->cpl, 0);
	assert_true(c->seg[SEG_SS].unusable);
	machine_free(m);
}

static void iretq_checks(void **state)
{
	static const struct {
		u64 ss, cs, rip;
		u8 vector;
		u32 error;
	} row[] = {
		{SEL_USER_DATA, 0, AT_CODE, VEC_GP, 0},
		{SEL_USER_DATA, SEL_DATA, AT_CODE, VEC_GP, SEL_DATA},
		{SEL_USER_DATA, SEL_GDT_END, AT_CODE, VEC_GP, SEL_GDT_END},
		{SEL_USER_DATA, SEL_CODE64 | 3, AT_CODE, VEC_GP, SEL_CODE64},
		{SEL_DATA, SEL_USER_CODE64, AT_CODE, VEC_GP, SEL_DATA},
		{0, SEL_USER_CODE64, AT_CODE, VEC_GP, 0},
		{SEL_USER_DATA, SEL_USER_CODE64, 0x800000000000, VEC_GP, 0},
	};
	struct soft_machine *m = long_machine();

	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(row); n++) {
		push_iret_frame(m, row[n].ss, 0, 0, row[n].cs, row[n].rip);
		expect_fault(m, CODE_OF(iretq), row[n].vector, row[n].error);
		assert_int_equal(m->c->r[RSP], AT_KERNEL_STACK - 40);
	}
	m->c->sysflags |= RFLAGS_NT;
	expect_fault(m, CODE_OF(iretq), VEC_GP, 0);
	machine_free(m);
}

/* ---- system calls ---- */

CODE(syscalls, 64, "syscall");
CODE(sysretq, 64, "sysretq");
CODE(sysretl, 64, "sysretl");
CODE(swapgs, 64, "swapgs; rdmsr; hlt");

static void apm_syscall_and_sysret(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->msr.star = (u64)SEL_CODE64 << 32 | (u64)SEL_USER_CODE32 << 48;
	c->msr.lstar = 0xffffffff81000000;
	c->msr.sfmask = RFLAGS_IF | RFLAGS_DF;
	machine_load(m, CODE_OF(syscalls));
	machine_user(m, SEL_USER_CODE64);
	soft_set_rflags(c, RFLAGS_IF | RFLAGS_DF | RFLAGS_CF);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, 0xffffffff81000000);
	assert_int_equal(c->r[RCX], AT_CODE + 2);
	assert_int_equal(c->r[R11], RFLAGS_ONE | RFLAGS_IF | RFLAGS_DF | RFLAGS_CF);
	assert_int_equal(soft_rflags(c), RFLAGS_ONE | RFLAGS_CF);
	assert_int_equal(c->cpl, 0);
	assert_int_equal(c->seg[SEG_SS].selector, SEL_CODE64 + 8);
	machine_load(m, CODE_OF(sysretq));
	c->r[RCX] = 0x400000;
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, 0x400000);
	assert_int_equal(c->seg[SEG_CS].selector, SEL_USER_CODE64);
	assert_int_equal(c->seg[SEG_SS].selector, SEL_USER_DATA);
	assert_int_equal(c->cpl, 3);
	assert_true(c->iflag);
	expect_fault(m, CODE_OF(sysretq), VEC_GP, 0);
	machine_long_mode(m);
	machine_load(m, CODE_OF(sysretl));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->seg[SEG_CS].selector, SEL_USER_CODE32);
	assert_int_equal(code_bits(c), 32);
	machine_long_mode(m);
	c->efer &= ~EFER_SCE;
	expect_fault(m, CODE_OF(syscalls), VEC_UD, ~0u);
	machine_free(m);
}

CODE(wrmsr, 64, "wrmsr; rdmsr; hlt");

static void msrs_of_segments_and_machine(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RCX] = MSR_KERNEL_GS_BASE;
	c->r[RDX] = 0xffff8880;
	c->r[RAX] = 0x1000;
	machine_exec(m, CODE_OF(wrmsr));
	assert_int_equal(c->r[RDX], 0xffff8880);
	c->r[RCX] = MSR_GS_BASE;
	machine_exec(m, CODE_OF(swapgs));
	assert_int_equal(c->r[RDX], 0xffff8880);
	assert_int_equal(c->r[RAX], 0x1000);
	c->r[RDX] = 0x8000;
	expect_fault(m, CODE_OF(wrmsr), VEC_GP, 0);
	c->r[RCX] = 0x12345678;
	expect_fault(m, CODE_OF(wrmsr), VEC_GP, 0);
	c->r[RCX] = MSR_TSC_DEADLINE;
	machine_load(m, CODE_OF(wrmsr));
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_WRMSR);
	assert_int_equal(c->exit.msr.value, 0x800000001000);
	assert_int_equal(machine_run(m, false), SOFT_EXIT);
	assert_int_equal(c->exit.type, EXIT_RDMSR);
	c->exit.msr.fault = true;
	assert_int_equal(machine_run(m, false), SOFT_FAULT);
	assert_int_equal(c->exc.vector, VEC_GP);
	machine_free(m);
}

/* ---- segments ---- */

CODE(load_fs, 64, "mov %eax,%fs; hlt");
CODE(load_ss, 64, "mov %eax,%ss; hlt");
CODE(lar, 64,
     "lar %ebx,%ecx; setz %al; lsl %ebx,%edx; setz %ah; verr %bx; setz %sil; verw %bx; setz %dil; "
     "hlt");
CODE(tables, 64, "sgdt (%rbx); sidt 16(%rbx); str %eax; sldt 32(%rbx); smsw %ecx; hlt");
CODE(ltr, 64, "ltr %ax; hlt");

static void sdm_5_segment_load_checks(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RAX] = SEL_GDT_END;
	expect_fault(m, CODE_OF(load_fs), VEC_GP, SEL_GDT_END);
	c->r[RAX] = SEL_TSS;
	expect_fault(m, CODE_OF(load_fs), VEC_GP, SEL_TSS);
	machine_set_descriptor(m, SEL_FREE, machine_descriptor(0x12345678, 0xff, 0x12, 0));
	c->r[RAX] = SEL_FREE;
	expect_fault(m, CODE_OF(load_fs), VEC_NP, SEL_FREE);
	expect_fault(m, CODE_OF(load_ss), VEC_SS, SEL_FREE);
	machine_set_descriptor(m, SEL_FREE, machine_descriptor(0x12345678, 0xff, 0x92, 0));
	machine_exec(m, CODE_OF(load_fs));
	assert_int_equal(c->seg[SEG_FS].base, 0x12345678);
	assert_int_equal(machine_get(m, AT_GDT + SEL_FREE + 5, 1), 0x93); /* accessed */
	c->r[RAX] = SEL_CODE64;
	expect_fault(m, CODE_OF(load_ss), VEC_GP, SEL_CODE64);
	c->r[RAX] = 0;
	machine_exec(m, CODE_OF(load_ss));
	c->r[RAX] = 3;
	expect_fault(m, CODE_OF(load_ss), VEC_GP, 0);
	machine_user(m, SEL_USER_CODE64);
	c->r[RAX] = SEL_DATA;
	expect_fault(m, CODE_OF(load_fs), VEC_GP, SEL_DATA);
	machine_free(m);
}

static void sdm_5_descriptor_queries(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->r[RBX] = SEL_USER_DATA;
	machine_exec(m, CODE_OF(lar));
	assert_int_equal(c->r[RCX], 0xc0f300);
	assert_int_equal(c->r[RDX], 0xffffffff);
	assert_int_equal(c->r[RAX] & 0xffff, 0x101);
	assert_int_equal(c->r[RSI] & 0xff, 1);
	assert_int_equal(c->r[RDI] & 0xff, 1);
	c->r[RBX] = SEL_CODE64 | 3; /* RPL above DPL */
	machine_exec(m, CODE_OF(lar));
	assert_int_equal(c->r[RAX] & 0xffff, 0);
	c->r[RBX] = AT_DATA;
	machine_exec(m, CODE_OF(tables));
	assert_int_equal(machine_get(m, AT_DATA, 2), SEL_GDT_END - 1);
	assert_int_equal(machine_get(m, AT_DATA + 2, 8), AT_GDT);
	assert_int_equal(machine_get(m, AT_DATA + 18, 8), AT_IDT);
	assert_int_equal(c->r[RAX], SEL_TSS);
	assert_int_equal(c->r[RCX], (u32)c->cr0);
	if (soft_interp(c)->cr4_mask & CR4_UMIP) {
		c->cr4 |= CR4_UMIP;
		machine_user(m, SEL_USER_CODE64);
		expect_fault(m, CODE_OF(tables), VEC_GP, 0);
	}
	machine_long_mode(m);
	c->r[RAX] = SEL_TSS; /* busy */
	expect_fault(m, CODE_OF(ltr), VEC_GP, SEL_TSS);
	machine_put(m, AT_GDT + SEL_TSS + 5, 1, 0x89);
	machine_exec(m, CODE_OF(ltr));
	assert_int_equal(machine_get(m, AT_GDT + SEL_TSS + 5, 1), 0x8b);
	machine_free(m);
}

CODE(far_call64, 64, "lcall *(%rbx); hlt");
CODE(far_ret64, 64, "lretq");

/* A 64-bit call gate into ring 0 and the far return from it. */
static void sdm_5_8_call_gate_in_long_mode(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_set_descriptor(m, SEL_FREE,
			       (AT_HANDLER & 0xffff) | (u64)SEL_CODE64 << 16 | 0xec0000000000 |
				       (u64)(AT_HANDLER >> 16) << 48);
	machine_set_descriptor(m, SEL_FREE + 8, 0);
	machine_put(m, AT_DATA, 8, (u64)SEL_FREE << 32);
	c->r[RBX] = AT_DATA;
	machine_user(m, SEL_USER_CODE64);
	machine_load(m, CODE_OF(far_call64));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_HANDLER);
	assert_int_equal(c->cpl, 0);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK - 32);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 2);
	assert_int_equal(stack_quad(m, 1), SEL_USER_CODE64);
	assert_int_equal(stack_quad(m, 2), AT_USER_STACK);
	machine_load(m, CODE_OF(far_ret64));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->cpl, 3);
	assert_int_equal(c->rip, AT_CODE + 2);
	assert_int_equal(c->r[RSP], AT_USER_STACK);
	machine_set_descriptor(m, SEL_FREE, machine_get(m, AT_GDT + SEL_FREE, 8) & ~(3ul << 45));
	expect_fault(m, CODE_OF(far_call64), VEC_GP, SEL_FREE);
	machine_free(m);
}

/* ---- between instructions ---- */

CODE(stis, 64, "sti; nop; sti; nop; hlt");
CODE(mov_ss, 64, "mov %eax,%ss; nop; nop");
CODE(steps, 64, "nop; nop; hlt");
CODE(popf_tf, 64, "popfq; nop; nop; nop");
CODE(watched, 64, "mov %eax,(%rbx); nop; mov (%rbx),%ecx; hlt");

static void interrupt_shadows_last_one_instruction(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(stis));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_true(c->shadow && c->iflag);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_false(c->shadow);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_false(c->shadow); /* IF was set already */
	machine_load(m, CODE_OF(mov_ss));
	c->r[RAX] = SEL_DATA;
	c->sysflags |= RFLAGS_TF;
	soft_update_mode(c);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_true(c->shadow_mov_ss);
	assert_int_equal(c->rip, AT_CODE + 2); /* no #DB behind MOV SS */
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_HANDLER + VEC_DB * 16);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 3);
	machine_free(m);
}

static void sdm_17_single_step(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(popf_tf));
	push(m, RFLAGS_TF);
	c->dr6 = DR6_FIXED | 0xf;
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_CODE + 1);
	assert_true(c->mode & MODE_INTERPRET);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_HANDLER + VEC_DB * 16);
	assert_int_equal(c->dr6, DR6_FIXED | DR6_BS);
	assert_false(c->mode & MODE_INTERPRET);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 2);
	assert_int_equal(stack_quad(m, 2), RFLAGS_ONE | RFLAGS_TF);
	machine_free(m);
}

static void sdm_17_breakpoints(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	c->dr[0] = AT_CODE + 1;
	c->dr7 = DR7_FIXED | 2;
	soft_update_mode(c);
	machine_load(m, CODE_OF(steps));
	expect_handler(m, VEC_DB);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 1);
	assert_int_equal(stack_quad(m, 2) & RFLAGS_RF, 0);
	assert_int_equal(c->dr6 & 0xf, 1);
	/* With RF the instruction runs. */
	machine_load(m, CODE_OF(steps));
	c->rip++;
	c->sysflags |= RFLAGS_RF;
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_CODE + 2);
	assert_false(c->sysflags & RFLAGS_RF);
	/* Writes to four bytes, reported after the store; reads are not. */
	c->dr[1] = AT_DATA + 4;
	c->dr7 = DR7_FIXED | BIT(2) | 0xdul << 20;
	soft_update_mode(c);
	c->r[RBX] = AT_DATA + 2;
	machine_load(m, CODE_OF(watched));
	c->r[RAX] = 0x12345678;
	expect_handler(m, VEC_DB);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 2);
	assert_int_equal(c->dr6 & 0xf, 2);
	assert_int_equal(machine_get(m, AT_DATA + 2, 4), 0x12345678);
	c->dr[1] = AT_DATA + 8;
	machine_exec(m, CODE_OF(watched));
	machine_free(m);
}

static void breakpoint_and_icebp(void **state)
{
	struct soft_machine *m = long_machine();

	(void)state;
	machine_set_gate(m, VEC_BP, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE64, 0);
	machine_user(m, SEL_USER_CODE64);
	machine_load(m, CODE_OF(int3));
	expect_handler(m, VEC_BP);
	assert_int_equal(stack_quad(m, 0), AT_CODE + 1);
	assert_int_equal(stack_quad(m, 2) & RFLAGS_RF, 0);
	machine_free(m);
}

static void nmi_is_blocked_until_iret(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_load(m, CODE_OF(steps));
	assert_int_equal(soft_deliver_nmi(c), SOFT_OK);
	assert_true(c->nmi_blocked);
	assert_int_equal(c->rip, AT_HANDLER + VEC_NMI * 16);
	machine_load(m, CODE_OF(iretq));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_false(c->nmi_blocked);
	assert_int_equal(c->rip, AT_CODE);
	machine_free(m);
}

/* ---- privileges ---- */

CODE(p_hlt, 64, "hlt");
CODE(p_cli, 64, "cli");
CODE(p_in, 64, "in $0x60,%al; hlt");
CODE(p_cr0, 64, "mov %cr0,%rax");
CODE(p_dr7, 64, "mov %db7,%rax");
CODE(p_rdmsr, 64, "rdmsr");
CODE(p_invlpg, 64, "invlpg (%rax)");
CODE(p_lgdt, 64, "lgdt (%rbx)");
CODE(p_wbinvd, 64, "wbinvd");
CODE(p_rdtsc, 64, "rdtsc; nop");
CODE(p_popf, 64, "popfq; nop");

static void ring3_is_refused(void **state)
{
	static const struct {
		const u8 *start, *end;
	} row[] = {
		{p_hlt_start, p_hlt_end},       {p_cli_start, p_cli_end},
		{p_in_start, p_in_end},         {p_cr0_start, p_cr0_end},
		{p_dr7_start, p_dr7_end},       {p_rdmsr_start, p_rdmsr_end},
		{p_invlpg_start, p_invlpg_end}, {p_lgdt_start, p_lgdt_end},
		{p_wbinvd_start, p_wbinvd_end},
	};
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	machine_user(m, SEL_USER_CODE64);
	c->r[RBX] = AT_DATA;
	for (u32 n = 0; n < ARRAY_SIZE(row); n++)
		expect_fault(m, row[n].start, (u32)(row[n].end - row[n].start), VEC_GP, 0);
	c->cr4 |= CR4_TSD;
	expect_fault(m, CODE_OF(p_rdtsc), VEC_GP, 0);
	/* The I/O permission map opens one port. */
	machine_put(m, AT_TSS + 102, 2, 0x80);
	machine_put(m, AT_TSS + 0x80 + 0x60 / 8, 2, 0xfffe);
	machine_load(m, CODE_OF(p_in));
	assert_int_equal(machine_step(m), SOFT_EXIT);
	machine_put(m, AT_TSS + 0x80 + 0x60 / 8, 2, 1);
	expect_fault(m, CODE_OF(p_in), VEC_GP, 0);
	/* POPF at CPL 3 with IOPL 0 leaves IF and IOPL alone, silently. */
	machine_put(m, AT_USER_STACK - 8, 8, RFLAGS_IF | RFLAGS_IOPL | RFLAGS_CF);
	c->r[RSP] = AT_USER_STACK - 8;
	machine_load(m, CODE_OF(p_popf));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(soft_rflags(c), RFLAGS_ONE | RFLAGS_CF);
	machine_free(m);
}

/* ---- control registers ---- */

CODE(set_cr0, 64, "mov %rax,%cr0; hlt");
CODE(set_cr3, 64, "mov %rax,%cr3; hlt");
CODE(set_cr4, 64, "mov %rax,%cr4; hlt");
CODE(set_cr8, 64, "mov %rax,%cr8; hlt");
CODE(set_dr7, 64, "mov %rax,%db7; hlt");
CODE(get_dr4, 64, "mov %db4,%rax; hlt");
CODE(xsetbv, 64, "xor %ecx,%ecx; xor %edx,%edx; xsetbv; hlt");

static void gp_for(struct soft_machine *m, const u8 *code, u32 len, u64 rax)
{
	m->c->r[RAX] = rax;
	expect_fault(m, code, len, VEC_GP, 0);
}

static void sdm_2_5_control_register_checks(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	gp_for(m, CODE_OF(set_cr0), c->cr0 | BIT(32));
	gp_for(m, CODE_OF(set_cr0), CR0_PG);
	gp_for(m, CODE_OF(set_cr0), c->cr0 | CR0_NW);
	gp_for(m, CODE_OF(set_cr0), c->cr0 & ~CR0_PG);
	gp_for(m, CODE_OF(set_cr3), BIT(62));
	gp_for(m, CODE_OF(set_cr4), c->cr4 & ~CR4_PAE);
	gp_for(m, CODE_OF(set_cr4), c->cr4 | CR4_VMXE);
	gp_for(m, CODE_OF(set_cr8), 16);
	gp_for(m, CODE_OF(set_dr7), BIT(32));
	c->r[RAX] = c->cr0 | CR0_TS;
	machine_exec(m, CODE_OF(set_cr0));
	assert_false(c->mode & MODE_X87);
	c->r[RAX] = c->cr0 & ~CR0_TS;
	machine_exec(m, CODE_OF(set_cr0));
	assert_true(c->mode & MODE_SSE);
	machine_exec(m, CODE_OF(get_dr4));
	c->cr4 |= CR4_DE;
	expect_fault(m, CODE_OF(get_dr4), VEC_UD, ~0u);
	c->dr7 |= DR7_GD;
	expect_fault(m, CODE_OF(p_dr7), VEC_DB, ~0u);
	assert_true(c->dr6 & DR6_BD);
	machine_free(m);
}

static void sdm_13_3_xcr0_checks(void **state)
{
	struct soft_machine *m = long_machine();
	struct soft_cpu *c = m->c;
	static const u64 bad[] = {0, 2, 5, 0x23, BIT(31) | 1};

	(void)state;
	for (u32 n = 0; n < ARRAY_SIZE(bad); n++) {
		machine_load(m, CODE_OF(xsetbv));
		c->r[RAX] = bad[n];
		assert_int_equal(machine_run(m, false), SOFT_FAULT);
		assert_int_equal(c->exc.vector, VEC_GP);
	}
	c->r[RAX] = 3;
	machine_exec(m, CODE_OF(xsetbv));
	assert_int_equal(c->xcr0, 3);
	assert_false(c->mode & MODE_AVX);
	machine_free(m);
}

/* ---- protected and real mode ---- */

CODE(iretl, 32, "iretl");
CODE(far_call32, 32, "lcall $0x58,$0; hlt");
CODE(lret8, 32, "lret $8");
CODE(task_call, 32, "lcall $0x68,$0; hlt");
CODE(vm86_int, 16, "int $0x21");
CODE(vm86_cli, 16, "cli");
CODE(to_real, 32, "mov %cr0,%eax; and $~1,%eax; mov %eax,%cr0");
CODE(to_protected, 16,
     "lgdtl 0x7000; mov %cr0,%eax; inc %eax; mov %eax,%cr0; ljmpl $0x18,$0x10100");

static void sdm_5_8_call_gate_with_parameters(void **state)
{
	struct soft_machine *m = protected_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	/* Two parameters, to AT_HANDLER in ring 0, for ring 3. */
	machine_set_descriptor(m, SEL_FREE,
			       (AT_HANDLER & 0xffff) | (u64)SEL_CODE32 << 16 | 2ul << 32 |
				       0xec0000000000 | (u64)(AT_HANDLER >> 16) << 48);
	machine_user(m, SEL_USER_CODE32);
	machine_load(m, CODE_OF(far_call32));
	c->r[RSP] = AT_USER_STACK - 8;
	machine_put(m, AT_USER_STACK - 8, 8, 0x1111ul | 0x2222ul << 32);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_HANDLER);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK - 24);
	assert_int_equal(stack_dword(m, 0), AT_CODE + 7);
	assert_int_equal(stack_dword(m, 1), SEL_USER_CODE32);
	assert_int_equal(stack_dword(m, 2), 0x1111);
	assert_int_equal(stack_dword(m, 3), 0x2222);
	assert_int_equal(stack_dword(m, 4), AT_USER_STACK - 8);
	assert_int_equal(stack_dword(m, 5), SEL_USER_DATA);
	machine_load(m, CODE_OF(lret8));
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->cpl, 3);
	assert_int_equal(c->rip, AT_CODE + 7);
	assert_int_equal(c->r[RSP], AT_USER_STACK);
	assert_true(c->seg[SEG_DS].unusable);
	machine_free(m);
}

static void build_task(struct soft_machine *m)
{
	static const u16 sel[] = {SEL_DATA, SEL_CODE32, SEL_DATA, SEL_DATA, 0, 0};

	machine_set_descriptor(m, SEL_TSS2, machine_descriptor(AT_TSS2, 0x67, 0x89, 0));
	machine_put(m, AT_TSS2 + 0x20, 4, AT_CODE + 0x100);
	machine_put(m, AT_TSS2 + 0x24, 4, RFLAGS_ZF);
	machine_put(m, AT_TSS2 + 0x28 + 4 * RSP, 4, AT_IST_STACK);
	for (u32 n = 0; n < ARRAY_SIZE(sel); n++)
		machine_put(m, AT_TSS2 + 0x48 + 4 * n, 4, sel[n]);
}

static void sdm_7_task_call_and_return(void **state)
{
	struct soft_machine *m = protected_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	build_task(m);
	c->r[RBX] = 0x777;
	machine_load(m, CODE_OF(task_call));
	machine_put(m, AT_CODE + 0x100, 1, 0xcf); /* iret */
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_CODE + 0x100);
	assert_int_equal(c->r[RSP], AT_IST_STACK);
	assert_int_equal(c->seg[SEG_TR].selector, SEL_TSS2);
	assert_true(c->sysflags & RFLAGS_NT);
	assert_true(c->flags & RFLAGS_ZF);
	assert_true(c->cr0 & CR0_TS);
	assert_int_equal(machine_get(m, AT_TSS2, 2), SEL_TSS);
	assert_int_equal(machine_get(m, AT_GDT + SEL_TSS2 + 5, 1), 0x8b);
	assert_int_equal(machine_get(m, AT_TSS + 0x28 + 4 * RBX, 4), 0x777);
	assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, AT_CODE + 7);
	assert_int_equal(c->r[RBX], 0x777);
	assert_int_equal(c->seg[SEG_TR].selector, SEL_TSS);
	assert_false(c->sysflags & RFLAGS_NT);
	assert_int_equal(machine_get(m, AT_GDT + SEL_TSS2 + 5, 1), 0x89);
	/* A double fault through a task gate: the error code lies on the new stack. */
	machine_put(m, AT_IDT + VEC_DF * 8, 8, (u64)SEL_TSS2 << 16 | 0x850000000000);
	machine_put(m, AT_TSS2 + 0x20, 4, AT_HANDLER + VEC_DF * 16);
	c->idtr.limit = VEC_DF * 8 + 7;
	c->exc.vector = VEC_GP;
	c->exc.has_error = true;
	assert_int_equal(soft_deliver_exception(c), SOFT_OK);
	expect_handler(m, VEC_DF);
	assert_int_equal(c->r[RSP], AT_IST_STACK - 4);
	machine_free(m);
}

static void enter_vm86(struct soft_machine *m, u64 flags)
{
	static const u32 frame[] = {AT_CODE & 0xf, AT_CODE >> 4, 0,    0x1000, 0x2800,
				    0x10,          0x20,         0x30, 0x40};

	m->c->r[RSP] = AT_KERNEL_STACK - sizeof(frame);
	for (u32 n = 0; n < ARRAY_SIZE(frame); n++)
		machine_put(m, m->c->r[RSP] + 4 * n, 4, frame[n]);
	machine_put(m, m->c->r[RSP] + 8, 4, RFLAGS_VM | RFLAGS_ONE | flags);
	machine_load(m, CODE_OF(iretl));
	assert_int_equal(machine_step(m), SOFT_OK);
}

static void sdm_20_virtual_8086_mode(void **state)
{
	struct soft_machine *m = protected_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	enter_vm86(m, RFLAGS_IOPL);
	assert_int_equal(c->cpl, 3);
	assert_true(in_vm86(c));
	assert_int_equal(c->seg[SEG_SS].base, 0x28000);
	assert_int_equal(c->seg[SEG_GS].selector, 0x40);
	memcpy(m->ram + AT_CODE, vm86_int_start, 2);
	machine_set_gate(m, 0x21, DESC_INTERRUPT_GATE, 3, 0, SEL_CODE32, 0);
	expect_handler(m, 0x21);
	assert_int_equal(c->r[RSP], AT_KERNEL_STACK - 36);
	assert_int_equal(stack_dword(m, 0), 2);
	assert_int_equal(stack_dword(m, 1), AT_CODE >> 4);
	assert_int_equal(stack_dword(m, 2), RFLAGS_VM | RFLAGS_ONE | RFLAGS_IOPL);
	assert_int_equal(stack_dword(m, 3), 0x1000);
	assert_int_equal(stack_dword(m, 8), 0x40);
	assert_true(c->seg[SEG_DS].unusable);
	machine_protected_mode(m);
	enter_vm86(m, 0); /* IOPL 0: CLI and INT n are the monitor's */
	memcpy(m->ram + AT_CODE, vm86_cli_start, 1);
	assert_int_equal(machine_step(m), SOFT_FAULT);
	assert_int_equal(c->exc.vector, VEC_GP);
	machine_free(m);
}

static void sdm_9_9_mode_switches(void **state)
{
	struct soft_machine *m = protected_machine();
	struct soft_cpu *c = m->c;

	(void)state;
	assert_int_equal(c->mode & (MODE_BITS | MODE_INTERPRET), MODE_BITS_32);
	machine_load(m, CODE_OF(to_real));
	for (u32 n = 0; n < 3; n++)
		assert_int_equal(machine_step(m), SOFT_OK);
	assert_true(c->mode & MODE_INTERPRET);
	machine_real_mode(m);
	machine_put(m, 0x7000, 2, SEL_GDT_END - 1);
	machine_put(m, 0x7002, 4, AT_GDT);
	machine_load(m, CODE_OF(to_protected));
	for (u32 n = 0; n < 5; n++)
		assert_int_equal(machine_step(m), SOFT_OK);
	assert_int_equal(c->rip, 0x10100);
	assert_int_equal(code_bits(c), 32);
	assert_int_equal(c->cpl, 0);
	machine_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sdm_6_14_frame_from_user_mode),
		cmocka_unit_test(sdm_6_14_stack_is_aligned_and_ist_used),
		cmocka_unit_test(sdm_6_12_gate_checks),
		cmocka_unit_test(sdm_6_15_page_fault),
		cmocka_unit_test(sdm_6_15_double_fault_and_shutdown),
		cmocka_unit_test(stack_in_device_memory_does_not_hang),
		cmocka_unit_test(iretq_to_every_level),
		cmocka_unit_test(iretq_checks),
		cmocka_unit_test(apm_syscall_and_sysret),
		cmocka_unit_test(msrs_of_segments_and_machine),
		cmocka_unit_test(sdm_5_segment_load_checks),
		cmocka_unit_test(sdm_5_descriptor_queries),
		cmocka_unit_test(sdm_5_8_call_gate_in_long_mode),
		cmocka_unit_test(interrupt_shadows_last_one_instruction),
		cmocka_unit_test(sdm_17_single_step),
		cmocka_unit_test(sdm_17_breakpoints),
		cmocka_unit_test(breakpoint_and_icebp),
		cmocka_unit_test(nmi_is_blocked_until_iret),
		cmocka_unit_test(ring3_is_refused),
		cmocka_unit_test(sdm_2_5_control_register_checks),
		cmocka_unit_test(sdm_13_3_xcr0_checks),
		cmocka_unit_test(sdm_5_8_call_gate_with_parameters),
		cmocka_unit_test(sdm_7_task_call_and_return),
		cmocka_unit_test(sdm_20_virtual_8086_mode),
		cmocka_unit_test(sdm_9_9_mode_switches),
	};

	return cmocka_run_group_tests_name("system", tests, NULL, NULL);
}
