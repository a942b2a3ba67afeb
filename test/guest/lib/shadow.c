/*
 * STI's shadow on a processor that loses it.
 *
 * An interrupt does not come between STI and the instruction behind it (SDM vol. 2, STI). A virtual
 * machine that exits just there takes the shadow along: #VMEXIT saves it, VMRUN brings it back (APM
 * vol. 2, 15.21.5). The VMRUN that QEMU 7.2 emulates does not; what interrupted the guest there,
 * usually a timer of its monitor's, then opens the door to an interrupt one instruction early. With
 * STI; HLT a wake-up is lost.
 *
 * A guest that is told "no-sti-shadow" repairs that: the instruction behind STI is done here,
 * before the interrupt is looked at, as the processor should have done; where it keeps the
 * interrupt out, the interrupt is made pending once more and STI executed again. Only for the
 * instructions that the cases have behind STI, and FORGIVEN times in a case: where the shadow never
 * works, cases fail as they should.
 */
#include "guest.h"

enum {
	FORGIVEN = 20,
	STI = 0xfb,
	CLI = 0xfa,
	HLT = 0xf4,
	NOP = 0x90,
	UD2 = 0x0f, /* its first byte */
};

extern u32 boot_info;

static bool begins_with(const char *text, const char *word)
{
	for (; *word; word++, text++)
		if (*text != *word)
			return false;
	return !*text || *text == ' ';
}

bool told(const char *word)
{
	/* PVH, struct hvm_start_info */
	const char *text = (const char *)*(const u64 *)(u64)(boot_info + 24);

	for (bool at_word = true; *text; at_word = *text++ == ' ')
		if (at_word && begins_with(text, word))
			return true;
	return false;
}

bool shadow_repair(struct state *s, bool of_case)
{
	const u8 *code = (const u8 *)s->rip;

	if (s->vector < VEC_PIC || s->vector == VEC_DONE || !(s->rflags & RFLAGS_IF))
		return false;
	if (s->cs != KCODE64 && s->cs != KCODE32 && s->cs != UCODE64)
		return false;
	if (code[-1] != STI)
		return false;
	if (*code != HLT && (!of_case || (*code != NOP && *code != CLI && *code != UD2)))
		return false;
	if (!told("no-sti-shadow") || !excuse("an interrupt came in STI's shadow", FORGIVEN))
		return false;
	if (*code == HLT || *code == NOP) {
		s->rip++;
		return false;
	}
	apic_write(APIC_EOI, 0);
	send_self((u8)s->vector);
	s->rip--;
	s->rflags &= ~RFLAGS_IF;
	return true;
}
