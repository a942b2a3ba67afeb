/* What the host offers besides engines: things that decide how fast a machine can be. */
#pragma once

#include "base/types.h"

struct host_offer {
	char vendor[13], model[49];
	bool vmx, svm;   /* the processor, as this system sees it, virtualizes */
	bool hypervisor; /* this system is a guest itself */
	bool avx2, avx512, bmi2;
	bool invariant_tsc;
	int nested_paging;   /* 1 yes, 0 no, -1: no module tells */
	char huge_pages[16]; /* always, madvise, never */
	bool io_uring;
	char io_uring_why[64];
	u64 memory; /* bytes for guests */
	u32 processors;
};

void host_offer_find(struct host_offer *h);
