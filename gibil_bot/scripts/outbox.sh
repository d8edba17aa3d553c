# shellcheck shell=sh
# create_outbox WORKSPACE COMMIT: creates the repository that `git push` in the workspace goes to, next to it in .gibil/. It has no
# access to the server; its hooks say how the commits are collected. Returns 1 if that fails; then pushes fail without credentials.

create_outbox() {
    outbox=${1%/*}/.gibil/outbox.git
    git -C "$1" config remote.origin.url >/dev/null || return 0
    rm -rf -- "$outbox" && mkdir -p -- "${outbox%/*}" && git init -q --template= --bare "$outbox" || return 1
    # With the workspace's objects, a push copies only new ones; those are stored even if the workspace has them, too, because it
    # may delete them: no branches of the workspace are advertised, and packs stay as they are.
    mkdir -p "$outbox/hooks" "$outbox/objects/info" || return 1
    printf '%s\n' "$1/.git/objects" >"$outbox/objects/info/alternates" || return 1
    test ! -e "$1/.git/shallow" || cp "$1/.git/shallow" "$outbox/shallow" || return 1
    printf %s @UPDATE@ >"$outbox/hooks/update" && printf %s @RECEIVED@ >"$outbox/hooks/post-receive" || return 1
    chmod 755 "$outbox/hooks/update" "$outbox/hooks/post-receive" || return 1
    # A user's configuration must not replace the hooks.
    for each in "core.hooksPath $outbox/hooks" "core.alternateRefsPrefixes refs/gibil/none/" "gc.auto 0" "receive.autogc false" "receive.unpackLimit 1" \
        "receive.denyNonFastForwards false" "receive.denyDeletes false" "maintenance.auto false"; do
        git -C "$outbox" config "${each%% *}" "${each#* }" || return 1
    done
    git -C "$outbox" update-ref refs/gibil/base "$2" || return 1
    git -C "$1" config push.default current && git -C "$1" config remote.origin.pushurl "$outbox"
}
