# shellcheck shell=sh
# Limits what this machine reaches to itself, for all of its users. Safe to repeat. The way out is a proxy, which is forwarded to a
# loopback port.

fail() { echo "gibil: $1" >&2; exit 1; }
command -v nft >/dev/null || {
    if command -v apt-get >/dev/null; then
        apt-get -q -o DPkg::Lock::Timeout=120 update
        DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends install nftables
    elif command -v dnf >/dev/null; then
        dnf -q -y install nftables
    fi >&2
    command -v nft >/dev/null || fail 'the machine has no nft to limit what an agent reaches, and nftables cannot be installed'
}
nft -f - <<'RULES' || fail 'the kernel rejects the rules that limit what an agent reaches'
@RULES@
RULES
