# shellcheck shell=sh
# Prints the tree of the checkout with all its files that git doesn't ignore. With the tree of an earlier moment, it also prints the
# number of files and of lines that differ, and the difference up to a limit.

set -eu
folder=@FOLDER@ before=@BEFORE@ most=@MOST@
cd -- "$folder"
LC_ALL=C GIT_OPTIONAL_LOCKS=0 GIT_TERMINAL_PROMPT=0
export LC_ALL GIT_OPTIONAL_LOCKS GIT_TERMINAL_PROMPT
unset GIT_DIR GIT_WORK_TREE GIT_OBJECT_DIRECTORY GIT_CONFIG_PARAMETERS GIT_CONFIG_COUNT
git_() { git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.quotePath=false -c advice.addEmbeddedRepo=false "$@"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
GIT_INDEX_FILE=$work/index
export GIT_INDEX_FILE
# The index has the sizes and times of files, so that only changed ones are read.
cp -- "$(git_ rev-parse --git-path index)" "$GIT_INDEX_FILE" 2>"$work/log" || :
git_ add -A . 2>"$work/log" || { tail -n 1 "$work/log" >&2; exit 1; }
tree=$(git_ write-tree)
echo "$tree"
test -n "$before" || exit 0
set -- diff --no-ext-diff --no-textconv --no-renames
git_ "$@" --numstat "$before" "$tree" |
    awk '{ files++; if ($1 != "-") lines += $1 + $2 } END { print files + 0, lines + 0 }'
test "$most" = 0 || git_ "$@" --binary --full-index "$before" "$tree" | head -c "$most"
