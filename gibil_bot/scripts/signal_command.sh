# shellcheck shell=sh
# shellcheck disable=SC2034  # find_all reads them: s, c
# shellcheck disable=SC2086  # a list of numbers, which is to be split
# Sends SIG@SIGNAL@ to all processes of a command.

s='' c=''
@FIND@
find_all
[ -z "$k" ] || kill -@SIGNAL@ $k 2>/dev/null
true
