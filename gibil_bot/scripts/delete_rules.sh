# shellcheck shell=sh
# delete_rules COMMIT: deletes the ignore and attributes files in the folders of a commit, before its own ones are written. What
# earlier tasks left can then neither keep untracked files nor convert others.

delete_rules() {
    # shellcheck disable=SC2016  # that shell expands it
    { printf '.\0' && git ls-tree -r -d -z --name-only "$1"; } | xargs -0 sh -c 'for folder; do
        for each in "$folder/.gitignore" "$folder/.gitattributes"; do
            if test -e "$each" || test -L "$each"; then rm -rf -- "$each"; fi
        done
    done' sh
}
