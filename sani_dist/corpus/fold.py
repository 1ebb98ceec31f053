"""Text as terms are compared: NFKC, case-folded, white space collapsed, with the way back to the original offsets."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_NEEDS_COLLAPSING = re.compile(r"\s\s|[^\S ]")
_NO_PLAIN_SPACE = re.compile(r"[^\S ]")
_SPACES = re.compile(r" {2,}")
# Scripts written without spaces between words: there a term may stand anywhere.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)

# Of each code point that a text has had so far, whether it belongs to words (`word_boundaries`).
_UNKNOWN, _NO_WORD, _OF_A_WORD = 0, 1, 2
_KINDS = np.full(sys.maxunicode + 1, _UNKNOWN, np.uint8)


@dataclass(frozen=True)
class Folded:
    """Folded text; its character i came from code points [starts[i], ends[i]) of the original."""

    text: str
    starts: Sequence[int] | np.ndarray
    ends: Sequence[int] | np.ndarray

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Map the non-empty folded range [start, end) to the original range that it came from."""
        return int(self.starts[start]), int(self.ends[end - 1])


def fold(text: str) -> Folded:
    """Fold `text` so that spellings that differ in case, compatibility form or white space become equal."""
    folded = _fold_ascii(text) if text.isascii() else _fold_unicode(text)
    return _collapse(folded) if _NEEDS_COLLAPSING.search(folded.text) else folded


def value_key(value: str) -> str:
    """Return the folded form by which two occurrences of one value are recognised; may be empty."""
    plain = value.isascii() and not _NEEDS_COLLAPSING.search(value)
    return (value.lower() if plain else fold(value).text).strip()


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
    """Make each run of white space one space, which came from all of the run."""
    text = _NO_PLAIN_SPACE.sub(" ", folded.text)
    runs = [run.span() for run in _SPACES.finditer(text)]
    if not runs:
        return Folded(text, folded.starts, folded.ends)
    starts, ends = _array(folded.starts), _array(folded.ends)
    kept = np.ones(len(text), bool)
    for first, last in runs:
        kept[first + 1 : last] = False
        ends[first] = ends[last - 1]
    return Folded(_SPACES.sub(" ", text), starts[kept], ends[kept])


def _array(places: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.arange(places.start, places.stop) if isinstance(places, range) else np.array(places)


@lru_cache(maxsize=65536)
def _fold_cluster(cluster: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())


@lru_cache(maxsize=65536)
def _joins_previous(character: str) -> bool:
    first = unicodedata.normalize("NFKD", character)[0]
    # Marks of every kind, and the vowels and final consonants of Hangul, which are letters but compose all the same.
    return unicodedata.category(first)[0] == "M" or "\u1161" <= first <= "\u1175" or "\u11a8" <= first <= "\u11c2"


def word_boundaries(codes: np.ndarray) -> np.ndarray:
    """Whether each place in a folded text cuts no word in two: bool [characters + 1]. `codes`: its code points."""
    kinds = _KINDS[codes]
    if not kinds.all():
        for code in np.unique(codes[kinds == _UNKNOWN]).tolist():
            _KINDS[code] = _OF_A_WORD if _in_word(chr(code)) else _NO_WORD
        kinds = _KINDS[codes]
    of_a_word = kinds == _OF_A_WORD
    boundaries = np.ones(len(codes) + 1, bool)
    boundaries[1:-1] = ~(of_a_word[:-1] & of_a_word[1:])
    return boundaries


@lru_cache(maxsize=65536)
def _one_word(left: str, right: str) -> bool:
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    # An underscore separates: john_smith contains smith.
    return (character.isalnum() or unicodedata.category(character)[0] == "M") and not _UNSPACED.match(character)
