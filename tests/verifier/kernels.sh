#!/bin/busybox sh
# The first process on another kernel: what the lab needs, then the lab's tests, one feature after another. What it finds goes to the
# serial console, in lines that begin with YURT.
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
. /environment
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmp /tmp
$b mount -t tmpfs run /run
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do
    $b insmod "$module" || echo "YURT no module $module"
done
ip link set lo up

echo "YURT kernel $($b uname -r)"
yurt-net check --state-dir /run
while read -r tests; do
    begun=$($b cut -d. -f1 /proc/uptime)
    # No word of it is more than one.
    if /bin/lab-tests --test-threads 1 $tests >/tmp/out 2>&1; then
        said=passed
    else
        said=FAILED
        $b cat /tmp/out
    fi
    count=$($b grep -c '^test .* \.\.\. ok' /tmp/out)
    echo "YURT $said $count in $(($($b cut -d. -f1 /proc/uptime) - begun)) s: $tests"
done </features
echo "YURT done"
$b poweroff -f
