"""The script that makes a fresh machine ready and runs the tasks of its `.gibil.yml`, detached, without anybody watching. Pure.

It is one job on the machine, so nobody has to stay connected: clone, set up, marker, tasks, marker. What the tasks mean is
what they mean to the bot: conditions are evaluated here for both ways that the tasks before could have ended, and the machine
picks. Its output is the log that people read; `STATE` holds the same for programs, one line for each part that ended:
number, status, exit status, milliseconds, name, all separated by tabs. Part 0 is what stands before the tasks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from gibil_bot.commits.identity import Identity
from gibil_bot.machines.remote_layout import ENVIRONMENT, GIVEN, READY, STATE, TASKS_DONE, TASKS_FAILED, identity_line
from gibil_bot.machines.source import CodeSource
from gibil_bot.planning import expressions
from gibil_bot.planning.services import services_script
from gibil_bot.planning.workflow import Task
from gibil_bot.scripts import clone
from gibil_bot.scripts.commands import SHELLS
from gibil_bot.scripts.setup_task import set_up_script

DEFAULT_TASK_S = 3600.0


def _fill(text: str) -> str:
    places = {"STATE": STATE, "ENVIRONMENT": ENVIRONMENT, "READY": READY}
    places |= {"TASKS_DONE": TASKS_DONE, "TASKS_FAILED": TASKS_FAILED}
    return re.sub(r"@([A-Z_]+)@", lambda match: places[match[1]], text)


# Runs in bash 4 and later. Every name of ours is gibil_…, so that none of the person's variables is touched. The arguments of
# gibil_task: number, name, whether it runs after successes and after failures, whether its failure counts, seconds,
# folder, script, the command words with {0}; then NAME=value of its own.
_FUNCTIONS = _fill(r"""
umask 022
cd /root || exit 1
mkdir -p /root/.gibil/files /run/gibil
: >@STATE@
gibil_failed= gibil_extra=() gibil_path= gibil_timeout=$(command -v timeout)

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
            name=${line%%<<*} word=${line#*<<} value= more=
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
""")

_NO_GLOB = "set -f\n"  # command words are split, and never expanded
# By its full ref: a short name may be that of a tag, and git's own commands refuse some names that a repository may have.
_AS_BRANCH = r"""
git -C /root/project -c core.hooksPath=/dev/null update-ref "refs/heads/$gibil_branch" HEAD \
    && git -C /root/project symbolic-ref HEAD "refs/heads/$gibil_branch" || gibil_give_up 'the branch' $?
"""
_WITH_REMOTE = r"""
git -C /root/project remote add origin "$gibil_remote" 2>/dev/null || true
"""
_READY = _fill(r"""
gibil_save
gibil_record 0 success 0 $(($(gibil_now) - gibil_began)) ready
: >@READY@
gibil_line
echo '=== ready'
""")
_END = _fill(r"""
if [ -n "$gibil_failed" ]; then : >@TASKS_FAILED@; echo '=== a task failed'; exit 1; fi
: >@TASKS_DONE@
""")


def provision_script(origin: CodeSource, given: tuple[str, ...] = (), who: Identity | None = None) -> str:
    """The job's script, for bash. `given`: names of what the job's environment holds of the person's `--env`.

    `who`: whose commits are made there.
    """
    file = origin.file
    base = {"CI": "true", **(file.env if file is not None else {}), **_github(origin)}
    parts = [_FUNCTIONS, _NO_GLOB, "gibil_began=$(gibil_now)\n"]
    parts.append(f"gibil_base=({shlex.join(f'{name}={value}' for name, value in base.items())})\n")
    parts.append(identity_line(who))
    parts.append("gibil_given=(" + " ".join(f'{name}="${GIVEN}{name}"' for name in given) + ")\n")
    parts += [f"unset {GIVEN}{name}\n" for name in given]
    if origin.clone_url is not None:
        clone_script = clone.branch_script(clone_url=origin.clone_url, sha=origin.sha)
        parts.append(f"echo '=== clone'\nsh -c {shlex.quote(clone_script)} </dev/null || gibil_give_up 'the clone' $?\n")
    if origin.branch is not None:
        parts += [f"gibil_branch={shlex.quote(origin.branch)}\n", _AS_BRANCH]
    if origin.remote_url is not None:
        parts += [f"gibil_remote={shlex.quote(origin.remote_url)}\n", _WITH_REMOTE]
    tasks: tuple[Task, ...] = ()
    if file is not None:
        tasks = file.tasks
        set_up = {"set up": set_up_script(file.runtime, file.packages), "services": services_script(file.services)}
        parts += [_set_up(name, text) for name, text in set_up.items() if text is not None]
    parts.append(_READY)
    parts += [_call(number, task, base) for number, task in enumerate(tasks, start=1)]
    parts.append(_END)
    return "".join(parts)


def _set_up(name: str, text: str) -> str:
    return f"""echo '=== {name}'
gibil_files 0
(
    cd /root/project && export "${{gibil_base[@]}}" "${{gibil_given[@]}}"
    export RUNNER_TEMP=/root/.gibil/files GITHUB_PATH="$gibil_folder/path"
    exec sh -c {shlex.quote(text)} </dev/null
) || gibil_give_up '{name}' $?
gibil_take || gibil_give_up '{name}' 1
"""


def _call(number: int, task: Task, env: Mapping[str, str]) -> str:
    """`env`: what is known of the environment before the machine exists; what tasks write to GITHUB_ENV is not among it."""
    assert task.run is not None, "only a workflow's task may use another file"
    after = {
        status: expressions.evaluate(task.condition, status=status, inputs={}, github={}, env={**env, **task.env})
        for status in ("success", "failure")
    }
    arguments = [
        str(number),
        task.name,
        "yes" if after["success"] else "no",
        "yes" if after["failure"] else "no",
        "no" if task.continue_on_error else "yes",
        f"{task.timeout_s or DEFAULT_TASK_S:g}",
        task.working_directory or "",
        task.run,
        command_words(task.shell),
        *(f"{name}={value}" for name, value in task.env.items()),
    ]
    return f"gibil_task {shlex.join(arguments)}\n"


def command_words(shell: str) -> str:
    """The words of a shell's template, separated by spaces, whose own blanks and percent signs are written %20, %09, %25."""
    words = shlex.split(SHELLS.get(shell, shell))
    return " ".join(word.replace("%", "%25").replace(" ", "%20").replace("\t", "%09") for word in words)


def _github(origin: CodeSource) -> Mapping[str, str]:
    """The names of GitHub Actions' that mean something without an event."""
    slug = re.sub(r"^(?:[a-z+]+://[^/]+/|[^/@]+@[^:]+:)", "", origin.repo).removesuffix(".git").strip("/")
    return {
        "GITHUB_REF_NAME": origin.branch or "",
        "GITHUB_REPOSITORY": "/".join(slug.split("/")[-2:]),
        "GITHUB_SHA": origin.sha,
        "GITHUB_WORKSPACE": clone.WORKSPACE,
    }
