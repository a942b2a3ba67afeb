#!/usr/bin/env python3
"""Translations kept from run to run: --engine soft,translations=... (docs/engines.md).

Debian's kernel is booted again and again with one directory. What is there makes it faster; what is wrong with
it costs a warning and nothing else.
"""

import json
import os
import subprocess
import tempfile

import guest
import suite

SUM = "seq 1 20000 | sha256sum"
NAME = "soft.translations"


def expected_sum():
    return subprocess.run(SUM, shell=True, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]


class Kept(suite.Case):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="doppel-kept-")
        self.addCleanup(self.scratch.cleanup)
        self.cache = os.path.join(self.scratch.name, "doppel/translations")
        self.file = os.path.join(self.cache, NAME)

    def start(self, option, *arguments, more=""):
        argv = guest.doppel("--net", "none", "--engine", "soft" + option + more, "--stats", "--json", *arguments,
                            append=f'quiet doppel.net=off doppel.cmd="{SUM}"')
        environment = dict(os.environ, XDG_CACHE_HOME=self.scratch.name)
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=environment)

    def finish(self, process):
        """The counters, and what was said besides."""
        out, err = process.communicate(timeout=120 * guest.PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn(expected_sum(), out)
        lines = err.rstrip().split("\n")
        return json.loads(lines[-1])["soft"], lines[:-1]

    def boot(self, option=",translations=on", *arguments, more=""):
        return self.finish(self.start(option, *arguments, more=more))

    def expect_kept(self, stats):
        """Less than a tenth was translated."""
        self.assertGreater(stats["blocks_loaded"], 20000)
        self.assertLess(stats["blocks_translated"], stats["blocks_loaded"] / 9)

    def test_second_boot(self):
        """the second boot translates less than a tenth"""
        first, said = self.boot()
        self.assertEqual(said, [])
        self.assertGreater(first["blocks_translated"], 20000)
        self.assertEqual(first["blocks_loaded"], 0)
        for _ in range(2):
            stats, said = self.boot()
            self.assertEqual(said, [])
            self.expect_kept(stats)
        self.assertEqual(os.listdir(self.cache), [NAME])
        self.assertEqual(os.stat(self.cache).st_mode & 0o7777, 0o700)
        self.assertEqual(os.stat(self.file).st_mode & 0o7777, 0o600)

    def test_several_processors(self):
        """two processors use what two left"""
        self.boot(",translations=on", "-c", "2")
        stats, said = self.boot(",translations=on", "-c", "2")
        self.assertEqual(said, [])
        self.assertGreater(stats["blocks_loaded"], 20000)

    def test_default(self):
        """without the option, a directory is used if it is there"""
        stats, said = self.boot("")
        self.assertEqual(said, [])
        self.assertFalse(os.path.exists(self.cache))
        os.makedirs(self.cache, 0o700)
        self.boot("")
        stats, said = self.boot("")
        self.assertEqual(said, [])
        self.expect_kept(stats)
        stats, said = self.boot(",translations=off")
        self.assertEqual(stats["blocks_loaded"], 0)

    def test_check(self):
        """what is kept is what translation gives"""
        self.boot(more=",translations-check=on")
        stats, said = self.boot(more=",translations-check=on")
        self.assertEqual(said, [])
        self.assertGreater(stats["blocks_compared"], 20000)
        self.assertEqual(stats["blocks_different"], 0)

    def test_at_once(self):
        """machines started together get what each needs"""
        machines = [self.start(",translations=on") for _ in range(3)]
        for machine in machines:
            self.finish(machine)
        stats, said = self.boot()
        self.assertEqual(said, [])
        self.expect_kept(stats)
        self.assertEqual(os.listdir(self.cache), [NAME])

    def test_windows(self):
        """programs whose memory the host's MMU maps: their blocks are kept as well"""
        heat = ",direct=off,window-heat=0"
        self.boot(more=heat + ",translations-check=on")
        stats, said = self.boot(more=heat + ",translations-check=on")
        self.assertEqual(said, [])
        self.assertGreater(stats["blocks_compared"], 20000)
        self.assertEqual(stats["blocks_different"], 0)
        self.boot(more=heat)
        stats, said = self.boot(more=heat)
        self.assertEqual(said, [])
        self.assertGreater(stats["windows"], 0)
        self.expect_kept(stats)

    def test_small_cache(self):
        """code memory that fills up again and again"""
        self.boot(more=",code-cache=8M")
        stats, said = self.boot(more=",code-cache=8M")
        self.assertEqual(said, [])
        self.assertGreater(stats["code_cache_flushes"], 3)
        self.expect_kept(stats)

    def expect_one_warning(self, why):
        stats, said = self.boot()
        self.assertEqual(len(said), 1, said)
        self.assertIn(why, said[0])
        return stats

    def settled(self):
        self.boot()
        self.boot()
        return os.path.getsize(self.file)

    def test_damaged(self):
        """a damaged file costs one warning, and is replaced"""
        size = self.settled()
        with open(self.file, "r+b") as file:
            file.seek(size // 2)
            file.write(b"\xcc" * 100)
        stats = self.expect_one_warning("damaged")
        self.assertGreater(stats["blocks_translated"], 100)
        stats, said = self.boot()
        self.assertEqual(said, [])
        self.expect_kept(stats)
        os.truncate(self.file, size // 2)
        stats = self.expect_one_warning("not as long as it says")
        self.assertEqual(stats["blocks_loaded"], 0)
        stats, said = self.boot()
        self.expect_kept(stats)

    def test_not_ours(self):
        """what is open to others is not used"""
        self.settled()
        os.chmod(self.file, 0o644)
        self.assertEqual(self.expect_one_warning("open to others")["blocks_loaded"], 0)
        os.chmod(self.file, 0o600)
        os.chmod(self.cache, 0o755)
        self.assertEqual(self.expect_one_warning("open to others")["blocks_loaded"], 0)

    def test_no_directory(self):
        """a directory that cannot be had costs one warning"""
        os.makedirs(os.path.dirname(self.cache), exist_ok=True)
        with open(self.cache, "w", encoding="ascii"):
            pass
        self.expect_one_warning("Not a directory")


if __name__ == "__main__":
    suite.main()
