"""An agent's review: its file of findings, which of them are on lines of the diff, and the review that GitHub shows. Pure.

The file comes from a machine: it is limited in bytes, findings and text, and its Markdown is neutralized. Reviews only comment:
https://docs.github.com/en/rest/pulls/reviews#create-a-review-for-a-pull-request
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from gibil_bot.github.markdown import clean, code, comment, joined, line, sentence
from gibil_bot.humanize import count
from gibil_bot.model import Notification, ReviewComment, ReviewUpdate, Run

FINDINGS_BYTES = 256 * 1024
"""The largest file of findings."""
MOST_FINDINGS = 50
TEXT_LIMIT = 4000
SUMMARY_LIMIT = 6000
BODY_LIMIT = 60_000
LONGEST_PATH = 1000
_MOST_LINES = 100_000_000

FORMAT = """\
Write your findings as JSON to the file {path}, and nothing else into it:

{{"summary": "one or two sentences about the whole change",
 "findings": [{{"path": "src/a.py", "line": 12, "end_line": 14, "text": "what is wrong, and how to repair it"}}]}}

- `path` is relative to the repository. `line` and `end_line` count from 1 in the new version of the file; with "side": "old"
  they are lines of the old version, for what was removed. Leave out `end_line` if it is one line.
- Only lines that the diff shows can have a comment: changed lines, and three lines around them.
- `text` is Markdown of at most 4,000 characters. A block of code with the language `suggestion` replaces the lines.
- Write at most 50 findings, the most important first, and only what the author should change or has to know. No findings at all
  is a good answer: "findings": [].
"""
"""What a prompt says of the file. `{path}`: where the agent writes it."""


class Finding(Struct, frozen=True, kw_only=True):
    """One finding, as an agent wrote it."""

    path: Annotated[str, Meta(min_length=1, max_length=LONGEST_PATH)]
    line: Annotated[int, Meta(ge=1, le=_MOST_LINES)]
    text: Annotated[str, Meta(min_length=1)]
    end_line: Annotated[int, Meta(ge=1, le=_MOST_LINES)] | None = None
    side: Literal["new", "old"] = "new"

    @property
    def lines(self) -> tuple[int, int]:
        """The first and the last line."""
        return self.line, max(self.line, self.end_line or 0)


class Findings(Struct, frozen=True, kw_only=True):
    """What an agent's file says."""

    found: tuple[Finding, ...] = ()
    summary: str = ""
    unreadable: int = 0
    """Findings that aren't in the format."""
    omitted: int = 0
    """Findings above the limit."""
    problem: str = ""
    """Why the file can't be read, as a sentence; then there are none."""


class _File(Struct):
    findings: list[msgspec.Raw] = field(default_factory=list)
    summary: str = ""


def read_findings(data: bytes, *, checkout: str = "") -> Findings:
    """Read an agent's file. `checkout`: the folder on the machine, which may precede the paths. Never raises."""
    if len(data) > FINDINGS_BYTES:
        return Findings(problem=f"The file of findings is larger than {FINDINGS_BYTES // 1024} KiB.")
    text = _without_fence(data.removeprefix(b"\xef\xbb\xbf").strip())
    if not text:
        return Findings(problem="The file of findings is empty.")
    try:
        file = msgspec.json.decode(text, type=_File) if text[:1] == b"{" else _File(findings=_items(text))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Findings(problem=f"The file of findings can't be read: {line(str(error), 200)}.")
    found: dict[Finding, None] = {}
    unreadable = 0
    for raw in file.findings[: 20 * MOST_FINDINGS]:
        try:
            finding = msgspec.json.decode(raw, type=Finding, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            unreadable += 1
            continue
        if not clean(finding.text).strip():
            unreadable += 1
            continue
        found[msgspec.structs.replace(finding, path=_relative(finding.path, checkout))] = None
    kept = tuple(found)[:MOST_FINDINGS]
    omitted = len(found) - len(kept) + max(0, len(file.findings) - 20 * MOST_FINDINGS)
    return Findings(found=kept, summary=file.summary, unreadable=unreadable, omitted=omitted)


def _items(text: bytes) -> list[msgspec.Raw]:
    return msgspec.json.decode(text, type=list[msgspec.Raw])


def _without_fence(text: bytes) -> bytes:
    """Return the JSON in a block of code, as models like to write it."""
    first, newline, rest = text.partition(b"\n")
    if newline and rest.endswith(b"```") and re.fullmatch(rb"```[A-Za-z]*\s*", first):
        return rest.removesuffix(b"```").strip()
    return text


def _relative(path: str, checkout: str) -> str:
    if checkout and path.startswith(f"{checkout.rstrip('/')}/"):
        path = path[len(checkout.rstrip("/")) + 1 :]
    return path.removeprefix("./")


# --- the diff ------------------------------------------------------------------------------------------------------


class ChangedLines(Struct, frozen=True, kw_only=True):
    """The parts of one file that a diff shows, as ranges of lines (first, last), by the version of the file."""

    old: tuple[tuple[int, int], ...] = ()
    new: tuple[tuple[int, int], ...] = ()


_HUNK = re.compile(r"@@ -([0-9]{1,9})(?:,([0-9]{1,9}))? \+([0-9]{1,9})(?:,([0-9]{1,9}))? @@")
_OCTAL = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"v": b"\v", b"f": b"\f", b"r": b"\r"}


def changed_lines(diff: bytes) -> dict[str, ChangedLines]:
    """Return the lines that `git diff` shows, by the path of the new file, or of the old one if it was deleted.

    `diff` is in git's format, as GitHub shows pull requests. If it isn't the same as GitHub's, GitHub may reject a line.
    """
    files: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    old_path = new_path = ""
    old = new = 0
    for text in diff.decode(errors="replace").split("\n"):
        if old > 0 or new > 0:  # the contents of a hunk may look like a header
            if text[:1] != "\\":
                old -= text[:1] != "+"
                new -= text[:1] != "-"
        elif text.startswith("--- "):
            old_path = _path(text[4:], "a/")
        elif text.startswith("+++ "):
            new_path = _path(text[4:], "b/")
        elif match := _HUNK.match(text):
            old, new = int(match[2] or 1), int(match[4] or 1)
            ranges = files.setdefault(new_path if new_path != "/dev/null" else old_path, ([], []))
            for known, first, number in ((ranges[0], int(match[1]), old), (ranges[1], int(match[3]), new)):
                if number:
                    known.append((first, first + number - 1))
    return {path: ChangedLines(old=tuple(ranges[0]), new=tuple(ranges[1])) for path, ranges in files.items()}


def _path(text: str, prefix: str) -> str:
    """Return a path of a diff's header, which git quotes if it has special characters."""
    text = text.rstrip("\t\r")
    if text.startswith('"') and text.endswith('"'):
        raw = text[1:-1].encode(errors="replace")
        raw = _OCTAL.sub(lambda m: bytes([int(m[1], 8) & 255]) if len(m[1]) == 3 else _ESCAPES.get(m[1], m[1]), raw)
        text = raw.decode(errors="replace")
    return text.removeprefix(prefix)


def _placed(finding: Finding, changed: Mapping[str, ChangedLines]) -> tuple[int, int] | None:
    """Return the lines of a finding that are in one hunk of the diff; None if its first line isn't in any."""
    file = changed.get(finding.path)
    if file is None:
        return None
    first, last = finding.lines
    for begin, end in file.new if finding.side == "new" else file.old:
        if begin <= first <= end:
            return first, min(last, end)
    return None


# --- the review ------------------------------------------------------------------------------------------------------


def review(
    findings: Findings,
    changed: Mapping[str, ChangedLines],
    *,
    run: Run,
    task: int = 0,
    engine: str = "",
    model: str = "",
    details_url: str = "",
) -> Notification | None:
    """Return the review of the run's commit; None if the file couldn't be read. Texts have to be redacted already.

    `task`: the index of the agent's task. `engine` and `model`: who wrote it.
    """
    if findings.problem or (findings.unreadable and not findings.found):
        return None
    on_lines: list[ReviewComment] = []
    others: list[Finding] = []
    room = 3 * BODY_LIMIT
    for finding in findings.found:
        lines = _placed(finding, changed)
        text = comment(finding.text, TEXT_LIMIT, suggestions=finding.side == "new" and lines == finding.lines)
        room -= len(text)
        if lines is None or not text or room < 0:
            others.append(finding)
            continue
        first, last = lines
        on_lines.append(
            ReviewComment(
                path=finding.path,
                line=last,
                start_line=first if first < last else None,
                side="RIGHT" if finding.side == "new" else "LEFT",
                body=text,
            )
        )
    marker = f"<!-- gibil-review:{run.id}:{task} -->"
    heading = _heading(run, findings, engine, model, details_url)
    summary = _quoted(comment(findings.summary, SUMMARY_LIMIT))
    elsewhere = ["Not on lines that the diff shows:"] if others and on_lines else []
    return Notification(
        key=f"review:{run.id}:{task}",
        installation_id=run.source.installation_id,
        repository=run.source.repository.full_name,
        update=ReviewUpdate(
            number=run.source.pull_request.number,
            marker=marker,
            commit_sha=run.source.sha,
            body=joined([marker, heading, summary, *elsewhere, *map(_listed, others)], BODY_LIMIT),
            without_lines=joined([marker, heading, summary, *map(_listed, findings.found)], BODY_LIMIT),
            comments=tuple(on_lines),
        ),
    )


def _heading(run: Run, findings: Findings, engine: str, model: str, details_url: str) -> str:
    by = f" by {code(engine)}" if engine else ""
    by += f" with {code(model)}" if engine and model else ""
    link = f" ([run]({details_url}))" if details_url else ""
    found = count(len(findings.found), "finding") if findings.found else "No findings"
    parts = [f"{found} in {code(run.source.sha[:7])}{by}, requested by {sentence(run.source.actor, 100)}{link}."]
    left_out = findings.omitted + findings.unreadable
    if left_out:
        parts.append(f"{count(left_out, 'more finding')} could not be shown.")
    parts.append("An agent wrote this: it is neither an approval nor a rejection.")
    return " ".join(parts)


def _listed(finding: Finding) -> str:
    first, last = finding.lines
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    version = " of the old version" if finding.side == "old" else ""
    return f"**{code(finding.path, 200)}, {lines}{version}**\n\n{_quoted(comment(finding.text, TEXT_LIMIT))}"


def _quoted(text: str) -> str:
    return "\n".join(f"> {part}" if part else ">" for part in text.split("\n")) if text else ""


def problems_of(findings: Findings) -> Sequence[str]:
    """Return what to report of a file that isn't as requested, one sentence each."""
    problems = [findings.problem] if findings.problem else []
    if findings.unreadable:
        problems.append(f"{count(findings.unreadable, 'finding')} could not be read.")
    if findings.omitted:
        problems.append(f"{count(findings.omitted, 'finding')} above the limit of {MOST_FINDINGS} were left out.")
    return problems
