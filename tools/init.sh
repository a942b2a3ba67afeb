#!/bin/sh
# First process of doppel's small guest. The kernel command line steers it:
#
#   doppel.cmd="..."   run this under sh, report its status, power off (for tests)
#   doppel.net=off     do not ask for an address
#   root=DEV           mount DEV and hand over to its init (options from rootflags=, rw/ro, init=)
#
# Otherwise a shell with job control on the console; the machine powers off when it ends.
bb=/bin/busybox
$bb echo "doppel-init: started"
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM="${TERM:-linux}" PS1='\w # '

$bb --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
hostname -F /etc/hostname

while read -r module; do
	insmod "/lib/modules/$module" || echo "doppel-init: cannot load $module"
done </lib/modules/order

# The value of $1= on the kernel command line, quoted or not.
option() {
	sed -n -e "s/.*\b$1=\"\([^\"]*\)\".*/\1/p; t" -e "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

flag() {
	case " $(cat /proc/cmdline) " in *" $1 "*) return 0 ;; esac
	return 1
}

finish() {
	sync
	poweroff -f
}

# Device nodes appear a moment after their driver is loaded.
wait_for() {
	tries=0
	while [ ! -e "$1" ] && [ $tries -lt 100 ]; do
		usleep 20000
		tries=$((tries + 1))
	done
	[ -e "$1" ]
}

network_up() {
	ip link set lo up
	[ -e /sys/class/net/eth0 ] && [ "$(option doppel.net)" != off ] || return
	ip link set eth0 up
	udhcpc -i eth0 -f -q -n -t 5 -T 1 -s /bin/dhcp-event >/dev/null 2>&1 ||
		echo "doppel-init: no address for eth0"
}

cat >/bin/dhcp-event <<'END'
#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
: >/etc/resolv.conf
for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
END
chmod 755 /bin/dhcp-event

root=$(option root)
if [ -n "$root" ]; then
	wait_for "$root" || { echo "doppel-init: no $root"; finish; }
	mode=ro
	! flag rw || mode=rw
	flags=$(option rootflags)
	mount -t ext4 -o "$mode${flags:+,$flags}" "$root" /mnt ||
		{ echo "doppel-init: cannot mount $root"; finish; }
	init=$(option init)
	umount /tmp /dev/pts
	mount -o move /dev /mnt/dev
	umount /sys /proc
	exec switch_root /mnt "${init:-/sbin/init}"
fi

network_up
cmd=$(option doppel.cmd)
if [ -n "$cmd" ]; then
	sh -c "$cmd"
	echo "doppel-init: status $?"
	finish
fi

echo "doppel: busybox shell; 'exit' or 'poweroff -f' ends the machine"
cd /root || cd /
setsid cttyhack sh
finish
