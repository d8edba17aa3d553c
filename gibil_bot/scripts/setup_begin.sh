# shellcheck shell=sh
# Begins the task "set up".

set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
