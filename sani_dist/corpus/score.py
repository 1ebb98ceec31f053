"""How well the detectors found what people labelled."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

from sani_dist.corpus.closure import merge
from sani_dist.corpus.span import Document, Span

_ALL = "all"


class DetectorScore:
    """Counts over labelled documents, by characters that are not white space.

    A labelled span is found if every such character is inside some found span, whatever its kind. Precision is the
    share of such characters of the found spans that are inside a labelled one.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._labelled: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, document: Document, labelled: Sequence[Span], found: Sequence[Span]) -> None:
        """Count one labelled document."""
        self.documents += 1
        text, found_parts, labelled_parts = document.text, merge(found), merge(labelled)
        for span in labelled:
            complete = _characters(text, span.start, span.end) == _common(text, span, found_parts)
            for kind in (span.kind, _ALL):
                self._labelled[kind] += 1
                self._found[kind] += complete
        for span in found:
            characters, right = _characters(text, span.start, span.end), _common(text, span, labelled_parts)
            for kind in (span.kind, _ALL):
                self._characters[kind] += characters
                self._right[kind] += right

    def update(self, other: DetectorScore) -> None:
        """Add the counts of other documents."""
        self.documents += other.documents
        self._labelled.update(other._labelled)
        self._found.update(other._found)
        self._characters.update(other._characters)
        self._right.update(other._right)

    def summary(self) -> dict[str, Any]:
        """Return recall by labelled kind and precision by found kind, with counts; `all` is over all kinds."""
        return {
            "documents": self.documents,
            "recall": {
                kind: {"labelled": n, "found": self._found[kind], "recall": self._found[kind] / n}
                for kind, n in sorted(self._labelled.items())
            },
            "precision": {
                kind: {"characters": n, "precision": self._right[kind] / n if n else None}
                for kind, n in sorted(self._characters.items())
            },
        }


def _common(text: str, span: Span, parts: Sequence[Span]) -> int:
    """The characters of a span that are inside one of `parts`, which are disjoint and in order."""
    first = bisect_right(parts, span.start, key=lambda part: part.end)
    return sum(
        _characters(text, max(span.start, part.start), min(span.end, part.end))
        for part in takewhile(lambda part: part.start < span.end, islice(parts, first, None))
    )


def _characters(text: str, start: int, end: int) -> int:
    """How many characters of [start, end) are not white space."""
    return len("".join(text[start:end].split()))
