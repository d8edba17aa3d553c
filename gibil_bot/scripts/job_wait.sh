# shellcheck shell=sh
# Waits for the end of job @ID@, without its output.

j=$HOME/.gibil/jobs/@ID@
[ -s "$j/pid" ] || { echo gibil:unknown >&2; exit 1; }
@RETURNS@
exec </dev/null
flock -s "$HOME/.gibil/jobs/.@ID@.lock" true
r='' x=''
read -r r x <"$j/rc"
case $r in
    [0-9]*)
        [ "$x" ] && echo gibil:cut >&2
        returns
        echo "gibil:rest $r" >&2 ;;
    *) echo gibil:lost >&2 ;;
esac
