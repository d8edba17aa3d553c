# shellcheck shell=bash
# Functions that install Python packages into the virtual environment, with uv if this machine has it.

pip_install() {
    if test -z "${without_uv-}" && command -v uv >/dev/null 2>&1; then
        uv pip install "$@"
    else
        # Dependency groups need pip 25.1.
        test -n "${pip_is_new-}" || python -m pip install --quiet --disable-pip-version-check --upgrade pip || true
        pip_is_new=1
        python -m pip install --disable-pip-version-check "$@"
    fi
}

# need_uv: install uv into the virtual environment if this machine has none
need_uv() {
    command -v uv >/dev/null 2>&1 || python -m pip install --quiet --disable-pip-version-check uv
}

# sync_without_repositories OPTION…: run `uv sync` without the packages of uv.lock that come from git repositories
sync_without_repositories() {
    local name
    local -a without=()
    while read -r name; do
        without+=(--no-install-package "$name")
    done < <(awk -F '"' '/^name = /{name = $2} /^source = \{ git = /{print name}' uv.lock)
    test "${#without[@]}" != 0 || return 1
    uv sync --frozen --inexact "$@" "${without[@]}"
}

# resolve ARGUMENT… [+ ARGUMENT…]…: install all of it in one resolution; the parts after each `+` are optional
resolve() {
    local -a all=() needed=() part=()
    local word optional=''
    for word in "$@"; do
        if test "$word" = +; then optional=1; continue; fi
        all+=("$word")
        test -n "$optional" || needed+=("$word")
    done
    if pip_install "${all[@]}"; then return 0; fi
    if test -n "${UV_CONSTRAINT-}"; then
        say "that can't be installed in the versions of the lock file; trying others"
        unset UV_CONSTRAINT PIP_CONSTRAINT
        if pip_install "${all[@]}"; then return 0; fi
    fi
    if test -z "${without_uv-}" && command -v uv >/dev/null 2>&1; then
        say "uv can't install this; trying pip"
        without_uv=1
        if pip_install "${all[@]}"; then return 0; fi
        without_uv=
    fi
    test -n "$optional" || return 1
    say "that can't be installed together; trying again without the optional parts"
    if test "${#needed[@]}" != 0 && ! pip_install "${needed[@]}"; then
        # Extras may need what this machine doesn't have; the project itself has to be installed.
        local -a plain=()
        for word in "${needed[@]}"; do
            case $word in '.['*']') plain+=(.) ;; *) plain+=("$word") ;; esac
        done
        test "${plain[*]}" != "${needed[*]}" || return 1
        say "going on without the extras of ${needed[*]}, which can't be installed"
        pip_install "${plain[@]}" || return 1
    fi
    optional=''
    for word in "$@" +; do
        if test "$word" != +; then
            part+=("$word")
            continue
        fi
        if test -n "$optional" && test "${#part[@]}" != 0; then
            pip_install "${part[@]}" || say "going on without ${part[*]}, which can't be installed"
        fi
        part=() optional=1
    done
}

# versions_of FILE: let `resolve` prefer the versions of a lock file with [[package]] tables (Poetry, PDM); a package that has
# several, for different versions of Python, is left open
versions_of() {
    local file=$RUNNER_TEMP/constraints.txt
    awk -F '"' '/^name = /{name = $2} /^version = /{seen[name]++; version[name] = $2}
        END {for (name in seen) if (seen[name] == 1 && name != "") print name "==" version[name]}' "$1" >"$file" || return 0
    export UV_CONSTRAINT="$file" PIP_CONSTRAINT="$file"
}

# ensure MODULE PACKAGE EVIDENCE: install the package if nothing else has
ensure() {
    if python -c "import $1" >/dev/null 2>&1; then return 0; fi
    say "found $3, which needs $2, and nothing has installed it → pip install $2"
    pip_install "$2"
}

# first COMMAND… [+ COMMAND…]…: run the commands in order until one succeeds
first() {
    local -a command=()
    local word
    for word in "$@" +; do
        if test "$word" != +; then
            command+=("$word")
            continue
        fi
        if "${command[@]}"; then return 0; fi
        say "${command[*]} failed"
        command=()
    done
    return 1
}
