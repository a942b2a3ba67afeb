/*
 * Global system interrupts: the inputs of the I/O APIC. The first sixteen are the ISA interrupts,
 * which also reach the 8259s; the PIT's moves to input 2, where the 8259's cascade used to be.
 */
#pragma once

enum {
	GSI_KEYBOARD = 1,
	GSI_PIT = 2, /* ISA interrupt 0 */
	GSI_COM1 = 4,
	GSI_RTC = 8,
	GSI_SCI = 9,
	GSI_MOUSE = 12,
	GSI_ISA = 16, /* number of ISA interrupts */
	GSI_PCI = 16, /* PIRQ A to D: 16 to 19 */
};
