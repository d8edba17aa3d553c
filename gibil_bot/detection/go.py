"""Go: modules and workspaces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gibil_bot.detection import formatters, linters, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import quoted

WANTED = ("go.mod", "go.work", ".go-version", *version_files.WANTED)

_FLOOR_SINCE = 21
"""Since Go 1.21 the `go` directive is a floor that dependencies can't exceed, so that its minor version always suffices. Below,
a newer release is the better choice: dependencies may need one, and the language is still that of the directive."""
_NEWER = 24
_RELEASES = 30
"""How many releases after the floor are accepted if the machine has them already."""
_DIRECTIVE = re.compile(r"(?:go|toolchain)\s+(?:go)?(1)\.(\d{1,4})(?:\.\d+|rc\d+|beta\d+)?\S*")
_NAMED = re.compile(r"(?:go)?(\d{1,4}(?:\.\d{1,4}){1,2})")


def facts(project: Project) -> Facts | None:
    if not project.has("go.mod", "go.work"):
        return None
    manifest = "go.work" if project.has("go.work") else "go.mod"
    vendored = project.has("vendor/modules.txt") and manifest == "go.mod"
    modules = _workspace(project) if manifest == "go.work" else ["."]
    packages = " ".join("./..." if module == "." else quoted(f"./{module}/...") for module in modules)
    tests: tuple[Candidate, ...] = ()
    if any(path.endswith("_test.go") for path in project.paths) and packages:
        evidence = project.evidence(manifest, "use" if manifest == "go.work" else "module")
        tests = (Candidate(run=f"go test {packages}", evidence=evidence, needs=("go",), rank=50),)
    return Facts(
        ecosystem="Go",
        runtimes=(_go(project),),
        steps=() if vendored else _steps(project, manifest, modules),
        linters=linters.go(project),
        formatters=formatters.go(project),
        tests=tests,
        env={"GOFLAGS": "-mod=vendor"} if vendored else {},
        caches=("~/go/pkg/mod",),
    )


def _go(project: Project) -> Runtime:
    pins = [version_files.first_line(project, ".go-version"), *version_files.pinned(project, "go", "golang")]
    for pin in pins:
        if pin is not None and (named := _NAMED.fullmatch(pin[0])):
            return Runtime(name="go", version=named[1], evidence=pin[1])
    newest, evidence = 0, None
    for path in ("go.mod", "go.work"):
        for number, line in short_lines(project, path):
            if (found := _DIRECTIVE.match(line)) and (evidence is None or int(found[2]) > newest):
                newest, evidence = int(found[2]), Evidence(path=path, line=number, text=" ".join(line.split("//")[0].split()))
    minor = newest if newest >= _FLOOR_SINCE else _NEWER
    accepts = tuple(f"1.{each}" for each in range(max(newest, _FLOOR_SINCE), _FLOOR_SINCE + _RELEASES) if each != minor)
    evidence = evidence or Evidence(path=project.first("go.mod", "go.work") or "go.mod")
    return Runtime(name="go", version=f"1.{minor}", accepts=accepts, evidence=evidence)


def _workspace(project: Project) -> list[str]:
    """Return the folders of a workspace's modules."""
    found = [folder for folder in _used(project) if folder == "." or f"{folder}/go.mod" in project.paths]
    return sorted(set(found))[:50]


def _used(project: Project) -> Iterator[str]:
    block = False
    for _, line in short_lines(project, "go.work"):
        words = line.split("//")[0].split()
        if words[:2] == ["use", "("]:
            block = True
        elif words == [")"]:
            block = False
        elif block and len(words) == 1:
            yield _folder(words[0])
        elif len(words) == 2 and words[0] == "use":
            yield _folder(words[1])


def _folder(text: str) -> str:
    return text.strip('"`').removeprefix("./").rstrip("/") or "."


def _steps(project: Project, manifest: str, modules: list[str]) -> tuple[Step, ...]:
    requires = any(re.match(r"require\b", line) for _, line in short_lines(project, "go.mod"))
    if manifest == "go.mod" and not requires:
        return ()
    folders = ["" if module == "." else f"{module}/" for module in modules]
    inputs = [path for folder in folders for path in (f"{folder}go.mod", f"{folder}go.sum") if path in project.paths]
    inputs += [path for path in ("go.work", "go.work.sum") if path in project.paths]
    return (Step(run="go mod download", evidence=project.evidence(manifest, "require"), inputs=tuple(dict.fromkeys(inputs))),)
