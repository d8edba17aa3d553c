# shellcheck shell=sh
# Compares the workspace with a commit that was pushed on the machine. Exits with 0 if HEAD contains the commit,
# 6 if the commit contains all of the workspace, and 7 if the workspace has something else. Prints nothing.

folder=@FOLDER@ base=@BASE@ pushed=@PUSHED@
cd "$folder" || exit 1
git_() { git -c core.hooksPath=/dev/null -c core.fsmonitor=false "$@"; }
head=$(git_ rev-parse --verify --quiet 'HEAD^{commit}') || exit 1
git_ merge-base --is-ancestor "$pushed" "$head" 2>/dev/null && exit 0
test -z "$(git_ status --porcelain --untracked-files=normal | head -c 1)" || exit 7
test "$head" != "$base" || exit 6
git_ merge-base --is-ancestor "$head" "$pushed" 2>/dev/null && exit 6
exit 7
