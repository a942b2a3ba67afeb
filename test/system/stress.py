#!/usr/bin/env python3
"""Four processors under stress in a Debian guest: test/system/stress.py [SECONDS]

Not part of "make test" ("make stress", 10 minutes by default). stress-ng loads processors, memory, futexes and
fork for the whole time and verifies what they compute; then a C project (test/guest/project.sh) is built by "make -j4".
"""

import base64
import os
import re
import subprocess
import sys

import guest

CPUS = 4
FILES, BUILDS = 40, 3


def stress(console, seconds):
    """All stressors at once; fail unless each passed and did something."""
    text = console.command(
        f"stress-ng --cpu 2 --vm 1 --vm-bytes 128M --futex 2 --fork 2 --verify --metrics-brief -t {seconds} 2>&1",
        seconds + 300)
    done = dict(re.findall(r"(cpu|vm|futex|fork) +(\d+) +\d+\.\d+", text))
    if len(done) != 4 or not all(map(int, done.values())) or "successful run completed" not in text:
        raise guest.Failure(f"stress-ng says:\n{text}")
    return done


def script(console, name, arguments):
    """Run a shell script of test/guest; a shell that edits its line would take a tab for a wish."""
    with open(os.path.join(guest.ROOT, f"test/guest/{name}.sh"), "rb") as file:
        coded = base64.encodebytes(file.read()).decode()
    console.command(f"base64 -d >/tmp/{name} <<END\n{coded}END\ntrue", 60)
    return console.command(f"sh /tmp/{name} {arguments}", 900)


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    image = os.path.join(guest.GUEST, "stress.img")
    subprocess.run([os.path.join(guest.ROOT, "tools/mkimage"), image, "--kernel", guest.GUEST,
                    "--with", "stress-ng"], check=True)
    argv = guest.doppel("--disk", f"path={image},snapshot=on", "--net", "none", "-c", str(CPUS),
                        append="root=/dev/vda rw quiet", memory="1G")
    with guest.Console(argv) as console:
        console.log_in()
        console.command("mount -t tmpfs tmp /tmp; stty -echo", 60)
        done = stress(console, seconds)
        print(f"stress: {seconds} s:", ", ".join(f"{name} {count}" for name, count in done.items()), flush=True)
        project = script(console, "project", f"{FILES} {BUILDS}")
        log = re.findall(r"^K: (.*)", console.command("dmesg --level=emerg,alert,crit,err | sed 's/^/K: /'"), re.M)
        console.send("poweroff\n")
        status = console.wait(120)
    print(re.search(r"project: \d+", project)[0])
    print("\n".join(log), end="\n" if log else "")
    sys.exit(1 if log or status else 0)


if __name__ == "__main__":
    try:
        main()
    except (guest.Failure, subprocess.CalledProcessError) as error:
        sys.exit(f"stress: {error}")
