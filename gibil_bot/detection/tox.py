"""Reads tox's configuration: what the tests of its default environment need, and the command that it would run.

The command runs in the project's virtual environment, which has the same requirements, instead of a second environment that tox
would create. A command that can't be translated (https://tox.wiki/en/stable/config.html#substitutions) is left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gibil_bot.detection.facts import Candidate, Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import parse_ini, string, strings, table

RANK = 20
_SCRATCH = "/tmp/tox"  # noqa: S108 (on a machine of its own)
_FACTORS = frozenset(("py", "py3", "test", "tests", "testing", "unit"))
_CONDITION = re.compile(r"([!A-Za-z0-9_.,{}-]+):\s+(.*)")
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_BAD = "\x00"
_POSARGS = "\x01"
_HERE = "\x02"
_TEST = re.compile(
    r"(.*\b(pytest|py\.test|unittest|runtests\.py|manage\.py test|django-admin test|zope\.testrunner)\b.*"
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


@dataclass(frozen=True, slots=True)
class Tox:
    """What tox's default environment for tests says."""

    evidence: Evidence
    requirements: tuple[tuple[str, ...], ...] = ()
    """Arguments of `pip install`: (`pytest>=8`,) or (`-r`, `requirements/test.txt`)."""
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    candidate: Candidate | None = None


@dataclass(slots=True)
class _Environment:
    path: str
    heading: str
    deps: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def read(project: Project) -> Tox | None:
    """Return the default environment for tests; None if tox isn't configured."""
    environment = _read(project)
    if environment is None:
        return None
    line = project.line_of(environment.path, environment.heading)
    evidence = Evidence(path=environment.path, line=line, text=f"tox {environment.heading.strip('[]')}")
    return Tox(
        evidence=evidence,
        requirements=tuple(words for dep in environment.deps if (words := _requirement(dep))),
        extras=tuple(environment.extras),
        groups=tuple(environment.groups),
        candidate=_candidate(project, environment, evidence),
    )


def _read(project: Project) -> _Environment | None:
    pyproject = table(project.toml("pyproject.toml"), "tool", "tox")
    legacy = string(pyproject.get("legacy_tox_ini"))
    if project.has("tox.toml"):
        return _from_toml(project.toml("tox.toml"), "tox.toml", "")
    if project.has("tox.ini"):
        return _from_ini(parse_ini(project, "tox.ini", project.text("tox.ini") or ""), "tox.ini")
    if legacy:
        return _from_ini(parse_ini(project, "pyproject.toml", legacy), "pyproject.toml")
    if pyproject:
        return _from_toml(pyproject, "pyproject.toml", "tool.tox.")
    setup = parse_ini(project, "setup.cfg", project.text("setup.cfg") or "")
    return _from_ini(setup, "setup.cfg") if "testenv" in setup else None


def _from_ini(sections: dict[str, dict[str, str]], path: str) -> _Environment | None:
    name = _section(sections, "testenv", "testenv:", lambda section: "commands" in section)
    if name is None:
        return None
    section = sections[name]

    def lines(*keys: str) -> list[str]:
        text = next((section[key] for key in keys if key in section), "")
        return list(_lines(sections, text, 0))

    environment = _Environment(path, f"[{name}]")
    environment.deps = lines("deps")
    environment.extras = [word for line in lines("extras") for word in re.split(r"[\s,]+", line) if word]
    environment.groups = [word for line in lines("dependency_groups") for word in re.split(r"[\s,]+", line) if word]
    environment.commands = lines("commands")
    for line in lines("setenv", "set_env"):
        variable, sign, value = line.partition("=")
        if sign:
            environment.variables[variable.strip()] = value.strip()
    return environment


def _section(sections: Any, base: str, prefix: str, has_commands: Any) -> str | None:
    """Return the section for tests: the base, or one named for tests if only that has commands."""
    if base in sections and has_commands(sections[base]):
        return base
    named = next((f"{prefix}{each}" for each in ("tests", "test", "py", "py3", "unit") if f"{prefix}{each}" in sections), None)
    return named or (base if base in sections else None)


def _lines(sections: dict[str, dict[str, str]], text: str, depth: int) -> Iterator[str]:
    """Yield the lines that apply to an environment without special factors; `{[section]key}` lines are replaced."""
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        condition = _CONDITION.fullmatch(line)
        if condition:
            if not _applies(condition[1]):
                continue
            line = condition[2].strip()
        reference = re.fullmatch(r"\{\[([^]]+)\]([^{}:]+)\}", line)
        if reference and depth < 5:
            yield from _lines(sections, sections.get(reference[1], {}).get(reference[2].strip(), ""), depth + 1)
        else:
            yield line


def _applies(condition: str) -> bool:
    if "{" in condition:
        return False
    for alternative in condition.split(","):
        factors = alternative.strip().split("-")
        if all((factor[1:] not in _FACTORS) if factor.startswith("!") else (factor in _FACTORS) for factor in factors):
            return True
    return False


def _from_toml(tox: dict[str, Any], path: str, prefix: str) -> _Environment | None:
    base, heading = table(tox, "env_run_base"), f"[{prefix}env_run_base]"
    if not base.get("commands"):
        environments = table(tox, "env")
        for name in ("tests", "test", "py", "unit"):
            if table(environments, name).get("commands"):
                base, heading = base | table(environments, name), f"[{prefix}env.{name}]"
                break
    if not base:
        return None
    environment = _Environment(path, heading)
    deps = base.get("deps")
    environment.deps = strings(deps) if isinstance(deps, list) else string(deps).splitlines()
    environment.extras = strings(base.get("extras"))
    environment.groups = strings(base.get("dependency_groups"))
    commands = base.get("commands")
    for command in commands if isinstance(commands, list) else ():
        if isinstance(command, list):
            environment.commands.append(" ".join(_word(word) for word in command))
    for variable, value in table(base, "set_env").items():
        environment.variables[variable] = value if isinstance(value, str) else _BAD
    return environment


def _word(word: Any) -> str:
    """Return a word of a command in TOML as it would be in an INI file."""
    if isinstance(word, str):
        return word if word == "{posargs}" else shlex.quote(word) if re.search(r"[\s'\"]", word) else word
    replace = string(table(word).get("replace"))
    default = word.get("default") if isinstance(word, dict) else None
    if replace == "posargs":
        return f"{{posargs:{' '.join(_word(each) for each in strings(default))}}}"
    if replace == "env":
        return string(default) or _BAD
    return _BAD


def _substituted(text: str, here: str) -> str:
    """Replace `{…}`, the innermost first. What can't be replaced becomes _BAD."""

    def value(found: re.Match[str]) -> str:
        name, _, rest = found[1].partition(":")
        match name.strip():
            case "toxinidir" | "tox_root" | "changedir" | "change_dir":
                return here
            case "envpython" | "env_python" | "basepython" | "base_python":
                return "python"
            case "envtmpdir" | "env_tmp_dir" | "toxworkdir" | "work_dir" | "envdir" | "env_dir" | "envlogdir" | "env_log_dir":
                return _SCRATCH
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
                return f"{_POSARGS}{'' if _BAD in rest else rest}{_POSARGS}"
            case _:
                return _BAD

    for _ in range(10):
        replaced = _INNERMOST.sub(value, text)
        if replaced == text:
            break
        text = replaced
    return text


def _requirement(line: str) -> tuple[str, ...] | None:
    """Return a line of deps as arguments of `pip install`."""
    line = _substituted(line, "").strip()
    if _BAD in line or _POSARGS in line or not line.isprintable():
        return None
    option = re.fullmatch(r"(-r|-c|--requirement|--constraint)[\s=]*/?(\S+)", line)
    if option:
        return (option[1][:2] if not option[1].startswith("--") else f"-{option[1][2]}", option[2].lstrip("/"))
    return None if line.startswith("-") or line in (".", "poetry", "uv", "pdm", "tox") else (line,)


def _candidate(project: Project, environment: _Environment, evidence: Evidence) -> Candidate | None:
    found = None
    for line in environment.commands:
        if line.startswith("-"):
            continue
        text = " ".join(_substituted(line, ".").split())
        plain = re.sub(rf"{_POSARGS}[^{_POSARGS}]*{_POSARGS}", "", text)
        if found is None and _BAD not in plain and _is_test(plain):
            found = text, line
        elif not _BESIDE.fullmatch(plain.strip()) and plain.strip() and not _is_test(plain):
            return None  # something else happens before or after
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
    run = f"{prefix}{'; ' if prefix else ''}{variables}{last}"
    literal = max(re.split(r"\{[^{}]*\}|[{}\x00]", found[1]), key=len).strip()[:60]
    line_number = project.line_of(environment.path, literal) if literal else None
    return Candidate(
        run=run,
        shown=f"{variables}{shown}",
        evidence=Evidence(path=environment.path, line=line_number or evidence.line, text=evidence.text),
        needs=(words[0],),
        check=f"python -c 'import {', '.join(modules)}'" if modules else "",
        rank=RANK,
    )


def _is_test(plain: str) -> bool:
    return plain.split(" ")[0] in _RUNNERS and _TEST.fullmatch(plain.strip()) is not None


def _shell(text: str) -> tuple[str, str, list[str]] | None:
    """Return the command as shell, as text for people, and its words. The requester's arguments replace posargs' default."""
    default: list[str] = []
    parts = text.split(_POSARGS)
    words: list[str] = []
    quoted: list[str] = []
    try:
        for number, part in enumerate(parts):
            if number % 2 == 0:
                split = shlex.split(part)
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
        text = _substituted(value, _HERE)
        if _BAD in text or _POSARGS in text:
            return None
        if not text.replace(_HERE, "").isprintable():
            return None
        words = (shlex.quote(piece) if piece else "" for piece in text.split(_HERE))
        found.append(name + "=" + '"$PWD"'.join(words))
    return f"{' '.join(found)} " if found else ""
