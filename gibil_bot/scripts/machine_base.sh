#!/bin/sh
# Installs the packages that every run needs and this image lacks, then lets the first command run.
# Deletes the user-data: its host key is worthless after the first contact, but needn't be readable.
rm -f /var/lib/cloud/instances/*/user-data.txt /var/lib/cloud/instances/*/user-data.txt.i \
    /var/lib/cloud/instances/*/cloud-config.txt /var/lib/cloud/instances/*/obj.pkl
@BEGIN@
trap ready EXIT
# The guard does this at every boot, but may not have started yet; it must be done before the first command.
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
    # Packages that can't be installed must not prevent the installation of the others.
    # shellcheck disable=SC2086  # a list of packages, which is to be split
    install $missing || for package in $missing; do install "$package"; done
elif command -v dnf >/dev/null; then
    # shellcheck disable=SC2086  # a list of packages, which is to be split
    dnf -q -y install $missing
else
    echo "gibil: no known package manager to install$missing" >&2
fi
