/*
 * What a box executes for us (box.c), at any address and without a stack.
 *
 * box_stub_empty: unmap rsi bytes at rdi, and r9 at r8.
 * box_stub_call:  the system call in the registers.
 * box_stub_batch: r12 of them, at least one, each described at rbx by its number and arguments, until one
 *                 fails.
 *
 * Each ends at an INT3; a batch that failed, at an UD2, with the call's result in rax.
 */
#define SYS_MUNMAP 11
#define ERRNO_MAX  4095

	.section .rodata
	.globl box_stub, box_stub_end, box_stub_empty, box_stub_call, box_stub_batch
box_stub:

box_stub_empty:
	mov $SYS_MUNMAP, %eax
	syscall
	mov $SYS_MUNMAP, %eax
	mov %r8, %rdi
	mov %r9, %rsi
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
	syscall
	cmp $-ERRNO_MAX, %rax
	jae 1f
	add $56, %rbx
	dec %r12
	jnz box_stub_batch
	int3
1:	ud2
box_stub_end:

	.section .note.GNU-stack, "", @progbits
