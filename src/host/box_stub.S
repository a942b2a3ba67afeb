/*
 * What a box executes for us (box.c), at any address and without a stack.
 *
 * box_stub_empty: unmap rsi bytes at rdi, and r12 at rbx.
 * box_stub_call:  the system call in the registers.
 * box_stub_batch: r12 of them, at least one, each described at rbx by its number and arguments, until one
 *                 fails. r14 and r15 go into the fourth and fifth argument: bits 63:32, which the
 *                 kernel ignores there, and without which the filter permits no call.
 *
 * Each ends at an INT3; a batch that failed, at an UD2, with the call's result in rax. A batch with rbp not 0
 * goes on at box_stub_enter: registers, and what IRETQ takes, are loaded from there.
 */
#define SYS_MUNMAP 11
#define ERRNO_MAX  4095

	.section .rodata
	.globl box_stub, box_stub_end, box_stub_empty, box_stub_call, box_stub_batch, box_stub_enter
box_stub:

box_stub_empty:
	mov $SYS_MUNMAP, %eax
	syscall
	mov $SYS_MUNMAP, %eax
	mov %rbx, %rdi
	mov %r12, %rsi
	syscall
	int3

box_stub_call:
	syscall
	int3

box_stub_batch:
	mov (%rbx), %rax
	mov 8(%rbx), %rdi
	mov 16(%rbx), %rsi
	mov 24(%rbx), %rdx
	mov 32(%rbx), %r10
	mov 40(%rbx), %r8
	mov 48(%rbx), %r9
	or %r14, %r10
	or %r15, %r8
	syscall
	cmp $-ERRNO_MAX, %rax
	jae 2f
	add $56, %rbx
	dec %r12
	jnz box_stub_batch
	test %rbp, %rbp
	jnz box_stub_enter
	int3
2:	ud2

box_stub_enter:
	mov %rbp, %rsp
	pop %rax
	pop %rcx
	pop %rdx
	pop %rbx
	pop %rbp
	pop %rsi
	pop %rdi
	pop %r8
	pop %r9
	pop %r10
	pop %r11
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	iretq
box_stub_end:

	.section .note.GNU-stack, "", @progbits
