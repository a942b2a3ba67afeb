#!/usr/bin/env python3
"""Run conformance guests and sum up: test/engine/run.py [--qemu | --doppel FILE] ELF...

Each guest reports on its serial port in the Test Anything Protocol (see test/guest/lib/tap.h); the report
is passed on to standard output, where meson reads it. A guest that ends early, hangs or dies fails.

Cases that an engine does not run or cannot pass are listed in test/engine/skips, each with its reason; they are
reported as skipped, but one that passes after all is a failure, and so is one that a guest skips without being
listed, so that the list can only shrink.

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
# Places all of whose skips are on the list: an engine, or where it runs.
EMULATED = "kvm-emulated"
EMULATED_PATIENCE = 3
LISTED = ("soft", EMULATED)


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


class Skip:
    """A line of the list: cases of @guest whose names @pattern finds. @sure: not one of them passes."""

    def __init__(self, guest, pattern, reason, sure):
        self.guest = guest
        self.pattern = re.compile(pattern)
        self.reason = reason
        self.sure = sure


def read_skips(place):
    """What the list says of @place."""
    found = []
    path = os.path.join(os.path.dirname(os.path.realpath(__file__)), "skips")
    with open(path, encoding="ascii") as file:
        for line in file:
            fields = [field.strip() for field in line.split("|")]
            if not line.startswith("#") and len(fields) == 4 and fields[0].rstrip("?") == place:
                found += [Skip(guest, *fields[2:], sure=not fields[0].endswith("?")) for guest in fields[1].split()]
    return found


def left_out(place, what):
    """Guests that @what is said of there instead of a case's name, and why."""
    return {skip.guest: skip.reason for skip in read_skips(place) if skip.pattern.pattern == what}


def told(place):
    """The word that guests are given there, because the processor does wrong at times: they put it right, up to a
    limit, and say so."""
    return " ".join(skip.pattern.pattern for skip in read_skips(place) if skip.guest == "*")


class Verdict:
    """One case of a guest's report: passed, failed, excused or skipped, and the reason of the latter."""

    def __init__(self, text, verdict, reason=""):
        self.text = text
        self.verdict = verdict
        self.reason = reason

    def line(self, number):
        """As a line of a report."""
        bad = "not " if self.verdict in ("failed", "excused") else ""
        return f"{bad}ok {number} - {self.text}" + (f" # SKIP {self.reason}" if self.verdict == "skipped" else "")


def as_told(match):
    """A case without a list: what a real processor lacks nobody can list."""
    text, _, why = match[3].partition(" # SKIP")
    return Verdict(text, "failed" if match[1] else "skipped" if why else "passed", why.lstrip(": "))


def judge(match, skips):
    """A case of a guest's report, which is @match of RESULT, by the list of skips."""
    text, _, why = match[3].partition(" # SKIP")
    skip = next((skip for skip in skips if skip.pattern.search(text)), None)
    if skip and (match[1] or why):
        return Verdict(text, "skipped", skip.reason)
    if skip and skip.sure:
        return Verdict(text + " (passes: take it off the list of skips)", "failed")
    if why:
        return Verdict(f"{text} (skipped, and not on the list of skips:{why})", "failed")
    return Verdict(text, "failed" if match[1] else "passed")


def cases(lines, guest, place):
    """The cases in the report @lines of @guest, by the list of skips for @place. What QEMU's processor is
    known to get wrong counts as skipped."""
    skips = [skip for skip in read_skips(place) if skip.guest == guest]
    for line, following in zip(lines, lines[1:] + [""]):
        match = RESULT.match(line)
        if not match:
            continue
        case = judge(match, skips)
        if match[1] and case.verdict == "failed" and following.startswith("# qemu:"):
            case = Verdict(case.text, "skipped", "QEMU's processor " + following.removeprefix("# qemu:").strip())
        yield case


def emulated_ring0(options):
    """Why few conformance guests can run here: the host's KVM emulates what runs in ring 0. Or None."""
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

    def count(self, verdict):
        setattr(self, verdict, getattr(self, verdict) + 1)

    def line(self):
        text = f"# {self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return text + (f", {self.excused} known to differ" if self.excused else "")


def listed(place, elf):
    """What the list says of a guest in a place; None where it does not cover all."""
    return [skip for skip in read_skips(place) if skip.guest == os.path.basename(elf)] if place in LISTED else None


def report(options, place, elf, totals):
    """Print one guest's report and count it."""
    lines, problem = run_guest(options, elf)
    plan = next((int(m[1]) for m in (re.match(r"^1\.\.(\d+)$", l) for l in lines) if m), None)
    seen = 0
    skips = None if options.qemu else listed(place, elf)
    for line, following in zip(lines, lines[1:] + [""]):
        match = RESULT.match(line)
        if line.startswith("#") or line.startswith("Bail out!"):
            print(line)
        if not match:
            continue
        seen += 1
        case = judge(match, skips) if skips is not None else as_told(match)
        if options.qemu and case.verdict == "failed" and following.startswith("# qemu:"):
            case = Verdict(match[3] + " # TODO known difference", "excused")
        totals.count(case.verdict)
        print(case.line(seen))
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
    why = None if options.qemu else emulated_ring0(options)
    place = EMULATED if why else options.engine.split(",")[0]
    hopeless = left_out(place, "the end") if why else {}
    elves = [elf for elf in options.elf if os.path.basename(elf) not in hopeless]
    if not elves:
        print(f"1..0 # SKIP {why}")
        return 0
    if why:
        options.timeout *= EMULATED_PATIENCE
    for elf in elves:
        if len(options.elf) > 1:
            print("#", os.path.basename(elf))
        count += report(options, place, elf, totals)
    print(f"1..{count}" if len(options.elf) == 1 else f"# {count} cases")
    print(totals.line())
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
