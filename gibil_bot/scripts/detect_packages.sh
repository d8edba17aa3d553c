# shellcheck shell=bash
# Installs the packages that a project's CI installs. combine.py defines install_packages, which installs those in $packages.

# optional_packages EVIDENCE PACKAGE…: all of them at once, or else each one that this distribution has
optional_packages() {
    local evidence=$1 package
    shift
    say "found $evidence → packages $*"
    if packages="$*" install_packages; then return 0; fi
    for package in "$@"; do
        packages=$package install_packages || say "going on without the package $package"
    done
}
