"""Formatters of all languages, by the files that configure them. Their commands change files.

Languages whose tools come with a formatter (gofmt, rustfmt) need no configuration. The languages' modules call the functions
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime
from gibil_bot.detection.linters import BIOME, PRE_COMMIT, RunsScripts, hooks_reachable, in_ci
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown, string, table

_HOOKS = re.compile(
    r"^\s{0,20}-?\s{0,9}id:\s{0,9}[\"']?(ruff-format|black(?:-jupyter)?|prettier|gofmt|go-fmt|cargo-fmt|fmt|rustfmt|isort|clang-format"
    r"|yapf|autopep8|end-of-file-fixer|trailing-whitespace|pretty-format-\w+|shfmt)\b",
    re.MULTILINE,
)
WANTED = (PRE_COMMIT, "pyproject.toml", "setup.cfg", ".style.yapf", *ci_hints.WANTED)

_PRETTIER = (
    *(f".prettierrc{ending}" for ending in ("", ".json", ".json5", ".yml", ".yaml", ".toml", ".js", ".cjs", ".mjs", ".ts")),
    *(f"prettier.config.{ending}" for ending in ("js", "cjs", "mjs", "ts")),
)
_SCRIPTS = ("format", "fmt", "format:write", "format:fix", "prettier", "prettier:write", "style:fix")
_WRITES = re.compile(r"(?:prettier|biome|dprint|oxfmt)\b.{0,200}(?:--write\b|-w\b|\bfmt\b)")


def facts(project: Project) -> Facts | None:
    """Return the formatters that need nothing of the project's language."""
    found = [*_pre_commit(project), *_python(project)]
    if not found:
        return None
    return Facts(
        ecosystem="Formatters",
        runtimes=(Runtime(name="uv", evidence=found[0].evidence),),
        formatters=tuple(sorted(found, key=lambda each: each.rank)),
    )


def _pre_commit(project: Project) -> Iterator[Candidate]:
    """pre-commit, if one of its hooks formats. Its status 1 means that hooks changed files, or that linters found something."""
    hook = _HOOKS.search(project.text(PRE_COMMIT) or "")
    if hook is not None:
        check, otherwise = hooks_reachable(project)
        once = 'uvx pre-commit run --all-files "$@"'
        yield Candidate(
            run=f"{once} || {once} || test $? -eq 1",
            shown="uvx pre-commit run --all-files",
            evidence=project.evidence(PRE_COMMIT, hook[1], hook[1]),
            needs=("uvx",),
            check=check,
            otherwise=otherwise,
            rank=14,
        )


def _python(project: Project) -> Iterator[Candidate]:
    tools = table(project.toml("pyproject.toml").get("tool"))
    config = project.first("ruff.toml", ".ruff.toml")
    evidence = Evidence(path=config) if config else project.evidence("pyproject.toml", "[tool.ruff", "tool.ruff")
    command = in_ci(project, r"(?:\S{1,40} run )?(?:ruff|uvx ruff) format\b.*")
    if command is not None or "format" in table(tools.get("ruff")):
        yield Candidate(run="uvx ruff format", evidence=command.evidence() if command else evidence, needs=("uvx",), rank=50)
    elif "black" in tools:
        evidence = project.evidence("pyproject.toml", "[tool.black", "tool.black")
        yield Candidate(run="uvx black .", evidence=evidence, needs=("uvx",), rank=52)
    elif project.has(".style.yapf") or "yapf" in tools:
        path = project.first(".style.yapf") or "pyproject.toml"
        yield Candidate(run="uvx yapf -i -r .", evidence=Evidence(path=path), needs=("uvx",), rank=54)
    elif config or "ruff" in tools:  # perhaps only its linter is used
        yield Candidate(run="uvx ruff format", evidence=evidence, needs=("uvx",), rank=62)


def node(project: Project, manifest: dict[str, Any], manager: RunsScripts) -> tuple[Candidate, ...]:
    """The script of package.json that formats, else Prettier or Biome if the project configures or installs them."""
    scripts = table(manifest.get("scripts"))
    name = next((name for name in _SCRIPTS if _WRITES.search(string(scripts.get(name)))), None)
    if name:
        evidence = project.evidence("package.json", f'"{name}"', f"{name}: {shown(scripts[name])}")
        return (Candidate(run=manager.script(name), evidence=evidence, needs=manager.needs, rank=30),)
    depends = {**table(manifest.get("dependencies")), **table(manifest.get("devDependencies"))}
    for files, package, run in (
        (BIOME, "@biomejs/biome", "npx @biomejs/biome format --write ."),
        (_PRETTIER, "prettier", "npx prettier --write ."),
    ):
        path = project.first(*files)
        if path or package in depends or package in manifest:
            evidence = Evidence(path=path) if path else project.evidence("package.json", f'"{package}"', package)
            return (Candidate(run=run, evidence=evidence, needs=("npx",), rank=55),)
    return ()


def go(project: Project) -> tuple[Candidate, ...]:
    evidence = Evidence(path=project.first("go.work", "go.mod") or "go.mod")
    run = "git ls-files -z '*.go' ':!vendor/**' | xargs -0 -r gofmt -w"
    return (Candidate(run=run, shown="gofmt -w", evidence=evidence, needs=("gofmt",), rank=50),)


def rust(project: Project) -> tuple[Candidate, ...]:
    config = project.first("rustfmt.toml", ".rustfmt.toml")
    return (Candidate(run="cargo fmt --all", evidence=Evidence(path=config or "Cargo.toml"), needs=("rustfmt",), rank=50),)
