# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone_begin.sh: prepared, workspace
# A prepared machine has the submodules' folders, with what was built in them, but not their repositories: set_aside moves the
# folders away before the submodules are checked out, and bring_back puts the files that git ignores back.

aside=$workspace/.git/gibil-aside
set_aside() {
    test -n "$prepared" || return 0
    rm -rf "$aside"
    mkdir "$aside"
    submodule_paths >"$aside/paths"
    number=0
    while IFS= read -r path; do
        number=$((number + 1))
        test ! -d "$path" || test -L "$path" || mv -- "$path" "$aside/$number"
        mkdir -p -- "$path"
    done <"$aside/paths"
}
bring_back() {
    test -n "$prepared" || return 0
    number=0
    while IFS= read -r path; do
        number=$((number + 1))
        if test -d "$aside/$number" && test -e "$path/.git"; then
            find "$aside/$number" -name .git -prune -exec rm -rf {} +
            if cp -a --remove-destination -- "$path/." "$aside/$number/" 2>"$log"; then
                rm -rf -- "$path"
                mv -- "$aside/$number" "$path"
                git -C "$path" -c core.hooksPath=/dev/null clean -q -ffd >"$log" 2>&1 || :
            fi
        fi
    done <"$aside/paths"
    rm -rf "$aside"
}
