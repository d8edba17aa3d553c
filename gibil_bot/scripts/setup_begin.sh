# shellcheck shell=sh
# The beginning of the task "set up".

set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
