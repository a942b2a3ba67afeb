#!/usr/bin/env python3
"""virtio-blk: what is written is there afterwards, and only what may be written is."""

import hashlib
import os
import re
import shutil
import subprocess

import guest
import suite

QUIET = "quiet doppel.net=off"
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Disk(suite.Case):
    def tool(self, name):
        """A host program, or the test is skipped."""
        path = shutil.which(name, path=PATH)
        if not path:
            self.skipTest(f"no {name}")
        return path

    def image(self, name="disk.img", size=64 << 20):
        """An ext4 file system with one file."""
        path = self.file(name, b"")
        os.truncate(path, size)
        content = self.path("content")
        os.makedirs(content, exist_ok=True)
        with open(os.path.join(content, "hello"), "w", encoding="ascii") as file:
            file.write("from the host\n")
        subprocess.run([self.tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", content, path], check=True)
        return path

    def run_guest(self, command, *disks, status=0, timeout=120):
        """Boot with @disks, run @command, power off; the console's text."""
        arguments = [word for disk in disks for word in ("--disk", disk)]
        console = self.start(guest.doppel("--net", "none", *arguments,
                                          append=f'{QUIET} doppel.cmd="{command}"'))
        match = console.expect(r"doppel-init: status (\d+)\n", timeout)
        self.assertEqual(int(match[1]), status, console.tail())
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr(), "")
        return console.text

    def check_clean(self, path):
        done = subprocess.run([self.tool("e2fsck"), "-f", "-n", path], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)

    def cat(self, path, name):
        return subprocess.run([self.tool("debugfs"), "-R", "cat " + name, path], check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    def test_write_persists(self):
        """writes survive a power-off and the file system is clean"""
        path = self.image()
        text = self.run_guest("mount -t ext4 /dev/vda /mnt && cat /mnt/hello && echo from the guest >/mnt/answer && "
                              "mkdir /mnt/d && seq 1 200000 >/mnt/d/numbers && umount /mnt", "path=" + path)
        self.assertIn("from the host", text)
        self.check_clean(path)
        self.assertEqual(self.cat(path, "/answer"), b"from the guest\n")
        self.assertEqual(self.cat(path, "/d/numbers").split(), [b"%d" % i for i in range(1, 200001)])
        text = self.run_guest("mount -t ext4 /dev/vda /mnt && tail -n 1 /mnt/d/numbers", "path=" + path)
        self.assertIn("200000", text)

    def test_host_limit(self):
        """where the host stores no more, the guest gets an error, the user a line, and both go on"""
        limit = 2 << 30  # what the monitor needs for itself fits in
        path = self.file("disk.img", b"")
        os.truncate(path, limit + (64 << 20))
        console = self.start(["prlimit", f"--fsize={limit}",
                              *guest.doppel("--net", "none", "--disk", "path=" + path, append=QUIET)])
        console.expect(r"# $")
        write = "dd if=/dev/urandom of=/dev/vda bs=1M conv=notrunc oflag=direct "
        console.command(write + f"seek={(limit >> 20) - 4} count=8", status=1)
        console.command(write + "count=4")
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertRegex(console.stderr(), r"^doppel: disk0: write of \d+ bytes at \d+: File too large\n")
        with open(path, "rb") as file:
            self.assertNotEqual(file.read(4096), bytes(4096))

    def test_journal_replay(self):
        """what was synced survives a machine that is killed"""
        path = self.image()
        console = self.start(guest.doppel("--net", "none", "--disk", "path=" + path, append=QUIET))
        console.expect(r"# $")
        console.command("mount -t ext4 /dev/vda /mnt")
        console.command("seq 1 100000 >/mnt/numbers; sync; (while :; do echo x >>/mnt/noise; done) & true")
        console.process.kill()
        console.process.wait()
        self.run_guest("mount -t ext4 /dev/vda /mnt && umount /mnt", "path=" + path)
        self.check_clean(path)
        self.assertEqual(len(self.cat(path, "/numbers").split()), 100000)

    def test_readonly(self):
        """readonly=on: the guest knows, and the image stays"""
        path = self.image()
        before = sha256(path)
        text = self.run_guest("cat /sys/block/vda/ro; mount -t ext4 -o ro /dev/vda /mnt && cat /mnt/hello; umount /mnt; "
                              "dd if=/dev/zero of=/dev/vda bs=4096 count=1 2>/dev/null && echo written; true",
                              f"path={path},readonly=on")
        self.assertRegex(text, r"(?m)^1$")
        self.assertIn("from the host", text)
        self.assertNotIn("written", text)
        self.assertEqual(sha256(path), before)

    def test_readonly_file(self):
        """an image without write permission serves readonly=on and snapshot=on"""
        path = self.image()
        os.chmod(path, 0o444)
        for mode in ("readonly=on", "snapshot=on"):
            text = self.run_guest("mount -t ext4 -o ro /dev/vda /mnt && cat /mnt/hello", f"path={path},{mode}")
            self.assertIn("from the host", text)

    def test_snapshot(self):
        """snapshot=on: the guest may write, the image stays"""
        path = self.image()
        before = sha256(path)
        text = self.run_guest("mount -t ext4 /dev/vda /mnt && seq 1 300000 >/mnt/n && sync && "
                              "echo 3 >/proc/sys/vm/drop_caches && tail -n 1 /mnt/n && umount /mnt && "
                              "mount -t ext4 /dev/vda /mnt && md5sum /mnt/n", f"path={path},snapshot=on")
        numbers = b"".join(b"%d\n" % i for i in range(1, 300001))
        self.assertIn(hashlib.md5(numbers).hexdigest(), text)
        self.assertEqual(sha256(path), before)

    def test_patterns(self):
        """sectors here and there, small and large, to their places"""
        path = self.file("raw.img", b"")
        os.truncate(path, 40 << 20)
        marks = [(0, 1), (1, 1), (7, 3), (2047, 2), (4096, 128), (65535, 1), (81919, 1)]
        commands = [f"yes {sector}-{count} | head -c {512 * count} | "
                    f"dd of=/dev/vda bs=512 seek={sector} conv=notrunc 2>/dev/null"
                    for sector, count in marks]
        self.run_guest(" && ".join(commands) + " && sync", "path=" + path)
        expected = bytearray(40 << 20)
        for sector, count in marks:
            text = (f"{sector}-{count}\n" * (512 * count)).encode()[:512 * count]
            expected[sector * 512:sector * 512 + len(text)] = text
        with open(path, "rb") as file:
            self.assertEqual(hashlib.sha256(file.read()).digest(), hashlib.sha256(expected).digest())

    def test_large_transfers(self):
        """100 MB of noise read and copied, checksums equal"""
        source = self.path("noise.img")
        with open(source, "wb") as file:
            for _ in range(100):
                file.write(os.urandom(1 << 20))
        target = self.file("copy.img", b"")
        os.truncate(target, 100 << 20)
        text = self.run_guest("cat /sys/block/vda/size /sys/block/vdb/size; sha256sum /dev/vda; "
                              "dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null; sync",
                              f"path={source},readonly=on", "path=" + target)
        self.assertEqual(re.findall(r"(?m)^(\d+)$", text), ["204800", "204800"])
        self.assertIn(sha256(source), text)
        self.assertEqual(sha256(source), sha256(target))

    def test_parallel(self):
        """several readers and writers at once"""
        path = self.image(size=128 << 20)
        text = self.run_guest("mount -t ext4 /dev/vda /mnt && cd /mnt && for i in 1 2 3 4 5 6; do "
                              "(seq $i 6 400000 >f$i; sync; md5sum f$i >s$i) & done; wait; "
                              "echo 3 >/proc/sys/vm/drop_caches; cat s? | md5sum -c && cd / && umount /mnt",
                              "path=" + path)
        self.assertEqual(len(re.findall(r"(?m)^f\d: OK$", text)), 6)
        self.check_clean(path)

    def test_discard(self):
        """discarded blocks leave the image, and read as zeros"""
        path = self.file("raw.img", os.urandom(8 << 20))
        blocks = os.stat(path).st_blocks
        self.run_guest("blkdiscard -o 1048576 -l 4194304 /dev/vda", "path=" + path)
        self.assertLess(os.stat(path).st_blocks, blocks - 4096)
        with open(path, "rb") as file:
            file.seek(1 << 20)
            self.assertEqual(file.read(4 << 20), bytes(4 << 20))


if __name__ == "__main__":
    suite.main()
