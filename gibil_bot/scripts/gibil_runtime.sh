#!/bin/sh
# shellcheck disable=SC2154  # assigned by downloads.sh: problem registry
# gibil-runtime NAME [VERSION]: make a program available, in that version or the newest that begins with it. Without a
# version any will do. A program of the machine that satisfies is used. Otherwise it is downloaded from its publisher, or
# from PyPI or npm, checked against the published digest, and linked in /usr/local/bin; or installed from the distribution.
set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
say() { printf 'gibil: %s\n' "$*"; }
test $# = 1 || test $# = 2 || fail 'usage: gibil-runtime NAME [VERSION]'
name=$1 wanted=${2-}
case $name in '' | *[!a-z-]*) fail "'$name' is not the name of a program" ;; esac
case $wanted in
    '') ;;
    stable | beta | nightly) test "$name" = rust || fail "'$wanted' is not a version of $name" ;;
    [0-9]*) case $wanted in *[!0-9A-Za-z.-]*) fail "'$wanted' is not a version" ;; esac ;;
    *) fail "'$wanted' is not a version" ;;
esac
label="$name${wanted:+ $wanted}"
# shellcheck disable=SC2034  # etc, too
opt=/opt/gibil bin=/usr/local/bin etc=/etc looked=''
machine=$(uname -m)
# shellcheck disable=SC2034  # used by the other parts
case $machine in
    x86_64) node_arch=x64 go_arch=amd64 java_arch=x64 ;;
    aarch64) node_arch=arm64 go_arch=arm64 java_arch=aarch64 ;;
    *) fail "$label: not published for $machine" ;;
esac
umask 022
# shellcheck disable=SC1091  # the operator's mirrors, if any
test ! -r /etc/gibil/mirrors || . /etc/gibil/mirrors
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd /  # no program reads a project's configuration
export COREPACK_ENABLE_DOWNLOAD_PROMPT=0 COREPACK_ENABLE_NETWORK=0

# reach SOURCE URL FILE: download a list of versions; returns 1 if it can't be reached
reach() {
    download "$2" "$3" 60 && return
    echo "gibil: $label: can't reach $1; trying other sources" >&2
    seek "$1" "out of reach"
    return 1
}

# matches VERSION: it is the wanted version, or begins with it
matches() {
    test -n "$1" || return 1
    case $wanted in
        '') return 0 ;;
        stable) case $1 in *-*) return 1 ;; *) return 0 ;; esac ;;
    esac
    case "$1." in "$wanted".*) return 0 ;; esac
    return 1
}

# newest: read versions on stdin and print the newest that is wanted
newest() {
    sort -V | while read -r version; do
        ! matches "$version" || echo "$version"
    done | tail -n 1
}

# unzip_to ARCHIVE FOLDER
unzip_to() {
    mkdir -p "$2"
    if has unzip; then
        unzip -q "$1" -d "$2"
    elif has python3; then
        python3 -c 'import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    for member in archive.infolist():
        path, mode = archive.extract(member, sys.argv[2]), member.external_attr >> 16
        if mode and not member.is_dir():
            os.chmod(path, mode & 0o755 | 0o644)' "$1" "$2"
    else
        from_distribution '' unzip && unzip -q "$1" -d "$2"
    fi
}

# keep TREE FOLDER SUBFOLDER PROGRAM…: rename a complete tree to its final path, and link its programs
keep() {
    tree=$1 folder=$2
    shift 2
    echo "$*" >"$tree/.gibil"
    mkdir -p "$opt"
    rm -rf "$folder"
    mv "$tree" "$folder"
    use "$folder"
}

# use FOLDER: make the programs of a complete tree available, and note that this machine uses it
use() {
    read -r subfolder programs <"$1/.gibil"
    grep -qsxF "${1##*/}" "$opt/.used" || echo "${1##*/}" >>"$opt/.used"
    case $1 in
        "$opt"/python-*)
            # A machine's own python3 stays what it is.
            has python3 || programs="$programs python3 python"
            mkdir -p "$bin"
            for program in $programs; do
                # Not a link: a virtual environment would look for the library where the link is.
                rm -f "$bin/$program"
                printf '#!/bin/sh\nexec %s "$@"\n' "$1/$subfolder/${programs%% *}" >"$bin/$program"
                chmod 755 "$bin/$program"
            done
            ;;
        *)
            # shellcheck disable=SC2086  # a list of programs
            expose "$1/$subfolder" $programs
            ;;
    esac
}

# expose FOLDER PROGRAM…: link those that exist there
expose() {
    from=$1
    shift
    mkdir -p "$bin"
    for program in "$@"; do
        test ! -e "$from/$program" || ln -sfn "$from/$program" "$bin/$program"
    done
}

# for_tasks NAME=VALUE: set a variable of later tasks
for_tasks() { test -z "${GITHUB_ENV-}" || echo "$1" >>"$GITHUB_ENV"; }

# wheel PACKAGE: unpack the newest wanted wheel of this machine's kind to $work/wheel, with its version in $version
wheel() {
    index=${PIP_INDEX_URL:-$(cat /etc/pip.conf 2>/dev/null | sed -n 's/^ *index-url *= *//p' | tail -n 1)}
    index=${index:-https://pypi.org/simple}
    index=${index%/}
    download "$index/$1/" "$work/wheels" 60 || { seek "PyPI's $1" "out of reach"; return 1; }
    # One link per line: <a href="URL#sha256=SUM" …>FILE</a>; withdrawn releases have data-yanked.
    sed 's/<a /\n<a /g' "$work/wheels" | grep -v data-yanked | sed -n \
        "s/.*href=\"\\([^\"#]*-\\([0-9][0-9.]*\\)-[^\"#/]*manylinux[^\"#/]*_${machine}[^\"#/]*\\.whl\\)#sha256=\\([0-9a-f]\\{64\\}\\)\".*/\\2 \\1 \\3/p" \
        >"$work/links"
    version=$(cut -d ' ' -f 1 "$work/links" | newest)
    test -n "$version" || { seek "PyPI's $1" "no such version"; return 1; }
    read -r _ url sum <<END
$(grep -F "$version " "$work/links" | sed -n "/^$version /p" | tail -n 1)
END
    case $url in
        http*) ;;
        /*) url=$(echo "$index" | sed 's|\(.*://[^/]*\).*|\1|')$url ;;
        *) url=$index/$1/$url ;;
    esac
    download "$url" "$work/$1.whl" 900 || { seek "PyPI's $1" "$problem"; return 1; }
    check "$work/$1.whl" sha256 "$sum"
    unzip_to "$work/$1.whl" "$work/wheel"
}

# npm_package PACKAGE FOLDER: unpack the newest wanted version of a package without dependencies, with its version in $version
npm_package() {
    npm_registry
    download "$registry/$(echo "$1" | sed 's|/|%2f|')" "$work/package" 60 'Accept: application/vnd.npm.install-v1+json' \
        || { seek "npm's $1" "out of reach"; return 1; }
    version=$(grep -o '"[0-9]*\.[0-9]*\.[0-9]*" *: *{' "$work/package" | cut -d '"' -f 2 | newest)
    test -n "$version" || { seek "npm's $1" "no such version"; return 1; }
    npm_unpack "$1" "$version" "$2"
}

# from_distribution VERSION-OF PACKAGE…: the version of the package VERSION-OF has to be the wanted one, unless it is ''
from_distribution() {
    of=$1
    shift
    has apt-get || { seek "the distribution" "which has no apt-get"; return 1; }
    if test -z "${apt_updated-}"; then
        apt-get -q -o DPkg::Lock::Timeout=120 update >"$work/apt" 2>&1 \
            || { tail -n 3 "$work/apt" >&2; seek "the distribution" "apt-get update failed"; return 1; }
        apt_updated=1
    fi
    if test -n "$of"; then
        offered=$(apt-cache policy "$of" | sed -n 's/^  Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*[0-9]\).*/\2/p')
        matches "$offered" || { seek "the distribution's $of" "${offered:-not available}"; return 1; }
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends install "$@" \
        >"$work/apt" 2>&1 && return
    tail -n 5 "$work/apt" >&2
    seek "the distribution's $1" "apt-get failed"
    return 1
}

# version_of PROGRAM PATH: print the version of an installed program
version_of() {
    case $1 in
        go) GOTOOLCHAIN=local "$2" version ;;
        java) "$2" -version ;;
        elixir) "$2" --short-version ;;
        erlang) "$2" -noshell -eval 'io:put_chars(erlang:system_info(otp_release)), halt().' ;;
        composer) COMPOSER_ALLOW_SUPERUSER=1 "$2" --version --no-ansi 2>/dev/null ;;
        *) "$2" --version ;;
    esac 2>&1 </dev/null | sed "s/$(printf '\033')\[[0-9;]*m//g" | grep -oE '[0-9]+(\.[0-9]+)*' | sed 's/^1\.8\./8./' | head -n 1
}

# candidates: the commands that may be the program, one a line
candidates() {
    case $name in
        python) printf '%s\n' python3 python "python$wanted" "python$(echo "$wanted" | cut -d . -f 1-2)" ;;
        node) printf '%s\n' node nodejs ;;
        rust) echo cargo ;;
        java) printf '%s\n' java /usr/lib/jvm/*/bin/java ;;
        maven) echo mvn ;;
        erlang) echo erl ;;
        *) echo "$name" ;;
    esac
}

# have: report a version that satisfies, with its path in $path
have() {
    for command in $(candidates); do
        path=$(command -v "$command" 2>/dev/null) || continue
        test "$name" != java || test -x "${path%/*}/javac" || continue
        found=$(version_of "$name" "$path" || true)
        case $wanted in stable) test -n "$found" ;; *) matches "$found" ;; esac || continue
        return 0
    done
    return 1
}

# stored: use a complete tree that the machine was created with, or that an earlier call has installed
stored() {
    best=$(for tree in "$opt/$name"-[0-9]*; do
        test ! -f "$tree/.gibil" || echo "${tree#"$opt/$name-"}"
    done | newest)
    test -n "$best" && use "$opt/$name-$best"
}

# report: the last line of the output
report() {
    test "$name" != uv || configure_uv "$path"
    say "$name $found ($path)"
}
