"""Overlapping findings become one, and a value found once becomes sensitive wherever it stands.

Millions of values have to fit: an automaton of them takes about 500 bytes for each. Here it is about 25, since a value is kept as a hash. A
value stands between two word boundaries, so of a text only parts between two of those are looked up, and of these only such as begin with
the first characters of a value and are as long as a value that does; short ones by their length alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sani_dist.corpus.fold import HARD, LEAST_AT_SOFT, LEAST_JOINED, SOFT, Folded, gaps_of_key, text_of_key, value_keys
from sani_dist.corpus.hashes import HashedText
from sani_dist.corpus.span import PROTECTION, Document, Span

# Two letters or digits: a value with fewer (an initial, a dash) would take half of the corpus with it.
_MIN_CHARACTERS = 2
# New values wait until they are so many, or half as many as are known: sorting them in costs as much as all there are.
_LEAST_TO_SORT = 2**17
# Places of a text whose candidates are held together. Six characters may begin values of hundreds of lengths.
_PLACES_AT_ONCE = 2**13
# Characters by which a value of as many is looked for: of shorter ones the separators count too, and they are looked for as a whole.
_FIRST = LEAST_JOINED
# What separators add to the hash of a short value.
_GAP = np.uint64(0x9E6C63D0876A3F6B)


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

    hashes: np.ndarray  # uint64, of the key
    firsts: np.ndarray  # uint64, of its first characters
    lengths: np.ndarray  # uint32, its characters
    labels: list[tuple[str, str]]  # kind and class


def values_of(found: Iterable[tuple[Document, Span]]) -> Values:
    """The values of spans; what has less than two letters or digits is left out."""
    texts, gaps, labels = [], [], []
    for document, span in found:
        for key in value_keys(document.text[span.start : span.end]):
            text = text_of_key(key)
            if sum(map(str.isalnum, text)) >= _MIN_CHARACTERS:
                texts.append(text)
                gaps.append(sum(1 << i for i, gap in enumerate(gaps_of_key(key)) if gap == "-"))
                labels.append((span.kind, span.sensitivity))
    hashed = HashedText("".join(texts))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    firsts = hashed.of(starts, np.minimum(starts + _FIRST, ends))
    return Values(hashed.of(starts, ends) + np.array(gaps, np.uint64) * _GAP, firsts, lengths.astype(np.uint32), labels)


class Blacklist:
    """Values that were found somewhere. Memory grows with the number of different values, not with the text."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}  # of kind and class
        # Sorted by hash; (first characters, length) of all values that have so many, sorted; and the lengths of the others.
        self._hashes, self._labels = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._firsts, self._lengths = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._short: set[int] = set()
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
        labels, spans = list(self._numbers), set()
        for view in document.views if len(self._hashes) else ():
            hashed, places = HashedText(view.text), np.flatnonzero(view.border[:-1])
            for first in range(0, len(places), _PLACES_AT_ONCE):
                for starts, ends, hashes in self._candidates(view, hashed, places[first : first + _PLACES_AT_ONCE]):
                    at = np.searchsorted(self._hashes, hashes)
                    at[at == len(self._hashes)] = 0
                    for i in np.flatnonzero(self._hashes[at] == hashes):
                        kind, sensitivity = labels[self._labels[at[i]]]
                        spans.add(Span(*view.origin(int(starts[i]), int(ends[i])), kind, sensitivity, "closure"))
        return sorted(spans)

    def _candidates(
        self, view: Folded, hashed: HashedText, places: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Parts [starts, ends) from some places on that may be values, and their hashes."""
        size = len(view.text)
        for length in self._short:
            starts = places[places + length <= size]
            least = HARD if length < LEAST_AT_SOFT else SOFT
            starts = starts[(view.border[starts] >= least) & (view.border[starts + length] >= least)]
            gaps = np.zeros(len(starts), np.uint64)
            for i in range(1, length):
                gaps |= view.gaps[starts + i].astype(np.uint64) << np.uint64(i)
            yield starts, starts + length, hashed.of(starts, starts + length) + gaps * _GAP
        starts = places[places + _FIRST <= size]
        firsts = hashed.of(starts, starts + _FIRST)
        low = np.searchsorted(self._firsts, firsts, side="left")
        counts = np.searchsorted(self._firsts, firsts, side="right") - low
        starts, low, counts = (column[counts > 0] for column in (starts, low, counts))
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(starts, counts)
        ends = starts + self._lengths[np.repeat(low, counts) + within]
        whole = ends <= size
        whole[whole] = view.border[ends[whole]] > 0
        yield starts[whole], ends[whole], hashed.of(starts[whole], ends[whole])

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
        long = lengths >= _FIRST
        self._short.update(lengths[~long].tolist())
        firsts = np.concatenate([self._firsts, firsts[long]])
        lengths = np.concatenate([self._lengths, lengths[long]])
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
