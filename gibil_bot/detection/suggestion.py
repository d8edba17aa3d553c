"""A `.gibil.yml` that people can paste, made from facts or from the project's CI; formatted as prettier formats it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from gibil_bot.detection import ci_services, workflows
from gibil_bot.detection.ci_services import CIServices
from gibil_bot.detection.combine import COVERS_ALL, LAST_RESORTS, Combined, submodules
from gibil_bot.detection.detected import Quote
from gibil_bot.detection.facts import Candidate
from gibil_bot.detection.project import Project
from gibil_bot.detection.python import VENV
from gibil_bot.scripts.task_script import RUNTIMES

_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}")
_PLAIN = re.compile(r"[A-Za-z./_](?:[!-~]| (?!#)|:(?=\S))*")
_RESERVED = frozenset(("true", "false", "null", "yes", "no", "on", "off", "~"))
_WIDEST = 72

_ENVIRONMENT = """python3 -m venv "$RUNNER_TEMP/venv"
. "$RUNNER_TEMP/venv/bin/activate"
echo "$RUNNER_TEMP/venv/bin" >>"$GITHUB_PATH"
echo "VIRTUAL_ENV=$VIRTUAL_ENV" >>"$GITHUB_ENV"
"""


def from_facts(found: Combined) -> str:
    """Return the file for what detection chose; empty if it chose nothing."""
    if not found.groups:
        return ""
    lines: list[str] = []
    if wanted := submodules(found):
        lines += ["checkout:", f"  submodules: {wanted}"]
    versions = {
        each.name: each.version for each in found.runtimes if each.name in RUNTIMES and _VERSION.fullmatch(each.version)
    }
    if versions:
        lines += ["runtime:", *(f"  {name}: {json.dumps(version)}" for name, version in versions.items())]
    if packages := (*found.packages, *found.ci_packages):
        lines += ["packages:", *(f"  - {_scalar(package)}" for package in packages)]
    lines += _services(found.services)
    env = {name: value for name, value in found.test_env.items() if VENV not in value} | dict(found.services.env)
    if env:
        lines += ["env:", *(f"  {name}: {json.dumps(value)}" for name, value in env.items())]
    lines.append("tasks:")
    by_folder: dict[str, list[str]] = {}
    for path, step in found.steps:
        by_folder.setdefault(path, []).append(step.short or step.run)
    is_python = any(runtime.name == "python" for runtime in found.runtimes)
    for number, (path, runs) in enumerate(by_folder.items()):
        script = (_ENVIRONMENT if is_python and not number else "") + "\n".join(run.rstrip("\n") for run in runs)
        lines += _task("install" if len(by_folder) == 1 else f"install {path}", script, path)
    if is_python and not by_folder:
        lines += _task("install", _ENVIRONMENT, ".")
    chosen = _chosen(found)
    for name, path, candidate in chosen:
        run = candidate.shown or candidate.run.replace(' "$@"', "")
        lines += _task(found.purpose if len(chosen) == 1 else f"{found.purpose} {name}", run, path)
    return "\n".join(lines) + "\n"


def _chosen(found: Combined) -> list[tuple[str, str, Candidate]]:
    """Return (name, folder, candidate) of the commands that would run if all of them could."""
    firsts = [(group.name, group.path, group.candidates[0]) for group in found.groups]
    if any(candidate.rank < LAST_RESORTS for _, _, candidate in firsts):
        firsts = [entry for entry in firsts if entry[2].rank < LAST_RESORTS]
    covering = [entry for entry in firsts if entry[2].rank < COVERS_ALL]
    return sorted(covering, key=lambda entry: entry[2].rank)[:1] or firsts


def _services(found: CIServices) -> list[str]:
    # Only an official image's port is known without `ports`.
    usable = [each for each in found.services if each.ports or each.is_official]
    lines = ["services:"] if usable else []
    for service in usable:
        lines.append(f"  {service.name}: # {_printable(str(service.evidence))}")
        lines.append(f"    image: {_scalar(service.portable_image)}")
        if service.env:
            lines += ["    env:", *(f"      {name}: {json.dumps(value)}" for name, value in service.env.items())]
        if service.ports:
            lines.append(f"    ports: [{', '.join(json.dumps(port) for port in service.ports)}]")
    return lines


def from_quotes(project: Project, quotes: tuple[Quote, ...], name: str = "test") -> str:
    """Return the file for the best quote that means the same outside its CI, as a task of that name; empty if there is none."""
    quote = next((each for each in quotes if not each.is_preparation and "${{" not in each.command), None)
    if quote is None:
        return ""
    hints = [each.command for each in quotes if each.is_preparation and not each.is_service and "${{" not in each.command]
    started = ci_services.read(project) if name == "test" else ci_services.CIServices(env={})
    before = list(workflows.preparation(project, quote)) or hints
    lines = [f"# {_comment(quote)}", *_services(started)]
    if started.env:
        lines += ["env:", *(f"  {name}: {json.dumps(value)}" for name, value in started.env.items())]
    lines.append("tasks:")
    if any(re.match(r"(python3? -m )?pip3? install", command) for command in before):
        before.insert(0, _ENVIRONMENT.rstrip("\n"))
    if before:
        lines += _task("install", "\n".join(before), ".")
    lines += _task(name, quote.command, ".")
    return "\n".join(lines) + "\n"


def _comment(quote: Quote) -> str:
    return _printable(f"{quote.path}:{quote.line} runs this")


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def _task(name: str, script: str, path: str) -> list[str]:
    lines = [f"  - name: {_scalar(name[:100])}"]
    if path != ".":
        lines.append(f"    working-directory: {_scalar(path)}")
    if name.partition(" ")[0] == "install":
        lines.append("    prepare: true")
    script = "\n".join(line.rstrip() for line in script.strip().splitlines())
    if "\n" not in script and len(script) <= _WIDEST and _is_plain(script):
        return [*lines, f"    run: {script}"]
    return [*lines, "    run: |", *_indented(script.splitlines())]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"      {line}" if line else "" for line in lines]


def _is_plain(text: str) -> bool:
    return (
        _PLAIN.fullmatch(text) is not None
        and ": " not in text
        and not text.endswith(":")
        and not text.endswith(" ")
        and text.casefold() not in _RESERVED
    )


def _scalar(text: str) -> str:
    text = _printable(text)
    return text if _is_plain(text) else json.dumps(text, ensure_ascii=False)
