"""Commands of the tools that create environments for tests (tox, Hatch, nox), translated so that they run without the tool.

The command runs in the project's virtual environment, which has the same requirements, instead of a second environment that the
tool would create. A command that can't be translated is left out. Substitutions: https://tox.wiki/en/stable/config.html#substitutions
and https://hatch.pypa.io/latest/config/context.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from gibil_bot.detection.facts import Candidate, Evidence
from gibil_bot.detection.project import Project

RANK = 20
_SCRATCH = "/tmp/tox"  # noqa: S108 (on a machine of its own)
_INNERMOST = re.compile(r"\{([^{}]*)\}")
BAD = "\x00"
"""What can't be known."""
POSARGS = "\x01"
_HERE = "\x02"
_INSTALLED = "\x03"
"""The folder of installed packages, which differs where the project is installed as a link to its folder."""
_PROGRAMS = "\x04"
"""The folder of the environment's programs."""
_MEASURED = re.compile(r"--(?:source|cov|include)=.*")
_TEST = re.compile(
    r"(.*\b(pytest|py\.test|unittest|runtests\.py|manage\.py test|django-admin test|zope\.testrunner)\b.*"
    r"|python3? (-[a-zA-Z]+ )*-m ([\w.]+\.)?tests?\b.*"
    r"|(trial|nose2|stestr|zope-testrunner|green|ward|testr)\b.*)"
)
_RUNNERS = frozenset(
    (
        *("python", "python3", "coverage", "pytest", "py.test", "trial", "nose2", "stestr", "zope-testrunner", "green", "ward"),
        *("django-admin", "runtests.py", "./runtests.py", "manage.py", "./manage.py"),
    )
)
_BESIDE = re.compile(
    r"((python3? -m )?coverage (erase|combine|report|xml|html|lcov|json|debug)|(python3? -m )?(codecov|coveralls|diff-cover)"
    r"|echo |(python3? -m )?pip (list|freeze|check)|python3? (-c |--version|-V)).*"
)
_OWN_INSTALL = re.compile(r"(?:python3? -m )?pip install(?: -[a-zA-Z]+| --[a-z-]+)* \.(?:\[([\w.,-]*)\])?")
"""Installs the project itself, which the preparation does, with the extras."""


@dataclass(frozen=True, slots=True)
class EnvironmentFacts:
    """What an environment for tests says."""

    evidence: Evidence
    requirements: tuple[tuple[str, ...], ...] = ()
    """Arguments of `pip install`: (`pytest>=8`,) or (`-r`, `requirements/test.txt`)."""
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    """Options of `uv sync`: `--all-packages`, `--no-default-groups`."""
    candidate: Candidate | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the tool sets by itself."""


@dataclass(slots=True)
class Environment:
    """An environment for tests as its file describes it."""

    path: str
    heading: str
    deps: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    """Where the commands run, if that is a folder of the checkout."""
    unset: tuple[str, ...] = ()
    """Variables of the machine that the tool doesn't pass on."""


def substituted(text: str, here: str) -> str:
    """Replace `{…}`, the innermost first. What can't be replaced becomes BAD."""

    def value(found: re.Match[str]) -> str:
        name, _, rest = found[1].partition(":")
        match name.strip():
            case "toxinidir" | "tox_root" | "root" | "changedir" | "change_dir":
                return here
            case "envpython" | "env_python" | "basepython" | "base_python":
                return "python"
            case "envtmpdir" | "env_tmp_dir" | "toxworkdir" | "work_dir" | "envdir" | "env_dir" | "envlogdir" | "env_log_dir":
                return _SCRATCH
            case "envbindir" | "env_bin_dir":
                return _PROGRAMS
            case "envsitepackagesdir" | "env_site_packages_dir":
                return _INSTALLED
            case "envname" | "env_name":
                return "py"
            case "/":
                return "/"
            case "":
                return ":"
            case "tty":
                return ""
            case "env":
                return rest.partition(":")[2]
            case "posargs" | "args":
                return f"{POSARGS}{'' if BAD in rest or _INSTALLED in rest else rest}{POSARGS}"
            case _:
                return BAD

    for _ in range(10):
        replaced = _INNERMOST.sub(value, text)
        if replaced == text:
            break
        text = replaced
    return text


def extras_of(environment: Environment) -> tuple[str, ...]:
    """Return the extras of the project that the environment installs, by itself or with a command."""
    commands = (_OWN_INSTALL.fullmatch(substituted(line, ".").strip()) for line in environment.commands)
    more = (name for found in commands if found and found[1] for name in found[1].split(",") if name)
    return tuple(dict.fromkeys((*environment.extras, *more)))


def candidate(project: Project, environment: Environment, evidence: Evidence) -> Candidate | None:
    found: tuple[str, str] | None = None
    folder = _folder(project, environment.folder)
    here = "/".join(".." for _ in folder.split("/")) if folder else "."
    for line in environment.commands:
        if line.startswith("-"):
            continue
        text = _arguments_last(_without_paths(" ".join(substituted(line, here).split())))
        plain = re.sub(rf"{POSARGS}[^{POSARGS}]*{POSARGS}", "", text)
        if found is None and BAD not in plain and _is_test(plain):
            found = text, line
        elif (
            found is None and plain.strip() and not (_BESIDE.fullmatch(plain.strip()) or _OWN_INSTALL.fullmatch(plain.strip()))
        ):
            return None  # the tests may need it
    if found is None:
        return None
    command = _shell(found[0])
    variables = _variables(environment.variables)
    if command is None or variables is None:
        return None
    run, shown, words = command
    modules = ["pytest"] if "pytest" in words else []
    if "pytest" in words and any(word.startswith("--cov") for word in words):
        modules.append("pytest_cov")
    if any(word in ("-n", "--numprocesses") or word.startswith(("-n=", "--numprocesses=")) for word in words):
        modules.append("xdist")
    prefix, _, last = run.rpartition("; ")
    # What the variables name with $PWD is the top of the checkout.
    without = "".join(f"-u {name} " for name in environment.unset)
    enter = f"cd {shlex.quote(folder)} && " if folder else ""
    assigned = variables.replace("$PWD", f"$PWD/{here}") if folder else variables
    run = f"{prefix}{'; ' if prefix else ''}{f'env {without}' if without else ''}{assigned}{last}"
    if folder:
        run = f"cd {shlex.quote(folder)}; {run}"
    literal = max(re.split(r"\{[^{}]*\}|[{}\x00]", found[1]), key=len).strip()[:60]
    line_number = project.line_of(environment.path, literal) if literal else None
    return Candidate(
        run=run,
        shown=f"{enter}{variables}{shown}",
        evidence=Evidence(path=environment.path, line=line_number or evidence.line, text=evidence.text),
        needs=(words[0],),
        check=f"python -c 'import {', '.join(modules)}'" if modules else "",
        rank=RANK,
    )


def _folder(project: Project, text: str) -> str:
    """Return the folder of the checkout where the commands run; empty for its top, and for folders outside."""
    path = substituted(text, _HERE).replace(f"{_HERE}/", "").strip("/ ").removeprefix("./")
    return path if path.isprintable() and any(each.startswith(f"{path}/") for each in project.paths) else ""


def _without_paths(text: str) -> str:
    """Return a program of the environment's folder without that folder, and without coverage's program or Python before it."""
    python = r"python3? (?:-\S+ (?:\w+ )?)*"
    coverage = rf"(?:{python})?(?:{_PROGRAMS}/)?coverage run (?:-\S+ )*"
    program = re.fullmatch(rf"(?:{coverage}|{python})?{_PROGRAMS}/(.*)", text)
    return (program[1] if program else text).replace(_PROGRAMS, BAD)


def _arguments_last(text: str) -> str:
    """Return `{posargs:pytest -v}` as `pytest -v {posargs}`: the requester's arguments are those of the tests."""
    whole = re.fullmatch(rf"{POSARGS}([^{POSARGS}]*){POSARGS}", text)
    return f"{whole[1].strip()} {POSARGS}{POSARGS}" if whole and _is_test(whole[1].strip()) else text


def _is_test(plain: str) -> bool:
    return plain.split(" ")[0] in _RUNNERS and _TEST.fullmatch(plain.strip()) is not None


def _shell(text: str) -> tuple[str, str, list[str]] | None:
    """Return the command as shell, as text for people, and its words. The requester's arguments replace posargs' default."""
    default: list[str] = []
    parts = text.split(POSARGS)
    words: list[str] = []
    quoted: list[str] = []
    try:
        for number, part in enumerate(parts):
            if number % 2 == 0:
                split = [word for word in shlex.split(part) if _INSTALLED not in word or not _MEASURED.fullmatch(word)]
                words += split
                quoted += [shlex.quote(word) for word in split]
            elif number == 1:
                default = shlex.split(part)
                words += default
                quoted.append('"$@"')
    except ValueError:
        return None
    if not words or not all(word.isprintable() for word in words):
        return None
    run = " ".join(quoted)
    if default:
        run = f"test $# != 0 || set -- {shlex.join(default)}; {run}"
    return run, shlex.join(words), words


def _variables(variables: dict[str, str]) -> str | None:
    """Return assignments before a command; None if a value can't be known."""
    found = []
    for name, value in variables.items():
        if name.startswith("COVERAGE_") or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            continue
        text = substituted(value, _HERE)
        if BAD in text or POSARGS in text:
            return None
        if not text.replace(_HERE, "").isprintable():
            return None
        words = (shlex.quote(piece) if piece else "" for piece in text.split(_HERE))
        found.append(name + "=" + '"$PWD"'.join(words))
    return f"{' '.join(found)} " if found else ""
