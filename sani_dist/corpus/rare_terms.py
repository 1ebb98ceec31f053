"""Detector `rare_terms`: a term linked to fewer than k record subjects points to them (arXiv 2501.02407).

The bipartite graph of terms and subjects is built in one pass (`add`) and asked in a second (`detect`). Only whether a
term has reached k subjects matters, so at most k - 1 subjects are kept for each: memory grows with the vocabulary, not
with the text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from sani_dist.config import RareTermsDetector
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.words import words

KIND = "RARE_TERM"
# One character between two common words is no name.
_LEAST_UNSPACED = 2


class RareTerms:
    """The graph of terms and subjects; a term it never saw is linked to no subject, and so is rare as well."""

    def __init__(self, settings: RareTermsDetector) -> None:
        self._k = settings.subjects
        self._min_length = settings.min_length
        # Subjects of a term while they are fewer than k; None once it has k and is common for good.
        self._subjects: dict[str, tuple[int, ...] | None] = {}

    def add(self, document: Document) -> None:
        """Link the terms of a document to its subject. One without a subject proves no term common."""
        if document.subject is None:
            return
        subject = hash(value_key(document.subject) or document.subject)  # p-17 and "P 17 " are one person
        self._link(subject, {term for term, _, _ in self._terms(document.text)})

    def add_general(self, document: Document) -> None:
        """Link the words that a general text has in lower case to a subject of its own: in a small corpus most words are rare."""
        text = document.text
        terms = {term for term, start, end in self._terms(text) if text[start:end].islower()}
        self._link(hash(("general", document.id)), terms)

    def _link(self, subject: int, terms: set[str]) -> None:
        for term in terms:
            known = self._subjects.get(term, ())
            if known is None or subject in known:
                continue
            self._subjects[term] = (*known, subject) if len(known) + 1 < self._k else None

    def detect(self, documents: Sequence[Document]) -> list[list[Span]]:
        """Return every occurrence of a rare term in each document."""
        return [
            [Span(start, end, KIND, "indirect", "rare_terms") for start, end in self._rare(document.text)]
            for document in documents
        ]

    def __getstate__(self) -> dict[str, Any]:
        """What `detect` needs in another process: of the graph, which terms are common."""
        return {
            **self.__dict__,
            "_subjects": dict.fromkeys(t for t, linked in self._subjects.items() if linked is None),
        }

    def _terms(self, text: str) -> Iterator[tuple[str, int, int]]:
        """(term, start, end): words that are long enough, and the pairs of characters where nobody marks words."""
        for start, end, unspaced in words(text):
            if unspaced:
                yield from ((text[i : i + 2], i, i + 2) for i in range(start, end - 1))
            else:
                term = _term(text[start:end])
                if self._is_long(term):
                    yield term, start, end

    def _is_long(self, term: str) -> bool:
        """Whether it has so many letters: a syllable of Hangul is two or three."""
        return len(term if term.isascii() else unicodedata.normalize("NFD", term)) >= self._min_length

    def _rare(self, text: str) -> Iterator[tuple[int, int]]:
        for start, end, unspaced in words(text):
            if not unspaced:
                term = _term(text[start:end])
                if self._is_long(term) and self._subjects.get(term, ()) is not None:
                    yield start, end
                continue
            common = [self._subjects.get(text[i : i + 2], ()) is None for i in range(start, end - 1)]
            rare = (i for i in range(start, end) if not any(common[max(0, i - 1 - start) : i + 1 - start]))
            for _, run in groupby(enumerate(rare), lambda pair: pair[1] - pair[0]):
                places = [place for _, place in run]
                if len(places) >= _LEAST_UNSPACED:
                    yield places[0], places[-1] + 1


def _term(word: str) -> str:
    return word.lower() if word.isascii() and word.isalnum() else value_key(word)
