"""Removes from text what people don't see where they wrote or read it: hidden text is how instructions for agents are smuggled.

Pure, and fast for hostile text. What remains can still be hostile: it is data, never instructions.
"""

from __future__ import annotations

import re
import unicodedata

from gibil_bot.github import markdown

_BLANK = " "
_MOST_PASSES = 8
"""Removing one thing can reveal another. Text with deeper nesting loses the characters that could hide something."""
# CommonMark 0.31: comments, processing instructions, declarations and CDATA aren't shown. One without an end reaches to the end
# of the text. https://spec.commonmark.org/0.31.2/#html-blocks
_UNSHOWN = re.compile(
    r"<!--(?:-?>|.*?(?:-->|--!>|\Z))|<\?.*?(?:\?>|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<![A-Za-z].*?(?:>|\Z)", re.DOTALL
)
# GitHub shows what is between tags, and neither tags nor attributes (`alt`, `title`, `hidden` …).
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]{0,30}+)(\s(?:[^<>\"']++|\"[^\"]{0,2000}+\"|'[^']{0,2000}+'){0,100}+)?/?>")
_ELEMENTS = frozenset((
    "a", "abbr", "address", "area", "article", "aside", "audio", "b", "base", "bdi", "bdo", "big", "blockquote", "body",
    "br", "button", "canvas", "caption", "center", "cite", "code", "col", "colgroup", "data", "dd", "del", "details", "dfn",
    "dialog", "div", "dl", "dt", "em", "embed", "fieldset", "figcaption", "figure", "font", "footer", "form", "frame",
    "frameset", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "i", "iframe", "img", "input", "ins",
    "kbd", "label", "legend", "li", "link", "main", "map", "mark", "marquee", "math", "menu", "meta", "meter", "nav",
    "noscript", "object", "ol", "optgroup", "option", "output", "p", "param", "picture", "pre", "progress", "q", "rp", "rt",
    "ruby", "s", "samp", "script", "section", "select", "slot", "small", "source", "span", "strike", "strong", "style",
    "sub", "summary", "sup", "svg", "table", "tbody", "td", "template", "textarea", "tfoot", "th", "thead", "time", "title",
    "tr", "track", "tt", "u", "ul", "var", "video", "wbr", "xmp",
))  # fmt: skip
_DESTINATION = (
    r"\(\s*+(?P<to{0}><[^<>\n]{{0,2000}}+>|[^\s()]*+(?:\([^\s()]*+\)[^\s()]*+){{0,10}}+)"
    r"(?:\s++(?:\"(?:[^\"\\]|\\.){{0,2000}}+\"|'(?:[^'\\]|\\.){{0,2000}}+'|\((?:[^()\\]|\\.){{0,2000}}+\)))?+\s*+\)"
)
_LABEL = r"\[(?:[^\[\]\\]|\\.|\[[^\[\]]{0,500}+\]){0,2000}+\]"
_IMAGE = re.compile(rf"!{_LABEL}(?:{_DESTINATION.format('')}|\[[^\[\]]{{0,500}}+\])?", re.DOTALL)
_TITLE = re.compile(rf"\]{_DESTINATION.format('')}", re.DOTALL)
# A definition of a link's address is never shown, and neither is its title, which may be on the next line.
_DEFINITION = re.compile(
    r"^[ \t>*+.)0-9-]{0,12}+\[(?!\^)(?:[^\[\]\\]|\\.){1,1000}+\]:[^\S\n]*+\n?[^\S\n]*+[^\s]{1,2000}+"
    r"(?:[^\S\n]*+\n?[^\S\n]*+(?:\"[^\"]{0,2000}+\"|'[^']{0,2000}+'|\([^()]{0,2000}+\)))?[^\S\n]*$",
    re.MULTILINE,
)
_CAN_HIDE = re.compile(r"[<>\[\]]")

# https://www.unicode.org/reports/tr44/#General_Category_Values: Cf are formats (bidirectional controls, tags, zero-width
# characters), Co is for private use, Cs are surrogates, Cn isn't assigned. These of Cf are visible marks before numbers.
_REMOVED = frozenset({"Cf", "Co", "Cs", "Cn"})
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Fillers, joiners and selectors. The 256 variation selectors can carry any bytes invisibly.
_BLANKS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def plain(text: str) -> str:
    """Return text without escape sequences, control, bidirectional and invisible characters. For output and code."""
    if not text.isascii():
        text = "".join(sign for sign in text if sign in _VISIBLE_FORMATS or unicodedata.category(sign) not in _REMOVED)
        text = _BLANKS.sub("", text)
    return markdown.clean(text)


def without_comments(text: str) -> str:
    """Return `plain` text without comments of HTML. For instructions, which may contain tags."""
    return _UNSHOWN.sub(_BLANK, plain(text))


def visible(text: str) -> str:
    """Return Markdown without what GitHub doesn't show: comments, tags, alternative texts of images, titles of links."""
    text = plain(text)
    for _ in range(_MOST_PASSES):
        shown = _without_hidden(text)
        if shown == text:
            return text
        text = shown
    return _CAN_HIDE.sub(_BLANK, text)


def _without_hidden(text: str) -> str:
    text = _UNSHOWN.sub(_BLANK, text)
    text = _TAG.sub(_shown_of_tag, text)
    text = _IMAGE.sub(_BLANK, text)
    text = _TITLE.sub(lambda match: f"]({match['to']})", text)
    return _DEFINITION.sub("", text)


def _shown_of_tag(match: re.Match[str]) -> str:
    """Drop a tag, but not what only looks like one, such as `List<String>`."""
    is_tag = match[2].lower() in _ELEMENTS or "=" in (match[3] or "")
    return _BLANK if is_tag else match[0]
