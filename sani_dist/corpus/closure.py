"""Overlapping findings become one, and a value found once becomes sensitive wherever it stands.

Millions of values have to fit: an automaton of them takes about 500 bytes for each. Here it is about 25, since a value is kept as a hash. A
value stands between two word boundaries, so of a text only parts between two of those are looked up, and of these only such as begin with
the first word of a value and are as long as a value with that first word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sani_dist.corpus.fold import value_key
from sani_dist.corpus.hashes import HashedText
from sani_dist.corpus.span import PROTECTION, Document, Span

# Two letters or digits: a value with fewer (an initial, a dash) would take half of the corpus with it.
_MIN_CHARACTERS = 2
# New values wait until they are so many, or half as many as are known: sorting them in costs as much as all there are.
_LEAST_TO_SORT = 2**17
# Places of a text whose candidates are held together. A word may begin values of hundreds of lengths.
_PLACES_AT_ONCE = 2**13


def merge(spans: Iterable[Span]) -> list[Span]:
    """Join overlapping spans into one over all of them, in the order of the text.

    It takes kind, class and detector of the span whose class protects most; then the one a detector found (not
    closure), the longest, and the first win.
    """
    merged: list[Span] = []
    winner: Span | None = None
    for span in sorted(spans):
        if winner is not None and span.start < merged[-1].end:
            winner = max(winner, span, key=_strength)
            start, end = merged[-1].start, max(merged[-1].end, span.end)
            merged[-1] = Span(start, end, winner.kind, winner.sensitivity, winner.detector)
        else:
            winner = span
            merged.append(span)
    return merged


@dataclass(frozen=True)
class Values:
    """What a blacklist keeps of values, in the order in which they were found; arrays [values]."""

    hashes: np.ndarray  # uint64, of the folded value
    firsts: np.ndarray  # uint64, of its first word
    lengths: np.ndarray  # uint32, its characters
    labels: list[tuple[str, str]]  # kind and class


def values_of(found: Iterable[tuple[Document, Span]]) -> Values:
    """The values of spans; what has less than two letters or digits is left out."""
    keys, labels = [], []
    for document, span in found:
        key = value_key(document.text[span.start : span.end])
        if sum(map(str.isalnum, key)) >= _MIN_CHARACTERS:
            keys.append(key)
            labels.append((span.kind, span.sensitivity))
    text = HashedText("".join(keys))
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first_ends = text.boundaries[np.searchsorted(text.boundaries, starts, side="right")]
    firsts = text.of(starts, np.minimum(first_ends, ends))
    return Values(text.of(starts, ends), firsts, lengths.astype(np.uint32), labels)


class Blacklist:
    """Values that were found somewhere. Memory grows with the number of different values, not with the text."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}  # of kind and class
        # Sorted by hash; and (first word, length) of all values, sorted.
        self._hashes, self._labels = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._firsts, self._lengths = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._new: list[tuple[np.ndarray, ...]] = []

    def add(self, values: Values) -> None:
        """Remember values; of equal ones the class that protects most is kept, then the first."""
        numbers = [self._numbers.setdefault(label, len(self._numbers)) for label in values.labels]
        self._new.append((values.hashes, np.array(numbers, np.uint32), values.firsts, values.lengths))
        if sum(len(columns[0]) for columns in self._new) > max(_LEAST_TO_SORT, len(self._hashes) // 2):
            self._sort_in()

    def occurrences(self, document: Document) -> list[Span]:
        """Return every occurrence of every value at word boundaries of the document."""
        self._sort_in()
        folded, labels, spans = document.folded, list(self._numbers), []
        text = HashedText(folded.text)
        for place in range(0, len(text.boundaries) - 1, _PLACES_AT_ONCE):
            starts, ends = self._candidates(text, place)
            hashes = text.of(starts, ends)
            at = np.searchsorted(self._hashes, hashes)
            at[at == len(self._hashes)] = 0
            for i in np.flatnonzero(self._hashes[at] == hashes):
                start, end = folded.origin(int(starts[i]), int(ends[i]))
                kind, sensitivity = labels[self._labels[at[i]]]
                spans.append(Span(start, end, kind, sensitivity, "closure"))
        return spans

    def _candidates(self, text: HashedText, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Parts [starts, ends) between word boundaries that share their first word and length with a value; from some places on alone."""
        starts, unit_ends = (text.boundaries[i : i + _PLACES_AT_ONCE] for i in (place, place + 1))
        starts = starts[: len(unit_ends)]  # nothing starts where the text ends
        firsts = text.of(starts, unit_ends)
        low = np.searchsorted(self._firsts, firsts, side="left")
        counts = np.searchsorted(self._firsts, firsts, side="right") - low
        starts, low, counts = (column[counts > 0] for column in (starts, low, counts))
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(starts, counts)
        ends = starts + self._lengths[np.repeat(low, counts) + within]
        whole = ends < len(text.is_boundary)
        whole[whole] = text.is_boundary[ends[whole]]
        return starts[whole], ends[whole]

    def _sort_in(self) -> None:
        if not self._new:
            return
        hashes, labels, firsts, lengths = (np.concatenate(columns) for columns in zip(*self._new, strict=True))
        self._new = []
        hashes, labels = np.concatenate([self._hashes, hashes]), np.concatenate([self._labels, labels])
        protection = np.array([PROTECTION[sensitivity] for _, sensitivity in self._numbers])
        order = np.lexsort((-protection[labels], hashes))  # stable: of equals the earliest first
        order = order[_changes(hashes[order])]
        self._hashes, self._labels = hashes[order], labels[order]
        firsts, lengths = np.concatenate([self._firsts, firsts]), np.concatenate([self._lengths, lengths])
        order = np.lexsort((lengths, firsts))
        order = order[_changes(firsts[order]) | _changes(lengths[order])]
        self._firsts, self._lengths = firsts[order], lengths[order]

    def __getstate__(self) -> dict[str, Any]:
        self._sort_in()
        return self.__dict__


def _strength(span: Span) -> tuple[int, bool, int]:
    return PROTECTION[span.sensitivity], span.detector != "closure", span.end - span.start


def _changes(ordered: np.ndarray) -> np.ndarray:
    """Which elements differ from the one before: bool, True for the first."""
    changes = np.ones(len(ordered), bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    return changes
