"""Hints for users of GitHub Actions: what to write instead of keys, expressions and variables that gibil doesn't support.

Keys and contexts: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax and
https://docs.github.com/en/actions/reference/workflows-and-actions/contexts. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.planning.yaml_nodes import Node
from gibil_bot.scripts.task_script import input_variable

# --- keys ---------------------------------------------------------------------------------------------------------

_EVENTS_HERE = "workflows start by a command in a comment and on pull requests (opened, synchronize, reopened)"
_NO_ACTIONS_HERE = "actions aren't run here"
_NO_ACTIONS = f"{_NO_ACTIONS_HERE}; write the commands under run"
_NO_ARTIFACTS = "artifacts are not stored yet; print what matters, or write it to $GITHUB_STEP_SUMMARY"
_NO_MATRIX = "there is no matrix yet; write one workflow per version, or a loop in"
_NO_OUTPUTS = "tasks have no outputs; write NAME=value to $GITHUB_ENV, and later tasks read $NAME"
_NO_CREDENTIALS = "machines get no GitHub token"
_REPORT_WITHOUT_TOKEN = f"{_NO_CREDENTIALS}; the report takes Markdown from $GITHUB_STEP_SUMMARY"
_ONE_AFTER_ANOTHER = "tasks run one after another in the order of the file; remove it"
_AT_THE_TOP = "belongs at the top of the file, next to tasks"

WORKFLOW_KEYS: Mapping[str, str] = {
    "run-name": "a run has the name of its workflow; use name",
    "permissions": f"{_NO_CREDENTIALS}, so there is nothing to restrict; remove it",
    "defaults": "write shell and working-directory on the tasks that need them",
    "jobs": "a workflow is one job here; write its steps under tasks",
    "steps": "steps are called tasks here",
    "runs-on": "describe the machine under machine",
    "strategy": f"{_NO_MATRIX} a task",
    "matrix": f"{_NO_MATRIX} a task",
    "needs": _ONE_AFTER_ANOTHER,
    "outputs": _NO_OUTPUTS,
    "environment": "there are no environments; list the names of the secrets under secrets",
    "container": "tasks run on the machine itself; choose it under machine, and install programs with packages",
    "artifacts": _NO_ARTIFACTS,
    "uses": "a task can use .gibil.yml; write it under tasks",
    "run": "write it as a task under tasks",
    "with": _NO_ACTIONS,
    "if": "a condition belongs to a task; write if there",
    "shell": "a shell belongs to a task; write shell there",
    "working-directory": "a folder belongs to a task; write working-directory there",
    "continue-on-error": "it belongs to a task; write continue-on-error there",
}
TASK_KEYS: Mapping[str, str] = {
    "with": _NO_ACTIONS,
    "id": "later tasks can't refer to a task; write NAME=value to $GITHUB_ENV, and later tasks read $NAME",
    "needs": _ONE_AFTER_ANOTHER,
    "outputs": _NO_OUTPUTS,
    "strategy": f"{_NO_MATRIX} the script",
    "matrix": f"{_NO_MATRIX} the script",
    "runs-on": "all tasks of a workflow run on one machine; describe it under the workflow's machine",
    "container": "tasks run on the machine itself; choose it under the workflow's machine",
    "services": f"it {_AT_THE_TOP}",
    "runtime": f"it {_AT_THE_TOP}",
    "packages": f"it {_AT_THE_TOP}",
    "checkout": f"it {_AT_THE_TOP}",
    "environment": "there are no environments; list the names of the secrets under the workflow's secrets",
    "permissions": f"{_NO_CREDENTIALS}, so there is nothing to restrict; remove it",
    "secrets": "list the names of the secrets under the workflow's secrets; every task has them in its environment",
    "steps": "a task is one script; write each step as a task",
    "cache": f"it {_AT_THE_TOP}",
    "commit": f"it {_AT_THE_TOP}",
    "artifacts": _NO_ARTIFACTS,
    "timeout": "write timeout-minutes",
}
AGENT_KEYS: Mapping[str, str] = {
    "run": "an agent has a prompt instead of a script; a command that decides whether it is done is a task: until names it",
    "instructions": "its name here is prompt",
    "max_turns": "write max-turns",
    "max_tokens": "write max-tokens",
    "max-budget-usd": "write budget, in US dollars",
    "api-key": "machines get no keys of models; the operator sets GIBIL_MODEL_KEY_…",
    "anthropic_api_key": "machines get no keys of models; the operator sets GIBIL_MODEL_KEY_ANTHROPIC",
    "openai-api-key": "machines get no keys of models; the operator sets GIBIL_MODEL_KEY_OPENAI",
    "claude_args": "write model, max-turns, budget and allow",
    "secrets": "agents get no secrets",
    "env": "it belongs to the task, next to agent",
    "if": "it belongs to the task, next to agent",
    "timeout-minutes": "it belongs to the task, next to agent",
    "timeout": "write timeout-minutes on the task, next to agent",
    "tools": "the machine is the limit of what an agent may do: it has its tools there, and no others",
    "allowed-tools": "the machine is the limit of what an agent may do: it has its tools there, and no others",
    "writes": "write output: changes, review or answer",
    "commit": "it belongs at the top of the file, next to tasks",
}
REPOSITORY_KEYS: Mapping[str, str] = {
    "on": "a repository's .gibil.yml has no events; write a workflow in .gibil/workflows",
    "name": "a repository's .gibil.yml has no name; remove it",
    "inputs": "inputs belong in a workflow in .gibil/workflows",
    "secrets": "secrets belong in a workflow in .gibil/workflows",
    "concurrency": "concurrency belongs in a workflow in .gibil/workflows",
    "commit": "commit belongs in a workflow in .gibil/workflows; gibil push pushes the commits of machines of gibil create",
    **{
        name: WORKFLOW_KEYS[name]
        for name in (
            "jobs", "steps", "strategy", "matrix", "needs", "container", "defaults", "permissions",
            "artifacts", "runs-on",
        )
    },
}  # fmt: skip
COMMIT_KEYS: Mapping[str, str] = {
    "author": "the author is the App and the requester is the co-author, so that GitHub shows the commits as verified",
    "committer": "the committer is GitHub, so that it shows the commits as verified",
    "files": "its name here is paths",
    "push": "commits are pushed unless you write to: patch",
    "force": "branches only move forward here",
    "title": "write message; the title of a pull request belongs under pull-request",
    "draft": "it belongs under pull-request",
    "if": "the changes are committed if the tasks succeeded; undo them in a task to commit nothing",
}
CHECKOUT_KEYS: Mapping[str, str] = {
    "fetch-depth": "its name here is depth",
    "fetch-tags": "its name here is tags",
    "repository": "the repository is the pull request's; clone another one in a task",
    "ref": "the commit is the pull request's head; git checkout another one in a task",
    "path": "the checkout is the folder in which tasks run; use working-directory",
    "token": f"{_NO_CREDENTIALS}; submodules and files of Git LFS are fetched without",
    "ssh-key": f"{_NO_CREDENTIALS}; submodules and files of Git LFS are fetched without",
    "persist-credentials": f"{_NO_CREDENTIALS}; remove it",
    "clean": "the checkout of a new machine is always clean; remove it",
    "filter": "partial clones are not supported; write depth",
    "sparse-checkout": "the whole commit is checked out; remove it",
    "show-progress": "remove it",
    "set-safe-directory": "the checkout belongs to the user that runs the tasks; remove it",
}
CACHE_KEYS: Mapping[str, str] = {
    "fail-on-cache-miss": "a missing cache never fails a run; test in a task whether the files exist",
    "lookup-only": "caches are always restored; remove it",
    "enableCrossOsArchive": "machines run Linux; remove it",
    "upload-chunk-size": "remove it",
    "save-always": "remove it",
}
EVENTS: Mapping[str, str] = {
    "push": f"pushes outside pull requests start nothing; {_EVENTS_HERE}",
    "schedule": f"there is no schedule; {_EVENTS_HERE}",
    "workflow_dispatch": "write command: WORD; people then start it with /gibil WORD in a comment",
    "workflow_call": "workflows can't call one another",
    "workflow_run": f"runs of other workflows start nothing; {_EVENTS_HERE}",
    "pull_request_target": "write pull_request: workflow files always come from the base branch here",
    "pull_request_review": "write command: WORD; commands in reviews start it too",
    "pull_request_review_comment": "write command: WORD; commands in review comments start it too",
    "issue_comment": "write command: WORD; people then start it with /gibil WORD in a comment",
    "merge_group": f"merge queues start nothing; {_EVENTS_HERE}",
    "repository_dispatch": f"there are no other events; {_EVENTS_HERE}",
    "release": f"releases start nothing; {_EVENTS_HERE}",
    "issues": f"issues start nothing; {_EVENTS_HERE}",
    "label": f"labels start nothing; {_EVENTS_HERE}",
    "create": f"new branches and tags start nothing; {_EVENTS_HERE}",
    "delete": f"deleted branches and tags start nothing; {_EVENTS_HERE}",
    "deployment": f"deployments start nothing; {_EVENTS_HERE}",
    "check_run": f"check runs of others start nothing; {_EVENTS_HERE}",
    "check_suite": f"check suites start nothing; {_EVENTS_HERE}",
    "status": f"commit statuses start nothing; {_EVENTS_HERE}",
    "registry_package": f"packages start nothing; {_EVENTS_HERE}",
}
PULL_REQUEST_KEYS: Mapping[str, str] = {
    "branches": "write a condition on the tasks: if: github.base_ref == 'main'",
    "branches-ignore": "write a condition on the tasks: if: github.base_ref != 'docs'",
    "paths": "changed paths are not considered; test them in a task (git diff --name-only), or use a command",
    "paths-ignore": "changed paths are not considered; test them in a task (git diff --name-only), or use a command",
}


def event_hint(word: str) -> str | None:
    """Return what to write instead of an event of GitHub Actions."""
    return f"{word}: {EVENTS[word]}" if word in EVENTS else None


def activity_hint(word: str) -> str | None:
    """Return what to write instead of an activity type of `pull_request` that starts nothing here."""
    if word in ("labeled", "unlabeled", "ready_for_review", "assigned", "review_requested", "edited", "closed"):
        return f"{word!r} is not an event that starts a workflow; write opened, synchronize or reopened, or use a command"
    return None


def commit_when_hint(word: str) -> str | None:
    """Return what to write instead of another condition of `commit`."""
    if word in ("always", "failure", "success"):
        return f"{word!r}: only changes of successful runs are committed; write continue-on-error on a task that may fail"
    return None


_REGISTRIES: Mapping[str, str] = {
    "pip": "pypi", "python": "pypi", "uv": "pypi", "poetry": "pypi", "yarn": "npm", "pnpm": "npm", "node": "npm",
    "cargo": "crates", "crates.io": "crates", "rust": "crates", "gem": "rubygems", "ruby": "rubygems", "bundler": "rubygems",
    "java": "maven", "gradle": "maven", "composer": "packagist", "php": "packagist", "apt": "debian", "apk": "alpine",
}  # fmt: skip


def allow_hint(entry: str) -> str | None:
    """Return what to write instead of the name of a package manager."""
    name = _REGISTRIES.get(entry.strip().lower())
    return f"{entry.strip()!r} isn't the name of a registry here; write {name}" if name else None


_ACTIONS: Mapping[str, str] = {
    "actions/checkout": "not needed: the pull request's commit is checked out already; remove the task, and write its options "
    "at the top of the file: checkout: {depth: 1}",
    "actions/setup-python": "write runtime: {python: '3.12'} at the top of the file",
    "actions/setup-node": "write runtime: {node: '22'} at the top of the file",
    "actions/setup-go": "write runtime: {go: '1.24'} at the top of the file",
    "actions/setup-java": "write runtime: {java: '21'} at the top of the file",
    "ruby/setup-ruby": "write runtime: {ruby: '3.3'} at the top of the file",
    "shivammathur/setup-php": "write runtime: {php: '8.3'} at the top of the file",
    "dtolnay/rust-toolchain": "write runtime: {rust: '1.85'} at the top of the file",
    "actions/cache": "write cache: [{path: …, key: …}] at the top of the file",
    "actions/upload-artifact": _NO_ARTIFACTS,
    "actions/download-artifact": "artifacts are not stored yet; tasks of one workflow share the machine's disk",
    "actions/github-script": f"{_NO_CREDENTIALS}; write Markdown to $GITHUB_STEP_SUMMARY for the report",
}


def uses_hint(word: str) -> str | None:
    """Return what to write instead of an action."""
    name = word.partition("@")[0].lower()
    if name in _ACTIONS:
        return f"{word[:80]}: {_ACTIONS[name]}"
    return f"{word[:80]!r}: {_NO_ACTIONS}" if "/" in word or word.startswith("docker:") else None


# --- expressions that aren't evaluated -------------------------------------------------------------------------------

_FUNCTIONS = frozenset((
    "format", "join", "tojson", "fromjson", "hashfiles", "contains", "startswith", "endswith",
    "success", "failure", "always", "cancelled",
))  # fmt: skip
_CONTEXTS = frozenset(
    ["inputs", "secrets", "env", "github", "steps", "needs", "matrix", "strategy", "vars", "runner", "job", "jobs"]
)
_FIRST_WORD = re.compile(r"[!(\s]{0,20}([A-Za-z_][A-Za-z0-9_-]{0,100})(?:\.([A-Za-z0-9_.*-]{1,200}))?")
_LONGEST_PIECE = 500
_EVALUATED = "expressions are evaluated only in if:, concurrency.group, commit, prompts of agents and the keys of caches"
_CACHE_EXPRESSIONS = frozenset({"key", "restore-keys"})
_COMMIT_EXPRESSIONS = frozenset({"message", "branch", "pull-request"})
_AGENT_SCRIPTS = (("tasks", "agent", "choose"), ("tasks", "agent", "command"))
_PROSE = frozenset({"description", "pattern"})

_PULL_REQUEST = {
    "number": "NUMBER",
    "title": "TITLE",
    "draft": "DRAFT",
    "user.login": "AUTHOR",
    "head.sha": "HEAD_SHA",
    "head.ref": "HEAD_REF",
    "head.repo.full_name": "HEAD_REPOSITORY",
    "base.sha": "BASE_SHA",
    "base.ref": "BASE_REF",
}
_GITHUB_VARIABLES: Mapping[str, str] = {
    **{
        name: f"GITHUB_{name.upper()}"
        for name in (
            "actor", "base_ref", "event_name", "head_ref", "ref", "ref_name", "repository", "repository_owner", "run_id",
            "sha", "workflow", "workspace",
        )
    },
    "triggering_actor": "GITHUB_ACTOR",
    "number": "GIBIL_PR_NUMBER",
    "event.number": "GIBIL_PR_NUMBER",
    "event.issue.number": "GIBIL_PR_NUMBER",
    **{f"event.pull_request.{path}": f"GIBIL_PR_{name}" for path, name in _PULL_REQUEST.items()},
}  # fmt: skip
_RUNNER_VARIABLES: Mapping[str, str] = {"os": "RUNNER_OS", "temp": "RUNNER_TEMP"}


def misplaced_expressions(root: Node) -> Iterator[InvalidWorkflow]:
    """Yield a problem for each `${{ }}` where expressions aren't evaluated, and for each variable of GitHub Actions in a script
    that isn't set on the machine.
    """
    yield from _misplaced(root, ())


def _misplaced(node: Node, path: tuple[str, ...], is_shell: bool = True) -> Iterator[InvalidWorkflow]:
    if node.kind == "list":
        for item in node.items:
            yield from _misplaced(item, path)
    elif node.kind == "mapping":
        shells = [value.text for key, value in node.entries if key.text == "shell" and value.kind == "scalar"]
        is_shell = all(re.match(r"(\S*/)?(ba)?sh(?!\S)", shell) for shell in shells)
        for key, value in node.entries:
            evaluated = (
                (not path and key.text == "concurrency")
                or (path == ("cache",) and key.text in _CACHE_EXPRESSIONS)
                or (path == ("commit",) and key.text in _COMMIT_EXPRESSIONS)
                or (not path and key.text == "commit" and value.kind == "scalar")
                or (path == ("tasks",) and key.text == "agent" and value.kind == "scalar")
                or (path == ("tasks", "agent") and key.text == "prompt")
            )
            if key.text == "if" or key.text in _PROSE or evaluated:
                continue
            yield from _misplaced(value, (*path, key.text), is_shell)
    elif node.kind == "scalar":
        inside = "run" if path in _AGENT_SCRIPTS else next((name for name in reversed(path) if name in ("run", "env")), "")
        reported = set()
        for piece, start in _pieces(node.text):
            problem = _expression_problem(piece, inside, path[-1] if path else "", is_whole=_is_one_piece(node.text))
            if problem is not None and problem not in reported:
                reported.add(problem)
                yield node.error(problem, offset=start)
        if path and path[-1] == "run" and is_shell:
            for problem, start in _missing_variables(node.text):
                yield node.error(problem, offset=start)


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    position = 0
    while (start := text.find("${{", position)) >= 0:
        end = text.find("}}", start, start + _LONGEST_PIECE)
        position = start + 3 if end < 0 else end + 2
        if end >= 0:
            yield text[start + 3 : end].strip(), start


def _is_one_piece(text: str) -> bool:
    text = text.strip()
    return text.startswith("${{") and text.endswith("}}") and text.count("${{") == 1


def _expression_problem(piece: str, inside: str, key: str, *, is_whole: bool) -> str | None:
    """Return the problem of one `${{ piece }}` in the value of `key`; None if it isn't an expression of GitHub Actions.

    `is_whole`: the piece is the whole value.
    """
    match = _FIRST_WORD.match(piece)
    if match is None:
        return None
    context, name = match[1].lower(), match[2] or ""
    if context not in _CONTEXTS and not (context in _FUNCTIONS and piece[match.end(1) :].lstrip().startswith("(")):
        return None
    shown = "${{ " + (piece if len(piece) <= 60 else piece[:57] + "...") + " }}"
    is_name = match.end() == len(piece) and not piece.startswith("!")
    already = _variable(context, name)
    if inside == "run":
        if already is not None and not is_name:
            return f'{shown}: expressions are not evaluated in scripts; compute it in the script from "${already}"'
        return f"{shown}: expressions are not evaluated in scripts; {_instead(context, name)}"
    if inside == "env":
        if already is not None and not (is_whole and is_name):
            return f"{shown}: {_EVALUATED}; compute ${key} in the script from ${already}"
        if already is not None and already != key:
            return f"{shown}: {_EVALUATED}; scripts already have it as ${already}: write that for ${key} and remove this line"
        if already is not None:
            return f"{shown}: {_EVALUATED}; scripts already have it as ${already}, so remove this line"
        return f"{shown}: {_EVALUATED}; {_instead(context, name)}"
    return f"{shown}: {_EVALUATED}; write the text itself"


def _variable(context: str, name: str) -> str | None:
    """Return the environment variable that already contains the value."""
    if context == "inputs" and name:
        return input_variable(name)
    if context == "github":
        return _GITHUB_VARIABLES.get(name)
    if context == "runner":
        return _RUNNER_VARIABLES.get(name)
    return None


def _instead(context: str, name: str) -> str:
    variable = _variable(context, name)
    if variable is not None:
        return f'write "${variable}"'
    if context == "secrets" and name:
        if name.upper() == "GITHUB_TOKEN":
            return _REPORT_WITHOUT_TOKEN
        return f'list {name} under secrets: and write "${name}"'
    if context == "env" and name:
        return f'write "${name}"'
    if context == "github" and name == "token":
        return _REPORT_WITHOUT_TOKEN
    if context in ("steps", "needs", "job", "jobs"):
        return 'tasks have no outputs; write NAME=value to "$GITHUB_ENV" in the earlier task and read "$NAME"'
    if context in ("matrix", "strategy"):
        return f"{_NO_MATRIX} the script"
    if context == "vars":
        return 'there are no configuration variables; write the value under env: and read "$NAME"'
    return "compute it in the script, from the variables that workflows/README.md lists"


# --- variables that aren't set on the machine ------------------------------------------------------------------------

_NOT_PROVIDED: Mapping[str, str] = {
    "GITHUB_STATE": "there are no actions with a state; keep it in a file under $RUNNER_TEMP",
    "GITHUB_EVENT_PATH": "the event's payload isn't on the machine; use the GIBIL_PR_… variables",
    "GITHUB_TOKEN": _REPORT_WITHOUT_TOKEN,
    "GITHUB_ACTION_PATH": _NO_ACTIONS_HERE,
    "RUNNER_TOOL_CACHE": "list runtimes under runtime; they are on PATH",
    "ACTIONS_RUNTIME_TOKEN": "GitHub Actions' services can't be reached from the machine",
    "ACTIONS_CACHE_URL": "GitHub Actions' services can't be reached from the machine",
    "ACTIONS_ID_TOKEN_REQUEST_URL": "GitHub Actions' services can't be reached from the machine",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "GitHub Actions' services can't be reached from the machine",
}
_USED = re.compile(r"\$(?:([A-Z][A-Z_]{0,60})\b|\{([A-Z][A-Z_]{0,60})\})")
_WORD = re.compile(r"<<-?[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|\\?([A-Za-z0-9_.!+-]+))")


def _missing_variables(script: str) -> Iterator[tuple[str, int]]:
    used: dict[str, int] = {}
    literal = _literal(script) if any(name in script for name in _NOT_PROVIDED) else b""
    for match in _USED.finditer(script):
        name = match[1] or match[2]
        if name in _NOT_PROVIDED and not literal[match.start()]:
            used.setdefault(name, match.start())
    for name, start in used.items():
        # A script that sets the variable, tests whether it is set, or uses a default (${NAME:-…}) handles its absence.
        sets_it = rf"\b{name}=|\b(?:read|export|declare|local|unset|for|printf -v)\b[^\n;|&]{{0,200}}\b{name}\b"
        handles_unset = rf"-[nzv][ \t]+\"?(?:\$\{{?)?{name}\b|\[[ \t]+\"?\$\{{?{name}\}}?\"?[ \t]+\]|\$\{{{name}[:+=?-]"
        if not re.search(f"{sets_it}|{handles_unset}", script):
            yield f"${name} is not set: {_NOT_PROVIDED[name]}", start


def _literal(script: str) -> bytearray:
    """Return, for each character of a POSIX shell script, 1 if `$` isn't expanded there: after a backslash, in single quotes,
    in a comment, in a here-document with a quoted delimiter. Nested command substitutions aren't parsed, so in doubt it is 0.
    """
    literal = bytearray(len(script))
    here_documents: list[tuple[str, bool]] = []
    at, in_double = 0, False
    while at < len(script):
        sign, end = script[at], at + 1
        if sign == "\\":
            end = at + 2
        elif sign == '"':
            in_double = not in_double
        elif sign == "'" and not in_double:
            end = script.find("'", at + 1) + 1
            if not end:  # an unclosed quote: not valid shell syntax
                return bytearray(len(script))
        elif sign == "#" and not in_double and (at == 0 or script[at - 1] in " \t\n;|&("):
            end = script.find("\n", at)
            end = len(script) if end < 0 else end
        elif sign == "<" and not in_double and (word := _WORD.match(script, at)):
            here_documents.append((word[1] or word[2] or word[3], "'" in word[0] or '"' in word[0] or "\\" in word[0]))
            at = word.end()
            continue
        elif sign == "\n" and here_documents and not in_double:
            for delimiter, is_quoted in here_documents:
                begin = at + 1
                while at < len(script):
                    line, at = at + 1, script.find("\n", at + 1)
                    at = len(script) if at < 0 else at
                    if script[line:at].lstrip("\t") == delimiter:
                        break
                if is_quoted:
                    literal[begin:at] = b"\1" * (at - begin)
            here_documents = []
            continue
        if end > at + 1:
            literal[at:end] = b"\1" * (min(end, len(script)) - at)
        at = end
    return literal
