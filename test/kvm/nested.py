#!/usr/bin/env python3
"""The kvm engine on a processor that virtualizes: test/kvm/nested.py --build DIR [--smp]

QEMU emulates a processor with SVM. On it runs Debian's kernel with Debian's kvm-amd module, and there the
conformance guests, the engine's own tests and Debian's kernel once more, each under doppel --engine kvm, with
interrupt controllers in user space and with the kernel's; and
Debian at work (test/guest/work.sh) while the kvm and the soft engine take turns at random moments.

What QEMU 7.2's emulation of SVM loses, and how the run gets over it:

- Interrupts of its own. VMRUN and #VMEXIT change the set of requests (interrupt_request) without the lock that the
  thread of QEMU's timers changes it under. A request that is lost so stays pending in the local APIC, but nobody
  looks, until the next one. With the timer's, which Debian sets anew in its handler, everything stands still. So
  the console gets a byte every quarter of a second, whose interrupt makes QEMU look.
- STI's shadow. VMRUN drops it (control.int_state), so that an interrupt may come between STI and the next
  instruction, and with STI; HLT a wake-up be lost. Our own guests are told (test/engine/skips), put it
  right and say so (test/guest/lib/shadow.c). Debian as a guest looks again within four seconds, when the timer of
  its watchdog for soft lockups interrupts HLT on each processor. (A tick that goes on in HLT, nohz=off, would look
  at once, and is too much for a host that is busy with other things.)

With --smp QEMU has two such processors, and other things run, which take longer: the conformance guest about memory
order on four, Debian's kernel on four and on sixteen, and there "make -j4" of a C project on four. (Not engine-smp.elf, which runs on four that share QEMU's
one otherwise: where an interrupt for QEMU's second processor is lost, no byte to the console makes it look: it stood
for minutes in one of twenty runs.) And with two processors Debian's kernel on them, not the one under doppel, has a
triple fault now and then, at which QEMU ends ("-d cpu_reset" says so; in three of twenty runs of sixteen processors).
Nothing that runs in user mode there can be to blame. What had not come to its end is then run once more, and it is said.

The report is one line per case in the Test Anything Protocol. The console's log is kept on failure.
"""

import argparse
import glob
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
spec = importlib.util.spec_from_file_location("run", os.path.join(ROOT, "test/engine/run.py"))
conformance = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conformance)

PLACE = "kvm-nested"
SMP_PLACE = "kvm-nested-smp"
TIMEOUT, SMP_TIMEOUT = 330, 900
ENDLESS = conformance.left_out(PLACE, "the end")
TOLD = conformance.told(PLACE)
SMP_BOOTS = 4
WORK_SECONDS = 8
PROJECT = "12 1"
HEARTBEAT_SECONDS = 0.25
# Guests that run with interrupt controllers in user space only, and why.
USER_ONLY = conformance.left_out(PLACE, "chips=kernel")
# "seq 1 20000 | sort -rn | md5sum"
SORTED = hashlib.md5("".join(f"{n}\n" for n in range(20000, 0, -1)).encode()).hexdigest()

LIBRARIES = re.compile(r"(/\S+) \(0x")

PROLOGUE = """#!/bin/sh
cd /test
stty -echo
cat >/dev/null &
seconds() {
	cut -d ' ' -f 1 /proc/uptime
}
trial() {
	name=$1
	shift
	case $name in $ended) return ;; $only) ;; *) return ;; esac
	echo "@@ begin $name $(seconds)"
	timeout -s KILL "$limit" "$@" </dev/null
	status=$?
	echo "@@ end $name $(seconds) $status"
}
doppel="/test/doppel run --net none --no-reboot --engine kvm"
"""

SCRIPT = PROLOGUE + """\
limit=120
trial check /test/doppel check
trial engine /test/test_engine kvm
trial parts /test/test_parts kvm $told
trial crossing /test/test_crossing
trial vcpus /test/test_vcpus
trial chips /test/test_chips kvm $told
for elf in $guests; do
	for chips in user kernel; do
		case $elf:$chips in $left_out) continue ;; esac
		case $elf:$chips in engine-smp.elf:* | engine-smp_code.elf:user) cpus=4 ;; *) cpus=1 ;; esac
		case $chips in kernel) words="$told lazy-offers" ;; *) words="$told" ;; esac
		trial "$elf:$chips" $doppel,chips=$chips -m 64M -c $cpus --kernel "$elf" --append "$words"
	done
done
limit=150
trial debian $doppel -m 256M --kernel vmlinuz --initrd initramfs \\
	--append 'console=ttyS0 doppel.cmd="cat /proc/cpuinfo; seq 1 20000 | sort -rn | md5sum; dmesg -r | grep ^.[0-4]"'
trial processors $doppel -m 256M -c 2 --doorbells loop --stats --kernel vmlinuz --initrd initramfs \\
	--append 'console=ttyS0 quiet doppel.cmd="grep -c ^processor /proc/cpuinfo; dd if=/dev/hwrng bs=64 count=200 2>/dev/null | wc -c"'
dd if=/dev/zero of=disk bs=64k count=1 2>/dev/null
trial debian:kernel /test/doppel run --net none --engine kvm,chips=kernel -m 256M -c 2 --doorbells loop --stats \\
	--kernel vmlinuz --initrd initramfs --disk path=/test/disk \\
	--append 'console=ttyS0 quiet doppel.cmd="if grep -q rebooted /dev/vda; then echo second life; else
$first_life; echo rebooted >/dev/vda; sync; reboot -f; fi"'
trial moving1 /test/moving kvm,soft 1
trial moving2 /test/moving soft,kvm 2
echo "@@ all done"
limit=120
for elf in $endless; do
	trial "$elf:user" $doppel -m 64M --kernel "$elf"
done
"""

SMP_SCRIPT = PROLOGUE + """\
limit=300
for chips in user kernel; do
	trial "engine-smp_memory.elf:$chips" $doppel,chips=$chips -m 64M -c 4 --kernel engine-smp_memory.elf --append "$told"
	for cpus in 4 16; do
		trial "debian:$chips:$cpus" $doppel,chips=$chips -m 256M -c $cpus --kernel vmlinuz --initrd initramfs \\
			--append 'console=ttyS0 quiet doppel.cmd="grep -c ^processor /proc/cpuinfo; for i in 1 2 3 4; do seq 1 20000 | sort -rn | md5sum & done; wait"'
	done
	trial "project:$chips" $doppel,chips=$chips -m 768M -c 4 --disk path=/dev/vda,readonly=on --kernel vmlinuz --initrd working \
		--append 'console=ttyS0 quiet doppel.cmd="mount -t ext4 -o ro /dev/vda /mnt; mount -t tmpfs tmp /mnt/tmp; mount -t proc proc /mnt/proc; cp /bin/project /mnt/tmp; chroot /mnt sh /tmp/project $project"'
done
echo "@@ all done"
"""

# Of Debian with the kernel's chips, before it reboots.
FIRST_LIFE = ("grep -c ^processor /proc/cpuinfo; dmesg | grep -e PV.IPIs -e PV.spin -e remote.TLB; "
              "seq 1 20000 | sort -rn | md5sum; "
              "dd if=/dev/hwrng bs=64 count=200 2>/dev/null | wc -c; cat /proc/interrupts")

MOVING = """#!/bin/sh
# moving ENGINES CPUS: Debian at work, until it ends; the next engine takes over again and again.
# (Without XSAVE: QEMU does not tell KVM of XSETBV, so the size that CPUID tells is not of XCR0.)
/test/doppel run --engine $1 -c $2 --doorbells loop --net none --no-reboot -m 256M --kernel /test/vmlinuz --initrd /test/working \\
	--append 'console=ttyS0 quiet noxsave doppel.cmd="work $work"' </dev/null &
pid=$!
threads() {
	set -- /proc/$pid/task/*
	echo $#
}
(
	# From the first thread on signals are for it to take.
	while [ $(threads) -lt 2 ]; do usleep 10000; done
	while kill -USR1 $pid; do usleep $((RANDOM * 60)); done
) 2>/dev/null &
mover=$!
wait $pid
status=$?
kill $mover
exit $status
"""


def libraries(program):
    done = subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True)
    return LIBRARIES.findall(done.stdout)


class Trial:
    """One program's output in the log, the status it ended with, and the seconds it took."""

    def __init__(self, begin):
        self.lines = []
        self.begin = begin
        self.status = self.seconds = None

    def end(self, lines, when, status):
        self.lines = lines
        self.seconds = when - self.begin
        self.status = status


def trials(log):
    """Trials by name; one that did not end has no status."""
    found, name, lines = {}, None, []
    for line in log.replace("\r", "").split("\n"):
        match = re.match(r"@@ (begin|end) (\S+) ([\d.]+) ?(\d*)$", line)
        if not match:
            lines.append(line)
        elif match[1] == "begin":
            name, lines = match[2], []
            found[name] = Trial(float(match[3]))
        elif match[2] == name:
            found[name].end(lines, float(match[3]), int(match[4]))
    if name in found and found[name].status is None:
        found[name].lines = lines
    return found


def make_initramfs(build, directory, elves, only, script_text=SCRIPT, ended=()):
    """Debian's kernel as the host of virtual machines, with all they need, in a file of @directory."""
    guest = os.path.join(build, "guest")
    script = os.path.join(directory, "run")
    with open(script, "w", encoding="ascii") as file:
        names = [os.path.basename(elf) for elf in elves]
        script_text = script_text.replace("$only", only).replace("$ended", "|".join(ended) or "-").replace("else\n$first_life", "else " + FIRST_LIFE)
        script_text = script_text.replace("$told", TOLD).replace("$project", PROJECT)
        script_text = script_text.replace("$left_out", "|".join(f"{name}:kernel" for name in USER_ONLY))
        script_text = script_text.replace("$guests", " ".join(n for n in names if n not in ENDLESS))
        file.write(script_text.replace("$endless", " ".join(n for n in names if n in ENDLESS)))
    os.chmod(script, 0o755)
    moving = os.path.join(directory, "moving")
    with open(moving, "w", encoding="ascii") as file:
        file.write(MOVING.replace("$work", str(WORK_SECONDS)))
    os.chmod(moving, 0o755)
    working = os.path.join(directory, "working")
    subprocess.run([os.path.join(ROOT, "tools/mkinitramfs"), guest, working, "--add",
                    os.path.join(ROOT, "test/guest/work.sh") + "=/bin/work", "--add",
                    os.path.join(ROOT, "test/guest/project.sh") + "=/bin/project"], check=True)
    programs = {"doppel": os.path.join(build, "doppel")}
    for name in ("test_engine", "test_crossing", "test_vcpus", "test_chips", "test_parts"):
        programs[name] = os.path.join(build, "test/unit", name)
    add = [f"{script}=/test/run", f"{guest}/vmlinuz=/test/vmlinuz",
           f"{guest}/initramfs=/test/initramfs", f"{moving}=/test/moving", f"{working}=/test/working"]
    needed = set()
    for name, program in programs.items():
        stripped = os.path.join(directory, name)
        subprocess.run(["strip", "-o", stripped, program], check=True)
        add.append(f"{stripped}=/test/{name}")
        needed.update(libraries(program))
    add += [f"{os.path.realpath(path)}={path}" for path in sorted(needed)]
    add += [f"{elf}=/test/{os.path.basename(elf)}" for elf in elves]
    out = os.path.join(directory, "initramfs")
    command = [os.path.join(ROOT, "tools/mkinitramfs"), guest, out, "--module", "kvm-amd"]
    for item in add:
        command += ["--add", item]
    subprocess.run(command, check=True)
    return out


def beat(console):
    """Make QEMU look for interrupts that it lost."""
    try:
        console.write(b"\n")
        console.flush()
    except BrokenPipeError:
        pass


def boot(options, initramfs, log_file):
    """Run it all; @log_file with the console's log added, and whether QEMU was still there at the end."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2G", "-nodefaults",
               "-display", "none", "-serial", "stdio", "-no-reboot", *options.qemu,
               "-kernel", os.path.join(options.build, "guest/vmlinuz"), "-initrd", initramfs,
               "-append", "console=ttyS0 quiet mitigations=off doppel.net=off doppel.cmd=/test/run"]
    with open(log_file, "ab") as file:
        qemu = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT)
        end = time.monotonic() + options.timeout
        while qemu.poll() is None and time.monotonic() < end:
            beat(qemu.stdin)
            time.sleep(HEARTBEAT_SECONDS)
        late = qemu.poll() is None
        qemu.kill()
        qemu.wait()
    with open(log_file, encoding="utf-8", errors="replace") as file:
        log = file.read()
    return log, late


def run_all(options, elves, log_file):
    """Trials by name, and whether all were made. With two processors QEMU may end on its own."""
    found, complete, late = {}, False, False
    open(log_file, "wb").close()
    for boots in range(SMP_BOOTS if options.smp else 1):
        if complete or late:
            break
        if boots:
            print("# QEMU has ended on its own: once more what had not come to its end")
        ended = [name for name, trial in found.items() if trial.status is not None]
        with tempfile.TemporaryDirectory() as directory:
            initramfs = make_initramfs(options.build, directory, elves, options.only,
                                       SMP_SCRIPT if options.smp else SCRIPT, ended)
            log, late = boot(options, initramfs, log_file)
        found = trials(log)
        complete = "@@ all done" in log
    return found, complete


class Report:
    def __init__(self):
        self.count = self.failed = 0

    def case(self, good, name, why=""):
        self.count += 1
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} {self.count} - {name}" + (f": {why}" if why else ""))

    @staticmethod
    def trial(name, trial):
        """How long it took, and what was lost and put right in it."""
        print(f"# {name}: " + ("no end" if trial.seconds is None else f"{trial.seconds:.1f} s"))
        for line in trial.lines:
            if line.startswith("# excused: "):
                print(f"# {name}: {line.removeprefix('# ')}")


def report_guest(report, trial, elf, chips, place=PLACE):
    """The cases of one conformance guest; those listed as not for this engine may fail."""
    name = os.path.basename(elf)
    shown = f"{name} (chips={chips})"
    if trial is None or (trial.status is None and name not in ENDLESS):
        report.case(False, shown, "did not run to its end")
        return
    for case in conformance.cases(trial.lines, name, place):
        report.case(case.verdict != "failed", f"{shown} {case.text}",
                    "# SKIP " + case.reason if case.verdict == "skipped" else "")
    if name in ENDLESS:
        report.case("# done" not in trial.lines, f"{shown} ended", "# SKIP " + ENDLESS[name])
    else:
        report.case("# done" in trial.lines, f"{shown} ended properly")


def report_program(report, trial, name):
    if trial is None or trial.status is None:
        report.case(False, name, "did not run to its end")
        return
    report.case(trial.status == 0, name, "" if trial.status == 0 else f"status {trial.status}")


def report_debian(report, trial):
    text = "\n".join(trial.lines) if trial else ""
    report.case(bool(trial) and trial.status == 0, "Debian boots and powers off")
    report.case(SORTED in text, "Debian computes")
    report.case("hypervisor" in text, "Debian sees a hypervisor")
    report.case("doppel-init: status" in text, "Debian ran its command")


def report_processors(report, trial):
    """Debian brought up both processors."""
    report.case(bool(trial) and trial.status == 0 and "2" in trial.lines, "Debian with two processors")


def report_doorbells(report, trial):
    """The driver's doorbells reached the event loop, without leaving the engine."""
    text = "\n".join(trial.lines) if trial else ""
    events = re.search(r"^doorbells\.events +(\d+)", text, re.M)
    report.case("12800" in text, "virtio-rng delivers with the event loop's doorbells")
    report.case(bool(events) and int(events[1]) > 50, f"{events[1] if events else 'no'} doorbells became events")


def report_kernel_chips(report, trial):
    """Debian on two processors with the kernel's interrupt chips: the machine's own see nothing, and virtio's
    interrupts come by event."""
    text = "\n".join(trial.lines) if trial else ""
    counts = dict(re.findall(r"^(\S+) +(\d+)$", text, re.M))
    report.case(bool(trial) and trial.status == 0 and "2" in trial.lines,
                "Debian with two processors and the kernel's chips")
    report.case(SORTED in text, "Debian computes with the kernel's chips")
    report.case("12800" in text, "virtio-rng delivers with the kernel's chips")
    report.case(all(hint in text for hint in ("setup PV IPIs", "PV spinlocks enabled", "pv remote TLB flush")),
                "Debian uses KVM's hints")
    report.case("second life" in text, "Debian reboots with the kernel's chips")
    vectors = re.findall(r"^ *\d+: +(\d+) +(\d+) +PCI-MSI .*virtio", text, re.M)
    report.case(sum(int(n) for row in vectors for n in row) > 50 and
                counts.get("kvm.interrupt_messages") == "0", "virtio's interrupts come by event")
    report.case(all(counts.get(name) == "0" for name in
                    ("kvm.interrupts", "exits.hlt", "exits.irq_window", "exits.wrmsr")),
                "no exit for interrupts")


def report_moving(report, trial, name):
    """Debian's work came out right, and the engine did change meanwhile, in both directions."""
    text = "\n".join(trial.lines) if trial else ""
    report.case(bool(trial) and trial.status == 0, f"{name}: Debian boots and powers off")
    report.case("work: good" in text and "BAD" not in text, f"{name}: its work is unharmed")
    for to, origin in (("kvm", "soft"), ("soft", "kvm")):
        moves = text.count(f"the {to} engine has taken over from {origin}")
        report.case(moves >= 3, f"{name}: {moves} times from {origin} to {to}")


def report_all(report, found, elves):
    for name in ("check", "engine", "parts", "crossing", "vcpus", "chips"):
        report_program(report, found.get(name), name)
    for elf in elves:
        name = os.path.basename(elf)
        report_guest(report, found.get(f"{name}:user"), elf, "user")
        if name in USER_ONLY:
            report.case(True, f"{name} (chips=kernel)", "# SKIP " + USER_ONLY[name])
        elif name not in ENDLESS:
            report_guest(report, found.get(f"{name}:kernel"), elf, "kernel")
    report_debian(report, found.get("debian"))
    report_processors(report, found.get("processors"))
    report_doorbells(report, found.get("processors"))
    report_kernel_chips(report, found.get("debian:kernel"))
    report_moving(report, found.get("moving1"), "one processor that changes its engine")
    report_moving(report, found.get("moving2"), "two processors that change their engine")


def report_smp(report, found, elves):
    for chips in ("user", "kernel"):
        for elf in elves:
            report_guest(report, found.get(f"{os.path.basename(elf)}:{chips}"), elf, chips, SMP_PLACE)
        for cpus in ("4", "16"):
            trial = found.get(f"debian:{chips}:{cpus}")
            good = trial and trial.status == 0 and cpus in trial.lines and "\n".join(trial.lines).count(SORTED) == 4
            report.case(bool(good), f"Debian with {cpus} processors (chips={chips})")
        trial = found.get(f"project:{chips}")
        report.case(bool(trial) and any(re.fullmatch(r"project: \d+", line) for line in trial.lines),
                    f"make -j4 on 4 processors (chips={chips})")


def main():
    parser = argparse.ArgumentParser(description="test the kvm engine under emulated SVM")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    parser.add_argument("--timeout", type=float, help="in seconds, before DOPPEL_PATIENCE stretches it")
    parser.add_argument("--only", default="*", help="run only what this shell pattern names")
    parser.add_argument("--qemu", action="append", default=[], help="another argument for QEMU")
    parser.add_argument("--smp", action="store_true", help="several processors")
    options = parser.parse_args()
    options.build = os.path.realpath(options.build)
    options.timeout = (options.timeout or (SMP_TIMEOUT if options.smp else TIMEOUT)) * \
        float(os.environ.get("DOPPEL_PATIENCE", "1"))
    elves = sorted(glob.glob(os.path.join(options.build, "test/engine/engine-*.elf")))
    if options.smp:
        image = os.path.join(options.build, "guest/debian.img")
        subprocess.run([os.path.join(ROOT, "tools/mkimage"), image, "--kernel", os.path.dirname(image)], check=True)
        options.qemu += ["-smp", "2", "-drive", f"file={image},if=virtio,format=raw,snapshot=on"]
        elves = [elf for elf in elves if os.path.basename(elf) == "engine-smp_memory.elf"]
    log_file = os.path.join(options.build, "test-kvm-smp.log" if options.smp else "test-kvm.log")
    started = time.monotonic()
    found, complete = run_all(options, elves, log_file)
    report = Report()
    (report_smp if options.smp else report_all)(report, found, elves)
    report.case(complete, "everything ran")
    for name, trial in found.items():
        report.trial(name, trial)
    print(f"1..{report.count}")
    print(f"# {report.count - report.failed} passed, {report.failed} failed, "
          f"{time.monotonic() - started:.0f} s")
    if not report.failed:
        os.unlink(log_file)
    else:
        print(f"# the console's log: {log_file}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
