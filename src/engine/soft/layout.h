/* Offsets of struct soft_cpu members used by dispatch.S; checked by soft.c. */
#pragma once

#define OFF_R        0
#define OFF_RIP      128
#define OFF_FLAGS    136
#define OFF_LINK     296
#define OFF_HOST_RSP 304
#define OFF_RAS_BASE 312
#define OFF_RAS_RSP  472

/* enum soft_leave */
#define LEAVE_HOST_FAULT_ 6
#define LEAVE_THUNK_      7
#define LEAVE_GO_ON_      8
