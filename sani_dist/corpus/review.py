"""The table of findings that a person corrects, and its way back: `corpus.spans: review.csv` are annotations."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.read import read_csv
from sani_dist.corpus.span import Span
from sani_dist.corpus.tables import SpanReader, read_documents
from sani_dist.errors import InputError

_COLUMNS = ("document", "start", "end", "kind", "class", "text", "context", "check")
_CONTEXT = 40


def review_table(run: Path) -> Path:
    """Write `run/corpus/review.csv`, one found span a line, and return its path.

    It shows the values, so only its owner can read it (0600). To correct: delete a line, change `start`, `end`, `kind`
    or `class`, add a line (`class`, `text`, `context` and `check` may stay empty). General text is left out.
    """
    path = run / "corpus" / "review.csv"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(_lines(run))
    return path


def is_review_table(spans: str | None) -> bool:
    """Whether `corpus.spans` names a corrected review table, not a column."""
    return spans is not None and spans.endswith(".csv")


class ReviewTable:
    """A corrected table. It is held whole: what a person can review fits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans: dict[int, list[tuple[int, dict[str, Any], str]]] = {}
        if not path.is_file():
            raise InputError(f"corpus.spans: {path} does not exist")
        for number, row in read_csv(path):
            missing = [column for column in ("document", "start", "end", "kind") if column not in row]
            if missing:
                raise InputError(f"{path} has no column `{missing[0]}`; it has {', '.join(row)}")
            try:
                document, start, end = (int(row[column]) for column in ("document", "start", "end"))
            except ValueError:
                raise InputError(f"{path}: record {number} needs whole numbers document, start and end") from None
            span = {"start": start, "end": end, "kind": row["kind"], "class": row.get("class")}
            self._spans.setdefault(document, []).append((number, span, row.get("check", "")))

    def spans(self, document: int, text: str) -> tuple[Span, ...]:
        """Return the spans of a document, checked against its text. All were reviewed: no line means no span."""
        found: list[Span] = []
        for number, span, check in self._spans.pop(document, []):
            where = f"{self._path}: record {number}"
            if check and check != _check(text):
                raise InputError(f"{where} was written for another text than document {document} has now; detect again")
            found += parse_spans([span], text, where)
        return tuple(sorted(found, key=lambda span: (span.start, span.end, span.kind)))

    def check_all_used(self) -> None:
        """Raise `InputError` if spans are left of documents that are not there."""
        for document, spans in self._spans.items():
            raise InputError(
                f"{self._path}: record {spans[0][0]} names document {document}, which the corpus does not have"
            )


def _lines(run: Path) -> Iterator[tuple[int | str, ...]]:
    spans = SpanReader(run / "corpus" / "spans.parquet")
    for batch in read_documents(run / "corpus" / "documents.parquet"):
        for document, found in zip(batch, spans.of([document.id for document in batch]), strict=True):
            text = document.text
            for stored in found if not document.split.startswith("general") else []:
                span = stored.span
                context = text[max(0, span.start - _CONTEXT) : span.end + _CONTEXT]
                value = text[span.start : span.end]
                yield document.id, span.start, span.end, span.kind, span.sensitivity, value, context, _check(text)


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
