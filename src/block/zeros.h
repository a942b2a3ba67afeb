/* A buffer of zeros to write from. */
#pragma once

enum { ZEROS_LEN = 256 * 1024 };

const void *zeros(void);
