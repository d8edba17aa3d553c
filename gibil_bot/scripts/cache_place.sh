# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by caches.py: folder, patterns; by cache_functions.sh: found, left_out
# Moves the files of an unpacked archive that match the patterns to their paths, and deletes the others. Symbolic links above
# them are never followed, neither in the archive nor on the machine. Prints the number of paths that were moved.

moved=0
matches "$folder" "${patterns[@]}"
for path in "${left_out[@]}"; do
    ! is_direct "$path" || rm -rf -- "$path"
done
for path in "${found[@]}"; do
    target=${path#"$folder"}
    if test -z "$target" || ! is_direct "$path" || ! is_direct "$target"; then continue; fi
    test -e "$path" || test -L "$path" || continue
    test -d "${target%/*}/" || mkdir -p -- "${target%/*}" || continue
    if test -d "$path" && test ! -L "$path" && test -d "$target" && test ! -L "$target"; then
        cp -a -l -f -T -- "$path" "$target"
    else
        mv -f -T -- "$path" "$target"
    fi && moved=$((moved + 1))
done
rm -rf -- "$folder"
: >"$folder.placed"
echo "$moved"
