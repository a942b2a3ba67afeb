#!/usr/bin/env python3
"""Debian's stock kernel to a shell: the console, and every way in which a machine ends."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import termios
import time

import guest
import suite

PROMPT = r"^[^\n]* # $"
QUIET = "quiet doppel.net=off"
WARNINGS = "dmesg -r | grep -E '^<[0-4]>' | sed 's/^/W: /'; true"


def run(command, *arguments, append=QUIET, **options):
    """A command line that boots, runs @command and powers off."""
    return guest.doppel("--net", "none", *arguments, append=f'{append} doppel.cmd="{command}"',
                        **options)


class Shell(suite.Case):
    def boot(self, *arguments, append=QUIET, **options):
        console = self.start(guest.doppel("--net", "none", *arguments, append=append, **options))
        console.expect(PROMPT)
        return console

    def test_power_off(self):
        """a shell; leaving it powers off with status 0"""
        console = self.boot()
        self.assertIn("Linux", console.command("uname -a"))
        self.assertIn("6.", console.command("cat /proc/version"))
        console.command("ls / | grep -q proc")
        console.command("false", status=1)
        console.send("exit\n")
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr(), "")

    def test_job_control(self):
        """Ctrl-C reaches the guest, and jobs can be stopped"""
        console = self.boot()
        console.send("sleep 1000\n")
        time.sleep(0.5)
        console.send("\x03")
        console.expect(PROMPT)
        console.command("echo interrupted")
        console.send("sleep 1000\n")
        time.sleep(0.5)
        console.send("\x1a")
        console.expect("Stopped")
        console.command("kill %1")
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)

    def test_terminal_restored(self):
        """the terminal is as before: power-off, Ctrl-a x, signals"""
        endings = {
            "power-off": (lambda c: c.send("poweroff -f\n"), (0,)),
            "Ctrl-a x": (lambda c: c.send("\x01x"), (0,)),
            "SIGTERM": (lambda c: c.interrupt(signal.SIGTERM), None),
            "SIGHUP": (lambda c: c.interrupt(signal.SIGHUP), None),
            "SIGSEGV": (lambda c: c.interrupt(signal.SIGSEGV), None),
            "SIGABRT": (lambda c: c.interrupt(signal.SIGABRT), None),
        }
        for name, (end, statuses) in endings.items():
            with self.subTest(name):
                argv = guest.doppel("--net", "none", append=QUIET)
                with guest.Console(argv, keep_terminal=True) as console:
                    before = termios.tcgetattr(console.terminal)
                    console.expect(PROMPT)
                    self.assertNotEqual(termios.tcgetattr(console.terminal)[3], before[3])
                    end(console)
                    status = console.wait(20)
                    self.assertEqual(termios.tcgetattr(console.terminal), before)
                    if statuses:
                        self.assertIn(status, statuses)

    def test_escape_keys(self):
        """Ctrl-a a sends Ctrl-a, Ctrl-a h helps"""
        console = self.boot()
        console.send("cat -v >/tmp/keys\n")
        time.sleep(0.3)
        console.send("\x01ax\n\x04")
        self.assertIn("^Ax", console.command("cat -v /tmp/keys"))
        console.send("\x01h")
        console.expect("Ctrl-a x")
        console.send("\x01x")
        console.wait()

    def test_paste(self):
        """text typed faster than a guest reads arrives whole"""
        console = self.boot()
        lines = [f"{i:05d} " + "abcdefghij" * 5 for i in range(150)]
        console.send("stty -echo; cat >/tmp/pasted\n")
        time.sleep(0.5)
        for line in lines:
            console.send(line + "\n")
        console.send("\x04")
        console.send("stty echo\n")
        expected = subprocess.run("md5sum", input=("\n".join(lines) + "\n").encode(), check=True,
                                  stdout=subprocess.PIPE).stdout.split()[0].decode()
        console.command("true")
        self.assertIn(expected, console.command("md5sum </tmp/pasted"))

    def test_much_output(self):
        """a megabyte of output arrives whole"""
        console = self.boot()
        text = console.command("seq 1 150000", 120)
        self.assertEqual(text.split(), [str(i) for i in range(1, 150001)])

    def test_reboot(self):
        """reboot starts again, and again"""
        console = self.boot()
        for _ in range(3):
            console.send("reboot -f\n")
            console.expect("doppel-init: started")
            console.expect(PROMPT)
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)

    def test_no_reboot(self):
        """with --no-reboot a reboot ends the machine"""
        console = self.boot("--no-reboot")
        console.send("reboot -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.text.count("doppel-init: started"), 1)

    def test_panic(self):
        """a panic is told, and reboots as the kernel was asked to"""
        console = self.boot()
        console.send("echo c >/proc/sysrq-trigger\n")
        console.expect("Kernel panic - not syncing: sysrq triggered crash")
        console.expect("doppel-init: started")
        console.expect(PROMPT)
        self.assertEqual(console.stderr(), "doppel: the guest's kernel panicked\n")
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)

    def test_panic_no_reboot(self):
        """with --no-reboot a panic ends the machine with status 1 and a line"""
        console = self.boot("--no-reboot")
        console.send("echo c >/proc/sysrq-trigger\n")
        console.expect("Kernel panic")
        self.assertEqual(console.wait(), 1)
        self.assertEqual(console.stderr(), "doppel: the guest's kernel panicked\n")


class Guest(suite.Case):
    """What the guest finds."""

    def output(self, command, *arguments, timeout=90, **options):
        console = self.start(run(command, *arguments, **options))
        console.expect(r"doppel-init: status 0\n", timeout)
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr(), "")
        return console.text

    def assert_no_warnings(self, text, crowded=False):
        """@text has the output of WARNINGS. @crowded: the host has far fewer processors than the guest."""
        warnings = [line[3:] for line in text.split("\n") if line.startswith("W: ")]
        harmless = re.compile("|".join((
            r"module verification failed",           # the modules come from another build
            r"Warning: unable to open an initial console",
            r"usb: port power management may be unreliable",
        ) + (
            # Its processor had to wait in the middle of the handler, as on any crowded host.
            (r"hrtimer: interrupt took",) if crowded else ()
        )))
        self.assertEqual([w for w in warnings if not harmless.search(w)], [])

    def test_several_processors(self):
        """two, four and sixteen processors come up, work, and leave no warning"""
        work = "(seq 1 20000 | sort -rn | md5sum)"
        expected = hashlib.md5("".join(f"{i}\n" for i in range(20000, 0, -1)).encode()).hexdigest()
        for cpus in (2, 4, 16):
            with self.subTest(cpus):
                text = self.output(
                    "cat /sys/devices/system/cpu/online; dmesg | grep kvm-guest:; i=0;"
                    f"while [ $i -lt {cpus} ]; do {work} & i=$((i+1)); done; wait; " + WARNINGS,
                    "-c", str(cpus), append="quiet", memory="1G", timeout=120)
                self.assertRegex(text, re.compile(rf"^0-{cpus - 1}$", re.M))
                self.assertEqual(text.count(expected), cpus)
                for hint in ("PV spinlocks enabled", "setup PV IPIs", "setup pv remote TLB flush"):
                    self.assertIn(hint, text)
                self.assert_no_warnings(text, crowded=cpus > 2)

    def test_most_processors(self):
        """sixty-four processors come up and work, however few the host has, again and again"""
        for attempt in range(3):
            with self.subTest(attempt):
                text = self.output("cat /sys/devices/system/cpu/online; " + WARNINGS, "-c", "64",
                                   append="quiet", memory="1G", timeout=60)
                self.assertRegex(text, re.compile(r"^0-63$", re.M))
                self.assert_no_warnings(text, crowded=True)

    def test_log_is_clean(self):
        """no warnings or errors in the kernel's log"""
        self.assert_no_warnings(self.output(WARNINGS, append="quiet"))

    def test_memory_sizes(self):
        """memory of many sizes, across the hole below 4 GiB"""
        for size, least in (("96M", 20), ("256M", 170), ("1G", 900), ("3G", 2800), ("5G", 4700)):
            with self.subTest(size):
                text = self.output("grep MemTotal /proc/meminfo", memory=size)
                total = int(re.search(r"MemTotal: +(\d+) kB", text)[1])
                self.assertGreater(total, least * 1024)

    def test_clock(self):
        """the wall clock is right, and seconds take a second"""
        before = time.time()
        text = self.output("date +%s; cut -d' ' -f1 /proc/uptime; sleep 3; cut -d' ' -f1 /proc/uptime;"
                           "date +%s")
        after = time.time()
        numbers = [float(n) for n in re.findall(r"^([\d.]+)$", text, re.M)]
        self.assertLess(before - 2, numbers[0])
        self.assertLess(numbers[3], after + 2)
        self.assertAlmostEqual(numbers[2] - numbers[1], 3, delta=0.5)

    def test_random(self):
        """virtio-rng delivers"""
        text = self.output("cat /sys/class/misc/hw_random/rng_current; "
                           "dd if=/dev/hwrng bs=1024 count=8 2>/dev/null | md5sum; "
                           "dd if=/dev/hwrng bs=1024 count=8 2>/dev/null | md5sum")
        self.assertIn("virtio_rng", text)
        sums = re.findall(r"^([0-9a-f]{32})  -", text, re.M)
        self.assertEqual(len(set(sums)), 2)

    def test_processors(self):
        """the processor is as described"""
        text = self.output("cat /proc/cpuinfo")
        flags = re.search(r"^flags\s*: (.*)$", text, re.M)[1].split()
        for flag in ("fpu", "sse2", "nx", "syscall", "lm", "cx16", "x2apic", "hypervisor", "tsc"):
            self.assertIn(flag, flags)
        for flag in ("vmx", "svm", "pku", "la57"):
            self.assertNotIn(flag, flags)

    def test_processes(self):
        """a thousand processes, pipes, signals"""
        text = self.output("i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done; "
                           "seq 1 50000 | sort -rn | tail -1 | tr 1 7; "
                           "sleep 100 & kill $!; wait $!; echo ended $?", timeout=180)
        self.assertIn("\n7\n", text)
        self.assertIn("ended 143", text)

    def test_virtio_console(self):
        """virtio-console on a Unix socket, both ways"""
        path = self.path("console")
        argv = guest.doppel("--net", "none", "--virtio-console", "unix:" + path, append=QUIET)
        console = self.start(argv)
        console.expect(PROMPT)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20 * guest.PATIENCE)
            peer.connect(path)
            console.command("stty -F /dev/hvc0 raw -echo; echo to the host >/dev/hvc0")
            self.assertIn(b"to the host", peer.recv(100))
            console.send("read -r line </dev/hvc0; echo got-$line\n")
            time.sleep(0.5)
            peer.sendall(b"to-the-guest\n")
            console.expect("got-to-the-guest")
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertFalse(os.path.exists(path))

    def test_console_file(self):
        """the console in a file"""
        path = self.path("log")
        argv = run("echo into the file") + ["--console", "file:" + path]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * guest.PATIENCE)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
        with open(path, "rb") as file:
            self.assertIn(b"into the file", file.read())


if __name__ == "__main__":
    suite.main()
