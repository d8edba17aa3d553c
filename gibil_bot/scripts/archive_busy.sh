# shellcheck shell=sh
# On a cloud machine: prints the processes that commands left running, services that they started, and what they changed in
# folders that an archive doesn't have. The services of the system itself, and those who maintain it, don't count.

others() {
    { read -r _ && read -r booted; } </run/gibil-base || { echo "not ready"; return; }
    own=$(session_of "$$")
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        status_of "$pid" && test "$started" -gt "$booted" && test "$session" != "$own" || continue
        case $name in sshd*) continue ;; esac
        is_of_the_system "$pid" || echo "$pid"
    done
    for folder in /var/lib/docker /var/lib/containers /var/lib/containerd /var/lib/snapd/snaps; do
        test ! -d "$folder" || find "$folder" -newer /run/gibil-base -print -quit
    done
}
status_of() {
    { IFS= read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    name=${line#*\(}
    name=${name%\)*}
    # shellcheck disable=SC2086  # split at spaces
    set -- ${line##*) }
    parent=$2 session=$4 started=${20}
    test "$1" != Z
}
# Whether a process that is older than the first command, other than PID 1 and sshd, has started this one; or systemd has, as a part
# of the system.
is_of_the_system() {
    at=$1
    while test "$parent" -gt 2; do
        at=$parent
        status_of "$at" || return 1
        case $name in sshd*) return 1 ;; esac
        test "$started" -gt "$booted" || return 0
    done
    test "$parent" -ne 1 || grep -qE '/(init\.scope|user@[^/]*\.service|(systemd-|apt-|unattended-upgrades|packagekit|polkit|motd-news|man-db|logrotate|dpkg-db-backup|fwupd|update-notifier|ua-|esm-|apport|cloud-|gibil-guard|e2scrub|fstrim|snapd)[^/]*\.service)(/|$)' \
        "/proc/$1/cgroup" 2>/dev/null
}
