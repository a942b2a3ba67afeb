#!/usr/bin/env python3
"""virtio-net over user networking: addresses, names, TCP, UDP, forwards, and what "none" means."""

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
        inside = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            inside.append("--map-root-user")
        if not os.path.exists("/etc/resolv.conf") or subprocess.run(
                [*inside, "true"], stderr=subprocess.DEVNULL).returncode:
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


if __name__ == "__main__":
    suite.main()
