#!/usr/bin/env python3
"""Hours of mixed work in a Debian guest, every result checked: test/system/soak.py [SECONDS]

Not part of "make test" ("make soak", 30 minutes by default). Each round runs at once: a compiler whose objects must
equal those of the first round, checksums of the same noise, compression there and back, and processes by the
hundred. The guest stops at the first wrong result; this program then shows which.
"""

import base64
import os
import subprocess
import sys

import guest

WORK = r"""
cd /tmp
die() { echo "wrong: $*" >>/tmp/wrong; }
compile() {
	for i in 1 2 3; do gcc -O2 -c soak.c -o soak.$i.o || die "gcc $i"; done
	for i in 1 2 3; do cmp -s soak.$i.o soak.o || die "object $i differs"; done
	gcc -O1 soak.c -o soak.run && [ "$(./soak.run)" = "$(cat soak.expected)" ] || die "compiled program"
}
checksum() { sha256sum --status -c noise.sum || die "sha256"; openssl dgst -md5 noise | cmp -s - noise.md5 || die "md5"; }
pack() { xz -T1 -2 -c noise.text | xz -dc | cmp -s - noise.text || die "xz"; gzip -c noise | gzip -dc | cmp -s - noise || die "gzip"; }
processes() {
	n=0
	for i in $(seq 150); do n=$((n + $(echo $i | sed s/x/y/))); done
	[ $n = 11325 ] || die "sum $n of forked processes"
	python3 -c 'import os
for i in range(60):
    pid = os.fork()
    if not pid: os._exit(i)
    assert os.waitpid(pid, 0)[1] == i << 8' || die "fork"
}
round=0
end=$(($(date +%s) + $1))
while [ $(date +%s) -lt $end ] && [ ! -e wrong ]; do
	compile & checksum & pack & processes & wait
	round=$((round + 1))
	echo "soak-round $round"
done
[ ! -e wrong ] || { cat wrong; exit 1; }
"""

PREPARE = r"""
seq 1 40 | sed 's/.*/int f&(int a){int s=a;for(int i=0;i<a;i++){s+=i*&;if(s>&)s-=s%7;else s^=i<<2;}return s;}/' >soak.c
(echo '#include <stdio.h>'; echo 'int main(void){unsigned t=0;'; seq 1 40 | sed 's/.*/t=t*31+f&(&+50);/'
 echo 'printf("%u",t);}') >>soak.c
gcc -O2 -c soak.c -o soak.o
gcc -O0 soak.c -o soak.slow
./soak.slow >soak.expected
head -c 8M /dev/urandom >noise; seq 1 150000 >noise.text
sha256sum noise >noise.sum; openssl dgst -md5 noise >noise.md5
"""


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 1800
    image = os.path.join(guest.GUEST, "debian.img")
    subprocess.run([os.path.join(guest.ROOT, "tools/mkimage"), image, "--kernel", guest.GUEST], check=True)
    argv = guest.doppel("--disk", f"path={image},snapshot=on", "--net", "none", *sys.argv[2:],
                        append="root=/dev/vda rw quiet", memory="1G")
    with guest.Console(argv) as console:
        console.log_in()
        console.command("mount -t tmpfs tmp /tmp; cd /tmp; stty -echo", 60)
        for name, text in (("prepare", PREPARE), ("work", WORK)):
            # A shell that edits its line would take a tab for a wish.
            coded = base64.encodebytes(text.encode()).decode()
            console.command(f"base64 -d >{name} <<END\n{coded}END\ntrue", 60)
        console.command("sh -e ./prepare", 300)
        text = console.command(f"sh ./work {seconds}", seconds + 600, status=None)
        rounds = text.count("soak-round")
        wrong = [line for line in text.split("\n") if line.startswith("wrong: ")]
        console.send("poweroff\n")
        status = console.wait(120)
    print(f"soak: {rounds} rounds in {seconds} s, {len(wrong)} wrong results")
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(1 if wrong or not rounds or status else 0)


if __name__ == "__main__":
    try:
        main()
    except (guest.Failure, subprocess.CalledProcessError) as error:
        sys.exit(f"soak: {error}")
