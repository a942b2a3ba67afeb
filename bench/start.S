/*
 * The smallest guest: its first instructions write a byte to the serial port, then it halts for good.
 * For bench/startup.py.
 */
#define PVH_ENTRY	18	/* XEN_ELFNOTE_PHYS32_ENTRY */
#define COM1		0x3f8

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 8, PVH_ENTRY
	.asciz	"Xen"
	.quad	start

	.text
	.code32
start:
	mov	$COM1, %edx
	mov	$'!', %al
	out	%al, %dx
	cli
1:	hlt
	jmp	1b

	.section .note.GNU-stack, "", @progbits
