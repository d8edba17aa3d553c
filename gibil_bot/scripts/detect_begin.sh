# shellcheck shell=bash
# The beginning of every detected task.

say() { printf 'gibil: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
