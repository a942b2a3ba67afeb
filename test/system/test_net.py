#!/usr/bin/env python3
"""virtio-net over user networking: addresses, names, TCP, UDP, forwards, and what "none" means; and over a tap
interface: both directions, large segments, refusals."""

import base64
import functools
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time

import guest
import suite


# In a network and mount namespace of its own: bring the loopback interface up, put @argv[1] in the place of
# resolv.conf, answer each question for an address with 192.0.2.7 (RFC 1035, 4.1), and run the rest of @argv.
NAME_SERVER = """
import fcntl, socket, struct, subprocess, sys, threading
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SIOCSIFFLAGS, UP_RUNNING = 0x8914, 0x41
fcntl.ioctl(server, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", UP_RUNNING))
server.bind(("127.0.0.1", 53))
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
def answer():
    while True:
        query, client = server.recvfrom(512)
        end = query.index(0, 12) + 5
        is_address = query[end - 4:end - 2] == bytes([0, 1])
        reply = query[:2] + struct.pack(">HHHHH", 0x8180, 1, is_address, 0, 0) + query[12:end]
        if is_address:
            reply += struct.pack(">HHHIH", 0xc00c, 1, 1, 60, 4) + bytes([192, 0, 2, 7])
        server.sendto(reply, client)
threading.Thread(target=answer, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""


TAP_HOST = os.path.join(guest.ROOT, "test/system/tap_host.py")


def in_namespaces(*kinds):
    """How a program gets namespaces of its own of these kinds, or None when it cannot."""
    command = ["unshare", *(f"--{kind}" for kind in kinds), "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        command.append("--map-root-user")
    done = subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False)
    return command if done.returncode == 0 else None


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Net(suite.Case):
    def serve_http(self):
        """An HTTP server for the test's folder; its port."""
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=self.folder))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server.server_address[1]

    def boot(self, *arguments):
        console = self.start(guest.doppel(*arguments, append="quiet"))
        console.expect(r"# $")
        return console

    def power_off(self, console):
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr(), "")

    def test_address(self):
        """an address by DHCP, a gateway, a name server"""
        console = self.boot("--net", "user")
        self.assertIn("inet 10.0.2.", console.command("ip addr show eth0"))
        self.assertIn("default via 10.0.2.2", console.command("ip route"))
        self.assertIn("nameserver 10.0.2.3", console.command("cat /etc/resolv.conf"))
        self.power_off(console)

    def test_names(self):
        """names are asked of the host's name server"""
        inside = in_namespaces("net", "mount")
        if not os.path.exists("/etc/resolv.conf") or not inside:
            self.skipTest("needs /etc/resolv.conf and namespaces")
        resolv = self.file("resolv.conf", b"nameserver 127.0.0.1\n")
        console = self.start([*inside, sys.executable, "-c", NAME_SERVER, resolv,
                              *guest.doppel("--net", "user", append="quiet")])
        console.expect(r"# $")
        answer = console.command("nslookup doppel.test")
        self.assertRegex(answer, r"Name:\s+doppel.test\nAddress:\s+192\.0\.2\.7\n")
        self.power_off(console)

    def test_default(self):
        """user networking is the default"""
        console = self.boot()
        self.assertIn("inet 10.0.2.", console.command("ip addr show eth0"))
        self.power_off(console)

    def test_none(self):
        """--net none: no interface"""
        console = self.boot("--net", "none")
        console.command("test -e /sys/class/net/eth0", status=1)
        self.power_off(console)

    def test_fetch(self):
        """100 MB over HTTP, checksum equal"""
        data = os.urandom(1 << 20) * 100
        self.file("data", data)
        port = self.serve_http()
        console = self.boot("--net", "user")
        text = console.command(f"wget -q -O - http://10.0.2.2:{port}/data | sha256sum", 180)
        self.assertIn(hashlib.sha256(data).hexdigest(), text)
        self.power_off(console)

    def test_send(self):
        """20 MB from the guest to the host"""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        digest = hashlib.sha256()

        def take():
            peer, _ = listener.accept()
            with peer:
                while block := peer.recv(65536):
                    digest.update(block)

        thread = threading.Thread(target=take, daemon=True)  # a guest that never connects leaves it waiting
        thread.start()
        console = self.boot("--net", "user")
        port = listener.getsockname()[1]
        console.command(f"head -c 20000000 /dev/urandom >/tmp/data; nc 10.0.2.2 {port} </tmp/data", 120)
        thread.join(20)
        self.assertIn(digest.hexdigest(), console.command("sha256sum /tmp/data"))
        self.power_off(console)

    def serve_tftp(self, server, data):
        """Answer one read request (RFC 1350) on @server, a UDP socket."""
        _, peer = server.recvfrom(1000)
        for block in range(1, len(data) // 512 + 2):
            part = data[(block - 1) * 512:block * 512]
            server.sendto(struct.pack(">HH", 3, block) + part, peer)
            answer, _ = server.recvfrom(1000)
            if answer != struct.pack(">HH", 4, block):
                return

    def test_udp(self):
        """a file by TFTP, hundreds of datagrams there and back"""
        data = os.urandom(200000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.settimeout(60 * guest.PATIENCE)
            thread = threading.Thread(target=self.serve_tftp, args=(server, data), daemon=True)
            thread.start()
            console = self.boot("--net", "user")
            port = server.getsockname()[1]
            console.command(f"tftp -g -b 512 -r file -l /tmp/file 10.0.2.2 {port}")
            thread.join(5)
        self.assertIn(hashlib.sha256(data).hexdigest(), console.command("sha256sum /tmp/file"))
        self.power_off(console)

    def test_ping(self):
        """the gateway answers pings"""
        console = self.boot("--net", "user")
        self.assertIn(" 0% packet loss", console.command("ping -c 5 -i 0.2 -s 1000 10.0.2.2"))
        self.power_off(console)

    def test_forward(self):
        """a host port forwarded to a server in the guest"""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        console = self.boot("--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:80")
        console.command("mkdir /tmp/www; seq 1 100000 >/tmp/www/numbers; httpd -h /tmp/www -p 80")
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port), timeout=60 * guest.PATIENCE) as peer:
            peer.sendall(b"GET /numbers HTTP/1.0\r\n\r\n")
            data = b""
            while block := peer.recv(65536):
                data += block
        self.assertEqual(data.split(b"\r\n\r\n", 1)[1].split(), [b"%d" % i for i in range(1, 100001)])
        self.power_off(console)

    def test_many_connections(self):
        """two hundred connections, ten at a time"""
        self.file("small", b"small\n")
        port = self.serve_http()
        console = self.boot("--net", "user")
        text = console.command(
            "for i in $(seq 20); do for k in $(seq 10); do "
            f"wget -q -O - http://10.0.2.2:{port}/small >>/tmp/all & done; wait; done; wc -l </tmp/all", 180)
        self.assertEqual(text.split()[-1], "200")
        self.power_off(console)

    def test_refused(self):
        """a port nobody listens on, and forwards to nobody, do no harm"""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            closed = probe.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            forwarded = probe.getsockname()[1]
        console = self.boot("--net", f"user,hostfwd=tcp:127.0.0.1:{forwarded}-:81")
        console.command(f"nc -w 5 10.0.2.2 {closed} </dev/null", status=1)
        with socket.create_connection(("127.0.0.1", forwarded), timeout=20) as peer:
            peer.settimeout(20)
            try:
                self.assertEqual(peer.recv(10), b"")
            except ConnectionResetError:
                pass
        console.command("ping -c 1 10.0.2.2")
        self.power_off(console)


class Tap(suite.Case):
    def setUp(self):
        super().setUp()
        self.inside = in_namespaces("net")
        if not self.inside or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            self.skipTest("needs /dev/net/tun and a network namespace")

    def host(self, *program):
        """@program where the interface tap0 is."""
        return [*self.inside, sys.executable, TAP_HOST, self.folder, *program]

    def boot(self, *arguments):
        console = self.start(self.host(*guest.doppel("--net", "tap,ifname=tap0", *arguments,
                                                     append="quiet doppel.net=off")))
        console.expect(r"# $")
        console.command("ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up")
        return console

    def power_off(self, console):
        console.send("poweroff -f\n")
        self.assertEqual(console.wait(), 0)
        self.assertEqual(console.stderr(), "")

    def test_ping(self):
        """tap: packets of many sizes there and back"""
        console = self.boot()
        for size in (0, 100, 1472, 20000):
            self.assertIn(" 0% packet loss", console.command(f"ping -c 3 -i 0.2 -s {size} 10.9.0.1"))
        self.power_off(console)

    def test_transfer(self):
        """tap: 50 MB to the guest, 50 MB from it, in segments larger than a frame"""
        data = base64.b64encode(os.urandom(3 << 18)) * 50  # no zeros, which busybox' wget would stop at
        self.file("data", data)
        digest = hashlib.sha256(data).hexdigest()
        console = self.boot("-c", "2")
        self.assertIn(digest, console.command("wget -q -O /tmp/data http://10.9.0.1/data; sha256sum /tmp/data", 120))
        self.assertIn(digest, console.command("wget -q -O - --post-file /tmp/data http://10.9.0.1/", 120))
        packets = console.command("cat /sys/class/net/eth0/statistics/?x_packets").split()
        for count in packets:  # 36,000 frames of 1,500 bytes each way
            self.assertLess(int(count), 25000)
        self.power_off(console)

    def test_server(self):
        """tap: the host connects to a server in the guest"""
        console = self.boot()
        console.command("mkdir /tmp/www; seq 1 300000 >/tmp/www/numbers; httpd -h /tmp/www -p 80")
        expected = hashlib.sha256("".join(f"{n}\n" for n in range(1, 300001)).encode()).hexdigest()
        self.assertIn(expected, console.command("wget -q -O - http://10.9.0.1/sum/numbers"))
        self.power_off(console)

    def test_not_taken(self):
        """tap: frames that the guest does not take do no harm, and it takes others later"""
        console = self.boot()
        console.command("ip link set eth0 down")
        # Nobody answers, so the host's kernel asks again and again; the interface's queue is bounded.
        console.command("sleep 1; ip link set eth0 up")
        console.command("echo ready >/tmp/ready; mkdir /tmp/www; mv /tmp/ready /tmp/www; httpd -h /tmp/www -p 80")
        self.assertIn(hashlib.sha256(b"ready\n").hexdigest(),
                      console.command("wget -q -O - http://10.9.0.1/sum/ready"))
        self.power_off(console)

    def refused(self, *program):
        done = subprocess.run(self.host(*program), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, timeout=60 * guest.PATIENCE, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Adoppel: [^\n]*\n\Z")
        return done.stderr

    def test_refusals(self):
        """tap: an interface of another kind, or in use, gives one line and status 1"""
        self.assertIn("tap lo: Invalid argument", self.refused(*guest.doppel("--net", "tap,ifname=lo", append="")))
        taken = guest.doppel("--net", "tap,ifname=tap0", "--net", "tap,ifname=tap0", append="")
        self.assertIn("tap tap0: Device or resource busy", self.refused(*taken))


if __name__ == "__main__":
    suite.main()
