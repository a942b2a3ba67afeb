"""Drive a virtual machine through its console: what the system tests and bench/run.py share.

A Console starts a program on a pseudo-terminal of its own and talks to whatever it runs, the way a user
in front of it would: wait for text, type, read the answer. Its standard error stays apart. Only programs
started here are ever ended, by their process id.
"""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = DOPPEL = GUEST = ""
# The engine under test; what "auto" would choose depends on the host.
ENGINE = os.environ.get("DOPPEL_ENGINE", "soft")
# Slow hosts and instrumented builds stretch every time limit by this factor.
PATIENCE = float(os.environ.get("DOPPEL_PATIENCE", "1"))


def use_build(directory):
    """Set where the program and the small guest are; the environment has the last word."""
    global BUILD, DOPPEL, GUEST
    BUILD = os.path.realpath(directory)
    DOPPEL = os.environ.get("DOPPEL", os.path.join(BUILD, "doppel"))
    GUEST = os.environ.get("DOPPEL_GUEST", os.path.join(BUILD, "guest"))


use_build(os.environ.get("DOPPEL_BUILD", os.path.join(ROOT, "build")))

ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()][0-9A-B]|[=>78])")
# One of them that has not arrived whole.
BEGUN_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*|\][^\x07]*|[()])?\Z")

# The end of a command line as Console.command() types it; an editor may have wrapped it anywhere.
ECHO = re.compile(r"[ \n]{0,2}".join(re.escape(c) for c in "@st''atus=$?") + r"[ \n]{0,2}\n")


class Failure(AssertionError):
    """The guest or the monitor did not do what the test expects; the text carries the console's end."""


class Timeout(Failure):
    """It did not do it in time."""


class Console:
    """A program on a pseudo-terminal. @keep_terminal: keep its side open here too, as .terminal.

    With @plain its streams are no terminal but a socket, which changes no byte.
    """

    def __init__(self, argv, keep_terminal=False, plain=False):
        self.argv = argv
        self.text = ""
        self.begun = ""  # an escape sequence's first bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.position = 0
        self.started = time.monotonic()
        self.stderr_file = tempfile.TemporaryFile()
        if plain:
            self.master, slave = (end.detach() for end in socket.socketpair())
        else:
            self.master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 200, 0, 0))
        os.set_blocking(self.master, False)
        try:
            self.process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=self.stderr_file, start_new_session=True)
        finally:
            if not keep_terminal:
                os.close(slave)
        self.terminal = slave if keep_terminal else -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the program if it still runs, and give back what it held."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for fd in (self.master, self.terminal):
            if fd >= 0:
                os.close(fd)
        self.master = self.terminal = -1
        self.stderr_file.close()

    def stderr(self):
        """All the program wrote to standard error so far."""
        self.stderr_file.seek(0)
        return self.stderr_file.read().decode(errors="replace")

    def tail(self):
        """The end of the console and of standard error, for messages."""
        return "\n--- console\n" + self.text[-2500:] + "\n--- stderr\n" + self.stderr()[-1000:]

    def _read(self, timeout):
        """Take in what arrives within @timeout seconds; False at the end of the output."""
        ready, _, _ = select.select([self.master], [], [], max(timeout, 0))
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except BlockingIOError:
            return True
        except OSError:  # EIO: the last process closed the other side
            return False
        text = self.begun + self.decoder.decode(data)
        end = BEGUN_ESCAPE.search(text)
        self.begun = end[0] if end else ""
        self.text += ESCAPES.sub("", text[:len(text) - len(self.begun)]).replace("\r", "")
        return bool(data)

    def expect(self, pattern, timeout=60):
        """Wait for regular expression @pattern behind the previous match; return the match."""
        deadline = time.monotonic() + timeout * PATIENCE
        alive = True
        while True:
            match = re.compile(pattern, re.M).search(self.text, self.position)
            if match:
                self.position = match.end()
                return match
            left = deadline - time.monotonic()
            if not alive:
                raise Failure(f"output ended without {pattern!r}{self.tail()}")
            if left <= 0:
                raise Timeout(f"no {pattern!r} within {timeout} s{self.tail()}")
            alive = self._read(min(left, 1))

    def send(self, text, timeout=60):
        """Type @text. Output is taken in meanwhile: a program that waits for its reader reads nothing."""
        data = text.encode()
        deadline = time.monotonic() + timeout * PATIENCE
        while data:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"nobody takes the input within {timeout} s{self.tail()}")
            readable, writable, _ = select.select([self.master], [self.master], [], left)
            if readable and not self._read(0):
                raise Failure(f"input after the end of the output{self.tail()}")
            if writable:
                try:
                    data = data[os.write(self.master, data):]
                except BlockingIOError:
                    pass

    def command(self, line, timeout=60, status=0):
        """Run a shell command in the guest; return its output, fail on another exit status."""
        # The marker is written split, so that the echo of the typed line does not match it.
        self.send(line + "; echo @st''atus=$?\n")
        start = self.position
        match = self.expect(r"@status=(\d+)\n", timeout)
        if status is not None and int(match[1]) != status:
            raise Failure(f"{line!r} ended with status {match[1]}{self.tail()}")
        # The output is what follows the echo. A shell that was still starting shows the line twice: as
        # the terminal's echo, then as its own.
        return ECHO.split(self.text[start:match.start()])[-1]

    def log_in(self, timeout=180, end="\n"):
        """As root into a guest from tools/mkimage, once it has booted, to the shell's first prompt."""
        self.expect("login: ", timeout)
        self.send("root" + end)
        self.expect("Password: ", timeout)
        self.send("doppel" + end)
        self.expect(r"# $", timeout)

    def wait(self, timeout=60):
        """Wait until the program ends by itself; return its exit status (negative: signal)."""
        deadline = time.monotonic() + timeout * PATIENCE
        alive = True
        while time.monotonic() < deadline:
            if alive:
                alive = self._read(0.2)
            elif self.process.poll() is None:
                time.sleep(0.02)
            if not alive and self.process.poll() is not None:
                return self.process.returncode
            if self.process.poll() is not None:
                while alive and select.select([self.master], [], [], 0)[0]:
                    alive = self._read(0)
                return self.process.returncode
        raise Timeout(f"still running after {timeout} s{self.tail()}")

    def interrupt(self, number=signal.SIGTERM):
        """Send a signal to the program itself."""
        self.process.send_signal(number)


def kernel():
    """The stock kernel fetched by tools/fetch-kernel."""
    return os.path.join(GUEST, "vmlinuz")


def initramfs():
    """The initramfs made by tools/mkinitramfs."""
    return os.path.join(GUEST, "initramfs")


def doppel(*arguments, append=None, initrd=None, memory="512M"):
    """A command line that boots the stock kernel in doppel; @append=None means no kernel at all."""
    argv = [DOPPEL, "run", "--engine", ENGINE, "-m", memory]
    if append is not None:
        argv += ["--kernel", kernel(), "--initrd", initrd or initramfs(),
                 "--append", "console=ttyS0 panic=-1 " + append]
    return argv + list(arguments)


def qemu(*arguments, append=None, initrd=None, memory="512M"):
    """The same machine under QEMU's translator, for a second opinion and for comparison."""
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", memory, "-nographic",
            "-no-reboot", "-nodefaults", "-serial", "mon:stdio"]
    if append is not None:
        argv += ["-kernel", kernel(), "-initrd", initrd or initramfs(),
                 "-append", "console=ttyS0 panic=-1 " + append]
    return argv + list(arguments)
