/* Which instructions may run natively, and have an outcome that can be compared. */
#pragma once

#include "engine/soft/decode.h"

#include <Zydis/Zydis.h>

/* May it be part of a case whose guest runs at CPL 3 (@user) or 0? */
bool filter_accepts(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops,
		    const struct insn *i, bool user);

/* Flags that the manuals leave undefined after an instruction which cannot run natively in 64-bit
 * mode. */
u64 filter_undefined_flags(const struct insn *i);

/* Bytes that do not decode: may the host CPU be asked whether it agrees? */
bool filter_undecodable(const u8 *bytes, u32 bits);
