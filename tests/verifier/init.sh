#!/bin/busybox sh
# The first process of the old kernel. What it finds goes to the serial console, in lines that begin with YURT.
PATH=/bin
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
$b ip link set lo up
# Addresses that are no loopback: a Service must not lead there.
$b ip addr add 192.0.2.1/32 dev lo
$b ip addr add 10.244.1.10/32 dev lo

end() {
    echo "YURT $1"
    $b poweroff -f
}

echo "YURT kernel $($b uname -r)"
yurt-net check --state-dir /run
yurt-net run --node edge-1 --source file:/manifests --state-dir /run --log-format text &
yurt-net status --wait 60s --state-dir /run >/dev/null || end "is not ready"
echo "YURT ready"
yurt-net status -o json --state-dir /run
# This time with a running agent: a connect by UDP from another cgroup is translated.
yurt-net check --state-dir /run && echo "YURT check ok"

$b nc -l -p 8080 -e $b echo hello &
$b sleep 1
echo "YURT served tcp4: $($b timeout 10 $b nc 10.96.0.10 80)"
$b timeout 10 $b nc -w 5 10.96.0.11 80 2>/run/refusal && end "a Service without endpoints was reached"
$b cat /run/refusal
$b grep -q 'Connection refused' /run/refusal && echo "YURT refused"
yurt-net status --state-dir /run
end done
