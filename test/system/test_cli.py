#!/usr/bin/env python3
"""Bad input: one clear line on standard error, the right exit status, nothing left behind."""

import json
import os
import re
import resource
import signal
import subprocess
import threading

import guest
import suite

USAGE, FAILURE = 2, 1

# What is wrong, status, arguments of "run", and what the line must name. Words in {braces} are files.
RUN = (
    ("nothing to boot", USAGE, "", "--kernel"),
    ("unknown option", USAGE, "--bogus", "--bogus"),
    ("one dash instead of two", USAGE, "-kernel {kernel}", "--kernel"),
    ("stray word", USAGE, "--kernel {kernel} stray", "stray"),
    ("kernel without its option", USAGE, "{kernel}", "--kernel"),
    ("option without value", USAGE, "--kernel", "--kernel"),
    ("no such kernel", FAILURE, "--kernel {missing}", "missing"),
    ("directory as kernel", FAILURE, "--kernel {folder}", "directory"),
    ("empty kernel", FAILURE, "--kernel {empty}", "empty"),
    ("noise as kernel", FAILURE, "--kernel {noise}", "not a kernel"),
    ("text as kernel", FAILURE, "--kernel {text}", "not a kernel"),
    ("truncated kernel", FAILURE, "--kernel {truncated}", "truncated"),
    ("truncated ELF kernel", FAILURE, "--kernel {short_elf}", "truncated"),
    ("damaged kernel payload", FAILURE, "--kernel {damaged}", "damaged"),
    ("no such initrd", FAILURE, "--kernel {kernel} --initrd {missing}", "missing"),
    ("directory as initrd", FAILURE, "--kernel {kernel} --initrd {folder}", "directory"),
    ("initrd larger than memory", FAILURE, "--kernel {kernel} --initrd {large} -m 128M", "large"),
    ("command line too long", FAILURE, "--kernel {kernel} --append " + "x" * 5000, "command line"),
    ("kernel larger than memory", FAILURE, "--kernel {kernel} -m 16M", "-m"),
    ("no memory", USAGE, "--kernel {kernel} -m 0", "-m"),
    ("memory that is no number", USAGE, "--kernel {kernel} -m much", "much"),
    ("negative memory", USAGE, "--kernel {kernel} -m -5M", "-m"),
    ("memory larger than the host's", FAILURE, "--kernel {kernel} -m 1000G", "memory"),
    ("memory beyond all numbers", USAGE, "--kernel {kernel} -m 99999999999999999999G", "-m"),
    ("no processors", USAGE, "--kernel {kernel} -c 0", "-c"),
    ("too many processors", USAGE, "--kernel {kernel} -c 100000", "-c"),
    ("no such disk", FAILURE, "--kernel {kernel} --disk path={missing}", "missing"),
    ("empty disk", FAILURE, "--kernel {kernel} --disk path={empty}", "empty"),
    ("directory as disk", FAILURE, "--kernel {kernel} --disk path={folder}", "directory"),
    ("odd disk size", FAILURE, "--kernel {kernel} --disk path={odd}", "512"),
    ("disk shorter than its header says", FAILURE,
     "--kernel {kernel} --disk path={short_qcow2},format=qcow2", "short_qcow2"),
    ("raw disk as qcow2", FAILURE, "--kernel {kernel} --disk path={disk},format=qcow2", "disk"),
    ("unknown disk format", USAGE, "--kernel {kernel} --disk path={disk},format=vmdk", "vmdk"),
    ("unknown disk key", USAGE, "--kernel {kernel} --disk path={disk},colour=red", "colour"),
    ("disk as a mere file name", USAGE, "--kernel {kernel} --disk {disk}", "path="),
    ("disk without a path", USAGE, "--kernel {kernel} --disk readonly=on", "path"),
    ("disk key without a value", USAGE, "--kernel {kernel} --disk path={disk},readonly", "readonly"),
    ("disk key that is neither on nor off", USAGE,
     "--kernel {kernel} --disk path={disk},readonly=maybe", "maybe"),
    ("unknown network", USAGE, "--kernel {kernel} --net carrier-pigeon", "carrier-pigeon"),
    ("bad forward", USAGE, "--kernel {kernel} --net user,hostfwd=nonsense", "nonsense"),
    ("forward from a bad port", USAGE,
     "--kernel {kernel} --net user,hostfwd=tcp:127.0.0.1:99999-:80", "99999"),
    ("unknown console", FAILURE, "--kernel {kernel} --console telepathy", "telepathy"),
    ("console in no folder", FAILURE, "--kernel {kernel} --console file:{missing}/log", "missing"),
    ("socket in no folder", FAILURE, "--kernel {kernel} --console unix:{missing}/s", "missing"),
    ("socket in the place of a file", FAILURE, "--kernel {kernel} --console unix:{text}", "text"),
    ("unknown engine", USAGE, "--kernel {kernel} --engine steam", "steam"),
    ("unknown second engine", USAGE, "--kernel {kernel} --engine soft,steam", "steam"),
    ("the same engine twice", USAGE, "--kernel {kernel} --engine soft,soft", "twice"),
    ("unknown ringers", USAGE, "--kernel {kernel} --doorbells church", "church"),
    ("no engine", USAGE, "--kernel {kernel} --engine ,", "engine"),
)

VERBS = (
    ("no verb", USAGE, [], "help"),
    ("unknown verb", USAGE, ["frobnicate"], "frobnicate"),
    ("stray word behind check", USAGE, ["check", "stray"], "stray"),
    ("stray word behind check --json", USAGE, ["check", "--json", "stray"], "stray"),
    ("stray word behind version", USAGE, ["version", "stray"], "stray"),
    ("help for an unknown verb", USAGE, ["help", "frobnicate"], "frobnicate"),
    ("help for two verbs", USAGE, ["help", "run", "check"], "check"),
)


def processes():
    """Children of this process that are still there."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as file:
        return file.read().split()


class BadInput(suite.Case):
    def setUp(self):
        super().setUp()
        with open(guest.kernel(), "rb") as file:
            kernel = file.read()
        with open(os.path.join(guest.BUILD, "test/guest/guest-fatal.elf"), "rb") as file:
            elf = file.read()
        middle = len(kernel) // 2
        damaged = kernel[:middle] + bytes(x ^ 0x5a for x in kernel[middle:middle + 4096]) + \
            kernel[middle + 4096:]
        self.files = {
            "kernel": guest.kernel(),
            "missing": self.path("missing"),
            "folder": self.folder,
            "empty": self.file("empty", b""),
            "noise": self.file("noise", os.urandom(5000)),
            "text": self.file("text", b"#!/bin/sh\necho this is no kernel\n" * 40),
            "truncated": self.file("truncated", kernel[:200000]),
            "damaged": self.file("damaged", damaged),
            "short_elf": self.file("short_elf", elf[:5000]),
            "disk": self.file("disk", bytes(1 << 20)),
            "odd": self.file("odd", bytes(1000)),
            "short_qcow2": self.file("short_qcow2", b"QFI\xfb\0\0\0\3" + bytes(600)),
            "large": self.file("large", b""),
        }
        os.truncate(self.files["large"], 300 << 20)

    def check(self, what, argv, status, word, **options):
        """@argv ends with @status after one line on standard error that contains @word."""
        done = subprocess.run([guest.DOPPEL, *argv], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=60 * guest.PATIENCE, **options)
        with self.subTest(what):
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertTrue(done.stderr.startswith("doppel: "), done.stderr)
            self.assertIn(word, done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertEqual(processes(), [])

    def test_run(self):
        """bad options and files of run"""
        before = sorted(os.listdir(self.folder))
        for what, status, arguments, word in RUN:
            argv = [part.format(**self.files) for part in arguments.split()]
            self.check(what, ["run", *argv], status, word)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_verbs(self):
        """bad verbs"""
        for what, status, argv, word in VERBS:
            self.check(what, argv, status, word)

    def as_nobody(self):
        """Options for a child that may not do everything."""
        if os.geteuid() != 0:
            return {}
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        os.chmod(self.folder, 0o755)
        try:
            subprocess.run([guest.DOPPEL, "version"], check=True, stdout=subprocess.DEVNULL, **nobody)
            subprocess.run(["test", "-r", guest.kernel()], check=True, **nobody)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("other users cannot reach the build, and root may do everything")
        return nobody

    def test_unreadable(self):
        """files without permission"""
        options = self.as_nobody()
        secret = self.file("secret", bytes(4096))
        os.chmod(secret, 0)
        self.check("kernel", ["run", "--kernel", secret], FAILURE, "secret", **options)
        self.check("initrd", ["run", "--kernel", guest.kernel(), "--initrd", secret], FAILURE, "secret",
                   **options)
        self.check("disk", ["run", "--kernel", guest.kernel(), "--disk", "path=" + secret], FAILURE,
                   "secret", **options)

    def test_unwritable_disk(self):
        """a disk on which the user may not write"""
        options = self.as_nobody()
        os.chmod(self.files["disk"], 0o444)
        self.check("disk", ["run", "--kernel", guest.kernel(), "--disk", "path=" + self.files["disk"]],
                   FAILURE, "disk", **options)

    def test_address_space_limit(self):
        """a limit on the address space"""
        if "address" in os.environ.get("DOPPEL_SANITIZE", ""):
            self.skipTest("AddressSanitizer reserves terabytes of address space for itself")
        self.check("limit", ["run", "--kernel", guest.kernel(), "-m", "512M"], FAILURE, "memory",
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2))

    def says(self, line):
        """Standard output of a command that must succeed without a word on standard error."""
        done = subprocess.run([guest.DOPPEL, *line.split()], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60 * guest.PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""), line)
        return done.stdout

    def test_help(self):
        """help in each way that people ask for it: on standard output, no wider than a terminal"""
        for verb in ("run", "check", "version", "help"):
            text = self.says("help " + verb)
            with self.subTest(verb):
                self.assertIn("Usage: doppel " + verb, text)
                self.assertLessEqual(max(map(len, text.split("\n"))), 80)
                for option in ("--help", "-h"):
                    self.assertEqual(self.says(f"{verb} {option}"), text)
        for line in ("help", "--help", "-h"):
            self.assertIn("Usage: doppel VERB", self.says(line))
        for line in ("version", "--version"):
            self.assertRegex(self.says(line), r"^doppel \d+\.\d+\.\d+\n$")


class ManualPage(suite.Case):
    SOURCE = os.path.join(guest.ROOT, "docs/doppel.1")

    def setUp(self):
        super().setUp()
        with open(self.SOURCE, encoding="ascii") as file:
            self.page = file.read()

    def help(self, *words):
        return subprocess.run([guest.DOPPEL, "help", *words], check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    def items(self, section):
        """Options that @section's lists explain: ".It Fl m , -memory Ar size" is -m and --memory."""
        found = set()
        for flags in re.findall(r"^\.It Fl (.+?)(?: (?:Ar|Cm) .*)?$", section, re.M):
            found.update("-" + flag for flag in flags.split(" , "))
        return found

    def test_options(self):
        """the manual page has the options of run, each of them and no other"""
        offered = set()
        for line in re.findall(r"^  (-.*)$", self.help("run"), re.M):
            offered.update(re.findall(r"(?:^|(?<=, ))--?[a-z][a-z-]*", line))
        self.assertGreater(len(offered), 15)
        self.assertEqual(self.items(self.page), offered)

    def test_keys(self):
        """the manual page has the keys of options, the verbs, and what can be typed at a console"""
        keys = set(re.findall(r"\b([a-z]+)=(?=on|raw|FILE|NAME|tcp)", self.help("run")))
        self.assertGreaterEqual(keys, {"path", "hostfwd", "readonly", "ifname"})
        for key in keys:
            self.assertIn(f"Cm {key}=", self.page)
        verbs = re.findall(r"^  ([a-z]+) ", self.help(), re.M)
        self.assertEqual(re.findall(r"^\.It Cm (\w+)$", self.page, re.M), verbs)
        with open(os.path.join(guest.ROOT, "src/host/chardev_stdio.c"), encoding="ascii") as file:
            typed = re.findall(r'"Ctrl-a (.)  ', file.read())
        self.assertEqual(sorted(re.findall(r"^\.It Ic Ctrl-a (.)$", self.page, re.M)), sorted(typed))

    def test_install(self):
        """meson install puts the program and its manual page in their places"""
        subprocess.run(["meson", "install", "-C", guest.BUILD, "--no-rebuild", "--quiet", "--destdir", self.folder],
                       check=True, stdout=subprocess.DEVNULL)
        found = {os.path.relpath(os.path.join(folder, name), self.folder)
                 for folder, _, names in os.walk(self.folder) for name in names}
        self.assertEqual(found, {"usr/local/bin/doppel", "usr/local/share/man/man1/doppel.1"})


class Engines(suite.Case):
    """What the host offers, and the choice that follows from it."""

    def report(self, **options):
        """What check --json says."""
        done = subprocess.run([guest.DOPPEL, "check", "--json"], stdout=subprocess.PIPE, check=True,
                              timeout=60 * guest.PATIENCE, **options)
        return json.loads(done.stdout)

    def engines(self, **options):
        """The report on each engine by name."""
        return {engine["name"]: engine for engine in self.report(**options)["engines"]}

    def boot(self, *arguments, **options):
        argv = guest.doppel("--net", "none", *arguments,
                            append='quiet doppel.net=off doppel.cmd="echo all is well"')
        return subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * guest.PATIENCE, **options)

    def test_report(self):
        """check --json measures what is usable and gives a reason for what is not"""
        for name, engine in self.engines().items():
            with self.subTest(name):
                if engine["usable"]:
                    self.assertGreater(engine["ring0_ns"], 0)
                self.assertEqual(engine["native"], engine["reason"] == "")
        done = subprocess.run([guest.DOPPEL, "check"], stdout=subprocess.PIPE, check=True, text=True,
                              timeout=60 * guest.PATIENCE)
        self.assertRegex(done.stdout, r"(?m)^engine auto +" + self.report()["auto"] + "$")
        soft = self.engines()["soft"]
        self.assertTrue(soft["usable"] and soft["native"])
        self.assertLess(max(soft["ring0_ns"], soft["ring3_ns"]), 25)

    def test_auto(self):
        """auto takes kvm if it runs natively, else soft with at most one line; check says so beforehand"""
        report = self.report()
        kvm = next(engine for engine in report["engines"] if engine["name"] == "kvm")
        self.assertEqual(report["auto"], "kvm" if kvm["native"] else "soft")
        done = self.boot("--engine", "auto", "--stats")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("all is well", done.stdout)
        words = [line for line in done.stderr.split("\n") if line.startswith("doppel: ")]
        self.assertIn(("kvm" if kvm["native"] else "soft") + ".", done.stderr)
        if kvm["native"] or not os.path.exists("/dev/kvm"):
            self.assertEqual(words, [])
        else:
            self.assertEqual(len(words), 1, words)
            self.assertIn("using soft", words[0])

    def test_permission(self):
        """no permission for /dev/kvm is not taken for its absence"""
        if not os.path.exists("/dev/kvm") or os.geteuid() != 0 or os.stat("/dev/kvm").st_mode & 0o006:
            self.skipTest("needs root, and a /dev/kvm that is not open to all")
        os.chmod(self.folder, 0o755)
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        try:
            kvm = self.engines(**nobody)["kvm"]
        except OSError:
            self.skipTest("other users cannot reach the build")
        self.assertFalse(kvm["usable"])
        self.assertIn("permission", kvm["reason"])

    def test_explicit(self):
        """an engine asked for by name is used, with a warning where it emulates"""
        kvm = self.engines()["kvm"]
        elf = os.path.join(guest.BUILD, "test/engine/engine-smc.elf")
        argv = [guest.DOPPEL, "run", "--engine", "kvm", "-m", "64M", "--net", "none", "--no-reboot",
                "--kernel", elf, "--stats"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * guest.PATIENCE)
        if not kvm["usable"]:
            self.assertEqual(done.returncode, FAILURE)
            self.assertIn(kvm["reason"], done.stderr)
            return
        self.assertIn("kvm.entries", done.stderr)
        self.assertEqual("emulated" in done.stderr.split("\n")[0], not kvm["native"])

    def test_chips_stay(self):
        """interrupt controllers of the kvm engine's own and a second engine: refused in one line"""
        if not self.engines()["kvm"]["usable"]:
            self.skipTest("needs /dev/kvm")
        done = subprocess.run(guest.doppel("--net", "none", "--engine", "kvm,soft,chips=kernel",
                                           append="quiet"),
                              stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * guest.PATIENCE)
        self.assertEqual(done.returncode, FAILURE)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("'chips=kernel'", done.stderr)
        self.assertEqual(done.stdout, "")


class Statistics(suite.Case):
    """--stats, for people and for programs."""

    def stats(self, *arguments):
        argv = guest.doppel("--net", "none", "-c", "2", "--stats", *arguments,
                            append='quiet doppel.net=off doppel.cmd="echo all is well"')
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=True, timeout=60 * guest.PATIENCE)
        return done.stderr

    def test_json(self):
        """one line of JSON whose figures agree with each other"""
        text = self.stats("--json")
        self.assertEqual(text.count("\n"), 1, text)
        stats = json.loads(text)
        time, soft = stats["time"], stats[guest.ENGINE]
        self.assertEqual(stats["vcpus"]["count"], 2)
        spent = sum(seconds for name, seconds in time.items() if name not in ("wall", "samples"))
        self.assertAlmostEqual(spent, 2 * time["wall"], delta=0.05 * time["wall"])
        self.assertGreater(time["samples"], 50)
        self.assertGreater(stats["exits"]["pio"], 100)
        # Linux ends most interrupts without an exit.
        self.assertGreater(stats["lapic"]["eoi_quiet"], 4 * stats["lapic"]["eoi_writes"])
        if guest.ENGINE != "soft":
            return
        self.assertGreater(time["translated_code"], 0.1 * time["wall"])
        # Measured exactly and sampled.
        self.assertAlmostEqual(time["translation"], soft["translation_time"], delta=0.3 * time["wall"])
        self.assertGreater(soft["blocks_translated"], 10000)
        self.assertGreater(soft["instructions_translated"], soft["blocks_translated"])
        self.assertGreater(soft["guest_bytes_translated"], soft["instructions_translated"])
        self.assertLessEqual(soft["blocks_in_cache"], soft["blocks_translated"])
        self.assertLess(soft["code_cache_hot"], soft["code_cache_size"])
        # Some branches cannot be linked: what they lead to was dropped meanwhile, or is of another kind.
        self.assertLessEqual(soft["block_links"], soft["leaves_link"])
        self.assertGreater(soft["block_links"], 0.9 * soft["leaves_link"])
        self.assertGreater(soft["tlb_misses"], 1000)
        self.assertLessEqual(sum(stats["interpreted"].values()), soft["instructions_interpreted"])
        self.assertGreater(sum(stats["interpreted"].values()), soft["instructions_interpreted"] / 2)

    def test_signal(self):
        """the JSON is the last line, whatever else there is to say"""
        argv = guest.doppel("--net", "none", "--stats", "--json", append="console=ttyS0 quiet")
        console = self.start(argv)
        console.expect(r"# $")
        console.interrupt()
        self.assertEqual(console.wait(20), 128 + signal.SIGTERM)
        lines = console.stderr().rstrip("\n").split("\n")
        self.assertIn("signal 15", lines[0])
        self.assertIn("time", json.loads(lines[-1]))

    def test_table(self):
        """the table has the same names, one to a line"""
        names = {f"{group}.{name}" for group, rows in json.loads(self.stats("--json")).items()
                 for name in rows if group != "interpreted"}
        lines = self.stats().rstrip("\n").split("\n")
        found = [line.split()[0] for line in lines if not line.startswith("interpreted.")]
        self.assertEqual(set(found), names)
        self.assertEqual(len(found), len(names))
        for line in lines:
            self.assertRegex(line, r"^\S+ +[0-9.]+( s| bytes)?( +[0-9.]+ %)?$")


class Change(suite.Case):
    """From one engine to another; what becomes of the guest: test/kvm and test/unit/test_vcpus.c."""

    def test_nothing_to_change_to(self):
        """SIGUSR1 and Ctrl-a e with one engine: a line, and the machine goes on"""
        console = self.start(guest.doppel("--net", "none", append="console=ttyS0 quiet"))
        console.expect(r"# $")
        console.interrupt(signal.SIGUSR1)
        console.send("\x01e")
        self.assertIn("alive", console.command("echo alive"))
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr().count("no other engine"), 2)


class Streams(suite.Case):
    """Standard input, output and error that are not what one expects."""

    def boot(self, **streams):
        argv = guest.doppel("--net", "none", append='quiet doppel.net=off doppel.cmd="echo all is well"')
        return subprocess.run(argv, timeout=60 * guest.PATIENCE, **streams)

    def test_no_terminal(self):
        """input at its end, output into a pipe"""
        done = self.boot(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"all is well", done.stdout)
        self.assertEqual(done.stderr, b"")

    def test_closed_output(self):
        """standard output closed"""
        done = self.boot(stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         preexec_fn=lambda: os.close(1))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLessEqual(done.stderr.count(b"\n"), 1, done.stderr)

    def test_closed_input(self):
        """standard input closed"""
        done = self.boot(stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         preexec_fn=lambda: os.close(0))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"all is well", done.stdout)

    def test_all_closed(self):
        """all three closed"""
        def close_all():
            for fd in range(3):
                os.close(fd)
        # The pipe that reports a failed exec lives beyond 2, so the test sees how it ended.
        self.assertIn(self.boot(preexec_fn=close_all).returncode, (0, 1))

    def test_broken_pipe(self):
        """nobody reads standard output any more"""
        read, write = os.pipe()
        os.close(read)
        try:
            done = self.boot(stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE)
        finally:
            os.close(write)
        self.assertGreaterEqual(done.returncode, 0, "died of a signal")
        self.assertLessEqual(done.stderr.count(b"\n"), 1, done.stderr)

    def test_full_output(self):
        """a device that is full as standard output"""
        with open("/dev/full", "wb") as full:
            done = self.boot(stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
        self.assertGreaterEqual(done.returncode, 0, "died of a signal")
        self.assertLessEqual(done.stderr.count(b"\n"), 1, done.stderr)


if __name__ == "__main__":
    suite.main()
