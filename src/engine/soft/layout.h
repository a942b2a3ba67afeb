/* Offsets of struct soft_cpu members used by dispatch.S; checked by soft.c. */
#pragma once

#define OFF_R        0
#define OFF_RIP      128
#define OFF_FLAGS    136
#define OFF_LINK     296
#define OFF_HOST_RSP 304
#define OFF_RAS_BASE 312
#define OFF_RAS_RSP  472

/* For SYSCALL and SYSRET. */
#define OFF_CODE_VA     144
#define OFF_IFLAG       156
#define OFF_DFLAG       157
#define OFF_IRQ_WINDOW  159
#define OFF_SYSFLAGS    160
#define OFF_SPILL       168
#define OFF_BRANCH_SITE 464
#define OFF_KERNEL_MODE 496
#define OFF_USER_MODE   500
#define OFF_CALL_STAR   504
#define OFF_CALL_SEG    512
#define OFF_RAS_BOTTOM  640
#define OFF_SEG_CS      728
#define OFF_STAR        1144
#define OFF_LSTAR       1152
#define OFF_SFMASK      1168
#define OFF_CPL         1488
#define OFF_MODE        1492
#define OFF_SYSCALLS    2576

/* enum soft_leave */
#define LEAVE_HOST_FAULT_ 6
#define LEAVE_THUNK_      7
#define LEAVE_GO_ON_      8

/* enum soft_mode, and translate.h */
#define MODE_USER_        4
#define MODE_WINDOW_      512
#define BRANCH_SITE_NONE_ 0
