# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by job_pipe.sh: copiers
# The supervisor of job @ID@, which `sh` reads on its stdin. In braces: nothing of it runs before all of it has arrived.
# Descriptor 3 is the lock. Its stdout is a pipe to the launcher, kept open (and away from the job) for its whole life.
# After the exports, only the positional parameters still are what they were. In braces redirections are made with printf and
# not with `:`, since one that fails there would end the shell. /usr/bin/setsid: a PATH of the job must not decide which one
# is used.

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
# shellcheck disable=SC2174  # the folders above are for all jobs
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null || fail 'its folder cannot be made (is the disk full?)'
printf %s @SCRIPT@ >"$script" || fail 'the script cannot be written (is the disk full?)'
{ printf '' >"$j/out" && @FILES@ echo '...    ' >"$j/rc" && echo $$ >"$j/pid"; } 2>/dev/null || {
    rm -f "$j/pid"; fail 'its folder cannot be written (is the disk full?)'; }
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
