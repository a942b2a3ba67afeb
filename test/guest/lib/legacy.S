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
#define L_START		legacy + 128 + 1024

	.text
	.code64
	.global	legacy_run
legacy_run:
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

	mov	%cr0, %eax
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
