#!/usr/bin/env python3
"""Run conformance guests and sum up: test/engine/run.py [--qemu | --doppel FILE] ELF...

Each guest reports on its serial port in the Test Anything Protocol (see test/guest/lib/tap.h); the report
is passed on to standard output, where meson reads it. A guest that ends early, hangs or dies fails.

Cases that an engine cannot pass are listed in test/engine/skips, each with its reason; they are reported as
skipped, but one that passes after all is a failure, so that the list can only shrink.

With --qemu the same files run under QEMU's translator. There a case that QEMU is known to get wrong, as
its "# qemu:" line says, does not fail the run.
"""

import argparse
import json
import os
import re
import subprocess
import sys

RESULT = re.compile(r"^(not )?ok (\d+) - (.*)$")


def command(options, elf):
    if options.qemu:
        return ["qemu-system-x86_64", "-accel", "tcg", "-cpu", options.cpu, "-m", "64M", "-nodefaults",
                "-smp", options.cpus,
                "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", elf,
                "-device", "isa-debug-exit,iobase=0x501,iosize=4"]
    return [options.doppel, "run", "--engine", options.engine, "-m", "64M", "-c", options.cpus,
            "--kernel", elf,
            "--console", "stdio", "--net", "none", "--no-reboot"]


def run_guest(options, elf):
    """The guest's output as lines, and why the run as a whole is bad (or None)."""
    try:
        done = subprocess.run(command(options, elf), stdin=subprocess.DEVNULL, text=True,
                              errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=options.timeout)
        output, complaint, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode(errors="replace")
        complaint, status = "timed out", None
    lines = output.replace("\r", "").split("\n")
    if "# done" in lines and status is not None and status >= 0:
        return lines, None
    reason = complaint.strip().split("\n")[-1] if complaint.strip() else "ended early"
    return lines, f"{reason} (status {status})"


def read_skips(place):
    """What the list says of @place: a list of (guest, pattern of case names, reason)."""
    found = []
    path = os.path.join(os.path.dirname(os.path.realpath(__file__)), "skips")
    with open(path, encoding="ascii") as file:
        for line in file:
            fields = [field.strip() for field in line.split("|")]
            if not line.startswith("#") and len(fields) == 4 and fields[0] == place:
                found.append((fields[1], re.compile(fields[2]), fields[3]))
    return found


def endless(place):
    """Guests that cannot run to their end there, and why."""
    return {guest: reason for guest, pattern, reason in read_skips(place) if pattern.pattern == "the end"}


def told(place):
    """The word that guests are given there, because the processor does wrong at times: they put it right, up to a
    limit, and say so."""
    return " ".join(pattern.pattern for guest, pattern, _ in read_skips(place) if guest == "*")


class Verdict:
    """One case of a guest's report: passed, failed or skipped, and the reason of the latter."""

    def __init__(self, text, verdict, reason=""):
        self.text = text
        self.verdict = verdict
        self.reason = reason


def cases(lines, guest, place):
    """The cases in the report @lines of @guest, by the list of skips for @place. What QEMU's processor is
    known to get wrong counts as skipped."""
    skips = [(pattern, reason) for name, pattern, reason in read_skips(place) if name == guest]
    for line, following in zip(lines, lines[1:] + [""]):
        match = RESULT.match(line)
        if not match:
            continue
        text = match[3].split(" # SKIP")[0]
        reason = next((reason for pattern, reason in skips if pattern.search(text)), None)
        if match[1] and following.startswith("# qemu:"):
            reason = "QEMU's processor " + following.removeprefix("# qemu:").strip()
        if reason and match[1]:
            yield Verdict(text, "skipped", reason)
        elif reason:
            yield Verdict(text + " (passes: take it off the list of skips)", "failed")
        elif match[1]:
            yield Verdict(match[3], "failed")
        elif "# SKIP" in line:
            yield Verdict(text, "skipped", line.split("# SKIP")[1].strip())
        else:
            yield Verdict(text, "passed")


def emulated_ring0(options):
    """Why no conformance guest can run here: the host's KVM emulates what runs in ring 0. Or None."""
    name = options.engine.split(",")[0]
    if name == "soft":
        return None
    done = subprocess.run([options.doppel, "check", "--json"], stdout=subprocess.PIPE, check=False)
    engine = next((e for e in json.loads(done.stdout)["engines"] if e["name"] == name), None)
    if not engine or not engine["usable"]:
        return engine["reason"] if engine else "no such engine"
    return None if engine["native"] else engine["reason"]


class Totals:
    def __init__(self):
        self.passed = self.failed = self.skipped = self.excused = 0

    def line(self):
        text = f"# {self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return text + (f", {self.excused} known to differ" if self.excused else "")


def report(options, elf, totals):
    """Print one guest's report and count it."""
    lines, problem = run_guest(options, elf)
    plan = next((int(m[1]) for m in (re.match(r"^1\.\.(\d+)$", l) for l in lines) if m), None)
    seen = 0
    for i, line in enumerate(lines):
        match = RESULT.match(line)
        if line.startswith("#") or line.startswith("Bail out!"):
            print(line)
        if not match:
            continue
        seen += 1
        excused = options.qemu and i + 1 < len(lines) and lines[i + 1].startswith("# qemu:")
        if match[1] and excused:
            totals.excused += 1
            line = line + " # TODO known difference"
        elif match[1]:
            totals.failed += 1
        elif "# SKIP" in line:
            totals.skipped += 1
        else:
            totals.passed += 1
        print(line)
    if problem is None and plan != seen:
        problem = f"{seen} of {plan} cases reported"
    if problem:
        totals.failed += 1
        print(f"not ok {seen + 1} - {os.path.basename(elf)} ended properly: {problem}")
        seen += 1
    return seen


def main():
    parser = argparse.ArgumentParser(description="run conformance guests")
    parser.add_argument("elf", nargs="+")
    parser.add_argument("--qemu", action="store_true", help="under QEMU's translator instead")
    parser.add_argument("--cpus", default="1", help="number of processors")
    parser.add_argument("--cpu", default="max", help="QEMU's processor model")
    parser.add_argument("--doppel", default="build/doppel")
    parser.add_argument("--engine", default="soft", help="as doppel run takes it, with options")
    parser.add_argument("--timeout", type=float,
                        default=60 * float(os.environ.get("DOPPEL_PATIENCE", "1")))
    options = parser.parse_args()
    totals = Totals()
    count = 0
    hopeless = None if options.qemu else emulated_ring0(options)
    if hopeless:
        print(f"1..0 # SKIP {hopeless}")
        return 0
    for elf in options.elf:
        if len(options.elf) > 1:
            print("#", os.path.basename(elf))
        count += report(options, elf, totals)
    print(f"1..{count}" if len(options.elf) == 1 else f"# {count} cases")
    print(totals.line())
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
