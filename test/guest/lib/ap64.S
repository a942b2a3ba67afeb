/*
 * An application processor's way from its start-up message to ap_main(): real mode at a page below
 * 1 MiB, where smp.c copies what lies between ap_boot and ap_boot_end, then straight to 64-bit mode.
 */
#define EFER_BITS	0x901		/* SCE, LME, NXE */
#define MSR_EFER	0xc0000080
#define CR4_BITS	0x620		/* PAE, OSFXSR, OSXMMEXCPT */
#define CR0_BITS	0x80010033	/* PG, WP, NE, ET, MP, PE */
#define STACK_SHIFT	14

	.text
	.code16
	.global	ap_boot, ap_boot_end, ap_boot_gdtr
ap_boot:
	cli
	mov	%cs, %bx		/* kept for ap_main: where it started */
	mov	%bx, %ds
	lgdtl	ap_boot_gdtr - ap_boot
	mov	$CR4_BITS, %eax
	mov	%eax, %cr4
	mov	$boot_pml4, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	mov	$EFER_BITS, %eax
	xor	%edx, %edx
	wrmsr
	mov	$CR0_BITS, %eax
	mov	%eax, %cr0
	ljmpl	$8, $ap_start64
	.balign	4
ap_boot_gdtr:
	.word	0
	.long	0
ap_boot_end:

	.code64
ap_start64:
	mov	$0x10, %eax
	mov	%eax, %ss
	mov	%eax, %ds
	mov	%eax, %es
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	movzwl	%bx, %esi
	mov	$1, %eax
	cpuid
	shr	$24, %ebx		/* initial APIC id */
	mov	%ebx, %edi
	inc	%ebx
	shl	$STACK_SHIFT, %rbx
	lea	ap_stacks(%rbx), %rsp
	xor	%ebp, %ebp
	call	ap_main
	ud2
	.section .note.GNU-stack, "", @progbits
