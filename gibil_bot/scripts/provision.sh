# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by provision_script.py: gibil_base, gibil_given, gibil_began
# Functions of the provisioning job, which makes a machine ready and runs the tasks of its `.gibil.yml`. For bash 4 and later.
# Every name of it is gibil_…, so that none of the user's variables is touched. The arguments of gibil_task: number, name,
# whether it runs after successes and after failures, whether its failure counts, seconds, folder, script, the command words
# with {0}; then NAME=value of the task.

umask 022
cd /root || exit 1
mkdir -p /root/.gibil/files /run/gibil
: >@STATE@
gibil_failed='' gibil_extra=() gibil_path='' gibil_timeout=$(command -v timeout)

gibil_now() { local t=${EPOCHREALTIME:-}; t=${t/[.,]/}; echo $((${t:-$(date +%s)000000} / 1000)); }
gibil_record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>@STATE@; }

# A line of ours begins a line, whatever was printed before it. (A log that is no file cannot be looked at.)
gibil_line() { [ ! -f /proc/$$/fd/1 ] || [ -z "$(tail -c 1 /proc/$$/fd/1 2>/dev/null)" ] || echo; }

# What commands from outside will find: everything by name, quoted for bash.
gibil_save() {
    local entry
    (
        umask 077
        exec >@ENVIRONMENT@.new
        for entry in "${gibil_base[@]}" "${gibil_given[@]}" "${gibil_extra[@]}"; do
            printf 'export %s=%q\n' "${entry%%=*}" "${entry#*=}"
        done
        # shellcheck disable=SC2016  # expanded by those who read the file
        [ -z "$gibil_path" ] || printf 'export PATH=%q"$PATH"\n' "$gibil_path"
    )
    mv -f @ENVIRONMENT@.new @ENVIRONMENT@
}

gibil_files() {
    gibil_folder=/root/.gibil/files/$1
    mkdir -p "$gibil_folder"
    : >"$gibil_folder/env" && : >"$gibil_folder/output" && : >"$gibil_folder/path" && : >"$gibil_folder/summary" \
        && : >"$gibil_folder/neutral"
}

# Takes over what a task wrote to GITHUB_ENV and GITHUB_PATH; 1 when it cannot be read.
gibil_take() {
    local line name value word more
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        [ -n "$line" ] || continue
        name=${line%%=*}
        if [[ $line == *'<<'* && ${line%%<<*} != *=* ]]; then
            name=${line%%<<*} word=${line#*<<} value='' more=''
            while :; do
                IFS= read -r line || { echo "gibil: GITHUB_ENV: the value of $name never ends"; return 1; }
                line=${line%$'\r'}
                [ "$line" != "$word" ] || break
                value=$value$more$line more=$'\n'
            done
        elif [[ $line == *=* ]]; then
            value=${line#*=}
        else
            echo 'gibil: GITHUB_ENV: a line is neither NAME=value nor NAME<<WORD'
            return 1
        fi
        [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || { echo 'gibil: GITHUB_ENV: what stands first is not a name'; return 1; }
        case ${name^^} in
            GITHUB_* | GIBIL_* | RUNNER_* | NODE_OPTIONS) echo "gibil: GITHUB_ENV: '$name' cannot be set by a task"; return 1 ;;
        esac
        gibil_extra+=("$name=$value")
    done <"$gibil_folder/env"
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        [ -n "$line" ] || continue
        case $line in
            *:*) echo 'gibil: GITHUB_PATH: a line is not one absolute folder'; return 1 ;;
            /*) gibil_path=$line:$gibil_path ;;
            *) echo 'gibil: GITHUB_PATH: a line is not one absolute folder'; return 1 ;;
        esac
    done <"$gibil_folder/path"
    gibil_save
}

gibil_task() {
    local gibil_number=$1 gibil_name=$2 gibil_wanted=$3 gibil_counts=$5 gibil_seconds=$6 gibil_where=$7 gibil_text=$8
    local gibil_start gibil_status gibil_word gibil_words=()
    [ -z "$gibil_failed" ] || gibil_wanted=$4
    for gibil_word in $9; do  # as Python quoted them: one word each, spaces as %20
        gibil_word=${gibil_word//'%20'/ }
        gibil_word=${gibil_word//'%09'/$'\t'}
        gibil_word=${gibil_word//'{0}'/"/root/.gibil/files/$gibil_number/script"}
        gibil_words+=("${gibil_word//'%25'/%}")
    done
    shift 9
    if [ "$gibil_wanted" != yes ]; then
        printf '=== %s: skipped\n' "$gibil_name"
        gibil_record "$gibil_number" skipped '' 0 "$gibil_name"
        return
    fi
    printf '=== %s\n' "$gibil_name"
    gibil_start=$(gibil_now)
    gibil_files "$gibil_number"
    printf '%s' "$gibil_text" >"$gibil_folder/script"
    (
        cd "/root/project/$gibil_where" 2>/dev/null || { echo "gibil: there is no folder /root/project/$gibil_where"; exit 1; }
        # From here on names may mean anything, but for ours.
        # shellcheck disable=SC2163  # NAME=value words
        export "${gibil_base[@]}" "${gibil_given[@]}" "${gibil_extra[@]}" "$@"
        PATH=$gibil_path$PATH
        export GITHUB_ENV=$gibil_folder/env GITHUB_OUTPUT=$gibil_folder/output GITHUB_PATH=$gibil_folder/path
        export GITHUB_STEP_SUMMARY=$gibil_folder/summary RUNNER_TEMP=/root/.gibil/files RUNNER_OS=Linux
        export GIBIL_NEUTRAL=$gibil_folder/neutral
        exec "$gibil_timeout" --kill-after=5 "$gibil_seconds" "${gibil_words[@]}" </dev/null
    )
    gibil_status=$?
    gibil_word=success
    [ "$gibil_status" = 0 ] || gibil_word=failure
    [ "$gibil_status" != 124 ] || gibil_word=timed_out
    gibil_take || { [ "$gibil_word" != success ] || gibil_word=failure; }
    [ "$gibil_word" != success ] || [ ! -s "$gibil_folder/neutral" ] || gibil_word=skipped
    gibil_record "$gibil_number" "$gibil_word" "$gibil_status" $(($(gibil_now) - gibil_start)) "$gibil_name"
    gibil_line
    printf '=== %s: %s, exit status %s\n' "$gibil_name" "$gibil_word" "$gibil_status"
    [ "$gibil_word" = success ] || [ "$gibil_word" = skipped ] || [ "$gibil_counts" = no ] || gibil_failed=1
}

gibil_give_up() {
    gibil_line
    printf '=== %s failed, exit status %s\n' "$1" "$2"
    gibil_record 0 failure "$2" $(($(gibil_now) - gibil_began)) "$1"
    : >@TASKS_FAILED@
    exit 1
}
