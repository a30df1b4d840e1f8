# Runs systemd as PID 1 of a machine of its own: namespaces, and a root of its own, a Debian's folder that is only read with
# all that is written in memory above it. Of the real machine it has the network namespace that it is started in, and the
# kernel, whose settings it reads and does not change.
# It is to be run in a mount namespace of its own already, `unshare --mount sh machine.sh ...`: no mount of its is seen
# outside, where a careless hand could remove what is in it.
# Arguments: a folder for its root and cgroups, the Debian's folder.
set -eu

if [ "$1" != inside ]; then
    work=$1
    if [ "$(readlink /proc/self/ns/mnt)" = "$(readlink /proc/$PPID/ns/mnt)" ]; then
        echo "run it in a mount namespace of its own" >&2
        exit 1
    fi
    mkdir "$work/root" "$work/cgroup"
    mount -t cgroup2 cgroup2 "$work/cgroup"
    own=$work/cgroup/atlas-machine-$$
    mkdir "$own"
    # That process moves, this one stays to tidy up; the machine does not outlive it, however it ends.
    ( echo 0 > "$own/cgroup.procs"; exec setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh "$0" inside "$@" ) &
    machine=$!
    trap 'kill -KILL $machine' TERM INT
    wait $machine || wait $machine || true
    # What it ran is dying: a group can be removed once it is empty.
    tries=200
    until find "$own" -depth -type d -exec rmdir {} + 2>/dev/null; do
        [ -d "$own" ] && [ $((tries -= 1)) -gt 0 ] || break
        sleep 0.05
    done
    [ ! -d "$own" ]
    exit
fi

shift
work=$1 debian=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work/root"
cd "$work/root"
mkdir changed working merged
mount -t overlay -o "lowerdir=$debian,upperdir=changed,workdir=working" overlay merged
cd merged
mkdir -p old
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
hostname machine
echo machine > etc/hostname
echo "127.0.0.1 localhost machine" > etc/hosts
ln -s /dev/null etc/systemd/system/console-getty.service # there is no console
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
# What its files and the page have `sysctl` set is set in memory. Both sizes begin as a kernel's own, so that a change is seen.
for setting in $(sed -n 's/^\([a-z][a-z0-9_.]*\) *=.*/\1/p' usr/lib/sysctl.d/*.conf) net.core.rmem_max net.core.wmem_max; do
    file=proc/sys/$(echo "$setting" | tr . /)
    cat "$file" > "../$setting"
    mount --bind "../$setting" "$file"
done
echo 212992 | tee ../net.core.rmem_max > ../net.core.wmem_max
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s pts/ptmx dev/ptmx
: > dev/console # systemd's log
mount -t tmpfs -o mode=755 tmpfs run
pivot_root . old
umount -l old
if [ -e /old/usr ]; then
    echo "the real machine can still be written" >&2
    exit 1
fi
rmdir /old
exec env -i container=lab PATH=/usr/sbin:/usr/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
