# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by job_pipe.sh: copiers
# The supervisor of job @ID@, which `sh` reads from stdin. The braces make sh read all of it before it runs anything. Descriptor
# 3 is the lock. Its stdout is a pipe to the launcher, which stays open as long as the supervisor lives; the job doesn't inherit
# it. After the exports, only the positional parameters are unchanged. Redirections in braces use printf and not `:`, because a
# failed redirection of `:` would end the shell. /usr/bin/setsid: the job's PATH must not decide which setsid runs.

{
trap : HUP INT QUIT TERM PIPE
j=$HOME/.gibil/jobs/@ID@
script=$j/script.$$
fail() { rm -f "$script"; echo "gibil:failed $1" >&2; exit 1; }
[ -s "$j/pid" ] && exit
u=
{ read -r u && read -r u u; } </proc/self/status
case $u in 0[0-7][0-7][0-7]) ;; *) u=$(umask) ;; esac
umask 077
[ -d @FOLDER@ ] || fail @NOFOLDER@
# shellcheck disable=SC2174  # the directories above are for all jobs
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null || fail 'cannot create its directory (is the disk full?)'
printf %s @SCRIPT@ >"$script" || fail 'cannot write the script (is the disk full?)'
{ printf '' >"$j/out" && @FILES@ echo '...    ' >"$j/rc" && echo $$ >"$j/pid"; } 2>/dev/null || {
    rm -f "$j/pid"; fail 'cannot write to its directory (is the disk full?)'; }
@PIPES@
umask "$u"
echo gibil:started >&2
echo $$
exec </dev/null 2>/dev/null
s=/usr/bin/setsid
[ -x $s ] || s=$(command -v setsid)
(
    exec 3>&- @OUTPUT@
    cd @FOLDER@ || exit 1
    set -- "$s" "$script"
    @EXPORTS@
    export GIBIL_JOB='@ID@'
    exec "$1" @COMMAND@
)
r=$?
exec 6>&- 8>&-
i=0 cut=''
for c in $copiers; do
    n=0
    while { read -r x <"/proc/$c/stat"; } 2>/dev/null; do
        x=${x##*) }
        case $x in
            Z*) break ;;
            S*) n=$((n + 1)) ;;
            *) n=0 ;;
        esac
        i=$((i + 1))
        if [ $n = 3 ] || [ $i -gt 400 ]; then
            c=
            break
        fi
        { [ $i -lt 50 ] && [ $n = 0 ]; } || sleep 0.005
    done
    # shellcheck disable=SC2086  # a number
    [ -z "$c" ] || wait $c || cut=' cut'
done
printf '%-7s\n' "$r$cut" 1<>"$j/rc"
echo "$r$cut"
exit
}
