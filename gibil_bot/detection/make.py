"""Makefile, justfile and Taskfile: targets that test or lint the whole project, and the programs that their recipes call.

A target is used only if its programs exist once the project is prepared. Some are never used, because they would fail or run
much more than the tests: a matrix of versions, containers, an environment that no recipe creates.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gibil_bot.detection.facts import Candidate, Evidence, Facts, Step
from gibil_bot.detection.project import Project

_MAKEFILES = ("GNUmakefile", "makefile", "Makefile")
_JUSTFILES = ("justfile", "Justfile", ".justfile")
_TASKFILES = ("Taskfile.yml", "Taskfile.yaml", "taskfile.yml", "taskfile.yaml")
WANTED = (*_MAKEFILES, *_JUSTFILES, *_TASKFILES)

_TARGETS = {"test": ("test", "tests", "check"), "lint": ("lint",)}
_RANKS = {"test": 10, "tests": 10, "check": 12, "lint": 10}
_DEEPEST = 8
_MOST_LINES = 400

_RULE = re.compile(r"([A-Za-z0-9_./%$(){} -]{1,200}?)\s*::?(?![:=])([^;]*)(?:;(.*))?")
_ASSIGNMENT = re.compile(r"(?:export\s+|override\s+)*([A-Za-z0-9_.-]+)\s*(\?=|::?:?=|=)\s*(.*)")
_JUST_RULE = re.compile(r"@?([A-Za-z0-9_-]+)((?:\s+[^:=\s]+(?:=\S+)?)*)\s*:(?!=)(.*)")
_VARIABLE = re.compile(r"\$[({]([A-Za-z0-9_.-]+)[)}]")
_REFERENCE = re.compile(r"(?<!\$)\$(?:\([^()]*\)|\{[^{}]*\})")
_PROGRAM = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*")
_BUILTINS = frozenset(
    (
        *(":", ".", "[", "[[", "cd", "echo", "eval", "exec", "exit", "export", "false", "fi", "done", "esac", "printf", "pwd"),
        *(
            "read",
            "return",
            "set",
            "shift",
            "source",
            "test",
            "trap",
            "true",
            "type",
            "ulimit",
            "umask",
            "unset",
            "wait",
            "for",
        ),
        *("case", "in", "function", "command", "local", "kill", "{", "}"),
    )
)
_PREFIXES = frozenset(("if", "while", "until", "elif", "then", "else", "do", "!", "time", "env", "exec", "nice", "sudo"))
_CONTAINERS = frozenset(("docker", "docker-compose", "podman", "podman-compose", "vagrant", "minikube", "kubectl"))
_LINTERS = frozenset(
    (
        "ruff",
        "black",
        "isort",
        "flake8",
        "mypy",
        "pyright",
        "pylint",
        "stubtest",
        "eslint",
        "prettier",
        "golangci-lint",
        "shellcheck",
    )
)
_ENVIRONMENT = re.compile(r"(?:^|/)\.?v?env/bin/|(?:^|/)activate$")
_CREATES_ENVIRONMENT = re.compile(r"-m venv\b|\bvirtualenv\b|\buv venv\b|\buv sync\b")


@dataclass(frozen=True, slots=True)
class _Target:
    line: int
    needs: tuple[str, ...]
    """Other targets."""
    recipe: tuple[str, ...]


@dataclass(slots=True)
class _File:
    path: str
    targets: dict[str, _Target] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def facts(project: Project) -> Facts | None:
    """Return the targets; None if there is none of these files."""
    tests: list[Candidate] = []
    linters: list[Candidate] = []
    problems: list[Evidence] = []
    names = []
    steps: list[Step] = []
    for name, program, file in _files(project):
        names.append(name)
        known = len(tests)
        for purpose, found in (("test", tests), ("lint", linters)):
            for target in _TARGETS[purpose]:
                if target not in file.targets:
                    continue
                candidate = _candidate(project, program, file, target)
                if isinstance(candidate, Candidate):
                    found.append(candidate)
                else:
                    problems.append(candidate)
                if target != "check":
                    break
        if program in _PROGRAMS and tests[known:]:
            steps.append(_program_step(program, tests[known].evidence))
    problems += [project.problems[path] for path in WANTED if path in project.problems]
    if not names:
        return None
    return Facts(ecosystem=names[0], steps=tuple(steps), tests=tuple(tests), linters=tuple(linters), problems=tuple(problems))


def _files(project: Project) -> Iterator[tuple[str, str, _File]]:
    if path := project.first(*_MAKEFILES):
        yield "make", "make", _makefile(project, path)
    if path := project.first(*_JUSTFILES):
        yield "just", "just", _justfile(project, path)
    if path := project.first(*_TASKFILES):
        yield "Task", "task", _taskfile(project, path)


def _program_step(program: str, evidence: Evidence) -> Step:
    """Return the step that makes the program available; without it, other commands are tried."""
    on_pypi, on_npm = _PROGRAMS[program]
    attempts = (
        f"command -v {program}",
        f"python -m pip install --quiet --disable-pip-version-check {on_pypi}",
        f"npm install --global --no-audit --no-fund {on_npm}",
    )
    quiet = [f"{attempt} >/dev/null 2>&1" for attempt in attempts]
    run = " || ".join((*quiet, f"say 'going on without {program}'"))
    return Step(run=run, shown=f"pip install {on_pypi}", evidence=evidence)


def _candidate(project: Project, program: str, file: _File, target: str) -> Candidate | Evidence:
    """Return the candidate, or why the target isn't used."""
    rule = file.targets[target]
    evidence = Evidence(path=file.path, line=rule.line, text=target)
    recipe = list(_recipe(file, target))
    commands = [words for line in recipe for words in _commands(line)]

    def rejected(reason: str) -> Evidence:
        return Evidence(path=file.path, line=rule.line, text=f"{target} isn't used: {reason}")

    for words in commands:
        name = words[0].rpartition("/")[2]
        if name in _CONTAINERS:
            return rejected(f"it needs {name}")
        if reason := _matrix([name, *words[1:]]):
            return rejected(reason)
        if re.match(r"/usr(/local)?/bin/python", words[0]):
            return rejected(f"it calls {words[0]} instead of the project's environment")
        if "setup.py" in words[:2] and "test" in words:
            return rejected("setuptools no longer has `setup.py test`")
    versions = {version for words in commands for version in _python_versions(words)}
    if len(versions) > 1:
        return rejected(f"it tests with {len(versions)} versions of Python")
    activated = any(_ENVIRONMENT.search(word) for words in commands for word in words[:2])
    if activated and not any(_CREATES_ENVIRONMENT.search(line) for line in recipe):
        return rejected("it uses a virtual environment that no recipe creates")
    programs = [words[0] for words in commands if words[0] not in _BUILTINS]
    if target == "check" and programs and all(_checks_style(words) for words in commands if words[0] in programs):
        return rejected("it runs linters only")
    if not recipe and not rule.needs:
        return rejected("it has no recipe")
    needs = [program, *dict.fromkeys(each for each in programs if _is_program(project, each))]
    dry = {"make": "make -n", "just": "just --dry-run", "task": "task --dry"}[program]
    return Candidate(
        run=f"{program} {target}",
        evidence=evidence,
        needs=tuple(dict.fromkeys(needs)),
        check=f"{dry} {target}",
        rank=_RANKS[target],
    )


def _matrix(words: list[str]) -> str | None:
    """Return why a command runs more than the tests of one version."""
    if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
        words = words[2:]
    if words[:1] == ["tox"]:
        if any(
            word in ("-p", "--parallel", "run-parallel", "p") or word.startswith(("-p", "--parallel=")) for word in words[1:]
        ):
            return "it runs tox for every version"
        if not any(word.startswith(("-e", "--env", "-m", "-f")) for word in words[1:]):
            return "it runs all environments of tox"
    if words[:1] == ["nox"] and not any(word.startswith(("-s", "--session", "-e", "-k", "-t")) for word in words[1:]):
        return "it runs all sessions of nox"
    return None


def _python_versions(words: list[str]) -> Iterator[str]:
    """Yield the versions of Python that a command names: `python3.12`, `uv run --python 3.12`."""
    if found := re.fullmatch(r"(?:.*/)?(?:python|pypy)(\d\.\d+)t?", words[0]):
        yield found[1]
    if words[0] in ("uv", "uvx", "nox", "hatch", "pdm"):
        for option, value in zip(words[1:], [*words[2:], ""], strict=True):
            name, _, own = option.partition("=")
            if name in ("--python", "-p") and (found := re.fullmatch(r"(?:python|cpython|pypy)?@?(\d\.\d+)\S*", own or value)):
                yield found[1]


def _checks_style(words: list[str]) -> bool:
    skip = 2 if words[0] in ("uv", "poetry", "pdm", "npx", "pnpm") and words[1:2] in (["run"], ["exec"]) else 0
    skip = skip or (2 if words[0] in ("python", "python3") and words[1:2] == ["-m"] else 0)
    return words[skip : skip + 1] != [] and words[skip] in _LINTERS


def _is_program(project: Project, word: str) -> bool:
    if "/" in word:
        # What the recipe itself builds doesn't exist yet; what the package managers install does.
        return word.removeprefix("./") in project.paths or word.startswith(("vendor/bin/", "node_modules/.bin/"))
    return _PROGRAM.fullmatch(word) is not None


def _recipe(file: _File, target: str) -> Iterator[str]:
    """Yield the lines of the target's recipe and of those that it needs, with simple variables replaced."""
    waiting, seen, lines = [(target, 0)], {target}, 0
    while waiting:
        name, depth = waiting.pop(0)
        rule = file.targets.get(name)
        if rule is None or depth > _DEEPEST:
            continue
        called = list(rule.needs)
        for line in rule.recipe:
            lines += 1
            if lines > _MOST_LINES:
                return
            line = _resolved(file, line)
            again = re.match(r"[@+-]*\s*(?:\$[({]MAKE[)}]|make|just|task)\s+([A-Za-z0-9_-]+)\s*$", line)
            if again and again[1] in file.targets:
                called.append(again[1])
            yield line
        for each in called:
            if each not in seen:
                seen.add(each)
                waiting.append((each, depth + 1))


def _resolved(file: _File, line: str) -> str:
    for _ in range(5):
        replaced = _VARIABLE.sub(lambda found: file.variables.get(found[1], found[0]), line)
        if replaced == line or len(replaced) > 20_000:
            break
        line = replaced
    return line.replace("$(MAKE)", "make").replace("${MAKE}", "make")


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a recipe's line as words, without assignments and keywords. A line that can't be split has none."""
    line = line.strip().lstrip("@+- \t")
    if not line or line.startswith("#") or len(line) > 20_000:
        return
    for _ in range(3):  # what make would insert, and can't be known here
        line = _REFERENCE.sub("$_", line)
    line = _REDIRECTION.sub(" ", line.replace("$$", "$"))
    for _ in range(3):  # what the shell would insert; the words after it belong to the same command
        line = _SUBSTITUTION.sub("$_", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:
        return
    command: list[str] = []
    for token in [*tokens, ";"]:
        if token and set(token) <= set(";&|()"):
            words = _without_prefix(command)
            if words and "$" not in words[0]:
                yield words
            command = []
        else:
            command.append(token)


def _without_prefix(words: list[str]) -> list[str]:
    place = 0
    while place < len(words) and (words[place] in _PREFIXES or re.match(r"[A-Za-z_][A-Za-z0-9_]*=", words[place])):
        place += 1
    return words[place:]


def _makefile(project: Project, path: str) -> _File:
    file = _File(path)
    names: list[str] = []
    line_number = 0
    needs: list[str] = []
    recipe: list[str] = []

    def finish() -> None:
        for name in names:
            known = file.targets.get(name)
            if known is None:
                file.targets[name] = _Target(line_number, tuple(needs), tuple(recipe))
            else:  # several rules for one target add up
                place = known.line if known.recipe or not recipe else line_number
                file.targets[name] = _Target(place, (*known.needs, *needs), (*known.recipe, *recipe))
        names.clear()

    for number, line in _joined(project, path):
        if line.startswith("\t"):
            if names:
                recipe.append(line)
            continue
        plain = line.partition("#")[0].rstrip()
        if not plain or plain.startswith(("ifeq", "ifneq", "ifdef", "ifndef", "else", "endif", "include", "-include")):
            continue
        finish()
        if assignment := _ASSIGNMENT.fullmatch(plain.strip()):
            if assignment[2] != "?=" or assignment[1] not in file.variables:
                file.variables[assignment[1]] = assignment[3].strip()[:1000]
        elif rule := _RULE.fullmatch(plain):
            if rule[1].strip() == ".PHONY":
                continue
            names += rule[1].split()
            line_number, needs = number, rule[2].replace("|", " ").split()
            recipe = [rule[3]] if rule[3] else []
    finish()
    return file


def _joined(project: Project, path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) with continued lines joined."""
    start, parts = 0, []
    for number, line in project.lines(path):
        start = start or number
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield start, " ".join([*parts, line]) if parts else line
        start, parts = 0, []
    if parts:
        yield start, " ".join(parts)


_PROGRAMS = {"just": ("rust-just", "rust-just"), "task": ("go-task-bin", "@go-task/cli")}
"""Packages of PyPI and npm that carry a program that few machines have."""
_REDIRECTION = re.compile(r"[0-9]?[<>]&[0-9-]|&>>?")
_SUBSTITUTION = re.compile(r"\$\([^()]*\)|`[^`]*`")
_INTERPOLATED = re.compile(r"\{\{[^{}]*\}\}")


def _justfile(project: Project, path: str) -> _File:
    file = _File(path)
    name, number_of = "", 0
    needs: tuple[str, ...] = ()
    recipe: list[str] = []

    def finish() -> None:
        if name:
            file.targets.setdefault(name, _Target(number_of, needs, tuple(recipe)))

    for number, line in project.lines(path):
        if line[:1] in (" ", "\t"):
            # What is interpolated after the program are arguments; a program can't be known.
            text = _INTERPOLATED.sub("", line)
            if text.split()[:1] == line.split()[:1] or not line.strip():
                recipe.append(text)
            continue
        rule = _JUST_RULE.fullmatch(line.partition("#")[0].rstrip())
        if rule:
            finish()
            name, number_of, recipe = rule[1], number, []
            needs = tuple(re.findall(r"[A-Za-z0-9_-]+", rule[3]))
    finish()
    return file


def _taskfile(project: Project, path: str) -> _File:
    file = _File(path)
    tasks = project.yaml(path).get("tasks")
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        if not isinstance(name, str):
            continue
        body: dict[str, Any] = task if isinstance(task, dict) else {"cmds": task}
        commands = body.get("cmds", body.get("cmd"))
        commands = commands if isinstance(commands, list) else [commands]
        called, recipe = [], []
        for each in [*_listed(body.get("deps")), *commands]:
            if isinstance(each, dict) and isinstance(each.get("task"), str):
                called.append(each["task"])
            text = each.get("cmd") if isinstance(each, dict) else each
            if isinstance(text, str) and each in commands and "{{" not in text:
                recipe += text.splitlines()
            elif isinstance(text, str):
                called.append(text)
        number = next(
            (place for place, line in project.lines(path) if re.match(rf"\s+['\"]?{re.escape(name)}['\"]?\s*:", line)), 1
        )
        file.targets[name] = _Target(number, tuple(called), tuple(recipe))
    return file


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
