# shellcheck shell=sh
# shellcheck disable=SC2086  # a list of numbers, which is to be split
# shellcheck disable=SC2154  # find_all assigns it: k
# Ends what find_all finds: SIGTERM, @TURNS@ times 50 ms, SIGKILL.

find_all
if [ -n "$k" ]; then
    kill -TERM $k 2>/dev/null
    i=0 turns=@TURNS@
    while [ $i -lt $turns ]; do
        sleep 0.05
        find_all
        [ -z "$k" ] && break
        i=$((i + 1))
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
