# shellcheck shell=sh
# Removes what only this run needs, and marks the disk as that of a prepared machine.

rm -rf "$HOME/.gibil/jobs" "$HOME/.gibil"/source.*
rm -f .git/gibil-commit
: >"$HOME/.gibil/prepared"
