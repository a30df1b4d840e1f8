# Runs systemd as PID 1 of a machine of its own: namespaces, and a root of its own in memory. Of the real machine it has
# /usr, read-only, the folder of a node, and the network namespace that it is started in. It starts nothing by itself.
# It is to be run in a mount namespace of its own already, `unshare --mount sh machine.sh ...`: no mount of its is seen
# outside, where a careless hand could remove what is in it.
# Arguments: a folder for its root and cgroups, the program, the node's folder, a folder of unit files, the name, user and
# group of the service.
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
    until find "$own" -depth -type d -exec rmdir {} + 2>/dev/null; do [ -d "$own" ] || break; sleep 0.05; done
    exit
fi

shift
work=$1 program=$2 node=$3 units=$4 name=$5 uid=$6 gid=$7
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work/root"
cd "$work/root"
mkdir -p usr etc/systemd/system proc sys dev run tmp home root old "var/lib/$name/.atlas" var/tmp
chmod 1777 tmp var/tmp
cp -a /bin /sbin /lib . # links into /usr
[ ! -e /lib64 ] || cp -a /lib64 .
mount --bind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs -o mode=755 tmpfs usr/local/bin
cp "$program" usr/local/bin/atlas
# Instead of all units of the real machine: those that every unit refers to, without anything in them.
mount -t tmpfs -o mode=755 tmpfs usr/lib/systemd/system
for target in basic final multi-user network-online shutdown sysinit umount; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $target > usr/lib/systemd/system/$target.target
done
cp -r "$units/." etc/systemd/system/
cp /etc/ld.so.cache /etc/hosts /etc/nsswitch.conf etc/
echo "root:x:0:0::/root:/bin/sh
$name:x:$uid:$gid::/var/lib/$name:/usr/sbin/nologin" > etc/passwd
echo "root:x:0:
$name:x:$gid:" > etc/group
tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
mount --bind "$node" "var/lib/$name/.atlas"
chown "$uid:$gid" "var/lib/$name"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
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
if touch /usr/written 2>/dev/null || [ -e /old/usr ]; then
    echo "the real machine can still be written" >&2
    exit 1
fi
exec env -i container=lab PATH=/usr/sbin:/usr/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
