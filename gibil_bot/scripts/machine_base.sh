#!/bin/sh
# Installs what every run needs and this image does not have, and lets the first command go on.
# The host key of the first contact was in the user-data: it is nobody's business here, even if it is worth nothing by now.
rm -f /var/lib/cloud/instances/*/user-data.txt /var/lib/cloud/instances/*/user-data.txt.i \
    /var/lib/cloud/instances/*/cloud-config.txt /var/lib/cloud/instances/*/obj.pkl
trap ': >/run/gibil-base; rm -f /etc/ssh/sshrc' EXIT
# The guard may not have come to it, and does it at every boot: here it is certain before the first command.
ip route replace blackhole 169.254.169.254/32
missing=
# shellcheck disable=SC2043  # filled in with several
for program in @PROGRAMS@; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends install "$@"; }
    apt-get -q -o DPkg::Lock::Timeout=120 update
    # One that cannot be had must not keep the others away.
    # shellcheck disable=SC2086  # a list of packages, which is to be split
    install $missing || for package in $missing; do install "$package"; done
elif command -v dnf >/dev/null; then
    # shellcheck disable=SC2086  # a list of packages, which is to be split
    dnf -q -y install $missing
else
    echo "gibil: nothing here installs$missing" >&2
fi
