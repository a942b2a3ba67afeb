/*
 * A guest that means harm: queues, configuration space, ports, registers and code that no driver
 * would ever set up so. Whatever it does, the machine must go on as if nothing had happened: after
 * each case the disk still answers a plain read.
 */
#include "guest.h"
#include "pci.h"

enum {
	QUEUE_SIZE = 16,
	SECTOR = 512,
	DESC_NEXT = 1,
	DESC_WRITE = 2,
	DESC_INDIRECT = 4,
	FEATURE_INDIRECT = 28,
	FEATURE_EVENT_INDEX = 29,
};

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};

/* One queue in one page: descriptors, available ring, used ring. */
struct queue {
	struct descriptor desc[QUEUE_SIZE];
	struct {
		u16 flags, index, ring[QUEUE_SIZE], used_event;
	} avail;
	u8 fill[512];
	struct {
		u16 flags, index;
		struct {
			u32 id, length;
		} ring[QUEUE_SIZE];
		u16 avail_event;
	} used;
};

static volatile struct queue queue __attribute__((aligned(4096)));
static struct {
	u32 type, reserved;
	u64 sector;
} header __attribute__((aligned(16)));
static volatile u8 data[SECTOR];
static volatile u8 status;
static u64 seed;

static u64 random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void clear_queue(void)
{
	for (u32 i = 0; i < sizeof(queue); i++)
		((volatile u8 *)&queue)[i] = 0;
}

static void set_queue(struct virtio *v, u16 number, u64 desc, u64 avail, u64 used, u16 size)
{
	put16(v->common + VIRTIO_QUEUE_SELECT, number);
	put16(v->common + VIRTIO_QUEUE_SIZE, size);
	put64(v->common + VIRTIO_QUEUE_DESC, desc);
	put64(v->common + VIRTIO_QUEUE_DRIVER, avail);
	put64(v->common + VIRTIO_QUEUE_DEVICE, used);
	put16(v->common + VIRTIO_QUEUE_ENABLE, 1);
}

static void start_queue(struct virtio *v, u16 number, u64 features)
{
	clear_queue();
	virtio_start(v, features);
	set_queue(v, number, (u64)queue.desc, (u64)&queue.avail, (u64)&queue.used, QUEUE_SIZE);
	v->common[VIRTIO_STATUS] = 15;
}

static void notify(struct virtio *v, u16 number)
{
	put16(v->notify + number * v->notify_multiplier, number);
}

static void wait_a_moment(void)
{
	u64 start = rdtsc();

	while (rdtsc() - start < 3000000)
		pause();
}

static void set_desc(u32 i, u64 address, u32 length, u16 flags, u16 next)
{
	queue.desc[i].address = address;
	queue.desc[i].length = length;
	queue.desc[i].flags = flags;
	queue.desc[i].next = next;
}

/* Read the disk's first sector, which the test filled with 0x5a. */
static void check_disk(int line)
{
	struct virtio v;

	if (!virtio_find(VIRTIO_BLOCK, &v)) {
		check(false, "line %d: the disk is gone", line);
		return;
	}
	start_queue(&v, 0, 0);
	header.type = 0;
	header.sector = 0;
	status = 0xff;
	memset((void *)data, 0, SECTOR);
	set_desc(0, (u64)&header, 16, DESC_NEXT, 1);
	set_desc(1, (u64)data, SECTOR, DESC_NEXT | DESC_WRITE, 2);
	set_desc(2, (u64)&status, 1, DESC_WRITE, 0);
	queue.avail.ring[0] = 0;
	barrier();
	queue.avail.index = 1;
	notify(&v, 0);
	for (u32 i = 0; i < 100000 && !queue.used.index; i++)
		wait_a_moment();
	check(queue.used.index == 1 && status == 0 && data[0] == 0x5a && data[511] == 0x5a,
	      "line %d: used %d status %d data 0x%x", line, (int)queue.used.index, (int)status,
	      data[0]);
	v.common[VIRTIO_STATUS] = 0;
}

static const u32 types[] = {VIRTIO_BLOCK, VIRTIO_NET, VIRTIO_RNG, VIRTIO_CONSOLE};

/* Run @spoil on each queue of each device, in a running ring that it may fill as it likes. */
static void on_each_queue(void (*spoil)(struct virtio *v, u16 number), u64 features)
{
	for (u32 i = 0; i < ARRAY_SIZE(types); i++) {
		struct virtio v;
		u16 queues;

		if (!virtio_find(types[i], &v))
			continue;
		queues = get16(v.common + VIRTIO_NUM_QUEUES);
		for (u16 number = 0; number < queues && number < 4; number++) {
			start_queue(&v, number, features);
			spoil(&v, number);
			notify(&v, number);
			wait_a_moment();
			v.common[VIRTIO_STATUS] = 0;
		}
	}
	check_disk(__LINE__);
}

static void plain_read(void)
{
	check_disk(__LINE__);
}

static void spoil_index(struct virtio *v, u16 number)
{
	static const u16 indices[] = {17, 1000, 32767, 32768, 65535};

	for (u32 i = 0; i < ARRAY_SIZE(indices); i++) {
		queue.avail.index = indices[i];
		notify(v, number);
	}
	for (u32 i = 0; i < QUEUE_SIZE; i++)
		queue.avail.ring[i] = (u16)random();
	queue.avail.index = 16;
}

static void wild_index(void)
{
	on_each_queue(spoil_index, 0);
	on_each_queue(spoil_index, 1ull << FEATURE_EVENT_INDEX);
}

static void offer_all(void)
{
	for (u32 i = 0; i < QUEUE_SIZE; i++)
		queue.avail.ring[i] = (u16)i;
	barrier();
	queue.avail.index = QUEUE_SIZE;
}

static void spoil_loop(struct virtio *v, u16 number)
{
	(void)v;
	(void)number;
	for (u32 i = 0; i < QUEUE_SIZE; i++)
		set_desc(i, (u64)data, 16, DESC_NEXT | (i & 1 ? DESC_WRITE : 0),
			 (u16)(i < 8 ? i : (i + 1) % QUEUE_SIZE));
	offer_all();
}

static void spoil_next(struct virtio *v, u16 number)
{
	(void)v;
	(void)number;
	for (u32 i = 0; i < QUEUE_SIZE; i++)
		set_desc(i, (u64)data, 16, DESC_NEXT, (u16)(QUEUE_SIZE + i * 4000));
	offer_all();
}

static void descriptor_loops(void)
{
	on_each_queue(spoil_loop, 0);
	on_each_queue(spoil_next, 0);
}

static const u64 bad_addresses[] = {
	~0ull,      0xfffffffffffff000, 0xfee00000, 0xfec00000, 0x7fffffffffffffff,
	0xc8000000, 0x4000000 - 8,      0xa0000,    0xffffffff, 0x100000000,
	0xcf8,
};
static const u32 bad_lengths[] = {0, 1, 15, 0x7fffffff, 0x80000000, 0xffffffff};

static void spoil_buffers(struct virtio *v, u16 number)
{
	for (u32 a = 0; a < ARRAY_SIZE(bad_addresses); a++) {
		for (u32 i = 0; i < QUEUE_SIZE; i += 2) {
			u32 length = bad_lengths[(i / 2 + a) % ARRAY_SIZE(bad_lengths)];

			set_desc(i, a & 1 ? (u64)&header : bad_addresses[a], a & 1 ? 16 : length,
				 DESC_NEXT | (i & 4 ? DESC_WRITE : 0), (u16)(i + 1));
			set_desc(i + 1, bad_addresses[a], length, i & 2 ? DESC_WRITE : 0, 0);
		}
		for (u32 i = 0; i < QUEUE_SIZE; i++)
			queue.avail.ring[i] = (u16)(i & ~1u);
		barrier();
		queue.avail.index = (u16)(queue.avail.index + QUEUE_SIZE);
		notify(v, number);
		wait_a_moment();
	}
}

static void wild_buffers(void)
{
	on_each_queue(spoil_buffers, 0);
}

static struct descriptor table[64] __attribute__((aligned(16)));

static void spoil_indirect(struct virtio *v, u16 number)
{
	(void)v;
	(void)number;
	for (u32 i = 0; i < ARRAY_SIZE(table); i++)
		table[i] = (struct descriptor){(u64)table, 16, DESC_NEXT | DESC_INDIRECT,
					       (u16)(i * 3)};
	table[0] = (struct descriptor){(u64)data, 16, DESC_NEXT, 0};
	set_desc(0, (u64)table, sizeof(table), DESC_INDIRECT, 0); /* a loop within */
	set_desc(1, (u64)&table[1], 32, DESC_INDIRECT, 0);        /* nested */
	set_desc(2, (u64)table, 17, DESC_INDIRECT, 0);            /* not a multiple of 16 */
	set_desc(3, (u64)table, 0, DESC_INDIRECT, 0);
	set_desc(4, (u64)table, 0xfffffff0, DESC_INDIRECT, 0);
	set_desc(5, (u64)table, 64, DESC_INDIRECT | DESC_NEXT, 6); /* must not be both */
	set_desc(6, 0xfee00000, 64, DESC_INDIRECT, 0);
	set_desc(7, ~0ull - 31, 64, DESC_INDIRECT, 0);
	set_desc(8, (u64)table + 1, 64, DESC_INDIRECT, 0);
	set_desc(9, (u64)table, 64, DESC_INDIRECT | DESC_WRITE, 0);
	set_desc(10, (u64)queue.desc, sizeof(queue.desc), DESC_INDIRECT, 0); /* itself */
	offer_all();
}

static void wild_indirect(void)
{
	on_each_queue(spoil_indirect, 1ull << FEATURE_INDIRECT);
	on_each_queue(spoil_indirect, 0);
}

/* Rings in places where no ring can be. */
static void wild_rings(void)
{
	for (u32 i = 0; i < ARRAY_SIZE(types); i++) {
		struct virtio v;

		if (!virtio_find(types[i], &v))
			continue;
		for (u32 a = 0; a < 3 * ARRAY_SIZE(bad_addresses); a++) {
			u64 bad = bad_addresses[a / 3], good = (u64)&queue;

			clear_queue();
			virtio_start(&v, 0);
			set_queue(&v, 0, a % 3 == 0 ? bad : good, a % 3 == 1 ? bad : good + 1024,
				  a % 3 == 2 ? bad : good + 2048, QUEUE_SIZE);
			v.common[VIRTIO_STATUS] = 15;
			queue.avail.index = 3;
			notify(&v, 0);
			wait_a_moment();
		}
		/* Overlapping and unaligned. */
		virtio_start(&v, 0);
		set_queue(&v, 0, (u64)&queue, (u64)&queue, (u64)&queue, QUEUE_SIZE);
		v.common[VIRTIO_STATUS] = 15;
		notify(&v, 0);
		virtio_start(&v, 0);
		set_queue(&v, 0, (u64)&queue + 1, (u64)&queue + 3, (u64)&queue + 5, QUEUE_SIZE);
		v.common[VIRTIO_STATUS] = 15;
		notify(&v, 0);
		v.common[VIRTIO_STATUS] = 0;
	}
	check_disk(__LINE__);
}

/* The common structure, written without order or sense. */
static void wild_registers(void)
{
	static const u16 sizes[] = {0, 3, 17, 0x8000, 0xffff};

	for (u32 i = 0; i < ARRAY_SIZE(types); i++) {
		struct virtio v;

		if (!virtio_find(types[i], &v))
			continue;
		for (u32 k = 0; k < ARRAY_SIZE(sizes); k++) {
			virtio_start(&v, ~0ull);
			set_queue(&v, 0, (u64)queue.desc, (u64)&queue.avail, (u64)&queue.used,
				  sizes[k]);
			v.common[VIRTIO_STATUS] = 15;
			notify(&v, 0);
			set_queue(&v, 0xffff, (u64)queue.desc, (u64)&queue.avail, (u64)&queue.used,
				  16);
			notify(&v, 100);
			put16(v.notify, 0xffff);
		}
		for (u32 k = 0; k < 3000; k++) {
			u32 at = (u32)(random() % 64);

			switch (random() & 3) {
			case 0: v.common[at] = (u8)random(); break;
			case 1: put16(v.common + (at & ~1u), (u16)random()); break;
			case 2: put32(v.common + (at & ~3u), (u32)random()); break;
			default: (void)*(volatile u64 *)(v.common + (at & ~7u)); break;
			}
			if (k % 16 == 0)
				put16(v.notify + (random() & 0xff) * 2, (u16)random());
			if (v.config && k % 16 == 8)
				v.config[random() & 0xff] = (u8)random();
		}
		v.common[VIRTIO_STATUS] = 0;
	}
	check_disk(__LINE__);
}

/* Requests that the ring carries well, but that make no sense to a disk. */
static void wild_requests(void)
{
	static const u32 requests[] = {0, 1, 4, 8, 11, 13, 2, 0x80000000, 0xffffffff};
	static const u64 sectors[] = {0, 1ull << 63, ~0ull, 0x7fffffffffffff, 1 << 30};
	struct virtio v;

	if (!virtio_find(VIRTIO_BLOCK, &v)) {
		skip("no disk");
		return;
	}
	for (u32 r = 0; r < ARRAY_SIZE(requests); r++) {
		/* A write or discard of the first sector would be obeyed. */
		for (u32 s = requests[r] == 0 || requests[r] == 4 || requests[r] == 8 ? 0 : 1;
		     s < ARRAY_SIZE(sectors); s++) {
			start_queue(&v, 0, 0);
			for (u32 i = 0; i < SECTOR; i++)
				data[i] = 0xff;
			header.type = requests[r];
			header.sector = sectors[s];
			set_desc(0, (u64)&header, 16, DESC_NEXT, 1);
			set_desc(1, (u64)data, SECTOR, DESC_NEXT | (s & 1 ? DESC_WRITE : 0), 2);
			set_desc(2, (u64)&status, 1, DESC_WRITE, 0);
			queue.avail.index = 1;
			notify(&v, 0);
			wait_a_moment();
		}
	}
	check_disk(__LINE__);
}

/* Configuration space written at random: BARs over RAM, over each other, over the interrupt chips.
 */
static void wild_configuration(void)
{
	static const u32 places[] = {0,          0x100000,   0xfee00000, 0xfec00000,
				     0xe0000000, 0xfffff000, 0xc8000000};
	static u32 saved[32][16];

	for (u32 d = 0; d < 32; d++)
		for (u32 i = 0; i < 16; i++)
			saved[d][i] = pci_read(d, 4 * i);
	for (u32 i = 0; i < 4000; i++) {
		u32 device = (u32)(random() % 12), offset = (u32)(random() & 0xfc);

		if (offset >= PCI_BAR0 && offset < 0x28)
			pci_write(device, offset, places[random() % ARRAY_SIZE(places)]);
		else
			pci_write(device, offset, (u32)random());
		(void)pci_read(device, offset);
		outl(0xcf8, (u32)random());
		(void)inb((u16)(0xcfc + (random() & 3)));
		(void)*(volatile u32 *)(0xe0000000 + (random() & 0xffffc));
	}
	for (u32 d = 0; d < 32; d++)
		for (u32 i = 0; i < 16; i++)
			if (saved[d][0] != 0xffffffff)
				pci_write(d, 4 * i, saved[d][i]);
	check_disk(__LINE__);
}

static bool is_deadly(u32 port)
{
	/* What resets, powers off, ends the test, or is its own report. */
	return port == 0x64 || port == 0x92 || port == 0xcf9 || (port >= 0x3f8 && port <= 0x3ff) ||
	       (port >= 0x501 && port <= 0x507) || (port >= 0x600 && port < 0x640) ||
	       port == 0xb2 || port == 0x60;
}

static void wild_ports(void)
{
	for (u32 port = 0; port < 0x10000; port++) {
		if (is_deadly(port) || is_deadly(port + 1) || is_deadly(port + 2) ||
		    is_deadly(port + 3))
			continue;
		(void)inb((u16)port);
		outb((u16)port, (u8)random());
		outl((u16)port, (u32)random());
		(void)inl((u16)port);
	}
	for (u32 i = 0; i < 20000; i++) {
		static const u16 chips[] = {0x20, 0x21, 0xa0, 0xa1,  0x40,  0x41,  0x42, 0x43,
					    0x61, 0x70, 0x71, 0x4d0, 0x4d1, 0x510, 0x511};

		outb(chips[random() % ARRAY_SIZE(chips)], (u8)random());
		(void)inb(chips[random() % ARRAY_SIZE(chips)]);
	}
	environment_reset();
	check_disk(__LINE__);
}

/* The interrupt chips' registers, and memory where nothing is. */
static void wild_memory(void)
{
	for (u32 i = 0; i < 20000; i++) {
		u64 base = i & 1 ? 0xfee00000 : 0xfec00000;
		volatile u8 *at = (volatile u8 *)(base + (random() & 0xfff));

		/* INIT and SIPI to this processor would be obeyed. */
		if (i & 1 && ((u64)at & 0xff0) >= 0x300 && ((u64)at & 0xff0) <= 0x310)
			continue;
		switch (random() & 3) {
		case 0: *(volatile u32 *)((u64)at & ~15ull) = (u32)random(); break;
		case 1: *at = (u8)random(); break;
		case 2: (void)*(volatile u64 *)at; break;
		default: *(volatile u64 *)at = random(); break;
		}
	}
	for (u64 at = 0xd0000000; at < 0xe0000000; at += 0x1234567)
		*(volatile u32 *)at = *(volatile u32 *)(at + 2);
	environment_reset();
	check_disk(__LINE__);
}

CODE(write_msr, "wrmsr");
CODE(read_msr, "rdmsr");

static void wild_msrs(void)
{
	static const u32 bases[] = {0,          0x1000,     0x40000000, 0x4b564d00,
				    0xc0000000, 0xc0010000, 0x800};
	u64 apic_base = rdmsr(MSR_APIC_BASE), pat = rdmsr(MSR_PAT);

	for (u32 i = 0; i < 30000; i++) {
		u32 index = bases[random() % ARRAY_SIZE(bases)] + (u32)(random() & 0x3ff);
		struct state s;

		/* Paging and the local APIC's address and mode stay, or nothing else works either.
		 */
		if (index == MSR_EFER || index == MSR_APIC_BASE ||
		    (index >= 0x800 && index < 0x900) ||
		    (index >= 0x4b564d00 && index < 0x4b564e00))
			continue;
		s = state_for(KERNEL64, random() & 1 ? write_msr : read_msr);
		s.rcx = index;
		s.rax = (u32)random();
		s.rdx = (u32)random();
		exec(&s);
		check(s.vector == VEC_DONE || s.vector == VEC_GP, "MSR 0x%x: vector %d", index,
		      (int)s.vector);
	}
	wrmsr(MSR_PAT, pat);
	wrmsr(MSR_APIC_BASE, apic_base);
	environment_reset();
	check_disk(__LINE__);
}

/* Paravirtual clock pages where no memory is. */
static void wild_clock_page(void)
{
	static const u32 msrs[] = {0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03,
				   0x4b564d04, 0x11,       0x12};

	for (u32 i = 0; i < ARRAY_SIZE(msrs); i++) {
		for (u32 a = 0; a < ARRAY_SIZE(bad_addresses); a++) {
			struct state s = state_for(KERNEL64, write_msr);

			s.rcx = msrs[i];
			s.rax = (u32)bad_addresses[a] | 1;
			s.rdx = bad_addresses[a] >> 32;
			exec(&s);
			wait_a_moment();
			s = state_for(KERNEL64, write_msr);
			s.rcx = msrs[i];
			exec(&s);
		}
	}
	check_disk(__LINE__);
}

/* Code in device memory and where nothing is; stacks and tables there. */
static void foreign_code(void)
{
	static const u64 places[] = {0xfee00000, 0xfec00000, 0xd0000000, 0xe0000000, 0xfffff000};

	for (u32 i = 0; i < ARRAY_SIZE(places); i++) {
		struct state s = state_for(KERNEL64, NULL);

		s.rip = places[i];
		s.rflags |= RFLAGS_IF;
		apic_write(APIC_TIMER_DIVIDE, 0xb);
		apic_write(APIC_LVT_TIMER, VEC_TIMER);
		apic_write(APIC_TIMER_COUNT, 1000000);
		exec(&s); /* runs whatever it reads there, until it faults or the timer hits */
		environment_reset();
		s = state_for(KERNEL64, NULL);
		page_map(TEST_AREA, 1ull << 36, PTE_P | PTE_W | PTE_U); /* beyond all memory */
		s.rip = TEST_AREA;
		exec(&s);
		environment_reset();
	}
	check_disk(__LINE__);
}

CODE(use_stack,
     "push %rax; pop %rbx; call 1f; 1: pop %rcx; enter $32, $2; leave; pushfq; popfq; fxsave "
     "(%rdi);"
     "lock incl (%rdi); cmpxchg16b (%rdi); xsave (%rdi); rep movsb; sgdt (%rdi); fnstenv (%rdi)");

static void foreign_data(void)
{
	static const u64 places[] = {0xfee00000, 0xfec00100, 0xd0000000, 0xe0000000, 0xfffff000};

	for (u32 i = 0; i < ARRAY_SIZE(places); i++) {
		struct state s = state_for(KERNEL64, use_stack);

		write_cr4(read_cr4() | (cpuid(1, 0).ecx & BIT(26) ? CR4_OSXSAVE : 0));
		s.rsp = places[i] + 0x800;
		s.rdi = places[i] + 0x200;
		s.rsi = places[i];
		s.rcx = 16;
		s.rax = 7;
		exec(&s);
		environment_reset();
	}
	check_disk(__LINE__);
}

/* Bytes without meaning as code in ring 3, in every width, single-stepped at times. */
static void garbage(void)
{
	static u8 code[256];

	for (u32 round = 0; round < 6000; round++) {
		struct state s;

		for (u32 i = 0; i < sizeof(code); i++)
			code[i] = (u8)(random() >> 24);
		s = state_for((enum exec_mode)(USER64 + round % 3), code);
		s.rax = random();
		s.rbx = user(data);
		s.rcx = random() & 0xffff;
		s.rsi = s.rdi = user(user_stack + 4096);
		s.rflags |= RFLAGS_IF | (round % 7 == 0 ? RFLAGS_TF : 0);
		apic_write(APIC_TIMER_DIVIDE, 0xb);
		apic_write(APIC_LVT_TIMER, VEC_TIMER);
		apic_write(APIC_TIMER_COUNT, 200000);
		exec(&s);
		/* It may have written all over memory through the alias: work with a fresh stack.
		 */
		if (round % 64 == 0)
			environment_reset();
		apic_write(APIC_EOI, 0);
		__asm__ volatile("fninit");
	}
	environment_reset();
}

const struct test tests[] = {
	{"A plain read", "virtio 1.1, 5.2.6", plain_read, NULL},
	{"Wild ring indices", "virtio 1.1, 2.6.6", wild_index, NULL},
	{"Descriptor loops", "virtio 1.1, 2.6.5", descriptor_loops, NULL},
	{"Buffers that are not memory", "virtio 1.1, 2.6.5", wild_buffers, NULL},
	{"Indirect tables", "virtio 1.1, 2.6.5.3", wild_indirect, NULL},
	{"Rings that are not memory", "virtio 1.1, 4.1.4.3", wild_rings, NULL},
	{"Device registers at random", "virtio 1.1, 4.1.4.3", wild_registers, NULL},
	{"Disk requests without sense", "virtio 1.1, 5.2.6", wild_requests, NULL},
	{"Configuration space at random", "PCI 3.0, 6.2.5", wild_configuration, NULL},
	{"Ports at random", "SDM vol. 1, 18", wild_ports, NULL},
	{"Interrupt chips at random", "SDM vol. 3, 10.4", wild_memory, NULL},
	{"MSRs at random", "SDM vol. 2, WRMSR", wild_msrs, NULL},
	{"Clock pages that are not memory", "KVM paravirtual interface", wild_clock_page, NULL},
	{"Code that is not memory", "SDM vol. 3, 11.3", foreign_code, NULL},
	{"Stacks that are not memory", "SDM vol. 3, 11.3", foreign_data, NULL},
	{"Noise as code", "SDM vol. 2", garbage, NULL},
	{NULL},
};
