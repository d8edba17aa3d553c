# shellcheck shell=sh
# Lists all jobs: records of six fields, each ended by NUL. A job's supervisor holds its lock as long as it lives.

cd "$HOME/.gibil/jobs" 2>/dev/null || exit 0
for j in *; do
    [ -s "$j/pid" ] || continue
    s=running
    flock -n -s ".$j.lock" true 2>/dev/null && s=lost
    r=
    # Read after the lock was tried: a job that ends in between isn't lost.
    IFS= read -r r <"$j/rc" 2>/dev/null
    case $r in
        [0-9]*) s=exited ;;
        *) r= ;;
    esac
    printf '%s\0%s\0%s\0%s\0%s\0' "$j" "$s" "${r%% *}" "$(stat -c %Y "$j/pid")" "$(stat -c %Y "$j/rc")"
    for f in "$j"/script.*; do head -c @COMMAND_BYTES@ "$f" 2>/dev/null; break; done
    printf '\0'
done
