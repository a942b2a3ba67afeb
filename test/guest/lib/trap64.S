/*
 * Entry of every vector, and exec_state(), which starts a piece of test code with a given state of
 * the processor and returns when that code causes an exception or interrupt.
 *
 * Both sides use struct state of guest.h: exec_state() loads it, a trap builds it on the stack.
 */
#define KCODE64	0x08
#define KDATA	0x10

	.text

	/* 256 stubs of 16 bytes; where the processor pushes no error code, push a zero. */
	.balign	16
	.global	trap_stubs
trap_stubs:
	vector = 0
	.rept	256
	.balign	16
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
	push	$0
	.endif
	push	$vector
	jmp	trap_common
	vector = vector + 1
	.endr

trap_common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rbx
	push	%rbp
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%ds, %eax
	push	%rax
	mov	%es, %eax
	push	%rax
	mov	%fs, %eax
	push	%rax
	mov	%gs, %eax
	push	%rax
	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	cld
	mov	%rsp, %rdi
	call	trap_entry
	/* The hook wants the interrupted code to go on. */
	add	$16, %rsp		/* gs, fs: never changed by hooks */
	pop	%rax
	mov	%eax, %es
	pop	%rax
	mov	%eax, %ds
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rbp
	pop	%rbx
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

	/* void exec_state(struct state *s) */
	.global	exec_state
exec_state:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	pushf
	mov	%rsp, exec_rsp
	mov	%rdi, %rsp
	/* From here the stack pointer walks through *s; interrupts are off. */
	pop	%rax
	mov	%eax, %gs
	pop	%rax
	mov	%eax, %fs
	pop	%rax
	mov	%eax, %es
	pop	%rax
	mov	%eax, %ds
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rbp
	pop	%rbx
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	.global	exec_iret
exec_iret:
	iretq

	/*
	 * void exec_leave(void): end what exec_state() started, from inside a trap. IRET rather than a
	 * jump, because only IRET ends the blocking of NMIs.
	 */
	.global	exec_leave
exec_leave:
	mov	exec_rsp, %rax
	push	$KDATA
	push	%rax
	push	$2
	push	$KCODE64
	push	$1f
	iretq
1:	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	popf
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

	.bss
	.balign	8
exec_rsp:
	.skip	8
	.section .note.GNU-stack, "", @progbits
