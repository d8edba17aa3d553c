"""Makes untrusted text safe for Markdown: output, names and summaries of people and machines, neutralized and truncated.

Pure functions. For any input, the result mentions no user, links to no issue, opens no tag, leaves no code block open and stays
within its limit. Limits are in UTF-8 bytes, as in GitHub's API (https://docs.github.com/en/rest/checks/runs, `output.summary`).

Untrusted text is put into two kinds of containers: a code fence longer than any run of backticks inside, and a block quote,
whose end closes everything that was opened in it (https://spec.commonmark.org/0.31.2/#container-blocks).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ZERO_WIDTH_SPACE = "\u200b"

# ECMA-48: CSI … final byte; OSC, DCS, APC, PM and SOS … terminator; every other escape. An unterminated string ends with its
# line, so that a stray escape doesn't swallow the output.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Characters that change the text direction are shown, because hidden ones can deceive readers.
_DIRECTION = {sign: f"‹U+{sign:04X}›" for sign in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_SEPARATORS = re.compile("[\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")

# `@` mentions, `#1`, `GH-1` and issue addresses link back, `<` opens HTML, and an entity could spell any of them.
_ACTIVE = re.compile(r"[<@]|#(?=\d)|&(?=[#A-Za-z])|\bGH(?=\\?-)|/(?:issues|pulls?|discussions)/(?=\d)", re.IGNORECASE)

_LINKED = re.compile(r"\](?=[(\[])")
"""Between the text of a link or an image and its address."""
_BACKTICKS = re.compile("`+")
_LONGEST_RUN = 32


def size(text: str) -> int:
    """Return the size in bytes of UTF-8."""
    return len(text.encode())


def clean(text: str) -> str:
    """Remove escape sequences, control and invisible characters; a line that overwrote itself is reduced to its last state."""
    text = text.replace("\r\n", "\n")
    if _CONTROLS.search(text):  # most text has none, and searching for one is ten times faster than searching for sequences
        text = _ESCAPES.sub("", text)
        if "\r" in text:
            text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        text = _CONTROLS.sub("", text)
    if text.isascii():
        return text
    text = text.translate(_DIRECTION)
    return _SURROGATES.sub("\ufffd", _SEPARATORS.sub(" ", _INVISIBLE.sub("", text)))


def cut(text: str, limit: int, *, separator: str = "\n") -> str:
    """Truncate to at most `limit` bytes: the middle is replaced by a note of its size, at character boundaries."""
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    room = limit - size(f"{separator}… {len(data):,} bytes omitted …{separator}")
    if room < 0:
        return data[: max(limit, 0)].decode(errors="ignore")
    # The end of an output is more informative than its beginning.
    head = data[: room // 3].decode(errors="ignore")
    tail = data[len(data) - (room - room // 3) :].decode(errors="ignore")
    return f"{head}{separator}… {len(data) - size(head) - size(tail):,} bytes omitted …{separator}{tail}"


def line(text: str, limit: int = 255) -> str:
    """Return one line of plain text, for where Markdown isn't rendered."""
    return cut(" ".join(clean(text).split()), limit, separator=" ")


def code(text: str, characters: int = 80, *, in_table: bool = False) -> str:
    """Return inline code, in which nothing is a mention, a link or a tag."""
    shown = " ".join(clean(text).split())
    if len(shown) > characters:
        shown = shown[: characters - 1] + "…"
    if not shown:
        return "(empty)"
    if in_table:
        shown = shown.replace("|", "\\|")
    fence = "`" * (_longest_run(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def fenced(text: str, limit: int) -> str:
    """Return a closed code block of at most `limit` bytes; empty for blank text."""
    shown = clean(text).strip("\n")
    if not shown.strip():
        return ""
    # This only limits the length of the fence.
    shown = _BACKTICKS.sub(lambda match: match[0] if len(match[0]) <= _LONGEST_RUN else "`" * _LONGEST_RUN + "…", shown)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}text\n{cut(shown, limit - 2 * len(fence) - len('text') - 2)}\n{fence}"


def quoted(markdown: str, limit: int) -> str:
    """Return untrusted Markdown, rendered as such within a block quote of at most `limit` bytes; empty for blank text."""
    shown = defuse(clean(markdown)).strip("\n")
    if not shown.strip():
        return ""
    room = limit
    while True:
        quotation = "\n".join(f"> {part}" for part in cut(shown, room).split("\n"))
        if size(quotation) <= limit:
            return quotation
        room = room * 3 // 4


_FENCE = re.compile(r" {0,3}(?:(`{3,})([^`]*)|(~{3,})(.*))$")
_COMMAND = re.compile(r"^((?:[^\S\n]|[>*+.)0-9|:_~-])*/)(?=[A-Za-z])", re.MULTILINE)
"""Lines that bots read as commands (`/gibil test`, `/approve`), also behind the signs of lists, quotes, tables and emphasis."""
_ACTIVE_LINK = re.compile(r"\](?=[(\[:])")
"""Between the text of a link, an image or a link's definition and its address."""
_DRAWN = frozenset({"mermaid", "math", "geojson", "topojson", "stl"})
"""Code that GitHub draws: https://docs.github.com/en/get-started/writing-on-github/working-with-advanced-formatting."""


def comment(markdown: str, limit: int, *, suggestions: bool = False) -> str:
    """Return untrusted Markdown of at most `limit` bytes for a comment: closed blocks of code, and text without mentions, links
    that hide their address, images, tags and commands; empty for blank text.

    Code stays as it is. `suggestions`: blocks that a reader can commit stay, too, unless something was omitted.
    """
    text = clean(markdown).strip("\n")
    room = limit
    while text.strip():
        shown = _comment(cut(text, room), suggestions=suggestions and size(text) <= room)
        if size(shown) <= limit:
            return shown
        room = room * 3 // 4
    return ""


def _comment(text: str, *, suggestions: bool) -> str:
    blocks: list[str] = []
    lines: list[str] = []
    fence, word = "", ""
    for part in [*text.split("\n"), None]:
        opened = None if part is None or fence else _FENCE.match(part)
        run = part.strip(" ") if part is not None else fence
        if fence and run.startswith(fence) and not run.strip(fence[0]):
            blocks.append(_code_block(lines, word))
            lines, fence = [], ""
        elif opened or part is None:
            blocks.append(_text_of_comment("\n".join(lines)))
            lines = []
            if opened:
                fence, info = (opened[1], opened[2]) if opened[1] else (opened[3], opened[4])
                word = (re.match(r"[A-Za-z0-9_+#.-]{0,30}", info.strip()) or [""])[0]
                if word.lower() in _DRAWN or (word.lower() == "suggestion" and not suggestions):
                    word = "text"
        else:
            lines.append(part)
    return "\n\n".join(filter(None, blocks))


def _code_block(lines: Sequence[str], word: str) -> str:
    code = "\n".join(lines)
    fence = "`" * max(3, _longest_run(code) + 1)
    return "\n".join([f"{fence}{word}", *lines, fence])


def _text_of_comment(text: str) -> str:
    shown = _ACTIVE_LINK.sub(lambda match: match[0] + ZERO_WIDTH_SPACE, defuse(text))
    return _COMMAND.sub(lambda match: match[0] + ZERO_WIDTH_SPACE, shown).strip("\n")


def defuse(text: str) -> str:
    """Return the text without mentions, references and tags. The change is invisible when shown, also in code."""
    return _ACTIVE.sub(lambda match: match[0] + ZERO_WIDTH_SPACE, text)


def sentence(text: str, limit: int = 1000) -> str:
    """Return one defused line of Markdown, without links and images that have a text: it may quote names from a machine."""
    return _LINKED.sub(lambda match: match[0] + ZERO_WIDTH_SPACE, defuse(line(text, limit)))


def joined(blocks: Sequence[str], limit: int) -> str:
    """Join as many closed blocks as fit, separated by blank lines; state how much was omitted."""
    blocks = [block for block in blocks if block]
    room = limit - 100
    fitting: list[str] = []
    for index, block in enumerate(blocks):
        room -= size(block) + 2
        if room < 0:
            rest = blocks[index:]
            fitting.append(f"… {sum(size(part) for part in rest):,} bytes omitted, in {len(rest)} parts …")
            break
        fitting.append(block)
    return "\n\n".join(fitting)


def _longest_run(text: str) -> int:
    return max((len(match[0]) for match in _BACKTICKS.finditer(text)), default=0)
