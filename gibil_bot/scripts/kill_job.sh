# shellcheck shell=sh
# shellcheck disable=SC2154  # find_all assigns it: k
# shellcheck disable=SC2034  # find_all reads them: s, c
# Ends job @ID@. Exit status 0: none of its processes is left.

j=$HOME/.gibil/jobs/@ID@
s='' c=''
[ -s "$j/pid" ] && read -r s <"$j/pid"
[ -s "$j/copiers" ] && read -r c <"$j/copiers"
@FIND@
@KILL@
[ -n "$s" ] && flock -w 2 -s "$HOME/.gibil/jobs/.@ID@.lock" true
[ -z "$k" ]
