# shellcheck shell=bash
# Runs the first command that can run on the prepared machine. Each is described by
#   FOLDER FOUND SHOWN COMMAND CHECK OTHERWISE PROGRAM…

read -r -a args <<<"${GIBIL_INPUT_ARGS:-}" || true
group='' done='' ran=0 status=0

# Tests expect that a file without permissions can't be read, which root may by two capabilities. Files have the owner root.
shell=(setpriv '--bounding-set=-dac_override,-dac_read_search' -- bash)
"${shell[@]}" -c true >/dev/null 2>&1 || shell=(bash)

usable() {
    local folder=$1 found=$2 check=$5 program
    for program in "${@:7}"; do
        if ! (cd -- "$folder" && command -v -- "$program") >/dev/null 2>&1; then
            say "found $found, but $program isn't on this machine; looking further"
            return 1
        fi
    done
    if test -n "$check" && ! (cd -- "$folder" && bash -c "$check" </dev/null) >/dev/null 2>&1; then
        say "found $found, but it can't run here (${6:-$check fails}); looking further"
        return 1
    fi
}

# only: the command for everything
only() {
    usable "$@" || return 0
    say "found $2 → $3${args[*]:+ ${args[*]}}"
    cd -- "$1" || exit
    exec "${shell[@]}" -e -c "$4" bash "${args[@]}"
}

# group NAME: the commands after this are of one ecosystem
group() { group=$1 done=; }

# one: the command for a group, unless an earlier one of the group has run
one() {
    test -z "$done" && usable "$@" || return 0
    done=1 ran=$((ran + 1))
    say "found $2 → $3${args[*]:+ ${args[*]}}"
    local code=0
    (cd -- "$1" && exec "${shell[@]}" -e -c "$4" bash "${args[@]}") || code=$?
    if test "$code" = 0; then
        say "$group: passed ($3)"
    else
        say "$group: failed with exit status $code ($3)"
        status=1
    fi
}

# finish: end the task if a group's command has run
finish() { test "$ran" = 0 || exit "$status"; }
