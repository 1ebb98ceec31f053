"""Detector `annotations`: spans that are already in the data, checked against the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sani_dist.corpus.span import PROTECTION, Document, Span, trimmed
from sani_dist.errors import InputError


def labelled_spans(documents: Sequence[Document]) -> list[list[Span]]:
    """Return the labelled spans of each document."""
    return [list(document.labelled or ()) for document in documents]


def parse_spans(raw: Any, text: str, where: str) -> tuple[Span, ...]:
    """Check the spans [{start, end, kind, class}] of one record, given as a list or as its JSON.

    Returns them in the order of the text, without white space at their ends. Raises `InputError` that names the record
    by `where` and says what is wrong, never what the text says.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError:
            raise InputError(f"{where}: the spans are not valid JSON") from None
    if not isinstance(raw, list):
        raise InputError(f"{where}: the spans must be a list of {{start, end, kind, class}}")
    return tuple(
        sorted(
            (_checked(span, text, f"{where}, span {i}") for i, span in enumerate(raw, 1)),
            key=lambda span: (span.start, span.end, span.kind),
        )
    )


def _checked(span: Any, text: str, where: str) -> Span:
    if not isinstance(span, dict):
        raise InputError(f"{where}: must be an object with start, end, kind and, optionally, class")
    start: Any = span.get("start")
    end: Any = span.get("end")
    kind = span.get("kind")
    sensitivity = span.get("class") or "direct"
    if not (_is_offset(start) and _is_offset(end)):
        raise InputError(f"{where}: needs whole numbers `start` and `end`, in characters")
    if not 0 <= start < end:
        raise InputError(f"{where}: [{start}, {end}) is empty or negative; expected 0 <= start < end")
    if end > len(text):
        raise InputError(f"{where}: [{start}, {end}) reaches beyond the text, which has {len(text)} characters")
    if not isinstance(kind, str) or not kind.strip():
        raise InputError(f"{where}: needs `kind`, for example PERSON")
    if not isinstance(sensitivity, str) or sensitivity not in PROTECTION:
        raise InputError(f"{where}: `class` must be direct, indirect or confidential")
    start, end = trimmed(text, start, end)
    if start == end:
        raise InputError(f"{where}: covers only white space")
    return Span(start, end, kind.strip(), sensitivity, "annotations")


def _is_offset(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
