# shellcheck shell=sh
# want: makes one runtime available; see task_script.py.

# matches FOUND WANTED: 3.12.4 matches 3.12 and 3, and not 3.1
matches() { case "$1." in "$2".*) return 0 ;; esac; return 1; }

version_of() {
    case $1 in
        go) "$2" version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p' ;;
        *) "$2" --version 2>&1 | sed -n 's/^[^0-9]*\([0-9][0-9.]*\).*/\1/p' | head -n 1 ;;
    esac
}

# whole NAME: whether this machine has the programs that belong to it, which Debian has in other packages
whole() {
    case $1 in
        java) command -v javac >/dev/null 2>&1 ;;
        ruby) command -v bundle >/dev/null 2>&1 ;;
    esac
}

# want RUNTIME VERSION COMMAND…: use the first of these commands that has the version, and put its directory first in PATH
want() {
    runtime=$1 wanted=$2 seen=
    shift 2
    tool=$(command -v gibil-runtime || command -v /opt/gibil/bin/gibil-runtime || true)
    for command in "$@"; do
        where=$(command -v "$command" 2>/dev/null) || continue
        found=$(version_of "$runtime" "$where" || true)
        if test -n "$found" && matches "$found" "$wanted"; then
            echo "gibil: $runtime $found ($where)"
            whole "$runtime" || test -z "$tool" || "$tool" "$runtime" "${found%%.*}" >/dev/null || true
            test "$command" != "$runtime$wanted" || link "$runtime" "$where"
            return 0
        fi
        seen="$seen${seen:+, }$command is ${found:-of unknown version}"
    done
    if test "${installed-}" != "$runtime" && test -n "$tool"; then
        installed=$runtime
        echo "gibil: $runtime $wanted is missing (found: ${seen:-none}); installing it"
        "$tool" "$runtime" "$wanted" >/dev/null || fail "cannot install $runtime $wanted; see the output above"
        hash -r
        want "$runtime" "$wanted" "$@"
        return 0
    fi
    fail "$runtime $wanted is requested (runtime), but this machine has ${seen:-none}; choose an image that has it"
}

# link: makes `python3.12` available as python3 and python for later tasks
link() {
    bin=$RUNNER_TEMP/runtime/bin
    mkdir -p "$bin"
    ln -sf "$2" "$bin/$1"
    test "$1" != python || ln -sf "$2" "$bin/python3"
    echo "$bin" >>"$GITHUB_PATH"
}
