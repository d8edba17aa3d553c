#!/bin/sh
# Closes the metadata address, and powers this machine off at the hour in /etc/gibil/expires-at (seconds since 1970).
ip route replace blackhole 169.254.169.254/32 || echo 'gibil: the metadata address stays open' >&2
while :; do
    end=
    read -r end </etc/gibil/expires-at
    case $end in '' | *[!0-9]*) end=0 ;; esac
    left=$((end - $(date +%s)))
    if [ "$left" -le 0 ]; then
        echo 'gibil: the time of this machine is up' >&2
        systemctl poweroff
        sleep 30
    else
        [ "$left" -lt 2 ] || left=2
        sleep "$left"
    fi
done
