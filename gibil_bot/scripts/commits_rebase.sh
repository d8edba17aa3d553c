# shellcheck shell=sh
# Rebases the commits since the base onto newer commits, which are a bundle on stdin, in a temporary working tree. Prints the
# conflicting paths and exits with 5 if they don't apply. The result is the ref @REBASED@.

folder=@FOLDER@ base=@BASE@ head=@HEAD@ target=@TARGET@
cd "$folder" || exit 1
scratch=$(mktemp -d) || exit 1
trap 'cd "$folder"; rm -rf "$scratch"; git worktree prune' EXIT
git_() {
    git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c commit.gpgSign=false -c rebase.autoStash=false \
        -c user.name=gibil -c user.email=gibil@localhost -c advice.detachedHead=false "$@"
}
cat >"$scratch/bundle" || exit 1
git_ fetch -q --no-tags --no-write-fetch-head "$scratch/bundle" "+@OUTGOING@:@FETCHED@" || exit 1
git_ worktree add -q --detach "$scratch/tree" "$head" >&2 || exit 1
cd "$scratch/tree" || exit 1
if ! GIT_EDITOR=true git_ rebase -q --onto "$target" "$base" >&2; then
    git_ diff --name-only --diff-filter=U | head -n 10
    git_ rebase --abort >&2
    exit 5
fi
git_ update-ref @REBASED@ HEAD
