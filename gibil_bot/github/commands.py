"""Parser of the `/gibil …` lines in a comment. Only lines that a reader sees as plain text count, not quoted or hidden ones.

Pure functions. A command is the first word of a line. Lines in fenced, indented or inline code, HTML comments, `<pre>` and
quotes only show a command. The block rules are CommonMark's (https://spec.commonmark.org/0.31.2/); in doubt a line isn't a
command.

Why not markdown-it-py: the webhook server parses comments that anyone can write, on the event loop, and markdown-it-py's time
isn't linear. CPU seconds of version 4.3.0 for comments of 64 KB, compared with this parser:

  an ordinary text                                   0.007    0.001
  30,000 lines that continue 500 nested quotes       1.65     0.03     (its block rules alone: 1.64)
  `![` repeated                                      1.0      0.001
  `[a` on each line                                  0.7      0.02
  `[` repeated                                       0.6      0.001
  a list of 16,000 items                             0.4      0.02     (its block rules alone: 0.37)

With a `maxNesting` of 100 instead of the default 20, the quotes are several times slower again.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from gibil_bot.humanize import without_hidden
from gibil_bot.model import Command

PREFIX = "/gibil"
MOST_COMMANDS = 10
LONGEST_LINE = 4096

POSITIONAL = {"approve": "sha", "cancel": "workflow", "retest": "workflow", "help": "workflow"}
"""The one argument that built-in commands take without a key: `/gibil approve 1a2b3c4` is {"sha": "1a2b3c4"}."""


def parse(body: str, free_text: Collection[str] = ()) -> tuple[Command, ...]:
    """Return every command of a comment, in order. `/gibil` alone is `help`.

    `free_text`: the words of commands that take the rest of the comment, up to the next command, as text. After ten commands,
    one more is returned whose `problem` says that the rest wasn't read.
    """
    found: list[Command] = []
    if PREFIX not in body.lower():
        return ()  # most comments
    lines = list(islice(_command_lines(body), MOST_COMMANDS + 1))
    all_lines = _LINE_END.split(body) if free_text else []
    for (number, line), (next_number, _) in pairwise([*lines, (len(all_lines), "")]):
        word = _word(line)
        if len(found) == MOST_COMMANDS:
            problem = f"a comment can have at most {MOST_COMMANDS} commands; this one and later ones were ignored"
            found.append(Command(word=_shown_word(word), problem=problem))
        elif word.lower() in free_text:
            first = line[len(PREFIX) :].strip(" \t")[len(word) :]
            text = "\n".join([first, *_shown_lines(all_lines[number + 1 : next_number])])
            found.append(Command(word=word.lower(), text=without_hidden(text).strip()))
        else:
            found.append(_command(line))
    return tuple(found)


def around_commands(body: str, free_text: Collection[str] = ()) -> tuple[str, str]:
    """Return what a comment says outside of its commands and of their free text: the author's own words, and all its quotes."""
    lines = _LINE_END.split(body)
    commands = list(islice(_command_lines(body), MOST_COMMANDS + 1))
    words: list[str] = []
    quotes: list[str] = []
    for (number, line), (next_number, _) in pairwise([(-1, ""), *commands, (len(lines), "")]):
        shown = list(_shown_lines(lines[number + 1 : next_number], quotes))
        if number < 0 or _word(line).lower() not in free_text:
            words += shown
    return without_hidden("\n".join(words)).strip(), without_hidden("\n".join(quotes)).strip()


# --- which lines are commands ----------------------------------------------------------------------------------------

_LINE_END = re.compile(r"\r\n|\n|\r")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]+|$)")
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
# HTML blocks whose content isn't shown as text: https://spec.commonmark.org/0.31.2/#html-blocks, kinds 1 and 2.
_HTML_OPENS = re.compile(r"<(?:(!--)|(pre|script|style|textarea)(?=[\s>]|$))", re.IGNORECASE)
_INLINE_MARK = re.compile(r"`+|<!--|-->")


@dataclass(frozen=True, slots=True)
class _Fence:
    sign: str
    length: int
    in_list: bool


def _command_lines(body: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that start with `/gibil` in plain text, without the HTML comments in them, and their numbers from 0."""
    paragraph: list[str] = []
    fence: _Fence | None = None
    closer: str | None = None
    in_list = False
    number = -1
    for number, line in enumerate(_LINE_END.split(body)):
        text = line.lstrip(" \t")
        indent = _indent(line[: len(line) - len(text)])
        if closer is not None:
            if closer in line.lower():
                closer = None
            continue
        if fence is not None:
            if _closes(fence, text, indent):
                fence = None
            # A line at the margin ends the list, and a list that ends closes the code in it.
            if not (fence is not None and fence.in_list and text and indent == 0):
                continue
            fence, in_list = None, False
        if not text or text.startswith(">"):
            yield from _commands_of(paragraph, number)
            paragraph = []
            in_list = in_list and not text
            continue
        content, item = _strip_list_markers(text) if (indent < 4 or in_list) else (text, False)
        in_list = item or (in_list and indent > 0)
        if indent < 4 or in_list:
            opened = _FENCE.match(content)
            html = None if opened else _HTML_OPENS.match(content)
            if opened or html:
                yield from _commands_of(paragraph, number)
                paragraph = []
            if opened:
                run = opened[1] or opened[2]
                fence = _Fence(run[0], len(run), in_list)
                continue
            if html:
                closer = "-->" if html[1] else f"</{html[2].lower()}"
                # Search from the fourth character on, so that `<!-->` doesn't close itself, as on GitHub.
                if closer in content[4:].lower():
                    closer = None
                continue
        # Indented code, or the continuation of a paragraph that looks like it. It is part of the paragraph, so that inline code
        # that spans lines is recognized, but never a command.
        paragraph.append(line)
    yield from _commands_of(paragraph, number + 1)


def _closes(fence: _Fence, text: str, indent: int) -> bool:
    run = text.rstrip(" \t")
    return (fence.in_list or indent < 4) and len(run) >= fence.length and run.count(fence.sign) == len(run)


def _strip_list_markers(text: str) -> tuple[str, bool]:
    item = False
    at = 0
    while match := _LIST_ITEM.match(text, at):
        if match.end() == at:
            break
        item, at = True, match.end()
    return text[at:], item


def _indent(blank: str) -> int:
    """Return the indentation in columns; a tab reaches to the next multiple of four."""
    return len(blank.expandtabs(4)) if "\t" in blank else len(blank)


def _commands_of(paragraph: list[str], end: int) -> Iterator[tuple[int, str]]:
    """Yield the commands of a paragraph, which ends before the line with that number."""
    if not any(_is_command(line) for line in paragraph):
        return
    text = "\n".join(paragraph)
    hidden = _hidden(text)
    starts = [start for start, _ in hidden]
    offset = 0
    for number, line in enumerate(paragraph, start=end - len(paragraph)):
        if _is_command(line):
            at = offset + line.index("/")
            before = bisect_right(starts, at) - 1
            if before < 0 or hidden[before][1] <= at:
                yield number, _visible(text, at, offset + len(line), hidden)
        offset += len(line) + 1


def _is_command(line: str) -> bool:
    text = line.lstrip(" ")
    if len(line) - len(text) > 3 or not text[: len(PREFIX)].isascii() or text[: len(PREFIX)].lower() != PREFIX:
        return False
    return text[len(PREFIX) : len(PREFIX) + 1] in ("", " ", "\t")


def _hidden(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of inline code and comments in a paragraph, in order and without overlaps."""
    marks = list(_INLINE_MARK.finditer(text))
    later: dict[str, list[int]] = {}
    for index in range(len(marks) - 1, -1, -1):
        later.setdefault(marks[index][0], []).append(index)
    spans: list[tuple[int, int]] = []
    index = 0
    while index < len(marks):
        mark = marks[index]
        if mark[0] == "-->" or (mark[0][0] == "`" and _escaped(text, mark.start())):
            index += 1
            continue
        closers = later.get("-->" if mark[0] == "<!--" else mark[0], [])
        while closers and closers[-1] <= index:
            closers.pop()
        if not closers:
            index += 1
            continue
        spans.append((mark.start(), marks[closers[-1]].end()))
        index = closers[-1] + 1
    return spans


def _escaped(text: str, at: int) -> bool:
    backslashes = 0
    while at - backslashes > 0 and text[at - backslashes - 1] == "\\":
        backslashes += 1
    return backslashes % 2 == 1


def _visible(text: str, start: int, end: int, hidden: list[tuple[int, int]]) -> str:
    """Return the line without the comments in it; inline code among the arguments stays as typed."""
    parts = []
    at = start
    for first, last in hidden[bisect_right(hidden, (start, start)) :]:
        if first >= end:
            break
        if text.startswith("<!--", first):
            parts.append(text[at:first])
            at = min(last, end)
    parts.append(text[at:end])
    return "".join(parts)


def _shown_lines(lines: Sequence[str], quotes: list[str] | None = None) -> Iterator[str]:
    """Yield the lines of free text without quotes, which are other people's words, and without HTML comments, which readers
    don't see. Code stays as it is. The lines of quotes are appended to `quotes`.
    """
    paragraph: list[str] = []
    fence: _Fence | None = None
    is_comment = False
    for line in lines:
        text = line.lstrip(" \t")
        if is_comment:
            is_comment, line = "-->" not in line, line.partition("-->")[2].strip(" \t")
            paragraph += [line] if line else []
        elif fence is not None:
            fence = None if _closes(fence, text, 0) else fence
            yield line
        elif (opened := _FENCE.match(text)) or not text or text.startswith((">", "<!--")):
            yield from _without_comments(paragraph)
            paragraph = []
            if opened:
                run = opened[1] or opened[2]
                fence = _Fence(run[0], len(run), False)
                yield line
            elif text.startswith("<!--"):
                is_comment, line = "-->" not in text[4:], text[4:].partition("-->")[2].strip(" \t")
                paragraph += [line] if line else []
            elif not text:
                yield ""
            elif quotes is not None:
                quotes.append(line)
        else:
            paragraph.append(line)
    yield from _without_comments(paragraph)


def _without_comments(paragraph: list[str]) -> list[str]:
    text = "\n".join(paragraph)
    return [_visible(text, 0, len(text), _hidden(text))] if "<!--" in text else paragraph


# --- one line ---------------------------------------------------------------------------------------------------------

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# Typographic quotes, as phones insert them, count as quotes.
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}


class _Unreadable(ValueError):
    """Why a line can't be read."""


def _command(line: str) -> Command:
    rest = line[len(PREFIX) :].strip(" \t")
    if not rest:
        return Command(word="help")
    word = _word(line)
    try:
        if len(line) > LONGEST_LINE:
            raise _Unreadable(f"the line is longer than {LONGEST_LINE} characters")
        _reject_invisible(rest)
        return Command(word=word.lower(), arguments=_arguments(word.lower(), rest[len(word) :]))
    except _Unreadable as error:
        return Command(word=_shown_word(word), problem=str(error))


def _word(line: str) -> str:
    return re.split(r"[ \t]", line[len(PREFIX) :].strip(" \t"), maxsplit=1)[0] or "help"


def _shown_word(word: str) -> str:
    return "".join(sign for sign in word[:64].lower() if sign.isprintable())


def _reject_invisible(text: str) -> None:
    for sign in text:
        if sign != "\t" and unicodedata.category(sign) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):
            raise _Unreadable(f"it contains the invisible character U+{ord(sign):04X}; type the line again")


def _arguments(word: str, rest: str) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for token, key_end in _tokens(rest):
        if key_end is not None and _KEY.fullmatch(token[:key_end]):
            key, value = token[:key_end], token[key_end + 1 :]
        elif key_end is None and word in POSITIONAL and not arguments:
            key, value = POSITIONAL[word], token
        elif key_end is None:
            raise _Unreadable(f"“{_short(token)}” is not an argument: write key=value, with quotes around spaces")
        else:
            raise _Unreadable(f"“{_short(token[:key_end])}” is not a valid argument name: use letters, digits, - and _")
        if key in arguments:
            raise _Unreadable(f"the argument {_short(key)} is given twice")
        arguments[key] = value
    return arguments


def _tokens(text: str) -> Iterator[tuple[str, int | None]]:
    """Yield (token without its quotes, index of its first unquoted `=`). A backslash escapes a quote, itself or a blank."""
    signs: list[str] = []
    started = False
    equals: int | None = None
    closing: str | None = None
    opening = ""
    at = 0
    while at < len(text):
        sign = text[at]
        plain = ("\\", closing) if closing is not None else ("\\", " ", "\t", *_QUOTES)
        if sign == "\\" and at + 1 < len(text) and text[at + 1] in plain:
            signs.append(text[at + 1])
            started = True
            at += 2
            continue
        if closing is not None:
            if sign == closing:
                closing = None
            else:
                signs.append(sign)
        elif sign in _QUOTES:
            closing, opening, started = _QUOTES[sign], text[at : at + 20], True
        elif sign in " \t":
            if started:
                yield "".join(signs), equals
            signs, started, equals = [], False, None
        else:
            if sign == "=" and equals is None:
                equals = len(signs)
            signs.append(sign)
            started = True
        at += 1
    if closing is not None:
        raise _Unreadable(f"the quote that starts with {_short(opening)} is not closed")
    if started:
        yield "".join(signs), equals


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
