# shellcheck shell=sh
# Commits all changed files of the workspace that .gitignore doesn't exclude; the message is on stdin. Prints nothing.

folder=@FOLDER@
cd "$folder" || exit 1
git_() {
    git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c commit.gpgSign=false -c core.safecrlf=false \
        -c user.name=gibil -c user.email=gibil@localhost -c advice.addEmbeddedRepo=false "$@"
}
git_ add --all || exit 1
git_ diff --cached --quiet --no-ext-diff --ignore-submodules=none && exit 0
git_ commit -q --no-verify --cleanup=verbatim -F -
