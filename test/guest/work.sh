#!/bin/sh
# Work in a guest whose results are known: work SECONDS. Four kinds at the same time, each round checked:
# a checksum, a tree of processes, timers against the clock, a device. Ends with "work: good" when nothing was wrong,
# and the kernel found nothing to complain of.
seconds=$1

uptime_cs() {
	read -r now rest </proc/uptime
	echo "${now%.*}${now#*.}"
}

end=$(($(uptime_cs) + seconds * 100))
not_over() {
	[ "$(uptime_cs)" -lt $end ]
}

bad() {
	echo "work: BAD $*"
	echo "$*" >>/tmp/bad
}

checksums() {
	dd if=/dev/urandom of=/tmp/data bs=1024 count=256 2>/dev/null
	first=$(md5sum </tmp/data)
	rounds=0
	while not_over; do
		sum=$(md5sum </tmp/data)
		[ "$sum" = "$first" ] || bad "checksum $sum, not $first"
		sum=$(seq 1 2000 | sort -rn | md5sum)
		[ "${sum%% *}" = 1fd3c981e66b7eb0c08e95857967e70d ] || bad "sorted numbers: $sum"
		rounds=$((rounds + 1))
	done
	echo "work: $rounds checksums"
}

# Exits with the number of processes below and with it.
tree() {
	[ "$1" -gt 0 ] || exit 1
	(tree $(($1 - 1))) &
	left=$!
	(tree $(($1 - 1))) &
	right=$!
	wait $left
	sum=$?
	wait $right
	exit $((sum + $? + 1))
}

trees() {
	rounds=0
	while not_over; do
		(tree 4)
		count=$?
		[ $count = 31 ] || bad "$count processes, not 31"
		rounds=$((rounds + 1))
	done
	echo "work: $rounds trees"
}

# A sleep takes as long as it was asked to, and no clock goes back.
timers() {
	rounds=0
	wall=$(date +%s)
	while not_over; do
		before=$(uptime_cs)
		usleep 50000
		passed=$(($(uptime_cs) - before))
		[ $passed -ge 4 ] || bad "50 ms took $passed hundredths of a second"
		[ $passed -lt 1500 ] || bad "50 ms took $passed hundredths of a second"
		now=$(date +%s)
		[ "$now" -ge "$wall" ] || bad "the clock went from $wall to $now"
		wall=$now
		rounds=$((rounds + 1))
	done
	echo "work: $rounds sleeps"
}

# Of a device whose doorbells are rung: it goes on delivering.
randomness() {
	rounds=0
	while not_over && [ -e /dev/hwrng ]; do
		count=$(dd if=/dev/hwrng bs=64 count=8 2>/dev/null | wc -c)
		[ "$count" = 512 ] || bad "$count random bytes, not 512"
		rounds=$((rounds + 1))
		usleep 100000
	done
	echo "work: $rounds reads from the device"
}

# The clocks are read one after the other, and seconds may pass in between: between these two it was.
started=$(uptime_cs)
wall_started=$(date +%s)
started_by=$(uptime_cs)
checksums &
randomness &
trees &
timers &
wait
least=$((($(uptime_cs) - started_by) / 100))
wall=$(($(date +%s) - wall_started))
most=$((($(uptime_cs) - started) / 100))
[ $wall -ge $((least - 2)) ] && [ $wall -le $((most + 2)) ] ||
	bad "$least to $most s of uptime, $wall s of wall time"
# Not of the work: a processor that is emulated has no steady clock to offer, so that Linux takes the TSCs of
# several for "unsynchronized" if it manages to measure one at all (what it finds by comparing them reads
# otherwise), and the host's weaknesses.
complaints=$(dmesg -r | grep -iE 'unstable|stall|lockup|skew|warped|bug:|warning:|oops:|backward' |
	grep -vE 'could not calculate TSC|TSCs unsynchronized|Unstable clock detected|RETBleed|Spectre')
[ -z "$complaints" ] || bad "the kernel: $complaints"
[ -e /tmp/bad ] || echo "work: good"
