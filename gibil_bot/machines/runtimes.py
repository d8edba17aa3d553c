"""The tool `gibil-runtime` of cloud machines: puts a version of Node, Go or Python there when somebody asks for it. Pure.

An image has what its distribution has. `.gibil.yml` pins versions (`runtime: {node: "20"}`), and its set-up asks this tool for
one that is missing. Everything comes from where its makers publish it, checked against their sums, into /opt/gibil; the names
go to /usr/local/bin. Mirrors: NODEJS_ORG_MIRROR, GOLANG_MIRROR, and uv's UV_PYTHON_INSTALL_MIRROR.
"""

from __future__ import annotations

TOOL_PATH = "/usr/local/bin/gibil-runtime"

# https://nodejs.org/dist/index.tab and https://go.dev/dl/?mode=json&include=all list all versions.
TOOL = r"""#!/bin/sh
# gibil-runtime NAME VERSION: node, go or python of that version, or of the newest one that begins with it.
set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
test $# = 2 || fail 'usage: gibil-runtime node|go|python VERSION'
name=$1 wanted=$2
case $wanted in '' | *[!0-9.]*) fail "$wanted is not a version" ;; esac
case $(uname -m) in
    x86_64) node_arch=x64 go_arch=amd64 ;;
    aarch64) node_arch=arm64 go_arch=arm64 ;;
    *) fail "$name $wanted: nobody publishes it for $(uname -m)" ;;
esac
opt=/opt/gibil bin=/usr/local/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() {
    curl -fsSL --retry 3 --retry-delay 1 --connect-timeout 15 --max-time 900 -o "$2" "$1" \
        || fail "$name $wanted: $1 cannot be read"
}

# Lines of versions on stdin: the newest that is VERSION or begins with `VERSION.`
newest() {
    sort -V | while read -r version; do
        case "$version." in "$wanted".*) echo "$version" ;; esac
    done | tail -n 1
}

# unpack FILE SUM FOLDER: only what its makers published, and whole or not at all
unpack() {
    echo "$2  $1" | (cd "$work" && sha256sum -c --status -) || fail "$1 is not what its makers published (sha256)"
    mkdir -p "$opt" "$work/tree"
    tar -xzf "$work/$1" -C "$work/tree" --strip-components=1
    rm -rf "$3"
    mv "$work/tree" "$3"
}

node() {
    base=${NODEJS_ORG_MIRROR:-https://nodejs.org/dist}
    fetch "$base/index.tab" "$work/index"
    version=$(sed -n 's/^v\([0-9.]*\)[[:space:]].*/\1/p' "$work/index" | newest)
    test -n "$version" || fail "there is no node $wanted; see $base"
    file=node-v$version-linux-$node_arch.tar.gz
    fetch "$base/v$version/SHASUMS256.txt" "$work/sums"
    fetch "$base/v$version/$file" "$work/$file"
    unpack "$file" "$(sed -n "s/^\([0-9a-f]*\)  $file\$/\1/p" "$work/sums")" "$opt/node-$version"
    for program in node npm npx corepack; do
        test ! -e "$opt/node-$version/bin/$program" || ln -sf "$opt/node-$version/bin/$program" "$bin/$program"
    done
    command -v pnpm >/dev/null || npm install --silent --global --prefix /usr/local pnpm >&2 \
        || echo 'gibil: pnpm could not be installed; npm is there' >&2
}

go() {
    base=${GOLANG_MIRROR:-https://go.dev/dl}
    fetch "$base/?mode=json&include=all" "$work/index"
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
        } || fail "python $wanted: this machine has no python3 with venv to fetch it with"
        "$opt/uv/bin/pip" install --quiet uv >&2 || fail "python $wanted: uv cannot be installed from PyPI"
    fi
    export UV_PYTHON_INSTALL_DIR="$opt/python"
    "$uv" python install --quiet "$wanted" >&2 || fail "python $wanted cannot be fetched"
    found=$("$uv" python find --managed-python "$wanted") || fail "python $wanted was not found"
    ln -sf "$found" "$bin/python$wanted"
}

case $name in
    node | go | python) "$name" ;;
    *) fail "nobody here installs $name; choose an image that has it" ;;
esac
"""
