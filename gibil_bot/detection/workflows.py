"""Quotes of the project's own CI and documents: what its people run to test (or lint) it, with file and line.

Read: GitHub's workflows, .gitlab-ci.yml, .travis.yml, and AGENTS.md, which names commands for people and agents. The job of
copilot-setup-steps.yml prepares a project and tests nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from gibil_bot.detection.detected import Quote
from gibil_bot.detection.project import Project

WANTED = (".github/workflows/*.yml", ".github/workflows/*.yaml", ".gitlab-ci.yml", ".travis.yml", "AGENTS.md")

_MOST_QUOTES = 5
_MOST_LINES = 2000
_ALL_BYTES = 200 * 1024
"""Parsing YAML with line numbers takes about a second for this much."""
_LONGEST = 400
_SETUP_STEPS = ("copilot-setup-steps.yml", "copilot-setup-steps.yaml")

_SCRIPT_RUNNERS = r"(npm|pnpm|yarn|bun)( run| -r| --recursive)*"
_RUNNERS = "|".join(
    (
        r"pytest|py\.test|tox|nox|(python3? -m )?unittest|\S*runtests(\.py|\.sh)?|\S*manage\.py test",
        r"vitest|jest|mocha|ava|bun test|deno test",
        rf"{_SCRIPT_RUNNERS}( t|( [\w:-]*)?test[\w:-]*)",
        r"go test|gotestsum|cargo (test|nextest)|ctest|meson test|zig build test|swift test|dotnet test|prove|bats",
        r"hatch test|rspec|(bundle exec )?rake( test| spec)?|phpunit|composer (run |run-script )?test|mix test",
        r"mvn \S.*|\S*mvnw \S.*|\S*gradlew? \S.*|lein test|sbt test",
        r"make [\w./ -]*(test|check)[\w-]*|(just|task|hatch run|pdm run|invoke|inv|mage) [\w:-]*test[\w:-]*",
        r"\S*scripts?/[\w-]*test[\w.-]*|\./[\w/-]*test[\w.-]*",
    )
)
_LINTERS = "|".join(
    (
        r"pre-commit|prek|ruff|flake8|pylint|mypy|pyright|black|isort|(tox|nox) .*lint.*",
        rf"eslint|prettier|biome|standard|xo|{_SCRIPT_RUNNERS} [\w:-]*(lint|format|check)[\w:-]*",
        r"golangci-lint|go vet|staticcheck|cargo (clippy|fmt)|rubocop|standardrb|shellcheck|hadolint",
        r"phpcs|phpstan|php-cs-fixer|clang-format|clang-tidy|make [\w./ -]*(lint|format)[\w-]*",
    )
)
_COMMANDS = {
    purpose: re.compile(rf"(?:^|[\s;&|(])(?:{words})(?:$|[\s;&|)'\"])")
    for purpose, words in (("test", _RUNNERS), ("lint", _LINTERS))
}
_NAMES = {
    "test": re.compile(r"test|spec|\bci\b|unit", re.IGNORECASE),
    "lint": re.compile(r"lint|style|format|check", re.IGNORECASE),
}
_OTHER = re.compile(
    r"release|publish|deploy|docs?\b|website|bench|codeql|stale|label|nightly|fuzz|coverage|upload|downstream|wheels|docker|integration",
    re.IGNORECASE,
)
_OTHER_ENVIRONMENT = re.compile(r"(?:^|[\s:,])-?(lint|docs?|typing|types|mypy|style|format|benchmarks?|perf)\b|--version$|-V$")
_INSTALLS = re.compile(
    r"(^|\s)(pip3?|pipx|uv( tool)?|poetry|pdm|pipenv|npm|pnpm|yarn|bun|bundle|composer|gem|apt(-get)?|go|cargo|conda) "
    r"(install|i|ci|sync|add|get|fetch|update)\b"
)
_CODE = re.compile(r"`([^`\n]{3,200})`")


@dataclass(frozen=True, slots=True)
class _Command:
    text: str
    path: str
    line: int
    job: str
    names: str
    """The names of its job and step."""


def quotes(project: Project, purpose: str) -> tuple[Quote, ...]:
    """Return the commands that test (or lint) the project, the most relevant first, then those that only prepare it."""
    command = _COMMANDS[purpose]
    found: list[tuple[int, int, _Command]] = []
    prepares: list[_Command] = []
    for number, each in enumerate(_all_commands(project)):
        if each.path.rpartition("/")[2] in _SETUP_STEPS:
            prepares.append(each)
        elif command.search(each.text) and not _INSTALLS.search(each.text):
            found.append((-_relevance(each, purpose), number, each))
    chosen: dict[str, Quote] = {}
    for _, _, each in sorted(found, key=lambda entry: entry[:2]):
        chosen.setdefault(each.text, Quote(command=each.text, path=each.path, line=each.line))
    best = list(chosen.values())[:_MOST_QUOTES]
    return (*best, *(Quote(command=each.text, path=each.path, line=each.line, is_preparation=True) for each in prepares[:20]))


def preparation(project: Project, quote: Quote) -> tuple[str, ...]:
    """Return the commands that the quote's job runs before it, without those that only its CI can run."""
    commands = list(_all_commands(project))
    place = next((n for n, each in enumerate(commands) if (each.path, each.line) == (quote.path, quote.line)), None)
    if place is None or not commands[place].job:
        return ()
    job = commands[place].job
    before = [each.text for each in commands[:place] if (each.path, each.job) == (quote.path, job)]
    return tuple(text.removeprefix("sudo ") for text in before if "${{" not in text and _INSTALLS.search(text))[:20]


def _relevance(command: _Command, purpose: str) -> int:
    file = command.path.rpartition("/")[2]
    score = 0
    if command.path == "AGENTS.md":
        score -= 2
    if _NAMES[purpose].search(command.names):
        score += 3
    if _NAMES[purpose].search(file):
        score += 2
    if _OTHER.search(f"{file} {command.names}"):
        score -= 4
    if purpose == "test" and _OTHER_ENVIRONMENT.search(command.text):
        score -= 4
    if "${{" in command.text or command.text.startswith(("if ", "for ")):
        score -= 2
    return score


def _all_commands(project: Project) -> Iterator[_Command]:
    size = lines = 0
    for pattern in WANTED:
        for path in project.matching(pattern):
            size += len(project.files.get(path, b""))
            if size > _ALL_BYTES:
                continue
            for command in _agents(project, path) if path == "AGENTS.md" else _yaml_commands(project, path):
                lines += 1
                if lines > _MOST_LINES:
                    return
                if len(command.text) <= _LONGEST and command.text.isprintable():
                    yield command


def _yaml_commands(project: Project, path: str) -> Iterator[_Command]:
    top = project.nodes(path)
    if path == ".travis.yml":
        for key in ("before_install", "install", "before_script", "script"):
            yield from _scripts(_get(top, key), path, "travis", key)
        return
    if path == ".gitlab-ci.yml":
        for name, job in _items(top):
            for key in ("before_script", "script"):
                yield from _scripts(_get(job, key), path, name, f"{name} {key}")
        return
    for job_name, job in _items(_get(top, "jobs")):
        system = _get(job, "runs-on")
        if isinstance(system, yaml.ScalarNode) and system.value.startswith(("windows", "macos")):
            continue
        names = f"{job_name} {_value(_get(job, 'name'))}"
        steps = _get(job, "steps")
        for step in steps.value if isinstance(steps, yaml.SequenceNode) else ():
            yield from _scripts(_get(step, "run"), path, job_name, f"{names} {_value(_get(step, 'name'))}")


def _scripts(node: yaml.Node | None, path: str, job: str, names: str) -> Iterator[_Command]:
    for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(each, yaml.ScalarNode):
            for number, text in _script_lines(each):
                yield _Command(text, path, number, job, names)


def _script_lines(node: yaml.ScalarNode) -> Iterator[tuple[int, str]]:
    """Yield (number in the file, command). Lines that end with a backslash continue."""
    first = node.start_mark.line + (2 if node.style in ("|", ">") else 1)
    start = 0
    parts: list[str] = []
    for offset, line in enumerate(node.value.splitlines()):
        text = line.strip()
        if not parts:
            start = first + offset if node.style == "|" else first
        parts.append(text.removesuffix("\\").strip())
        if text.endswith("\\"):
            continue
        joined = " ".join(filter(None, parts))
        parts = []
        if joined and not joined.startswith("#"):
            yield start, joined


def _agents(project: Project, path: str) -> Iterator[_Command]:
    """Yield the lines of code blocks, and code inside sentences."""
    is_block = False
    for number, line in project.lines(path):
        text = line.strip()
        if text.startswith(("```", "~~~")):
            is_block = not is_block
        elif is_block:
            if text and not text.startswith("#"):
                command, _, _ = text.removeprefix("$ ").partition("  #")
                yield _Command(command.rstrip(), path, number, "", "")
        elif len(line) <= 2000:
            for found in _CODE.finditer(line):
                if " " in found[1]:
                    yield _Command(found[1].strip(), path, number, "", "")


def _items(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key.value, value


def _get(node: yaml.Node | None, key: str) -> yaml.Node | None:
    return next((value for name, value in _items(node) if name == key), None)


def _value(node: yaml.Node | None) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""
