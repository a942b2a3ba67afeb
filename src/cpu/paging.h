/*
 * The page walk of the x86 architecture (SDM vol. 3, chapter 4): 32-bit, PAE and 4-level paging.
 *
 * A pure function of the control registers, the linear address and the tables, which it reaches
 * through two accessors. It is inline so that a software MMU gets a walk without calls when the
 * accessors are constants: a soft-TLB miss is that walk and little else. No library calls, general
 * registers only.
 *
 * Accessed and dirty flags are set after the access has been found permitted, by compare-exchange
 * on the very value the walk used; when another processor changed an entry in between, the walk
 * starts over. The number of attempts is bounded: past it the access faults as not present, and the
 * guest, which must expect spurious faults on tables it is changing, tries again.
 *
 * PAE page-directory-pointer entries are read on each walk, as AMD processors do with nested paging
 * (APM vol. 2, 15.25.10), instead of being latched when CR3 is loaded.
 */
#pragma once

#include "cpu/x86.h"

enum paging_access {
	PAGING_WRITE = 1 << 0,
	PAGING_FETCH = 1 << 1,
	PAGING_USER =
		1 << 2, /* user-mode access; implicit system accesses are not, whatever the CPL */
	PAGING_AC = 1 << 3, /* RFLAGS.AC is set: SMAP does not apply */
};

/* The registers a walk depends on. */
struct paging_state {
	u64 cr0, cr3, cr4, efer;
	u64 phys_mask; /* bits of a physical address: BIT(MAXPHYADDR) - 1 */
};

/* Physical memory as the walk sees it; @size is 4 or 8, @gpa a multiple of it. */
struct paging_memory {
	/* Where there is no RAM all bits read as one. */
	u64 (*load)(void *opaque, gpa_t gpa, u32 size);
	/* Atomically replace @old by @new; false when the entry no longer holds @old. Stores to
	 * what is not RAM are dropped and succeed. */
	bool (*swap)(void *opaque, gpa_t gpa, u32 size, u64 old, u64 new);
};

struct paging_result {
	gpa_t gpa;
	u32 error;     /* page-fault error code, when the walk failed */
	u8 shift;      /* log2 of the page's size: 12, 21, 22 or 30 */
	bool writable; /* writes at this privilege are permitted and the dirty flag is set */
	bool user;     /* user-mode accesses are permitted */
	bool global;
};

enum { PAGING_ATTEMPTS = 64 };

/* One attempt: the entries used, and what they add up to. */
struct paging_path {
	gpa_t at[4];
	u64 entry[4];
	u32 count;
	u32 entry_size;
	u64 rights; /* AND of RW and US */
	u64 nx;     /* OR of NX */
};

static inline bool paging_is_enabled(const struct paging_state *s)
{
	return s->cr0 & CR0_PG;
}

/* Bits that must be zero in every entry of 8-byte formats. */
static inline u64 paging_reserved(const struct paging_state *s)
{
	/* 4-level paging ignores bits 62:52, PAE paging reserves them. */
	u64 high = s->efer & EFER_LMA ? 0x000ffffffffff000ul : 0x7ffffffffffff000ul;

	return (~s->phys_mask & high) | (s->efer & EFER_NXE ? 0 : PTE_NX);
}

/* PSE-36: bits 20:13 are address bits 39:32 as far as MAXPHYADDR goes, the rest up to 21 is
 * reserved. */
static inline u64 paging_reserved_pse(const struct paging_state *s)
{
	return 0x3fe000ul & ~(((s->phys_mask >> 32) & 0xff) << 13);
}

/* Reserved bits of @entry at @level (1: page table) of an 8-byte format, beyond paging_reserved().
 */
static inline u64 paging_reserved_at(const struct paging_state *s, u32 level, u64 entry)
{
	switch (level) {
	case 4: return PTE_PS;
	case 3:
		if (!(s->efer & EFER_LMA))
			return PTE_NX | 0x1e6ul;
		return entry & PTE_PS ? 0x3fffe000ul : 0;
	case 2: return entry & PTE_PS ? 0x1fe000ul : 0;
	default: return 0;
	}
}

/* Account @entry as used on the path. */
static inline void paging_use(struct paging_path *p, gpa_t at, u64 entry)
{
	p->at[p->count] = at;
	p->entry[p->count++] = entry;
	p->rights &= entry;
	p->nx |= entry & PTE_NX;
}

/* 32-bit paging. True when a page was found; else r->error says why not. */
static inline bool paging_find_32(const struct paging_state *s, u32 gva,
				  const struct paging_memory *mem, void *opaque,
				  struct paging_path *p, struct paging_result *r)
{
	gpa_t at = (s->cr3 & 0xfffff000ul) + (gva >> 22) * 4;
	u64 entry = mem->load(opaque, at, 4);

	p->entry_size = 4;
	r->error = 0;
	if (!(entry & PTE_P))
		return false;
	paging_use(p, at, entry);
	if (entry & PTE_PS && s->cr4 & CR4_PSE) {
		r->error = PF_P | PF_RSVD;
		r->shift = 22;
		r->gpa = (entry & 0xffc00000ul) | (entry & 0x1fe000ul) << 19 | (gva & 0x3fffff);
		return !(entry & paging_reserved_pse(s));
	}
	at = (entry & 0xfffff000ul) + ((gva >> 12) & 0x3ff) * 4;
	entry = mem->load(opaque, at, 4);
	if (!(entry & PTE_P))
		return false;
	paging_use(p, at, entry);
	r->shift = 12;
	r->gpa = (entry & 0xfffff000ul) | (gva & 0xfff);
	return true;
}

/* PAE and 4-level paging. */
static inline bool paging_find_64(const struct paging_state *s, gva_t gva,
				  const struct paging_memory *mem, void *opaque,
				  struct paging_path *p, struct paging_result *r)
{
	const u64 address = s->phys_mask & 0x000ffffffffff000ul, reserved = paging_reserved(s);
	const bool is_long = s->efer & EFER_LMA;
	gpa_t table = is_long ? s->cr3 & address : s->cr3 & 0xffffffe0ul;
	u32 level = is_long ? 4 : 3, shift = is_long ? 39 : 30;

	p->entry_size = 8;
	for (;; level--, shift -= 9) {
		gpa_t at = table + ((gva >> shift) & 0x1ff) * 8;
		u64 entry = mem->load(opaque, at, 8);

		r->error = 0;
		if (!(entry & PTE_P))
			return false;
		r->error = PF_P | PF_RSVD;
		if (entry & (reserved | paging_reserved_at(s, level, entry)))
			return false;
		/* A PAE page-directory-pointer entry has neither rights nor an accessed flag. */
		if (is_long || level < 3)
			paging_use(p, at, entry);
		if (level == 1 || entry & PTE_PS) {
			u64 offset = BIT(shift) - 1;

			r->shift = (u8)shift;
			r->gpa = (entry & address & ~offset) | (gva & offset);
			return true;
		}
		table = entry & address;
	}
}

/* Rights, SDM vol. 3, 4.6. */
static inline bool paging_permits(const struct paging_state *s, u32 access, u64 rights, u64 nx)
{
	if (access & PAGING_USER) {
		if (!(rights & PTE_US))
			return false;
		return access & PAGING_FETCH ? !nx : !(access & PAGING_WRITE) || rights & PTE_RW;
	}
	if (access & PAGING_FETCH)
		return !nx && !(rights & PTE_US && s->cr4 & CR4_SMEP);
	if (rights & PTE_US && s->cr4 & CR4_SMAP && !(access & PAGING_AC))
		return false;
	return !(access & PAGING_WRITE) || rights & PTE_RW || !(s->cr0 & CR0_WP);
}

/* Set accessed flags, and the dirty flag for writes. False when an entry had changed. */
static inline bool paging_mark(const struct paging_memory *mem, void *opaque, struct paging_path *p,
			       bool dirty)
{
	for (u32 n = 0; n < p->count; n++) {
		u64 set = PTE_A | (dirty && n == p->count - 1 ? PTE_D : 0);

		if ((p->entry[n] & set) == set)
			continue;
		if (!mem->swap(opaque, p->at[n], p->entry_size, p->entry[n], p->entry[n] | set))
			return false;
		p->entry[n] |= set;
	}
	return true;
}

/* The bits of the error code that describe the access rather than the outcome. */
static inline u32 paging_error_access(const struct paging_state *s, u32 access)
{
	bool tells_fetch = s->cr4 & CR4_SMEP || (s->cr4 & CR4_PAE && s->efer & EFER_NXE);

	return (access & PAGING_WRITE ? PF_W : 0) | (access & PAGING_USER ? PF_U : 0) |
	       (access & PAGING_FETCH && tells_fetch ? PF_I : 0);
}

/*
 * Translate @gva for @access (PAGING_*). True: *r describes the page. False: #PF with r->error.
 * Outside IA-32e mode only the low 32 bits of @gva count; inside, @gva is canonical.
 */
static inline bool paging_walk(const struct paging_state *s, gva_t gva, u32 access,
			       const struct paging_memory *mem, void *opaque,
			       struct paging_result *r)
{
	for (u32 attempt = 0; attempt < PAGING_ATTEMPTS; attempt++) {
		struct paging_path p = {.rights = PTE_RW | PTE_US};
		bool found = s->cr4 & CR4_PAE ? paging_find_64(s, gva, mem, opaque, &p, r)
					      : paging_find_32(s, (u32)gva, mem, opaque, &p, r);
		u64 leaf;

		if (found && !paging_permits(s, access, p.rights, p.nx)) {
			r->error = PF_P;
			found = false;
		}
		if (!found) {
			r->error |= paging_error_access(s, access);
			return false;
		}
		if (!paging_mark(mem, opaque, &p, access & PAGING_WRITE))
			continue;
		leaf = p.entry[p.count - 1];
		r->error = 0;
		r->user = p.rights & PTE_US;
		r->global = leaf & PTE_G && s->cr4 & CR4_PGE;
		r->writable =
			leaf & PTE_D &&
			paging_permits(s, (access & ~PAGING_FETCH) | PAGING_WRITE, p.rights, 0);
		return true;
	}
	r->error = paging_error_access(s, access);
	return false;
}
