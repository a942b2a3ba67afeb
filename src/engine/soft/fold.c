/*
 * Memory accesses of MODE_WINDOW blocks: the folded guest address, reached by gs (see window.h).
 * Nothing is looked up and nothing can fail; what is not mapped there faults in the access itself,
 * which therefore must find guest state as it was before its instruction, but for what fault.c can
 * put right: HOST_SP by block.sp_lag, and borrowed registers.
 *
 * Folding is an AND where flags are dead, else a PEXT and a PDEP. A displacement of less than
 * WINDOW_DISP may be added behind it: what then leaves the window meets its guard. So accesses with
 * the same base register need it once: they form groups as in check.c, but of any extent and
 * without a check.
 */
#include "engine/soft/kernel_window.h"
#include "engine/soft/translation.h"

#include <Zydis/Zydis.h>

/* @dst = @src without the bits that tell windows apart. */
static void emit_fold(const struct translation *t, struct emit *e, u8 dst, u8 src, bool live)
{
	s32 mask = CPU_DISP(e, window_mask);

	if (t->half == HALF_SUPER) {
		emit_pext_cpu(e, dst, src, CPU_DISP(e, kernel_mask));
	} else if (live) {
		emit_pext_cpu(e, dst, src, mask);
		emit_pdep_cpu(e, dst, dst, mask);
	} else if (dst == src) {
		emit_and_cpu(e, dst, mask);
	} else {
		emit_load_cpu(e, dst, mask);
		emit_and(e, dst, src);
	}
}

static bool is_near(s64 disp)
{
	return disp > -WINDOW_DISP && disp < WINDOW_DISP;
}

/* Add the base of FS or GS to the address in @dst. */
static void emit_add_segment(struct translation *t, const struct ea *ea, u8 dst)
{
	struct emit *e = &t->hot;
	s32 base = CPU_DISP(e, seg[0].base) + (s32)sizeof(struct cpu_segment) * ea->seg;
	u8 other = dst == HOST_S1 ? HOST_S2 : HOST_S1;

	if (other == HOST_S2)
		t->loaded = NO_GROUP;
	emit_load_cpu(e, other, base);
	emit_lea(e, 64, dst, dst, other, 1, 0);
}

/* The register with all of the address but its displacement, in @dst or where it is; NO_REG: the
 * address has more parts. */
static u8 emit_base(struct translation *t, const struct ea *ea, u8 dst)
{
	/* Per-processor data, which is not where the code is. */
	const bool is_known = ea->rip_relative && ea->has_address && has_segment_base(ea);
	struct emit *e = &t->hot;

	if (ea->bits != 64 || ea->index != NO_REG || !is_near(is_known ? ea->address : ea->disp))
		return NO_REG;
	if (ea->rip_relative && !has_segment_base(ea)) {
		emit_load_cpu(e, dst, CPU_DISP(e, code_va));
		return dst;
	}
	if (has_segment_base(ea) && ea->base == NO_REG && (!ea->rip_relative || is_known)) {
		emit_load_cpu(e, dst,
			      CPU_DISP(e, seg[0].base) + (s32)sizeof(struct cpu_segment) * ea->seg);
		return dst;
	}
	if (has_segment_base(ea) || ea->base == NO_REG)
		return NO_REG;
	return use_reg(e, ea->base, dst);
}

/* Is the address known, and in the kernel's window? */
static bool find_constant(const struct translation *t, const struct ea *ea, gva_t *gva)
{
	bool plain = ea->base == NO_REG && ea->index == NO_REG && !ea->rip_relative;

	if (t->half != HALF_SUPER || ea->bits != 64 || has_segment_base(ea) ||
	    (!plain && !ea->has_address))
		return false;
	*gva = plain ? (gva_t)ea->disp : (gva_t)(s64)ea->address;
	return *gva >> 63 && soft_canonical(*gva);
}

struct host_mem emit_folded(struct translation *t, u32 k, const struct ea *ea, u8 dst)
{
	struct emit *e = &t->hot;
	s32 disp = (s32)ea->disp;
	gva_t gva;
	u8 src;

	if (dst == HOST_S2 || (ea->index != NO_REG && is_slot(ea->index)))
		t->loaded = NO_GROUP;
	if (find_constant(t, ea, &gva)) {
		emit_mov_imm64(e, dst, KERNEL_WINDOW + (gva & KERNEL_FOLD));
		return (struct host_mem){.base = dst, .index = NO_REG};
	}
	src = emit_base(t, ea, dst);
	if (src == NO_REG) {
		emit_offset(e, ea, dst, ea->bits);
		if (has_segment_base(ea))
			emit_add_segment(t, ea, dst);
		src = dst;
		disp = 0;
	} else if (has_segment_base(ea) && ea->rip_relative)
		disp = ea->address;
	emit_fold(t, e, dst, src, t->live[k]);
	return (struct host_mem){
		.base = dst, .index = NO_REG, .disp = disp, .is_folded = t->half == HALF_USER};
}

bool is_near_group(const struct group *g)
{
	return is_near(g->lo - g->base_off) && is_near(g->hi - g->base_off);
}

void emit_fold_group(struct translation *t, u32 k, u32 n)
{
	struct group *g = &t->group[n];
	struct emit *e = &t->hot;
	u8 src;

	if (g->base == GROUP_RIP) {
		emit_load_cpu(e, HOST_S2, CPU_DISP(e, code_va));
		src = HOST_S2;
	} else {
		src = use_reg(e, g->base, HOST_S2);
	}
	emit_fold(t, e, HOST_S2, src, t->live[k]);
	g->folded_at = g->base_off;
	g->kept = e->p;
	emit_store_cpu(e, CPU_DISP(e, group[0]) + 8 * (s32)n, HOST_S2);
	g->kept_end = e->p;
	t->loaded = (u8)n;
}
