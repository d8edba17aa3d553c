#!/bin/sh
# Blocks the metadata address, and powers this machine off at the time in /etc/gibil/expires-at (seconds since 1970).
ip route replace blackhole 169.254.169.254/32 || echo 'gibil: cannot block the metadata address' >&2
while :; do
    end=
    read -r end </etc/gibil/expires-at
    case $end in '' | *[!0-9]*) end=0 ;; esac
    left=$((end - $(date +%s)))
    if [ "$left" -le 0 ]; then
        echo 'gibil: this machine has expired' >&2
        systemctl poweroff
        sleep 30
    else
        [ "$left" -lt 2 ] || left=2
        sleep "$left"
    fi
done
