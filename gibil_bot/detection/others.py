"""Languages whose tests are one command: Elixir, .NET and Deno."""

from __future__ import annotations

import re

from gibil_bot.detection import version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import LAST_RESORT, is_only
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import quoted, table

_DENO = ("deno.json", "deno.jsonc")
WANTED = ("mix.exs", *_DENO, "global.json", "*.sln", "*.slnx", "*.csproj", *version_files.WANTED)

_FORMATTER = ".formatter.exs"
_VERSION = re.compile(r"(\d{1,4}(?:\.\d{1,5}){0,2})(?:-.*)?")


def facts(project: Project) -> Facts | None:
    return _elixir(project) or _dotnet(project) or _deno(project)


def _pinned(project: Project, *names: str) -> tuple[str, Evidence] | None:
    for text, evidence in version_files.pinned(project, *names):
        if found := _VERSION.fullmatch(text):
            return found[1], evidence
    return None


def _elixir(project: Project) -> Facts | None:
    if not project.has("mix.exs"):
        return None
    version, evidence = _pinned(project, "elixir") or ("", Evidence(path="mix.exs"))
    lock = project.first("mix.lock")
    get = "mix local.hex --force --if-missing && mix local.rebar --force --if-missing && mix deps.get"
    return Facts(
        ecosystem="Elixir",
        runtimes=(Runtime(name="elixir", version=version, evidence=evidence),),
        steps=(Step(run=get, evidence=Evidence(path=lock or "mix.exs"), inputs=("mix.exs", *((lock,) if lock else ()))),),
        tests=(Candidate(run="mix test", evidence=Evidence(path="mix.exs"), needs=("mix",), rank=50),),
        linters=(
            (Candidate(run="mix format --check-formatted", evidence=Evidence(path=_FORMATTER), needs=("mix",), rank=50),)
            if project.has(_FORMATTER)
            else ()
        ),
        packages=("elixir", "erlang-dev", "erlang-parsetools"),
        env={"MIX_ENV": "test"},
        caches=("~/.hex",),
    )


def _dotnet(project: Project) -> Facts | None:
    solutions = [path for pattern in ("*.sln", "*.slnx", "*.csproj") for path in project.matching(pattern)]
    if not solutions:
        return None
    sdk = table(project.json("global.json").get("sdk")).get("version")
    found = _VERSION.fullmatch(sdk) if isinstance(sdk, str) else None
    # the SDK's patch versions are in bands of a hundred, and global.json accepts newer ones of its band
    version = ".".join(found[1].split(".")[:2]) if found else ""
    evidence = project.evidence("global.json", '"version"', f"sdk {version}") if version else Evidence(path=solutions[0])
    path = quoted(solutions[0])
    return Facts(
        ecosystem=".NET",
        runtimes=(Runtime(name="dotnet", version=version, evidence=evidence),),
        steps=(Step(run=f"dotnet restore {path}", evidence=Evidence(path=solutions[0]), inputs=tuple(solutions[:20])),),
        tests=(Candidate(run=f"dotnet test {path}", evidence=Evidence(path=solutions[0]), needs=("dotnet",), rank=50),),
        env={"DOTNET_CLI_TELEMETRY_OPTOUT": "1", "DOTNET_NOLOGO": "1"},
        caches=("~/.nuget/packages",),
    )


def _deno(project: Project) -> Facts | None:
    manifest = project.first(*_DENO)
    if manifest is None:
        return None
    task = table(project.json(manifest).get("tasks")).get("test")
    run = "deno task test" if isinstance(task, str | dict) and task else "deno test --allow-all"
    evidence = project.evidence(manifest, '"test"' if run.endswith("task test") else "")
    version, pin = _pinned(project, "deno") or ("", Evidence(path=manifest))
    rank = 50 if is_only(project) else LAST_RESORT
    return Facts(
        ecosystem="Deno",
        runtimes=(Runtime(name="deno", version=version, optional=rank == LAST_RESORT, evidence=pin),),
        tests=(Candidate(run=run, evidence=evidence, needs=("deno",), rank=rank),),
        linters=(Candidate(run="deno lint", evidence=Evidence(path=manifest), needs=("deno",), rank=60),) if rank == 50 else (),
        caches=("~/.cache/deno",),
    )
