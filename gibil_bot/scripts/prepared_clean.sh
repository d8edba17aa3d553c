# shellcheck shell=sh
# Removes what only this run needs, and marks the disk as that of a prepared machine. The run continues on top of it, so the repository
# that `git push` goes to stays; the next run deletes it before its tasks.

rm -rf "$HOME/.gibil/jobs" "$HOME/.gibil"/source.*
rm -f .git/gibil-commit
# The next run sends only the objects that can't be reached from these.
{ git rev-parse HEAD && git for-each-ref --format='%(objectname)'; } 2>/dev/null | head -n @KNOWN@ >"$HOME/.gibil/prepared"
