"""What a machine costs before it does anything: processor time and memory up to the guest's first instruction.

The guest is bench/start.S. When its byte arrives, the monitor is asked of the kernel: the time that all its
threads have run, from exec() on, and its resident memory besides the guest's RAM. RAM is what core dumps leave
out; translated code (a file in memory that is mapped for execution and a second time for writing) is left out,
too. Pages of the program and of its libraries count whole, though others may use them as well.
"""

import glob
import os
import re

import guest

FLAG_NOT_DUMPED = "dd"


def run_time_ms(pid):
    """Processor time of all threads. /proc/PID/stat counts in hundredths of a second, this in ns."""
    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        with open(path, encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e6


def mappings(pid):
    """(first line, resident KiB, flags) of each mapping."""
    head, resident = "", 0
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                head = line
            elif line.startswith("Rss:"):
                resident = int(line.split()[1])
            elif line.startswith("VmFlags:"):
                yield head, resident, line.split()[1:]


def file_of(head):
    """Device and inode in the first line of a mapping."""
    return head.split()[3:5]


def monitor_memory_mib(pid):
    found = list(mappings(pid))
    code = [file_of(head) for head, _, _ in found if "-xs " in head]
    return sum(resident for head, resident, flags in found
               if FLAG_NOT_DUMPED not in flags and file_of(head) not in code) / 1024


def run_once(results, engine, image):
    argv = [guest.DOPPEL, "run", "--engine", engine, "-m", "128M", "--net", "none", "--console", "stdio",
            "--kernel", image]
    contender = "doppel" if engine == "soft" else engine
    with guest.Console(argv, plain=True) as console:
        console.expect("!", 30)
        pid = console.process.pid
        results.add("start", contender, run_time_ms(pid), "ms CPU")
        results.add("monitor", contender, monitor_memory_mib(pid), "MiB")


def run(results, rounds, say):
    """Rows "start" and "monitor", for each engine that this host can run."""
    image = os.path.join(guest.BUILD, "bench/start.elf")
    for engine in ("soft", "kvm"):
        if engine == "kvm" and not os.path.exists("/dev/kvm"):
            continue
        say(f"start: {engine} engine")
        for _ in range(rounds):
            try:
                run_once(results, engine, image)
            except guest.Failure as error:
                results.lose("start", engine, error)
                break
