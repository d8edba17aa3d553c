# shellcheck shell=sh
# Prints the commit of a revision, a line feed, and a bundle of the commits since the base: for checks on gibil's host. The bundle
# names the commit by a separate ref, because a tag or a branch on the machine may be named HEAD.

folder=@FOLDER@ revision=@REVISION@ base=@BASE@ descends=@DESCENDS@
cd "$folder" || exit 1
git_() { git -c core.hooksPath=/dev/null -c core.fsmonitor=false "$@"; }
head=$(git_ rev-parse --verify --end-of-options "$revision^{commit}") || exit 3
echo "$head"
test "$head" != "$base" || exit 0
test "$descends" = no || git_ merge-base --is-ancestor "$base" "$head" || exit 4
git_ update-ref @OUTGOING@ "$head" && git_ bundle create -q - @OUTGOING@ "^$base"
