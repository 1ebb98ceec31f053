"""Detector `terms`: any number of terms at once, on word boundaries, whatever their case and white space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import ahocorasick

from sani_dist.config import TermsDetector
from sani_dist.corpus.fold import Folded, on_word_boundaries, value_key
from sani_dist.corpus.lines import text_lines
from sani_dist.corpus.sources import shown
from sani_dist.corpus.span import Document, Span
from sani_dist.errors import InputError

T = TypeVar("T")


class TermMatcher(Generic[T]):
    """Finds every occurrence of every term in one pass over a text (Aho-Corasick), also where they overlap.

    `terms` are pairs of a folded value (`value_key`) and whatever is to be returned with its occurrences; of equal
    values the last one counts, and empty ones are left out.
    """

    def __init__(self, terms: Iterable[tuple[str, T]]) -> None:
        self._automaton = ahocorasick.Automaton()
        for key, payload in terms:
            if key:
                self._automaton.add_word(key, (len(key), payload))
        self._automaton.make_automaton()

    def __len__(self) -> int:
        return len(self._automaton)

    def find(self, folded: Folded) -> Iterator[tuple[int, int, T]]:
        """Yield (start, end, payload) of each occurrence, in code points of the original text."""
        if not len(self):
            return
        text = folded.text
        for last, (length, payload) in self._automaton.iter(text):
            start = last + 1 - length
            if on_word_boundaries(text, start, last + 1):
                yield *folded.origin(start, last + 1), payload


def terms(settings: TermsDetector) -> Callable[[Sequence[Document]], list[list[Span]]]:
    """Return the detector of the terms of `settings.path` (one a line) and `settings.values`.

    Raises `InputError` for a file that is missing, not UTF-8, or without a term.
    """
    values = list(settings.values) + (_read_terms(settings.path) if settings.path else [])
    detect = term_detector(values, settings.kind, settings.sensitivity, "terms")
    if not any(value_key(value) for value in values):
        raise InputError("corpus.detect terms: there is no term; expected one a line in `path`, or `values`")
    return detect


def term_detector(
    values: Iterable[str], kind: str, sensitivity: str, name: str
) -> Callable[[Sequence[Document]], list[list[Span]]]:
    """Return a detector, called `name`, that gives every occurrence of `values` one kind and class."""
    matcher = TermMatcher((value_key(value), None) for value in values)

    def detect(documents: Sequence[Document]) -> list[list[Span]]:
        return [
            [Span(start, end, kind, sensitivity, name) for start, end, _ in matcher.find(document.folded)]
            for document in documents
        ]

    return detect


def _read_terms(path: Path) -> list[str]:
    lines = text_lines(path, f"corpus.detect terms: {shown(str(path))}")
    return [term for _, line in lines for term in line.rstrip("\n").split("\r")]
