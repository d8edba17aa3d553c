# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by provision_script.py: gibil_base, gibil_file, gibil_given, gibil_began
# Functions of the provisioning job, which prepares a machine and runs the tasks of its `.gibil.yml`. For bash 4 and later. All
# names begin with gibil_, so that the user's variables aren't touched. The arguments of gibil_task: number, name, whether it
# runs after success and after failure (yes, no, or an expression for gibil_holds), whether its failure counts, milliseconds,
# directory, script, the command words with {0}; then NAME=value of the task. The semantics of a file are the same as in the
# bot's runs (runs/execution.py, task_script.py): tests/contracts/task_semantics.yml.

umask 022
cd /root || exit 1
mkdir -p /root/.gibil/files /run/gibil
: >@STATE@
gibil_most_bytes=@MAX_VALUE_BYTES@ gibil_most_names=@MAX_ENV_ENTRIES@ gibil_most_folders=@MAX_FOLDERS@
gibil_failed='' gibil_extra=() gibil_path='' gibil_setsid=$(command -v setsid)

# Milliseconds, by a clock that can't be set.
gibil_now() { local t; read -r t _ </proc/uptime; echo $((10#${t/./} * 10)); }
gibil_record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>@STATE@; }

# Begins a new line if the last output didn't end with one. (Not possible if the log isn't a file.)
gibil_line() { [ ! -f /proc/$$/fd/1 ] || [ -z "$(tail -c 1 /proc/$$/fd/1 2>/dev/null)" ] || echo; }

# Writes the environment for commands from outside: all variables by name, quoted for bash.
gibil_save() {
    local entry
    (
        umask 077
        exec >@ENVIRONMENT@.new
        for entry in "${gibil_base[@]}" "${gibil_given[@]}" "${gibil_extra[@]}"; do
            printf 'export %s=%q\n' "${entry%%=*}" "${entry#*=}"
        done
        # shellcheck disable=SC2016  # expanded by the shells that read the file
        [ -z "$gibil_path" ] || printf 'export PATH=%q"$PATH"\n' "$gibil_path"
    )
    mv -f @ENVIRONMENT@.new @ENVIRONMENT@
}

gibil_files() {
    gibil_folder=/root/.gibil/files/$1
    mkdir -p "$gibil_folder"
    rm -f "$gibil_folder/timed_out"
    : >"$gibil_folder/env" && : >"$gibil_folder/output" && : >"$gibil_folder/path" && : >"$gibil_folder/summary" \
        && : >"$gibil_folder/neutral"
}

# Parses a task's GITHUB_ENV into NAME=value words in gibil_new; returns 1 if it is invalid.
gibil_read_env() {
    local LC_ALL=C lines line name value word number=0
    local -A names=()
    gibil_new=()
    gibil_read_lines env GITHUB_ENV || return 1
    while [ "$number" -lt "${#lines[@]}" ]; do
        line=${lines[number]}
        number=$((number + 1))
        [ -n "$line" ] || continue
        name=${line%%=*}
        if [[ $line == *'<<'* && ${line%%<<*} != *=* ]]; then
            name=${line%%<<*} word=${line#*<<} value='' gibil_position="GITHUB_ENV, line $number"
            [ -n "$word" ] || { echo "gibil: $gibil_position: << must be followed by the word that ends the value"; return 1; }
            until [ "$number" -ge "${#lines[@]}" ] || [ "${lines[number]}" = "$word" ]; do
                value+=${lines[number]}$'\n'
                number=$((number + 1))
            done
            [ "$number" -lt "${#lines[@]}" ] || { echo "gibil: $gibil_position: the line that ends the value is missing"; return 1; }
            value=${value%$'\n'} number=$((number + 1))
        elif [[ $line == *=* ]]; then
            value=${line#*=} gibil_position="GITHUB_ENV, line $number"
        else
            echo "gibil: GITHUB_ENV, line $number: expected NAME=value or NAME<<WORD"
            return 1
        fi
        [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && ${#name} -le 200 ]] \
            || { echo "gibil: $gibil_position: the line must begin with a name of letters, digits and _"; return 1; }
        case ${name^^} in
            GITHUB_* | GIBIL_* | RUNNER_* | NODE_OPTIONS) echo "gibil: $gibil_position: a task can't set '$name'"; return 1 ;;
        esac
        [ "${#value}" -le "$gibil_most_bytes" ] \
            || { echo "gibil: $gibil_position: the value of '$name' is larger than $((gibil_most_bytes / 1024)) KiB"; return 1; }
        names[$name]=1
        [ "${#names[@]}" -le "$gibil_most_names" ] || { echo "gibil: $gibil_position: more than $gibil_most_names names"; return 1; }
        gibil_new+=("$name=$value")
    done
}

# Parses a task's GITHUB_PATH into gibil_folders; returns 1 if it is invalid.
gibil_read_path() {
    local LC_ALL=C lines line number=0
    gibil_folders=()
    gibil_read_lines path GITHUB_PATH || return 1
    for line in "${lines[@]}"; do
        number=$((number + 1))
        line=${line#"${line%%[![:space:]]*}"}
        line=${line%"${line##*[![:space:]]}"}
        [ -n "$line" ] || continue
        if [[ $line != /* || $line == *:* || ${#line} -gt 4096 ]]; then
            echo "gibil: GITHUB_PATH, line $number: expected one absolute directory"
            return 1
        fi
        gibil_folders+=("$line")
    done
    [ "${#gibil_folders[@]}" -le "$gibil_most_folders" ] \
        || { echo "gibil: GITHUB_PATH: more than $gibil_most_folders directories"; return 1; }
}

# Reads the lines of a file that a task wrote into the caller's `lines`.
gibil_read_lines() {
    local number
    if IFS= read -r -d '' _ <"$gibil_folder/$1"; then
        echo "gibil: $2: contains a NUL byte"
        return 1
    fi
    mapfile lines <"$gibil_folder/$1"
    for number in "${!lines[@]}"; do
        lines[number]=${lines[number]/%$'\r\n'/$'\n'}
        lines[number]=${lines[number]%$'\n'}
    done
}

# Applies a task's GITHUB_ENV and GITHUB_PATH. Ignores all of an invalid file, and returns 1.
gibil_take() {
    local gibil_new gibil_folders gibil_position folder
    gibil_read_env || return 1
    gibil_extra+=("${gibil_new[@]}")
    gibil_read_path || { gibil_save; return 1; }
    for folder in "${gibil_folders[@]}"; do gibil_path=$folder:$gibil_path; done
    gibil_save
}

# gibil_holds EXPRESSION NAME=value…: whether a condition is true in the environment that the task would have. The expression is
# awk code over values with a letter for their type (string, number, boolean, z for null); see machines/provision_script.py.
gibil_holds() {
    local expression=$1
    shift
    # shellcheck disable=SC2016  # awk expands it
    env -i PATH="$PATH" LC_ALL=C "${@/#/gibil_}" awk '
        function truth(v, t) { t = substr(v, 1, 1); return t == "s" ? length(v) > 1 : t == "n" ? substr(v, 2) + 0 != 0 : v == "b1" }
        function env(name) { name = "gibil_" name; return name in ENVIRON ? "s" ENVIRON[name] : "z" }
        function both(a, b) { return truth(a) ? b : a }
        function either(a, b) { return truth(a) ? a : b }
        function not(a) { return truth(a) ? "b0" : "b1" }
        function text(v, t) {
            t = substr(v, 1, 1)
            return t == "z" ? "" : v == "b1" ? "true" : v == "b0" ? "false" : t == "n" ? sprintf("%.15g", substr(v, 2) + 0) : substr(v, 2)
        }
        function contains(a, b) { return "b" (b == "z" || text(b) == "" || index(tolower(text(a)), tolower(text(b))) > 0) }
        function startswith(a, b) { return "b" (tolower(substr(text(a), 1, length(text(b)))) == tolower(text(b))) }
        function endswith(a, b) {
            if (length(text(b)) > length(text(a))) return "b0"
            return "b" (tolower(substr(text(a), length(text(a)) - length(text(b)) + 1)) == tolower(text(b)))
        }
        function number(v, t, sign, sum, i) {
            t = substr(v, 1, 1)
            v = substr(v, 2)
            if (t != "s") return v + 0
            gsub(/^[ \t\r\n\v\f]+|[ \t\r\n\v\f]+$/, "", v)
            if (v == "") return 0
            if (v ~ /^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$/) return v + 0
            if (v !~ /^[-+]?0x[0-9a-fA-F]+$/) return "nan"
            sign = v ~ /^-/ ? -1 : 1
            sub(/^[-+]?0x/, "", v)
            for (i = 1; i <= length(v) && i <= 32; i++) sum = sum * 16 + index("0123456789abcdef", tolower(substr(v, i, 1))) - 1
            return sign * sum
        }
        function compare(o, a, b) {
            if (substr(a, 1, 1) == "s" && substr(b, 1, 1) == "s") {
                a = toupper(a)
                b = toupper(b)
            } else {
                a = number(a)
                b = number(b)
                if (a == "nan" || b == "nan") return o == "!=" ? "b1" : "b0"
            }
            return "b" (o == "==" ? a == b : o == "!=" ? a != b : o == "<" ? a < b : o == ">" ? a > b : o == "<=" ? a <= b : a >= b)
        }
        BEGIN { exit truth('"$expression"') ? 0 : 1 }'
}

# Stops a task at its time limit: all processes with its GITHUB_ENV in their environment, and their descendants.
gibil_watch() {
    trap 'kill "$!" 2>/dev/null; exit' TERM
    sleep "$gibil_seconds" &
    wait "$!"
    trap - TERM
    : >"$gibil_folder/timed_out"
    set +f
@KILL@
}

gibil_task() {
    local gibil_number=$1 gibil_name=$2 gibil_wanted=$3 gibil_counts=$5 gibil_limit=$6 gibil_where=$7 gibil_text=$8
    local gibil_start gibil_status gibil_took gibil_watcher gibil_word gibil_seconds gibil_words=()
    [ -z "$gibil_failed" ] || gibil_wanted=$4
    for gibil_word in $9; do  # quoted by Python: one word each, spaces as %20
        gibil_word=${gibil_word//'%20'/ }
        gibil_word=${gibil_word//'%09'/$'\t'}
        gibil_word=${gibil_word//'{0}'/"/root/.gibil/files/$gibil_number/script"}
        gibil_words+=("${gibil_word//'%25'/%}")
    done
    shift 9
    case $gibil_wanted in
        yes | no) ;;
        *) gibil_holds "$gibil_wanted" "${gibil_file[@]}" "${gibil_given[@]}" "${gibil_extra[@]}" "$@" && gibil_wanted=yes ;;
    esac
    if [ "$gibil_wanted" != yes ]; then
        printf '=== %s: skipped\n' "$gibil_name"
        gibil_record "$gibil_number" skipped '' 0 "$gibil_name"
        return
    fi
    printf '=== %s\n' "$gibil_name"
    printf -v gibil_seconds '%d.%03d' $((gibil_limit / 1000)) $((gibil_limit % 1000))
    gibil_start=$(gibil_now)
    gibil_files "$gibil_number"
    printf '%s' "$gibil_text" >"$gibil_folder/script"
    gibil_watch </dev/null >/dev/null 2>&1 &
    gibil_watcher=$!
    # The task has its own session, as in the bot's runs. Messages of bash about a killed task aren't part of the task's output.
    exec 9>&2 2>/dev/null
    (
        exec 2>&9 9>&-
        cd "/root/project/$gibil_where" 2>/dev/null || { echo "gibil: there is no directory /root/project/$gibil_where"; exit 1; }
        # From here on, the user's variables may change how commands run; only names that begin with gibil_ are safe.
        # shellcheck disable=SC2163  # NAME=value words
        export "${gibil_base[@]}" "${gibil_given[@]}" "${gibil_extra[@]}" "$@"
        PATH=$gibil_path$PATH
        export GITHUB_ENV=$gibil_folder/env GITHUB_OUTPUT=$gibil_folder/output GITHUB_PATH=$gibil_folder/path
        export GITHUB_STEP_SUMMARY=$gibil_folder/summary RUNNER_TEMP=/root/.gibil/files RUNNER_OS=Linux
        export GIBIL_NEUTRAL=$gibil_folder/neutral
        exec "$gibil_setsid" "${gibil_words[@]}" </dev/null
    )
    gibil_status=$?
    [ -e "$gibil_folder/timed_out" ] || kill "$gibil_watcher"
    wait "$gibil_watcher"
    exec 2>&9 9>&-
    gibil_took=$(($(gibil_now) - gibil_start))
    gibil_word=success
    [ "$gibil_status" = 0 ] || gibil_word=failure
    [ ! -e "$gibil_folder/timed_out" ] || gibil_word=timed_out gibil_status=124
    gibil_take || { [ "$gibil_word" != success ] || gibil_word=failure; }
    if [ "$gibil_word" = success ] && [ -s "$gibil_folder/neutral" ]; then
        [[ $(head -c @REASON_BYTES@ "$gibil_folder/neutral" | tr -d '\000') != *[![:space:]]* ]] || gibil_word=skipped
    fi
    gibil_record "$gibil_number" "$gibil_word" "$gibil_status" "$gibil_took" "$gibil_name"
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
