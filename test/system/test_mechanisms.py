#!/usr/bin/env python3
"""The soft engine without each of its mechanisms, without all of them, with windows for every program, and with
little code memory.

What only makes guests faster can be switched off (--engine soft,NAME=off, docs/engines.md); results stay the
same. For each: the conformance guests, random instructions against the host's processor, and a boot of
Debian's kernel that works on a checksum.
"""

import glob
import json
import os
import re
import subprocess

import guest
import suite

RUN = os.path.join(guest.ROOT, "test/engine/run.py")
DIFF = os.path.join(guest.BUILD, "test/diff/diff")
CASES = "12000"
# Not one of the guests with several processors: they take long, and the boot has two.
GUESTS = sorted(path for path in glob.glob(os.path.join(guest.BUILD, "test/engine/*.elf"))
                if "smp" not in path)
SUM = "seq 1 20000 | sha256sum"


def names():
    """The mechanisms, as the engine itself names them when it is asked for another."""
    done = subprocess.run([guest.DOPPEL, "run", "--kernel", "k", "--engine", "soft,what=on"], text=True,
                          stderr=subprocess.PIPE, check=False)
    return re.search(r"which has: .*?(groups .*)$", done.stderr)[1].split()


def run(argv, patience=120):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=patience * guest.PATIENCE, check=False)


def boot(options, *arguments, command=SUM):
    argv = guest.doppel("--net", "none", "--engine", "soft," + options, *arguments,
                        append=f'quiet doppel.net=off doppel.cmd="{command}"')
    return run(argv)


def expected_sum():
    return subprocess.run(SUM, shell=True, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]


class Without(suite.Case):
    def check(self, options):
        done = run([RUN, "--doppel", guest.DOPPEL, "--engine", "soft," + options, *GUESTS])
        self.assertEqual(done.returncode, 0, done.stdout[-3000:])
        self.assertRegex(done.stdout, r"# [1-9]\d+ passed, 0 failed")
        if os.path.exists(DIFF): # not in every kind of build
            done = run([DIFF, "--engine", options, "--seed", "2", "--count", CASES])
            self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr)
            self.assertIn(f"{CASES} cases", done.stdout)
        for cpus in "1", "2": # with one, the kernel has a window
            done = boot(options, "-c", cpus)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(expected_sum(), done.stdout)


def add_case(options, title):
    def test(self):
        self.check(options)
    test.__doc__ = title
    setattr(Without, "test_" + title.replace(" ", "_").replace("-", "_"), test)


for mechanism in names():
    add_case(mechanism + "=off", "without " + mechanism)
add_case(",".join(mechanism + "=off" for mechanism in names()), "without any")


add_case("direct=off,window-heat=0", "windows at once")
add_case("direct-heat=0", "direct execution at once")


class SmallCache(suite.Case):
    """A code cache that a kernel's boot exceeds many times."""

    def check(self, *arguments):
        done = boot("code-cache=8M", "--stats", "--json", *arguments, command=SUM)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(expected_sum(), done.stdout)
        stats = json.loads(done.stderr.rstrip().split("\n")[-1])["soft"]
        self.assertEqual(stats["code_cache_size"], 8 << 20)
        self.assertGreater(stats["code_cache_flushes"], 3)
        self.assertLessEqual(stats["code_cache_hot"] + stats["code_cache_cold"], 8 << 20)
        self.assertLessEqual(stats["block_tables"], stats["block_tables_size"])
        self.assertGreater(stats["hot_bytes_emitted"] + stats["cold_bytes_emitted"], 2 * (8 << 20))

    def test_one(self):
        """one processor fills the cache again and again"""
        self.check()

    def test_several(self):
        """two processors fill the cache again and again"""
        self.check("-c", "2")


if __name__ == "__main__":
    suite.main()
