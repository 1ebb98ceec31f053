"""Text as it was meant before a program or a typesetter wrote it: escapes undone, words joined that were broken at the end of a line."""

from __future__ import annotations

import contextlib
import html
import re
from urllib.parse import unquote

import numpy as np

_LETTER = r"[^\W\d_]"
_ESCAPE = re.compile(
    r"(?P<code>\\+(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}))"
    r"|(?P<space>\\+[nrtfv])"
    r"|(?P<same>\\+(?=[\"'/]))"
    r"|(?P<url>(?:%[0-9a-fA-F]{2})+)"
    r"|(?P<html>&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});)"
    r"|(?P<line><br\s*/?>)"
    rf"|(?P<plus>(?<={_LETTER})\+(?={_LETTER}))"
    rf"|(?P<broken>(?<={_LETTER})[-\u2010\u00ad][ \t]*(?:\r\n?|\n)[ \t]*(?={_LETTER}))"
)
# What there is in every escape: most texts have none of it, and this is found 10 times faster.
_HINT = re.compile(r"[\\%&+<]|[-\u2010\u00ad][ \t]*[\r\n]")
# Escapes of escapes: %2520, &amp;nbsp;
_ROUNDS = 3


def unescaped(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The text with escapes undone, and the code points [starts, ends) of the original that each character came from."""
    if _HINT.search(text) is None:
        return text, np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.arange(len(text))
    ends = starts + 1
    for _ in range(_ROUNDS):
        pieces, firsts, lasts = list[str](), list[np.ndarray](), list[np.ndarray]()
        done = 0
        for match in _ESCAPE.finditer(text):
            pieces.append(text[done : match.start()])
            firsts.append(starts[done : match.start()])
            lasts.append(ends[done : match.start()])
            for meant, start, end in _parts(match):
                pieces.append(meant)
                firsts.append(np.full(len(meant), starts[start]))
                lasts.append(np.full(len(meant), ends[end - 1]))
            done = match.end()
        if not pieces:
            break
        text = "".join([*pieces, text[done:]])
        starts, ends = np.concatenate([*firsts, starts[done:]]), np.concatenate([*lasts, ends[done:]])
    return text, starts, ends


def _parts(match: re.Match[str]) -> list[tuple[str, int, int]]:
    """What an escape means, and from where to where it stands: the characters of %20%C3%A9 one by one."""
    if match["url"]:
        with contextlib.suppress(UnicodeDecodeError):
            parts, start = [], match.start()
            for character in unquote(match[0], errors="strict"):
                end = start + 3 * len(character.encode())
                parts.append((character, start, end))
                start = end
            return parts
    return [(_meant(match), *match.span())]


def _meant(match: re.Match[str]) -> str:
    written = match[0]
    if match["code"]:
        character = chr(int(written.lstrip("\\")[1:], 16))
        return " " if "\ud800" <= character <= "\udfff" else character  # half of a character beyond the first 65536
    if match["url"]:
        return unquote(written, errors="replace")
    if match["html"]:
        return html.unescape(written)
    return "" if match["same"] or match["broken"] else " "
