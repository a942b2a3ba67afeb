#!/usr/bin/env python3
"""Compare the same work natively, under QEMU's translator and under doppel: bench/run.py [--disk]

Everything is measured in one go, in rounds: native, QEMU, doppel, native, ... so that a machine that
slows down or speeds up during the run does so for all three. A row's figure is the median of the rounds.
Written out: a table, BUILD/bench.json with every single measurement, BUILD/bench.svg.

Rows: bench/micro.c (its own clock); boot, the wall time from starting the command to the first line of
the guest's init; start and monitor, what doppel's engines take up to a guest's first instruction
(startup.py); with --parallel, how much faster two processes on two processors do the work of rows of
micro than one on one, in guests with as many; with --disk, real programs on the Debian disk (programs.py).

Every wait has an end: a contender that misses it loses the row, which is said, and shows as "-".
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../test/system"))
import guest     # noqa: E402
import plot      # noqa: E402
import programs  # noqa: E402
import startup   # noqa: E402

CONTENDERS = ("native", "qemu", "doppel")
# A figure of the kvm engine's, where this host has it: in a column of its own, without ratios.
KVM = "kvm"
MARKER = "doppel-init: started"
MICRO_SECONDS = 900
# Compute that shares nothing, then work for the kernel's locks as well.
PARALLEL_ROWS = ("alu", "calls", "sort", "sha256", "matmul", "page-fault", "fork")


class Results:
    """All measurements: row -> contender -> list of values, with each row's unit and direction."""

    def __init__(self):
        self.rows = {}
        self.lost = []

    def add(self, name, contender, value, unit, larger_is_better=False):
        row = self.rows.setdefault(name, {"unit": unit, "larger_is_better": larger_is_better,
                                          "values": {}})
        row["values"].setdefault(contender, []).append(value)

    def lose(self, name, contender, error):
        """Say and keep that a contender has no (further) figure in a row, and why."""
        why = str(error).splitlines()[0]
        say(f"bench: {name}: {contender}: {why}")
        self.lost.append({"row": name, "contender": contender, "why": why})

    def median(self, name, contender):
        values = self.rows[name]["values"].get(contender)
        return statistics.median(values) if values else None

    def speed(self, name, contender, reference):
        """How fast @contender is, with @reference as 1; None if either is missing."""
        mine, other = self.median(name, contender), self.median(name, reference)
        if not mine or not other:
            return None
        return mine / other if self.rows[name]["larger_is_better"] else other / mine


def say(text):
    print(text, file=sys.stderr, flush=True)


def machine(contender, *extra, append, initrd=None, memory="512M", disk=None):
    """The command line that boots the stock kernel under @contender."""
    if contender == "qemu":
        drive = [f"-drive", f"file={disk},if=virtio,format=raw,snapshot=on"] if disk else []
        return guest.qemu(*drive, *extra, append=append, initrd=initrd, memory=memory)
    drive = ["--disk", f"path={disk},format=raw,snapshot=on"] if disk else []
    return guest.doppel("--engine", "soft", "--console", "stdio", "--net", "none", "--no-reboot",
                        *drive, *extra, append=append, initrd=initrd, memory=memory)


def processors(contender, count):
    """The arguments that give the machine @count processors."""
    return ("-smp", str(count)) if contender == "qemu" else ("-c", str(count))


def micro_output(contender, options, initrd, arguments, cpus=1):
    """What bench/micro printed as a process here, or in a guest of @cpus processors."""
    if contender == "native":
        return subprocess.run([options.micro, *arguments], check=True, text=True,
                              stdout=subprocess.PIPE, timeout=MICRO_SECONDS).stdout
    command = " ".join(["/bin/micro", *arguments])
    append = f'quiet doppel.net=off doppel.cmd="{command}"'
    argv = machine(contender, *processors(contender, cpus), append=append, initrd=initrd)
    with guest.Console(argv) as console:
        console.expect(r"doppel-init: status 0", MICRO_SECONDS)
        return console.text


def run_micro(results, options, initrd):
    for number in range(options.rounds):
        for contender in options.contenders:
            say(f"micro, round {number + 1}: {contender}")
            try:
                text = micro_output(contender, options, initrd, options.micro_args)
            except (guest.Failure, subprocess.TimeoutExpired) as error:
                results.lose("micro", contender, error)
                continue
            for name, value, unit in micro_rows(text):
                results.add(name, contender, value, "ns/" + unit)


def micro_rows(text):
    """Name, value and unit of each row that micro printed."""
    return [(match[1], float(match[2]), match[3])
            for match in re.finditer(r"^row (\S+) ([0-9.]+) ns/(.*)$", text, re.M)]


def run_parallel(results, options, initrd):
    for number in range(options.rounds):
        for contender in options.contenders:
            say(f"parallel, round {number + 1}: {contender}")
            try:
                one, two = (dict((name, value) for name, value, _ in micro_rows(micro_output(
                    contender, options, initrd,
                    ["--pass-ms", str(options.pass_ms), "--jobs", str(jobs),
                     *(options.row or PARALLEL_ROWS)], jobs))) for jobs in (1, 2))
            except (guest.Failure, subprocess.SubprocessError) as error:
                results.lose("parallel", contender, error)
                continue
            for name in (name for name in one if name in two):
                results.add("2x " + name, contender, one[name] / two[name], "times as fast",
                            larger_is_better=True)


def run_boot(results, options):
    for number in range(options.boots):
        for contender in options.contenders:
            if contender == "native":
                continue
            say(f"boot, round {number + 1}: {contender}")
            append = 'quiet doppel.net=off doppel.cmd="true"'
            start = time.monotonic()
            try:
                with guest.Console(machine(contender, append=append)) as console:
                    console.expect(MARKER, 60)
                    results.add("boot", contender, (time.monotonic() - start) * 1000, "ms")
                    console.wait(60)
            except guest.Failure as error:
                results.lose("boot", contender, error)


def number(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def table(results):
    """The table of medians and ratios, as lines."""
    columns = CONTENDERS + ((KVM,) if any(KVM in row["values"] for row in results.rows.values()) else ())
    head = ("row", "native", "QEMU", "doppel", *columns[len(CONTENDERS):], "unit", "QEMU/native",
            "doppel/native", "doppel/QEMU")
    lines = [head]
    for name, row in results.rows.items():
        ratios = [results.speed(name, *pair) for pair in
                  (("qemu", "native"), ("doppel", "native"), ("doppel", "qemu"))]
        lines.append((name, *(number(results.median(name, c)) for c in columns), row["unit"],
                      *(number(r) for r in ratios)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) if i in (0, len(columns) + 1) else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines]


def save(results, options):
    document = {
        "rounds": options.rounds,
        "contenders": list(options.contenders),
        "rows": {name: {"unit": row["unit"], "larger_is_better": row["larger_is_better"],
                        "values": row["values"],
                        "median": {c: results.median(name, c) for c in row["values"]}}
                 for name, row in results.rows.items()},
        "lost": results.lost,
    }
    with open(os.path.join(options.out, "bench.json"), "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
    bars = [(name, [results.speed(name, c, "native") for c in ("qemu", "doppel")])
            for name in results.rows]
    bars = [(name, values) for name, values in bars if any(values)]
    if bars:
        svg = plot.bars("Speed against a native process (1 = native, logarithmic)",
                        ("QEMU TCG", "doppel"), bars)
        with open(os.path.join(options.out, "bench.svg"), "w", encoding="utf-8") as file:
            file.write(svg)


def prepare(options):
    """Make sure of what the contenders need; return the initramfs with micro in it."""
    for path in (options.micro, guest.kernel()):
        if not os.path.exists(path):
            sys.exit(f"bench: {path} is missing; 'make bench' builds and fetches all it needs")
    if "doppel" in options.contenders and not os.path.exists(guest.DOPPEL):
        sys.exit(f"bench: {guest.DOPPEL} is missing")
    tools = os.path.join(guest.ROOT, "tools")
    os.makedirs(options.out, exist_ok=True)
    initrd = os.path.join(options.out, "bench-initramfs.cpio")
    subprocess.run([os.path.join(tools, "mkinitramfs"), guest.GUEST, initrd,
                    "--add", options.micro + "=/bin/micro"], check=True)
    if not os.path.exists(guest.initramfs()):
        subprocess.run([os.path.join(tools, "mkinitramfs"), guest.GUEST, guest.initramfs()],
                       check=True)
    if options.disk:
        subprocess.run([os.path.join(tools, "mkimage"), options.image, "--kernel", guest.GUEST],
                       check=True)
    return initrd


def parse_arguments():
    parser = argparse.ArgumentParser(description="compare native, QEMU TCG and doppel")
    parser.add_argument("--disk", action="store_true", help="also real programs on the Debian disk")
    parser.add_argument("--parallel", action="store_true", help="also two processors against one")
    parser.add_argument("--no-micro", action="store_true", help="leave out micro and boot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--row", action="append", default=[], help="only this row of micro")
    parser.add_argument("--program", action="append", default=[], help="only this program")
    parser.add_argument("--scale", type=float, default=1, help="work per program, 1 by default")
    parser.add_argument("--limit", type=int, default=300, help="seconds that one program may take")
    parser.add_argument("--pass-ms", type=int, default=50)
    parser.add_argument("--build", default=guest.BUILD, help="where doppel was built")
    parser.add_argument("--out", help="where the results go (default: the build directory)")
    parser.add_argument("--image", help="the Debian disk (made when missing)")
    options = parser.parse_args()
    guest.use_build(options.build)
    options.out = options.out or guest.BUILD
    options.image = options.image or os.path.join(guest.GUEST, "debian.img")
    options.contenders = tuple(options.contenders.split(","))
    for contender in options.contenders:
        if contender not in CONTENDERS:
            parser.error(f"unknown contender {contender}")
    options.micro = os.path.join(guest.BUILD, "bench/micro")
    options.micro_args = ["--pass-ms", str(options.pass_ms), *options.row]
    return options


def main():
    options = parse_arguments()
    initrd = prepare(options)
    results = Results()
    if not options.no_micro:
        if "doppel" in options.contenders:
            startup.run(results, options.boots, say)
        run_boot(results, options)
        run_micro(results, options, initrd)
    if options.parallel:
        run_parallel(results, options, initrd)
    if options.disk:
        programs.run(results, options, machine)
    save(results, options)
    print("\n".join(table(results)))


if __name__ == "__main__":
    try:
        main()
    except (guest.Failure, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"bench: {error}")
