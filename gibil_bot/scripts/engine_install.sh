# shellcheck shell=sh
# shellcheck disable=SC2034  # used by downloads.sh: label looked
# Task that installs the packages of an agent's engine in ENGINE, with a link to its program. A machine that has exactly these
# packages, such as a prepared one, keeps them.

set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
say() { printf 'gibil: %s\n' "$*"; }
name=@NAME@ label=@LABEL@ packages=@PACKAGES@ looked=''
engine=@ENGINE@
program=$engine/bin/$name
if test -x "$program" && test "$(cat "$engine/packages" 2>/dev/null)" = "$packages"; then
    say "$label is installed ($program)"
    exit 0
fi
machine=$(uname -m)
case $machine in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) fail "$label: not published for $machine" ;;
esac
umask 022
# shellcheck disable=SC1091  # the operator's mirrors, if any
test ! -r /etc/gibil/mirrors || . /etc/gibil/mirrors
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd /  # no program reads a project's configuration

@DOWNLOADS@
# of_npm FOLDER PACKAGE VERSION SHA512-X64 SHA512-ARM64: without dependencies, and without running its install scripts
of_npm() {
    sum=$4
    test "$arch" = x64 || sum=$5
    npm_unpack "$2" "$3" "$engine/$1" "$sum" || nowhere
}

# of_pypi FOLDER PACKAGE VERSION: with its dependencies, in a virtual environment
of_pypi() {
    tool=$(command -v gibil-runtime || command -v /opt/gibil/bin/gibil-runtime) || fail "$label: this machine has no gibil-runtime"
    "$tool" uv >/dev/null
    export UV_SYSTEM_CERTS=true UV_HTTP_CONNECT_TIMEOUT=10
    uv=$(command -v uv)
    if ! { "$uv" venv -q "$engine/$1" && "$uv" pip install -q --python "$engine/$1" "$2==$3"; } >"$work/uv-log" 2>&1 </dev/null; then
        tail -n 3 "$work/uv-log" >&2
        fail "$label: uv can't install $2 $3"
    fi
}

# A part of an earlier installation may exist.
rm -rf "$engine"
mkdir -p "$engine/bin"
npm_registry
@INSTALL@
test -f "$engine/@PROGRAM@" || fail "$label: its packages don't contain @PROGRAM@"
chmod 755 "$engine/@PROGRAM@"
ln -s "../@PROGRAM@" "$program"
# A program for another processor or another C library ends here, and not in each task.
if ! HOME=$work "$program" @VERSION_ARGUMENTS@ >"$work/version" 2>&1 </dev/null; then
    tail -n 3 "$work/version" >&2
    fail "$label is installed, but doesn't run on this machine; see above"
fi
echo "$packages" >"$engine/packages"
say "$label: $(tail -n 1 "$work/version"), $(du -sm "$engine" | cut -f 1) MB ($program)"
