# shellcheck shell=sh
# shellcheck disable=SC2154  # in the environment: gibil_found
# Ends the processes in $gibil_found, which has a line with pid and tag for each. Skips processes without their tag: another
# process may have the pid by now.

end() {
    left=
    while read -r p t; do
        # shellcheck disable=SC2015  # whichever fails, go to the next one
        [ "$p" ] && grep -qzsxF -- "$t" "/proc/$p/environ" && kill -0 "$p" 2>/dev/null || continue
        read -r _ _ z _ <"/proc/$p/stat" 2>/dev/null
        [ "$z" = Z ] && continue
        left=yes
        kill "-$1" "$p" 2>/dev/null
    done <<EOF
$gibil_found
EOF
}
end TERM
i=0 turns=@TURNS@
while [ "$left" ] && [ $i -lt $turns ]; do sleep 0.05; end 0; i=$((i + 1)); done
[ -z "$left" ] || { end KILL; sleep 0.05; end 0; }
[ -z "$left" ]
