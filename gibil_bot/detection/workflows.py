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
from gibil_bot.detection.facts import Evidence
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
        r"hatch test|rspec|phpunit|composer (run |run-script )?test|mix test",
        r"(bundle exec |\S*/)?rake( (test|spec)[\w:]*|(?=\s*($|[;&|])))",
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
_FORMATTERS = "|".join(
    (
        r"ruff format|black|isort|yapf|prettier|biome|dprint|gofmt|goimports|cargo fmt|rustfmt|clang-format|shfmt",
        rf"{_SCRIPT_RUNNERS} [\w:-]*(format|fmt)[\w:-]*|make [\w./ -]*(format|fmt)[\w-]*|mix format|dart format",
    )
)
_COMMANDS = {
    purpose: re.compile(rf"(?:^|[\s;&|(])(?:{words})(?:$|[\s;&|)'\"])")
    for purpose, words in (("test", _RUNNERS), ("lint", _LINTERS), ("format", _FORMATTERS))
}
_MAKE_WITH_VARIABLES = re.compile(r"\bmake [^;&|]* (test|check)")
_NAMES = {
    "test": re.compile(r"test|spec|\bci\b|unit", re.IGNORECASE),
    "lint": re.compile(r"lint|style|format|check", re.IGNORECASE),
    "format": re.compile(r"format|style|lint", re.IGNORECASE),
}
_OTHER = re.compile(
    r"release|publish|deploy|docs?\b|website|bench|codeql|stale|label|nightly|fuzz|coverage|upload|downstream|wheels|docker|integration"
    r"|weekly|dispatch|upstream|third-?party|3rd-party|latest|gpu|minimum|oldest",
    re.IGNORECASE,
)
_OTHER_ENVIRONMENT = re.compile(r"(?:^|[\s:,])-?(lint|docs?|typing|types|mypy|style|format|benchmarks?|perf)\b|--version$|-V$")
_INSTALLS = re.compile(
    r"(^|\s)(pip3?|pipx|uv( tool)?|poetry|pdm|pipenv|npm|pnpm|yarn|bun|bundle|composer|gem|apt(-get)?|go|cargo|conda) "
    r"(install|i|ci|sync|add|get|fetch|update)\b"
)
_APT = re.compile(r"\bapt(?:-get)?(?: -\S+)* install ([^;&|#]*)")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,60}")
_PRESENT = re.compile(
    r"python.*|pip|nodejs|npm|git|curl|wget|sudo|ca-certificates|software-properties-common|docker.*|podman.*|chromium.*|firefox.*"
    r"|google-chrome.*|snapd|linux-.*|(gcc|g\+\+|gfortran|clang|llvm)-[0-9.]+.*"
)
"""What machines have, what detection installs otherwise, and what is of no use on them."""
_MOST_PACKAGES = 30
_EXPRESSION = re.compile(r"\$\{\{.*?\}\}")
_CODE = re.compile(r"`([^`\n]{3,200})`")


def quotes(project: Project, purpose: str) -> tuple[Quote, ...]:
    """Return the commands that test (or lint) the project, the most relevant first, then those that only prepare it."""
    commands = list(_all_commands(project))
    chosen: dict[str, Quote] = {}
    for each in _relevant(commands, purpose):
        chosen.setdefault(each.run, Quote(command=each.run, path=each.path, line=each.line))
    best = list(chosen.values())[:_MOST_QUOTES]
    prepares = [each for each in commands if each.path.rpartition("/")[2] in _SETUP_STEPS]
    return (*best, *(Quote(command=each.run, path=each.path, line=each.line, is_preparation=True) for each in prepares[:20]))


def test_job(project: Project) -> tuple[Command, ...]:
    """Return the commands of the CI's job that tests, up to the one that does; nothing if no job does."""
    commands = list(_all_commands(project))
    test = next((each for each in _relevant(commands, "test") if each.job and _relevance(each, "test") >= 0), None)
    if test is None:
        return ()
    return (*(each for each in commands[: commands.index(test)] if each.job == test.job), test)


def jobs_that_test(project: Project) -> tuple[str, ...]:
    """Return `job` of the commands that test, the one of `test_job` first."""
    commands = list(_all_commands(project))
    found = [*_relevant(commands, "test"), *(each for each in commands if _MAKE_WITH_VARIABLES.search(each.run))]
    return tuple(dict.fromkeys(each.job for each in found if each.job and _relevance(each, "test") >= 0))


def folders(project: Project) -> tuple[str, ...]:
    """Return the folders below the top in which jobs of the CI test, as prefixes (`backend/`), the most relevant first."""
    found = [each for each in _relevant(list(_all_commands(project)), "test") if each.job and _relevance(each, "test") >= 0]
    return tuple(dict.fromkeys(f"{each.folder}/" for each in found if each.folder and "$" not in each.folder))


def packages(project: Project) -> tuple[tuple[str, ...], Evidence | None]:
    """Return the distribution's packages that the CI's job for tests installs, and the first command that does."""
    found: dict[str, None] = {}
    evidence: Evidence | None = None
    for command in test_job(project):
        for words in _APT.findall(_EXPRESSION.sub("$", command.run)):
            names = [word.partition("=")[0] for word in words.split() if not word.startswith("-")]
            names = [name for name in names if _PACKAGE.fullmatch(name) and not _PRESENT.fullmatch(name)]
            if names and evidence is None:
                evidence = command.evidence()
            found |= dict.fromkeys(names)
    return tuple(found)[:_MOST_PACKAGES], evidence


def preparation(project: Project, quote: Quote) -> tuple[str, ...]:
    """Return the commands that the quote's job runs before it, without those that only its CI can run."""
    commands = list(_all_commands(project))
    place = next((n for n, each in enumerate(commands) if (each.path, each.line) == (quote.path, quote.line)), None)
    if place is None or not commands[place].job:
        return ()
    before = [each.run for each in commands[:place] if each.job == commands[place].job]
    return tuple(text.removeprefix("sudo ") for text in before if "${{" not in text and _INSTALLS.search(text))[:20]


def _relevant(commands: list[Command], purpose: str) -> list[Command]:
    """Return the commands for the purpose, the most relevant first."""
    found = [
        each
        for each in commands
        if each.path.rpartition("/")[2] not in _SETUP_STEPS
        and _COMMANDS[purpose].search(each.run)
        and not _INSTALLS.search(each.run)
    ]
    return sorted(found, key=lambda each: -_relevance(each, purpose))


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
