"""Linters of all languages, by the files that configure them. A project that configures none has no linter.

Programs that a project doesn't install itself are fetched when they run: `uvx` for PyPI, `npx` for npm. Linters that need the
project's own dependencies are part of its language's facts, so that these are installed first; the languages' modules call the
functions here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Protocol

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown, string, table


class RunsScripts(Protocol):
    """A package manager of package.json."""

    def script(self, name: str, *, arguments: bool = False) -> str:
        """Return the command that runs a script."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the programs that the command calls."""


_ESLINT = (
    *(f"eslint.config.{ending}" for ending in ("js", "mjs", "cjs", "ts", "mts")),
    *(f".eslintrc{ending}" for ending in ("", ".js", ".cjs", ".json", ".yml", ".yaml")),
)
BIOME = ("biome.json", "biome.jsonc")
_GOLANGCI = (".golangci.yml", ".golangci.yaml", ".golangci.toml", ".golangci.json")
PRE_COMMIT = ".pre-commit-config.yaml"
_HOOKS = re.compile(r"repo:\s{0,9}[\"']?(https://[\w.-]+/[\w./~-]+)")
WANTED = (PRE_COMMIT, "pyproject.toml", "setup.cfg", "tox.ini", *ci_hints.WANTED)

_CHANGES = re.compile(r"--(?:fix|write)\b")
_SCRIPTS = (
    *("lint", "lint:check", "check:lint", "test:lint", "lint:ci", "lint:js", "check:js", "eslint", "test:eslint"),
    *("format:check", "check:format", "prettier:check", "fmt:check"),
)


def facts(project: Project) -> Facts | None:
    """Return the linters that need nothing of the project's language."""
    found = [*_pre_commit(project), *_python(project), *_shell(project)]
    if not found:
        return None
    uv = next((each for each in found if each.needs == ("uvx",)), None)
    return Facts(
        ecosystem="Linters",
        runtimes=(Runtime(name="uv", evidence=uv.evidence),) if uv else (),
        linters=tuple(sorted(found, key=lambda each: each.rank)),
        packages=("shellcheck",) if any("shellcheck" in each.needs for each in found) else (),
    )


def _pre_commit(project: Project) -> Iterator[Candidate]:
    if project.has(PRE_COMMIT):
        run = "uvx pre-commit run --all-files --show-diff-on-failure"
        check, otherwise = hooks_reachable(project)
        yield Candidate(run=run, evidence=Evidence(path=PRE_COMMIT), needs=("uvx",), check=check, otherwise=otherwise, rank=14)


def hooks_reachable(project: Project) -> tuple[str, str]:
    """Return the condition that pre-commit can fetch its hooks, and what it means if it can't: another linter may run then."""
    url = next((url for _, line in short_lines(project, PRE_COMMIT) for url in _HOOKS.findall(line)), "")
    if not url:
        return "", ""
    return f"timeout 20 git ls-remote -q {shlex.quote(url)} HEAD", f"its hooks at {url} can't be fetched from this machine"


def node(project: Project, manifest: dict[str, Any], manager: RunsScripts) -> tuple[Candidate, ...]:
    return tuple(_node(project, manifest, manager))


def _node(project: Project, manifest: dict[str, Any], manager: RunsScripts) -> Iterator[Candidate]:
    """The `lint` script of package.json, else ESLint and the like themselves if the project configures them."""
    scripts = table(manifest.get("scripts"))
    name = next((name for name in _SCRIPTS if string(scripts.get(name)) and not _CHANGES.search(string(scripts[name]))), None)
    if name:
        evidence = project.evidence("package.json", f'"{name}"', f"{name}: {shown(scripts[name])}")
        run = manager.script(name, arguments=True)
        yield Candidate(run=run, shown=manager.script(name), evidence=evidence, needs=manager.needs, rank=30)
        return
    depends = {**table(manifest.get("dependencies")), **table(manifest.get("devDependencies"))}
    for files, package, run in (
        (BIOME, "@biomejs/biome", "npx @biomejs/biome ci ."),
        (_ESLINT, "eslint", "npx eslint ."),
        ((), "xo", "npx xo"),
        ((), "standard", "npx standard"),
        ((), "oxlint", "npx oxlint"),
    ):
        path = project.first(*files)
        if package in depends:
            evidence = Evidence(path=path) if path else project.evidence("package.json", f'"{package}"', package)
            yield Candidate(run=run, evidence=evidence, needs=("npx",), rank=55)
        elif path and package == "@biomejs/biome":
            yield Candidate(run=run, evidence=Evidence(path=path), needs=("npx",), rank=55)


def _python(project: Project) -> Iterator[Candidate]:
    tools = table(project.toml("pyproject.toml").get("tool"))
    ruff = project.first("ruff.toml", ".ruff.toml")
    if ruff or "ruff" in tools:
        evidence = Evidence(path=ruff) if ruff else project.evidence("pyproject.toml", "[tool.ruff", "tool.ruff")
        yield Candidate(run="uvx ruff check", evidence=evidence, needs=("uvx",), rank=50)
    for path, line in ((".flake8", ""), ("setup.cfg", "[flake8]"), ("tox.ini", "[flake8]")):
        if project.has(path) and (not line or project.line_of(path, line)):
            yield Candidate(run="uvx flake8", evidence=project.evidence(path, line), needs=("uvx",), rank=52)
            break
    if "black" in tools:
        evidence = project.evidence("pyproject.toml", "[tool.black", "tool.black")
        yield Candidate(run="uvx black --check .", evidence=evidence, needs=("uvx",), rank=58)


def go(project: Project) -> tuple[Candidate, ...]:
    return tuple(_go(project))


def _go(project: Project) -> Iterator[Candidate]:
    if config := project.first(*_GOLANGCI):
        yield Candidate(run="golangci-lint run", evidence=Evidence(path=config), needs=("golangci-lint",), rank=50)
        yield Candidate(
            run="go vet ./...", evidence=Evidence(path=config, text="golangci-lint isn't available"), needs=("go",), rank=65
        )
    elif command := in_ci(project, r"go vet\b.*"):
        yield Candidate(run="go vet ./...", evidence=command.evidence(), needs=("go",), rank=50)


def rust(project: Project) -> tuple[Candidate, ...]:
    return tuple(_rust(project))


def _rust(project: Project) -> Iterator[Candidate]:
    if command := in_ci(project, r"cargo clippy\b.*"):
        plain = shlex.join(command.run.split()) == command.run and command.literal
        yield Candidate(
            run=command.run if plain else "cargo clippy", evidence=command.evidence(), needs=("cargo-clippy",), rank=50
        )
    elif config := project.first("clippy.toml", ".clippy.toml"):
        yield Candidate(run="cargo clippy", evidence=Evidence(path=config), needs=("cargo-clippy",), rank=50)
    if config := project.first("rustfmt.toml", ".rustfmt.toml"):
        yield Candidate(run="cargo fmt --check", evidence=Evidence(path=config), needs=("rustfmt",), rank=60)
    elif command := in_ci(project, r"cargo fmt\b.*--check.*"):
        yield Candidate(run="cargo fmt --check", evidence=command.evidence(), needs=("rustfmt",), rank=60)


def ruby(project: Project) -> tuple[Candidate, ...]:
    return tuple(_ruby(project))


def _ruby(project: Project) -> Iterator[Candidate]:
    if project.has(".rubocop.yml"):
        bundled = re.search(r"^[ \t]{0,40}gem[ \t]{0,9}\(?[ \t]{0,9}[\"']rubocop", project.text("Gemfile") or "", re.MULTILINE)
        run, needs = ("bundle exec rubocop", ("bundle",)) if bundled else ("rubocop", ("rubocop",))
        yield Candidate(run=run, evidence=Evidence(path=".rubocop.yml"), needs=needs, rank=50)


def php(project: Project) -> tuple[Candidate, ...]:
    return tuple(_php(project))


def _php(project: Project) -> Iterator[Candidate]:
    for names, program in (
        (("phpcs.xml", "phpcs.xml.dist", ".phpcs.xml", ".phpcs.xml.dist"), "phpcs"),
        ((".php-cs-fixer.php", ".php-cs-fixer.dist.php"), "php-cs-fixer fix --dry-run --diff"),
        (("phpstan.neon", "phpstan.neon.dist", "phpstan.dist.neon"), "phpstan analyse --no-progress"),
    ):
        if path := project.first(*names):
            check = f"test -f vendor/bin/{program.split()[0]}"
            yield Candidate(run=f"php vendor/bin/{program}", evidence=Evidence(path=path), needs=("php",), check=check, rank=52)


def _shell(project: Project) -> Iterator[Candidate]:
    command = in_ci(project, r"shellcheck\b.*")
    config = project.first(".shellcheckrc")
    if (command or config) and any(path.endswith((".sh", ".bash")) for path in project.paths):
        evidence = command.evidence() if command else Evidence(path=config or ".shellcheckrc")
        run = "git ls-files -z '*.sh' '*.bash' | xargs -0 shellcheck"
        yield Candidate(run=run, evidence=evidence, needs=("shellcheck",), rank=62)


def in_ci(project: Project, pattern: str) -> ci_hints.Command | None:
    """Return the CI's first command that matches as a whole."""
    return next((command for command in ci_hints.commands(project, linting=True) if re.fullmatch(pattern, command.run)), None)
