"""How well the detectors found what people labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

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
        text = document.text
        inside_found, inside_labelled = _characters(text, found), _characters(text, labelled)
        for span in labelled:
            complete = _characters(text, [span]) <= inside_found
            for kind in (span.kind, _ALL):
                self._labelled[kind] += 1
                self._found[kind] += complete
        for span in found:
            characters = _characters(text, [span])
            for kind in (span.kind, _ALL):
                self._characters[kind] += len(characters)
                self._right[kind] += len(characters & inside_labelled)

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


def _characters(text: str, spans: Sequence[Span]) -> set[int]:
    return {i for span in spans for i in range(span.start, span.end) if not text[i].isspace()}
