#!/usr/bin/env python3
"""A whole Debian from its disk: systemd to a login, a compiler, the network, a clean power-off.

The disk comes from tools/mkimage, which needs the network and about a minute; where it cannot be made the
tests are skipped.
"""

import functools
import hashlib
import http.server
import math
import os
import re
import subprocess
import threading

import guest
import suite

MODULE_REASON = None


def image():
    return os.path.join(guest.GUEST, "debian.img")


def setUpModule():
    global MODULE_REASON
    done = subprocess.run([os.path.join(guest.ROOT, "tools/mkimage"), image(), "--kernel", guest.GUEST],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    if done.returncode != 0:
        MODULE_REASON = "no Debian disk: " + (done.stdout.strip().split("\n") or ["?"])[-1]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Debian(suite.Case):
    def setUp(self):
        super().setUp()
        if MODULE_REASON:
            self.skipTest(MODULE_REASON)

    def boot(self, disk, *arguments, memory="1G"):
        """Boot to a root shell."""
        console = self.start(guest.doppel("--disk", disk, *arguments, append="root=/dev/vda rw quiet",
                                          memory=memory))
        console.log_in()
        return console

    def test_line_ends(self):
        """a login without a terminal, with LF as scripts send it and with CR as a keyboard does"""
        console = self.start(guest.doppel("--disk", f"path={image()},snapshot=on", "--net", "none",
                                          append="root=/dev/vda rw quiet", memory="1G"), plain=True)
        for end in ("\n", "\r", "\n"):
            console.log_in(end=end)
            console.send("echo line-$((40 + 2))" + end)
            console.expect("^line-42$")
            console.send("exit" + end)
        console.interrupt()
        console.wait(20)

    def power_off(self, console):
        console.send("poweroff\n")
        self.assertEqual(console.wait(120), 0)
        self.assertEqual(console.stderr(), "")

    def test_login(self):
        """systemd without a failed unit; a program compiled and run; python, perl, openssl agree"""
        console = self.boot(f"path={image()},snapshot=on")
        self.assertEqual(console.command("systemctl --failed --no-legend").strip(), "")
        self.assertIn("running", console.command("systemctl is-system-running --wait"))
        number = f"{math.sqrt(2) * math.cos(1):.9f}"
        console.command("cd /tmp; printf '#include <stdio.h>\\n#include <math.h>\\nint main(void)"
                        "{ printf(\"%%.9f\\\\n\", sqrt(2)*cos(1)); return 3; }\\n' >a.c")
        console.command("gcc -O2 -Wall a.c -o a -lm", 120)
        self.assertIn(number, console.command("./a", status=3))
        self.assertIn(number, console.command(
            "python3 -c 'import math; print(\"%.9f\" % (2**.5*math.cos(1)))'"))
        self.assertIn(number, console.command("perl -e 'printf \"%.9f\\n\", sqrt(2)*cos(1)'"))
        expected = hashlib.sha512(b"doppel\n").hexdigest()
        for program in ("sha512sum", "openssl dgst -sha512"):
            self.assertIn(expected, console.command(f"echo doppel | {program}"))
        console.command("seq 1 300000 >n; xz -k n; 7z a -bd n.7z n >/dev/null; xz -dc n.xz | cmp - n; "
                        "7z x -so n.7z 2>/dev/null | cmp - n", 180)
        self.power_off(console)

    def test_fetch(self):
        """100 MB over HTTP"""
        data = os.urandom(1 << 20) * 100
        self.file("data", data)
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=self.folder))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            console = self.boot(f"path={image()},snapshot=on", "--net", "user")
            url = f"http://10.0.2.2:{server.server_address[1]}/data"
            text = console.command(f"curl -s {url} | sha256sum", 180)
            self.assertIn(hashlib.sha256(data).hexdigest(), text)
            self.power_off(console)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def test_persistence(self):
        """writes survive power-off and reboot, and the file system is clean"""
        path = self.path("debian.img")
        subprocess.run(["cp", "--sparse=always", image(), path], check=True)
        console = self.boot("path=" + path)
        console.command("seq 1 1000000 >/root/numbers; sha256sum /root/numbers >/root/sum")
        console.send("reboot\n")
        console.expect("doppel-init: started", 120)
        console.log_in()
        console.command("sha256sum -c /root/sum")
        self.power_off(console)
        tool = next((p for p in ("/usr/sbin/e2fsck", "/sbin/e2fsck") if os.path.exists(p)), "e2fsck")
        done = subprocess.run([tool, "-f", "-n", path], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_power_button(self):
        """the guest shuts down when its power button is pressed"""
        console = self.boot(f"path={image()},snapshot=on")
        console.send("\x01p")
        self.assertEqual(console.wait(120), 0)
        self.assertRegex(console.text, re.compile("Power down|Powering off|power-off", re.I))


if __name__ == "__main__":
    suite.main()
