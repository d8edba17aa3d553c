# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by instructions.py: folder, state, above, most; by instructions_begin.sh: head, base
# Replaces all files that steer agents by the files of the archive on stdin. Prints R and a name for each file or folder
# that was removed, S for each file of the archive that can't be written; each ended by NUL.

if test -e "$state/done"; then
    rm -rf -- "$state"
    mkdir -m 700 -- "$state"
fi
if test ! -f "$head" || test -L "$head"; then
    rm -rf -- "$head" "$head.new"
    steering >"$state/removed"
    # 1: a file changed while it was read
    tar --null --numeric-owner -cf "$head.new" -T "$state/removed" 2>"$state/log" || test $? = 1 || fail "$(tail -n 1 "$state/log")"
    mv -fT -- "$head.new" "$head"
fi
rm -rf -- "$base" "$base.new"
mkdir -- "$base.new"
tar -xf - --no-same-owner -C "$base.new" || fail "cannot unpack the base branch's files; is the disk full?"
mv -T -- "$base.new" "$base"
remove_steering
# Some programs also read instructions in the folders above, up to $above.
parent=$folder
while test "$parent" != "$above"; do
    parent=${parent%/*}
    parent=${parent:-/}
    find "$parent" -maxdepth 1 \( @PARENTS@ \) -exec rm -rf -- {} +
done
# shellcheck disable=SC2016  # the inner shell expands it
(cd -- "$base" && find . -type f -exec sh -c '
    cd -- "$folder" || exit 1
    for path; do
        rest=${path#./} at=. is_free=yes
        while test "$rest" != "${rest#*/}"; do
            at=$at/${rest%%/*} rest=${rest#*/}
            # Nothing is written through a link.
            if test -L "$at" || { test -e "$at" && test ! -d "$at"; }; then is_free=; break; fi
            if test ! -e "$at"; then mkdir -- "$at" && printf "%s\0" "$at" >>"$state/created"; fi
        done
        if test -n "$is_free" && cp -p --remove-destination -- "$state/base/$path" "$path"; then continue; fi
        rm -f -- "$state/base/$path"
        printf "S%s\0" "${path#./}"
    done' sh {} +)
test ! -e "$state/removed" || head -zn "$most" "$state/removed" | sed -z 's/^\.\//R/'
