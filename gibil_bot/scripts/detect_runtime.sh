# shellcheck shell=bash
# runtime: makes one runtime or package manager available; see detection/combine.py.

version_of() {
    case $1 in
        elixir) "$2" --version 2>/dev/null | sed -n 's/^Elixir \([0-9.]*\).*/\1/p' ;;
        go) "$2" version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p' ;;
        java) "$2" -version 2>&1 | sed -n 's/^[^"]*"\(1\.\)\{0,1\}\([0-9.]*\).*/\2/p' | head -n 1 ;;
        *) "$2" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9][0-9.]*\).*/\1/p' | head -n 1 ;;
    esac
}

# present NAME BEGINNING…: print the version of NAME on this machine, and succeed if it has one of the beginnings (none: any)
present() {
    local name=$1 program beginning
    local -a programs=("$name")
    shift
    case $name in
        python) programs=(python3 python "${@/#/python}") ;;
        node) programs=(node nodejs) ;;
        rust) programs=(cargo) ;;
    esac
    seen=
    for program in "${programs[@]}"; do
        command -v "$program" >/dev/null 2>&1 || continue
        found=$(version_of "$name" "$program" || true)
        test -n "$found" || continue
        seen=$found
        test $# != 0 || return 0
        for beginning in "$@"; do
            case $found. in "$beginning".*) return 0 ;; esac
        done
    done
    return 1
}

# whole NAME: whether gibil-runtime has nothing to add: programs that Debian has in other packages, or uv's settings
whole() {
    case $1 in
        java) command -v javac >/dev/null 2>&1 ;;
        ruby) command -v bundle >/dev/null 2>&1 ;;
        uv) ! grep -qs '^native-tls' "${etc-/etc}/uv/uv.toml" ;;
    esac
}

# node_headers: let node-gyp use the headers of this Node.js, which it would download from nodejs.org otherwise
node_headers() {
    local program found folder version
    program=$(readlink -f "$(command -v node)") || return 0
    folder=${program%/bin/*}/include
    version=$("$program" -p process.versions.node 2>/dev/null) || return 0
    found=$(sed -n 's/^#define NODE_[MP][A-Z]*_VERSION //p' "$folder/node/node_version.h" 2>/dev/null | head -n 3 | tr '\n' .)
    test "$found" = "$version." || return 0
    mkdir -p "${XDG_CACHE_HOME:=$HOME/.cache}/node-gyp/$version"
    ln -sfn "$folder" "$XDG_CACHE_HOME/node-gyp/$version/include"
    echo 11 >"$XDG_CACHE_HOME/node-gyp/$version/installVersion"  # the format of its cache since 2022
}

# runtime NAME required|optional EVIDENCE VERSION [BEGINNING…]: VERSION may be empty; other beginnings will do if they exist
runtime() {
    local name=$1 need=$2 evidence=$3 version=$4 found='' seen=''
    local -a fitting=("${@:4}")
    test -n "$version" || fitting=("${@:5}")
    local tool wanted=${fitting[0]-}
    tool=$(command -v gibil-runtime || command -v /opt/gibil/bin/gibil-runtime || true)
    if present "$name" "${fitting[@]}"; then
        say "found $evidence → $name $found"
        whole "$name" || test -z "$tool" || "$tool" "$name" "${found%%.*}" || say "going on with this $name"
        test "$name" != node || node_headers
        return 0
    fi
    say "found $evidence → $name${wanted:+ $wanted}, which this machine doesn't have${seen:+ (it has $seen)}; installing it"
    if test -n "$tool" && "$tool" "$name" "$wanted"; then
        hash -r  # the tool has reported what it installed
        test "$name" != node || node_headers
        return 0
    fi
    if test "$need" = optional; then
        say "going on without $name${wanted:+ $wanted}"
        return 0
    fi
    fail "$evidence: $name${wanted:+ $wanted} is needed, and it can't be installed here; choose an image that has it"
}
