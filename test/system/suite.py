"""What the system test programs share: unittest with a report in the Test Anything Protocol.

A program of this folder takes test names to run only those, and runs all its tests otherwise. Set
DOPPEL_BUILD to test another build than ./build, DOPPEL_PATIENCE to stretch the time limits.
"""

import os
import shutil
import sys
import tempfile
import time
import unittest

import guest


class TapResult(unittest.TestResult):
    """Prints a line for each case as it ends; the reasons of failures as comments before it."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.bad_parts = []

    def _line(self, test, word, comment="", reason=""):
        self.count += 1
        for line in reason.rstrip().split("\n") if reason else ():
            print("#", line)
        name = test.shortDescription() or test.id()
        print(f"# {time.monotonic() - self.started:.1f} s")
        print(f"{word} {self.count} - {name}{comment}", flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def addSuccess(self, test):
        super().addSuccess(test)
        self._line(test, "ok")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line(test, "ok", f" # SKIP {reason}")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line(test, "not ok", reason=self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._line(test, "not ok", reason=self.errors[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            kind = self.failures if issubclass(err[0], test.failureException) else self.errors
            self.bad_parts.append(f"{subtest._message}: {kind[-1][1]}")

    def stopTest(self, test):
        # unittest reports a test with bad parts neither as a success nor as a failure.
        super().stopTest(test)
        if self.bad_parts:
            self._line(test, "not ok", reason="\n".join(self.bad_parts))
        self.bad_parts = []


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="doppel-test.")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        """A file in the test's folder."""
        return os.path.join(self.folder, name)

    def file(self, name, data):
        """The same, filled with @data."""
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def start(self, argv, **options):
        """A console that is closed when the test ends."""
        console = guest.Console(argv, **options)
        self.addCleanup(console.close)
        return console


def main(module="__main__"):
    names = sys.argv[1:]
    loader = unittest.TestLoader()
    tests = loader.loadTestsFromModule(sys.modules[module])
    result = TapResult()
    selected = unittest.TestSuite(
        test for group in tests for test in group
        if not names or test.id().split(".")[-1] in names)
    print(f"1..{selected.countTestCases()}", flush=True)
    selected.run(result)
    sys.exit(0 if result.wasSuccessful() else 1)
