# shellcheck shell=bash
# shellcheck disable=SC2154  # in the environment: gibil_path
# Lists a directory, or the files that match $gibil_glob: five fields for each entry, each ended by NUL.

p=$gibil_path
[ -e "$p" ] || exit 44
[ -z "$gibil_glob" ] || [ -d "$p" ] || exit 47
{
    if [ "$gibil_glob" ]; then
        cd "$p" && shopt -s globstar nullglob && IFS=
        # shellcheck disable=SC2206  # a pattern, and IFS is empty
        files=($gibil_glob)
        [ ${#files[@]} = 0 ] || printf './%s\0' "${files[@]}" |
            xargs -0 sh -c 'exec find "$@" -maxdepth 0 -printf "@ENTRY@"' sh
    elif [ -d "$p" ]; then
        find "$p/" -mindepth 1 -maxdepth 1 -printf '@BELOW@'
    else
        find "$p" -maxdepth 0 -printf '@ENTRY@'
    fi
} 2>/dev/null | head -c @LISTING_BYTES@
exit 0
