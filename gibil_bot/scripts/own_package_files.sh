#!/bin/sh
# apt runs this before dpkg, with the paths of the packages on stdin. dpkg hard-links a file before it replaces it, which fails
# for files of a user that doesn't exist in this machine. So root gets a copy of each file of the packages that will be
# replaced.
while read -r deb; do
  package=$(dpkg-deb -f "$deb" Package); architecture=$(dpkg-deb -f "$deb" Architecture)
  for list in "/var/lib/dpkg/info/$package.list" "/var/lib/dpkg/info/$package:$architecture.list"; do
    [ -f "$list" ] && cat "$list"
  done
done | { cat; dpkg-divert --list | sed -n 's/^.* to \(.*\) by .*$/\1/p'; } | while IFS= read -r file; do
  # shellcheck disable=SC3067  # dash, bash and busybox have it
  [ -f "$file" ] && [ ! -L "$file" ] && [ ! -O "$file" ] &&
    cp -p --no-preserve=ownership "$file" "$file.gibil~" && mv -f "$file.gibil~" "$file"
done
exit 0
