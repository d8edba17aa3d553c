"""Files that pin the versions of programs for all languages: `.tool-versions` (asdf) and `mise.toml`."""

from __future__ import annotations

from collections.abc import Iterator

from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import items, shown, string, table

_MISE = ("mise.toml", ".mise.toml", ".config/mise.toml", "mise/config.toml")
WANTED = (".tool-versions", *_MISE)


def pinned(project: Project, *names: str) -> Iterator[tuple[str, Evidence]]:
    """Yield (version as written, evidence) for a program with one of the names."""
    for path in _MISE:
        tools = table(project.toml(path).get("tools"))
        for name in names:
            for value in items(tools.get(name))[:1]:
                version = string(table(value).get("version")) if isinstance(value, dict) else string(value)
                if version:
                    yield version, project.evidence(path, name, f"{name} {shown(version)}")
    for number, line in project.lines(".tool-versions"):
        words = line.split("#")[0].split()
        if len(words) > 1 and words[0] in names:
            yield words[1], Evidence(path=".tool-versions", line=number, text=shown(" ".join(words[:2])))


def first_line(project: Project, path: str) -> tuple[str, Evidence] | None:
    """Return the first line of a file that contains nothing but a version, comments aside."""
    for number, line in project.lines(path):
        text = string(line.split("#")[0])
        if text:
            return text, Evidence(path=path, line=number, text=shown(text))
    return None
