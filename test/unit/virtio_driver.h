/*
 * The guest's side of virtio for tests and fuzzers: a machine with RAM, a bus and a PCI host, and a
 * small driver that finds a device in configuration space, negotiates, and runs split queues. It
 * goes through the bus for every register access, like a guest.
 */
#pragma once

#include "bus/pci.h"
#include "device/virtio/virtio.h"
#include "memory/physmap.h"

enum {
	TEST_RAM = 16 * 1024 * 1024, /* at 0 */
	TEST_ROM_BASE = 0x4000000,
	TEST_ROM = 64 * 1024,
	TEST_ECAM = 0x70000000,
	TEST_VECTORS = 16,
};

struct test_machine {
	struct physmap pm;
	struct bus bus;
	struct pci_host pci;
	struct loop *loop;
	pthread_mutex_t lock;
	struct virtio_env env;
	pthread_t thread;
	bool running;          /* the loop has its thread */
	u32 msi[TEST_VECTORS]; /* messages received, by data */
	bool intx[4];
	u64 writes; /* physmap write notifications */
	/* Called for each, too, if a test sets it. */
	void (*on_write)(void *opaque, gpa_t gpa, u64 len);
	void *on_write_opaque;
};

/* loop_start: run the loop on a thread of its own. */
void test_machine_init(struct test_machine *m, bool loop_start);
void test_machine_destroy(struct test_machine *m);

u8 *test_ram(struct test_machine *m, gpa_t gpa);

struct test_queue {
	struct test_machine *m;
	u16 index, size;
	gpa_t desc, avail, used;
	u16 avail_idx, used_seen;
	u16 next_desc; /* descriptors are used round robin */
	gpa_t table;   /* for indirect descriptors, 4 KiB per head */
};

struct test_driver {
	struct test_machine *m;
	struct virtio_device *d;
	u64 bar;      /* of the registers */
	u64 features; /* accepted */
	struct test_queue queue[VIRTIO_QUEUES];
};

struct test_seg {
	gpa_t gpa;
	u32 len;
	bool write;
};

/* Register offsets. */
enum {
	REG_HOST_FEATURE_SELECT = 0x00,
	REG_HOST_FEATURE = 0x04,
	REG_FEATURE_SELECT = 0x08,
	REG_FEATURE = 0x0c,
	REG_CONFIG_VECTOR = 0x10,
	REG_NUM_QUEUES = 0x12,
	REG_STATUS = 0x14,
	REG_GENERATION = 0x15,
	REG_QUEUE_SELECT = 0x16,
	REG_QUEUE_SIZE = 0x18,
	REG_QUEUE_VECTOR = 0x1a,
	REG_QUEUE_ENABLE = 0x1c,
	REG_QUEUE_NOTIFY_OFF = 0x1e,
	REG_QUEUE_DESC = 0x20,
	REG_QUEUE_AVAIL = 0x28,
	REG_QUEUE_USED = 0x30,
	REG_ISR = 0x1000,
	REG_DEVICE = 0x2000,
	REG_NOTIFY = 0x3000,
};

u64 test_read(struct test_driver *t, u64 off, u32 size);
void test_write(struct test_driver *t, u64 off, u32 size, u64 value);
u32 test_config_read(struct test_driver *t, u32 off, u32 size);
void test_config_write(struct test_driver *t, u32 off, u32 size, u32 value);

/* Place the BARs, enable memory and bus mastering, and MSI-X if @msix (vector v sends data v). */
void test_driver_probe(struct test_driver *t, struct test_machine *m, struct virtio_device *d,
		       bool msix);

/* Reset, accept @features of what is offered (VERSION_1 included), up to FEATURES_OK. */
void test_driver_negotiate(struct test_driver *t, u64 features);

/* Set up queue @q with @size entries in RAM of its own; vector q + 1. */
void test_driver_queue(struct test_driver *t, u16 q, u16 size);
void test_driver_ok(struct test_driver *t);

/* All of the above. */
void test_driver_start(struct test_driver *t, struct test_machine *m, struct virtio_device *d,
		       u64 features);

/* Make a chain available; returns its head. Does not ring. */
u16 test_add(struct test_queue *q, const struct test_seg *seg, u32 count, bool indirect);
void test_kick(struct test_driver *t, u16 q);

/* True when a chain came back; waits up to a few seconds when the loop runs. */
bool test_used(struct test_queue *q, u32 *id, u32 *len);

/* Send one chain and wait for it; returns the used length. Asserts that it comes back. */
u32 test_transfer(struct test_driver *t, u16 q, const struct test_seg *seg, u32 count,
		  bool indirect);
