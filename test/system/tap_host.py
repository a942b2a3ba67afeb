#!/usr/bin/env python3
"""A host with a tap interface, in a network namespace of its own: test/system/tap_host.py FOLDER PROGRAM...

Makes the interface tap0 (10.9.0.1/24), serves FOLDER by HTTP on port 80 there, and runs PROGRAM; its status is ours.
A request for /sum/PATH is answered with the SHA-256 of what the guest (10.9.0.2) gives for /PATH, which
takes a connection the other way; what is posted is answered with its SHA-256.
"""

import fcntl
import functools
import hashlib
import http.server
import socket
import struct
import subprocess
import sys
import threading
import urllib.request

TUNSETIFF, TUNSETPERSIST = 0x400454ca, 0x400454cb
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891c
UP_RUNNING = 0x41
HOST, GUEST = "10.9.0.1", "10.9.0.2"


def make_tap(name):
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(tun, TUNSETPERSIST, 1)


def set_up(name, address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(any_socket, request,
                        struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(value)))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", name, UP_RUNNING))


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, text):
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if not self.path.startswith("/sum/"):
            super().do_GET()
            return
        with urllib.request.urlopen(f"http://{GUEST}/{self.path[5:]}", timeout=60) as reply:
            self.answer(hashlib.sha256(reply.read()).hexdigest() + "\n")

    def do_POST(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left and (block := self.rfile.read(min(left, 65536))):
            digest.update(block)
            left -= len(block)
        self.answer(digest.hexdigest() + "\n")


def main():
    make_tap(b"tap0")
    set_up(b"lo", "127.0.0.1")
    set_up(b"tap0", HOST)
    server = http.server.ThreadingHTTPServer((HOST, 80), functools.partial(Handler, directory=sys.argv[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.exit(subprocess.run(sys.argv[2:], check=False).returncode)


if __name__ == "__main__":
    main()
