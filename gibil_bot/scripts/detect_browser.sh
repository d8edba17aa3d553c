# shellcheck shell=bash
# Functions that make a browser available to tests. None of them fails: most tests of a project need no browser.

# distributed: install Chromium of the distribution, unless this machine has a browser of its kind; its path is in $chrome
distributed() {
    local name
    for name in google-chrome google-chrome-stable chromium chromium-browser; do
        if chrome=$(type -P "$name"); then return 0; fi
    done
    test "$(id -u)" = 0 && command -v apt-get >/dev/null 2>&1 || return 1
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } >&2 || return 1
    chrome=$(type -P chromium) || return 1
    # Chromium doesn't run as root with its sandbox.
    mkdir -p /etc/chromium.d
    # shellcheck disable=SC2016  # the wrapper of the distribution reads it
    echo 'CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox"' >/etc/chromium.d/gibil
}

# chromium: for karma, Puppeteer, testem and the like
chromium() {
    if distributed; then
        say "tests in a browser use $chrome"
        printf '%s\n' "CHROME_BIN=$chrome" "PUPPETEER_EXECUTABLE_PATH=$chrome" >>"$GITHUB_ENV"
    else
        say "this machine has no browser and can't install Chromium; tests that use one will fail"
    fi
}

# playwright PROGRAM… -- BROWSER…: download the browsers that the installed Playwright wants
playwright() {
    local line folder name
    local -a program=()
    while test $# != 0 && test "$1" != --; do program+=("$1"); shift; done
    shift
    unset PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD
    if timeout 300 "${program[@]}" install --with-deps "$@" </dev/null; then return 0; fi
    say "the browsers of Playwright can't be downloaded here (cdn.playwright.dev, see above); trying Chromium of the distribution"
    if ! distributed; then
        say "this machine can't install it; tests that use a browser will fail"
        return 0
    fi
    while read -r line; do
        folder=${line#*Install location:}
        folder=${folder#"${folder%%[! ]*}"}
        case $folder in /*chromium*) ;; *) continue ;; esac
        for name in chrome-linux/chrome chrome-linux64/chrome chrome-linux/headless_shell \
            chrome-headless-shell-linux64/chrome-headless-shell; do
            mkdir -p "$folder/${name%/*}"
            ln -sf "$chrome" "$folder/$name"
        done
        touch "$folder/INSTALLATION_COMPLETE"
    done < <("${program[@]}" install --dry-run chromium </dev/null)
    say "Playwright uses $chrome in place of its own Chromium; tests in other browsers will fail"
}
