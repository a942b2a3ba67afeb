/*
 * Crossing between C and translated code.
 *
 * soft_enter(cpu, code, index2) saves the C side, loads the guest registers in the convention of soft.h
 * and jumps to @code with r10 = guest rip and r11 = index2. It returns, as enum soft_leave, when translated code jumps to
 * soft_stub_leave or a helper says so. Helpers (soft_miss, soft_step) run on the C stack; translated
 * code's own stack is kept in ras_rsp meanwhile.
 */
#include "engine/soft/layout.h"

#define CPU(off) %fs:soft_tls_cpu@tpoff + (off)
#define REG(n)   CPU(OFF_R + 8 * (n))

	.text

.macro save_registers		/* all but r10, r11; then flags; clobbers rax, rcx */
	mov %rax, REG(0)
	mov %rcx, REG(1)
	lahf
	seto %al
	movzbl %al, %ecx
	movzbl %ah, %eax
	shl $11, %ecx
	or %ecx, %eax
	and $0x8d5, %eax
	mov %rax, CPU(OFF_FLAGS)
	mov %rdx, REG(2)
	mov %rbx, REG(3)
	mov %r9, REG(4)
	mov %rbp, REG(5)
	mov %rsi, REG(6)
	mov %rdi, REG(7)
	mov %r8, REG(8)
	mov %r12, REG(12)
	mov %r13, REG(13)
	mov %r14, REG(14)
	mov %r15, REG(15)
.endm

.macro load_registers		/* flags first, then all but r10, r11 */
	mov CPU(OFF_FLAGS), %rax
	mov %eax, %ecx
	shr $11, %ecx
	and $1, %ecx
	mov %al, %ah
	add $0x7f, %cl
	sahf
	mov REG(0), %rax
	mov REG(1), %rcx
	mov REG(2), %rdx
	mov REG(3), %rbx
	mov REG(4), %r9
	mov REG(5), %rbp
	mov REG(6), %rsi
	mov REG(7), %rdi
	mov REG(8), %r8
	mov REG(12), %r12
	mov REG(13), %r13
	mov REG(14), %r14
	mov REG(15), %r15
.endm

/* int soft_enter(struct soft_cpu *cpu, u64 code, u64 index2) */
	.globl soft_enter
	.type soft_enter, @function
soft_enter:
	push %rbp
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	push CPU(OFF_HOST_RSP)		/* thunks run nested, inside helpers */
	mov %rsp, CPU(OFF_HOST_RSP)
	mov CPU(OFF_RAS_BASE), %rsp
	mov CPU(OFF_RIP), %r10
	mov %rdx, %r11
	mov %rsi, CPU(OFF_LINK)
	load_registers
	jmp *CPU(OFF_LINK)
	.size soft_enter, . - soft_enter

/* Jumped to: r10 = guest rip, r11d = enum soft_leave. */
	.globl soft_stub_leave
	.type soft_stub_leave, @function
soft_stub_leave:
	mov %r10, CPU(OFF_RIP)
	save_registers
	mov %r11d, %eax
leave_to_c:
	mov CPU(OFF_HOST_RSP), %rsp
	pop CPU(OFF_HOST_RSP)
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	pop %rbp
	ret
	.size soft_stub_leave, . - soft_stub_leave

	.globl soft_stub_thunk_done
	.type soft_stub_thunk_done, @function
soft_stub_thunk_done:
	save_registers
	mov $LEAVE_THUNK_, %eax
	jmp leave_to_c
	.size soft_stub_thunk_done, . - soft_stub_thunk_done

/* The signal handler resumes here with the registers of the fault. */
	.globl soft_stub_host_fault
	.type soft_stub_host_fault, @function
soft_stub_host_fault:
	save_registers
	mov $LEAVE_HOST_FAULT_, %eax
	jmp leave_to_c
	.size soft_stub_host_fault, . - soft_stub_host_fault

/*
 * Called from translated code: r10 = address, or bytes of the instruction, r11d = site description. The C helper returns 0 to resume
 * after the call, 1 to resume 5 bytes further, or 2 + enum soft_leave. LEAVE_GO_ON is a way on without
 * leaving: to cpu->link, which starts the private stack over and finds the block at rip.
 */
.macro helper_stub name, helper
	.globl \name
	.type \name, @function
\name:
	save_registers
	mov %rsp, CPU(OFF_RAS_RSP)
	mov CPU(OFF_HOST_RSP), %rsp
	mov %fs:0, %rdi
	lea soft_tls_cpu@tpoff(%rdi), %rdi
	mov %r10, %rsi
	mov %r11d, %edx
	call \helper
	cmp $1, %eax
	ja 2f
	mov CPU(OFF_RAS_RSP), %rsp
	lea (%rax,%rax,4), %eax
	add %rax, (%rsp)
	load_registers
	ret
2:	sub $2, %eax
	cmp $LEAVE_GO_ON_, %eax
	jne leave_to_c
	load_registers
	mov CPU(OFF_RIP), %r10
	jmp *CPU(OFF_LINK)
	.size \name, . - \name
.endm

	helper_stub soft_stub_miss, soft_miss
	helper_stub soft_stub_step, soft_step

/* Jumped to: r10 = guest rip, which the indirect-branch table does not have. soft_lookup() says LEAVE_GO_ON
 * when cpu->link leads to its code, else how to leave. */
	.globl soft_stub_lookup
	.type soft_stub_lookup, @function
soft_stub_lookup:
	mov %r10, CPU(OFF_RIP)
	save_registers
	mov %rsp, CPU(OFF_RAS_RSP)
	mov CPU(OFF_HOST_RSP), %rsp
	mov %fs:0, %rdi
	lea soft_tls_cpu@tpoff(%rdi), %rdi
	call soft_lookup
	cmp $LEAVE_GO_ON_, %eax
	jne leave_to_c
	mov CPU(OFF_RAS_RSP), %rsp
	load_registers
	mov CPU(OFF_RIP), %r10
	jmp *CPU(OFF_LINK)
	.size soft_stub_lookup, . - soft_stub_lookup

/*
 * SYSCALL and SYSRET of 64-bit code between modes known to soft_update_mode() (control.c), called as
 * soft_stub_step, which does what is unusual. They do what op_syscall() and op_sysret() do (SDM vol. 2
 * under each), and start the private stack over: its entries belong to the other privilege level.
 */
.macro load_segments from	/* CS and SS, next to each other; clobbers rax, r10 */
	.irp at, 0, 16, 32, 48
	mov CPU(OFF_CALL_SEG + \from + \at), %rax
	mov CPU(OFF_CALL_SEG + \from + \at + 8), %r10
	mov %rax, CPU(OFF_SEG_CS + \at)
	mov %r10, CPU(OFF_SEG_CS + \at + 8)
	.endr
.endm

.macro empty_private_stack bottom	/* clobbers rax, r10 */
	movl $BRANCH_SITE_NONE_, CPU(OFF_BRANCH_SITE)
	mov CPU(OFF_RAS_BASE), %r10
	mov CPU(\bottom), %rax
	mov %rax, (%r10)
.endm

	.globl soft_stub_syscall
	.type soft_stub_syscall, @function
soft_stub_syscall:
	mov %rax, CPU(OFF_SPILL)
	mov %rcx, CPU(OFF_SPILL + 8)
	lahf
	seto %al
	mov CPU(OFF_MODE), %ecx
	xor CPU(OFF_KERNEL_MODE), %ecx
	test $~(MODE_USER_ | MODE_WINDOW_), %ecx
	jnz call_interpreted
	mov CPU(OFF_STAR), %rcx
	cmp CPU(OFF_CALL_STAR), %rcx
	jne call_interpreted
	mov CPU(OFF_SFMASK), %rcx
	not %rcx
	test $0xfd5, %ecx		/* arithmetic flags, TF, IF and DF are all cleared */
	jnz call_interpreted
	and CPU(OFF_SYSFLAGS), %rcx
	mov %eax, %r10d
	shl $11, %eax
	and $0x800, %eax
	shr $8, %r10d
	and $0xd5, %r10d
	or %r10d, %eax
	movzbl CPU(OFF_IFLAG), %r10d
	shl $9, %r10d
	or %r10d, %eax
	movzbl CPU(OFF_DFLAG), %r10d
	shl $10, %r10d
	or %r10d, %eax
	or CPU(OFF_SYSFLAGS), %rax
	or $2, %eax
	mov %rax, REG(11)
	mov %rcx, CPU(OFF_SYSFLAGS)
	movb $0, CPU(OFF_IFLAG)
	movb $0, CPU(OFF_DFLAG)
	mov %r11d, %ecx
	and $0xfff, %ecx		/* SITE_OFFSET */
	shr $12, %r11d			/* SITE_LEN_SHIFT */
	and $15, %r11d
	add %r11, %rcx
	add CPU(OFF_CODE_VA), %rcx
	load_segments 0
	movb $0, CPU(OFF_CPL)
	mov CPU(OFF_KERNEL_MODE), %eax
	mov %eax, CPU(OFF_MODE)
	incq CPU(OFF_SYSCALLS)
	empty_private_stack OFF_RAS_BOTTOM
	mov CPU(OFF_LSTAR), %r10
	xor %eax, %eax
	sahf
	mov CPU(OFF_SPILL), %rax
	jmp *CPU(OFF_RAS_BOTTOM)
	.size soft_stub_syscall, . - soft_stub_syscall

	.globl soft_stub_sysret
	.type soft_stub_sysret, @function
soft_stub_sysret:
	mov %rax, CPU(OFF_SPILL)
	mov %rcx, CPU(OFF_SPILL + 8)
	lahf
	seto %al
	sar $47, %rcx			/* to the lower half of the addresses */
	jnz call_interpreted
	mov CPU(OFF_MODE), %ecx
	xor CPU(OFF_USER_MODE), %ecx
	test $~(MODE_USER_ | MODE_WINDOW_), %ecx
	jnz call_interpreted
	mov CPU(OFF_STAR), %rcx
	cmp CPU(OFF_CALL_STAR), %rcx
	jne call_interpreted
	cmpb $0, CPU(OFF_IRQ_WINDOW)
	jne call_interpreted
	mov REG(11), %rcx
	test $0x1c7100, %ecx		/* TF, IOPL, NT, AC, VIF, VIP */
	jnz call_interpreted
	mov %ecx, %eax
	and $0x200000, %eax		/* ID */
	mov %rax, CPU(OFF_SYSFLAGS)
	mov %ecx, %eax
	shr $9, %eax
	and $1, %eax
	mov %al, CPU(OFF_IFLAG)
	mov %ecx, %eax
	shr $10, %eax
	and $1, %eax
	mov %al, CPU(OFF_DFLAG)
	load_segments 64
	movb $3, CPU(OFF_CPL)
	mov CPU(OFF_USER_MODE), %eax
	mov %eax, CPU(OFF_MODE)
	empty_private_stack OFF_RAS_BOTTOM + 8
	mov CPU(OFF_SPILL + 8), %r10
	mov %cl, %ah
	shr $11, %ecx
	and $1, %ecx
	add $0x7f, %cl
	sahf
	mov CPU(OFF_SPILL), %rax
	mov CPU(OFF_SPILL + 8), %rcx
	jmp *CPU(OFF_RAS_BOTTOM + 8)
	.size soft_stub_sysret, . - soft_stub_sysret

call_interpreted:
	add $0x7f, %al
	sahf
	mov CPU(OFF_SPILL), %rax
	mov CPU(OFF_SPILL + 8), %rcx
	jmp soft_stub_step

/*
 * bool soft_try_xrstor(const void *image, u32 low, u32 high, bool wide): XRSTOR from guest memory. False
 * when it faulted; the signal handler goes on at soft_xrstor_failed for the two instructions before it.
 */
	.globl soft_try_xrstor, soft_xrstor_at, soft_xrstor_failed
	.type soft_try_xrstor, @function
soft_try_xrstor:
	mov %esi, %eax
	test %cl, %cl
soft_xrstor_at:
	jz 1f
	xrstor64 (%rdi)
	jmp 2f
1:	xrstor (%rdi)
2:	mov $1, %eax
	ret
soft_xrstor_failed:
	xor %eax, %eax
	ret
	.size soft_try_xrstor, . - soft_try_xrstor

	.section .note.GNU-stack, "", @progbits
