"""The two things that all of `corpus` is about: a document, and a sensitive span of it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from sani_dist.corpus.fold import Folded, value_key, views

Split = Literal["repair", "heldout", "control", "general_train", "general_test"]
SPLITS: tuple[Split, ...] = ("repair", "heldout", "control", "general_train", "general_test")

# How much a class protects: where findings overlap, the class with the highest number wins.
PROTECTION = {"indirect": 0, "confidential": 1, "direct": 2}


class Span(NamedTuple):
    """A sensitive part of a text: code points [start, end), what it is, and who found it."""

    start: int
    end: int
    kind: str
    sensitivity: str
    detector: str


@dataclass(frozen=True)
class Document:
    """A text with its id, its record subject, its split, and its labelled spans (None: nobody labelled it)."""

    id: int
    subject: str | None
    text: str
    split: Split
    labelled: tuple[Span, ...] | None = None

    @cached_property
    def folded(self) -> Folded:
        """The text as values are compared; computed once, since several detectors need it."""
        return self.views[0]

    @cached_property
    def views(self) -> tuple[Folded, ...]:
        """All the ways in which the text is searched for values; the first is `folded`."""
        return views(self.text)


# One list of spans for each document, in the order of the documents.
Detector = Callable[[Sequence[Document]], list[list[Span]]]


def value_id(key: bytes, kind: str, value: str) -> str:
    """Name a value in tables and reports without showing it: 16 hex digits of an HMAC-SHA256 under the run's key."""
    return hmac.digest(key, (kind + value_key(value)).encode(), "sha256").hex()[:16]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return [start, end) without white space at its ends, which would drag in the neighbouring token; may be empty."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
