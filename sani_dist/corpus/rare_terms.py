"""Detector `rare_terms`: a term linked to fewer than k record subjects points to them (arXiv 2501.02407).

The bipartite graph of terms and subjects is built in one pass (`add`) and asked in a second (`detect`). Only whether a
term has reached k subjects matters, so at most k - 1 subjects are kept for each: memory grows with the vocabulary, not
with the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sani_dist.config import RareTermsDetector
from sani_dist.corpus.fold import Folded
from sani_dist.corpus.span import Document, Span

# Letters and digits, joined by an inner apostrophe or hyphen: o'brien, x-linked.
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
KIND = "RARE_TERM"


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
        subject = hash(document.subject)
        for term in {term for term, _, _ in self._terms(document.folded)}:
            known = self._subjects.get(term, ())
            if known is None or subject in known:
                continue
            self._subjects[term] = (*known, subject) if len(known) + 1 < self._k else None

    def detect(self, documents: Sequence[Document]) -> list[list[Span]]:
        """Return every occurrence of a rare term in each document."""
        return [
            [
                Span(*document.folded.origin(start, end), KIND, "indirect", "rare_terms")
                for term, start, end in self._terms(document.folded)
                if self._subjects.get(term, ()) is not None
            ]
            for document in documents
        ]

    def __getstate__(self) -> dict[str, Any]:
        """What `detect` needs in another process: of the graph, which terms are common."""
        return {
            **self.__dict__,
            "_subjects": dict.fromkeys(t for t, linked in self._subjects.items() if linked is None),
        }

    def _terms(self, folded: Folded) -> list[tuple[str, int, int]]:
        matches = _WORD.finditer(folded.text)
        return [(m.group(), m.start(), m.end()) for m in matches if m.end() - m.start() >= self._min_length]
