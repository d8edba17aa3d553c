"""Reads noxfile.py without running it: what the session for tests installs, and the command that it runs.

Only constants are known. A session that does more than running pytest or unittest runs with nox itself, if the CI does that.
The format: https://nox.thea.codes/en/stable/config.html.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from gibil_bot.detection import ci_hints
from gibil_bot.detection.environments import BAD, RANK, Environment, EnvironmentFacts, candidate
from gibil_bot.detection.facts import Candidate, Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import normalized, requirements

PATH = "noxfile.py"
_NAMES = ("tests", "test", "unit", "unit_tests", "unittests", "pytest", "py")
_EXTRAS = re.compile(r"\.\[([A-Za-z0-9._,-]+)\]")
_ORDINARY = re.compile(rf"^{BAD}$|\b(pytest|unittest|coverage)\b")
_MOST_WORDS = 200

Values = dict[str, ast.expr]


@dataclass(slots=True)
class _Session:
    name: str
    line: int
    has_pythons: bool
    body: list[ast.stmt]
    values: Values
    requirements: list[tuple[str, ...]] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def read(project: Project) -> EnvironmentFacts | None:
    """Return what the session for tests says; None if there is none."""
    text = project.text(PATH)
    if text is None:
        return None
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        project.problems[PATH] = Evidence(
            path=PATH, text=f"can't be read: {(str(error) or 'it is too deep').splitlines()[0][:200]}"
        )
        return None
    session = _session(module)
    if session is None:
        return None
    evidence = Evidence(path=PATH, line=session.line, text=f"nox session {session.name}")
    environment = Environment(PATH, f"def {session.name}")
    for call, is_certain in _calls(session.body):
        words = _words(call, session.values)
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("run", "run_always", "run_install"):
            if not is_certain or (environment.variables and call.keywords):
                environment.commands.append(BAD)
            environment.commands.append(" ".join(words))
            environment.variables |= _variables(call, session.values)
        else:
            _install(session, call, words)
    tests = candidate(project, environment, evidence)
    prepares = _calls_helpers(session.body) or not all(_ORDINARY.search(command) for command in environment.commands)
    own = _with_nox(project, session) if tests is None and prepares else None
    return EnvironmentFacts(
        evidence=evidence,
        requirements=(*session.requirements, *((("nox",),) if own else ())),
        extras=tuple(session.extras),
        groups=tuple(session.groups),
        candidate=tests or own,
    )


def _session(module: ast.Module) -> _Session | None:
    values = dict(_assignments(module.body))
    found: dict[str, _Session] = {}
    for function in module.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) != "session":
                continue
            given = {keyword.arg: keyword.value for keyword in keywords}
            named = given.get("name")
            name = named.value if isinstance(named, ast.Constant) and isinstance(named.value, str) else function.name
            session = _Session(
                name, function.lineno, "python" in given, function.body, values | dict(_assignments(function.body))
            )
            found.setdefault(normalized(name), session)
    return next((found[name] for name in map(normalized, _NAMES) if name in found), None)


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for statement in body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
            yield statement.target.id, statement.value


def _calls(body: list[ast.stmt], is_certain: bool = True) -> Iterator[tuple[ast.Call, bool]]:
    """Yield the calls of the session's methods in order, and whether they always happen."""
    for statement in body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            if isinstance(call.func.value, ast.Name) and call.func.attr in ("install", "run", "run_always", "run_install"):
                yield call, is_certain
        elif isinstance(statement, ast.With):
            yield from _calls(statement.body, is_certain)
        elif isinstance(statement, ast.If | ast.For | ast.Try):
            yield from _calls([*statement.body, *statement.orelse], False)


def _calls_helpers(body: list[ast.stmt]) -> bool:
    """Return whether functions of the file do a part of the session's work."""
    calls = (node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(
        isinstance(call.func, ast.Name) and any(isinstance(each, ast.Name) and each.id == "session" for each in call.args)
        for call in calls
    )


def _words(call: ast.Call, values: Values) -> list[str]:
    """Return the arguments as words of a command of tox."""
    found: list[str] = []
    for argument in call.args[:_MOST_WORDS]:
        found += _text(argument, values)
    return found


def _text(argument: ast.expr, values: Values) -> list[str]:
    if isinstance(argument, ast.Starred):
        return _spread(argument.value, values)
    value = values.get(argument.id, argument) if isinstance(argument, ast.Name) else argument
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and not set(value.value) & set("{}\0\1\2"):
        return [shlex.quote(value.value)]
    return [BAD]


def _spread(value: ast.expr, values: Values) -> list[str]:
    """Return the words of `*value`."""
    value = values.get(value.id, value) if isinstance(value, ast.Name) else value
    if isinstance(value, ast.Attribute) and value.attr == "posargs":
        return ["{posargs}"]
    if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or) and len(value.values) == 2:
        first, default = value.values
        if isinstance(first, ast.Attribute) and first.attr == "posargs":
            return [f"{{posargs:{' '.join(_spread(default, values))}}}"]
    if isinstance(value, ast.List | ast.Tuple):
        words: list[str] = []
        for each in value.elts[:_MOST_WORDS]:
            words += _text(each, {name: known for name, known in values.items() if known is not value})
        return words
    return [BAD]


def _variables(call: ast.Call, values: Values) -> dict[str, str]:
    """Return the environment of a command; a value that isn't constant is BAD."""
    found = {}
    for keyword in call.keywords:
        value = keyword.value
        value = values.get(value.id, value) if isinstance(value, ast.Name) else value
        if keyword.arg != "env":
            continue
        if not isinstance(value, ast.Dict):
            return {"UNKNOWN": BAD}
        for key, content in zip(value.keys[:_MOST_WORDS], value.values, strict=False):
            name = key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else "UNKNOWN"
            is_text = isinstance(content, ast.Constant) and isinstance(content.value, str) and "{" not in content.value
            found[name] = str(content.value) if is_text and isinstance(content, ast.Constant) else BAD
    return found


def _install(session: _Session, call: ast.Call, words: list[str]) -> None:
    """Add what a call of `session.install` names."""
    for argument in call.args[:_MOST_WORDS]:
        session.groups += _groups_of(argument)
    plain = [word for text in words if BAD not in text for word in shlex.split(text)]
    place = 0
    while place < len(plain):
        word, following = plain[place], plain[place + 1] if place + 1 < len(plain) else ""
        place += 1
        if extras := _EXTRAS.search(word):
            session.extras += extras[1].split(",")
        elif word == "--group" or word.startswith("--group="):
            session.groups.append(word.partition("=")[2] or following)
            place += word == "--group"
        elif word in ("-r", "-c", "--requirement", "--constraint"):
            session.requirements.append(("-r" if "r" in word.removeprefix("--cons") else "-c", following.removeprefix("./")))
            place += 1
        elif word.startswith("-"):
            place += following not in ("", ".") and not following.startswith((".", "-")) and word in ("-i", "-f", "--index-url")
        elif not word.startswith("."):
            session.requirements += [(requirement,) for requirement in requirements([word])]


def _groups_of(argument: ast.expr) -> Iterator[str]:
    """Yield the groups of `*nox.project.dependency_groups(x, "test")` and `*x["dependency-groups"]["test"]`."""
    value = argument.value if isinstance(argument, ast.Starred) else argument
    constants: list[ast.expr] = []
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "dependency_groups":
        constants = value.args[1:]
    elif isinstance(value, ast.Subscript) and isinstance(value.value, ast.Subscript):
        outer = value.value.slice
        if isinstance(outer, ast.Constant) and outer.value == "dependency-groups":
            constants = [value.slice]
    for each in constants:
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def _with_nox(project: Project, session: _Session) -> Candidate | None:
    """Return the session itself, if the project's CI runs it."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", session.name):
        return None
    pattern = re.compile(rf"""\bnox\b.*\s(-s|--sessions?|-e)[ =]["']?{re.escape(session.name)}(["'\s-]|$)""")
    command = next((each for each in ci_hints.commands(project) if pattern.search(each.run)), None)
    if command is None:
        return None
    run = f"nox -s {session.name}"
    shown = run
    if session.has_pythons:
        run += """ -p "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')\""""
        shown += " -p VERSION"
    return Candidate(
        run=f'{run} -- "$@"',
        shown=shown,
        evidence=Evidence(
            path=PATH, line=session.line, text=f"nox session {session.name}, as in {command.path}:{command.line}"
        ),
        needs=("nox",),
        rank=RANK + 2,
    )
