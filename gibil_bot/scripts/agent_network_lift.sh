# shellcheck shell=sh
# Undoes agent_network_limit.sh. Safe to repeat.

command -v nft >/dev/null || exit 0
nft -f - <<'RULES' || { echo 'gibil: cannot remove the rules that limit what an agent reaches' >&2; exit 1; }
@RULES@
RULES
