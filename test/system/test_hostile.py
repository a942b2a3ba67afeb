#!/usr/bin/env python3
"""Guests that mean harm: they end or go on as on hardware, and the monitor stays whole."""

import os
import re
import signal
import subprocess
import time

import guest
import suite

# What each word of test/guest/fatal.c leads to under --no-reboot.
TRIPLE_FAULTS = ("triple-fault", "tables-in-device", "tables-nowhere", "idt-in-device", "gdt-in-device",
                 "task-in-device", "nested-interrupts")
ENDLESS = ("spin", "halt", "spin-string", "fault-forever", "double-fault-forever", "rewrite-forever",
           "code-forever", "pages-forever", "output-forever", "timer-storm")
NOISE = tuple(f"noise {seed}" for seed in range(6))
# The guest's 64 MiB, the code cache of 256 MiB (mapped, and so counted, twice) and what describes it.
RESIDENT_LIMIT = 1 << 30


def image(name):
    """A guest built by test/guest."""
    return os.path.join(guest.BUILD, "test/guest", name)


class Hostile(suite.Case):
    def start_fatal(self, words, *arguments):
        argv = [guest.DOPPEL, "run", "--engine", guest.ENGINE, "-m", "64M",
                "--kernel", image("guest-fatal.elf"), "--append", words,
                "--net", "none", *arguments]
        out = open(self.path("out"), "wb")
        self.addCleanup(out.close)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def finish(self, process):
        """Its standard error, once it ended by itself or by SIGTERM; not by a crash."""
        _, text = process.communicate(timeout=20 * guest.PATIENCE)
        text = text.decode(errors="replace")
        self.assertNotIn("internal error", text)
        self.assertGreaterEqual(process.returncode, -signal.SIGTERM)
        self.assertNotIn(process.returncode, (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL,
                                              -signal.SIGBUS, -signal.SIGFPE, -signal.SIGSYS))
        return text

    def resident(self, process):
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) << 10

    def test_devices(self):
        """wild rings, registers, ports, MSRs and code (test/guest/hostile.c)"""
        disk = self.file("disk", b"Z" * (1 << 20))
        argv = [guest.DOPPEL, "run", "--engine", guest.ENGINE, "-m", "64M",
                "--kernel", image("guest-hostile.elf"),
                "--disk", "path=" + disk, "--net", "user", "--virtio-console", "none", "--no-reboot"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=120 * guest.PATIENCE)
        text = done.stdout.decode(errors="replace").replace("\r", "")
        bad = [line for line in text.split("\n") if line.startswith(("not ok", "Bail"))]
        self.assertEqual(bad, [], done.stderr[-2000:])
        self.assertIn("# done", text, done.stderr[-2000:])
        self.assertNotIn(b"internal error", done.stderr)
        # What a guest can make the monitor say is limited.
        self.assertLess(len(done.stderr), 100000)

    def test_triple_faults(self):
        """triple faults end a --no-reboot machine with status 1 and a line"""
        for words in TRIPLE_FAULTS:
            with self.subTest(words):
                process = self.start_fatal(words, "--no-reboot")
                text = self.finish(process)
                self.assertEqual(process.returncode, 1)
                self.assertEqual(text.count("\n"), 1, text)
                self.assertIn("triple fault", text)

    def test_triple_fault_resets(self):
        """without --no-reboot a triple fault resets, time after time"""
        process = self.start_fatal("triple-fault")
        time.sleep(4)
        self.assertIsNone(process.poll())
        self.assertLess(self.resident(process), RESIDENT_LIMIT)
        process.terminate()
        self.finish(process)
        with open(self.path("out"), "rb") as file:
            self.assertGreater(file.read().count(b"triple-fault"), 5)

    def test_reset_storm(self):
        """the same by the reset port"""
        process = self.start_fatal("reset-forever")
        time.sleep(3)
        self.assertIsNone(process.poll())
        process.terminate()
        self.finish(process)

    def test_stack_in_device(self):
        """an exception frame pushed to where no memory is"""
        self.finish(self.start_fatal("stack-in-device", "--no-reboot"))

    def test_endless(self):
        """guests that never end can be ended, and take no more than they may"""
        for words in ENDLESS:
            with self.subTest(words):
                process = self.start_fatal(words, "--no-reboot")
                time.sleep(2)
                self.assertIsNone(process.poll(), "ended early")
                self.assertLess(self.resident(process), RESIDENT_LIMIT)
                before = time.monotonic()
                process.terminate()
                self.finish(process)
                self.assertLess(time.monotonic() - before, 3 * guest.PATIENCE)

    def test_noise(self):
        """noise as code in ring 0"""
        for words in NOISE:
            with self.subTest(words):
                process = self.start_fatal(words, "--no-reboot")
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    process.terminate()
                self.finish(process)

    def test_output_nobody_reads(self):
        """a flood of output into a pipe that nobody reads does not keep the machine from being ended"""
        read, write = os.pipe()
        argv = [guest.DOPPEL, "run", "--engine", guest.ENGINE, "-m", "64M",
                "--kernel", image("guest-fatal.elf"), "--append",
                "output-forever", "--net", "none"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        os.close(write)
        time.sleep(2)
        self.assertLess(self.resident(process), RESIDENT_LIMIT)
        process.terminate()
        self.finish(process)
        os.close(read)


if __name__ == "__main__":
    suite.main()
