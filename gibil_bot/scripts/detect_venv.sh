# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by combine.py: venv, version
# Creates the virtual environment of a Python project outside its checkout, and puts it first in PATH for later tasks.

python=python3
for each in "$version" "$(cut -d . -f 1-2 <<<"$version")"; do  # of Python 3.12.4, the program is python3.12
    if test -n "$each" && command -v "python$each" >/dev/null 2>&1; then python=python$each; fi
done
python=$(command -v "$python" || command -v python) || fail "a virtual environment needs python3, which this machine doesn't have"
mkdir -p "${venv%/*}"
rm -rf "$venv"
if ! { command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python "$python" "$venv"; }; then
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        if command -v apt-get >/dev/null 2>&1; then
            { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv; } >&2 \
                || true
        fi
        "$python" -m venv --clear "$venv" || fail "can't create a virtual environment with $python"
    fi
fi
say "created a virtual environment of Python $("$venv/bin/python" -c 'import platform; print(platform.python_version())') ($venv)"
echo "$venv/bin" >>"$GITHUB_PATH"
echo "VIRTUAL_ENV=$venv" >>"$GITHUB_ENV"
