/*
 * From the PVH entry (32-bit protected mode, paging off) to 64-bit mode.
 *
 * The page tables made here map the first GiB, one to one, in 2 MiB pages: for the way to
 * environment_reset(), and while that makes the real ones.
 */
#define PVH_ENTRY	18	/* XEN_ELFNOTE_PHYS32_ENTRY */
#define MSR_EFER	0xc0000080
#define EFER_BITS	0x901	/* SCE, LME, NXE */
#define CR4_BITS	0x620	/* PAE, OSFXSR, OSXMMEXCPT */
#define CR0_BITS	0x80010033	/* PG, WP, NE, ET, MP, PE */

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 8, PVH_ENTRY
	.asciz	"Xen"
	.quad	boot32

	.text
	.code32
	.global	boot32
boot32:
	cld
	cli
	mov	%ebx, boot_info
	lgdt	boot_gdtr
	mov	$boot_stack_top, %esp

	mov	$boot_pdpt + 3, %eax
	mov	%eax, boot_pml4
	mov	$boot_pd + 3, %eax
	mov	%eax, boot_pdpt
	mov	$boot_pd, %edi
	mov	$0x83, %eax
	mov	$512, %ecx
1:	mov	%eax, (%edi)
	add	$0x200000, %eax
	add	$8, %edi
	loop	1b

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
	ljmp	$8, $boot64

	.code64
boot64:
	mov	$0x10, %eax
	mov	%eax, %ss
	mov	%eax, %ds
	mov	%eax, %es
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	mov	$boot_stack_top, %rsp
	xor	%ebp, %ebp
	call	guest_main
	ud2

	.section .rodata
	.balign	8
boot_gdt:
	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
	.global	boot_gdtr
boot_gdtr:
	.word	. - boot_gdt - 1
	.long	boot_gdt

	.bss
	.balign	4096
	.global	boot_pml4
boot_pml4:
	.skip	4096
boot_pdpt:
	.skip	4096
boot_pd:
	.skip	4096
	.skip	16384
boot_stack_top:
	.global	boot_info
boot_info:
	.skip	4		/* physical address of struct hvm_start_info */
	.section .note.GNU-stack, "", @progbits
