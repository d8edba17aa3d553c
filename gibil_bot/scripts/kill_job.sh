# shellcheck shell=sh
# shellcheck disable=SC2086  # a list of numbers, which is to be split
# shellcheck disable=SC2034  # find_all reads them: s, c
# Ends job @ID@: SIGTERM, @TURNS@ times 50 ms, SIGKILL. Exit status 0: nothing of it is alive.

j=$HOME/.gibil/jobs/@ID@
s='' c=''
[ -s "$j/pid" ] && read -r s <"$j/pid"
[ -s "$j/copiers" ] && read -r c <"$j/copiers"
@FIND@
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
[ -n "$s" ] && flock -w 2 -s "$HOME/.gibil/jobs/.@ID@.lock" true
[ -z "$k" ]
