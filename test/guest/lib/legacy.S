/*
 * The way out of long mode and back (SDM vol. 3, 9.8.5.4), and the entry of every vector there. See legacy.h
 * for the fields of struct legacy.
 */
#define KCODE64		0x08
#define KDATA		0x10
#define KCODE32		0x30
#define TSS_SELECTOR	0x48
#define LEGACY_TSS	0x60
#define MSR_EFER	0xc0000080
#define REAL_CODE	0x68		/* 16-bit, 64 KiB from 0: for the ways into and out of real mode */
#define REAL_DATA	0x70
#define REAL_AT		0x8000		/* where legacy.c puts real_mode */
#define REAL_VECTORS	0x7000		/* not at 0, as the IDTR may have it */
#define NO_PAGING	0x7fffffff
#define TSS_BUSY	2

#define L_CR0		legacy
#define L_CR3		legacy + 4
#define L_CR4		legacy + 8
#define L_EFER		legacy + 12
#define L_EAX		legacy + 16
#define L_TRAP_CR2	legacy + 40
#define L_TRAP_CR0	legacy + 44
#define L_TRAP_TR	legacy + 48
#define L_TRAP_STACK	legacy + 52
#define TRAP_WORDS	19
#define L_TRAP_OUTER	L_TRAP_STACK + 4 * 13
#define L_START		legacy + 128 + 1024

	.text
	.code64
	.global	legacy_excursion
legacy_excursion:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, saved_rsp
	mov	%cr0, %rax
	mov	%rax, saved_cr0
	mov	%cr3, %rax
	mov	%rax, saved_cr3
	mov	%cr4, %rax
	mov	%rax, saved_cr4
	mov	$MSR_EFER, %ecx
	rdmsr
	mov	%eax, saved_efer
	sidt	saved_idtr
	lidt	legacy_idtr
	push	$KCODE32
	push	$1f
	lretq

	.code32
1:	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	%cr0, %eax
	and	$NO_PAGING, %eax
	mov	%eax, %cr0
	mov	L_EFER, %eax
	xor	%edx, %edx
	mov	$MSR_EFER, %ecx
	wrmsr
	mov	L_CR4, %eax
	mov	%eax, %cr4
	mov	L_CR3, %eax
	mov	%eax, %cr3
	mov	$LEGACY_TSS, %eax
	ltr	%ax
	mov	L_CR0, %eax
	test	$1, %eax
	jz	into_real_mode
	mov	%eax, %cr0
	mov	$L_START, %esp
	testb	$3, 4(%esp)
	jz	1f
	mov	$0x23, %eax		/* UDATA: what ring 3 may keep */
	mov	%eax, %ds
	mov	%eax, %es
1:	mov	%ss:L_EAX, %eax
	mov	%ss:L_EAX + 4, %ecx
	mov	%ss:L_EAX + 8, %edx
	mov	%ss:L_EAX + 12, %ebx
	mov	%ss:L_EAX + 16, %esi
	mov	%ss:L_EAX + 20, %edi
	xor	%ebp, %ebp
	iretl

	/* 64 stubs of 16 bytes; where the processor pushes no error code, push a zero. */
	.balign	16
	.global	legacy_stubs
legacy_stubs:
	vector = 0
	.rept	64
	.balign	16
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17
	push	$0
	.endif
	push	$vector
	jmp	noted
	vector = vector + 1
	.endr

noted:	pushal
	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	cld
	mov	%esp, %esi
	mov	$L_TRAP_STACK, %edi
	mov	$TRAP_WORDS, %ecx
	rep movsl
	mov	%cr2, %eax
	mov	%eax, L_TRAP_CR2
	mov	%cr0, %eax
	mov	%eax, L_TRAP_CR0
	str	%eax
	mov	%eax, L_TRAP_TR

back:	mov	%cr0, %eax
	and	$NO_PAGING, %eax
	mov	%eax, %cr0
	mov	saved_cr4, %eax
	mov	%eax, %cr4
	mov	saved_cr3, %eax
	mov	%eax, %cr3
	mov	saved_efer, %eax
	and	$~0x400, %eax		/* LMA is not for us to write */
	xor	%edx, %edx
	mov	$MSR_EFER, %ecx
	wrmsr
	mov	saved_cr0, %eax
	mov	%eax, %cr0
	ljmp	$KCODE64, $1f

	.code64
1:	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	andb	$~TSS_BUSY, gdt + TSS_SELECTOR + 5
	mov	$TSS_SELECTOR, %eax
	ltr	%ax
	lidt	saved_idtr
	mov	saved_rsp, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

	/* SDM vol. 3, 9.9.2. The real-mode part finds what to load in the words at real_start, which legacy.c
	   fills in. */
	.code32
into_real_mode:
	lidt	real_idtr
	ljmp	$REAL_CODE, $REAL_AT

	.code16
	.global	real_mode, real_start, real_stubs, real_mode_end
real_mode:
	mov	$REAL_DATA, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %fs
	mov	%ax, %gs
	mov	%ax, %ss
	mov	%cr0, %eax
	and	$0xfe, %al
	mov	%eax, %cr0
	ljmp	$0, $REAL_AT + (1f - real_mode)
1:	xor	%eax, %eax
	mov	%ax, %ss
	mov	%ax, %fs
	mov	%ax, %gs
	mov	$REAL_AT + (real_start - real_mode), %sp
	pop	%ds
	pop	%es
	lss	%ss:REAL_AT + (real_start - real_mode) + 10, %sp
	/* IRET's three words, to the new stack. */
	pushw	%cs:REAL_AT + (real_start - real_mode) + 8
	pushw	%cs:REAL_AT + (real_start - real_mode) + 6
	pushw	%cs:REAL_AT + (real_start - real_mode) + 4
	iret
	.balign	4
real_start:
	.word	0, 0			/* ds, es */
	.word	0, 0, 0			/* ip, cs, flags */
	.word	0, 0			/* sp, ss */

	/* 64 stubs of 8 bytes, again. */
	.balign	8
real_stubs:
	vector = 0
	.rept	64
	.balign	8
	pushw	$vector
	jmp	1f
	vector = vector + 1
	.endr
1:	pushal
	mov	%ss, %bx
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$KCODE32, $real_noted
real_mode_end:

	.code32
real_noted:
	mov	$KDATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	cld
	movzwl	%bx, %ebx
	movzwl	%sp, %esi
	mov	%ebx, L_TRAP_OUTER + 4
	lea	40(%esi), %eax		/* behind PUSHAL, the vector, IRET's words less those */
	sub	$6, %eax
	mov	%eax, L_TRAP_OUTER
	shl	$4, %ebx
	add	%ebx, %esi
	mov	$L_TRAP_STACK, %edi
	mov	$8, %ecx
	rep movsl
	xor	%eax, %eax
	lodsw				/* vector */
	stosl
	movl	$0, (%edi)		/* no error code */
	add	$4, %edi
	mov	$3, %ecx
1:	lodsw				/* ip, cs, flags */
	stosl
	loop	1b
	jmp	back

	.section .rodata
	.global	real_idtr
real_idtr:
	.word	0x3ff
	.long	REAL_VECTORS

	.bss
	.balign	8
saved_rsp:
	.skip	8
saved_cr0:
	.skip	8
saved_cr3:
	.skip	8
saved_cr4:
	.skip	8
saved_efer:
	.skip	8
saved_idtr:
	.skip	16
	.section .note.GNU-stack, "", @progbits
