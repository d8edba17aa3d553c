# shellcheck shell=sh
# Functions that find the files of a cloud machine which an archive of it may contain. All lists end each path with NUL.

# Prints the mount points of the machine's own disks.
own_disks() {
    while read -r _ at type _; do
        case $type in ext[234] | xfs | btrfs | f2fs | overlay) ;; *) continue ;; esac
        case $at in /boot* | /snap/* | /var/lib/docker/* | /var/lib/containers/* | /run/* | *\\*) continue ;; esac
        test ! -d "$at" || printf '%s\n' "$at"
    done </proc/mounts
}
# own_files TEST…: prints the paths on them that fulfil a test of find(1), without /root/project, and without what belongs to one
# machine or one run: its name, keys, logs and temporary files.
own_files() {
    test -n "${disks-}" || disks=$(own_disks)
    # shellcheck disable=SC2086  # mount points, which contain no blanks: /proc/mounts has them as \040
    find $disks -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /boot -o -path /lost+found \
        -o -path /swapfile -o -path /snap -o -path /var/snap -o -path /var/log -o -path /var/lib/cloud -o -path /var/lib/systemd \
        -o -path /var/lib/dhcp -o -path /var/lib/dbus/machine-id -o -path /var/lib/docker -o -path /var/lib/containerd \
        -o -path /var/lib/containers -o -path /var/lib/snapd -o -path '/var/cache/apt/*' -o -path /etc/machine-id -o -path /etc/ssh \
        -o -path /etc/gibil -o -path /etc/cloud -o -path /etc/netplan -o -path /etc/network -o -path /etc/hostname \
        -o -path /etc/hosts -o -path /etc/resolv.conf -o -path /etc/fstab -o -path /etc/mtab -o -path /root/project \
        -o -path /root/.gibil/jobs -o -path '/root/.gibil/files/[0-9]*' -o -path '/root/.gibil/source.*' \
        -o -path /root/.gibil/outbox.git -o -path /root/.gibil/prepared -o -path /root/.gibil/restored \) -prune -o "$@" -print0
}
