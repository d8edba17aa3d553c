# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by task_script.py: packages
# shellcheck disable=SC2086  # lists of packages, which are to be split
# Installs the packages in $packages that are missing.

has() {
    if command -v dpkg-query >/dev/null 2>&1; then
        test "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed
    elif command -v rpm >/dev/null 2>&1; then
        rpm -q --whatprovides "$1" >/dev/null 2>&1
    elif command -v apk >/dev/null 2>&1; then
        apk info -e "$1" >/dev/null 2>&1
    elif command -v pacman >/dev/null 2>&1; then
        pacman -Q "$1" >/dev/null 2>&1
    else
        return 1
    fi
}

missing=
for package in $packages; do
    has "$package" || missing="$missing $package"
done
if test -z "$missing"; then
    echo "gibil: all packages are installed already"
    exit 0
fi
echo "gibil: installing$missing"
test "$(id -u)" = 0 || fail "the packages$missing are missing, and only root can install them; choose an image that has them"
if command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -q -y --no-install-recommends $missing
elif command -v dnf >/dev/null 2>&1; then
    dnf install -q -y $missing
elif command -v apk >/dev/null 2>&1; then
    apk add -q $missing
elif command -v zypper >/dev/null 2>&1; then
    zypper --non-interactive --quiet install $missing
elif command -v pacman >/dev/null 2>&1; then
    pacman -Sy --noconfirm --needed $missing
else
    fail "the packages$missing are missing, and this machine has no known package manager"
fi || fail "cannot install the packages$missing; see the output above"
