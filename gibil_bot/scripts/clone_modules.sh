# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: sha, submodule_depth, submodules; by clone_begin.sh: log
# Checks out submodules from the bare repositories in the tar archive @ARCHIVE@. clone.py appends a call of `module` for each,
# parents first, then `end_modules`.

modules=${workspace%/*}/.gibil/modules
begin_modules() {
    rm -rf "$modules"
    mkdir -p "$modules"
    tar -xf @ARCHIVE@ -C "$modules" >"$log" 2>&1 || { cat "$log" >&2; fail 24 "cannot unpack the submodules; is the disk full?"; }
    rm -f @ARCHIVE@
    set_aside
}
# module PARENT PATH NAME NUMBER: git copies the commit from a file; its configuration then has the submodule's own address.
module() {
    depth_option=
    test "$submodule_depth" = 0 || depth_option=--depth=$submodule_depth
    test -e "./$1/.git" || return 0
    # shellcheck disable=SC2086  # empty: no argument
    {
        git -C "./$1" submodule --quiet init -- "$2" \
            && git -C "./$1" config "submodule.$3.url" "file://$modules/$4.git" \
            && git -C "./$1" -c core.hooksPath=/dev/null submodule --quiet update $depth_option --no-recommend-shallow -- "$2" </dev/null \
            && git -C "./$1" submodule --quiet sync -- "$2"
    } >"$log" 2>&1 || { cat "$log" >&2; fail 24 "the submodule $2 can't be checked out: $(grep -E '^(fatal|error):' "$log" | head -n 1)"; }
}
end_modules() {
    rm -rf "$modules"
    bring_back
    printf '%s' "$submodules" >.git/gibil-submodules
    notes
}
begin_modules
