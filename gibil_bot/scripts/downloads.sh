# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by the programs that this is a part of: label looked work
# Part of gibil-runtime and of the task that installs an agent's engine: downloads, checked against published digests.

has() { command -v "$1" >/dev/null 2>&1; }

# seek SOURCE RESULT: remember where the program was looked for, for the message if it can't be found
seek() { looked="$looked${looked:+, }$1 ($2)"; }
nowhere() { fail "$label isn't available; gibil looked at ${looked:-nowhere}"; }

# download URL FILE SECONDS [HEADER]: returns 1 if that isn't possible, with the reason in $problem
download() {
    if has curl; then
        problem=$(curl -fsSL --retry 2 --retry-delay 1 --connect-timeout 8 --max-time "$3" -H "${4-Accept: */*}" -o "$2" "$1" \
            2>&1 </dev/null) && return
    elif has wget; then
        problem=$(wget -q --tries 2 --timeout 30 --header "${4-Accept: */*}" -O "$2" "$1" 2>&1 </dev/null) && return
    elif has python3; then
        problem=$(python3 -c 'import shutil, sys, urllib.request as r
name, _, value = sys.argv[3].partition(": ")
with r.urlopen(r.Request(sys.argv[1], headers={name: value}), timeout=30) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)' "$1" "$2" "${4-Accept: */*}" 2>&1 </dev/null) && return
    else
        problem='this machine has no curl, wget or python3'
    fi
    problem=$(echo "$problem" | tail -n 1)
    return 1
}

# fetch URL FILE: download what a list has offered
fetch() { download "$1" "$2" 900 || fail "$label: can't download $1 ($problem)"; }

# check FILE ALGORITHM SUM: the file is the published one
check() {
    test "$3" = "$("${2}sum" "$1" | cut -d ' ' -f 1)" || fail "${1##*/}: wrong checksum ($2), it isn't the published file"
}

# unpack ARCHIVE FOLDER: unpack an archive that has one top folder
unpack() {
    mkdir -p "$2"
    tar -xzf "$1" -C "$2" --strip-components=1 --no-same-owner
}

# npm_registry: the machine's registry of npm, in $registry
npm_registry() {
    registry=${NPM_CONFIG_REGISTRY:-${npm_config_registry:-$(cat /etc/npmrc /usr/local/etc/npmrc ~/.npmrc 2>/dev/null \
        | sed -n 's/^ *registry *= *//p' | tail -n 1)}}
    registry=${registry:-https://registry.npmjs.org}
    registry=${registry%/}
}

# npm_unpack PACKAGE VERSION FOLDER [SHA512]: unpack exactly that version, without dependencies, checked against the digest (base64)
# that is given, or else the registry's
npm_unpack() {
    path=$(echo "$1" | sed 's|/|%2f|')
    download "$registry/$path/$2" "$work/manifest" 60 || { seek "npm's $1" "$problem"; return 1; }
    url=$(sed -n 's/.*"tarball": *"\([^"]*\)".*/\1/p' "$work/manifest")
    sum=${4:-$(sed -n 's/.*"integrity": *"sha512-\([A-Za-z0-9+/=]*\)".*/\1/p' "$work/manifest")}
    download "$url" "$work/package.tgz" 900 || { seek "npm's $1" "$problem"; return 1; }
    check "$work/package.tgz" sha512 "$(echo "$sum" | base64 -d | od -An -v -tx1 | tr -d ' \n')"
    unpack "$work/package.tgz" "$3"
    rm "$work/package.tgz"
}
