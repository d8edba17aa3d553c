# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: url, host, hint, submodules, submodule_depth; by clone_begin.sh: log
# fetch: git fetch from $url, with the token in GIBIL_CLONE_TOKEN. Ends the script with 21, 22 or 24 on an error; returns 1 if
# the server doesn't have what was requested, and 3 after $within seconds. clone.py assigns url, host and hint.

test -n "$finished" || printf '[remote "origin"]\n\turl = %s\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n' "$url" >>.git/config

# The credential helper answers only for the host and protocol of the URL, whatever a redirect or a submodule says.
# shellcheck disable=SC2016  # the helper's own shell expands it
helper='!f() {
    test "$1" = get && test -n "${GIBIL_CLONE_TOKEN:-}" || exit 0
    while IFS= read -r line; do
        case $line in
            protocol=*) test "${line#protocol=}" = "$GIBIL_CLONE_PROTOCOL" || exit 0 ;;
            host=*) test "${line#host=}" = "$GIBIL_CLONE_HOST" || exit 0 ;;
        esac
    done
    printf "username=x-access-token\npassword=%s\n" "$GIBIL_CLONE_TOKEN"
}; f'

within='' which_tags=--no-tags
with_credentials() {
    ${within:+timeout "$within"} git -c credential.helper= -c "credential.helper=$helper" -c core.hooksPath=/dev/null \
        -c core.askPass= -c http.lowSpeedLimit=500 -c http.lowSpeedTime=60 -c protocol.version=2 -c gc.auto=0 "$@"
}

fetch() {
    # shellcheck disable=SC2086  # empty: git's own way, which is the tags of the fetched commits
    with_credentials fetch -q $which_tags --no-recurse-submodules --no-write-fetch-head "$@" >"$log" 2>&1 && return 0
    test $? != 124 || return 3
    cat "$log" >&2
    if grep -qiE 'authentication failed|could not read (username|password)|terminal prompts disabled' "$log" \
        || grep -qiE 'requested URL returned error: 40[13]' "$log"; then
        fail 22 "$host rejects our credentials for this repository; $hint"
    elif grep -qiE "repository .* not found|requested URL returned error: 404" "$log"; then
        fail 22 "$host does not show us this repository; $hint"
    elif grep -qiE "not our ref|couldn't find remote ref|unadvertised object|no such remote ref" "$log"; then
        return 1
    elif grep -qiE 'no space left|cannot (write|create)|unable to write' "$log"; then
        fail 24 "cannot write the commit; is the disk full?"
    fi
    fail 21 "$host can't be reached from this machine, or the connection was lost"
}

# fetch_submodules: fetches only the commits of $submodules (true, or recursive: theirs, too), and $submodule_depth commits of their
# history; 0 is all of them. Their addresses come from the repository: git uses only http and https, and the helper answers only for $host.
# As with actions/checkout, SSH addresses of $hostname mean $server. If credentials are missing, it prints the addresses before
# it ends with 22.
fetch_submodules() {
    if test -f .gitmodules; then
        recursive=
        test "$submodules" != recursive || recursive=--recursive
        depth_option=
        test "$submodule_depth" = 0 || depth_option=--depth=$submodule_depth
        set_aside
        # shellcheck disable=SC2086  # empty: no argument
        with_credentials -c "url.$server/.insteadOf=git@$hostname:" -c "url.$server/.insteadOf=ssh://git@$hostname/" \
            submodule --quiet update --init $recursive $depth_option --no-recommend-shallow --jobs=4 </dev/null >"$log" 2>&1 || submodule_problem
        bring_back
    fi
    printf '%s' "$submodules" >.git/gibil-submodules
}
submodule_problem() {
    cat "$log" >&2
    find .git -name config -type f -exec git config --no-includes --file {} --get-regexp '^submodule\..*\.url$' \; \
        | while read -r _ address; do echo "gibil-submodule: $address"; done
    if grep -qiE 'authentication failed|could not read (username|password)|terminal prompts disabled|not found' "$log" \
        || grep -qiE 'requested URL returned error: 40[134]' "$log"; then
        fail 22 "a submodule can't be fetched with our credentials; is the App installed on its repository?"
    elif grep -qiE 'transport .* not allowed' "$log"; then
        fail 24 "a submodule can't be fetched: its address must begin with https:// or http://, or be relative"
    elif grep -qiE 'no url found for submodule|(suspicious|disallowed|ignoring) |looks like an option|invalid|already exists' "$log"; then
        fail 24 "a submodule can't be fetched: $(grep -E '^(fatal|error|warning):' "$log" | head -n 1)"
    fi
    fail 21 "a submodule can't be fetched: $(grep -E '^(fatal|error):' "$log" | tail -n 1)"
}
