# shellcheck shell=sh
# Stores the objects of the tar archive on stdin in the repository @FOLDER@, as git-lfs does (.git/lfs/objects). Its members are
# named by their SHA-256. Nothing is stored if the archive is incomplete.

set -eu
umask 022
cd -- @FOLDER@
store=$(git rev-parse --absolute-git-dir)/lfs
rm -rf "$store/incoming"
mkdir -p "$store/incoming"
tar -xf - -C "$store/incoming" || { echo "cannot unpack the objects of Git LFS; is the disk full?" >&2; exit 1; }
for object in "$store/incoming"/*; do
    test -f "$object" || continue
    name=${object##*/}
    rest=${name#??}
    folder=$store/objects/${name%"$rest"}/${rest%"${rest#??}"}
    mkdir -p "$folder"
    mv -f "$object" "$folder/$name"
done
rm -rf "$store/incoming"
