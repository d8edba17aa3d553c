# shellcheck shell=sh
# shellcheck disable=SC2086  # a list of numbers, which is to be split
# shellcheck disable=SC2154  # find_all assigns it: k
# Ends the processes that find_all finds: SIGTERM, after @GRACE_CS@ hundredths of a second SIGKILL.
# The time is measured, because on a busy machine a search of /proc takes longer than the pause after it.

uptime_cs() { # sets u: hundredths of a second since the boot, without starting a process
    read -r u _ </proc/uptime
    u=${u%.*}${u#*.} u=${u#0} u=${u#0} # a leading zero would mean octal
}
find_all
if [ -n "$k" ]; then
    kill -TERM $k 2>/dev/null
    uptime_cs
    grace=@GRACE_CS@
    end=$((u + grace))
    while [ "$u" -lt $end ]; do
        sleep 0.05
        find_all
        [ -z "$k" ] && break
        uptime_cs
    done
    i=0
    while [ -n "$k" ] && [ $i -lt 100 ]; do
        kill -STOP $k 2>/dev/null
        kill -KILL $k 2>/dev/null
        sleep 0.01
        find_all
        i=$((i + 1))
    done
fi
