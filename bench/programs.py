"""Real programs: the same files natively, under QEMU and under doppel.

All three run the programs of the Debian disk of tools/mkimage: the guests boot from it, and the native column
enters a copy of its files (debugfs takes them out, and namespaces of its own keep the rest of this machine out of
sight; neither needs root). A row's measurements alternate between the three, each of which keeps one shell open
all the while. Times are wall times seen from outside, so that a guest clock that runs wrong flatters nobody;
only rates that a program computes itself ("openssl speed") rely on it.

Every wait has an end. A contender that misses it loses that row, says so, and starts anew.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import guest

# A C source with much to optimise, made on the spot so that all three compile the same.
GENERATE_C = ("seq 1 {n} | sed 's/.*/int f&(int a, int *p){{int s=a;for(int i=0;i<a;i++)"
              "{{s+=p[i]*&;if(s>&)s-=p[s%7];else s^=p[i%5]<<2;}}return s;}}/' >/tmp/bench.c")

PYTHON = ("import re\\nd={{}}\\nfor i in range({n}):\\n k=str(i%%5000)\\n d[k]=d.get(k,0)+i*3\\n"
          "s=sorted(d.items(),key=lambda x:-x[1])\\n"
          "t=sum(len(re.sub(\"[13]\",\"\",k))*v for k,v in s)\\nprint(t)")

PERL = ("$h{{$_ % 997}} .= $_ for 1..{n}; $t += () = /1[0-9]+3/g for values %h; "
        "print join(q(,), $t, length join q(), %h), qq(\\n)")

# name, amount of work {n}, what is done once before, what is measured
PROGRAMS = (
    ("python", 600000, f"printf '{PYTHON}' >/tmp/bench.py", "python3 /tmp/bench.py"),
    ("perl", 1500000, "true", f"perl -e '{PERL}'"),
    ("openssl-aes-gcm", 0, "true", "openssl speed -bytes 16384 -seconds 2 -evp aes-256-gcm"),
    ("openssl-sha256-memory", 0, "true", "openssl speed -bytes 16384 -seconds 2 -evp sha256"),
    ("openssl-sha256", 600, "head -c {n}M /dev/zero >/tmp/zeros", "openssl dgst -sha256 /tmp/zeros"),
    ("openssl-rsa2048", 0, "true", "openssl speed -seconds 2 rsa2048"),
    ("gcc", 120, GENERATE_C, "gcc -O2 -c /tmp/bench.c -o /tmp/bench.o"),
    ("7z", 300000, "rm -f /tmp/zeros; seq 1 {n} >/tmp/numbers",
     "rm -f /tmp/n.7z; 7z a -bd -mmt1 -mx5 /tmp/n.7z /tmp/numbers"),
    ("xz", 300000, "seq 1 {n} >/tmp/numbers", "xz -T1 -6 -c /tmp/numbers >/tmp/numbers.xz"),
    ("shell-500", 500, "true", "sh -c 'i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done'"),
)

# Programs that run for a fixed time and tell a rate instead: pattern in the output, larger is better.
RATES = {
    "openssl-aes-gcm": (re.compile(r"^AES-256-GCM +([0-9.]+)k", re.M | re.I), "kB/s"),
    "openssl-sha256-memory": (re.compile(r"^SHA(?:2-)?256 +([0-9.]+)k", re.M | re.I), "kB/s"),
    "openssl-rsa2048": (re.compile(r"^rsa 2048 bits\s.*?([0-9.]+)\s+[0-9.]+\s*$", re.M), "sign/s"),
}

# Inside the namespaces, before entering the copy: what programs expect of any machine.
ENTER = ("mount -t tmpfs tmp {root}/tmp && mount --rbind /dev {root}/dev && "
         "(mount -t proc proc {root}/proc 2>/dev/null || true) && cd / && exec chroot {root} /bin/sh")

START_SECONDS = 300


def say(text):
    print(text, file=sys.stderr, flush=True)


def extract(image):
    """The files of the Debian disk in a folder beside it, made anew when the disk is newer."""
    root = image + ".files"
    stamp = os.path.join(root, ".complete")
    if os.path.exists(stamp) and os.path.getmtime(stamp) >= os.path.getmtime(image):
        return root
    say("programs: taking the files out of the Debian disk")
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    tool = shutil.which("debugfs", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not tool:
        raise guest.Failure("no debugfs; tools/deps bench installs it")
    # Away from root it cannot set owners and says so for each file.
    subprocess.run([tool, "-R", f"rdump / {root}", image], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=600)
    if not os.path.exists(os.path.join(root, "usr/bin/python3")):
        raise guest.Failure(f"{image}: its files could not be taken out")
    for name in ("dev", "proc", "tmp"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    with open(stamp, "w", encoding="ascii"):
        pass
    return root


class Shell:
    """Where a contender's programs run. @argv starts it; @login: a guest that asks for a name first."""

    def __init__(self, argv, login):
        self.console = guest.Console(argv)
        try:
            if login:
                self._log_in()
            self.console.command("cd /tmp; export LC_ALL=C HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin", 60)
        except BaseException:
            self.console.close()
            raise

    def _log_in(self):
        self.console.log_in(START_SECONDS)
        self.console.command("mount -t tmpfs tmp /tmp", 60)

    def timed(self, command, limit):
        start = time.monotonic()
        try:
            text = self.console.command(command, limit)
        except guest.Timeout as error:
            raise guest.Failure(f"not done after {limit} s: {command}{self.console.tail()}") from error
        return time.monotonic() - start, text

    def close(self):
        self.console.close()


class Contender:
    """One column: its shell, started when first needed and again after a failure."""

    def __init__(self, results, name, argv):
        self.results = results
        self.name = name
        self.argv = argv
        self.shell = None
        self.lost = False

    def failed(self, what, error):
        """Report, and give the shell up, as nobody knows what it is doing now."""
        self.results.lose(what, self.name, error)
        self.close()

    def start(self):
        """Whether there is a shell; one that never came up is not tried again."""
        if self.shell or self.lost:
            return not self.lost
        say(f"programs: starting {self.name}")
        try:
            self.shell = Shell(self.argv, self.name != "native")
        except (guest.Failure, OSError) as error:
            self.failed("start", error)
            self.lost = True
        return not self.lost

    def close(self):
        if self.shell:
            self.shell.close()
        self.shell = None


def measure(results, contender, name, command, limit):
    """One measurement of a row."""
    seconds, text = contender.shell.timed(command + " 2>&1", limit)
    if name not in RATES:
        results.add(name, contender.name, seconds * 1000, "ms")
        return
    pattern, unit = RATES[name]
    match = pattern.search(text)
    if not match:
        raise guest.Failure(f"no rate in {text[-200:]!r}")
    results.add(name, contender.name, float(match[1]), unit, True)


def run_row(results, contenders, options, row):
    name, amount, prepare, command = row
    amount = max(int(amount * options.scale), 1)
    ready = []
    for contender in contenders:
        if not contender.start():
            continue
        try:
            contender.shell.timed(prepare.format(n=amount), options.limit)
            ready.append(contender)
        except guest.Failure as error:
            contender.failed(name, error)
    for number in range(options.rounds):
        for contender in list(ready):
            say(f"programs: {name}, round {number + 1}: {contender.name}")
            try:
                measure(results, contender, name, command.format(n=amount), options.limit)
            except guest.Failure as error:
                contender.failed(name, error)
                ready.remove(contender)


def run(results, options, machine):
    """Measure every row. @machine(contender, ...) is the command line that boots the Debian disk."""
    contenders = []
    for name in options.contenders:
        if name == "native":
            root = shlex.quote(extract(options.image))
            argv = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
                    "sh", "-c", ENTER.format(root=root)]
        else:
            argv = machine(name, append="root=/dev/vda rw quiet", memory="2G", disk=options.image)
        contenders.append(Contender(results, name, argv))
    try:
        for row in PROGRAMS:
            if not options.program or row[0] in options.program:
                run_row(results, contenders, options, row)
    finally:
        for contender in contenders:
            contender.close()
