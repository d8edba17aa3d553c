# shellcheck shell=sh
# Prints the files of Git LFS in @WORKSPACE@, and if @SUBMODULES@ is yes, those in its submodules. For each repository: a line
# with the lengths of the four parts that follow it. They are its folder, the URL of its remote, `lfs.url` of its .lfsconfig,
# and the entries of its index (`git ls-files -s -z`); then the contents of those that are smaller than a pointer can be
# (`git cat-file --batch`), with their length in the same line.

set -eu
LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_NO_LAZY_FETCH=1 GIT_TERMINAL_PROMPT=0
export LC_ALL GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_NO_LAZY_FETCH GIT_TERMINAL_PROMPT
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE || true
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
cd -- @WORKSPACE@

# list FOLDER
list() {
    printf '%s' "$1" >"$temporary/folder"
    git -C "./$1" config --get remote.origin.url >"$temporary/url" || :
    git -C "./$1" config --no-includes --blob HEAD:.lfsconfig --get lfs.url >"$temporary/lfs" 2>/dev/null || :
    git -C "./$1" ls-files -s -z ':(attr:filter=lfs)' | head -c @BYTES@ >"$temporary/entries"
    tr '\0' '\n' <"$temporary/entries" | sed -n 's/^100[67][45][45] \([0-9a-f]*\) 0	.*/\1/p' | sort -u \
        | git -C "./$1" cat-file --batch-check='%(objectname) %(objecttype) %(objectsize)' \
        | awk '$2 == "blob" && $3 < @POINTER@ { print $1 }' >"$temporary/small"
    git -C "./$1" cat-file --batch <"$temporary/small" | head -c @BYTES@ >"$temporary/contents"
    line=gibil-lfs:
    for part in folder url lfs entries contents; do
        line="$line $(wc -c <"$temporary/$part" | tr -d ' ')"
    done
    printf '%s\n' "$line"
    for part in folder url lfs entries contents; do cat "$temporary/$part"; done
}

list .
if test @SUBMODULES@ = yes; then
    # shellcheck disable=SC2016  # git's own shell expands it
    git submodule --quiet foreach --recursive 'printf "%s\0" "$displaypath"' </dev/null >"$temporary/submodules"
    # A path with a line feed is not listed: it could pass for several.
    tr '\n\0' '\001\n' <"$temporary/submodules" | grep -v "$(printf '\001')" >"$temporary/lines" || :
    while IFS= read -r folder; do list "$folder" </dev/null; done <"$temporary/lines"
fi
