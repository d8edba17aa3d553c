# shellcheck shell=sh
# Follows @FILE@ of job @ID@ from byte @OFFSET@ (counted from 1), and reports the job's end.

j=$HOME/.gibil/jobs/@ID@
[ -s "$j/pid" ] || { echo gibil:unknown >&2; exit 1; }
[ -e "$j/err" ] && echo gibil:separate >&2
@RETURNS@
exec </dev/null
r='' x=''
read -r r x <"$j/rc"
case $r in
    [0-9]*) ;;
    *)
        flock -s "$HOME/.gibil/jobs/.@ID@.lock" true & w=$!
        tail -c +@OFFSET@ -f -s @POLL_S@ --pid=$w "$j/@FILE@" 2>/dev/null & t=$!
        wait $w
        read -r r x <"$j/rc" ;;
esac
case $r in
    [0-9]*)
        [ "$x" ] && echo gibil:cut >&2
        # shellcheck disable=SC2050  # filled in
        [ @FILE@ = out ] && returns
        { printf 'gibil:exit %s ' "$r"; stat -c %s "$j/@FILE@"; } >&2
        [ "$w" ] || exec tail -c +@OFFSET@ "$j/@FILE@" ;;
    *) echo gibil:lost >&2 ;;
esac
# shellcheck disable=SC2086  # empty if the job had ended: then nothing has to be waited for
wait $t
