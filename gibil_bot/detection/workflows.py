"""Quotes of the project's own CI and documents: what its people run to test (or lint) it, with file and line.

Read: the files of CI services (ci_files.py), and AGENTS.md, which names commands for people and agents. The job of
copilot-setup-steps.yml prepares a project and tests nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice

from gibil_bot.detection import ci_files
from gibil_bot.detection.ci_files import Command
from gibil_bot.detection.detected import Quote
from gibil_bot.detection.project import Project

_AGENTS = "AGENTS.md"
WANTED = (*ci_files.WORKFLOWS, *ci_files.OTHERS, _AGENTS)

_MOST_QUOTES = 5
_MOST_LINES = 2000
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


def quotes(project: Project, purpose: str) -> tuple[Quote, ...]:
    """Return the commands that test (or lint) the project, the most relevant first, then those that only prepare it."""
    command = _COMMANDS[purpose]
    found: list[tuple[int, int, Command]] = []
    prepares: list[Command] = []
    for number, each in enumerate(_all_commands(project)):
        if each.path.rpartition("/")[2] in _SETUP_STEPS:
            prepares.append(each)
        elif command.search(each.run) and not _INSTALLS.search(each.run):
            found.append((-_relevance(each, purpose), number, each))
    chosen: dict[str, Quote] = {}
    for _, _, each in sorted(found, key=lambda entry: entry[:2]):
        chosen.setdefault(each.run, Quote(command=each.run, path=each.path, line=each.line))
    best = list(chosen.values())[:_MOST_QUOTES]
    return (*best, *(Quote(command=each.run, path=each.path, line=each.line, is_preparation=True) for each in prepares[:20]))


def preparation(project: Project, quote: Quote) -> tuple[str, ...]:
    """Return the commands that the quote's job runs before it, without those that only its CI can run."""
    commands = list(_all_commands(project))
    place = next((n for n, each in enumerate(commands) if (each.path, each.line) == (quote.path, quote.line)), None)
    if place is None or not commands[place].job:
        return ()
    job = commands[place].job
    before = [each.run for each in commands[:place] if (each.path, each.job) == (quote.path, job)]
    return tuple(text.removeprefix("sudo ") for text in before if "${{" not in text and _INSTALLS.search(text))[:20]


def _relevance(command: Command, purpose: str) -> int:
    file = command.path.rpartition("/")[2]
    score = 0
    if command.path == _AGENTS:
        score -= 2
    if _NAMES[purpose].search(command.names):
        score += 3
    if _NAMES[purpose].search(file):
        score += 2
    if _OTHER.search(f"{file} {command.names}"):
        score -= 4
    if purpose == "test" and _OTHER_ENVIRONMENT.search(command.run):
        score -= 4
    if "${{" in command.run or command.run.startswith(("if ", "for ")):
        score -= 2
    return score


def _all_commands(project: Project) -> Iterator[Command]:
    found = chain(
        (command for job in ci_files.jobs(project) if job.is_linux for command in job.commands()),
        ci_files.other_commands(project),
        _agents(project, _AGENTS),
    )
    return (command for command in islice(found, _MOST_LINES) if len(command.run) <= _LONGEST and command.run.isprintable())


def _agents(project: Project, path: str) -> Iterator[Command]:
    """Yield the lines of code blocks, and code inside sentences."""
    is_block = False
    for number, line in project.lines(path):
        text = line.strip()
        if text.startswith(("```", "~~~")):
            is_block = not is_block
        elif is_block:
            if text and not text.startswith("#"):
                command, _, _ = text.removeprefix("$ ").partition("  #")
                yield Command("", command.rstrip(), path, number)
        elif len(line) <= 2000:
            for found in _CODE.finditer(line):
                if " " in found[1]:
                    yield Command("", found[1].strip(), path, number)
