# shellcheck shell=sh
# Before the disk of a prepared machine is stored: prints `tree ID`, the id of all files of the commit; `busy` if processes run that
# would be ended; `lost` if the next run's checkout would delete installed files; and `built` if preparing built something from the project's own files, so that it fits no other commit. Then, if
# the machine ends, it removes what only this run needs.

cd @WORKSPACE@ || exit 1
tree=$(git rev-parse -q --verify 'HEAD^{tree}') || exit 1

@OTHERS@
# The command's name, which may contain spaces, ends at the last parenthesis: `PID (NAME) STATE PPID PGRP SESSION …`.
session_of() {
    status=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086  # split at spaces
    set -- ${status##*)}
    test "$1" != Z && echo "$4"
}
busy=
for _ in 1 2 3 4 5; do
    busy=$(others)
    test -n "$busy" || break
    sleep 0.2
done
test -z "$busy" || { echo "busy"; exit 0; }

files() {
    git -c core.fsmonitor=false -c core.quotePath=true status --porcelain --ignored --untracked-files=normal
}
# The checkout of the next run deletes what git neither tracks nor ignores; without a lock file or metadata nothing is missing.
files | grep '^??' |
    grep -qvE '^\?\? "?([^"]*/)?(__pycache__|[^/]*\.egg-info|package-lock\.json|yarn\.lock|pnpm-lock\.yaml|uv\.lock)/?"?$' &&
    { echo lost; exit 0; }

# What a package manager puts into a checkout depends on its manifests alone. Everything else may come from the project's files.
built=$(files |
    grep -vE '^(\?\?|!!) "?([^"]*/)?(node_modules|\.venv|venv|__pycache__|[^/]*\.egg-info|\.yarn|\.pnp\.c?js|\.pnpm-store|package-lock\.json|yarn\.lock|pnpm-lock\.yaml|uv\.lock)/?"?$')
# Python: the project itself, unless it is installed as a link to its folder.
for url in "$HOME"/.gibil/venv/lib/python3*/site-packages/*.dist-info/direct_url.json \
    .venv/lib/python3*/site-packages/*.dist-info/direct_url.json; do
    test -f "$url" || continue
    grep -qF "file://$PWD" "$url" || continue
    if ! grep -qE '"editable": *true' "$url" || grep -qE '\.(so|pyd)[",]' "${url%/*}/RECORD"; then
        built=yes
    fi
done
echo "tree $tree"
test -z "$built" || echo built

# Some installers, such as uv, leave compiling to the first import, which would be that of each later run.
for python in "$HOME/.gibil/venv/bin/python" .venv/bin/python; do
    test -x "$python" || continue
    timeout @COMPILE_S@ "$python" -m compileall -q -j 0 "${python%/bin/python}"/lib/python3*/site-packages >/dev/null 2>&1 || true
done

@CLEAN@
