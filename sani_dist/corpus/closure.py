"""Overlapping findings become one, and a value found once becomes sensitive wherever it stands."""

from __future__ import annotations

from collections.abc import Iterable

from sani_dist.corpus.fold import value_key
from sani_dist.corpus.span import PROTECTION, Document, Span
from sani_dist.corpus.terms import TermMatcher

# Two letters or digits: a value with fewer (an initial, a dash) would take half of the corpus with it.
_MIN_CHARACTERS = 2


def merge(spans: Iterable[Span]) -> list[Span]:
    """Join overlapping spans into one over all of them, in the order of the text.

    It takes kind, class and detector of the span whose class protects most; then the one a detector found (not
    closure), the longest, and the first win.
    """
    merged: list[Span] = []
    winner: Span | None = None
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.kind, span.sensitivity, span.detector)):
        if winner is not None and span.start < merged[-1].end:
            winner = max(winner, span, key=_strength)
            start, end = merged[-1].start, max(merged[-1].end, span.end)
            merged[-1] = Span(start, end, winner.kind, winner.sensitivity, winner.detector)
        else:
            winner = span
            merged.append(span)
    return merged


class Blacklist:
    """Values that were found somewhere. Memory grows with the number of different values, not with the text."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, str]] = {}
        self._matcher: TermMatcher[tuple[str, str]] | None = None

    def add(self, document: Document, spans: Iterable[Span]) -> None:
        """Remember the values of the spans of a document; of equal values the class that protects most is kept."""
        for span in spans:
            key = value_key(document.text[span.start : span.end])
            if sum(map(str.isalnum, key)) < _MIN_CHARACTERS:
                continue
            known = self._values.get(key)
            if known is None or PROTECTION[span.sensitivity] > PROTECTION[known[1]]:
                self._values[key] = (span.kind, span.sensitivity)
        self._matcher = None

    def occurrences(self, document: Document) -> list[Span]:
        """Return every occurrence of every value at word boundaries of the document."""
        if self._matcher is None:
            self._matcher = TermMatcher(self._values.items())
        return [
            Span(start, end, kind, sensitivity, "closure")
            for start, end, (kind, sensitivity) in self._matcher.find(document.folded)
        ]


def _strength(span: Span) -> tuple[int, bool, int]:
    return PROTECTION[span.sensitivity], span.detector != "closure", span.end - span.start
