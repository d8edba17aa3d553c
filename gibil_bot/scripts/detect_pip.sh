# shellcheck shell=bash
# Functions that install Python packages into the virtual environment, with uv if this machine has it.

pip_install() {
    if command -v uv >/dev/null 2>&1; then
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
    test -n "$optional" || return 1
    say "that can't be installed together; trying again without the optional parts"
    if test "${#needed[@]}" != 0; then pip_install "${needed[@]}" || return 1; fi
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

# ensure MODULE PACKAGE EVIDENCE: install the package if nothing else brought it
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
