# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: bin label machine name opt version wanted work
# Part of gibil-runtime: Python, uv, and the tools that PyPI carries.

# need_uv: uv in $uv, of any version
need_uv() {
    uv=$(command -v uv || true)
    if test -z "$uv"; then
        uv_wanted=$wanted wanted=
        place_uv || { wanted=$uv_wanted; return 1; }
        wanted=$uv_wanted
        uv=$bin/uv
    fi
    configure_uv "$uv"
}

# configure_uv UV: request the system's certificates by the name that this uv knows. Before 0.11 the other one is an error,
# and later versions warn of the old one.
configure_uv() {
    test -w "$etc/uv/uv.toml" || return 0
    setting=native-tls
    ! printf '0.11\n%s\n' "$(version_of uv "$1")" | sort -VC || setting=system-certs
    sed -i "s/^\(native-tls\|system-certs\) = /$setting = /" "$etc/uv/uv.toml"
}

place_uv() {
    wheel uv || return 1
    mkdir -p "$work/uv"
    mv "$work"/wheel/uv-*.data/scripts "$work/uv/bin"
    chmod 755 "$work/uv/bin/"*
    rm -rf "$work/wheel"
    keep "$work/uv" "$opt/uv-$version" bin uv uvx
}

install_uv() { place_uv || nowhere; }

# uv knows where builds of Python are published, and checks their sums.
install_python() {
    if need_uv; then
        # The machine's own certificates, which may include the operator's.
        export UV_PYTHON_INSTALL_DIR="$opt/python" UV_SYSTEM_CERTS=true UV_HTTP_CONNECT_TIMEOUT=10 UV_HTTP_RETRIES=1
        # shellcheck disable=SC2086  # no word without a version
        if "$uv" python install --no-bin $wanted >"$work/uv-log" 2>&1; then
            # shellcheck disable=SC2086  # no word without a version
            found=$("$uv" python find --managed-python $wanted) || fail "$label: uv installed it, but doesn't find it"
            found=$(readlink -f "$found")
            version=$("$found" -c 'import platform; print(platform.python_version())')
            # Its configuration has the path that uv gave it.
            home=${found%/bin/*}
            grep -rlF "$home" "$home/lib" --include='*.py' --include='*.pc' --include='*.json' \
                | xargs -r sed -i "s|$home|$opt/python-$version|g"
            keep "$home" "$opt/python-$version" bin "${found##*/}"
            rm -rf "$opt/python"
            return 0
        fi
        host=$(grep -o 'https*://[^/ )]*' "$work/uv-log" | head -n 1)
        if test -n "$host"; then
            seek "$host" "out of reach"
        else
            seek "the builds that uv knows" "$(tail -n 1 "$work/uv-log" | sed 's/^[^A-Za-z]*//')"
        fi
    fi
    minor=$(echo "${wanted:-3}" | cut -d . -f 1-2)
    from_distribution "python$minor" "python$minor" "python$minor-venv" || python_of_debian "$minor" || nowhere
}

# through_uv PACKAGE PROGRAM…: uv checks the digest of each package
through_uv() {
    package=$1
    need_uv || nowhere
    export UV_TOOL_DIR="$opt/tools" UV_TOOL_BIN_DIR="$bin" UV_SYSTEM_CERTS=true UV_HTTP_CONNECT_TIMEOUT=10
    # Those that use requests know no certificates but their own.
    trusting=''
    test ! -e /etc/gibil/ca.pem || trusting='--with pip-system-certs'
    # shellcheck disable=SC2086  # no words without certificates
    "$uv" tool install --force $trusting "$package${wanted:+==$wanted.*}" >"$work/uv-log" 2>&1 && return
    tail -n 3 "$work/uv-log" >&2
    seek "PyPI's $package" "uv can't install it"
    return 1
}

tool() { through_uv "$1" || nowhere; }

# tool_or_package PACKAGE DISTRIBUTION'S
tool_or_package() { through_uv "$1" || from_distribution "$2" "$2" || nowhere; }
