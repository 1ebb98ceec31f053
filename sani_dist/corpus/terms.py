"""Detector `terms`: any number of terms at once, on word boundaries, however they are written (`fold.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import ahocorasick

from sani_dist.config import TermsDetector
from sani_dist.corpus.fold import Folded, gaps_of_key, text_of_key, value_key, value_keys
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
        payloads: dict[str, dict[str, T]] = {}
        for key, payload in terms:
            if key:
                payloads.setdefault(text_of_key(key), {})[gaps_of_key(key)] = payload
        self._automaton = ahocorasick.Automaton()
        for text, by_gaps in payloads.items():
            self._automaton.add_word(text, (len(text), by_gaps))
        self._automaton.make_automaton()

    def __len__(self) -> int:
        return len(self._automaton)

    def find(self, folded: Folded) -> Iterator[tuple[int, int, T]]:
        """Yield (start, end, payload) of each occurrence, in code points of the original text."""
        if not len(self):
            return
        for last, (length, by_gaps) in self._automaton.iter(folded.text):
            start, end = last + 1 - length, last + 1
            if folded.stands_alone(start, end) and (gaps := folded.gaps_of(start, end)) in by_gaps:
                yield *folded.origin(start, end), by_gaps[gaps]


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
    matcher = TermMatcher((key, None) for value in values for key in value_keys(value))

    def detect(documents: Sequence[Document]) -> list[list[Span]]:
        return [
            sorted({Span(start, end, kind, sensitivity, name) for v in d.views for start, end, _ in matcher.find(v)})
            for d in documents
        ]

    return detect


def _read_terms(path: Path) -> list[str]:
    lines = text_lines(path, f"corpus.detect terms: {shown(str(path))}")
    return [term for _, line in lines for term in line.rstrip("\n").split("\r")]
