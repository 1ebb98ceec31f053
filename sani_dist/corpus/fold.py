"""Text as terms are compared: NFKC, case-folded, white space collapsed, with the way back to the original offsets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_NEEDS_COLLAPSING = re.compile(r"\s\s|[^\S ]")
_WHITE_SPACE = re.compile(r"\s+")
# Scripts written without spaces between words: there a term may stand anywhere.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Folded:
    """Folded text; its character i came from code points [starts[i], ends[i]) of the original."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Map the non-empty folded range [start, end) to the original range that it came from."""
        return self.starts[start], self.ends[end - 1]


def fold(text: str) -> Folded:
    """Fold `text` so that spellings that differ in case, compatibility form or white space become equal."""
    folded = _fold_ascii(text) if text.isascii() else _fold_unicode(text)
    return _collapse(folded) if _NEEDS_COLLAPSING.search(folded.text) else folded


def value_key(value: str) -> str:
    """Return the folded form by which two occurrences of one value are recognised; may be empty."""
    return fold(value).text.strip()


def on_word_boundaries(text: str, start: int, end: int) -> bool:
    """Whether [start, end) of a folded text cuts no word in two."""
    return not (start > 0 and _one_word(text[start - 1], text[start])) and not (
        end < len(text) and _one_word(text[end - 1], text[end])
    )


def _fold_ascii(text: str) -> Folded:
    return Folded(text.lower(), range(len(text)), range(1, len(text) + 1))


def _fold_unicode(text: str) -> Folded:
    # NFKC joins a character with the marks that follow it, so the unit of the offset map is such a cluster.
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    start, size = 0, len(text)
    while start < size:
        end = start + 1
        while end < size and text[end] > "\x7f" and _joins_previous(text[end]):
            end += 1
        piece = _fold_cluster(text[start:end])
        pieces.append(piece)
        starts.extend([start] * len(piece))
        ends.extend([end] * len(piece))
        start = end
    return Folded("".join(pieces), starts, ends)


def _collapse(folded: Folded) -> Folded:
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for run in _WHITE_SPACE.finditer(folded.text):
        first, last = run.span()
        pieces += (folded.text[done:first], " ")
        starts += folded.starts[done:first]
        ends += folded.ends[done:first]
        starts.append(folded.starts[first])
        ends.append(folded.ends[last - 1])
        done = last
    pieces.append(folded.text[done:])
    starts += folded.starts[done:]
    ends += folded.ends[done:]
    return Folded("".join(pieces), starts, ends)


@lru_cache(maxsize=65536)
def _fold_cluster(cluster: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())


@lru_cache(maxsize=65536)
def _joins_previous(character: str) -> bool:
    first = unicodedata.normalize("NFKD", character)[0]
    # Marks of every kind, and the vowels and final consonants of Hangul, which are letters but compose all the same.
    return unicodedata.category(first)[0] == "M" or "\u1161" <= first <= "\u1175" or "\u11a8" <= first <= "\u11c2"


@lru_cache(maxsize=65536)
def _one_word(left: str, right: str) -> bool:
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    # An underscore separates: john_smith contains smith.
    return (character.isalnum() or unicodedata.category(character)[0] == "M") and not _UNSPACED.match(character)
