/* Unit tests of device/chip/lapic*.c; clauses are sections of SDM vol. 3, chapter 11. */
#include "chip_test.h"
#include "cpu/x86.h"
#include "device/chip/lapic.h"

#include <string.h>

enum { CPUS = 40, TSC_HZ = 2000000000, MS = 1000000 };

struct machine {
	struct lapic_set set;
	u32 notified[CPUS], nmi[CPUS], init[CPUS], sipi[CPUS];
	u8 sipi_vector, eoi_vector, intack_vector;
	u32 eois;
};

static void notify(void *opaque, u32 cpu)
{
	struct machine *m = opaque;

	m->notified[cpu]++;
}

static void nmi(void *opaque, u32 cpu)
{
	struct machine *m = opaque;

	m->nmi[cpu]++;
}

static void init(void *opaque, u32 cpu)
{
	struct machine *m = opaque;

	m->init[cpu]++;
}

static void sipi(void *opaque, u32 cpu, u8 vector)
{
	struct machine *m = opaque;

	m->sipi[cpu]++;
	m->sipi_vector = vector;
}

static u64 tsc(void *opaque, u32 cpu)
{
	(void)opaque;
	(void)cpu;
	return host_clock_ns() * 2 + 1000;
}

static void eoi(void *opaque, u8 vector)
{
	struct machine *m = opaque;

	m->eois++;
	m->eoi_vector = vector;
}

static u8 intack(void *opaque)
{
	struct machine *m = opaque;

	return m->intack_vector;
}

static struct machine *machine_new(void)
{
	struct machine *m = test_calloc(1, sizeof(*m));
	const struct lapic_ops ops = {notify, nmi, init, sipi, tsc, eoi, intack, m};

	clock_start(1000000);
	assert_int_equal(lapic_set_init(&m->set, CPUS, &ops, TSC_HZ, NULL, &test_lock, NULL), 0);
	return m;
}

static void machine_free(struct machine *m)
{
	lapic_set_destroy(&m->set);
	test_free(m);
}

static u32 mmio_read(struct lapic *l, u32 off)
{
	return (u32)lapic_mmio_read(l, off, 4);
}

static void mmio_write(struct lapic *l, u32 off, u32 value)
{
	lapic_mmio_write(l, off, 4, value);
}

static void enable(struct machine *m, u32 cpu)
{
	m->set.cpu[cpu].wait_for_sipi = false;
	mmio_write(&m->set.cpu[cpu], 0xf0, 0x1ff);
}

static void to_x2apic(struct lapic *l)
{
	assert_true(lapic_msr_write(l, MSR_APIC_BASE, l->base | APIC_BASE_EXTD));
	assert_true(lapic_msr_write(l, 0x80f, 0x1ff));
}

static struct lapic *enabled_bsp(struct machine *m)
{
	enable(m, 0);
	return &m->set.cpu[0];
}

static u64 msr(struct lapic *l, u32 index)
{
	u64 value = 0xdeadbeef;

	assert_true(lapic_msr_read(l, index, &value));
	return value;
}

static void power_up_state_11_4_7(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = &m->set.cpu[0], *ap = &m->set.cpu[3];

	(void)state;
	assert_int_equal(msr(l, MSR_APIC_BASE), 0xfee00900);
	assert_int_equal(msr(ap, MSR_APIC_BASE), 0xfee00800);
	assert_int_equal(mmio_read(l, 0x20), 0);
	assert_int_equal(mmio_read(ap, 0x20), 0x03000000);
	assert_int_equal(mmio_read(l, 0x30), 0x00050014);
	assert_int_equal(mmio_read(l, 0xf0), 0xff);
	assert_int_equal(mmio_read(l, 0xe0), 0xffffffff);
	assert_int_equal(mmio_read(l, 0x320), 0x10000);
	assert_int_equal(mmio_read(l, 0x350), 0x700); /* virtual wire, as firmware leaves it */
	assert_int_equal(mmio_read(ap, 0x350), 0x10000);
	assert_true(lapic_claims(l, 0xfee00fff));
	assert_false(lapic_claims(l, 0xfee01000));
	machine_free(m);
}

static void msi_is_accepted_by_priority_11_8_3(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	assert_false(lapic_attention(l));
	lapic_deliver_msi(&m->set, 0xfee00000, 0x41);
	assert_int_equal(m->notified[0], 1);
	assert_true(lapic_attention(l));
	lapic_deliver_msi(&m->set, 0xfee00000, 0x52);
	assert_int_equal(lapic_accept(l), 0x52);
	assert_int_equal(mmio_read(l, 0xa0), 0x50);
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	assert_false(lapic_attention(l));
	lapic_deliver_msi(&m->set, 0xfee00000, 0x5f); /* same class: waits */
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x61); /* higher class: nests */
	assert_int_equal(lapic_accept(l), 0x61);
	mmio_write(l, 0xb0, 0);
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	mmio_write(l, 0xb0, 0);
	assert_int_equal(lapic_accept(l), 0x5f);
	mmio_write(l, 0xb0, 0);
	assert_int_equal(lapic_accept(l), 0x41);
	mmio_write(l, 0xb0, 0);
	mmio_write(l, 0xb0, 0); /* one too many */
	assert_int_equal(mmio_read(l, 0xa0), 0);
	assert_int_equal(m->eois, 0); /* all were edges */
	machine_free(m);
}

static void task_priority_holds_interrupts_back(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x80, 0x45);
	assert_int_equal(lapic_get_cr8(l), 4);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x4f);
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	assert_int_equal(mmio_read(l, 0xa0), 0x45);
	lapic_set_cr8(l, 3);
	assert_true(lapic_attention(l));
	assert_int_equal(lapic_highest_pending(l), 0x4f);
	machine_free(m);
}

static void level_interrupts_are_completed_at_the_ioapic(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	lapic_deliver_msi(&m->set, 0xfee00000, 0xc059);
	assert_int_equal(lapic_accept(l), 0x59);
	assert_int_equal(mmio_read(l, 0x1a0), 1u << 0x19);
	mmio_write(l, 0xb0, 0);
	assert_int_equal(m->eois, 1);
	assert_int_equal(m->eoi_vector, 0x59);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x8059); /* de-assert: nothing */
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	machine_free(m);
}

static void illegal_vectors_are_errors_11_5_3(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x370, 0xfe);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x0f);
	assert_int_equal(mmio_read(l, 0x280), 0);
	mmio_write(l, 0x280, 0);
	assert_int_equal(mmio_read(l, 0x280), 0x40);
	assert_int_equal(lapic_accept(l), 0xfe);
	mmio_write(l, 0xb0, 0);
	mmio_write(l, 0x300, 0x40000 | 0x05); /* self IPI */
	mmio_write(l, 0x280, 0);
	assert_int_equal(mmio_read(l, 0x280), 0x20);
	mmio_write(l, 0x3d0, 1);
	mmio_write(l, 0x280, 0);
	assert_int_equal(mmio_read(l, 0x280), 0x80);
	mmio_write(l, 0x370, 0x01); /* an error vector that is an error */
	mmio_write(l, 0x300, 0x40000 | 0x05);
	mmio_write(l, 0x280, 0);
	assert_int_equal(mmio_read(l, 0x280), 0x60);
	machine_free(m);
}

static void software_disable_11_4_7_2(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x320, 0xec);
	mmio_write(l, 0xf0, 0xff);
	assert_int_equal(mmio_read(l, 0x320), 0x100ec);
	mmio_write(l, 0x320, 0xec);
	assert_int_equal(mmio_read(l, 0x320), 0x100ec);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x41);
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x400); /* NMI gets through */
	assert_int_equal(m->nmi[0], 1);
	machine_free(m);
}

static void extint_from_the_8259(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = &m->set.cpu[0];

	(void)state;
	m->intack_vector = 0x30;
	lapic_set_lint0(&m->set, 0, true);
	assert_int_equal(m->notified[0], 1);
	assert_int_equal(lapic_highest_pending(l), LAPIC_EXTINT);
	assert_int_equal(lapic_accept(l), 0x30);
	lapic_set_lint0(&m->set, 0, false);
	assert_false(lapic_attention(l));
	lapic_set_lint0(&m->set, 0, true);
	mmio_write(l, 0xf0, 0x1ff);
	mmio_write(l, 0x350, 0x10700);
	assert_int_equal(lapic_highest_pending(l), LAPIC_VECTOR_NONE);
	assert_true(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00100)); /* APIC off: a direct wire */
	assert_int_equal(lapic_highest_pending(l), LAPIC_EXTINT);
	assert_int_equal(lapic_highest_pending(&m->set.cpu[1]), LAPIC_VECTOR_NONE);
	machine_free(m);
}

static void lint0_as_a_fixed_interrupt(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x350, 0x31); /* Linux's "virtual wire IRQ" fallback */
	lapic_set_lint0(&m->set, 0, true);
	assert_int_equal(lapic_accept(l), 0x31);
	lapic_set_lint0(&m->set, 0, false);
	mmio_write(l, 0x360, 0x400);
	lapic_pulse_lint1(&m->set);
	assert_int_equal(m->nmi[0], 1);
	assert_int_equal(m->nmi[1], 0);
	machine_free(m);
}

static void init_and_sipi_11_4_4(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x310, 5u << 24);
	mmio_write(l, 0x300, 0x0c500); /* INIT, level assert */
	assert_int_equal(m->init[5], 1);
	mmio_write(l, 0x300, 0x08500); /* INIT, level de-assert */
	assert_int_equal(m->init[5], 1);
	mmio_write(l, 0x300, 0x00609);
	assert_int_equal(m->sipi[5], 1);
	assert_int_equal(m->sipi_vector, 9);
	mmio_write(l, 0x300, 0x0060a); /* running already */
	assert_int_equal(m->sipi[5], 1);
	assert_int_equal(m->sipi_vector, 9);
	assert_int_equal(m->init[0] + m->init[4], 0);
	machine_free(m);
}

static void destination_shorthands_11_6_1(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l;

	(void)state;
	for (u32 i = 0; i < CPUS; i++)
		enable(m, i);
	l = &m->set.cpu[2];
	mmio_write(l, 0x300, 0x40041);
	assert_int_equal(lapic_accept(l), 0x41);
	assert_int_equal(m->notified[2], 1);
	mmio_write(l, 0x300, 0xc0042); /* all but self */
	for (u32 i = 0; i < CPUS; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]), i == 2 ? LAPIC_VECTOR_NONE : 0x42);
	mmio_write(l, 0x300, 0x80053); /* all */
	for (u32 i = 0; i < CPUS; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]), 0x53);
	mmio_write(l, 0x310, 0xff000000);
	mmio_write(l, 0x300, 0x00064); /* physical broadcast */
	for (u32 i = 0; i < CPUS; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]), 0x64);
	mmio_write(l, 0x310, 200u << 24); /* nobody */
	mmio_write(l, 0x300, 0x00075);
	machine_free(m);
}

static void logical_destinations_11_6_2(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	for (u32 i = 0; i < 8; i++) {
		enable(m, i);
		mmio_write(&m->set.cpu[i], 0xd0, 1u << (24 + i));
	}
	lapic_deliver_msi(&m->set, 0xfee05004, 0x41); /* flat: CPUs 0 and 2 */
	for (u32 i = 0; i < 8; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]),
				 i == 0 || i == 2 ? 0x41 : LAPIC_VECTOR_NONE);
	for (u32 i = 0; i < 8; i++) {
		mmio_write(&m->set.cpu[i], 0xe0, 0x0fffffff);
		mmio_write(&m->set.cpu[i], 0xd0, i / 4 << 28 | 1u << (24 + i % 4));
	}
	lapic_deliver_msi(&m->set, 0xfee13004, 0x52); /* cluster 1, members 0 and 1 */
	for (u32 i = 0; i < 8; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]),
				 i == 4 || i == 5 ? 0x52 : LAPIC_VECTOR_NONE);
	machine_free(m);
}

static void lowest_priority_goes_round_11_6_2_4(void **state)
{
	struct machine *m = machine_new();
	u32 taken = 0;

	(void)state;
	for (u32 i = 0; i < 4; i++) {
		enable(m, i);
		mmio_write(&m->set.cpu[i], 0xd0, 1u << (24 + i));
	}
	mmio_write(&m->set.cpu[1], 0x80, 0x20); /* busy with something better */
	for (u32 n = 0; n < 3; n++)
		lapic_deliver_msi(&m->set, 0xfee0f00c, 0x141);
	for (u32 i = 0; i < 4; i++)
		taken |= (lapic_accept(&m->set.cpu[i]) == 0x41) << i;
	assert_int_equal(taken, 0xd);
	machine_free(m);
}

static void x2apic_state_changes_11_12_5(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = &m->set.cpu[37];
	u64 value;

	(void)state;
	assert_false(lapic_msr_read(l, 0x802, &value));
	assert_false(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00400)); /* EXTD alone */
	assert_false(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00801)); /* reserved */
	assert_false(lapic_msr_write(l, MSR_APIC_BASE, 0x10000000fee00800));
	to_x2apic(l);
	assert_int_equal(msr(l, 0x802), 37);
	assert_int_equal(msr(l, 0x80d), 0x20020);
	assert_false(lapic_claims(l, 0xfee00000));
	assert_false(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00800)); /* back to xAPIC */
	assert_true(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00000));
	assert_false(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00c00)); /* disabled to x2APIC */
	assert_true(lapic_msr_write(l, MSR_APIC_BASE, 0xfee00800));
	machine_free(m);
}

static void x2apic_registers_11_12_1(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = &m->set.cpu[0];
	u64 value;

	(void)state;
	to_x2apic(l);
	assert_false(lapic_msr_write(l, 0x80b, 1));
	assert_true(lapic_msr_write(l, 0x80b, 0));
	assert_false(lapic_msr_write(l, 0x808, 0x100));
	assert_false(lapic_msr_write(l, 0x828, 1));
	assert_false(lapic_msr_write(l, 0x80d, 1));
	assert_false(lapic_msr_write(l, 0x802, 1));
	assert_false(lapic_msr_write(l, 0x80e, ~0u));
	assert_false(lapic_msr_read(l, 0x80e, &value));
	assert_false(lapic_msr_read(l, 0x831, &value));
	assert_false(lapic_msr_read(l, 0x82f, &value)); /* no CMCI entry */
	assert_false(lapic_msr_read(l, 0x83f, &value));
	assert_false(lapic_msr_read(l, 0x8ff, &value));
	assert_false(lapic_msr_write(l, 0x832, 0x80000));
	assert_true(lapic_msr_write(l, 0x83f, 0x41));
	assert_int_equal(lapic_accept(l), 0x41);
	for (u32 i = 0x800; i <= 0x8ff; i++)
		lapic_msr_read(l, i, &value);
	machine_free(m);
}

static void x2apic_ipis_11_12_9(void **state)
{
	struct machine *m = machine_new();

	(void)state;
	for (u32 i = 0; i < CPUS; i++) {
		m->set.cpu[i].wait_for_sipi = false;
		to_x2apic(&m->set.cpu[i]);
	}
	assert_true(lapic_msr_write(&m->set.cpu[0], 0x830, 33ul << 32 | 0x41));
	assert_int_equal(lapic_accept(&m->set.cpu[33]), 0x41);
	assert_int_equal(msr(&m->set.cpu[0], 0x830), 33ul << 32 | 0x41);
	/* logical: cluster 2, members 1 and 3 */
	assert_true(lapic_msr_write(&m->set.cpu[0], 0x830, 0x2000aul << 32 | 0x852));
	for (u32 i = 0; i < CPUS; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]),
				 i == 33 || i == 35 ? 0x52 : LAPIC_VECTOR_NONE);
	assert_true(lapic_msr_write(&m->set.cpu[0], 0x830, 0xfffffffful << 32 | 0x63));
	for (u32 i = 0; i < CPUS; i++)
		assert_int_equal(lapic_accept(&m->set.cpu[i]), 0x63);
	assert_true(lapic_msr_write(&m->set.cpu[0], 0x830, 7ul << 32 | 0x400));
	assert_int_equal(m->nmi[7], 1);
	machine_free(m);
}

static void timer_one_shot_and_periodic_11_5_4(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);
	u32 fired = 0;

	(void)state;
	mmio_write(l, 0x3e0, 0x3); /* divide by 16 */
	mmio_write(l, 0x320, 0x20040);
	mmio_write(l, 0x380, 62500); /* 1 ms */
	for (u32 i = 0; i < 105; i++) {
		clock_advance(MS / 10);
		if (lapic_accept(l) == 0x40) {
			fired++;
			mmio_write(l, 0xb0, 0);
		}
	}
	assert_int_equal(fired, 10);
	assert_in_range(mmio_read(l, 0x390), 31000, 31500);
	mmio_write(l, 0x320, 0x00040);
	mmio_write(l, 0x3e0, 0xb); /* divide by 1 */
	mmio_write(l, 0x380, 1000);
	assert_int_equal(mmio_read(l, 0x390), 1000);
	clock_advance(10 * MS);
	assert_int_equal(lapic_accept(l), 0x40);
	mmio_write(l, 0xb0, 0);
	clock_advance(10 * MS);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	assert_int_equal(mmio_read(l, 0x390), 0);
	assert_int_equal(clock_timers(), 0);
	machine_free(m);
}

static void timer_masked_or_stopped(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x320, 0x10040);
	mmio_write(l, 0x380, MS);
	clock_advance(2 * MS);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	mmio_write(l, 0x320, 0x40);
	mmio_write(l, 0x380, MS);
	mmio_write(l, 0x380, 0);
	clock_advance(2 * MS);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	machine_free(m);
}

static void tsc_deadline_11_5_4_1(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	assert_true(lapic_msr_write(l, MSR_TSC_DEADLINE, 1)); /* not in this mode: ignored */
	assert_int_equal(msr(l, MSR_TSC_DEADLINE), 0);
	mmio_write(l, 0x320, 0x40040);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 2 * MS); /* 1 ms */
	assert_int_equal(lapic_timer_deadline(l), host_clock_ns() + MS);
	clock_advance(MS - 1);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	clock_advance(1);
	assert_int_equal(lapic_accept(l), 0x40);
	assert_int_equal(msr(l, MSR_TSC_DEADLINE), 0);
	mmio_write(l, 0xb0, 0);
	lapic_msr_write(l, MSR_TSC_DEADLINE, 1); /* long past */
	assert_int_equal(lapic_accept(l), 0x40);
	mmio_write(l, 0xb0, 0);
	lapic_msr_write(l, MSR_TSC_DEADLINE, ~0ul); /* centuries away */
	assert_true(lapic_timer_deadline(l) > BIT(61));
	lapic_msr_write(l, MSR_TSC_DEADLINE, 0);
	assert_int_equal(lapic_timer_deadline(l), ~0ul);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 2 * MS);
	mmio_write(l, 0x320, 0x00040); /* leaving the mode disarms */
	clock_advance(5 * MS);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	machine_free(m);
}

static void moving_the_deadline_needs_no_new_timer(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);
	u64 armed;

	(void)state;
	mmio_write(l, 0x320, 0x40040);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 2 * MS);
	armed = l->armed_ns;
	for (u32 i = 0; i < 100; i++) {
		lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 4 * MS + i);
		assert_int_equal(l->armed_ns, armed);
	}
	clock_advance(MS);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	clock_advance(MS + 100);
	assert_int_equal(lapic_accept(l), 0x40);
	machine_free(m);
}

/* ---- the end of an interrupt in memory: Linux, Documentation/virt/kvm/x86/msr.rst ---- */

static struct lapic *bsp_with_eoi_word(struct machine *m)
{
	struct lapic *l = enabled_bsp(m);

	assert_true(lapic_msr_write(l, MSR_KVM_PV_EOI_EN, 0x5001));
	assert_int_equal(msr(l, MSR_KVM_PV_EOI_EN), 0x5001);
	assert_int_equal(lapic_eoi_word(l), 0x5000);
	return l;
}

static void take(struct machine *m, u8 vector, u32 mode)
{
	lapic_deliver_msi(&m->set, 0xfee00000, vector | mode);
	assert_int_equal(lapic_accept(&m->set.cpu[0]), vector);
}

static void pv_eoi_is_offered_when_nothing_hangs_on_it(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = bsp_with_eoi_word(m);

	(void)state;
	assert_false(lapic_offer_eoi(l)); /* nothing in service */
	take(m, 0x40, 0);
	assert_true(lapic_offer_eoi(l));
	lapic_settle_eoi(l, true);
	assert_int_equal(mmio_read(l, 0x100 + 0x20), 0);
	assert_int_equal(l->eoi_quiet, 1);
	take(m, 0x41, BIT(15) | BIT(14)); /* level: the I/O APIC waits for it */
	assert_false(lapic_offer_eoi(l));
	mmio_write(l, 0xb0, 0);
	assert_int_equal(m->eois, 1);
	assert_int_equal(l->eoi_writes, 1);
	take(m, 0x42, 0);
	lapic_deliver_msi(&m->set, 0xfee00000, 0x43); /* waits for 0x42 to end */
	assert_false(lapic_offer_eoi(l));
	assert_false(lapic_attention(l));
	machine_free(m);
}

static void pv_eoi_draws_attention_to_what_arrives(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = bsp_with_eoi_word(m);

	(void)state;
	take(m, 0x80, 0);
	assert_true(lapic_offer_eoi(l));
	assert_false(lapic_attention(l));
	m->notified[0] = 0;
	lapic_deliver_msi(&m->set, 0xfee00000, 0x40); /* of lower priority than what has ended */
	assert_true(lapic_attention(l));
	assert_int_equal(m->notified[0], 1);
	lapic_settle_eoi(l, true);
	assert_int_equal(lapic_accept(l), 0x40);
	assert_true(lapic_offer_eoi(l));
	lapic_deliver_msi(&m->set, 0xfee00000, 0x30);
	lapic_settle_eoi(l, false); /* has not ended: as if never offered */
	assert_false(lapic_attention(l));
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	mmio_write(l, 0xb0, 0);
	assert_int_equal(lapic_accept(l), 0x30);
	machine_free(m);
}

static void pv_eoi_ends_the_innermost(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = bsp_with_eoi_word(m);

	(void)state;
	take(m, 0x40, 0);
	assert_true(lapic_offer_eoi(l));
	lapic_deliver_msi(&m->set, 0xfee00000, 0x80);
	lapic_settle_eoi(l, false);
	assert_int_equal(lapic_accept(l), 0x80);
	assert_true(lapic_offer_eoi(l));
	lapic_settle_eoi(l, true);
	assert_int_equal(mmio_read(l, 0x140), 0);
	assert_int_equal(mmio_read(l, 0x120), 1);
	machine_free(m);
}

static void pv_eoi_register_and_reset(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = bsp_with_eoi_word(m);

	(void)state;
	assert_false(lapic_msr_write(l, MSR_KVM_PV_EOI_EN, 0x5003));
	assert_false(lapic_msr_write(l, MSR_KVM_PV_EOI_EN, 0x5002));
	assert_int_equal(msr(l, MSR_KVM_PV_EOI_EN), 0x5001);
	assert_true(lapic_msr_write(l, MSR_KVM_PV_EOI_EN, 0x5000));
	take(m, 0x40, 0);
	assert_false(lapic_offer_eoi(l));
	assert_true(lapic_msr_write(l, MSR_KVM_PV_EOI_EN, 0x5001));
	assert_true(lapic_offer_eoi(l));
	lapic_set_reset(&m->set);
	assert_false(l->pv_eoi_offered);
	assert_int_equal(msr(l, MSR_KVM_PV_EOI_EN), 0);
	machine_free(m);
}

/* A machine that stands still has settled; the one that goes on offers anew. */
static void pv_eoi_moves_with_the_state(void **state)
{
	struct machine *m = machine_new(), *n = machine_new();
	struct lapic *l = bsp_with_eoi_word(m);
	struct device_buf form = {0};
	u64 used;

	(void)state;
	take(m, 0x40, 0);
	assert_true(lapic_offer_eoi(l));
	lapic_settle_eoi(l, false);
	assert_int_equal(device_save(&lapic_device_ops, l, &form), 0);
	l = &n->set.cpu[0];
	assert_int_equal(device_load(&lapic_device_ops, l, form.data, form.len, &used, NULL), 0);
	assert_int_equal(lapic_eoi_word(l), 0x5000);
	assert_false(l->pv_eoi_offered);
	assert_true(lapic_offer_eoi(l));
	lapic_settle_eoi(l, true);
	assert_int_equal(mmio_read(l, 0x120), 0);
	device_buf_free(&form);
	machine_free(m);
	machine_free(n);
}

static void a_waking_vcpu_can_poll_its_timer(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x320, 0x40040);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 2 * MS);
	clock_start(host_clock_ns() + MS); /* the event loop was late */
	lapic_timer_poll(l);
	assert_int_equal(lapic_accept(l), 0x40);
	machine_free(m);
}

static void fast_timers_do_not_storm(void **state)
{
	struct machine *m = machine_new();
	struct lapic *l = enabled_bsp(m);

	(void)state;
	mmio_write(l, 0x3e0, 0xb);
	mmio_write(l, 0x320, 0x20040);
	mmio_write(l, 0x380, 1);
	m->notified[0] = 0;
	clock_advance(100 * MS);
	assert_in_range(m->notified[0], 1, 2001);
	machine_free(m);
}

static void random_accesses_and_snapshots(void **state)
{
	struct machine *m = machine_new(), *n = machine_new();
	struct lapic *l;
	u64 value;

	(void)state;
	for (u32 i = 0; i < 300000; i++) {
		u32 r = random32();

		l = &m->set.cpu[r >> 4 & 3];
		switch (r & 7) {
		case 0: lapic_mmio_write(l, r >> 8 & 0xfff, 4, random32()); break;
		case 1: lapic_mmio_read(l, r >> 8 & 0xfff, 4); break;
		case 2: lapic_msr_write(l, 0x800 + (r >> 8 & 0xff), random32()); break;
		case 3: lapic_msr_read(l, 0x800 + (r >> 8 & 0xff), &value); break;
		case 4:
			lapic_deliver_msi(&m->set, 0xfee00000 | (r >> 8 & 0xfffff), random32());
			break;
		case 5: lapic_accept(l); break;
		case 6:
			lapic_msr_write(l, r & 8 ? MSR_APIC_BASE : MSR_TSC_DEADLINE, random32());
			break;
		default: clock_advance(r >> 20); break;
		}
	}
	clock_advance(MS);
	for (u32 i = 0; i < 4; i++)
		check_state(&lapic_device_ops, &m->set.cpu[i], &n->set.cpu[i]);
	check_state(&lapic_set_device_ops, &m->set, &n->set);
	machine_free(m);
	machine_free(n);
}

static void restored_timer_goes_on(void **state)
{
	struct machine *m = machine_new(), *n;
	struct lapic *l = enabled_bsp(m);
	struct device_buf form = {0};
	u64 used;

	(void)state;
	mmio_write(l, 0x320, 0x40040);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc(NULL, 0) + 2 * MS);
	clock_advance(MS / 2);
	assert_int_equal(device_save(&lapic_device_ops, l, &form), 0);
	n = machine_new();
	l = &n->set.cpu[0];
	assert_int_equal(device_load(&lapic_device_ops, l, form.data, form.len, &used, NULL), 0);
	clock_advance(MS / 2 - 1);
	assert_int_equal(lapic_accept(l), LAPIC_VECTOR_NONE);
	clock_advance(1);
	assert_int_equal(lapic_accept(l), 0x40);
	assert_int_equal(
		device_load(&lapic_device_ops, &n->set.cpu[1], form.data, form.len, &used, NULL),
		-22);
	device_buf_free(&form);
	machine_free(m);
	machine_free(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(power_up_state_11_4_7),
		cmocka_unit_test(msi_is_accepted_by_priority_11_8_3),
		cmocka_unit_test(task_priority_holds_interrupts_back),
		cmocka_unit_test(level_interrupts_are_completed_at_the_ioapic),
		cmocka_unit_test(illegal_vectors_are_errors_11_5_3),
		cmocka_unit_test(software_disable_11_4_7_2),
		cmocka_unit_test(extint_from_the_8259),
		cmocka_unit_test(lint0_as_a_fixed_interrupt),
		cmocka_unit_test(init_and_sipi_11_4_4),
		cmocka_unit_test(destination_shorthands_11_6_1),
		cmocka_unit_test(logical_destinations_11_6_2),
		cmocka_unit_test(lowest_priority_goes_round_11_6_2_4),
		cmocka_unit_test(x2apic_state_changes_11_12_5),
		cmocka_unit_test(x2apic_registers_11_12_1),
		cmocka_unit_test(x2apic_ipis_11_12_9),
		cmocka_unit_test(timer_one_shot_and_periodic_11_5_4),
		cmocka_unit_test(timer_masked_or_stopped),
		cmocka_unit_test(tsc_deadline_11_5_4_1),
		cmocka_unit_test(moving_the_deadline_needs_no_new_timer),
		cmocka_unit_test(pv_eoi_is_offered_when_nothing_hangs_on_it),
		cmocka_unit_test(pv_eoi_draws_attention_to_what_arrives),
		cmocka_unit_test(pv_eoi_ends_the_innermost),
		cmocka_unit_test(pv_eoi_register_and_reset),
		cmocka_unit_test(pv_eoi_moves_with_the_state),
		cmocka_unit_test(a_waking_vcpu_can_poll_its_timer),
		cmocka_unit_test(fast_timers_do_not_storm),
		cmocka_unit_test(random_accesses_and_snapshots),
		cmocka_unit_test(restored_timer_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
