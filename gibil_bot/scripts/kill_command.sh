# shellcheck shell=sh
# shellcheck disable=SC2086  # a list of numbers, which is to be split
# shellcheck disable=SC2034  # find_all reads them: s, c
# Kills a command at once. Exit status 0: none of its processes is left.

s='' c=''
@FIND@
i=0 seen=''
while [ $i -lt 100 ]; do
    find_all
    if [ -n "$k" ]; then
        seen=1
        kill -STOP $k 2>/dev/null
        kill -KILL $k 2>/dev/null
        sleep 0.01
    else
        # The server may not have started the command yet.
        { [ -n "$seen" ] || [ $i -ge 8 ]; } && break
        sleep 0.03
    fi
    i=$((i + 1))
done
[ -z "$k" ]
